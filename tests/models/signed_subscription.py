"""A subscription with keys and what it was sent, for tests of what it takes and what it refuses."""

from dataclasses import dataclass, field
from typing import Any

from tickerplant.core.keyring import KeyRing
from tickerplant.core.messages import AnyMessage, Stream, Trade
from tickerplant.core.wire import HeartbeatBody, Kind, encode_datagram, encode_heartbeat
from tickerplant_subscriber.admission import Admission
from tickerplant_subscriber.arbiter import Arbiter
from tickerplant_subscriber.events import DatagramsRefused, Event
from tickerplant_subscriber.stream_state import Messages, StreamState

NOW_NS = 1_800_000_000_000_000_000
SESSION = NOW_NS - 1_000_000_000
MS = 1_000_000
RING = KeyRing([(7, b"k" * 32), (8, b"l" * 32)])
OTHER = KeyRing([(7, b"x" * 32)])
TRADE, STATUS = Stream.TRADE, Stream.STATUS


@dataclass
class Subscription:
    """An arbiter with keys, and all that came out of it but refusals, which are counted apart."""

    ring: KeyRing | None = RING
    output: list[Any] = field(default_factory=list)
    refused: list[DatagramsRefused] = field(default_factory=list)
    now_ns: int = NOW_NS

    def __post_init__(self) -> None:
        self.arbiter = Arbiter(
            (TRADE, STATUS),
            self._deliver,
            self._tell,
            started_ns=0,
            admission=Admission(self.ring),
        )

    def _deliver(
        self, state: StreamState, first_seq: int, messages: Messages, sent_ns: int
    ) -> None:
        self.output += [
            (state.stream, state.session, first_seq + index, message, sent_ns)
            for index, message in enumerate(messages)
        ]

    def _tell(self, event: Event) -> None:
        if isinstance(event, DatagramsRefused):
            self.refused.append(event)
        else:
            self.output.append(event)

    def advance(self, now_ns: int) -> None:
        """Lets the time pass, timers included."""
        while (due_ns := self.arbiter.next_deadline_ns()) is not None and due_ns <= now_ns:
            self.arbiter.handle_timer(due_ns)
        self.now_ns = now_ns

    def receive(self, datagram: bytes, line: int = 0) -> None:
        self.arbiter.receive(line, datagram, self.now_ns)

    def refusals(self) -> dict[str, int]:
        """Datagrams refused so far, by reason."""
        counts: dict[str, int] = {}
        for (_, error), refusals in self.arbiter.refusals.items():
            counts[error] = counts.get(error, 0) + refusals.count
        return counts

    def seqs(self, stream: Stream = TRADE) -> list[int]:
        return [item[2] for item in self.output if isinstance(item, tuple) and item[0] == stream]

    def events(self, kind: type[Event]) -> list[Event]:
        return [item for item in self.output if isinstance(item, kind)]


def trade(
    seq: int,
    count: int = 1,
    *,
    sent_ns: int = NOW_NS,
    session: int = SESSION,
    ring: KeyRing | None = RING,
) -> bytes:
    """A datagram of trades."""
    messages: list[AnyMessage] = [
        Trade("KXTEST", seq + index, 0, 0, f"{seq + index}", 1, 1, 0) for index in range(count)
    ]
    datagram = encode_datagram(0, TRADE, session, seq, sent_ns, messages)
    return datagram if ring is None else ring.sign(datagram)


def heartbeat(
    next_seq: int,
    *,
    stream: Stream = TRADE,
    sent_ns: int = NOW_NS,
    session: int = SESSION,
    kind: Kind = Kind.HEARTBEAT,
    flags: int = 0,
    ring: KeyRing | None = RING,
) -> bytes:
    """A heartbeat or end of session."""
    datagram = encode_heartbeat(
        stream, session, next_seq, sent_ns, HeartbeatBody(next_seq - 1), kind, flags=flags
    )
    return datagram if ring is None else ring.sign(datagram)
