"""`tickerplant sim`: the simulated exchange."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tickerplant.commands.options import add_command
from tickerplant.commands.time_options import parse_time_ns
from tickerplant.errors import EXIT_OK, MissingExtraError

if TYPE_CHECKING:
    from tickerplant_kalshi_sim.config import SimulationConfig
    from tickerplant_kalshi_sim.server import SimulationServer

EPILOG = """\
examples:
  tickerplant sim                                   500 markets, 500 order actions a second
  tickerplant sim --markets 3000 --rate 5000        a busy exchange
  tickerplant sim --replay capture.jsonl --speed 0  a recording, as fast as the client reads
  tickerplant sim --fault-rate 20 --seed 7          20 random faults a minute
  tickerplant sim --start 2026-11-21T12:00 --seed 7 the same market, frame by frame, at each run
  curl -d '{"kind":"skip_seq"}' http://127.0.0.1:26491/sim/fault
  curl -d '{"action":"pause"}' http://127.0.0.1:26491/sim/flow

fault kinds: skip_seq duplicate unusable inconsistent silent_loss error_10 error_25 dead_sid late_ack command_timeout
  reset close half_open flood rest_429 rest_5xx handshake_429 handshake_502 trading_pause exchange_pause
"""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the `sim` parser."""
    parser = add_command(
        subparsers,
        "sim",
        summary="run a simulated Kalshi exchange",
        description=(
            "Serve a simulated Kalshi exchange: WebSocket, REST and control endpoints on loopback. It makes its own "
            "API key at first use and prints where it listens."
        ),
        epilog=EPILOG,
    )
    _add_listening(parser.add_argument_group("listening and keys"))
    _add_flow(parser.add_argument_group("generated market"))
    _add_replay_and_faults(parser)
    parser.set_defaults(run=run_sim)


def _add_listening(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    group.add_argument(
        "--port", type=int, default=26490, help="WebSocket port, 0 for a free one (%(default)s)"
    )
    group.add_argument(
        "--rest-port", type=int, default=26491, help="REST and control port (%(default)s)"
    )
    group.add_argument(
        "--directory",
        type=Path,
        help="where the key is kept ($STATE_DIRECTORY/sim, else ~/.local/state/tickerplant/sim)",
    )
    group.add_argument(
        "--key-type", choices=("rsa", "ed25519"), default="rsa", help="type of key (%(default)s)"
    )
    group.add_argument(
        "--allow-anonymous", action="store_true", help="accept WebSockets without a signature"
    )
    group.add_argument(
        "--clock-offset", type=float, default=0.0, help="seconds by which its clock is ahead"
    )
    group.add_argument("--connections", type=int, default=200, help="connection cap (%(default)s)")


def _add_flow(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--markets", type=int, default=500, help="open markets (%(default)s)")
    group.add_argument(
        "--rate",
        type=int,
        default=500,
        help="order actions a second, 1-3 frames each (%(default)s)",
    )
    group.add_argument("--seed", type=int, default=1, help="of all random draws (%(default)s)")
    group.add_argument(
        "--start",
        type=parse_time_ns,
        metavar="TIME",
        help="first moment of its clock, as 2026-11-21T12:00 (now): with it and --seed the frames are the same at "
        "each run; a plant goes by the true time, so for one leave it out",
    )
    group.add_argument(
        "--tick-ms", type=int, default=10, help="frames of one tick leave together (%(default)s)"
    )
    group.add_argument(
        "--window", type=int, default=60, help="seconds of the rolling markets, 0 for none"
    )
    group.add_argument(
        "--change-interval",
        type=float,
        default=3.0,
        help="mean seconds between pauses, new tick structures and the like, 0 for none",
    )
    group.add_argument("--paused", action="store_true", help="start with the flow stopped")


def _add_replay_and_faults(parser: argparse.ArgumentParser) -> None:
    replay = parser.add_argument_group("recording")
    replay.add_argument("--replay", type=Path, metavar="FILE", help="serve this capture instead")
    replay.add_argument(
        "--speed", type=float, default=1.0, help="1 recorded pace, 0 as fast as possible"
    )
    replay.add_argument(
        "--recorded-yes-price",
        action="store_true",
        help="the capture was recorded with use_yes_price",
    )
    faults = parser.add_argument_group("faults")
    faults.add_argument(
        "--faults", type=Path, metavar="FILE", help="script: TOML [[fault]] tables or JSON lines"
    )
    faults.add_argument("--fault-rate", type=float, default=0.0, help="random faults a minute")
    faults.add_argument(
        "--fault-kind", action="append", default=[], metavar="KIND", help="only these; repeatable"
    )


def run_sim(arguments: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM. Raises `MissingExtraError` on a base install, and what the server raises."""
    try:
        import uvloop

        from tickerplant_kalshi_sim.server import SimulationServer
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"`tickerplant sim` needs {error.name}: pip install 'kalshi-tickerplant[daemon]'"
        ) from None
    uvloop.run(_serve(SimulationServer(_config_of(arguments))))
    return EXIT_OK


def _config_of(arguments: argparse.Namespace) -> "SimulationConfig":
    from tickerplant_kalshi_sim.config import SimulationConfig

    return SimulationConfig(
        host=arguments.host,
        websocket_port=arguments.port,
        rest_port=arguments.rest_port,
        directory=arguments.directory,
        key_type=arguments.key_type,
        allow_anonymous=arguments.allow_anonymous,
        clock_offset_s=arguments.clock_offset,
        connections=arguments.connections,
        markets=arguments.markets,
        rate=arguments.rate,
        seed=arguments.seed,
        start_ns=arguments.start,
        tick_ms=arguments.tick_ms,
        window_s=arguments.window,
        change_interval_s=arguments.change_interval,
        paused=arguments.paused,
        replay=arguments.replay,
        speed=arguments.speed,
        replay_use_yes_price=arguments.recorded_yes_price,
        faults=arguments.faults,
        fault_rate=arguments.fault_rate,
        fault_kinds=tuple(arguments.fault_kind),
    )


async def _serve(simulation: "SimulationServer") -> None:
    import asyncio
    import signal

    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with simulation as server:
        print(f"websocket  {server.websocket_url}")
        print(f"rest       {server.rest_url}")
        print(f"key id     {server.key_id}")
        print(f"key path   {server.key_path}", flush=True)
        clock = asyncio.create_task(server.wait())
        stop = asyncio.create_task(stopped.wait())
        await asyncio.wait((clock, stop), return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if clock.done():
            clock.result()
        clock.cancel()
