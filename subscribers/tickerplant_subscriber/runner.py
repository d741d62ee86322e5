"""Runs a strategy: blocking with `run`, or within a loop of one's own with `run_async`."""

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, Unpack

import uvloop

from tickerplant.core.messages import Bbo
from tickerplant.errors import ConfigurationError
from tickerplant.limits import FAULT_LOG_INTERVAL_NS
from tickerplant_subscriber.book_view import BookView
from tickerplant_subscriber.dispatch import StrategyDispatch
from tickerplant_subscriber.event_log import EventLog
from tickerplant_subscriber.events import Event
from tickerplant_subscriber.filters import TickerFilter
from tickerplant_subscriber.options import (
    NetworkOptions,
    ReceiverOptions,
    WhenSlow,
    WhileRepairing,
    check_when_slow,
    check_while_repairing,
)
from tickerplant_subscriber.position import Position, first_position
from tickerplant_subscriber.reception import Reception
from tickerplant_subscriber.stats import SubscriberStats
from tickerplant_subscriber.strategy import Strategy, overrides, streams_of

logger = logging.getLogger("tickerplant_subscriber")

OnError = Literal["stop", "continue"]


class StrategyRun:
    """One run of one strategy; also what the strategy reaches through `book`, `bbo`, `stats` and `stop`."""

    def __init__(
        self,
        strategy: Strategy,
        options: ReceiverOptions,
        on_error: OnError,
        when_slow: WhenSlow,
        resume: Position | None,
        while_repairing: WhileRepairing,
    ) -> None:
        check_when_slow(when_slow)
        is_flowing = check_while_repairing(while_repairing)
        if on_error not in ("stop", "continue"):
            raise ConfigurationError(f"on_error = {on_error!r}: choose 'stop' or 'continue'")
        self._strategy = strategy
        self._on_error = on_error
        self._streams = streams_of(strategy)
        wanted = TickerFilter(strategy.tickers)
        self._dispatch = StrategyDispatch(strategy, self._streams, wanted, self._guard)
        self._reception = Reception(
            options,
            self._streams,
            wanted,
            deliver=self._dispatch.deliver,
            tell=self._take_event,
            take_image=self._dispatch.take_image,
            fail=self._fail,
            resume=resume,
            is_skipping=when_slow == "skip",
            is_flowing=is_flowing,
        )
        self._dispatch.tables.heal_with(self._reception.arbiter.heal)
        self._clock = self._reception.clock
        self._event_log = EventLog(self._clock.now_ns)
        self._stopped: asyncio.Event
        self._failure: Exception | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._callback_errors = 0
        self._error_logged_ns: int | None = None

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
        return self._reception.stats(
            self._dispatch.tables.mirror, callback_errors=self._callback_errors
        )

    def position(self) -> Position | None:
        """Where delivery stands; a datagram that is being handed over counts as still to come."""
        return first_position(self._reception.arbiter.places(), self._dispatch.unfinished())

    def stop(self) -> None:
        """Ends the run."""
        self._stopped.set()

    # --- the run ----------------------------------------------------------------------------------

    async def execute(self, *, catch_signals: bool) -> None:
        """Runs until stopped; raises what a callback raised, under the policy "stop"."""
        self._stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._reception.open()
        caught = (signal.SIGINT, signal.SIGTERM) if catch_signals else ()
        self._strategy._access = self
        try:
            for number in caught:
                loop.add_signal_handler(number, self.stop)
            self._guard("on_start")()
            self._reception.start()
            if overrides(self._strategy, "on_timer"):
                self._schedule_timer(loop, loop.time())
            await self._stopped.wait()
        finally:
            self._reception.close()
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
            self._reception.close()
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


_refusal: ContextVar[str] = ContextVar("why nothing may be run now", default="")


@contextmanager
def refusing_to_run(reason: str) -> Iterator[None]:
    """Meanwhile `run` and `run_async` raise `ConfigurationError` with `reason`: a strategy's file is only imported."""
    before = _refusal.set(reason)
    try:
        yield
    finally:
        _refusal.reset(before)


class RunOptions(NetworkOptions, total=False):
    """The keyword arguments of `run` and `run_async`; see there."""

    on_error: OnError
    when_slow: WhenSlow
    resume: Position | None
    while_repairing: WhileRepairing


def _run_of(
    strategy: Strategy,
    *,
    on_error: OnError = "stop",
    when_slow: WhenSlow = "block",
    resume: Position | None = None,
    while_repairing: WhileRepairing = "hold",
    **network: Unpack[NetworkOptions],
) -> StrategyRun:
    if reason := _refusal.get():
        raise ConfigurationError(reason)
    options = ReceiverOptions(**network)
    return StrategyRun(strategy, options, on_error, when_slow, resume, while_repairing)


async def run_async(strategy: Strategy, **options: Unpack[RunOptions]) -> None:
    """As `run`, within a running loop and without touching signals; cancel it or call `strategy.stop()` to end it."""
    await _run_of(strategy, **options).execute(catch_signals=False)


def run(strategy: Strategy, **options: Unpack[RunOptions]) -> None:
    """Runs a strategy on uvloop until SIGINT, SIGTERM or `strategy.stop()`.

    `on_error` is what an exception of a callback does: "stop" ends the run and raises it here; "continue" counts it,
    logs it at most once a second and goes on with the next message. Callbacks that are too slow let the kernel drop
    datagrams; with `when_slow` "block" those are fetched from recovery, with "skip" they are told as a `Gap` with
    cause KERNEL_DROP and made up for by a snapshot.

    `while_repairing` is what becomes of messages behind a missing one: "hold" waits for it, so that each stream is in
    order; with "flow" trades, quotes and tickers go on: markets that miss nothing notice nothing, and what is fetched
    follows as it comes, but for quotes and tickers that newer ones of the same market have overtaken. Books and
    status always hold.

    `resume` is a `Position` to go on from. The other options are those of `ReceiverOptions`. Raises
    `ConfigurationError`, `CredentialsError`, `NetworkSetupError`.
    """
    execution = _run_of(strategy, **options)
    in_main_thread = threading.current_thread() is threading.main_thread()
    uvloop.run(execution.execute(catch_signals=in_main_thread))
