"""How long questions to a real QuestDB with millions of rows take: as a researcher asks them, and as SQL.

Not part of `tickerplant bench`, because it fetches a server with Maven.

python -m tickerplant.bench.query_times [--rows 12000000] [--days 5] [--repeats 50]
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from tickerplant.bench.report import Row, machine, table
from tickerplant.core.tables import BBO, ORDERBOOK_DELTAS, TRADES, Table
from tickerplant.history import History
from tickerplant.limits import QUESTDB_EXPORT_TIMEOUT_S
from tickerplant.store.arrow_tables import DAY_NS, day_of_ns
from tickerplant.store.local_server import LocalServer, cache_folder
from tickerplant.store.questdb_http import Login, QuestDbHttp
from tickerplant.store.questdb_source import QuestDbSource
from tickerplant.store.schema_check import apply

MARKETS = 2_000
BUSIEST = "KXBTC-26NOV2117-T0"
"""Of the markets."""
SHARES = {ORDERBOOK_DELTAS.name: 0.7, BBO.name: 0.2, TRADES.name: 0.1}
"""Of all rows."""
RECENT_MS, DAY_MS = 10.0, 100.0
"""What recent rows of a market may take, and a day of it."""
_BATCH_ROWS = 1_000_000
_WORKERS = {
    f"{pool}.worker.{setting}.threshold": turns
    for pool in ("http", "shared")
    for setting, turns in (("yield", "10"), ("nap", "7000"), ("sleep", "10000"))
}
"""What a server has by default: those of `LocalServer` sleep sooner, up to 10 ms, which would be measured."""
_MINUTE_NS = 60 * 1_000_000_000
_VALUES = {
    "session": "1",
    "seq": "x",
    "g": "x",
    # A few markets have most of the rows, as on the exchange: of number 0 they are one in 45.
    "ticker": f"cast('KXBTC-26NOV2117-T' || cast(power(rnd_double(), 2) * {MARKETS} AS INT) AS SYMBOL)",
    "kind": "cast('update' AS SYMBOL)",
    "side": "rnd_symbol('bid', 'ask')",
    "taker_side": "rnd_symbol('bid', 'ask')",
    "cause": "cast('exchange' AS SYMBOL)",
    "state": "cast('live' AS SYMBOL)",
    "source": "cast('live' AS SYMBOL)",
    "is_block": "false",
    "trade_id": "cast(rnd_uuid4() AS VARCHAR)",
    "checksum": "cast(null AS LONG)",
    "delta_e2": "rnd_long(-500, 500, 0) * 100",
}


class Timing(NamedTuple):
    """A question, asked many times; `limit_ms` is for the median, 0: there is none."""

    question: str
    limit_ms: float
    rows: int
    p50_ms: float
    p99_ms: float


# --- rows -----------------------------------------------------------------------------------------


def fill(server: QuestDbHttp, rows: int, start_ns: int, end_ns: int) -> dict[str, int]:
    """Rows made up by the server, evenly from `start_ns` to `end_ns`; how many each table has. Raises `StoreError`."""
    counts = {}
    for one in (ORDERBOOK_DELTAS, BBO, TRADES):
        count = int(rows * SHARES[one.name])
        step_ns = (end_ns - start_ns) // count
        for first in range(0, count, _BATCH_ROWS):
            sql = _insert(one, min(_BATCH_ROWS, count - first), first, start_ns, step_ns)
            server.execute(sql, QUESTDB_EXPORT_TIMEOUT_S)
        server.execute(f"SELECT wait_wal_table('{one.name}')", QUESTDB_EXPORT_TIMEOUT_S)
        [[counts[one.name]]] = server.execute(f"SELECT count() FROM {one.name}")
    return counts


def _insert(of: Table, count: int, first: int, start_ns: int, step_ns: int) -> str:
    time_sql = f"cast({start_ns} + x * {step_ns} AS TIMESTAMP_NS)"
    values = [
        time_sql
        if name.startswith("ts")
        else _VALUES.get(name, f"rnd_long(1, 9900, 0) * {1 if name.endswith('_e4') else 100}")
        for name in of.column_names
    ]
    # Else the numbers would begin anew with each statement.
    numbers = f"(SELECT x + {first} AS x FROM long_sequence({count}))"
    names = ", ".join(of.column_names)
    return f"INSERT INTO {of.name} ({names}) SELECT {', '.join(values)} FROM {numbers}"


# --- questions ------------------------------------------------------------------------------------


def questions(
    stored: History, ticker: str, end_ns: int
) -> list[tuple[str, float, Callable[[], int]]]:
    """(in words, limit in ms, asks it and says how many rows the answer has); the last row is of `end_ns`."""
    recent_ns = end_ns - 5 * _MINUTE_NS
    day = day_of_ns(end_ns) - timedelta(days=2)
    a_day = (day.isoformat(), (day + timedelta(days=1)).isoformat())
    mine = f"ticker = '{ticker}'"
    of_day = f"{mine} AND ts IN '{day}'"

    def sql(query: str) -> Callable[[], int]:
        return lambda: stored.sql(query).num_rows

    return [
        (
            "trades of a market, last 5 minutes",
            RECENT_MS,
            lambda: stored.trades(ticker, recent_ns).num_rows,
        ),
        (
            "best bids and offers, last 5 minutes",
            RECENT_MS,
            lambda: stored.bbo(ticker, recent_ns).num_rows,
        ),
        (
            "changes of its book, last 5 minutes",
            RECENT_MS,
            lambda: stored.deltas(ticker, recent_ns).num_rows,
        ),
        ("its best bid and offer now", RECENT_MS, lambda: stored.bbo_at(ticker, end_ns).num_rows),
        (
            "SQL: its last 100 trades",
            RECENT_MS,
            sql(f"SELECT * FROM trades WHERE {mine} LIMIT -100"),
        ),
        (
            "SQL: its last 200 changes",
            RECENT_MS,
            sql(f"SELECT * FROM orderbook_deltas WHERE {mine} LIMIT -200"),
        ),
        ("trades of a market, one day", DAY_MS, lambda: stored.trades(ticker, *a_day).num_rows),
        (
            "best bids and offers, one day",
            DAY_MS,
            lambda: stored.bbo(ticker, *a_day).num_rows,
        ),
        # Tens of thousands of rows: the server writes their text for as long as all that is allowed.
        ("changes of its book, one day", 0, lambda: stored.deltas(ticker, *a_day).num_rows),
        ("open, high, low, close, one day", DAY_MS, lambda: stored.ohlc(ticker, *a_day).num_rows),
        ("SQL: ohlc_1m, one day", DAY_MS, sql(f"SELECT * FROM ohlc_1m WHERE {of_day}")),
        (
            "SQL: trades and volume, one day",
            DAY_MS,
            sql(f"SELECT count(), sum(size_e2) FROM trades WHERE {of_day}"),
        ),
    ]


def measure(question: str, limit_ms: float, ask: Callable[[], int], repeats: int) -> Timing:
    """Ask it, three times unmeasured."""
    rows = 0
    for _ in range(3):
        rows = ask()
    times_ms = []
    for _ in range(repeats):
        begun_ns = time.perf_counter_ns()
        ask()
        times_ms.append((time.perf_counter_ns() - begun_ns) / 1e6)
    times_ms.sort()
    last = repeats - 1
    return Timing(question, limit_ms, rows, times_ms[last // 2], times_ms[last * 99 // 100])


def measure_all(rows: int, days: int, repeats: int) -> tuple[dict[str, int], list[Timing]]:
    """How many rows each table has, and how long each question took. Raises `StoreError`."""
    end_ns = time.time_ns() // _MINUTE_NS * _MINUTE_NS
    with (
        TemporaryDirectory(prefix="tickerplant-bench-") as name,
        LocalServer(Path(name), cache_folder(), heap="1g", settings=_WORKERS) as local,
    ):
        login = Login(local.user, local.password)
        server = QuestDbHttp(f"http::addr={local.address};", login)
        apply(server, 0)
        counts = fill(server, rows, end_ns - days * DAY_NS, end_ns)
        with History(QuestDbSource(server)) as stored:
            asked = questions(stored, BUSIEST, end_ns)
            return counts, [measure(*one, repeats) for one in asked]


def main(arguments: list[str]) -> int:
    """Measure and print; a missed budget is told, not an error."""
    parser = argparse.ArgumentParser(
        prog="query_times", description="Measure questions to QuestDB."
    )
    parser.add_argument("--rows", type=int, default=12_000_000)
    parser.add_argument("--days", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--json", action="store_true", help="the raw numbers")
    options = parser.parse_args(arguments)
    counts, timings = measure_all(options.rows, options.days, options.repeats)
    if options.json:
        print(json.dumps({"rows": counts, "timings": [one._asdict() for one in timings]}))
        return 0
    print(machine())
    print(", ".join(f"{name}: {count:,} rows" for name, count in counts.items()))
    print(table([_row(one) for one in timings]))
    return 0


def _row(one: Timing) -> Row:
    value = f"{one.p50_ms:.1f}, {one.p99_ms:.1f} ms for {one.rows:,} rows"
    if not one.limit_ms:
        return Row(f"{one.question}, p50, p99", value, "", "")
    return Row(
        f"{one.question}, p50, p99", value, f"{one.limit_ms:.0f}", "", one.p50_ms < one.limit_ms
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
