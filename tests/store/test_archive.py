"""The archive of the embedded store: stopped anywhere, damaged, on a folder and on a real S3 server."""

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archive_bed import (
    DAY,
    LATER_NS,
    MIDNIGHT_NS,
    NEXT_DAY,
    S3_ENVIRON,
    S3Server,
    Stopped,
    archive_all,
    counts,
    folder_store,
    market_log,
    market_store,
    objects,
    stop_before,
)

from tickerplant.cli import main
from tickerplant.core.archive_plan import MANIFEST_NAME, Step, manifest_path
from tickerplant.core.tables import TABLES
from tickerplant.errors import DamagedStoreError, StoreError, StoreUnavailableError
from tickerplant.store.archive_files import checks_of, symbol_names
from tickerplant.store.archive_source import FolderSource
from tickerplant.store.archiver import WorkFolder, read_manifests, verify_archive
from tickerplant.store.object_store import ObjectStore
from tickerplant.store.parquet_folder import read_folder
from tickerplant.store.parquet_merge import read_parts

MODELS = Path(__file__).parent.parent / "models"


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return market_log(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def folder(log, tmp_path_factory):
    return market_store(log, tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def source(log, folder):
    return FolderSource(folder, log)


@pytest.fixture(scope="module")
def wanted(source, tmp_path_factory):
    """The archive of both days, made in one go."""
    base = tmp_path_factory.mktemp("wanted")
    store = folder_store(base / "archive")
    archive_all(source, store, base / "work")
    return objects(store)


@pytest.fixture(scope="module")
def s3():
    with S3Server() as server:
        yield server


def rows_of(tables):
    return Counter(str(row) for table in tables for row in table.to_pylist())


def stored_rows(folder, table):
    return rows_of(
        data for file in read_folder(folder).files_of(table) for data in read_parts(file)
    )


def test_both_days_are_archived_row_by_row(source, folder, tmp_path):
    """One file for each table and day, in which are exactly the rows of the store, once."""
    store = folder_store(tmp_path / "archive")
    outcomes = archive_all(source, store, tmp_path / "work")
    assert {one.day for one in outcomes} == {DAY, NEXT_DAY}
    assert counts(outcomes)["orderbook_deltas"] > 500
    for table in ("orderbook_deltas", "trades", "bbo", "tickers", "markets", "feed_events"):
        files = sorted((tmp_path / "archive" / table).glob("day=*/*.parquet"))
        archived = [pq.read_table(path, partitioning=None) for path in files]
        assert len(files) == len({path.parent for path in files})
        assert sum(data.num_rows for data in archived) == counts(outcomes)[table]
        assert rows_of(archived) == stored_rows(folder, table)
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["archive.lock"]


def test_what_is_archived_is_not_due_again(source, tmp_path):
    store = folder_store(tmp_path / "archive")
    archive_all(source, store, tmp_path / "work")
    before = objects(store)
    assert archive_all(source, store, tmp_path / "work") == []
    assert objects(store) == before


def test_stopped_again_and_again_it_ends_with_the_same_archive(source, wanted, tmp_path):
    """One archive, stopped after one, two, three, four steps, and over again."""
    store, work = folder_store(tmp_path / "archive"), tmp_path / "work"
    tables = ("bbo", "trades")
    steps = set()
    for number in range(100):
        stop = stop_before(2 + number % 4)

        def before_step(table, day, due, stop=stop):
            steps.add(due.step)
            stop(table, day, due)

        try:
            archive_all(source, store, work, tables=tables, before_step=before_step)
        except Stopped:
            continue
        assert number > 4
        break
    assert steps == {Step.EXPORT, Step.VERIFY, Step.UPLOAD, Step.MANIFEST, Step.CLEAN}
    assert objects(store) == {name: wanted[name] for name in wanted if name.startswith(tables)}


def test_stopped_once_anywhere_it_ends_with_the_same_archive(source, wanted, tmp_path):
    for number in range(1, 12):
        store, work = folder_store(tmp_path / str(number)), tmp_path / "work"
        tables = ("bbo", "trades")
        with pytest.raises(Stopped):
            archive_all(source, store, work, tables=tables, before_step=stop_before(number))
        manifests = [name for name in objects(store) if name.endswith(MANIFEST_NAME)]
        archive_all(source, store, work, tables=tables)
        found = objects(store)
        assert found == {name: wanted[name] for name in wanted if name.startswith(tables)}
        assert set(manifests) <= set(found)


def test_killed_at_any_step_it_ends_with_the_same_archive(log, folder, wanted, tmp_path):
    code = (
        "import sys; from pathlib import Path; from archive_bed import *; "
        "from tickerplant.store.archive_source import FolderSource\n"
        "log, folder, base = map(Path, sys.argv[1:])\n"
        "for number in (2, 4, 5, 0):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        archive_all(FolderSource(folder, log), folder_store(base / 'archive'), base / 'work',\n"
        "                    tables=['trades', 'bbo'], before_step=stop_before(number, 9))\n"
        "        os._exit(0)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(log), str(folder), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(MODELS), *sys.path])},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.stdout.split() == [str(-signal.SIGKILL)] * 3 + ["0"], done.stderr
    found = objects(folder_store(tmp_path / "archive"))
    assert found == {name: wanted[name] for name in wanted if name.startswith(("bbo", "trades"))}


def test_the_same_archive_on_a_real_s3_server(source, wanted, s3, tmp_path):
    store = s3.store("plant/one")
    with pytest.raises(Stopped):
        archive_all(source, store, tmp_path / "work", before_step=stop_before(8))
    archive_all(source, store, tmp_path / "work")
    assert objects(store) == wanted
    name = next(name for name in wanted if name.startswith("bbo/") and "parquet" in name)
    store.put_bytes(b"PAR1 not any more", name)
    faults = [
        fault
        for manifest in read_manifests(store, ["bbo", "trades"])
        for fault in verify_archive(store, manifest, tmp_path, lambda _rows: None)
    ]
    assert [fault.partition(" is damaged")[0] for fault in faults] == [f"{store.url}/{name}"]


def test_what_an_s3_server_refuses_is_said_in_one_line(s3, tmp_path):
    missing = ObjectStore("s3://nowhere", endpoint=s3.endpoint, environ=S3_ENVIRON)
    with pytest.raises(StoreError, match="there is no such bucket: make it"):
        missing.put_bytes(b"", "a")
    with pytest.raises(StoreError, match="no credentials: set"):
        ObjectStore("s3://rows", endpoint=s3.endpoint, environ={})


def test_a_damaged_local_file_is_named_and_made_again(source, wanted, tmp_path):
    store, work, warned = folder_store(tmp_path / "archive"), tmp_path / "work", []
    damaged = work / f"{DAY}.bbo" / "00.parquet"

    def damage_once(table, day, due):
        if (table, day, due.step) == ("bbo", DAY, Step.VERIFY) and not warned:
            content = bytearray(damaged.read_bytes())
            content[len(content) // 3] ^= 1
            damaged.write_bytes(content)

    archive_all(source, store, work, before_step=damage_once, warn=warned.append)
    assert [text.partition(" is damaged")[0] for text in warned] == [str(damaged)]
    assert objects(store) == wanted


def test_a_file_that_is_damaged_every_time_ends_the_archive(source, tmp_path):
    def damage(table, day, due):
        if due.step is Step.VERIFY:
            path = tmp_path / "work" / f"{day}.{table}" / "00.parquet"
            path.write_bytes(path.read_bytes()[:-1])

    store = folder_store(tmp_path / "archive")
    with pytest.raises(DamagedStoreError, match=r"00\.parquet is damaged"):
        archive_all(source, store, tmp_path / "work", before_step=damage)
    assert objects(store) == {}


def test_a_damaged_file_of_the_store_is_named(log, folder, tmp_path):
    copy = market_store(log, tmp_path / "store")
    assert len(read_folder(copy).files) == len(read_folder(folder).files)
    path = read_folder(copy).files_of("bbo")[1].path
    content = bytearray(path.read_bytes())
    content[100] ^= 255
    path.write_bytes(content)
    store = folder_store(tmp_path / "archive")
    with pytest.raises(DamagedStoreError, match=str(path)):
        archive_all(FolderSource(copy, log), store, tmp_path / "work", tables=["bbo"])
    assert manifest_path("bbo", DAY) not in objects(store)


def test_rows_that_come_late_replace_the_file_and_rows_that_expired_do_not(
    log, source, wanted, tmp_path
):
    """First with the first closings only, then with all of them, then with the first ones again."""
    early = market_store(log, tmp_path / "early")
    closings = read_folder(early).closings
    for closing in closings[len(closings) // 3 :]:
        (early / str(closing)).rename(tmp_path / str(closing))
    store, work = folder_store(tmp_path / "archive"), tmp_path / "work"
    tables = ["orderbook_deltas"]
    archive_all(FolderSource(early, log), store, work, tables=tables)
    partial = objects(store)
    archive_all(source, store, work, tables=tables)
    found = objects(store)
    assert found == {name: wanted[name] for name in wanted if name.startswith("orderbook_deltas/")}
    assert found != partial
    assert archive_all(FolderSource(early, log), store, work, tables=tables) == []
    assert objects(store) == found


def test_a_day_that_is_not_over_or_not_taken_from_the_log_is_refused(log, folder, source, tmp_path):
    with pytest.raises(StoreUnavailableError, match=r"2026-09-20 \(UTC\) is not over yet"):
        source.require_complete(DAY, MIDNIGHT_NS)
    source.require_complete(DAY, LATER_NS)
    source.require_complete(NEXT_DAY, LATER_NS)
    behind = market_store(log, tmp_path / "store")
    closings = read_folder(behind).closings
    (behind / str(closings[-1])).rename(tmp_path / "away")
    FolderSource(behind, log).require_complete(DAY, LATER_NS)
    with pytest.raises(StoreUnavailableError, match="has not taken all of 2026-09-21"):
        FolderSource(behind, log).require_complete(NEXT_DAY, LATER_NS)
    FolderSource(behind, tmp_path / "no log").require_complete(NEXT_DAY, LATER_NS)
    assert read_folder(folder).closings == closings


def test_one_archiver_at_a_time(tmp_path):
    with (
        WorkFolder(tmp_path),
        pytest.raises(StoreError, match="another `tickerplant archive` runs"),
        WorkFolder(tmp_path),
    ):
        pass


# --- the command ------------------------------------------------------------------------------------


def run(capsys, *words, state, folder, log):
    settings = {
        "state.directory": state,
        "store.directory": folder,
        "ticklog.directory": log,
    }
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    code = main(["archive", *words, *options])
    output = capsys.readouterr()
    return code, output.out.splitlines(), output.err


def test_the_command_plans_archives_and_verifies(capsys, log, folder, wanted, tmp_path):
    where = {"state": tmp_path, "folder": folder, "log": log}
    day = ("--date", str(DAY))
    code, lines, _ = run(capsys, *day, "--table", "bbo", "--dry-run", **where)
    assert (code, lines) == (0, [f"bbo {DAY}: export 0, verify 0, upload 0, manifest, clean"])
    assert not (tmp_path / "archive" / "bbo").exists()

    code, lines, _ = run(capsys, *day, "--table", "bbo", **where)
    assert (code, len(lines)) == (0, 1)
    assert lines[0].startswith(f"bbo {DAY}: archived, ")
    assert run(capsys, *day, "--table", "bbo", "--dry-run", **where)[1] == [
        f"bbo {DAY}: nothing to do"
    ]

    assert run(capsys, **where)[0] == 0
    assert run(capsys, **where)[1] == ["nothing is due"]
    assert objects(folder_store(tmp_path / "archive")) == wanted
    manifests = [name for name in wanted if name.endswith(MANIFEST_NAME)]
    code, lines, _ = run(capsys, "--verify", **where)
    assert (code, lines[-1].partition(" tables")[0]) == (0, str(len(manifests)))

    broken = next((tmp_path / "archive" / "trades" / f"day={DAY}").glob("*.parquet"))
    broken.unlink()
    code, lines, _ = run(capsys, "--verify", *day, "--table", "trades", **where)
    assert code == 1
    assert lines[0] == f"file://{broken} is missing, and the manifest names it"


def test_the_command_refuses_in_one_line(capsys, log, folder, tmp_path):
    where = {"state": tmp_path, "folder": folder, "log": log}
    code, lines, errors = run(capsys, "--verify", **where)
    assert (code, lines) == (1, [])
    assert errors.count("\n") == 1
    assert run(capsys, "--date", "2100-01-01", **where)[0] == 75
    assert run(capsys, "--date", "yesterday", **where)[0] == 2
    assert run(capsys, "--set", "archive.url=ftp://x", **where)[0] == 2


def test_every_table_is_archived_that_is_not_about_the_database():
    from tickerplant.core.archive_plan import ARCHIVED_TABLES

    assert set(TABLES) - set(ARCHIVED_TABLES) == {"backfill_progress", "archive_manifest"}


@pytest.mark.parametrize("texts", [["a", None, "", "bcd"], ["é", None, "😀x"], [None], []])
def test_symbols_count_alike_as_text_and_as_dictionary(texts):
    table = TABLES["orderbook_deltas"]
    columns = {**dict.fromkeys(table.column_names, [1] * len(texts)), "seq": range(len(texts))}
    for name in symbol_names(table):
        columns[name] = pa.array(texts, pa.string())
    plain = pa.table(columns)
    encoded = plain.set_column(
        table.column_names.index("ticker"), "ticker", plain["ticker"].dictionary_encode()
    )
    units = [-1 if text is None else len(text.encode("utf-16-le")) // 2 for text in texts]
    for data in (plain, encoded):
        assert checks_of(table, data)["ticker"] == (sum(units) if units else None)
