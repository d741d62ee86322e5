"""Sending datagrams: one connected non-blocking UDP socket per stream and line, raw `send`, nothing queued.

A datagram that the kernel does not take (EAGAIN, ENOBUFS) is lost on that line and counted; recovery repairs it. A
transport of the event loop would queue without bound instead, and delay what comes after.
"""

import errno
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tickerplant.config import PublishConfig
from tickerplant.core.messages import Stream
from tickerplant.core.packets import Datagram
from tickerplant.errors import NetworkSetupError
from tickerplant.limits import PUBLISH_SEND_BUFFER_BYTES
from tickerplant.runtime.network import check_interface

_LINES = ("a", "b")
IP_MTU_DISCOVER = 10
IP_PMTUDISC_DO = 2
"""Linux: never fragment, so that a lost fragment cannot lose a whole datagram. Python 3.11's `socket` lacks both."""

_FULL = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS})
_STREAM_NAMES = {int(stream): stream.name.lower() for stream in Stream}


class SendFault(NamedTuple):
    """The last error of a line other than a full buffer."""

    line: str
    stream: str
    error: str


class LineSender:
    """One line: the sockets of its five streams, and what could not be sent on them."""

    def __init__(self, name: str, sockets: Mapping[int, socket.socket]) -> None:
        """`sockets` are connected and non-blocking, by stream number; they are owned from here on."""
        self.name = name
        self.sockets = dict(sockets)
        self.sends = {number: sender.send for number, sender in sockets.items()}
        self.datagrams = 0
        self.dropped: Counter[int] = Counter()
        self.errors: Counter[str] = Counter()
        self.last_fault: SendFault | None = None

    def failed(self, stream: int, error: OSError) -> None:
        """Count a datagram that was not taken."""
        code = error.errno or 0
        if code in _FULL:
            self.dropped[stream] += 1
            return
        name = errno.errorcode.get(code, str(code))
        self.errors[name] += 1
        self.last_fault = SendFault(self.name, _STREAM_NAMES[stream], f"{name}: {error.strerror}")

    def close(self) -> None:
        """Close the sockets."""
        for sender in self.sockets.values():
            sender.close()


class Publisher:
    """Sends on every line; `open_publisher` makes it."""

    def __init__(self, lines: Sequence[LineSender]) -> None:
        """Line A first."""
        self.lines = tuple(lines)

    def send(self, datagrams: Sequence[Datagram]) -> None:
        """Send each datagram once per line, line A first. Never raises, blocks or tries again."""
        for line in self.lines:
            sends = line.sends
            for stream, datagram in datagrams:
                try:
                    sends[stream](datagram)
                except OSError as error:
                    line.failed(stream, error)
            line.datagrams += len(datagrams)

    @property
    def lost_datagrams(self) -> int:
        """Datagrams not sent, over all lines."""
        return sum(line.dropped.total() + line.errors.total() for line in self.lines)

    def take_faults(self) -> list[SendFault]:
        """The last error of each line since the last call; a full buffer is not one."""
        faults = [line.last_fault for line in self.lines if line.last_fault is not None]
        for line in self.lines:
            line.last_fault = None
        return faults

    def counters(self) -> Mapping[str, Mapping[tuple[str, ...], int]]:
        """Datagrams handed to each line, and of these the ones that the kernel did not take."""
        return {
            "datagrams{line}": {(line.name,): line.datagrams for line in self.lines},
            "dropped{line,stream}": {
                (line.name, name): line.dropped[number]
                for line in self.lines
                for number, name in _STREAM_NAMES.items()
            },
            "send_errors{line,error}": {
                (line.name, name): count
                for line in self.lines
                for name, count in line.errors.items()
            },
        }

    def close(self) -> None:
        """Close every socket."""
        for line in self.lines:
            line.close()


def open_publisher(publish: PublishConfig) -> Publisher:
    """The sockets of the configured lines. Raises `NetworkSetupError` naming interface or group, and the remedy."""
    lines: list[LineSender] = []
    try:
        for name in _LINES:
            groups = publish.groups(name)
            if groups:
                lines.append(_open_line(name, groups, publish))
    except BaseException:
        for line in lines:
            line.close()
        raise
    return Publisher(lines)


def _open_line(name: str, groups: Sequence[str], publish: PublishConfig) -> LineSender:
    interface, key = publish.interface_of(name), publish.interface_key(name)
    check_interface(interface, key).require()
    sockets: dict[int, socket.socket] = {}
    try:
        for stream, group in zip(Stream, groups, strict=True):
            sockets[int(stream)] = _open_socket(group, publish.port, interface, publish.ttl)
    except OSError as error:
        for sender in sockets.values():
            sender.close()
        raise NetworkSetupError(
            f"multicast group {groups[len(sockets)]} port {publish.port} cannot be sent to from interface "
            f"{interface} ({error.strerror}): set {key} to an interface that is up (`ip -4 address`)"
        ) from error
    return LineSender(name, sockets)


def _open_socket(group: str, port: int, interface: str, ttl: int) -> socket.socket:
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sender.setblocking(False)
        ip = socket.IPPROTO_IP
        sender.setsockopt(ip, socket.IP_MULTICAST_IF, socket.inet_aton(interface))
        sender.setsockopt(ip, socket.IP_MULTICAST_TTL, ttl)
        sender.setsockopt(ip, socket.IP_MULTICAST_LOOP, 1)
        sender.setsockopt(ip, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PUBLISH_SEND_BUFFER_BYTES)
        sender.connect((group, port))
    except BaseException:
        sender.close()
        raise
    return sender
