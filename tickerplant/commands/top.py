"""`tickerplant top`: a live view of markets, streams and gaps in the terminal."""

import argparse
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tickerplant.commands.options import add_command
from tickerplant.commands.subscription_options import (
    add_subscription_options,
    network_options_of,
    parse_duration_s,
    tickers_of,
)
from tickerplant.errors import EXIT_OK

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from tickerplant.commands.board import Board, MarketRow
    from tickerplant_subscriber.stats import LineStats, StreamStats

ONCE_S = 2.0
"""How long `--once` listens without `--for`."""
EVENT_ROWS = 4
STREAM_ROWS_MAX = 10
_MARKET_ROWS_MIN = 3
_WIDE_COLUMNS = 100
"""Terminals narrower than this do without sizes."""

_EXAMPLE = """\
examples:
  tickerplant top                        every market, the busiest first; Ctrl-C ends it
  tickerplant top 'KXBTC*' --every 1s    some markets, one frame a second
  tickerplant top --once --for 5s        listen for five seconds and print one frame"""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "top",
        summary="a live view of markets, streams and gaps",
        description=(
            "Show the busiest markets with best bid and offer and last trade, the rate, gaps and loss\n"
            "per line of each stream, and what went wrong lately. Without a terminal one frame is\n"
            "printed, as with --once."
        ),
        epilog=_EXAMPLE,
    )
    parser.add_argument(
        "--once", action="store_true", help=f"print one frame after --for (default {ONCE_S:g}s)"
    )
    parser.add_argument(
        "--every",
        type=parse_duration_s,
        default=0.5,
        metavar="DURATION",
        dest="interval_s",
        help="time between two frames (default: 500ms)",
    )
    parser.add_argument(
        "--no-books",
        action="store_true",
        help="leave out stream delta and the count of live books, which cost most of the time",
    )
    add_subscription_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show until `--for`, SIGINT or SIGTERM. Raises `ConfigurationError`, `NetworkSetupError`."""
    import logging

    from rich.console import Console
    from rich.live import Live

    from tickerplant.commands.board import Board
    from tickerplant.core.messages import Stream
    from tickerplant_subscriber.runner import run as run_strategy

    # The view shows what would be logged.
    logging.getLogger("tickerplant_subscriber").addHandler(logging.NullHandler())
    streams = () if arguments.no_books else (Stream.DELTA,)
    network = network_options_of(arguments)
    console = Console()
    if arguments.once or not sys.stdout.isatty():
        frames: list[RenderableType] = []

        def keep(board: Board) -> None:
            frames.append(draw(board, console))
            board.stop()

        run_strategy(
            Board(tickers_of(arguments), streams, arguments.duration_s or ONCE_S, keep), **network
        )
        for frame in frames:
            console.print(frame)
        return EXIT_OK
    with Live(console=console, screen=True, auto_refresh=False) as live:

        def show(board: Board) -> None:
            live.update(draw(board, console), refresh=True)
            if arguments.duration_s is not None and board.age_s >= arguments.duration_s:
                board.stop()

        run_strategy(Board(tickers_of(arguments), streams, arguments.interval_s, show), **network)
    return EXIT_OK


def draw(board: "Board", console: "Console") -> "RenderableType":
    """One frame that fits the console."""
    from rich.console import Group
    from rich.text import Text

    width, height = console.size
    stats = board.stats()
    streams = stats.streams[:STREAM_ROWS_MAX] if stats is not None else ()
    # Two lines of head, both table heads, three empty lines and the one on which the cursor stays.
    market_rows = max(_MARKET_ROWS_MIN, height - len(streams) - EVENT_ROWS - 8)
    refused = sum(stats.refused.values()) if stats is not None else 0
    now = datetime.fromtimestamp(board.now_ns / 1e9, UTC)
    head = Text(no_wrap=True, overflow="ellipsis")
    head.append("tickerplant top", style="bold")
    head.append(f"  {now:%H:%M:%S} UTC  feed ")
    head.append(board.feed, style="green" if board.feed.startswith("ready") else "yellow")
    head.append(f"\n{board.books_text()}, {board.gap_count} gaps")
    if refused:
        head.append(f", {refused} datagrams refused", style="red")
    return Group(
        head,
        Text(),
        _streams_table(board, streams),
        Text(),
        _markets_table(board.busiest(market_rows), wide=width >= _WIDE_COLUMNS),
        Text(),
        _events_text(board),
    )


def _table(*columns: tuple[str, str]) -> "Table":
    """A table of (title, "left" or "right") columns without borders, one line a row."""
    from rich.table import Table

    table = Table(box=None, expand=True, padding=(0, 1), header_style="bold")
    for title, justify in columns:
        table.add_column(
            title,
            justify="left" if justify == "left" else "right",
            no_wrap=True,
            overflow="ellipsis",
            ratio=1 if title in {"stream", "market"} else None,
        )
    return table


def _streams_table(board: "Board", streams: "tuple[StreamStats, ...]") -> "Table":
    line_count = max((len(stream.lines) for stream in streams), default=1)
    lines = [(f"{name} lost", "right") for name in ("A", "B")[:line_count]]
    if line_count > 1:
        lines.append(("first", "right"))
    table = _table(
        ("stream", "left"),
        ("per s", "right"),
        ("messages", "right"),
        ("gaps", "right"),
        ("missing", "right"),
        ("repaired", "right"),
        *lines,
    )
    for stream in streams:
        rate = board.rates.get((stream.publisher, stream.partition, stream.stream), 0.0)
        table.add_row(
            _stream_label(stream),
            f"{rate:,.0f}",
            f"{stream.messages:,}",
            f"{stream.gaps:,}",
            f"{stream.messages_lost:,}",
            f"{stream.messages_repaired:,}",
            *(_line_text(line) for line in stream.lines),
            *((_winner_text(stream),) if line_count > 1 else ()),
            style="red" if stream.dead or stream.behind or stream.gaps else "",
        )
    return table


def _line_text(line: "LineStats") -> str:
    """Messages that this line did not bring, and which share of its datagrams that is as of the last heartbeat."""
    share = f" ({line.loss_ratio:.1%})" if line.loss_ratio else ""
    return f"{line.messages_missing:,}{share}"


def _winner_text(stream: "StreamStats") -> str:
    """Which line brings most first, and how much of all that is."""
    winner, wins = stream.winner, sum(line.wins for line in stream.lines)
    return "-" if winner is None else f"{'AB'[winner]} {stream.lines[winner].wins / wins:.0%}"


def _stream_label(stream: "StreamStats") -> str:
    from tickerplant_subscriber.event_log import stream_name

    state = "  dead" if stream.dead else "  ended" if stream.ended else ""
    if stream.behind and not state:
        state = "  behind"
    plant = f" (publisher {stream.publisher})" if stream.publisher != 1 else ""
    return f"{stream_name(stream.stream)}{plant}{state}"


def _markets_table(rows: "list[MarketRow]", *, wide: bool) -> "Table":
    from tickerplant.core.fixedpoint import format_price_e4, format_size_e2

    titles = ["bid size", "bid", "ask", "ask size", "last", "last size", "per s"]
    if not wide:
        titles = ["bid", "ask", "last", "per s"]
    table = _table(("market", "left"), *((title, "right") for title in titles), ("", "left"))
    for row in rows:
        values = {
            "bid size": format_size_e2(row.bid_size_e2) if row.bid_size_e2 else "-",
            "bid": format_price_e4(row.bid_e4) if row.bid_size_e2 else "-",
            "ask": format_price_e4(row.ask_e4) if row.ask_size_e2 else "-",
            "ask size": format_size_e2(row.ask_size_e2) if row.ask_size_e2 else "-",
            "last": format_price_e4(row.last_e4) if row.last_e4 else "-",
            "last size": format_size_e2(row.last_size_e2) if row.last_size_e2 else "-",
            "per s": f"{row.rate:,.1f}",
        }
        style = "yellow" if row.state else ""
        table.add_row(row.ticker, *(values[title] for title in titles), row.state, style=style)
    return table


def _events_text(board: "Board") -> "RenderableType":
    from rich.text import Text

    lines = [
        f"{datetime.fromtimestamp(at_ns / 1e9, UTC):%H:%M:%S}  {text}" if at_ns else text
        for at_ns, text in list(board.events)[-EVENT_ROWS:]
    ]
    return Text("\n".join(lines), style="dim", no_wrap=True, overflow="ellipsis")
