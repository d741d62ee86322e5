"""The log against the exchange's frames: everything that a frame changed is told, and nothing else. Pure.

Frames of a capture are taken up to each flush of the plant; a datagram says by `ts_send_ns` of which flush it is. What
the frames of a flush must come to is computed without the plant's code (`exchange_record`) and compared with what the
log has: every level change in its order, every trade, every ticker; at each checksum the whole book. Flushes that are
not in the log as a whole, because its beginning was deleted or a part of it cannot be read, are passed over: what they
lack is a finding of the log.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from tickerplant.audit.audit_book import Held
from tickerplant.audit.exchange_book import Change
from tickerplant.audit.exchange_record import ExchangeRecord, ExchangeTicker, ExchangeTrade
from tickerplant.audit.findings import EXCHANGE, LOG, Cause, Findings
from tickerplant.audit.log_audit import LogAudit
from tickerplant.core.messages import (
    AnyMessage,
    BookClear,
    BookReady,
    BookStale,
    BookVerify,
    LevelUpdate,
    Side,
    Stream,
    Ticker,
    Trade,
    UpdateCause,
    UpstreamGap,
)
from tickerplant.core.wire import HEADER
from tickerplant.limits import AUDIT_STALE_TOLD_WITHIN_NS, TICKER_MAX_BYTES

_SENT_AT = 8
"""Place of `ts_send_ns` in the header's fields."""


class Told(NamedTuple):
    """What the log has of one flush."""

    changes: dict[str, list[Change]]
    checked: set[str]
    """Markets whose checksum was told, ready ones included."""
    ready: set[str]
    stale: set[str]
    """Markets told stale or cleared."""
    trades: list[ExchangeTrade]
    tickers: list[ExchangeTicker]
    gaps: set[int]
    """Streams on which an `UpstreamGap` was told."""


class CaptureAudit:
    """Joins a capture with the log. `input` for all that is no flush, `flush` for each; then `finish`.

    `all_open`: every market is followed; else those are whose book is in the log.
    """

    def __init__(
        self,
        findings: Findings,
        log: LogAudit,
        datagrams: Iterable[bytes],
        record: ExchangeRecord,
        *,
        all_open: bool,
        whole: bool = True,
    ) -> None:
        self.record = record
        self.flushes = 0
        self.changes = 0
        self.trades = 0
        self.tickers = 0
        self.books_compared = 0
        self.log_ended_ns = 0
        self.is_past_log = False
        """The flush taken last, and with it all that follow, has nothing in the log."""
        self.flushes_after_log = 0
        """Those that something had to come of."""
        self._findings = findings
        self._log = log
        self._datagrams: Iterator[bytes] = iter(datagrams)
        self._next: bytes | None = None
        self._all_open = all_open
        self._whole = whole
        self._untold_since: dict[str, int] = {}
        self._gaps_due: set[int] = set()
        self._flush_ns = 0
        self._unmatched = 0
        self.taken: list[bytes] = []
        """The datagrams of the flush that was taken last."""
        self.is_passed_over = False
        """Whether that flush is not in the log as a whole."""
        self._is_torn = self._is_torn_at_end = False
        self._has_lost = log.begins_late
        self._lost_until_ns = 0
        """Flushes up to then are passed over."""
        self._proven: set[str] = set()
        """Once something was lost: the books that are known all the same."""
        self._begin()

    def _begin(self) -> None:
        self._advance()
        if self._log.begins_late and self._next is not None:
            # Flushes of one nanosecond are one, and it may have been cut in two.
            self._lost_until_ns = _sent_ns(self._next)

    # --- flushes ----------------------------------------------------------------------------------

    def flush(self, now_ns: int) -> None:
        """The plant flushed at `now_ns`, a later time than before: the inputs since then against what was sent."""
        self._flush_ns = now_ns
        self.flushes += 1
        self.taken = []
        record = self.record
        self._note_proven()
        due = {ticker for ticker in record.changes if self._held(ticker) is Held.LIVE}
        self._is_torn = self.is_passed_over = False
        if self._next is None:
            self.is_past_log = True
            self.flushes_after_log += bool(due or record.trades or record.tickers)
            record.begin_flush()
            return
        followed = {ticker for ticker, book in self._log.books.books.items() if book.held}
        told = self._take_log(now_ns)
        self.is_passed_over = self._is_torn or now_ns <= self._lost_until_ns
        if self.is_passed_over:
            self._expect_nothing()
        else:
            self._compare_changes(due, told)
            self._compare_trades(followed, told)
            self._compare_tickers(followed, told)
            self._compare_gaps(told)
            self._settle_untold(told)
            self._compare_books(told.checked)
        self._forget_closed(told.stale)
        record.begin_flush()

    def _note_proven(self) -> None:
        if self._has_lost:
            books = self._log.books.books
            self._proven = {ticker for ticker, book in books.items() if book.proven}

    def _expect_nothing(self) -> None:
        """What had to be told may have been told in what is not there."""
        self.record.untold.clear()
        self.record.gaps.clear()
        self._untold_since.clear()
        self._gaps_due.clear()

    def _held(self, ticker: str) -> Held:
        book = self._log.books.books.get(ticker)
        return Held.NOTHING if book is None else book.held

    def _take_log(self, flush_ns: int) -> Told:
        told = Told({}, set(), set(), set(), [], [], set())
        while self._next is not None:
            sent_ns = _sent_ns(self._next)
            if sent_ns > flush_ns:
                break
            datagram = self._next
            taken = self._log.take(datagram)
            if sent_ns < flush_ns:
                self._unmatched += 1
            else:
                self.taken.append(datagram)
                if taken is not None and not taken[0].kind:
                    _sort(taken[1], taken[0].stream, told)
            self._advance()
        return told

    def _advance(self) -> None:
        holes = self._log.holes
        self._next = next(self._datagrams, None)
        if self._log.holes != holes:
            # It may begin within the flush before, and end within the one after it.
            self._is_torn = self._has_lost = True
            self._is_torn_at_end = self._next is None
            self._lost_until_ns = 0 if self._next is None else _sent_ns(self._next)
        if self._next is None:
            self.log_ended_ns = self._log.last_ns

    # --- comparisons ------------------------------------------------------------------------------

    def _compare_changes(self, due: set[str], told: Told) -> None:
        changes, record = self.record.changes, self.record
        for ticker in changes.keys() | told.changes.keys():
            expected = changes.get(ticker, []) if ticker in due else []
            found = told.changes.get(ticker, [])
            self.changes += len(found)
            if ticker in told.ready or expected == found or not self._proves(ticker):
                continue
            self._wrong(_difference(expected, found), ticker, Stream.DELTA)
            book = record.books.get(ticker)
            if book is not None:
                book.known = False

    def _proves(self, ticker: str) -> bool:
        """Whether the frames say everything about a market: from its snapshot on, with no hole that was told.

        And what the log lacks, if anything, has nothing to do with it.
        """
        if self._has_lost and ticker not in self._proven:
            return False
        book = self.record.books.get(ticker)
        if book is None:
            return self._whole
        return book.known or ticker in self.record.untold

    def _compare_trades(self, followed: set[str], told: Told) -> None:
        position = 0
        for trade in self.record.trades:
            if position < len(told.trades) and told.trades[position] == trade:
                position += 1
            elif self._is_due(trade.ticker, followed):
                text = f"trade {trade.trade_id} is not in the log"
                self._wrong(text, trade.ticker, Stream.TRADE)
        self.trades += position
        for extra in told.trades[position:]:
            text = f"trade {extra.trade_id} is in the log, and the exchange did not send it here"
            self._wrong(text, extra.ticker, Stream.TRADE)

    def _compare_tickers(self, followed: set[str], told: Told) -> None:
        position = 0
        for ticker in self.record.tickers:
            if position < len(told.tickers) and told.tickers[position] == ticker:
                position += 1
            elif self._is_due(ticker.ticker, followed):
                self._wrong("a ticker is not in the log", ticker.ticker, Stream.TICKER)
        self.tickers += position
        for extra in told.tickers[position:]:
            text = "a ticker is in the log that the exchange did not send here"
            self._wrong(text, extra.ticker, Stream.TICKER)

    def _is_due(self, ticker: str, followed: set[str]) -> bool:
        """Whether the plant publishes a market's trades for certain."""
        if len(ticker.encode(errors="replace")) > TICKER_MAX_BYTES or not ticker:
            return False
        return self._all_open or ticker in followed

    def _compare_gaps(self, told: Told) -> None:
        """A hole that showed in an earlier flush is told before anything that came after it."""
        gaps = self.record.gaps
        for stream in told.gaps:
            gaps.pop(stream, None)
        found = {int(Stream.TRADE): told.trades, int(Stream.TICKER): told.tickers}
        for stream in self._gaps_due & gaps.keys():
            if found[stream]:
                text = f"messages go on, and {gaps.pop(stream)} before them was not told"
                self._wrong(text, "", stream)
        self._gaps_due = set(gaps)

    def _settle_untold(self, told: Told) -> None:
        untold = self.record.untold
        if not untold:
            return
        for ticker in tuple(untold):
            if ticker in told.stale or self._held(ticker) is not Held.LIVE:
                del untold[ticker]
                self._untold_since.pop(ticker, None)
                continue
            since_ns = self._untold_since.setdefault(ticker, self._flush_ns)
            if self._flush_ns - since_ns > AUDIT_STALE_TOLD_WITHIN_NS:
                self._wrong(f"{untold[ticker]} was not told", ticker, Stream.DELTA)
                del untold[ticker], self._untold_since[ticker]

    def _compare_books(self, tickers: Iterable[str]) -> None:
        for ticker in tickers:
            ours = self._log.books.books.get(ticker)
            if ours is None or ours.held is not Held.LIVE or not ours.proven:
                continue
            theirs = self.record.books.get(ticker)
            if theirs is None or not theirs.known:
                if self._whole and ticker not in self.record.untold:
                    text = "a book is told as live of which the frames do not say the levels"
                    self._wrong(text, ticker, Stream.DELTA)
                continue
            self.books_compared += 1
            if ours.levels() != theirs.ascending():
                self._wrong("the book is not the exchange's", ticker, Stream.DELTA)
                theirs.known = False

    def _forget_closed(self, tickers: Iterable[str]) -> None:
        """Of a market that the plant no longer follows the frames say no more."""
        for ticker in tickers:
            book = self.record.books.get(ticker)
            if book is not None and self._held(ticker) is Held.NOTHING:
                book.known = False

    # --- end --------------------------------------------------------------------------------------

    def lose_inputs(self) -> None:
        """A part of the capture is missing."""
        self.record.lose_all()
        self._untold_since.clear()
        self._whole = False

    def finish(self) -> None:
        """The capture is at its end: what remains of the log is taken without comparison."""
        remaining, since_ns = 0, self._log.last_ns
        while self._next is not None:
            remaining += 1
            self._log.take(self._next)
            self._advance()
        self._log.finish()
        if self._unmatched:
            text = f"{self._unmatched} datagrams of the log come from inputs that are not in the capture"
            self._findings.add(EXCHANGE, Cause.CAPTURE_OFF, text)
        if remaining:
            self._findings.add(
                EXCHANGE,
                Cause.CAPTURE_OFF,
                f"the capture ends here; {remaining} datagrams of the log follow",
                times_ns=(since_ns, self._log.last_ns),
            )
        elif not self.is_past_log:
            self._compare_books(tuple(self.record.books))
        if self.flushes_after_log > 1 and not self._log.streams.ended:
            # One flush may have been taken in and not sent when the plant was stopped.
            self._findings.add(
                LOG,
                self._log.hole_cause if self._is_torn_at_end else Cause.LOG_OFF,
                f"the log ends here; the capture has {self.flushes_after_log} flushes more that had to be told",
                times_ns=(self.log_ended_ns, self._flush_ns),
            )

    def _wrong(self, what: str, ticker: str, stream: int) -> None:
        self._findings.add(EXCHANGE, Cause.PLANT, what, ticker=ticker, stream=stream)


def _sent_ns(datagram: bytes) -> int:
    return int(HEADER.unpack_from(datagram)[_SENT_AT]) if len(datagram) >= HEADER.size else 0


def _sort(messages: Sequence[AnyMessage | None], stream: int, told: Told) -> None:
    """What the messages of one datagram tell, by kind."""
    for message in messages:
        kind = type(message)
        if kind is LevelUpdate:
            assert isinstance(message, LevelUpdate)
            if message.cause == UpdateCause.EXCHANGE:
                change = (message.side, message.price_e4, message.delta_e2)
                told.changes.setdefault(message.ticker, []).append(change)
        elif isinstance(message, BookReady | BookVerify):
            told.checked.add(message.ticker)
            if kind is BookReady:
                told.ready.add(message.ticker)
        elif isinstance(message, BookStale | BookClear):
            told.stale.add(message.ticker)
        elif isinstance(message, Trade):
            told.trades.append(
                ExchangeTrade(
                    message.ticker,
                    message.trade_id,
                    message.price_e4,
                    message.size_e2,
                    message.taker_side == Side.ASK,
                )
            )
        elif isinstance(message, Ticker):
            told.tickers.append(
                ExchangeTicker(
                    message.ticker, message.last_e4, message.volume_e2, message.open_interest_e2
                )
            )
        elif isinstance(message, UpstreamGap):
            told.gaps.add(stream)


def _difference(expected: list[Change], found: list[Change]) -> str:
    """The first difference of two rows of changes, in words."""
    for index, (due, is_) in enumerate(zip(expected, found, strict=False)):
        if due != is_:
            return (
                f"change {index + 1} of a flush is {_words(is_)}, the exchange's is {_words(due)}"
            )
    if len(expected) > len(found):
        missing = _words(expected[len(found)])
        return f"{len(expected) - len(found)} changes are not in the log, the first {missing}"
    extra = _words(found[len(expected)])
    return f"{len(found) - len(expected)} changes the exchange did not send here, the first {extra}"


def _words(change: Change) -> str:
    side, price_e4, delta_e2 = change
    return f"{'ask' if side else 'bid'} {price_e4} {delta_e2:+}"
