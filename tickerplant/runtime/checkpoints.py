"""The checkpoints of recovery in the folder of the tick log: written aside and renamed, the newest two kept."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from tickerplant.core.checkpoint import decode_checkpoint
from tickerplant.core.logformat import LogPosition
from tickerplant.core.recovery_state import PlantState
from tickerplant.errors import DamagedCheckpointError
from tickerplant.limits import CHECKPOINT_MAX_BYTES, CHECKPOINTS_KEPT

CHECKPOINTS_FOLDER = "checkpoints"
_NAME = re.compile(r"([0-9]{20})-([0-9]{8})-([0-9]{12})\.ckpt")
_FRESH_SUFFIX = ".new"


class Restored(NamedTuple):
    """A checkpoint that was read; `refused` are what was wrong with newer ones."""

    position: LogPosition
    state: PlantState
    refused: list[str]


def checkpoint_path(folder: Path, position: LogPosition) -> Path:
    """The file of a checkpoint of the log in `folder`."""
    session, ordinal, offset = position
    return folder / CHECKPOINTS_FOLDER / f"{session:020d}-{ordinal:08d}-{offset:012d}.ckpt"


def checkpoint_positions(folder: Path) -> list[LogPosition]:
    """The positions of the checkpoints there are, oldest first. Raises `OSError`."""
    try:
        file_names = os.listdir(folder / CHECKPOINTS_FOLDER)  # noqa: PTH208  # names are enough
    except FileNotFoundError:
        return []
    matches = (_NAME.fullmatch(file_name) for file_name in file_names)
    return sorted(LogPosition(*map(int, match.groups())) for match in matches if match is not None)


def read_checkpoint(folder: Path, position: LogPosition) -> PlantState:
    """The state that was kept. Raises `DamagedCheckpointError`, `OSError`."""
    path = checkpoint_path(folder, position)
    with path.open("rb") as file:
        content = file.read(CHECKPOINT_MAX_BYTES + 1)
    if len(content) > CHECKPOINT_MAX_BYTES:
        raise DamagedCheckpointError(f"{path.name} is larger than {CHECKPOINT_MAX_BYTES} B")
    try:
        kept, state = decode_checkpoint(content)
    except DamagedCheckpointError as error:
        raise DamagedCheckpointError(f"{path.name}: {error}") from error
    if kept != position:
        raise DamagedCheckpointError(f"{path.name} is of another position")
    return state


class CheckpointFile:
    """One being written: `write` its pieces, then `commit`, or `discard` it. May be used on a thread."""

    def __init__(self, folder: Path, position: LogPosition) -> None:
        """Opens the file aside. Raises `OSError`."""
        self._folder = folder
        self._path = checkpoint_path(folder, position)
        self._path.parent.mkdir(mode=0o750, exist_ok=True)
        self._fresh = self._path.with_suffix(_FRESH_SUFFIX)
        self._file = self._fresh.open("wb")

    def write(self, piece: bytes) -> None:
        """Raises `OSError`."""
        self._file.write(piece)

    def commit(self) -> LogPosition:
        """Make it a checkpoint and delete old ones; the position from which the log is needed. Raises `OSError`."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._fresh.replace(self._path)
        positions = checkpoint_positions(self._folder)
        for old in positions[:-CHECKPOINTS_KEPT]:
            checkpoint_path(self._folder, old).unlink(missing_ok=True)
        for left in self._path.parent.glob(f"*{_FRESH_SUFFIX}"):
            left.unlink(missing_ok=True)
        return positions[-CHECKPOINTS_KEPT:][0]

    def discard(self) -> None:
        """Harmless at any time."""
        self._file.close()
        self._fresh.unlink(missing_ok=True)
