"""The store into a QuestDB of its own: how many rows a second, and how long from datagram to queryable row.

One server for all of it, so that each measurement but the first meets it warm, as a server is that runs for days.
Before the store the client alone sends columns that were made beforehand: what machine and server can take.

Not part of `tickerplant bench`, because it fetches a server with Maven.

python -m tickerplant.bench.store_rate [--rows 1000000] [--seconds 20]
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pyarrow as pa
from questdb import Sender

from tickerplant.bench.report import Row, machine, table
from tickerplant.bench.store_load import Feed
from tickerplant.core.columns import ColumnMapper
from tickerplant.core.tables import TABLES, Table
from tickerplant.core.wire import decode_header
from tickerplant.errors import StoreError
from tickerplant.limits import BENCH_STORE_TIMEOUT_S
from tickerplant.runtime.logreader import LogReader
from tickerplant.runtime.ticklog import open_ticklog
from tickerplant.store.arrow_tables import to_arrow
from tickerplant.store.local_server import LocalServer, cache_folder
from tickerplant.store.questdb_frames import symbols, to_frame
from tickerplant.store.questdb_http import Login, QuestDbHttp
from tickerplant.store.schema_check import apply

_PACKED = 20
"""Messages in a datagram at saturation: as many as fit."""
_PER_SECOND = 10_000
"""Messages, while the lag is measured."""
_MUST_RATIO = 0.6
"""Rows of the store to rows of the client alone: 150,000 where the client reaches 250,000."""
_LOOK_S = 0.01
"""Between two looks at the database; its processor time is the store's and the server's too."""
_SETTLE_S = 6.0
"""From the first row of a live feed until the lag is measured."""
_CLIENT_BATCHES, _CLIENT_BATCH_ROWS = 6, 50_000
_FILLED = ("orderbook_deltas", "bbo")
_MILLISECOND_NS = 1_000_000
_SECOND_NS = 1_000_000_000


class _Bed(NamedTuple):
    """A server with an empty schema, a log, and the options of a store that leads from one to the other."""

    folder: Path
    server: LocalServer
    http: QuestDbHttp
    feed: Feed

    def start_store(self, name: str, snapshot_interval_s: int | None) -> "subprocess.Popen[bytes]":
        """A store with a place in the log of its own; None: everything as by default."""
        settings = {
            "state.directory": str(self.folder),
            "store.directory": str(self.folder / name),
            "store.backend": "questdb",
            "store.conf": f"http::addr={self.server.address};",
            "store.username": self.server.user,
            "store.password_path": str(self.folder / "password"),
            "metrics.enabled": "false",
            "log.level": "error",
        }
        if snapshot_interval_s is not None:
            settings["store.book_snapshot_interval_s"] = str(snapshot_interval_s)
        words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        return subprocess.Popen(  # noqa: S603  # our own command
            [sys.executable, "-P", "-m", "tickerplant", "store", "--config", "/dev/null", *words]
        )

    def row_count(self) -> int:
        """Rows that can be queried."""
        counts = " UNION ALL ".join(f"SELECT count() n FROM {name}" for name in _FILLED)  # noqa: S608  # our tables
        [[count]] = self.http.execute(f"SELECT sum(n) FROM ({counts})")  # noqa: S608  # our tables
        return int(count)

    def empty(self) -> None:
        """Forget all rows."""
        for name in _FILLED:
            self.http.execute(f"TRUNCATE TABLE {name}")
        deadline = time.monotonic() + BENCH_STORE_TIMEOUT_S
        while self.row_count():
            if time.monotonic() > deadline:
                raise StoreError("the server does not empty its tables")
            time.sleep(0.02)

    def applied(self) -> None:
        """Return when all that was sent can be queried."""
        for name in _FILLED:
            self.http.execute(f"SELECT wait_wal_table('{name}')")


def measure(rows: int, seconds: float, per_second: int = _PER_SECOND) -> dict[str, Any]:
    """{"client": `_client`, "store" and "store_without_books": `_store`, "lag_ms": `_lag`}. Raises `StoreError`."""
    with TemporaryDirectory(prefix="tickerplant-bench-") as name:
        folder = Path(name)
        with LocalServer(folder / "questdb", cache_folder(), heap="1g") as server:
            (folder / "password").write_text(server.password)
            http = QuestDbHttp(f"http::addr={server.address};", Login(server.user, server.password))
            apply(http, 0)
            session = time.time_ns()
            with open_ticklog(folder / "ticklog") as ticklog:
                ticklog.begin_session(session, session)
                bed = _Bed(folder, server, http, Feed(ticklog, session))
                _fill(bed.feed, rows)
                return {
                    "rows": bed.feed.messages,
                    "client": _client(bed),
                    "store": _store(bed, "store", None),
                    "store_without_books": _store(bed, "other", 0),
                    "lag_ms": _lag(bed, seconds, per_second),
                    "messages_per_s": per_second,
                }


def _fill(feed: Feed, rows: int) -> None:
    """As if they had come at 50,000 a second from the session's begin on."""
    now_ns = feed.session
    while feed.messages < rows:
        feed.send(5 * _PACKED // 4, now_ns)
        now_ns += _PACKED * 20_000


# --- the client alone -----------------------------------------------------------------------------


def _client(bed: _Bed) -> dict[str, Any]:
    """{"rows_per_s", "us_per_row": of this process} for batches as large as the store's, made beforehand."""
    batches = _batches(bed.folder / "ticklog")
    login = Login(bed.server.user, bed.server.password).sender_arguments()
    arguments: dict[str, Any] = {"auto_flush": False, **login}
    with Sender.from_conf(f"http::addr={bed.server.address};", **arguments) as sender:
        # The first time the server meets them cold.
        for _ in range(2):
            bed.empty()
            began_s, used_s = time.monotonic(), time.process_time()
            for batch in batches:
                for one, data in batch:
                    frame = to_frame(one, data)
                    names = symbols(one, frame)
                    sender.dataframe(frame, table_name=one.name, symbols=names, at=one.time)
                sender.flush()
            used_s = time.process_time() - used_s
            bed.applied()
            elapsed_s = time.monotonic() - began_s
    rows = sum(data.num_rows for batch in batches for _, data in batch)
    return {"rows": rows, "rows_per_s": rows / elapsed_s, "us_per_row": 1e6 * used_s / rows}


def _batches(folder: Path) -> list[list[tuple[Table, pa.Table]]]:
    mapper = ColumnMapper()
    batches: list[list[tuple[Table, pa.Table]]] = []
    with LogReader(folder) as reader:
        while len(batches) < _CLIENT_BATCHES and (batch := reader.read()) is not None:
            for _offset, datagram in batch.records:
                mapper.add(decode_header(datagram), datagram)
            if mapper.row_count >= _CLIENT_BATCH_ROWS:
                taken = mapper.take().items()
                batches.append([(TABLES[name], to_arrow(TABLES[name], one)) for name, one in taken])
    return batches


# --- the store ------------------------------------------------------------------------------------


def _store(bed: _Bed, name: str, snapshot_interval_s: int | None) -> dict[str, Any]:
    """{"rows_per_s": from the first row that can be queried to the last, "us_per_row": of the store's process}."""
    bed.empty()
    store = bed.start_store(name, snapshot_interval_s)
    try:
        _wait(lambda: bed.row_count() > 0, store)
        began_s, used_s, first = time.monotonic(), _used_s(store), bed.row_count()
        _wait(lambda: bed.row_count() >= bed.feed.messages, store)
        elapsed_s, used_s = time.monotonic() - began_s, _used_s(store) - used_s
    finally:
        _end(store)
    rows = bed.feed.messages - first
    return {"rows_per_s": rows / elapsed_s, "us_per_row": 1e6 * used_s / rows}


def _used_s(process: "subprocess.Popen[bytes]") -> float:
    """Processor time of a process, so far."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _lag(bed: _Bed, seconds: float, per_second: int) -> dict[str, Any]:
    """{p50, p99, max} from datagram to queryable row, two datagrams a millisecond, with a store as by default."""
    sent: list[tuple[int, int]] = []
    seen: list[tuple[int, int]] = []
    stop = threading.Event()
    writer = threading.Thread(target=_send_paced, args=(bed.feed, per_second // 1_000, sent, stop))
    before = bed.row_count()
    store = bed.start_store("store", None)
    try:
        writer.start()
        _wait(lambda: bed.row_count() > before, store)
        time.sleep(_SETTLE_S)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            # The newest row, without a look at the others: this costs the server little.
            newest = bed.http.execute("SELECT seq FROM bbo LIMIT -1")
            seen.append((time.time_ns(), newest[0][0] if newest else 0))
            time.sleep(_LOOK_S)
        bed.applied()
    finally:
        stop.set()
        writer.join()
        _end(store)
    return lags_ms(sent, seen)


def _send_paced(feed: Feed, count: int, sent: list[tuple[int, int]], stop: threading.Event) -> None:
    """`count` messages every millisecond; (last seq of the quotes, time) of each."""
    due_ns = time.time_ns()
    while not stop.is_set():
        now_ns = time.time_ns()
        if now_ns < due_ns:
            time.sleep((due_ns - now_ns) / _SECOND_NS)
            continue
        due_ns += _MILLISECOND_NS
        feed.send(count, now_ns)
        sent.append((feed.quotes, now_ns))


def lags_ms(sent: list[tuple[int, int]], seen: list[tuple[int, int]]) -> dict[str, float]:
    """Of each datagram that was sent after the first look: until the first look that showed its last row."""
    lags: list[float] = []
    looks = iter(seen)
    at_ns, seq = next(looks)
    first_ns = at_ns
    for last_seq, sent_ns in sent:
        while seq < last_seq:
            look = next(looks, None)
            if look is None:
                return _quantiles(lags)
            at_ns, seq = look
        if sent_ns >= first_ns:
            lags.append((at_ns - sent_ns) / _MILLISECOND_NS)
    return _quantiles(lags)


def _quantiles(values: list[float]) -> dict[str, float]:
    if not values:
        raise StoreError("nothing that was sent could be queried in time: the machine is too busy")
    ordered = sorted(values)
    last = len(ordered) - 1
    return {
        "p50": ordered[last // 2],
        "p99": ordered[last * 99 // 100],
        "max": ordered[-1],
        "count": len(ordered),
    }


def _wait(condition: Callable[[], bool], store: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + BENCH_STORE_TIMEOUT_S
    while not condition():
        if store.poll() is not None or time.monotonic() > deadline:
            raise StoreError("the store ended, or took too long: its output says why")
        time.sleep(0.05)


def _end(store: "subprocess.Popen[bytes]") -> None:
    store.terminate()
    try:
        store.wait(BENCH_STORE_TIMEOUT_S)
    finally:
        store.kill()


# --- the report -----------------------------------------------------------------------------------


def report(results: dict[str, Any]) -> list[Row]:
    """Line by line."""
    client, lag = results["client"], results["lag_ms"]
    what = f"datagram to queryable row, {results['messages_per_s']:,} messages/s, p50, p99"
    is_met = lag["p50"] <= 100 and lag["p99"] <= 250
    return [
        Row("the client alone, columns made beforehand", _rate(client), "", ""),
        _store_row("tick log to rows in QuestDB", results["store"], client),
        _store_row("  without whole books", results["store_without_books"], client),
        Row(what, f"{lag['p50']:.0f}, {lag['p99']:.0f} ms", "100, 250", "", is_met),
    ]


def _store_row(what: str, measured: dict[str, Any], client: dict[str, Any]) -> Row:
    ratio = measured["rows_per_s"] / client["rows_per_s"]
    value = f"{_rate(measured)}, {ratio:.2f}x the client"
    return Row(what, value, f"{_MUST_RATIO}x (150,000)", "", ratio >= _MUST_RATIO)


def _rate(measured: dict[str, Any]) -> str:
    return (
        f"{measured['rows_per_s']:,.0f} rows/s, {measured['us_per_row']:.1f} us of processor a row"
    )


def main(arguments: list[str]) -> int:
    """Measure and print; a missed budget is told, not an error."""
    parser = argparse.ArgumentParser(
        prog="store_rate", description="Measure the store into QuestDB."
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--per-second", type=int, default=_PER_SECOND, help="messages, for the lag")
    parser.add_argument("--json", action="store_true", help="the raw numbers")
    options = parser.parse_args(arguments)
    results = measure(options.rows, options.seconds, options.per_second)
    if options.json:
        print(json.dumps(results))
    else:
        print(machine())
        print(table(report(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
