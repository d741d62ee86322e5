"""The tick log's writer: every datagram goes into the log, in one write per flush, before it is sent.

`open_ticklog` takes the folder over and cuts a torn tail; `TickLog.begin_session` opens a session's first segment;
`TickLog.append` is the hot path. It never raises and never waits for anything but the write itself. When the log
cannot be written it goes off, says why in `status`, and stays off until another session begins: what a session sent
is in the log up to one place and from there on not at all.
"""

import errno
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

from tickerplant.core.logformat import (
    FIRST_SEQS,
    RECORD_HEADER_BYTES,
    NextSeqs,
    SegmentHeader,
    SegmentName,
    crc_seeds,
    encode_records,
    encode_segment_header,
    next_seqs_after,
    sent_ns_of,
)
from tickerplant.core.packets import Datagram
from tickerplant.errors import TickLogError
from tickerplant.limits import (
    LOG_ALARM_PERCENT,
    LOG_CLOSE_TIMEOUT_S,
    LOG_ROTATION_RETRY_BYTES,
)
from tickerplant.runtime.logfolder import Owner, boot_id, take_lock, unusable, write_owner
from tickerplant.runtime.logrestart import PreviousLog, take_over
from tickerplant.runtime.logupkeep import (
    LogUpkeep,
    OpenSegment,
    Spare,
    TickLogOptions,
    Trouble,
    new_spare,
    trouble_of,
)

_NO_TROUBLE = Trouble("", "")
_NOT_BEGUN = "not_begun"
_write = os.write


class LogStatus(NamedTuple):
    """How the log does. `code` and `reason` (one line, with remedy) say why it is off; `warnings` what else is wrong.

    `may_resume`: it is off, and `begin_session` for another session would likely succeed.
    """

    is_on: bool
    session: int
    segment: str
    code: str
    reason: str
    may_resume: bool
    total_bytes: int
    max_bytes: int
    is_nearly_full: bool
    warnings: tuple[str, ...]


class TickLog:
    """The owner of a log folder; `open_ticklog` makes it. All methods belong to one thread, the event loop's."""

    def __init__(
        self, folder: Path, options: TickLogOptions, lock: int, previous: PreviousLog
    ) -> None:
        """`lock` is the descriptor that holds the lock; `previous` what was found."""
        self.folder = folder
        self.options = options
        self.previous = previous
        """How the session before ended, as found at the start."""
        self.left_bytes = 0
        """Bytes written into segments that were left since."""
        self.unlogged_datagrams = 0
        self.rotations = 0
        self.failures: Counter[str] = Counter()
        """How often the log went off, by code."""
        self._file = -1
        self._offset = 0
        self._turn_at = 0
        self._seeds: tuple[int, ...] = ()
        self._last: dict[int, bytes] = {}
        self._boot_id = boot_id()
        self._upkeep = LogUpkeep(
            folder, options, lock, ask=self._look_soon, written_bytes=lambda: self._offset
        )
        self._header = SegmentHeader(0, 0, 0, 0, 0, FIRST_SEQS)
        self._starts: dict[int, NextSeqs] = {}
        self._newest_session = previous.session
        self._last_segment = (previous.segment, previous.segment_bytes)
        self._trouble = Trouble(_NOT_BEGUN, "no session has begun")

    # --- hot path ---------------------------------------------------------------------------------

    def append(self, datagrams: Sequence[Datagram]) -> bool:
        """Write (stream, datagram) pairs, at least one, in one write; False: they are not in the log.

        After False they are to be sent with `FLAG_NOT_REPAIRABLE` (`logformat.mark_not_repairable`), and so is all
        that follows in this session. Never raises.
        """
        file = self._file
        if file < 0:
            self.unlogged_datagrams += len(datagrams)
            return False
        records = encode_records(datagrams, self._seeds)
        try:
            written = _write(file, records)
        except OSError as error:
            return self._cannot_write(datagrams, 0, error)
        if written != len(records):
            return self._write_rest(datagrams, records, written)
        self._last.update(datagrams)
        self._offset = offset = self._offset + written
        if offset >= self._turn_at:
            return self._turn(len(datagrams))
        return True

    @property
    def is_on(self) -> bool:
        """Whether what is appended goes into the log."""
        return self._file >= 0

    def _write_rest(self, datagrams: Sequence[Datagram], records: bytes, written: int) -> bool:
        """The kernel took only a part: the rest, or why not."""
        view = memoryview(records)
        try:
            while written < len(records):
                taken = _write(self._file, view[written:])
                if not taken:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                written += taken
        except OSError as error:
            return self._cannot_write(datagrams, written, error)
        self._last.update(datagrams)
        self._offset += written
        return True

    def _cannot_write(self, datagrams: Sequence[Datagram], written: int, error: OSError) -> bool:
        """Go off; records that were taken whole stay, and a part of one is cut off if the disk allows."""
        file, whole, kept = self._file, 0, 0
        for _stream, datagram in datagrams:
            size = RECORD_HEADER_BYTES + len(datagram)
            if whole + size > written:
                break
            whole += size
            kept += 1
        self._last.update(datagrams[:kept])
        self._offset += whole
        with suppress(OSError):
            if whole < written:
                os.ftruncate(file, self._offset)
        path = self.folder / str(self._name)
        self._go_off(trouble_of("cannot write", path, error))
        self.unlogged_datagrams += len(datagrams)
        return False

    # --- rare turns of the hot path ---------------------------------------------------------------

    def _look_soon(self) -> None:
        """Upkeep found something: the next append looks at it."""
        self._turn_at = 0

    def _turn(self, datagram_count: int) -> bool:
        """The segment is full, the log is full, or upkeep asks; whether the last append is in the log."""
        upkeep, options = self._upkeep, self.options
        if upkeep.trouble is not None:
            self._go_off(upkeep.trouble)
            self.unlogged_datagrams += datagram_count
            return False
        if upkeep.closed_bytes + self._offset >= options.max_bytes:
            self._go_off(self._full())
            return True
        is_due = self._offset >= options.segment_max_bytes or upkeep.is_rotation_due
        is_stuck = is_due and not self._rotate()
        if is_stuck and self._offset >= options.segment_max_bytes + options.overrun_bytes:
            # A copy is one step for the interpreter; upkeep may be changing it.
            reason = "; ".join(dict(upkeep.warnings).values()) or "the disk is too slow"
            self._go_off(Trouble("no_rotation", f"cannot begin another segment: {reason}"))
            return True
        self._turn_at = self._next_turn()
        return True

    def _next_turn(self) -> int:
        """The offset at which the segment or the whole log is full, or which is far enough for another look."""
        options = self.options
        room = options.max_bytes - self._upkeep.closed_bytes
        step = min(LOG_ROTATION_RETRY_BYTES, options.segment_max_bytes // 8)
        full = [at for at in (options.segment_max_bytes, room) if at > self._offset]
        return min([*full, self._offset + step])

    def _full(self) -> Trouble:
        held = self._upkeep.warnings.get("retention", "")
        remedy = held or "raise ticklog.max_bytes or lower ticklog.retain_bytes"
        return Trouble("max_bytes", f"{self.folder} has reached ticklog.max_bytes: {remedy}")

    def _rotate(self) -> bool:
        """Go on in the next segment; False if that is not possible now."""
        upkeep, header, name = self._upkeep, self._header, self._name
        try:
            spare = upkeep.spares.pop()
        except IndexError:
            upkeep.wake()
            return False
        seqs = self._next_seqs()
        newest = max(map(sent_ns_of, self._last.values()), default=header.created_ns)
        following = header._replace(
            ordinal=name.ordinal + 1,
            created_ns=newest,
            first_seqs=seqs,
            previous_segment=name,
            previous_bytes=self._offset,
            previous_session=name.session,
            previous_seqs=seqs,
            is_previous_complete=True,
        )
        left, size = self._file, self._offset
        try:
            self._enter(spare, following)
        except OSError as error:
            self._cannot_rotate(spare, error)
            return False
        upkeep.closed_bytes += size
        self.left_bytes += size
        upkeep.retired.append(left)
        upkeep.wake()
        self.rotations += 1
        return True

    def _cannot_rotate(self, spare: Spare, error: OSError) -> None:
        upkeep = self._upkeep
        upkeep.counts["rotation_failures"] += 1
        upkeep.warnings["rotation"] = trouble_of("cannot name", spare.path, error).text
        self._give_back(spare)
        upkeep.wake()

    def _give_back(self, spare: Spare) -> None:
        self._upkeep.retired.append(spare.file)
        with suppress(OSError):
            spare.path.unlink()

    # --- sessions ---------------------------------------------------------------------------------

    def begin_session(
        self,
        session: int,
        now_ns: int,
        *,
        publisher: int = 1,
        partition: int = 0,
        previous: tuple[int, NextSeqs] | None = None,
    ) -> bool:
        """Open the first segment of `session`; False if the log is off then: `status` says why.

        To be called before the first datagram of the session is appended. The first session of a plant has no
        `previous` if it is known from the log. Else `previous` names the session before and the next sequence of each
        of its streams (0: not known), how far it really came, logged or not.
        Raises `TickLogError` if the log knows a session that is not lower.
        """
        if session <= self._newest_session:
            raise TickLogError(
                f"session {session} is not above {self._newest_session}, the newest in {self.folder}: set the clock, "
                "or set ticklog.directory to an empty folder"
            )
        header = self._first_header(session, now_ns, publisher, partition)
        if previous is not None:
            header = self._follow(header, *previous)
        is_first = self._trouble.code == _NOT_BEGUN
        self._leave()
        self._newest_session = session
        if self._open_session(header):
            self._say("on")
            return True
        if is_first:
            self._say("off")
        return False

    def end_session(self) -> None:
        """The ends of session have been appended: nothing more comes in this session."""
        if self.is_on:
            self._leave()
            self._say("ended")
            self._trouble = Trouble("ended", "the session has ended")

    def close(self, timeout_s: float = LOG_CLOSE_TIMEOUT_S) -> bool:
        """Sync, close and unlock; False if the disk did not finish in time. Harmless the second time."""
        self._leave()
        return self._upkeep.close(timeout_s)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Close it."""
        self.close()

    def start(self) -> None:
        """Start upkeep; `open_ticklog` does it. Raises `OSError`."""
        self._upkeep.start()

    def _first_header(
        self, session: int, now_ns: int, publisher: int, partition: int
    ) -> SegmentHeader:
        segment, size = self._last_segment
        previous = self.previous
        return SegmentHeader(
            session=session,
            ordinal=1,
            publisher=publisher,
            partition=partition,
            created_ns=now_ns,
            first_seqs=FIRST_SEQS,
            previous_segment=segment,
            previous_bytes=size,
            previous_session=previous.session,
            previous_seqs=previous.next_seqs,
            is_previous_complete=previous.is_complete,
            boot_id=self._boot_id,
        )

    def _follow(self, header: SegmentHeader, session: int, seqs: NextSeqs) -> SegmentHeader:
        """With the session before as its plant knows it; complete if the log has all of it."""
        is_logged = self._header.session == session and self._next_seqs() == seqs
        segment, size = (self._name, self._offset) if self.is_on else self._last_segment
        return header._replace(
            previous_segment=segment,
            previous_bytes=size,
            previous_session=session,
            previous_seqs=seqs,
            is_previous_complete=is_logged,
        )

    def _open_session(self, header: SegmentHeader) -> bool:
        upkeep = self._upkeep
        if upkeep.closed_bytes >= self.options.max_bytes:
            self._stay_off(self._full())
            return False
        spare: Spare | None = None
        try:
            try:
                spare = upkeep.spares.pop()
            except IndexError:
                spare = new_spare(self.folder)
            self._starts.clear()
            self._enter(spare, header)
        except OSError as error:
            if spare is not None:
                self._give_back(spare)
            self._stay_off(trouble_of("cannot begin a segment in", self.folder, error))
            return False
        self._seeds = crc_seeds(header.session)
        self._trouble = _NO_TROUBLE
        upkeep.went_on()
        return True

    def _enter(self, spare: Spare, header: SegmentHeader) -> None:
        """Make `spare` the current segment: header first, then its name. Raises `OSError`, and nothing has changed."""
        name = SegmentName(header.session, header.ordinal)
        path = self.folder / str(name)
        content = encode_segment_header(header)
        if _write(spare.file, content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        spare.path.rename(path)
        self._header = header
        self._last.clear()
        self._starts[header.ordinal] = header.first_seqs
        self._file = spare.file
        self._offset = len(content)
        self._upkeep.warnings.pop("rotation", None)
        self._upkeep.is_rotation_due = False
        self._upkeep.current = OpenSegment(name, path, spare.file)
        self._turn_at = self._next_turn()

    def _leave(self) -> None:
        """Close the current segment, if any; its end is known from here on."""
        if not self.is_on:
            return
        upkeep = self._upkeep
        self._last_segment = (self._name, self._offset)
        file, self._file = self._file, -1
        upkeep.current = None
        upkeep.closed_bytes += self._offset
        self.left_bytes += self._offset
        upkeep.retired.append(file)
        upkeep.wake()

    def _go_off(self, trouble: Trouble) -> None:
        self._leave()
        self._say("off")
        self._stay_off(trouble)

    def _stay_off(self, trouble: Trouble) -> None:
        self._trouble = trouble
        self.failures[trouble.code] += 1
        self._upkeep.put_off()

    def _say(self, log: str) -> None:
        """In the lock file, for the next owner; a disk that refuses that is told by what refused before."""
        with suppress(OSError):
            write_owner(self._upkeep.lock, Owner(os.getpid(), self._newest_session, log))

    # --- what others ask --------------------------------------------------------------------------

    @property
    def _name(self) -> SegmentName:
        return SegmentName(self._header.session, self._header.ordinal)

    def _next_seqs(self) -> NextSeqs:
        return next_seqs_after(self._header.first_seqs, self._last)

    @property
    def oldest_seqs(self) -> NextSeqs:
        """The oldest repairable sequence of each stream of the current session; zeros while the log is off."""
        if not self.is_on:
            return (0,) * len(FIRST_SEQS)
        oldest = self._upkeep.oldest
        ordinal = oldest.ordinal if oldest.session == self._header.session else 1
        for old in [old for old in self._starts if old < ordinal]:
            del self._starts[old]
        return self._starts[min(self._starts)]

    def status(self) -> LogStatus:
        """How it does; to be asked each second. If upkeep has died, the log goes off here."""
        upkeep, options = self._upkeep, self.options
        if self.is_on and not upkeep.is_alive:
            self._go_off(Trouble("internal", "the upkeep of the tick log has ended: restart"))
        total = upkeep.closed_bytes + (self._offset if self.is_on else 0)
        return LogStatus(
            is_on=self.is_on,
            session=self._header.session,
            segment=str(self._name) if self.is_on else "",
            code=self._trouble.code,
            reason=self._trouble.text,
            may_resume=upkeep.may_resume and not self.is_on,
            total_bytes=total,
            max_bytes=options.max_bytes,
            is_nearly_full=total >= options.max_bytes * LOG_ALARM_PERCENT // 100,
            warnings=tuple(dict(upkeep.warnings).values()),
        )

    def counters(self) -> Mapping[str, int | Mapping[tuple[str, ...], int]]:
        """For the metrics."""
        counts = self._upkeep.counts
        return {
            "bytes": self.left_bytes + (self._offset if self.is_on else 0),
            "unlogged_datagrams": self.unlogged_datagrams,
            "rotations": self.rotations,
            "torn_bytes_cut": self.previous.cut_bytes,
            "went_off{code}": {(code,): count for code, count in self.failures.items()},
            **{name: counts[name] for name in _COUNTED_BY_UPKEEP},
        }

    def gauges(self) -> Mapping[str, int]:
        """For the metrics."""
        return {
            "on": int(self.is_on),
            "folder_bytes": self._upkeep.closed_bytes + (self._offset if self.is_on else 0),
            "max_bytes": self.options.max_bytes,
            "sync_max_ns": self._upkeep.sync_max_ns,
        }


_COUNTED_BY_UPKEEP = (
    "syncs",
    "sync_failures",
    "rotation_failures",
    "spare_failures",
    "survey_failures",
    "segments_deleted",
    "segments_lost",
)


def open_ticklog(folder: Path, options: TickLogOptions | None = None) -> TickLog:
    """Make and lock `folder`, cut a torn tail, and start upkeep; no session has begun.

    Raises `TickLogError` if another plant holds the folder or it cannot be used.
    """
    lock, owner = take_lock(folder)
    try:
        previous = take_over(folder, owner)
        ticklog = TickLog(folder, options or TickLogOptions(), lock, previous)
        ticklog.start()
    except OSError as error:
        os.close(lock)
        raise unusable(folder, error) from error
    return ticklog
