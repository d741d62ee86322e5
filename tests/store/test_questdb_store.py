"""The QuestDB backend on a real server: every row as it was, once, whatever fails in between."""

from collections import Counter
from pathlib import Path

import pytest
from market_day import MarketDay
from questdb_rows import empty, http_of, rows_in_database
from store_process import rows_in_log
from tick_log import SESSION

from tickerplant.core.logformat import LogPosition
from tickerplant.core.tables import TABLES
from tickerplant.store.dead_letters import DeadLetters
from tickerplant.store.follower import LogFollower
from tickerplant.store.questdb_http import Login
from tickerplant.store.questdb_store import POSITION_FILE, QuestDbBackend
from tickerplant.store.schema_check import apply


@pytest.fixture(scope="module")
def database(questdb_server):
    """The shared server with an empty schema; each test leaves the tables empty."""
    server = http_of(questdb_server)
    empty(server)
    apply(server, 0)
    yield server
    empty(server)


@pytest.fixture
def tables(database):
    yield database
    for name in TABLES:
        database.execute(f"TRUNCATE TABLE {name}")


@pytest.fixture
def log(tmp_path) -> Path:
    folder = tmp_path / "ticklog"
    with MarketDay(folder, markets=4) as day:
        day.run(300)
        day.close()
    return folder


def backend_of(
    server, folder: Path, *, batch_rows: int = 100, password: str = ""
) -> QuestDbBackend:
    login = Login(server.user, password or server.password)
    conf = f"http::addr={server.address};"
    return QuestDbBackend(conf, lambda: login, folder, batch_ns=10**9, batch_rows=batch_rows)


def store_all(log: Path, backend: QuestDbBackend) -> LogFollower:
    follower = LogFollower(log, backend, DeadLetters(backend.folder), read_bytes=16_384)
    follower.open()
    while follower.turn(0):
        pass
    follower.commit(wait=True)
    follower.close()
    return follower


def test_every_row_of_the_log_is_in_the_database_as_it_was(questdb_server, tables, log, tmp_path):
    follower = store_all(log, backend_of(questdb_server, tmp_path / "store"))
    wanted = rows_in_log(log)
    assert rows_in_database(tables) == wanted
    assert follower.rows == sum(map(Counter.total, wanted.values())) > 400
    assert follower.backend.batches > 2
    # Its place is known: nothing is read again, and written again nothing changes.
    again = store_all(log, backend_of(questdb_server, tmp_path / "store"))
    assert again.rows == 0
    (tmp_path / "store" / POSITION_FILE).unlink()
    assert store_all(log, backend_of(questdb_server, tmp_path / "store")).rows == follower.rows
    assert rows_in_database(tables) == wanted


def test_values_of_every_type_and_none(questdb_server, tables, tmp_path):
    """A row of each table with a value in every column, and one with as few as there may be."""
    samples = {
        "time": SESSION + 123,
        "symbol": 'é,=" \\\n',
        "text": "a\nb\\\"'ü",
        "integer": -(2**53) - 1,
    }
    rows, wanted = {}, {}
    for name, table in TABLES.items():
        full, bare = [], []
        for number, column in enumerate(table.columns):
            kind = column.type.value
            value = {**samples, "boolean": True, "levels": ((4_200, 4_100), (100, 12_345))}[kind]
            full.append(value + number if kind in ("time", "integer") else value)
            is_needed = column.name in table.keys or column.name in ("session", "seq", "is_block")
            bare.append(
                {"symbol": "", "text": "", "boolean": False}.get(kind, 5) if is_needed else None
            )
        rows[name] = [tuple(full), tuple(bare)]
        wanted[name] = Counter(rows[name])
    backend = backend_of(questdb_server, tmp_path)
    backend.open()
    assert backend.take(rows, LogPosition(7, 1, 900), 0) == []
    committed = backend.commit(wait=True)
    backend.close()
    assert committed == (LogPosition(7, 1, 900), [])
    assert rows_in_database(tables) == wanted
