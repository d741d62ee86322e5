"""The QuestDB backend on a real server: every row as it was, once, whatever fails in between."""

import json
import resource
import signal
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
from market_day import MarketDay
from questdb_rows import empty, http_of, rows_in_database
from store_process import rows_in_log
from tick_log import SESSION, eventually

from tickerplant.core.logformat import LogPosition
from tickerplant.core.tables import TABLES
from tickerplant.errors import StoreError, StoreUnavailableError
from tickerplant.store.arrow_tables import to_arrow
from tickerplant.store.dead_letters import DeadLetters
from tickerplant.store.follower import LogFollower
from tickerplant.store.questdb_frames import to_frame
from tickerplant.store.questdb_http import Login
from tickerplant.store.questdb_store import POSITION_FILE, QuestDbBackend
from tickerplant.store.schema_check import apply

pytestmark = pytest.mark.timeout(300)


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


def backend_of(server, folder: Path, *, batch_rows: int = 100, options: str = "") -> QuestDbBackend:
    login = Login(server.user, server.password)
    conf = f"http::addr={server.address};{options}"
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


def quote(seq: int, *, ticker: str = "A", ts_ns: int = SESSION) -> tuple:
    """A row of `bbo`."""
    return (ts_ns, ts_ns, SESSION, seq, seq, ticker, 4_200, 100, 4_300, 200, "live")


def bbo_seqs(database) -> list[int]:
    assert database.execute("SELECT wait_wal_table('bbo')") == [[True]]
    return [seq for (seq,) in database.execute("SELECT seq FROM bbo ORDER BY seq")]


@contextmanager
def following(server, log: Path, folder: Path, **options):
    """A follower, its backend not yet opened."""
    backend = backend_of(server, folder, **options)
    follower = LogFollower(log, backend, DeadLetters(folder), read_bytes=16_384)
    try:
        yield follower
    finally:
        follower.close()


def refusal(step) -> str:
    with pytest.raises(StoreUnavailableError) as error:
        step()
    return str(error.value)


def store_rest(follower: LogFollower) -> None:
    while follower.turn(0):
        pass
    follower.commit(wait=True)


def test_rows_that_the_server_or_no_column_takes_are_put_aside(questdb_server, tables, tmp_path):
    """The others of the batch are stored; a second time the reasons are the same."""
    late = quote(3, ts_ns=2**63 - 1)
    zero = quote(4, ticker="a\0b")
    early = quote(5, ts_ns=-1)
    large = (*quote(6)[:3], 2**63, *quote(6)[4:])
    batch = {"bbo": [quote(1), late, quote(2), zero, early, large, quote(7)], "tickers": []}
    words = {
        late: "timestamp overflow",
        zero: "Could not parse entire line",
        early: "ts_recv is before 1970",
        large: "too large|too big|out of bounds|Value 9223372036854775808",
    }
    for folder in (tmp_path / "first", tmp_path / "again"):
        backend = backend_of(questdb_server, folder)
        backend.open()
        backend.take(batch, LogPosition(7, 1, 900), 0)
        committed = backend.commit(wait=True)
        backend.close()
        assert committed.position == LogPosition(7, 1, 900)
        assert {one.row for one in committed.rejected} == set(words)
        for _table, row, reason in committed.rejected:
            assert any(word in reason for word in words[row].split("|")), reason
    assert bbo_seqs(tables) == [1, 2, 7]
    assert backend.counters()["rows_rejected"] == 4


def test_a_row_is_a_dead_letter_before_the_log_moves_past_it(questdb_server, tables, tmp_path):
    backend = backend_of(questdb_server, tmp_path)
    backend.open()
    backend.take({"bbo": [quote(1), quote(2, ts_ns=2**63 - 1)]}, LogPosition(7, 1, 900), 0)
    committed = backend.commit(wait=True)
    assert len(committed.rejected) == 1
    # It dies here: nobody has written the letter down.
    assert not (tmp_path / POSITION_FILE).exists()
    DeadLetters(tmp_path).add_rows(committed.rejected)
    backend.close()
    (line,) = (tmp_path / "dead-letters.jsonl").read_text().splitlines()
    assert json.loads(line)["row"]["ts_recv"] == 2**63 - 1
    assert "timestamp overflow" in json.loads(line)["reason"]
    assert backend_of(questdb_server, tmp_path).open() == LogPosition(7, 1, 900)


def test_too_many_refusals_are_not_the_rows_fault(questdb_server, tables, tmp_path, monkeypatch):
    monkeypatch.setattr("tickerplant.store.questdb_store.QUESTDB_REFUSED_PER_BATCH_MAX", 2)
    backend = backend_of(questdb_server, tmp_path)
    backend.open()
    rows = [quote(seq, ts_ns=2**63 - 1) for seq in range(5)]
    backend.take({"bbo": rows}, LogPosition(7, 1, 900), 0)
    assert "refuses too many rows" in refusal(lambda: backend.commit(wait=True))
    assert backend.discard() is None
    backend.close()


def test_another_schema_is_waited_for_never_changed(questdb_server, tables, log, tmp_path):
    """A column is dropped before it starts, and another while it writes; after `schema apply` it goes on."""
    tables.execute("ALTER TABLE bbo DROP COLUMN state")
    tables.execute("SELECT wait_wal_table('bbo')")
    with following(questdb_server, log, tmp_path / "store") as follower:
        told = refusal(follower.open)
        assert "table bbo lacks column state" in told
        assert "`tickerplant schema apply`" in told
        apply(tables, 0)
        assert follower.open() is None
        tables.execute("ALTER TABLE trades DROP COLUMN size_e2")
        tables.execute("SELECT wait_wal_table('trades')")
        assert "table trades lacks column size_e2" in refusal(lambda: store_rest(follower))
        assert "table trades lacks column size_e2" in refusal(follower.reopen)
        assert "size_e2" not in [row[0] for row in tables.execute("SHOW COLUMNS FROM trades")]
        apply(tables, 0)
        follower.reopen()
        store_rest(follower)
    wanted = rows_in_log(log)
    # Rows that were there before the column was dropped are written again only if their place was not yet known.
    assert rows_in_database(tables).keys() == wanted.keys()
    for name in wanted.keys() - {"trades"}:
        assert rows_in_database(tables)[name] == wanted[name]
    assert not (tmp_path / "store" / "dead-letters.jsonl").exists()


def test_a_suspended_table_is_noticed_and_resumed(questdb_server, tables, log, tmp_path):
    with following(questdb_server, log, tmp_path / "store") as follower:
        follower.open()
        tables.execute("ALTER TABLE bbo SUSPEND WAL WITH 28, 'no space left'")
        follower.backend.upkeep()
        assert follower.backend.gauges()["suspended_tables"] == 1
        told = refusal(lambda: store_rest(follower))
        assert "table bbo is suspended" in told
        assert "no space left" in told
        follower.reopen()
        assert follower.backend.counters()["resumed_tables"] == 1
        store_rest(follower)
        follower.backend.upkeep()
        assert follower.backend.gauges()["suspended_tables"] == 0
    assert rows_in_database(tables) == rows_in_log(log)


def test_a_full_disk_of_the_server(questdb_server, tables, log, tmp_path):
    """The kernel refuses to let its files grow: at times the request fails, at times a table is suspended."""
    troubles: list[str] = []
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    with following(questdb_server, log, tmp_path / "store", batch_rows=50) as follower:
        follower.open()
        try:
            for turn in range(10_000):
                if turn % 3 == 0 and len(troubles) < 4:
                    limit = (1_000, 100_000)[len(troubles) % 2]
                    resource.prlimit(
                        questdb_server.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY)
                    )
                try:
                    more = follower.turn(0)
                    follower.commit(wait=True)
                    follower.backend.upkeep()
                    if not more and not follower.backend.suspended:
                        break
                except StoreUnavailableError as error:
                    troubles.append(str(error))
                    resource.prlimit(questdb_server.pid, resource.RLIMIT_FSIZE, unlimited)
                    eventually(lambda: reopens(follower), "the server's recovery", 30)
        finally:
            resource.prlimit(questdb_server.pid, resource.RLIMIT_FSIZE, unlimited)
        # The last rows may have suspended a table after they were acknowledged.
        eventually(lambda: reopens(follower) and is_applied(tables), "all rows applied", 30)
    # Which of the two comes first, and whether the other comes at all, is up to the server.
    assert any("space" in one or "suspended" in one for one in troubles), troubles
    assert rows_in_database(tables) == rows_in_log(log)


def is_applied(database) -> bool:
    try:
        for name in TABLES:
            database.execute(f"SELECT wait_wal_table('{name}')")
    except StoreError:
        return False
    return True


def reopens(follower: LogFollower) -> bool:
    try:
        follower.reopen()
    except StoreUnavailableError:
        return False
    return True


def test_a_server_that_hangs(questdb_server, tables, log, tmp_path):
    """It takes the request and says nothing: what is in doubt is sent again."""
    options = "request_timeout=300;request_min_throughput=0;"
    with following(questdb_server, log, tmp_path / "store", options=options) as follower:
        follower.open()
        questdb_server.signal(signal.SIGSTOP)
        try:
            assert "QuestDB http://127.0.0.1" in refusal(lambda: store_rest(follower))
        finally:
            questdb_server.signal(signal.SIGCONT)
        eventually(lambda: reopens(follower), "an answer", 30)
        store_rest(follower)
    assert rows_in_database(tables) == rows_in_log(log)


def test_a_wrong_password_is_waited_out(questdb_server, tables, log, tmp_path):
    passwords = ["wrong", questdb_server.password]
    backend = QuestDbBackend(
        f"http::addr={questdb_server.address};",
        lambda: Login(questdb_server.user, passwords.pop(0)),
        tmp_path,
        batch_ns=0,
        batch_rows=100,
    )
    assert f"refuses user {questdb_server.user}" in refusal(backend.open)
    assert backend.open() is None
    backend.close()


def test_another_database_is_filled_from_the_start(questdb_server, tables, tmp_path):
    def opened():
        backend = backend_of(questdb_server, tmp_path)
        position = backend.open()
        return backend, position

    backend, position = opened()
    assert position is None
    with pytest.raises(StoreError, match="locked by another store"):
        backend_of(questdb_server, tmp_path).open()
    backend.take({"bbo": [quote(1)]}, LogPosition(7, 1, 900), 0)
    backend.commit(wait=True)
    backend.close()
    backend, position = opened()
    assert position == LogPosition(7, 1, 900)
    backend.close()
    kept = json.loads((tmp_path / POSITION_FILE).read_text())
    for content in (json.dumps({**kept, "database_id": "f" * 16}), "{", ""):
        (tmp_path / POSITION_FILE).write_text(content)
        backend, position = opened()
        assert position is None
        backend.close()


def test_a_place_that_cannot_be_kept_is_told(questdb_server, tables, tmp_path):
    folder = tmp_path / "store"
    backend = backend_of(questdb_server, folder)
    backend.open()
    backend.take({"bbo": [quote(1)]}, LogPosition(7, 1, 900), 0)
    backend.commit(wait=True)
    (folder / POSITION_FILE).with_suffix(".new").mkdir()
    assert POSITION_FILE in refusal(backend.commit)
    (folder / POSITION_FILE).with_suffix(".new").rmdir()
    # Not kept: taken again.
    assert backend.discard() is None
    backend.close()


def test_levels_of_a_piece_of_an_array_are_its_own():
    """As rows that come from the archive are; of two empty sides the server's export makes none."""
    table = TABLES["book_snapshots"]
    levels = [((1.0, 2.0), (3.0, 4.0)), (), ((5.0,), (6.0,)), ((), ()), ((7.0, 8.0), (1.0, 2.0))]
    whole = to_arrow(table, [(n, 1, n, "A", one, one, 7) for n, one in enumerate(levels)])
    for start in range(len(levels)):
        for piece in (whole.slice(start, 2), whole.slice(start)):
            found = [one.tolist() for one in to_frame(table, piece)["bids"]]
            assert found == [one or [[], []] for one in piece["bids"].to_pylist()]
