"""The folder of the raw capture: its segments, compressed or not, and its lock.

capture.lock                      held (flock) by the one plant that writes here
<session>-<ordinal>.ktc           segments as they are written
<session>-<ordinal>.ktc.gz        the same once they are closed and compressed
<session>-<ordinal>.ktc.gz.part   one that is being compressed
"""

import errno
import gzip
import os
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from tickerplant.core.captureformat import COMPRESSED_SUFFIX, CaptureName
from tickerplant.errors import CaptureError
from tickerplant.folder_lock import lock_folder

LOCK_FILE = "capture.lock"
PART_SUFFIX = COMPRESSED_SUFFIX + ".part"
DEFAULT_FOLDER = "capture"
"""Inside the state directory."""
REMEDY = "make it a folder that this user can write, or set capture.directory"
_SHORT_OF_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


class CaptureFile(NamedTuple):
    """A segment in the folder; `changed_s` is the wall clock's time of its last change."""

    name: CaptureName
    path: Path
    size_bytes: int
    changed_s: float

    @property
    def is_compressed(self) -> bool:
        """Whether it is `.ktc.gz`."""
        return self.path.name.endswith(COMPRESSED_SUFFIX)


def capture_folder(directory: str, state_directory: Path) -> Path:
    """The folder of `capture.directory`; empty: inside the state directory."""
    return Path(directory).expanduser() if directory else state_directory / DEFAULT_FOLDER


def compressed_path(folder: Path, name: CaptureName) -> Path:
    """Where a segment stands once it is compressed."""
    return (folder / str(name)).with_suffix(COMPRESSED_SUFFIX)


def capture_files(folder: Path) -> list[CaptureFile]:
    """The segments in the order of writing, one file for each. Raises `OSError`."""
    files: dict[CaptureName, CaptureFile] = {}
    for entry in os.scandir(folder):
        name = CaptureName.parse(entry.name)
        if name is None:
            continue
        try:
            status = entry.stat()
        except FileNotFoundError:
            continue
        file = CaptureFile(name, Path(entry.path), status.st_size, status.st_mtime)
        # Where both are there, one of them is about to be removed: the compressed one was whole when it was named.
        if name not in files or file.is_compressed:
            files[name] = file
    return [files[name] for name in sorted(files)]


def open_segment(folder: Path, name: CaptureName) -> BinaryIO:
    """The content of a segment, compressed or not. Raises `OSError`, `FileNotFoundError` if it was deleted."""
    try:
        return (folder / str(name)).open("rb")
    except FileNotFoundError:
        return cast(BinaryIO, gzip.open(compressed_path(folder, name), "rb"))


def require_capture(folder: Path) -> Path:
    """`folder`, for reading. Raises `CaptureError` if there is no capture in it."""
    try:
        if not capture_files(folder) and not (folder / LOCK_FILE).exists():
            raise CaptureError(
                f"{folder} holds no capture: name its folder with --directory, or the plant's configuration"
            )
    except OSError as error:
        raise CaptureError(
            f"capture {folder}: {error.strerror}: name its folder with --directory, or set capture.directory"
        ) from error
    return folder


def unusable(path: Path, error: OSError) -> CaptureError:
    """The error for a folder in which the plant cannot write."""
    return CaptureError(f"capture: {path}: {error.strerror}: {REMEDY}")


def trouble_text(doing: str, path: Path, error: OSError) -> str:
    """One line about an error of the disk, with the remedy."""
    if error.errno in _SHORT_OF_SPACE:
        remedy = "free some space, or lower capture.max_bytes"
    elif error.errno == errno.EFBIG:
        remedy = "raise the limit on file size (`ulimit -f`)"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "make the folder writable for this user"
    else:
        remedy = "check the disk (`dmesg`)"
    return f"{doing} {path}: {error.strerror}: {remedy}"


def take_lock(folder: Path) -> int:
    """Make and lock the folder: the descriptor that holds the lock.

    Raises `CaptureError` if another plant holds it or it cannot be used.
    """
    try:
        return lock_folder(folder, LOCK_FILE)
    except BlockingIOError:
        raise CaptureError(
            f"{folder / LOCK_FILE} is locked by another plant: stop it, or set capture.directory to another folder"
        ) from None
    except OSError as error:
        raise unusable(folder, error) from error
