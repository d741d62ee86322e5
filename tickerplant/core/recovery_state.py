"""The state of a plant, rebuilt from its datagrams: books, last values, and the next sequence of each stream. Pure.

The books are those of `core.book`, changed by the messages that subscribers get. What may be wrong is not kept: after
a hole in a stream its values are unknown until messages that hold at their own place say them again.
"""

from collections.abc import Callable, Iterable, Sequence

from tickerplant.core.messages import (
    AnyMessage,
    Bbo,
    BookClear,
    BookLevels,
    BookReady,
    BookStale,
    BookState,
    BookVerify,
    FeedState,
    LevelUpdate,
    MarketInfo,
    MarketState,
    SessionStart,
    Stream,
    Ticker,
)
from tickerplant.core.recovery_cut import Cut, Market
from tickerplant.core.wire import Header, Kind, decode_body
from tickerplant.errors import WireError
from tickerplant.limits import FINISHED_MARKETS_KEPT, MARKETS_MAX

_STREAM_COUNT = len(Stream)


class PlantState:
    """One plant in its newest session. `receive` takes its datagrams in the order of the log.

    `next_seqs` are the next sequences of streams 1 to 5; `cut` is the state at this place, which stays as it is while
    the state goes on.
    """

    def __init__(self) -> None:
        self.session = 0
        self.publisher = 0
        self.partition = 0
        self.next_seqs = [1] * _STREAM_COUNT
        self.markets: dict[str, Market] = {}
        self.session_start: SessionStart | None = None
        self.feed_state: FeedState | None = None
        self.holes = 0
        self.mismatches = 0
        """Books whose checksum, or level, was not the plant's."""
        self.unreadable_datagrams = 0
        self.refused_markets = 0
        self.levels_preserved = 0
        """Levels of books that were about to change while a cut still needed them."""
        self._cut_number = 0
        self._open_cuts: list[Cut] = []
        self._finished: dict[str, None] = {}
        self._apply: dict[type, Callable[[Market, AnyMessage], None]] = {
            LevelUpdate: self._apply_update,
            BookStale: self._apply_stale,
            BookClear: self._apply_clear,
            BookLevels: self._apply_levels,
            BookReady: self._apply_checksum,
            BookVerify: self._apply_checksum,
            Bbo: self._apply_bbo,
            Ticker: self._apply_ticker,
            MarketInfo: self._apply_info,
            MarketState: self._apply_market_state,
        }

    # --- datagrams --------------------------------------------------------------------------------

    def begin_session(
        self, session: int, publisher: int, partition: int, next_seqs: Iterable[int] = ()
    ) -> None:
        """A session of which nothing is known but, if it is entered on its way, its next sequences."""
        # Cuts that are open keep the markets as they are: nobody changes them any more.
        self._open_cuts = []
        self.session, self.publisher, self.partition = session, publisher, partition
        self.next_seqs = list(next_seqs) or [1] * _STREAM_COUNT
        self.markets = {}
        self._finished = {}
        self.session_start = None
        self.feed_state = None

    def receive(self, header: Header, datagram: bytes) -> None:
        """The next datagram; those of former sessions and what is known already are skipped."""
        stream = header.stream
        if not self.admit(header) or header.kind != Kind.DATA or stream == Stream.TRADE:
            return
        try:
            messages = decode_body(datagram, header)
        except WireError:
            self.unreadable_datagrams += 1
            self._lose(stream)
            return
        self.apply(messages)

    def admit(self, header: Header) -> bool:
        """Whether it is the next datagram, or one after a hole; then its messages are to be applied."""
        if header.session != self.session:
            if header.session < self.session:
                return False
            self.begin_session(header.session, header.publisher, header.partition)
        stream, seq = header.stream, header.seq
        expected = self.next_seqs[stream - 1]
        if seq != expected:
            if seq < expected:
                return False
            self._lose(stream)
        self.next_seqs[stream - 1] = seq + header.message_count
        return True

    def apply(self, messages: Iterable[AnyMessage | None]) -> None:
        """Messages of the session, in order."""
        markets, cut_number = self.markets, self._cut_number
        for message in messages:
            if message is None:
                continue
            market = markets.get(message.ticker)
            if market is None:
                market = self._open_market(message)
                if market is None:
                    continue
            if market.cut_number != cut_number:
                self._preserve(market)
            if type(message) is LevelUpdate and market.phase == BookState.LIVE:
                market.image = None
                market.last = message
                price_e4, delta_e2 = message.price_e4, message.delta_e2
                if market.book.apply(message.side, price_e4, delta_e2) == message.size_e2:
                    continue
                self.mismatches += 1
                market.phase = BookState.SYNCING
            apply = self._apply.get(type(message))
            if apply is not None:
                apply(market, message)

    def restore(self, messages: Sequence[AnyMessage]) -> None:
        """Messages of a cut. A book that is STALE there is known: its levels came whole, though without a checksum."""
        self.apply(messages)
        for message in messages:
            if type(message) is BookStale:
                market = self.markets[message.ticker]
                if market.next_part is None:
                    market.phase, market.reason = BookState.STALE, message.reason

    def _open_market(self, message: AnyMessage) -> Market | None:
        if not message.ticker:
            if type(message) is FeedState:
                self.feed_state = message
            elif type(message) is SessionStart:
                self.session_start = message
            return None
        if len(self.markets) >= MARKETS_MAX and not self._forget_finished():
            self.refused_markets += 1
            return None
        market = self.markets[message.ticker] = Market(message.ticker, self._cut_number)
        return market

    def _forget_finished(self) -> bool:
        """Whether a closed market made room."""
        oldest = next(iter(self._finished), None)
        if oldest is None:
            return False
        del self._finished[oldest], self.markets[oldest]
        return True

    def _lose(self, stream: int) -> None:
        """Messages of `stream` are missing: what they may have changed is unknown from here on."""
        self.holes += 1
        for cut in self._open_cuts:
            cut.fail()
        self._open_cuts = []
        if stream == Stream.STATUS:
            self.feed_state = None
        for market in self.markets.values():
            if stream == Stream.DELTA:
                market.phase, market.image = BookState.SYNCING, None
                market.next_part = None if market.next_part is None else -1
            elif stream == Stream.BBO:
                market.bbo = None
            elif stream == Stream.TICKER:
                market.ticker_update = None
            elif stream == Stream.STATUS:
                market.info = market.market_state = None

    # --- messages ---------------------------------------------------------------------------------

    def _apply_update(self, market: Market, message: AnyMessage) -> None:
        """A level of a book that is not LIVE: its absolute size is right at this place, whatever was lost."""
        assert type(message) is LevelUpdate
        market.image = None
        market.last = message
        market.book.set_level(message.side, message.price_e4, message.size_e2)

    def _apply_stale(self, market: Market, message: AnyMessage) -> None:
        assert type(message) is BookStale
        market.image = None
        market.last = message
        # Levels that were unknown before stay unknown.
        if market.phase != BookState.SYNCING:
            market.phase, market.reason = BookState.STALE, message.reason

    def _apply_clear(self, market: Market, message: AnyMessage) -> None:
        market.image = None
        market.last = message
        market.phase, market.next_part = BookState.SYNCING, None
        market.book.clear()

    def _apply_levels(self, market: Market, message: AnyMessage) -> None:
        assert type(message) is BookLevels
        if message.part == 0:
            self._apply_clear(market, message)
            market.next_part = 0
        if message.part != market.next_part:
            market.next_part = -1
            return
        market.next_part = message.part + 1 if message.part + 1 < message.parts else None
        if message.parts == 1:
            market.book.load(message.bids, message.asks)
            return
        for side, levels in ((0, message.bids), (1, message.asks)):
            for price_e4, size_e2 in levels:
                market.book.set_level(side, price_e4, size_e2)

    def _apply_checksum(self, market: Market, message: AnyMessage) -> None:
        """The plant's book is LIVE and has this checksum here; ours is LIVE exactly if it has the same."""
        assert isinstance(message, BookReady | BookVerify)
        is_known = type(message) is BookVerify and market.phase == BookState.LIVE
        if is_known and market.book.checksum() == message.checksum:
            return
        market.image = None
        market.last = message
        is_whole, market.next_part = market.next_part is None, None
        if is_whole and market.book.checksum() == message.checksum:
            market.phase = BookState.LIVE
        else:
            self.mismatches += 1
            market.phase = BookState.SYNCING

    def _apply_bbo(self, market: Market, message: AnyMessage) -> None:
        assert type(message) is Bbo
        market.bbo = message
        is_finished = message.state == BookState.CLOSED
        if is_finished == market.is_finished:
            return
        market.is_finished = is_finished
        if not is_finished:
            del self._finished[market.ticker]
            return
        self._finished[market.ticker] = None
        if len(self._finished) > FINISHED_MARKETS_KEPT:
            self._forget_finished()

    def _apply_ticker(self, market: Market, message: AnyMessage) -> None:
        assert type(message) is Ticker
        market.ticker_update = message

    def _apply_info(self, market: Market, message: AnyMessage) -> None:
        assert type(message) is MarketInfo
        market.info = message

    def _apply_market_state(self, market: Market, message: AnyMessage) -> None:
        assert type(message) is MarketState
        market.market_state = message

    # --- cuts -------------------------------------------------------------------------------------

    def cut(self, tickers: Iterable[str] = ()) -> Cut:
        """The state at this place, of these markets (none: all), to be read piece by piece while this one goes on."""
        wanted = list(tickers)
        if wanted:
            found = (self.markets.get(ticker) for ticker in dict.fromkeys(wanted))
            markets = [market for market in found if market is not None]
        else:
            markets = list(self.markets.values())
        self._cut_number += 1
        self._open_cuts = [cut for cut in self._open_cuts if cut.is_open]
        cut = Cut(
            session=self.session,
            publisher=self.publisher,
            partition=self.partition,
            next_seqs=tuple(self.next_seqs),
            session_start=self.session_start,
            feed_state=self.feed_state,
            markets=markets,
        )
        self._open_cuts.append(cut)
        return cut

    def _preserve(self, market: Market) -> None:
        """The market is about to change: cuts that have not read it yet take it as it is."""
        market.cut_number = self._cut_number
        for cut in self._open_cuts:
            before = cut.levels_encoded
            cut.preserve(market)
            self.levels_preserved += cut.levels_encoded - before

    def counters(self) -> dict[str, int]:
        """For the metrics."""
        return {
            "log_holes": self.holes,
            "book_mismatches": self.mismatches,
            "unreadable_datagrams": self.unreadable_datagrams,
            "refused_markets": self.refused_markets,
        }
