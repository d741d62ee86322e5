"""`tickerplant tail`: prints what the plant publishes, and gaps, sessions and stale markets as they happen."""

import argparse
import sys
from typing import TYPE_CHECKING

from tickerplant.commands.options import add_command
from tickerplant.commands.subscription_options import (
    add_subscription_options,
    network_options_of,
    parse_count,
    tickers_of,
)
from tickerplant.errors import EXIT_OK

if TYPE_CHECKING:
    from tickerplant_subscriber.subscriber import Subscriber

SILENCE_S = 3.0
"""Without a plant for so long a hint is printed to standard error."""

_STREAM_NAMES = ("trade", "bbo", "ticker", "delta", "status")

_EXAMPLE = """\
examples:
  tickerplant tail                                       everything
  tickerplant tail 'KXBTC*' --stream trade --stream bbo  trades and quotes of some markets
  tickerplant tail --stream trade --format json --count 100 | jq .price_e4

Text shows dollars and contracts; JSON the integers of the wire: price_e4 is 1e-4 dollar, size_e2 1e-2 contract."""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "tail",
        summary="print what the plant publishes",
        description="Print messages as they arrive, and gaps, sessions and stale markets as they happen.",
        epilog=_EXAMPLE,
    )
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="default: %(default)s"
    )
    parser.add_argument("--count", type=parse_count, metavar="N", help="stop after N lines")
    parser.add_argument(
        "--stream",
        choices=_STREAM_NAMES,
        action="append",
        default=[],
        dest="streams",
        help="only this stream; may be given several times (default: all)",
    )
    add_subscription_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print until `--count`, `--for`, SIGINT or SIGTERM. Raises `ConfigurationError`, `NetworkSetupError`."""
    import logging

    import uvloop

    from tickerplant_subscriber.subscriber import EVERY_STREAM, Subscriber

    # Gaps and the like are printed among the messages, not logged beside them.
    logging.getLogger("tickerplant_subscriber").addHandler(logging.NullHandler())
    subscriber = Subscriber(
        tickers_of(arguments),
        arguments.streams or EVERY_STREAM,
        **network_options_of(arguments),
    )
    uvloop.run(_print_items(subscriber, arguments))
    return EXIT_OK


async def _print_items(subscriber: "Subscriber", arguments: argparse.Namespace) -> None:
    import asyncio
    import signal

    from tickerplant.commands.item_text import as_json, as_text

    show = as_json if arguments.format == "json" else as_text
    remaining = arguments.count
    loop = asyncio.get_running_loop()
    async with subscriber:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, subscriber.close)
        if arguments.duration_s is not None:
            loop.call_later(arguments.duration_s, subscriber.close)
        loop.call_later(SILENCE_S, _hint_at_silence, subscriber)
        async for item in subscriber:
            _write(show(item), is_last=not subscriber.waiting_count)
            if remaining is not None:
                remaining -= 1
                if remaining == 0:
                    return


def _write(line: str, *, is_last: bool) -> None:
    """A line at once if nothing else waits; under load as the buffer fills."""
    sys.stdout.write(line + "\n")
    if is_last:
        sys.stdout.flush()


def _hint_at_silence(subscriber: "Subscriber") -> None:
    if not subscriber.stats().streams:
        print(
            "nothing heard yet: is the plant running, on this interface and group?", file=sys.stderr
        )
