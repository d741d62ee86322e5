"""The sessions of one plant: their numbers, what is told of the one before, and what is kept of each.

Two memories: the state directory (the newest session, and how it ended if in order) and the tick log (all of it). The
number of a session is above both and above what is heard on our own groups, so that none is ever used twice even if
one of the memories is lost and the clock is wrong.
"""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

from tickerplant import __version__
from tickerplant.config import Config, TicklogConfig
from tickerplant.core.logformat import NO_SEQS, NextSeqs
from tickerplant.core.plant import Plant
from tickerplant.errors import StateDirectoryError
from tickerplant.limits import SESSION_AHEAD_MAX_NS
from tickerplant.runtime.datagram_keys import DatagramKeys
from tickerplant.runtime.logfolder import log_folder
from tickerplant.runtime.logupkeep import TickLogOptions
from tickerplant.runtime.network import lines_of
from tickerplant.runtime.startup import SessionRecord, SessionState, SessionWatch
from tickerplant.runtime.ticklog import TickLog, open_ticklog
from tickerplant.steady_clock import SteadyClock

_SECOND_NS = 1_000_000_000
FinalSeqs = tuple[tuple[int, int], ...]
"""(stream, next seq) of each stream; empty if not known."""


class Beginning(NamedTuple):
    """What a plant starts its session with."""

    session: int
    previous_session: int
    final_seqs: FinalSeqs
    log_on: bool


class Sessions:
    """The session that is, and the one before.

    `begin` once, `finish` once. In between, if the log went off and can go on: `reserve`, then `go_over`, else
    `give_back`.
    """

    def __init__(
        self,
        config: Config,
        state: SessionState,
        ticklog: TickLog | None,
        clock: SteadyClock,
        log: Any,
        keys: DatagramKeys,
    ) -> None:
        """`ticklog` is None if none is kept; `log` is a structlog logger."""
        self.keys = keys
        self.ticklog = ticklog
        self.watch: SessionWatch
        self._publish = config.publish
        self._state = state
        self._clock = clock
        self._log = log

    def begin(self, heard_session: int) -> Beginning:
        """Choose the first session, keep it for good, and open its log. Raises `TickerplantError`."""
        state, ticklog, now_ns = self._state, self.ticklog, self._clock.now_ns()
        if state.damaged:
            self._log.warning("session_file_damaged", folder=str(state.directory))
        logged = _logged(ticklog)
        session = max(state.next_session(now_ns, heard_session), logged.session + 1)
        if session - now_ns > SESSION_AHEAD_MAX_NS:
            self._log.warning("session_ahead_of_clock", ahead_s=(session - now_ns) // _SECOND_NS)
        state.begin(session)
        if ticklog is not None and ticklog.previous.cut_bytes:
            self._log.warning("ticklog_tail_cut", bytes=ticklog.previous.cut_bytes)
        previous = _newer(state.previous, logged)
        log_on = ticklog is not None and ticklog.begin_session(
            session,
            now_ns,
            publisher=self._publish.publisher,
            previous=None if previous.session == logged.session else _position(previous),
        )
        self.watch = SessionWatch(
            lines_of(self._publish)[0],
            self._publish.port,
            session,
            self._clock.now_ns,
            self.keys.ring,
        )
        self._tell_begin(session, log_on=log_on)
        return Beginning(session, previous.session, previous.final_seqs, log_on)

    async def reserve(self, plant: Plant) -> int:
        """A session to go over to, kept for good; 0 if the state directory cannot be written."""
        session = max(self._clock.now_ns(), plant.session + 1)
        return session if await self._keep(session) else 0

    def go_over(self, session: int, plant: Plant) -> bool:
        """Open the log of a reserved session, as the successor of the plant's; False: stay in that one."""
        ticklog = self.ticklog
        assert ticklog is not None
        log_on = ticklog.begin_session(
            session,
            self._clock.now_ns(),
            publisher=self._publish.publisher,
            previous=(plant.session, plant.packets.next_seqs),
        )
        if log_on:
            self.watch.begin(session)
            self._tell_begin(session, log_on=True)
        return log_on

    async def give_back(self, plant: Plant) -> None:
        """A reserved session was not used: the plant's is the last one."""
        await self._keep(plant.session)

    async def _keep(self, session: int) -> bool:
        try:
            await asyncio.to_thread(self._state.begin, session)
        except StateDirectoryError as error:
            self._log.warning("session_not_kept", session=session, reason=str(error))
            return False
        return True

    def look_at_keys(self, plant: Plant) -> None:
        """Let `plant` sign with the keys of a changed file; to be called once a second."""
        key_ring = self.keys.look(self._log)
        if key_ring is not None:
            plant.use_keys(key_ring)
            self.watch.key_ring = key_ring

    def finish(self, plant: Plant) -> None:
        """The ends of session are out: keep how it ended. Raises `StateDirectoryError`."""
        if self.ticklog is not None:
            self.ticklog.end_session()
        final_seqs = tuple(enumerate(plant.packets.next_seqs, start=1))
        self._state.finish(plant.session, final_seqs)

    def close(self) -> None:
        """Leave the group that is watched; harmless before `begin`."""
        if hasattr(self, "watch"):
            self.watch.close()

    def _tell_begin(self, session: int, *, log_on: bool) -> None:
        publish, ticklog = self._publish, self.ticklog
        self._log.info(
            "session_begins",
            version=__version__,
            session=session,
            group_a=publish.group_a,
            group_b=publish.group_b,
            port=publish.port,
            interface=publish.interface,
            ticklog="" if ticklog is None else str(ticklog.folder),
            log_on=log_on,
            signed_with=self.keys.signing_key_id,
        )


def _logged(ticklog: TickLog | None) -> SessionRecord:
    """The newest session that the log knows, and how far it came if all of it is there."""
    if ticklog is None:
        return SessionRecord(0)
    return SessionRecord(ticklog.previous.session, ticklog.previous.final_seqs)


def _newer(kept: SessionRecord, logged: SessionRecord) -> SessionRecord:
    """The record of the higher session; of the same one that with final sequences, the log's if both have them."""
    if kept.session == logged.session:
        return logged if logged.final_seqs else kept
    return max(kept, logged, key=lambda record: record.session)


def _position(record: SessionRecord) -> tuple[int, NextSeqs]:
    return record.session, tuple(seq for _, seq in sorted(record.final_seqs)) or NO_SEQS


def options_of(ticklog: TicklogConfig) -> TickLogOptions:
    """The section [ticklog] as the log takes it."""
    return TickLogOptions(
        segment_max_bytes=ticklog.segment_max_bytes,
        segment_max_s=ticklog.segment_max_s,
        fsync=ticklog.fsync,
        fsync_interval_ms=ticklog.fsync_interval_ms,
        retain_s=ticklog.retain_s,
        retain_bytes=ticklog.retain_bytes,
        max_bytes=ticklog.max_bytes,
    )


async def open_configured_ticklog(
    ticklog: TicklogConfig, state_directory: Path, resources: AsyncExitStack
) -> TickLog | None:
    """The log, closed with `resources`; None if none is wanted. Raises `TickLogError`.

    In threads, because what the last plant left may be long, and a disk slow to sync.
    """
    if not ticklog.enabled:
        return None
    folder = log_folder(ticklog.directory, state_directory)
    opening = asyncio.ensure_future(asyncio.to_thread(open_ticklog, folder, options_of(ticklog)))
    # Before it is awaited: the folder is not left locked if the start is broken off meanwhile.
    resources.push_async_callback(_close, opening)
    return await asyncio.shield(opening)


async def _close(opening: asyncio.Future[TickLog]) -> None:
    await asyncio.wait([opening])
    if opening.exception() is None:
        await asyncio.to_thread(opening.result().close)
