"""`tickerplant replay`: plays a recording into a strategy, onto the screen, or onto multicast groups."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tickerplant.commands.options import add_command, add_config_options, load_config_of
from tickerplant.commands.time_options import parse_session, parse_time_ns
from tickerplant.errors import EXIT_OK, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tickerplant.config import PublishConfig
    from tickerplant_subscriber.log_source import TimedDatagram
    from tickerplant_subscriber.stats import SubscriberStats
    from tickerplant_subscriber.strategy import Strategy

_EXAMPLE = """\
examples:
  tickerplant replay my_module:MyStrategy                      the tick log, at its own pace
  tickerplant replay my_module:MyStrategy --speed 0 --from 2026-11-21T14:30 --to 2026-11-21T15:00
  tickerplant replay --capture --speed 0 --ticker 'KXBTC*'     the newest raw capture, printed
  tickerplant replay my_module:MyStrategy --jsonl frames.jsonl --speed 10
  tickerplant replay --publish --group-a 239.192.79.1 --port 26500   for `tail --accept-replay`

The strategy class is the one that `tickerplant_subscriber.run` takes; its module is looked for in the current folder
too. Without a strategy messages are printed as `tickerplant tail` does."""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "replay",
        summary="play a recording into a strategy, or onto multicast groups",
        description="Play the tick log, a raw capture or a file of recorded frames.",
        epilog=_EXAMPLE,
    )
    parser.add_argument(
        "strategy", nargs="?", metavar="MODULE:CLASS", help="what is played into (default: print)"
    )
    _add_source(parser.add_argument_group("what is played"))
    parser.add_argument(
        "--speed",
        type=_parse_speed,
        default=1.0,
        metavar="X",
        help="1 recorded pace, 10 ten times that, 0 as fast as possible (default: 1)",
    )
    parser.add_argument(
        "--ticker",
        metavar="PATTERN",
        action="append",
        default=[],
        dest="tickers",
        help="only markets like this; may be given several times (default: the strategy's)",
    )
    parser.add_argument(
        "--on-error",
        choices=("stop", "continue"),
        default="stop",
        help="what an exception of the strategy does (default: %(default)s)",
    )
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="of what is printed"
    )
    _add_publishing(parser.add_argument_group("onto multicast"))
    add_config_options(parser)
    parser.set_defaults(run=run)


def _add_source(group: "argparse._ArgumentGroup") -> None:
    choice = group.add_mutually_exclusive_group()
    choice.add_argument(
        "--log",
        nargs="?",
        const="",
        metavar="DIR",
        help="the tick log (the default; as configured)",
    )
    choice.add_argument(
        "--capture",
        nargs="?",
        const="",
        metavar="DIR",
        help="a raw capture, put through a plant again (default folder: as configured)",
    )
    choice.add_argument(
        "--jsonl", metavar="FILE", help="recorded frames as lines of JSON, put through a plant"
    )
    group.add_argument(
        "--recorded-yes-price",
        action="store_true",
        help="the frames of --jsonl were recorded with use_yes_price",
    )
    group.add_argument(
        "--session",
        type=parse_session,
        metavar="N",
        help="its number, or last (default: all of a log, the last of a capture)",
    )
    group.add_argument(
        "--from",
        type=parse_time_ns,
        default=0,
        dest="from_ns",
        metavar="TIME",
        help="what was before is played unseen and at full speed, so that books are right then",
    )
    group.add_argument("--to", type=parse_time_ns, dest="to_ns", metavar="TIME", help="until then")


def _add_publishing(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--publish",
        action="store_true",
        help="send it on multicast groups, which have to be named, and not the live plant's",
    )
    group.add_argument("--group-a", metavar="GROUP", help="first multicast group of line A")
    group.add_argument("--group-b", metavar="GROUP", default="", help="first group of line B")
    group.add_argument("--port", type=int, help="UDP port of every group")
    group.add_argument("--interface", metavar="ADDRESS", help="default: as configured")


def _parse_speed(text: str) -> float:
    """Raises what argparse turns into a usage error."""
    try:
        speed = float(text)
    except ValueError:
        speed = -1.0
    if not 0 <= speed < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no speed: 1, 10, 0.5, or 0 for full speed")
    return speed


def run(arguments: argparse.Namespace) -> int:
    """Play until the end, SIGINT or SIGTERM. Raises `ConfigurationError` and what the source raises."""
    if arguments.publish:
        if arguments.strategy or arguments.tickers:
            raise ConfigurationError("--publish sends everything: leave strategy and --ticker out")
        return _publish(arguments)
    if arguments.group_a or arguments.group_b or arguments.port is not None:
        raise ConfigurationError("--group-a, --group-b and --port belong to --publish")
    from tickerplant_subscriber.replay import replay

    strategy = _strategy_of(arguments)
    on_error: Literal["stop", "continue"] = arguments.on_error
    stats = replay(
        strategy,
        _source_of(arguments),
        speed=arguments.speed or None,
        from_ns=arguments.from_ns,
        on_error=on_error,
    )
    sys.stdout.flush()
    print(_summary(stats), file=sys.stderr)
    return EXIT_OK


def _summary(stats: "SubscriberStats") -> str:
    streams = stats.streams
    messages = sum(stream.messages for stream in streams)
    lost = sum(stream.messages_lost for stream in streams)
    errors = f", {stats.callback_errors} exceptions" if stats.callback_errors else ""
    return f"replayed {messages} messages on {len(streams)} streams, {lost} lost{errors}"


# --- sources --------------------------------------------------------------------------------------


def _source_of(arguments: argparse.Namespace) -> "Iterator[TimedDatagram]":
    session = arguments.session
    if arguments.jsonl is not None:
        if session is not None:
            raise ConfigurationError("--session belongs to a log or a capture, not to --jsonl")
        from tickerplant.replay.sources import jsonl_datagrams

        source = jsonl_datagrams(Path(arguments.jsonl), use_yes_price=arguments.recorded_yes_price)
    elif arguments.capture is not None:
        from tickerplant.replay.sources import capture_datagrams

        chosen = None if session == -1 else session
        source = capture_datagrams(_capture_folder(arguments), chosen)
    else:
        return _log_source(arguments)
    return _until(source, arguments.to_ns)


def _until(source: "Iterator[TimedDatagram]", to_ns: int | None) -> "Iterator[TimedDatagram]":
    for sent_ns, datagram in source:
        if to_ns is not None and sent_ns > to_ns:
            return
        yield sent_ns, datagram


def _capture_folder(arguments: argparse.Namespace) -> Path:
    from tickerplant.runtime.capturefolder import capture_folder

    if arguments.capture:
        return Path(arguments.capture).expanduser()
    loaded = load_config_of(arguments)
    return capture_folder(loaded.config.capture.directory, loaded.state_directory)


def _log_source(arguments: argparse.Namespace) -> "Iterator[TimedDatagram]":
    from tickerplant.runtime.logfolder import log_folder
    from tickerplant_subscriber.log_source import newest_session, read_log

    if arguments.log:
        folder = Path(arguments.log).expanduser()
    else:
        loaded = load_config_of(arguments)
        folder = log_folder(loaded.config.ticklog.directory, loaded.state_directory)
    session = arguments.session
    if session == -1:
        session = newest_session(folder)
    return read_log(folder, session=session, from_ns=arguments.from_ns, to_ns=arguments.to_ns)


# --- strategies -----------------------------------------------------------------------------------


def _strategy_of(arguments: argparse.Namespace) -> "Strategy":
    if arguments.strategy:
        strategy = _load_strategy(arguments.strategy)
    else:
        from tickerplant.commands.replay_printer import Printer

        strategy = Printer(is_json=arguments.format == "json")
    if arguments.tickers:
        strategy.tickers = tuple(arguments.tickers)
    return strategy


def _load_strategy(name: str) -> "Strategy":
    """An instance of `module:Class`. Raises `ConfigurationError` if there is no such strategy."""
    import importlib

    from tickerplant_subscriber.runner import refusing_to_run
    from tickerplant_subscriber.strategy import Strategy

    module_name, _, class_name = name.partition(":")
    if not module_name or not class_name:
        raise ConfigurationError(f"{name!r} is no strategy: write MODULE:CLASS")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    running = f"{module_name} runs its strategy when it is imported: put that behind if __name__ == '__main__':"
    try:
        with refusing_to_run(running):
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ConfigurationError(
            f"there is no module {module_name}: run this where its file is, or install it"
        ) from None
    kind: Any = getattr(module, class_name, None)
    if not (isinstance(kind, type) and issubclass(kind, Strategy)):
        raise ConfigurationError(f"{module_name} has no strategy {class_name}")
    try:
        return kind()
    except TypeError as error:
        raise ConfigurationError(f"{name} cannot be made without arguments: {error}") from None


# --- onto multicast -------------------------------------------------------------------------------


def _publish(arguments: argparse.Namespace) -> int:
    import asyncio

    import msgspec

    live = load_config_of(arguments).config.publish
    if not arguments.group_a or arguments.port is None:
        raise ConfigurationError(
            "--publish needs --group-a and --port of its own, e.g. --group-a 239.192.79.1 --port 26500"
        )
    where = msgspec.structs.replace(
        live,
        group_a=arguments.group_a,
        group_b=arguments.group_b,
        port=arguments.port,
        interface=arguments.interface or live.interface,
        key_path="",
    )
    asyncio.run(_send(arguments, where, live))
    return EXIT_OK


async def _send(
    arguments: argparse.Namespace, where: "PublishConfig", live: "PublishConfig"
) -> None:
    import asyncio
    import signal

    from tickerplant.replay.multicast import MulticastReplay, open_replay_groups

    source = _source_of(arguments)
    publisher, heard = await asyncio.to_thread(open_replay_groups, where, live)
    sending = MulticastReplay(
        publisher, heard, speed=arguments.speed or None, from_ns=arguments.from_ns
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, sending.stop)
    print(f"playing onto {where.group_a} port {where.port}", file=sys.stderr, flush=True)
    try:
        told = await sending.run(source)
    finally:
        publisher.close()
    lost = f", {told.lost_datagrams} not taken by the kernel" if told.lost_datagrams else ""
    print(f"sent {told.datagrams} datagrams of {told.sessions} sessions{lost}", file=sys.stderr)
