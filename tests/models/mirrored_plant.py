"""A plant whose books are mirrored: what it publishes goes through a real arbiter into a real mirror."""

from tickerplant.core.book import Book
from tickerplant.core.messages import (
    AnyMessage,
    BookClear,
    BookLevels,
    BookReady,
    BookVerify,
    LevelUpdate,
    Stream,
)
from tickerplant.core.wire import HeartbeatBody, encode_datagram, encode_heartbeat
from tickerplant_subscriber.arbiter import Arbiter
from tickerplant_subscriber.book_view import BookView
from tickerplant_subscriber.dispatch import Tables
from tickerplant_subscriber.events import Live, Stale
from tickerplant_subscriber.filters import TickerFilter
from tickerplant_subscriber.mirror import Mirror

DELTA = Stream.DELTA
SESSION = 1_000
TICKER = "KXTEST-1"


class MirroredPlant:
    """The plant's side: a book whose changes are published message by message through a real arbiter."""

    def __init__(self, tickers: tuple[str, ...] = ("*",)) -> None:
        self.output: list[object] = []
        self.updates: list[LevelUpdate] = []
        self.seq = 1
        self.session = SESSION
        self.now_ns = 10**18
        self.books: dict[str, Book] = {}
        self.tables = Tables(
            (DELTA,), TickerFilter(tickers), self.output.append, on_update=self._on_update
        )
        self.arbiter = Arbiter(
            (DELTA, Stream.STATUS),
            lambda state, _seq, messages, _sent: self.mirror.receive(state, messages),
            self.tables.take_event,
            started_ns=0,
        )

    def _on_update(self, view: BookView, update: LevelUpdate) -> None:
        assert view.live
        assert view.size_at(update.side, update.price_e4) == update.size_e2
        self.updates.append(update)

    @property
    def mirror(self) -> Mirror:
        assert self.tables.mirror is not None
        return self.tables.mirror

    def publish(self, message: AnyMessage, *, lost: bool = False) -> None:
        if not lost:
            datagram = encode_datagram(0, DELTA, self.session, self.seq, 0, [message])
            self.arbiter.receive(0, datagram, self.now_ns)
        self.seq += 1

    def heartbeat(self, stream: Stream = DELTA) -> None:
        next_seq = self.seq if stream is DELTA else 1
        datagram = encode_heartbeat(stream, self.session, next_seq, 0, HeartbeatBody(0))
        self.arbiter.receive(0, datagram, self.now_ns)

    def wait(self, duration_ns: int = 10_000_000) -> None:
        self.now_ns += duration_ns
        self.arbiter.handle_timer(self.now_ns)

    def image(self, ticker: str = TICKER, *, per_part: int = 64, lost: int = -1) -> None:
        """The whole book; the message with index `lost` does not arrive."""
        book = self.books.setdefault(ticker, Book())
        levels = [(0, level) for level in book.ascending(0)]
        levels += [(1, level) for level in book.ascending(1)]
        chunks = [levels[at : at + per_part] for at in range(0, len(levels), per_part)] or [[]]
        stamp = (ticker, 0, 0, 0)
        messages: list[AnyMessage] = [BookClear(*stamp)]
        for part, chunk in enumerate(chunks):
            bids = tuple(level for side, level in chunk if side == 0)
            asks = tuple(level for side, level in chunk if side == 1)
            messages.append(BookLevels(*stamp, part, len(chunks), bids, asks))
        messages.append(BookReady(*stamp, book.checksum()))
        for index, message in enumerate(messages):
            self.publish(message, lost=index == lost)

    def update(
        self, side: int, price_e4: int, delta_e2: int, *, ticker: str = TICKER, lost: bool = False
    ) -> None:
        size_e2 = self.books[ticker].apply(side, price_e4, delta_e2)
        assert size_e2 >= 0
        self.publish(
            LevelUpdate(ticker, 0, 0, 0, side, price_e4, delta_e2, size_e2),
            lost=lost,
        )

    def checksum(self, kind: type[BookReady | BookVerify], ticker: str = TICKER) -> None:
        self.publish(kind(ticker, 0, 0, 0, self.books[ticker].checksum()))

    def view(self, ticker: str = TICKER) -> BookView:
        view = self.mirror.view(ticker)
        assert view is not None
        return view

    def events(self) -> list[object]:
        return [event for event in self.output if isinstance(event, Stale | Live)]
