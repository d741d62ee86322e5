"""`tickerplant check-config`: the effective configuration and where each value comes from."""

import argparse
import json
from typing import TYPE_CHECKING

from tickerplant.commands.options import add_command, add_config_options, load_config_of
from tickerplant.errors import EXIT_OK

if TYPE_CHECKING:
    from tickerplant.config import Section
    from tickerplant.config_sources import LoadedConfig

_EXAMPLE = """\
example:
  tickerplant check-config --config plant.toml --set log.level=debug

Prints TOML; secrets are masked. A wrong key or value ends with one line that names it, and exit code 2."""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "check-config",
        summary="print the effective configuration",
        description="Check the configuration and print its effective values, and where each comes from.",
        epilog=_EXAMPLE,
    )
    add_config_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the configuration. Raises `ConfigurationError`."""
    print(render(load_config_of(arguments)))
    return EXIT_OK


def render(loaded: "LoadedConfig") -> str:
    """The effective configuration as TOML with the origin of every value as a comment."""
    from tickerplant.config import SECTIONS, mask

    lines = [f"# file: {loaded.file or 'none; built-in defaults'}"]
    for name in SECTIONS:
        lines += ["", f"[{name}]"]
        section: Section = getattr(loaded.config, name)
        for field in section.__struct_fields__:
            key = f"{name}.{field}"
            value = getattr(section, field)
            if key == "exchange.key_id" and value:
                value = mask(value)
            # A JSON string, number, boolean or list is TOML too.
            text = json.dumps(value, ensure_ascii=False)
            lines.append(f"{field} = {text}  # {loaded.origins[key]}")
    return "\n".join([*lines, "", *_remarks(loaded)])


def _remarks(loaded: "LoadedConfig") -> list[str]:
    """What holds besides the values, and what `tickerplant run` would refuse."""
    from tickerplant.config_checks import KEY_PEM_VARIABLE
    from tickerplant.errors import ConfigurationError

    remarks = [f"# state directory: {loaded.state_directory}  ({loaded.state_origin})"]
    if loaded.has_key_pem:
        remarks.append(f"# private key: taken from {KEY_PEM_VARIABLE} (not shown)")
    for check in (loaded.credentials, loaded.config.markets.require_selection):
        try:
            check()
        except ConfigurationError as error:
            remarks.append(f"# `tickerplant run` would refuse: {error}")
    return remarks
