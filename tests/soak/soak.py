"""Soak: simulated flow for a long time with every fault of the exchange made again and again.

    python tests/soak/soak.py --for 10m --seed 7

The simulated exchange, the plant and a subscriber run as processes of their own. Every fault must be seen by the plant
in its counters. After the last one the flow goes on a little and stops: then every book must be live at the subscriber
and equal to the exchange's own, no process may have failed, nothing may have been lost between plant and subscriber,
and the memory of plant and subscriber may not have grown by more than 5 % since minute 2.

A run shorter than two minutes uses a plant whose waits are shortened (`plant_with_short_times`), and compares memory
with a fifth of the time, with an allowance. Exit code 0 if all of it holds, else 1.
"""

import argparse
import random
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import psutil

sys.path.append(str(Path(__file__).resolve().parent.parent / "end_to_end"))

from fault_steps import (
    ALL_STEPS,
    DISCONNECTING_STEPS,
    FLOOD_ACTIONS,
    STEADY_STEPS,
    Fault,
    FaultStep,
    fault,
)
from processes import (
    COMMAND,
    ExchangeRefusesError,
    Plant,
    Simulation,
    SubscriberProcess,
    free_network,
    merged,
    wait_for,
)

SHORT_RUN_S = 120.0
PROGRESS_INTERVAL_S = 10.0
SAMPLE_INTERVAL_S = 1.0
MISSED_AFTER_S = 3.0
WARM_UP_ACTIONS = 3 * FLOOD_ACTIONS
MEMORY_GROWTH_PERCENT = 5
MEMORY_SHORT_ALLOWANCE_BYTES = 4 * 1024**2
"""A short run is still filling caches, directory and allocator at its first sample."""
LIVE = 1
EVERYTHING = {"all_open": True, "include_combos": True}
MEBIBYTE = 1024**2


class Pace(NamedTuple):
    """What differs between a short and a long run; times in seconds."""

    short: bool
    pause_max_s: float
    disconnects_per_round: int
    seen_timeout_s: float
    heal_timeout_s: float
    quiet_s: float
    window_s: int
    change_interval_s: float


SHORT = Pace(True, 0.05, len(DISCONNECTING_STEPS), 30.0, 30.0, 1.0, 15, 0.2)
LONG = Pace(False, 3.0, 2, 120.0, 120.0, 5.0, 60, 2.0)


class SoakError(Exception):
    """What the run found wrong, in one line."""


class Memory:
    """Resident bytes of plant and subscriber over time, and a progress line now and then."""

    def __init__(self, soak: "Soak") -> None:
        self._soak = soak
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory")
        self.processes = {
            part.name: psutil.Process(part.pid) for part in (soak.plant, soak.subscriber)
        }
        self.samples: list[tuple[float, dict[str, int]]] = []

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def now(self) -> dict[str, int]:
        """Resident bytes by process."""
        return {name: process.memory_info().rss for name, process in self.processes.items()}

    def at(self, elapsed_s: float) -> dict[str, int]:
        """The first sample not before `elapsed_s`; the last one if there is none."""
        later = (sample for at_s, sample in self.samples if at_s >= elapsed_s)
        return next(later, self.samples[-1][1])

    def _run(self) -> None:
        told_s = 0.0
        while not self._stop.wait(SAMPLE_INTERVAL_S):
            elapsed_s = self._soak.elapsed_s()
            try:
                self.samples.append((elapsed_s, self.now()))
                if elapsed_s - told_s >= PROGRESS_INTERVAL_S:
                    told_s = elapsed_s
                    say(self._soak.progress())
            except (psutil.Error, OSError, RuntimeError) as error:
                # The main thread finds out for itself which process is gone.
                say(f"{elapsed_s:5.0f} s  no figures: {error}")
                return


class Soak:
    """One run; `run` returns what it found wrong."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self._duration_s = arguments.duration_s
        self._pace = SHORT if arguments.duration_s < SHORT_RUN_S else LONG
        self._random = random.Random(arguments.seed)
        self._arguments = arguments
        self._folder = folder
        self._start_s = 0.0
        self._waiting_disconnects: list[FaultStep] = []
        self.made: Counter[str] = Counter()
        self.comparisons = 0
        self.problems: list[str] = []
        self.memory: Memory
        self.simulation: Simulation
        self.subscriber: SubscriberProcess
        self.plant: Plant

    def elapsed_s(self) -> float:
        """Since the first book was live."""
        return time.monotonic() - self._start_s

    # --- the run --------------------------------------------------------------------------------------

    def run(self) -> list[str]:
        """Everything; returns the problems, none if all is well."""
        with ExitStack() as stack:
            self._open(stack)
            self.plant.wait_ready(self._pace.heal_timeout_s)
            self._start_s = time.monotonic()
            self.memory = Memory(self)
            try:
                with self.memory:
                    self._play()
                    self._finish()
                self._judge_memory()
                self._stop()
            except (SoakError, TimeoutError, RuntimeError, OSError) as error:
                self.problems.append(str(error))
        return self.problems

    def _open(self, stack: ExitStack) -> None:
        arguments, pace = self._arguments, self._pace
        network = free_network()
        self.subscriber = stack.enter_context(
            SubscriberProcess(self._folder, network, "--keep", "0")
        )
        flow = {
            "--seed": arguments.seed,
            "--rate": arguments.rate,
            "--markets": arguments.markets,
            "--window": pace.window_s,
            "--change-interval": pace.change_interval_s,
            "--directory": self._folder / "sim",
        }
        words = [str(word) for option in flow.items() for word in option]
        self.simulation = stack.enter_context(Simulation(self._folder, *words))
        settings = merged(self.simulation.settings, {"markets": EVERYTHING})
        short = Path(__file__).with_name("plant_with_short_times.py")
        command = (sys.executable, short, "run") if pace.short else (COMMAND, "run")
        plant = Plant(self._folder, network, settings, command=command)
        self.plant = stack.enter_context(plant)

    def _play(self) -> None:
        """Rounds of faults until the time is over, and until each fault was made at least once."""
        # The largest burst comes first: queues and buffers then have their size before memory is compared.
        self._inject(fault("flood", count=WARM_UP_ACTIONS))
        self.plant.wait_metric("feed_frames", WARM_UP_ACTIONS, self._pace.seen_timeout_s)
        while self.elapsed_s() < self._duration_s or len(self.made) < len(ALL_STEPS):
            for step in self._round():
                if self.elapsed_s() >= self._duration_s and step.name in self.made:
                    continue
                self._make(step)
                time.sleep(self._random.uniform(0, self._pace.pause_max_s))
            if not self._pace.short:
                self._compare_everything()
                self.simulation.post("/sim/flow", action="resume")

    def _round(self) -> list[FaultStep]:
        """All steps that leave the connection up, then some of the others; those take turns."""
        steady = list(STEADY_STEPS)
        self._random.shuffle(steady)
        count = self._pace.disconnects_per_round
        if len(self._waiting_disconnects) < count:
            more = list(DISCONNECTING_STEPS)
            self._random.shuffle(more)
            self._waiting_disconnects += more
        turn = self._waiting_disconnects[:count]
        self._waiting_disconnects = self._waiting_disconnects[count:]
        return steady + turn

    def _make(self, step: FaultStep) -> None:
        """Make the faults of a step until the plant has seen them. Raises `TimeoutError`."""
        deadline_s = time.monotonic() + self._pace.seen_timeout_s
        while not self._is_seen(step):
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"the plant does not see {step.name}")
        self._inject_all(step.ends)
        self.made[step.name] += 1

    def _is_seen(self, step: FaultStep) -> bool:
        """Make the faults once; whether the plant counts them and tells the reason."""
        # A connection that is down cannot be lost.
        self.plant.wait_metric("feed_connections_up", 1, self._pace.heal_timeout_s)
        before, told = self.plant.metrics(), self._times_told(step.reason)
        self._inject_all(step.faults)

        def is_counted() -> bool:
            self.plant.require_alive()
            after = self.plant.metrics()
            return all(
                after.get(name, 0) - before.get(name, 0) >= least
                for name, least in step.seen.items()
            )

        timeout_s = MISSED_AFTER_S if step.may_miss else self._pace.seen_timeout_s
        if not comes_true(is_counted, timeout_s):
            return False
        # A connection may have gone for another reason, before this one could be.
        is_told = partial(self._is_told, step.reason, told)
        return not step.reason or comes_true(is_told, MISSED_AFTER_S)

    def _is_told(self, reason: str, before: int) -> bool:
        return self._times_told(reason) > before

    def _times_told(self, reason: str) -> int:
        """How often the plant told its subscribers a cause with these words."""
        causes: dict[str, int] = self.subscriber.report()["causes"]
        return sum(count for cause, count in causes.items() if reason in cause)

    def _inject_all(self, faults: tuple[Fault, ...]) -> None:
        for one in faults:
            what = f"a subscription to make {one} on"
            wait_for(partial(self._inject, one), what, self._pace.heal_timeout_s)

    def _inject(self, one: Fault) -> bool:
        answer = self.simulation.post("/sim/fault", **one)
        if "error" in answer:
            raise SoakError(f"the simulation refuses {one}: {answer['error']}")
        return bool(answer["connections"])

    def _finish(self) -> None:
        """The flow goes on a little without faults, stops, and everything must be right."""
        time.sleep(self._pace.quiet_s)
        self._compare_everything()
        metrics = self.plant.metrics()
        for name in ("plant_stale_books", "plant_unready_books", "daemon_internal_errors"):
            if metrics[name]:
                self.problems.append(f"{name} is {metrics[name]} at the end")

    # --- books ----------------------------------------------------------------------------------------

    def _compare_everything(self) -> None:
        """Stop the flow and compare when all has arrived. Raises `SoakError` with the differences that stay."""
        self.plant.wait_ready(self._pace.heal_timeout_s)
        self.simulation.post("/sim/flow", action="pause")
        differences: list[str] = []

        def is_equal() -> bool:
            self.plant.require_alive()
            try:
                differences[:] = self._differences()
            except ExchangeRefusesError as error:
                differences[:] = [str(error)]
            return not differences

        try:
            wait_for(is_equal, "books being equal", self._pace.heal_timeout_s)
        except TimeoutError:
            shown = "; ".join(differences[:5])
            raise SoakError(f"{len(differences)} books are not right: {shown}") from None
        self.comparisons += 1

    def _differences(self) -> list[str]:
        """What is not right at the subscriber: a market without live book, a stale book, one that differs."""
        books = self.simulation.books()
        report = self.subscriber.report()
        views, quotes = report["books"], report["quotes"]
        found = [f"{ticker} is stale" for ticker, view in views.items() if view["state"] == "STALE"]
        for ticker in sorted(self.simulation.open_tickers()):
            state = views[ticker]["state"] if ticker in views else "missing"
            if state != "LIVE":
                found.append(f"{ticker} is {state}")
            elif quotes.get(ticker) != {"state": LIVE, "quote": best_of(*books[ticker])}:
                found.append(f"the quote of {ticker} is {quotes.get(ticker)}")
        for ticker, view in views.items():
            own = books.get(ticker, ([], []))
            if view["state"] == "LIVE" and (view["bids"], view["asks"]) != own:
                found.append(f"{ticker} is {view['bids']} {view['asks']}, not {own}")
        lost = sum(row["gaps"] for row in report["stats"]["streams"])
        if lost:
            raise SoakError(f"{lost} gaps between plant and subscriber")
        return found

    # --- the end --------------------------------------------------------------------------------------

    def _judge_memory(self) -> None:
        since_s = self._duration_s / 5 if self._pace.short else SHORT_RUN_S
        base, end = self.memory.at(since_s), self.memory.now()
        allowance = MEMORY_SHORT_ALLOWANCE_BYTES if self._pace.short else 0
        for name, before in base.items():
            percent = 100 * (end[name] - before) / before
            say(
                f"memory of the {name}: {before / MEBIBYTE:.1f} MiB after {since_s:.0f} s, "
                f"{end[name] / MEBIBYTE:.1f} MiB at the end ({percent:+.1f} %)"
            )
            if end[name] > before * (100 + MEMORY_GROWTH_PERCENT) // 100 + allowance:
                self.problems.append(f"the memory of the {name} grew by {percent:.1f} %")

    def _stop(self) -> None:
        """Everything must still run, end in order, and have logged no error."""
        for part in (self.simulation, self.plant, self.subscriber):
            part.require_alive()
        code = self.plant.stop()
        if code:
            self.problems.append(f"the plant ended with {code}")
        self.problems += [
            f"the plant logged {event}"
            for event in self.plant.events()
            if event["level"] in {"error", "critical"}
        ]
        wait_for(
            lambda: self.subscriber.report()["messages"].get("SessionEnded") == 5,
            "the subscriber hearing the end of all streams",
        )
        for part in (self.subscriber, self.simulation):
            if "Traceback" in part.errors:
                self.problems.append(f"the {part.name} printed: {part.errors[-500:]}")

    def progress(self) -> str:
        """One line about where the run is."""
        metrics = self.plant.metrics()
        _at_s, memory = self.memory.samples[-1]
        return (
            f"{self.elapsed_s():5.0f} s  {sum(self.made.values())} faults, "
            f"{metrics['feed_frames']:,} frames, {metrics['plant_books']} books "
            f"({metrics['plant_stale_books']} stale), {metrics['feed_connections_opened']} connections, "
            + ", ".join(f"{name} {size / MEBIBYTE:.0f} MiB" for name, size in memory.items())
        )


def comes_true(probe: Callable[[], bool], timeout_s: float) -> bool:
    """Whether `probe` is true within the time."""
    try:
        return wait_for(probe, "", timeout_s)
    except TimeoutError:
        return False


def best_of(bids: list[list[int]], asks: list[list[int]]) -> list[int]:
    """Best bid and best ask with their sizes; an absent side is 0, 0."""
    return [*(bids[-1] if bids else (0, 0)), *(asks[0] if asks else (0, 0))]


def say(text: str) -> None:
    """One line on standard output, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def duration_s(text: str) -> float:
    """`90`, `30s`, `10m` or `1h` in seconds."""
    matched = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if matched is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration like 30s, 10m or 1h")
    return float(matched[1]) * {"": 1, "s": 1, "m": 60, "h": 3_600}[matched[2]]


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Simulated flow with every fault of the exchange made again and again.",
        epilog="example: make soak ARGS='--for 30s --seed 7'",
    )
    parser.add_argument(
        "--for", dest="duration_s", type=duration_s, default="10m", help="how long (%(default)s)"
    )
    parser.add_argument("--seed", type=int, help="of flow and faults (default: a new one)")
    parser.add_argument(
        "--rate", type=int, default=1_000, help="order actions a second (%(default)s)"
    )
    parser.add_argument("--markets", type=int, default=200, help="open markets (%(default)s)")
    arguments = parser.parse_args()
    if arguments.seed is None:
        arguments.seed = random.SystemRandom().randrange(1_000_000)
    return arguments


def main() -> int:
    """Run; the exit code."""
    arguments = parse_arguments()
    say(
        f"soak for {arguments.duration_s:.0f} s with seed {arguments.seed}: "
        f"{arguments.markets} markets, {arguments.rate} order actions a second"
    )
    with tempfile.TemporaryDirectory(prefix="tickerplant-soak-") as folder:
        soak = Soak(arguments, Path(folder))
        problems = soak.run()
        say(f"{sum(soak.made.values())} faults made and seen, {len(soak.made)} kinds:")
        for name, count in sorted(soak.made.items()):
            say(f"  {count:4d} {name}")
        if problems and (log := Path(folder) / "plant.err").exists():
            say("last lines of the plant's log:")
            say("\n".join(log.read_text().splitlines()[-15:]))
    for problem in problems:
        say(f"FAILED: {problem}")
    verdict = "failed" if problems else "passed: all books equal"
    say(f"soak {verdict} after {soak.elapsed_s():.0f} s (seed {arguments.seed})")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
