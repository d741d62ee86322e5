"""The benchmark of questions asks for rows that are there; how long it takes is judged by `make querybench`."""

from questdb_rows import empty, http_of

from tickerplant.bench.query_times import BUSIEST, fill, measure, questions
from tickerplant.history import History
from tickerplant.store.arrow_tables import DAY_NS
from tickerplant.store.questdb_source import QuestDbSource
from tickerplant.store.schema_check import apply

END_NS = 1_790_000_000_000_000_000


def test_every_question_of_a_day_has_rows(questdb_server) -> None:
    server = http_of(questdb_server)
    empty(server)
    apply(server, 0)
    try:
        counts = fill(server, 40_000, END_NS - 4 * DAY_NS, END_NS)
        assert counts == {"orderbook_deltas": 28_000, "bbo": 8_000, "trades": 4_000}
        with History(QuestDbSource(server)) as stored:
            timings = [measure(*one, 2) for one in questions(stored, BUSIEST, END_NS)]
    finally:
        empty(server)
    assert len(timings) == 12
    # Minutes of so few rows may have none.
    assert [one for one in timings if not one.rows and "5 minutes" not in one.question] == []
    assert all(0 < one.p50_ms <= one.p99_ms for one in timings)
