"""The same questions to QuestDB and to Parquet files: the same answers."""

import json
import random
import socket

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from market_day import MarketDay
from questdb_rows import empty, http_of

from tickerplant import history
from tickerplant.audit.audited_store import open_questdb
from tickerplant.audit.findings import Findings
from tickerplant.audit.store_audit import StoreAudit
from tickerplant.cli import main
from tickerplant.config import StoreConfig
from tickerplant.core.tables import BBO
from tickerplant.errors import CredentialsError, NoSuchBookError, StoreUnavailableError
from tickerplant.runtime.logfolder import segment_names, store_position
from tickerplant.runtime.logreader import LogReader
from tickerplant.store import questdb_source
from tickerplant.store.dead_letters import DeadLetters
from tickerplant.store.duckdb_source import DuckDbSource
from tickerplant.store.follower import LogFollower
from tickerplant.store.parquet_backend import ParquetBackend
from tickerplant.store.questdb_http import Login, QuestDbHttp
from tickerplant.store.questdb_source import QuestDbSource
from tickerplant.store.questdb_store import QuestDbBackend
from tickerplant.store.schema_check import apply
from tickerplant.store.service import CONSUMER
from tickerplant.store.source import in_row_order

TABLES = ("trades", "bbo", "orderbook_deltas", "tickers")
MILLISECOND_NS = 1_000_000


def store_all(log, backend):
    follower = LogFollower(log, backend, DeadLetters(backend.folder))
    follower.open()
    while follower.turn(0):
        pass
    follower.commit(wait=True)
    follower.close()


@pytest.fixture(scope="module")
def day(tmp_path_factory, questdb_server):
    """A day of trading, in both."""
    state = tmp_path_factory.mktemp("state")
    with MarketDay(state / "ticklog") as running:
        running.run(400)
        running.close()
    server = http_of(questdb_server)
    empty(server)
    apply(server, 0)
    login = Login(questdb_server.user, questdb_server.password)
    conf = f"http::addr={questdb_server.address};"
    store_all(
        state / "ticklog",
        QuestDbBackend(conf, lambda: login, state / "questdb", batch_ns=10**9, batch_rows=200),
    )
    for name in TABLES:
        assert server.execute(f"SELECT wait_wal_table('{name}')") == [[True]]
    store_all(state / "ticklog", ParquetBackend(state / "store", close_ns=10**18, close_rows=400))
    (state / "password").write_text(questdb_server.password)
    (state / "password").chmod(0o600)
    running.state, running.conf, running.user = state, conf, questdb_server.user
    yield running
    empty(server)


@pytest.fixture
def questdb(day):
    options = (
        "store.backend=questdb",
        f"store.conf={day.conf}",
        f"store.username={day.user}",
        f"store.password_path={day.state / 'password'}",
        f"state.directory={day.state}",
    )
    with history.open_history(None, *options) as opened:
        opened.options = [part for one in options for part in ("--set", one)]
        yield opened


@pytest.fixture
def files(day):
    with history.History(DuckDbSource(day.state / "store")) as opened:
        yield opened


def in_order(rows: pa.Table) -> pa.Table:
    """One image is many rows of one seq, in any order."""
    return rows.sort_by([(name, "ascending") for name in ("seq", "side", "price_e4")])


def test_rows_are_the_same(day, questdb, files):
    ticker = day.tickers[0]
    start_ns, end_ns = day.changes[20][0], day.changes[-20][0]
    for of in (None, ticker, day.tickers[:2]):
        for times in ((None, None), (start_ns, end_ns)):
            assert questdb.trades(of, *times) == files.trades(of, *times)
            assert questdb.bbo(of, *times) == files.bbo(of, *times)
            assert in_order(questdb.deltas(of, *times)) == in_order(files.deltas(of, *times))
    assert questdb.tickers() == files.tickers()
    assert questdb.trades(ticker).num_rows
    assert not questdb.trades("x' OR 1 = 1 --").num_rows
    assert not questdb.trades([]).num_rows


def test_candles_and_quotes_are_the_same(day, questdb, files):
    assert questdb.ohlc(period="1m") == files.ohlc(period="1m")
    assert questdb.ohlc(day.tickers[0], period="1h").num_rows == 1
    draw = random.Random(2)
    for _ in range(5):
        at_ns = draw.randrange(day.changes[0][0] + 50 * MILLISECOND_NS, day.changes[-1][0])
        ticker = draw.choice(day.tickers)
        assert questdb.bbo_at(ticker, at_ns) == files.bbo_at(ticker, at_ns)


def test_books_are_those_of_the_exchange(day, questdb):
    draw = random.Random(7)
    for _ in range(8):
        ticker = draw.choice(day.tickers)
        at_ns = draw.randrange(day.changes[0][0] + 50 * MILLISECOND_NS, day.changes[-1][0])
        book = questdb.book_at(ticker, at_ns).book
        levels = {(0, price_e4): size_e2 for price_e4, size_e2 in book.bids.items()}
        levels |= {(1, price_e4): size_e2 for price_e4, size_e2 in book.asks.items()}
        assert levels == day.book_at(ticker, at_ns)
    with pytest.raises(NoSuchBookError):
        questdb.book_at("KXNONE", day.now_ns)


def test_the_command_asks_the_server(day, questdb, capsys, tmp_path):
    sql = "SELECT ticker, count() AS n FROM trades GROUP BY ticker ORDER BY ticker"
    assert main(["sql", sql, "--format", "json", *questdb.options]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {one["ticker"]: one["n"] for one in told} == {
        ticker: questdb.trades(ticker).num_rows for ticker in day.tickers
    }
    path = tmp_path / "deltas.parquet"
    words = ["SELECT * FROM orderbook_deltas", "--format", "parquet", "--output", str(path)]
    assert main(["sql", *words, *questdb.options]) == 0
    assert pq.read_table(path).num_rows == questdb.deltas().num_rows
    for refused in (
        "SELECT * FROM nowhere",
        "DROP TABLE trades",
        "SELECT 1; DROP TABLE trades",
        "WITH t AS (SELECT 1) UPDATE trades SET seq = 0",
    ):
        assert main(["sql", refused, *questdb.options]) == 1
        errors = capsys.readouterr().err
        assert errors.count("\n") == 1
    assert questdb.trades().num_rows


@pytest.mark.parametrize("small_rows", [1_000, -1], ids=["in one request", "as a large answer"])
def test_values_of_every_kind_and_none_come_as_they_are(questdb, monkeypatch, small_rows):
    """Short texts, quotes, line breaks, empty and null, the largest integer, arrays, nanoseconds."""
    monkeypatch.setattr(questdb_source, "SQL_SMALL_ROWS", small_rows)
    server = questdb.source.server
    server.execute(
        "CREATE TABLE kinds (ts TIMESTAMP_NS, s SYMBOL, v VARCHAR, l LONG, b BOOLEAN, a DOUBLE[][]) "
        "TIMESTAMP(ts) PARTITION BY DAY WAL"
    )
    try:
        for values in (
            "123456789Z','a\"b,c','short',9223372036854775807,true,ARRAY[[1.0,2.5],[3.0,4.0]]",
            "200000000Z',null,null,null,false,null",
            "300000000Z','','né\nb \"q\" \\n',-5,false,null",
        ):
            server.execute(f"INSERT INTO kinds VALUES ('2026-09-21T14:13:20.{values})")
        assert server.execute("SELECT wait_wal_table('kinds')") == [[True]]
        found = questdb.sql("SELECT * FROM kinds ORDER BY ts")
    finally:
        server.execute("DROP TABLE kinds")
    assert found["ts"].cast(pa.int64())[0].as_py() % 1_000_000_000 == 123_456_789
    assert found.drop_columns("ts").to_pylist() == [
        {"s": 'a"b,c', "v": "short", "l": 2**63 - 1, "b": True, "a": [[1.0, 2.5], [3.0, 4.0]]},
        {"s": None, "v": None, "l": None, "b": False, "a": None},
        {"s": "", "v": 'né\nb "q" \\n', "l": -5, "b": False, "a": None},
    ]
    assert not questdb.sql("SELECT * FROM book_snapshots").num_rows


def test_a_connection_that_the_server_has_closed_meanwhile_is_not_missed(questdb):
    assert questdb.trades().num_rows
    (kept,) = questdb.source._reader._idle
    kept.sock.shutdown(socket.SHUT_RDWR)
    assert questdb.trades().num_rows


def test_rows_are_put_in_order_only_where_they_are_not(questdb):
    rows = questdb.bbo()
    assert in_row_order(BBO, rows) is rows
    mixed = rows.take(random.Random(3).sample(range(rows.num_rows), rows.num_rows))
    assert in_row_order(BBO, mixed) == rows
    for count in (0, 1):
        assert in_row_order(BBO, rows.slice(0, count)).num_rows == count
    absent = rows.set_column(
        rows.column_names.index("seq"), "seq", pa.nulls(rows.num_rows, pa.int64())
    )
    assert in_row_order(BBO, absent)["ts_recv"] == rows["ts_recv"]


def test_the_audit_takes_the_server_in(day, questdb):
    """Every row of the log is there; a value changed by hand is named."""
    log = day.state / "ticklog"
    first = segment_names(log)[0]
    with LogReader(log) as reader:
        while reader.read() is not None:
            pass
        store_position(log, CONSUMER, reader.position)
    config = StoreConfig(
        backend="questdb",
        conf=day.conf,
        username=day.user,
        password_path=str(day.state / "password"),
    )

    def audit():
        findings = Findings(first.session)
        store = open_questdb(config, log)
        figures = StoreAudit(findings, log, first, store).run()
        store.source.close()
        return findings.kept, figures

    findings, figures = audit()
    assert findings == []
    assert figures["rows"] > 500
    assert figures["messages not stored yet"] == 0
    server = questdb.source.server
    server.execute("UPDATE trades SET size_e2 = size_e2 + 1 WHERE seq = 3")
    (finding,), _ = audit()
    assert finding.what == "rows of trades are other than in the log"
    assert finding.from_seq == finding.to_seq == 3
    server.execute("UPDATE trades SET size_e2 = size_e2 - 1 WHERE seq = 3")


def test_a_server_that_is_not_there_is_told(day):
    nowhere = QuestDbSource(QuestDbHttp("http::addr=127.0.0.1:9;"))
    with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:9"):
        nowhere.query("SELECT 1")
    stranger = QuestDbSource(QuestDbHttp(day.conf, Login(day.user, "wrong")))
    with pytest.raises(CredentialsError, match=r"store\.username"):
        stranger.query("SELECT 1")
