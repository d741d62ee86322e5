"""A recording sent onto multicast groups of its own, in a way that nobody can take for the live plant.

* Groups and port are always named, and are never those of the configured plant; they are listened to first.
* Every datagram carries the flag for replays, which subscribers refuse unless they were told to accept it, and no
  trailer, so that subscribers with keys refuse it in any case.
* Sessions get numbers of their own, so that what is played twice is not a repetition. Bodies stay as they were.

Heartbeats and ends of session are made anew: they belong to the time of sending.
"""

import asyncio
import time
from collections.abc import Iterable
from typing import NamedTuple

from msgspec.structs import replace

from tickerplant.config import PublishConfig
from tickerplant.core.messages import SessionStart, Stream
from tickerplant.core.packets import Datagram
from tickerplant.core.wire import (
    FLAG_NOT_REPAIRABLE,
    FLAG_REBUILDING,
    FLAG_SNAPSHOT,
    FLAG_UPSTREAM_DEGRADED,
    Header,
    HeartbeatBody,
    Kind,
    decode_body,
    decode_header,
    encode_body,
    encode_heartbeat,
    frame_body,
)
from tickerplant.errors import ConfigurationError, WireError
from tickerplant.limits import (
    END_OF_SESSION_AT_NS,
    HEADER_BYTES,
    HEARTBEAT_AFTER_DATA_NS,
    HEARTBEAT_INTERVAL_NS,
    REPLAY_DATAGRAMS_PER_TURN,
    REPLAY_IDLE_MAX_NS,
    REPLAY_PUBLISH_PER_SECOND,
    SESSION_LISTEN_NS,
)
from tickerplant.runtime.network import lines_of, listen_on_groups, require_free_groups
from tickerplant.runtime.publisher import Publisher, open_publisher
from tickerplant_subscriber.log_source import TimedDatagram

_SECOND_NS = 1_000_000_000
_SHARE_NS = _SECOND_NS // REPLAY_PUBLISH_PER_SECOND
_BURST_NS = 5_000_000
_HINTS = FLAG_UPSTREAM_DEGRADED | FLAG_REBUILDING
_FLAGS = FLAG_SNAPSHOT | FLAG_NOT_REPAIRABLE


class Published(NamedTuple):
    """What went out."""

    sessions: int
    datagrams: int
    lost_datagrams: int
    unreadable: int


class _StreamPlace:
    """How far a stream of the present session has come, and when its next heartbeat is due."""

    __slots__ = ("datagrams", "due_ns", "next_seq", "step")

    def __init__(self, now_ns: int) -> None:
        self.next_seq = 1
        self.datagrams = 0
        self.due_ns = now_ns
        self.step = 0

    def sent(self, header: Header, now_ns: int) -> None:
        """Data went out."""
        self.next_seq = header.seq + header.message_count
        self.datagrams += 1
        self.step = 0
        self.due_ns = now_ns + HEARTBEAT_AFTER_DATA_NS[0]

    def beaten(self, now_ns: int) -> None:
        """A heartbeat went out."""
        self.step += 1
        waits = HEARTBEAT_AFTER_DATA_NS
        step = self.step
        wait_ns = waits[step] - waits[step - 1] if step < len(waits) else HEARTBEAT_INTERVAL_NS
        self.due_ns = now_ns + wait_ns


class ReplayStream:
    """Recorded datagrams as they are to be sent now (pure: the clock is an argument).

    Sessions are numbered from the time at which they are played; one that is not played from its beginning gets the
    number of an older one, because that is what it is to who listens.
    """

    def __init__(self, heard_session: int = 0) -> None:
        """`heard_session` is the highest heard on the groups."""
        self.sessions = 0
        self.unreadable = 0
        self._publisher = 1
        self._partition = 0
        self._recorded_session = 0
        self._session = heard_session
        self._places: dict[int, _StreamPlace] = {}

    def rewrite(self, datagram: bytes, now_ns: int) -> list[Datagram]:
        """What is to be sent for a recorded datagram; nothing for heartbeats and ends of session."""
        try:
            header = decode_header(datagram)
            if header.session != self._recorded_session:
                self._begin(header, now_ns)
            if header.kind != Kind.DATA:
                return []
            body = self._body_of(header, datagram)
        except WireError:
            self.unreadable += 1
            return []
        self._places[header.stream].sent(header, now_ns)
        again = frame_body(
            body,
            kind=Kind.DATA,
            stream=header.stream,
            session=self._session,
            seq=header.seq,
            ts_send_ns=now_ns,
            count=header.message_count,
            publisher=header.publisher,
            partition=header.partition,
            flags=header.flags & _HINTS | _FLAGS,
        )
        return [(header.stream, again)]

    def _begin(self, header: Header, now_ns: int) -> None:
        self.sessions += 1
        self._recorded_session = header.session
        elapsed_ns = 0 if header.seq == 1 else max(0, header.ts_send_ns - header.session)
        self._session = max(self._session + 1, now_ns - elapsed_ns)
        self._publisher, self._partition = header.publisher, header.partition
        self._places = {int(stream): _StreamPlace(now_ns) for stream in Stream}

    def _body_of(self, header: Header, datagram: bytes) -> bytes:
        """As recorded; the word on the session before is left out, for it has another number or was not played."""
        if header.stream == Stream.STATUS and header.seq == 1:
            messages = decode_body(datagram, header)
            start = messages[0]
            if isinstance(start, SessionStart) and None not in messages:
                return encode_body(
                    [replace(start, previous_session=0, final_seqs=()), *messages[1:]]
                )
        return datagram[HEADER_BYTES : HEADER_BYTES + header.body_bytes]

    def next_deadline_ns(self) -> int | None:
        """When `heartbeats` has something; None before the first session."""
        return min((place.due_ns for place in self._places.values()), default=None)

    def heartbeats(self, now_ns: int) -> list[Datagram]:
        """Those that are due."""
        beats = []
        for stream, place in self._places.items():
            if place.due_ns <= now_ns:
                beats.append((stream, self._heartbeat(stream, Kind.HEARTBEAT, now_ns)))
                place.beaten(now_ns)
        return beats

    def ends(self, now_ns: int) -> list[Datagram]:
        """An end of session of each stream."""
        return [
            (stream, self._heartbeat(stream, Kind.END_OF_SESSION, now_ns))
            for stream in self._places
        ]

    def _heartbeat(self, stream: int, kind: Kind, now_ns: int) -> bytes:
        place = self._places[stream]
        return encode_heartbeat(
            stream,
            self._session,
            place.next_seq,
            now_ns,
            HeartbeatBody(place.datagrams),
            kind=kind,
            publisher=self._publisher,
            partition=self._partition,
            flags=_FLAGS,
        )


class MulticastReplay:
    """Sends one recording; `run` once. `stop` ends it in order."""

    def __init__(
        self, publisher: Publisher, heard_session: int, *, speed: float | None, from_ns: int = 0
    ) -> None:
        """`speed` None: as fast as `REPLAY_PUBLISH_PER_SECOND` allows, as is all that was sent before `from_ns`."""
        self._publisher = publisher
        self._stream = ReplayStream(heard_session)
        self._speed = speed
        self._from_ns = from_ns
        self._offset_ns: float | None = None
        self._previous_ns = 0
        self._paid_until_ns = 0
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Send the ends of session and return."""
        self._stopped.set()

    async def run(self, source: Iterable[TimedDatagram]) -> Published:
        """Send everything, and the ends of session. Raises what the source raises, after these."""
        sent = 0
        try:
            for sent_ns, datagram in source:
                await self._wait(sent_ns)
                if self._stopped.is_set():
                    break
                again = self._stream.rewrite(datagram, time.time_ns())
                if again:
                    self._publisher.send(again)
                    self._paid_until_ns += _SHARE_NS
                    sent += 1
                    if sent % REPLAY_DATAGRAMS_PER_TURN == 0:
                        await asyncio.sleep(0)
        finally:
            await self._end()
        stream = self._stream
        return Published(stream.sessions, sent, self._publisher.lost_datagrams, stream.unreadable)

    async def _wait(self, sent_ns: int) -> None:
        """Until a datagram's turn, by the recorded time and by the pace that receivers can take."""
        now_ns = time.time_ns()
        due_ns = self._paid_until_ns = max(self._paid_until_ns, now_ns - _BURST_NS)
        if self._speed is not None and sent_ns >= self._from_ns:
            due_ns = max(due_ns, int(self._recorded_due_ns(sent_ns, now_ns, self._speed)))
        self._previous_ns = sent_ns
        await self._pass_time(due_ns)

    def _recorded_due_ns(self, sent_ns: int, now_ns: int, speed: float) -> float:
        if self._offset_ns is None:
            self._offset_ns = now_ns - sent_ns / speed
        silent_ns = sent_ns - self._previous_ns
        if self._previous_ns and silent_ns > REPLAY_IDLE_MAX_NS:
            self._offset_ns -= (silent_ns - REPLAY_IDLE_MAX_NS) / speed
        return sent_ns / speed + self._offset_ns

    async def _pass_time(self, until_ns: int) -> None:
        """Heartbeats at their times meanwhile."""
        while not self._stopped.is_set():
            now_ns = time.time_ns()
            deadline_ns = self._stream.next_deadline_ns()
            if deadline_ns is not None and deadline_ns <= now_ns:
                self._publisher.send(self._stream.heartbeats(now_ns))
                continue
            if until_ns <= now_ns:
                return
            next_ns = until_ns if deadline_ns is None else min(until_ns, deadline_ns)
            try:
                async with asyncio.timeout((next_ns - now_ns) / _SECOND_NS):
                    await self._stopped.wait()
            except TimeoutError:
                continue

    async def _end(self) -> None:
        if not self._stream.sessions:
            return
        begun_ns = time.time_ns()
        for at_ns in END_OF_SESSION_AT_NS:
            wait_ns = begun_ns + at_ns - time.time_ns()
            if wait_ns > 0:
                await asyncio.sleep(wait_ns / _SECOND_NS)
            self._publisher.send(self._stream.ends(time.time_ns()))


def open_replay_groups(
    where: PublishConfig, live: PublishConfig, listen_ns: int = SESSION_LISTEN_NS
) -> tuple[Publisher, int]:
    """The sockets to send a recording, and the highest session heard there.

    Raises `ConfigurationError` if these are groups of the live plant, `GroupOccupiedError` if anybody sends on them,
    `NetworkSetupError` if they cannot be used. Listens for a while, so call it in a thread.
    """
    taken = {*live.groups("a"), *live.groups("b")}
    shared = sorted(taken & {*where.groups("a"), *where.groups("b")})
    if shared and where.port == live.port:
        raise ConfigurationError(
            f"{shared[0]} port {where.port} is the live plant's: give a replay groups of its own, "
            "e.g. --group-a 239.192.79.1"
        )
    heard = listen_on_groups(lines_of(where), where.port, listen_ns / _SECOND_NS)
    heard_session = require_free_groups(heard, time.time_ns())
    return open_publisher(where), heard_session
