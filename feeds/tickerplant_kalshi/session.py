"""The WebSocket connections to the exchange (I/O): signed handshake, commands out, reconnecting for good.

Frames come in through `listener`. Nothing here awaits, logs or starts a task while a connection is up.
"""

import asyncio
import logging
import os
import random
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol
from urllib.parse import urlsplit

from picows import (
    WSCloseCode,
    WSError,
    WSHandshakeError,
    WSMsgType,
    WSProtocolError,
    WSTransport,
    ws_connect,
)

from tickerplant.errors import ExchangeUnavailableError, TickerplantError
from tickerplant.limits import (
    CONNECT_ATTEMPTS_AT_START,
    CONNECT_TIMEOUT_S,
    CONNECTION_STABLE_NS,
    FRAME_MAX_BYTES,
    RECONNECT_BASE_NS,
    RECONNECT_CAP_NS,
    SOCKET_DRAIN_TIMEOUT_S,
)
from tickerplant_kalshi.auth import Signer
from tickerplant_kalshi.backoff import Backoff
from tickerplant_kalshi.feed import KalshiFeed
from tickerplant_kalshi.listener import FrameListener
from tickerplant_kalshi.rest import clock_offset_ns
from tickerplant_kalshi.rest_refusals import Reply, raise_refusal
from tickerplant_kalshi.sockets import open_socket, split_url

_READ_BUFFER_BYTES = 64 * 1024
_SECOND_NS = 1_000_000_000
# picows writes a line per connection and per bad frame; what matters of it is logged here, once.
_SILENT = logging.getLogger("tickerplant.picows")
_SILENT.setLevel(logging.CRITICAL + 1)


class SessionLog(Protocol):
    """Where connection events are written; a structlog logger is one. Never used on the frame path."""

    def info(self, event: str, **fields: Any) -> Any:
        """Write one event at level info."""

    def warning(self, event: str, **fields: Any) -> Any:
        """Write one event at level warning."""


class SessionShell(Protocol):
    """What runs the sessions: the daemon."""

    def now_ns(self) -> int:
        """The time, in nanoseconds since the epoch."""

    def publish(self) -> None:
        """An input or a read batch is complete: flush the feed, send, and `pump` every session."""

    def failed(self, where: str, error: BaseException) -> None:
        """A fault that ends the plant."""


class SessionCounters:
    """Counts of one session over all its connections."""

    def __init__(self) -> None:
        """All zero."""
        self.connect_attempts = 0
        self.pings_received = 0
        self.pongs_received = 0
        self.pings_sent = 0
        self.binary_frames = 0
        self.fragments = 0
        self.oversized_messages = 0
        self.protocol_errors = 0
        self.handshake_refusals: Counter[str] = Counter()
        """By HTTP status."""

    def plain(self) -> Mapping[str, int]:
        """Name to value of every counter without label."""
        return {name: value for name, value in vars(self).items() if isinstance(value, int)}


class StartGate:
    """Whether any connection of the plant was ever up: until then failures may end it, afterwards never."""

    def __init__(self) -> None:
        """Nothing was up yet."""
        self.has_been_up = False


class ExchangeSession:
    """One connection slot of a feed; `run` keeps it connected until it is cancelled."""

    def __init__(
        self,
        feed: KalshiFeed,
        index: int,
        *,
        url: str,
        signer: Signer,
        shell: SessionShell,
        gate: StartGate,
        log: SessionLog,
        tls: ssl.SSLContext | None = None,
        random_unit: Callable[[], float] = random.random,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        reconnect_base_ns: int = RECONNECT_BASE_NS,
        reconnect_cap_ns: int = RECONNECT_CAP_NS,
    ) -> None:
        """`tls` replaces the default context of a wss URL, e.g. for a private certificate authority."""
        self.feed = feed
        self.index = index
        self.shell = shell
        self.counters = SessionCounters()
        self.connection = feed.connections[index]
        self.reason = ""
        """Why the present connection is going, once something decided that it goes."""
        self.problem = ""
        """Why there is no connection; empty while there is one, and before the first attempt has failed."""
        self._url = url
        self._address, self._path, is_secure = split_url(url)
        self._tls = (tls or ssl.create_default_context()) if is_secure else None
        self._signer = signer
        self._gate = gate
        self._log = log
        self._random_unit = random_unit
        self._connect_timeout_s = connect_timeout_s
        self._backoff = Backoff(reconnect_base_ns, reconnect_cap_ns)
        self._transport: WSTransport | None = None
        self._listener: FrameListener | None = None
        self._opened_ns = 0
        self._detached = False

    @property
    def is_up(self) -> bool:
        """Whether the handshake of the present connection is done."""
        return self._transport is not None

    async def run(self) -> None:
        """Connect, serve, reconnect. Ends only by cancellation or with what must end the plant.

        Before any connection of the plant was up: raises `CredentialsError`, `ClockSkewError`, and
        `ExchangeUnavailableError` after `CONNECT_ATTEMPTS_AT_START`. At any time: `ObsoleteFormatError`, own faults.
        """
        while True:
            self.reason = ""
            self._opened_ns = 0
            try:
                await self._connect_and_serve()
            except (OSError, TimeoutError, WSError) as error:
                self.note_reason(self._describe(error))
            up_ns = self.shell.now_ns() - self._opened_ns if self._opened_ns else 0
            if up_ns >= CONNECTION_STABLE_NS:
                self._backoff.reset()
            self.problem = self.reason
            delay_ns = self._backoff.next_delay_ns(self._random_unit())
            self._log.warning(
                "connection_lost" if up_ns else "connect_failed",
                connection=self.index,
                reason=self.reason,
                up_s=up_ns // _SECOND_NS,
                retry_in_ms=delay_ns // 1_000_000,
                rate_key=f"connection {self.index}",
            )
            self._require_patience()
            await asyncio.sleep(delay_ns / _SECOND_NS)

    def pump(self, now_ns: int) -> None:
        """Send what the protocol wants to send; close if it wants that."""
        transport = self._transport
        if transport is None:
            return
        connection = self.connection
        if connection.close_reason is not None:
            self.abort(connection.close_reason)
            return
        for command in connection.outgoing(now_ns):
            transport.send(WSMsgType.TEXT, command)
        if connection.ping_wanted:
            connection.ping_wanted = False
            self.counters.pings_sent += 1
            transport.send_ping(b"")

    def abort(self, reason: str) -> None:
        """Close the present connection at once; `run` reconnects."""
        transport = self._transport
        if transport is not None:
            self._transport = None
            self.note_reason(reason)
            transport.send_close(WSCloseCode.GOING_AWAY)
            transport.disconnect(graceful=False)

    def detach(self) -> None:
        """Pass nothing on to the feed from here on: its session ends."""
        self._detached = True
        if self._listener is not None:
            self._listener.mute()

    # --- called by the listener -------------------------------------------------------------------

    def opened(self, listener: FrameListener, transport: WSTransport) -> None:
        """The handshake is done."""
        self._listener = listener
        if self._detached:
            listener.mute()
            return
        now_ns = self.shell.now_ns()
        self._transport = transport
        self._opened_ns = now_ns
        self.problem = ""
        self._gate.has_been_up = True
        self.feed.connection_opened(self.index, now_ns)
        self.shell.publish()

    def closed(self, transport: WSTransport) -> None:
        """The connection that was opened is gone."""
        self._transport = None
        self._listener = None
        if not self._detached:
            # Where the exchange broke the protocol, picows says so in our own close frame.
            ours = getattr(transport.close_handshake, "sent", None)
            self.note_reason((ours and ours.reason) or "the connection was reset")
            self.problem = self.reason
            self.feed.connection_closed(self.index, self.shell.now_ns(), self.reason)
            self.shell.publish()

    def note_reason(self, reason: str) -> None:
        """The first reason is the cause; what follows from it is not."""
        self.reason = self.reason or reason

    # --- connecting -------------------------------------------------------------------------------

    async def _connect_and_serve(self) -> None:
        """One connection from name look-up to its end. Raises what ended it, if it was not the other side."""
        self.counters.connect_attempts += 1
        async with asyncio.timeout(self._connect_timeout_s):
            connected = await open_socket(*self._address)
            transport = await self._upgrade(connected)
        self._log.info("connected", connection=self.index, url=self._url)
        try:
            await transport.wait_disconnected()
        finally:
            await self._drain(transport)

    async def _upgrade(self, connected: socket.socket) -> WSTransport:
        """The signed handshake on a connected socket. Raises `OSError`, `TimeoutError`, `WSError`, refusals."""
        # Not the shell's clock: that one never steps back, while the exchange wants the true time.
        sent_ns = time.time_ns()
        headers = self._signer.headers("GET", self._path, sent_ns // 1_000_000)
        try:
            transport, listener = await ws_connect(
                lambda _request, _response: FrameListener(self),
                self._url,
                ssl_context=self._tls,
                websocket_handshake_timeout=self._connect_timeout_s,
                logger_name=_SILENT,
                enable_auto_pong=False,
                max_frame_size=FRAME_MAX_BYTES,
                extra_headers=headers,
                max_redirects=0,
                read_buffer_init_size=_READ_BUFFER_BYTES,
                socket_factory=lambda _url: connected,
            )
        except WSHandshakeError as error:
            self._refused(error, sent_ns)
            raise
        except BaseException:
            # Whoever holds the socket by now sees its end and closes it.
            with suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)
            raise
        if listener is None:
            raise ConnectionResetError("closed by the exchange during the handshake")
        return transport

    def _refused(self, error: WSHandshakeError, sent_ns: int) -> None:
        """Count a refused upgrade. Raises `CredentialsError` or `ClockSkewError` if the plant was never up."""
        response = error.response
        if response is None:
            return
        status = int(response.status)
        self.counters.handshake_refusals[str(status)] += 1
        if status in (401, 403) and not self._gate.has_been_up:
            offset_ns = clock_offset_ns(response.headers.get("Date"), sent_ns, time.time_ns())
            reply = Reply(status, error.raw_body or b"", offset_ns)
            host = urlsplit(self._url).netloc
            raise_refusal(reply, host, self._path, self._signer.key_id)

    def _require_patience(self) -> None:
        """Raise `ExchangeUnavailableError` if the plant was never up and this has been tried often enough."""
        if not self._gate.has_been_up and self._backoff.failures >= CONNECT_ATTEMPTS_AT_START:
            raise ExchangeUnavailableError(
                f"{self._url} cannot be reached in {self._backoff.failures} attempts, last: {self.reason}; "
                "check the network and exchange.websocket_url"
            )

    def _describe(self, error: Exception) -> str:
        """One line for logs and subscribers."""
        if isinstance(error, WSHandshakeError) and error.response is not None:
            return f"handshake refused with status {int(error.response.status)}"
        if isinstance(error, WSProtocolError) and error.code == WSCloseCode.MESSAGE_TOO_BIG:
            self.counters.oversized_messages += 1
        elif isinstance(error, WSError):
            self.counters.protocol_errors += 1
        if isinstance(error, ConnectionError) and error.errno:
            return os.strerror(error.errno)
        if isinstance(error, TimeoutError) and not str(error):
            return f"not connected within {self._connect_timeout_s:g} s"
        return " ".join(str(error).split()) or type(error).__name__

    @staticmethod
    async def _drain(transport: WSTransport) -> None:
        """See a connection off, so that nothing of it is left when this returns."""
        if not transport.is_disconnected:
            transport.send_close(WSCloseCode.GOING_AWAY)
            transport.disconnect(graceful=False)
            with suppress(TimeoutError, WSError, TickerplantError):
                async with asyncio.timeout(SOCKET_DRAIN_TIMEOUT_S):
                    await transport.wait_disconnected()
