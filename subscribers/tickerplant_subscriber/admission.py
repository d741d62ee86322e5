"""What may change the state of a subscriber, decided before anything does (pure: no I/O, the clock is an argument).

With keys every datagram must be signed under one of them and have been sent within the replay window of our clock.
What was recorded from the wire and is sent again within the window is authentic: sequences make it a duplicate, the
session fences it, and it is no sign of life, because only a datagram sent after all that was heard so far is one.

A recording that is played onto multicast says so in a flag, and counts only where that was asked for.

Without keys nobody can tell a forged datagram from a real one; only what no plant can have sent is refused.
"""

from typing import NamedTuple

from tickerplant.core.keyring import KeyRing
from tickerplant.core.wire import FLAG_SNAPSHOT, Header
from tickerplant.errors import AuthenticationError
from tickerplant.limits import (
    REPLAY_WINDOW_NS,
    SEQUENCE_AHEAD_MESSAGES,
    SESSION_AHEAD_MAX_NS,
)

_SECOND_NS = 1_000_000_000
_NEVER = (0, 0)


class Refusal(NamedTuple):
    """Why a datagram is dropped: a name to count it under, and a line for people."""

    error: str
    detail: str


class News(NamedTuple):
    """Whether a datagram was sent after all that was heard before, of its stream and of its stream on its line.

    `is_old`: something sent later was heard on that line before.
    """

    on_stream: bool
    on_line: bool
    is_old: bool


_REPLAYED = Refusal(
    "replayed", "a recording is played on these groups: accept_replay takes it, for tests only"
)
ALL_NEW = News(on_stream=True, on_line=True, is_old=False)


class Admission:
    """The checks of one subscriber. `key_ring` may be replaced at any time, by a newer one of the same feed."""

    def __init__(
        self,
        key_ring: KeyRing | None = None,
        replay_window_ns: int = REPLAY_WINDOW_NS,
        *,
        accept_replay: bool = False,
    ) -> None:
        """Without a key ring nothing is verified. `accept_replay`: recordings played onto the groups count too."""
        self.key_ring = key_ring
        self.accept_replay = accept_replay
        self.wall_step_ns = 0
        """How far the wall clock was set ahead (or, negative, back) of `now_ns` since the start."""
        self._replay_window_ns = replay_window_ns
        self._newest: dict[tuple[int, int], tuple[int, int]] = {}

    def refusal(self, datagram: bytes, header: Header, now_ns: int) -> Refusal | None:
        """Why a datagram from a line is refused; None if it may count."""
        if header.flags & FLAG_SNAPSHOT and not self.accept_replay:
            return _REPLAYED
        key_ring = self.key_ring
        if key_ring is None:
            return None
        try:
            key_ring.verify(datagram)
        except AuthenticationError as error:
            return Refusal(type(error).__name__, str(error))
        age_ns = now_ns + self.wall_step_ns - header.ts_send_ns
        if -self._replay_window_ns <= age_ns <= self._replay_window_ns:
            return None
        apart = f"{abs(age_ns) // _SECOND_NS} s {'ago' if age_ns > 0 else 'ahead'}"
        return Refusal(
            "outside_replay_window",
            f"sent {apart} by our clock: played back, or the clocks of the two hosts differ",
        )

    def sequence_refusal(
        self, header: Header, known: int, heard_ns: int | None, now_ns: int
    ) -> Refusal | None:
        """Why a sequence ahead of `known` is refused; None if it may count.

        `heard_ns` is when the stream was last heard, None if it never was in the datagram's session.
        """
        if self.key_ring is not None:
            return None
        if heard_ns is None:
            heard_ns = header.session - SESSION_AHEAD_MAX_NS
            known = 1
        elapsed_ns = max(0, now_ns - heard_ns) + _SECOND_NS
        if header.seq <= known + SEQUENCE_AHEAD_MESSAGES * elapsed_ns // _SECOND_NS:
            return None
        return Refusal("sequence_ahead", f"sequence {header.seq} after {known} so soon is forged")

    def news(self, stream_key: int, line: int, header: Header) -> News:
        """What an accepted datagram says about whether the plant lives; `stream_key` is unique for plant and stream.

        Without keys all is new: a forged time must not make the real ones look old.
        """
        if self.key_ring is None:
            return ALL_NEW
        sent = (header.session, header.ts_send_ns)
        newest = self._newest
        on_stream = sent > newest.get((stream_key, -1), _NEVER)
        if on_stream:
            newest[stream_key, -1] = sent
        newest_on_line = newest.get((stream_key, line), _NEVER)
        if sent > newest_on_line:
            newest[stream_key, line] = sent
        return News(on_stream, sent > newest_on_line, sent < newest_on_line)
