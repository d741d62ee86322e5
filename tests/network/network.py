"""Plant and subscriber on two hosts with every kind of bad network between them, for a long time.

    python tests/network/network.py --rate 5000 --rounds 10 --seed 7

Each round is a world of its own with the next seed: exchange, plant and recovery in one network namespace, the
subscriber in another, a signed feed, and all the weather and restarts of `STEPS` in an order that the seed draws. At
the end of a round each message of the tick log must have been handed to the subscriber once and in order, and its books
must be the exchange's. Needs root. Exit code 0 if all of it holds, else 1; the seed of a round that failed is printed.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).resolve().parent.parent / "end_to_end"))

from world import LINE_A_GROUPS, LINE_B_GROUPS, World


class Step(NamedTuple):
    """What happens for a while; where a loss is to be seen, one of the lines is dead."""

    name: str
    happen: Callable[[World], None]


def kill_recovery(world: World) -> None:
    """While there is something to repair."""
    world.let_pass(1.0, loss=0.01, dead_groups=LINE_B_GROUPS)
    world.kill_recovery()
    world.let_pass(5.0, loss=0.01, dead_groups=LINE_B_GROUPS)


def kill_plant(world: World) -> None:
    """While there is something to repair; the next session begins in the same weather."""
    world.let_pass(2.0, loss=0.01, dead_groups=LINE_B_GROUPS)
    world.kill_plant()
    world.start_plant()
    world.let_pass(2.0, loss=0.01, dead_groups=LINE_B_GROUPS)


def restart_plant(world: World) -> None:
    """In order: recovery ends with it."""
    world.let_pass(1.0, reorder=0.05)
    world.stop_plant()
    world.start_plant()
    world.let_pass(2.0, reorder=0.05)


STEPS = (
    Step("1 % loss", lambda world: world.let_pass(5, loss=0.01, dead_groups=LINE_B_GROUPS)),
    Step("5 % in bursts", lambda world: world.let_pass(5, burst=0.005, dead_groups=LINE_A_GROUPS)),
    Step("5 % in bursts on both lines", lambda world: world.let_pass(5, burst=0.005)),
    Step("reordering", lambda world: world.let_pass(5, reorder=0.2)),
    Step("duplicates", lambda world: world.let_pass(5, duplicate=0.2)),
    Step("corruption", lambda world: world.let_pass(5, corrupt=0.02, dead_groups=LINE_B_GROUPS)),
    Step("blackout of 2 s", lambda world: world.let_pass(2, blackout=True)),
    Step("stall of 30 s", lambda world: world.let_pass(30, stall=True)),
    Step("line A dead", lambda world: world.let_pass(3, dead_groups=LINE_A_GROUPS)),
    Step("recovery killed", kill_recovery),
    Step("plant killed", kill_plant),
    Step("plant restarted", restart_plant),
)


def play(folder: Path, seed: int, markets: int, rate: int) -> list[str]:
    """One round; what was wrong."""
    steps = list(STEPS)
    random.Random(seed).shuffle(steps)
    with World(folder, seed=seed, markets=markets, rate=rate) as world:
        for step in steps:
            say(f"  {step.name}")
            step.happen(world)
        counts = world.forwarder.stats()
        world.settle()
        proof = world.end()
    messages = sum(proof.handed_out.values())
    say(f"  {messages:,} messages handed out; the network: {counts}")
    return proof.faults


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="worlds, about two minutes each")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first round")
    parser.add_argument("--markets", type=int, default=200, help="markets of the exchange")
    parser.add_argument("--rate", type=int, default=5_000, help="order actions a second")
    return parser.parse_args()


def say(text: str) -> None:
    """A line, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Run; the exit code."""
    arguments = parse_arguments()
    began_s = time.monotonic()
    failed = 0
    for seed in range(arguments.seed, arguments.seed + arguments.rounds):
        say(f"seed {seed}: {arguments.markets} markets, {arguments.rate} order actions a second")
        with tempfile.TemporaryDirectory(prefix="tickerplant-network-") as folder:
            try:
                faults = play(Path(folder), seed, arguments.markets, arguments.rate)
            except (TimeoutError, RuntimeError) as error:
                faults = [str(error)]
        failed += bool(faults)
        for fault in faults:
            say(f"FAILED: seed {seed}: {fault}")
    took_s = time.monotonic() - began_s
    say(f"{arguments.rounds - failed} of {arguments.rounds} rounds lost nothing, {took_s:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
