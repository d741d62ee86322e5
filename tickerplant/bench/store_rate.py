"""The store into a QuestDB of its own: how many rows a second, and how long from datagram to queryable row.

Not part of `tickerplant bench`, because it fetches a server with Maven.

python -m tickerplant.bench.store_rate [--rows 2000000] [--seconds 20]
"""

import argparse
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from tickerplant.bench.load import draw_size_e2
from tickerplant.bench.report import Row, machine, table
from tickerplant.core.book import Book
from tickerplant.core.logformat import STREAM_COUNT
from tickerplant.core.messages import Bbo, BookClear, BookReady, LevelUpdate, Stream
from tickerplant.core.packets import Datagram
from tickerplant.core.wire import encode_datagram
from tickerplant.errors import StoreError
from tickerplant.limits import BENCH_STORE_TIMEOUT_S
from tickerplant.runtime.ticklog import TickLog, open_ticklog
from tickerplant.store.local_server import LocalServer, cache_folder
from tickerplant.store.questdb_http import Login, QuestDbHttp
from tickerplant.store.schema_check import apply

_MARKETS = 2_000
_PACKED = 20
"""Messages in a datagram at saturation: as many as fit."""
_PER_SECOND = 10_000
"""Messages, while the lag is measured."""
_LOOK_S = 0.002
"""Between two looks at the database; its processor time is the store's and the server's too."""
_MILLISECOND_NS = 1_000_000
_SECOND_NS = 1_000_000_000


class Feed:
    """What a plant would publish: order-book changes, and a best bid and offer with every fourth."""

    def __init__(self, ticklog: TickLog, session: int) -> None:
        self.session = session
        self.messages = 0
        self._ticklog = ticklog
        self._random = random.Random(1)  # noqa: S311  # the same load each time
        self._seqs = [1] * (STREAM_COUNT + 1)
        self._tickers = [f"KXBTC-26NOV2117-T{90_000 + 25 * n}" for n in range(_MARKETS)]
        self._sizes: dict[tuple[str, int, int], int] = {}
        self._g = 0
        self._begin(session)

    def send(self, count: int, now_ns: int) -> None:
        """So many messages in as few datagrams as possible, into the log."""
        quotes = max(1, count // 5)
        self._ticklog.append(
            [
                self._datagram(
                    Stream.DELTA, [self._update(now_ns) for _ in range(count - quotes)], now_ns
                ),
                self._datagram(Stream.BBO, [self._quote(now_ns) for _ in range(quotes)], now_ns),
            ]
        )

    def _begin(self, now_ns: int) -> None:
        """Every book is empty and live."""
        checksum = Book().checksum()
        for ticker in self._tickers:
            place = (ticker, self._g, 0, now_ns)
            messages = [BookClear(*place), BookReady(*place, checksum)]
            self._ticklog.append([self._datagram(Stream.DELTA, messages, now_ns)])

    @property
    def quotes(self) -> int:
        """The last `seq` of the stream of best bids and offers."""
        return self._seqs[Stream.BBO] - 1

    def _datagram(self, stream: Stream, messages: list[Any], now_ns: int) -> Datagram:
        seq = self._seqs[stream]
        self._seqs[stream] += len(messages)
        self.messages += len(messages)
        return stream, encode_datagram(0, stream, self.session, seq, now_ns, messages)

    def _place(self, now_ns: int) -> tuple[str, int, int, int]:
        self._g += 1
        event_ns = now_ns // _MILLISECOND_NS * _MILLISECOND_NS
        return self._random.choice(self._tickers), self._g, event_ns, now_ns

    def _update(self, now_ns: int) -> LevelUpdate:
        draw = self._random
        place, delta_e2 = self._place(now_ns), draw_size_e2(draw)
        level = (place[0], draw.randrange(2), draw.randrange(1, 100) * 100)
        size_e2 = self._sizes[level] = self._sizes.get(level, 0) + delta_e2
        return LevelUpdate(*place, *level[1:], delta_e2, size_e2)

    def _quote(self, now_ns: int) -> Bbo:
        bid_e4 = self._random.randrange(1, 99) * 100
        size_e2 = draw_size_e2(self._random)
        return Bbo(*self._place(now_ns), bid_e4, size_e2, bid_e4 + 100, size_e2, 1)


class _Bed(NamedTuple):
    """A server with an empty schema, a log, and the options of a store that leads from one to the other."""

    folder: Path
    server: LocalServer
    http: QuestDbHttp
    feed: Feed

    def start_store(self) -> "subprocess.Popen[bytes]":
        settings = {
            "state.directory": str(self.folder),
            "store.backend": "questdb",
            "store.conf": f"http::addr={self.server.address};",
            "store.username": self.server.user,
            "store.password_path": str(self.folder / "password"),
            "metrics.enabled": "false",
            "log.level": "error",
        }
        words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        return subprocess.Popen(  # noqa: S603  # our own command
            [sys.executable, "-m", "tickerplant", "store", "--config", "/dev/null", *words]
        )

    def row_count(self) -> int:
        """Rows that can be queried."""
        [[count]] = self.http.execute(
            "SELECT sum(n) FROM (SELECT count() n FROM bbo UNION ALL SELECT count() n FROM orderbook_deltas)"
        )
        return int(count)


def _with_bed(measure: Callable[[_Bed], dict[str, Any]]) -> dict[str, Any]:
    with TemporaryDirectory(prefix="tickerplant-bench-") as name:
        folder = Path(name)
        with LocalServer(folder / "questdb", cache_folder(), heap="1g") as server:
            (folder / "password").write_text(server.password)
            http = QuestDbHttp(f"http::addr={server.address};", Login(server.user, server.password))
            apply(http, 0)
            session = time.time_ns()
            with open_ticklog(folder / "ticklog") as ticklog:
                ticklog.begin_session(session, session)
                return measure(_Bed(folder, server, http, Feed(ticklog, session)))


def measure_rate(rows: int) -> dict[str, Any]:
    """{"rows", "rows_per_s": from the first row that can be queried to the last}. Raises `StoreError`."""

    def measure(bed: _Bed) -> dict[str, Any]:
        # As if they had come at 50,000 a second up to now.
        now_ns = bed.feed.session
        while bed.feed.messages < rows:
            bed.feed.send(5 * _PACKED // 4, now_ns)
            now_ns += _PACKED * 20_000
        store = bed.start_store()
        try:
            _wait(lambda: bed.row_count() > 0, store)
            began, first = time.monotonic(), bed.row_count()
            _wait(lambda: bed.row_count() >= bed.feed.messages, store)
            elapsed_s = time.monotonic() - began
        finally:
            _end(store)
        return {
            "rows": bed.feed.messages,
            "rows_per_s": (bed.feed.messages - first) / elapsed_s,
        }

    return _with_bed(measure)


def measure_lag(seconds: float, per_second: int = _PER_SECOND) -> dict[str, Any]:
    """{"lag_ms": {p50, p99, max} from datagram to queryable row}, two datagrams a millisecond. Raises `StoreError`."""

    def measure(bed: _Bed) -> dict[str, Any]:
        sent: list[tuple[int, int]] = []
        stop = threading.Event()
        writer = threading.Thread(
            target=_send_paced, args=(bed.feed, per_second // 1_000, sent, stop)
        )
        store = bed.start_store()
        seen: list[tuple[int, int]] = []
        try:
            # The books, which are in the log from the start: it is up.
            _wait(lambda: bed.row_count() >= 2 * _MARKETS, store)
            writer.start()
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                # The newest row, without a look at the others: this costs the server little.
                newest = bed.http.execute("SELECT seq FROM bbo LIMIT -1")
                seen.append((time.time_ns(), newest[0][0] if newest else 0))
                time.sleep(_LOOK_S)
            bed.http.execute("SELECT wait_wal_table('bbo')")
        finally:
            stop.set()
            if writer.ident is not None:
                writer.join()
            _end(store)
        return {"messages_per_s": per_second, "lag_ms": lags_ms(sent, seen)}

    return _with_bed(measure)


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
        time.sleep(0.02)


def _end(store: "subprocess.Popen[bytes]") -> None:
    store.terminate()
    try:
        store.wait(BENCH_STORE_TIMEOUT_S)
    finally:
        store.kill()


def main(arguments: list[str]) -> int:
    """Measure and print; a missed budget is told, not an error."""
    parser = argparse.ArgumentParser(
        prog="store_rate", description="Measure the store into QuestDB."
    )
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--per-second", type=int, default=_PER_SECOND, help="messages, for the lag")
    parser.add_argument("--json", action="store_true", help="the raw numbers")
    options = parser.parse_args(arguments)
    results = {**measure_rate(options.rows), **measure_lag(options.seconds, options.per_second)}
    if options.json:
        print(json.dumps(results))
        return 0
    rate, lag = results["rows_per_s"], results["lag_ms"]
    print(machine())
    print(
        table(
            [
                Row(
                    "tick log to rows in QuestDB",
                    f"{rate:,.0f} rows/s",
                    "150,000",
                    "",
                    rate >= 150_000,
                ),
                Row(
                    f"datagram to queryable row, {options.per_second:,} messages/s, p50, p99",
                    f"{lag['p50']:.0f}, {lag['p99']:.0f} ms",
                    "100, 250",
                    "",
                    lag["p50"] <= 100 and lag["p99"] <= 250,
                ),
            ]
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
