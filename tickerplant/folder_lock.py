"""One process at a time in a folder: a file in it is locked as long as that process lives, however it ends."""

import fcntl
import os
from pathlib import Path


def lock_folder(folder: Path, name: str) -> int:
    """Make `folder` if need be, and lock its file `name`, kept in it for good: the descriptor that holds the lock.

    Raises `BlockingIOError` if another process has the lock, any other `OSError` if the folder cannot be used.
    """
    folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    lock = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock
