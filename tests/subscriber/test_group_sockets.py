"""Joining groups, and what the kernel says it dropped."""

import asyncio
import contextlib
import socket
from typing import Any

import pytest

from tickerplant.core.messages import GapCause, Stream, Trade
from tickerplant_subscriber import Gap, Strategy, UpstreamGap, run_async
from tickerplant_subscriber.sockets import (
    kernel_drops_of,
    open_group_socket,
    receive_buffer_of,
)


def test_of_a_socket_that_is_not_there_no_drops_are_known() -> None:
    closed = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    closed.close()
    assert kernel_drops_of(closed) == 0


def test_a_socket_hears_its_own_group_only(group: str, port: int, sender: Any) -> None:
    """Even where another socket of the host has joined a second group on the same port."""
    second = group.rsplit(".", 1)[0] + "." + str(int(group.rsplit(".", 1)[1]) + 1)
    with (
        open_group_socket(group, port, "127.0.0.1", "", 65_536) as first_socket,
        open_group_socket(second, port, "127.0.0.1", "", 65_536) as second_socket,
    ):
        sender.send(1, b"first")
        sender.send(2, b"second")
        assert first_socket.recv(100) == b"first"
        assert second_socket.recv(100) == b"second"
        for each in (first_socket, second_socket):
            with pytest.raises(BlockingIOError):
                each.recv(100)


def test_a_group_may_be_joined_by_many(group: str, port: int, sender: Any) -> None:
    sockets = [open_group_socket(group, port, "127.0.0.1", "", 65_536) for _ in range(3)]
    sender.send(1, b"all")
    assert [each.recv(100) for each in sockets] == [b"all"] * 3
    for each in sockets:
        each.close()


def test_a_source_specific_join_hears_that_source_only(group: str, port: int, sender: Any) -> None:
    with (
        open_group_socket(group, port, "127.0.0.1", "127.0.0.1", 65_536) as right,
        open_group_socket(group, port, "127.0.0.1", "127.0.0.9", 65_536) as wrong,
    ):
        sender.send(1, b"hello")
        assert right.recv(100) == b"hello"
        with pytest.raises(BlockingIOError):
            wrong.recv(100)


def test_the_receive_buffer_is_what_was_asked_for(group: str, port: int) -> None:
    with open_group_socket(group, port, "127.0.0.1", "", 100_000) as receiver:
        assert receive_buffer_of(receiver) == 100_000


def test_the_kernels_drops_are_counted(group: str, port: int, sender: Any) -> None:
    with open_group_socket(group, port, "127.0.0.1", "", 4_096) as receiver:
        for _ in range(200):
            sender.send(1, b"x" * 1_000)
        drops = kernel_drops_of(receiver)
        received = 0
        with contextlib.suppress(BlockingIOError):
            while receiver.recv(2_000):
                received += 1
    assert received + drops == 200
    assert drops > 0


async def test_a_gap_by_kernel_drops_is_called_so(group: str, port: int, sender: Any) -> None:
    """The strategy does not read while 300 datagrams come into a buffer of a few."""

    class Slow(Strategy):
        def __init__(self) -> None:
            self.gaps: list[Gap | UpstreamGap] = []

        def on_start(self) -> None:
            for seq in range(1, 301):
                sender.messages(Stream.TRADE, seq, [Trade("T" * 100, seq, 0, 0, "t", 1, 1, 0)], 9)
            asyncio.get_running_loop().call_later(0.05, sender.heartbeat, Stream.TRADE, 301, 9)

        def on_trade(self, trade: Trade) -> None:
            pass

        def on_gap(self, gap: Gap | UpstreamGap) -> None:
            self.gaps.append(gap)
            self.stop()

    strategy = Slow()
    async with asyncio.timeout(10):
        await run_async(strategy, group_a=group, port=port, receive_buffer_bytes=8_192)
    gap = strategy.gaps[0]
    assert isinstance(gap, Gap)
    assert (gap.to_seq, gap.cause) == (300, GapCause.KERNEL_DROP)
    assert gap.from_seq > 1


def test_the_loopback_interface_is_up() -> None:
    """The check of interfaces says nothing about one it does not know and nothing about one that is up."""
    from tickerplant_subscriber.sockets import check_interface_is_up

    check_interface_is_up("127.0.0.1")
    check_interface_is_up("192.0.2.77")


def test_an_interface_that_is_down_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's answers are those of an interface that is down; nobody may take a real one down for a test."""
    import fcntl
    import struct

    from tickerplant.errors import NetworkSetupError
    from tickerplant_subscriber import sockets

    def ioctl(_probe: socket.socket, request: int, _argument: bytes) -> bytes:
        if request == sockets.SIOCGIFADDR:
            return struct.pack(
                "16sHH4s8x", b"eth7", socket.AF_INET, 0, socket.inet_aton("10.9.9.9")
            )
        return struct.pack("16sH14x", b"eth7", 0)

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(7, "eth7")])
    with pytest.raises(NetworkSetupError, match=r"interface eth7 \(10\.9\.9\.9\) is down"):
        sockets.check_interface_is_up("10.9.9.9")
