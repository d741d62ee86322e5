"""The `tickerplant` command: arguments in, exit code out.

Each module of `tickerplant.commands` is one subcommand: `register(subparsers)` adds its parser and sets `run`, a
function from the parsed arguments to the exit code. Modules import what is slow or optional inside `run`.
"""

import argparse
import importlib
import os
import select
import sys
from collections.abc import Sequence
from typing import NoReturn

from tickerplant.errors import EXIT_OK, EXIT_USAGE, MissingExtraError, TickerplantError

COMMANDS = (
    "run",
    "demo",
    "sim",
    "recovery",
    "store",
    "sql",
    "archive",
    "tail",
    "top",
    "snapshot",
    "log",
    "schema",
    "capture",
    "replay",
    "record",
    "audit",
    "doctor",
    "check_config",
    "key",
    "bench",
)
"""Modules of `tickerplant.commands`, in the order of `--help`."""
EXTRA_MODULES = frozenset(
    {
        *("aiohttp", "cryptography", "duckdb", "numpy", "obstore", "pandas", "picows"),
        *("prometheus_client", "pyarrow", "questdb", "rich", "structlog", "websockets"),
    }
)
"""What the extra `daemon` installs, by import name."""
HISTORY_MODULES = frozenset({"duckdb", "obstore", "pyarrow"})
"""Those of them that the smaller extra `history` installs."""
EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""
EXIT_OUTPUT_CLOSED = 141
"""128 + SIGPIPE: whoever read our output went away."""

_EXAMPLES = """\
examples:
  tickerplant demo                                  simulated exchange, plant and live view
  tickerplant doctor                                try out keys, clock, multicast and limits
  tickerplant run --set markets.series=KXBTC15M     the plant
  tickerplant tail 'KXBTC15M*'                      what it publishes

exit codes: 0 ok, 1 failure, 2 usage or configuration, 75 try again later"""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print the one line and exit with 2."""
        print(f"{self.prog}: error: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


class VersionAction(argparse.Action):
    """`--version`: reads the version only then, for that takes a while."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:  # noqa: A002  # argparse's name
        """Made by argparse."""
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        _namespace: argparse.Namespace,
        _values: object,
        _option_string: str | None = None,
    ) -> NoReturn:
        """Print it and exit with 0."""
        from tickerplant import __version__  # noqa: PLC0415  # see above

        print(f"tickerplant {__version__}")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The parser with every command."""
    parser = Parser(
        prog="tickerplant",
        description="A ticker plant for the Kalshi prediction market.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=VersionAction, help="print the version and exit")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        importlib.import_module(f"tickerplant.commands.{name}").register(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return the exit code."""
    try:
        exit_code = _run(argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        if _is_output_open():
            raise
        return EXIT_OUTPUT_CLOSED
    return exit_code


def _run(argv: Sequence[str] | None) -> int:
    try:
        arguments = build_parser().parse_args(argv)
        exit_code: int = arguments.run(arguments)
    except TickerplantError as error:
        return _report(error)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRA_MODULES:
            raise
        extra = "history" if missing in HISTORY_MODULES else "daemon"
        return _report(
            MissingExtraError(
                f"this command needs {missing}, which is not installed: "
                f"pip install 'kalshi-tickerplant[{extra}]'"
            )
        )
    except SystemExit as leaving:
        # argparse leaves so after --help, --version and errors.
        return leaving.code if isinstance(leaving.code, int) else EXIT_OK
    return exit_code


def _report(error: TickerplantError) -> int:
    message = " ".join(str(error).split())
    print(f"tickerplant: error: {message}", file=sys.stderr)
    return error.exit_code


def _is_output_open() -> bool:
    """False if standard output is a pipe without reader; then what is still buffered is thrown away."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if not any(events & (select.POLLERR | select.POLLHUP) for _fd, events in poll.poll(0)):
        return True
    # The interpreter flushes once more at exit, and would complain.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return False
