"""A state machine of hypothesis: whatever plant, network, recovery and log go through, nothing is unaccounted for.

The machine draws a sequence of steps; plant, recovery's protocol, arbiter, recovery client and books are the real ones
on a virtual clock. A failing sequence is shrunk and printed.
"""

import sys
from itertools import pairwise
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

sys.path.append(str(Path(__file__).resolve().parent.parent / "models"))

from lossy_network import Faults, Simulation
from plant_course import MS, SECOND, CourseMaker

from tickerplant.core.messages import GapCause

WEATHER = {
    "fine": Faults(line_count=1),
    "loss": Faults(loss=0.05, line_count=1),
    "bursts": Faults(burst=0.2, line_count=1),
    "shuffled": Faults(reorder=0.3, duplicate=0.2, line_count=1),
    "dark": Faults(loss=1.0, line_count=1),
    "damaged": Faults(corrupt=0.1, line_count=1),
}


class RecoveryMachine(RuleBasedStateMachine):
    """Steps of the world; `is_whole`: nothing happened yet that justifies a gap."""

    @initialize(seed=st.integers(0, 2**32 - 1), join_late=st.booleans())
    def begin(self, seed: int, join_late: bool) -> None:
        self.maker = CourseMaker(seed=seed, markets=4)
        self.maker.begin()
        late = {"join_after_ns": 1 * MS} if join_late else {}
        self.simulation = Simulation(self.maker.course, seed, WEATHER["fine"], **late)
        self.scheduled = len(self.maker.course.sends)
        self.is_whole = True
        self.is_cut = False
        self._pass()

    def _pass(self) -> None:
        """What the plant has published since goes its way, up to now."""
        simulation, course = self.simulation, self.maker.course
        course.last_data_ns = self.maker.now_ns
        for index in range(self.scheduled, len(course.sends)):
            simulation._at(course.sends[index][0], simulation._send, index)
        self.scheduled = len(course.sends)
        simulation.run_until(self.maker.now_ns)
        simulation.now_ns = self.maker.now_ns

    # --- steps ------------------------------------------------------------------------------------

    @rule(duration_ms=st.integers(1, 30), rate=st.sampled_from([500, 5_000]))
    def publish(self, duration_ms: int, rate: int) -> None:
        self.maker.run(duration_ms * MS, rate=rate)
        self._pass()

    @rule(duration_ms=st.sampled_from([5, 60, 400, 1_500]))
    def be_silent(self, duration_ms: int) -> None:
        self.maker.run(duration_ms * MS, rate=0)
        self._pass()

    @rule(name=st.sampled_from(sorted(WEATHER)))
    def change_weather(self, name: str) -> None:
        self.simulation.faults = WEATHER[name]

    @rule(down_ms=st.sampled_from([1, 100, 1_500]), is_killed=st.booleans())
    def restart_the_plant(self, down_ms: int, is_killed: bool) -> None:
        if is_killed:
            self.maker.crash(down_ms * MS)
        else:
            self.maker.stop(down_ms * MS)
        self.maker.begin()
        self._pass()

    @precondition(lambda self: self.simulation.recovery.is_up)
    @rule()
    def stop_recovery(self) -> None:
        self.simulation._stop_recovery()
        self.is_whole = False

    @precondition(lambda self: not self.simulation.recovery.is_up)
    @rule()
    def start_recovery(self) -> None:
        self.simulation._start_recovery()

    @rule(lag_ms=st.sampled_from([0, 3, 30]))
    def let_the_log_lag(self, lag_ms: int) -> None:
        self.simulation.recovery.lag_ns = lag_ms * MS

    @rule(share=st.sampled_from([0.2, 0.7, 1.0]))
    def cut_the_log(self, share: float) -> None:
        for session in self.simulation.recovery.sessions.values():
            session.cut_before(share)
        self.is_whole = False

    @rule()
    def stall(self) -> None:
        self.simulation._begin_stall()
        self.maker.run(50 * MS)
        self._pass()
        self.simulation._end_stall()

    # --- what must hold ---------------------------------------------------------------------------

    @invariant()
    def nothing_is_out_of_order_or_invented(self) -> None:
        simulation = self.simulation
        for key, got in simulation.seen.messages.items():
            published = simulation.course.messages[key]
            seqs = [seq for seq, _ in got]
            assert all(one < other for one, other in pairwise(seqs)), key
            assert all(message == published[seq - 1] for seq, message in got), key

    def teardown(self) -> None:
        """The weather clears: everything is accounted for, and all is right again."""
        if not hasattr(self, "simulation"):
            return
        simulation = self.simulation
        simulation.faults = WEATHER["fine"]
        if not simulation.recovery.is_up:
            simulation._start_recovery()
        for _ in range(4):
            self.maker.run(3 * SECOND, rate=0)
            self._pass()
        self.maker.finish()
        simulation.run_until(self.maker.now_ns + SECOND)
        simulation.check_streams()
        for state in simulation.arbiter.states():
            assert not state.holes, state.holes
            assert not state.behind, state.stream
        simulation.check_books()
        if self.is_whole:
            assert {gap.cause for gap in simulation.gaps()} <= {GapCause.LATE_JOIN}


RecoveryMachine.TestCase.settings = settings(
    max_examples=20,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestRecoveryMachine = RecoveryMachine.TestCase
