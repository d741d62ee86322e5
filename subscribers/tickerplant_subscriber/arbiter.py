"""Datagrams of two lines in, each message once and in order out (pure: no I/O, the clock is an argument).

Per (publisher, partition, stream) the first copy of a datagram wins; the other line's copy is dropped and counted. A
hole waits `REORDER_WAIT_NS` for reordering or the other line and is then told as one `Gap`; heartbeats reveal what was
lost at the tail. Every sequence of every session that was heard is either delivered once or covered by one gap.

A higher session is taken over stream by stream, at the first datagram of it on that stream; what the old one still
lacked becomes a gap. `SessionStart` says where the previous session ended and so uncovers what was lost at its end.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field

from tickerplant.core.messages import GapCause, SessionStart, Stream
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
    PLANTS_MAX,
    REFUSED_EVENT_INTERVAL_NS,
    REORDER_DATAGRAMS_MAX,
    REORDER_WAIT_NS,
    SESSION_AHEAD_MAX_NS,
    STREAM_DEAD_NS,
)
from tickerplant_subscriber.admission import Admission
from tickerplant_subscriber.events import (
    UNKNOWN_SEQ,
    DatagramsRefused,
    Event,
    Gap,
    SessionChanged,
    SessionEnded,
    StreamAlive,
    StreamDead,
)
from tickerplant_subscriber.stream_state import ClosedSession, LineState, Messages, StreamState

PlantKey = tuple[int, int]
"""(publisher, partition)"""

DeliverMessages = Callable[[StreamState, int, Messages, int], None]
"""(stream, sequence of the first message, messages, ts_send_ns)"""


@dataclass(slots=True)
class PlantState:
    """One plant. `start` is the `SessionStart` of its session; `start_lost` if it will not come."""

    publisher: int
    partition: int
    session: int
    start: SessionStart | None = None
    start_lost: bool = False
    streams: dict[int, StreamState] = field(default_factory=dict)


@dataclass(slots=True)
class Refusals:
    """Count of refused datagrams of one kind on one line, and when it was last told."""

    count: int = 0
    told_ns: int | None = None


class Arbiter:
    """The receiving side of KTP/1 for the joined `streams` on `line_count` lines.

    What `admission` refuses changes nothing. `deliver` gets each run of messages in order, `tell` each event; both
    are called from `receive` and `handle_timer`, after the state was brought up to date, and an exception of theirs
    passes through. `started_ns` is when the groups were joined: a session older than that was joined late.
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
    ) -> None:
        self.admission = Admission() if admission is None else admission
        self.clock_step_ns = 0
        """How far the wall clock was set ahead of `now_ns` since the start; counts in the check of sessions."""
        self.refusals: dict[tuple[int, str], Refusals] = {}
        self.lower_session_datagrams = 0
        self.plants: dict[PlantKey, PlantState] = {}
        self._streams = tuple(sorted(Stream(stream) for stream in streams))
        self._deliver_messages = deliver
        self._tell = tell
        self._started_ns = started_ns
        self._line_count = line_count
        self._states: dict[int, StreamState] = {}
        self._kernel_drops: dict[int, int] = {}
        self._kernel_drops_told: dict[int, int] = {}

    # --- datagrams --------------------------------------------------------------------------------

    def receive(self, line: int, datagram: bytes, now_ns: int) -> None:
        """Takes one datagram as it came on `line`; anything unusable is counted, never raised."""
        header = self._read_header(line, datagram, now_ns)
        if header is None:
            return
        key = header.publisher << 24 | header.partition << 8 | header.stream
        state = self._states.get(key)
        if state is None or header.session != state.session:
            state = self._admit(line, header, now_ns)
            if state is None:
                return
        line_state = state.lines[line]
        hole_cause = GapCause.NETWORK
        news = self.admission.news(key, line, header)
        if news.on_stream:
            if state.dead or state.ended:
                hole_cause = self._revive(state, header)
            state.last_heard_ns = now_ns
            if header.kind:
                state.flags = header.flags
        if news.on_line:
            line_state.last_heard_ns = now_ns
        seq = header.seq
        if not state.join_seq:
            state.join_seq = seq
        if header.kind:
            if not news.is_old:
                self._receive_heartbeat(state, line, header, datagram, now_ns, hole_cause)
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

    def _receive_out_of_order(
        self,
        state: StreamState,
        line_state: LineState,
        header: Header,
        messages: Messages,
        now_ns: int,
        hole_cause: GapCause,
    ) -> None:
        state.reveal(header.seq, now_ns, REORDER_WAIT_NS, hole_cause)
        if not state.hold(header.seq, messages, header.ts_send_ns):
            line_state.duplicates += 1
            return
        line_state.wins += 1
        state.reordered += 1
        self._deliver_buffered(state)
        self._keep_bounds(state)

    def _receive_heartbeat(
        self,
        state: StreamState,
        line: int,
        header: Header,
        datagram: bytes,
        now_ns: int,
        hole_cause: GapCause,
    ) -> None:
        try:
            body = decode_heartbeat(datagram, header)
        except WireError as error:
            self._refuse(line, type(error).__name__, str(error), now_ns)
            return
        state.lines[line].heartbeats += 1
        self._count_line_loss(state, line, body, now_ns)
        state.reveal(header.seq, now_ns, REORDER_WAIT_NS, hole_cause)
        if header.kind == Kind.END_OF_SESSION and header.seq == state.known:
            state.end_seq = header.seq
        self._keep_bounds(state)
        self._end_if_complete(state)

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
            state.ended = header.seq + header.message_count <= state.end_seq
            return GapCause.NETWORK
        self._tell_alive(state, contiguous=not state.holes and header.seq <= state.known)
        return GapCause.STREAM_DEAD

    def _tell_alive(self, state: StreamState, *, contiguous: bool) -> None:
        state.dead = False
        self._tell(
            StreamAlive(
                state.stream,
                state.session,
                contiguous,
                publisher=state.publisher,
                partition=state.partition,
            )
        )

    # --- delivery ---------------------------------------------------------------------------------

    def _deliver(
        self, state: StreamState, first_seq: int, messages: Messages, ts_send_ns: int
    ) -> None:
        state.messages += len(messages)
        if state.stream is Stream.STATUS:
            self._look_for_session_start(state, messages)
        self._deliver_messages(state, first_seq, messages, ts_send_ns)

    def _deliver_buffered(self, state: StreamState) -> None:
        while (taken := state.take()) is not None:
            first_seq, held = taken
            self._deliver(state, first_seq, held.messages, held.ts_send_ns)

    def _keep_bounds(self, state: StreamState) -> None:
        """Nothing waits beyond the bound: the oldest hole is given up at once."""
        while (
            len(state.buffered) > REORDER_DATAGRAMS_MAX or len(state.holes) > REORDER_DATAGRAMS_MAX
        ):
            self._give_up_first_hole(state)

    def _give_up_first_hole(self, state: StreamState) -> None:
        hole = state.give_up_first_hole()
        cause = hole.cause
        drops = self._kernel_drops.get(state.stream, 0)
        if cause is GapCause.NETWORK and drops > self._kernel_drops_told.get(state.stream, 0):
            self._kernel_drops_told[state.stream] = drops
            cause = GapCause.KERNEL_DROP
        self._tell_gap(state, state.session, hole.from_seq, hole.to_seq, cause)
        if state.stream is Stream.STATUS and hole.from_seq == 1:
            self._settle_without_start(self.plants[state.publisher, state.partition])
        self._deliver_buffered(state)
        self._end_if_complete(state)

    def _tell_gap(
        self, state: StreamState, session: int, from_seq: int, to_seq: int, cause: GapCause
    ) -> None:
        self._tell(
            Gap(
                state.stream,
                session,
                from_seq,
                to_seq,
                cause,
                publisher=state.publisher,
                partition=state.partition,
            )
        )

    def _end_if_complete(self, state: StreamState) -> None:
        if state.end_seq and not state.ended and state.expected == state.end_seq:
            state.ended = True
            self._tell(
                SessionEnded(
                    state.stream,
                    state.session,
                    publisher=state.publisher,
                    partition=state.partition,
                )
            )

    # --- sessions ---------------------------------------------------------------------------------

    def _admit(self, line: int, header: Header, now_ns: int) -> StreamState | None:
        """The stream of a datagram that is not of its current session; None if the datagram is refused."""
        if header.stream not in self._streams:
            self._refuse(line, "unexpected_stream", f"stream {header.stream}", now_ns)
            return None
        plant = self.plants.get((header.publisher, header.partition))
        if plant is not None and header.session < plant.session:
            self.lower_session_datagrams += 1
            return None
        if plant is None or header.session > plant.session:
            plant = self._change_session(line, plant, header, now_ns)
            if plant is None:
                return None
        state = plant.streams[header.stream]
        if state.session != plant.session:
            self._move_stream(plant, state)
        return state

    def _change_session(
        self, line: int, plant: PlantState | None, header: Header, now_ns: int
    ) -> PlantState | None:
        ahead_ns = header.session - now_ns - self.clock_step_ns
        if ahead_ns > SESSION_AHEAD_MAX_NS:
            detail = f"session {header.session} is {ahead_ns // 1_000_000_000} s ahead of the clock"
            self._refuse(line, "session_ahead", detail, now_ns)
            return None
        previous_session = 0
        if plant is None:
            if len(self.plants) >= PLANTS_MAX:
                self._refuse(line, "too_many_plants", f"publisher {header.publisher}", now_ns)
                return None
            plant = self._open_plant(header, now_ns)
        else:
            previous_session = plant.session
            plant.session = header.session
            plant.start = None
            plant.start_lost = Stream.STATUS not in self._streams
        self._tell(
            SessionChanged(
                plant.session,
                previous_session,
                publisher=plant.publisher,
                partition=plant.partition,
            )
        )
        return plant

    def _open_plant(self, header: Header, now_ns: int) -> PlantState:
        """A plant heard for the first time: from now on each of its joined streams must be heard."""
        late = header.session <= self._started_ns
        join_cause = GapCause.LATE_JOIN if late else GapCause.NETWORK
        plant = PlantState(header.publisher, header.partition, header.session)
        self.plants[header.publisher, header.partition] = plant
        for stream in self._streams:
            lines = [
                LineState(sent_before=None if late else 0, last_heard_ns=now_ns)
                for _ in range(self._line_count)
            ]
            state = StreamState(
                header.publisher,
                header.partition,
                stream,
                header.session,
                join_cause,
                lines,
                last_heard_ns=now_ns,
                join_seq=0 if late else 1,
            )
            plant.streams[stream] = state
            self._states[header.publisher << 24 | header.partition << 8 | stream] = state
        return plant

    def _move_stream(self, plant: PlantState, state: StreamState) -> None:
        """The first datagram of the plant's session on this stream: what the old one lacks is lost."""
        while state.holes:
            self._give_up_first_hole(state)
        if state.closed is not None:
            self._tell_unknown_end(state, state.closed)
        state.begin_session(plant.session)
        if state.dead:
            self._tell_alive(state, contiguous=False)
        if plant.start is not None or plant.start_lost:
            self._settle(plant, state)

    def _look_for_session_start(self, state: StreamState, messages: Messages) -> None:
        for message in messages:
            if type(message) is SessionStart:
                plant = self.plants[state.publisher, state.partition]
                if state.session == plant.session:
                    plant.start = message
                    self._settle_all(plant)

    def _settle_without_start(self, plant: PlantState) -> None:
        """`SessionStart` was lost: how the previous session ended stays unknown."""
        if plant.start is None and not plant.start_lost:
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

    # --- timers -----------------------------------------------------------------------------------

    def next_deadline_ns(self) -> int | None:
        """When `handle_timer` wants to be called next; None while no plant was heard or all streams are quiet."""
        deadline_ns: int | None = None
        for state in self._states.values():
            if state.holes:
                due_ns = state.holes[0].deadline_ns
            elif state.dead or state.ended:
                continue
            else:
                due_ns = state.last_heard_ns + STREAM_DEAD_NS
            if deadline_ns is None or due_ns < deadline_ns:
                deadline_ns = due_ns
        return deadline_ns

    def hole_due(self, now_ns: int) -> bool:
        """Whether `handle_timer(now_ns)` would give up a hole."""
        return any(
            state.holes and state.holes[0].deadline_ns <= now_ns for state in self._states.values()
        )

    def handle_timer(self, now_ns: int) -> None:
        """Gives up the holes whose time is over and declares streams dead."""
        for state in tuple(self._states.values()):
            while state.holes and state.holes[0].deadline_ns <= now_ns:
                self._give_up_first_hole(state)
            quiet = state.dead or state.ended
            if not quiet and state.last_heard_ns + STREAM_DEAD_NS <= now_ns:
                self._declare_dead(state)

    def _declare_dead(self, state: StreamState) -> None:
        state.dead = True
        self._tell(
            StreamDead(
                state.stream, state.session, publisher=state.publisher, partition=state.partition
            )
        )
        if state.stream is Stream.STATUS:
            self._settle_without_start(self.plants[state.publisher, state.partition])

    # --- counts -----------------------------------------------------------------------------------

    def note_kernel_drops(self, stream: int, total: int) -> None:
        """How many datagrams of a stream the kernel has dropped so far, at all its sockets; names causes of gaps."""
        self._kernel_drops[stream] = total

    def kernel_drops(self) -> Iterable[tuple[int, int]]:
        """(stream, datagrams dropped by the kernel) as last noted."""
        return self._kernel_drops.items()

    def states(self) -> Iterator[StreamState]:
        """Every stream of every plant heard."""
        yield from self._states.values()

    def _refuse(self, line: int, error: str, detail: str, now_ns: int) -> None:
        refusals = self.refusals.setdefault((line, error), Refusals())
        refusals.count += 1
        if refusals.told_ns is None or now_ns - refusals.told_ns >= REFUSED_EVENT_INTERVAL_NS:
            refusals.told_ns = now_ns
            self._tell(DatagramsRefused(line, error, refusals.count, detail))
