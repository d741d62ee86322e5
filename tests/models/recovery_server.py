"""Recovery in the test's own process, on a free port of the loopback interface, and clients of it that do no thinking.

async with recovery(folder) as server:              # or recovery(folder, keys={7: b"k" * 32}, key_id=7)
    code, datagrams, reply = await gap_fill(server, session, Stream.DELTA, 3, 9)
    answer = await ask(server, StreamRequest(1, 0, session, ((4, 1),), ((4, 10),)))
    answer.hello, answer.datagrams, answer.controls
"""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plant_in_process import EventList

from tickerplant.core.recovery_wire import (
    Alive,
    FrameReader,
    GapFill,
    GapFillKind,
    Hello,
    Open,
    RecoveryCode,
    Seal,
    decode_gap_fill,
    encode_control,
    encode_gap_fill,
    is_gap_fill,
)
from tickerplant.core.wire import FLAG_RETRANSMITTED, decode_header
from tickerplant.runtime.recovery import RecoveryOptions, RecoveryService

LOOPBACK = "127.0.0.1"
SECONDS_MAX = 30.0


@asynccontextmanager
async def recovery(
    folder: Path, *, wait: bool = True, **options: Any
) -> AsyncIterator[RecoveryService]:
    """A running recovery of the log in `folder`; with `wait` it has read the log to its present end."""
    service = RecoveryService(folder, RecoveryOptions(**({"port": 0} | options)))
    service.log = service.supervisor._log = EventList()
    await service.start()
    try:
        if wait:
            await until(lambda: service.readiness().is_ready or not service.ticklog.index.sessions)
        yield service
    finally:
        await service.close()
    assert service.supervisor.error is None, service.supervisor.error


async def until(condition: Any, seconds: float = SECONDS_MAX) -> None:
    """Return as soon as `condition()` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen within {seconds:g} seconds"
        await asyncio.sleep(0.002)


class GapFillClient:
    """A UDP socket."""

    def __init__(self, port: int, keys: Mapping[int, bytes] | None = None, key_id: int = 0) -> None:
        self.keys = keys
        self.key = None if keys is None else (key_id, keys[key_id])
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.connect((LOOPBACK, port))
        self.number = 0

    def __enter__(self) -> "GapFillClient":
        return self

    def __exit__(self, *_error: object) -> None:
        self.socket.close()

    async def ask(
        self, session: int, stream: int, from_seq: int, to_seq: int, publisher: int = 1
    ) -> tuple[RecoveryCode, list[bytes], GapFill]:
        """Code, datagrams and the whole reply."""
        self.number += 1
        request = GapFill(
            GapFillKind.REQUEST, stream, 0, self.number, publisher, 0, session, from_seq, to_seq
        )
        return await self.ask_raw(encode_gap_fill(request, self.key))

    async def ask_raw(self, request: bytes) -> tuple[RecoveryCode, list[bytes], GapFill]:
        loop = asyncio.get_running_loop()
        self.socket.send(request)
        datagrams: list[bytes] = []
        async with asyncio.timeout(SECONDS_MAX):
            while True:
                datagram = await loop.sock_recv(self.socket, 2_000)
                if is_gap_fill(datagram):
                    reply = decode_gap_fill(datagram, self.keys)
                    assert reply.kind == GapFillKind.REPLY
                    return RecoveryCode(reply.code), datagrams, reply
                assert decode_header(datagram).flags & FLAG_RETRANSMITTED
                datagrams.append(datagram)


async def gap_fill(
    server: RecoveryService, session: int, stream: int, from_seq: int, to_seq: int
) -> tuple[RecoveryCode, list[bytes], GapFill]:
    """One request."""
    with GapFillClient(server.port, server.options.keys, server.options.key_id) as client:
        return await client.ask(session, stream, from_seq, to_seq)


@dataclass
class Answer:
    """What a TCP connection brought; `controls` are those after the hello but `Alive`."""

    hello: Hello | None = None
    datagrams: list[bytes] = field(default_factory=list)
    controls: list[Any] = field(default_factory=list)
    alive: int = 0

    @property
    def end(self) -> Any:
        """The last control message."""
        return self.controls[-1] if self.controls else None


class RecoveryClient:
    """A TCP connection; `answer` grows by `read_until`."""

    def __init__(self, server: RecoveryService) -> None:
        self.server = server
        self.answer = Answer()
        options = server.options
        self.nonce = os.urandom(16) if options.keys is not None else b""
        self._seal = None
        self._frames = FrameReader()
        if options.keys is not None:
            self._seal = Seal(options.key_id, options.keys, b"")
            self._frames = FrameReader(Seal(options.key_id, options.keys, self.nonce))
        self.is_closed = False

    async def __aenter__(self) -> "RecoveryClient":
        self.reader, self.writer = await asyncio.open_connection(LOOPBACK, self.server.port)
        return self

    async def __aexit__(self, *_error: object) -> None:
        self.writer.close()

    def send(self, message: Any) -> None:
        self.writer.write(encode_control(message, self._seal))

    async def open(self) -> Hello:
        """The hello."""
        self.send(Open(1, self.nonce))
        await self.read_until(lambda: self.answer.hello is not None or self.is_closed)
        assert self.answer.hello is not None
        if self._seal is not None:
            self._seal.renew(self.answer.hello.nonce)
        return self.answer.hello

    async def read_until(self, condition: Any) -> Answer:
        async with asyncio.timeout(SECONDS_MAX):
            while not condition():
                data = await self.reader.read(65_536)
                if not data:
                    self.is_closed = True
                    break
                self._frames.feed(data)
                while (message := self._frames.next()) is not None:
                    self._take(message)
        return self.answer

    def _take(self, message: Any) -> None:
        if isinstance(message, bytes):
            self.answer.datagrams.append(message)
        elif isinstance(message, Hello):
            self.answer.hello = message
        elif isinstance(message, Alive):
            self.answer.alive += 1
        else:
            self.answer.controls.append(message)


async def ask(server: RecoveryService, request: Any) -> Answer:
    """The whole answer to one request, until the server closes."""
    async with RecoveryClient(server) as client:
        await client.open()
        client.send(request)
        return await client.read_until(lambda: client.is_closed)
