"""The pure exchange on a virtual clock: determinism, books, trades, lifecycle, and the schema of every frame."""

import json
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest

from tickerplant.limits import SIM_SETTLED_MARKETS_KEPT
from tickerplant_kalshi_sim.commands import CommandLimits, Commands
from tickerplant_kalshi_sim.exchange import Exchange
from tickerplant_kalshi_sim.flow import FlowSettings
from tickerplant_kalshi_sim.lifecycle import LifecycleSettings
from tickerplant_kalshi_sim.markets import TICK_STRUCTURES, price_grid
from tickerplant_kalshi_sim.subscriptions import Subscriptions

START_NS = 1_795_197_600_000_000_000
TICK_NS = 20_000_000
ALL_CHANNELS = [
    "ticker",
    "trade",
    "market_lifecycle_v2",
    "multivariate_market_lifecycle",
    "communications",
]


class Run:
    """An exchange and one client of it, without sockets."""

    def __init__(
        self, *, seed: int = 1, markets: int = 120, use_yes_price: bool = False, **settings: Any
    ) -> None:
        self.exchange = Exchange(
            seed=seed,
            market_count=markets,
            start_ns=START_NS,
            flow=FlowSettings(rate=settings.pop("rate", 3_000)),
            lifecycle=LifecycleSettings(**settings),
        )
        self.subscriptions = Subscriptions(1_000_000, {})
        self.commands = Commands(self.exchange, self.subscriptions, CommandLimits())
        self.raw: list[bytes] = []
        self._frames: list[dict[str, Any]] = []
        self._use_yes_price = use_yes_price
        self._ids = 0

    def command(self, cmd: str, **params: Any) -> None:
        """One command now."""
        self._ids += 1
        body = {"id": self._ids, "cmd": cmd, "params": params}
        self.commands.receive(json.dumps(body).encode(), self.exchange.now_ns)

    def subscribe_all(self) -> None:
        """Every channel that has data of its own, every market."""
        tickers = list(self.exchange.catalogue.markets)
        self.command(
            "subscribe",
            channels=["orderbook_delta"],
            market_tickers=tickers,
            use_yes_price=self._use_yes_price,
        )
        self.command("subscribe", channels=ALL_CHANNELS)
        self.command(
            "subscribe",
            channels=["cfbenchmarks_value", "cfbenchmarks_value_5hz"],
            index_ids=["all"],
        )
        self.command("subscribe", channels=["pyth_value"], underlying_tickers=["all"])

    def ticks(self, count: int) -> None:
        """Let virtual time pass."""
        for _ in range(count):
            self.subscriptions.publish(self.exchange.advance(self.exchange.now_ns + TICK_NS))
        self.raw.extend(self.subscriptions.take_frames())

    @property
    def frames(self) -> list[dict[str, Any]]:
        """Everything sent so far, decoded."""
        self._frames.extend(json.loads(frame) for frame in self.raw[len(self._frames) :])
        return self._frames


@pytest.fixture(scope="module")
def long_run() -> Run:
    """Twelve seconds of virtual time with a fast lifecycle."""
    run = Run(window_s=3, change_interval_ms=100, pause_s=1, determination_s=1)
    run.subscribe_all()
    for _ in range(12):
        run.ticks(50)
        known = run.subscriptions.by_channel["orderbook_delta"].keys or {}
        new = [ticker for ticker in run.exchange.catalogue.markets if ticker not in known]
        if new:
            run.command("update_subscription", sid=1, action="add_markets", market_tickers=new)
    run.ticks(1)
    return run


def test_same_seed_and_commands_give_the_same_bytes() -> None:
    def bytes_of(seed: int) -> list[bytes]:
        run = Run(seed=seed, markets=60, window_s=2, change_interval_ms=500)
        run.subscribe_all()
        run.ticks(100)
        run.command("update_subscription", sid=1, action="get_snapshot", market_tickers=["KXNONE"])
        run.ticks(100)
        return run.raw

    first = bytes_of(7)
    assert first == bytes_of(7)
    assert first != bytes_of(8)
    assert len(first) > 5_000


def test_every_frame_is_valid(long_run: Run, check_frame: Callable[[dict[str, Any]], None]) -> None:
    by_type: Counter[str] = Counter()
    for frame in long_run.frames:
        if by_type[frame["type"]] < 1_500:
            check_frame(frame)
        by_type[frame["type"]] += 1
    expected = {
        "orderbook_snapshot", "orderbook_delta", "ticker", "trade", "market_lifecycle_v2",
        "multivariate_market_lifecycle", "event_lifecycle", "event_fee_update", "subscribed", "ok",
        "rfq_created", "rfq_deleted", "cfbenchmarks_value", "cfbenchmarks_value_5hz", "pyth_value",
    }  # fmt: skip
    assert set(by_type) == expected


@pytest.mark.parametrize("use_yes_price", [False, True])
def test_books_rebuilt_from_the_frames_are_the_exchanges_own(
    use_yes_price: bool,
    rebuild: Callable[[list[dict[str, Any]]], Any],
    as_integers: Callable[[Any], Any],
) -> None:
    run = Run(use_yes_price=use_yes_price, window_s=0, change_interval_ms=500, pause_s=1)
    run.subscribe_all()
    run.ticks(400)
    books = rebuild(run.frames)
    if use_yes_price:
        for book in books.values():
            book["no"] = {1 - price: size for price, size in book["no"].items()}
    own = run.exchange.books()
    assert set(books) == set(own)
    for ticker, book in books.items():
        assert as_integers(book) == own[ticker], ticker
    assert sum(bool(bids or asks) for bids, asks in own.values()) > 80


def test_sequence_per_sid_is_gapless_and_only_on_sequenced_types(long_run: Run) -> None:
    last: dict[int, int] = {}
    for frame in long_run.frames:
        if frame["type"] in ("ticker", "subscribed"):
            assert "seq" not in frame
            continue
        assert frame["seq"] == last.get(frame["sid"], 0) + 1, frame
        last[frame["sid"]] = frame["seq"]
    assert len(last) >= 6


def test_trades_consume_the_book_and_block_trades_do_not(long_run: Run) -> None:
    """Right after a trade comes the delta of the maker's level, of just the trade's size; a block trade has none."""
    kinds = ("trade", "orderbook_delta", "orderbook_snapshot")
    book_frames = [f for f in long_run.frames if f["type"] in kinds]
    trades = blocks = 0
    subscribed: set[str] = set()
    for frame, following in pairwise(book_frames):
        if frame["type"] == "orderbook_snapshot":
            subscribed.add(frame["msg"]["market_ticker"])
        if frame["type"] != "trade" or frame["msg"]["market_ticker"] not in subscribed:
            continue
        trade = frame["msg"]
        assert Decimal(trade["yes_price_dollars"]) + Decimal(trade["no_price_dollars"]) == 1
        if trade["is_block_trade"]:
            blocks += 1
            continue
        trades += 1
        delta = following["msg"]
        maker_side = "no" if trade["taker_outcome_side"] == "yes" else "yes"
        assert delta["market_ticker"] == trade["market_ticker"]
        assert delta["side"] == maker_side
        assert delta["price_dollars"] == trade[f"{maker_side}_price_dollars"]
        assert Decimal(delta["delta_fp"]) == -Decimal(trade["count_fp"])
        assert delta["ts_ms"] == trade["ts_ms"]
    assert trades > 500
    assert blocks > 20


def test_amend_is_two_deltas_with_one_timestamp(long_run: Run) -> None:
    deltas = [f["msg"] for f in long_run.frames if f["type"] == "orderbook_delta"]
    amends = sum(
        first["ts"] == second["ts"]
        and first["market_ticker"] == second["market_ticker"]
        and first["delta_fp"].startswith("-")
        and not second["delta_fp"].startswith("-")
        for first, second in pairwise(deltas)
    )
    assert amends > 500


def test_ticker_says_what_the_book_says(long_run: Run) -> None:
    """The last ticker of each market matches its book and totals."""
    last = {f["msg"]["market_ticker"]: f["msg"] for f in long_run.frames if f["type"] == "ticker"}
    books = long_run.exchange.books()
    for ticker, message in last.items():
        bids, asks = books[ticker]
        bid, bid_size = bids[-1] if bids else (0, 0)
        ask, ask_size = asks[0] if asks else (10_000, 0)
        assert Decimal(message["yes_bid_dollars"]) * 10_000 == bid
        assert Decimal(message["yes_bid_size_fp"]) * 100 == bid_size
        assert Decimal(message["yes_ask_dollars"]) * 10_000 == ask
        assert Decimal(message["yes_ask_size_fp"]) * 100 == ask_size
        market = long_run.exchange.catalogue.markets[ticker]
        assert Decimal(message["volume_fp"]) * 100 == market.volume_e2


def test_flow_shows_every_feature_of_the_format() -> None:
    run = Run(markets=300, window_s=0, change_interval_ms=0)
    run.subscribe_all()
    run.ticks(300)
    deltas = [f["msg"] for f in run.frames if f["type"] == "orderbook_delta"]
    snapshots = [f["msg"] for f in run.frames if f["type"] == "orderbook_snapshot"]
    assert any(not d["delta_fp"].endswith(".00") for d in deltas)
    assert any(d["price_dollars"][-1] != "0" for d in deltas), "0.0001 ticks"
    assert any("yes_dollars_fp" not in s and "no_dollars_fp" not in s for s in snapshots)
    assert any(("yes_dollars_fp" in s) != ("no_dollars_fp" in s) for s in snapshots)
    assert {d["side"] for d in deltas} == {"yes", "no"}
    per_tick = Counter(d["ts_ms"] // 20 for d in deltas)
    typical = sorted(per_tick.values())[len(per_tick) // 2]
    assert max(per_tick.values()) > 4 * typical, "bursts"
    lengths = {len(d["ts"].partition(".")[2]) for d in deltas}
    assert len(lengths) > 1, "trailing zeros of ts are trimmed"


def test_orders_lie_on_the_markets_grid() -> None:
    run = Run(markets=300, window_s=0, change_interval_ms=0)
    run.ticks(300)
    structures = set()
    for market in run.exchange.catalogue.markets.values():
        structures.add(market.structure)
        for side in market.book.levels:
            assert set(side) <= set(price_grid(market.structure)), market.ticker
    assert structures == set(TICK_STRUCTURES)


def test_life_of_a_window(long_run: Run) -> None:
    """created, (silent open, silent close,) determined, settled, in this order; the book is empty at the end."""
    events: dict[str, list[str]] = {}
    for frame in long_run.frames:
        if frame["type"] == "market_lifecycle_v2":
            message = frame["msg"]
            events.setdefault(message["market_ticker"], []).append(message["event_type"])
    settled = [ticker for ticker, kinds in events.items() if kinds[-1] == "settled"]
    assert settled
    for ticker in settled:
        kinds = [k for k in events[ticker] if k in ("created", "determined", "settled")]
        assert kinds[-2:] == ["determined", "settled"]
        assert long_run.exchange.books()[ticker] == ((), ())
    everything = {kind for kinds in events.values() for kind in kinds}
    assert everything >= {
        "created", "activated", "deactivated", "close_date_updated", "determined", "settled",
        "price_level_structure_updated", "metadata_updated",
    }  # fmt: skip


def test_a_window_trades_between_open_and_close_only() -> None:
    run = Run(markets=1, window_s=2, change_interval_ms=0, rate=2_000)
    run.ticks(1)
    names = [t for t in run.exchange.catalogue.markets if t.startswith("KXSIMWIN")]
    run.command("subscribe", channels=["orderbook_delta"], market_tickers=names)
    run.ticks(300)
    market = {m.ticker: m for m in run.exchange.catalogue.markets.values()}
    seen = Counter()
    for frame in run.frames:
        if frame["type"] == "orderbook_delta":
            message = frame["msg"]
            moment_ns = message["ts_ms"] * 1_000_000
            known = market[message["market_ticker"]]
            assert known.open_ns - TICK_NS <= moment_ns <= known.close_ns + TICK_NS
            seen[message["market_ticker"]] += 1
    assert len(seen) == len(names)


def test_a_paused_market_is_still_and_loses_its_orders_when_it_goes_on(long_run: Run) -> None:
    """No delta between deactivated and activated; right after activated everything resting is cancelled."""
    paused: set[str] = set()
    reactivated = 0
    frames = long_run.frames
    for index, frame in enumerate(frames):
        message = frame.get("msg")
        if frame["type"].endswith(("lifecycle_v2", "market_lifecycle")):
            if message["event_type"] == "deactivated":
                assert message["is_deactivated"] is True
                paused.add(message["market_ticker"])
            elif message["event_type"] == "activated" and message["market_ticker"] in paused:
                paused.discard(message["market_ticker"])
                following = frames[index + 1]
                if following["type"] == "orderbook_delta":
                    reactivated += following["msg"]["delta_fp"].startswith("-")
        elif frame["type"] == "orderbook_delta" and message["market_ticker"] in paused:
            market = long_run.exchange.catalogue.markets[message["market_ticker"]]
            assert message["ts_ms"] * 1_000_000 >= market.close_ns, frame
    assert reactivated > 1


def test_the_listing_never_runs_dry() -> None:
    """Daily events that end are followed by others."""
    run = Run(markets=16, window_s=0, change_interval_ms=0, rate=10)
    for _ in range(60):
        run.exchange.advance(run.exchange.now_ns + 3_600 * 1_000_000_000)
    active = [m for m in run.exchange.catalogue.markets.values() if m.status == "active"]
    assert len(active) == 16
    assert all(market.close_ns > run.exchange.now_ns for market in active)


def test_a_busy_lifecycle_stays_consistent_and_bounded() -> None:
    """Ten minutes of one-second windows with ten changes a second: nothing gets stuck, old ones are forgotten."""
    run = Run(markets=16, rate=0, window_s=1, change_interval_ms=100, pause_s=1, determination_s=1)
    run.command("subscribe", channels=["market_lifecycle_v2"])
    for _ in range(6_000):
        run.subscriptions.publish(run.exchange.advance(run.exchange.now_ns + 100_000_000))
    run.raw.extend(run.subscriptions.take_frames())
    last: dict[str, str] = {}
    for frame in run.frames:
        if frame["type"] == "market_lifecycle_v2":
            last[frame["msg"]["market_ticker"]] = frame["msg"]["event_type"]
    windows = [ticker for ticker in last if ticker.startswith("KXSIMWIN")]
    assert len(windows) > 1_700
    assert sum(last[ticker] == "settled" for ticker in windows) > 1_300
    markets = run.exchange.catalogue.markets
    now_ns = run.exchange.now_ns
    for market in markets.values():
        if market.status == "initialized":
            assert market.open_ns > now_ns, market
        elif market.status in ("active", "inactive"):
            assert market.close_ns > now_ns, market
        elif market.status in ("closed", "determined"):
            assert market.updated_ns > now_ns - 10_000_000_000, market
    finalized = [m for m in markets.values() if m.status == "finalized"]
    assert len(finalized) == SIM_SETTLED_MARKETS_KEPT + 4, (
        "the settled ones of the opening listing stay"
    )
    assert windows[0] not in markets
    assert set(run.exchange.catalogue.events) == {m.event.ticker for m in markets.values()}
    assert len(run.exchange.catalogue.ticker_by_market_id) == len(markets)


def test_paused_flow_is_silent_and_the_clock_goes_on() -> None:
    run = Run(markets=20, window_s=1, change_interval_ms=500)
    run.subscribe_all()
    run.ticks(5)
    before, run.exchange.paused = run.exchange.books(), True
    count = len(run.raw)
    run.ticks(200)
    assert len(run.raw) == count
    assert run.exchange.books() == before
    assert run.exchange.now_ns == START_NS + 205 * TICK_NS
    run.exchange.paused = False
    run.ticks(5)
    assert len(run.raw) > count


def test_a_flood_is_one_burst_of_real_order_flow() -> None:
    run = Run(markets=20, window_s=0, change_interval_ms=0, rate=0)
    run.subscribe_all()
    run.ticks(2)
    quiet = len(run.raw)
    run.exchange.flood(5_000)
    run.ticks(1)
    assert len(run.raw) - quiet > 5_000
    count = len(run.raw)
    run.ticks(1)
    assert len(run.raw) - count < 100
