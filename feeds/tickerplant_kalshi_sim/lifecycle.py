"""Life of markets on the virtual clock: created, opened and closed in silence, paused, determined, settled.

Timers are kept in a heap; one that meets a market in another state than it was set for does nothing. Announced:
created, activated, deactivated, close_date_updated, determined, settled, metadata_updated,
price_level_structure_updated, event_lifecycle, event_fee_update. Not announced, as on the exchange: opening at
`open_time`, closing at `close_time`. Source: Kalshi market lifecycle page.
"""

import heapq
from random import Random
from typing import NamedTuple

import msgspec

from tickerplant.core.fixedpoint import format_price_e4
from tickerplant.limits import SIM_SETTLED_MARKETS_KEPT
from tickerplant_kalshi_sim.catalogue import (
    SINGLE_STRUCTURES,
    WINDOW_SERIES,
    add_daily_event,
    add_window_event,
)
from tickerplant_kalshi_sim.engine import MatchingEngine
from tickerplant_kalshi_sim.frames import (
    NANOSECONDS,
    StampClock,
    created_emission,
    event_emission,
    event_fee_emission,
    lifecycle_emission,
    price_ranges,
)
from tickerplant_kalshi_sim.markets import Catalogue, Event, Market, price_grid

WINDOW_MARKETS = 3
SCALAR_SHARE = 0.1
FEE_OVERRIDES = (
    ("quadratic", 0.5),
    ("flat", 1.0),
    ("quadratic_with_maker_fees", 0.25),
    (None, None),
)


class LifecycleSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Length of the rolling windows (0: none) and mean time between administrative changes (0: none)."""

    window_s: int = 60
    change_interval_ms: int = 3_000
    pause_s: int = 4
    determination_s: int = 5


class Timer(NamedTuple):
    """Something due; `number` keeps timers of one moment in the order they were set."""

    due_ns: int
    number: int
    action: str
    ticker: str


class Lifecycle:
    """Drives the states of the markets in `catalogue`; frames go out through `engine`."""

    def __init__(
        self,
        random: Random,
        catalogue: Catalogue,
        engine: MatchingEngine,
        settings: LifecycleSettings,
        start_ns: int,
    ) -> None:
        self._random = random
        self._catalogue = catalogue
        self._engine = engine
        self._settings = settings
        self._clock = StampClock()
        self._timers: list[Timer] = []
        self._timer_count = 0
        self._settled: list[Market] = []
        self._tradable: list[Market] = []
        self._dirty = True
        self._actions = {
            "open": self._open,
            "close": self._close,
            "determine": self._determine,
            "settle": self._settle,
            "reactivate": self._reactivate,
        }
        for market in catalogue.markets.values():
            if market.status == "active":
                self._set(market.close_ns, "close", market.ticker)
        if settings.window_s:
            self._set(start_ns, "window", "")
        if settings.change_interval_ms:
            self._set(self._next_change_ns(start_ns), "change", "")

    def tradable(self) -> list[Market]:
        """Markets that are open now, in order of creation."""
        if self._dirty:
            self._tradable = [m for m in self._catalogue.markets.values() if m.status == "active"]
            self._dirty = False
        return self._tradable

    def run(self, now_ns: int) -> None:
        """Everything due up to `now_ns`."""
        while self._timers and self._timers[0].due_ns <= now_ns:
            timer = heapq.heappop(self._timers)
            if timer.action == "window":
                self._window(timer.due_ns, now_ns)
            elif timer.action == "change":
                self._change(now_ns)
                self._set(self._next_change_ns(now_ns), "change", "")
            elif market := self._catalogue.markets.get(timer.ticker):
                self._actions[timer.action](market, now_ns)

    def _set(self, due_ns: int, action: str, ticker: str) -> None:
        self._timer_count += 1
        heapq.heappush(self._timers, Timer(due_ns, self._timer_count, action, ticker))

    def _status(self, market: Market, status: str, now_ns: int) -> None:
        market.status = status
        market.updated_ns = now_ns
        self._dirty = True

    def _next_change_ns(self, now_ns: int) -> int:
        mean_ns = self._settings.change_interval_ms * 1_000_000
        return now_ns + mean_ns // 2 + int(self._random.random() * mean_ns)

    # --- windows ----------------------------------------------------------------------------------

    def _window(self, due_ns: int, now_ns: int) -> None:
        """List the window after the current one; the first call lists the current one too."""
        length_ns = self._settings.window_s * NANOSECONDS
        this_ns = due_ns // length_ns * length_ns
        starts = [this_ns, this_ns + length_ns] if not self._window_listed(this_ns) else []
        for start_ns in starts or [this_ns + length_ns]:
            self._list_window(start_ns, start_ns + length_ns, now_ns)
        self._set(this_ns + length_ns, "window", "")

    def _window_listed(self, start_ns: int) -> bool:
        return any(m.open_ns == start_ns for m in self._catalogue.markets.values())

    def _list_window(self, open_ns: int, close_ns: int, now_ns: int) -> None:
        event = add_window_event(
            self._catalogue, self._random, open_ns, close_ns, now_ns, WINDOW_MARKETS
        )
        for market in self._catalogue.markets_of(event):
            self._set(open_ns, "open", market.ticker)
        self._announce(event)

    def _announce(self, event: Event) -> None:
        """The frames of a new event and its markets, and the timers that close them."""
        self._dirty = True
        self._engine.emit(event_emission(event))
        for market in self._catalogue.markets_of(event):
            self._engine.emit(created_emission(market))
            self._set(market.close_ns, "close", market.ticker)

    def _succeed(self, event: Event, now_ns: int) -> None:
        """A daily event whose last market closed is followed by another, so that the listing never runs dry."""
        ended = all(
            m.status not in ("active", "inactive") for m in self._catalogue.markets_of(event)
        )
        if ended and not event.is_succeeded and event.series is not WINDOW_SERIES:
            event.is_succeeded = True
            self._announce(add_daily_event(self._catalogue, self._random, event, now_ns))

    # --- timers of one market ---------------------------------------------------------------------

    def _open(self, market: Market, now_ns: int) -> None:
        if market.status == "initialized":
            self._status(market, "active", now_ns)

    def _close(self, market: Market, now_ns: int) -> None:
        if market.status not in ("active", "inactive"):
            return
        if now_ns < market.close_ns:
            self._set(market.close_ns, "close", market.ticker)
            return
        self._status(market, "closed", now_ns)
        self._cancel_all(market, now_ns)
        delay_ns = self._settings.determination_s * NANOSECONDS
        self._set(now_ns + delay_ns, "determine", market.ticker)
        self._succeed(market.event, now_ns)

    def _determine(self, market: Market, now_ns: int) -> None:
        if market.status != "closed":
            return
        self._status(market, "determined", now_ns)
        draw = self._random.random()
        if draw < SCALAR_SHARE:
            market.result, market.settlement_value_e4 = "scalar", int(draw * 100_000)
        elif draw < 0.5:
            market.result, market.settlement_value_e4 = "yes", 10_000
        else:
            market.result, market.settlement_value_e4 = "no", 0
        self._engine.emit(
            lifecycle_emission(
                market,
                "determined",
                determination_ts=now_ns // NANOSECONDS,
                result=market.result,
                settlement_value=format_price_e4(market.settlement_value_e4),
            )
        )
        self._set(now_ns + market.settlement_timer_s * NANOSECONDS, "settle", market.ticker)

    def _settle(self, market: Market, now_ns: int) -> None:
        self._status(market, "finalized", now_ns)
        market.settled_ns = now_ns
        self._engine.emit(lifecycle_emission(market, "settled", settled_ts=now_ns // NANOSECONDS))
        self._settled.append(market)
        if len(self._settled) > SIM_SETTLED_MARKETS_KEPT:
            self._catalogue.remove_market(self._settled.pop(0))

    def _reactivate(self, market: Market, now_ns: int) -> None:
        """Un-pause; the exchange cancels the resting orders of a reactivated market."""
        if market.status != "inactive":
            return
        self._status(market, "active", now_ns)
        self._engine.emit(lifecycle_emission(market, "activated", is_deactivated=False))
        self._cancel_all(market, now_ns)

    def _cancel_all(self, market: Market, now_ns: int) -> None:
        self._engine.cancel(market, list(market.book.orders), self._clock.stamp(now_ns))

    # --- administrative changes -------------------------------------------------------------------

    def _change(self, now_ns: int) -> None:
        """One change of a random kind to a random market."""
        markets = self.tradable()
        if not markets:
            return
        changes = (
            self._pause,
            self._pause,
            self._metadata,
            self._structure,
            self._close_date,
            self._early_end,
            self._fee,
            self._reopen,
        )
        market = markets[int(self._random.random() * len(markets))]
        changes[int(self._random.random() * len(changes))](market, now_ns)

    def _pause(self, market: Market, now_ns: int) -> None:
        self._status(market, "inactive", now_ns)
        self._engine.emit(lifecycle_emission(market, "deactivated", is_deactivated=True))
        due_ns = now_ns + self._settings.pause_s * NANOSECONDS
        self._set(due_ns, "reactivate", market.ticker)

    def _metadata(self, market: Market, now_ns: int) -> None:
        if market.event.is_multivariate:
            return
        market.strike_type = "between"
        market.cap_strike = market.floor_strike + 2
        market.yes_sub_title = f"{market.floor_strike} to {market.cap_strike}"
        market.updated_ns = now_ns
        fields = {"strike_type": market.strike_type, "floor_strike": market.floor_strike}
        self._engine.emit(
            lifecycle_emission(
                market,
                "metadata_updated",
                **fields,
                cap_strike=market.cap_strike,
                yes_sub_title=market.yes_sub_title,
            )
        )

    def _structure(self, market: Market, now_ns: int) -> None:
        """A new grid in place while trading; resting orders survive, on or off it."""
        if market.event.is_multivariate:
            return
        share = market.fair / len(market.grid)
        market.structure = SINGLE_STRUCTURES[int(self._random.random() * len(SINGLE_STRUCTURES))]
        market.grid = price_grid(market.structure)
        market.fair = min(max(int(share * len(market.grid)), 1), len(market.grid) - 2)
        market.updated_ns = now_ns
        self._engine.emit(
            lifecycle_emission(
                market,
                "price_level_structure_updated",
                price_level_structure=market.structure,
                price_ranges=price_ranges(market.bands),
            )
        )

    def _close_date(self, market: Market, now_ns: int) -> None:
        """Later by a minute; the pending close timer sees the new time."""
        self._move_close(market, market.close_ns + 60 * NANOSECONDS, now_ns)

    def _early_end(self, market: Market, now_ns: int) -> None:
        """The outcome of a window is known early: it closes at the next whole second."""
        if market.event.series is not WINDOW_SERIES:
            return
        self._move_close(market, (now_ns // NANOSECONDS + 1) * NANOSECONDS, now_ns)
        self._set(market.close_ns, "close", market.ticker)

    def _fee(self, market: Market, now_ns: int) -> None:
        event = market.event
        if event.is_multivariate:
            return
        choice = FEE_OVERRIDES[int(self._random.random() * len(FEE_OVERRIDES))]
        event.fee_type_override, event.fee_multiplier_override = choice
        event.updated_ns = now_ns
        self._engine.emit(event_fee_emission(event))

    def _reopen(self, _market: Market, now_ns: int) -> None:
        """A closed market that is not determined yet goes on trading for a minute."""
        closed = [m for m in self._catalogue.markets.values() if m.status == "closed"]
        if not closed:
            return
        market = closed[int(self._random.random() * len(closed))]
        self._move_close(market, now_ns + 60 * NANOSECONDS, now_ns)
        self._status(market, "active", now_ns)
        self._engine.emit(lifecycle_emission(market, "activated", is_deactivated=False))
        self._set(market.close_ns, "close", market.ticker)

    def _move_close(self, market: Market, close_ns: int, now_ns: int) -> None:
        market.close_ns = close_ns
        market.updated_ns = now_ns
        self._engine.emit(
            lifecycle_emission(market, "close_date_updated", close_ts=close_ns // NANOSECONDS)
        )
