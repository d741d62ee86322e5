"""Options that several commands share. Imports nothing slow, so that `--help` stays quick."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tickerplant.config_sources import LoadedConfig


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
