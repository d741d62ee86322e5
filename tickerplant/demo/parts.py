"""The demo's two servers, each a `tickerplant` command in a process of its own, and what they answer over HTTP."""

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from tickerplant.core.messages import FeedPhase
from tickerplant.demo.network import INTERFACE
from tickerplant.demo.processes import ChildProcess, DemoError, until
from tickerplant.limits import DEMO_REQUEST_TIMEOUT_S, DEMO_START_TIMEOUT_S

_POLL_S = 0.05
_ANNOUNCED = ("websocket", "rest", "key id", "key path")
"""What `tickerplant sim` prints once it listens, one a line."""

Levels = list[tuple[int, int]]


class ExchangeBook(msgspec.Struct, frozen=True):
    """The exchange's own book of a market in YES prices: (price_e4, size_e2), prices ascending."""

    bids: Levels
    asks: Levels


class FlowOptions(NamedTuple):
    """What the simulated exchange is to do: open markets, order actions a second, and the seed of all draws."""

    markets: int
    rate: int
    seed: int


class PlantCounts(NamedTuple):
    """Counters of the plant since its start; `published` are messages by name of the stream."""

    frames: int
    published: Mapping[str, int]
    connections_lost: int
    is_ready: bool
    """The markets are read and every book is live."""


class Loopback:
    """HTTP to the demo's own processes."""

    def __init__(self) -> None:
        """Needs a running event loop."""
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=DEMO_REQUEST_TIMEOUT_S)
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def get(self, url: str) -> bytes:
        """The body of `url`. Raises `DemoError`."""
        return await self._request("GET", url, None)

    async def post(self, url: str, body: Mapping[str, Any]) -> bytes:
        """The answer to `body`, sent as JSON. Raises `DemoError`."""
        return await self._request("POST", url, msgspec.json.encode(body))

    async def _request(self, method: str, url: str, body: bytes | None) -> bytes:
        try:
            async with self._session.request(method, url, data=body) as response:
                content = await response.read()
                status = response.status
        except (aiohttp.ClientError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            raise DemoError(f"{method} {url} failed: {reason}") from error
        if status != 200:
            raise DemoError(f"{method} {url} was answered with {status}")
        return content


class SimulatedExchange:
    """`tickerplant sim` on free ports with a key of its own."""

    def __init__(self, http: Loopback, directory: Path, options: FlowOptions) -> None:
        """The key is made in `directory`."""
        self.process: ChildProcess
        self.announced: dict[str, str] = {}
        self._http = http
        self._directory = directory
        self._options = options
        self._listening = asyncio.Event()
        self._control = ""

    async def start(self, resources: AsyncExitStack) -> None:
        """Until it listens; `resources` will stop it. Raises `DemoError`."""
        options = self._options
        self.process = await ChildProcess.start(
            "the simulated exchange",
            [
                "sim",
                *("--port", "0", "--rest-port", "0"),
                *("--directory", str(self._directory), "--key-type", "ed25519"),
                *("--markets", str(options.markets), "--rate", str(options.rate)),
                *("--seed", str(options.seed)),
            ],
            self._read_line,
        )
        resources.push_async_callback(self.process.stop)
        await until(
            self._listening.wait(), [self.process], DEMO_START_TIMEOUT_S, "starting the exchange"
        )
        parts = urlsplit(self.announced["rest"])
        self._control = f"{parts.scheme}://{parts.netloc}/sim"

    def _read_line(self, line: str) -> None:
        for name in _ANNOUNCED:
            if line.startswith(f"{name} ") and name not in self.announced:
                self.announced[name] = line.removeprefix(name).strip()
        if len(self.announced) == len(_ANNOUNCED):
            self._listening.set()

    @property
    def stats_url(self) -> str:
        """Its counters; beside it lie the other control endpoints."""
        return f"{self._control}/stats"

    async def pause(self) -> None:
        """Stop everything that changes a book. Raises `DemoError`."""
        await self._http.post(f"{self._control}/flow", {"action": "pause"})

    async def frames_sent(self) -> int:
        """Frames sent on all connections so far. Raises `DemoError`."""
        stats = msgspec.json.decode(await self._http.get(self.stats_url))
        return int(stats["frames_sent_total"])

    async def books(self) -> dict[str, ExchangeBook]:
        """Its own books by ticker. Raises `DemoError`."""
        body = await self._http.get(f"{self._control}/books")
        return msgspec.json.decode(body, type=dict[str, ExchangeBook])


class DemoPlant:
    """`tickerplant run` with a generated configuration."""

    def __init__(self, http: Loopback, directory: Path) -> None:
        """Configuration and state are kept in `directory`."""
        self.process: ChildProcess
        self.metrics_url = ""
        self._http = http
        self._directory = directory
        self.state_folder = directory / "state"
        """Of the plant; its tick log and its stored rows are below."""
        self._endpoint: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def start(
        self, resources: AsyncExitStack, announced: Mapping[str, str], group: str, port: int
    ) -> None:
        """Until its metrics endpoint listens; `announced` is what the exchange told, `resources` will stop it.

        Raises `DemoError`.
        """
        file = self._directory / "tickerplant.toml"
        text = configuration(announced, group, port, self.state_folder)
        file.write_text(text, encoding="utf-8")
        self.process = await ChildProcess.start(
            "the plant", ["run", "--config", str(file)], self._read_line
        )
        resources.push_async_callback(self.process.stop)
        self.metrics_url = await until(
            self._endpoint, [self.process], DEMO_START_TIMEOUT_S, "starting the plant"
        )

    def _read_line(self, line: str) -> None:
        """The endpoint's port stands in the log."""
        if self._endpoint.done() or '"metrics_endpoint"' not in line:
            return
        port = msgspec.json.decode(line)["port"]
        self._endpoint.set_result(f"http://{INTERFACE}:{port}/metrics")

    async def wait_ready(self) -> None:
        """Until every book is live. Raises `DemoError`."""
        while True:
            counts = await self.counts()
            if counts.is_ready:
                return
            await asyncio.sleep(_POLL_S)

    async def counts(self) -> PlantCounts:
        """Its counters now, all 0 before its session has begun. Raises `DemoError`."""
        text = (await self._http.get(self.metrics_url)).decode()
        values: Counter[tuple[str, str]] = Counter()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                values[sample.name, sample.labels.get("stream", "")] = int(sample.value)
        return PlantCounts(
            frames=values["tickerplant_feed_frames_total", ""],
            published={
                stream: value
                for (name, stream), value in values.items()
                if name == "tickerplant_plant_messages_total"
            },
            connections_lost=values["tickerplant_feed_connections_lost_total", ""],
            is_ready=values["tickerplant_plant_phase", ""] == FeedPhase.READY,
        )


def configuration(
    announced: Mapping[str, str], group: str, port: int, state: Path, *, with_store: bool = True
) -> str:
    """The plant's file: every market of the simulated exchange, on the demo's own groups and ports."""
    sections: dict[str, dict[str, str | int | bool]] = {
        "exchange": {
            "websocket_url": announced["websocket"],
            "rest_url": announced["rest"],
            "key_id": announced["key id"],
            "key_path": announced["key path"],
        },
        "markets": {"all_open": True, "include_combos": True},
        "publish": {"interface": INTERFACE, "group_a": group, "port": port, "ttl": 0},
        "metrics": {"address": INTERFACE, "port": 0},
        "recovery": {"address": INTERFACE, "port": 0, "metrics_port": 0},
        "store": {"enabled": with_store, "close_s": 1, "metrics_port": 0},
        "log": {"level": "info", "format": "json"},
        "state": {"directory": str(state)},
    }
    # Texts, numbers and booleans are written in TOML as in JSON.
    return "\n".join(
        f"[{name}]\n"
        + "".join(
            f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in section.items()
        )
        for name, section in sections.items()
    )
