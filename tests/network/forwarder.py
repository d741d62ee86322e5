"""A lossy network between two namespaces (a process): carries multicast one way, gap fill and TCP both ways.

    python forwarder.py '{"plant_namespace": ..., "subscriber_namespace": ..., "groups": [...], "port": ...,
                          "recovery_port": ..., "seed": 1}'

Reads one JSON object a line: fields of `Weather` change it, `{"stats": true}` answers with the counts. One thread, one
selector; what is delayed waits in a heap. All chance comes from the seed.
"""

import ctypes
import heapq
import itertools
import json
import os
import selectors
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from random import Random
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_IP_MULTICAST_ALL = 49
_DATAGRAM_BYTES = 2048
_TCP_BYTES = 65_536
_DATAGRAMS_PER_TURN = 64
_RECEIVE_BUFFER_BYTES = 8 * 1024 * 1024
_HELD_MAX = 400_000
LOOPBACK = "127.0.0.1"


@dataclass
class Weather:
    """What the network does. Shares are of datagrams; a burst loses `burst_length` datagrams in a row."""

    loss: float = 0.0
    burst: float = 0.0
    burst_length: int = 20
    reorder: float = 0.0
    reorder_s: float = 0.004
    duplicate: float = 0.0
    corrupt: float = 0.0
    blackout: bool = False
    """Nothing passes, and what is sent meanwhile is lost."""
    stall: bool = False
    """Nothing passes until it ends; then everything does."""
    dead_groups: tuple[str, ...] = ()


@contextmanager
def inside(path: str) -> Iterator[None]:
    """Sockets made here belong to the namespace."""
    own, other = os.open("/proc/self/ns/net", os.O_RDONLY), os.open(path, os.O_RDONLY)
    try:
        _enter(other)
        yield
    finally:
        _enter(own)
        os.close(own)
        os.close(other)


def _enter(namespace: int) -> None:
    if _LIBC.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


class Forwarder:
    """All sockets, and the datagrams on their way."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.weather = Weather()
        self.counts: Counter[str] = Counter()
        self._options = options
        self._random = Random(options["seed"])
        self._selector = selectors.DefaultSelector()
        self._held: list[tuple[float, int, Callable[[bytes], object], bytes]] = []
        self._order = itertools.count()
        self._burst_left = 0
        self._gap_fill_sockets: dict[Any, socket.socket] = {}
        for group in options["groups"]:
            self._carry_group(group)
        with inside(options["subscriber_namespace"]):
            self._requests = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._server = socket.create_server((LOOPBACK, options["recovery_port"]))
        self._requests.bind((LOOPBACK, options["recovery_port"]))
        self._requests.setblocking(False)
        self._server.setblocking(False)
        self._watch(self._requests, self._take_requests)
        self._watch(self._server, self._accept)
        os.set_blocking(sys.stdin.fileno(), False)
        self._watch(sys.stdin, self._take_orders)

    def run(self) -> None:
        """Until standard input ends."""
        _say({"ready": True})
        while True:
            wait_s = 0.5
            if self._held and not self.weather.stall:
                wait_s = max(0.0, self._held[0][0] - time.monotonic())
            for key, _ in self._selector.select(wait_s):
                key.data()
            self._release()

    def _watch(self, source: Any, take: Callable[[], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, take)

    # --- datagrams --------------------------------------------------------------------------------

    def _carry_group(self, group: str) -> None:
        port = self._options["port"]
        membership = socket.inet_aton(group) + socket.inet_aton(LOOPBACK)
        with inside(self._options["plant_namespace"]):
            receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        receiver.setsockopt(socket.SOL_SOCKET, 33, _RECEIVE_BUFFER_BYTES)  # SO_RCVBUFFORCE
        receiver.bind((group, port))
        receiver.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
        receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        receiver.setblocking(False)
        with inside(self._options["subscriber_namespace"]):
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOOPBACK))
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
        sender.connect((group, port))

        def take() -> None:
            for _ in range(_DATAGRAMS_PER_TURN):
                try:
                    datagram = receiver.recv(_DATAGRAM_BYTES)
                except BlockingIOError:
                    return
                self.counts["datagrams"] += 1
                if group in self.weather.dead_groups:
                    self.counts["dead"] += 1
                else:
                    self._pass(sender.send, datagram)

        self._watch(receiver, take)

    def _take_requests(self) -> None:
        """Gap-fill requests, each client over a socket of its own at the other side."""
        for _ in range(_DATAGRAMS_PER_TURN):
            try:
                datagram, client = self._requests.recvfrom(_DATAGRAM_BYTES)
            except BlockingIOError:
                return
            self.counts["requests"] += 1
            upstream = self._gap_fill_sockets.get(client) or self._open_gap_fill(client)
            self._pass(upstream.send, datagram)

    def _open_gap_fill(self, client: Any) -> socket.socket:
        with inside(self._options["plant_namespace"]):
            upstream = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        upstream.connect((LOOPBACK, self._options["recovery_port"]))
        upstream.setblocking(False)
        self._gap_fill_sockets[client] = upstream

        def send(datagram: bytes) -> None:
            self._requests.sendto(datagram, client)

        def take() -> None:
            for _ in range(_DATAGRAMS_PER_TURN):
                try:
                    datagram = upstream.recv(_DATAGRAM_BYTES)
                except (BlockingIOError, ConnectionRefusedError):
                    return
                self.counts["repairs"] += 1
                self._pass(send, datagram)

        self._watch(upstream, take)
        return upstream

    def _pass(self, send: Callable[[bytes], object], datagram: bytes) -> None:
        """One datagram through the weather."""
        weather, chance = self.weather, self._random.random
        if self._burst_left:
            self._burst_left -= 1
            self.counts["lost"] += 1
            return
        if weather.blackout or chance() < weather.loss:
            self.counts["lost"] += 1
            return
        if chance() < weather.burst:
            self._burst_left = self._random.randint(0, weather.burst_length)
            self.counts["lost"] += 1
            return
        if chance() < weather.corrupt:
            place = self._random.randrange(len(datagram))
            changed = datagram[place] ^ self._random.randint(1, 255)
            datagram = datagram[:place] + bytes((changed,)) + datagram[place + 1 :]
            self.counts["corrupted"] += 1
        copies = 1
        if chance() < weather.duplicate:
            self.counts["duplicated"] += 1
            copies = 2
        for _ in range(copies):
            delay_s = 0.0
            if chance() < weather.reorder:
                self.counts["reordered"] += 1
                delay_s = chance() * weather.reorder_s
            if delay_s or weather.stall or self._held:
                self._hold(delay_s, send, datagram)
            else:
                self._send(send, datagram)

    def _hold(self, delay_s: float, send: Callable[[bytes], object], datagram: bytes) -> None:
        if len(self._held) >= _HELD_MAX:
            self.counts["lost"] += 1
            return
        entry = (time.monotonic() + delay_s, next(self._order), send, datagram)
        heapq.heappush(self._held, entry)

    def _release(self) -> None:
        if self.weather.stall:
            return
        now_s = time.monotonic()
        for _ in range(_DATAGRAMS_PER_TURN):
            if not self._held or self._held[0][0] > now_s:
                return
            _, _, send, datagram = heapq.heappop(self._held)
            self._send(send, datagram)

    def _send(self, send: Callable[[bytes], object], datagram: bytes) -> None:
        try:
            send(datagram)
            self.counts["passed"] += 1
        except OSError:
            self.counts["refused"] += 1

    # --- TCP --------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            client, _ = self._server.accept()
        except BlockingIOError:
            return
        with inside(self._options["plant_namespace"]):
            upstream = socket.socket()
        try:
            upstream.connect((LOOPBACK, self._options["recovery_port"]))
        except OSError:
            upstream.close()
            client.close()
            self.counts["tcp_refused"] += 1
            return
        self.counts["tcp"] += 1
        self._join(client, upstream)
        self._join(upstream, client)

    def _join(self, source: socket.socket, sink: socket.socket) -> None:
        """Bytes from one to the other; a slow sink is waited for, which is what a slow network does."""
        source.settimeout(10)

        def take() -> None:
            if self.weather.stall or self.weather.blackout:
                time.sleep(0.001)
                return
            try:
                data = source.recv(_TCP_BYTES)
                if data:
                    self.counts["tcp_bytes"] += len(data)
                    sink.sendall(data)
                    return
            except OSError:
                pass
            for end in (source, sink):
                try:
                    self._selector.unregister(end)
                except (KeyError, ValueError):
                    continue
                end.close()

        self._watch(source, take)

    # --- orders -----------------------------------------------------------------------------------

    def _take_orders(self) -> None:
        line = sys.stdin.readline()
        if not line:
            sys.exit(0)
        order = json.loads(line)
        if order.pop("stats", False):
            _say(dict(self.counts))
            return
        known = {field.name for field in fields(Weather)}
        assert set(order) <= known, order
        for name, value in order.items():
            setattr(self.weather, name, tuple(value) if name == "dead_groups" else value)
        _say({"done": True})


if __name__ == "__main__":
    Forwarder(json.loads(sys.argv[1])).run()
