"""What must hold before the first datagram: one plant per state directory, free groups, a session never used before.

The session is kept in the state directory, written and fsynced before anything is sent under it, and the directory is
locked for as long as the plant lives, so that no session can ever be used twice.
"""

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Self

import msgspec

from tickerplant.core.keyring import KeyRing
from tickerplant.core.messages import Stream
from tickerplant.core.wire import FLAG_SNAPSHOT, FLAGS_OFFSET, HEADER, MAGIC, decode_header
from tickerplant.errors import StateDirectoryError, WireError
from tickerplant.folder_lock import lock_folder
from tickerplant.limits import (
    DATAGRAM_MAX_BYTES,
    HEADER_BYTES,
    REPLAY_WINDOW_NS,
    SESSION_AHEAD_MAX_NS,
    STATE_FILE_MAX_BYTES,
    WATCHED_DATAGRAMS_MAX,
)
from tickerplant.runtime.network import IP_MULTICAST_ALL, Line

LOCK_FILE = "plant.lock"
SESSION_FILE = "session.json"
_REMEDY = "make it writable for this user, or set state.directory"


class SessionRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The newest session; `final_seqs` are (stream, next seq) if it ended in order, else empty."""

    session: int
    final_seqs: tuple[tuple[int, int], ...] = ()


_NONE = SessionRecord(0)


class SessionState:
    """The locked state directory of a living plant; `open_session_state` makes it."""

    def __init__(self, directory: Path, lock: int) -> None:
        """`lock` is the descriptor that holds the lock."""
        self.directory = directory
        self._lock = lock
        self._writing = Lock()
        self._is_finished = False
        self.damaged = False
        """True if the session file was there and could not be read; the clock alone then gives the session."""
        self.previous = self._read()

    def next_session(self, now_ns: int, heard_session: int) -> int:
        """A session above the last one here, the highest heard on our groups, and the clock's own."""
        return max(now_ns, self.previous.session + 1, heard_session + 1)

    def begin(self, session: int) -> None:
        """Keep `session` for good, before anything is sent under it. Raises `StateDirectoryError`.

        May be called in any thread; after `finish` it does nothing.
        """
        with self._writing:
            if not self._is_finished:
                self._write(SessionRecord(session))

    def finish(self, session: int, final_seqs: tuple[tuple[int, int], ...]) -> None:
        """Keep how the last session ended. Raises `StateDirectoryError`."""
        with self._writing:
            self._is_finished = True
            self._write(SessionRecord(session, final_seqs))

    def close(self) -> None:
        """Let the directory go; harmless the second time."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Let the directory go."""
        self.close()

    def _read(self) -> SessionRecord:
        path = self.directory / SESSION_FILE
        try:
            with path.open("rb") as file:
                content = file.read(STATE_FILE_MAX_BYTES)
            return msgspec.json.decode(content, type=SessionRecord)
        except FileNotFoundError:
            return _NONE
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.damaged = True
            return _NONE
        except OSError as error:
            raise _unusable(path, error) from error

    def _write(self, record: SessionRecord) -> None:
        """Atomically: a power cut leaves the old record or the new one."""
        path = self.directory / SESSION_FILE
        fresh = self.directory / f"{SESSION_FILE}.new"
        try:
            with fresh.open("wb") as file:
                file.write(msgspec.json.encode(record))
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
            folder = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise _unusable(path, error) from error


def open_session_state(directory: Path) -> SessionState:
    """Make and lock the state directory. Raises `StateDirectoryError` if it cannot be had."""
    path = directory / LOCK_FILE
    try:
        lock = lock_folder(directory, LOCK_FILE)
    except BlockingIOError:
        pid = path.read_bytes()[:32].decode("ascii", "replace").strip()
        holder = f"process {pid}" if pid.isdecimal() else "another process"
        raise StateDirectoryError(
            f"{path} is locked by {holder}, another plant: stop it, or set state.directory to another folder"
        ) from None
    except OSError as error:
        raise _unusable(directory, error) from error
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        return SessionState(directory, lock)
    except OSError as error:
        os.close(lock)
        raise _unusable(path, error) from error
    except BaseException:
        os.close(lock)
        raise


def _unusable(path: Path, error: OSError) -> StateDirectoryError:
    return StateDirectoryError(f"state directory: {path}: {error.strerror}: {_REMEDY}")


class SessionWatch:
    """Listens on our own status group for a plant with a higher session: then ours must go.

    It is looked at once a second, not whenever something arrives, so that our own datagrams cost the loop nothing.
    """

    def __init__(
        self,
        line: Line,
        port: int,
        session: int,
        clock_ns: Callable[[], int],
        key_ring: KeyRing | None = None,
    ) -> None:
        """Joins; `session` is our own. Raises `OSError` if the group cannot be joined.

        With a `key_ring` only what is signed, and was sent lately, counts.
        """
        self.key_ring = key_ring
        self._session = session
        self._clock_ns = clock_ns
        group = line.groups[Stream.STATUS - 1]
        self._receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._receiver.setblocking(False)
            self._receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._receiver.setsockopt(socket.IPPROTO_IP, IP_MULTICAST_ALL, 0)
            self._receiver.bind((group, port))
            membership = socket.inet_aton(group) + socket.inet_aton(line.interface)
            self._receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        except BaseException:
            self._receiver.close()
            raise

    def begin(self, session: int) -> None:
        """Our own session is another one now."""
        self._session = session

    def newer_session(self) -> int:
        """The highest session above ours among the datagrams that wait; 0 if there is none."""
        highest = 0
        now_ns = self._clock_ns()
        with suppress(BlockingIOError):
            for _ in range(WATCHED_DATAGRAMS_MAX):
                datagram = self._receiver.recv(DATAGRAM_MAX_BYTES + 1)
                session = self._session_of(datagram)
                if self._session < session <= now_ns + SESSION_AHEAD_MAX_NS:
                    highest = max(highest, session if self._counts(datagram, now_ns) else 0)
        return highest

    def _session_of(self, datagram: bytes) -> int:
        """What the header says, which need not be true; 0 if it is none."""
        if len(datagram) < HEADER_BYTES:
            return 0
        magic, *_, session, _seq, _ts, _count, _body, _pub, _part = HEADER.unpack_from(datagram)
        return int(session) if magic == MAGIC else 0

    def _counts(self, datagram: bytes, now_ns: int) -> bool:
        if datagram[FLAGS_OFFSET] & FLAG_SNAPSHOT:
            return False  # somebody plays a recording where it does not belong
        if self.key_ring is None:
            return True
        try:
            header = decode_header(datagram)
            self.key_ring.verify(datagram)
        except WireError:
            return False
        return abs(now_ns - header.ts_send_ns) <= REPLAY_WINDOW_NS

    def close(self) -> None:
        """Leave the group."""
        self._receiver.close()
