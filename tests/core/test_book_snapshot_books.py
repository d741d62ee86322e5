"""The books of the snapshots are those of `PlantState`, after whatever is lost, doubled, cleared or broken."""

import random

import pytest

from tickerplant.core.book import Book
from tickerplant.core.book_snapshots import BOOK_STREAMS, BookSnapshots
from tickerplant.core.columns import ColumnMapper
from tickerplant.core.messages import (
    BookClear,
    BookLevels,
    BookReady,
    BookStale,
    BookState,
    BookVerify,
    LevelUpdate,
    MarketInfo,
    Stream,
)
from tickerplant.core.recovery_state import PlantState
from tickerplant.core.rows import book_snapshot_row
from tickerplant.core.wire import decode_body, decode_header, encode_datagram
from tickerplant.store import book_grid
from tickerplant.store.book_grid import BookGrid

SESSION = 1_790_000_000_000_000_000
INTERVAL_NS = 1_000_000_000


class Reference:
    """Applies every message to a `PlantState`, level by level, and looks at all of its books."""

    def __init__(self, state: PlantState) -> None:
        self.state = state
        self.instant = 0
        self.last: dict[str, object] = {}

    def receive(self, datagram: bytes) -> list[tuple]:
        header, rows = decode_header(datagram), []
        instant = header.ts_send_ns // INTERVAL_NS
        if instant != self.instant:
            if header.session == self.state.session and instant > self.instant > 0:
                rows = self.look(instant * INTERVAL_NS)
            self.instant = instant
        if self.state.admit(header):
            self.state.apply(decode_body(datagram, header))
        return rows

    def look(self, time_ns: int) -> list[tuple]:
        state, rows = self.state, []
        seq = state.next_seqs[Stream.DELTA - 1] - 1
        for ticker, market in state.markets.items():
            if market.phase == BookState.LIVE and self.last.get(ticker) is not market.last:
                self.last[ticker] = market.last
                rows.append(book_snapshot_row(time_ns, state.session, seq, ticker, market.book))
        return sorted(rows, key=lambda row: row[3])


class Plant:
    """Tells of its books what a plant may tell, and keeps them as they are."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.session, self.now_ns = SESSION, SESSION
        self.begin()

    def begin(self) -> None:
        self.books = {f"M{number}": Book() for number in range(5)}
        self.seqs = dict.fromkeys(BOOK_STREAMS, 1)
        self.pending: list[object] = []

    def datagram(self) -> bytes:
        """The next one; messages of an image may be spread over several."""
        self.now_ns += self.draw.randrange(INTERVAL_NS // 10)
        stream = Stream.STATUS if self.draw.random() < 0.05 else Stream.DELTA
        if stream == Stream.STATUS:
            info = ("", "", 0, 0, "")
            messages: list[object] = [MarketInfo("M1", 0, 0, self.now_ns, *info)]
        else:
            while len(self.pending) < 4:
                self.tell()
            count = self.draw.randrange(1, 5)
            messages, self.pending = self.pending[:count], self.pending[count:]
        seq = self.seqs[stream]
        self.seqs[stream] += len(messages)
        return encode_datagram(0, stream, self.session, seq, self.now_ns, messages)

    def tell(self) -> None:
        ticker = self.draw.choice(list(self.books))
        book, place, kind = self.books[ticker], (ticker, 0, 0, self.now_ns), self.draw.random()
        if kind < 0.8:
            self.pending += [self.update(*place) for _ in range(self.draw.randrange(1, 9))]
        elif kind < 0.83:
            self.pending.append(BookStale(*place, 1))
        elif kind < 0.86:
            book.clear()
            self.pending.append(BookClear(*place))
        elif kind < 0.93:
            self.pending += self.image(place, book)
        else:
            wrong = self.draw.random() < 0.1
            self.pending.append(BookVerify(*place, book.checksum() ^ wrong))

    def update(self, ticker: str, *place: int) -> LevelUpdate:
        side, price_e4 = (
            self.draw.randrange(2),
            self.draw.choice((100, 500, 2_500, 2_510, 7_000, 9_999, 10_000)),
        )
        size_e2 = self.draw.choice((0, 0, 5, 700))
        delta_e2 = size_e2 - self.books[ticker].size_at(side, price_e4)
        self.books[ticker].set_level(side, price_e4, size_e2)
        return LevelUpdate(ticker, *place, side, price_e4, delta_e2, size_e2)

    def image(self, place: tuple, book: Book) -> list[object]:
        """Whole, or in parts one of which may be missing."""
        bids, asks = book.sides()
        if self.draw.random() < 0.5:
            parts = [BookLevels(*place, 0, 1, bids, asks)]
        else:
            parts = [BookLevels(*place, 0, 3, bids[:3], ())]
            parts += [BookLevels(*place, 1, 3, bids[3:], ()), BookLevels(*place, 2, 3, (), asks)]
        if self.draw.random() < 0.2:
            del parts[self.draw.randrange(len(parts))]
        told = [*parts, BookReady(*place, book.checksum())]
        return [BookClear(*place), *told] if self.draw.random() < 0.5 else told


def sent(draw: random.Random, count: int) -> list[bytes]:
    """Datagrams of a plant; some are lost, come twice or after another session has begun."""
    plant, made = Plant(draw), []
    for _ in range(count):
        chance = draw.random()
        datagram = plant.datagram()
        if chance > 0.01:
            made.append(datagram)
        if chance > 0.98:
            made.append(draw.choice(made))
        if 0.97 < chance < 0.975:
            plant.session += 1
            plant.begin()
    return made


@pytest.mark.parametrize("seed", range(3))
def test_the_snapshots_are_those_of_the_state_rebuilt_message_by_message(seed):
    draw = random.Random(seed)
    reference, snapshots, mapper = (
        Reference(PlantState()),
        BookSnapshots(INTERVAL_NS, None, BookGrid),
        ColumnMapper(),
    )
    rows = 0
    for number, datagram in enumerate(sent(draw, 1_500)):
        header = decode_header(datagram)
        wanted = reference.receive(datagram)
        assert snapshots.receive(header, mapper.add(header, datagram)) == wanted, number
        rows += len(wanted)
        if draw.random() < 0.005:
            # As after a restart: what is live is told once more.
            reference.last.clear()
            instant = reference.instant
            snapshots = BookSnapshots(INTERVAL_NS, reference.state, BookGrid)
            reference.instant = 0
            assert instant > 0
    assert rows > 100


@pytest.mark.parametrize("seed", range(2))
def test_a_grid_of_books_is_as_good_as_one_by_one(seed, monkeypatch):
    """With changes of the same level in one go, of sides and prices that there are not, and more books than may be."""
    monkeypatch.setattr(book_grid, "MARKETS_MAX", 1_500)
    draw = random.Random(seed)
    plain, grid = PlainBooks(), BookGrid()
    tickers = [f"M{number}" for number in range(1_500)]
    for _ in range(12):
        updates = [update_of(draw, draw.choice(tickers)) for _ in range(1_500)]
        updates += [update_of(draw, "M7") for _ in range(500)]
        for books in (plain, grid):
            books.set_levels(updates)
        for ticker in draw.sample(tickers, 60):
            assert grid.take_change(ticker) == plain.take_change(ticker)
            assert grid.levels(ticker) == plain.levels(ticker)
            if draw.random() < 0.5:
                grid.forget(ticker)
                plain.forget(ticker)
    assert all(grid.levels(ticker) == plain.levels(ticker) for ticker in tickers)
    assert sum(grid.levels(ticker).level_count for ticker in tickers) > 5_000
    # One more than there may be: it is empty whatever is told of it, and no other has its levels.
    grid.set_levels([update_of(draw, "one more") for _ in range(50)])
    assert grid.levels("one more") == Book()
    assert all(grid.levels(ticker) == plain.levels(ticker) for ticker in tickers)


class PlainBooks:
    """The last size of each level, and which books have changed: the least that there can be."""

    def __init__(self):
        self._sizes = {}
        self._unchanged = set()

    def set_levels(self, updates):
        for _, ticker, _, _, _, side, price_e4, _, size_e2, _ in updates:
            self._sizes.setdefault(ticker, ({}, {}))[side][price_e4] = size_e2
            self._unchanged.discard(ticker)

    def take_change(self, ticker):
        was_unchanged = ticker in self._unchanged
        self._unchanged.add(ticker)
        return not was_unchanged

    def forget(self, ticker):
        self._sizes.pop(ticker, None)
        self._unchanged.discard(ticker)

    def levels(self, ticker):
        sides = self._sizes.get(ticker, ({}, {}))
        return Book(*([level for level in side.items() if level[1]] for side in sides))


def update_of(draw: random.Random, ticker: str) -> tuple:
    price_e4 = draw.choice((100, 500, 2_510, 9_900, 20_000)) if draw.random() < 0.99 else 10_000
    size_e2 = draw.choice((0, 5, 70)) if draw.random() < 0.9999 else 2**63
    return (5, ticker, 0, 0, 0, draw.randrange(2), price_e4, 0, size_e2, 0)
