"""What a plant published some time, played into a strategy as if it came now.

    from tickerplant_subscriber import read_log, replay

    replay(Printer(), read_log("/var/lib/tickerplant/ticklog"), speed=10)

The strategy is the same class that `run` takes, and is told the same in the same order. Its clock is that of the
recording: `on_timer` and everything that waits go by the times at which the datagrams were sent.
"""

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import uvloop

from tickerplant.core.logformat import STREAM_OFFSET
from tickerplant.core.messages import Bbo, FeedState, MarketInfo, MarketState, Stream
from tickerplant.core.wire import HEADER, Header
from tickerplant.errors import ConfigurationError
from tickerplant.limits import REORDER_WAIT_NS, REPLAY_DATAGRAMS_PER_TURN, REPLAY_IDLE_MAX_NS
from tickerplant_subscriber.arbiter import Arbiter
from tickerplant_subscriber.book_view import BookView
from tickerplant_subscriber.dispatch import StrategyDispatch
from tickerplant_subscriber.event_log import EventLog
from tickerplant_subscriber.events import Event, SessionChanged
from tickerplant_subscriber.filters import TickerFilter
from tickerplant_subscriber.log_source import TimedDatagram, read_log
from tickerplant_subscriber.position import Position, first_position
from tickerplant_subscriber.stats import SubscriberStats, collect_stats
from tickerplant_subscriber.strategy import Strategy, overrides, streams_of
from tickerplant_subscriber.stream_state import Messages, StreamState

__all__ = ["TimedDatagram", "read_log", "replay", "replay_async"]

OnError = Literal["stop", "continue"]
logger = logging.getLogger("tickerplant_subscriber")
_SECOND_NS = 1_000_000_000
_WAIT_MIN_NS = 1_000_000
"""The loop's timers are no finer."""


class Replay:
    """One run of one strategy over a recording; also what the strategy reaches through `book`, `bbo` and the like."""

    def __init__(
        self, strategy: Strategy, *, speed: float | None, from_ns: int, on_error: OnError
    ) -> None:
        if speed is not None and not 0 < speed < float("inf"):
            raise ConfigurationError(
                f"speed = {speed}: give a positive number, or None for as fast as possible"
            )
        if on_error not in ("stop", "continue"):
            raise ConfigurationError(f"on_error = {on_error!r}: choose 'stop' or 'continue'")
        self._strategy = strategy
        self._speed = speed
        self._from_ns = from_ns
        self._on_error = on_error
        self._streams = streams_of(strategy)
        self._not_joined = {bytes((stream,)) for stream in Stream if stream not in self._streams}
        self._is_muted = from_ns > 0
        self._dispatch = StrategyDispatch(
            strategy, self._streams, TickerFilter(strategy.tickers), self._guard
        )
        self._event_log = EventLog(lambda: self._now_ns)
        self._timer_ns = (
            int(strategy.timer_interval_s * _SECOND_NS) if overrides(strategy, "on_timer") else 0
        )
        self._earlier = Earlier(self._dispatch, strategy, self._guard)
        self._arbiter: Arbiter | None = None
        self._now_ns = 0
        self._next_timer_ns = 0
        self._wall_offset_ns: float | None = None
        self._stopped = asyncio.Event()
        self._callback_errors = 0

    # --- the strategy's access --------------------------------------------------------------------

    def book(self, ticker: str) -> BookView | None:
        """The mirrored book."""
        return self._dispatch.tables.book(ticker)

    def books(self) -> Collection[BookView]:
        """Every mirrored book."""
        return self._dispatch.tables.books()

    def bbo(self, ticker: str) -> Bbo | None:
        """The last quote."""
        return self._dispatch.tables.bbo(ticker)

    def stats(self) -> SubscriberStats:
        """The counts so far."""
        arbiter = self._arbiter or self._open_arbiter(started_ns=0)
        return collect_stats(
            arbiter,
            self._dispatch.tables.mirror,
            socket_errors=0,
            receive_buffer_bytes=0,
            callback_errors=self._callback_errors,
        )

    def position(self) -> Position | None:
        """Where the recording stands."""
        places = {} if self._arbiter is None else self._arbiter.places()
        return first_position(places, self._dispatch.unfinished())

    def stop(self) -> None:
        """Ends the run."""
        self._stopped.set()

    # --- the run ----------------------------------------------------------------------------------

    async def execute(
        self, source: Iterable[TimedDatagram], *, catch_signals: bool
    ) -> SubscriberStats:
        """Plays until the end or until stopped; raises what a callback raised, under the policy "stop"."""
        loop = asyncio.get_running_loop()
        caught = (signal.SIGINT, signal.SIGTERM) if catch_signals else ()
        self._strategy._access = self
        try:
            for number in caught:
                loop.add_signal_handler(number, self.stop)
            self._call("on_start")
            await self._play(iter(source))
        finally:
            for number in caught:
                loop.remove_signal_handler(number)
            self._call("on_stop")
            self._strategy._access = None
        return self.stats()

    async def _play(self, source: Iterator[TimedDatagram]) -> None:
        for count, (sent_ns, datagram) in enumerate(source, 1):
            if self._is_muted and sent_ns >= self._from_ns:
                self._begin_to_tell(sent_ns)
            if self._speed is not None and not self._is_muted:
                await self._wait_for(sent_ns)
            elif count % REPLAY_DATAGRAMS_PER_TURN == 0:
                await asyncio.sleep(0)
            if self._stopped.is_set():
                return
            self._pass_time(sent_ns)
            if self._stopped.is_set():
                return
            self._receive(datagram)
        if self._is_muted and not self._stopped.is_set():
            self._begin_to_tell(self._now_ns)
        # What waits for a datagram that will not come.
        self._pass_time(self._now_ns + REORDER_WAIT_NS)

    def _receive(self, datagram: bytes) -> None:
        # A recording has every stream; those that were not joined would be refused as unexpected, and told.
        if datagram[STREAM_OFFSET : STREAM_OFFSET + 1] in self._not_joined:
            return
        if self._arbiter is None:
            self._arbiter = self._open_arbiter(started_ns=_joined_ns(datagram))
            self._next_timer_ns = self._now_ns + self._timer_ns
        self._arbiter.receive(0, datagram, self._now_ns)

    def _open_arbiter(self, started_ns: int) -> Arbiter:
        return Arbiter(
            self._streams,
            self._deliver,
            self._take_event,
            started_ns=started_ns,
            line_count=1,
        )

    def _pass_time(self, until_ns: int) -> None:
        """Everything that waited for a time up to `until_ns`, each at its own."""
        until_ns = max(until_ns, self._now_ns)
        arbiter = self._arbiter
        if arbiter is None:
            self._now_ns = until_ns
            return
        while not self._stopped.is_set():
            due_ns = arbiter.next_deadline_ns()
            timer_ns = self._next_timer_ns if self._timer_ns and not self._is_muted else None
            if timer_ns is not None and timer_ns <= until_ns and (not due_ns or timer_ns < due_ns):
                self._now_ns = max(self._now_ns, timer_ns)
                # Where nothing was sent for long no plant ran: one call stands for all.
                idle = until_ns - timer_ns > REPLAY_IDLE_MAX_NS
                self._next_timer_ns = (until_ns if idle else timer_ns) + self._timer_ns
                self._call("on_timer", timer_ns)
            elif due_ns is not None and due_ns <= until_ns:
                self._now_ns = max(self._now_ns, due_ns)
                arbiter.handle_timer(self._now_ns)
                if arbiter.next_deadline_ns() == due_ns:
                    break  # it waits for something else than time
            else:
                break
        self._now_ns = until_ns

    async def _wait_for(self, sent_ns: int) -> None:
        """Until it is time for a datagram. A long silence of the recording is cut short."""
        assert self._speed is not None
        wall_ns = time.monotonic_ns()
        due_ns = sent_ns / self._speed
        if self._wall_offset_ns is None:
            self._wall_offset_ns = wall_ns - due_ns
        elif sent_ns - self._now_ns > REPLAY_IDLE_MAX_NS:
            skipped_ns = (sent_ns - self._now_ns - REPLAY_IDLE_MAX_NS) / self._speed
            self._wall_offset_ns -= skipped_ns
        wait_ns = due_ns + self._wall_offset_ns - wall_ns
        if wait_ns >= _WAIT_MIN_NS:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_ns / _SECOND_NS):
                    await self._stopped.wait()

    # --- from the arbiter -------------------------------------------------------------------------

    def _deliver(
        self, state: StreamState, first_seq: int, messages: Messages, ts_send_ns: int
    ) -> None:
        if self._is_muted and state.stream is Stream.STATUS:
            self._earlier.take(messages)
        self._dispatch.deliver(state, first_seq, messages, ts_send_ns)

    def _take_event(self, event: Event) -> None:
        if self._is_muted:
            self._earlier.take_event(event)
        else:
            self._event_log.take(event)
        self._dispatch.take_event(event)

    def _begin_to_tell(self, now_ns: int) -> None:
        """The time from which the strategy wants to know: first of all how things stand."""
        self._pass_time(now_ns)
        self._is_muted = False
        self._next_timer_ns = now_ns + self._timer_ns
        self._earlier.tell()

    # --- callbacks --------------------------------------------------------------------------------

    def _call(self, name: str, *arguments: object) -> None:
        if overrides(self._strategy, name):
            self._guard(name, always=name in ("on_start", "on_stop"))(*arguments)

    def _guard(self, name: str, *, always: bool = False) -> Callable[..., None]:
        """A callback of the strategy under the policy for exceptions, silent until it is time."""
        callback: Callable[..., None] = getattr(self._strategy, name)

        def guarded(*arguments: object) -> None:
            if (self._is_muted or self._stopped.is_set()) and not always:
                return
            try:
                callback(*arguments)
            except Exception:
                self._callback_errors += 1
                if self._on_error == "stop":
                    self._stopped.set()
                    raise
                logger.exception("%s raised; going on", name)

        return guarded


class Earlier:
    """What happened before the time from which a strategy is told, as far as it still holds."""

    def __init__(
        self,
        dispatch: StrategyDispatch,
        strategy: Strategy,
        guard: Callable[[str], Callable[..., None]],
    ) -> None:
        self._dispatch = dispatch
        self._strategy = strategy
        self._guard = guard
        self._session: SessionChanged | None = None
        self._feed: FeedState | None = None
        self._markets: dict[tuple[type, str], MarketInfo | MarketState] = {}

    def take(self, messages: Messages) -> None:
        """Messages of the stream status."""
        for message in messages:
            if isinstance(message, MarketInfo | MarketState):
                self._markets[type(message), message.ticker] = message
            elif isinstance(message, FeedState):
                self._feed = message

    def take_event(self, event: Event) -> None:
        """An event of the arbiter."""
        if isinstance(event, SessionChanged):
            self._session = event
            self._markets.clear()

    def tell(self) -> None:
        """Session, markets, state of the feed, and each ticker that is live with its quote."""
        wanted = TickerFilter(self._strategy.tickers)
        if self._session is None:
            return
        self._call("on_session", self._session)
        for market in self._markets.values():
            if wanted[market.ticker]:
                self._call("on_market", market)
        if self._feed is not None:
            self._call("on_feed", self._feed)
        for ticker in self._dispatch.live_tickers():
            self._call("on_live", ticker)
            bbo = self._dispatch.tables.bbo(ticker)
            if bbo is not None:
                self._call("on_bbo", bbo)

    def _call(self, name: str, argument: object) -> None:
        if overrides(self._strategy, name):
            self._guard(name)(argument)


def _joined_ns(datagram: bytes) -> int:
    """When a listener would have joined: before the session, or after its beginning if that is not recorded."""
    if len(datagram) < HEADER.size:
        return 0
    header = Header._make(HEADER.unpack_from(datagram))
    return 0 if header.seq == 1 else header.session


async def replay_async(
    strategy: Strategy,
    source: Iterable[TimedDatagram],
    *,
    speed: float | None = None,
    from_ns: int = 0,
    on_error: OnError = "stop",
) -> SubscriberStats:
    """As `replay`, within a running loop and without touching signals."""
    run = Replay(strategy, speed=speed, from_ns=from_ns, on_error=on_error)
    return await run.execute(source, catch_signals=False)


def replay(
    strategy: Strategy,
    source: Iterable[TimedDatagram] | Path | str,
    *,
    speed: float | None = None,
    from_ns: int = 0,
    on_error: OnError = "stop",
) -> SubscriberStats:
    """Plays a recording into a strategy, until its end, SIGINT, SIGTERM or `strategy.stop()`; returns the counts.

    `source` are (time sent, datagram) pairs in the order of sending, or the folder of a tick log. `speed` 1 is the
    recorded pace, 10 ten times that, None as fast as possible; silences of more than 10 s are cut short. `from_ns`:
    what was sent before is played at full speed and not told; then the strategy is told session, markets and live
    tickers as they stand. `on_error` as in `run`. Raises `ConfigurationError`, and what the source raises.
    """
    if isinstance(source, Path | str):
        source = read_log(source, from_ns=from_ns)
    run = Replay(strategy, speed=speed, from_ns=from_ns, on_error=on_error)
    in_main_thread = threading.current_thread() is threading.main_thread()
    return uvloop.run(run.execute(source, catch_signals=in_main_thread))
