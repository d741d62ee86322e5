"""The UDP socket of recovery: requests in, repaired datagrams out. What the kernel does not take is lost, counted."""

import asyncio
import socket
import time
from collections.abc import Callable, Mapping

from tickerplant.core.gap_fill import GapFillServer
from tickerplant.limits import (
    DATAGRAM_MAX_BYTES,
    GAP_FILL_SOCKET_BUFFER_BYTES,
    GAP_FILL_TURN_DATAGRAMS,
    GAP_FILL_TURN_REQUESTS,
)


def bind_udp(address: str, port: int) -> socket.socket:
    """A non-blocking socket. Raises `OSError`."""
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        opened.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            opened.setsockopt(socket.SOL_SOCKET, option, GAP_FILL_SOCKET_BUFFER_BYTES)
        opened.bind((address, port))
    except OSError:
        opened.close()
        raise
    return opened


class GapFillSocket:
    """Serves a `GapFillServer` on a bound socket until it is closed."""

    def __init__(
        self,
        server: GapFillServer,
        opened: socket.socket,
        searches: Callable[[], int],
        guard: Callable[[str, Callable[[], None]], Callable[[], None]],
    ) -> None:
        """`searches` counts the requests for which the log had to be read: one of them is enough for one turn.

        `guard` is that of the supervisor.
        """
        self.requests = 0
        self.unsent_datagrams = 0
        """Not taken by the kernel: the client asks again."""
        self._server = server
        self._socket = opened
        self._searches = searches
        asyncio.get_running_loop().add_reader(opened, guard("gap fill", self._on_readable))

    def close(self) -> None:
        """Harmless the second time."""
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()

    def counters(self) -> Mapping[str, int]:
        """For the metrics."""
        return {
            "udp_datagrams_received": self.requests,
            "udp_datagrams_unsent": self.unsent_datagrams,
        }

    def _on_readable(self) -> None:
        """A bounded piece of work; what is left in the kernel calls it again."""
        sent, searches = 0, self._searches()
        for _ in range(GAP_FILL_TURN_REQUESTS):
            try:
                # One byte more than the largest datagram is enough to see that it is too large.
                datagram, peer = self._socket.recvfrom(DATAGRAM_MAX_BYTES + 1)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                # An ICMP error of an earlier answer.
                continue
            self.requests += 1
            sent += self._answer(datagram, peer)
            if sent >= GAP_FILL_TURN_DATAGRAMS or self._searches() != searches:
                return

    def _answer(self, datagram: bytes, peer: tuple[str, int]) -> int:
        answer = self._server.receive(datagram, peer[0], time.monotonic_ns())
        for index, part in enumerate(answer):
            try:
                self._socket.sendto(part, peer)
            except OSError:
                self.unsent_datagrams += len(answer) - index
                break
        return len(answer)
