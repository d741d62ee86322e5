"""What was stored, asked again: trades, quotes, books at any instant, candles; in Python and with `tickerplant sql`."""

import csv
import io
import json
import random
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from market_day import MarketDay

from tickerplant import history
from tickerplant.cli import main
from tickerplant.core.book import Book
from tickerplant.core.logformat import LogPosition
from tickerplant.core.rows import RowMapper
from tickerplant.core.tables import BBO, ORDERBOOK_DELTAS, TRADES
from tickerplant.errors import DamagedStoreError, NoSuchBookError, StoreError, UsageError
from tickerplant.runtime.logreader import LogReader
from tickerplant.store.arrow_tables import to_arrow
from tickerplant.store.duckdb_source import DuckDbSource
from tickerplant.store.parquet_folder import read_folder
from tickerplant.store.parquet_store import ParquetStore
from tickerplant.store.source import OHLC_SCHEMA
from tickerplant.times import parse_time_ns

MILLISECOND_NS = 1_000_000
SECOND_NS = 1_000_000_000


def take_log(log, folder, close_rows):
    mapper = RowMapper()
    with (
        ParquetStore(folder, close_ns=10**18, close_rows=close_rows) as store,
        LogReader(log, store.open(), read_bytes=4_000) as reader,
    ):
        while (batch := reader.read()) is not None:
            for _offset, datagram in batch.records:
                mapper.add_datagram(datagram)
            store.take(mapper.take(), batch.position, 0)
            if store.is_due(0):
                store.commit()
        store.commit()


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    """Two sessions of trading, stored; the exchange's own account is in `changes`."""
    state = tmp_path_factory.mktemp("state")
    log = state / "ticklog"
    with MarketDay(log) as first:
        first.run(600)
        first.close()
    with MarketDay(log, seed=2, session=first.now_ns + SECOND_NS) as second:
        second.run(300)
        second.close()
    take_log(log, state / "store", 500)
    second.earlier, second.state = first, state
    return second


@pytest.fixture(scope="module")
def stored(day):
    with history.History(DuckDbSource(day.state / "store")) as opened:
        yield opened


@pytest.fixture(scope="module")
def logged(day):
    mapper = RowMapper()
    with LogReader(day.state / "ticklog") as reader:
        while (batch := reader.read()) is not None:
            for _offset, datagram in batch.records:
                mapper.add_datagram(datagram)
    return mapper.take()


def levels(found):
    book = found.book
    return {
        **{(0, price_e4): size_e2 for price_e4, size_e2 in book.bids.items()},
        **{(1, price_e4): size_e2 for price_e4, size_e2 in book.asks.items()},
    }


# --- books --------------------------------------------------------------------------------------------


def test_book_at_random_instants_is_the_one_the_exchange_had(day, stored):
    """Also in the session before, and between the exchange's milliseconds."""
    draw = random.Random(11)
    confirmed = states = 0
    for one in (day.earlier, day):
        # The first book is told when it reaches the plant, a little after its time.
        start_ns = one.changes[0][0] + 50 * MILLISECOND_NS
        for _ in range(25):
            ticker = draw.choice(one.tickers)
            at_ns = draw.randrange(start_ns, one.changes[-1][0])
            found = stored.book_at(ticker, at_ns)
            assert levels(found) == one.book_at(ticker, at_ns), (ticker, at_ns)
            assert found.ts_ns <= at_ns
            assert found.checks >= 1
            confirmed += found.is_confirmed
            states += found.state == "live"
    assert confirmed > 25
    assert states > 25


def test_book_at_every_change_of_one_market(day, stored):
    """Exactly at the millisecond of a change it is in, a nanosecond before it is not."""
    ticker = day.tickers[0]
    times = sorted({at_ns for at_ns, name, _ in day.changes if name == ticker})[4:24]
    for at_ns in times:
        assert levels(stored.book_at(ticker, at_ns)) == day.book_at(ticker, at_ns)
        assert levels(stored.book_at(ticker, at_ns - 1)) == day.book_at(ticker, at_ns - 1)


def test_a_book_that_may_be_wrong_is_told_as_such(tmp_path):
    """Stale with its reason and the levels kept; syncing between the clear and the end of an image."""
    session = 1_790 * 10**15

    def row(
        seq, kind, side=None, price_e4=None, delta_e2=None, size_e2=None, cause=None, checksum=None
    ):
        at_ns = session + seq * SECOND_NS
        return (
            at_ns,
            at_ns,
            session,
            seq,
            seq,
            "KX",
            kind,
            side,
            price_e4,
            delta_e2,
            size_e2,
            cause,
            checksum,
        )

    checksum = Book([(4_000, 500)]).checksum()
    rows = [
        row(1, "clear"),
        row(2, "image", "bid", 4_000, None, 500),
        row(3, "ready", checksum=checksum),
        row(4, "stale", cause="sequence_gap"),
        row(5, "clear"),
        row(6, "image"),
        row(7, "ready", checksum=Book().checksum()),
    ]
    with ParquetStore(tmp_path, close_ns=1, close_rows=1) as store:
        store.open()
        store.take({"orderbook_deltas": rows}, LogPosition(session, 1, 900), 0)
        store.commit()
    found = {}
    with history.History(DuckDbSource(tmp_path)) as opened:
        for seq in range(1, 8):
            one = opened.book_at("KX", session + seq * SECOND_NS)
            found[seq] = (one.state, one.reason, one.book.bids, one.checks, one.is_confirmed)
    assert found == {
        1: ("syncing", "", {}, 0, True),
        2: ("syncing", "", {4_000: 500}, 0, True),
        3: ("live", "", {4_000: 500}, 1, False),
        4: ("stale", "sequence_gap", {4_000: 500}, 1, False),
        5: ("syncing", "", {}, 0, True),
        6: ("syncing", "", {}, 0, True),
        7: ("live", "", {}, 1, False),
    }


def test_nothing_is_known_before_the_first_book(day, stored):
    with pytest.raises(NoSuchBookError, match=day.tickers[0]):
        stored.book_at(day.tickers[0], day.earlier.now_ns - 3_600 * SECOND_NS)
    with pytest.raises(NoSuchBookError, match="KXNONE"):
        stored.book_at("KXNONE", day.now_ns)
    with pytest.raises(NoSuchBookError, match="KXNONE"):
        stored.bbo_at("KXNONE", day.now_ns)


def test_a_row_that_was_removed_is_noticed(day, tmp_path):
    """One change of a level is taken out of the files by hand: the book is refused, not wrong."""
    log, folder = day.state / "ticklog", tmp_path / "store"
    take_log(log, folder, 10**9)
    (file,) = [one for one in read_folder(folder).files if one.table == "orderbook_deltas"]
    data = pq.read_table(file.path)
    updates = [n for n, kind in enumerate(data["kind"].to_pylist()) if kind == "update"]
    victim = updates[len(updates) // 2]
    row = data.slice(victim, 1).to_pylist()[0]
    pq.write_table(pa.concat_tables([data.slice(0, victim), data.slice(victim + 1)]), file.path)
    says = f"of {row['ticker']}, seq"
    with (
        history.History(DuckDbSource(folder)) as opened,
        pytest.raises(DamagedStoreError, match=says),
    ):
        opened.book_at(row["ticker"], int(row["ts"].value) + 500 * MILLISECOND_NS)


# --- rows ---------------------------------------------------------------------------------------------


def test_rows_are_those_of_the_log_in_order(day, stored, logged):
    assert stored.trades() == to_arrow(TRADES, sorted(logged["trades"], key=lambda row: row[:4]))
    assert stored.bbo() == to_arrow(BBO, logged["bbo"])
    assert stored.deltas() == to_arrow(ORDERBOOK_DELTAS, logged["orderbook_deltas"])
    assert stored.tickers().num_rows == len(logged["tickers"])


def test_rows_of_markets_and_times(day, stored, logged):
    one, other = day.tickers[:2]
    times = sorted(row[0] for row in logged["trades"])
    start, end = times[len(times) // 4], times[3 * len(times) // 4]
    wanted = [row for row in logged["trades"] if start <= row[0] < end]
    assert stored.trades(start=start, end=end).num_rows == len(wanted)
    mine = [row for row in wanted if row[5] == one]
    assert stored.trades(one, start, end).num_rows == len(mine)
    both = [row for row in wanted if row[5] in (one, other)]
    assert stored.trades([one, other], start, end).num_rows == len(both) > len(mine) > 0
    assert not stored.trades([]).num_rows
    assert not stored.trades("x' OR 1 = 1 --").num_rows


def test_quote_at_an_instant_is_the_book_s(day, stored):
    draw = random.Random(3)
    for _ in range(10):
        ticker = draw.choice(day.tickers)
        at_ns = draw.randrange(day.changes[0][0] + 50 * MILLISECOND_NS, day.changes[-1][0])
        (quote,) = stored.bbo_at(ticker, at_ns).to_pylist()
        found = stored.book_at(ticker, at_ns)
        if found.state == "live":
            told = (quote["bid_e4"], quote["bid_size_e2"], quote["ask_e4"], quote["ask_size_e2"])
            assert told == found.book.bbo()


def test_candles_are_those_of_the_trades(day, stored, logged):
    wanted: dict = {}
    for row in sorted(logged["trades"], key=lambda row: row[:4]):
        start_ns = row[0] // (60 * SECOND_NS) * (60 * SECOND_NS)
        wanted.setdefault((start_ns, row[5]), []).append((row[7], row[8]))
    found = stored.ohlc(period="1m")
    assert found.schema == OHLC_SCHEMA
    rows = found.set_column(0, "ts", found["ts"].cast(pa.int64())).to_pylist()
    assert {(row["ts"], row["ticker"]) for row in rows} == wanted.keys()
    for row in rows:
        prices, sizes = zip(*wanted[row["ts"], row["ticker"]], strict=True)
        assert (row["open_e4"], row["close_e4"]) == (prices[0], prices[-1])
        assert (row["high_e4"], row["low_e4"]) == (max(prices), min(prices))
        assert (row["volume_e2"], row["trade_count"]) == (sum(sizes), len(sizes))
    assert stored.sql("SELECT * FROM ohlc_1m").num_rows == found.num_rows
    with pytest.raises(UsageError, match="2m"):
        stored.ohlc(period="2m")


# --- times --------------------------------------------------------------------------------------------


def test_times_in_every_form():
    wanted = 1_790_000_000_123_456_789
    assert history.time_ns(wanted) == wanted
    assert parse_time_ns(str(wanted)) == wanted
    assert parse_time_ns("2026-09-21T14:13:20.123456789") == wanted
    assert parse_time_ns("2026-09-21T16:13:20.123456789+02:00") == wanted
    moment = datetime(2026, 9, 21, 14, 13, 20, 123_456, UTC)
    assert history.time_ns(moment) == wanted // 1_000 * 1_000
    for wrong in ("noon", datetime(2026, 9, 21)):  # noqa: DTZ001  # what is refused
        with pytest.raises(UsageError):
            history.time_ns(wrong)


# --- the command --------------------------------------------------------------------------------------


@pytest.fixture
def sql(day, capsys):
    """(arguments) -> exit code, output, errors."""

    def run(*words):
        code = main(["sql", *words, "--set", f"state.directory={day.state}"])
        return code, *capsys.readouterr()

    return run


def test_sql_in_every_format(sql, stored, tmp_path):
    query = "SELECT ticker, price, size, ts FROM trades_v ORDER BY ts, session, seq"
    code, text, _ = sql(query)
    assert code == 0
    trades = stored.trades().to_pylist()
    first = trades[0]
    lines = text.splitlines()
    assert lines[0].split() == ["ticker", "price", "size", "ts"]
    price = f"{first['price_e4'] // 10_000}.{first['price_e4'] % 10_000:04}"
    assert lines[2].split()[:2] == [first["ticker"], price]
    assert len(lines) == 2 + len(trades)
    rows = list(csv.reader(io.StringIO(sql(query, "--format", "csv")[1])))
    assert len(rows) == 1 + len(trades)
    assert rows[1][1] == price
    objects = [json.loads(line) for line in sql(query, "--format", "json")[1].splitlines()]
    assert [one["ticker"] for one in objects] == [one["ticker"] for one in trades]
    path = tmp_path / "out.parquet"
    assert sql("SELECT * FROM trades", "--format", "parquet", "--output", str(path))[0] == 0
    assert pq.read_table(path).num_rows == len(trades)
    assert "first 3 rows" in sql(query, "--limit", "3")[1]


def test_ready_queries_of_the_command(sql, day, stored):
    ticker = day.tickers[0]
    at_ns = day.changes[-1][0]
    code, text, _ = sql("book", ticker, "--at", str(at_ns))
    assert code == 0
    assert f"{ticker} at 2026-" in text
    assert "checksums agree" in text
    found = json.loads(sql("book", ticker, "--at", str(at_ns), "--format", "json")[1])
    book = day.book_at(ticker, at_ns)
    assert {(0, price): size for price, size in found["bids"]} | {
        (1, price): size for price, size in found["asks"]
    } == book
    rows = list(
        csv.DictReader(io.StringIO(sql("book", ticker, "--at", str(at_ns), "--format", "csv")[1]))
    )
    assert len(rows) == len(book)
    text = sql("bbo", ticker, "--at", str(at_ns))[1]
    assert text.splitlines()[0].split()[6:8] == ["bid", "bid_size"]
    objects = sql("trades", ticker, "--format", "json")[1].splitlines()
    assert len(objects) == stored.trades(ticker).num_rows
    assert "trade_count" in sql("ohlc", ticker, "--period", "1h")[1]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["SELECT * FROM nowhere"], 1, "nowhere"),
        (["SELEC"], 1, "SELEC"),
        (["book", "KX"], 2, "book needs"),
        (["trades", "KX", "--at", "5"], 2, "--at goes with"),
        (["SELECT 1", "KX"], 2, "SQL says its own"),
        (["trades", "--format", "parquet"], 2, "--output"),
        (["book", "KXNONE", "--at", "2026-09-21"], 1, "KXNONE"),
        (["trades", "--from", "noon"], 2, "noon"),
    ],
)
def test_what_cannot_be_answered_is_told_in_one_line(sql, words, code, says):
    found, output, errors = sql(*words)
    assert found == code
    assert not output
    assert says in errors
    assert len(errors.splitlines()) == 1


def test_a_store_that_is_not_there(tmp_path):
    with pytest.raises(StoreError, match="tickerplant store"):
        history.open_history(None, f"state.directory={tmp_path}")


def test_an_empty_store_has_its_tables(tmp_path):
    (tmp_path / "store").mkdir()
    with history.open_history(None, f"state.directory={tmp_path}") as opened:
        assert opened.trades() == to_arrow(TRADES, [])
        assert opened.ohlc() == OHLC_SCHEMA.empty_table()
        assert not opened.sql("SELECT * FROM book_snapshots_v").num_rows


def test_the_functions_of_the_module_ask_the_configured_store(day, monkeypatch):
    monkeypatch.setenv("TICKERPLANT__STATE__DIRECTORY", str(day.state))
    ticker, at_ns = day.tickers[1], day.changes[-1][0]
    assert history.trades(ticker).num_rows
    assert history.bbo(ticker).num_rows
    assert history.deltas(ticker).num_rows
    assert history.ohlc(ticker).num_rows
    assert history.bbo_at(ticker, at_ns).num_rows == 1
    assert levels(history.book_at(ticker, at_ns)) == day.book_at(ticker, at_ns)
