"""Multicast sockets: joining a group on one interface, and what the kernel dropped there."""

import contextlib
import errno
import fcntl
import socket
import struct

from tickerplant.errors import NetworkSetupError

# Linux numbers that Python 3.11 does not name.
IP_ADD_SOURCE_MEMBERSHIP = 39
IP_MULTICAST_ALL = 49
SO_RCVBUFFORCE = 33
SIOCGIFFLAGS = 0x8913
SIOCGIFADDR = 0x8915
IFF_UP = 1
SO_MEMINFO = 55
_MEMINFO = struct.Struct("=9I")
"""What the kernel counts of a socket's memory; the last is what it dropped (Linux 4.12 and later)."""


def open_group_socket(
    group: str, port: int, interface: str, source: str, receive_buffer_bytes: int
) -> socket.socket:
    """A non-blocking socket that receives exactly the datagrams to `group`:`port` on `interface`.

    `source` is the only sender accepted, if given. Raises `NetworkSetupError`.
    """
    check_interface_is_up(interface)
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        receiver.setblocking(False)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Without this a socket gets every group that any process of the host has joined on this port.
        receiver.setsockopt(socket.IPPROTO_IP, IP_MULTICAST_ALL, 0)
        set_receive_buffer(receiver, receive_buffer_bytes)
        _bind(receiver, group, port)
        _join(receiver, group, interface, source)
    except BaseException:
        receiver.close()
        raise
    return receiver


def receive_buffer_of(receiver: socket.socket) -> int:
    """The kernel's receive buffer of a socket in bytes, as asked for (the kernel doubles it for its own needs)."""
    return receiver.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2


def set_receive_buffer(receiver: socket.socket, receive_buffer_bytes: int) -> None:
    """Beyond net.core.rmem_max if the process may, else up to it."""
    try:
        receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_buffer_bytes)
    except PermissionError:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)


def _bind(receiver: socket.socket, group: str, port: int) -> None:
    try:
        receiver.bind((group, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            remedy = "another program holds the port without sharing it; stop it or change the port"
        else:
            remedy = "choose another group or port"
        raise NetworkSetupError(
            f"cannot bind {group}:{port} ({error.strerror}): {remedy}"
        ) from error


def _join(receiver: socket.socket, group: str, interface: str, source: str) -> None:
    addresses = socket.inet_aton(group) + socket.inet_aton(interface)
    option = socket.IP_ADD_MEMBERSHIP
    if source:
        addresses += socket.inet_aton(source)
        option = IP_ADD_SOURCE_MEMBERSHIP
    try:
        receiver.setsockopt(socket.IPPROTO_IP, option, addresses)
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise NetworkSetupError(
                f"no interface has the address {interface}; `ip -4 address` lists those of this host"
            ) from error
        raise NetworkSetupError(
            f"cannot join {group} on {interface} ({error.strerror}): does the interface do multicast?"
        ) from error


def check_interface_is_up(address: str) -> None:
    """Returns if the interface with this primary address is up or is unknown. Raises `NetworkSetupError`.

    The kernel lets a group be joined on an interface that is down, and then nothing is ever received.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("16s16x", name.encode()[:15])
            # An interface without IPv4 address answers with an error.
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(probe, SIOCGIFADDR, request)
                if socket.inet_ntoa(answer[20:24]) != address:
                    continue
                answer = fcntl.ioctl(probe, SIOCGIFFLAGS, request)
                (flags,) = struct.unpack_from("<H", answer, 16)
                if not flags & IFF_UP:
                    raise NetworkSetupError(
                        f"interface {name} ({address}) is down; `ip link set {name} up` starts it"
                    )


def kernel_drops_of(receiver: socket.socket) -> int:
    """Datagrams that the kernel dropped at this socket so far, mostly for want of buffer; 0 where it does not tell."""
    try:
        memory = receiver.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, _MEMINFO.size)
        return int(_MEMINFO.unpack(memory)[-1])
    except (OSError, struct.error):
        return 0
