"""A plant, its recovery, and clients that do all the wrong at once: the plant does not notice, and nothing grows.

What is compared are counts, and the processor time of the plant for a message: not how long anything took.
"""

import os
import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from processes import COMMAND, Plant, Simulation, SubscriberProcess, free_network, wait_for
from restart_bed import start_plant, wait_equal

from tickerplant.core.messages import Stream
from tickerplant.core.recovery_wire import (
    AnyControl,
    FrameReader,
    GapFill,
    GapFillKind,
    Hello,
    Open,
    RecoveryCode,
    Reject,
    SnapshotEnd,
    SnapshotRequest,
    StreamRequest,
    decode_gap_fill,
    encode_control,
    encode_gap_fill,
    is_gap_fill,
)

MIB = 1024 * 1024
DELTA = int(Stream.DELTA)
ALL = tuple((int(stream), 1) for stream in Stream)
STATES = (Stream.BBO, Stream.TICKER, Stream.DELTA, Stream.STATUS)
GOOD = "127.0.0.2"
"""The address of a client that behaves."""
ROUNDS = 3
REQUESTS = 1_200
GARBAGE = 240
REPAIRS = 4
"""Of the client that behaves, in each round."""
CONNECTIONS_PER_CLIENT = 48
FIRST_GROWTH_MAX_MIB = 96
"""64 KiB read and 256 KiB unsent for each connection, and as much again for what the allocator keeps."""
LATER_GROWTH_MAX_MIB = 16
CPU_RATIO_MAX = 2.5


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def cpu_ticks(pid: int) -> int:
    """Used by all threads, in user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


class GoodClient:
    """Asks for what it lacks, and again if nothing comes, as subscribers do."""

    def __init__(self, port: int) -> None:
        self.port = port

    def talk(self, request: StreamRequest | SnapshotRequest | None) -> list[bytes | AnyControl]:
        """What recovery says on a connection, up to its end; up to the hello without request."""
        said: list[bytes | AnyControl] = []
        with socket.create_connection(
            ("127.0.0.1", self.port), 20, source_address=(GOOD, 0)
        ) as opened:
            opened.sendall(encode_control(Open(1)))
            reader = FrameReader()
            while data := opened.recv(65_536):
                reader.feed(data)
                while (frame := reader.next()) is not None:
                    said.append(frame)
                    if isinstance(frame, Hello):
                        if request is None:
                            return said
                        opened.sendall(encode_control(request))
        return said

    def hello(self) -> Hello:
        said = self.talk(None)
        assert isinstance(said[0], Hello), said
        return said[0]

    def repair(self, session: int, seq: int) -> bool:
        """Whether one datagram came, after some attempts."""
        request = encode_gap_fill(
            GapFill(GapFillKind.REQUEST, DELTA, 0, seq % 2**32, 1, 0, session, seq, seq)
        )
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
            opened.bind((GOOD, 0))
            opened.connect(("127.0.0.1", self.port))
            opened.settimeout(0.1)
            for _ in range(200):
                opened.send(request)
                try:
                    data = opened.recv(2_000)
                except TimeoutError:
                    continue
                if not is_gap_fill(data):
                    return True
                assert decode_gap_fill(data).code != RecoveryCode.THROTTLED
        return False


def greedy_request(hello: Hello) -> bytes:
    session = hello.sessions[-1].session
    return encode_gap_fill(GapFill(GapFillKind.REQUEST, DELTA, 0, 1, 1, 0, session, 1, 2**40))


@contextmanager
def rude_connections(port: int, session: int) -> Iterator[None]:
    """Slow readers of streams and snapshots, half-open ones, garbage, and more than one address may have."""
    whole = encode_control(Open(1))
    said = (
        whole + encode_control(StreamRequest(1, 0, session, ALL)),
        whole + encode_control(SnapshotRequest(1, 0, session, (), STATES)),
        whole,
        whole[:-1],
        b"",
        b"GET / HTTP/1.1\r\n\r\n" * 40,
    )
    with ExitStack() as stack:
        for number in range(CONNECTIONS_PER_CLIENT + 24):
            one = stack.enter_context(socket.socket())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            one.settimeout(20)
            one.connect(("127.0.0.1", port))
            # It may be refused before it has spoken.
            with suppress(OSError):
                one.sendall(said[number % len(said)])
        yield


def attack(port: int, hello: Hello, chance: random.Random, good: GoodClient) -> int:
    """One round of everything; how many repairs the client that behaves got meanwhile."""
    session, repaired = hello.sessions[-1].session, 0
    greedy = greedy_request(hello)
    with (
        rude_connections(port, session),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as storm,
    ):
        storm.connect(("127.0.0.1", port))
        for number in range(REPAIRS):
            for _ in range(REQUESTS // REPAIRS):
                storm.send(greedy)
            for _ in range(GARBAGE // REPAIRS):
                storm.send(chance.randbytes(chance.randrange(1, 1_400)))
            repaired += good.repair(session, 1 + number)
        answer = good.talk(SnapshotRequest(1, 0, session, (), STATES))
        assert isinstance(answer[-1], SnapshotEnd | Reject)
        return repaired


class Cost:
    """Processor time of a plant for a message that it publishes."""

    def __init__(self, plant: Plant) -> None:
        self._plant = plant
        self._ticks, self._frames = cpu_ticks(plant.pid), self._count()

    def _count(self) -> int:
        return self._plant.metrics()["feed_frames"]

    def ticks_per_frame(self, frames: int) -> float:
        """Over at least so many further frames."""
        wait_for(lambda: self._count() >= self._frames + frames, f"{frames} frames")
        return (cpu_ticks(self._plant.pid) - self._ticks) / (self._count() - self._frames)


@pytest.mark.timeout(300)
def test_a_storm_neither_slows_the_plant_nor_grows_recovery(tmp_path: Path) -> None:
    """Requests, garbage, slow and half-open clients, three times over; one who behaves is served all the while."""
    network, chance = free_network(), random.Random(11)
    options = ("--markets", "60", "--rate", "1000", "--window", "0")
    settings = {
        "recovery": {
            "enabled": False,
            "port": 0,
            "metrics_port": 0,
            "niceness": 0,
            "client_bytes_per_second": 2 * MIB,
            "connections_per_client_max": CONNECTIONS_PER_CLIENT,
        }
    }
    with (
        Simulation(tmp_path / "sim", *options) as simulation,
        SubscriberProcess(tmp_path / "sub", network) as subscriber,
        start_plant(tmp_path, network, simulation, settings) as plant,
    ):
        plant.wait_ready()
        command = (COMMAND, "recovery")
        with Plant(tmp_path, network, plant.settings, command=command, name="recovery") as recovery:
            port = recovery.wait_event("recovery_started")["port"]
            recovery.wait_event("recovery_caught_up")
            good = GoodClient(port)
            hello = good.hello()
            quiet = Cost(plant).ticks_per_frame(2_000)
            before_mib = resident_mib(recovery.pid)
            cost, grown = Cost(plant), []
            for _ in range(ROUNDS):
                assert attack(port, hello, chance, good) == REPAIRS
                grown.append(resident_mib(recovery.pid) - before_mib)
            attacked = cost.ticks_per_frame(2_000)
            metrics = recovery.metrics()
            assert wait_equal(simulation, subscriber, 30) > 30
            assert [one for one in subscriber.report()["events"] if one["type"] == "Gap"] == []
            assert recovery.stop() == 0
        assert plant.stop() == 0
    assert metrics['recovery_gap_fill_requests{code="throttled"}'] > REQUESTS / 10
    assert metrics["recovery_gap_fill_ignored_datagrams"] > 0
    assert metrics['recovery_tcp_rejects{code="throttled"}'] > 0
    assert metrics['recovery_tcp_rejects{code="malformed"}'] > 0
    assert max(grown) < FIRST_GROWTH_MAX_MIB, grown
    assert grown[-1] - grown[0] < LATER_GROWTH_MAX_MIB, grown
    assert attacked < CPU_RATIO_MAX * quiet, (attacked, quiet)
