"""The WebSocket face: handshake and framing by the sans-I/O layer of `websockets`, one transport write per tick."""

import asyncio
import socket
import struct
from collections.abc import Callable, Mapping
from typing import cast

from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol

from tickerplant.limits import (
    SIM_COMMAND_MAX_BYTES,
    SIM_HANDSHAKE_TIMEOUT_S,
    SIM_WRITE_BUFFER_BYTES,
)
from tickerplant_kalshi_sim.commands import CommandLimits, Commands
from tickerplant_kalshi_sim.config import SimulationConfig
from tickerplant_kalshi_sim.exchange import MarketSource, Venue
from tickerplant_kalshi_sim.faults import CONNECTION_KINDS, Fault
from tickerplant_kalshi_sim.keys import Refusal, SignatureVerifier
from tickerplant_kalshi_sim.subscriptions import Subscriptions

WEBSOCKET_PATH = "/trade-api/ws/v2"
PING_PAYLOAD = b"heartbeat"
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Hub:
    """All connections, and what they share: the venue, the limits, the account's keys, the counters."""

    def __init__(
        self,
        venue: Venue,
        verifier: SignatureVerifier,
        config: SimulationConfig,
        now_ns: Callable[[], int],
    ) -> None:
        self.venue = venue
        self.config = config
        self.now_ns = now_ns
        self.limits = CommandLimits(
            markets_per_subscription=config.markets_per_subscription,
            commands_per_second=config.commands_per_second,
            use_yes_price_default=config.use_yes_price_default,
        )
        self.connections: dict[int, Connection] = {}
        self.accepted = 0
        self.refused = 0
        self.commands = 0
        self.sent: dict[str, int] = {}
        self.blocked_status = 0
        self._blocked_until_ns = 0
        self._verifier = verifier

    def block_handshakes(self, status: int, duration_ns: int) -> None:
        """Answer every handshake with `status` for a while."""
        self.blocked_status = status
        self._blocked_until_ns = self.now_ns() + duration_ns

    def unblock_handshakes(self) -> None:
        """End what `block_handshakes` began."""
        self._blocked_until_ns = 0

    def refusal(self, path: str, headers: Mapping[str, str]) -> tuple[int, bytes] | None:
        """Status and body that refuse a handshake, or None if it is accepted."""
        if path.partition("?")[0] != WEBSOCKET_PATH:
            return 404, Refusal("not_found", f"no WebSocket at {path[:100]}").body()
        if self.now_ns() < self._blocked_until_ns:
            return self.blocked_status, b'{"error":"try again later"}'
        refusal = self._verifier.refusal("GET", WEBSOCKET_PATH, headers, self.now_ns())
        if refusal is not None and not self.config.allow_anonymous:
            return 401, refusal.body()
        if len(self.connections) >= self.config.connections:
            return 429, b'{"error":"too many connections"}'
        return None

    def is_signed(self, headers: Mapping[str, str]) -> bool:
        """Whether an accepted handshake carried a valid signature."""
        return self._verifier.refusal("GET", WEBSOCKET_PATH, headers, self.now_ns()) is None

    def inject(self, fault: Fault) -> int:
        """Make a fault on one connection or on all; returns on how many."""
        targets = [
            connection
            for number, connection in list(self.connections.items())
            if fault.connection in (0, number)
        ]
        return sum(connection.inject(fault) for connection in targets)


class Connection(asyncio.Protocol):
    """One client. Bytes go through `ServerProtocol`; frames wait in `subscriptions` while the client is slow."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._protocol = ServerProtocol(max_size=SIM_COMMAND_MAX_BYTES)
        self._slow = False
        self._half_open = False
        self._fragments: list[bytes] = []
        self._handshake_timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport
        self._source: MarketSource
        self.number = 0
        self.subscriptions: Subscriptions
        self.commands: Commands

    # --- asyncio.Protocol -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A TCP connection; its upgrade must follow soon."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=SIM_WRITE_BUFFER_BYTES)
        loop = asyncio.get_running_loop()
        self._handshake_timer = loop.call_later(SIM_HANDSHAKE_TIMEOUT_S, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        """Handshake, commands and control frames."""
        if self._half_open:
            return
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                self._shake_hands(event)
            elif isinstance(event, Frame):
                self._receive_frame(event)
        self.flush()

    def eof_received(self) -> None:
        """The client closed its side."""
        if not self._half_open:
            self._protocol.receive_eof()
            self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        del exc
        self._stop_handshake_timer()
        if self.number:
            self._hub.connections.pop(self.number, None)

    def pause_writing(self) -> None:
        """The client reads too slowly: frames wait in the subscriptions, within their bound."""
        self._slow = True

    def resume_writing(self) -> None:
        """The client caught up."""
        self._slow = False
        self.flush()

    # --- handshake and commands -----------------------------------------------------------------------

    def _shake_hands(self, request: Request) -> None:
        self._stop_handshake_timer()
        headers = {name.upper(): value for name, value in request.headers.raw_items()}
        refusal = self._hub.refusal(request.path, headers)
        if refusal is not None:
            status, body = refusal
            response = self._protocol.reject(status, body.decode())
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = "application/json"
        else:
            response = self._protocol.accept(request)
        self._protocol.send_response(response)
        if response.status_code != 101:
            self._hub.refused += 1
            return
        hub = self._hub
        hub.accepted += 1
        self.number = hub.accepted
        hub.connections[self.number] = self
        self._source = hub.venue.connect()
        self.subscriptions = Subscriptions(hub.config.subscription_buffer_frames, hub.sent)
        signed = not hub.config.allow_anonymous or hub.is_signed(headers)
        self.commands = Commands(self._source, self.subscriptions, hub.limits, authenticated=signed)

    def _receive_frame(self, frame: Frame) -> None:
        """A command is one text message, perhaps in several fragments (bounded by `ServerProtocol`)."""
        if frame.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            return
        self._fragments.append(bytes(frame.data))
        if frame.fin:
            data = b"".join(self._fragments)
            self._fragments.clear()
            self._hub.commands += 1
            self.commands.receive(data, self._hub.venue.now_ns)

    def _stop_handshake_timer(self) -> None:
        if self._handshake_timer is not None:
            self._handshake_timer.cancel()
            self._handshake_timer = None

    # --- output ---------------------------------------------------------------------------------------

    def play(self, now_ns: int) -> None:
        """Frames of this connection's own source, if it plays a recording."""
        if not self._half_open:
            self._source.play(now_ns, self.subscriptions)

    @property
    def is_open(self) -> bool:
        """Whether data frames can still be sent."""
        return not self._half_open and self._protocol.state is State.OPEN

    def flush(self) -> None:
        """Frame what waits and hand it to the transport in one write, unless the client is slow."""
        protocol = self._protocol
        if self._half_open or self._transport.is_closing():
            return
        if self.number and protocol.state is State.OPEN and not self._slow:
            for frame in self.subscriptions.take_frames():
                protocol.send_text(frame)
        pieces = protocol.data_to_send()
        if pieces:
            self._transport.write(b"".join(pieces))
            if b"" in pieces:  # the library's mark for the end of the stream
                self._transport.close()
        if self.number and self.subscriptions.overflowing:
            self.reset()

    def ping(self) -> None:
        """The exchange's keep-alive."""
        if self.is_open:
            self._protocol.send_ping(PING_PAYLOAD)
            self.flush()

    def reset(self) -> None:
        """Drop the TCP connection without a close frame; the client sees a reset."""
        raw = self._transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self._transport.abort()

    def close(self) -> None:
        """Say goodbye in order: a close frame, then the end of the stream."""
        if self.is_open:
            self._protocol.send_close(CloseCode.GOING_AWAY)
            self.flush()

    # --- faults ---------------------------------------------------------------------------------------

    def inject(self, fault: Fault) -> bool:
        """Make a fault of this connection or one of its subscriptions; False if there is none to make it on."""
        if not self.is_open:
            return False
        if fault.kind in CONNECTION_KINDS:
            self._break(fault.kind)
            return True
        if fault.kind == "command_timeout":
            self.commands.timeouts_due += fault.count
            return True
        made = self.subscriptions.inject(fault)
        self.flush()
        return made

    def _break(self, kind: str) -> None:
        if kind == "reset":
            self.reset()
        elif kind == "close":
            self.close()
        else:
            self._half_open = True
