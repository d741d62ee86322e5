"""Rows back to a book: what they say is applied, what does not follow is refused."""

import pytest

from tickerplant.core.book import Book
from tickerplant.core.rebuilt_book import DeltaRow, RebuiltBook
from tickerplant.errors import DamagedStoreError


def row(kind, side=None, price_e4=None, delta_e2=None, size_e2=None, cause=None, checksum=None):
    return DeltaRow(7, kind, side, price_e4, delta_e2, size_e2, cause, checksum)


def begun() -> RebuiltBook:
    rebuilt = RebuiltBook("KX")
    rebuilt.apply(row("clear"))
    rebuilt.apply(row("image", "bid", 4_000, None, 500))
    rebuilt.apply(row("image", "ask", 4_100, None, 300))
    checksum = Book([(4_000, 500)], [(4_100, 300)]).checksum()
    rebuilt.apply(row("ready", checksum=checksum))
    return rebuilt


def test_updates_follow_an_image():
    rebuilt = begun()
    assert rebuilt.state == "live"
    rebuilt.apply(row("update", "bid", 4_000, -500, 0, "exchange"))
    rebuilt.apply(row("update", "ask", 4_200, 100, 100, "exchange"))
    assert not rebuilt.book.bids
    assert rebuilt.book.asks == {4_100: 300, 4_200: 100}
    rebuilt.apply(row("verify", checksum=rebuilt.book.checksum()))
    assert rebuilt.checks == 2


def test_stale_until_ready():
    rebuilt = begun()
    rebuilt.apply(row("stale", cause="disconnect"))
    assert (rebuilt.state, rebuilt.reason) == ("stale", "disconnect")
    rebuilt.apply(row("verify", checksum=rebuilt.book.checksum()))
    assert rebuilt.state == "stale"
    rebuilt.apply(row("ready", checksum=rebuilt.book.checksum()))
    assert (rebuilt.state, rebuilt.reason) == ("live", "")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (row("update", "bid", 4_000, 100, 500, "exchange"), "should be 500"),
        (row("update", "bid", 3_900, -100, 0, "exchange"), "should be 0"),
        (row("update", None, None, None, None, "exchange"), "no level"),
        (row("verify", checksum=1), "should be 1"),
        (row("ready", checksum=1), "should be 1"),
    ],
)
def test_what_does_not_follow_is_refused(wrong, says):
    with pytest.raises(DamagedStoreError, match=says):
        begun().apply(wrong)


def test_without_an_image_there_is_no_book():
    with pytest.raises(DamagedStoreError, match="missing"):
        RebuiltBook("KX").apply(row("update", "bid", 4_000, 100, 100, "exchange"))
