"""Exchange, plant and recovery on one host, a subscriber on another, and a lossy network between them."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from forwarder import Weather, inside
from namespaces import Namespace
from processes import (
    COMMAND,
    Network,
    Plant,
    Process,
    Settings,
    Simulation,
    http,
    merged,
    wait_for,
)
from proof import Proof, prove
from restart_bed import kill, log_folder, variant

FORWARDER = Path(__file__).with_name("forwarder.py")
RECORDING_SUBSCRIBER = Path(__file__).with_name("recording_subscriber.py")
NETWORK = Network("239.196.10.1", 26_400)
LINE_B = "239.196.11.1"
RECOVERY_PORT = 26_410
SETTLE_TIMEOUT_S = 80.0


def groups_of(first: str) -> list[str]:
    """The five groups of a line."""
    head, _, last = first.rpartition(".")
    return [f"{head}.{int(last) + number}" for number in range(5)]


LINE_A_GROUPS = tuple(groups_of(NETWORK.group))
LINE_B_GROUPS = tuple(groups_of(LINE_B))


class ForwarderProcess:
    """The network; `set` changes its weather."""

    def __init__(self, plant: Namespace, subscriber: Namespace, seed: int) -> None:
        options = {
            "plant_namespace": str(plant.path),
            "subscriber_namespace": str(subscriber.path),
            "groups": LINE_A_GROUPS + LINE_B_GROUPS,
            "port": NETWORK.port,
            "recovery_port": RECOVERY_PORT,
            "seed": seed,
        }
        self._process = subprocess.Popen(
            [sys.executable, FORWARDER, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def set(self, **weather: Any) -> None:
        """Change the weather from now on."""
        self._tell(weather)

    def stats(self) -> dict[str, int]:
        """What was done to how many datagrams."""
        counts: dict[str, int] = self._tell({"stats": True})
        return counts

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _tell(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the forwarder has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


class RecordingSubscriber(Process):
    """`recording_subscriber.py`; `recording` is complete once it was stopped."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.recording = folder / "recording"
        words = ["--group", NETWORK.group, "--port", str(NETWORK.port)]
        words += ["--recovery", f"127.0.0.1:{RECOVERY_PORT}", "--recording", str(self.recording)]
        super().__init__(
            "subscriber", folder, [sys.executable, RECORDING_SUBSCRIBER, *words, *options]
        )
        try:
            self._url = f"http://127.0.0.1:{self.wait_output(r'report port (.+)')[1]}/"
        except BaseException:
            self.stop()
            raise

    def report(self) -> dict[str, Any]:
        """What it has: books, events, stats. All that it was handed by then is in the recording."""
        self.require_alive()
        report: dict[str, Any] = json.loads(http(self._url))
        return report


class World:
    """All processes, each in its namespace; line A and line B, signed: else nobody can tell what was corrupted."""

    def __init__(self, folder: Path, *, seed: int, markets: int, rate: int) -> None:
        self._folder = folder
        self._key_path = folder / "datagram.keys"
        self._seed = seed
        options = {"seed": seed, "markets": markets, "rate": rate, "window": 0}
        self._sim_options = [f"--{name}={value}" for name, value in options.items()]
        self._resources = ExitStack()
        self._plants = 0

    def __enter__(self) -> Self:
        try:
            self._begin(self._resources.enter_context)
        except BaseException:
            self._resources.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._resources.close()

    def _begin(self, enter: Any) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([COMMAND, "key", "make", self._key_path], check=True, capture_output=True)
        self.plant_host, self.subscriber_host = enter(Namespace("p")), enter(Namespace("s"))
        self.forwarder = ForwarderProcess(self.plant_host, self.subscriber_host, self._seed)
        self._resources.callback(self.forwarder.stop)
        with self.on_subscriber_host():
            self.subscriber = enter(
                RecordingSubscriber(
                    self._folder / "subscriber", "--group-b", LINE_B, "--key", str(self._key_path)
                )
            )
        with self.on_plant_host():
            self.sim = enter(Simulation(self._folder / "sim", *self._sim_options))
        self.start_plant()

    def on_plant_host(self) -> Any:
        """A context in which sockets and child processes are on the plant's host."""
        return inside(str(self.plant_host.path))

    def on_subscriber_host(self) -> Any:
        """The same for the subscriber's host."""
        return inside(str(self.subscriber_host.path))

    # --- the plant's host -------------------------------------------------------------------------

    def start_plant(self) -> None:
        """A plant, with its recovery, of the same state as the one before."""
        self._plants += 1
        settings: Settings = {
            "publish": {"group_b": LINE_B, "key_path": str(self._key_path)},
            "markets": {"all_open": True, "include_combos": True},
            "recovery": {"enabled": True, "port": RECOVERY_PORT},
        }
        with self.on_plant_host():
            self.plant = Plant(
                self._folder / "plant",
                NETWORK,
                merged(self.sim.settings, settings),
                command=variant(),
                name=f"plant{self._plants}",
            )
            self._resources.enter_context(self.plant)
            self.plant.wait_ready()
        wait_for(self.reaches_recovery, "the subscriber reaching recovery", SETTLE_TIMEOUT_S)

    def reaches_recovery(self) -> bool:
        """Until then a hole is a gap: nobody has ever answered."""
        with self.on_subscriber_host():
            recovery = self.subscriber.report()["stats"]["recovery"]
        return recovery["is_reachable"] is True

    def kill_plant(self) -> None:
        """SIGKILL; the next one starts where it left off."""
        kill(self.plant)

    def stop_plant(self) -> None:
        """In order; recovery ends with it."""
        with self.on_plant_host():
            assert self.plant.stop() == 0

    def kill_recovery(self) -> None:
        """SIGKILL; the plant starts it again."""
        started = len(self.plant.events("companion_started"))
        os.kill(self.plant.events("companion_started")[-1]["process"], signal.SIGKILL)
        wait_for(
            lambda: len(self.plant.events("companion_started")) > started,
            "recovery being started again",
        )

    # --- the end ----------------------------------------------------------------------------------

    def settle(self) -> None:
        """Fair weather, no more orders; the subscriber has everything. Raises `TimeoutError`: what it lacks."""
        self.forwarder.set(**asdict(Weather()))
        with self.on_plant_host():
            self.sim.post("/sim/flow", action="pause")
            wanted = self.sim.open_tickers()
            books = {one: book for one, book in self.sim.books().items() if one in wanted}
        lacks: list[str] = []

        def look() -> bool:
            with self.on_subscriber_host():
                report = self.subscriber.report()
            lacks[:] = self.lacking(report, books)
            return not lacks

        try:
            wait_for(look, "the subscriber having everything", SETTLE_TIMEOUT_S)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; lacking: {lacks[:10]}") from None

    def lacking(self, report: dict[str, Any], books: dict[str, Any]) -> list[str]:
        """Streams that are not up to date, and markets whose book is not live or not the exchange's."""
        session = int(self.plant.events("session_begins")[-1]["session"])
        streams = [
            f"stream {one['stream']}"
            for one in report["stats"]["streams"]
            if one["open_holes"] or one["behind"] or one["dead"] or one["session"] != session
        ]
        return streams + [
            ticker
            for ticker, (bids, asks) in books.items()
            if (mine := report["books"].get(ticker)) is None
            or mine["state"] != "LIVE"
            or (mine["bids"], mine["asks"]) != (bids, asks)
        ]

    def end(self) -> Proof:
        """After `settle`: the plant ends its session, the subscriber hears it, and what it was handed is compared."""
        session = int(self.plant.events("session_begins")[-1]["session"])
        self.stop_plant()

        def is_over() -> bool:
            with self.on_subscriber_host():
                report = self.subscriber.report()
            streams = report["stats"]["streams"]
            has_ended = all(one["ended"] and one["session"] == session for one in streams)
            return has_ended and not report["waiting"]

        wait_for(is_over, "the end of the session being heard")
        self.subscriber.stop()
        return prove(self.subscriber.recording, log_folder(self._folder / "plant"))

    def let_pass(self, seconds: float, **weather: Any) -> None:
        """Flow under this weather and no other."""
        self.forwarder.set(**asdict(Weather(**weather)))
        time.sleep(seconds)
        self.plant.require_alive()
        self.subscriber.require_alive()
