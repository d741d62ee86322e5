"""What the store has kept of the demo: asked with SQL, and books at an instant against the exchange's own."""

import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from tickerplant.errors import StoreError
from tickerplant.history import History
from tickerplant.limits import DEMO_STORED_BOOKS
from tickerplant.store.answers import write_text
from tickerplant.store.dead_letters import DeadLetters
from tickerplant.store.duckdb_source import DuckDbSource
from tickerplant.store.follower import LogFollower
from tickerplant.store.parquet_backend import ParquetBackend

TABLES = ("trades", "bbo", "orderbook_deltas", "tickers")
SAMPLE_SQL = (
    "SELECT ticker, count(*) AS trades, sum(size) AS contracts, min(price) AS low, max(price) AS high "
    "FROM trades_v GROUP BY ticker ORDER BY contracts DESC, ticker LIMIT 5"
)
Levels = list[tuple[int, int]]
_NEVER_NS = 2**62


class OwnBook(Protocol):
    """The exchange's book: (price_e4, size_e2) by price ascending."""

    @property
    def bids(self) -> Levels:
        """YES bids."""

    @property
    def asks(self) -> Levels:
        """YES asks."""


class Stored(NamedTuple):
    """Rows by table, messages on stream trade, and books rebuilt as they were when the flow had stopped."""

    rows: Mapping[str, int]
    trade_messages: int
    books: int
    unequal: list[str]
    """`ticker (why)`."""
    answer: str
    """To `SAMPLE_SQL`, as a table."""


def take_rest(log: Path, folder: Path) -> None:
    """Store what the plant's own store had no time for before both ended. Raises `StoreError`."""
    backend = ParquetBackend(folder, close_ns=_NEVER_NS, close_rows=_NEVER_NS)
    follower = LogFollower(log, backend, DeadLetters(folder))
    try:
        follower.open()
        while follower.turn(0):
            pass
        follower.commit()
    finally:
        follower.close()


def read_stored(folder: Path, own: Mapping[str, OwnBook], at_ns: int) -> Stored:
    """Ask the store in `folder`; `own` are the exchange's books at `at_ns`. Raises `StoreError`."""
    with History(DuckDbSource(folder)) as stored:
        rows = {name: _count(stored, name) for name in TABLES}
        trade_messages = rows["trades"] + _count(stored, "feed_events WHERE stream = 'trade'")
        chosen = sorted(ticker for ticker, book in own.items() if book.bids or book.asks)
        chosen = chosen[:: max(1, len(chosen) // DEMO_STORED_BOOKS)][:DEMO_STORED_BOOKS]
        unequal = [
            f"{ticker} ({fault})"
            for ticker in chosen
            if (fault := _fault_of(stored, ticker, own[ticker], at_ns))
        ]
        answer = io.StringIO()
        write_text(stored.source.stream(SAMPLE_SQL), answer, 0)
    return Stored(rows, trade_messages, len(chosen), unequal, answer.getvalue())


def _count(stored: History, what: str) -> int:
    count: int = stored.sql(f"SELECT count(*) AS n FROM {what}")["n"][0].as_py()  # noqa: S608  # our own text
    return count


def _fault_of(stored: History, ticker: str, own: OwnBook, at_ns: int) -> str:
    """Why the stored book is not the exchange's; empty if it is."""
    try:
        found = stored.book_at(ticker, at_ns)
    except StoreError as error:
        return str(error)
    if found.state != "live":
        return found.state
    is_equal = (found.book.bids, found.book.asks) == (dict(own.bids), dict(own.asks))
    return "" if is_equal else "other levels"


def now_ns() -> int:
    """The wall clock, which is the simulated exchange's too."""
    return time.time_ns()
