"""`tickerplant run` and the store that it starts: all that was published is in its files, past books included."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from processes import Plant, Settings, Simulation, free_network, wait_for
from restart_bed import log_folder, start_plant

from tickerplant.cli import main
from tickerplant.core.rows import RowMapper
from tickerplant.history import History
from tickerplant.runtime.logreader import LogReader
from tickerplant.store.duckdb_source import DuckDbSource
from tickerplant.store.parquet_folder import read_folder
from tickerplant.store.parquet_merge import check_folder

WITH_STORE: Settings = {"store": {"enabled": True, "close_s": 1}}
SETTLED_S = 0.3
"""What the exchange did is told by then; only until when the flow rests depends on it."""


@pytest.fixture
def simulation(tmp_path: Path) -> Iterator[Simulation]:
    """An exchange of 20 markets."""
    folder = tmp_path / "exchange"
    with Simulation(folder, "--markets", "20", "--rate", "300", "--window", "0") as running:
        yield running


def rest_and_look(simulation: Simulation) -> tuple[int, dict[str, tuple[list, list]]]:
    """The exchange's books at rest, and an instant at which it had them; then it goes on."""
    simulation.post("/sim/flow", action="pause")
    time.sleep(SETTLED_S)
    books, at_ns = simulation.books(), time.time_ns()
    time.sleep(SETTLED_S)
    simulation.post("/sim/flow", action="resume")
    return at_ns, books


def rows_by_table(log: Path) -> Counter[str]:
    mapper = RowMapper()
    with LogReader(log) as reader:
        while (batch := reader.read()) is not None:
            for _offset, datagram in batch.records:
                mapper.add_datagram(datagram)
    return Counter({name: len(rows) for name, rows in mapper.take().items()})


def store_process(plant: Plant, times: int) -> int:
    """The process id of the store, once it has started for the `times`-th time."""
    wait_for(lambda: len(plant.events("store_started")) >= times, "the store starting")
    return int(plant.events("companion_started")[-1]["process"])


def test_past_books_of_a_real_exchange_and_a_store_that_is_killed(
    tmp_path: Path, simulation: Simulation
) -> None:
    """At random instants the flow rests and the exchange tells its books; after the first the store is killed."""
    draw = random.Random(8)
    looked = []
    with start_plant(tmp_path, free_network(), simulation, WITH_STORE) as plant:
        plant.wait_ready()
        for number in range(3):
            running = store_process(plant, min(2, number + 1))
            time.sleep(draw.uniform(0.3, 0.9))
            looked.append(rest_and_look(simulation))
            if number == 0:
                os.kill(running, signal.SIGKILL)
        assert plant.stop() == 0
        names = [one["event"] for one in plant.events()]
    assert names.index("session_ended") < names.index("store_ended")
    assert "companion_killed" not in names
    folder = tmp_path / "state" / "store"
    assert not read_folder(folder).holes
    assert not check_folder(folder, thorough=True)
    with History(DuckDbSource(folder)) as stored:
        wanted = rows_by_table(log_folder(tmp_path))
        found = {
            name: stored.sql(f"SELECT count(*) AS n FROM {name}")["n"][0].as_py() for name in wanted
        }
        assert found == wanted
        for at_ns, books in looked:
            told = {ticker: book for ticker, book in books.items() if any(book)}
            assert len(told) >= 10
            for ticker, (bids, asks) in told.items():
                book = stored.book_at(ticker, at_ns).book
                assert (book.bids, book.asks) == (dict(bids), dict(asks)), (ticker, at_ns)
    words = ["audit", "--log", str(log_folder(tmp_path)), "--store", str(folder)]
    assert main(words) == 0
    file = read_folder(folder).files_of("bbo")[0]
    data = pq.read_table(file.path)
    pq.write_table(data.slice(1), file.path)
    assert main(words) == 1, "a row was removed by hand"
