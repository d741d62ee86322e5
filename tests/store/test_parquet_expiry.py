"""Old rows of the embedded store go, whole closings at a time, oldest first; never the last, never by a wrong clock."""

from datetime import date, timedelta

import pytest

from tickerplant.core.logformat import LogPosition
from tickerplant.errors import StoreUnavailableError
from tickerplant.store.arrow_tables import DAY_NS, start_of_day_ns
from tickerplant.store.parquet_backend import ParquetBackend
from tickerplant.store.parquet_expiry import delete_expired, expired
from tickerplant.store.parquet_folder import read_folder
from tickerplant.store.parquet_merge import check_folder

FIRST = date(2026, 3, 1)


def fill(folder, days, **options):
    """A closing for each number of days after `FIRST`; None: one without rows."""
    with ParquetBackend(folder, close_ns=1, close_rows=1, **options) as backend:
        backend.open()
        for number, day in enumerate(days):
            rows = {}
            if day is not None:
                at_ns = start_of_day_ns(FIRST) + day * DAY_NS + 5
                rows = {"bbo": [(at_ns, at_ns, 7, number, 2, "KX", 1, 2, 3, 4, "live")]}
            backend.take(rows, LogPosition(7, 1, 900 + number), 0)
            backend.commit()
        return backend


@pytest.mark.parametrize(
    ("days", "ttl_days", "gone"),
    [
        ([0, 1, 2, 9, 10], 3, 3),
        ([0, 1, 2, 9, 10], 9, 1),
        ([0, 1, 2, 9, 10], 10, 0),
        ([0, None, None, 10], 3, 3),
        ([None, None], 3, 0),
        ([0], 1, 0),
        ([9, 0, 10], 3, 0),
        ([0, 9, 1, 10], 3, 1),
    ],
)
def test_the_oldest_closings_in_a_row_go(tmp_path, days, ttl_days, gone):
    fill(tmp_path, days)
    before = read_folder(tmp_path)
    today_ns = start_of_day_ns(FIRST) + 10 * DAY_NS
    assert delete_expired(tmp_path, today_ns, ttl_days) == gone
    after = read_folder(tmp_path)
    assert after.closings == before.closings[gone:]
    assert after.position == before.position
    assert not after.temporary
    assert not check_folder(tmp_path, thorough=True)
    assert delete_expired(tmp_path, today_ns, ttl_days) == 0


def test_a_clock_that_is_ahead_deletes_nothing_more(tmp_path):
    fill(tmp_path, [0, 1, 2, 3])
    contents = read_folder(tmp_path)
    assert len(expired(contents, FIRST + timedelta(days=5_000), 2)) == 1
    assert len(expired(contents, FIRST + timedelta(days=3), 2)) == 1
    assert not expired(contents, FIRST, 2)


def test_it_is_part_of_the_upkeep_unless_it_is_off(tmp_path):
    fill(tmp_path, [0, 5, 10])
    with ParquetBackend(tmp_path, close_ns=1, close_rows=1) as backend:
        backend.open()
        backend.upkeep()
        assert backend.counters()["expired_closings"] == 0
    with ParquetBackend(tmp_path, close_ns=1, close_rows=1, ttl_days=7) as backend:
        backend.open()
        backend.upkeep()
        assert backend.counters()["expired_closings"] == 1
    assert len(read_folder(tmp_path).closings) == 2


def test_one_that_lost_its_name_and_was_not_deleted_goes_at_the_next_start(tmp_path):
    fill(tmp_path, [0, 5, 10])
    first = read_folder(tmp_path).closings[0]
    (tmp_path / str(first)).rename(tmp_path / f"{first}.tmp")
    assert not check_folder(tmp_path, thorough=False)
    with ParquetBackend(tmp_path, close_ns=1, close_rows=1) as backend:
        assert backend.open() == read_folder(tmp_path).position
    assert not read_folder(tmp_path).temporary


def test_what_cannot_be_deleted_is_told(tmp_path):
    fill(tmp_path, [0, 5, 10])
    first = read_folder(tmp_path).closings[0]
    (tmp_path / f"{first}.tmp").write_text("somebody's")
    with pytest.raises(StoreUnavailableError, match="cannot delete"):
        delete_expired(tmp_path, start_of_day_ns(FIRST) + 10 * DAY_NS, 3)
