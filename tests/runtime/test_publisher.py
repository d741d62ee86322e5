"""The publisher on real multicast sockets of the loopback interface, and on sockets that are really full."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tickerplant.config import PublishConfig
from tickerplant.core.messages import Stream
from tickerplant.errors import NetworkSetupError
from tickerplant.limits import DATAGRAM_MAX_BYTES
from tickerplant.runtime.metrics import Metrics
from tickerplant.runtime.publisher import (
    IP_MTU_DISCOVER,
    IP_PMTUDISC_DO,
    LineSender,
    Publisher,
    open_publisher,
)

LOOPBACK = "127.0.0.1"


@pytest.fixture
def two_lines(group: str, free_udp_port: int) -> PublishConfig:
    """Lines A and B, eight groups apart."""
    first, _, last = group.rpartition(".")
    group_b = f"239.196.{first.rpartition('.')[2]}.{last}"
    return PublishConfig(group_a=group, group_b=group_b, port=free_udp_port)


@contextmanager
def joined(group: str, port: int) -> Iterator[socket.socket]:
    """A socket that receives one group."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        receiver.bind((group, port))
        membership = socket.inet_aton(group) + socket.inet_aton(LOOPBACK)
        receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        receiver.settimeout(5)
        yield receiver


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    """Closes what a test opens."""
    with ExitStack() as stack:
        yield stack


def test_each_stream_goes_to_its_group_on_both_lines_with_identical_bytes(
    two_lines: PublishConfig, opened: ExitStack
) -> None:
    receivers = {
        (line, stream): opened.enter_context(joined(group, two_lines.port))
        for line in ("a", "b")
        for stream, group in zip(Stream, two_lines.groups(line), strict=True)
    }
    publisher = open_publisher(two_lines)
    opened.callback(publisher.close)
    sent = [(int(stream), bytes([stream, part]) * 40) for part in (1, 2) for stream in Stream]
    sent.append((int(Stream.DELTA), os.urandom(DATAGRAM_MAX_BYTES)))
    publisher.send(sent)
    for (_line, stream), receiver in receivers.items():
        wanted = [datagram for number, datagram in sent if number == stream]
        assert [receiver.recv(2_000) for _ in wanted] == wanted
        receiver.settimeout(0)
        with pytest.raises(BlockingIOError):
            receiver.recv(2_000)
    assert publisher.counters()["datagrams{line}"] == {("a",): 11, ("b",): 11}
    assert publisher.lost_datagrams == 0


def test_nothing_is_sent_on_line_b_when_it_is_off(group: str, free_udp_port: int) -> None:
    publisher = open_publisher(PublishConfig(group_a=group, port=free_udp_port))
    assert [line.name for line in publisher.lines] == ["a"]
    publisher.close()


def test_sockets_never_leave_the_host_by_default_never_fragment_and_never_block(
    two_lines: PublishConfig, opened: ExitStack
) -> None:
    publisher = open_publisher(two_lines)
    opened.callback(publisher.close)
    ip = socket.IPPROTO_IP
    for line in publisher.lines:
        assert sorted(line.sockets) == sorted(int(stream) for stream in Stream)
        for stream, sender in line.sockets.items():
            assert sender.getpeername() == (
                two_lines.groups(line.name)[stream - 1],
                two_lines.port,
            )
            assert sender.getblocking() is False
            assert sender.getsockopt(ip, socket.IP_MULTICAST_TTL) == 0
            assert sender.getsockopt(ip, socket.IP_MULTICAST_LOOP) == 1
            assert sender.getsockopt(ip, IP_MTU_DISCOVER) == IP_PMTUDISC_DO
            assert sender.getsockopt(ip, socket.IP_MULTICAST_IF, 4) == socket.inet_aton(LOOPBACK)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
                assert sender.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > plain.getsockopt(
                    socket.SOL_SOCKET, socket.SO_SNDBUF
                )


def test_the_configured_ttl_is_set(group: str, free_udp_port: int, opened: ExitStack) -> None:
    publisher = open_publisher(PublishConfig(group_a=group, port=free_udp_port, ttl=3))
    opened.callback(publisher.close)
    sender = publisher.lines[0].sockets[1]
    assert sender.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL) == 3


@pytest.fixture
def blocked(opened: ExitStack) -> tuple[LineSender, dict[int, socket.socket]]:
    """A line whose receivers do not read, so that its sockets fill up; and the receivers."""
    senders, receivers = {}, {}
    for stream in Stream:
        sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        sender.setblocking(False)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        senders[int(stream)] = sender
        receivers[int(stream)] = opened.enter_context(receiver)
    line = LineSender("a", senders)
    opened.callback(line.close)
    return line, receivers


def test_a_full_buffer_loses_the_datagram_counts_it_and_delays_nothing_else(
    blocked: tuple[LineSender, dict[int, socket.socket]],
    group: str,
    free_udp_port: int,
    opened: ExitStack,
) -> None:
    full, receivers = blocked
    free = open_publisher(PublishConfig(group_a=group, port=free_udp_port)).lines[0]
    free.name = "b"
    opened.callback(free.close)
    delta_group = PublishConfig(group_a=group, port=free_udp_port).groups()[Stream.DELTA - 1]
    receiver = opened.enter_context(joined(delta_group, free_udp_port))
    publisher = Publisher([full, free])

    sent = [(int(Stream.DELTA), number.to_bytes(2) * 600) for number in range(50)]
    publisher.send(sent)

    dropped = full.dropped[Stream.DELTA]
    assert 0 < dropped < 50
    assert [receiver.recv(2_000) for _ in sent] == [datagram for _, datagram in sent]
    counters = publisher.counters()
    assert counters["dropped{line,stream}"]["a", "delta"] == dropped
    assert counters["dropped{line,stream}"]["b", "delta"] == 0
    assert counters["dropped{line,stream}"]["a", "trade"] == 0
    assert publisher.lost_datagrams == dropped
    assert publisher.take_faults() == []

    kept = [receivers[Stream.DELTA].recv(2_000) for _ in range(50 - dropped)]
    assert kept == [datagram for _, datagram in sent[: len(kept)]]
    publisher.send([(int(Stream.DELTA), b"after")])
    assert receivers[Stream.DELTA].recv(2_000) == b"after"


def test_other_errors_are_counted_by_name_and_told_once(
    group: str, free_udp_port: int, opened: ExitStack
) -> None:
    publisher = open_publisher(PublishConfig(group_a=group, port=free_udp_port))
    opened.callback(publisher.close)
    too_long = bytes(70_000)
    publisher.send([(1, too_long), (1, too_long), (5, too_long)])
    assert publisher.counters()["send_errors{line,error}"] == {("a", "EMSGSIZE"): 3}
    (fault,) = publisher.take_faults()
    assert fault == ("a", "status", f"EMSGSIZE: {os.strerror(errno.EMSGSIZE)}")
    assert publisher.take_faults() == []
    assert publisher.lost_datagrams == 3


def test_the_counters_are_what_the_metrics_endpoint_reads(
    two_lines: PublishConfig, opened: ExitStack
) -> None:
    publisher = open_publisher(two_lines)
    opened.callback(publisher.close)
    metrics = Metrics()
    metrics.add("publisher", publisher)
    publisher.send([(1, b"x"), (2, bytes(70_000))])
    text = metrics.scrape().decode()
    assert 'tickerplant_publisher_datagrams_total{line="b"} 2.0' in text
    assert 'tickerplant_publisher_send_errors_total{error="EMSGSIZE",line="a"} 1.0' in text


@pytest.mark.parametrize("line", ["a", "b"])
def test_an_interface_that_does_not_exist_is_named_with_the_remedy(
    two_lines: PublishConfig, line: str
) -> None:
    key = "interface" if line == "a" else "interface_b"
    missing = {key: "192.0.2.77"}
    config = PublishConfig(
        group_a=two_lines.group_a, group_b=two_lines.group_b, port=two_lines.port, **missing
    )
    with pytest.raises(NetworkSetupError, match=rf"192\.0\.2\.77.*set publish\.{key} ") as caught:
        open_publisher(config)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1
