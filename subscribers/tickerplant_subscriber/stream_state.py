"""One sequenced stream of one plant, put together from its lines and from what recovery sends again (pure).

    expected          next sequence to deliver
    known             next sequence after the highest heard of, in data or in a heartbeat
    holes             what is missing in [expected, known), oldest first, each with its deadline
    buffered          decoded datagrams behind the first hole, by sequence

Without holes `expected == known` and nothing is buffered, unless the stream is `held`. With holes the first begins at
`expected`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from sortedcontainers import SortedDict

from tickerplant.core.messages import AnyMessage, GapCause, Stream
from tickerplant.core.packed_books import WholeBook
from tickerplant.limits import REORDER_DATAGRAMS_MAX

Messages = list[AnyMessage | None]
"""Decoded messages in sequence; None stands for a type this version does not know."""
NEVER_NS = 0x7FFF_FFFF_FFFF_FFFF
"""A deadline that does not come."""


class Stage(IntEnum):
    """What is being done about a hole."""

    WAITING = 0
    """Nothing yet: reordering or line B may fill it."""
    FILLING = 1
    """Asked of recovery datagram by datagram, over UDP."""
    RANGE = 2
    """To be asked of recovery as a range, over TCP."""
    SNAPSHOT = 3
    """Its messages are gone; a snapshot makes up for them."""
    LOST = 4
    """Given up: a gap as soon as it is the first."""


@dataclass(slots=True)
class Hole:
    """Missing sequences `from_seq`..`to_seq` (both included); at `deadline_ns` the next step is due.

    `attempts` are the requests of its stage so far; `limit_ns` is when the stage is given up.
    """

    from_seq: int
    to_seq: int
    seen_ns: int
    deadline_ns: int
    cause: GapCause
    stage: Stage = Stage.WAITING
    attempts: int = 0
    limit_ns: int = 0

    def restart(self, cause: GapCause, now_ns: int) -> None:
        """From the first stage again, which is over at once."""
        self.cause = cause
        self.stage = Stage.WAITING
        self.deadline_ns = now_ns
        self.attempts = 0
        self.limit_ns = 0

    def part(self, from_seq: int, to_seq: int) -> "Hole":
        """The same for a part of it."""
        return Hole(
            from_seq,
            to_seq,
            self.seen_ns,
            self.deadline_ns,
            self.cause,
            self.stage,
            self.attempts,
            self.limit_ns,
        )


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
    is_out: bool = False
    """Whether it was handed out already, ahead of what is missing before it."""


@dataclass(slots=True)
class Image:
    """A snapshot of the stream: its messages, and books that came whole, stand for everything before `next_seq`.

    While it is being fetched there are no messages, and its place is at `next_seq` or later.
    """

    next_seq: int
    messages: Messages | None = None
    books: Sequence[WholeBook] = ()


@dataclass(slots=True)
class ClosedSession:
    """Where we stood in a session when the stream left it; kept until the plant says where it ended."""

    session: int
    next_seq: int
    ended: bool


@dataclass(slots=True)
class StreamState:
    """Everything known about one stream of one plant.

    `join_cause` is the cause of a hole at the very start, which is `first_seq`. `join_seq` is the first sequence heard
    of after a late join (0 until then), else 1. `ahead` gathers what is heard of a newer session until this one is
    finished.
    """

    publisher: int
    partition: int
    stream: Stream
    session: int
    join_cause: GapCause
    lines: list[LineState]
    last_heard_ns: int
    join_seq: int = 1
    first_seq: int = 1
    expected: int = 1
    known: int = 1
    holes: list[Hole] = field(default_factory=list)
    buffered: "SortedDict[int, Buffered]" = field(default_factory=SortedDict)
    end_seq: int = 0
    end_heard_ns: int = 0
    flags: int = 0
    dead: bool = False
    ended: bool = False
    heard: bool = True
    """Whether a live datagram of this session was heard."""
    held: bool = False
    """Whether delivery waits for what recovery says of the session."""
    held_ns: int = 0
    """Since when delivery waits for that, or for a snapshot."""
    behind: bool = False
    """Whether subscribers were told that this stream is not up to date."""
    unhealed: bool = False
    """Whether only a snapshot can make right again what is kept from this stream."""
    heal_from_ns: int = 0
    """Before then nothing is asked for because a book was found to be wrong."""
    image: Image | None = None
    """A snapshot that waits for its place in the sequence."""
    final_seq: int = 0
    """Next sequence after the last of a session that is over, 0 if unknown or not over."""
    progress_ns: int = 0
    """When recovery last filled a part of a hole."""
    ahead: "StreamState | None" = None
    closed: ClosedSession | None = None
    messages: int = 0
    gaps: int = 0
    messages_lost: int = 0
    messages_healed: int = 0
    messages_repaired: int = 0
    messages_overtaken: int = 0
    reordered: int = 0
    ahead_seqs: dict[str, int] = field(default_factory=dict)
    """The highest sequence of each ticker that was handed out ahead of what is missing."""

    def begin_session(self, session: int, now_ns: int) -> None:
        """Leaves the current session, of which no hole may be open, for `session`, of which `ahead` may know.

        If it knows nothing, the silence counts from `now_ns`: the plant may have been away for long.
        """
        assert not self.holes
        assert not self.buffered
        self.closed = ClosedSession(self.session, self.expected, self.ended)
        ahead = self.ahead
        if ahead is None or ahead.session != session:
            ahead = StreamState(
                self.publisher,
                self.partition,
                self.stream,
                session,
                GapCause.NETWORK,
                [LineState(sent_before=0, last_heard_ns=now_ns) for _ in self.lines],
                now_ns,
                heard=False,
            )
        else:
            self.ahead = None
        self.session = session
        self.join_cause = ahead.join_cause
        self.lines = ahead.lines
        self.join_seq = ahead.join_seq
        self.first_seq = ahead.first_seq
        self.expected = ahead.expected
        self.known = ahead.known
        self.holes = ahead.holes
        self.buffered = ahead.buffered
        self.end_seq = ahead.end_seq
        self.end_heard_ns = ahead.end_heard_ns
        self.flags = ahead.flags
        self.heard = ahead.heard
        self.last_heard_ns = max(self.last_heard_ns, ahead.last_heard_ns)
        self.ended = False
        self.final_seq = 0
        # The new session tells everything anew: what the old one lacked needs no snapshot.
        self.unhealed = False
        self.image = None
        self.ahead_seqs = {}

    def messages_missing(self, line: LineState) -> int:
        """Messages of this session, since we joined, that a line did not bring, those under way included."""
        return max(0, self.known - self.join_seq - line.messages) if self.join_seq else 0

    def reveal(self, next_seq: int, now_ns: int, wait_ns: int, cause: GapCause) -> None:
        """Everything before `next_seq` was published; what of it is unknown becomes a hole."""
        if next_seq > self.known:
            if self.known == self.first_seq:
                cause = self.join_cause
            hole = Hole(self.known, next_seq - 1, now_ns, now_ns + wait_ns, cause)
            self.holes.append(hole)
            self.known = next_seq

    def hold_next(self, messages: Messages, ts_send_ns: int) -> None:
        """Takes the datagram that begins at `known`, behind a hole."""
        self.buffered[self.known] = Buffered(messages, ts_send_ns)
        self.known += len(messages)

    def hold(self, seq: int, messages: Messages, ts_send_ns: int) -> bool:
        """Takes a datagram at or behind the first hole; False if it brought nothing new.

        `reveal(seq)` must have been called before. Deliverable datagrams are then found by `take`.
        """
        end = seq + len(messages)
        new = end > self.known
        new = self.fill(seq, min(end, self.known)) > 0 or new
        if not new:
            return False
        self.known = max(self.known, end)
        skip = max(0, self.expected - seq)
        held = self.buffered.get(seq + skip)
        if held is not None and held.is_out:
            skip += len(held.messages)
            held = self.buffered.get(seq + skip)
        if skip < len(messages) and (held is None or len(held.messages) < len(messages) - skip):
            self.buffered[seq + skip] = Buffered(messages[skip:], ts_send_ns)
        return True

    def fill(self, seq: int, end: int) -> int:
        """Takes [seq, end) out of the holes; how many of them were missing."""
        if not self.holes or seq >= end or end <= self.holes[0].from_seq:
            return 0
        kept: list[Hole] = []
        filled = 0
        for hole in self.holes:
            if hole.to_seq < seq or hole.from_seq >= end:
                kept.append(hole)
                continue
            filled += min(hole.to_seq + 1, end) - max(hole.from_seq, seq)
            if hole.from_seq < seq:
                kept.append(hole.part(hole.from_seq, seq - 1))
            if hole.to_seq >= end:
                kept.append(hole.part(end, hole.to_seq))
        self.holes = kept
        return filled

    def split(self, seq: int) -> None:
        """Lets no hole reach across `seq`: what was one ends before it, and another begins there."""
        for index, hole in enumerate(self.holes):
            if hole.from_seq < seq <= hole.to_seq:
                self.holes[index : index + 1] = [
                    hole.part(hole.from_seq, seq - 1),
                    hole.part(seq, hole.to_seq),
                ]
                return

    def announce(self, next_seq: int, now_ns: int, wait_ns: int, cause: GapCause) -> None:
        """As `reveal`, with as few holes as can be: what there is no room for is one hole at the end."""
        last = self.holes[-1] if self.holes else None
        if last is not None and len(self.holes) >= REORDER_DATAGRAMS_MAX:
            self._forget_behind(last)
        growing = (Stage.WAITING, Stage.FILLING, Stage.RANGE)
        if last is not None and last.to_seq == self.known - 1 and last.stage in growing:
            last.to_seq = max(last.to_seq, next_seq - 1)
            self.known = last.to_seq + 1
        else:
            self.reveal(next_seq, now_ns, wait_ns, cause)

    def _forget_behind(self, last: Hole) -> None:
        while self.buffered and self.buffered.peekitem(-1)[0] > last.to_seq:
            self.buffered.popitem(-1)
        last.to_seq = self.known - 1

    def take(self, limit_seq: int = NEVER_NS) -> tuple[int, Buffered] | None:
        """The next deliverable datagram and its first sequence, never delivered before; None at a hole.

        Of a datagram that reaches across `limit_seq` the part before it is taken, and nothing from there on.
        """
        while self.buffered and self.expected < limit_seq:
            seq, held = self.buffered.peekitem(0)
            if seq > self.expected:
                return None
            del self.buffered[seq]
            skip = self.expected - seq
            if skip < len(held.messages):
                if skip:
                    held = Buffered(held.messages[skip:], held.ts_send_ns, held.is_out)
                first_seq = self.expected
                self.expected += len(held.messages)
                if self.expected > limit_seq:
                    held = self._put_back(first_seq, held, limit_seq)
                return first_seq, held
        return None

    def _put_back(self, first_seq: int, held: Buffered, limit_seq: int) -> Buffered:
        count = limit_seq - first_seq
        rest = Buffered(held.messages[count:], held.ts_send_ns, held.is_out)
        other = self.buffered.get(limit_seq)
        if other is None or len(other.messages) < len(rest.messages):
            self.buffered[limit_seq] = rest
        self.expected = limit_seq
        return Buffered(held.messages[:count], held.ts_send_ns, held.is_out)

    def give_up_first_hole(self, *, healed: bool = False) -> Hole:
        """Skips the oldest hole; the caller tells the gap and then takes what waited behind it."""
        hole = self.holes.pop(0)
        self.expected = hole.to_seq + 1
        count = hole.to_seq - hole.from_seq + 1
        self.gaps += 1
        self.messages_lost += count
        if healed:
            self.messages_healed += count
        return hole
