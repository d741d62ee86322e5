"""One TCP connection of recovery: its bytes, its bounds, and its end; what is answered is `recovery_answers`."""

import asyncio
import os
import socket
import time
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Protocol, cast

from tickerplant.core.conversation import Conversation, Keys, Request
from tickerplant.core.rates import ClientRates
from tickerplant.core.recovery_wire import NONCE_BYTES, Alive, AnyControl, Hello, RecoveryCode
from tickerplant.limits import (
    RECOVERY_ALIVE_NS,
    RECOVERY_STALL_TIMEOUT_NS,
    RECOVERY_WRITE_BUFFER_BYTES,
)
from tickerplant.runtime.supervise import Supervisor

_SECOND_NS = 1_000_000_000


class ConnectionOwner(Protocol):
    """The server, as a connection sees it."""

    supervisor: Supervisor
    keys: Keys | None
    rates: ClientRates
    closed: Counter[str]
    rejects: Counter[str]
    sent_bytes: int

    def hello(self) -> Hello:
        """What there is."""
        ...

    def admit(self, connection: "Connection") -> str:
        """Why the connection is one too many; empty if it is not."""
        ...

    def forget(self, connection: "Connection") -> None:
        """It is closed."""
        ...

    def answer(self, connection: "Connection", request: Request) -> Coroutine[Any, Any, None]:
        """Send the whole answer to a request."""
        ...


class Connection(asyncio.Protocol):
    """One client. Answers write only after `may_write`, so that a slow reader costs a bounded buffer and time."""

    def __init__(self, owner: ConnectionOwner) -> None:
        self.client = ""
        self.deadline_ns: int | None = None
        """When the whole answer has to be taken; None: never."""
        self._owner = owner
        self._transport: asyncio.Transport
        self._conversation: Conversation
        self._task: asyncio.Task[None] | None = None
        self._sent_ns = time.monotonic_ns()
        self._paused_ns: int | None = None
        self._closing_ns: int | None = None
        self._resumed: asyncio.Future[None] | None = None

    # --- asyncio.Protocol -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client."""
        # uvloop's is none by its class.
        self._transport = transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self.client = peer[0] if peer else ""
        keys = self._owner.keys
        nonce = b"" if keys is None else os.urandom(NONCE_BYTES)
        self._conversation = Conversation(
            self._owner.hello, time.monotonic_ns(), nonce=nonce, keys=keys
        )
        refused = self._owner.admit(self)
        if refused:
            self.reject(RecoveryCode.THROTTLED, f"too many {refused}")
            self.close("refused")
            return
        opened = transport.get_extra_info("socket")
        with suppress(OSError):
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, RECOVERY_WRITE_BUFFER_BYTES)
        transport.set_write_buffer_limits(high=RECOVERY_WRITE_BUFFER_BYTES)

    def data_received(self, data: bytes) -> None:
        """Part of a request, or a client that does not wait for its answer."""
        if self._closing_ns is None:
            self._owner.supervisor.attempt("recovery request", lambda: self._receive(data))

    def _receive(self, data: bytes) -> None:
        conversation = self._conversation
        answer = conversation.receive(data)
        if answer:
            self._write(answer)
        if conversation.is_over:
            assert conversation.code is not None
            self._owner.rejects[conversation.code.name.lower()] += 1
            self.close("refused")
        elif conversation.request is not None and self._task is None:
            self._task = self._owner.supervisor.start(
                f"recovery of {self.client}", self._answer(conversation.request)
            )

    async def _answer(self, request: Request) -> None:
        try:
            await self._owner.answer(self, request)
        except OSError as error:
            self.reject(RecoveryCode.UNAVAILABLE, f"the log cannot be read: {error.strerror}")
        self.close("refused" if self._conversation.is_over else "served")

    def eof_received(self) -> bool:
        """The client has gone."""
        return False

    def connection_lost(self, _error: Exception | None) -> None:
        """It is closed."""
        if self._resumed is not None:
            self._resumed.cancel()
        if self._task is not None:
            self._task.cancel()
        if self._closing_ns is None:
            self._closing_ns = time.monotonic_ns()
            self._owner.closed["client"] += 1
        self._owner.forget(self)

    def pause_writing(self) -> None:
        """The client reads slower than we write."""
        self._paused_ns = time.monotonic_ns()

    def resume_writing(self) -> None:
        """It has read."""
        self._paused_ns = None
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)

    # --- writing ----------------------------------------------------------------------------------

    @property
    def unsent_bytes(self) -> int:
        """What waits for the client to read."""
        return self._transport.get_write_buffer_size()

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be sent."""
        return self._conversation.is_over or self._closing_ns is not None

    @property
    def is_held(self) -> bool:
        """Whether the client has to read first, or has had its share for now."""
        wait_ns = self._owner.rates.wait_ns(self.client, time.monotonic_ns())
        return self._paused_ns is not None or wait_ns > 0

    async def may_write(self) -> None:
        """Return once the client has read, and its rate allows more; at least one turn of the loop later."""
        while self._paused_ns is not None:
            self._resumed = asyncio.get_running_loop().create_future()
            await self._resumed
        wait_ns = self._owner.rates.wait_ns(self.client, time.monotonic_ns())
        await asyncio.sleep(wait_ns / _SECOND_NS)

    def send(self, message: AnyControl) -> None:
        """A control message."""
        self._write(self._conversation.encode(message))

    def send_datagrams(self, datagrams: list[bytes]) -> None:
        """Datagrams, none or a bounded number of them."""
        if datagrams:
            self._write(self._conversation.encode_datagrams(datagrams))

    def send_books(self, payloads: list[bytes]) -> None:
        """Books of a snapshot, none or a bounded number of frames."""
        if payloads:
            self._write(self._conversation.encode_books(payloads))

    def reject(self, code: RecoveryCode, text: str) -> None:
        """The last frame, if nothing was rejected before."""
        if not self.is_over:
            self._owner.rejects[code.name.lower()] += 1
            answer = self._conversation.reject(code, text)
            if answer:
                self._write(answer)

    def _write(self, data: bytes) -> None:
        if self._transport.is_closing():
            # The client is gone, and the answer is about to be cancelled: uvloop raises on a write now.
            return
        self._transport.write(data)
        self._sent_ns = now_ns = time.monotonic_ns()
        self._owner.sent_bytes += len(data)
        self._owner.rates.use(self.client, len(data), now_ns)

    # --- end --------------------------------------------------------------------------------------

    def close(self, cause: str) -> None:
        """After what is unsent was sent, if that does not take too long."""
        if self._closing_ns is None:
            self._closing_ns = time.monotonic_ns()
            self._owner.closed[cause] += 1
            self._transport.close()

    def abort(self, cause: str) -> None:
        """At once."""
        if self._closing_ns is None:
            self._closing_ns = time.monotonic_ns()
            self._owner.closed[cause] += 1
        self._transport.abort()

    def end(self) -> None:
        """Recovery ends."""
        if self._paused_ns is None:
            self.reject(RecoveryCode.UNAVAILABLE, "recovery is ending")
            self.close("stopped")
        else:
            self.abort("stopped")

    def sweep(self, now_ns: int) -> None:
        """Close it if it is stuck; keep it alive if it is idle."""
        if self._closing_ns is not None:
            if now_ns - self._closing_ns > RECOVERY_STALL_TIMEOUT_NS:
                self._transport.abort()
        elif self._conversation.request is None:
            if now_ns >= self._conversation.deadline_ns:
                self.abort("half_open")
        elif self._is_too_slow(now_ns):
            self.abort("slow_reader")
        elif self._paused_ns is None and now_ns - self._sent_ns >= RECOVERY_ALIVE_NS:
            self.send(Alive(time.time_ns()))

    def _is_too_slow(self, now_ns: int) -> bool:
        paused_ns, deadline_ns = self._paused_ns, self.deadline_ns
        is_stalled = paused_ns is not None and now_ns - paused_ns > RECOVERY_STALL_TIMEOUT_NS
        return is_stalled or (deadline_ns is not None and now_ns > deadline_ns)
