"""A late joiner whose snapshot fails, while the plant begins another session: it does not wait for what cannot come."""

import sys
from functools import lru_cache
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "models"))

from lossy_network import Faults, Simulation
from plant_course import MS, SECOND, Course, CourseMaker

from tickerplant.limits import SESSION_FINISH_NS
from tickerplant_subscriber import StreamCaughtUp

US = 1_000
RECOVERY_UP_NS = 300 * MS


@lru_cache(maxsize=1)
def course() -> Course:
    """A session that dies after 80 ms, then another."""
    maker = CourseMaker(seed=1, markets=6)
    maker.begin()
    maker.run(80 * MS, rate=3_000)
    maker.crash(50 * MS)
    maker.begin()
    maker.run(80 * MS, rate=3_000)
    maker.run(4 * SECOND, rate=0)
    made: Course = maker.finish()
    return made


@pytest.mark.parametrize("cut_us", [20_240, 20_260, 20_280])
def test_a_snapshot_of_a_session_that_is_over_is_not_waited_for(cut_us: int) -> None:
    """Recovery goes away between its hello and the end of its snapshot, and comes back in the next session."""
    faults = Faults(line_count=1, recovery_down=(cut_us * US, RECOVERY_UP_NS))
    simulation = Simulation(course(), 3, faults, join_after_ns=20 * MS)
    caught_up_ns: list[int] = []

    def watch(event: object, now_ns: int) -> None:
        if isinstance(event, StreamCaughtUp):
            caught_up_ns.append(now_ns - simulation.start_ns)

    simulation.watch = watch
    simulation.run_until(simulation.start_ns + 4 * SECOND)
    behind_ns = [time_ns for time_ns in caught_up_ns if time_ns > RECOVERY_UP_NS]
    assert len(behind_ns) >= 4, "the streams of state were behind"
    assert max(behind_ns) < RECOVERY_UP_NS + SESSION_FINISH_NS
    assert {state.session for state in simulation.arbiter.states()} == {course().sessions[-1]}
    simulation.check_books()
