"""Which session of each plant counts, and how a stream gets from one to the next (pure).

Without recovery a higher session is taken over stream by stream, at the first datagram of it on that stream; what the
old one still lacked becomes a gap, and `SessionStart` says where it ended. With recovery a higher session first
waits, its datagrams kept, until recovery's hello names it (`Candidate`). Then each stream finishes the old session
from recovery, and any sessions in between, before it goes on.
"""

from collections.abc import Collection

from tickerplant.core.messages import GapCause, SessionStart, Stream
from tickerplant.core.recovery_wire import Hello, SessionRange
from tickerplant.core.wire import Header
from tickerplant.limits import (
    PLANTS_MAX,
    REFUSED_EVENT_INTERVAL_NS,
    RESUME_PATIENCE_NS,
    SESSION_AHEAD_MAX_NS,
    SESSION_CANDIDATES_MAX,
)
from tickerplant_subscriber.admission import Admission
from tickerplant_subscriber.delivery import DeliverMessages, Delivery, TakeImage, Tell
from tickerplant_subscriber.events import (
    UNKNOWN_SEQ,
    DatagramsRefused,
    SessionChanged,
    StreamAlive,
)
from tickerplant_subscriber.plant_state import Candidate, PlantKey, PlantState, Refusals, Repair
from tickerplant_subscriber.stream_state import (
    NEVER_NS,
    ClosedSession,
    Hole,
    LineState,
    Messages,
    Stage,
    StreamState,
)


class SessionTracker(Delivery):
    """The part of the arbiter that is about plants and sessions."""

    def __init__(
        self,
        streams: Collection[Stream],
        deliver: DeliverMessages,
        tell: Tell,
        take_image: TakeImage | None,
        *,
        started_ns: int,
        line_count: int,
    ) -> None:
        super().__init__(deliver, tell, take_image)
        self.admission = Admission()
        self.clock_step_ns = 0
        """How far the wall clock was set ahead of `now_ns` since the start; counts in the check of sessions."""
        self.refusals: dict[tuple[int, str], Refusals] = {}
        self.lower_session_datagrams = 0
        self.is_from_beginning = False
        """Whether recovery is asked for what a session had before we joined, down to its oldest."""
        self.plants: dict[PlantKey, PlantState] = {}
        self.repair: Repair | None = None
        self._streams = tuple(sorted(Stream(stream) for stream in streams))
        self._started_ns = started_ns
        self._line_count = line_count
        self._now_ns = started_ns
        self._fast: dict[int, StreamState] = {}

    def plant_of(self, state: StreamState) -> PlantState:
        """The plant of a stream."""
        return self.plants[state.publisher, state.partition]

    def _wake_repair(self) -> None:
        if self.repair is not None:
            self.repair.wake()

    def _is_repaired(self, plant: PlantState) -> bool:
        """Whether a hole is anything but a gap after the wait."""
        repair = self.repair
        return repair is not None and not repair.is_out_of_reach(plant.publisher, plant.partition)

    def _is_current(self, state: StreamState) -> bool:
        return state.session == self.plant_of(state).session

    def _refresh(self, state: StreamState) -> None:
        """Streams of which the next datagram can be delivered without a second look are found at once."""
        key = state.publisher << 24 | state.partition << 8 | state.stream
        plant = self.plant_of(state)
        if (
            plant.streams.get(state.stream) is state
            and state.session == plant.session
            and state.heard
            and state.image is None
            and not (state.dead or state.ended or state.held)
        ):
            self._fast[key] = state
        else:
            self._fast.pop(key, None)

    def _refuse(self, line: int, error: str, detail: str, now_ns: int) -> None:
        refusals = self.refusals.setdefault((line, error), Refusals())
        refusals.count += 1
        if refusals.told_ns is None or now_ns - refusals.told_ns >= REFUSED_EVENT_INTERVAL_NS:
            refusals.told_ns = now_ns
            self._tell(DatagramsRefused(line, error, refusals.count, detail))

    # --- where a datagram belongs -----------------------------------------------------------------

    def _admit(self, line: int, header: Header, now_ns: int) -> StreamState | None:
        """The stream of a datagram that is not plainly of a current session; None if the datagram is refused."""
        if header.stream not in self._streams:
            self._refuse(line, "unexpected_stream", f"stream {header.stream}", now_ns)
            return None
        plant = self.plants.get((header.publisher, header.partition))
        state = None if plant is None else plant.streams.get(header.stream)
        if state is not None and state.session == header.session:
            return state
        if plant is not None and header.session < plant.session:
            self.lower_session_datagrams += 1
            return None
        if plant is None or header.session > plant.session:
            plant = self._admit_higher(line, plant, header, now_ns)
            if plant is None:
                return None
            if plant.session != header.session:
                return self._stream_of_candidate(line, plant, header, now_ns)
        state = plant.streams[header.stream]
        if state.session != plant.session:
            if self.repair is not None:
                return self._ahead_of(state, plant.session)
            self._move_stream(plant, state)
        return state

    def _admit_higher(
        self, line: int, plant: PlantState | None, header: Header, now_ns: int
    ) -> PlantState | None:
        """The plant, moved to the session of the datagram if that is trusted; None if it is refused."""
        ahead_ns = header.session - now_ns - self.clock_step_ns
        if ahead_ns > SESSION_AHEAD_MAX_NS:
            detail = f"session {header.session} is {ahead_ns // 1_000_000_000} s ahead of the clock"
            self._refuse(line, "session_ahead", detail, now_ns)
            return None
        refusal = self.admission.sequence_refusal(header, 1, None, now_ns)
        if refusal is not None:
            self._refuse(line, refusal.error, refusal.detail, now_ns)
            return None
        if plant is None:
            if len(self.plants) >= PLANTS_MAX:
                self._refuse(line, "too_many_plants", f"publisher {header.publisher}", now_ns)
                return None
            plant = PlantState(header.publisher, header.partition, 0)
            if self.is_from_beginning:
                plant.resumed = True
                plant.patience_ns = RESUME_PATIENCE_NS
            self.plants[header.publisher, header.partition] = plant
        named = header.session in plant.ranges or self.admission.key_ring is not None
        if self.repair is None or (named and not plant.resuming):
            self._change_session(plant, header.session, now_ns)
        return plant

    def _stream_of_candidate(
        self, line: int, plant: PlantState, header: Header, now_ns: int
    ) -> StreamState | None:
        candidate = plant.candidates.get(header.session)
        if candidate is None:
            if len(plant.candidates) >= SESSION_CANDIDATES_MAX:
                detail = f"session {header.session} waits behind {SESSION_CANDIDATES_MAX} others"
                self._refuse(line, "session_unconfirmed", detail, now_ns)
                return None
            candidate = plant.candidates[header.session] = Candidate(header.session, now_ns, line)
            self._wake_repair()
        state = candidate.streams.get(header.stream)
        if state is None:
            stream = Stream(header.stream)
            state = self._new_stream(plant, stream, header.session, now_ns, first=not plant.session)
            state.held = True
            candidate.streams[stream] = state
        return state

    def _ahead_of(self, state: StreamState, session: int) -> StreamState:
        """Gathers the new session while the stream still finishes an old one."""
        if state.ahead is None or state.ahead.session != session:
            plant = self.plant_of(state)
            state.ahead = self._new_stream(plant, state.stream, session, self._now_ns, first=False)
            state.ahead.held = True
        return state.ahead

    def _new_stream(
        self, plant: PlantState, stream: Stream, session: int, now_ns: int, *, first: bool
    ) -> StreamState:
        """`first`: of a plant heard for the first time, whose session may be older than we are."""
        late = first and session <= self._started_ns
        sent_before = None if late else 0
        return StreamState(
            plant.publisher,
            plant.partition,
            stream,
            session,
            GapCause.LATE_JOIN if late else GapCause.NETWORK,
            [
                LineState(sent_before=sent_before, last_heard_ns=now_ns)
                for _ in range(self._line_count)
            ],
            now_ns,
            join_seq=0 if late else 1,
            heard=False,
        )

    # --- a session begins -------------------------------------------------------------------------

    def _change_session(self, plant: PlantState, session: int, now_ns: int) -> None:
        """Takes over a session that counts."""
        previous = plant.session
        candidate = plant.candidates.pop(session, None)
        heard = {} if candidate is None else candidate.streams
        plant.session = session
        plant.start = None
        plant.start_lost = Stream.STATUS not in self._streams
        plant.changed_ns = now_ns
        plant.candidates = {
            each.session: each for each in plant.candidates.values() if each.session > session
        }
        if not previous:
            self._open_streams(plant, heard, now_ns)
        else:
            for stream, state in heard.items():
                plant.streams[stream].ahead = state
        self._tell(
            SessionChanged(session, previous, publisher=plant.publisher, partition=plant.partition)
        )
        if self.repair is not None:
            self.repair.wake()
            plant.unplanned = bool(previous)
            for state in plant.streams.values():
                self._go_on(state)
            self._plan(plant)

    def _open_streams(self, plant: PlantState, heard: dict[int, StreamState], now_ns: int) -> None:
        """A plant heard for the first time: from now on each of its joined streams must be heard."""
        for stream in self._streams:
            state = heard.get(stream)
            if state is None:
                state = self._new_stream(plant, stream, plant.session, now_ns, first=True)
            state.held = False
            plant.streams[stream] = state
            if state.join_cause is GapCause.LATE_JOIN:
                self._note_unhealed(state)
            self._refresh(state)

    # --- a session ends, with recovery ------------------------------------------------------------

    def take_hello(self, hello: Hello, now_ns: int) -> None:
        """What recovery holds: confirms sessions, and says how old ones ended."""
        plant = self.plants.get((hello.publisher, hello.partition))
        if plant is None or not hello.sessions:
            return
        self._now_ns = now_ns
        plant.ranges = {each.session: each for each in hello.sessions}
        plant.hello_ns = now_ns
        if plant.resuming:
            self._end_resuming(plant, max(plant.ranges), now_ns)
        for session in sorted(plant.candidates, reverse=True):
            if session in plant.ranges:
                self._change_session(plant, session, now_ns)
                break
        self._plan(plant)

    def _plan(self, plant: PlantState) -> None:
        """Lets each stream that is in an old session know where that ended, as far as recovery has said so."""
        plant.unplanned = False
        for state in tuple(plant.streams.values()):
            if state.session < plant.session and not state.final_seq:
                if self._find_end(plant, state):
                    self._go_on(state)
                else:
                    plant.unplanned = True

    def _find_end(self, plant: PlantState, state: StreamState) -> bool:
        """Sets `final_seq` and reveals what is missing before it; False if it is not known yet."""
        if state.ended:
            state.final_seq = state.expected
            return True
        found = plant.ranges.get(state.session)
        if found is None:
            if plant.hello_ns < plant.changed_ns or plant.session not in plant.ranges:
                return False
            self._abandon_session(plant, state)
            return True
        if not found.final and max(plant.ranges) == found.session:
            return False
        state.final_seq = max(state.known, dict(found.next_seqs).get(state.stream, 1))
        self._reveal_kept(state, found, state.final_seq, GapCause.PLANT)
        for hole in state.holes:
            if hole.stage is Stage.SNAPSHOT:
                # Recovery takes snapshots of the current session only.
                self.note_unfillable(state, hole, hole.cause)
        return True

    def _reveal_kept(
        self, state: StreamState, found: SessionRange, next_seq: int, cause: GapCause
    ) -> None:
        """Everything before `next_seq` was published; recovery holds it from its oldest on."""
        state.reveal(next_seq, self._now_ns, 0, cause)
        self.note_oldest(state, dict(found.oldest_seqs).get(state.stream, 1))

    def note_oldest(self, state: StreamState, oldest_seq: int) -> None:
        """What recovery no longer has is not asked of it."""
        state.split(oldest_seq)
        for hole in state.holes:
            if hole.to_seq < oldest_seq and hole.stage < Stage.SNAPSHOT:
                self.note_unfillable(state, hole, hole.cause)

    def note_unfillable(self, state: StreamState, hole: Hole, cause: GapCause) -> None:
        """Nobody has the messages of a hole: a snapshot makes up for them, but not for trades or an old session."""
        hole.cause = cause
        hole.attempts = 0
        hole.limit_ns = 0
        image = state.image
        is_made_up = self._take_image is None or (
            image is not None and image.messages is not None and hole.to_seq < image.next_seq
        )
        if is_made_up or state.stream is Stream.TRADE or not self._is_current(state):
            hole.stage = Stage.LOST
            hole.deadline_ns = NEVER_NS
        else:
            hole.stage = Stage.SNAPSHOT
            hole.deadline_ns = self._now_ns
            self._note_unhealed(state)

    def _leave_session(self, state: StreamState) -> None:
        """The old session is complete: on to the next one that recovery knows, or to the current one."""
        plant = self.plant_of(state)
        state.begin_session(self._next_session(plant, state), self._now_ns)
        state.closed = None
        self._arrive(plant, state)

    def _next_session(self, plant: PlantState, state: StreamState) -> int:
        between = [each for each in plant.ranges if state.session < each < plant.session]
        return min(between, default=plant.session)

    def _arrive(self, plant: PlantState, state: StreamState) -> None:
        if state.session != plant.session:
            self._find_end(plant, state)
        elif state.dead and state.heard:
            self._tell_alive(state, contiguous=False)

    def _abandon_session(self, plant: PlantState, state: StreamState) -> None:
        """What the old session still lacks is lost, and how it ended is known from `SessionStart` at best."""
        self._give_up_everything(state)
        closed = ClosedSession(state.session, state.expected, state.ended)
        next_session = self._next_session(plant, state)
        if next_session == plant.session:
            self._move_stream(plant, state)
        else:
            self._tell_unknown_end(state, closed)
            state.begin_session(next_session, self._now_ns)
            state.closed = None
        self._arrive(plant, state)

    def _give_up_everything(self, state: StreamState) -> None:
        state.held = False
        state.image = None
        for hole in state.holes:
            hole.stage = Stage.LOST
        while state.holes or state.buffered:
            self._step(state)

    # --- going on from a position -----------------------------------------------------------------

    def _end_resuming(self, plant: PlantState, current: int, now_ns: int) -> None:
        """Recovery has said where the plant stands: everything from our position up to there is missing."""
        if current < plant.session:
            return
        plant.resuming = False
        for state in plant.streams.values():
            state.held = False
        if current > plant.session:
            self._change_session(plant, current, now_ns)
        found = plant.ranges.get(current)
        for state in tuple(plant.streams.values()):
            if found is not None and state.session == current:
                next_seq = dict(found.next_seqs).get(state.stream, 1)
                self._reveal_kept(state, found, next_seq, GapCause.LATE_JOIN)
            self._go_on(state)

    # --- a session ends, without recovery ---------------------------------------------------------

    def _move_stream(self, plant: PlantState, state: StreamState) -> None:
        """The first datagram of the plant's session on this stream: what the old one lacks is lost."""
        self._give_up_everything(state)
        if state.closed is not None:
            self._tell_unknown_end(state, state.closed)
        state.begin_session(plant.session, self._now_ns)
        state.heard = state.heard or self.repair is None
        if state.dead and self.repair is None:
            self._tell_alive(state, contiguous=False)
        if plant.start is not None or plant.start_lost:
            self._settle(plant, state)

    def _status_delivered(self, state: StreamState, messages: Messages) -> None:
        for message in messages:
            if type(message) is SessionStart:
                plant = self.plant_of(state)
                if state.session == plant.session:
                    plant.start = message
                    self._settle_all(plant)

    def _start_lost(self, state: StreamState) -> None:
        """`SessionStart` was lost: how the previous session ended stays unknown."""
        plant = self.plant_of(state)
        if plant.start is None and not plant.start_lost and state.session == plant.session:
            plant.start_lost = True
            self._settle_all(plant)

    def _settle_all(self, plant: PlantState) -> None:
        for state in plant.streams.values():
            if state.session == plant.session:
                self._settle(plant, state)

    def _settle(self, plant: PlantState, state: StreamState) -> None:
        """Tells what of previous sessions was never heard on this stream, as far as the plant knows."""
        closed = state.closed
        state.closed = None
        if closed is None:
            return
        previous = plant.start.previous_session if plant.start is not None else 0
        final_seqs = dict(plant.start.final_seqs) if plant.start is not None else {}
        final_seq = final_seqs.get(state.stream)
        if previous == closed.session and final_seq is not None:
            if final_seq > closed.next_seq:
                self._tell_gap(
                    state, closed.session, closed.next_seq, final_seq - 1, GapCause.NETWORK
                )
            return
        self._tell_unknown_end(state, closed)
        if previous > closed.session:
            last_seq = UNKNOWN_SEQ if final_seq is None else final_seq - 1
            if last_seq > 0:
                self._tell_gap(state, previous, 1, last_seq, GapCause.NETWORK)

    def _tell_unknown_end(self, state: StreamState, closed: ClosedSession) -> None:
        if not closed.ended:
            self._tell_gap(state, closed.session, closed.next_seq, UNKNOWN_SEQ, GapCause.UNKNOWN)

    def _tell_alive(self, state: StreamState, *, contiguous: bool) -> None:
        state.dead = False
        if not contiguous and self.repair is not None:
            self._fall_behind(state)
        self._tell(
            StreamAlive(
                state.stream,
                state.session,
                contiguous,
                publisher=state.publisher,
                partition=state.partition,
            )
        )
