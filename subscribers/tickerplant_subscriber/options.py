"""Where a subscriber listens."""

import ipaddress
from collections.abc import Collection
from typing import Literal, TypedDict

import msgspec

from tickerplant.core.messages import Stream
from tickerplant.errors import ConfigurationError
from tickerplant.limits import (
    RECOVERY_ADDRESSES_MAX,
    REPLAY_WINDOW_NS,
    SUBSCRIBER_RECEIVE_BUFFER_BYTES,
)

RECOVERY_ADDRESS = "127.0.0.1:26410"
"""Where the plant's own recovery listens by default."""
_STREAM_COUNT = len(Stream)
_MILLISECOND_NS = 1_000_000


WhenSlow = Literal["block", "skip"]
"""What happens when the user's code is too slow."""


WhileRepairing = Literal["hold", "flow"]
"""What becomes of messages behind one that is missing and being fetched."""


class NetworkOptions(TypedDict, total=False):
    """The keyword arguments of `run`, `run_async` and `Subscriber` about the network; see `ReceiverOptions`."""

    interface: str
    interface_b: str
    group_a: str
    group_b: str
    port: int
    source: str
    source_b: str
    receive_buffer_bytes: int
    key_path: str
    replay_window_ms: int
    accept_replay: bool
    recovery: Collection[str]
    busy_poll: bool


class ReceiverOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Groups, port and interface; stream n (1 trade, 2 bbo, 3 ticker, 4 delta, 5 status) is group + n - 1.

    Raises `ConfigurationError` for values that cannot be right.
    """

    interface: str = "127.0.0.1"
    """IPv4 address of the interface on which line A is joined."""
    interface_b: str = ""
    """The same for line B; empty: as line A."""
    group_a: str = "239.192.77.1"
    """First multicast group of line A."""
    group_b: str = ""
    """First multicast group of line B, by default of the plant 239.192.78.1; empty: line A alone."""
    port: int = 26400
    """UDP port of every group."""
    source: str = ""
    """IPv4 address that line A is sent from, for a source-specific join; empty: any source."""
    source_b: str = ""
    """The same for line B; empty: as line A."""
    receive_buffer_bytes: int = SUBSCRIBER_RECEIVE_BUFFER_BYTES
    """Kernel receive buffer asked for, of each socket."""
    key_path: str = ""
    """File of datagram keys (`tickerplant key make`): what is not signed with one is refused; empty: no check."""
    replay_window_ms: int = REPLAY_WINDOW_NS // _MILLISECOND_NS
    """With keys: how far a datagram's time may be from our clock; bounds what can be recorded and sent again."""
    accept_replay: bool = False
    """Take a recording that is played onto the groups (`tickerplant replay --publish`) as if it were live."""
    recovery: Collection[str] = (RECOVERY_ADDRESS,)
    """Where recovery listens, as host:port; several of the same plant are tried in turn. Empty: do without."""
    busy_poll: bool = False
    """Never sleep: look for datagrams over and over, so that none waits for a core to wake up. Takes the whole of a
    core, which the process should have to itself; timers, recovery and signals are served as ever."""

    def __post_init__(self) -> None:
        """Checks every value."""
        for name in ("group_a", "group_b"):
            group = getattr(self, name)
            if group or name == "group_a":
                _check_group(name, group)
        for name in ("interface", "interface_b", "source", "source_b"):
            address = getattr(self, name)
            if address or name == "interface":
                _check_address(name, address)
        if not 0 < self.port <= 65_535:
            raise ConfigurationError(f"port = {self.port}: a UDP port is 1 to 65535")
        if self.receive_buffer_bytes <= 0:
            raise ConfigurationError(
                f"receive_buffer_bytes = {self.receive_buffer_bytes}: must be positive"
            )
        if self.replay_window_ms <= 0:
            raise ConfigurationError(
                f"replay_window_ms = {self.replay_window_ms}: must be positive"
            )
        if len(self.recovery_addresses) > RECOVERY_ADDRESSES_MAX:
            raise ConfigurationError(
                f"recovery = {len(self.recovery_addresses)} addresses: at most "
                f"{RECOVERY_ADDRESSES_MAX} are possible"
            )

    @property
    def recovery_addresses(self) -> tuple[tuple[str, int], ...]:
        """(host, port) of each recovery address."""
        if isinstance(self.recovery, str):
            raise ConfigurationError(
                f"recovery = {self.recovery!r} is one string; give a list: [{self.recovery!r}]"
            )
        return tuple(_parse_recovery(address) for address in self.recovery)

    @property
    def lines(self) -> tuple[tuple[str, str, str], ...]:
        """(first group, interface, source) of each line in use."""
        line_a = (self.group_a, self.interface, self.source)
        if not self.group_b:
            return (line_a,)
        interface_b, source_b = self.interface_b or self.interface, self.source_b or self.source
        return (line_a, (self.group_b, interface_b, source_b))


def check_when_slow(when_slow: str) -> None:
    """Returns if it is one of the two. Raises `ConfigurationError`."""
    if when_slow not in ("block", "skip"):
        raise ConfigurationError(f"when_slow = {when_slow!r}: choose 'block' or 'skip'")


def check_while_repairing(while_repairing: str) -> bool:
    """Whether messages flow on. Raises `ConfigurationError`."""
    if while_repairing not in ("hold", "flow"):
        raise ConfigurationError(f"while_repairing = {while_repairing!r}: choose 'hold' or 'flow'")
    return while_repairing == "flow"


def group_of(first_group: str, stream: int) -> str:
    """The multicast group of a stream, by the first group of its line."""
    return str(ipaddress.IPv4Address(first_group) + stream - 1)


def _parse_recovery(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if host and port.isascii() and port.isdigit() and 0 < int(port) <= 65_535:
        return host, int(port)
    raise ConfigurationError(
        f"recovery address {address!r}: write host:port, e.g. {RECOVERY_ADDRESS}"
    )


def _check_group(name: str, group: str) -> None:
    first = _check_address(name, group)
    if not (first.is_multicast and (first + _STREAM_COUNT - 1).is_multicast):
        raise ConfigurationError(
            f"{name} = {group!r} is not multicast; use a group such as 239.192.77.1"
        )


def _check_address(name: str, address: str) -> ipaddress.IPv4Address:
    try:
        return ipaddress.IPv4Address(address)
    except ValueError as error:
        raise ConfigurationError(
            f"{name} = {address!r} is not an IPv4 address; `ip -4 address` lists those of this host"
        ) from error
