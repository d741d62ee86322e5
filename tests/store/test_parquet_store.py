"""Rolling Parquet files: every row of the log exactly once, whenever the process dies, merged or not."""

import os
import random
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from market_day import MarketDay
from tick_log import python

from tickerplant.core.logformat import LogPosition
from tickerplant.core.rows import RowMapper
from tickerplant.core.tables import TABLES
from tickerplant.errors import DamagedStoreError, StoreError, StoreUnavailableError
from tickerplant.limits import PARQUET_MERGE_COUNT
from tickerplant.runtime.logreader import LogReader
from tickerplant.store import parquet_merge
from tickerplant.store.arrow_tables import to_arrow
from tickerplant.store.parquet_folder import Closing, read_folder
from tickerplant.store.parquet_merge import ParquetMerger, check_folder, choose_run, read_parts
from tickerplant.store.parquet_store import ParquetStore

STORE_PROCESS = Path(__file__).with_name("parquet_process.py")
BATCH_BYTES = 3_000
"""Of the log in one take: small, so that there are many."""


def store_of(folder: Path, close_rows: int = 100) -> ParquetStore:
    return ParquetStore(folder, close_ns=10**18, close_rows=close_rows)


def rows_in_log(log: Path) -> dict[str, list]:
    mapper = RowMapper()
    with LogReader(log) as reader:
        while (batch := reader.read()) is not None:
            for _offset, datagram in batch.records:
                mapper.add_datagram(datagram)
    return mapper.take()


def rows_in_files(folder: Path) -> dict[str, list]:
    rows: dict[str, list] = {}
    for file in read_folder(folder).files:
        for part in read_parts(file):
            columns = [column.to_pylist() for column in in_integers(part).columns]
            rows.setdefault(file.table, []).extend(zip(*columns, strict=True))
    return rows


def in_integers(data):
    """Times as the integers that rows have."""
    for index, field in enumerate(data.schema):
        if str(field.type).startswith("timestamp"):
            data = data.set_column(index, field.name, data.column(index).cast("int64"))
    return data


def take_log(log: Path, store: ParquetStore, *, merge: ParquetMerger | None = None) -> None:
    """The whole log, from where the store is, closed whenever due and at the end."""
    with LogReader(log, store.open(), read_bytes=BATCH_BYTES) as reader:
        while (batch := reader.read()) is not None:
            mapper = RowMapper()
            for _offset, datagram in batch.records:
                mapper.add_datagram(datagram)
            assert not store.take(mapper.take(), batch.position, 0)
            if store.is_due(0):
                store.commit()
                while merge is not None and merge.merge_next():
                    merge.sweep(now_s=2**40)
        store.commit()


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Only read."""
    folder = tmp_path_factory.mktemp("log") / "ticklog"
    with MarketDay(folder) as day:
        day.run(700)
        day.close()
    return folder


def assert_same_rows(found, wanted):
    assert found.keys() == wanted.keys()
    for table, rows in wanted.items():
        assert Counter(found[table]) == Counter(rows), table


def test_every_row_of_the_log_is_in_the_files_once(log, tmp_path):
    folder = tmp_path / "store"
    with store_of(folder) as store:
        take_log(log, store)
        assert store.closings > 5
        assert not store.pending_rows
    wanted = rows_in_log(log)
    assert {"trades", "bbo", "orderbook_deltas", "tickers", "markets"} <= wanted.keys()
    assert_same_rows(rows_in_files(folder), wanted)
    assert not check_folder(folder, thorough=True)


def test_order_within_a_table_is_that_of_the_log(log, tmp_path):
    with store_of(tmp_path / "store") as store:
        take_log(log, store)
    found, wanted = rows_in_files(tmp_path / "store"), rows_in_log(log)
    assert found["orderbook_deltas"] == wanted["orderbook_deltas"]


def test_going_on_after_each_closing_gives_the_same_files(log, tmp_path):
    """A store that is opened anew goes on where the files end."""
    folder = tmp_path / "store"
    for _ in range(10_000):
        with (
            store_of(folder) as store,
            LogReader(log, store.open(), read_bytes=BATCH_BYTES) as reader,
        ):
            batch = reader.read()
            if batch is None:
                break
            mapper = RowMapper()
            for _offset, datagram in batch.records:
                mapper.add_datagram(datagram)
            store.take(mapper.take(), batch.position, 0)
            assert store.commit()[0] == batch.position
            # Taken and never closed: lost with the process, and taken again by the next.
            if (lost := reader.read()) is not None:
                for _offset, datagram in lost.records:
                    mapper.add_datagram(datagram)
                store.take(mapper.take(), lost.position, 0)
    assert_same_rows(rows_in_files(folder), rows_in_log(log))
    assert not read_folder(folder).holes


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_random_steps_again_and_again(log, tmp_path, seed, run_store_process):
    """Killed before the n-th change of the disk; n is drawn anew each time, so every kind of step is hit."""
    folder = tmp_path / "store"
    draw = random.Random(seed)
    kills = 0
    for _ in range(18):
        step = draw.randrange(1, 160)
        code = run_store_process(log, folder, step)
        # Whatever was left, readers see whole files, each row once.
        found = rows_in_files(folder)
        assert all(count == 1 for count in Counter(found.get("orderbook_deltas", [])).values())
        assert not check_folder(folder, thorough=False)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
    else:
        run_store_process(log, folder, 0)
    assert kills > 2
    assert_same_rows(rows_in_files(folder), rows_in_log(log))
    assert not check_folder(folder, thorough=True)


def test_killed_at_every_step_of_closings_and_of_merges(tmp_path, run_store_process, monkeypatch):
    """A small log: steps all along are those before which the process dies, in a folder of its own."""
    monkeypatch.setattr(parquet_merge, "PARQUET_MERGE_COUNT", 3)
    log = tmp_path / "ticklog"
    with MarketDay(log, markets=1) as day:
        day.run(60)
        day.close()
    wanted = rows_in_log(log)
    for step in range(1, 1_000, 17):
        folder = tmp_path / f"store{step}"
        code = run_store_process(log, folder, step, close_rows=4, merge_count=3)
        assert not check_folder(folder, thorough=False)
        if code == 0:
            break
        with store_of(folder, close_rows=4) as store:
            take_log(log, store, merge=ParquetMerger(folder))
        assert_same_rows(rows_in_files(folder), wanted)
    assert step > 100
    assert max(closing.level for closing in read_folder(folder).closings) == 1


@pytest.fixture(scope="module")
def run_store_process():
    """(log, folder, kill_at, close_rows, merge_count) -> exit code."""
    process = subprocess.Popen(
        python(STORE_PROCESS.read_text()), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def run(
        log: Path,
        folder: Path,
        kill_at: int,
        close_rows: int = 100,
        merge_count: int = PARQUET_MERGE_COUNT,
    ) -> int:
        values = (log, folder, kill_at, close_rows, BATCH_BYTES, merge_count)
        print(*values, file=process.stdin, flush=True)
        code = int(process.stdout.readline())
        assert code in (0, -signal.SIGKILL)
        return code

    with process:
        yield run
        process.stdin.close()


@pytest.fixture
def small_merges(monkeypatch):
    """Merges of few closings each."""
    monkeypatch.setattr(parquet_merge, "PARQUET_MERGE_COUNT", 6)


def test_merged_files_have_the_rows_of_all(log, tmp_path, small_merges):
    folder = tmp_path / "store"
    with store_of(folder, close_rows=5) as store:
        take_log(log, store, merge=(merger := ParquetMerger(folder)))
        assert merger.merges > 2
        take_log(log, store)
    contents = read_folder(folder)
    assert max(closing.level for closing in contents.closings) >= 1
    assert not contents.holes
    assert_same_rows(rows_in_files(folder), rows_in_log(log))


def test_merged_closings_stay_for_those_who_read_them(log, tmp_path, small_merges):
    folder = tmp_path / "store"
    with store_of(folder, close_rows=5) as store:
        take_log(log, store)
        before = read_folder(folder).files
        merger = ParquetMerger(folder)
        merged = merger.merge_next()
        assert merged is not None
        assert merged.level == 1
        assert not merger.sweep()
        for file in before:
            assert file.path.exists()
        assert merger.sweep(now_s=2**40) == 6
        assert not read_folder(folder).superseded
        assert store.open() == read_folder(folder).position


def test_runs_that_are_merged():
    def closing(first: int, last: int, level: int) -> Closing:
        return Closing(LogPosition(1, 1, first), LogPosition(1, 1, last), level)

    count = PARQUET_MERGE_COUNT
    row = [closing(n, n + 1, 0) for n in range(count)]
    assert choose_run(row[:-1], frozenset()) == []
    assert choose_run(row, frozenset()) == row
    assert choose_run(row, frozenset({row[3]})) == []
    later = [closing(n, n + 1, 0) for n in range(count, 2 * count)]
    assert choose_run(row + later, frozenset({row[3]})) == row[4:] + later[:4]
    with_hole = row[:5] + row[6:]
    assert choose_run(with_hole, frozenset()) == []
    top = [closing(n, n + 1, 2) for n in range(count)]
    assert choose_run(top, frozenset()) == []


def test_a_damaged_file_is_named_and_left_out_of_merges(log, tmp_path, small_merges):
    folder = tmp_path / "store"
    with store_of(folder, close_rows=5) as store:
        take_log(log, store)
    victim = next(file for file in read_folder(folder).files if file.table == "orderbook_deltas")
    content = bytearray(victim.path.read_bytes())
    chunk = pq.read_metadata(victim.path).row_group(0).column(1)
    content[chunk.data_page_offset + chunk.total_compressed_size - 1] ^= 0x40
    victim.path.write_bytes(content)
    faults = check_folder(folder, thorough=True)
    assert len(faults) == 1
    assert victim.path.name in faults[0]
    merger = ParquetMerger(folder)
    with pytest.raises(DamagedStoreError, match=victim.path.name):
        merger.merge_next()
    assert merger.merge_next() is not None
    assert victim.path.exists()


def test_a_truncated_and_a_missing_file_are_named(log, tmp_path):
    folder = tmp_path / "store"
    with store_of(folder) as store:
        take_log(log, store)
    files = [file for file in read_folder(folder).files if file.table == "bbo"]
    os.truncate(files[0].path, 100)
    files[1].path.unlink()
    faults = check_folder(folder, thorough=False)
    assert len(faults) == 2
    assert files[0].path.name in faults[0]
    assert "lacks bbo." in faults[1]
    assert str(files[1].path.parent) in faults[1]


def test_a_missing_closing_is_named(log, tmp_path):
    folder = tmp_path / "store"
    with store_of(folder) as store:
        take_log(log, store)
    gone = read_folder(folder).closings[3]
    (folder / str(gone)).rename(tmp_path / "elsewhere")
    (fault,) = check_folder(folder, thorough=False)
    assert "is missing" in fault
    assert f"offset {gone.start.offset} to" in fault


def test_foreign_names_are_told_and_left_alone(log, tmp_path):
    folder = tmp_path / "store"
    with store_of(folder) as store:
        take_log(log, store)
        (folder / "notes.txt").write_text("mine")
        inside = folder / str(read_folder(folder).closings[0]) / "other.parquet"
        inside.write_bytes(b"PAR1")
        contents = read_folder(folder)
        assert contents.foreign == ["notes.txt", f"{contents.closings[0]}/other.parquet"]
        store.open()
    assert (folder / "notes.txt").exists()
    assert_same_rows(rows_in_files(folder), rows_in_log(log))


def test_closings_that_contradict_each_other_are_refused(log, tmp_path):
    folder = tmp_path / "store"
    with store_of(folder) as store:
        take_log(log, store)
    first = read_folder(folder).closings[0]
    middle = first.end._replace(offset=first.end.offset - 1)
    (folder / str(Closing(middle, first.end._replace(offset=first.end.offset + 5)))).mkdir()
    with pytest.raises(StoreError, match="same part of the log"), store_of(folder) as store:
        store.open()


def test_two_stores_on_one_folder(tmp_path):
    with store_of(tmp_path) as store, store_of(tmp_path) as other:
        store.open()
        with pytest.raises(StoreError, match="locked by another"):
            other.open()


def test_another_log_is_refused(log, tmp_path):
    folder = tmp_path / "store"
    with store_of(folder) as store:
        take_log(log, store)
        with pytest.raises(StoreError, match="another log"):
            store.take({}, LogPosition(5, 1, 600), 0)


def test_a_full_disk_loses_and_repeats_nothing(log, tmp_path):
    """No file may grow beyond a few hundred bytes: as on a full disk. Once it has room the rest follows."""
    folder = tmp_path / "store"
    code = """
        import resource, signal
        from pathlib import Path
        from tickerplant.errors import StoreUnavailableError
        from tickerplant.core.rows import RowMapper
        from tickerplant.runtime.logreader import LogReader
        from tickerplant.store.parquet_store import ParquetStore
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        log, folder = map(Path, sys.argv[1:])
        failures, full = 0, set()
        with ParquetStore(folder, close_ns=10**18, close_rows=50) as store:
            position = store.open()
            while True:
                with LogReader(log, position, read_bytes=4096) as reader:
                    try:
                        while (batch := reader.read()) is not None:
                            mapper = RowMapper()
                            for _offset, datagram in batch.records:
                                mapper.add_datagram(datagram)
                            store.take(mapper.take(), batch.position, 0)
                            if store.is_due(0):
                                limit = 700 if store.closings % 3 == 1 and store.closings not in full else -1
                                if limit > 0:
                                    full.add(store.closings)
                                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
                                store.commit()
                        store.commit()
                        break
                    except StoreUnavailableError as error:
                        assert str(folder) in str(error), error
                        failures += 1
                        position = store.discard()
        assert failures > 3, failures
    """
    done = subprocess.run(
        python(code, log, folder), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert_same_rows(rows_in_files(folder), rows_in_log(log))


def test_a_row_that_no_column_holds_is_handed_back(tmp_path):
    sound = (1_790 * 10**15, 5, 7, 1, 2, "KX", 1, 2, 3, 4, "live")
    poison = (*sound[:3], 2**63, *sound[4:])
    with store_of(tmp_path) as store:
        store.open()
        store.take({"bbo": [sound, poison, sound]}, LogPosition(7, 1, 900), 0)
        position, (rejected,) = store.commit()
        assert position == LogPosition(7, 1, 900)
        assert rejected.table == "bbo"
        assert rejected.row == poison
        assert store.rows_rejected == 1
    assert rows_in_files(tmp_path) == {"bbo": [sound, sound]}


def test_a_part_of_the_log_without_rows_is_taken_too(tmp_path):
    """So that the log may be deleted; but such closings are rarer."""
    position = LogPosition(7, 1, 900)
    with ParquetStore(tmp_path, close_ns=10, close_rows=5) as store:
        assert store.open() is None
        assert not store.is_due(0)
        store.take({}, position, 0)
        assert not store.is_due(99)
        assert store.is_due(100)
        store.commit()
        assert not store.is_due(10**9)
        assert store.open() == position
        assert not read_folder(tmp_path).files


def test_rows_of_two_days_are_in_two_files(tmp_path):
    day_ns = 86_400 * 10**9
    first = (20_000 * day_ns - 1, 5, 7, 1, 2, "KX", 1, 2, 3, 4, "live")
    second = (20_000 * day_ns, *first[1:])
    with store_of(tmp_path) as store:
        store.open()
        store.take({"bbo": [first, second, first]}, LogPosition(7, 1, 900), 0)
        store.commit()
    files = read_folder(tmp_path).files
    assert [(str(file.day), pq.read_metadata(file.path).num_rows) for file in files] == [
        ("2024-10-03", 2),
        ("2024-10-04", 1),
    ]


def test_every_table_has_its_arrow_form():
    for table in TABLES.values():
        assert to_arrow(table, []).column_names == list(table.column_names)


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(StoreError, match=str(path)), store_of(path) as store:
        store.open()


def test_an_unwritable_folder_is_unavailable_not_lost(log, tmp_path):
    folder = tmp_path / "store"
    with store_of(folder) as store:
        store.open()
        store.take(
            {"bbo": [(10**18, 5, 7, 1, 2, "KX", 1, 2, 3, 4, "live")]}, LogPosition(7, 1, 9), 0
        )
        (folder / "open.tmp").write_text("somebody's file")
        with pytest.raises(StoreUnavailableError, match=str(folder)):
            store.commit()
        assert store.discard() is None
