"""Interfaces, groups, buffers and ports, on real sockets with TTL 0 on the loopback interface."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tickerplant.config import PublishConfig
from tickerplant.core.wire import HeartbeatBody, Kind, encode_heartbeat
from tickerplant.errors import GroupOccupiedError, NetworkSetupError
from tickerplant.limits import HEARD_SENDERS_MAX, SESSION_AHEAD_MAX_NS
from tickerplant.runtime.checks import Status
from tickerplant.runtime.network import (
    Heard,
    Interface,
    Line,
    check_groups,
    check_interface,
    check_multicast,
    check_port_free,
    check_receive_buffer,
    judge_interface,
    lines_of,
    list_interfaces,
    listen_on_groups,
    require_free_groups,
)

LOOPBACK = "127.0.0.1"


def heartbeat(session: int, kind: Kind = Kind.HEARTBEAT, publisher: int = 1) -> bytes:
    body = HeartbeatBody(datagrams_sent=0)
    return encode_heartbeat(1, session, 1, 0, body, kind=kind, publisher=publisher)


@contextmanager
def sender() -> Iterator[socket.socket]:
    """A socket that sends to groups of this host only."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
        sending.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
        sending.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOOPBACK))
        yield sending


@contextmanager
def repeating(send: Callable[[], object]) -> Iterator[None]:
    """Call `send` every 10 ms while the block runs."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(0.01):
            send()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_loopback_is_found_and_good_without_a_multicast_flag() -> None:
    (loopback,) = [item for item in list_interfaces() if item.address == LOOPBACK]
    assert loopback.is_up
    assert loopback.is_loopback
    assert loopback.mtu_bytes >= 1500
    assert check_interface(LOOPBACK).status is Status.OK
    assert check_interface("127.9.9.9").status is Status.OK


def test_missing_interface_names_the_address_and_those_there_are() -> None:
    result = check_interface("203.0.113.9")
    assert result.status is Status.FAIL
    assert "no interface has the address 203.0.113.9" in result.detail
    assert LOOPBACK in result.detail
    assert result.remedy == "set publish.interface to one of these"
    with pytest.raises(NetworkSetupError, match=r"203\.0\.113\.9.*set publish\.interface"):
        result.require()


GOOD = Interface("eth7", "10.0.0.7", True, False, True, 1500)


@pytest.mark.parametrize(
    ("interface", "status", "remedy"),
    [
        (GOOD, Status.OK, ""),
        (GOOD._replace(mtu_bytes=1400), Status.OK, ""),
        (GOOD._replace(is_up=False), Status.FAIL, "ip link set dev eth7 up"),
        (GOOD._replace(is_multicast=False), Status.FAIL, "ip link set dev eth7 multicast on"),
        (GOOD._replace(is_multicast=False, is_loopback=True), Status.OK, ""),
        (GOOD._replace(mtu_bytes=1399), Status.FAIL, "ip link set dev eth7 mtu 1500"),
    ],
)
def test_verdict_on_an_interface(interface: Interface, status: Status, remedy: str) -> None:
    result = judge_interface(interface)
    assert result.status is status
    assert remedy in result.remedy
    assert bool(result.remedy) == (status is not Status.OK)


def test_interface_that_is_really_down() -> None:
    """In a network namespace of its own, where the loopback interface exists and is down."""
    code = (
        "import fcntl, socket, struct\n"
        "from tickerplant.runtime.network import check_interface, check_multicast\n"
        "probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "address = struct.pack('HH4s', socket.AF_INET, 0, socket.inet_aton('127.0.0.1'))\n"
        "fcntl.ioctl(probe, 0x8916, struct.pack('16s16s8x', b'lo', address))\n"  # SIOCSIFADDR
        "flags = struct.unpack_from('H', fcntl.ioctl(probe, 0x8913, struct.pack('40s', b'lo')), 16)[0]\n"
        "fcntl.ioctl(probe, 0x8914, struct.pack('16sH22x', b'lo', flags & ~1))\n"  # SIOCSIFFLAGS
        "print(check_interface('127.0.0.1'))\n"
        "print(check_multicast('127.0.0.1'))\n"
    )
    done = subprocess.run(
        ["unshare", "--net", "--map-root-user", sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if "unshare" in done.stderr:
        pytest.skip("this machine does not let tests make a network namespace")
    assert done.returncode == 0, done.stderr
    interface, multicast = done.stdout.splitlines()
    assert "lo 127.0.0.1 is down" in interface
    assert "ip link set dev lo up" in interface
    assert "<Status.FAIL" in interface
    assert "<Status.FAIL" in multicast
    assert "cannot be used on 127.0.0.1" in multicast


def test_multicast_round_trip(group: str) -> None:
    result = check_multicast(LOOPBACK, group=group)
    assert result.status is Status.OK, result
    assert "round trip on 127.0.0.1" in result.detail


def test_multicast_on_an_address_that_is_not_ours(group: str) -> None:
    result = check_multicast("203.0.113.9", group=group)
    assert result.status is Status.FAIL
    assert "203.0.113.9" in result.detail
    assert "publish.interface" in result.remedy


def test_receive_buffer_is_what_the_kernel_grants() -> None:
    assert check_receive_buffer(16 * 1024).status is Status.OK
    too_much = check_receive_buffer(1 << 30)
    assert too_much.status is Status.WARN
    assert "sysctl -w net.core.rmem_max=1073741824" in too_much.remedy


def test_port_free_and_in_use(free_tcp_port: int) -> None:
    assert check_port_free(LOOPBACK, free_tcp_port, "metrics.port").status is Status.OK
    assert check_port_free(LOOPBACK, 0, "metrics.port").status is Status.OK
    with socket.create_server((LOOPBACK, free_tcp_port)):
        result = check_port_free(LOOPBACK, free_tcp_port, "metrics.port")
    assert result.status is Status.FAIL
    assert f"TCP port {free_tcp_port} on 127.0.0.1 is in use" in result.detail
    assert "set metrics.port" in result.remedy
    other = check_port_free("203.0.113.9", free_tcp_port, "metrics.port")
    assert other.status is Status.FAIL
    assert "203.0.113.9" in other.detail


def test_lines_of_a_configuration() -> None:
    assert lines_of(PublishConfig()) == [
        Line(tuple(f"239.192.77.{number}" for number in range(1, 6)), LOOPBACK)
    ]
    both = lines_of(PublishConfig(group_b="239.192.78.1", interface_b="127.0.0.2"))
    assert [line.interface for line in both] == [LOOPBACK, "127.0.0.2"]


def test_silence_is_silence(group: str, free_udp_port: int) -> None:
    started_ns = time.monotonic_ns()
    assert listen_on_groups([Line((group,), LOOPBACK)], free_udp_port, 0.2) == []
    assert 200_000_000 <= time.monotonic_ns() - started_ns < 2_000_000_000
    assert require_free_groups([], time.time_ns()) == 0


def test_another_plant_is_heard_and_refused(group: str, free_udp_port: int) -> None:
    with (
        sender() as sending,
        repeating(lambda: sending.sendto(heartbeat(77, publisher=3), (group, free_udp_port))),
    ):
        heard = listen_on_groups([Line((group,), LOOPBACK)], free_udp_port, 0.3)
        port = sending.getsockname()[1]
    (item,) = heard
    assert item.group == group
    assert item.sender == f"127.0.0.1:{port}"
    assert item.header is not None
    assert item.header.session == 77
    with pytest.raises(GroupOccupiedError) as caught:
        require_free_groups(heard, time.time_ns())
    text = str(caught.value)
    for part in (group, f"127.0.0.1:{port}", "publisher 3", "session 77", "publish.group_a"):
        assert part in text
    assert "\n" not in text


def test_foreign_protocol_is_heard_and_refused(group: str, free_udp_port: int) -> None:
    with (
        sender() as sending,
        repeating(lambda: sending.sendto(b"\x80\x60" + bytes(170), (group, free_udp_port))),
    ):
        heard = listen_on_groups([Line((group,), LOOPBACK)], free_udp_port, 0.3)
        result = check_groups([Line((group,), LOOPBACK)], free_udp_port, 0.3)
    with pytest.raises(GroupOccupiedError, match=f"{group} carries another protocol"):
        require_free_groups(heard, time.time_ns())
    assert result.status is Status.FAIL
    assert "publish.group_a" in result.remedy


def test_only_the_joined_groups_are_heard(group: str, free_udp_port: int) -> None:
    """Neither another group at the same port, nor the same group at another port."""
    other = group.rpartition(".")[0] + "." + str(int(group.rpartition(".")[2]) ^ 1)

    def send() -> None:
        sending.sendto(b"other", (other, free_udp_port))
        sending.sendto(b"other", (group, free_udp_port ^ 1))

    with sender() as sending, _member(other, free_udp_port), repeating(send):
        assert listen_on_groups([Line((group,), LOOPBACK)], free_udp_port, 0.2) == []


@contextmanager
def _member(group: str, port: int) -> Iterator[None]:
    """Another program of this host that joined `group`, so that its datagrams are delivered here."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as member:
        member.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        member.bind((group, port))
        membership = socket.inet_aton(group) + socket.inet_aton(LOOPBACK)
        member.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        yield


def test_a_plant_that_ended_its_session_is_gone_and_its_number_known(
    group: str, free_udp_port: int
) -> None:
    session = time.time_ns()
    words = iter([heartbeat(session)] * 3 + [heartbeat(session, Kind.END_OF_SESSION)] * 1000)
    with (
        sender() as sending,
        repeating(lambda: sending.sendto(next(words), (group, free_udp_port))),
    ):
        heard = listen_on_groups([Line((group,), LOOPBACK)], free_udp_port, 0.5)
    assert require_free_groups(heard, time.time_ns()) == session


def test_a_session_too_far_in_the_future_is_not_believed() -> None:
    now_ns = time.time_ns()
    ended = [_heard_end(session) for session in (now_ns - 5, now_ns + SESSION_AHEAD_MAX_NS + 1_000)]
    assert require_free_groups(ended, now_ns) == now_ns - 5


def _heard_end(session: int) -> Heard:
    from tickerplant.core.wire import decode_header

    header = decode_header(heartbeat(session, Kind.END_OF_SESSION))
    return Heard("239.195.0.1", "127.0.0.1:1", header, "")


def test_what_is_remembered_is_bounded(group: str, free_udp_port: int) -> None:
    sessions = iter(range(1, 1_000_000))

    def send() -> None:
        for _ in range(40):
            sending.sendto(heartbeat(next(sessions)), (group, free_udp_port))

    with sender() as sending, repeating(send):
        heard = listen_on_groups([Line((group,), LOOPBACK)], free_udp_port, 0.5)
    assert len(heard) == HEARD_SENDERS_MAX


def test_groups_held_exclusively_by_another_program(group: str, free_udp_port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("0.0.0.0", free_udp_port))
        with pytest.raises(NetworkSetupError, match=f"{group} port {free_udp_port}.*publish.port"):
            listen_on_groups([Line((group,), LOOPBACK)], free_udp_port, 0.2)


def test_groups_check_in_words(group: str, free_udp_port: int) -> None:
    lines = lines_of(PublishConfig(group_a=group))
    assert check_groups(lines, free_udp_port, 0.1).status is Status.OK
    with (
        sender() as sending,
        repeating(lambda: sending.sendto(heartbeat(5), (lines[0].groups[3], free_udp_port))),
    ):
        result = check_groups(lines, free_udp_port, 0.3)
    assert result.status is Status.WARN
    assert "carries another plant" in result.detail
