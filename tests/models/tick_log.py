"""Datagrams as a plant would send them, and small tick logs."""

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import msgspec

from tickerplant.core.logformat import STREAM_COUNT, NextSeqs
from tickerplant.core.messages import Bbo, LevelUpdate, Stream
from tickerplant.core.packets import Datagram
from tickerplant.core.wire import HeartbeatBody, Kind, encode_datagram, encode_heartbeat
from tickerplant.limits import LOG_READ_BYTES
from tickerplant.runtime.logfolder import segment_names
from tickerplant.runtime.logreader import LogFault, LogReader
from tickerplant.runtime.ticklog import TickLog, TickLogOptions, open_ticklog

SESSION = 1_790_000_000_000_000_000
SECOND_NS = 1_000_000_000
QUICK = TickLogOptions(
    fsync_interval_ms=20, resume_wait_s=0.0, segment_max_bytes=16_384, overrun_bytes=32 << 20
)
"""Small segments, and no wait before the log may resume."""


MODELS = Path(__file__).parent


def options_of(**values: object) -> TickLogOptions:
    """`QUICK` with other values."""
    return msgspec.structs.replace(QUICK, **values)


LARGE = options_of(segment_max_bytes=1 << 20)
"""Segments that no test fills by accident."""


class Sender:
    """The sequences of a session; makes the next datagrams."""

    def __init__(self, session: int = SESSION) -> None:
        self.session = session
        self.seqs = [1] * STREAM_COUNT

    @property
    def next_seqs(self) -> NextSeqs:
        return tuple(self.seqs)

    def data(
        self, stream: Stream = Stream.DELTA, count: int = 1, ticker: str = "KXBTC"
    ) -> Datagram:
        """`count` messages in one datagram."""
        seq = self.seqs[stream - 1]
        now_ns = self.session + seq
        kind = {Stream.BBO: Bbo, Stream.DELTA: LevelUpdate}[stream]
        values = (4_200, 100, 4_300, 500, 1) if kind is Bbo else (0, 4_200, 100, 500)
        messages = [kind(ticker, seq, now_ns, now_ns, *values)] * count
        self.seqs[stream - 1] += count
        return stream, encode_datagram(0, stream, self.session, seq, now_ns, messages)

    def heartbeat(self, stream: Stream, kind: Kind = Kind.HEARTBEAT) -> Datagram:
        seq = self.seqs[stream - 1]
        body = HeartbeatBody(seq - 1, 1, True)
        return stream, encode_heartbeat(
            stream, self.session, seq, self.session + seq, body, kind=kind
        )

    def ends(self) -> list[Datagram]:
        return [self.heartbeat(stream, Kind.END_OF_SESSION) for stream in Stream]


def begun(folder: Path, session: int = SESSION, options: TickLogOptions = QUICK) -> TickLog:
    """A log whose session has begun."""
    ticklog = open_ticklog(folder, options)
    assert ticklog.begin_session(session, session)
    return ticklog


def write_log(
    folder: Path, session: int = SESSION, count: int = 10, *, ends: bool = True
) -> Sender:
    """A session of `count` datagrams on the delta stream, closed."""
    sender = Sender(session)
    with begun(folder, session) as ticklog:
        for _ in range(count):
            assert ticklog.append([sender.data()])
        if ends:
            assert ticklog.append(sender.ends())
            ticklog.end_session()
    return sender


def read_all(reader: LogReader) -> tuple[list[bytes], list[LogFault]]:
    """All datagrams and faults up to the present end."""
    datagrams, faults = [], []
    while (batch := reader.read()) is not None:
        datagrams += [datagram for _offset, datagram in batch.records]
        faults += batch.faults
    return datagrams, faults


def read_folder(
    folder: Path, read_bytes: int = LOG_READ_BYTES
) -> tuple[list[bytes], list[LogFault]]:
    with LogReader(folder, read_bytes=read_bytes) as reader:
        return read_all(reader)


def eventually(condition, what: str = "it", seconds: float = 10.0) -> None:
    """Returns as soon as `condition()` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:g} seconds"
        time.sleep(0.002)


def newest(folder: Path) -> Path:
    return folder / str(segment_names(folder)[-1])


def python(code: str, *arguments: object, prefix: tuple[str, ...] = ()) -> list[str]:
    preamble = f"import sys; sys.path.append({str(MODELS)!r})\n"
    command = [sys.executable, "-P", "-c", preamble + textwrap.dedent(code)]
    return [*prefix, *command, *map(str, arguments)]


def run_python(code: str, *arguments: object, prefix: tuple[str, ...] = ()) -> None:
    """Run it in a process of its own; its assertions are this test's."""
    done = subprocess.run(
        python(code, *arguments, prefix=prefix),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
