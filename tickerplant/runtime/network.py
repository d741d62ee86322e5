"""Checks of interfaces, multicast groups, socket buffers and ports; `doctor` reports them, the daemon relies on them.

All of them block, the longest for the seconds it is told; in an event loop call them through `asyncio.to_thread`.
"""

import array
import errno
import fcntl
import os
import selectors
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from tickerplant.config import PublishConfig
from tickerplant.core.keyring import KeyRing
from tickerplant.core.wire import Header, Kind, decode_header
from tickerplant.errors import AuthenticationError, GroupOccupiedError, NetworkSetupError, WireError
from tickerplant.limits import (
    DATAGRAM_MAX_BYTES,
    HEARD_DATAGRAMS_MAX,
    HEARD_SENDERS_MAX,
    REPLAY_WINDOW_NS,
    SESSION_AHEAD_MAX_NS,
)
from tickerplant.runtime.checks import CheckResult, Status, fail, from_error, ok, warn

IP_MULTICAST_ALL = 49
"""Linux: 0 delivers only the groups this socket joined. The name is missing in Python 3.11's `socket`."""
PROBE_GROUP = "239.192.77.250"
"""Where `check_multicast` sends to itself; not one of the plant's groups."""

_SIOCGIFCONF, _SIOCGIFFLAGS, _SIOCGIFMTU = 0x8912, 0x8913, 0x8921
_IFF_UP, _IFF_LOOPBACK, _IFF_MULTICAST = 0x1, 0x8, 0x1000
_IFREQ_BYTES = 40 if struct.calcsize("P") == 8 else 32
_INTERFACES_MAX = 512
_IP_AND_UDP_HEADER_BYTES = 28
_LOOPBACK_NETWORK = IPv4Network("127.0.0.0/8")


class Interface(NamedTuple):
    """One IPv4 address of an interface of this host."""

    name: str
    address: str
    is_up: bool
    is_loopback: bool
    is_multicast: bool
    mtu_bytes: int


class Line(NamedTuple):
    """The groups of line A or B, the address of the interface they are on, and the key that sets it."""

    groups: tuple[str, ...]
    interface: str
    interface_key: str = "publish.interface"


class Heard(NamedTuple):
    """The last datagram of one sender, and of one session if it speaks KTP, on a group.

    With keys a stranger is whoever does not speak KTP under one of them, now; of a group the last one is kept.
    """

    group: str
    sender: str
    """address:port"""
    header: Header | None
    """None: not KTP, or a stranger."""
    problem: str
    """Why there is no header; empty if there is."""


def lines_of(publish: PublishConfig) -> list[Line]:
    """The configured lines: A, and B if it is on."""
    return [
        Line(groups, publish.interface_of(name), publish.interface_key(name))
        for name in ("a", "b")
        if (groups := publish.groups(name))
    ]


def list_interfaces() -> list[Interface]:
    """Every IPv4 address of this host with the state of its interface, down ones included."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        buffer = array.array("B", bytes(_IFREQ_BYTES * _INTERFACES_MAX))
        address, _length = buffer.buffer_info()
        request = struct.pack("iP", len(buffer), address)
        (used,) = struct.unpack_from("i", fcntl.ioctl(probe, _SIOCGIFCONF, request))
        found = []
        for offset in range(0, used, _IFREQ_BYTES):
            entry = buffer[offset : offset + _IFREQ_BYTES].tobytes()
            name = entry[:16].split(b"\0")[0]
            query = struct.pack("16s24x", name)
            (flags,) = struct.unpack_from("H", fcntl.ioctl(probe, _SIOCGIFFLAGS, query), 16)
            (mtu,) = struct.unpack_from("i", fcntl.ioctl(probe, _SIOCGIFMTU, query), 16)
            found.append(
                Interface(
                    name=name.decode(errors="replace"),
                    address=socket.inet_ntoa(entry[20:24]),
                    is_up=bool(flags & _IFF_UP),
                    is_loopback=bool(flags & _IFF_LOOPBACK),
                    is_multicast=bool(flags & _IFF_MULTICAST),
                    mtu_bytes=mtu,
                )
            )
        return found


def check_interface(address: str, key: str = "publish.interface") -> CheckResult:
    """That an interface has `address`, is up, and carries multicast and our datagrams; `key` sets it."""
    interfaces = list_interfaces()
    # All of 127.0.0.0/8 is the loopback interface, whichever of it is listed.
    on_loopback = IPv4Address(address) in _LOOPBACK_NETWORK
    for interface in interfaces:
        if interface.address == address or (on_loopback and interface.is_loopback):
            return judge_interface(interface)
    here = ", ".join(f"{item.name} {item.address}" for item in interfaces) or "none"
    return fail(
        "interface",
        f"no interface has the address {address} (this host has: {here})",
        f"set {key} to one of these",
    )


def judge_interface(interface: Interface) -> CheckResult:
    """What `interface` is good for. Loopback has no multicast flag on Linux, yet multicast works on it."""
    name, text = "interface", f"{interface.name} {interface.address}"
    needed = DATAGRAM_MAX_BYTES + _IP_AND_UDP_HEADER_BYTES
    if not interface.is_up:
        return fail(name, f"{text} is down", f"`ip link set dev {interface.name} up`")
    if not (interface.is_multicast or interface.is_loopback):
        return fail(
            name, f"{text} has multicast off", f"`ip link set dev {interface.name} multicast on`"
        )
    if interface.mtu_bytes < needed:
        return fail(
            name,
            f"{text} has an MTU of {interface.mtu_bytes} bytes, datagrams need {needed}",
            f"`ip link set dev {interface.name} mtu 1500`",
        )
    return ok(name, f"{text} is up, MTU {interface.mtu_bytes}")


def check_multicast(
    interface: str, timeout_s: float = 1.0, group: str = PROBE_GROUP
) -> CheckResult:
    """Send a datagram with TTL 0 to `group` on `interface` and receive it: what every subscriber here needs."""
    name = "multicast"
    token = os.urandom(16)
    try:
        with (
            _joined(group, 0, interface) as receiver,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        ):
            sender.setsockopt(
                socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(interface)
            )
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
            started_ns = time.monotonic_ns()
            sender.sendto(token, receiver.getsockname())
            if _receive_token(receiver, token, timeout_s):
                elapsed_us = (time.monotonic_ns() - started_ns) // 1_000
                return ok(name, f"round trip on {interface} in {elapsed_us} µs")
    except (OSError, NetworkSetupError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return fail(
            name,
            f"cannot be used on {interface}: {reason}",
            "set publish.interface to an interface that is up (`ip -4 address`)",
        )
    return fail(
        name,
        f"what is sent on {interface} does not come back in {timeout_s:g} s",
        "let UDP to 239.192.0.0/14 through the firewall (`nft list ruleset`, `iptables -L`)",
    )


def check_receive_buffer(wanted_bytes: int) -> CheckResult:
    """The socket receive buffer the kernel grants against `wanted_bytes`, which a burst needs."""
    name = "socket buffers"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, wanted_bytes)
        # The kernel doubles what it grants, for its own bookkeeping.
        granted_bytes = probe.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
    if granted_bytes >= wanted_bytes:
        return ok(name, f"receive buffer of {wanted_bytes // 1024} KiB is granted")
    return warn(
        name,
        f"receive buffer of {granted_bytes // 1024} KiB, subscribers want {wanted_bytes // 1024} KiB",
        f"`sysctl -w net.core.rmem_max={wanted_bytes}`, and the same in /etc/sysctl.d",
    )


def check_port_free(address: str, port: int, key: str) -> CheckResult:
    """That TCP `port` can be listened on at `address`; `key` is the configuration key that sets it."""
    name = "port"
    if port == 0:
        return ok(name, f"any free one is taken ({key} = 0)")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return fail(
                    name,
                    f"TCP port {port} on {address} is in use",
                    f"stop what uses it (`ss -ltnp 'sport = :{port}'`), or set {key}",
                )
            return fail(
                name, f"TCP port {port} on {address}: {error.strerror}", f"set {key} to another"
            )
    return ok(name, f"TCP port {port} on {address} is free")


def listen_on_groups(
    lines: Sequence[Line], port: int, seconds: float, key_ring: KeyRing | None = None
) -> list[Heard]:
    """Who sends on the groups of `lines`; the last datagram of each sender and session on each group.

    With a `key_ring` what is not signed, or was sent long ago, comes from a stranger. Blocks for `seconds`, less if
    there is a flood of what is none. Raises `NetworkSetupError` if a group cannot be joined.
    """
    heard: dict[tuple[str, str, int], Heard] = {}
    deadline_ns = time.monotonic_ns() + int(seconds * 1e9)
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        for line in lines:
            for group in line.groups:
                receiver = stack.enter_context(_joined(group, port, line.interface))
                selector.register(receiver, selectors.EVENT_READ, group)
        datagrams = 0
        while datagrams < HEARD_DATAGRAMS_MAX:
            left_s = (deadline_ns - time.monotonic_ns()) / 1e9
            if left_s <= 0:
                break
            for key, _events in selector.select(left_s):
                assert isinstance(key.fileobj, socket.socket)
                datagram, sender = _receive(key.fileobj)
                if sender:
                    item = _identify(key.data, datagram, sender, key_ring)
                    datagrams += item.header is not None or key_ring is None
                    _remember(heard, item, by_sender=item.header is not None or key_ring is None)
    return list(heard.values())


def require_free_groups(
    heard: Sequence[Heard], now_ns: int, *, own_session: int = 0, signed: bool = False
) -> int:
    """The highest session heard, 0 if none. Raises `GroupOccupiedError` if something lives on the groups.

    A plant whose last word was its end of session is gone, and so is `own_session`, our last one. Strangers count
    for nothing where the feed is `signed`. Sessions beyond `now_ns` + 60 s are not believed.
    """
    highest = 0
    for item in heard:
        if item.header is None:
            if signed:
                continue
            raise GroupOccupiedError(
                f"multicast group {item.group} carries another protocol from {item.sender} ({item.problem}): "
                "stop that sender, or set publish.group_a and publish.port to others"
            )
        if item.header.kind != Kind.END_OF_SESSION and item.header.session != own_session:
            raise GroupOccupiedError(
                f"multicast group {item.group} carries another plant at {item.sender} "
                f"(publisher {item.header.publisher}, session {item.header.session}): "
                "stop it, or set publish.group_a to other groups"
            )
        if item.header.session <= now_ns + SESSION_AHEAD_MAX_NS:
            highest = max(highest, item.header.session)
    return highest


def check_groups(
    lines: Sequence[Line], port: int, seconds: float, key_ring: KeyRing | None = None
) -> CheckResult:
    """That nobody else sends on the groups; a running plant is only a warning, for it may be ours.

    Strangers on a signed feed are one too, for subscribers with the key do not hear them.
    """
    name = "groups"
    try:
        heard = listen_on_groups(lines, port, seconds, key_ring)
        strangers = [item for item in heard if item.header is None]
        require_free_groups(strangers, time.time_ns(), signed=key_ring is not None)
    except NetworkSetupError as error:
        return from_error(name, error)
    for stranger in strangers:
        text = f"{stranger.sender} sends on {stranger.group} what is not ours ({stranger.problem})"
        return warn(name, text, "stop that sender; give subscribers --key and --source")
    try:
        require_free_groups(heard, time.time_ns())
    except GroupOccupiedError as error:
        return from_error(name, error, Status.WARN)
    groups = ", ".join(f"{line.groups[0]}-{line.groups[-1].rpartition('.')[2]}" for line in lines)
    return ok(name, f"nobody sends on {groups} port {port}")


@contextmanager
def _joined(group: str, port: int, interface: str) -> Iterator[socket.socket]:
    """A non-blocking socket that receives exactly `group` at `port` (0: a free one)."""
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        receiver.setblocking(False)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        receiver.setsockopt(socket.IPPROTO_IP, IP_MULTICAST_ALL, 0)
        membership = socket.inet_aton(group) + socket.inet_aton(interface)
        try:
            receiver.bind((group, port))
            receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        except OSError as error:
            remedy = (
                "stop the program that holds the port, or set publish.port"
                if error.errno == errno.EADDRINUSE
                else "set publish.interface to an interface that is up (`ip -4 address`)"
            )
            raise NetworkSetupError(
                f"multicast group {group} port {port} cannot be joined on {interface} "
                f"({error.strerror}): {remedy}"
            ) from error
        yield receiver
    finally:
        receiver.close()


def _receive_token(receiver: socket.socket, token: bytes, timeout_s: float) -> bool:
    deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
    with selectors.DefaultSelector() as selector:
        selector.register(receiver, selectors.EVENT_READ)
        while (left_s := (deadline_ns - time.monotonic_ns()) / 1e9) > 0:
            if selector.select(left_s) and _receive(receiver)[0] == token:
                return True
    return False


def _receive(receiver: socket.socket) -> tuple[bytes, str]:
    """One datagram and its sender; both empty if there was none after all (a bad checksum, say)."""
    try:
        datagram, (address, port) = receiver.recvfrom(DATAGRAM_MAX_BYTES + 1)
    except (BlockingIOError, InterruptedError):
        return b"", ""
    return datagram, f"{address}:{port}"


def _identify(group: str, datagram: bytes, sender: str, key_ring: KeyRing | None) -> Heard:
    try:
        header = decode_header(datagram)
        if key_ring is not None:
            key_ring.verify(datagram)
            if abs(time.time_ns() - header.ts_send_ns) > REPLAY_WINDOW_NS:
                raise AuthenticationError("signed, but long ago: played back, or a wrong clock")
    except WireError as error:
        return Heard(group, sender, None, str(error))
    return Heard(group, sender, header, "")


def _remember(heard: dict[tuple[str, str, int], Heard], item: Heard, *, by_sender: bool) -> None:
    session = item.header.session if item.header is not None else 0
    key = (item.group, item.sender if by_sender else "", session)
    if key in heard or len(heard) < HEARD_SENDERS_MAX:
        heard[key] = item
