"""What a subscriber makes of a plant that begins another session: neither waited for in vain nor called dead."""

import sys
from functools import lru_cache
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "models"))

from lossy_network import Faults, Simulation
from plant_course import MS, SECOND, Course, CourseMaker

from tickerplant.limits import SESSION_FINISH_NS, STREAM_DEAD_NS
from tickerplant_subscriber import SessionChanged, SessionEnded, StreamCaughtUp, StreamDead

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


def test_the_time_between_two_sessions_is_no_silence_of_the_new_one() -> None:
    """The plant is away for long, and its streams are heard of one after the other."""
    maker = CourseMaker(seed=1, markets=6)
    maker.begin()
    maker.run(80 * MS, rate=3_000)
    maker.stop(4 * STREAM_DEAD_NS)
    maker.begin()
    maker.run(80 * MS, rate=3_000)
    simulation = Simulation(maker.finish(), 3, Faults(recovery_down=(0, 60 * SECOND)))
    told: list[object] = []
    simulation.watch = lambda event, _now_ns: told.append(event)
    simulation.run_until(simulation.start_ns + 5 * STREAM_DEAD_NS)
    changes = [event for event in told if isinstance(event, SessionChanged)]
    assert len(changes) == 2
    assert len([event for event in told if isinstance(event, SessionEnded)]) >= 5
    assert [event for event in told if isinstance(event, StreamDead)] == []
