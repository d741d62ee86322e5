"""`tickerplant schema` against a real server: made from nothing, made again, and every way to differ."""

import random
import socket
import threading
from pathlib import Path

import pytest
from tick_log import eventually

from tickerplant.cli import main
from tickerplant.core.tables import TABLES
from tickerplant.errors import CredentialsError, StoreError, StoreUnavailableError
from tickerplant.store.questdb_http import Login, QuestDbHttp, read_login
from tickerplant.store.schema import (
    EXPIRING,
    MATERIALIZED_VIEWS,
    SCHEMA_VERSION,
    VIEWS,
    create_table,
)
from tickerplant.store.schema_check import Severity, apply, blocking, compare, read_schema

pytestmark = pytest.mark.timeout(300)

START_NS = 1_790_000_000_000_000_000


def http_of(server) -> QuestDbHttp:
    return QuestDbHttp(f"http::addr={server.address};", Login(server.user, server.password))


@pytest.fixture
def database(questdb_server):
    """The shared server, emptied."""
    server = http_of(questdb_server)
    empty(server)
    yield server
    empty(server)


def empty(server: QuestDbHttp) -> None:
    drops = {"V": "VIEW", "M": "MATERIALIZED VIEW", "T": "TABLE"}
    found = dict(server.execute("SELECT table_name, table_type FROM tables()"))
    for name, kind in sorted(found.items(), key=lambda item: "VMT".index(item[1])):
        server.execute(f"DROP {drops[kind]} {name}")


def differences(server: QuestDbHttp, ttl_days: int = 90) -> list[str]:
    return [str(one) for one in compare(read_schema(server), ttl_days)]


def test_an_empty_database_gets_everything_and_a_second_time_nothing(database):
    told: list[str] = []
    assert {one.severity for one in compare(read_schema(database), 90)} == {Severity.ADDITION}
    apply(database, 90, told.append)
    assert len(told) == 1 + len(TABLES) + len(MATERIALIZED_VIEWS) + len(VIEWS)
    live = read_schema(database)
    assert compare(live, 90) == []
    assert live.versions == ((SCHEMA_VERSION, live.database_id),)
    assert len(live.database_id) == 16
    assert apply(database, 90, told.append) == []
    assert read_schema(database) == live
    for name, table in TABLES.items():
        found = live.tables[name]
        assert [column.name for column in found.columns] == list(table.column_names)
        assert (found.time, found.partition, found.is_wal) == (table.time, table.partition, True)
        assert {column.name for column in found.columns if column.is_key} == set(table.keys)
        assert found.ttl[0] == (90 if name in EXPIRING else 0)
        assert found.columns[0].type == "TIMESTAMP_NS"


def test_views_show_dollars_and_candles_are_right(database):
    apply(database, 0)
    chance = random.Random(5)
    trades = [
        (
            START_NS + minute * 60_000_000_000 + index * 1_000_000,
            chance.randrange(1, 9_999),
            chance.randrange(1, 10**6),
        )
        for minute in range(3)
        for index in range(4)
    ]
    for index, (ts, price_e4, size_e2) in enumerate(trades):
        database.execute(
            "INSERT INTO trades (ts, ts_recv, ticker, trade_id, price_e4, size_e2) "
            f"VALUES ({ts}::timestamp_ns, {ts}::timestamp_ns, 'A', 't{index}', {price_e4}, {size_e2})"
        )
    assert database.execute("SELECT wait_wal_table('trades')") == [[True]]
    shown = database.execute("SELECT price, size FROM trades_v")
    assert [(round(price * 10_000), round(size * 100)) for price, size in shown] == [
        trade[1:] for trade in trades
    ]
    for sample_s, name in ((60, "ohlc_1m"), (3_600, "ohlc_1h"), (86_400, "ohlc_1d")):
        buckets: dict[int, list] = {}
        for ts, price_e4, size_e2 in trades:
            buckets.setdefault(ts // (sample_s * 10**9), []).append((price_e4, size_e2))
        wanted = [
            [
                one[0][0],
                max(p for p, _ in one),
                min(p for p, _ in one),
                one[-1][0],
                sum(s for _, s in one),
                len(one),
            ]
            for _, one in sorted(buckets.items())
        ]
        assert wait_for_rows(database, name, wanted) == wanted


def wait_for_rows(database, name, wanted):
    """The candles, once the view has followed, or what there is after a while."""
    query = f"SELECT open_e4, high_e4, low_e4, close_e4, volume_e2, trade_count FROM {name}"
    eventually(lambda: database.execute(query) == wanted, name, 30)
    return database.execute(query)


def test_an_older_database_gets_the_columns_it_lacks_and_keeps_its_rows(database):
    apply(database, 30)
    database.execute("ALTER TABLE bbo DROP COLUMN ask_size_e2")
    database.execute("ALTER TABLE tickers SET TTL 5 DAYS")
    database.execute(
        f"INSERT INTO bbo (ts_recv, session, seq, ticker) VALUES ({START_NS}::timestamp_ns, 1, 2, 'A')"
    )
    for name in ("bbo", "tickers"):
        database.execute(f"SELECT wait_wal_table('{name}')")
    # The view over the column is gone with it, or no longer valid.
    found = differences(database, 30)
    assert any(
        "table bbo lacks column ask_size_e2" in one and "ADD COLUMN ask_size_e2 LONG" in one
        for one in found
    )
    assert any("tickers keeps rows for 5 days, it should be for 30 days" in one for one in found), (
        found
    )
    assert [one.text for one in blocking(compare(read_schema(database), 30))] == [
        "table bbo lacks column ask_size_e2"
    ]
    apply(database, 30)
    assert differences(database, 30) == []
    assert database.execute("SELECT session, seq, ask_size_e2 FROM bbo") == [[1, 2, None]]
    assert len(read_schema(database).versions) == 1


FOREIGN = {
    "other columns": "CREATE TABLE trades (ts TIMESTAMP_NS, ticker SYMBOL, trade_id VARCHAR) "
    "TIMESTAMP(ts) PARTITION BY DAY WAL DEDUP UPSERT KEYS(ts, ticker, trade_id)",
    "another type": create_table(TABLES["trades"], 0).replace("price_e4 LONG", "price_e4 DOUBLE"),
    "other keys": create_table(TABLES["trades"], 0).replace(
        "KEYS(ts, ticker, trade_id)", "KEYS(ts)"
    ),
    "no keys": create_table(TABLES["trades"], 0).partition(" DEDUP")[0],
    "other partitions": create_table(TABLES["trades"], 0).replace(
        "PARTITION BY DAY", "PARTITION BY MONTH"
    ),
    "another time": create_table(TABLES["trades"], 0).replace("ts TIMESTAMP_NS,", "ts TIMESTAMP,"),
    "a view": "CREATE VIEW trades AS (SELECT 1 price)",
    "a newer version": "CREATE TABLE schema_version AS "
    "(SELECT 0::timestamp_ns ts, 99L version, 'x'::varchar database_id) "
    "TIMESTAMP(ts) PARTITION BY YEAR WAL",
    "versions of something else": "CREATE TABLE schema_version (ts TIMESTAMP_NS, name VARCHAR) "
    "TIMESTAMP(ts) PARTITION BY YEAR WAL",
}
WORDS = {
    "other columns": "table trades is not ours: it lacks ts_recv, session",
    "another type": "column price_e4 has type DOUBLE, it should be LONG",
    "other keys": "DEDUP keys: ts, it should be ticker, trade_id, ts",
    "no keys": "DEDUP keys: none, it should be",
    "other partitions": "partitions: MONTH, it should be DAY",
    "another time": "column ts has type TIMESTAMP, it should be TIMESTAMP_NS",
    "a view": "trades is a view",
    "a newer version": "version 99 of the schema, this program knows",
    "versions of something else": "schema_version is not ours",
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_is_not_ours_is_told_and_left_alone(database, case):
    database.execute(FOREIGN[case])
    if case == "a newer version":
        database.execute("SELECT wait_wal_table('schema_version')")
    before = read_schema(database)
    with pytest.raises(StoreError, match=WORDS[case]) as refusal:
        apply(database, 90)
    assert "nothing was changed" in str(refusal.value)
    assert any(one.startswith("! ") and WORDS[case] in one for one in differences(database))
    assert read_schema(database) == before


def test_a_view_of_ours_is_renewed_a_materialized_one_is_not(database):
    apply(database, 0)
    database.execute("CREATE OR REPLACE VIEW trades_v AS (SELECT ts FROM trades)")
    assert [one[:32] for one in differences(database, 0)] == ["~ view trades_v has another quer"]
    apply(database, 0)
    assert differences(database, 0) == []
    database.execute("DROP MATERIALIZED VIEW ohlc_1d")
    database.execute(
        "CREATE MATERIALIZED VIEW ohlc_1d AS (SELECT ts, ticker, sum(volume_e2) v FROM ohlc_1h SAMPLE BY 1d) "
        "PARTITION BY YEAR"
    )
    with pytest.raises(StoreError, match="materialized view ohlc_1d has another query"):
        apply(database, 0)


def options(server, tmp_path: Path) -> list[str]:
    password = tmp_path / "password"
    password.write_text(f"{server.password}\n")
    return [
        *("--set", f"store.conf=http::addr={server.address};"),
        *("--set", f"store.username={server.user}"),
        *("--set", f"store.password_path={password}"),
    ]


def test_the_command(database, questdb_server, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = options(questdb_server, tmp_path)
    assert main(["schema", "check", *words]) == 1
    assert "table schema_version is missing" in capsys.readouterr().out
    assert main(["schema", "diff", *words]) == 1
    told = capsys.readouterr().out
    assert "+ table trades is missing\n    CREATE TABLE trades (ts TIMESTAMP_NS, " in told
    assert database.execute("SELECT count() FROM tables()") == [[0]]
    assert main(["schema", "apply", *words]) == 0
    assert "CREATE TABLE trades (" in capsys.readouterr().out
    assert main(["schema", "check", *words]) == 0
    assert f"version {SCHEMA_VERSION}" in capsys.readouterr().out
    assert main(["schema", "diff", *words]) == 0
    assert not capsys.readouterr().out


def test_a_server_that_is_not_there_or_wants_another_password(
    questdb_server, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = options(questdb_server, tmp_path)
    (tmp_path / "password").write_text("wrong\n")
    assert main(["schema", "check", *words]) != 0
    told = capsys.readouterr().err
    assert f"refuses user {questdb_server.user}" in told
    assert "store.password_path" in told
    nobody = "store.conf=http::addr=127.0.0.1:1;"
    assert main(["schema", "apply", *words, "--set", nobody]) == 75
    assert "Connection refused: start the server, or correct store.conf" in capsys.readouterr().err


def test_the_password_file(tmp_path):
    path = tmp_path / "password"
    assert read_login("me", "") == Login("me")
    with pytest.raises(CredentialsError, match=r"password: No such file.*store\.password_path"):
        read_login("me", str(path))
    for content in (b"", b"\nsecond", b"\xff\xfe", b"x" * 10_000):
        path.write_bytes(content)
        with pytest.raises(CredentialsError, match="password file"):
            read_login("me", str(path))
    path.write_text("s3cret\nmore\n")
    assert read_login("me", str(path)).sender_arguments() == {
        "username": "me",
        "password": "s3cret",
    }
    assert read_login("", str(path)).sender_arguments() == {"token": "s3cret"}
    assert read_login("", str(path)).header() == {"Authorization": "Bearer s3cret"}


def test_no_answer_is_unavailable():
    """A server that accepts, and says nothing, or nonsense."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = QuestDbHttp(f"http::addr=127.0.0.1:{port};")
        with pytest.raises(StoreUnavailableError, match="timed out"):
            server.execute("SELECT 1", timeout_s=0.05)

        def answer() -> None:
            for text in (b"garbage\r\n\r\n", b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\nno"):
                with listener.accept()[0] as client:
                    client.recv(4_096)
                    client.sendall(text)

        # The first connection, which timed out, is still in the backlog.
        listener.accept()[0].close()
        thread = threading.Thread(target=answer)
        thread.start()
        for _ in range(2):
            with pytest.raises(StoreUnavailableError, match=str(port)):
                server.execute("SELECT 1")
        thread.join()
