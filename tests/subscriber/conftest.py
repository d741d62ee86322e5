"""Shared parts: groups and ports of one's own, a sender on loopback, and an arbiter whose output is a list."""

import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "models"))

from tickerplant.core.messages import AnyMessage, Stream, Trade
from tickerplant.core.wire import HeartbeatBody, Kind, encode_datagram, encode_heartbeat
from tickerplant_subscriber.arbiter import Arbiter
from tickerplant_subscriber.events import Event
from tickerplant_subscriber.stream_state import Messages, StreamState

SESSION = 1_000
NOW_NS = 1_800_000_000_000_000_000
_GROUPS_HANDED_OUT = itertools.count()


@pytest.fixture
def group() -> str:
    """The first of eight multicast groups that belong to this process and test alone."""
    number = (os.getpid() % 128) * 256 + next(_GROUPS_HANDED_OUT) % 32 * 8
    return f"239.194.{number >> 8}.{number & 255}"


@pytest.fixture
def port() -> int:
    """A UDP port that nobody uses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Sender:
    """Sends to the groups of one line; datagrams never leave the host."""

    def __init__(self, first_group: str, port: int) -> None:
        self._first = IPv4Address(first_group)
        self._port = port
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(
            socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1")
        )
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)

    def send(self, stream: int, datagram: bytes) -> None:
        self._socket.sendto(datagram, (str(self._first + stream - 1), self._port))

    def messages(
        self, stream: int, seq: int, messages: list[AnyMessage], session: int = SESSION
    ) -> None:
        self.send(stream, encode_datagram(0, stream, session, seq, time.time_ns(), messages))

    def heartbeat(self, stream: int, next_seq: int, session: int = SESSION) -> None:
        body = HeartbeatBody(next_seq - 1)
        self.send(stream, encode_heartbeat(stream, session, next_seq, time.time_ns(), body))

    def end(self, stream: int, next_seq: int, session: int = SESSION) -> None:
        body = HeartbeatBody(next_seq - 1)
        kind = Kind.END_OF_SESSION
        self.send(
            stream, encode_heartbeat(stream, session, next_seq, time.time_ns(), body, kind=kind)
        )

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def sender(group: str, port: int) -> Iterator[Sender]:
    """A sender on line A of `group` and `port`."""
    line = Sender(group, port)
    yield line
    line.close()


@pytest.fixture
def group_b(group: str) -> str:
    """The first of eight groups for line B, beside `group`."""
    return str(IPv4Address(int(IPv4Address(group)) ^ 0x8000))


@pytest.fixture
def sender_b(group_b: str, port: int) -> Iterator[Sender]:
    """A sender on line B of `group_b` and `port`."""
    line = Sender(group_b, port)
    yield line
    line.close()


def trades(seq: int, count: int) -> list[AnyMessage]:
    """`count` trades whose `g` is their sequence."""
    return [
        Trade("KXTEST-1", seq + index, 0, 0, f"trade-{seq + index}", 5_000, 100, 0)
        for index in range(count)
    ]


class Bench:
    """An arbiter, what it delivered as (stream, session, seq, message) and told, in one list, and short ways in."""

    def __init__(
        self,
        streams: tuple[Stream, ...] = (Stream.TRADE, Stream.STATUS),
        *,
        started_ns: int = 0,
        line_count: int = 2,
    ) -> None:
        self.output: list[tuple[int, int, int, AnyMessage | None] | Event] = []
        self.arbiter = Arbiter(
            streams,
            self._deliver,
            self.output.append,
            started_ns=started_ns,
            line_count=line_count,
        )
        self.now_ns = NOW_NS

    def _deliver(
        self, state: StreamState, first_seq: int, messages: Messages, _ts_send_ns: int
    ) -> None:
        for index, message in enumerate(messages):
            self.output.append((state.stream, state.session, first_seq + index, message))

    def data(
        self,
        seq: int,
        count: int = 1,
        *,
        line: int = 0,
        session: int = SESSION,
        stream: Stream = Stream.TRADE,
        messages: list[AnyMessage] | None = None,
        publisher: int = 1,
    ) -> None:
        body = messages if messages is not None else trades(seq, count)
        datagram = encode_datagram(0, stream, session, seq, 7, body, publisher=publisher)
        self.arbiter.receive(line, datagram, self.now_ns)

    def heartbeat(
        self,
        next_seq: int,
        sent: int = 0,
        *,
        line: int = 0,
        session: int = SESSION,
        stream: Stream = Stream.TRADE,
        kind: Kind = Kind.HEARTBEAT,
    ) -> None:
        datagram = encode_heartbeat(stream, session, next_seq, 7, HeartbeatBody(sent), kind=kind)
        self.arbiter.receive(line, datagram, self.now_ns)

    def wait(self, duration_ns: int) -> None:
        """Lets time pass, with the timers at their deadlines."""
        end_ns = self.now_ns + duration_ns
        while (due_ns := self.arbiter.next_deadline_ns()) is not None and due_ns <= end_ns:
            self.now_ns = max(self.now_ns, due_ns)
            self.arbiter.handle_timer(self.now_ns)
        self.now_ns = end_ns

    def seqs(self, stream: Stream = Stream.TRADE, session: int = SESSION) -> list[int]:
        """Sequences delivered, in order."""
        return [
            item[2]
            for item in self.output
            if isinstance(item, tuple) and item[:2] == (stream, session)
        ]

    def events(self, *kinds: type[Event]) -> list[Event]:
        """Events told, of some kinds or all."""
        return [item for item in self.output if isinstance(item, kinds or Event)]


@pytest.fixture
def bench() -> Bench:
    """An arbiter on TRADE and STATUS, two lines."""
    return Bench()


@pytest.fixture
def make_bench() -> Callable[..., Bench]:
    """For tests that need many arbiters or other ones."""
    return Bench


class PlantProcess:
    """`plant_process.py` as a child; `go` starts its flow, `result` waits for its end."""

    def __init__(self, group: str, port: int, *flags: str) -> None:
        script = Path(__file__).with_name("plant_process.py")
        self._child = subprocess.Popen(
            [sys.executable, str(script), group, str(port), *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def go(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write("go\n")
        self._child.stdin.flush()

    def result(self) -> dict[str, dict[str, int]]:
        output, _ = self._child.communicate(timeout=20)
        read: dict[str, dict[str, int]] = json.loads(output)
        return read

    def stop(self) -> None:
        self._child.kill()
        self._child.communicate(timeout=30)


@pytest.fixture
def start_plant() -> Iterator[Callable[..., PlantProcess]]:
    """Starts plants in processes of their own, which end with the test."""
    plants: list[PlantProcess] = []

    def start(group: str, port: int, *flags: str) -> PlantProcess:
        plants.append(PlantProcess(group, port, *flags))
        return plants[-1]

    yield start
    for plant in plants:
        plant.stop()
