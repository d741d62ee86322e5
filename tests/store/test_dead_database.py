"""A plant whose store's database hangs loses nothing and does not wait; how fast it is `make deadbench` judges."""

import asyncio

import pytest

from tickerplant.bench.dead_database import Database, measure, rows_of
from tickerplant.bench.report import table

pytestmark = pytest.mark.timeout(240)
"""Five processes are started; `test_million` kills the server as well."""


def test_the_plant_publishes_and_logs_everything_whatever_the_database_does() -> None:
    results = asyncio.run(
        measure(
            rounds=1,
            seconds=0.5,
            per_second=2_000,
            states=(Database.ALIVE, Database.HANGING),
            markets=50,
            is_light=True,
        )
    )
    runs = {one["database"]: one for one in results["runs"]}
    assert set(runs) == {Database.ALIVE, Database.HANGING}
    for one in runs.values():
        assert one["updates"] == 1_000
        assert one["gaps"] == one["datagrams_lost"] == one["unlogged_datagrams"] == 0
        # It kept the pace: it did not wait for a store that waits.
        assert one["frames_per_s"] > 1_000
    assert results["stored"] == results["updates"] == 2_000
    # It may have been looked at while it still started: so not beside itself.
    assert max(one["store_mib"] for one in results["runs"]) < 400
    assert "memory of the store" in table(rows_of(results))
