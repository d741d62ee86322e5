"""The TCP side of recovery: streams out of the log and snapshots, to clients that may be slow, silent or hostile."""

import asyncio
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Protocol

from tickerplant.core.conversation import Conversation, Keys
from tickerplant.core.gap_fill import mark_retransmitted
from tickerplant.core.logformat import LogPosition
from tickerplant.core.rates import ClientRates
from tickerplant.core.recovery_cut import Cut
from tickerplant.core.recovery_wire import (
    NONCE_BYTES,
    Alive,
    AnyControl,
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
    RECOVERY_ALIVE_NS,
    RECOVERY_READ_BYTES,
    RECOVERY_SNAPSHOT_TIMEOUT_NS,
    RECOVERY_STALL_TIMEOUT_NS,
    RECOVERY_TAIL_WAIT_NS,
    RECOVERY_WRITE_BUFFER_BYTES,
)
from tickerplant.runtime.log_tail import TailBatch
from tickerplant.runtime.logreader import LogReader
from tickerplant.runtime.recovery_log import RecoveryLog

_SECOND_NS = 1_000_000_000
_LOOK_AGAIN_S = 0.001


class SnapshotSource(Protocol):
    """Where cuts come from."""

    def take_cut(self, request: SnapshotRequest) -> Cut | None:
        """The state now, or a moment ago if that has the sequences asked for; None: too many are being read."""
        ...

    def release_cut(self, cut: Cut) -> None:
        """It was read, or will not be."""
        ...


class RecoveryServer:
    """All connections, and what they share. `sweep` has to be called a few times a second."""

    def __init__(
        self,
        log: RecoveryLog,
        cuts: SnapshotSource,
        start: Callable[[str, Coroutine[Any, Any, None]], asyncio.Task[None]],
        *,
        connections_max: int,
        connections_per_client_max: int,
        client_bytes_per_second: int,
        total_bytes_per_second: int,
        keys: Keys | None = None,
    ) -> None:
        """`start` runs a task under supervision."""
        self.log = log
        self.cuts = cuts
        self.start = start
        self.keys = keys
        self.rates = ClientRates(client_bytes_per_second, total_bytes_per_second)
        self.connections: set[Connection] = set()
        self.waiting = 0
        """Connections that wait for the log to go on."""
        self.accepted = 0
        self.counts: Counter[str] = Counter()
        self.rejects: Counter[str] = Counter()
        self.sent_bytes = 0
        self._connections_max = connections_max
        self._per_client_max = connections_per_client_max
        self._by_client: Counter[str] = Counter()
        log.tail.listeners.append(self._pass_on)

    @property
    def followers(self) -> int:
        """Connections that follow the end of the log, or wait for it."""
        return self.waiting + sum(one.is_following for one in self.connections)

    def make_connection(self) -> "Connection":
        """For the event loop's `create_server`."""
        return Connection(self)

    def admit(self, connection: "Connection") -> str:
        """Why the connection is one too many; empty if it is not."""
        self.accepted += 1
        if len(self.connections) >= self._connections_max:
            return "connections"
        if self._by_client[connection.client] >= self._per_client_max:
            return "connections of this address"
        self.connections.add(connection)
        self._by_client[connection.client] += 1
        return ""

    def forget(self, connection: "Connection") -> None:
        """It is closed."""
        if connection in self.connections:
            self.connections.remove(connection)
            self._by_client[connection.client] -= 1
            self._by_client += Counter()

    def sweep(self, now_ns: int) -> None:
        """Close what is stuck, keep alive what is idle."""
        for connection in list(self.connections):
            connection.sweep(now_ns)

    def close(self) -> None:
        """Close all connections."""
        self.log.tail.listeners.remove(self._pass_on)
        for connection in list(self.connections):
            connection.abort("stopped")

    def counters(self) -> Mapping[str, int | Mapping[str, int]]:
        """For the metrics."""
        return {
            "tcp_connections": self.accepted,
            "tcp_bytes": self.sent_bytes,
            "tcp_rejects{code}": dict(self.rejects),
            "tcp_closed{cause}": dict(self.counts),
        }

    def gauges(self) -> Mapping[str, int]:
        """For the metrics."""
        return {
            "tcp_connections_open": len(self.connections),
            "followers": self.followers,
            "tcp_unsent_bytes": sum(one.unsent_bytes for one in self.connections),
        }

    def _pass_on(self, batch: TailBatch) -> None:
        for connection in list(self.connections):
            if connection.is_following:
                connection.offer(batch)


class Connection(asyncio.Protocol):
    """One client. It writes only while little is unsent, so that a slow reader costs a bounded buffer and time."""

    def __init__(self, server: RecoveryServer) -> None:
        self.client = ""
        self.is_following = False
        self._server = server
        self._transport: asyncio.Transport
        self._conversation: Conversation
        self._task: asyncio.Task[None] | None = None
        self._sent_ns = time.monotonic_ns()
        self._paused_ns: int | None = None
        self._closing_ns: int | None = None
        self._deadline_ns: int | None = None
        self._resumed: asyncio.Future[None] | None = None
        self._filter: StreamFilter | None = None
        self._left_at: LogPosition | None = None
        self._followed: asyncio.Future[None] | None = None

    # --- asyncio.Protocol -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        peer = transport.get_extra_info("peername")
        self.client = peer[0] if peer else ""
        keys = self._server.keys
        nonce = b"" if keys is None else os.urandom(NONCE_BYTES)
        self._conversation = Conversation(
            self._server.log.hello, time.monotonic_ns(), nonce=nonce, keys=keys
        )
        refused = self._server.admit(self)
        if refused:
            self._server.counts["refused"] += 1
            self._reject(RecoveryCode.THROTTLED, f"too many {refused}")
            self._transport.close()
            return
        opened = transport.get_extra_info("socket")
        with suppress(OSError):
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, RECOVERY_WRITE_BUFFER_BYTES)
        transport.set_write_buffer_limits(high=RECOVERY_WRITE_BUFFER_BYTES)

    def data_received(self, data: bytes) -> None:
        """Part of a request, or a client that does not wait for its answer."""
        if self._closing_ns is not None:
            return
        conversation = self._conversation
        answer = conversation.receive(data)
        if answer:
            self._write(answer)
        if conversation.is_over:
            assert conversation.code is not None
            self._count_reject(conversation.code)
            self._close("refused")
        elif conversation.request is not None and self._task is None:
            self._task = self._server.start(f"recovery {self.client}", self._serve())

    def eof_received(self) -> bool:
        """The client has gone."""
        return False

    def connection_lost(self, _error: Exception | None) -> None:
        """It is closed."""
        self._stop_following()
        for future in (self._resumed, self._followed):
            if future is not None and not future.done():
                future.cancel()
        if self._task is not None:
            self._task.cancel()
        if self._closing_ns is None:
            self._server.counts["client"] += 1
        self._server.forget(self)

    def pause_writing(self) -> None:
        """The client reads slower than we write."""
        self._paused_ns = time.monotonic_ns()

    def resume_writing(self) -> None:
        """It has read."""
        self._paused_ns = None
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)

    # --- writing ----------------------------------------------------------------------------------

    @property
    def unsent_bytes(self) -> int:
        """What waits for the client to read."""
        return self._transport.get_write_buffer_size()

    def _write(self, data: bytes) -> None:
        self._transport.write(data)
        self._sent_ns = now_ns = time.monotonic_ns()
        self._server.sent_bytes += len(data)
        self._server.rates.use(self.client, len(data), now_ns)

    def _send(self, message: AnyControl) -> None:
        self._write(self._conversation.encode(message))

    def _send_datagrams(self, datagrams: list[bytes]) -> None:
        if datagrams:
            self._write(self._conversation.encode_datagrams(datagrams))

    async def _may_write(self) -> None:
        """Return once the client has read, and its rate allows more; at least one turn of the loop later."""
        while self._paused_ns is not None:
            self._resumed = asyncio.get_running_loop().create_future()
            await self._resumed
        wait_ns = self._server.rates.wait_ns(self.client, time.monotonic_ns())
        await asyncio.sleep(wait_ns / _SECOND_NS)

    def _reject(self, code: RecoveryCode, text: str) -> None:
        self._count_reject(code)
        answer = self._conversation.reject(code, text)
        if answer:
            self._write(answer)

    def _count_reject(self, code: RecoveryCode) -> None:
        self._server.rejects[code.name.lower()] += 1

    def _close(self, cause: str) -> None:
        """After what is unsent was sent, if that does not take too long."""
        if self._closing_ns is None:
            self._closing_ns = time.monotonic_ns()
            self._server.counts[cause] += 1
            self._stop_following()
            if self._task is not None and cause != "served":
                self._task.cancel()
            self._transport.close()

    def abort(self, cause: str) -> None:
        """At once."""
        if self._closing_ns is None:
            self._closing_ns = time.monotonic_ns()
            self._server.counts[cause] += 1
        self._transport.abort()

    def sweep(self, now_ns: int) -> None:
        """Close it if it is stuck; keep it alive if it is idle."""
        if self._closing_ns is not None:
            if now_ns - self._closing_ns > RECOVERY_STALL_TIMEOUT_NS:
                self._transport.abort()
        elif self._conversation.request is None:
            if now_ns >= self._conversation.deadline_ns:
                self.abort("half_open")
        elif self._paused_ns is not None:
            if now_ns - self._paused_ns > RECOVERY_STALL_TIMEOUT_NS:
                self.abort("slow_reader")
        elif self._deadline_ns is not None and now_ns > self._deadline_ns:
            self.abort("slow_reader")
        elif now_ns - self._sent_ns >= RECOVERY_ALIVE_NS:
            self._send(Alive(time.time_ns()))
        if self.is_following and self._filter is not None:
            self._end_if_unlogged(self._filter)

    # --- answers ----------------------------------------------------------------------------------

    async def _serve(self) -> None:
        request = self._conversation.request
        try:
            if isinstance(request, StreamRequest):
                await self._serve_stream(request)
            else:
                assert request is not None
                await self._serve_snapshot(request)
        except OSError as error:
            self._reject(RecoveryCode.UNAVAILABLE, f"the log cannot be read: {error.strerror}")
        self._close("served")

    async def _serve_stream(self, request: StreamRequest) -> None:
        log = self._server.log
        code, extent = log.look_up(request.session, request.publisher, request.partition)
        if extent is None:
            self._reject(code, f"session {request.session}")
            return
        oldest_seqs = log.index.oldest_seqs(request.session)
        if any(seq < oldest_seqs[stream - 1] for stream, seq in request.next_seqs):
            self._reject(RecoveryCode.TOO_OLD, f"the oldest sequences are {oldest_seqs}")
            return
        place = log.place_of(request.session, request.next_seqs)
        if isinstance(place, RecoveryCode):
            self._reject(place, f"session {request.session}")
            return
        wanted = self._filter = StreamFilter(request)
        while not self._conversation.is_over:
            await self._catch_up(wanted, place)
            if wanted.is_range and not wanted.is_complete and extent.is_final:
                wanted.is_ended = True
            if wanted.is_complete:
                self._send(StreamEnd(wanted.session, wanted.next_seqs))
                return
            place = await self._follow(wanted)

    async def _catch_up(self, wanted: StreamFilter, place: LogPosition) -> None:
        """Send what is in the log from `place` to its present end."""
        with LogReader(self._server.log.folder, place, read_bytes=RECOVERY_READ_BYTES) as reader:
            while not wanted.is_complete:
                await self._may_write()
                batch = reader.read()
                if batch is None:
                    return
                self._send_datagrams(
                    [
                        mark_retransmitted(datagram)
                        for _offset, datagram in batch.records
                        if wanted.take(decode_header(datagram))
                    ]
                )

    async def _follow(self, wanted: StreamFilter) -> LogPosition:
        """Send what the tail reads from now on, until the client is slow; where it was left then."""
        self._end_if_unlogged(wanted)
        if self._conversation.is_over:
            return self._place_of_tail()
        self.is_following = True
        self._left_at = None
        self._followed = asyncio.get_running_loop().create_future()
        try:
            # A range is in the log already, or about to be.
            timeout_s = RECOVERY_TAIL_WAIT_NS / _SECOND_NS if wanted.is_range else None
            async with asyncio.timeout(timeout_s):
                await self._followed
        except TimeoutError:
            self._reject(RecoveryCode.NOT_YET, "the log has not come so far")
        finally:
            self._stop_following()
        return self._place_left()

    def _place_left(self) -> LogPosition:
        return self._left_at or self._place_of_tail()

    def _place_of_tail(self) -> LogPosition:
        position = self._server.log.tail.position
        assert position is not None
        return position

    def offer(self, batch: TailBatch) -> None:
        """The tail has read more."""
        wanted = self._filter
        assert wanted is not None
        is_slow = self._paused_ns is not None
        if is_slow or self._server.rates.wait_ns(self.client, time.monotonic_ns()):
            self._left_at = batch.start
            self._stop_following()
            return
        self._send_datagrams(
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

    def _end_if_unlogged(self, wanted: StreamFilter) -> None:
        """What the plant sends while its log is off will never come."""
        log = self._server.log
        if log.unlogged_session >= wanted.session and log.tail.is_at_end:
            self._reject(RecoveryCode.NOT_REPAIRABLE, "the tick log is off")
            self._stop_following()

    # --- snapshots --------------------------------------------------------------------------------

    async def _serve_snapshot(self, request: SnapshotRequest) -> None:
        self._server.waiting += 1
        try:
            code = await self._wait_for(request)
        finally:
            self._server.waiting -= 1
        if code is not RecoveryCode.SERVED:
            self._reject(code, f"session {request.session}")
            return
        cut = self._server.cuts.take_cut(request)
        if cut is None:
            self._reject(RecoveryCode.UNAVAILABLE, "too many snapshots are being taken")
            return
        self._deadline_ns = time.monotonic_ns() + RECOVERY_SNAPSHOT_TIMEOUT_NS
        try:
            await self._send_cut(cut, request)
        finally:
            self._server.cuts.release_cut(cut)

    async def _wait_for(self, request: SnapshotRequest) -> RecoveryCode:
        """SERVED once the books have the sequences asked for, else why not."""
        log, state = self._server.log, self._server.log.state
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

    async def _send_cut(self, cut: Cut, request: SnapshotRequest) -> None:
        packets = SnapshotPackets(cut, request.streams)
        self._send_datagrams(packets.start(time.time_ns()))
        for images in cut.slices():
            if cut.is_failed:
                self._reject(RecoveryCode.UNAVAILABLE, "a part of the log is missing: ask again")
                return
            self._send_datagrams(packets.add(images, time.time_ns()))
            await self._may_write()
        self._send_datagrams(packets.finish(time.time_ns()))
        next_seqs = tuple(enumerate(cut.next_seqs, start=1))
        self._send(SnapshotEnd(cut.session, next_seqs, tuple(packets.counts.items())))


def _code_of_late(log: RecoveryLog, session: int) -> RecoveryCode:
    """Why the books do not have what was asked for, after some waiting."""
    if session and session == log.unlogged_session:
        return RecoveryCode.NOT_REPAIRABLE
    if log.tail.is_at_end and session not in log.index.sessions and session:
        return RecoveryCode.UNKNOWN_SESSION
    return RecoveryCode.NOT_YET
