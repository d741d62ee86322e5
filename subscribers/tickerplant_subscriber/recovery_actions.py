"""What a recovery client wants done, and how recovery of each plant is reached (pure)."""

from dataclasses import dataclass, field
from typing import NamedTuple

from tickerplant.core.packed_books import WholeBook
from tickerplant.limits import RECOVERY_BACKOFF_BASE_NS, RECOVERY_BACKOFF_CAP_NS
from tickerplant_subscriber.dialogue import Dialogue
from tickerplant_subscriber.plant_state import PlantKey
from tickerplant_subscriber.stream_state import Messages, StreamState


class SendDatagram(NamedTuple):
    """Send over the UDP socket of an address, which is its index in the list of recovery addresses."""

    address: int
    datagram: bytes


class Connect(NamedTuple):
    """Open a TCP connection, to be called `connection` from now on."""

    connection: int
    address: int


class Write(NamedTuple):
    """Write to a connection."""

    connection: int
    data: bytes


class Close(NamedTuple):
    """Close a connection; nothing more of it is wanted."""

    connection: int


Action = SendDatagram | Connect | Write | Close


class Asked(NamedTuple):
    """A part of a range that was asked for: `until_seq` is not included."""

    state: StreamState
    session: int
    from_seq: int
    until_seq: int


@dataclass(slots=True)
class Talk:
    """A connection and what it is for: ranges (`asked`), or hellos and snapshots (`waiting`, `images`, `books`).

    `progress` counts datagrams of a range that filled something, or messages of a snapshot.
    """

    dialogue: Dialogue
    plant: PlantKey
    slot: "Slot"
    is_range: bool
    progress: int = 0
    asked: list[Asked] = field(default_factory=list)
    waiting: list[StreamState] = field(default_factory=list)
    images: dict[int, Messages] = field(default_factory=dict)
    books: list[WholeBook] = field(default_factory=list)


@dataclass(slots=True)
class Slot:
    """At most one connection at a time, and when the next may be opened."""

    talk: Talk | None = None
    failures: int = 0
    retry_ns: int = 0

    def succeed(self, now_ns: int) -> None:
        """The next one may follow at once."""
        self.talk = None
        self.failures = 0
        self.retry_ns = now_ns

    def fail(self, now_ns: int, address_count: int, jitter: int) -> None:
        """Each address once without a wait, then with a growing one; `jitter` is 0 to 255."""
        self.talk = None
        self.failures += 1
        rounds = self.failures // address_count
        if not rounds:
            self.retry_ns = now_ns
            return
        wait_ns = min(RECOVERY_BACKOFF_BASE_NS << min(rounds - 1, 32), RECOVERY_BACKOFF_CAP_NS)
        self.retry_ns = now_ns + wait_ns * (768 + jitter) // 1024


@dataclass(slots=True)
class PlantRepair:
    """How recovery of one plant is reached. `is_reachable` is None until that is known."""

    first_ns: int
    is_reachable: bool | None = None
    answered_ns: int = 0
    snapshot_ns: int = 0
    """When the last message of a snapshot came."""
    address: int = 0
    ranges: Slot = field(default_factory=Slot)
    others: Slot = field(default_factory=Slot)

    @property
    def slots(self) -> tuple[Slot, Slot]:
        """Both."""
        return self.ranges, self.others
