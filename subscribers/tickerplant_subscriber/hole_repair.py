"""What is done about one hole after the other, and the UDP side of recovery (pure)."""

from collections.abc import Callable

from tickerplant.core.messages import GapCause
from tickerplant.core.recovery_wire import RecoveryCode, decode_gap_fill, is_gap_fill
from tickerplant.errors import WireError
from tickerplant.limits import (
    GAP_FILL_AT_NS,
    GAP_FILL_HOLES_MAX,
    GAP_FILL_IN_FLIGHT_WAIT_NS,
    GAP_FILL_MESSAGES_MAX,
    REORDER_DATAGRAMS_MAX,
    REPAIR_GIVE_UP_NS,
    REPAIR_NO_ROOM_WAIT_NS,
    SESSION_FINISH_NS,
)
from tickerplant_subscriber.arbiter import Arbiter
from tickerplant_subscriber.gap_requests import GapRequests, code_of, holes_of
from tickerplant_subscriber.plant_state import PlantKey, PlantState
from tickerplant_subscriber.recovery_actions import Action, PlantRepair, SendDatagram
from tickerplant_subscriber.stream_state import NEVER_NS, Hole, Stage, StreamState


class HoleRepair:
    """Base of the recovery client: holes that are due become requests over UDP, or wait for its connections."""

    def __init__(
        self,
        arbiter: Arbiter,
        address_count: int,
        random_bytes: Callable[[int], bytes],
        *,
        is_skipping: bool,
    ) -> None:
        assert address_count > 0
        self.gap_requests = GapRequests(random_bytes)
        self.unusable_datagrams = 0
        """Replies that do not decode, are not signed, or answer nothing that was asked."""
        self._arbiter = arbiter
        self._address_count = address_count
        self._random_bytes = random_bytes
        self._is_skipping = is_skipping
        self._actions: list[Action] = []
        self._plants: dict[PlantKey, PlantRepair] = {}
        self._deadline_ns = NEVER_NS

    def take_actions(self) -> list[Action]:
        """What is to be done now, in order."""
        actions, self._actions = self._actions, []
        return actions

    # --- what the arbiter asks --------------------------------------------------------------------

    def is_out_of_reach(self, publisher: int, partition: int) -> bool:
        """Whether recovery of a plant is known not to answer."""
        repair = self._plants.get((publisher, partition))
        return repair is not None and repair.is_reachable is False

    @property
    def is_reachable(self) -> bool | None:
        """Whether recovery of every plant heard answers; None if that is not known yet."""
        known = [repair.is_reachable for repair in self._plants.values()]
        if not known or None in known:
            return None
        return all(known)

    def wake(self) -> None:
        """There is something to ask."""
        self._deadline_ns = 0

    def take_hole(self, state: StreamState, hole: Hole, now_ns: int) -> bool:
        """Does the next step about a hole that is due; False if it is to be a gap."""
        plant = self._arbiter.plant_of(state)
        repair = self._repair_of(plant, now_ns)
        if repair.is_reachable is False:
            return False
        if hole.stage is Stage.WAITING:
            if len(state.buffered) >= REORDER_DATAGRAMS_MAX and hole is not state.holes[0]:
                hole.deadline_ns = now_ns + REPAIR_NO_ROOM_WAIT_NS
                return True
            self._begin(plant, state, hole)
        if hole.stage is Stage.FILLING:
            self._ask_for(repair, state, hole, now_ns)
        if hole.stage in (Stage.RANGE, Stage.SNAPSHOT):
            self._wait_for(plant, repair, state, hole, now_ns)
        return hole.stage is not Stage.LOST

    def _begin(self, plant: PlantState, state: StreamState, hole: Hole) -> None:
        is_skipped = hole.cause is GapCause.KERNEL_DROP and self._is_skipping
        if is_skipped or (hole.cause is GapCause.LATE_JOIN and not plant.resumed):
            self._arbiter.note_unfillable(state, hole, hole.cause)
            return
        missing = sum(each.to_seq - each.from_seq + 1 for each in state.holes)
        is_small = missing <= GAP_FILL_MESSAGES_MAX and len(state.holes) <= GAP_FILL_HOLES_MAX
        is_current = state.session == plant.session and hole.cause is not GapCause.LATE_JOIN
        hole.stage = Stage.FILLING if is_small and is_current else Stage.RANGE

    def _ask_for(self, repair: PlantRepair, state: StreamState, hole: Hole, now_ns: int) -> None:
        """Over UDP, as long as attempts are left."""
        if hole.attempts >= len(GAP_FILL_AT_NS):
            hole.stage = Stage.RANGE
            return
        address = (repair.address + hole.attempts) % self._address_count
        request = self.gap_requests.ask(state, hole, address, self._key(), now_ns)
        if request is not None:
            self._actions.append(SendDatagram(address, request))
        else:
            hole.deadline_ns = now_ns + GAP_FILL_IN_FLIGHT_WAIT_NS

    def _wait_for(
        self, plant: PlantState, repair: PlantRepair, state: StreamState, hole: Hole, now_ns: int
    ) -> None:
        """Over TCP, as long as something comes."""
        is_old = state.session < plant.session and not plant.resumed
        patience_ns = SESSION_FINISH_NS if is_old else REPAIR_GIVE_UP_NS
        if not hole.limit_ns:
            hole.limit_ns = now_ns + patience_ns
            self.wake()
        is_range = hole.stage is Stage.RANGE
        progress_ns = state.progress_ns if is_range else repair.snapshot_ns
        limit_ns = max(hole.limit_ns, progress_ns + patience_ns)
        if now_ns < limit_ns:
            hole.deadline_ns = limit_ns
            return
        if now_ns - max(repair.answered_ns, repair.first_ns) >= REPAIR_GIVE_UP_NS:
            self._lose_reach(plant, repair, now_ns)
        if is_range and repair.is_reachable:
            self._arbiter.note_unfillable(state, hole, hole.cause)
        else:
            hole.stage = Stage.LOST

    def _key(self) -> tuple[int, bytes] | None:
        key_ring = self._arbiter.admission.key_ring
        return None if key_ring is None else key_ring.signing_key

    def _repair_of(self, plant: PlantState, now_ns: int) -> PlantRepair:
        key = (plant.publisher, plant.partition)
        repair = self._plants.get(key)
        if repair is None:
            repair = self._plants[key] = PlantRepair(now_ns)
        return repair

    def _lose_reach(self, plant: PlantState, repair: PlantRepair, now_ns: int) -> None:
        """Nobody answers: from now on holes are gaps, until somebody does."""
        repair.is_reachable = False
        for state in plant.streams.values():
            for hole in state.holes:
                if hole.stage is not Stage.LOST:
                    hole.deadline_ns = now_ns

    # --- what comes over UDP ----------------------------------------------------------------------

    def receive_datagram(self, address: int, datagram: bytes, now_ns: int) -> None:
        """Takes what came to the UDP socket of an address: a repaired datagram or a reply."""
        if not is_gap_fill(datagram):
            self._arbiter.receive_again(datagram, now_ns)
            return
        key_ring = self._arbiter.admission.key_ring
        try:
            reply = decode_gap_fill(datagram, None if key_ring is None else key_ring.keys)
        except WireError:
            self.unusable_datagrams += 1
            return
        asked = self.gap_requests.take_reply(reply, address)
        if asked is None:
            self.unusable_datagrams += 1
            return
        repair = self._plants.get((reply.publisher, reply.partition))
        if repair is not None:
            repair.answered_ns = now_ns
        code = code_of(reply.code)
        for hole in holes_of(asked):
            if code is RecoveryCode.SERVED and asked.state.progress_ns >= asked.sent_ns:
                # It brought something, and there is more: at once again.
                hole.attempts = 0
                hole.deadline_ns = now_ns
            elif code is RecoveryCode.NOT_REPAIRABLE:
                self._arbiter.note_unfillable(asked.state, hole, GapCause.PLANT)
            elif code not in (RecoveryCode.SERVED, RecoveryCode.NOT_YET, RecoveryCode.THROTTLED):
                # The hello says more about it.
                hole.attempts = len(GAP_FILL_AT_NS)
                hole.deadline_ns = now_ns
        self._arbiter.proceed(asked.state, now_ns)

    def note_refused(self, address: int, now_ns: int) -> None:
        """Nobody listens at the UDP port of an address."""
        for asked in self.gap_requests.forget_address(address):
            for hole in holes_of(asked):
                if self._address_count == 1:
                    hole.attempts = len(GAP_FILL_AT_NS)
                hole.deadline_ns = now_ns
