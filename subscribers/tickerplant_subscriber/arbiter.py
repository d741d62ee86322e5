"""Datagrams of two lines in, each message once and in order out (pure: no I/O, the clock is an argument).

Per (publisher, partition, stream) the first copy of a datagram wins; the other line's copy is dropped and counted. A
hole waits `REORDER_WAIT_NS` for reordering or the other line. Then recovery is asked for it, if there is one
(`repair`), and what recovery sends again comes in as line R; what cannot be had is told as one `Gap`. Heartbeats reveal
what was lost at the tail. Every sequence of every session that was heard is either delivered once or covered by one
gap.
"""

from collections.abc import Callable, Collection, Iterable, Iterator

from tickerplant.core.messages import GapCause, Stream
from tickerplant.core.wire import (
    Header,
    HeartbeatBody,
    Kind,
    decode_body,
    decode_header,
    decode_heartbeat,
)
from tickerplant.errors import WireError
from tickerplant.limits import (
    END_OF_SESSION_DOUBT_NS,
    REORDER_DATAGRAMS_MAX,
    REORDER_WAIT_NS,
    SESSION_CONFIRM_NS,
    SESSION_SILENT_NS,
    STREAM_BEHIND_NS,
    STREAM_DEAD_NS,
)
from tickerplant_subscriber.admission import Admission, News
from tickerplant_subscriber.delivery import DeliverMessages, TakeImage
from tickerplant_subscriber.events import Event, StreamDead
from tickerplant_subscriber.plant_state import Candidate, PlantKey, PlantState
from tickerplant_subscriber.position import PlantPlaces
from tickerplant_subscriber.repair_intake import RepairIntake
from tickerplant_subscriber.stream_state import (
    NEVER_NS,
    Hole,
    LineState,
    Messages,
    Stage,
    StreamState,
)


class Arbiter(RepairIntake):
    """The receiving side of KTP/1 for the joined `streams` on `line_count` lines.

    What `admission` refuses changes nothing. `deliver` gets each run of messages in order, `tell` each event,
    `take_image` the messages of a snapshot; all are called from `receive`, `receive_again` and `handle_timer`, after
    the state was brought up to date, and an exception of theirs passes through. `started_ns` is when the groups were
    joined: a session older than that was joined late.
    """

    def __init__(
        self,
        streams: Collection[Stream],
        deliver: DeliverMessages,
        tell: Callable[[Event], None],
        *,
        started_ns: int,
        line_count: int = 2,
        admission: Admission | None = None,
        take_image: TakeImage | None = None,
    ) -> None:
        super().__init__(
            streams, deliver, tell, take_image, started_ns=started_ns, line_count=line_count
        )
        if admission is not None:
            self.admission = admission

    # --- datagrams --------------------------------------------------------------------------------

    def receive(self, line: int, datagram: bytes, now_ns: int) -> None:
        """Takes one datagram as it came on `line`; anything unusable is counted, never raised."""
        header = self._read_header(line, datagram, now_ns)
        if header is None:
            return
        key = header.publisher << 24 | header.partition << 8 | header.stream
        state = self._fast.get(key)
        if state is None or header.session != state.session:
            self._receive_special(line, key, header, datagram, now_ns)
            return
        seq = header.seq
        if seq > state.known and self._is_too_far(line, state, header, now_ns):
            return
        line_state = state.lines[line]
        news = self.admission.news(key, line, header)
        if news.on_stream:
            state.last_heard_ns = now_ns
        if news.on_line:
            line_state.last_heard_ns = now_ns
        if header.kind:
            self._receive_heartbeat(state, line, header, datagram, now_ns, news)
            return
        line_state.datagrams += 1
        line_state.messages += header.message_count
        end = seq + header.message_count
        in_order = seq == state.known == state.expected
        if end <= state.expected:
            line_state.duplicates += 1
            return
        try:
            messages = decode_body(datagram, header)
        except WireError as error:
            self._refuse(line, type(error).__name__, str(error), now_ns)
            return
        if in_order:
            line_state.wins += 1
            state.expected = state.known = end
            self._deliver(state, seq, messages, header.ts_send_ns)
            return
        self._receive_out_of_order(state, line_state, header, messages, now_ns, GapCause.NETWORK)

    def _receive_special(
        self, line: int, key: int, header: Header, datagram: bytes, now_ns: int
    ) -> None:
        """As `receive` for a stream that is dead, ended, held, not heard yet, or between two sessions."""
        self._now_ns = now_ns
        state = self._admit(line, header, now_ns)
        if state is None or self._is_too_far(line, state, header, now_ns):
            return
        line_state = state.lines[line]
        news = self.admission.news(key, line, header)
        hole_cause = GapCause.NETWORK
        if news.on_stream:
            if state.dead or state.ended:
                hole_cause = self._revive(state, header)
            state.heard = True
            state.last_heard_ns = now_ns
            state.flags = header.flags
        if news.on_line:
            line_state.last_heard_ns = now_ns
        if not state.join_seq:
            state.join_seq = header.seq
        if header.kind:
            self._receive_heartbeat(state, line, header, datagram, now_ns, news, hole_cause)
            return
        line_state.datagrams += 1
        line_state.messages += header.message_count
        if header.seq + header.message_count <= state.expected:
            line_state.duplicates += 1
            self._go_on(state)
            return
        try:
            messages = decode_body(datagram, header)
        except WireError as error:
            self._refuse(line, type(error).__name__, str(error), now_ns)
            return
        self._receive_out_of_order(state, line_state, header, messages, now_ns, hole_cause)

    def _read_header(self, line: int, datagram: bytes, now_ns: int) -> Header | None:
        """The header of a datagram that may count; None, and nothing but a count changed, if it is refused."""
        try:
            header = decode_header(datagram)
        except WireError as error:
            self._refuse(line, type(error).__name__, str(error), now_ns)
            return None
        refusal = self.admission.refusal(datagram, header, now_ns)
        if refusal is None:
            return header
        self._refuse(line, refusal.error, refusal.detail, now_ns)
        return None

    def _is_too_far(self, line: int, state: StreamState, header: Header, now_ns: int) -> bool:
        """Whether a datagram is refused because its sequence cannot be true."""
        if header.seq <= state.known:
            return False
        heard_ns = state.last_heard_ns if state.heard else None
        refusal = self.admission.sequence_refusal(header, state.known, heard_ns, now_ns)
        if refusal is None:
            return False
        self._refuse(line, refusal.error, refusal.detail, now_ns)
        return True

    def _receive_out_of_order(
        self,
        state: StreamState,
        line_state: LineState,
        header: Header,
        messages: Messages,
        now_ns: int,
        hole_cause: GapCause,
    ) -> None:
        self._now_ns = now_ns
        has_room = len(state.buffered) < REORDER_DATAGRAMS_MAX
        if has_room and state.holes and header.seq == state.known and not self.is_flowing:
            # Next behind what is missing: it waits, and nothing else changes.
            line_state.wins += 1
            state.hold_next(messages, header.ts_send_ns)
            return
        if not has_room and header.seq > state.expected and self._is_repaired(self.plant_of(state)):
            # No room: it will be asked for when its turn comes.
            next_seq = header.seq + header.message_count
            state.announce(next_seq, now_ns, REORDER_WAIT_NS, hole_cause)
            return
        in_order = header.seq == state.known
        state.reveal(header.seq, now_ns, REORDER_WAIT_NS, hole_cause)
        if not state.hold(header.seq, messages, header.ts_send_ns):
            line_state.duplicates += 1
            return
        line_state.wins += 1
        if not in_order:
            state.reordered += 1
        self._go_on(state)
        self._keep_bounds(state)

    def _receive_heartbeat(
        self,
        state: StreamState,
        line: int,
        header: Header,
        datagram: bytes,
        now_ns: int,
        news: News,
        hole_cause: GapCause = GapCause.NETWORK,
    ) -> None:
        self._now_ns = now_ns
        if news.on_stream:
            state.flags = header.flags
        if news.is_old:
            return
        try:
            body = decode_heartbeat(datagram, header)
        except WireError as error:
            self._refuse(line, type(error).__name__, str(error), now_ns)
            return
        state.lines[line].heartbeats += 1
        self._count_line_loss(state, line, body, now_ns)
        state.reveal(header.seq, now_ns, REORDER_WAIT_NS, hole_cause)
        if header.kind == Kind.END_OF_SESSION and header.seq == state.known:
            if not state.end_seq:
                state.end_heard_ns = now_ns
            state.end_seq = header.seq
        self._go_on(state)
        self._keep_bounds(state)

    def _count_line_loss(
        self, state: StreamState, line: int, body: HeartbeatBody, now_ns: int
    ) -> None:
        """A line that is silent as a whole sends no heartbeats; the other line's count stands in."""
        for number, line_state in enumerate(state.lines):
            if number == line or now_ns - line_state.last_heard_ns > STREAM_DEAD_NS:
                line_state.count_loss(body.datagrams_sent)

    def _revive(self, state: StreamState, header: Header) -> GapCause:
        """A dead or ended stream is heard again; returns the cause of what may be missing since then."""
        if state.ended:
            if not self._contradicts_end(state, header):
                return GapCause.NETWORK
            state.ended = False
            state.end_seq = 0
        self._tell_alive(state, contiguous=not state.holes and header.seq <= state.known)
        return GapCause.STREAM_DEAD

    def _contradicts_end(self, state: StreamState, header: Header) -> bool:
        """Whether the end of session that was heard is forged: the plant goes on after it."""
        if header.seq + header.message_count > state.end_seq:
            return True
        is_late = self._now_ns - state.end_heard_ns > END_OF_SESSION_DOUBT_NS
        return header.kind == Kind.HEARTBEAT and is_late

    def _keep_bounds(self, state: StreamState) -> None:
        """Nothing waits beyond the bound: the oldest hole is given up at once."""
        if self._is_repaired(self.plant_of(state)):
            return
        while (
            len(state.buffered) > REORDER_DATAGRAMS_MAX or len(state.holes) > REORDER_DATAGRAMS_MAX
        ) and not state.held:
            state.holes[0].stage = Stage.LOST
            self._go_on(state)

    # --- timers -----------------------------------------------------------------------------------

    def next_deadline_ns(self) -> int | None:
        """When `handle_timer` wants to be called next; None while no plant was heard or all streams are quiet."""
        deadline_ns = NEVER_NS
        for plant in self.plants.values():
            for state in plant.streams.values():
                if state.holes or state.held or state.image is not None:
                    deadline_ns = min(deadline_ns, self._waiting_deadline_ns(state))
                if not _is_quiet(state, plant):
                    deadline_ns = min(deadline_ns, state.last_heard_ns + STREAM_DEAD_NS)
            if plant.unplanned or plant.candidates:
                deadline_ns = min(deadline_ns, self._plant_deadline_ns(plant))
        if self.repair is not None:
            repair_ns = self.repair.next_deadline_ns()
            if repair_ns is not None and repair_ns < deadline_ns:
                deadline_ns = repair_ns
        return None if deadline_ns == NEVER_NS else deadline_ns

    def _plant_deadline_ns(self, plant: PlantState) -> int:
        deadlines = [self._candidate_deadline_ns(plant, each) for each in plant.candidates.values()]
        if plant.unplanned:
            deadlines.append(plant.changed_ns + plant.patience_ns)
        return min(deadlines)

    def _waiting_deadline_ns(self, state: StreamState) -> int:
        """Of a stream with holes or one that is held back."""
        deadline_ns = min((hole.deadline_ns for hole in state.holes), default=NEVER_NS)
        if not state.behind:
            deadline_ns = min(deadline_ns, self._behind_from_ns(state))
        return deadline_ns

    def _behind_from_ns(self, state: StreamState) -> int:
        """When a stream with holes or one that is held back counts as behind."""
        since_ns = NEVER_NS - STREAM_BEHIND_NS
        if state.holes and not self._is_flowing_on(state):
            since_ns = state.holes[0].seen_ns
        if state.held or state.image is not None:
            since_ns = min(since_ns, state.held_ns)
        return since_ns + STREAM_BEHIND_NS

    def hole_due(self, now_ns: int) -> bool:
        """Whether `handle_timer(now_ns)` would decide what is done about a hole."""
        return any(
            hole.deadline_ns <= now_ns and hole.stage is Stage.WAITING
            for state in self.states()
            for hole in state.holes
        )

    def handle_timer(self, now_ns: int) -> None:
        """Does what is due about holes, declares streams dead, and judges sessions that nobody has confirmed."""
        self._now_ns = now_ns
        for plant in tuple(self.plants.values()):
            for state in tuple(plant.streams.values()):
                self._check_holes(state, now_ns)
                if _is_waiting(state) and now_ns >= self._behind_from_ns(state):
                    self._fall_behind(state)
                is_overdue = state.last_heard_ns + STREAM_DEAD_NS <= now_ns
                if is_overdue and not _is_quiet(state, plant):
                    self._declare_dead(state)
            if plant.unplanned and now_ns >= plant.changed_ns + plant.patience_ns:
                self._stop_waiting(plant)
            if plant.candidates:
                self._judge_candidates(plant, now_ns)
        if self.repair is not None:
            self.repair.handle_timer(now_ns)

    def _check_holes(self, state: StreamState, now_ns: int) -> None:
        due = [hole for hole in state.holes if hole.deadline_ns <= now_ns]
        for hole in due:
            if hole.stage is Stage.WAITING:
                self._name_kernel_drop(state, hole)
            if self.repair is None or not self.repair.take_hole(state, hole, now_ns):
                hole.stage = Stage.LOST
                hole.deadline_ns = NEVER_NS
        if due:
            self._go_on(state)

    def _name_kernel_drop(self, state: StreamState, hole: Hole) -> None:
        drops = self._kernel_drops.get(state.stream, 0)
        if hole.cause is GapCause.NETWORK and drops > self._kernel_drops_told.get(state.stream, 0):
            self._kernel_drops_told[state.stream] = drops
            hole.cause = GapCause.KERNEL_DROP

    def _declare_dead(self, state: StreamState) -> None:
        state.dead = True
        self._refresh(state)
        self._tell(
            StreamDead(
                state.stream, state.session, publisher=state.publisher, partition=state.partition
            )
        )
        if state.stream is Stream.STATUS:
            self._start_lost(state)

    def _stop_waiting(self, plant: PlantState) -> None:
        """Recovery did not say in time how old sessions ended."""
        plant.unplanned = plant.resuming = False
        for state in tuple(plant.streams.values()):
            if state.session < plant.session and not state.final_seq:
                self._abandon_session(plant, state)
            state.held = False
            self._go_on(state)

    def _candidate_deadline_ns(self, plant: PlantState, candidate: Candidate) -> int:
        due_ns = candidate.first_ns + SESSION_CONFIRM_NS
        if self._is_repaired(plant):
            return due_ns
        return min(due_ns, max(candidate.first_ns, _silent_from_ns(plant)))

    def _judge_candidates(self, plant: PlantState, now_ns: int) -> None:
        """Without an answer of recovery a higher session counts only once the one before has gone silent."""
        for candidate in sorted(plant.candidates.values(), key=lambda each: each.first_ns):
            if now_ns < self._candidate_deadline_ns(plant, candidate):
                continue
            if plant.hello_ns <= candidate.first_ns and now_ns >= _silent_from_ns(plant):
                self._change_session(plant, candidate.session, now_ns)
                return
            del plant.candidates[candidate.session]
            detail = f"session {candidate.session} is not the plant's, by what recovery says"
            self._refuse(candidate.line, "session_unconfirmed", detail, now_ns)
        if not plant.session and not plant.candidates:
            del self.plants[plant.publisher, plant.partition]

    # --- counts -----------------------------------------------------------------------------------

    def note_kernel_drops(self, stream: int, total: int) -> None:
        """How many datagrams of a stream the kernel has dropped so far, at all its sockets; names causes of gaps."""
        self._kernel_drops[stream] = total

    def kernel_drops(self) -> Iterable[tuple[int, int]]:
        """(stream, datagrams dropped by the kernel) as last noted."""
        return self._kernel_drops.items()

    def states(self) -> Iterator[StreamState]:
        """Every stream of every plant heard."""
        for plant in self.plants.values():
            yield from plant.streams.values()

    def places(self) -> dict[PlantKey, PlantPlaces]:
        """Where delivery stands, for each plant with a session that counts."""
        return {
            key: {
                int(stream): (state.session, state.expected)
                for stream, state in plant.streams.items()
            }
            for key, plant in self.plants.items()
            if plant.streams
        }


def _is_quiet(state: StreamState, plant: PlantState) -> bool:
    """Whether nothing is to be heard of a stream: it is known to be dead, or its session is over."""
    return state.dead or state.ended or state.session < plant.session


def _is_waiting(state: StreamState) -> bool:
    return bool(state.holes) or state.held or state.image is not None


def _silent_from_ns(plant: PlantState) -> int:
    """From when on the plant's session counts as over because nothing more comes of it."""
    return max(
        (
            state.last_heard_ns + SESSION_SILENT_NS
            for state in plant.streams.values()
            if not state.ended
        ),
        default=0,
    )
