"""How fast a day of book changes is archived from a real QuestDB: python tests/bench/archive_rate.py [ROWS]

Not a test: prints rows per second from the first question to the last status, the steps, and bytes per row. Changes of
levels are drawn from recorded frames where these are there (../shared/captures), the rest is made up: 10,000 messages a
second, 2,000 markets.
"""

import re
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from questdb import Sender

sys.path.append(str(Path(__file__).resolve().parent.parent / "models"))

from archive_bed import DAY, archive_all, folder_store
from questdb_rows import http_of

from tickerplant.core.tables import ORDERBOOK_DELTAS
from tickerplant.store.arrow_tables import SCHEMAS, start_of_day_ns
from tickerplant.store.local_server import LocalServer, cache_folder
from tickerplant.store.questdb_archive import QuestDbArchiveSource
from tickerplant.store.questdb_frames import symbols, to_frame
from tickerplant.store.schema_check import apply

ROOT = Path(__file__).resolve().parent.parent.parent
ROWS = 3_000_000
BATCH_ROWS = 50_000
MARKETS = 2_000
MILLISECOND_NS = 1_000_000
ROUND_E2 = (100, 500, 1_000, 2_500, 10_000, 50_000, -100, -500, -1_000, -2_500, -10_000, -50_000)


def recorded_changes_e2() -> list[int]:
    """Sizes of changes in recorded frames."""
    paths = sorted((ROOT.parent / "shared" / "captures").glob("*.jsonl"))
    text = "".join(path.read_text() for path in paths)
    found = re.findall(r'"delta_fp":\s*"(-?[\d.]+)"', text)
    return [round(float(value) * 100) for value in found] or list(ROUND_E2)


def book_changes(count: int) -> pa.Table:
    """Rows of `orderbook_deltas`, within the hours of one day."""
    random = np.random.default_rng(1)
    start_ns = start_of_day_ns(DAY) + 3 * 3_600 * 1_000_000_000
    ts_recv = start_ns + np.cumsum(random.exponential(100_000, count).astype(np.int64) + 1)
    late = random.integers(2 * MILLISECOND_NS, 12 * MILLISECOND_NS, count)
    tickers = np.array([f"KXBTC15M-26SEP20{number:04d}-15" for number in range(MARKETS)])
    columns = {
        "ts_recv": ts_recv,
        "ts": (ts_recv - late) // MILLISECOND_NS * MILLISECOND_NS,
        "session": np.full(count, 1_789_948_798_000_000_000),
        "seq": np.arange(1, count + 1),
        "g": np.cumsum(random.integers(1, 3, count)),
        "ticker": tickers[random.zipf(1.3, count) % MARKETS],
        "kind": np.full(count, "update"),
        "side": np.array(["bid", "ask"])[random.integers(0, 2, count)],
        "price_e4": random.integers(1, 99, count) * 100,
        "delta_e2": random.choice(np.array(recorded_changes_e2()), count),
        "size_e2": random.integers(0, 50_000, count) * (random.random(count) < 0.8),
        "cause": np.full(count, "exchange"),
    }
    schema = SCHEMAS[ORDERBOOK_DELTAS.name]
    arrays = [
        pa.array(columns[field.name]).cast(field.type)
        if field.name in columns
        else pa.nulls(count, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def fill(server: LocalServer, data: pa.Table) -> None:
    """Write the rows, and wait until they show."""
    table = ORDERBOOK_DELTAS
    with Sender.from_conf(server.conf, auto_flush=False) as sender:
        for start in range(0, data.num_rows, BATCH_ROWS):
            frame = to_frame(table, data.slice(start, BATCH_ROWS))
            sender.dataframe(
                frame, table_name=table.name, symbols=symbols(table, frame), at=table.time
            )
            sender.flush()
    assert http_of(server).execute(f"SELECT wait_wal_table('{table.name}')", 600) == [[True]]


def main(count: int) -> None:
    """Fill a server, and archive it twice; the second time it is warm."""
    with tempfile.TemporaryDirectory() as name, LocalServer(Path(name), cache_folder()) as server:
        folder = Path(name)
        http = http_of(server)
        apply(http, 0)
        fill(server, book_changes(count))
        for run in ("first", "second"):
            source = QuestDbArchiveSource(http, folder / "log", folder / "work", hot_ns=10**19)
            steps: list[str] = []
            begun = time.perf_counter()

            def before_step(_table, _day, due, steps=steps, begun=begun):
                steps.append(f"{due.step.value} {time.perf_counter() - begun:.2f}")

            [outcome] = archive_all(
                source,
                folder_store(folder / run),
                folder / "work",
                tables=[ORDERBOOK_DELTAS.name],
                before_step=before_step,
            )
            took = time.perf_counter() - begun
            sys.stdout.write(
                f"{outcome.row_count / took:,.0f} rows/s, "
                f"{outcome.file_bytes / outcome.row_count:.2f} bytes a row; "
                f"begun at s: {', '.join(steps)}, end {took:.2f}\n"
            )
            http.execute("TRUNCATE TABLE archive_manifest")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROWS)
