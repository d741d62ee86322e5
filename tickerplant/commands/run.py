"""`tickerplant run`: the plant, until it is told to stop."""

import argparse
import json
from typing import TYPE_CHECKING

from tickerplant.commands.options import add_command, add_config_options
from tickerplant.errors import EXIT_OK

if TYPE_CHECKING:
    import asyncio

    from tickerplant.config_sources import LoadedConfig
    from tickerplant.runtime.companions import CompanionSpec
    from tickerplant.runtime.daemon import Daemon
    from tickerplant_kalshi.auth import Signer

_EXAMPLES = """\
examples:
  tickerplant run --key-id ID --key-path kalshi.pem --series KXBTC15M
  tickerplant run --key-id ID --key-path kalshi.pem --ticker KXINX-26NOV21-T5000 --ticker KXINX-26NOV21-T5100
  tickerplant run --config /etc/tickerplant/tickerplant.toml

Runs until SIGTERM or Ctrl-C, then ends its session and exits with 0. Exit codes: 1 failure (e.g. another plant on the
multicast groups), 2 usage, configuration or API key, 75 try again later (clock, exchange or network at the start)."""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "run",
        summary="run the plant",
        description="Take the exchange's market data, keep the books and publish them on UDP multicast.",
        epilog=_EXAMPLES,
    )
    key = parser.add_argument_group("API key")
    key.add_argument("--key-id", metavar="ID", help="id of the API key (exchange.key_id)")
    key.add_argument("--key-path", metavar="FILE", help="private key in PEM (exchange.key_path)")
    markets = parser.add_argument_group(
        "markets",
        "The union of all is followed; each option replaces its list in the configuration.",
    )
    for option, what in (("ticker", "market"), ("series", "series"), ("event", "event")):
        markets.add_argument(
            f"--{option}",
            metavar="TICKER",
            action="append",
            help=f"follow this {what}; may be given several times",
        )
    markets.add_argument("--all-open", action="store_true", help="follow every open market")
    add_config_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the plant. Raises the `TickerplantError` that ends it."""
    from importlib.util import find_spec

    from tickerplant.config_sources import load_config

    # On a base install nothing of the configuration would help; importing it takes long.
    if find_spec("picows") is None:
        raise ModuleNotFoundError("No module named 'picows'", name="picows")
    # What is given for a key of its own wins over --set of the same key.
    loaded = load_config(arguments.config, [*arguments.overrides, *overrides_of(arguments)])
    loaded.config.markets.require_selection()
    key = loaded.credentials()
    from tickerplant_kalshi.auth import load_signer

    signer = load_signer(key.key_id, key.key_path, key.pem)
    return _run_plant(loaded, signer)


def _run_plant(loaded: "LoadedConfig", signer: "Signer") -> int:
    """Apart from the above, for importing the plant takes long, and what is wrong so far was said without."""
    import asyncio
    import os

    import uvloop

    from tickerplant.runtime.companions import Companions
    from tickerplant.runtime.daemon import Daemon
    from tickerplant.runtime.health import SystemdNotifier
    from tickerplant.runtime.logs import configure_logging

    output = configure_logging(loaded.config.log.level, loaded.config.log.format)
    daemon = Daemon(
        loaded.config,
        signer=signer,
        state_directory=loaded.state_directory,
        notifier=SystemdNotifier(os.environ),
        warning_tail=output,
        tune_collector=True,
        companions=Companions(companions_of(loaded)),
    )
    daemon.metrics.add("log", output)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(daemon, asyncio.Event()))
    return EXIT_OK


def companions_of(loaded: "LoadedConfig") -> "list[CompanionSpec]":
    """The processes that are to run beside the plant, in the order in which they are to end."""
    from tickerplant.runtime.companions import CompanionSpec, tickerplant_command

    config = loaded.config
    specs = []
    if config.store.enabled and config.ticklog.enabled:
        command = tickerplant_command(
            "store", *loaded.frozen(("metrics", "ticklog", "store", "log"))
        )
        specs.append(CompanionSpec("store", command))
    if config.recovery.enabled and config.ticklog.enabled:
        sections = ("publish", "metrics", "ticklog", "recovery", "log")
        command = tickerplant_command("recovery", *loaded.frozen(sections))
        specs.append(CompanionSpec("recovery", command))
    return specs


async def serve(daemon: "Daemon", stop: "asyncio.Event") -> None:
    """Run `daemon` until SIGTERM, SIGINT or `stop`."""
    import asyncio
    import signal

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await daemon.run(stop)


def overrides_of(arguments: argparse.Namespace) -> list[str]:
    """The options that stand for a key of the configuration, as texts of `--set`."""
    values = {
        "exchange.key_id": arguments.key_id,
        "exchange.key_path": arguments.key_path,
        "markets.tickers": arguments.ticker,
        "markets.series": arguments.series,
        "markets.events": arguments.event,
        "markets.all_open": True if arguments.all_open else None,
    }
    return [
        f"{key}={json.dumps(value, ensure_ascii=False)}"
        for key, value in values.items()
        if value is not None
    ]
