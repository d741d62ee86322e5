"""From what the arbiter delivers to the callbacks of a strategy (pure)."""

from collections.abc import Callable, Collection, Mapping, Sequence

from tickerplant.core.messages import (
    Bbo,
    FeedState,
    MarketInfo,
    MarketState,
    StaleReason,
    Stream,
    Ticker,
    Trade,
    UpstreamGap,
)
from tickerplant.core.packed_books import WholeBook
from tickerplant_subscriber.book_view import BookView
from tickerplant_subscriber.events import (
    DatagramsRefused,
    Event,
    Gap,
    Live,
    SessionChanged,
    SessionEnded,
    SnapshotApplied,
    Stale,
    StreamAlive,
    StreamBehind,
    StreamCaughtUp,
    StreamDead,
)
from tickerplant_subscriber.mirror import Mirror, OnOther, OnUpdate
from tickerplant_subscriber.position import PlantPlaces
from tickerplant_subscriber.quotes import OnBbo, Quotes
from tickerplant_subscriber.strategy import Strategy, overrides
from tickerplant_subscriber.stream_state import Messages, StreamState


class Tables:
    """The mirrored books and quotes of the joined streams, kept in step with the events of the arbiter."""

    def __init__(
        self,
        streams: Collection[Stream],
        wanted: Mapping[str, bool],
        tell: Callable[[Event], None],
        *,
        on_update: OnUpdate | None = None,
        on_other: OnOther | None = None,
        on_bbo: OnBbo | None = None,
    ) -> None:
        self.mirror: Mirror | None = None
        self.quotes: Quotes | None = None
        self._tell = tell
        if Stream.DELTA in streams:
            self.mirror = Mirror(wanted, tell, on_update, on_other)
        if Stream.BBO in streams:
            self.quotes = Quotes(wanted, tell, on_bbo)

    def heal_with(self, heal: Callable[[StreamState], None]) -> None:
        """Who is asked for a snapshot where a mirrored book is found to be wrong."""
        if self.mirror is not None:
            self.mirror.heal = heal

    def book(self, ticker: str) -> BookView | None:
        """The mirrored book, None if DELTA is not joined or the plant never spoke of the ticker."""
        return None if self.mirror is None else self.mirror.view(ticker)

    def books(self) -> Collection[BookView]:
        """Every mirrored book."""
        return () if self.mirror is None else tuple(self.mirror.views())

    def bbo(self, ticker: str) -> Bbo | None:
        """The last quote, None if BBO is not joined or there was none."""
        return None if self.quotes is None else self.quotes.last(ticker)

    def take_image(
        self, state: StreamState, messages: Messages, books: Sequence[WholeBook] = ()
    ) -> None:
        """Takes what a snapshot consists of; quotes are absolute, so those simply come in."""
        if state.stream is Stream.DELTA and self.mirror is not None:
            self.mirror.take_image(state, messages, books)
        elif state.stream is Stream.BBO and self.quotes is not None:
            self.quotes.receive(state, messages)

    def take_event(self, event: Event) -> None:
        """Changes every state first, then tells the event and what follows from it."""
        following: list[Event] = []
        for table in (self.mirror, self.quotes):
            if table is not None:
                following += table.receive_event(event)
        self._tell(event)
        for consequence in following:
            self._tell(consequence)


class TickerStates:
    """Which tickers are live on all of the joined sources (BBO, DELTA) together."""

    def __init__(self, sources: Collection[Stream]) -> None:
        self._all = frozenset(sources)
        self._live: dict[str, frozenset[int]] = {}
        self._reasons: dict[str, int] = {}

    def make_stale(self, event: Stale) -> bool:
        """Whether the ticker was live, is new, or is stale for another known reason now."""
        live = self._live.get(event.ticker)
        reason = self._reasons.get(event.ticker)
        self._live[event.ticker] = (live or frozenset()) - {event.stream}
        if live is None or live == self._all:
            self._reasons[event.ticker] = event.reason
            return True
        if event.reason in (reason, StaleReason.UNKNOWN):
            return False
        self._reasons[event.ticker] = event.reason
        return True

    def make_live(self, event: Live) -> bool:
        """Whether the ticker is live on every source by this."""
        live = self._live.get(event.ticker, frozenset()) | {event.stream}
        self._live[event.ticker] = live
        return live == self._all

    def live_tickers(self) -> list[str]:
        """Those that are live on every source, in the order in which they were first heard of."""
        return [ticker for ticker, live in self._live.items() if live == self._all]


class StrategyDispatch:
    """Routes messages and events to the callbacks that a strategy overrides; the others cost nothing.

    `guard` wraps each callback: it decides what an exception of the user does.
    """

    def __init__(
        self,
        strategy: Strategy,
        streams: Collection[Stream],
        wanted: Mapping[str, bool],
        guard: Callable[[str], Callable[..., None]],
    ) -> None:
        self._strategy = strategy
        self._delivering: StreamState | None = None
        self._delivering_seq = 0
        self._wanted = wanted
        self._guard = guard
        self._on_trade = self._callback("on_trade")
        self._on_ticker = self._callback("on_ticker")
        self._on_gap = self._callback("on_gap")
        self._on_market = self._callback("on_market")
        self._on_feed = self._callback("on_feed")
        self._on_session = self._callback("on_session")
        self._on_stale = self._callback("on_stale")
        self._on_live = self._callback("on_live")
        sources = {Stream.BBO, Stream.DELTA} & set(streams)
        self._ticker_states = TickerStates(sources)
        self.tables = Tables(
            streams,
            wanted,
            self._tell,
            on_update=self._callback("on_book"),
            on_bbo=self._callback("on_bbo"),
        )
        self._routes: dict[Stream, Callable[[StreamState, Messages], object]] = {
            Stream.TRADE: self._route_trades,
            Stream.TICKER: self._route_tickers,
            Stream.STATUS: self._route_status,
        }
        if self.tables.mirror is not None:
            self._routes[Stream.DELTA] = self.tables.mirror.receive
        if self.tables.quotes is not None:
            self._routes[Stream.BBO] = self.tables.quotes.receive

    def live_tickers(self) -> list[str]:
        """Tickers of which everything that is joined is right."""
        return self._ticker_states.live_tickers()

    def _callback(self, name: str) -> Callable[..., None] | None:
        return self._guard(name) if overrides(self._strategy, name) else None

    def deliver(
        self, state: StreamState, first_seq: int, messages: Messages, ts_send_ns: int
    ) -> None:
        """Takes messages of one stream, in order."""
        self._strategy.ts_send_ns = ts_send_ns
        self._delivering, self._delivering_seq = state, first_seq
        self._routes[state.stream](state, messages)
        self._delivering = None

    def unfinished(self) -> dict[tuple[int, int], PlantPlaces]:
        """The place of the datagram that is being handed over."""
        state = self._delivering
        if state is None:
            return {}
        place = {int(state.stream): (state.session, self._delivering_seq)}
        return {(state.publisher, state.partition): place}

    def take_image(
        self, state: StreamState, messages: Messages, books: Sequence[WholeBook] = ()
    ) -> None:
        """Takes what a snapshot consists of: what of it is state goes to its callback, books are replaced."""
        if state.stream in (Stream.DELTA, Stream.BBO):
            self.tables.take_image(state, messages, books)
        else:
            self._routes[state.stream](state, messages)

    def _route_trades(self, _state: StreamState, messages: Messages) -> None:
        on_trade, wanted = self._on_trade, self._wanted
        for message in messages:
            if type(message) is Trade:
                if on_trade is not None and wanted[message.ticker]:
                    on_trade(message)
            elif type(message) is UpstreamGap:
                self._route_upstream_gap(message)

    def _route_tickers(self, _state: StreamState, messages: Messages) -> None:
        on_ticker, wanted = self._on_ticker, self._wanted
        for message in messages:
            if type(message) is Ticker:
                if on_ticker is not None and wanted[message.ticker]:
                    on_ticker(message)
            elif type(message) is UpstreamGap:
                self._route_upstream_gap(message)

    def _route_upstream_gap(self, gap: UpstreamGap) -> None:
        if self._on_gap is not None and self._wanted[gap.ticker]:
            self._on_gap(gap)

    def _route_status(self, _state: StreamState, messages: Messages) -> None:
        for message in messages:
            if isinstance(message, MarketInfo | MarketState):
                if self._on_market is not None and self._wanted[message.ticker]:
                    self._on_market(message)
            elif isinstance(message, FeedState) and self._on_feed is not None:
                self._on_feed(message)

    # --- events -----------------------------------------------------------------------------------

    def take_event(self, event: Event) -> None:
        """Takes an event of the arbiter."""
        self.tables.take_event(event)

    def _tell(self, event: Event) -> None:
        match event:
            case Stale():
                if self._ticker_states.make_stale(event) and self._on_stale is not None:
                    self._on_stale(event.ticker, StaleReason(event.reason))
            case Live():
                if self._ticker_states.make_live(event) and self._on_live is not None:
                    self._on_live(event.ticker)
            case Gap():
                if self._on_gap is not None:
                    self._on_gap(event)
            case SessionChanged():
                if self._on_session is not None:
                    self._on_session(event)
            case SessionEnded():
                # Told per stream; status is always joined and stands for the session.
                if self._on_session is not None and event.stream == Stream.STATUS:
                    self._on_session(event)
            case (
                StreamDead()
                | StreamAlive()
                | StreamBehind()
                | StreamCaughtUp()
                | SnapshotApplied()
                | DatagramsRefused()
            ):
                if self._on_feed is not None:
                    self._on_feed(event)
