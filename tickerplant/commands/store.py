"""`tickerplant store`: keeps everything published as rows that can be queried, until it is told to stop."""

import argparse

from tickerplant.commands.options import add_config_options, load_config_of
from tickerplant.errors import EXIT_OK

_EXAMPLES = """\
examples:
  tickerplant store --config /etc/tickerplant/tickerplant.toml
  tickerplant store --set store.directory=/data/store --set store.close_s=10

Start it beside the plant, with the same configuration. It may start before the plant and outlive it: it reads the tick
log from where it stood, each row once, and goes on with what is written. Runs until SIGTERM or Ctrl-C, then makes
durable what it has, and exits with 0. Exit codes: 1 failure (e.g. another store of the same folder), 2 usage or
configuration."""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "store",
        help="keep everything published as rows, to be queried",
        description="Read the tick log and keep every message as a row of the store's tables.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_config_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the store. Raises the `TickerplantError` that ends it."""
    import asyncio
    import os
    import signal

    import uvloop

    from tickerplant.runtime.health import SystemdNotifier
    from tickerplant.runtime.logs import configure_logging
    from tickerplant.store.process import StoreProcess

    loaded = load_config_of(arguments)
    output = configure_logging(loaded.config.log.level, loaded.config.log.format)

    async def serve() -> None:
        process = StoreProcess(
            loaded.config,
            state_directory=loaded.state_directory,
            notifier=SystemdNotifier(os.environ),
            warning_tail=output,
            tune_process=True,
        )
        process.metrics.add("log", output)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await process.run(stop)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
    return EXIT_OK
