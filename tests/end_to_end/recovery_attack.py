"""Everything that a client of recovery can do wrong, all at once, against a running one. Bounded in time."""

import random
import socket
import threading
import time
from types import TracebackType
from typing import Self

from tickerplant.core.messages import Stream
from tickerplant.core.recovery_wire import (
    GapFill,
    GapFillKind,
    Open,
    RecoveryCode,
    SnapshotRequest,
    StreamRequest,
    decode_gap_fill,
    encode_control,
    encode_gap_fill,
    is_gap_fill,
)

LOOPBACK = "127.0.0.1"
ALL = tuple((int(stream), 1) for stream in Stream)
STATES = (Stream.BBO, Stream.TICKER, Stream.DELTA, Stream.STATUS)
CONNECTIONS_OF_A_KIND = 12
TINY_BUFFER_BYTES = 2_048
STORM_PAUSE_S = 0.0005
"""After so many requests, so that what is measured is not this process taking the whole processor."""
STORM_BURST = 20
CLIENTS = 4
GARBAGE_BYTES_MAX = 1_500


def gap_fill_request(session: int, from_seq: int, to_seq: int, number: int = 1) -> bytes:
    """A request of the delta stream."""
    kind = GapFillKind.REQUEST
    return encode_gap_fill(GapFill(kind, Stream.DELTA, 0, number, 1, 0, session, from_seq, to_seq))


def ask(
    port: int, session: int, seq: int, timeout_s: float = 1.0
) -> tuple[RecoveryCode, list[bytes]]:
    """What recovery answers to one request of an honest client. Raises `TimeoutError`."""
    datagrams: list[bytes] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(timeout_s)
        client.sendto(gap_fill_request(session, seq, seq), (LOOPBACK, port))
        while True:
            answer = client.recv(2_048)
            if is_gap_fill(answer):
                return RecoveryCode(decode_gap_fill(answer).code), datagrams
            datagrams.append(answer)


class Attack:
    """A storm of requests and garbage over UDP; over TCP half-open clients, slow readers, and garbage."""

    def __init__(self, port: int, session: int, seed: int = 1) -> None:
        self.sent = 0
        self.connected = 0
        self._port = port
        self._session = session
        self._random = random.Random(seed)
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._storm, self._connect)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _storm(self) -> None:
        """Nobody reads the answers."""
        clients = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(CLIENTS)]
        for client in clients:
            client.connect((LOOPBACK, self._port))
            client.setblocking(False)
        whole = gap_fill_request(self._session, 1, 10**6)
        old = gap_fill_request(self._session - 1, 1, 10**6)
        ahead = gap_fill_request(self._session, 10**9, 10**9 + 5)
        while not self._stopping.is_set():
            for _ in range(STORM_BURST):
                garbage = self._random.randbytes(self._random.randint(0, GARBAGE_BYTES_MAX))
                for datagram in (whole, old, ahead, garbage, whole[:20], whole + b"x"):
                    try:
                        self._random.choice(clients).send(datagram)
                        self.sent += 1
                    except OSError:
                        continue
            time.sleep(STORM_PAUSE_S)
        for client in clients:
            client.close()

    def _connect(self) -> None:
        """Again and again; who was closed comes back."""
        hello = encode_control(Open(1))
        sayings = [
            b"",
            hello[:5],
            hello + encode_control(StreamRequest(1, 0, self._session, ALL)),
            hello + encode_control(SnapshotRequest(1, 0, self._session, (), STATES)),
            self._random.randbytes(4_096),
        ]
        clients: list[socket.socket] = []
        while not self._stopping.is_set():
            for saying in sayings * CONNECTIONS_OF_A_KIND:
                client = socket.socket()
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, TINY_BUFFER_BYTES)
                client.settimeout(1.0)
                clients.append(client)
                try:
                    client.connect((LOOPBACK, self._port))
                    client.sendall(saying)
                    self.connected += 1
                except OSError:
                    continue
            self._stopping.wait(1.0)
            for client in clients[: len(clients) // 2]:
                client.close()
            del clients[: len(clients) // 2]
        for client in clients:
            client.close()
