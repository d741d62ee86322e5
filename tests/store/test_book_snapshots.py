"""Whole books among the rows: each is the book that the rows before it make, also after a restart in between."""

from collections import Counter
from pathlib import Path

import pytest
from market_day import MarketDay
from store_process import rows_in_log
from tick_log import SECOND_NS

from tickerplant.core.checkpoint import CheckpointEncoder
from tickerplant.core.logformat import LogPosition
from tickerplant.core.rebuilt_book import DeltaRow, RebuiltBook
from tickerplant.core.rows import Row, Rows
from tickerplant.core.tables import ORDERBOOK_DELTAS
from tickerplant.runtime.checkpoints import CheckpointFile
from tickerplant.store import book_state
from tickerplant.store.backend import Committed, RejectedRow
from tickerplant.store.dead_letters import DeadLetters
from tickerplant.store.follower import LogFollower

INTERVAL_NS = SECOND_NS // 10


class Kept:
    """A backend that keeps rows in memory, from a given place on."""

    def __init__(self, position: LogPosition | None = None) -> None:
        self.position = position
        self.rows: list[Row] = []

    def open(self) -> LogPosition | None:
        return self.position

    def take(self, rows: Rows, position: LogPosition, now_ns: int) -> list[RejectedRow]:
        self.rows += rows.get("book_snapshots", [])
        self.position = position
        return []

    def is_due(self, now_ns: int, *, is_behind: bool = False) -> bool:
        return True

    def commit(self, *, wait: bool = False) -> Committed:
        return Committed(self.position, [])

    def discard(self) -> LogPosition | None:
        return self.position

    def upkeep(self) -> bool:
        return False

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    with MarketDay(folder, markets=4) as day:
        day.run(600)
        day.close()
    return folder


def follow(log: Path, backend: Kept, turns: int = 10_000) -> list[Row]:
    letters = DeadLetters(log)
    follower = LogFollower(
        log, backend, letters, read_bytes=8_192, snapshot_interval_ns=INTERVAL_NS
    )
    follower.open()
    for _ in range(turns):
        if not follower.turn(0):
            break
    follower.close()
    return backend.rows


def assert_true(log: Path, snapshots: list[Row]) -> None:
    """Each holds exactly the levels that the rows of its market up to its seq make."""
    names = ORDERBOOK_DELTAS.column_names
    deltas = [dict(zip(names, row, strict=True)) for row in rows_in_log(log)["orderbook_deltas"]]
    deltas.sort(key=lambda row: row["seq"])
    for ts, _session, seq, ticker, bids, asks, checksum in snapshots:
        assert ts % INTERVAL_NS == 0
        rebuilt = RebuiltBook(ticker)
        for row in deltas:
            if row["seq"] <= seq and row["ticker"] == ticker:
                rebuilt.apply(DeltaRow(*(row[name] for name in DeltaRow._fields)))
        assert rebuilt.state == "live"
        assert rebuilt.book.checksum() == checksum
        assert [list(zip(*side, strict=True)) for side in (bids, asks)] == [
            list(side) for side in rebuilt.book.depth(rebuilt.book.level_count)
        ]


def test_each_is_the_book_at_its_place(log):
    snapshots = follow(log, Kept())
    assert len(snapshots) > 40
    assert max(Counter(row[:4] for row in snapshots).values()) == 1
    assert_true(log, snapshots)


def test_after_a_restart_they_go_on_as_if_there_had_been_none(log):
    whole = set(follow(log, Kept()))
    first = Kept()
    follow(log, first, turns=6)
    before = set(first.rows)
    second = follow(log, Kept(first.position))
    assert before
    assert before < whole <= before | set(second)
    # A book that has not changed since may be told once more.
    assert_true(log, second)


def test_they_begin_at_the_newest_checkpoint_before_their_place(log, monkeypatch):
    """As recovery writes them: then no more of the log is read than what came after."""
    first = Kept()
    follow(log, first, turns=4)
    state = book_state.books_at(log, first.position)
    assert len(state.markets) == 4
    cut = state.cut()
    encoder = CheckpointEncoder(cut, first.position)
    file = CheckpointFile(log, first.position)
    file.write(encoder.head())
    for images in cut.slices():
        file.write(encoder.block(images))
    file.write(encoder.end())
    file.commit()
    monkeypatch.setattr(book_state, "STORE_BOOKS_READ_BYTES_MAX", 0)
    kept = book_state.books_at(log, first.position)
    assert {name: market.book for name, market in kept.markets.items()} == {
        name: market.book for name, market in state.markets.items()
    }
    monkeypatch.undo()
    follow(log, first, turns=2)
    assert_true(log, follow(log, Kept(first.position)))


def test_a_log_too_long_to_be_read_again_leaves_the_books_unknown(log, monkeypatch):
    first = Kept()
    follow(log, first, turns=6)
    monkeypatch.setattr(book_state, "STORE_BOOKS_READ_BYTES_MAX", 100)
    assert_true(log, follow(log, Kept(first.position)))
    assert not book_state.books_at(log, first.position).markets
