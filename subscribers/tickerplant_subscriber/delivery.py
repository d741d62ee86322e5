"""What comes out of a stream, in order: messages, snapshots at their place, and what never will come (pure)."""

from collections.abc import Callable

from tickerplant.core.messages import GapCause, Stream
from tickerplant_subscriber.events import (
    Event,
    Gap,
    SessionEnded,
    SnapshotApplied,
    StreamBehind,
    StreamCaughtUp,
)
from tickerplant_subscriber.stream_state import NEVER_NS, Image, Messages, Stage, StreamState

DeliverMessages = Callable[[StreamState, int, Messages, int], None]
"""(stream, sequence of the first message, messages, ts_send_ns)"""
TakeImage = Callable[[StreamState, Messages], None]
"""(stream, messages of a snapshot): they stand for everything before `stream.expected`"""
Tell = Callable[[Event], None]


class Delivery:
    """Base of the arbiter: one step after the other, each with the state brought up to date before it is told."""

    def __init__(self, deliver: DeliverMessages, tell: Tell, take_image: TakeImage | None) -> None:
        self._deliver_messages = deliver
        self._tell = tell
        self._take_image = take_image
        self._kernel_drops: dict[int, int] = {}
        self._kernel_drops_told: dict[int, int] = {}

    # --- hooks of the arbiter ---------------------------------------------------------------------

    def _status_delivered(self, state: StreamState, messages: Messages) -> None:
        raise NotImplementedError

    def _start_lost(self, state: StreamState) -> None:
        raise NotImplementedError

    def _leave_session(self, state: StreamState) -> None:
        raise NotImplementedError

    def _refresh(self, state: StreamState) -> None:
        raise NotImplementedError

    def _is_current(self, state: StreamState) -> bool:
        raise NotImplementedError

    def _wake_repair(self) -> None:
        raise NotImplementedError

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
            self._deliver(state, first_seq, held.messages, held.ts_send_ns)
            return True
        if state.holes and state.holes[0].stage is Stage.LOST:
            self._give_up_first_hole(state)
            return True
        if state.final_seq and state.expected >= state.final_seq:
            self._leave_session(state)
            return True
        return False

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
                len(image.messages),
                **_plant_of(state),
            )
        )
        self._take_image(state, image.messages)
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
