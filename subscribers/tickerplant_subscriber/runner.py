"""Runs a strategy: blocking with `run`, or within a loop of one's own with `run_async`."""

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Callable, Collection
from typing import Literal, Unpack

import uvloop

from tickerplant.core.messages import Bbo
from tickerplant.errors import ConfigurationError
from tickerplant.limits import FAULT_LOG_INTERVAL_NS
from tickerplant_subscriber.arbiter import Arbiter
from tickerplant_subscriber.dispatch import StrategyDispatch
from tickerplant_subscriber.event_log import EventLog
from tickerplant_subscriber.events import Event
from tickerplant_subscriber.filters import TickerFilter
from tickerplant_subscriber.mirror import BookView
from tickerplant_subscriber.options import NetworkOptions, ReceiverOptions
from tickerplant_subscriber.receiver import Receiver, SteadyClock
from tickerplant_subscriber.stats import SubscriberStats, collect_stats
from tickerplant_subscriber.strategy import Strategy, overrides, streams_of

logger = logging.getLogger("tickerplant_subscriber")

OnError = Literal["stop", "continue"]


class StrategyRun:
    """One run of one strategy; also what the strategy reaches through `book`, `bbo`, `stats` and `stop`."""

    def __init__(self, strategy: Strategy, on_error: OnError, options: ReceiverOptions) -> None:
        if on_error not in ("stop", "continue"):
            raise ConfigurationError(f"on_error = {on_error!r}: choose 'stop' or 'continue'")
        self._strategy = strategy
        self._on_error = on_error
        self._clock = SteadyClock()
        self._streams = streams_of(strategy)
        self._dispatch = StrategyDispatch(
            strategy, self._streams, TickerFilter(strategy.tickers), self._guard
        )
        self._event_log = EventLog(self._clock.now_ns)
        self._receiver = Receiver(options, self._streams, self._fail, self._clock)
        self._arbiter = Arbiter(
            self._streams,
            self._dispatch.deliver,
            self._take_event,
            started_ns=self._clock.now_ns(),
            line_count=len(options.lines),
            admission=self._receiver.admission,
        )
        self._stopped: asyncio.Event
        self._failure: Exception | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._callback_errors = 0
        self._error_logged_ns: int | None = None

    # --- the strategy's access --------------------------------------------------------------------

    def book(self, ticker: str) -> BookView | None:
        """The mirrored book."""
        mirror = self._dispatch.tables.mirror
        return None if mirror is None else mirror.view(ticker)

    def books(self) -> Collection[BookView]:
        """Every mirrored book."""
        mirror = self._dispatch.tables.mirror
        return () if mirror is None else tuple(mirror.views())

    def bbo(self, ticker: str) -> Bbo | None:
        """The last quote."""
        quotes = self._dispatch.tables.quotes
        return None if quotes is None else quotes.last(ticker)

    def stats(self) -> SubscriberStats:
        """The counts so far."""
        return collect_stats(
            self._arbiter,
            self._dispatch.tables.mirror,
            socket_errors=self._receiver.socket_errors,
            receive_buffer_bytes=self._receiver.receive_buffer_bytes,
            callback_errors=self._callback_errors,
        )

    def stop(self) -> None:
        """Ends the run."""
        self._stopped.set()

    # --- the run ----------------------------------------------------------------------------------

    async def execute(self, *, catch_signals: bool) -> None:
        """Runs until stopped; raises what a callback raised, under the policy "stop"."""
        self._stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._receiver.open()
        caught = (signal.SIGINT, signal.SIGTERM) if catch_signals else ()
        self._strategy._access = self
        try:
            for number in caught:
                loop.add_signal_handler(number, self.stop)
            self._guard("on_start")()
            self._receiver.start(self._arbiter)
            if overrides(self._strategy, "on_timer"):
                self._schedule_timer(loop, loop.time())
            await self._stopped.wait()
        finally:
            self._receiver.close()
            if self._timer is not None:
                self._timer.cancel()
            for number in caught:
                loop.remove_signal_handler(number)
            self._guard("on_stop")()
            self._strategy._access = None
        if self._failure is not None:
            raise self._failure

    def _schedule_timer(self, loop: asyncio.AbstractEventLoop, previous_s: float) -> None:
        """At fixed times; those missed by a slow callback are left out."""
        due_s = max(previous_s + self._strategy.timer_interval_s, loop.time())
        self._timer = loop.call_at(due_s, self._on_timer, loop, due_s)

    def _on_timer(self, loop: asyncio.AbstractEventLoop, due_s: float) -> None:
        self._schedule_timer(loop, due_s)
        try:
            self._guard("on_timer")(time.time_ns())
        except Exception as error:  # noqa: BLE001  # the user's callback raised
            self._receiver.close()
            self._fail(error)

    def _take_event(self, event: Event) -> None:
        self._event_log.take(event)
        self._dispatch.take_event(event)

    # --- exceptions of the user -------------------------------------------------------------------

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        self._callback_errors += 1
        self.stop()

    def _guard(self, name: str) -> Callable[..., None]:
        """The callback itself under the policy "stop"; one that survives its exceptions under "continue"."""
        callback: Callable[..., None] = getattr(self._strategy, name)
        if self._on_error == "stop":
            return callback

        def guarded(*arguments: object) -> None:
            try:
                callback(*arguments)
            except Exception as error:  # noqa: BLE001  # the policy is to go on
                self._survive(name, error)

        return guarded

    def _survive(self, name: str, error: Exception) -> None:
        self._callback_errors += 1
        now_ns = self._clock.now_ns()
        logged_ns = self._error_logged_ns
        if logged_ns is None or now_ns - logged_ns >= FAULT_LOG_INTERVAL_NS:
            self._error_logged_ns = now_ns
            logger.error(
                "%s raised; going on (%d exceptions so far)",
                name,
                self._callback_errors,
                exc_info=error,
            )


async def run_async(
    strategy: Strategy, *, on_error: OnError = "stop", **network: Unpack[NetworkOptions]
) -> None:
    """As `run`, within a running loop and without touching signals; cancel it or call `strategy.stop()` to end it."""
    await StrategyRun(strategy, on_error, ReceiverOptions(**network)).execute(catch_signals=False)


def run(
    strategy: Strategy, *, on_error: OnError = "stop", **network: Unpack[NetworkOptions]
) -> None:
    """Runs a strategy on uvloop until SIGINT, SIGTERM or `strategy.stop()`.

    `on_error` is what an exception of a callback does: "stop" ends the run and raises it here; "continue" counts it,
    logs it at most once a second and goes on with the next message. `network` as in `ReceiverOptions`. Raises
    `ConfigurationError`, `NetworkSetupError`.
    """
    execution = StrategyRun(strategy, on_error, ReceiverOptions(**network))
    in_main_thread = threading.current_thread() is threading.main_thread()
    uvloop.run(execution.execute(catch_signals=in_main_thread))
