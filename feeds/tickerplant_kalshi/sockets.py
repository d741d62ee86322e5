"""Connected TCP sockets to the exchange, set up for short read batches and for finding dead peers (I/O)."""

import asyncio
import socket
from urllib.parse import urlsplit

from tickerplant.errors import ConfigurationError
from tickerplant.limits import (
    SOCKET_RECEIVE_BUFFER_BYTES,
    TCP_KEEPALIVE_IDLE_S,
    TCP_KEEPALIVE_INTERVAL_S,
    TCP_KEEPALIVE_PROBES,
    TCP_UNACKNOWLEDGED_MS,
)


def split_url(url: str) -> tuple[tuple[str, int], str, bool]:
    """((host, port), path to sign, whether it is TLS). Raises `ConfigurationError`."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise ConfigurationError(
            f"exchange.websocket_url {url!r:.200} is not a URL such as wss://HOST/trade-api/ws/v2"
        )
    is_secure = parts.scheme == "wss"
    return (parts.hostname, port or (443 if is_secure else 80)), parts.path or "/", is_secure


async def open_socket(host: str, port: int) -> socket.socket:
    """A connected socket to the first address of `host` that answers. Raises `OSError`."""
    loop = asyncio.get_running_loop()
    addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    problem = OSError(f"{host} has no address")
    for family, kind, protocol, _name, address in addresses:
        opened = socket.socket(family, kind, protocol)
        try:
            _set_options(opened)
            await loop.sock_connect(opened, address)
        except OSError as error:
            opened.close()
            problem = error
        except BaseException:
            opened.close()
            raise
        else:
            return opened
    raise problem


def _set_options(opened: socket.socket) -> None:
    """A small receive buffer keeps read batches short; the rest finds dead peers."""
    opened.setblocking(False)
    # Before connecting: the window scale is settled in the handshake.
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_RECEIVE_BUFFER_BYTES)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_NODELAY, 1),
        (socket.TCP_KEEPIDLE, TCP_KEEPALIVE_IDLE_S),
        (socket.TCP_KEEPINTVL, TCP_KEEPALIVE_INTERVAL_S),
        (socket.TCP_KEEPCNT, TCP_KEEPALIVE_PROBES),
        (socket.TCP_USER_TIMEOUT, TCP_UNACKNOWLEDGED_MS),
    ):
        opened.setsockopt(socket.IPPROTO_TCP, option, value)
