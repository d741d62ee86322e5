"""`tickerplant demo`: a simulated exchange, the plant and a live view, or a summary that proves the books."""

import argparse
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tickerplant.commands.options import add_command
from tickerplant.commands.subscription_options import parse_count, parse_duration_s
from tickerplant.errors import EXIT_OK

if TYPE_CHECKING:
    from tickerplant.demo.display import Display
    from tickerplant.demo.summary import Summary

SUMMARY_S = 10.0
"""How long the market moves if there is no terminal to look at and no --for."""
_SIGNAL_EXIT_CODE = 128
"""Shells report the end by signal n as 128 + n."""

_EXAMPLES = f"""\
examples:
  tickerplant demo                            the live view; Ctrl-C ends it, with a summary
  tickerplant demo --for 10s                  no view, the summary after ten seconds
  tickerplant demo --markets 2000 --rate 2000 a busier exchange

Everything stays on this host: the exchange listens on free ports of 127.0.0.1, the plant multicasts with TTL 0 on
groups that nobody uses, and what they keep is in a temporary folder. Without a terminal --for is {SUMMARY_S:g}s.

At the end the flow is stopped and the books that the subscriber got over multicast are compared with the exchange's
own. Exit codes: 0 all equal and nothing lost, 1 a gap, a stale or an unequal book, 2 usage."""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "demo",
        summary="simulated exchange, plant and live view, in one go",
        description="Start a simulated exchange, the plant and a subscriber, and show the market moving.",
        epilog=_EXAMPLES,
    )
    parser.add_argument(
        "--for",
        type=_parse_positive_duration_s,
        metavar="DURATION",
        dest="duration_s",
        help="let the market move for 10s, 500ms or 2m, then print the summary",
    )
    parser.add_argument(
        "--markets",
        type=parse_count,
        default=300,
        metavar="N",
        help="open markets (default: %(default)s)",
    )
    parser.add_argument(
        "--rate",
        type=parse_count,
        default=500,
        metavar="R",
        help="order actions a second, each of 1 to 3 exchange messages (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=1,
        metavar="N",
        help="of all random draws: the same seed, the same market (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the demo. Raises `ConfigurationError`, `NetworkSetupError`, `DemoError`."""
    import asyncio

    import uvloop

    from tickerplant.demo.display import LiveDisplay, TextDisplay
    from tickerplant.demo.parts import FlowOptions
    from tickerplant.demo.processes import DemoError
    from tickerplant.demo.session import Demo, Interrupted
    from tickerplant.demo.summary import faults_of
    from tickerplant_kalshi_sim.config import SimulationConfig

    options = FlowOptions(arguments.markets, arguments.rate, arguments.seed)
    # Refuses what is out of range before anything is started.
    SimulationConfig(**options._asdict())
    duration_s, display = arguments.duration_s, TextDisplay()
    if duration_s is None and _is_capable_terminal():
        display = LiveDisplay()
    elif duration_s is None:
        duration_s = SUMMARY_S
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        demo = Demo(options, duration_s, display, own_command())
        try:
            summary = runner.run(demo.run())
        except Interrupted as interrupted:
            return _SIGNAL_EXIT_CODE + interrupted.number
    _print_summary(summary, display)
    if faults := faults_of(summary):
        raise DemoError(f"the check failed: {'; '.join(faults)}")
    return EXIT_OK


def _print_summary(summary: "Summary", display: "Display") -> None:
    from tickerplant.demo.summary import summary_lines

    for line in summary_lines(summary):
        display.say(line)


def own_command() -> str:
    """How the user's shell can start this same `tickerplant`."""
    path = Path(sys.argv[0])
    if path.name != "tickerplant":
        return f"{shlex.quote(sys.executable)} -m tickerplant"
    found = shutil.which("tickerplant")
    if found is not None and Path(found).resolve() == path.resolve():
        return "tickerplant"
    return shlex.quote(str(path))


def _is_capable_terminal() -> bool:
    """Whether the live view can be drawn."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def _parse_positive_duration_s(text: str) -> float:
    """As `parse_duration_s`, and more than nothing."""
    duration_s = parse_duration_s(text)
    if duration_s == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no time at all")
    return duration_s
