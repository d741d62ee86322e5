"""One sequenced stream of one plant, put together from its lines (pure).

    expected          next sequence to deliver
    known             next sequence after the highest heard of, in data or in a heartbeat
    holes             what is missing in [expected, known), oldest first, each with its deadline
    buffered          decoded datagrams behind the first hole, by sequence

Without holes `expected == known` and nothing is buffered. With holes the first begins at `expected`.
"""

from dataclasses import dataclass, field

from sortedcontainers import SortedDict

from tickerplant.core.messages import AnyMessage, GapCause, Stream

Messages = list[AnyMessage | None]
"""Decoded messages in sequence; None stands for a type this version does not know."""


@dataclass(slots=True)
class Hole:
    """Missing sequences `from_seq`..`to_seq` (both included); a gap unless filled by `deadline_ns`."""

    from_seq: int
    to_seq: int
    seen_ns: int
    deadline_ns: int
    cause: GapCause


@dataclass(slots=True)
class LineState:
    """What one line brought of one stream in the current session.

    `wins` are datagrams that this line brought first. `lost` compares the plant's own count of datagrams sent, told
    in heartbeats, with `datagrams`; `sent_before` is what it had sent before we could hear it. A stream that is never
    quiet sends no heartbeats: then `messages` against `StreamState.known` tells (`messages_missing`).
    """

    datagrams: int = 0
    messages: int = 0
    wins: int = 0
    duplicates: int = 0
    heartbeats: int = 0
    lost: int = 0
    sent_before: int | None = None
    last_heard_ns: int = 0

    def count_loss(self, datagrams_sent: int) -> None:
        """Compares with the plant's own count."""
        if self.sent_before is None:
            self.sent_before = max(0, datagrams_sent - self.datagrams)
        self.lost = max(0, datagrams_sent - self.sent_before - self.datagrams)


@dataclass(slots=True)
class Buffered:
    """A decoded datagram that waits behind a hole."""

    messages: Messages
    ts_send_ns: int


@dataclass(slots=True)
class ClosedSession:
    """Where we stood in a session when the stream left it; kept until the plant says where it ended."""

    session: int
    next_seq: int
    ended: bool


@dataclass(slots=True)
class StreamState:
    """Everything known about one stream of one plant.

    `join_cause` is the cause of a hole at the very start; `join_seq` the first sequence heard of after a late join (0
    until then), else 1.
    """

    publisher: int
    partition: int
    stream: Stream
    session: int
    join_cause: GapCause
    lines: list[LineState]
    last_heard_ns: int
    join_seq: int = 1
    expected: int = 1
    known: int = 1
    holes: list[Hole] = field(default_factory=list)
    buffered: "SortedDict[int, Buffered]" = field(default_factory=SortedDict)
    dead: bool = False
    ended: bool = False
    end_seq: int = 0
    closed: ClosedSession | None = None
    flags: int = 0
    messages: int = 0
    gaps: int = 0
    messages_lost: int = 0
    reordered: int = 0

    def begin_session(self, session: int) -> None:
        """Leaves the current session, of which no hole may be open, and expects sequence 1 of `session`."""
        assert not self.holes
        assert not self.buffered
        self.closed = ClosedSession(self.session, self.expected, self.ended)
        self.session = session
        self.join_seq = self.expected = self.known = 1
        self.ended = False
        self.end_seq = 0
        self.join_cause = GapCause.NETWORK
        self.lines = [
            LineState(sent_before=0, last_heard_ns=line.last_heard_ns) for line in self.lines
        ]

    def messages_missing(self, line: LineState) -> int:
        """Messages of this session, since we joined, that a line did not bring, those under way included."""
        return max(0, self.known - self.join_seq - line.messages) if self.join_seq else 0

    def reveal(self, next_seq: int, now_ns: int, wait_ns: int, cause: GapCause) -> None:
        """Everything before `next_seq` was published; what of it is unknown becomes a hole."""
        if next_seq > self.known:
            if self.known == 1:
                cause = self.join_cause
            hole = Hole(self.known, next_seq - 1, now_ns, now_ns + wait_ns, cause)
            self.holes.append(hole)
            self.known = next_seq

    def hold(self, seq: int, messages: Messages, ts_send_ns: int) -> bool:
        """Takes a datagram at or behind the first hole; False if it brought nothing new.

        `reveal(seq)` must have been called before. Deliverable datagrams are then found by `take`.
        """
        end = seq + len(messages)
        new = end > self.known
        new = self._fill(seq, min(end, self.known)) or new
        if not new:
            return False
        self.known = max(self.known, end)
        skip = max(0, self.expected - seq)
        held = self.buffered.get(seq + skip)
        if held is None or len(held.messages) < len(messages) - skip:
            self.buffered[seq + skip] = Buffered(messages[skip:], ts_send_ns)
        return True

    def _fill(self, seq: int, end: int) -> bool:
        """Takes [seq, end) out of the holes; whether any of it was missing."""
        if not self.holes or seq >= end or end <= self.holes[0].from_seq:
            return False
        kept: list[Hole] = []
        filled = False
        for hole in self.holes:
            if hole.to_seq < seq or hole.from_seq >= end:
                kept.append(hole)
                continue
            filled = True
            if hole.from_seq < seq:
                kept.append(
                    Hole(hole.from_seq, seq - 1, hole.seen_ns, hole.deadline_ns, hole.cause)
                )
            if hole.to_seq >= end:
                kept.append(Hole(end, hole.to_seq, hole.seen_ns, hole.deadline_ns, hole.cause))
        self.holes = kept
        return filled

    def take(self) -> tuple[int, Buffered] | None:
        """The next deliverable datagram and its first sequence, never delivered before; None at a hole."""
        while self.buffered:
            seq, held = self.buffered.peekitem(0)
            if seq > self.expected:
                return None
            del self.buffered[seq]
            skip = self.expected - seq
            if skip < len(held.messages):
                if skip:
                    held = Buffered(held.messages[skip:], held.ts_send_ns)
                first_seq = self.expected
                self.expected += len(held.messages)
                return first_seq, held
        return None

    def give_up_first_hole(self) -> Hole:
        """Skips the oldest hole; the caller tells the gap and then takes what waited behind it."""
        hole = self.holes.pop(0)
        self.expected = hole.to_seq + 1
        self.gaps += 1
        self.messages_lost += hole.to_seq - hole.from_seq + 1
        return hole
