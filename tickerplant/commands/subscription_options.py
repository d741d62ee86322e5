"""Options of the commands that listen: which markets, where, and how long."""

import argparse
import re
from typing import TYPE_CHECKING

from tickerplant.commands.options import add_config_options, load_config_of
from tickerplant.errors import ConfigurationError

if TYPE_CHECKING:
    from tickerplant.config import Config
    from tickerplant_subscriber.options import NetworkOptions

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|)")
_UNIT_S = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration_s(text: str) -> float:
    """Seconds of `10`, `10s`, `500ms`, `2m` or `1h`. Raises what argparse turns into a usage error."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 10s, 500ms or 2m")
    return float(match[1]) * _UNIT_S[match[2]]


def parse_count(text: str) -> int:
    """A positive integer. Raises what argparse turns into a usage error."""
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def add_subscription_options(parser: argparse.ArgumentParser) -> None:
    """Adds markets, duration and network; `network_options_of` and `tickers_of` read them."""
    parser.add_argument(
        "patterns",
        metavar="TICKER",
        nargs="*",
        help="markets, as shell patterns such as 'KXBTC*' (default: all)",
    )
    parser.add_argument(
        "--ticker",
        metavar="PATTERN",
        action="append",
        default=[],
        dest="tickers",
        help="the same as an option; may be given several times",
    )
    add_network_options(parser)


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Adds duration and network; `network_options_of` reads them."""
    parser.add_argument(
        "--for",
        type=parse_duration_s,
        metavar="DURATION",
        dest="duration_s",
        help="stop after 10s, 500ms, 2m; plain numbers are seconds",
    )
    group = parser.add_argument_group(
        "network", "Where not given, as in section [publish] of the configuration."
    )
    group.add_argument("--interface", metavar="ADDRESS", help="IPv4 address of the interface")
    group.add_argument("--group-a", metavar="GROUP", help="first multicast group of line A")
    group.add_argument("--group-b", metavar="GROUP", help="first multicast group of line B")
    group.add_argument("--port", type=int, help="UDP port of every group")
    group.add_argument("--source", metavar="ADDRESS", help="accept this sender only")
    group.add_argument("--source-b", metavar="ADDRESS", help="the same for line B (default: as A)")
    group.add_argument(
        "--key",
        metavar="FILE",
        dest="datagram_key_path",
        help="file of datagram keys: refuse what is not signed with one (publish.key_path)",
    )
    group.add_argument(
        "--accept-replay",
        action="store_true",
        help="take a recording that is played onto these groups as if it were live",
    )
    group.add_argument(
        "--recovery",
        metavar="HOST:PORT",
        action="append",
        help="where recovery listens; may be given several times",
    )
    group.add_argument(
        "--no-recovery",
        action="store_true",
        help="do without: what was missed is told as a gap, and books come with the plant's next session",
    )
    add_config_options(parser)


def recovery_of(arguments: argparse.Namespace, config: "Config") -> tuple[str, ...]:
    """Addresses of recovery: command line, else configuration. Raises `ConfigurationError`."""
    if arguments.no_recovery and arguments.recovery:
        raise ConfigurationError("--recovery and --no-recovery exclude each other: give one")
    if arguments.no_recovery:
        return ()
    if arguments.recovery:
        return tuple(arguments.recovery)
    recovery = config.recovery
    host = "127.0.0.1" if recovery.address == "0.0.0.0" else recovery.address  # noqa: S104  # every interface: this one too
    return (f"{host}:{recovery.port}",) if recovery.port else ()


def tickers_of(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The patterns given, or the one that matches all."""
    return (*arguments.patterns, *arguments.tickers) or ("*",)


def network_options_of(arguments: argparse.Namespace) -> "NetworkOptions":
    """Where to listen: command line, else configuration. Raises `ConfigurationError`."""
    config = load_config_of(arguments).config
    publish = config.publish
    return {
        "interface": arguments.interface or publish.interface,
        "interface_b": arguments.interface or publish.interface_b,
        "group_a": arguments.group_a or publish.group_a,
        "group_b": arguments.group_b or publish.group_b,
        "port": publish.port if arguments.port is None else arguments.port,
        "source": arguments.source or "",
        "source_b": arguments.source_b or "",
        "key_path": arguments.datagram_key_path or publish.key_path,
        "accept_replay": arguments.accept_replay,
        "recovery": recovery_of(arguments, config),
    }
