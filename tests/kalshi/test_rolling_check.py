"""The rolling check: one live book a second against the exchange's own, without ever being in the way."""

import pytest
from connection_bed import BOOKS, SECOND, ConnectionBed, delta, snapshot

from tickerplant.core.messages import BookReady, BookStale, LevelUpdate, StaleReason, UpdateCause
from tickerplant.limits import (
    CHECK_LOOKS_MAX,
    COMMAND_TIMEOUT_NS,
    MARKET_LIMIT_RETRY_NS,
    SNAPSHOT_TIMEOUT_NS,
)


def error(code, command):
    """The refusal of a command."""
    return {"type": "error", "id": command["id"], "msg": {"code": code, "msg": "as told"}}


def bed_of(*tickers, **options):
    """These markets live on sid 1."""
    bed = ConnectionBed(tickers=tickers, check_interval_ns=SECOND, **options)
    bed.next_seq = bed.live()
    return bed


@pytest.fixture
def bed():
    """Markets A, B and C live on sid 1, whose next seq is 4."""
    return bed_of("A", "B", "C")


def next_check(bed, seconds=1):
    """The one command of the next second."""
    bed.advance(seconds)
    (command,) = bed.commands()
    assert command["cmd"] == "update_subscription"
    assert command["params"]["action"] == "get_snapshot"
    assert command["params"]["sids"] == [1]
    return command


def answer(bed, command, **levels):
    """The exchange's reply; returns what was published."""
    (ticker,) = command["params"]["market_tickers"]
    bed.next_seq += 1
    return bed.feed(snapshot(bed.next_seq - 1, ticker, command_id=command["id"], **levels))


def test_one_market_a_second_is_asked_for_in_turn(bed):
    """And an equal book is silent."""
    asked = []
    for _ in range(7):
        command = next_check(bed)
        asked += command["params"]["market_tickers"]
        assert answer(bed, command) == []
    assert asked == ["A", "B", "C", "A", "B", "C", "A"]
    assert (bed.counters.checks_asked, bed.counters.checks_answered) == (7, 7)
    assert bed.plant.books_diverged == 0
    assert bed.plant.take_divergences() == []


def test_a_book_that_diverged_unseen_is_found_counted_and_healed(bed):
    """Only the level that differs is published, as a resync, and the book is live again at once."""
    bed.feed(delta(4, "A", price="0.3100", size="7.00"))
    bed.next_seq = 5
    command = next_check(bed)
    messages = answer(
        bed, command, yes=(("0.3300", "1.00"), ("0.3100", "7.00"), ("0.2000", "4.00"))
    )
    book = [m for m in messages if isinstance(m, BookStale | LevelUpdate | BookReady)]
    stale, update, ready = book
    assert stale.reason == StaleReason.INCONSISTENT
    assert (update.price_e4, update.size_e2, update.cause) == (2000, 400, UpdateCause.RESYNC)
    assert isinstance(ready, BookReady)
    assert bed.state("A") == "LIVE"
    assert bed.subscriber.books["A"].live
    assert bed.plant.books_diverged == 1
    (found,) = bed.plant.take_divergences()
    assert (found.ticker, found.levels, found.found_ns) == ("A", 1, bed.now_ns)
    assert found.g == update.g
    assert bed.plant.take_divergences() == []
    assert bed.counters.sequence_gaps == 0


def test_every_book_is_found_within_one_round():
    """However many are wrong."""
    tickers = [f"M{number}" for number in range(20)]
    bed = bed_of(*tickers)
    wrong = set(tickers[::3])
    for _ in tickers:
        command = next_check(bed)
        (ticker,) = command["params"]["market_tickers"]
        answer(
            bed, command, yes=(("0.3300", "9.00"),) if ticker in wrong else (("0.3300", "1.00"),)
        )
    assert {found.ticker for found in bed.plant.take_divergences()} == wrong
    assert all(bed.subscriber.books[ticker].live for ticker in tickers)


def test_without_an_interval_there_are_no_checks():
    """And no timer is wanted for them."""
    bed = ConnectionBed(tickers=("A",))
    bed.live()
    bed.advance(8)
    assert bed.commands() == []
    assert bed.connection.commands.check.next_deadline_ns() is None


def test_deltas_between_question_and_answer_belong_to_the_comparison(bed):
    """The reply's place in the sequence is what counts, not the moment of asking."""
    command = next_check(bed)
    bed.feed(delta(4, "A", price="0.3300", size="2.00"))
    bed.next_seq = 5
    assert answer(bed, command, yes=(("0.3300", "3.00"),)) == []
    assert bed.plant.books_diverged == 0


def test_only_live_and_confirmed_markets_are_compared(bed):
    """A stale book gets its snapshot anyway, and one that is only asked for has no place in the sequence."""
    bed.plant.mark_stale(bed.entry("B"), StaleReason.UNUSABLE_FRAME)
    bed.connection.commands.books.tickers["C"] = False
    asked = []
    for _ in range(3):
        command = next_check(bed)
        asked += command["params"]["market_tickers"]
        answer(bed, command)
    assert asked == ["A", "A", "A"]


def test_a_needed_snapshot_goes_first_and_the_check_waits(bed):
    """While any book waits for its snapshot nothing is compared."""
    bed.advance(0.9)
    bed.feed(delta(5, "A"))
    assert bed.asked_for() == ["A", "B", "C"]
    for _ in range(4):
        bed.advance(1)
        assert bed.asked_for() == []
    assert bed.counters.checks_asked == 0
    for seq, ticker in enumerate("ABC", start=6):
        bed.feed(snapshot(seq, ticker, command_id=2))
    bed.next_seq = 9
    assert next_check(bed)["params"]["market_tickers"] == ["A"]


def test_an_unanswered_check_is_not_repeated_and_harms_nothing(bed):
    """The book stays live, no connection is closed, and the next market's turn comes after the time-out."""
    first = next_check(bed)
    bed.advance(SNAPSHOT_TIMEOUT_NS / SECOND)
    assert bed.commands() == []
    bed.advance((COMMAND_TIMEOUT_NS - SNAPSHOT_TIMEOUT_NS) / SECOND + 1)
    second = bed.commands()
    assert [c["params"]["market_tickers"] for c in second] == [["B"]]
    assert bed.counters.command_timeouts == 1
    assert bed.connection.close_reason is None
    assert [bed.state(ticker) for ticker in "ABC"] == ["LIVE"] * 3
    late = answer(bed, first, yes=(("0.3300", "8.00"),))
    assert any(isinstance(m, LevelUpdate) for m in late), "it has its place all the same"


@pytest.mark.parametrize("code", [11, 18, 26, 27])
def test_a_refused_check_is_not_repeated(bed, code):
    """Not even when it is refused every time: the connection stays, the other markets get their turn."""
    asked = []
    for _ in range(6):
        command = next_check(bed)
        asked += command["params"]["market_tickers"]
        bed.feed(error(code, command))
        assert bed.commands() == []
    assert asked == ["A", "B", "C", "A", "B", "C"]
    assert bed.connection.close_reason is None
    assert bed.counters.checks_answered == 0


def test_a_check_on_a_subscription_that_ended_is_the_news_of_it(bed):
    """Error 7: the sid is unknown; everything is subscribed anew."""
    bed.feed(error(7, next_check(bed)))
    assert bed.counters.subscriptions_ended == 1
    assert bed.state("A") == "STALE"
    bed.advance(1)
    (command,) = bed.commands()
    assert command["cmd"] == "subscribe"


def test_a_command_that_waits_for_its_time_does_not_stop_the_checks(bed):
    """Too many markets is tried again every 30 s without end."""
    bed.want("D")
    (add,) = bed.commands()
    bed.feed(error(26, add))
    assert MARKET_LIMIT_RETRY_NS > 5 * SECOND
    for ticker in "ABC":
        command = next_check(bed)
        assert command["params"]["market_tickers"] == [ticker]
        answer(bed, command)


def test_after_a_reconnect_the_round_goes_on(bed):
    """Else the last markets of a long list would never be reached on a poor line."""
    answer(bed, next_check(bed))
    bed.connection.closed()
    bed.connection.opened(bed.now_ns)
    for ticker in "ABC":
        bed.connection.want_book(bed.entry(ticker))
    (subscribe,) = bed.commands()
    msg = {"channel": BOOKS, "sid": 1}
    bed.feed({"type": "subscribed", "id": subscribe["id"], "msg": msg})
    for seq, ticker in enumerate("ABC", start=1):
        bed.feed(snapshot(seq, ticker))
    assert next_check(bed)["params"]["market_tickers"] == ["B"]


def test_a_reply_that_cannot_be_read_makes_the_book_stale(bed):
    """Whatever the exchange means: the book is not offered as live."""
    command = next_check(bed)
    answer(bed, command, yes=(("0.33005", "1.00"),))
    assert bed.state("A") == "STALE"
    bed.advance(SNAPSHOT_TIMEOUT_NS / SECOND + 0.1)
    assert "A" in bed.asked_for()


def test_very_many_markets_that_cannot_be_compared_are_passed_over_in_steps():
    """A bounded number at a time."""
    bed = bed_of("Z")
    books = bed.connection.commands.books.tickers
    books.clear()
    books.update({f"T{number}": True for number in range(CHECK_LOOKS_MAX)})
    books["Z"] = True
    bed.advance(1)
    assert bed.commands() == []
    assert next_check(bed)["params"]["market_tickers"] == ["Z"]
