"""What a user writes: a `Strategy` with the callbacks that it needs.

    class Printer(Strategy):
        tickers = ["KXBTC*"]

        def on_bbo(self, bbo: Bbo) -> None:
            print(bbo.ticker, bbo.bid_e4, bbo.ask_e4)

    run(Printer())

Only the streams whose callbacks are overridden are joined, and status, whose `SessionStart` proves how the session
before ended. Callbacks run on the event loop: one that takes long delays the next datagram, and beyond the kernel's
receive buffer loses it. `run(..., when_slow=...)` says what happens then.
"""

from collections.abc import Collection
from typing import Protocol

from tickerplant.core.messages import (
    Bbo,
    FeedState,
    LevelUpdate,
    MarketInfo,
    MarketState,
    StaleReason,
    Stream,
    Ticker,
    Trade,
    UpstreamGap,
)
from tickerplant_subscriber.book_view import BookView
from tickerplant_subscriber.events import (
    DatagramsRefused,
    Gap,
    SessionChanged,
    SessionEnded,
    SnapshotApplied,
    StreamAlive,
    StreamBehind,
    StreamCaughtUp,
    StreamDead,
)
from tickerplant_subscriber.filters import EVERY_TICKER
from tickerplant_subscriber.position import Position
from tickerplant_subscriber.stats import SubscriberStats

StreamChange = StreamDead | StreamAlive | StreamBehind | StreamCaughtUp | SnapshotApplied
"""What can happen to a stream as a whole."""


class StrategyAccess(Protocol):
    """What a running strategy may ask of its subscription."""

    def book(self, ticker: str) -> BookView | None:
        """The mirrored book."""

    def books(self) -> Collection[BookView]:
        """Every mirrored book."""

    def bbo(self, ticker: str) -> Bbo | None:
        """The last quote."""

    def stats(self) -> SubscriberStats:
        """The counts."""

    def position(self) -> Position | None:
        """Where delivery stands."""

    def stop(self) -> None:
        """Ends the run."""


class Strategy:
    """Base class; override what is needed. No callback is called before `on_start` or after `on_stop`."""

    tickers: Collection[str] = EVERY_TICKER
    """Shell patterns, case-sensitive; a ticker that matches one of them is wanted."""
    streams: Collection[Stream] = ()
    """Streams to join besides those of the overridden callbacks, e.g. DELTA to ask `book()` in `on_trade`."""
    timer_interval_s: float = 1.0
    """Time between two calls of `on_timer`, if that is overridden."""
    ts_send_ns: int = 0
    """When the plant sent the datagram whose messages are being handed over."""

    _access: StrategyAccess | None = None

    def book(self, ticker: str) -> BookView | None:
        """The mirrored book, None if stream DELTA is not joined or the plant never spoke of the ticker."""
        return None if self._access is None else self._access.book(ticker)

    def books(self) -> Collection[BookView]:
        """Every mirrored book; none if stream DELTA is not joined."""
        return () if self._access is None else self._access.books()

    def bbo(self, ticker: str) -> Bbo | None:
        """The last quote, its state STALE if something was lost since; None if BBO is not joined or there was none."""
        return None if self._access is None else self._access.bbo(ticker)

    def stats(self) -> SubscriberStats | None:
        """The counts so far; None while the strategy does not run."""
        return None if self._access is None else self._access.stats()

    def position(self) -> Position | None:
        """Where delivery stands, for `run(..., resume=position)`; None while nothing was heard or nothing runs.

        Whole datagrams: the one whose messages are being handed over counts as still to come. In `on_timer` and
        `on_stop` nothing is being handed over.
        """
        return None if self._access is None else self._access.position()

    def stop(self) -> None:
        """Ends `run` after the current callback."""
        if self._access is not None:
            self._access.stop()

    def on_start(self) -> None:
        """The groups are joined; nothing was read yet."""

    def on_stop(self) -> None:
        """The run is over, in whatever way."""

    def on_bbo(self, bbo: Bbo) -> None:
        """A best bid and offer changed, or its state did: only `BookState.LIVE` may be traded on."""

    def on_trade(self, trade: Trade) -> None:
        """A trade."""

    def on_ticker(self, ticker: Ticker) -> None:
        """The exchange's ticker changed."""

    def on_book(self, book: BookView, update: LevelUpdate) -> None:
        """A level of a LIVE book changed; `book` has it applied already."""

    def on_stale(self, ticker: str, reason: StaleReason) -> None:
        """What is joined of `ticker` (its quote, its book) may be wrong until `on_live`."""

    def on_live(self, ticker: str) -> None:
        """Everything that is joined of `ticker` (its quote, its book) is right until `on_stale`."""

    def on_gap(self, gap: Gap | UpstreamGap) -> None:
        """Messages were lost on the way to us (`Gap`) or before the plant (`UpstreamGap`)."""

    def on_session(self, session: SessionChanged | SessionEnded) -> None:
        """The plant began a new session, or ended one in good order."""

    def on_market(self, market: MarketInfo | MarketState) -> None:
        """What is known of a market, or its phase, changed."""

    def on_feed(self, state: FeedState | StreamChange | DatagramsRefused) -> None:
        """The plant's view of its feed, or our view of the plant's streams, changed."""

    def on_timer(self, now_ns: int) -> None:
        """Called each `timer_interval_s`; `now_ns` is the wall clock."""


def overrides(strategy: Strategy, callback: str) -> bool:
    """Whether a strategy has its own version of a callback, by class or by instance."""
    own = getattr(strategy, callback)
    return getattr(own, "__func__", own) is not getattr(Strategy, callback)


def streams_of(strategy: Strategy) -> frozenset[Stream]:
    """The streams to join for a strategy; STATUS always."""
    by_callback = {
        "on_bbo": Stream.BBO,
        "on_trade": Stream.TRADE,
        "on_ticker": Stream.TICKER,
        "on_book": Stream.DELTA,
    }
    called = (stream for callback, stream in by_callback.items() if overrides(strategy, callback))
    return frozenset((Stream.STATUS, *called, *(Stream(stream) for stream in strategy.streams)))
