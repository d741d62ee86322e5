"""Exchange, plant and recovery on one host, a subscriber on another, and a lossy network between them."""

import json
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from forwarder import inside
from namespaces import Namespace
from processes import Network, Plant, Simulation, SubscriberProcess, wait_for

FORWARDER = Path(__file__).with_name("forwarder.py")
NETWORK = Network("239.196.10.1", 26_400)
LINE_B = "239.196.11.1"
RECOVERY_PORT = 26_410
SETTLE_TIMEOUT_S = 60.0


def groups_of(first: str) -> list[str]:
    """The five groups of a line."""
    head, _, last = first.rpartition(".")
    return [f"{head}.{int(last) + number}" for number in range(5)]


class ForwarderProcess:
    """The network; `set` changes its weather."""

    def __init__(self, plant: Namespace, subscriber: Namespace, seed: int) -> None:
        options = {
            "plant_namespace": str(plant.path),
            "subscriber_namespace": str(subscriber.path),
            "groups": groups_of(NETWORK.group) + groups_of(LINE_B),
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


class World:
    """All processes, each in its namespace. `call(f)` runs `f` on the plant's host, e.g. to read its metrics."""

    def __init__(self, folder: Path, *, seed: int, markets: int, rate: int, line_b: bool) -> None:
        self._folder = folder
        self._seed = seed
        self._line_b = line_b
        self._sim_options = ("--seed", str(seed), "--markets", str(markets), "--rate", str(rate))
        self._resources = ExitStack()

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
        self.plant_host, self.subscriber_host = enter(Namespace("p")), enter(Namespace("s"))
        self.forwarder = ForwarderProcess(self.plant_host, self.subscriber_host, self._seed)
        self._resources.callback(self.forwarder.stop)
        with self.on_subscriber_host():
            self.subscriber = self._start_subscriber(enter)
        with self.on_plant_host():
            self.sim = enter(Simulation(self._folder / "sim", *self._sim_options))
            self.plant = enter(self.start_plant())
            self.plant.wait_ready()

    def on_plant_host(self) -> Any:
        """A context in which sockets and child processes are on the plant's host."""
        return inside(str(self.plant_host.path))

    def on_subscriber_host(self) -> Any:
        """The same for the subscriber's host."""
        return inside(str(self.subscriber_host.path))

    def _start_subscriber(self, enter: Any) -> SubscriberProcess:
        options = ("--group-b", LINE_B) if self._line_b else ()
        subscriber: SubscriberProcess = enter(
            SubscriberProcess(
                self._folder / "subscriber",
                NETWORK,
                *options,
                "--recovery",
                f"127.0.0.1:{RECOVERY_PORT}",
            )
        )
        return subscriber

    def start_plant(self) -> Plant:
        """A plant with its recovery; to be called on the plant's host."""
        publish = {"group_b": LINE_B} if self._line_b else {}
        settings = {
            "publish": publish,
            "markets": {"all_open": True},
            "recovery": {"port": RECOVERY_PORT},
        }
        settings |= self.sim.settings
        settings["publish"] = {"group_a": NETWORK.group, "port": NETWORK.port} | publish
        return Plant(self._folder / "plant", NETWORK, settings)

    def stop_flow(self) -> dict[str, Any]:
        """No more orders; the exchange's own books."""
        with self.on_plant_host():
            self.sim.post("/sim/flow", action="pause")
            return self.sim.books()

    def wait_equal(self, books: dict[str, Any]) -> dict[str, Any]:
        """The subscriber's report once its books are the exchange's. Raises `TimeoutError`."""

        def look() -> dict[str, Any] | None:
            with self.on_subscriber_host():
                report = self.subscriber.report()
            return report if self.differing(report, books) == [] else None

        return wait_for(look, "all books equal", SETTLE_TIMEOUT_S)

    def differing(self, report: dict[str, Any], books: dict[str, Any]) -> list[str]:
        """Markets whose book is not live or not the exchange's."""
        return [
            ticker
            for ticker, (bids, asks) in books.items()
            if (mine := report["books"].get(ticker)) is None
            or mine["state"] != "LIVE"
            or (mine["bids"], mine["asks"]) != (bids, asks)
        ]

    def let_pass(self, seconds: float) -> None:
        """Flow under the present weather."""
        time.sleep(seconds)
        self.plant.require_alive()
        self.subscriber.require_alive()
