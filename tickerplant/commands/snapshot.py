"""`tickerplant snapshot`: prints the books as they are now, from recovery and what is on the wire, and ends."""

import argparse
from typing import TYPE_CHECKING

from tickerplant.commands.options import add_command
from tickerplant.commands.subscription_options import (
    add_subscription_options,
    network_options_of,
    parse_count,
    tickers_of,
)
from tickerplant.errors import EXIT_OK, ConfigurationError, TemporaryError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tickerplant_subscriber import BookView, Subscriber

PATIENCE_S = 15.0
"""How long recovery and plant are waited for, if `--for` does not say."""

_EXAMPLE = """\
examples:
  tickerplant snapshot                               every book, its best levels
  tickerplant snapshot 'KXBTC*' --depth 10           ten levels a side
  tickerplant snapshot --format json | jq -c '[.ticker, .bids[-1]]'

JSON has whole books, one a line, with their state: levels as [price_e4, size_e2], prices ascending.
It joins late, as any subscriber does, and so needs recovery. Exit code 75: plant or recovery did not answer in time."""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "snapshot",
        summary="print the books as they are now",
        description="Join, take a snapshot from recovery, catch up, print every book, and end.",
        epilog=_EXAMPLE,
    )
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="default: %(default)s"
    )
    parser.add_argument(
        "--depth", type=parse_count, metavar="N", default=1, help="levels a side (default: 1)"
    )
    add_subscription_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print all books. Raises `ConfigurationError`, `NetworkSetupError`, `TemporaryError`."""
    import logging

    import uvloop

    from tickerplant_subscriber import Subscriber

    network = network_options_of(arguments)
    if not network["recovery"]:
        raise ConfigurationError("a snapshot comes from recovery: name it with --recovery")
    logging.getLogger("tickerplant_subscriber").addHandler(logging.NullHandler())
    subscriber = Subscriber(tickers_of(arguments), ["delta"], **network)
    books = uvloop.run(_books(subscriber, arguments.duration_s or PATIENCE_S))
    for view in books:
        print(_as_json(view) if arguments.format == "json" else _as_text(view, arguments.depth))
    return EXIT_OK


async def _books(subscriber: "Subscriber", patience_s: float) -> "Sequence[BookView]":
    """All books, by ticker, once they are up to date. Raises `TemporaryError` if that takes too long."""
    import asyncio

    try:
        async with asyncio.timeout(patience_s), subscriber:
            async for item in subscriber:
                if _is_whole(subscriber, item):
                    break
            return sorted(subscriber.books(), key=lambda view: view.ticker)
    except TimeoutError:
        heard = bool(subscriber.stats().streams)
        silent = "recovery" if heard else "the plant"
        raise TemporaryError(
            f"no books within {patience_s:g} s, {silent} does not answer: does it run, and where? "
            "(--group-a, --interface, --recovery)"
        ) from None


def _is_whole(subscriber: "Subscriber", item: object) -> bool:
    """Whether a snapshot came or the session was heard from its start, and nothing is missing since."""
    from tickerplant_subscriber import (
        FeedPhase,
        FeedState,
        SnapshotApplied,
        Stream,
        StreamCaughtUp,
    )

    has_books = isinstance(item, SnapshotApplied | StreamCaughtUp) and item.stream == Stream.DELTA
    is_ready = isinstance(item, FeedState) and item.phase == FeedPhase.READY
    if not (has_books or is_ready):
        return False
    streams = [each for each in subscriber.stats().streams if each.stream == Stream.DELTA]
    return bool(streams) and not any(
        each.behind or each.open_holes or not each.lines[0].datagrams + each.lines[0].heartbeats
        for each in streams
    )


def _as_json(view: "BookView") -> str:
    import msgspec

    book = {
        "ticker": view.ticker,
        "state": view.state.name,
        "bids": list(view.bids.items()),
        "asks": list(view.asks.items()),
    }
    return msgspec.json.encode(book).decode()


def _as_text(view: "BookView", depth: int) -> str:
    from tickerplant_subscriber import format_price_e4, format_size_e2

    def levels(side: "Sequence[tuple[int, int]]") -> str:
        texts = [f"{format_price_e4(price)} x {format_size_e2(size)}" for price, size in side]
        return ", ".join(texts) or "-"

    bids, asks = view.depth(depth)
    return f"{view.ticker:<34} {view.state.name:<8} bid {levels(bids)}  ask {levels(asks)}"
