"""A plant that logs and multicasts, a real recovery of its log, and what gets lost between, for real subscribers."""

import socket
import time
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plant_log import PlantLog
from tick_log import LARGE

from tickerplant.core.messages import Stream
from tickerplant.core.wire import Header, Kind, decode_body, decode_header

if TYPE_CHECKING:
    from collections.abc import Callable

LOOPBACK = "127.0.0.1"


class MulticastPlant(PlantLog):
    """A `PlantLog` on the wall clock; it sends to the groups from `group` on as well, but for what `is_lost`."""

    def __init__(self, folder: Path, group: str, port: int, **options: Any) -> None:
        self.is_lost: Callable[[Header], bool] = lambda _header: False
        self.lost = 0
        self._first = IPv4Address(group)
        self._port = port
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(
            socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOOPBACK)
        )
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
        super().__init__(folder, **({"options": LARGE} | options))

    def close(self) -> None:
        super().close()
        self._socket.close()

    def begin_session(self) -> None:
        self.now_ns = time.time_ns()
        super().begin_session()

    def _log(self, datagrams: list[tuple[int, bytes]]) -> None:
        start = len(self.datagrams)
        super()._log(datagrams)
        for datagram in self.datagrams[start:]:
            header = decode_header(datagram)
            if self.is_lost(header):
                self.lost += 1
            else:
                self.send(header.stream, datagram)

    def send(self, stream: int, datagram: bytes) -> None:
        """On the wire and nowhere else."""
        self._socket.sendto(datagram, (str(self._first + stream - 1), self._port))

    def tick(self) -> None:
        """Heartbeats that are due now."""
        self.beat(max(0, time.time_ns() - self.now_ns))

    def published(self, stream: Stream, session: int = 0) -> list[Any]:
        """All messages of a stream, in order."""
        return [
            message
            for datagram in self.datagrams
            if (header := decode_header(datagram)).stream == stream
            and header.kind == Kind.DATA
            and header.session == (session or self.session)
            for message in decode_body(datagram, header)
        ]
