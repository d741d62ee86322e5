"""The folder of the tick log: its segments, its lock, and the positions of those who read it.

ticklog.lock                      held (flock) by the one plant that writes here; says which, and if its log is on
<session>-<ordinal>.ktl           segments
next-<any>.spare                  the segment to come, not yet named
positions/<consumer>.json         how far a consumer has taken the log: retention deletes nothing after it
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

import msgspec

from tickerplant.core.logformat import LogPosition, SegmentName
from tickerplant.errors import TickLogError
from tickerplant.folder_lock import lock_folder
from tickerplant.limits import LOG_CONSUMERS_MAX, LOG_OWNER_BYTES, LOG_POSITION_MAX_BYTES

LOCK_FILE = "ticklog.lock"
SPARE_SUFFIX = ".spare"
POSITIONS_FOLDER = "positions"
DEFAULT_FOLDER = "ticklog"
"""Inside the state directory."""
BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")
REMEDY = "make it a folder that this user can write, or set ticklog.directory"

_CONSUMER_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_POSITION_SUFFIX = ".json"


class SegmentFile(NamedTuple):
    """A segment in the folder; `changed_s` is the wall clock's time of its last change."""

    name: SegmentName
    size_bytes: int
    changed_s: float


class Owner(msgspec.Struct, frozen=True):
    """What the lock file says: who writes, which session is the newest, and what became of its log.

    `log`: on, off (some of the session is not in the log) or ended (all of it is).
    """

    pid: int
    session: int = 0
    log: str = "on"


def log_folder(directory: str, state_directory: Path) -> Path:
    """The folder of `ticklog.directory`; empty: inside the state directory."""
    return Path(directory).expanduser() if directory else state_directory / DEFAULT_FOLDER


def boot_id() -> bytes:
    """16 bytes that differ after each boot of the machine; zeros if the kernel does not tell."""
    try:
        return bytes.fromhex(BOOT_ID_FILE.read_bytes().decode().strip().replace("-", ""))
    except (OSError, ValueError):
        return bytes(16)


def segment_names(folder: Path) -> list[SegmentName]:
    """The segments in the order of writing. Raises `OSError`."""
    parsed = (SegmentName.parse(file_name) for file_name in os.listdir(folder))  # noqa: PTH208  # names are enough
    return sorted(name for name in parsed if name is not None)


def segment_files(folder: Path) -> list[SegmentFile]:
    """The segments with their sizes, in the order of writing. Raises `OSError`."""
    files = []
    for name in segment_names(folder):
        try:
            status = (folder / str(name)).stat()
        except FileNotFoundError:
            continue
        files.append(SegmentFile(name, status.st_size, status.st_mtime))
    return files


def require_folder(folder: Path) -> Path:
    """`folder`, for reading. Raises `TickLogError` if there is no log in it."""
    try:
        if not segment_names(folder) and not (folder / LOCK_FILE).exists():
            raise TickLogError(
                f"{folder} holds no tick log: name its folder with --directory, or the plant's configuration"
            )
    except OSError as error:
        raise TickLogError(
            f"tick log {folder}: {error.strerror}: name its folder with --directory, or set ticklog.directory"
        ) from error
    return folder


def unusable(path: Path, error: OSError) -> TickLogError:
    """The error for a folder in which the plant cannot write."""
    return TickLogError(f"tick log: {path}: {error.strerror}: {REMEDY}")


# --- lock -----------------------------------------------------------------------------------------


def take_lock(folder: Path) -> tuple[int, Owner | None]:
    """Make and lock the folder: the descriptor that holds the lock, and what the last owner said.

    Raises `TickLogError` if another plant holds it or it cannot be used.
    """
    try:
        lock = lock_folder(folder, LOCK_FILE)
    except BlockingIOError:
        owner = read_owner(folder)
        holder = f"process {owner.pid}" if owner is not None else "another process"
        raise TickLogError(
            f"{folder / LOCK_FILE} is locked by {holder}, another plant: stop it, or set ticklog.directory to another "
            "folder"
        ) from None
    except OSError as error:
        raise unusable(folder, error) from error
    return lock, _decode_owner(os.pread(lock, LOG_OWNER_BYTES, 0))


def write_owner(lock: int, owner: Owner) -> None:
    """Say it in the lock file, in place. Raises `OSError`."""
    content = msgspec.json.encode(owner)
    assert len(content) < LOG_OWNER_BYTES
    os.pwrite(lock, content.ljust(LOG_OWNER_BYTES - 1) + b"\n", 0)


def read_owner(folder: Path) -> Owner | None:
    """What the owner, perhaps a former one, said last; None if it cannot be read."""
    try:
        with (folder / LOCK_FILE).open("rb") as file:
            return _decode_owner(file.read(LOG_OWNER_BYTES))
    except OSError:
        return None


def _decode_owner(content: bytes) -> Owner | None:
    try:
        return msgspec.json.decode(content, type=Owner)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


# --- positions of consumers -----------------------------------------------------------------------


def store_position(folder: Path, consumer: str, position: LogPosition) -> None:
    """Keep how far `consumer` has taken the log; it is registered by that. Raises `OSError`.

    Renamed into place, not fsynced: a power cut can bring an older position back, never a wrong one.
    """
    path = _position_path(folder, consumer)
    fresh = path.with_suffix(".new")
    path.parent.mkdir(mode=0o750, exist_ok=True)
    fresh.write_bytes(msgspec.json.encode(position._asdict()))
    fresh.replace(path)


def load_position(folder: Path, consumer: str) -> LogPosition | None:
    """Where `consumer` goes on; None if it has not begun. Raises `TickLogError` if its file is damaged."""
    path = _position_path(folder, consumer)
    try:
        return _decode_position(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise TickLogError(
            f"position {path} cannot be read ({error}): remove it, and {consumer} starts at the oldest record"
        ) from error


def read_positions(folder: Path) -> dict[str, LogPosition | None]:
    """The position of each registered consumer; None where it cannot be read, so that all is to be kept.

    Raises `OSError` if the folder cannot be listed.
    """
    positions: dict[str, LogPosition | None] = {}
    try:
        file_names = sorted(os.listdir(folder / POSITIONS_FOLDER))  # noqa: PTH208  # names are enough
    except FileNotFoundError:
        return positions
    for file_name in file_names:
        path = folder / POSITIONS_FOLDER / file_name
        if path.suffix != _POSITION_SUFFIX:
            continue
        try:
            positions[path.stem] = _decode_position(path)
        except FileNotFoundError:
            continue
        except (OSError, ValueError):
            positions[path.stem] = None
        if len(positions) > LOG_CONSUMERS_MAX:
            positions[path.stem] = None
            break
    return positions


def _position_path(folder: Path, consumer: str) -> Path:
    assert _CONSUMER_NAME.fullmatch(consumer), consumer
    return folder / POSITIONS_FOLDER / f"{consumer}{_POSITION_SUFFIX}"


def _decode_position(path: Path) -> LogPosition:
    """Raises `OSError`, and `ValueError` for content that is no position."""
    with path.open("rb") as file:
        content = file.read(LOG_POSITION_MAX_BYTES)
    fields = msgspec.json.decode(content, type=dict[str, int])
    return LogPosition(**_checked(fields))


def _checked(fields: dict[str, int]) -> dict[str, int]:
    if fields.keys() != set(LogPosition._fields) or min(fields.values()) < 0:
        raise ValueError("it is no position")
    return fields
