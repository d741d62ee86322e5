"""`tickerplant sql`: asks what was stored, in SQL or with a ready query."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tickerplant.commands.options import add_command, add_config_options, load_config_of
from tickerplant.commands.time_options import parse_time_ns
from tickerplant.errors import EXIT_OK, UsageError
from tickerplant.limits import SQL_SHOWN_ROWS

if TYPE_CHECKING:
    import pyarrow as pa

    from tickerplant.history import History
    from tickerplant.store.book_history import BookAt

READY = ("trades", "bbo", "book", "ohlc")
_PERIODS = ("1m", "5m", "15m", "1h", "1d")

_EXAMPLES = """\
examples:
  tickerplant sql "SELECT ticker, count(*) AS trades FROM trades GROUP BY ticker ORDER BY trades DESC LIMIT 10"
  tickerplant sql "SELECT * FROM orderbook_deltas" --format parquet --output deltas.parquet
  tickerplant sql trades KXBTC15M-26NOV211215-15 --from 2026-11-21T12:00 --to 2026-11-21T12:05
  tickerplant sql bbo KXBTC15M-26NOV211215-15 --at 2026-11-21T12:07:03.250
  tickerplant sql book KXBTC15M-26NOV211215-15 --at 2026-11-21T12:07:03.250
  tickerplant sql ohlc KXBTC15M-26NOV211215-15 --period 1h --format csv
  tickerplant sql trades KXBTC15M-26NOV211215-15 --from 2026-08-03 --to 2026-08-04 --archive

ready queries, of one market or of all if none is named:
  trades   trades, by exchange time
  bbo      changes of best bid and offer, by time of receipt; with --at what held at that instant
  book     the whole book at an instant of the exchange's clock, rebuilt, its checksums compared
  ohlc     open, high, low, close and volume for each --period

Tables: trades, orderbook_deltas, bbo, tickers, book_snapshots, markets, events, series, feed_events, candlesticks.
Prices are integers in 1e-4 dollars (_e4), sizes in 1e-2 contracts (_e2); views named like trades_v have dollars and
contracts; ohlc_1m, ohlc_1h and ohlc_1d are views of trades. Rows are there once their file is closed (store.close_s).

exit codes: 0 ok, 1 refused, nothing known or damaged, 2 usage or configuration"""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "sql",
        summary="ask what was stored: SQL, or trades, quotes, books and candles of a market",
        description="Ask the store, in SQL or with a ready query. It may be asked while everything runs.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("query", help=f"SQL, or one of {', '.join(READY)}")
    parser.add_argument("ticker", nargs="?", help="market, for a ready query")
    parser.add_argument(
        "--at", type=parse_time_ns, metavar="TIME", help="an instant (bbo, book); UTC"
    )
    parser.add_argument(
        "--from", type=parse_time_ns, metavar="TIME", dest="start", help="from then on"
    )
    parser.add_argument("--to", type=parse_time_ns, metavar="TIME", dest="end", help="before then")
    parser.add_argument(
        "--period", choices=_PERIODS, default="1m", help="of ohlc (default: %(default)s)"
    )
    parser.add_argument(
        "--format",
        choices=("table", "csv", "json", "parquet"),
        default="table",
        help="json: an object a line (default: %(default)s)",
    )
    parser.add_argument(
        "--archive",
        action="store_true",
        help="ask the archive, whole days in the object store, instead of the store",
    )
    parser.add_argument("--output", metavar="FILE", help="write there (default: print)")
    parser.add_argument(
        "--limit",
        type=int,
        default=SQL_SHOWN_ROWS,
        metavar="N",
        help="rows of a table, 0: all (default: %(default)s)",
    )
    add_config_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the answer. Raises `ConfigurationError`, `StoreError`."""
    _check(arguments)
    from tickerplant.history import History
    from tickerplant.store.answers import in_units
    from tickerplant.store.open_source import open_archive, open_source

    loaded = load_config_of(arguments)
    open_one = open_archive if arguments.archive else open_source
    with History(open_one(loaded.config, loaded.state_directory)) as stored:
        if arguments.query not in READY:
            _write(stored.source.stream(arguments.query), arguments)
        elif arguments.query == "book":
            _write_book(stored.book_at(arguments.ticker, arguments.at), arguments)
        else:
            data = _ask(stored, arguments)
            if arguments.format == "table":
                data = in_units(data)
            _write(data.to_reader(), arguments)
    return EXIT_OK


def _check(arguments: argparse.Namespace) -> None:
    """Raises `UsageError` for options that do not go with each other."""
    query, at = arguments.query, arguments.at
    ranged = arguments.start is not None or arguments.end is not None
    problem = ""
    if query not in READY:
        if arguments.ticker or at is not None or ranged:
            problem = f"a market and times go with {', '.join(READY)}; SQL says its own"
    elif query == "book" and (at is None or not arguments.ticker):
        problem = "book needs a market and --at"
    elif at is not None and (query not in ("book", "bbo") or ranged or not arguments.ticker):
        problem = "--at goes with bbo and book, with a market, and without --from and --to"
    if arguments.format == "parquet" and not arguments.output:
        problem = "--format parquet needs --output FILE"
    if problem:
        raise UsageError(f"sql: {problem} (see tickerplant sql --help)")


def _ask(stored: "History", arguments: argparse.Namespace) -> "pa.Table":
    ticker, start, end = arguments.ticker, arguments.start, arguments.end
    if arguments.query == "ohlc":
        return stored.ohlc(ticker, start, end, arguments.period)
    if arguments.query == "trades":
        return stored.trades(ticker, start, end)
    if arguments.at is not None:
        return stored.bbo_at(ticker, arguments.at)
    return stored.bbo(ticker, start, end)


def _write(reader: "pa.RecordBatchReader", arguments: argparse.Namespace) -> None:
    from tickerplant.store import answers

    if arguments.format == "parquet":
        answers.write_parquet(reader, Path(arguments.output))
        return
    with _Output(arguments.output) as output:
        if arguments.format == "csv":
            answers.write_csv(reader, output)
        elif arguments.format == "json":
            answers.write_json(reader, output)
        else:
            answers.write_text(reader, output, max(0, arguments.limit))


def _write_book(found: "BookAt", arguments: argparse.Namespace) -> None:
    if arguments.format in ("csv", "parquet"):
        _write(found.levels.to_reader(), arguments)
        return
    with _Output(arguments.output) as output:
        if arguments.format == "json":
            output.write(json.dumps(book_object(found)) + "\n")
        else:
            output.writelines(book_lines(found))


def book_object(found: "BookAt") -> dict[str, Any]:
    """A book at an instant for machines: integers, best level first."""
    bids, asks = found.book.depth(found.book.level_count)
    return {
        "ticker": found.ticker,
        "at_ns": found.at_ns,
        "state": found.state,
        "reason": found.reason or None,
        "session": found.session,
        "seq": found.seq,
        "ts_ns": found.ts_ns,
        "ts_recv_ns": found.ts_recv_ns,
        "checks": found.checks,
        "is_confirmed": found.is_confirmed,
        "bids": bids,
        "asks": asks,
    }


def book_lines(found: "BookAt") -> list[str]:
    """A book at an instant for people: dollars and contracts, best level first."""
    from tickerplant.store.answers import decimal_text, instant_text

    state = f"{found.state} ({found.reason})" if found.reason else found.state
    proof = " and one after it" if found.is_confirmed else ""
    lines = [
        f"{found.ticker} at {instant_text(found.at_ns)}: {state}\n",
        f"last change {instant_text(found.ts_ns)}, session {found.session} seq {found.seq}\n",
        f"{found.checks} checksums agree{proof}\n",
        f"{'contracts':>14} {'bid':>8}   {'ask':<8} {'contracts':>14}\n",
    ]
    bids, asks = found.book.depth(found.book.level_count)
    for index in range(max(len(bids), len(asks))):
        left, right = " " * 23, ""
        if index < len(bids):
            left = f"{decimal_text(bids[index][1], 2):>14} {decimal_text(bids[index][0], 4):>8}"
        if index < len(asks):
            right = f"{decimal_text(asks[index][0], 4):<8} {decimal_text(asks[index][1], 2):>14}"
        lines.append(f"{left}   {right}".rstrip() + "\n")
    return lines


class _Output:
    """The file of `--output`, or standard output."""

    def __init__(self, path: str | None) -> None:
        """Opens nothing yet."""
        self._path = path
        self._file: Any = None

    def __enter__(self) -> Any:
        """The open file. Raises `UsageError` if it cannot be written."""
        if self._path is None:
            return sys.stdout
        try:
            self._file = Path(self._path).open("w", encoding="utf-8", newline="")
        except OSError as error:
            raise UsageError(
                f"--output {self._path}: {error.strerror}: give a file that can be written"
            ) from error
        return self._file

    def __exit__(self, *_exception: object) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
