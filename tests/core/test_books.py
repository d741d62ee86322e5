"""The states of a book: the table is total, and the flags of an entry follow it."""

import itertools

import pytest

from tickerplant.core.books import TRANSITIONS, BookEntry, BookEvent
from tickerplant.core.messages import BookState

OPEN_STATES = [state for state in BookState if state is not BookState.CLOSED]


def test_the_table_is_total_over_open_states():
    """Every event has a next state in every open state; CLOSED has none."""
    assert set(TRANSITIONS) == set(itertools.product(OPEN_STATES, BookEvent))


@pytest.mark.parametrize("state", OPEN_STATES)
def test_where_each_event_leads(state):
    """A snapshot makes LIVE from anywhere, a close CLOSED, a fault never leaves a LIVE book LIVE."""
    assert TRANSITIONS[state, BookEvent.SNAPSHOT] is BookState.LIVE
    assert TRANSITIONS[state, BookEvent.CLOSE] is BookState.CLOSED
    after_fault = TRANSITIONS[state, BookEvent.FAULT]
    assert after_fault is (BookState.SYNCING if state is BookState.SYNCING else BookState.STALE)


@pytest.mark.parametrize("event", BookEvent)
def test_closed_is_the_end(event):
    """An event after CLOSE is our bug and loud."""
    entry = BookEntry("A")
    entry.transit(BookEvent.CLOSE)
    with pytest.raises(KeyError):
        entry.transit(event)


@pytest.mark.parametrize("events", list(itertools.product(BookEvent, repeat=3)))
def test_live_flag_follows_the_state(events):
    """`live` is what the hot path reads, and `transit` returns where it came from."""
    entry = BookEntry("A")
    assert (entry.state, entry.live, entry.in_sync) == (BookState.SYNCING, False, False)
    for event in events:
        if entry.state is BookState.CLOSED:
            break
        before = entry.state
        assert entry.transit(event) is before
        assert entry.state is TRANSITIONS[before, event]
        assert entry.live == (entry.state is BookState.LIVE)
