"""`tickerplant bench`: throughput and latency beside the budgets."""

import argparse
import sys

from tickerplant.commands.options import add_command
from tickerplant.errors import EXIT_OK

EPILOG = """\
examples:
  tickerplant bench             about three minutes, on an otherwise idle machine
  tickerplant bench --short     a few seconds, to see that it runs; its numbers mean nothing
  tickerplant bench --json      the raw numbers

Throughput is a ratio to json.loads over the same frames on the same core in the same run, because machines differ.
"""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the `bench` parser."""
    parser = add_command(
        subparsers,
        "bench",
        summary="measure throughput and latency on this machine",
        description="Measure the plant and the subscriber library under the reference load, beside their budgets.",
        epilog=EPILOG,
    )
    parser.add_argument("--short", action="store_true", help="a run of a few seconds")
    parser.add_argument("--json", action="store_true", help="print the raw numbers as JSON")
    parser.set_defaults(run=run_bench)


def run_bench(arguments: argparse.Namespace) -> int:
    """Measure and print; a missed budget is told, not an error."""
    import msgspec

    import tickerplant.bench.plant_process  # noqa: F401  # on a base install, fail before anything is started
    from tickerplant.bench.report import Size, machine, measure, rows, table

    def tell(line: str) -> None:
        print(f"measuring {line} ...", file=sys.stderr, flush=True)

    results = measure(Size.short() if arguments.short else Size(), tell)
    if arguments.json:
        print(msgspec.json.encode({"machine": machine(), **results}).decode())
    else:
        print(machine())
        print(table(rows(results)))
    return EXIT_OK
