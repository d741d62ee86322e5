"""`tickerplant doctor`: try out what the plant needs, and say what to do about what fails."""

import argparse
import json
from typing import TYPE_CHECKING

from tickerplant.commands.options import add_command, add_config_options, load_config_of
from tickerplant.errors import EXIT_FAILURE, EXIT_OK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tickerplant.runtime.checks import CheckResult

_EXAMPLE = """\
example:
  tickerplant doctor --config plant.toml

One line a check: ok, warn or FAIL, and after an arrow what to do. Takes some seconds.
exit codes: 0 nothing fails, 1 something fails, 2 the configuration is wrong"""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "doctor",
        summary="try out keys, clock, multicast and limits",
        description="Try out what the plant needs: API key, exchange, clock, multicast, buffers, ports, disk.",
        epilog=_EXAMPLE,
    )
    add_config_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run and print all checks. Raises `ConfigurationError`."""
    import asyncio

    from tickerplant.doctor import examine

    loaded = load_config_of(arguments)
    results = asyncio.run(examine(loaded))
    failures = sum(result.status == "FAIL" for result in results)
    print(_as_json(results) if arguments.json else _as_text(results))
    return EXIT_FAILURE if failures else EXIT_OK


def _as_text(results: "Sequence[CheckResult]") -> str:
    lines = [
        f"{result.status:<4}  {result.name:<15}  {result.detail}"
        + (f"  -> {result.remedy}" if result.remedy else "")
        for result in results
    ]
    counts = {
        status: sum(result.status == status for result in results) for status in ("warn", "FAIL")
    }
    lines.append(
        f"{len(results)} checks, {counts['warn']} to look at (warn), {counts['FAIL']} failed (FAIL)"
    )
    return "\n".join(lines)


def _as_json(results: "Sequence[CheckResult]") -> str:
    checks = [
        {
            "name": result.name,
            "status": result.status.lower(),
            "detail": result.detail,
            "remedy": result.remedy,
        }
        for result in results
    ]
    is_ok = all(result.status != "FAIL" for result in results)
    return json.dumps({"ok": is_ok, "checks": checks}, ensure_ascii=False)
