"""`tickerplant store`: keeps everything published as rows that can be queried, until it is told to stop."""

import argparse

from tickerplant.commands.options import add_command, add_config_options, load_config_of
from tickerplant.commands.serving import serve_until_told

_EXAMPLES = """\
examples:
  tickerplant store --config /etc/tickerplant/tickerplant.toml
  tickerplant store --set store.directory=/data/store --set store.close_s=10

`tickerplant run` starts it beside the plant. To have it as a service of its own, set store.enabled = false and start it
with the same configuration; it may then start before the plant and outlive it. It reads the tick log from where it
stood, each row once, and goes on with what is written. Runs until SIGTERM or Ctrl-C, then makes
durable what it has, and exits with 0. Exit codes: 1 failure (e.g. another store of the same folder), 2 usage or
configuration."""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "store",
        summary="keep everything published as rows, to be queried",
        description="Read the tick log and keep every message as a row of the store's tables.",
        epilog=_EXAMPLES,
    )
    add_config_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the store. Raises the `TickerplantError` that ends it."""
    from tickerplant.store.process import StoreProcess

    return serve_until_told(StoreProcess, load_config_of(arguments))
