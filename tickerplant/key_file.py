"""The file of datagram keys: one key a line, `key id` and 64 hex digits, the first signs and all verify.

Plant, recovery and subscribers read the same format, so this module belongs to all of them. A new key is rolled out
without a moment in which anybody refuses the feed; the runbook has the steps.
"""

import contextlib
import os
import secrets
import stat
from collections.abc import Container
from pathlib import Path

from tickerplant.core.keyring import KEY_ID_MAX, KeyRing, format_key, parse_keys
from tickerplant.errors import CredentialsError
from tickerplant.limits import DATAGRAM_KEY_BYTES, DATAGRAM_KEY_FILE_MAX_BYTES

_HEAD = "# Keys of the ticker plant's datagrams: key id and key. The first signs, all verify. Keep it secret.\n"
_READABLE_BY_ALL = 0o004
_OPTION = "name another file (publish.key_path, --key)"


class KeyFile:
    """A key file that may change while it is in use. Raises `CredentialsError` if it cannot be read at first."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self._seen = _fingerprint(self.path)
        self.ring = read_keys(self.path)

    def reread(self) -> bool:
        """Takes over a changed file; whether the keys are other ones now. `ring` stays if the file is of no use.

        Raises `CredentialsError` once for each change to a file of no use.
        """
        seen = _fingerprint(self.path)
        if seen == self._seen:
            return False
        self._seen = seen
        ring = read_keys(self.path)
        is_changed = list(ring.keys.items()) != list(self.ring.keys.items())
        self.ring = ring
        return is_changed


def read_keys(path: str | Path) -> KeyRing:
    """The keys in a file. Raises `CredentialsError`, one line that names the file and the remedy, never a key."""
    path = Path(path).expanduser()
    text = _read(path)
    try:
        return parse_keys(text)
    except CredentialsError as error:
        raise CredentialsError(f"datagram key file {path}: {error}") from None


def is_readable_by_all(path: str | Path) -> bool:
    """Whether every user of the host can read the file; False if it is not there."""
    try:
        return bool(Path(path).expanduser().stat().st_mode & _READABLE_BY_ALL)
    except OSError:
        return False


def make_key_file(path: Path, key_id: int | None = None) -> int:
    """Makes a file (mode 600) with one fresh key; returns its id. Raises `CredentialsError` if the file exists."""
    key_id = _new_id(()) if key_id is None else key_id
    line = format_key(key_id, secrets.token_bytes(DATAGRAM_KEY_BYTES))
    parse_keys(line)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise CredentialsError(
            f"datagram key file {path} exists already: `tickerplant key add {path}` adds a key to it"
        ) from None
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        _write(descriptor, _HEAD + line)
    except OSError as error:
        path.unlink()
        raise _unwritable(path, error) from None
    return key_id


def add_key(path: Path, key_id: int | None = None) -> int:
    """Adds a fresh key at the end, which verifies and does not sign yet; returns its id. The file is replaced at once.

    Raises `CredentialsError`.
    """
    ring = read_keys(path)
    key_id = _new_id(ring.keys) if key_id is None else key_id
    line = format_key(key_id, secrets.token_bytes(DATAGRAM_KEY_BYTES))
    _replace(path, f"{_read(path).rstrip()}\n{line}")
    return key_id


def sign_with(path: Path, key_id: int) -> None:
    """Makes a key that the file holds the first one. Raises `CredentialsError`."""
    ring = read_keys(path)
    if key_id not in ring.keys:
        held = ", ".join(map(str, ring.keys))
        raise CredentialsError(
            f"datagram key file {path} holds no key {key_id}: choose one of {held}"
        )
    _rewrite(path, [key_id, *(other for other in ring.keys if other != key_id)], ring)


def remove_key(path: Path, key_id: int) -> None:
    """Takes a key out that does not sign. Raises `CredentialsError`."""
    ring = read_keys(path)
    if key_id not in ring.keys or key_id == ring.signing_key_id:
        others = ", ".join(map(str, list(ring.keys)[1:])) or "none"
        raise CredentialsError(
            f"key {key_id} cannot be taken out of {path}: choose one that does not sign ({others})"
        )
    _rewrite(path, [other for other in ring.keys if other != key_id], ring)


def _rewrite(path: Path, key_ids: list[int], ring: KeyRing) -> None:
    lines = [format_key(key_id, ring.keys[key_id]) for key_id in key_ids]
    _replace(path, "".join([_HEAD, *lines]))


def _replace(path: Path, text: str) -> None:
    """Atomically, with the owner and mode that the file has. Raises `CredentialsError` and leaves it as it was."""
    try:
        parse_keys(text)
    except CredentialsError as error:
        raise CredentialsError(f"datagram key file {path}: {error}") from None
    fresh = path.with_name(f"{path.name}.new")
    try:
        status = path.stat()
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.fchown(descriptor, status.st_uid, status.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
            _write(descriptor, text)
            fresh.replace(path)
        except BaseException:
            fresh.unlink()
            raise
    except OSError as error:
        raise _unwritable(path, error) from None


def _write(descriptor: int, text: str) -> None:
    with open(descriptor, "w", encoding="ascii") as file:  # a descriptor
        file.write(text)
        file.flush()
        os.fsync(descriptor)


def _new_id(taken: Container[int]) -> int:
    """Random, so that the keys of two plants in one file do not meet."""
    while True:
        key_id = 1 + secrets.randbelow(KEY_ID_MAX)
        if key_id not in taken:
            return key_id


def _read(path: Path) -> str:
    what = f"datagram key file {path}"
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CredentialsError(f"{what} is not a regular file: {_OPTION}")
        if status.st_size > DATAGRAM_KEY_FILE_MAX_BYTES:
            raise CredentialsError(
                f"{what} is larger than {DATAGRAM_KEY_FILE_MAX_BYTES} bytes: {_OPTION}"
            )
        with path.open("rb") as file:
            return file.read(DATAGRAM_KEY_FILE_MAX_BYTES).decode("ascii")
    except FileNotFoundError:
        raise CredentialsError(
            f"{what} is not there: make it with `tickerplant key make {path}`, or {_OPTION}"
        ) from None
    except PermissionError:
        raise CredentialsError(
            f"{what} cannot be read: give this user access (chgrp, chmod 640)"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise CredentialsError(f"{what} cannot be read ({reason}): {_OPTION}") from None


def _unwritable(path: Path, error: OSError) -> CredentialsError:
    return CredentialsError(
        f"datagram key file {path} cannot be written ({error.strerror}): choose another folder"
    )


def _fingerprint(path: Path) -> tuple[int, int, int] | None:
    """What changes with the content of a file; None if it is not there."""
    with contextlib.suppress(OSError):
        status = path.stat()
        return status.st_mtime_ns, status.st_ino, status.st_size
    return None
