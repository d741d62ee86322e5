"""`tickerplant store` as a process: killed at any moment, started again, alone and beside a plant that writes."""

import random
import time
from collections import Counter
from pathlib import Path

from market_day import MarketDay
from store_process import SECONDS_MAX, Store, metric, page, rows_in_log
from tick_log import SESSION, begun, eventually, options_of, write_log

from tickerplant.core.logformat import LogPosition
from tickerplant.runtime.logfolder import load_position, segment_names, store_position
from tickerplant.store.parquet_folder import read_folder
from tickerplant.store.parquet_merge import check_folder, read_parts
from tickerplant.store.parquet_store import ParquetStore


def rows_in_files(folder: Path) -> dict[str, Counter]:
    rows: dict[str, Counter] = {}
    for file in read_folder(folder).files:
        for part in read_parts(file):
            columns = [
                (column.cast("int64") if str(column.type).startswith("timestamp") else column)
                for column in part.columns
            ]
            values = zip(*(column.to_pylist() for column in columns), strict=True)
            rows.setdefault(file.table, Counter()).update(values)
    return rows


def test_killed_again_and_again_beside_a_plant_that_writes(tmp_path):
    """kill -9 after random times; in the end each row of the log is there once, and at any time at most once."""
    log, folder = tmp_path / "ticklog", tmp_path / "store"
    draw = random.Random(5)
    with MarketDay(log) as day:
        day.run(400)
        for _ in range(2):
            with Store(tmp_path) as store:
                store.wait_event("store_started")
                until = time.monotonic() + draw.uniform(0.2, 1.6)
                while time.monotonic() < until:
                    day.run(15)
                    time.sleep(0.03)
                store.kill()
            wanted = rows_in_log(log)
            for table, rows in rows_in_files(folder).items():
                assert not rows - wanted[table], table
        day.close()
    with Store(tmp_path) as store:
        store.wait_event("store_caught_up")
        assert store.stop() == 0
    with Store(tmp_path) as store:
        # Nothing is left to take, and it is ready all the same.
        store.wait_event("store_caught_up")
        assert store.stop() == 0
    assert rows_in_files(folder) == rows_in_log(log)
    assert not check_folder(folder, thorough=True)
    assert load_position(log, "store") == read_folder(folder).position


def test_it_waits_for_a_log_and_tells_how_it_is(tmp_path):
    """Started before there is a log: not ready; then it stores what comes within its time and says so."""
    with Store(tmp_path) as store:
        port = store.wait_event("metrics_endpoint")["port"]
        code, text = page(port, "/ready")
        assert code == 503
        assert "no tick log" in text
        with MarketDay(tmp_path / "ticklog") as day:
            day.run(50)
            day.close()
        store.wait_event("store_caught_up")
        deadline = time.monotonic() + SECONDS_MAX
        while (read_folder(tmp_path / "store").position is None) or page(port, "/ready")[0] != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        text = page(port, "/metrics")[1]
        assert int(metric(text, "tickerplant_store_rows_total")) > 50
        assert metric(text, "tickerplant_store_available") == 1
        assert metric(text, "tickerplant_store_parquet_closings_total") >= 1
        assert rows_in_files(tmp_path / "store") == rows_in_log(tmp_path / "ticklog")
        assert store.stop() == 0


def assert_nothing_is_deleted(log: Path, session: int) -> None:
    """A plant that may keep next to nothing lets the store have it all the same."""
    names = segment_names(log)
    with begun(log, session, options_of(retain_bytes=1)) as ticklog:
        eventually(lambda: "store still has to take" in str(ticklog.status().warnings))
        assert segment_names(log)[: len(names)] == names


def test_what_a_store_that_never_reached_its_database_has_to_take_is_kept(
    tmp_path, unused_tcp_port
):
    """The database is down from the first day on: retention waits, as it does for a store that has fallen behind."""
    log = tmp_path / "ticklog"
    for number in range(3):
        write_log(log, SESSION + number)
    settings = ("store.backend=questdb", f"store.conf=http::addr=127.0.0.1:{unused_tcp_port};")
    with Store(tmp_path, *settings) as store:
        store.wait_event("store_unavailable")
        store.kill()
    assert load_position(log, "store") == LogPosition(SESSION, 1)
    assert_nothing_is_deleted(log, SESSION + 9)


def test_what_a_store_that_begins_anew_has_to_take_is_kept(tmp_path):
    """Its files are gone: what it had taken into them counts no more."""
    log = tmp_path / "ticklog"
    for number in range(3):
        write_log(log, SESSION + number)
    store_position(log, "store", LogPosition(SESSION + 2, 1, 100))
    with Store(tmp_path, "store.close_s=3600", "store.close_rows=1000000") as store:
        store.wait_event("store_started")
        store.kill()
    assert load_position(log, "store") == LogPosition(SESSION, 1)
    assert_nothing_is_deleted(log, SESSION + 9)


def test_two_of_one_folder_are_one_too_many(tmp_path):
    with ParquetStore(tmp_path / "store", close_ns=1, close_rows=1) as first:
        first.open()
        with Store(tmp_path) as store:
            code, line = store.fail()
    assert code == 1
    assert "locked by another store" in line


def test_without_a_tick_log_there_is_nothing_to_store(tmp_path):
    with Store(tmp_path, "ticklog.enabled=false") as store:
        code, line = store.fail()
    assert code == 2
    assert "ticklog.enabled is false" in line
