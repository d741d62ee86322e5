"""The matching engine's book against a plain model."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from tickerplant_kalshi_sim.book import NO, YES, OrderBook, as_yes_book

ORDERS = st.lists(
    st.tuples(st.sampled_from((YES, NO)), st.integers(1, 9_999), st.integers(1, 50_000)),
    max_size=60,
)


def check(book: OrderBook) -> None:
    """Levels are the sums of the orders, the bests are cached right, nothing crosses."""
    for side in (YES, NO):
        sums: dict[int, int] = {}
        for order in book.orders_of(side):
            sums[order.price_e4] = sums.get(order.price_e4, 0) + order.size_e2
        assert book.levels[side] == sums
        assert book.best[side] == max(sums, default=0)
        assert {
            price: sum(o.size_e2 for o in queue) for price, queue in book.queues[side].items()
        } == sums
    assert [order.place for order in book.orders] == list(range(len(book.orders)))
    assert not (book.best[YES] and book.best[NO]) or book.best[YES] + book.best[NO] < 10_000


@settings(max_examples=100, deadline=None)
@given(orders=ORDERS, seed=st.integers(0, 1_000))
def test_matching_conserves_size_and_never_leaves_a_crossed_book(
    orders: list[tuple[int, int, int]], seed: int
) -> None:
    random, book, sent, filled, cancelled = Random(seed), OrderBook(), 0, 0, 0
    for side, price_e4, size_e2 in orders:
        sent += size_e2
        rest_e2 = size_e2
        for fill in book.match(side, price_e4, size_e2):
            assert fill.maker_side == 1 - side
            assert fill.maker_price_e4 + price_e4 >= 10_000
            filled += 2 * fill.size_e2
            rest_e2 -= fill.size_e2
        if rest_e2:
            book.add(side, price_e4, rest_e2)
        if book.orders and random.random() < 0.3:
            order = random.choice(book.orders)
            cancelled += order.size_e2
            book.remove(order)
        check(book)
    assert sent == filled + cancelled + sum(order.size_e2 for order in book.orders)


def test_best_price_first_and_oldest_order_first() -> None:
    book = OrderBook()
    book.add(NO, 6_000, 100)
    book.add(NO, 6_500, 200)
    book.add(NO, 6_500, 300)
    fills = book.match(YES, 4_000, 550)
    assert [(f.maker_price_e4, f.size_e2) for f in fills] == [
        (6_500, 200),
        (6_500, 300),
        (6_000, 50),
    ]
    assert book.levels[NO] == {6_000: 50}
    assert not book.match(YES, 3_999, 550)


def test_yes_book_turns_no_bids_into_asks() -> None:
    bids, asks = as_yes_book({3_300: 4_050, 3_100: 12_000}, {6_500: 1_025, 6_100: 7_500})
    assert bids == ((3_100, 12_000), (3_300, 4_050))
    assert asks == ((3_500, 1_025), (3_900, 7_500))
