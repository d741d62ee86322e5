"""Load sender (a process): a WebSocket server whose frames are framed beforehand.

It answers the handshake and the commands through the `websockets` library and then writes ready bytes, so that it
takes far less time than the plant that it loads.
"""

import asyncio
import json
import os
import struct
import time
from collections.abc import Iterable
from itertools import islice
from typing import cast

import msgspec
import uvloop
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from tickerplant.bench.load import ReferenceLoad
from tickerplant.bench.processes import BenchConfig, answer, commands, start_child

_FRAMES_PER_WRITE = 250
_LEAD_NS = 50_000_000


def framed(payloads: Iterable[bytes]) -> list[bytes]:
    """Each payload as one unmasked text frame (RFC 6455, section 5.2)."""
    return [
        (b"\x81\x7e" + struct.pack("!H", len(p)) if len(p) > 125 else bytes((0x81, len(p)))) + p
        for p in payloads
    ]


class LoadServer(asyncio.Protocol):
    """One client, which asks for every market once and in order; each command is answered with its snapshots."""

    def __init__(self, load: ReferenceLoad) -> None:
        self.load = load
        self.writable = asyncio.Event()
        self.writable.set()
        self.transport: asyncio.Transport
        self._protocol = ServerProtocol()
        self._snapshots = load.snapshots()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client."""
        # uvloop's transports do not derive from asyncio.Transport.
        self.transport = cast("asyncio.Transport", transport)

    def pause_writing(self) -> None:
        """The client is behind."""
        self.writable.clear()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        """Handshake, commands, pings."""
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                self._protocol.send_response(self._protocol.accept(event))
            elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                self._take_command(json.loads(bytes(event.data)))
        for part in self._protocol.data_to_send():
            if part:
                self.transport.write(part)

    def _take_command(self, command: dict[str, object]) -> None:
        params = command.get("params")
        assert isinstance(params, dict)
        if command["cmd"] == "subscribe":
            body = {"channel": params["channels"][0], "sid": self.load.sid}
            self._reply({"type": "subscribed", "id": command["id"], "msg": body})
        else:
            self._reply({"type": "ok", "id": command["id"], "msg": {}})
        for part in self._protocol.data_to_send():
            self.transport.write(part)
        asked = params.get("market_tickers", ())
        self.transport.writelines(framed(islice(self._snapshots, len(asked))))

    def _reply(self, reply: dict[str, object]) -> None:
        self._protocol.send_text(json.dumps(reply).encode())


class Sender:
    """Runs the commands of the parent."""

    def __init__(self, config: BenchConfig) -> None:
        self._clock_offset_ns = config.clock_offset_ns
        self._load = ReferenceLoad(markets=config.markets, seed=config.seed)
        self.server: LoadServer | None = None

    def build(self) -> LoadServer:
        """The protocol of a new connection."""
        self.server = LoadServer(self._load)
        return self.server

    async def saturate(self, count: int) -> None:
        """Writes `count` deltas as fast as the client takes them."""
        server = self._connected()
        frames = framed(self._load.deltas(count))
        # Whole frames in each write: a pong of the library may come between two.
        chunks = [
            b"".join(frames[start : start + _FRAMES_PER_WRITE])
            for start in range(0, count, _FRAMES_PER_WRITE)
        ]
        started_ns = time.monotonic_ns()
        for chunk in chunks:
            await server.writable.wait()
            server.transport.write(chunk)
        await server.writable.wait()
        answer({"sent": count, "seconds": (time.monotonic_ns() - started_ns) / 1e9})

    def pace(self, per_second: int, seconds: float) -> None:
        """Writes deltas one by one at fixed intended times; answers with the first intended time.

        Blocks its loop and writes to the socket itself: it sleeps between frames instead of spinning, because the
        subscriber shares its core.
        """
        socket_number = self._connected().transport.get_extra_info("socket").fileno()
        frames = framed(self._load.deltas(int(per_second * seconds)))
        interval_ns = 1_000_000_000 // per_second
        started_ns = time.monotonic_ns() + _LEAD_NS
        answer({"started_ns": started_ns + self._clock_offset_ns, "interval_ns": interval_ns})
        for index, frame in enumerate(frames):
            wait_ns = started_ns + index * interval_ns - time.monotonic_ns()
            if wait_ns > 0:
                time.sleep(wait_ns / 1e9)
            written = os.write(socket_number, frame)
            assert written == len(frame), "the plant must keep up at this rate"
        answer({"sent": len(frames)})

    def _connected(self) -> LoadServer:
        assert self.server is not None, "the plant must be connected first"
        return self.server


async def serve(config: BenchConfig) -> None:
    """Serves until the parent closes our input."""
    sender = Sender(config)
    server = await asyncio.get_running_loop().create_server(sender.build, "127.0.0.1", 0)
    answer({"port": server.sockets[0].getsockname()[1]})
    lines = await commands()
    while line := await lines.readline():
        command = msgspec.json.decode(line)
        if command["do"] == "saturate":
            await sender.saturate(command["count"])
        else:
            sender.pace(command["per_second"], command["seconds"])
    server.close()


if __name__ == "__main__":
    uvloop.run(serve(start_child()))
