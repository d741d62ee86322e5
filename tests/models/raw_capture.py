"""Small raw captures on disk, and reading them back."""

import random
from pathlib import Path

import msgspec

from tickerplant.runtime.capturefolder import capture_files
from tickerplant.runtime.capturereader import CaptureFault, CaptureReader
from tickerplant.runtime.captureupkeep import CaptureOptions
from tickerplant.runtime.capturewriter import CaptureWriter, open_capture

SESSION = 1_790_000_000_000_000_000
PLAIN = CaptureOptions(segment_max_bytes=4_096, max_bytes=1 << 30, compress=False)
"""Small segments that stay as they are."""


def options_of(**values: object) -> CaptureOptions:
    """`PLAIN` with other values."""
    return msgspec.structs.replace(PLAIN, **values)


def payloads(count: int, size: int = 100, seed: int = 1) -> list[bytes]:
    """Records that differ."""
    chance = random.Random(seed)
    return [chance.randbytes(1 + chance.randrange(2 * size)) for _ in range(count)]


def write_all(writer: CaptureWriter, records: list[bytes]) -> None:
    """Every record, and each is kept."""
    for record in records:
        writer.write(record)
    assert writer.is_on, writer.status().reason


def write_capture(
    folder: Path, records: list[bytes], session: int = SESSION, options: CaptureOptions = PLAIN
) -> None:
    """A session's capture, closed."""
    writer = open_capture(folder, session, options)
    write_all(writer, records)
    assert writer.close()


def read_capture(
    folder: Path, session: int = SESSION
) -> tuple[list[bytes], list[CaptureFault], int]:
    """(records, faults, torn bytes)"""
    reader = CaptureReader(folder, session)
    records = list(reader.records())
    return records, reader.faults, reader.torn_bytes


def segment_paths(folder: Path) -> list[Path]:
    """The files of the segments in the order of writing."""
    return [file.path for file in capture_files(folder)]
