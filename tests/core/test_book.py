"""The book against a naive one (a dict per side, sorted when asked)."""

import struct
import zlib
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickerplant.core.book import Book, level_changes
from tickerplant.core.messages import LevelUpdate
from tickerplant.limits import PRICE_E4_MAX, SIZE_E2_MAX

PRICES = st.one_of(st.sampled_from([1, 2, 3300, 3400, 5000, 9999]), st.integers(1, 9_999))
SIZES = st.one_of(st.integers(1, 5), st.integers(1, 10**15))
SIDES = st.dictionaries(PRICES, SIZES, max_size=12)
BOOKS = st.tuples(SIDES, SIDES)
CHANGES = st.lists(
    st.tuples(
        st.integers(0, 1), PRICES, st.one_of(st.integers(-5, 5), st.integers(-(10**15), 10**15))
    ),
    max_size=40,
)


class NaiveBook:
    """What a book means, with nothing cached."""

    def __init__(self, bids, asks):
        self.sides = (dict(bids), dict(asks))

    def apply(self, side, price_e4, delta_e2):
        """The new size; -1 and no change below zero or beyond the bound."""
        size_e2 = self.sides[side].get(price_e4, 0) + delta_e2
        if not 0 <= size_e2 <= SIZE_E2_MAX:
            return -1
        self.sides[side].pop(price_e4, None)
        if size_e2:
            self.sides[side][price_e4] = size_e2
        return size_e2

    def best(self, side):
        """(price, size) of the best, (0, 0) if the side is empty."""
        if not self.sides[side]:
            return 0, 0
        price_e4 = min(self.sides[1]) if side else max(self.sides[0])
        return price_e4, self.sides[side][price_e4]

    def checksum(self):
        """The definition, number by number."""
        crc = 0
        for levels in self.sides:
            for price_e4 in sorted(levels):
                crc = zlib.crc32(struct.pack("<qq", price_e4, levels[price_e4]), crc)
        return crc


def assert_same(book, naive):
    """Every view of the book against the naive one."""
    bids, asks = naive.sides
    assert (book.bids, book.asks) == (bids, asks)
    assert book.ascending(0) == sorted(bids.items())
    assert book.ascending(1) == sorted(asks.items())
    assert book.bbo() == (*naive.best(0), *naive.best(1))
    assert (book.best_bid_e4, book.best_bid_size_e2) == naive.best(0)
    assert (book.best_ask_e4, book.best_ask_size_e2) == naive.best(1)
    assert book.checksum() == naive.checksum()
    assert book.level_count == len(bids) + len(asks)
    for count in (0, 1, 3, 100):
        best_bids = sorted(bids.items(), reverse=True)[:count]
        best_asks = sorted(asks.items())[:count]
        assert book.depth(count) == (best_bids, best_asks)
    if bids and asks:
        assert Fraction(book.mid_e5, 10) == Fraction(max(bids) + min(asks), 2)
        assert book.spread_e4 == min(asks) - max(bids)
        assert book.crossed == (max(bids) > min(asks))
    else:
        assert book.mid_e5 is None
        assert book.spread_e4 is None
        assert not book.crossed


@given(BOOKS, CHANGES)
def test_deltas_against_the_naive_book(levels, changes):
    """After any deltas every view agrees, `apply` returns the new size, and a moved best is never missed."""
    book, naive = Book(*[side.items() for side in levels]), NaiveBook(*levels)
    assert_same(book, naive)
    for side, price_e4, delta_e2 in changes:
        before = naive.best(side)
        size_e2 = book.apply(side, price_e4, delta_e2)
        assert size_e2 == naive.apply(side, price_e4, delta_e2)
        if naive.best(side) != before:
            assert book.best_moved
        if size_e2 >= 0:
            assert book.size_at(side, price_e4) == size_e2
    assert_same(book, naive)


@given(BOOKS, st.integers(0, 1), PRICES)
def test_best_moved_is_quiet_behind_the_best(levels, side, price_e4):
    """A change strictly behind the best of its side is not reported as a move of the best."""
    book, naive = Book(*[s.items() for s in levels]), NaiveBook(*levels)
    best_e4, _ = naive.best(side)
    behind = bool(naive.sides[side]) and (price_e4 > best_e4 if side else price_e4 < best_e4)
    book.apply(side, price_e4, 7)
    assert book.best_moved != behind


@given(BOOKS, st.lists(st.tuples(st.integers(0, 1), PRICES, st.integers(0, 10**15)), max_size=20))
def test_absolute_sizes(levels, settings):
    """`set_level` leaves exactly the size given, 0 removing the level."""
    book, naive = Book(*[side.items() for side in levels]), NaiveBook(*levels)
    for side, price_e4, size_e2 in settings:
        book.set_level(side, price_e4, size_e2)
        naive.sides[side].pop(price_e4, None)
        if size_e2:
            naive.sides[side][price_e4] = size_e2
    assert_same(book, naive)


@given(BOOKS, BOOKS)
def test_level_changes_turn_one_book_into_the_other(held_levels, fresh_levels):
    """Each change names old + delta = size, touches a level once, and all together make the fresh book."""
    held = Book(*[side.items() for side in held_levels])
    fresh = Book(*[side.items() for side in fresh_levels])
    changes = level_changes(held, fresh)
    assert len({(side, price_e4) for side, price_e4, _, _ in changes}) == len(changes)
    for side, price_e4, delta_e2, size_e2 in changes:
        assert delta_e2 != 0
        assert held.size_at(side, price_e4) + delta_e2 == size_e2
        assert held.apply(side, price_e4, delta_e2) == size_e2
    assert held == fresh
    assert not level_changes(held, fresh)


UPDATES = st.builds(
    lambda *numbers: LevelUpdate("M", 0, 0, 0, *numbers),
    st.integers(0, 1),
    st.one_of(PRICES, st.sampled_from([-1, 0, 10_000])),
    st.integers(-SIZE_E2_MAX, SIZE_E2_MAX + 1),
    st.one_of(st.integers(-1, 5), st.sampled_from([SIZE_E2_MAX, SIZE_E2_MAX + 1])),
)


@given(BOOKS, CHANGES)
def test_a_book_follows_an_equal_one(levels, changes):
    """What another book made of its deltas is followed; a delta that this one had no room for never comes."""
    book, naive = Book(*[side.items() for side in levels]), NaiveBook(*levels)
    for side, price_e4, delta_e2 in changes:
        size_e2 = naive.apply(side, price_e4, delta_e2)
        if size_e2 >= 0:
            assert book.follow(LevelUpdate("M", 0, 0, 0, side, price_e4, delta_e2, size_e2))
    assert_same(book, naive)


@given(BOOKS, UPDATES)
def test_what_an_equal_book_cannot_have_made_changes_nothing(levels, update):
    """A size that does not follow from the one here, a size or a price that no level has."""
    book, naive = Book(*[side.items() for side in levels]), NaiveBook(*levels)
    before = naive.sides[update.side].get(update.price_e4, 0)
    is_possible = (
        before + update.delta_e2 == update.size_e2
        and 0 <= update.size_e2 <= SIZE_E2_MAX
        and 0 < update.price_e4 < PRICE_E4_MAX
    )
    assert book.follow(update) == is_possible
    if is_possible:
        naive.apply(update.side, update.price_e4, update.delta_e2)
    assert_same(book, naive)


@given(BOOKS, BOOKS)
def test_different_levels_have_different_checksums(one, other):
    """Equality is that of the levels; the checksum differs wherever the list of levels, bids then asks, does."""
    first, second = Book(*[s.items() for s in one]), Book(*[s.items() for s in other])
    assert (first == second) == (one == other)
    same_list = [sorted(s.items()) for s in one if s] == [sorted(s.items()) for s in other if s]
    if one == other or not same_list:
        assert (first.checksum() == second.checksum()) == (one == other)


def test_a_level_below_zero_is_refused_and_nothing_changes():
    """-1 says that the delta contradicts the book."""
    book = Book([(3300, 500)], [(3500, 100)])
    assert book.apply(0, 3300, -501) == -1
    assert book.apply(1, 3600, -1) == -1
    assert book == Book([(3300, 500)], [(3500, 100)])
    assert book.apply(0, 3300, -500) == 0
    assert book == Book((), [(3500, 100)])


def test_a_level_beyond_any_market_is_refused():
    """However often it grows, sums stay within 64 bits, on the wire and in the checksum."""
    book = Book([(3300, 1)])
    for _ in range(20_000):
        book.apply(0, 3300, SIZE_E2_MAX)
    assert book.apply(0, 3300, SIZE_E2_MAX - 1) == SIZE_E2_MAX
    assert book.apply(0, 3300, 1) == -1
    assert book.checksum() == Book([(3300, SIZE_E2_MAX)]).checksum()


def test_checksum_of_a_known_book():
    """Bids then asks, prices ascending, as `<qq`: computed by hand once, with zlib."""
    numbers = (3100, 12000, 3300, 4050, 3500, 1025, 3900, 7500)
    book = Book([(3300, 4050), (3100, 12000)], [(3900, 7500), (3500, 1025)])
    assert book.checksum() == zlib.crc32(struct.pack("<8q", *numbers)) == 0xFDB59EA4
    assert Book().checksum() == 0


def test_clear_and_load_replace_everything():
    """No level survives, and the best follows."""
    book = Book([(3300, 1)], [(3500, 1)])
    book.load([(100, 2)], ())
    assert book.bbo() == (100, 2, 0, 0)
    book.clear()
    assert book == Book()
    assert book.bbo() == (0, 0, 0, 0)


def test_a_crossed_book_is_told():
    """Bid above ask: negative spread; a locked book is not crossed."""
    assert Book([(5000, 1)], [(4900, 1)]).crossed
    assert Book([(5000, 1)], [(4900, 1)]).spread_e4 == -100
    assert not Book([(5000, 1)], [(5000, 1)]).crossed


def test_books_are_not_hashable_and_not_equal_to_other_things():
    """They change, so they are no dictionary keys."""
    with pytest.raises(TypeError):
        hash(Book())
    assert Book() != "book"
    assert repr(Book([(3300, 4050)])) == "Book(bbo=(3300, 4050, 0, 0), levels=1)"


@given(BOOKS)
def test_packed_levels_are_what_the_checksum_is_of_and_make_the_same_book(sides):
    bids, asks = sides
    book = Book(bids.items(), asks.items())
    packed = book.packed()
    assert zlib.crc32(packed) == book.checksum()
    other = Book([(7, 7)], [(8, 8)])
    other.load_packed(packed, book.bid_count)
    assert other == book
    assert other.best_moved


def packed_levels(*levels):
    return b"".join(struct.pack("<qq", *level) for level in levels)


@pytest.mark.parametrize(
    ("levels", "bid_count"),
    [
        (packed_levels((10, 5), (20, 7))[:-1], 1),
        (packed_levels((10, 5), (20, 7)), 3),
        (packed_levels((10, 5), (20, 7)), -1),
        (packed_levels((20, 5), (10, 7)), 2),
        (packed_levels((20, 5), (10, 7)), 0),
        (packed_levels((10, 5), (10, 7)), 2),
        (packed_levels((0, 5), (10, 7)), 2),
        (packed_levels((-3, 5)), 1),
        (packed_levels((10_000, 5)), 1),
        (packed_levels((10, 5), (10_000, 7)), 1),
        (packed_levels((10, 0)), 1),
        (packed_levels((10, -5), (20, 5)), 1),
        (packed_levels((10, 5), (20, SIZE_E2_MAX + 1)), 1),
    ],
)
def test_packed_levels_that_make_no_book_change_nothing(levels, bid_count):
    book = Book([(7, 7)], [(8, 8)])
    with pytest.raises(ValueError, match=r"levels|prices|size"):
        book.load_packed(levels, bid_count)
    assert book == Book([(7, 7)], [(8, 8)])


@given(st.binary(max_size=80), st.integers(-1, 6))
def test_packed_garbage_is_a_book_or_refused(levels, bid_count):
    book = Book()
    try:
        book.load_packed(levels, bid_count)
    except ValueError:
        assert book == Book()
    else:
        assert book.packed() == levels
