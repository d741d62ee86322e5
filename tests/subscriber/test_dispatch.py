"""From datagrams to a strategy's callbacks, without sockets: routes, patterns, staleness of quotes and books."""

from collections.abc import Callable

import pytest

from tickerplant.core.book import Book
from tickerplant.core.messages import (
    AnyMessage,
    Bbo,
    BookClear,
    BookReady,
    BookStale,
    BookState,
    FeedState,
    GapCause,
    LevelUpdate,
    MarketInfo,
    MarketState,
    StaleReason,
    Stream,
    Ticker,
    Trade,
    UpstreamGap,
)
from tickerplant.core.wire import HeartbeatBody, Kind, encode_datagram, encode_heartbeat
from tickerplant.errors import ConfigurationError
from tickerplant.limits import STREAM_DEAD_NS
from tickerplant_subscriber import BookView, Strategy, quotes
from tickerplant_subscriber.arbiter import Arbiter
from tickerplant_subscriber.dispatch import StrategyDispatch
from tickerplant_subscriber.events import (
    DatagramsRefused,
    Gap,
    SessionChanged,
    SessionEnded,
    StreamDead,
)
from tickerplant_subscriber.filters import TickerFilter
from tickerplant_subscriber.strategy import StreamChange, streams_of

SESSION = 1_000
T = "KXTEST-1"


class Recording(Strategy):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def on_stale(self, ticker: str, reason: StaleReason) -> None:
        self.calls.append(("stale", ticker, reason))

    def on_live(self, ticker: str) -> None:
        self.calls.append(("live", ticker))

    def on_gap(self, gap: Gap | UpstreamGap) -> None:
        self.calls.append(("gap", gap))


class QuotesOnly(Recording):
    """Listens to BBO alone."""

    def on_bbo(self, bbo: Bbo) -> None:
        self.calls.append(("bbo", bbo.ticker, bbo.bid_e4, bbo.state))


class QuotesAndBooks(QuotesOnly):
    """Listens to BBO and DELTA."""

    def on_book(self, book: BookView, update: LevelUpdate) -> None:
        self.calls.append(("book", book.ticker, book.best_bid_e4, update.size_e2))


class Everything(QuotesAndBooks):
    """Overrides all the callbacks."""

    def on_trade(self, trade: Trade) -> None:
        self.calls.append(("trade", trade.trade_id))

    def on_ticker(self, ticker: Ticker) -> None:
        self.calls.append(("ticker", ticker.last_e4))

    def on_market(self, market: MarketInfo | MarketState) -> None:
        self.calls.append(("market", type(market)))

    def on_session(self, session: SessionChanged | SessionEnded) -> None:
        self.calls.append(("session", session))

    def on_feed(self, state: FeedState | StreamChange | DatagramsRefused) -> None:
        self.calls.append(("feed", type(state)))


class Feed:
    """A strategy behind an arbiter; `send` numbers the messages of each stream."""

    def __init__(self, strategy: Recording) -> None:
        self.strategy = strategy
        streams = streams_of(strategy)
        wanted = TickerFilter(strategy.tickers)
        self.dispatch = StrategyDispatch(
            strategy, streams, wanted, lambda name: getattr(strategy, name)
        )
        self.arbiter = Arbiter(
            streams, self.dispatch.deliver, self.dispatch.take_event, started_ns=0
        )
        self.now_ns = 10**18
        self.session = SESSION
        self.next_seqs = dict.fromkeys(Stream, 1)

    def send(self, *messages: AnyMessage, stream: Stream | None = None) -> None:
        stream = stream or messages[0].stream
        seq = self.next_seqs[stream]
        datagram = encode_datagram(0, stream, self.session, seq, 55, messages)
        self.next_seqs[stream] += len(messages)
        self.arbiter.receive(0, datagram, self.now_ns)

    def lose(self, stream: Stream) -> None:
        """One message of a stream is lost and found out."""
        self.next_seqs[stream] += 1
        self.heartbeat(stream)
        self.wait(5_000_000)

    def heartbeat(self, stream: Stream, kind: Kind = Kind.HEARTBEAT) -> None:
        datagram = encode_heartbeat(
            stream, self.session, self.next_seqs[stream], 0, HeartbeatBody(0), kind=kind
        )
        self.arbiter.receive(0, datagram, self.now_ns)

    def wait(self, duration_ns: int) -> None:
        self.now_ns += duration_ns
        self.arbiter.handle_timer(self.now_ns)

    def taken(self) -> list[tuple[object, ...]]:
        """Calls since the last time."""
        calls, self.strategy.calls = self.strategy.calls, []
        return calls


def bbo(ticker: str = T, bid_e4: int = 4_000, state: BookState = BookState.LIVE) -> Bbo:
    """A quote."""
    return Bbo(ticker, 1, 0, 0, bid_e4, 100, 5_000, 100, state)


# --- BBO alone ------------------------------------------------------------------------------------


@pytest.fixture
def quotes_feed() -> Feed:
    """A strategy that listens to BBO alone and has one live quote."""
    feed = Feed(QuotesOnly())
    feed.send(bbo())
    assert feed.taken() == [("live", T), ("bbo", T, 4_000, BookState.LIVE)]
    return feed


def test_a_quote_that_the_plant_calls_stale_is_told_both_ways(quotes_feed: Feed) -> None:
    quotes_feed.send(bbo(state=BookState.STALE))
    assert quotes_feed.taken() == [
        ("stale", T, StaleReason.UNKNOWN),
        ("bbo", T, 4_000, BookState.STALE),
    ]
    quotes_feed.send(bbo(bid_e4=4_100))
    assert quotes_feed.taken() == [("live", T), ("bbo", T, 4_100, BookState.LIVE)]


def test_a_quote_that_was_never_live_is_told_stale(quotes_feed: Feed) -> None:
    quotes_feed.send(bbo("NEW", state=BookState.STALE))
    assert quotes_feed.taken()[0] == ("stale", "NEW", StaleReason.UNKNOWN)


def test_a_closed_market_is_no_longer_live(quotes_feed: Feed) -> None:
    quotes_feed.send(bbo(state=BookState.CLOSED))
    assert quotes_feed.taken()[0] == ("stale", T, StaleReason.SUBSCRIPTION_ENDED)
    quotes_feed.lose(Stream.BBO)
    assert [call[0] for call in quotes_feed.taken()] == ["gap"]


def test_a_gap_makes_every_quote_stale_until_its_next(quotes_feed: Feed) -> None:
    quotes_feed.send(bbo("OTHER"))
    quotes_feed.taken()
    quotes_feed.lose(Stream.BBO)
    assert quotes_feed.taken() == [
        ("gap", Gap(Stream.BBO, SESSION, 3, 3, GapCause.NETWORK)),
        ("stale", T, StaleReason.NETWORK_GAP),
        ("stale", "OTHER", StaleReason.NETWORK_GAP),
    ]
    assert quotes_feed.dispatch.tables.quotes is not None
    held = quotes_feed.dispatch.tables.quotes.last(T)
    assert held is not None
    assert held.state == BookState.STALE
    quotes_feed.send(bbo(bid_e4=4_200))
    assert quotes_feed.taken() == [("live", T), ("bbo", T, 4_200, BookState.LIVE)]
    assert quotes_feed.dispatch.tables.quotes.live_count == 1


def test_a_dead_stream_makes_quotes_stale_and_continuity_heals_them(quotes_feed: Feed) -> None:
    quotes_feed.wait(STREAM_DEAD_NS)
    assert quotes_feed.taken() == [("stale", T, StaleReason.STREAM_DEAD)]
    quotes_feed.heartbeat(Stream.BBO)
    assert quotes_feed.taken() == [("live", T)]


def test_a_dead_stream_that_lost_something_heals_by_the_next_quote_only(quotes_feed: Feed) -> None:
    quotes_feed.wait(STREAM_DEAD_NS)
    quotes_feed.taken()
    quotes_feed.lose(Stream.BBO)
    assert [call[0] for call in quotes_feed.taken()] == ["gap"]
    quotes_feed.send(bbo())
    assert quotes_feed.taken()[0] == ("live", T)


def test_the_end_of_the_session_makes_quotes_stale(quotes_feed: Feed) -> None:
    quotes_feed.heartbeat(Stream.BBO, Kind.END_OF_SESSION)
    assert quotes_feed.taken() == [("stale", T, StaleReason.STREAM_DEAD)]


def test_quotes_of_an_old_session_are_not_offered(quotes_feed: Feed) -> None:
    quotes_feed.session += 1
    quotes_feed.heartbeat(Stream.STATUS)
    assert quotes_feed.taken() == [("stale", T, StaleReason.NEW_SESSION)]
    quotes_feed.session -= 1
    quotes_feed.send(bbo())
    assert quotes_feed.taken() == []


def test_quotes_are_bounded_and_closed_ones_make_room(
    quotes_feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotes, "MARKETS_MAX", 2)
    quotes_feed.send(bbo("A"), bbo("B"), bbo("A", state=BookState.CLOSED), bbo("C"))
    assert [call[1] for call in quotes_feed.taken() if call[0] == "bbo"] == ["A", "A", "C"]


# --- books and both -------------------------------------------------------------------------------


def image(feed: Feed, ticker: str = T) -> None:
    """An empty book, LIVE."""
    feed.send(BookClear(ticker, 0, 0, 0), BookReady(ticker, 0, 0, 0, Book().checksum()))


def test_books_are_offered_only_while_live() -> None:
    feed = Feed(QuotesAndBooks())
    feed.send(LevelUpdate(T, 0, 0, 0, 0, 4_000, 5, 5))
    image(feed)
    feed.send(LevelUpdate(T, 0, 0, 0, 0, 4_000, 7, 7), BookStale(T, 0, 0, 0, 1))
    feed.send(LevelUpdate(T, 0, 0, 0, 0, 4_000, 1, 8))
    assert [call for call in feed.taken() if call[0] == "book"] == [("book", T, 4_000, 7)]


def test_a_ticker_is_live_when_all_that_is_joined_is() -> None:
    feed = Feed(QuotesAndBooks())
    image(feed)
    assert feed.taken() == []
    feed.send(bbo())
    assert feed.taken()[0] == ("live", T)
    feed.send(BookStale(T, 0, 0, 0, StaleReason.CONNECTION_LOST))
    assert feed.taken() == [("stale", T, StaleReason.CONNECTION_LOST)]
    feed.send(bbo(state=BookState.STALE))
    assert [call[0] for call in feed.taken()] == ["bbo"]
    feed.send(BookReady(T, 0, 0, 0, Book().checksum()))
    assert feed.taken() == []
    feed.send(bbo())
    assert feed.taken()[0] == ("live", T)


def test_another_known_reason_is_told_while_stale() -> None:
    feed = Feed(QuotesAndBooks())
    image(feed)
    feed.send(bbo())
    feed.taken()
    feed.send(BookStale(T, 0, 0, 0, StaleReason.CONNECTION_LOST), BookReady(T, 0, 0, 0, 99))
    assert [call[2] for call in feed.taken()] == [
        StaleReason.CONNECTION_LOST,
        StaleReason.CHECKSUM_MISMATCH,
    ]


# --- routes ---------------------------------------------------------------------------------------


def test_each_message_reaches_its_callback() -> None:
    feed = Feed(Everything())
    feed.send(Trade(T, 1, 0, 0, "first", 1, 1, 0), Trade(T, 2, 0, 0, "second", 1, 1, 1))
    feed.send(Ticker(T, 3, 0, 0, 4_500, 0, 0, 0, 0, 0, 0))
    feed.send(
        FeedState("", 4, 0, 0, 2),
        MarketInfo(T, 5, 0, 0, "E", "S", 0, 0, "linear_cent"),
        MarketState(T, 6, 0, 0, 2),
    )
    lost = UpstreamGap("", 7, 0, 0, 10, 20, 1, Stream.TICKER)
    feed.send(lost, stream=Stream.TICKER)
    feed.send(UpstreamGap("", 8, 0, 0, 10, 20, 1))
    feed.heartbeat(Stream.STATUS, Kind.END_OF_SESSION)
    feed.heartbeat(Stream.TRADE, Kind.END_OF_SESSION)
    feed.arbiter.receive(0, b"?" * 60, feed.now_ns)
    feed.wait(STREAM_DEAD_NS)
    assert feed.taken() == [
        ("session", SessionChanged(SESSION, 0)),
        ("trade", "first"),
        ("trade", "second"),
        ("ticker", 4_500),
        ("feed", FeedState),
        ("market", MarketInfo),
        ("market", MarketState),
        ("gap", lost),
        ("gap", UpstreamGap("", 8, 0, 0, 10, 20, 1)),
        ("session", SessionEnded(Stream.STATUS, SESSION)),
        ("feed", DatagramsRefused),
        *[("feed", StreamDead)] * 3,
    ]


def test_a_callback_may_ask_when_the_plant_sent() -> None:
    feed = Feed(QuotesOnly())
    feed.send(bbo())
    assert feed.strategy.ts_send_ns == 55


@pytest.mark.parametrize(
    ("strategy", "streams"),
    [
        (Strategy, {Stream.STATUS}),
        (Recording, {Stream.STATUS}),
        (QuotesOnly, {Stream.STATUS, Stream.BBO}),
        (QuotesAndBooks, {Stream.STATUS, Stream.BBO, Stream.DELTA}),
        (Everything, set(Stream)),
    ],
)
def test_only_streams_with_callbacks_are_joined_and_status(
    strategy: Callable[[], Strategy], streams: set[Stream]
) -> None:
    assert streams_of(strategy()) == streams


def test_streams_may_be_joined_without_callback() -> None:
    class Asking(Strategy):
        streams = (Stream.DELTA,)

    assert streams_of(Asking()) == {Stream.STATUS, Stream.DELTA}


def test_patterns_choose_tickers_on_every_stream() -> None:
    class Chosen(Everything):
        tickers = ("KXBTC*", "KXETH-?")

    feed = Feed(Chosen())
    for ticker in ("KXBTC-1", "KXETH-2", "KXETH-22", "kxbtc-1"):
        feed.send(bbo(ticker))
        feed.send(Trade(ticker, 1, 0, 0, ticker, 1, 1, 0))
        feed.send(MarketState(ticker, 1, 0, 0, 1))
        feed.send(Ticker(ticker, 3, 0, 0, 4_500, 0, 0, 0, 0, 0, 0))
        image(feed, ticker)
    calls = feed.taken()
    assert [call[1] for call in calls if call[0] == "trade"] == ["KXBTC-1", "KXETH-2"]
    assert [call[1] for call in calls if call[0] == "live"] == ["KXBTC-1", "KXETH-2"]
    assert len([call for call in calls if call[0] in {"market", "ticker"}]) == 4


# --- patterns -------------------------------------------------------------------------------------


@pytest.mark.parametrize("patterns", ["KXBTC*", [], ["KXBTC*", ""]])
def test_patterns_that_cannot_be_meant_are_refused(patterns: list[str]) -> None:
    with pytest.raises(ConfigurationError):
        TickerFilter(patterns)


def test_the_memory_of_matches_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tickerplant_subscriber.filters.TICKER_MATCHES_MAX", 3)
    wanted = TickerFilter(["A*"])
    assert [wanted[name] for name in ("A1", "B1", "A2", "B2", "A3", "")] == [
        True,
        False,
        True,
        False,
        True,
        True,
    ]
    assert len(wanted) <= 3
