"""Whether the plant is ready, and how systemd is told (sd_notify, one datagram to $NOTIFY_SOCKET)."""

import os
import socket
from collections.abc import Mapping
from typing import NamedTuple

from tickerplant.core.messages import FeedPhase


class Readiness(NamedTuple):
    """What `/ready` answers."""

    is_ready: bool
    phase: str
    reason: str
    """Why not ready, in words; empty if ready."""


def readiness_of(phase: int, cause: str = "") -> Readiness:
    """The readiness of a feed in `phase` (a `FeedPhase`) for the given cause."""
    try:
        name = FeedPhase(phase).name.lower()
    except ValueError:
        name = str(phase)
    if phase == FeedPhase.READY:
        return Readiness(is_ready=True, phase=name, reason="")
    return Readiness(is_ready=False, phase=name, reason=cause or f"the feed is {name}")


class SystemdNotifier:
    """Tells systemd how the service is. Without systemd, or if it does not listen, every call does nothing."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        """Read $NOTIFY_SOCKET, $WATCHDOG_USEC and $WATCHDOG_PID."""
        environ = os.environ if environ is None else environ
        self.failures = 0
        path = environ.get("NOTIFY_SOCKET", "")
        # "@" is systemd's spelling of a name in the abstract namespace.
        self._address = f"\0{path[1:]}" if path.startswith("@") else path
        self._socket: socket.socket | None = None
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
        self.watchdog_interval_ns = self._half_watchdog_ns(environ)
        """How often to call `watchdog()`: half of what systemd allows; 0 if it watches nothing."""

    def ready(self, status: str = "") -> bool:
        """The service is up; `status` is shown by `systemctl status`."""
        return self._send("READY=1", status)

    def watchdog(self) -> bool:
        """The service still works."""
        return self._send("WATCHDOG=1", "")

    def status(self, status: str) -> bool:
        """What the service is doing, for `systemctl status`."""
        return self._send("", status)

    def stopping(self) -> bool:
        """The service is on its way down."""
        return self._send("STOPPING=1", "")

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, state: str, status: str) -> bool:
        """True if the datagram was handed over."""
        if self._socket is None:
            return False
        words = f"STATUS={' '.join(status.split())}" if status else ""
        text = "\n".join(part for part in (state, words) if part)
        try:
            self._socket.sendto(text.encode(), self._address)
        except OSError:
            self.failures += 1
            return False
        return True

    @staticmethod
    def _half_watchdog_ns(environ: Mapping[str, str]) -> int:
        usec = environ.get("WATCHDOG_USEC", "")
        pid = environ.get("WATCHDOG_PID", "")
        if not usec.isdecimal() or (pid and pid != str(os.getpid())):
            return 0
        return int(usec) * 1_000 // 2
