"""What recovery sends, and what is held back for it (pure)."""

from collections.abc import Sequence

from tickerplant.core.messages import GapCause
from tickerplant.core.packed_books import WholeBook
from tickerplant.core.wire import Header, decode_body, decode_header
from tickerplant.errors import WireError
from tickerplant.limits import (
    BOOK_HEAL_INTERVAL_NS,
    REORDER_DATAGRAMS_MAX,
    REORDER_WAIT_NS,
    RESUME_PATIENCE_NS,
)
from tickerplant_subscriber.events import Line, SessionChanged
from tickerplant_subscriber.plant_state import PlantState
from tickerplant_subscriber.position import Position
from tickerplant_subscriber.recovery_actions import Asked
from tickerplant_subscriber.session_tracker import SessionTracker
from tickerplant_subscriber.stream_state import Image, Messages, Stage, StreamState


class RepairIntake(SessionTracker):
    """The part of the arbiter that takes repairs, snapshots and positions."""

    unrequested_datagrams = 0
    """Datagrams sent again that nobody had asked for, or no longer needed."""

    def receive_again(self, datagram: bytes, now_ns: int) -> bool:
        """Takes a datagram that recovery sent again (line R); whether it filled a hole that was asked for."""
        try:
            header = decode_header(datagram)
            if self.admission.key_ring is not None:
                self.admission.key_ring.verify(datagram)
            if header.kind:
                return False
            state = self._repaired_stream(header)
            if state is None:
                self.unrequested_datagrams += 1
                return False
            messages = decode_body(datagram, header)
        except WireError as error:
            self._refuse(Line.R, type(error).__name__, str(error), now_ns)
            return False
        self._now_ns = now_ns
        end = min(header.seq + header.message_count, state.known)
        before = sum(hole.to_seq - hole.from_seq + 1 for hole in state.holes)
        if not state.hold(header.seq, messages[: end - header.seq], header.ts_send_ns):
            return False
        after = sum(hole.to_seq - hole.from_seq + 1 for hole in state.holes)
        state.messages_repaired += before - after
        state.progress_ns = now_ns
        self._go_on(state)
        return True

    def _repaired_stream(self, header: Header) -> StreamState | None:
        """The stream that has asked for a part of this datagram."""
        plant = self.plants.get((header.publisher, header.partition))
        state = None if plant is None else plant.streams.get(header.stream)
        if state is None or state.session != header.session:
            return None
        end = header.seq + header.message_count
        if len(state.buffered) >= REORDER_DATAGRAMS_MAX and header.seq > state.expected:
            return None
        for hole in state.holes:
            if hole.from_seq >= end:
                break
            if hole.to_seq >= header.seq and hole.stage in (Stage.FILLING, Stage.RANGE):
                return state
        return None

    def place_image(
        self,
        state: StreamState,
        next_seq: int,
        messages: Messages,
        now_ns: int,
        books: Sequence[WholeBook] = (),
    ) -> bool:
        """Takes a snapshot of a stream in its current session; False if its place is not where it was expected."""
        if state.image is None or next_seq < state.image.next_seq:
            return False
        self._now_ns = now_ns
        state.image = Image(next_seq, messages, books)
        state.reveal(next_seq, now_ns, REORDER_WAIT_NS, GapCause.NETWORK)
        state.join_cause = GapCause.NETWORK
        state.split(next_seq)
        is_joining = not self.plant_of(state).resumed
        for hole in state.holes:
            joined_late = is_joining and hole.cause is GapCause.LATE_JOIN
            if hole.to_seq < next_seq:
                if hole.stage is Stage.SNAPSHOT or joined_late:
                    hole.stage = Stage.LOST
            elif joined_late:
                # Between the snapshot and the first that was heard: a loss like any other.
                hole.restart(GapCause.NETWORK, now_ns)
        self._go_on(state)
        return True

    def proceed(self, state: StreamState, now_ns: int) -> None:
        """Goes on after what is known of the holes of a stream has changed."""
        self._now_ns = now_ns
        self._go_on(state)

    def skip_to_oldest(self, state: StreamState, oldest_seq: int, now_ns: int) -> None:
        """Recovery has nothing before `oldest_seq`."""
        self._now_ns = now_ns
        self.note_oldest(state, oldest_seq)
        self._go_on(state)

    def note_missing(self, asked: Asked, cause: GapCause, now_ns: int) -> None:
        """Recovery has been asked for a range, and does not have what is still missing of it."""
        self._now_ns = now_ns
        state = asked.state
        if state.session != asked.session:
            return
        state.split(asked.until_seq)
        for hole in state.holes:
            inside = asked.from_seq <= hole.from_seq and hole.to_seq < asked.until_seq
            if inside and hole.stage is Stage.RANGE:
                self.note_unfillable(state, hole, cause)
        self._go_on(state)

    def note_published(self, state: StreamState, next_seq: int, now_ns: int) -> None:
        """A late joiner has heard nothing of a stream yet; this is how far it had come."""
        self._now_ns = now_ns
        if state.join_cause is GapCause.LATE_JOIN and state.known == state.first_seq:
            state.reveal(next_seq, now_ns, 0, GapCause.LATE_JOIN)
            state.join_cause = GapCause.NETWORK

    def heal(self, state: StreamState) -> None:
        """What is kept from a stream is wrong though nothing of it is missing: a snapshot puts it right.

        There is one in `BOOK_HEAL_INTERVAL_NS` at most; whoever finds it still wrong later asks again.
        """
        now_ns = state.last_heard_ns
        is_wanted = not state.unhealed and self._is_current(state) and now_ns >= state.heal_from_ns
        if is_wanted and self.repair is not None:
            state.heal_from_ns = now_ns + BOOK_HEAL_INTERVAL_NS
            self._note_unhealed(state)

    def expect_image(self, state: StreamState, now_ns: int) -> int:
        """A snapshot is about to be asked for: nothing is delivered past its place, which is not before this."""
        state.image = Image(state.known)
        state.held_ns = now_ns
        self._refresh(state)
        return state.known

    def forget_image(self, state: StreamState, now_ns: int) -> None:
        """The snapshot does not come."""
        self._now_ns = now_ns
        if state.image is not None and state.image.messages is None:
            state.image = None
            self._go_on(state)

    def resume(self, position: Position, now_ns: int) -> None:
        """Goes on from a position: everything from there on is asked of recovery. Before anything was received."""
        self._now_ns = now_ns
        plant = PlantState(position.publisher, position.partition, position.session)
        places = {stream: position.of(stream) for stream in self._streams}
        plant.session = max([position.session, *(place[0] for place in places.values() if place)])
        plant.start_lost = True
        plant.changed_ns = now_ns
        plant.patience_ns = RESUME_PATIENCE_NS
        plant.resuming = plant.unplanned = plant.resumed = True
        self.plants[position.publisher, position.partition] = plant
        for stream, place in places.items():
            session, next_seq = place or (plant.session, 1)
            state = self._new_stream(plant, stream, session, now_ns, first=False)
            state.expected = state.known = state.first_seq = next_seq
            state.join_cause = GapCause.LATE_JOIN
            state.held, state.held_ns = True, now_ns
            self._note_unhealed(state)
            plant.streams[stream] = state
        self._tell(
            SessionChanged(plant.session, 0, publisher=plant.publisher, partition=plant.partition)
        )
        for state in plant.streams.values():
            self._fall_behind(state)
