"""Everything that arrives on the groups of a plant, as it arrives."""

import select
import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

from processes import Network

from tickerplant.config import PublishConfig

RECEIVE_BUFFER_BYTES = 8 * 1024 * 1024
SO_RCVBUFFORCE = 33
LOOPBACK = "127.0.0.1"


class WireRecorder:
    """Joins the five groups and keeps the datagrams, in a thread."""

    def __init__(self, network: Network) -> None:
        self.datagrams: list[bytes] = []
        self._stopping = threading.Event()
        self._sockets = [
            self._join(group, network.port)
            for group in PublishConfig(group_a=network.group, port=network.port).groups()
        ]
        self._thread = threading.Thread(target=self._run)

    @staticmethod
    def _join(group: str, port: int) -> socket.socket:
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.setblocking(False)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        with suppress(PermissionError):
            # Root may have more than `net.core.rmem_max` allows.
            receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        receiver.bind((group, port))
        membership = socket.inet_aton(group) + socket.inet_aton(LOOPBACK)
        receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        return receiver

    def _run(self) -> None:
        while not self._stopping.is_set():
            ready, _, _ = select.select(self._sockets, [], [], 0.05)
            for receiver in ready:
                try:
                    while True:
                        self.datagrams.append(receiver.recv(2_048))
                except BlockingIOError:
                    continue

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._thread.join()
        for receiver in self._sockets:
            receiver.close()
