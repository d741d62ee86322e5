"""What a subscriber asks of recovery, and when (pure: bytes and the time in, actions out).

    hole         requests over UDP at `GAP_FILL_AT_NS`, then a range over TCP, then, where a state can make up for the
                 messages, a snapshot, else a gap
    late join    a snapshot of all joined streams that have a state
    new session  recovery's hello confirms it, and says how the sessions before ended

For each plant there are at most two connections at a time: one for ranges, one for hellos and snapshots. Whoever runs
this performs `take_actions` after each call and reports what comes of them. The arbiter hands over holes that are due.
"""

from collections.abc import Callable, Collection

from tickerplant.core.messages import GapCause, Stream
from tickerplant.core.packed_books import PackedBooks, unpack
from tickerplant.core.recovery_wire import (
    NONCE_BYTES,
    AnyControl,
    Hello,
    RecoveryCode,
    Reject,
    SnapshotEnd,
    SnapshotRequest,
    StreamEnd,
    StreamRequest,
)
from tickerplant.core.wire import FLAG_NOT_REPAIRABLE, decode_body, decode_header
from tickerplant.errors import MalformedBodyError, WireError
from tickerplant.limits import (
    JOIN_WAIT_NS,
    SNAPSHOT_MESSAGES_MAX,
    SNAPSHOT_TICKERS_MAX,
)
from tickerplant_subscriber.arbiter import Arbiter
from tickerplant_subscriber.dialogue import Dialogue
from tickerplant_subscriber.gap_requests import code_of
from tickerplant_subscriber.hole_repair import HoleRepair
from tickerplant_subscriber.plant_state import PlantState
from tickerplant_subscriber.recovery_actions import (
    Asked,
    Close,
    Connect,
    PlantRepair,
    Slot,
    Talk,
    Write,
)
from tickerplant_subscriber.stream_state import NEVER_NS, Stage, StreamState

_AGAIN_LATER = frozenset((RecoveryCode.NOT_YET, RecoveryCode.TOO_OLD, RecoveryCode.UNKNOWN_SESSION))


class RecoveryClient(HoleRepair):
    """Recovery at `address_count` addresses, for the plants of one arbiter.

    `random_bytes(count)` makes nonces, request ids and jitter. `tickers`: the only ones wanted, empty for all.
    `is_skipping`: what the kernel dropped is not asked for.
    """

    def __init__(
        self,
        arbiter: Arbiter,
        address_count: int,
        random_bytes: Callable[[int], bytes],
        *,
        tickers: Collection[str] = (),
        is_skipping: bool = False,
    ) -> None:
        super().__init__(arbiter, address_count, random_bytes, is_skipping=is_skipping)
        self.connections_opened = 0
        self.connections_failed = 0
        self.snapshots_taken = 0
        self._tickers = tuple(tickers) if len(tickers) <= SNAPSHOT_TICKERS_MAX else ()
        self._talks: dict[int, Talk] = {}
        arbiter.repair = self

    # --- timers -----------------------------------------------------------------------------------

    def next_deadline_ns(self) -> int | None:
        """When `handle_timer` wants to be called."""
        return None if self._deadline_ns == NEVER_NS else self._deadline_ns

    def handle_timer(self, now_ns: int) -> None:
        """Opens the connections that are needed, and gives up those on which nothing comes."""
        if now_ns < self._deadline_ns:
            return
        for talk in tuple(self._talks.values()):
            if talk.dialogue.deadline_ns <= now_ns:
                self._fail(talk, now_ns)
        plants = self._arbiter.plants
        for key in [key for key in self._plants if key not in plants]:
            del self._plants[key]
        self._deadline_ns = NEVER_NS
        for plant in plants.values():
            repair = self._repair_of(plant, now_ns)
            self._judge_reach(plant, repair, now_ns)
            for slot, is_needed in (
                (repair.ranges, self._needs_range(plant)),
                (repair.others, self._needs_other(plant, repair)),
            ):
                if is_needed and slot.talk is None and slot.retry_ns <= now_ns:
                    self._open(plant, repair, slot, now_ns)
                if slot.talk is not None:
                    due_ns = slot.talk.dialogue.deadline_ns
                    self._deadline_ns = min(self._deadline_ns, due_ns)
                elif is_needed:
                    self._deadline_ns = min(self._deadline_ns, slot.retry_ns)

    def _judge_reach(self, plant: PlantState, repair: PlantRepair, now_ns: int) -> None:
        """Whoever has never answered is not waited for any longer, a plant that has no log not at all."""
        if repair.is_reachable is not None:
            return
        has_no_log = any(
            state.flags & FLAG_NOT_REPAIRABLE
            for streams in (plant.streams, *(each.streams for each in plant.candidates.values()))
            for state in streams.values()
        )
        refused = repair.others.failures >= self._address_count
        limit_ns = max(repair.first_ns, repair.answered_ns) + JOIN_WAIT_NS
        if now_ns >= limit_ns or (has_no_log and refused):
            self._lose_reach(plant, repair, now_ns)
        else:
            self._deadline_ns = min(self._deadline_ns, limit_ns)

    @staticmethod
    def _needs_range(plant: PlantState) -> bool:
        return any(
            hole.stage is Stage.RANGE for state in plant.streams.values() for hole in state.holes
        )

    @staticmethod
    def _needs_other(plant: PlantState, repair: PlantRepair) -> bool:
        return (
            repair.is_reachable is not True
            or bool(plant.candidates)
            or plant.unplanned
            or bool(_unhealed(plant))
        )

    # --- connections ------------------------------------------------------------------------------

    def _open(self, plant: PlantState, repair: PlantRepair, slot: Slot, now_ns: int) -> None:
        self.connections_opened += 1
        connection = self.connections_opened
        dialogue = Dialogue(
            connection,
            repair.address,
            self._random_bytes(NONCE_BYTES),
            self._arbiter.admission.key_ring,
            now_ns,
        )
        key = (plant.publisher, plant.partition)
        slot.talk = self._talks[connection] = Talk(dialogue, key, slot, slot is repair.ranges)
        self._actions.append(Connect(connection, repair.address))

    def connected(self, connection: int, _now_ns: int) -> None:
        """The connection stands."""
        talk = self._talks.get(connection)
        if talk is not None:
            self._actions.append(Write(connection, talk.dialogue.open()))

    def received(self, connection: int, data: bytes, now_ns: int) -> None:
        """Takes what was read from a connection."""
        talk = self._talks.get(connection)
        if talk is None:
            return
        try:
            talk.dialogue.feed(data, now_ns)
            while connection in self._talks and (frame := talk.dialogue.next()) is not None:
                self._plants[talk.plant].answered_ns = now_ns
                if isinstance(frame, bytes):
                    self._take_datagram(talk, frame, now_ns)
                elif isinstance(frame, PackedBooks):
                    self._take_books(talk, frame, now_ns)
                else:
                    self._take_control(talk, frame, now_ns)
        except WireError:
            self._fail(talk, now_ns)

    def closed(self, connection: int, now_ns: int) -> None:
        """The connection could not be opened, or the other side closed it."""
        talk = self._talks.get(connection)
        if talk is not None:
            self._fail(talk, now_ns)

    def _end(self, talk: Talk, now_ns: int) -> None:
        del self._talks[talk.dialogue.connection]
        self._actions.append(Close(talk.dialogue.connection))
        for state in talk.waiting:
            self._arbiter.forget_image(state, now_ns)
        self.wake()

    def _fail(self, talk: Talk, now_ns: int, *, is_other_address: bool = True) -> None:
        """Of no use: another address, later if all were tried."""
        if talk.progress and talk.is_range:
            self._succeed(talk, now_ns)
            return
        repair = self._plants.get(talk.plant)
        if is_other_address:
            self.connections_failed += 1
        if repair is not None and is_other_address:
            repair.address = (repair.address + 1) % self._address_count
        rounds = self._address_count if is_other_address else 1
        talk.slot.fail(now_ns, rounds, self._random_bytes(1)[0])
        self._end(talk, now_ns)

    def _succeed(self, talk: Talk, now_ns: int) -> None:
        talk.slot.succeed(now_ns)
        self._end(talk, now_ns)

    # --- what comes over TCP ----------------------------------------------------------------------

    def _take_control(self, talk: Talk, message: AnyControl, now_ns: int) -> None:
        match message:
            case Hello():
                self._take_hello(talk, message, now_ns)
            case StreamEnd() if talk.is_range and talk.asked:
                self._end_range(talk, now_ns)
            case SnapshotEnd() if talk.waiting:
                self._end_snapshot(talk, message, now_ns)
            case Reject():
                self._take_reject(talk, code_of(message.code), now_ns)

    def _take_hello(self, talk: Talk, hello: Hello, now_ns: int) -> None:
        if (hello.publisher, hello.partition) != talk.plant or not hello.sessions:
            self._fail(talk, now_ns)
            return
        self._plants[talk.plant].is_reachable = True
        self._arbiter.take_hello(hello, now_ns)
        plant = self._arbiter.plants[talk.plant]
        request = (
            self._range_request(talk, plant, now_ns)
            if talk.is_range
            else self._snapshot_request(talk, plant, now_ns)
        )
        if request is not None:
            data = talk.dialogue.ask(request, now_ns)
            self._actions.append(Write(talk.dialogue.connection, data))
        elif talk.is_range or plant.candidates or plant.unplanned or _unhealed(plant):
            # Recovery does not know yet what it is to say.
            self._fail(talk, now_ns, is_other_address=False)
        else:
            self._succeed(talk, now_ns)

    def _range_request(self, talk: Talk, plant: PlantState, now_ns: int) -> StreamRequest | None:
        sessions = [
            state.session
            for state in plant.streams.values()
            if any(hole.stage is Stage.RANGE for hole in state.holes)
        ]
        if not sessions or min(sessions) > max(plant.ranges):
            return None
        session = min(sessions)
        found = plant.ranges.get(session)
        oldest_seqs = {} if found is None else dict(found.oldest_seqs)
        for state in tuple(plant.streams.values()):
            if state.session == session:
                self._arbiter.skip_to_oldest(state, oldest_seqs.get(state.stream, 1), now_ns)
        for state in plant.streams.values():
            holes = [hole for hole in state.holes if hole.stage is Stage.RANGE]
            if holes and state.session == session:
                asked = Asked(state, session, holes[0].from_seq, holes[-1].to_seq + 1)
                talk.asked.append(asked)
        if not talk.asked:
            return None
        return StreamRequest(
            plant.publisher,
            plant.partition,
            session,
            tuple((int(asked.state.stream), asked.from_seq) for asked in talk.asked),
            tuple((int(asked.state.stream), asked.until_seq) for asked in talk.asked),
        )

    def _snapshot_request(
        self, talk: Talk, plant: PlantState, now_ns: int
    ) -> SnapshotRequest | None:
        if plant.session not in plant.ranges:
            return None
        talk.waiting = [state for state in _unhealed(plant) if state.image is None]
        if not talk.waiting:
            return None
        min_seqs = tuple(
            (int(state.stream), self._arbiter.expect_image(state, now_ns)) for state in talk.waiting
        )
        return SnapshotRequest(
            plant.publisher,
            plant.partition,
            plant.session,
            min_seqs,
            tuple(stream for stream, _ in min_seqs),
            self._tickers,
            packed=True,
        )

    def _take_datagram(self, talk: Talk, datagram: bytes, now_ns: int) -> None:
        if talk.is_range:
            talk.progress += self._arbiter.receive_again(datagram, now_ns)
            return
        request = talk.dialogue.request
        header = decode_header(datagram)
        if request is None or header.session != request.session:
            raise MalformedBodyError("a datagram that does not belong to the snapshot asked for")
        messages = decode_body(datagram, header)
        talk.images.setdefault(header.stream, []).extend(messages)
        self._note_progress(talk, len(messages), now_ns)

    def _take_books(self, talk: Talk, packed: PackedBooks, now_ns: int) -> None:
        request = talk.dialogue.request
        is_asked = isinstance(request, SnapshotRequest) and request.packed
        if request is None or not is_asked or packed.session != request.session:
            raise MalformedBodyError("books that do not belong to the snapshot asked for")
        # Made while recovery makes the next ones; at the end they only have to be put in their places.
        talk.books += map(unpack, packed.books)
        self._note_progress(talk, len(packed.books), now_ns)

    def _note_progress(self, talk: Talk, message_count: int, now_ns: int) -> None:
        talk.progress += message_count
        if talk.progress > SNAPSHOT_MESSAGES_MAX:
            raise MalformedBodyError(f"a snapshot of more than {SNAPSHOT_MESSAGES_MAX} messages")
        self._plants[talk.plant].snapshot_ns = now_ns

    def _end_range(self, talk: Talk, now_ns: int) -> None:
        """What is still missing of a range that brought nothing is not in the log."""
        if not talk.progress:
            for asked in talk.asked:
                self._arbiter.note_missing(asked, GapCause.PLANT, now_ns)
        self._succeed(talk, now_ns)

    def _end_snapshot(self, talk: Talk, end: SnapshotEnd, now_ns: int) -> None:
        next_seqs, counts = dict(end.next_seqs), dict(end.counts)
        waiting, talk.waiting = talk.waiting, []
        is_whole = True
        for state in waiting:
            messages = talk.images.get(state.stream, [])
            books = talk.books if state.stream is Stream.DELTA else []
            placed = (
                state.session == end.session
                and counts.get(state.stream, 0) == len(messages) + len(books)
                and self._arbiter.place_image(
                    state, next_seqs.get(state.stream, 0), messages, now_ns, books
                )
            )
            if not placed:
                is_whole = False
                self._arbiter.forget_image(state, now_ns)
        plant = self._arbiter.plants.get(talk.plant)
        trades = None if plant is None else plant.streams.get(Stream.TRADE)
        if trades is not None and trades.session == end.session:
            self._arbiter.note_published(trades, next_seqs.get(Stream.TRADE, 1), now_ns)
        if is_whole:
            self.snapshots_taken += 1
            self._succeed(talk, now_ns)
        else:
            self._fail(talk, now_ns, is_other_address=False)

    def _take_reject(self, talk: Talk, code: RecoveryCode, now_ns: int) -> None:
        if code is RecoveryCode.NOT_REPAIRABLE and talk.asked:
            for asked in talk.asked:
                self._arbiter.note_missing(asked, GapCause.PLANT, now_ns)
            self._succeed(talk, now_ns)
            return
        self._fail(talk, now_ns, is_other_address=code not in _AGAIN_LATER)


def _unhealed(plant: PlantState) -> list[StreamState]:
    """Streams of the current session that only a snapshot can make right."""
    return [
        state
        for state in plant.streams.values()
        if state.unhealed and state.session == plant.session
    ]
