"""What recovery answers over TCP: streams out of the log, on to its live end, and snapshots of the books."""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from tickerplant.core.gap_fill import mark_retransmitted
from tickerplant.core.log_index import SessionExtent
from tickerplant.core.logformat import LogPosition
from tickerplant.core.recovery_cut import Cut
from tickerplant.core.recovery_wire import (
    RecoveryCode,
    SnapshotEnd,
    SnapshotRequest,
    StreamEnd,
    StreamRequest,
)
from tickerplant.core.snapshot_packets import SnapshotPackets
from tickerplant.core.stream_filter import StreamFilter
from tickerplant.core.wire import decode_header
from tickerplant.limits import (
    RECOVERY_READ_BYTES,
    RECOVERY_SNAPSHOT_TIMEOUT_NS,
    RECOVERY_TAIL_WAIT_NS,
)
from tickerplant.runtime.log_tail import TailBatch
from tickerplant.runtime.logreader import LogReader
from tickerplant.runtime.recovery_connection import Connection
from tickerplant.runtime.recovery_log import RecoveryLog

_SECOND_NS = 1_000_000_000
_LOOK_AGAIN_S = 0.001


class SnapshotSource(Protocol):
    """Where cuts come from."""

    def take(self, request: SnapshotRequest, drop: Callable[[], None]) -> Cut | None:
        """The state now, or a moment ago if that has the sequences asked for; None: too many are being read.

        `drop` breaks the reader off, who is too slow for others that wait.
        """
        ...

    def release(self, cut: Cut, drop: Callable[[], None]) -> None:
        """It was read, or will not be; `drop` as it was given."""
        ...


class StreamAnswer:
    """One stream: read from the log until its end is reached, then taken from the tail until the client is slow."""

    def __init__(self, connection: Connection, request: StreamRequest, log: RecoveryLog) -> None:
        self.is_following = False
        """Whether it wants what the tail reads, by `offer`."""
        self._connection = connection
        self._request = request
        self._log = log
        self._filter = StreamFilter(request)
        self._left_at: LogPosition | None = None
        self._followed: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Send it all. Raises `OSError` if the log cannot be read."""
        request, connection, wanted = self._request, self._connection, self._filter
        code, extent = await self._wait_for_session()
        if extent is None:
            connection.reject(code, f"session {request.session}")
            return
        oldest_seqs = self._log.index.oldest_seqs(request.session)
        if any(seq < oldest_seqs[stream - 1] for stream, seq in request.next_seqs):
            connection.reject(RecoveryCode.TOO_OLD, f"the oldest sequences are {oldest_seqs}")
            return
        place = self._log.place_of(request.session, request.next_seqs)
        if isinstance(place, RecoveryCode):
            connection.reject(place, f"session {request.session}")
            return
        while not connection.is_over:
            await self._catch_up(place)
            if wanted.is_range and not wanted.is_complete and self._log.is_over(request.session):
                wanted.is_ended = extent.is_final
            if wanted.is_complete:
                connection.send(StreamEnd(wanted.session, wanted.next_seqs))
                return
            place = await self._follow()

    async def _wait_for_session(self) -> tuple[RecoveryCode, SessionExtent | None]:
        """What is known of the session, if need be as soon as the log was read so far."""
        request = self._request
        give_up_ns = time.monotonic_ns() + RECOVERY_TAIL_WAIT_NS
        while True:
            found = self._log.look_up(request.session, request.publisher, request.partition)
            if found[0] is not RecoveryCode.NOT_YET or time.monotonic_ns() >= give_up_ns:
                return found
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def _catch_up(self, place: LogPosition) -> None:
        """Send what is in the log from `place` to its present end."""
        wanted = self._filter
        with LogReader(self._log.folder, place, read_bytes=RECOVERY_READ_BYTES) as reader:
            while not wanted.is_complete:
                await self._connection.may_write()
                batch = reader.read()
                if batch is None:
                    return
                self._connection.send_datagrams(
                    [
                        mark_retransmitted(datagram)
                        for _offset, datagram in batch.records
                        if wanted.take(decode_header(datagram))
                    ]
                )

    async def _follow(self) -> LogPosition:
        """Let the tail send what it reads from now on, until the client is slow; where it was left then."""
        self.end_if_unlogged()
        if self._connection.is_over:
            return self._place_of_tail()
        self.is_following = True
        self._left_at = None
        self._followed = asyncio.get_running_loop().create_future()
        # A range is in the log already, or about to be.
        timeout_s = RECOVERY_TAIL_WAIT_NS / _SECOND_NS if self._filter.is_range else None
        try:
            async with asyncio.timeout(timeout_s):
                await self._followed
        except TimeoutError:
            self._connection.reject(RecoveryCode.NOT_YET, "the log has not come so far")
        finally:
            self._stop_following()
        return self._place_left()

    def _place_left(self) -> LogPosition:
        return self._left_at or self._place_of_tail()

    def _place_of_tail(self) -> LogPosition:
        position = self._log.tail.position
        assert position is not None
        return position

    def offer(self, batch: TailBatch) -> None:
        """The tail has read more."""
        if self._connection.is_held:
            self._left_at = batch.start
            self._stop_following()
            return
        wanted = self._filter
        self._connection.send_datagrams(
            [
                mark_retransmitted(datagram)
                for _offset, header, datagram in batch.entries
                if wanted.take(header)
            ]
        )
        if wanted.is_complete:
            self._stop_following()

    def _stop_following(self) -> None:
        self.is_following = False
        if self._followed is not None and not self._followed.done():
            self._followed.set_result(None)

    def end_if_unlogged(self) -> None:
        """What the plant sends while its log is off will never come."""
        if self._log.unlogged_session >= self._filter.session and self._log.tail.is_at_end:
            self._connection.reject(RecoveryCode.NOT_REPAIRABLE, "the tick log is off")
            self._stop_following()


class SnapshotAnswer:
    """One snapshot: the books as they are when they have the sequences asked for."""

    def __init__(
        self,
        connection: Connection,
        request: SnapshotRequest,
        log: RecoveryLog,
        cuts: SnapshotSource,
    ) -> None:
        self.is_waiting = True
        """Whether it waits for the log to go on."""
        self._connection = connection
        self._request = request
        self._log = log
        self._cuts = cuts

    async def run(self) -> None:
        """Send it all."""
        code = await self._wait_for_books()
        self.is_waiting = False
        if code is not RecoveryCode.SERVED:
            self._connection.reject(code, f"session {self._request.session}")
            return
        cut = self._cuts.take(self._request, self._drop)
        if cut is None:
            text = "too many snapshots are being taken"
            self._connection.reject(RecoveryCode.UNAVAILABLE, text)
            return
        self._connection.deadline_ns = time.monotonic_ns() + RECOVERY_SNAPSHOT_TIMEOUT_NS
        try:
            await self._send(cut)
        finally:
            self._cuts.release(cut, self._drop)

    def _drop(self) -> None:
        self._connection.abort("slow_reader")

    async def _wait_for_books(self) -> RecoveryCode:
        """SERVED once the books have the sequences asked for, else why not."""
        request, log, state = self._request, self._log, self._log.state
        give_up_ns = time.monotonic_ns() + RECOVERY_TAIL_WAIT_NS
        while True:
            session = request.session or state.session
            if state.session and session == state.session:
                if (request.publisher, request.partition) != (state.publisher, state.partition):
                    return RecoveryCode.UNKNOWN_PLANT
                if all(state.next_seqs[stream - 1] >= seq for stream, seq in request.min_seqs):
                    return RecoveryCode.SERVED
            elif session < state.session:
                return RecoveryCode.TOO_OLD
            if time.monotonic_ns() >= give_up_ns:
                return _code_of_late(log, session)
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def _send(self, cut: Cut) -> None:
        connection, request = self._connection, self._request
        packets = SnapshotPackets(cut, request.streams, is_packed=request.packed)
        connection.send_datagrams(packets.start(time.time_ns()))
        for images in cut.slices():
            if cut.is_failed:
                text = "a part of the log is missing: ask again"
                connection.reject(RecoveryCode.UNAVAILABLE, text)
                return
            connection.send_books(packets.books(images))
            connection.send_datagrams(packets.add(images, time.time_ns()))
            await connection.may_write()
        connection.send_datagrams(packets.finish(time.time_ns()))
        next_seqs = tuple(enumerate(cut.next_seqs, start=1))
        connection.send(SnapshotEnd(cut.session, next_seqs, tuple(packets.counts.items())))


def _code_of_late(log: RecoveryLog, session: int) -> RecoveryCode:
    """Why the books do not have what was asked for, after some waiting."""
    if session and session == log.unlogged_session:
        return RecoveryCode.NOT_REPAIRABLE
    if log.tail.is_at_end and session not in log.index.sessions and session:
        return RecoveryCode.UNKNOWN_SESSION
    return RecoveryCode.NOT_YET
