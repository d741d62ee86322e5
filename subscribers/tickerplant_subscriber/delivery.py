"""What comes out of a stream, in order: messages, snapshots at their place, and what never will come (pure)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from tickerplant.core.messages import GapCause, Stream
from tickerplant.core.packed_books import WholeBook
from tickerplant_subscriber.events import (
    Event,
    Gap,
    SessionEnded,
    SnapshotApplied,
    StreamBehind,
    StreamCaughtUp,
)
from tickerplant_subscriber.stream_state import NEVER_NS, Image, Messages, Stage, StreamState

FLOWING = frozenset((Stream.TRADE, Stream.BBO, Stream.TICKER))
"""Streams whose messages need none before them, so that they may be handed out ahead of what is missing."""
DeliverMessages = Callable[[StreamState, int, Messages, int], None]
"""(stream, sequence of the first message, messages, ts_send_ns)"""
TakeImage = Callable[[StreamState, Messages, Sequence[WholeBook]], None]
"""(stream, messages of a snapshot, its books that came whole): they stand for everything before `stream.expected`"""
Tell = Callable[[Event], None]


class Delivery(ABC):
    """Base of the arbiter: one step after the other, each with the state brought up to date before it is told."""

    def __init__(self, deliver: DeliverMessages, tell: Tell, take_image: TakeImage | None) -> None:
        self._deliver_messages = deliver
        self._tell = tell
        self._take_image = take_image
        self.is_flowing = False
        """Whether messages of `FLOWING` streams go on while something before them is being repaired."""
        self._kernel_drops: dict[int, int] = {}
        self._kernel_drops_told: dict[int, int] = {}

    # --- hooks of the arbiter ---------------------------------------------------------------------

    @abstractmethod
    def _status_delivered(self, state: StreamState, messages: Messages) -> None:
        """Called before messages of the status stream are handed out."""

    @abstractmethod
    def _start_lost(self, state: StreamState) -> None:
        """Called when the start of a status stream was given up."""

    @abstractmethod
    def _leave_session(self, state: StreamState) -> None:
        """Called when a stream has everything of a session that is over."""

    @abstractmethod
    def _refresh(self, state: StreamState) -> None:
        """Called after each change of a stream."""

    @abstractmethod
    def _is_current(self, state: StreamState) -> bool:
        """Whether the stream is of the session that is followed now."""

    @abstractmethod
    def _wake_repair(self) -> None:
        """Called when something needs a snapshot."""

    # --- steps ------------------------------------------------------------------------------------

    def _deliver(
        self, state: StreamState, first_seq: int, messages: Messages, ts_send_ns: int
    ) -> None:
        state.messages += len(messages)
        if state.stream is Stream.STATUS:
            self._status_delivered(state, messages)
        self._deliver_messages(state, first_seq, messages, ts_send_ns)

    def _go_on(self, state: StreamState) -> None:
        """Hands out and tells whatever is due on a stream."""
        while self._step(state):
            pass
        if self._is_flowing_on(state):
            self._flow(state)
        elif state.ahead_seqs and not state.holes:
            state.ahead_seqs = {}
        if state.end_seq and not state.ended and state.expected == state.end_seq == state.known:
            state.ended = True
            self._tell(SessionEnded(state.stream, state.session, **_plant_of(state)))
        if self._is_up_to_date(state):
            if state.behind:
                state.behind = False
                self._tell(StreamCaughtUp(state.stream, state.session, **_plant_of(state)))
        elif not state.heard and self._take_image is not None:
            self._fall_behind(state)
        self._refresh(state)

    def _step(self, state: StreamState) -> bool:
        """One step; False if nothing is left to do."""
        if state.held:
            return False
        image = state.image
        if image is not None and state.expected >= image.next_seq:
            return self._apply_image(state, image)
        taken = state.take(NEVER_NS if image is None else image.next_seq)
        if taken is not None:
            first_seq, held = taken
            if not held.is_out:
                messages = self._without_overtaken(state, first_seq, held.messages)
                self._deliver(state, first_seq, messages, held.ts_send_ns)
            return True
        if state.holes and state.holes[0].stage is Stage.LOST:
            self._give_up_first_hole(state)
            return True
        if state.final_seq and state.expected >= state.final_seq:
            self._leave_session(state)
            return True
        return False

    # --- ahead of what is missing -----------------------------------------------------------------

    def _is_flowing_on(self, state: StreamState) -> bool:
        """Whether the stream goes on behind its holes; what is new within the wait for reordering does not count."""
        return (
            self.is_flowing
            and state.stream in FLOWING
            and bool(state.holes)
            and state.holes[0].stage is not Stage.WAITING
            and not state.held
            and state.image is None
            and self._is_current(state)
        )

    def _flow(self, state: StreamState) -> None:
        end = state.expected
        for seq, held in list(state.buffered.items()):
            is_apart, end = seq >= end, max(end, seq + len(held.messages))
            if held.is_out or not is_apart:
                continue
            held.is_out = True
            messages = self._without_overtaken(state, seq, held.messages)
            for index, message in enumerate(messages):
                if message is not None:
                    ahead_seq = max(seq + index, state.ahead_seqs.get(message.ticker, 0))
                    state.ahead_seqs[message.ticker] = ahead_seq
            self._deliver(state, seq, messages, held.ts_send_ns)

    def _without_overtaken(
        self, state: StreamState, first_seq: int, messages: Messages
    ) -> Messages:
        """A quote or ticker of which a newer one was handed out is history; a trade is a trade."""
        ahead = state.ahead_seqs
        if not ahead or state.stream is Stream.TRADE:
            return messages
        kept = [
            None if each is not None and ahead.get(each.ticker, 0) > first_seq + index else each
            for index, each in enumerate(messages)
        ]
        state.messages_overtaken += kept.count(None) - messages.count(None)
        return kept

    def _is_up_to_date(self, state: StreamState) -> bool:
        return (
            state.heard
            and not state.held
            and not state.holes
            and state.image is None
            and self._is_current(state)
        )

    def _fall_behind(self, state: StreamState) -> None:
        """Tells once that what is kept from the stream is old."""
        if not state.behind:
            state.behind = True
            self._tell(StreamBehind(state.stream, state.session, **_plant_of(state)))

    def _apply_image(self, state: StreamState, image: Image) -> bool:
        """Hands out a snapshot at its place; False if it is still being fetched."""
        if image.messages is None:
            return False
        assert self._take_image is not None
        assert image.next_seq == state.expected
        state.image = None
        state.unhealed = any(hole.stage is Stage.SNAPSHOT for hole in state.holes)
        self._tell(
            SnapshotApplied(
                state.stream,
                state.session,
                image.next_seq,
                len(image.messages) + len(image.books),
                **_plant_of(state),
            )
        )
        self._take_image(state, image.messages, image.books)
        return True

    def _give_up_first_hole(self, state: StreamState) -> None:
        healed = False
        if state.image is not None and state.image.messages is not None:
            state.split(state.image.next_seq)
            healed = state.holes[0].to_seq < state.image.next_seq
        hole = state.give_up_first_hole(healed=healed)
        cause = hole.cause
        drops = self._kernel_drops.get(state.stream, 0)
        if cause is GapCause.NETWORK and drops > self._kernel_drops_told.get(state.stream, 0):
            self._kernel_drops_told[state.stream] = drops
            cause = GapCause.KERNEL_DROP
        if not healed:
            self._note_unhealed(state)
        self._tell_gap(state, state.session, hole.from_seq, hole.to_seq, cause, healed=healed)
        if state.stream is Stream.STATUS and hole.from_seq == 1:
            self._start_lost(state)

    def _note_unhealed(self, state: StreamState) -> None:
        """Trades cannot be made up for; everything else a snapshot can put right."""
        state.unhealed = state.stream is not Stream.TRADE and self._take_image is not None
        self._wake_repair()

    def _tell_gap(
        self,
        state: StreamState,
        session: int,
        from_seq: int,
        to_seq: int,
        cause: GapCause,
        *,
        healed: bool = False,
    ) -> None:
        self._tell(
            Gap(
                state.stream,
                session,
                from_seq,
                to_seq,
                cause,
                healed=healed,
                **_plant_of(state),
            )
        )


def _plant_of(state: StreamState) -> dict[str, int]:
    return {"publisher": state.publisher, "partition": state.partition}
