"""The parts of a deployment as processes of their own: simulated exchange, plant, subscriber. Shared with the soak.

Everything listens on loopback, on free ports, and publishes with TTL 0 on groups of this process alone. Each part lives
in a folder of its own, with an environment that holds no configuration of this machine. All waits have a deadline.
"""

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

COMMAND = Path(sys.executable).with_name("tickerplant")
SUBSCRIBER = Path(__file__).with_name("subscriber_process.py")
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
HTTP_TIMEOUT_S = 30.0
_SAMPLE = re.compile(r"tickerplant_(\S+?)(?:_total)?(\{[^}]*\})? (\S+)")
_networks = itertools.count()
_T = TypeVar("_T")


class Network(NamedTuple):
    """Multicast groups and port of one plant."""

    group: str
    port: int


def free_network() -> Network:
    """Five groups and a port that nobody uses."""
    number = (os.getpid() * 131 + next(_networks)) % 8192 * 8
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    return Network(f"239.196.{number >> 8}.{number & 255}", port)


def free_tcp_port() -> int:
    """A TCP port of the loopback interface that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clean_environment(home: Path) -> dict[str, str]:
    """The environment without any configuration of ours, and with a home of its own."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TICKERPLANT") and name not in {"KALSHI_KEY_PEM", "STATE_DIRECTORY"}
    }
    # Nothing here speaks TLS, and reading the system's certificates is a tenth of each process's start.
    return kept | {"HOME": str(home), "SSL_CERT_FILE": os.devnull, "SSL_CERT_DIR": os.devnull}


def wait_for(probe: Callable[[], _T | None], what: str, timeout_s: float = START_TIMEOUT_S) -> _T:
    """The first result of `probe` that is neither None nor False. Raises `TimeoutError` naming `what`."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        result = probe()
        if result is not None and result is not False:
            return result
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.02)


class Process:
    """One child process; its output goes to files `NAME.out` and `NAME.err` of its folder."""

    def __init__(
        self,
        name: str,
        folder: Path,
        command: Sequence[str | Path],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.folder = folder
        self.out_path, self.error_path = folder / f"{name}.out", folder / f"{name}.err"
        with self.out_path.open("wb") as out, self.error_path.open("wb") as error:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=error,
                cwd=folder,
                env=clean_environment(folder) | dict(environment or {}),
            )

    @property
    def output(self) -> str:
        """Standard output so far."""
        return self.out_path.read_text()

    @property
    def errors(self) -> str:
        """Standard error so far."""
        return self.error_path.read_text()

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    def require_alive(self) -> None:
        """Raise `RuntimeError` if the process has ended."""
        code = self.process.poll()
        if code is not None:
            raise RuntimeError(f"{self.name} ended with {code}:\n{self.errors[-2000:]}")

    def wait_output(self, pattern: str) -> re.Match[str]:
        """The first match of `pattern` in the standard output. Raises `RuntimeError` if the process ends before."""

        def look() -> re.Match[str] | None:
            found = re.search(pattern, self.output)
            if found is None:
                self.require_alive()
            return found

        return wait_for(look, f"{self.name} printing {pattern!r}")

    def wait(self, timeout_s: float = START_TIMEOUT_S) -> int:
        """The exit code of a process that ends by itself."""
        return self.process.wait(timeout_s)

    def stop(self) -> int:
        """End it with SIGTERM, or with SIGKILL if that takes too long; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                return self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


class ExchangeRefusesError(Exception):
    """The simulated exchange answers a REST request with an error."""


class Simulation(Process):
    """`tickerplant sim` with `options`, on free ports unless they are given."""

    def __init__(self, folder: Path, *options: str | Path, name: str = "sim") -> None:
        ports = () if "--port" in options else ("--port", "0", "--rest-port", "0")
        super().__init__(name, folder, [COMMAND, "sim", *ports, *options])
        try:
            self.websocket_url = self.wait_output(r"websocket +(ws\S+)\n")[1]
            self.rest_url = self.wait_output(r"rest +(http\S+)\n")[1]
            self.key_id = self.wait_output(r"key id +(\S+)\n")[1]
            self.key_path = Path(self.wait_output(r"key path +(.+)\n")[1])
        except BaseException:
            self.stop()
            raise

    def get(self, path: str) -> Any:
        """The decoded body of a GET, `path` below the host."""
        return json.loads(http(self.rest_url.partition("/trade-api")[0] + path))

    def post(self, path: str, **body: Any) -> Any:
        """The decoded body of a POST with a JSON object."""
        host = self.rest_url.partition("/trade-api")[0]
        return json.loads(http(host + path, json.dumps(body).encode()))

    def books(self) -> dict[str, tuple[list[list[int]], list[list[int]]]]:
        """The exchange's own books: (bids, asks) of [price_e4, size_e2] in YES prices, ascending."""
        return {
            ticker: (book["bids"], book["asks"]) for ticker, book in self.get("/sim/books").items()
        }

    def open_tickers(self) -> set[str]:
        """Markets that trade now. Raises `ExchangeRefusesError` while REST answers with an error."""
        tickers: set[str] = set()
        cursor = ""
        while True:
            path = f"/trade-api/v2/markets?status=open&limit=1000&cursor={cursor}"
            page = self.get(path)
            if "markets" not in page:
                raise ExchangeRefusesError(f"REST answers {page}")
            tickers |= {row["ticker"] for row in page["markets"] if row["status"] == "active"}
            cursor = page["cursor"]
            if not cursor:
                return tickers

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """The `[exchange]` section that leads here."""
        return {
            "exchange": {
                "websocket_url": self.websocket_url,
                "rest_url": self.rest_url,
                "key_id": self.key_id,
                "key_path": str(self.key_path),
            }
        }


Settings = dict[str, dict[str, Any]]


def merged(*parts: Settings) -> Settings:
    """The settings of all parts, the later winning."""
    result: Settings = {}
    for part in parts:
        for section, values in part.items():
            result[section] = result.get(section, {}) | values
    return result


def write_config(folder: Path, settings: Settings) -> Path:
    """A configuration file of `settings`; JSON values are TOML values here."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tickerplant.toml"
    with path.open("w") as file:
        for section, values in settings.items():
            file.write(f"[{section}]\n")
            for key, value in values.items():
                file.write(f"{key} = {json.dumps(value)}\n")
    return path


def plant_settings(folder: Path, network: Network) -> Settings:
    """What every plant here needs beside its exchange: own groups, state and metrics port, logs to be read."""
    return {
        "publish": {"group_a": network.group, "port": network.port},
        "metrics": {"port": 0},
        "recovery": {"enabled": False, "port": 0, "metrics_port": 0},
        "store": {"enabled": False, "metrics_port": 0},
        "log": {"format": "json"},
        "state": {"directory": str(folder / "state")},
    }


class Plant(Process):
    """`tickerplant run` with a configuration file of `settings`, or another `command` that takes `--config`."""

    def __init__(
        self,
        folder: Path,
        network: Network,
        settings: Settings,
        *,
        command: Sequence[str | Path] = (COMMAND, "run"),
        environment: Mapping[str, str] | None = None,
        name: str = "plant",
    ) -> None:
        self.network = network
        self.settings = merged(plant_settings(folder, network), settings)
        config = write_config(folder, self.settings)
        super().__init__(name, folder, [*command, "--config", config], environment)
        self._metrics_port = 0

    def events(self, name: str = "") -> list[dict[str, Any]]:
        """The log lines, those of one event name if it is given."""
        lines = [json.loads(line) for line in self.errors.splitlines() if line.startswith("{")]
        return [line for line in lines if name in {"", line["event"]}]

    def wait_event(self, name: str, timeout_s: float = START_TIMEOUT_S) -> dict[str, Any]:
        """The first log line of an event. Raises `RuntimeError` if the process ends before."""

        def look() -> dict[str, Any] | None:
            found = self.events(name)
            if not found:
                self.require_alive()
            return found[0] if found else None

        return wait_for(look, f"{self.name} logging {name}", timeout_s)

    def get(self, path: str) -> str:
        """The body of a page of the metrics endpoint."""
        if not self._metrics_port:
            self._metrics_port = self.wait_event("metrics_endpoint")["port"]
        return http(f"http://127.0.0.1:{self._metrics_port}{path}").decode()

    def metrics(self) -> dict[str, int]:
        """Every sample of ours; the name without prefix and `_total`, with labels: `feed_error_frames{code="25"}`."""
        samples = {}
        for line in self.get("/metrics").splitlines():
            matched = _SAMPLE.fullmatch(line)
            if matched is not None:
                samples[matched[1] + (matched[2] or "")] = int(float(matched[3]))
        return samples

    def wait_metric(self, name: str, least: int, timeout_s: float = START_TIMEOUT_S) -> int:
        """The value of a metric once it is at least `least`."""

        def look() -> int | None:
            self.require_alive()
            value = self.metrics().get(name, 0)
            return value if value >= least else None

        return wait_for(look, f"{self.name}: {name} >= {least}", timeout_s)

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Until every chosen book is live."""

        def look() -> bool:
            self.require_alive()
            return json.loads(self.get("/ready")).get("ready") is True

        wait_for(look, f"{self.name} being ready", timeout_s)


class SubscriberProcess(Process):
    """A subscriber in a process of its own; `report` asks it what it has."""

    def __init__(self, folder: Path, network: Network, *options: str) -> None:
        words = ["--group", network.group, "--port", str(network.port), *options]
        super().__init__("subscriber", folder, [sys.executable, SUBSCRIBER, *words])
        try:
            self._url = f"http://127.0.0.1:{self.wait_output(r'report port (.+)')[1]}/"
        except BaseException:
            self.stop()
            raise

    def report(self) -> dict[str, Any]:
        """What `subscriber_process.py` tells: books, quotes, kept messages, events, counts."""
        self.require_alive()
        report: dict[str, Any] = json.loads(http(self._url))
        return report


def http(url: str, body: bytes | None = None) -> bytes:
    """The body of a GET, or of a POST with `body`; error statuses too."""
    request = urllib.request.Request(url, data=body)
    try:
        with urllib.request.urlopen(request, timeout=HTTP_TIMEOUT_S) as reply:
            return bytes(reply.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.read()
