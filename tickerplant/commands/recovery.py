"""`tickerplant recovery`: serves what subscribers missed out of the tick log, until it is told to stop."""

import argparse

from tickerplant.commands.options import add_command, add_config_options, load_config_of
from tickerplant.commands.serving import serve_until_told

_EXAMPLES = """\
examples:
  tickerplant recovery --config /etc/tickerplant/tickerplant.toml
  tickerplant recovery --set ticklog.directory=/data/ticklog --set recovery.address=10.0.0.5

`tickerplant run` starts it beside the plant. To have it as a service of its own, set recovery.enabled = false and
start it with the same configuration; it may then start before the plant and outlive it.
Runs until SIGTERM or Ctrl-C, then exits with 0. Exit codes: 1 failure (e.g. another recovery of the same log, or its
port is taken), 2 usage or configuration."""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "recovery",
        summary="serve what subscribers missed, out of the tick log",
        description="Read the tick log and serve gap fill over UDP, streams and snapshots over TCP.",
        epilog=_EXAMPLES,
    )
    add_config_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run recovery. Raises the `TickerplantError` that ends it."""
    from tickerplant.runtime.recovery_process import RecoveryProcess

    return serve_until_told(RecoveryProcess, load_config_of(arguments))
