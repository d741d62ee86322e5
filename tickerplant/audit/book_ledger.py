"""The books that the log tells, rebuilt message by message, and every claim about them put to the proof. Pure.

Each change must fit what was there, each checksum must hold at its place, each best bid and offer must be the rebuilt
book's, and none may be missing where a best moved. The stream of quotes stands before that of the levels in each
flush; so a quote waits until every level change of its input (`g`) has been applied.
"""

from collections import deque
from collections.abc import Sequence

from tickerplant.audit.audit_book import AuditBook, Held
from tickerplant.audit.findings import LOG, Cause, Findings
from tickerplant.audit.stale_periods import StalePeriods
from tickerplant.core.messages import (
    AnyMessage,
    Bbo,
    BookClear,
    BookLevels,
    BookReady,
    BookStale,
    BookState,
    BookVerify,
    LevelUpdate,
    Stream,
    UpdateCause,
)

_QUOTED: dict[int, Held] = {
    BookState.LIVE: Held.LIVE,
    BookState.STALE: Held.STALE,
    BookState.CLOSED: Held.NOTHING,
}
_NO_BBO = (0, 0, 0, 0)
_NOT_YET = 1 << 64
"""Above every `g`."""


class BookLedger:
    """All books of a session; `whole` says that the log has the session from its beginning."""

    def __init__(self, findings: Findings, *, whole: bool = True) -> None:
        self.books: dict[str, AuditBook] = {}
        self.updates = 0
        self.checksums = 0
        self.quotes = 0
        self.stale = StalePeriods(findings)
        self._findings = findings
        self._whole = whole
        self._quotes_from_g = 0 if whole else _NOT_YET
        self._g = 0
        self._pending: deque[Bbo] = deque()
        self._moved: dict[str, int] = {}

    # --- streams ----------------------------------------------------------------------------------

    def take_quotes(self, messages: Sequence[AnyMessage | None]) -> None:
        """Messages of the stream of quotes, in order."""
        pending = self._pending
        for message in messages:
            if type(message) is not Bbo:
                continue
            self.quotes += 1
            if self._quotes_from_g == _NOT_YET:
                self._quotes_from_g = message.g + 1
            if message.g < self._g:
                # The levels have gone past it: what it was true of is no longer known.
                self._wrong(message.ticker, "a best bid and offer comes after later levels")
                continue
            pending.append(message)

    def take_levels(self, messages: Sequence[AnyMessage | None]) -> None:
        """Messages of the stream of book levels, in order."""
        books = self.books
        for message in messages:
            if message is None:
                continue
            if message.g > self._g:
                if self._pending or self._moved:
                    self._pass_to(message.g)
                self._g = message.g
            book = books.get(message.ticker)
            if (
                type(message) is LevelUpdate
                and book is not None
                and book.held is Held.LIVE
                and message.cause == UpdateCause.EXCHANGE
            ):
                self.updates += 1
                moved = book.apply(message)
                if moved is None:
                    self._does_not_fit(book, message)
                elif moved and book.proven:
                    self._moved[message.ticker] = message.g
                continue
            self._take_other(message, book)

    def finish(self, *, complete: bool) -> None:
        """No more comes; `complete`: the last flush is in the log as a whole."""
        if complete:
            self._pass_to(self._g + 1)
            for quote in self._pending:
                self._wrong(quote.ticker, "a best bid and offer without its levels")
        self.stale.finish()

    # --- holes ------------------------------------------------------------------------------------

    def lose_levels(self) -> None:
        """Messages of the levels are missing: until the next checksum of each book nothing of it is proven."""
        self._whole = False
        for book in self.books.values():
            book.proven = False

    def lose_quotes(self) -> None:
        """Messages of the quotes are missing: none is called for until they go on."""
        self._quotes_from_g = _NOT_YET
        self._moved.clear()

    # --- levels -----------------------------------------------------------------------------------

    def _take_other(self, message: AnyMessage, book: AuditBook | None) -> None:
        ticker = message.ticker
        if book is None:
            book = self.books[ticker] = AuditBook(proven=self._whole)
        if type(message) is LevelUpdate:
            self._take_update(book, message)
        elif type(message) is BookVerify:
            self._take_verify(book, message)
        elif type(message) is BookReady:
            self._take_ready(book, message)
        elif type(message) is BookStale:
            self._take_stale(book, message)
        elif type(message) is BookClear:
            book.clear()
            book.held, book.proven = Held.NOTHING, True
            self.stale.forget(ticker, message.ts_recv_ns)
            self._moved[ticker] = message.g
        elif type(message) is BookLevels:
            if not book.add_part(message) and book.proven:
                self._wrong(ticker, f"part {message.part} of {message.parts} of an image is wrong")
                book.proven = False
            book.held = Held.IMAGE
        else:
            self._wrong(ticker, f"{type(message).__name__} on the stream of levels")

    def _take_update(self, book: AuditBook, message: LevelUpdate) -> None:
        """A level of a book that is not live, or by a resync."""
        self.updates += 1
        expected = Held.STALE if message.cause == UpdateCause.RESYNC else Held.LIVE
        if book.proven and book.held is not expected:
            self._wrong(
                message.ticker,
                f"a level changes (cause {message.cause}) in a book that is {book.held.name}",
            )
            book.proven = False
        if book.apply(message) is None:
            self._does_not_fit(book, message)

    def _does_not_fit(self, book: AuditBook, message: LevelUpdate) -> None:
        if book.proven:
            side = "ask" if message.side else "bid"
            self._wrong(
                message.ticker,
                f"{side} {message.price_e4}: the change {message.delta_e2:+} does not give {message.size_e2}",
            )
            book.proven = False

    def _take_ready(self, book: AuditBook, message: BookReady) -> None:
        if book.proven and not (
            book.held is Held.STALE or (book.held is Held.IMAGE and book.image_complete)
        ):
            self._wrong(
                message.ticker, f"a book is told ready that is {book.held.name} or incomplete"
            )
        self._check(book, message)
        book.held = Held.LIVE
        book.parts = book.next_part = 0
        self.stale.end(message.ticker, message.ts_recv_ns)
        self._moved[message.ticker] = message.g

    def _take_verify(self, book: AuditBook, message: BookVerify) -> None:
        if book.proven and book.held is not Held.LIVE:
            self._wrong(message.ticker, f"a checksum of a book that is {book.held.name}")
        self._check(book, message)
        if not book.proven:
            return
        book.held = Held.LIVE

    def _check(self, book: AuditBook, message: BookReady | BookVerify) -> None:
        self.checksums += 1
        if book.checksum() == message.checksum:
            book.proven = True
        elif book.proven:
            self._wrong(
                message.ticker, f"the checksum of {type(message).__name__} is not the book's"
            )
            book.proven = False

    def _take_stale(self, book: AuditBook, message: BookStale) -> None:
        if book.proven and book.held is not Held.LIVE:
            self._wrong(message.ticker, f"a book is told stale that is {book.held.name}")
        book.held = Held.STALE
        self.stale.begin(message.ticker, message.reason, message.ts_recv_ns)
        self._moved[message.ticker] = message.g

    # --- quotes -----------------------------------------------------------------------------------

    def _pass_to(self, g: int) -> None:
        """Every level change before `g` is applied: the quotes of those inputs can be judged."""
        pending, moved = self._pending, self._moved
        while pending and pending[0].g < g:
            of_g = pending[0].g
            # Of several quotes of one market in one input the last one counts.
            newest: dict[str, Bbo] = {}
            while pending and pending[0].g == of_g:
                quote = pending.popleft()
                newest[quote.ticker] = quote
            for ticker, quote in newest.items():
                if moved.get(ticker) == of_g:
                    del moved[ticker]
                self._judge(quote)
        for ticker, of_g in moved.items():
            if of_g >= self._quotes_from_g:
                self._wrong(ticker, "a best moved and no best bid and offer tells it", Stream.BBO)
        moved.clear()

    def _judge(self, quote: Bbo) -> None:
        book = self.books.get(quote.ticker)
        told = (quote.bid_e4, quote.bid_size_e2, quote.ask_e4, quote.ask_size_e2)
        if book is None:
            if self._whole:
                self._wrong(quote.ticker, "a best bid and offer of a book that was never told")
            return
        if not book.proven:
            return
        state = _QUOTED.get(quote.state)
        best = _NO_BBO if state is Held.NOTHING else book.bbo()
        if book.held is not state or told != best:
            self._wrong(
                quote.ticker,
                f"the best bid and offer told ({told}, state {quote.state}) is not the book's "
                f"({book.bbo()}, {book.held.name})",
                Stream.BBO,
            )
        elif state is Held.NOTHING:
            del self.books[quote.ticker]

    def _wrong(self, ticker: str, what: str, stream: Stream = Stream.DELTA) -> None:
        self._findings.add(LOG, Cause.PLANT, what, stream=stream, ticker=ticker)
