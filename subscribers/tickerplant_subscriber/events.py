"""What a subscriber is told besides the messages of the plant: gaps, sessions, streams, stale and live tickers.

All events are frozen structs; `publisher` and `partition` name the plant they are about. Encoded as JSON they carry
their type in the field `event`.
"""

from enum import IntEnum

import msgspec

UNKNOWN_SEQ = 0xFFFF_FFFF_FFFF_FFFF
"""`Gap.to_seq` where nobody can say how the session ended."""


class Line(IntEnum):
    """The paths on which the same datagrams arrive: two multicast lines, and R, what recovery sends again."""

    A = 0
    B = 1
    R = 2


class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag_field="event", tag=True):
    """Base of all events."""

    publisher: int = 1
    partition: int = 0


class Gap(Event, frozen=True, gc=False):
    """The messages `from_seq`..`to_seq` (both included) of a stream were lost; `cause` is a `GapCause`.

    `healed`: a snapshot that follows makes up for them, so that books and quotes are right again after it.
    """

    stream: int
    session: int
    from_seq: int
    to_seq: int
    cause: int
    healed: bool = False

    @property
    def message_count(self) -> int | None:
        """How many messages were lost; None if the end of the session is unknown."""
        return None if self.to_seq == UNKNOWN_SEQ else self.to_seq - self.from_seq + 1


class SessionChanged(Event, frozen=True, gc=False):
    """The plant runs a new session: sequences start at 1 and every book and quote is built anew.

    `previous_session` is 0 at the first session heard. Each stream finishes the old session for itself: messages of
    the old one that were still under way may follow on streams where the new one was not heard yet.
    """

    session: int
    previous_session: int


class SessionEnded(Event, frozen=True, gc=False):
    """The plant ended this stream in good order; nothing of its session is missing beyond the gaps told before."""

    stream: int
    session: int


class StreamDead(Event, frozen=True, gc=False):
    """Neither data nor heartbeat for `STREAM_DEAD_NS`; what is kept from this stream is stale."""

    stream: int
    session: int


class StreamAlive(Event, frozen=True, gc=False):
    """A dead stream is heard again; `contiguous`: nothing was published while it was silent."""

    stream: int
    session: int
    contiguous: bool


class StreamBehind(Event, frozen=True, gc=False):
    """Messages are missing and being fetched, or no live datagram was heard yet: what is kept from this stream is old.

    Until `StreamCaughtUp` its messages are history, handed out in order as they come; nothing of it may be traded on.
    """

    stream: int
    session: int


class StreamCaughtUp(Event, frozen=True, gc=False):
    """A stream that was behind is up to date again."""

    stream: int
    session: int


class SnapshotApplied(Event, frozen=True, gc=False):
    """A snapshot stands for all messages of the stream before `next_seq`.

    The next `message_count` messages of the stream that are handed out are its own, not part of the sequence.
    """

    stream: int
    session: int
    next_seq: int
    message_count: int


class Stale(Event, frozen=True, gc=False):
    """What `stream` (BBO or DELTA) says about `ticker` may be wrong from here on; `reason` is a `StaleReason`."""

    ticker: str
    stream: int
    reason: int


class Live(Event, frozen=True, gc=False):
    """What `stream` (BBO or DELTA) says about `ticker` is right from here on, until `Stale`."""

    ticker: str
    stream: int


class DatagramsRefused(Event, frozen=True, gc=False):
    """Datagrams on a line were dropped; told at most once a second for each `error`.

    `error` is the name of the wire error (`ForeignDatagramError`: another protocol on the group,
    `AuthenticationError`: not signed with one of our keys) or one of `outside_replay_window`, `session_ahead`,
    `session_unconfirmed`, `sequence_ahead`, `unexpected_stream`, `too_many_plants`. `count` is the total so far,
    `detail` the last one.
    """

    line: int
    error: str
    count: int
    detail: str


AnyEvent = (
    Gap
    | SessionChanged
    | SessionEnded
    | StreamDead
    | StreamAlive
    | StreamBehind
    | StreamCaughtUp
    | SnapshotApplied
    | Stale
    | Live
    | DatagramsRefused
)
"""Every event that a subscriber can be told."""
