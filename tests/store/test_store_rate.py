"""The parts of the store's benchmark; what it measures is judged by `make storebench`, not here."""

import pytest

from tickerplant.bench.store_load import Feed
from tickerplant.bench.store_rate import lags_ms, report
from tickerplant.core.rows import RowMapper
from tickerplant.errors import StoreError
from tickerplant.runtime.logreader import LogReader
from tickerplant.runtime.ticklog import open_ticklog
from tickerplant.store.book_state import books_at

MILLISECOND_NS = 1_000_000
SESSION = 1_790_000_000_000_000_000


def test_the_lag_of_a_row_ends_with_the_first_look_that_shows_it() -> None:
    sent = [(1, 5), (2, 20), (3, 21), (4, 40)]
    sent = [(seq, at * MILLISECOND_NS) for seq, at in sent]
    seen = [(10, 0), (25, 1), (30, 3), (50, 3)]
    looks = [(at * MILLISECOND_NS, seq) for at, seq in seen]
    # The first was sent before the first look, the last never seen: 2 after 10 ms, 3 after 9 ms.
    assert lags_ms(sent, looks) == {"p50": 9.0, "p99": 9.0, "max": 10.0, "count": 2}
    with pytest.raises(StoreError, match="too busy"):
        lags_ms(sent, looks[:1])


def test_the_load_is_a_plant_s(tmp_path) -> None:
    """Every book is live, and every message of the log is a row."""
    with open_ticklog(tmp_path) as ticklog:
        assert ticklog.begin_session(SESSION, SESSION)
        feed = Feed(ticklog, SESSION)
        for turn in range(50):
            feed.send(25, SESSION + turn)
    mapper = RowMapper()
    with LogReader(tmp_path) as reader:
        while (batch := reader.read()) is not None:
            for _offset, datagram in batch.records:
                mapper.add_datagram(datagram)
        position = reader.position
    assert mapper.row_count == feed.messages == 50 * 25 + 4_000
    state = books_at(tmp_path, position)
    assert state.mismatches == state.holes == 0
    assert sum(market.book.level_count for market in state.markets.values()) > 500


def test_a_missed_budget_is_told():
    fast = {"rows_per_s": 200_000.0, "us_per_row": 3.0}
    results = {
        "client": fast,
        "store": fast,
        "store_without_books": {**fast, "rows_per_s": 119_000.0},
        "messages_per_s": 10_000,
        "lag_ms": {"p50": 60.0, "p99": 251.0},
    }
    assert [row.met for row in report(results)] == [None, True, False, False]
    assert report(results)[2].value.endswith("0.59x the client")
