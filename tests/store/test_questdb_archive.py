"""The archive of a real QuestDB server: every row out of it, into Parquet, and back into an empty database."""

import time
from collections import Counter
from datetime import date

import pytest
from archive_bed import (
    DAY,
    MIDNIGHT_NS,
    NEXT_DAY,
    SECOND_NS,
    SECONDS_MAX,
    Stopped,
    archive_all,
    counts,
    folder_store,
    market_log,
    objects,
    stop_before,
    store_log,
    write_rows,
)
from questdb_rows import empty, http_of, rows_in_database, select_of

from tickerplant.cli import main
from tickerplant.core.archive_plan import ARCHIVED_TABLES, Step
from tickerplant.core.tables import TABLES
from tickerplant.errors import DamagedStoreError, StoreError
from tickerplant.store import questdb_archive
from tickerplant.store.archive_files import content_of
from tickerplant.store.archiver import read_manifest, read_manifests
from tickerplant.store.arrow_tables import start_of_day_ns
from tickerplant.store.questdb_archive import (
    QuestDbArchiveSource,
    content_in_database,
    where_clause,
    whole_partitions,
)
from tickerplant.store.questdb_http import Login
from tickerplant.store.restore import HistoricalServer, Restorer
from tickerplant.store.schema import create_table
from tickerplant.store.schema_check import apply

HOUR_NS = 3_600 * SECOND_NS


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return market_log(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def database(questdb_server, log, tmp_path_factory):
    """The rows of two days, texts short and long and absent among them; tests leave other rows behind."""
    server = http_of(questdb_server)
    empty(server)
    apply(server, 0)
    store_log(questdb_server, log, tmp_path_factory.mktemp("store"))
    write_odd_rows(questdb_server, tmp_path_factory.mktemp("odd"))
    yield server
    empty(server)


def write_odd_rows(questdb_server, folder):
    """A book, a candle, and markets whose texts are all short, for which the server's export is wrong."""
    ts = MIDNIGHT_NS - SECOND_NS
    market = (ts, ts, ts, 1, 2, 3, "é,=😀", "info", None, "", ts, None, None, None)
    texts = [("[]", "0.5", None), ("", "é😀", "100.25")]
    rest = ("open", None, None, "short", "live")
    rows = {
        "book_snapshots": [
            (ts, 1, 2, "A", ((4_200, 4_100), (100, 12_345)), ((), ()), 7),
            (ts, 1, 2, "B", ((), ()), ((4_300,), (5,)), 8),
        ],
        "markets": [(*market[:4], 5 + i, *market[5:], *one, *rest) for i, one in enumerate(texts)],
        "candlesticks": [(ts, ts, "A", 1, *range(1, 16)), (ts, ts, "A", 60, *[None] * 15)],
        # In the hour that no archived day's partition is converted in, because it is the newest.
        "bbo": [(ts + 30 * HOUR_NS, ts, 1, 9, 9, "A", 1, 2, 3, 4, "live")],
    }
    write_rows(questdb_server, folder, rows)


def wait_until(is_so):
    deadline = time.monotonic() + SECONDS_MAX
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def source_of(server, log, tmp_path, hot_ns=0):
    return QuestDbArchiveSource(server, log, tmp_path / "work", hot_ns=hot_ns)


def archived_rows(server):
    found = rows_in_database(server)
    return {name: rows for name, rows in found.items() if name in ARCHIVED_TABLES}


def test_every_day_is_archived_converted_recorded_and_restored(
    questdb_server, database, log, tmp_path, monkeypatch
):
    """Whether the server exports a partition at once or in many slices."""
    monkeypatch.setattr(questdb_archive, "ARCHIVE_SLICE_ROWS", 37)
    before = archived_rows(database)
    assert len(before) >= 8
    source = source_of(database, log, tmp_path)
    store, warned = folder_store(tmp_path / "archive"), []
    outcomes = archive_all(source, store, tmp_path / "work", warn=warned.append)
    assert warned == []
    assert counts(outcomes) == {name: rows.total() for name, rows in before.items()}
    assert archived_rows(database) == before

    # Nothing is due any more, and the database says so itself.
    assert archive_all(source, store, tmp_path / "work") == []
    recorded = database.execute(
        "SELECT table_name, row_count, checksum FROM archive_manifest ORDER BY table_name, ts, part"
    )
    manifests = sorted(read_manifests(store, ARCHIVED_TABLES), key=lambda one: one.table)
    assert recorded == [
        [manifest.table, part.row_count, part.sha256]
        for manifest in manifests
        for part in manifest.parts
    ]
    converted = source.partitions(TABLES["orderbook_deltas"])
    assert [(one.is_parquet, one.is_active) for one in converted] == [(True, False), (False, True)]
    kept = objects(store)

    # Archived again from what is Parquet in the database now, it is the same.
    some = ("orderbook_deltas", "trades", "markets")
    for slice_rows in (37, 10**6):
        monkeypatch.setattr(questdb_archive, "ARCHIVE_SLICE_ROWS", slice_rows)
        again = folder_store(tmp_path / f"again{slice_rows}")
        archive_all(source, again, tmp_path / "work", tables=some, warn=warned.append)
        found = objects(again)
        assert (found, warned) == ({name: kept[name] for name in kept if name.startswith(some)}, [])

    empty(database)
    apply(database, 0)
    restorer = Restorer(
        store,
        f"http::addr={questdb_server.address};",
        Login(questdb_server.user, questdb_server.password),
        tmp_path,
    )
    assert sum(map(restorer.restore, manifests)) == sum(rows.total() for rows in before.values())
    assert archived_rows(database) == before
    assert all(map(restorer.is_restored, manifests))
    assert sum(map(restorer.restore, manifests)) == 0


def test_a_reader_that_stops_half_way_leaves_no_file(database, log, tmp_path, monkeypatch):
    monkeypatch.setattr(questdb_archive, "ARCHIVE_SLICE_ROWS", 5)
    source, table = source_of(database, log, tmp_path), TABLES["trades"]
    (tmp_path / "work").mkdir()
    total = sum(batch.num_rows for batch in source.read(table, DAY, 0, 0))
    reading = source.read(table, DAY, 0, 0)
    assert 0 < next(reading).num_rows < total
    assert list((tmp_path / "work").iterdir())
    reading.close()
    assert not list((tmp_path / "work").iterdir())


def test_stopped_anywhere_it_ends_with_the_same_archive(database, log, tmp_path):
    tables = ["orderbook_deltas", "trades"]
    source = source_of(database, log, tmp_path)
    for name in tables:
        table = TABLES[name]
        where = where_clause(table, start_of_day_ns(DAY), MIDNIGHT_NS)
        database.execute(f"ALTER TABLE {name} CONVERT PARTITION TO NATIVE {where}")
        wait_until(lambda table=table: not source.partitions(table)[0].is_parquet)
    wanted = folder_store(tmp_path / "wanted")
    archive_all(
        source_of(database, log, tmp_path, hot_ns=10**18), wanted, tmp_path / "work", tables=tables
    )
    database.execute("TRUNCATE TABLE archive_manifest")
    store, steps = folder_store(tmp_path / "archive"), set()
    for number in range(60):
        stop = stop_before(4 + number % 3)

        def before_step(table, day, due, stop=stop):
            steps.add(due.step)
            stop(table, day, due)

        try:
            archive_all(source, store, tmp_path / "work", tables=tables, before_step=before_step)
        except Stopped:
            continue
        break
    assert steps == set(Step) - {Step.LOAD}
    assert objects(store) == objects(wanted)


def test_archived_days_are_loaded_into_the_historical_server(database, log, new_questdb, tmp_path):
    before = archived_rows(database)
    tables = ("orderbook_deltas", "trades")
    historical = new_questdb().start()
    server = http_of(historical)
    for name in tables:
        server.execute(create_table(TABLES[name], 0))
    store, work = folder_store(tmp_path / "archive"), tmp_path / "work"
    login = Login(historical.user, historical.password)
    restorer = Restorer(store, f"http::addr={historical.address};", login, work)
    source = source_of(database, log, tmp_path, hot_ns=10**18)
    kept = HistoricalServer(restorer, work, keep_days=0, hot_ns=0)
    options = {"tables": tables, "historical": kept}
    archive_all(source, store, work, **options)
    for name in tables:
        found = Counter(map(tuple, server.execute(select_of(TABLES[name]))))
        assert found == before[name]
    # The newest partition of a table cannot be converted, so a day follows with the next one.
    later = archive_all(source, store, work, **options)
    assert [(one.table, one.day) for one in later] == [("trades", DAY), ("orderbook_deltas", DAY)]
    partitions = source_of(server, log, tmp_path).partitions(TABLES["orderbook_deltas"])
    assert [one.is_parquet for one in partitions] == [True, False]
    assert archive_all(source, store, work, **options) == []
    server.execute("TRUNCATE TABLE trades")
    seldom = HistoricalServer(restorer, work, keep_days=1, hot_ns=0)
    assert archive_all(source, store, work, tables=tables, historical=seldom) == []
    again = archive_all(source, store, work, **options)
    assert [(one.table, one.day) for one in again] == [("trades", DAY), ("trades", NEXT_DAY)]
    assert server.execute("SELECT count() FROM trades") == [[before["trades"].total()]]


def test_late_rows_make_another_file_of_their_hour_only(questdb_server, database, log, tmp_path):
    source = source_of(database, log, tmp_path)
    store, work = folder_store(tmp_path / "archive"), tmp_path / "work"
    archive_all(source, store, work, tables=["bbo"])
    before = read_manifest(store, "bbo", NEXT_DAY)
    assert [part.part for part in before.parts] == [0]
    late_ns = MIDNIGHT_NS + 5 * HOUR_NS
    late = (late_ns, late_ns, 1, 10, 9, "A", 1, 2, 3, 4, "live")
    write_rows(questdb_server, tmp_path / "late", {"bbo": [late]})
    [outcome] = archive_all(source, store, work, tables=["bbo"])
    after = read_manifest(store, "bbo", NEXT_DAY)
    assert (outcome.day, after.row_count) == (NEXT_DAY, before.row_count + 1)
    assert after.parts[0] == before.parts[0]
    # Rows that are gone from the database stay in the archive.
    database.execute("TRUNCATE TABLE bbo")
    assert archive_all(source, store, work, tables=["bbo"]) == []
    assert read_manifest(store, "bbo", NEXT_DAY) == after
    login = Login(questdb_server.user, questdb_server.password)
    restorer = Restorer(store, f"http::addr={questdb_server.address};", login, tmp_path)
    assert restorer.restore(after) == after.row_count


def test_pieces_of_a_partition_count_as_one():
    day, hour = TABLES["trades"], TABLES["bbo"]
    pieces = [
        ("2026-09-19", 7, False, True),
        ("2026-09-20", 5, False, True),
        ("2026-09-20T071500-000001", 3, True, False),
    ]
    assert [tuple(one) for one in whole_partitions(day, pieces)] == [
        (date(2026, 9, 19), 0, 7, False, True),
        (DAY, 0, 8, True, False),
    ]
    pieces = [("2026-09-20T07", 5, False, True), ("2026-09-20T071500-000001", 3, False, False)]
    assert [tuple(one) for one in whole_partitions(hour, pieces)] == [(DAY, 7, 8, False, False)]


def test_sums_of_server_and_file_are_the_same(database, log, tmp_path):
    """Also for texts of other alphabets, nulls, and sums that run over 64 bits."""
    source = source_of(database, log, tmp_path)
    store = folder_store(tmp_path / "archive")
    archive_all(source, store, tmp_path / "work", tables=["markets", "book_snapshots"])
    for name in ("markets", "book_snapshots"):
        [part] = read_manifest(store, name, DAY).parts
        path = tmp_path / "archive" / part.path
        span = (part.first_ns, part.last_ns + 1)
        told = content_in_database(database, TABLES[name], *span)
        assert content_of(path, TABLES[name]) == told == part.content
        assert all(isinstance(value, int | None) for value in told.checks.values())


def test_a_row_that_is_changed_in_the_database_is_found(questdb_server, database, log, tmp_path):
    source = source_of(database, log, tmp_path)
    store = folder_store(tmp_path / "archive")
    archive_all(source, store, tmp_path / "work", tables=["trades"])
    login = Login(questdb_server.user, questdb_server.password)
    restorer = Restorer(store, f"http::addr={questdb_server.address};", login, tmp_path)
    manifest = read_manifest(store, "trades", NEXT_DAY)
    assert restorer.is_restored(manifest)
    [[trade_id]] = database.execute(f"SELECT trade_id FROM trades WHERE ts IN '{NEXT_DAY}' LIMIT 1")
    database.execute(f"UPDATE trades SET price_e4 = price_e4 + 1 WHERE trade_id = '{trade_id}'")
    assert not restorer.is_restored(manifest)
    # What is in the archive comes back over it.
    assert restorer.restore(manifest) == manifest.row_count
    ts_ns = manifest.parts[0].first_ns
    more = (ts_ns, ts_ns, 1, 1, 1, "A", "another", 1, 1, "bid", False, "live", None)
    write_rows(questdb_server, tmp_path / "more", {"trades": [more]})
    with pytest.raises(StoreError, match="restore into an empty one"):
        restorer.restore(manifest)
    (tmp_path / "archive" / manifest.parts[0].path).write_bytes(b"nothing")
    with pytest.raises(DamagedStoreError, match=manifest.parts[0].path):
        restorer.restore(manifest)


def test_the_command_archives_a_database_and_restores_it(
    capsys, questdb_server, database, log, tmp_path
):
    before = archived_rows(database)["trades"]
    password = tmp_path / "password"
    password.write_text(f"{questdb_server.password}\n")
    settings = {
        "state.directory": tmp_path,
        "ticklog.directory": tmp_path / "elsewhere",
        "store.backend": "questdb",
        "store.conf": f"http::addr={questdb_server.address};",
        "store.username": questdb_server.user,
        "store.password_path": password,
        "store.ttl_days": 0,
    }
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    days = [part for day in (DAY, NEXT_DAY) for part in ("--date", str(day))]
    words = [*days, "--table", "trades", *options]
    assert main(["archive", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"trades {DAY}", f"trades {NEXT_DAY}"]
    database.execute("TRUNCATE TABLE trades")
    assert main(["archive", "--restore", *words]) == 0
    assert archived_rows(database)["trades"] == before
    assert main(["archive", "--restore", "--date", "2000-01-01", *options]) == 1
