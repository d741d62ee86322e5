"""Requests for single holes over UDP (pure): what was asked, when to ask again, and what the replies mean."""

from collections.abc import Callable
from dataclasses import dataclass

from tickerplant.core.recovery_wire import GapFill, GapFillKind, RecoveryCode, encode_gap_fill
from tickerplant.limits import (
    GAP_FILL_AT_NS,
    GAP_FILL_IN_FLIGHT,
    GAP_FILL_JITTER_PERCENT,
    GAP_FILL_LAST_WAIT_NS,
)
from tickerplant_subscriber.stream_state import Hole, Stage, StreamState

_REQUEST_IDS = 1 << 32


@dataclass(slots=True)
class Asked:
    """A request that waits for its reply."""

    state: StreamState
    session: int
    from_seq: int
    to_seq: int
    address: int
    sent_ns: int


class GapRequests:
    """The requests in flight. `random_bytes` makes jitter and ids that a stranger cannot guess."""

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self.sent = 0
        self.replies: dict[str, int] = {}
        """Replies by the name of their code."""
        self._random_bytes = random_bytes
        self._asked: dict[int, Asked] = {}

    def ask(
        self,
        state: StreamState,
        hole: Hole,
        address: int,
        key: tuple[int, bytes] | None,
        now_ns: int,
    ) -> bytes | None:
        """The request for a hole, which is due again when it has to be repeated; None if too many are in flight."""
        if len(self._asked) >= GAP_FILL_IN_FLIGHT:
            self._forget_lost(now_ns)
            if len(self._asked) >= GAP_FILL_IN_FLIGHT:
                return None
        request_id = int.from_bytes(self._random_bytes(4), "little") % _REQUEST_IDS
        self._asked[request_id] = Asked(
            state, state.session, hole.from_seq, hole.to_seq, address, now_ns
        )
        hole.deadline_ns = now_ns + self._wait_ns(hole.attempts)
        hole.attempts += 1
        self.sent += 1
        request = GapFill(
            GapFillKind.REQUEST,
            state.stream,
            0,
            request_id,
            state.publisher,
            state.partition,
            state.session,
            hole.from_seq,
            hole.to_seq,
        )
        return encode_gap_fill(request, key)

    def _wait_ns(self, attempt: int) -> int:
        """From one request to the next, with jitter."""
        wait_ns = GAP_FILL_LAST_WAIT_NS
        if attempt + 1 < len(GAP_FILL_AT_NS):
            wait_ns = GAP_FILL_AT_NS[attempt + 1] - GAP_FILL_AT_NS[attempt]
        share = self._random_bytes(1)[0]
        return wait_ns + wait_ns * GAP_FILL_JITTER_PERCENT * share // 25_500

    def _forget_lost(self, now_ns: int) -> None:
        """Requests that are older than the longest wait get no reply any more."""
        oldest_ns = now_ns - GAP_FILL_AT_NS[-1]
        self._asked = {
            request_id: asked
            for request_id, asked in self._asked.items()
            if asked.sent_ns > oldest_ns
        }

    def take_reply(self, reply: GapFill, address: int) -> Asked | None:
        """What a reply is the answer to; None if to nothing that was asked there."""
        asked = self._asked.get(reply.request_id)
        if asked is None or asked.address != address or reply.kind != GapFillKind.REPLY:
            return None
        state = asked.state
        if (reply.publisher, reply.partition, reply.stream, reply.session) != (
            state.publisher,
            state.partition,
            state.stream,
            asked.session,
        ):
            return None
        del self._asked[reply.request_id]
        name = code_of(reply.code).name.lower()
        self.replies[name] = self.replies.get(name, 0) + 1
        return asked

    def forget_address(self, address: int) -> list[Asked]:
        """Nobody listens there: what was asked there will not be answered."""
        lost = [asked for asked in self._asked.values() if asked.address == address]
        self._asked = {
            request_id: asked
            for request_id, asked in self._asked.items()
            if asked.address != address
        }
        return lost


def code_of(code: int) -> RecoveryCode:
    """Codes of a newer recovery read as UNAVAILABLE."""
    try:
        return RecoveryCode(code)
    except ValueError:
        return RecoveryCode.UNAVAILABLE


def holes_of(asked: Asked) -> list[Hole]:
    """What is still missing of what was asked."""
    if asked.state.session != asked.session:
        return []
    return [
        hole
        for hole in asked.state.holes
        if hole.stage is Stage.FILLING
        and hole.to_seq >= asked.from_seq
        and hole.from_seq <= asked.to_seq
    ]
