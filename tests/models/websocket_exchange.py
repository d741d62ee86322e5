"""A scripted WebSocket exchange on the `websockets` library, and what the daemon is to a session: for session tests."""

import asyncio
import functools
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from websockets.asyncio.server import Request, Response, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from tickerplant.core.plant import Plant
from tickerplant.deadline_timer import DeadlineTimer
from tickerplant_kalshi.auth import Signer
from tickerplant_kalshi.directory import MarketDirectory
from tickerplant_kalshi.feed import KalshiFeed
from tickerplant_kalshi.selection import Selection
from tickerplant_kalshi.session import ExchangeSession, StartGate

SECOND_NS = 1_000_000_000
PATH = "/trade-api/ws/v2"
KEY = Ed25519PrivateKey.generate()
Script = Callable[[ServerConnection], Awaitable[None]]


def on_uvloop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on the loop that the plant runs on."""

    @functools.wraps(test)
    def run(*arguments: Any, **options: Any) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(test(*arguments, **options))

    return run


class EventList:
    """A session log that keeps what was logged."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))

    def warning(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))

    def reasons(self) -> list[str]:
        return [fields["reason"] for _, fields in self.events if "reason" in fields]


class Shell:
    """What the daemon is to a session, without publisher: a real feed, and a clock that can be put forward."""

    def __init__(self, url: str, **options: Any) -> None:
        self.ahead_ns = 0
        now_ns = self.now_ns()
        self.plant = Plant(now_ns, now_ns)
        self.feed = KalshiFeed(
            self.plant, MarketDirectory(Selection(all_open=True)), channels=("trade",)
        )
        self.feed.discovery_done(now_ns)
        self.log = EventList()
        self.batches: list[int] = []
        self.clock_reads = 0
        self.failures: list[tuple[str, BaseException]] = []
        self.session = ExchangeSession(
            self.feed,
            0,
            url=url,
            signer=Signer("key-1", "Ed25519", KEY.sign),
            shell=self,
            gate=StartGate(),
            log=self.log,
            **{"reconnect_base_ns": 1_000_000, "reconnect_cap_ns": 5_000_000, **options},
        )
        self.counters = self.feed.connections[0].counters
        self.timer = DeadlineTimer(self.now_ns, self.fire_timer)
        self._frames = 0

    def now_ns(self) -> int:
        self.clock_reads = getattr(self, "clock_reads", 0) + 1
        return time.time_ns() + self.ahead_ns

    def publish(self) -> None:
        now_ns = self.now_ns()
        self.feed.flush(now_ns)
        if self.counters.frames != self._frames:
            self.batches.append(self.counters.frames - self._frames)
            self._frames = self.counters.frames
        self._after_input(now_ns)

    def fire_timer(self) -> None:
        now_ns = self.now_ns()
        self.feed.handle_timer(now_ns)
        self._after_input(now_ns)

    def _after_input(self, now_ns: int) -> None:
        self.session.pump(now_ns)
        self.timer.arm(self.feed.next_deadline_ns())

    def failed(self, where: str, error: BaseException) -> None:
        self.failures.append((where, error))


@asynccontextmanager
async def running(shell: Shell) -> AsyncIterator[asyncio.Task[None]]:
    """The session of `shell`, running."""
    task = asyncio.create_task(shell.session.run())
    try:
        yield task
    finally:
        shell.timer.close()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        shell.timer.close()


async def until(condition: Callable[[], object], task: asyncio.Task[None] | None = None) -> None:
    """Return as soon as `condition()` holds; fail after five seconds, or with what `task` raised."""
    deadline = time.monotonic() + 30
    while not condition():
        if task is not None and task.done():
            task.result()
        assert time.monotonic() < deadline, "it did not happen within thirty seconds"
        await asyncio.sleep(0.002)


class Exchange:
    """A WebSocket server: verifies handshakes, acknowledges the trade channel as sid 1, then runs the script."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.requests: list[Request] = []
        self.answers: list[Response | None] = []
        self.commands: list[dict[str, Any]] = []
        self.connections: list[ServerConnection] = []
        self.url = ""

    def process_request(self, _connection: ServerConnection, request: Request) -> Response | None:
        self.requests.append(request)
        return self.answers.pop(0) if self.answers else None

    async def serve_one(self, connection: ServerConnection) -> None:
        self.connections.append(connection)
        script = self.scripts.pop(0) if self.scripts else wait_closed
        command = json.loads(await connection.recv())
        self.commands.append(command)
        await connection.send(
            json.dumps(
                {"type": "subscribed", "id": command["id"], "msg": {"channel": "trade", "sid": 1}}
            )
        )
        await script(connection)


@asynccontextmanager
async def exchange(*scripts: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Exchange]:
    """A running `Exchange`."""
    server = Exchange(*scripts)

    async def serve_one(connection: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            await server.serve_one(connection)

    async with serve(
        serve_one,
        "127.0.0.1",
        0,
        process_request=server.process_request,
        ssl=tls,
        ping_interval=None,
        close_timeout=1,
    ) as listening:
        port = next(iter(listening.sockets)).getsockname()[1]
        host = "localhost" if tls else "127.0.0.1"
        server.url = f"{'wss' if tls else 'ws'}://{host}:{port}{PATH}"
        yield server


async def wait_closed(connection: ServerConnection) -> None:
    await connection.wait_closed()


def trade(seq: int) -> bytes:
    """A trade frame."""
    return json.dumps(
        {
            "type": "trade",
            "sid": 1,
            "seq": seq,
            "msg": {
                "trade_id": f"t-{seq}",
                "market_ticker": "KXTEST-1",
                "yes_price_dollars": "0.3500",
                "no_price_dollars": "0.6500",
                "count_fp": "4.25",
                "taker_side": "yes",
                "taker_outcome_side": "yes",
                "taker_book_side": "bid",
                "is_block_trade": False,
                "ts": 1795197852,
                "ts_ms": 1795197852008,
            },
        }
    ).encode()


def framed(payload: bytes, opcode: Opcode = Opcode.TEXT, *, fin: bool = True) -> bytes:
    """A frame as a server sends it."""
    return Frame(opcode, payload, fin=fin).serialize(mask=False)


def write(*parts: bytes) -> Script:
    """A script that writes bytes in one write, past the server's own framing, and waits."""

    async def script(connection: ServerConnection) -> None:
        connection.transport.write(b"".join(parts))
        await connection.wait_closed()

    return script
