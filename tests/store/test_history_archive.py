"""The archive is asked like the store it was made of: the same answers, and only what a question needs is fetched."""

import random
from pathlib import Path

import pyarrow as pa
import pytest
from archive_bed import DAY, MIDNIGHT_NS, SECOND_NS, archive_all, folder_store
from archive_bed import market_store as make_store
from market_day import MarketDay

from tickerplant import history
from tickerplant.cli import main
from tickerplant.errors import DamagedStoreError, NoSuchBookError, StoreError
from tickerplant.store.archive_source import FolderSource
from tickerplant.store.duckdb_source import DuckDbSource
from tickerplant.store.object_source import ObjectSource, is_named

MILLISECOND_NS = 1_000_000


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    """The last seconds of a day and the first of the next, stored and archived in a folder."""
    state = tmp_path_factory.mktemp("state")
    with MarketDay(state / "ticklog", session=MIDNIGHT_NS - 2 * SECOND_NS) as running:
        running.run(400, step_ns=12_000_000).close()
    make_store(state / "ticklog", state / "store")
    source = FolderSource(state / "store", state / "ticklog")
    archive_all(source, folder_store(state / "archive"), state / "work")
    running.state = state
    return running


@pytest.fixture
def archived(day):
    with history.open_history(None, f"state.directory={day.state}", archive=True) as opened:
        yield opened


@pytest.fixture
def files(day):
    with history.History(DuckDbSource(day.state / "store")) as opened:
        yield opened


def in_order(rows: pa.Table) -> pa.Table:
    return rows.sort_by([(name, "ascending") for name in ("session", "seq", "side", "price_e4")])


def test_answers_are_those_of_the_store(day, archived, files):
    ticker = day.tickers[0]
    assert archived.trades() == files.trades()
    assert archived.bbo(ticker, MIDNIGHT_NS - SECOND_NS, MIDNIGHT_NS + SECOND_NS) == files.bbo(
        ticker, MIDNIGHT_NS - SECOND_NS, MIDNIGHT_NS + SECOND_NS
    )
    assert in_order(archived.deltas()) == in_order(files.deltas())
    assert archived.ohlc(period="1m") == files.ohlc(period="1m")
    assert archived.sql("SELECT * FROM ohlc_1d").num_rows == files.ohlc(period="1d").num_rows
    draw = random.Random(4)
    for _ in range(8):
        ticker = draw.choice(day.tickers)
        at_ns = draw.randrange(day.changes[0][0] + 50 * MILLISECOND_NS, day.changes[-1][0])
        book = archived.book_at(ticker, at_ns).book
        levels = {(0, price_e4): size_e2 for price_e4, size_e2 in book.bids.items()}
        levels |= {(1, price_e4): size_e2 for price_e4, size_e2 in book.asks.items()}
        assert levels == day.book_at(ticker, at_ns)
        assert archived.bbo_at(ticker, at_ns) == files.bbo_at(ticker, at_ns)
    with pytest.raises(NoSuchBookError):
        archived.book_at("KXNONE", MIDNIGHT_NS)


def test_only_what_a_question_is_about_is_fetched(day, archived):
    source = archived.source
    assert archived.trades(end=MIDNIGHT_NS - 1).num_rows
    of_one_day = source.fetched_bytes
    (file,) = (day.state / "archive" / "trades").glob(f"day={DAY}/*.parquet")
    assert of_one_day == file.stat().st_size
    archived.trades(end=MIDNIGHT_NS - 1)
    assert source.fetched_bytes == of_one_day
    archived.trades()
    assert source.fetched_bytes > of_one_day
    folder = Path(source._folder)
    assert list(folder.iterdir())
    archived.close()
    assert not folder.exists()


def test_a_question_that_needs_too_much_is_refused(day):
    source = ObjectSource(folder_store(day.state / "archive"), fetch_max_bytes=1_000)
    with history.History(source) as opened:
        with pytest.raises(StoreError, match="shorter time"):
            opened.deltas()
        assert source.fetched_bytes == 0


def test_a_damaged_and_a_missing_object_are_named(day, tmp_path):
    archive = tmp_path / "archive"
    source = FolderSource(day.state / "store", day.state / "ticklog")
    archive_all(source, folder_store(archive), tmp_path / "work")
    (file,) = (archive / "trades").glob(f"day={DAY}/*.parquet")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    (archive_bbo,) = (archive / "bbo").glob(f"day={DAY}/*.parquet")
    archive_bbo.unlink()
    with history.History(ObjectSource(folder_store(archive))) as opened:
        with pytest.raises(DamagedStoreError, match=file.name):
            opened.trades()
        with pytest.raises(DamagedStoreError, match=archive_bbo.name):
            opened.bbo()
        assert opened.tickers().num_rows


def test_the_command_asks_the_archive(day, files, capsys):
    words = ["sql", "trades", "--archive", "--format", "json"]
    assert main([*words, "--set", f"state.directory={day.state}"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == files.trades().num_rows


def test_tables_that_a_question_names():
    assert is_named("trades", "SELECT * FROM trades")
    assert is_named("trades", "select * from TRADES_V")
    assert is_named("trades", "SELECT * FROM ohlc_1h")
    assert not is_named("trades", "SELECT trades_x FROM bbo")
    assert not is_named("bbo", "SELECT * FROM trades")
