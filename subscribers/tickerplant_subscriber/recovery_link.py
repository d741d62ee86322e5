"""The sockets to recovery: performs what the recovery client wants, and hands it what comes."""

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from typing import cast

from tickerplant.errors import NetworkSetupError
from tickerplant.limits import DATAGRAMS_PER_DRAIN, SUBSCRIBER_RECEIVE_BUFFER_BYTES
from tickerplant_subscriber.recovery_actions import Close, Connect, SendDatagram, Write
from tickerplant_subscriber.recovery_client import RecoveryClient
from tickerplant_subscriber.sockets import set_receive_buffer

logger = logging.getLogger("tickerplant_subscriber")

Guard = Callable[[Callable[[int], None]], None]
"""Calls with the time, and sees to exceptions of the user and to the timer afterwards."""
_READ_BYTES = 2_048


class RecoveryLink:
    """UDP sockets, one for each (host, port) of `addresses`, and TCP connections as they are wanted."""

    def __init__(
        self, addresses: Sequence[tuple[str, int]], client: RecoveryClient, guard: Guard
    ) -> None:
        self.socket_errors = 0
        self._client = client
        self._guard = guard
        self._loop: asyncio.AbstractEventLoop
        self._addresses: list[tuple[str, int]] = list(addresses)
        self._sockets: list[socket.socket] = []
        self._connections: dict[int, Connection] = {}
        self._attempts: dict[int, asyncio.Task[None]] = {}
        self._is_paused = False

    def open(self) -> None:
        """Opens the UDP sockets. Raises `NetworkSetupError` for a host that has no address, with nothing left open."""
        try:
            for index, (host, port) in enumerate(self._addresses):
                self._addresses[index] = (_resolve(host), port)
                self._sockets.append(_open_socket(*self._addresses[index]))
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Begins to read, on the running loop."""
        self._loop = asyncio.get_running_loop()
        for index, each in enumerate(self._sockets):
            self._loop.add_reader(each, self._on_readable, index)

    def close(self) -> None:
        """Closes everything; may be called twice."""
        for each in self._sockets:
            if hasattr(self, "_loop"):
                self._loop.remove_reader(each)
            each.close()
        self._sockets = []
        for attempt in self._attempts.values():
            attempt.cancel()
        for connection in tuple(self._connections.values()):
            connection.abort()
        self._attempts.clear()
        self._connections.clear()

    def pause(self) -> None:
        """Nothing is read until `resume`; the other sides have to wait."""
        self._is_paused = True
        for each in self._sockets:
            self._loop.remove_reader(each)
        for connection in self._connections.values():
            connection.pause()

    def resume(self) -> None:
        """Ends `pause`."""
        self._is_paused = False
        for index, each in enumerate(self._sockets):
            self._loop.add_reader(each, self._on_readable, index)
        for connection in self._connections.values():
            connection.resume()

    # --- what the client wants --------------------------------------------------------------------

    def perform(self) -> None:
        """Does what the client wants done."""
        for action in self._client.take_actions():
            match action:
                case SendDatagram():
                    self._send(action.address, action.datagram)
                case Connect():
                    attempt = self._loop.create_task(self._connect(action))
                    self._attempts[action.connection] = attempt
                case Write():
                    connection = self._connections.get(action.connection)
                    if connection is not None:
                        connection.write(action.data)
                case Close():
                    self._forget(action.connection)

    def _send(self, address: int, datagram: bytes) -> None:
        try:
            self._sockets[address].send(datagram)
        except BlockingIOError:
            # It counts as lost on the way and is repeated like that.
            self.socket_errors += 1
        except OSError:
            self.socket_errors += 1
            self._loop.call_soon(self._tell_refused, address)

    def _tell_refused(self, address: int) -> None:
        self._guard(lambda now_ns: self._client.note_refused(address, now_ns))

    async def _connect(self, action: Connect) -> None:
        number = action.connection
        host, port = self._addresses[action.address]
        try:
            _, connection = await self._loop.create_connection(
                lambda: Connection(number, self._client, self._guard), host, port
            )
        except OSError as error:
            logger.debug("recovery at %s:%d: %s", host, port, error)
            self._attempts.pop(number, None)
            self._guard(lambda now_ns: self._client.closed(number, now_ns))
            return
        if self._attempts.pop(number, None) is None:
            connection.abort()
            return
        self._connections[number] = connection
        if self._is_paused:
            connection.pause()
        self._guard(lambda now_ns: self._client.connected(number, now_ns))

    def _forget(self, number: int) -> None:
        attempt = self._attempts.pop(number, None)
        if attempt is not None:
            attempt.cancel()
        connection = self._connections.pop(number, None)
        if connection is not None:
            connection.abort()

    # --- what comes over UDP ----------------------------------------------------------------------

    def _on_readable(self, address: int) -> None:
        self._guard(lambda now_ns: self._drain(address, now_ns))

    def drain(self, now_ns: int) -> None:
        """Reads what is there, on all sockets."""
        for address in range(len(self._sockets)):
            self._drain(address, now_ns)

    def _drain(self, address: int, now_ns: int) -> None:
        for _ in range(DATAGRAMS_PER_DRAIN):
            if not self._sockets:
                return
            try:
                datagram = self._sockets[address].recv(_READ_BYTES)
            except BlockingIOError:
                return
            except ConnectionRefusedError:
                self._client.note_refused(address, now_ns)
                return
            except OSError:
                self.socket_errors += 1
                return
            self._client.receive_datagram(address, datagram, now_ns)


class Connection(asyncio.Protocol):
    """One TCP connection; what it reads goes straight into the client."""

    def __init__(self, number: int, client: RecoveryClient, guard: Guard) -> None:
        self._number = number
        self._client = client
        self._guard = guard
        self._transport: asyncio.Transport | None = None
        self._is_over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        if not self._is_over:
            self._guard(lambda now_ns: self._client.received(self._number, data, now_ns))

    def connection_lost(self, _error: Exception | None) -> None:
        """Called by the loop."""
        if not self._is_over:
            self._is_over = True
            self._guard(lambda now_ns: self._client.closed(self._number, now_ns))

    def write(self, data: bytes) -> None:
        """Sends; the client writes a few hundred bytes in all, so nothing piles up."""
        if self._transport is not None and not self._is_over:
            self._transport.write(data)

    def pause(self) -> None:
        """Nothing is read; TCP lets the other side wait."""
        if self._transport is not None and self._transport.is_reading():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Ends `pause`."""
        if self._transport is not None and not self._is_over:
            self._transport.resume_reading()

    def abort(self) -> None:
        """Closes at once; nothing more is reported."""
        self._is_over = True
        if self._transport is not None:
            self._transport.abort()


def _resolve(host: str) -> str:
    try:
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        raise NetworkSetupError(
            f"recovery host {host} has no IPv4 address ({error.strerror}): correct it, or do "
            "without (recovery=())"
        ) from error
    return str(found[0][4][0])


def _open_socket(host: str, port: int) -> socket.socket:
    """A UDP socket connected to an address: only what comes from there is read."""
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        opened.setblocking(False)
        set_receive_buffer(opened, SUBSCRIBER_RECEIVE_BUFFER_BYTES)
        opened.connect((host, port))
    except OSError as error:
        opened.close()
        raise NetworkSetupError(
            f"recovery at {host}:{port} cannot be reached ({error.strerror}): correct the address, "
            "or do without (recovery=())"
        ) from error
    return opened
