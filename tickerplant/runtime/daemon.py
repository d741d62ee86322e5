"""The plant as a process: wires clock, feed, sessions, REST, publisher, timers, metrics and systemd together.

Nothing on the frame path logs, awaits or starts a task: what happened there is told once a second by comparing
counters. The one error that ends the plant is raised by `run`, after the session was ended in order.
"""

import asyncio
import gc
import ssl
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tickerplant import __version__
from tickerplant.busy_poll import BusyPoll
from tickerplant.config import Config
from tickerplant.core.messages import FeedPhase
from tickerplant.core.packets import Datagram
from tickerplant.deadline_timer import DeadlineTimer
from tickerplant.limits import LOOK_UPS_AT_ONCE, SESSION_LISTEN_NS
from tickerplant.runtime.clock import ClockOffset, require_clock
from tickerplant.runtime.companions import Companions
from tickerplant.runtime.datagram_keys import DatagramKeys
from tickerplant.runtime.feed_capture import FeedCapture, open_feed_capture
from tickerplant.runtime.health import Readiness, SystemdNotifier, readiness_of
from tickerplant.runtime.housekeeping import Housekeeping, WarningTail
from tickerplant.runtime.metrics import Metrics, MetricsServer
from tickerplant.runtime.network import lines_of, listen_on_groups, require_free_groups
from tickerplant.runtime.outlet import Outlet
from tickerplant.runtime.plain_structlog import structlog
from tickerplant.runtime.publisher import Publisher, open_publisher
from tickerplant.runtime.sessions import Beginning, Sessions, open_configured_ticklog
from tickerplant.runtime.startup import open_session_state
from tickerplant.runtime.supervise import Supervisor
from tickerplant.steady_clock import SteadyClock
from tickerplant_kalshi.auth import Signer
from tickerplant_kalshi.inputs import Begin
from tickerplant_kalshi.playback import feed_of, plant_of
from tickerplant_kalshi.reading import MarketReader
from tickerplant_kalshi.records import COMBO_PREFIX
from tickerplant_kalshi.rest import RestClient
from tickerplant_kalshi.selection import Selection
from tickerplant_kalshi.session import ExchangeSession, StartGate
from tickerplant_kalshi.sources import FeedSource, PlantSource, SessionSource

if TYPE_CHECKING:
    from tickerplant.core.plant import Plant
    from tickerplant_kalshi.feed import KalshiFeed

_SECOND_NS = 1_000_000_000
_MILLISECOND_NS = 1_000_000
GC_THRESHOLDS = (50_000, 20, 100)
"""Messages are not tracked by the collector, so little piles up: young collections can be rare. A full one takes 42 ms
with 2,000 books, 5 ms once those are frozen (measured)."""


class Daemon:
    """One plant. `feed`, `plant` and `publisher` exist once `started` is set; `ready` is set at the first READY."""

    def __init__(
        self,
        config: Config,
        *,
        signer: Signer,
        state_directory: Path,
        tls: ssl.SSLContext | None = None,
        session_listen_ns: int = SESSION_LISTEN_NS,
        notifier: SystemdNotifier | None = None,
        warning_tail: WarningTail | None = None,
        tune_collector: bool = False,
        companions: Companions | None = None,
    ) -> None:
        """`session_listen_ns` is how long to listen for another plant first; `tune_collector` affects the process.

        `companions` are started with the session and ended after it.
        Raises `ConfigurationError` if no market is chosen, `CredentialsError` for datagram keys of no use.
        """
        config.markets.require_selection()
        self.config = config
        self.clock = SteadyClock()
        self.log: Any = structlog.get_logger()
        self._keys = DatagramKeys(config.publish.key_path)
        self.supervisor = Supervisor(self.log)
        self.started = asyncio.Event()
        self.ready = asyncio.Event()
        self.feed: KalshiFeed
        self.plant: Plant
        self.publisher: Publisher
        self.outlet: Outlet
        self.sessions: Sessions
        self.connections: tuple[ExchangeSession, ...] = ()
        self.metrics = Metrics()
        self.metrics_server: MetricsServer | None = None
        self._signer = signer
        self._state_directory = state_directory
        self._tls = tls
        self._session_listen_ns = session_listen_ns
        self._notifier = notifier if notifier is not None else SystemdNotifier({})
        self._warning_tail = warning_tail
        self._tune_collector = tune_collector
        self._companions = companions if companions is not None else Companions()
        self._stop = asyncio.Event()
        self._timer = DeadlineTimer(
            self.clock.now_ns, self.supervisor.guard("timer", self._fire_timer)
        )
        self._busy_poll = BusyPoll()
        self.capture: FeedCapture | None = None
        self._reader: MarketReader
        self._housekeeping: Housekeeping
        self._seen_phase = FeedPhase.CONNECTING
        self._ending = False

    # --- life -------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event | None = None) -> None:
        """Serve until `stop` is set or `stop()` is called, then end the session. Runs once.

        Raises the `TickerplantError` that ended the plant, its exit code included.
        """
        self._stop = stop if stop is not None else self._stop
        async with AsyncExitStack() as resources:
            self.supervisor.start("start", self._start(resources))
            try:
                await self.supervisor.wait(self._stop)
            finally:
                await self._end()

    def stop(self) -> None:
        """Let `run` end in order."""
        self._stop.set()

    def now_ns(self) -> int:
        """The plant's time, in nanoseconds since the epoch."""
        return self.clock.now_ns()

    def publish(self) -> None:
        """An input or a read batch is complete: flush, send, then whatever the protocol wants to send upstream."""
        if self._ending:
            return
        now_ns = self.clock.now_ns()
        datagrams = self.feed.flush(now_ns)
        if datagrams:
            self.outlet.send(datagrams)
        if self.feed.wants_attention(self._timer.armed_ns):
            self._after_input(now_ns)

    def failed(self, where: str, error: BaseException) -> None:
        """A fault that ends the plant."""
        self.supervisor.fail(where, error)

    def readiness(self) -> Readiness:
        """For `/ready`."""
        if not self.started.is_set():
            return Readiness(is_ready=False, phase="starting", reason="the plant is starting")
        plant = self.plant
        if plant.phase in (FeedPhase.CONNECTING, FeedPhase.DOWN):
            problems = sorted({one.problem for one in self.connections if one.problem})
        else:
            problems = [] if self._reader.is_discovered else ["the markets are being read"]
            problems += [f"{plant.unready_books} books to come"] if plant.unready_books else []
            problems += [f"{plant.stale_books} stale books"] if plant.stale_books else []
        return readiness_of(plant.phase, "; ".join(problems))

    # --- start ------------------------------------------------------------------------------------

    async def _start(self, resources: AsyncExitStack) -> None:
        await self._start_metrics(resources)
        state = resources.enter_context(open_session_state(self._state_directory))
        self.publisher = open_publisher(self.config.publish)
        resources.callback(self.publisher.close)
        self._keys.tell_permissions(self.log)
        listening = asyncio.create_task(self._listen(state.previous.session))
        try:
            ticklog = await open_configured_ticklog(
                self.config.ticklog, self._state_directory, resources
            )
            rest = await self._open_rest(resources)
            # While we still listen: recovery can then serve the end of the last session when the next one begins.
            resources.push_async_callback(self._companions.stop)
            self._companions.start(self.supervisor)
        finally:
            heard_session = await listening
        self.sessions = Sessions(self.config, state, ticklog, self.clock, self.log, self._keys)
        resources.callback(self.sessions.close)
        begin = self._begin_of(self.sessions.begin(heard_session))
        self.capture = open_feed_capture(
            self.config.capture, self._state_directory, begin.session, self.clock, self.log
        )
        if self.capture is not None:
            resources.push_async_callback(self.capture.close)
        self._build(begin, rest)
        self._add_sources()
        self.started.set()
        self.publish()
        # Pushed last once more, so that they end first of all that is closed after the end of the session.
        resources.push_async_callback(self._companions.stop)
        self._start_tasks()

    async def _start_metrics(self, resources: AsyncExitStack) -> None:
        metrics = self.config.metrics
        if not metrics.enabled:
            return
        server = MetricsServer(
            self.metrics,
            self.readiness,
            metrics.address,
            metrics.port,
            companions=self._companions.states,
        )
        await server.start()
        resources.push_async_callback(server.stop)
        self.metrics_server = server
        self.metrics.add("metrics", server)
        self.log.info("metrics_endpoint", address=metrics.address, port=server.port)

    async def _listen(self, own_session: int) -> int:
        """The highest session heard on our groups. Raises `GroupOccupiedError` if somebody lives there."""
        publish, key_ring = self.config.publish, self._keys.ring
        seconds = self._session_listen_ns / _SECOND_NS
        heard = await asyncio.to_thread(
            listen_on_groups, lines_of(publish), publish.port, seconds, key_ring
        )
        self._keys.tell_strangers(heard, self.log)
        return require_free_groups(
            heard, self.clock.now_ns(), own_session=own_session, signed=key_ring is not None
        )

    async def _open_rest(self, resources: AsyncExitStack) -> RestClient:
        """The REST client, the key and the clock tried out."""
        exchange = self.config.exchange
        rest = RestClient(exchange.rest_url, self._signer)
        await resources.enter_async_context(rest)
        if rest.clock_offset_ns is not None:
            offset = ClockOffset(rest.clock_offset_ns, _SECOND_NS // 2)
            require_clock(offset, exchange.max_clock_skew_ms * _MILLISECOND_NS)
        return rest

    def _begin_of(self, beginning: Beginning) -> Begin:
        """With what feed and plant are made; the capture begins with it."""
        config = self.config
        return Begin(
            now_ns=self.clock.now_ns(),
            session=beginning.session,
            publisher=config.publish.publisher,
            previous_session=beginning.previous_session,
            final_seqs=beginning.final_seqs,
            selection=selection_of(config),
            channels=channels_of(config),
            connection_count=config.exchange.connections,
            use_yes_price=config.exchange.use_yes_price,
            version=__version__,
            verify_interval_ns=config.verify.interval_ms * _MILLISECOND_NS,
            check_interval_ns=config.verify.upstream_interval_ms * _MILLISECOND_NS,
            log_on=beginning.log_on,
        )

    def _build(self, begin: Begin, rest: RestClient) -> None:
        config = self.config
        self.plant = plant_of(begin, self._keys.ring)
        recorder = None if self.capture is None else self.capture.recorder
        self.feed = feed_of(begin, self.plant, recorder)
        self.outlet = Outlet(self.feed, self.sessions.ticklog, self.publisher)
        gate = StartGate()
        self.connections = tuple(
            ExchangeSession(
                self.feed,
                index,
                url=config.exchange.websocket_url,
                signer=self._signer,
                shell=self,
                gate=gate,
                log=self.log,
                tls=self._tls,
            )
            for index in range(config.exchange.connections)
        )
        self._reader = MarketReader(self.feed, rest, self, self.log)
        self._housekeeping = Housekeeping(
            self,
            config.publish,
            self._notifier,
            self._warning_tail,
            tune_collector=self._tune_collector,
        )

    def _add_sources(self) -> None:
        self.metrics.add("plant", PlantSource(self.feed))
        self.metrics.add("feed", FeedSource(self.feed))
        self.metrics.add("session", SessionSource(self.connections))
        self.metrics.add("reader", self._reader)
        self.metrics.add("publisher", self.publisher)
        self.metrics.add("daemon", self)
        self.metrics.add("companion", self._companions)
        if self.sessions.ticklog is not None:
            self.metrics.add("ticklog", self.sessions.ticklog)
        if self.capture is not None:
            self.metrics.add("capture", self.capture)

    def _start_tasks(self) -> None:
        start = self.supervisor.start
        if self._tune_collector:
            gc.collect()
            gc.set_threshold(*GC_THRESHOLDS)
        for session in self.connections:
            start(f"connection {session.index}", session.run())
        start("discovery", self._read_markets())
        for number in range(LOOK_UPS_AT_ONCE):
            start(f"look-ups {number}", self._reader.look_up_asked())
        start("housekeeping", self._housekeeping.run())
        if self.config.processor.busy_poll:
            self._busy_poll.start()

    async def _read_markets(self) -> None:
        await self._reader.discover()
        await self._reader.keep_current()

    # --- inputs and timers ------------------------------------------------------------------------

    def _after_input(self, now_ns: int) -> None:
        self.feed.settle()
        for session in self.connections:
            session.pump(now_ns)
        self._reader.take_requests()
        self._timer.arm(self.feed.next_deadline_ns())
        if self.plant.phase is not self._seen_phase:
            self._seen_phase = self.plant.phase
            if self._seen_phase is FeedPhase.READY:
                self.ready.set()
            self._housekeeping.wake()

    def _fire_timer(self) -> None:
        if self._ending:
            return
        now_ns = self.clock.now_ns()
        datagrams = self.feed.handle_timer(now_ns)
        if datagrams:
            self.outlet.send(datagrams)
        self._after_input(now_ns)

    async def resume_log(self) -> None:
        """The tick log was off and can go on: in a new session, in which the books are published anew."""
        session = await self.sessions.reserve(self.plant)
        if session and not self._ending and not self._go_over(session):
            await self.sessions.give_back(self.plant)

    def _go_over(self, session: int) -> bool:
        self.publish()
        if not self.sessions.go_over(session, self.plant):
            return False
        now_ns = self.clock.now_ns()
        # Past the log: they belong to the session that is not in it.
        self.publisher.send(self.plant.packets.ends_of_session(now_ns))
        self.feed.begin_session(session, now_ns)
        self.publish()
        return True

    # --- what is counted --------------------------------------------------------------------------

    def counters(self) -> dict[str, int]:
        """For the metrics."""
        return {
            "internal_errors": self.supervisor.internal_errors,
            "clock_steps_back": self.clock.steps_back,
        }

    def gauges(self) -> dict[str, int]:
        """For the metrics."""
        return {"loop_lag_max_ns": self._housekeeping.loop_lag_max_ns}

    def faults(self) -> dict[str, int]:
        """What is counted and ought not to happen, for the log."""
        feed = dict(self.feed.counters())
        plant = self.plant
        return {
            **{name: feed[name] for name in _FEED_FAULTS},
            "books_gone_stale": plant.books_gone_stale,
            "books_diverged": plant.books_diverged,
            "refused_tickers": plant.refused_tickers,
            "datagrams_lost": self.publisher.lost_datagrams,
            "look_ups_dropped": self._reader.look_ups_dropped,
            "look_ups_failed": self._reader.look_ups_failed,
        }

    def connections_lost(self) -> int:
        """Connections to the exchange lost so far."""
        return sum(one.counters.connections_lost for one in self.feed.connections)

    # --- end --------------------------------------------------------------------------------------

    async def _end(self) -> None:
        """Close the sockets upstream and tell the end of the session."""
        self._notifier.stopping()
        self._ending = True
        self._timer.close()
        self._busy_poll.stop()
        for session in self.connections:
            session.detach()
        closing = asyncio.create_task(self.supervisor.close())
        if self.started.is_set():
            await self._end_session()
        await closing
        self._notifier.close()
        if self._warning_tail is not None:
            self._warning_tail.tell_suppressed()

    async def _end_session(self) -> None:
        told = self.supervisor.attempt(
            "end of session", lambda: self._send(self.feed.end_session(self.clock.now_ns()))
        )
        while told and not self.feed.ended:
            wait_ns = self.plant.next_deadline_ns() - self.clock.now_ns()
            await asyncio.sleep(max(0, wait_ns) / _SECOND_NS)
            told = self.supervisor.attempt(
                "end of session",
                lambda: self._send(self.feed.handle_end_timer(self.clock.now_ns())),
            )
        if told:
            self.supervisor.attempt("end of session", lambda: self.sessions.finish(self.plant))
        self.log.info("session_ended", session=self.plant.session, in_order=told)

    def _send(self, datagrams: list[Datagram]) -> None:
        if datagrams:
            self.outlet.send(datagrams)


_FEED_FAULTS = (
    "duplicate_frames",
    "sequence_gaps",
    "missing_frames",
    "unknown_sid_frames",
    "unusable_frames",
    "unreadable_frames",
    "contradicting_deltas",
    "subscriptions_ended",
    "command_timeouts",
)


def selection_of(config: Config) -> Selection:
    """The choice of markets of a configuration."""
    markets = config.markets
    return Selection(
        tickers=markets.tickers,
        series=markets.series,
        events=markets.events,
        all_open=markets.all_open,
        include_combos=markets.include_combos,
    )


def channels_of(config: Config) -> tuple[str, ...]:
    """The unfiltered channels to subscribe; that of the combos only if any may be wanted: it is busy."""
    channels, markets = config.channels, config.markets
    named = (*markets.tickers, *markets.series, *markets.events)
    combos = markets.include_combos or any(name.startswith(COMBO_PREFIX) for name in named)
    wanted = {
        "trade": channels.trade,
        "ticker": channels.ticker,
        "market_lifecycle_v2": channels.lifecycle,
        "multivariate_market_lifecycle": channels.lifecycle and combos,
    }
    return tuple(name for name, is_wanted in wanted.items() if is_wanted)
