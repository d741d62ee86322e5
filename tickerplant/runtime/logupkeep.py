"""What the tick log needs besides writing, on a thread of its own, so that the hot path never waits for a disk.

It syncs, closes what was rotated, makes the next segment's file, looks whether the file being written is still there,
and deletes what is beyond the retention. Its findings stand in attributes that the writer reads; each attribute is
written by one of the two only, or in one step. It does little between two system calls: the writer waits for the
interpreter meanwhile.
"""

import errno
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from tickerplant.core.logformat import (
    SEGMENT_HEADER_BYTES,
    LogPosition,
    SegmentName,
)
from tickerplant.errors import TickLogError
from tickerplant.limits import (
    LOG_ALARM_PERCENT,
    LOG_RESUME_WAIT_MAX_S,
    LOG_RESUME_WAIT_S,
    LOG_SEGMENT_OVERRUN_BYTES,
    LOG_SEGMENTS_MAX,
    LOG_STABLE_S,
    LOG_SURVEY_INTERVAL_S,
    LOG_WATCH_INTERVAL_S,
)
from tickerplant.runtime.logfolder import (
    LOCK_FILE,
    SPARE_SUFFIX,
    SegmentFile,
    read_positions,
    segment_files,
    take_lock,
)

FSYNC_INTERVAL = "interval"
FSYNC_NEVER = "never"
FSYNC_POLICIES = (FSYNC_INTERVAL, FSYNC_NEVER)
_NEW_FILE = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_FILE_MODE = 0o640
_PROBE_BYTES = 4_096

_CODES = {
    errno.ENOSPC: ("disk_full", "free some space"),
    errno.EDQUOT: ("disk_full", "free some space or raise the quota"),
    errno.EFBIG: ("file_too_large", "raise the limit on file size (`ulimit -f`)"),
    errno.EACCES: ("permission", "make the folder writable for this user"),
    errno.EPERM: ("permission", "make the folder writable for this user"),
    errno.EROFS: ("permission", "mount the file system writable"),
}


class TickLogOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the log is kept; the keys of [ticklog]."""

    segment_max_bytes: int = 256 * 1024**2
    segment_max_s: int = 3_600
    fsync: str = FSYNC_INTERVAL
    fsync_interval_ms: int = 1_000
    retain_s: int = 86_400
    retain_bytes: int = 16 * 1024**3
    max_bytes: int = 32 * 1024**3
    overrun_bytes: int = LOG_SEGMENT_OVERRUN_BYTES
    resume_wait_s: float = LOG_RESUME_WAIT_S
    """How long the log stays off at least; like the one before no key."""


class Trouble(NamedTuple):
    """Why the log went off: a code for counters, and a line for people that names the remedy."""

    code: str
    text: str


class Spare(NamedTuple):
    """An empty file, opened for appending, that can become a segment."""

    path: Path
    file: int


class OpenSegment(NamedTuple):
    """The segment being written."""

    name: SegmentName
    path: Path
    file: int


def trouble_of(doing: str, path: Path, error: OSError) -> Trouble:
    """What an error of the disk means."""
    code, remedy = _CODES.get(error.errno or 0, ("io_error", "check the disk (`dmesg`)"))
    return Trouble(code, f"{doing} {path}: {error.strerror}: {remedy}")


def new_spare(folder: Path) -> Spare:
    """Make one, of a name never used before: another one may be about to be renamed. Raises `OSError`."""
    path = folder / f"next-{os.urandom(8).hex()}{SPARE_SUFFIX}"
    return Spare(path, os.open(path, _NEW_FILE, _FILE_MODE))


class LogUpkeep:
    """The thread; `start`, then `close`.

    Written by the writer: `current`. Written here: the other attributes. `retired` and `spares` are handed over.
    """

    def __init__(
        self,
        folder: Path,
        options: TickLogOptions,
        lock: int,
        *,
        ask: Callable[[], None],
        written_bytes: Callable[[], int],
    ) -> None:
        """`lock` is the descriptor of the lock. `ask` makes the writer look at `trouble` and `is_rotation_due`;
        `written_bytes` tells how long it has made the current segment.
        """
        self.current: OpenSegment | None = None
        self.retired: deque[int] = deque()
        """Descriptors to sync and close."""
        self.spares: deque[Spare] = deque()
        """The next segment's file; one at most."""
        self.trouble: Trouble | None = None
        self.is_rotation_due = False
        self.may_resume = False
        self.closed_bytes = 0
        """Size of all segments but the current one."""
        self.oldest = SegmentName(0, 0)
        self.warnings: dict[str, str] = {}
        """What does not work and has not ended the log yet, by step."""
        self.counts: Counter[str] = Counter()
        self.sync_max_ns = 0
        self._folder = folder
        self._options = options
        self.lock = lock
        """The descriptor of the lock: the writer says there what becomes of the log."""
        self._old_locks: list[int] = []
        self._ask = ask
        self._written_bytes = written_bytes
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="ticklog upkeep", daemon=True)
        self._is_spare_unproven = False
        self._names: frozenset[SegmentName] = frozenset()
        self._seen: OpenSegment | None = None
        self._seen_since_s = 0.0
        self._synced_bytes = 0
        self._next_sync_s = 0.0
        self._next_watch_s = 0.0
        self._next_survey_s = 0.0
        self._on_since_s = self._off_since_s = time.monotonic()
        self._resume_wait_s = options.resume_wait_s

    # --- for the writer ---------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread, after a first look at the folder. Raises `OSError`."""
        self._survey()
        self._thread.start()

    def wake(self) -> None:
        """Something is to be done now: a rotation took place, or the log went off."""
        self._next_watch_s = self._next_survey_s = 0.0
        self._wake.set()

    def went_on(self) -> None:
        """A session has begun."""
        self.trouble = None
        self.may_resume = False
        self._on_since_s = time.monotonic()
        self.wake()

    def put_off(self) -> None:
        """The log went off, or could not go on: it may do so later, and later still the more often that happens."""
        now_s = time.monotonic()
        if now_s - self._on_since_s < LOG_STABLE_S:
            self._resume_wait_s = min(2 * self._resume_wait_s, LOG_RESUME_WAIT_MAX_S)
        else:
            self._resume_wait_s = self._options.resume_wait_s
        self._off_since_s = now_s
        self._is_spare_unproven = True
        self.may_resume = False
        self.wake()

    def close(self, timeout_s: float) -> bool:
        """Sync and close what was handed over, and unlock; False if that took too long and goes on by itself.

        Harmless the second time.
        """
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout_s)
        is_ended = not self._thread.is_alive()
        for lock in (*self._old_locks, self.lock):
            if lock >= 0:
                os.close(lock)
        self._old_locks, self.lock = [], -1
        return is_ended

    @property
    def is_alive(self) -> bool:
        """Whether the thread does its work."""
        return self._thread.is_alive()

    # --- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        interval_s = min(LOG_WATCH_INTERVAL_S, self._options.fsync_interval_ms / 1_000)
        while not self._stopping:
            self._wake.clear()
            self._round(time.monotonic())
            self._wake.wait(interval_s)
        self._retire()
        self._discard_spare()

    def _round(self, now_s: float) -> None:
        self._retire()
        # Whatever the writer does from here on, this file stays open until the next round.
        segment = self.current
        if segment is not self._seen:
            self._meet(segment, now_s)
        if segment is not None and now_s >= self._next_sync_s:
            self._next_sync_s = now_s + self._options.fsync_interval_ms / 1_000
            self._sync_current(segment)
        if now_s >= self._next_watch_s or segment is None:
            self._next_watch_s = now_s + LOG_WATCH_INTERVAL_S
            if segment is None:
                self._attempt("lock", "cannot lock", self._reclaim)
            self._attempt("spare", "cannot write in", self._make_spare)
            if segment is not None:
                self._attempt("folder", "cannot look at", lambda: self._watch(segment, now_s))
            if now_s >= self._next_survey_s or segment is None:
                self._next_survey_s = now_s + LOG_SURVEY_INTERVAL_S
                self._attempt("survey", "cannot list", self._survey)
            if segment is None:
                self._attempt("resume", "cannot look at", lambda: self._judge_resume(now_s))
        if self.trouble is not None or self.is_rotation_due:
            self._ask()

    def _attempt(self, step: str, doing: str, work: Callable[[], None]) -> None:
        """Do it; what the disk has against it is a warning until it succeeds."""
        try:
            work()
        except TickLogError as error:
            self.warnings[step] = str(error)
        except OSError as error:
            self.counts[f"{step}_failures"] += 1
            self.warnings[step] = trouble_of(doing, self._folder, error).text
        else:
            self.warnings.pop(step, None)

    def _meet(self, segment: OpenSegment | None, now_s: float) -> None:
        """The writer went over to another segment, or off."""
        self._seen, self._seen_since_s = segment, now_s
        self._synced_bytes = 0
        self.is_rotation_due = False
        if segment is not None:
            self._names |= {segment.name}
        if segment is not None and self._options.fsync == FSYNC_INTERVAL:
            self._sync_folder()

    def _sync_folder(self) -> None:
        try:
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            self.warnings["folder"] = trouble_of("cannot sync", self._folder, error).text

    # --- sync -------------------------------------------------------------------------------------

    def _retire(self) -> None:
        while self.retired:
            file = self.retired.popleft()
            self._sync(file)
            os.close(file)

    def _sync_current(self, segment: OpenSegment) -> None:
        size = os.fstat(segment.file).st_size
        if size != self._synced_bytes and self._sync(segment.file):
            self._synced_bytes = size

    def _sync(self, file: int) -> bool:
        if self._options.fsync == FSYNC_NEVER:
            return False
        started_ns = time.monotonic_ns()
        try:
            os.fdatasync(file)
        except OSError as error:
            # The kernel may have dropped what it could not write: from here on the log proves nothing.
            self.counts["sync_failures"] += 1
            self.trouble = trouble_of("cannot sync", self._folder, error)
            return False
        self.counts["syncs"] += 1
        self.sync_max_ns = max(self.sync_max_ns, time.monotonic_ns() - started_ns)
        return True

    # --- the files that must be there -------------------------------------------------------------

    def _make_spare(self) -> None:
        if self._is_spare_unproven:
            # The next one has to prove that the disk takes writes again.
            self._is_spare_unproven = False
            self._discard_spare()
        try:
            if os.fstat(self.spares[0].file).st_nlink:
                return
            self._discard_spare()
        except IndexError:
            pass
        spare = new_spare(self._folder)
        try:
            if self.current is None:
                self._probe(spare.file)
        except BaseException:
            self._drop(spare)
            raise
        self.spares.append(spare)

    @staticmethod
    def _drop(spare: Spare) -> None:
        os.close(spare.file)
        with suppress(OSError):
            spare.path.unlink()

    def _discard_spare(self) -> None:
        with suppress(IndexError):
            self._drop(self.spares.pop())

    @staticmethod
    def _probe(file: int) -> None:
        """Whether the disk takes writes again. Raises `OSError`."""
        if os.write(file, bytes(_PROBE_BYTES)) < _PROBE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fdatasync(file)
        os.ftruncate(file, 0)

    def _watch(self, segment: OpenSegment, now_s: float) -> None:
        """Is the segment still the file of its name, is the lock still ours, is a rotation due?"""
        written = self._written_bytes()
        held = os.fstat(segment.file)
        try:
            named = segment.path.stat()
            is_same = (named.st_ino, named.st_dev) == (held.st_ino, held.st_dev)
        except FileNotFoundError:
            is_same = False
        if segment is not self.current:
            return
        if not held.st_nlink or not is_same:
            self.trouble = Trouble(
                "deleted", f"{segment.path} was deleted or replaced: leave the log's files alone"
            )
        elif held.st_size < written:
            self.trouble = Trouble(
                "truncated", f"{segment.path} was cut short: leave the log's files alone"
            )
        elif not self._is_lock_ours():
            self.trouble = Trouble(
                "lock_lost", f"{self._folder / LOCK_FILE} was deleted: leave the log's files alone"
            )
        age_s = now_s - self._seen_since_s
        if age_s >= self._options.segment_max_s and held.st_size > SEGMENT_HEADER_BYTES:
            self.is_rotation_due = True
        if not os.access(self._folder, os.W_OK | os.X_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def _reclaim(self) -> None:
        """While the log is off: if somebody deleted the folder, make and lock it again."""
        if self._is_lock_ours():
            return
        lock, _owner = take_lock(self._folder)
        # The old one stays open: the writer may be using it.
        self._old_locks.append(self.lock)
        self.lock = lock

    def _is_lock_ours(self) -> bool:
        held = os.fstat(self.lock)
        try:
            named = (self._folder / LOCK_FILE).stat()
        except FileNotFoundError:
            return False
        return (named.st_ino, named.st_dev) == (held.st_ino, held.st_dev)

    # --- size and retention -----------------------------------------------------------------------

    def _survey(self) -> None:
        segment = self.current
        files = segment_files(self._folder)
        names = frozenset(file.name for file in files)
        lost = self._names - names
        if lost:
            self.counts["segments_lost"] += len(lost)
            self.warnings["lost"] = f"{min(lost)} was deleted or renamed, by somebody else"
        written = sum(file.size_bytes for file in files if segment and file.name == segment.name)
        total = sum(file.size_bytes for file in files)
        closed = [file for file in files if segment is None or file.name < segment.name]
        deleted, freed = self._delete_old(closed, total, len(files))
        self._names = names - deleted
        self.closed_bytes = total - freed - written
        self.oldest = min(self._names, default=SegmentName(0, 0))

    def _delete_old(
        self, closed: list[SegmentFile], total: int, count: int
    ) -> tuple[set[SegmentName], int]:
        """Delete what is too old or too much and not wanted by any consumer; names and bytes."""
        options = self._options
        limit = self._wanted_from()
        oldest_s = time.time() - options.retain_s
        deleted: set[SegmentName] = set()
        freed = 0
        self.warnings.pop("retention", None)
        for file in closed:
            is_too_much = total - freed > options.retain_bytes or count > LOG_SEGMENTS_MAX
            if not is_too_much and file.changed_s >= oldest_s:
                break
            if limit is not None and file.name >= limit[1].segment:
                self.warnings["retention"] = (
                    f"{limit[0]} still has to take {len(closed) - len(deleted)} segments, some of them beyond the "
                    f"retention: start it, or remove its file in {self._folder}/positions"
                )
                break
            (self._folder / str(file.name)).unlink(missing_ok=True)
            deleted.add(file.name)
            self._names -= {file.name}
            freed += file.size_bytes
            count -= 1
        self.counts["segments_deleted"] += len(deleted)
        return deleted, freed

    def _wanted_from(self) -> tuple[str, LogPosition] | None:
        """The consumer that is furthest behind, and its position; None without consumers."""
        positions = read_positions(self._folder)
        wanted = ((name, at or LogPosition(0, 0)) for name, at in positions.items())
        return min(wanted, key=lambda entry: entry[1], default=None)

    def _judge_resume(self, now_s: float) -> None:
        options = self._options
        space = os.statvfs(self._folder)
        self.may_resume = (
            len(self.spares) > 0
            and self._is_lock_ours()
            and now_s >= self._off_since_s + self._resume_wait_s
            and space.f_bavail * space.f_frsize >= options.segment_max_bytes
            and self.closed_bytes < options.max_bytes * LOG_ALARM_PERCENT // 100
        )
