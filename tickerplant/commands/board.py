"""The state behind `tickerplant top`: what is known of each market, and how fast each stream goes."""

import heapq
import time
from collections import deque
from collections.abc import Callable, Collection

from tickerplant.commands.item_text import name_of
from tickerplant.core.messages import (
    Bbo,
    BookState,
    FeedPhase,
    FeedState,
    GapCause,
    MarketInfo,
    MarketPhase,
    MarketState,
    StaleReason,
    Stream,
    Ticker,
    Trade,
    UpstreamGap,
)
from tickerplant.limits import MARKETS_MAX
from tickerplant_subscriber.event_log import describe, stream_name
from tickerplant_subscriber.events import (
    DatagramsRefused,
    Gap,
    SessionChanged,
    SessionEnded,
)
from tickerplant_subscriber.strategy import Strategy, StreamChange

EVENTS_KEPT = 50
INTERVAL_MIN_S = 0.05
_SMOOTHING = 0.4
"""Weight of the newest interval in a market's rate."""


class MarketRow:
    """What `top` shows of one market; `rate` is updates a second, smoothed."""

    __slots__ = (
        "ask_e4",
        "ask_size_e2",
        "bid_e4",
        "bid_size_e2",
        "last_e4",
        "last_size_e2",
        "rate",
        "state",
        "ticker",
        "updates",
    )

    def __init__(self, ticker: str) -> None:
        self.ticker = ticker
        self.bid_e4 = self.bid_size_e2 = self.ask_e4 = self.ask_size_e2 = 0
        self.last_e4 = self.last_size_e2 = 0
        self.state = ""
        self.updates = 0
        self.rate = 0.0


class Board(Strategy):
    """Listens and keeps rows; `draw` is called at each interval; `streams` may add DELTA, to mirror the books."""

    def __init__(
        self,
        tickers: Collection[str],
        streams: Collection[Stream],
        interval_s: float,
        draw: Callable[["Board"], None],
    ) -> None:
        self.tickers = tickers
        self.streams = streams
        self.timer_interval_s = max(INTERVAL_MIN_S, interval_s)
        self.rows: dict[str, MarketRow] = {}
        self.rates: dict[tuple[int, int, int], float] = {}
        self.events: deque[tuple[int, str]] = deque(maxlen=EVENTS_KEPT)
        self.feed = "not heard yet"
        self.session = 0
        self.gap_count = 0
        self.rows_refused = 0
        self.started_ns = 0
        self.now_ns = 0
        self._draw = draw
        self._joined = frozenset(streams)
        self._message_counts: dict[tuple[int, int, int], int] = {}

    # --- callbacks --------------------------------------------------------------------------------

    def row(self, ticker: str) -> MarketRow:
        """The row of a market; beyond `MARKETS_MAX` one that is not kept."""
        row = self.rows.get(ticker)
        if row is None:
            row = MarketRow(ticker)
            if len(self.rows) < MARKETS_MAX:
                self.rows[ticker] = row
            else:
                self.rows_refused += 1
        return row

    def on_bbo(self, bbo: Bbo) -> None:
        """A quote."""
        row = self.row(bbo.ticker)
        row.updates += 1
        row.bid_e4, row.bid_size_e2 = bbo.bid_e4, bbo.bid_size_e2
        row.ask_e4, row.ask_size_e2 = bbo.ask_e4, bbo.ask_size_e2
        row.state = "" if bbo.state == BookState.LIVE else name_of(BookState, bbo.state)

    def on_trade(self, trade: Trade) -> None:
        """The last trade."""
        row = self.row(trade.ticker)
        row.updates += 1
        row.last_e4, row.last_size_e2 = trade.price_e4, trade.size_e2

    def on_ticker(self, ticker: Ticker) -> None:
        """Shows the last price of markets that have not traded since the start."""
        row = self.row(ticker.ticker)
        if not row.last_size_e2:
            row.last_e4 = ticker.last_e4

    def on_market(self, market: MarketInfo | MarketState) -> None:
        """Phases other than active stand beside the quote."""
        row = self.row(market.ticker)
        if isinstance(market, MarketState) and market.phase != MarketPhase.ACTIVE:
            row.state = name_of(MarketPhase, market.phase)

    def on_stale(self, ticker: str, reason: StaleReason) -> None:
        """The row says why."""
        self.row(ticker).state = f"stale: {reason.name.lower()}"

    def on_live(self, ticker: str) -> None:
        """The row is right again."""
        self.row(ticker).state = ""

    def on_gap(self, gap: Gap | UpstreamGap) -> None:
        """Counted, and the latest are shown."""
        self.gap_count += 1
        if isinstance(gap, Gap):
            self._note(describe(gap))
        else:
            cause = name_of(GapCause, gap.cause)
            self._note(f"messages lost before the plant on {stream_name(gap.on_stream)}: {cause}")

    def on_session(self, session: SessionChanged | SessionEnded) -> None:
        """A new session is a new plant, or the old one restarted."""
        self.session = session.session
        self.feed = "session ended" if isinstance(session, SessionEnded) else "phase not told yet"
        self._note(describe(session))

    def on_feed(self, state: FeedState | StreamChange | DatagramsRefused) -> None:
        """The plant's phase, and what happens to its streams."""
        if isinstance(state, FeedState):
            self.feed = f"{name_of(FeedPhase, state.phase)} {state.cause}".strip()
        else:
            self._note(describe(state))

    def on_timer(self, now_ns: int) -> None:
        """Rates of the interval, then a frame."""
        self.started_ns = self.started_ns or now_ns
        elapsed_s = max(1, now_ns - self.now_ns) / 1e9 if self.now_ns else self.timer_interval_s
        self.now_ns = now_ns
        self._measure(elapsed_s)
        self._draw(self)

    @property
    def age_s(self) -> float:
        """Time since the first frame."""
        return (self.now_ns - self.started_ns) / 1e9

    # --- what is shown ----------------------------------------------------------------------------

    def _note(self, text: str) -> None:
        self.events.append((time.time_ns(), text))

    def _measure(self, elapsed_s: float) -> None:
        for row in self.rows.values():
            rate = row.updates / elapsed_s
            row.rate = row.rate + _SMOOTHING * (rate - row.rate) if row.rate else rate
            row.updates = 0
        stats = self.stats()
        for stream in stats.streams if stats is not None else ():
            key = (stream.publisher, stream.partition, stream.stream)
            before = self._message_counts.get(key, 0)
            self.rates[key] = (stream.messages - before) / elapsed_s
            self._message_counts[key] = stream.messages

    def busiest(self, count: int) -> list[MarketRow]:
        """The `count` rows with most updates, busiest first, then by ticker."""
        return heapq.nsmallest(count, self.rows.values(), key=lambda row: (-row.rate, row.ticker))

    def books_text(self) -> str:
        """How many quotes and books may be traded on."""
        rows = f"{len(self.rows)} markets"
        stale = sum(1 for row in self.rows.values() if row.state.startswith("stale"))
        text = f"{rows}, {stale} stale"
        if Stream.DELTA in self._joined:
            books = self.books()
            live = sum(1 for book in books if book.live)
            text += f", books live {live} of {len(books)}"
        return text
