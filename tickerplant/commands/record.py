"""`tickerplant record`: keeps everything that the plant publishes, on whichever host, to be played or audited later."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tickerplant.commands.options import add_command, load_config_of
from tickerplant.commands.subscription_options import (
    add_network_options,
    network_options_of,
    parse_count,
    parse_duration_s,
)
from tickerplant.errors import EXIT_OK

if TYPE_CHECKING:
    from tickerplant_subscriber.recorder import Recorder

DEFAULT_FOLDER = "recording"
"""Inside the state directory."""

_EXAMPLE = """\
examples:
  tickerplant record                                      into the folder `recording` of the state directory
  tickerplant record /data/kalshi --key datagram.keys --recovery 10.0.0.5:26410
  tickerplant replay my_module:MyStrategy --log /data/kalshi --speed 10
  tickerplant audit --recording /data/kalshi              beside the plant's log: is all of it here?

A recorder that was away goes on after its last complete record: recovery is asked for what came meanwhile. SIGINT and
SIGTERM end it with everything on disk.

exit codes: 0 ended, 1 the folder or the network cannot be used, 2 usage or configuration"""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "record",
        summary="keep everything that the plant publishes",
        description="Join the groups and write every message into rotating files with an index.",
        epilog=_EXAMPLE,
    )
    parser.add_argument(
        "folder",
        nargs="?",
        metavar="DIR",
        help=f"where to (default: {DEFAULT_FOLDER} in the state directory)",
    )
    parser.add_argument(
        "--segment-bytes",
        type=parse_count,
        default=256 * 1024 * 1024,
        metavar="N",
        help="another file begins at so many bytes (default: %(default)s)",
    )
    parser.add_argument(
        "--segment-age",
        type=parse_duration_s,
        default=3_600.0,
        metavar="DURATION",
        help="another file begins after so long (default: 1h)",
    )
    add_network_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Record until `--for`, SIGINT or SIGTERM.

    Raises `ConfigurationError`, `CredentialsError`, `NetworkSetupError`, `RecordingError`.
    """
    import logging

    import uvloop

    from tickerplant_subscriber.recorder import Recorder

    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        stream=sys.stderr,
    )
    network = network_options_of(arguments)
    recorder = Recorder(
        _folder_of(arguments),
        segment_max_bytes=arguments.segment_bytes,
        segment_max_s=arguments.segment_age,
        **network,
    )
    position = recorder.position
    begin = "a new recording" if position is None else f"going on in session {position.session}"
    print(f"recording to {recorder.folder}: {begin}", file=sys.stderr)
    uvloop.run(_record(recorder, arguments.duration_s))
    counts = recorder.counts()
    print(
        f"recorded {counts['messages']:,} messages, {counts['bytes_written']:,} B; "
        f"{counts['gaps']:,} gaps with {counts['messages_lost']:,} messages",
        file=sys.stderr,
    )
    return EXIT_OK


def _folder_of(arguments: argparse.Namespace) -> Path:
    if arguments.folder:
        return Path(arguments.folder).expanduser()
    return load_config_of(arguments).state_directory / DEFAULT_FOLDER


async def _record(recorder: "Recorder", duration_s: float | None) -> None:
    import asyncio

    if duration_s is not None:
        asyncio.get_running_loop().call_later(duration_s, recorder.stop)
    await recorder.run(catch_signals=True)
