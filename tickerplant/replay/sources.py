"""Recordings as (time sent, datagram) pairs, for `tickerplant_subscriber.replay`."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from tickerplant.core.packets import Datagram
from tickerplant.errors import CaptureError
from tickerplant.replay.offline import OfflinePlant, read_jsonl
from tickerplant.runtime.capturefolder import require_capture
from tickerplant.runtime.capturereader import CaptureReader, choose_session
from tickerplant_kalshi.playback import play
from tickerplant_subscriber.log_source import TimedDatagram


def capture_datagrams(folder: Path, session: int | None = None) -> Iterator[TimedDatagram]:
    """A session of a raw capture, None: the newest, put through a plant again.

    Raises `CaptureError` at once if there is none, `DamagedCaptureError` where it is damaged.
    """
    require_capture(folder)
    try:
        reader = CaptureReader(folder, choose_session(folder, session))
        return _each(play(reader.whole_records()))
    except OSError as error:
        raise CaptureError(f"capture {folder}: {error.strerror}") from error


def jsonl_datagrams(path: Path, *, use_yes_price: bool = False) -> Iterator[TimedDatagram]:
    """A JSONL recording of frames, put through a plant. Raises `ConfigurationError`, `ObsoleteFormatError`."""
    return _each(OfflinePlant(read_jsonl(path), use_yes_price=use_yes_price).datagrams())


def _each(batches: Iterable[tuple[int, list[Datagram]]]) -> Iterator[TimedDatagram]:
    for now_ns, datagrams in batches:
        for _stream, datagram in datagrams:
            yield now_ns, datagram
