"""Options that several commands share. Imports nothing slow, so that `--help` stays quick."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tickerplant.config_sources import LoadedConfig

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # the only name it has

Run = Callable[[argparse.Namespace], int]
"""From the parsed arguments to the exit code."""


def add_command(
    subparsers: "Subparsers", name: str, *, summary: str, description: str, epilog: str
) -> argparse.ArgumentParser:
    """The parser of a command: `epilog` is printed as it stands, options cannot be abbreviated."""
    return subparsers.add_parser(
        name,
        help=summary,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_actions(
    parser: argparse.ArgumentParser, epilog: str, actions: Sequence[tuple[str, str, Run]]
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """The actions of a command, as (name, what it does, function): each name with its parser."""
    subparsers = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for name, words, run in actions:
        description = f"{words[0].upper()}{words[1:]}."
        action = add_command(
            subparsers, name, summary=words, description=description, epilog=epilog
        )
        action.set_defaults(run=run)
        yield name, action


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add `--config` and `--set`; `load_config_of` reads them."""
    group = parser.add_argument_group("configuration")
    group.add_argument(
        "--config",
        metavar="FILE",
        help="TOML file (default: $TICKERPLANT_CONFIG, ./config/tickerplant.toml, "
        "/etc/tickerplant/tickerplant.toml, else the built-in defaults)",
    )
    group.add_argument(
        "--set",
        metavar="SECTION.KEY=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="override one key; may be given several times",
    )


def load_config_of(arguments: argparse.Namespace) -> "LoadedConfig":
    """The effective configuration for a command line. Raises `ConfigurationError`."""
    from tickerplant.config_sources import load_config

    return load_config(arguments.config, arguments.overrides)
