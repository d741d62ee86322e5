"""Arbiter, recovery client, books and quotes over a seeded network on a virtual clock, at 5,000 messages a second.

`pytest tests/subscriber/test_seeded_network.py --seeds 300` is the long run; a failure names scenario and seed, and
`--first-seed` begins there.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "models"))

from lossy_network import Faults, Simulation
from plant_course import MS, SECOND, Course, CourseMaker

from tickerplant.core.keyring import KeyRing
from tickerplant.core.messages import GapCause, Stream
from tickerplant_subscriber import Gap, StreamBehind, StreamDead
from tickerplant_subscriber.position import Position, position_of

EVERY_FAULT: dict[str, Any] = {
    "loss": 0.01,
    "burst": 0.05,
    "reorder": 0.02,
    "duplicate": 0.02,
    "corrupt": 0.01,
}
KEYS = KeyRing([(7, b"k" * 32)])
QUIET_NS = 2_500 * MS
"""After the last message: heartbeats tell of everything, even if some of them are lost too."""


def steady(duration_ns: int, *, rate: int = 5_000, keys: KeyRing | None = None) -> Any:
    """One session."""

    def make(seed: int) -> Course:
        maker = CourseMaker(seed=seed, key_ring=keys)
        maker.begin()
        maker.run(duration_ns, rate=rate)
        maker.run(QUIET_NS, rate=0)
        return maker.finish()

    return make


def restarted(*, down_ns: int) -> Any:
    """Killed between append and send, then stopped in order: three sessions."""

    def make(seed: int) -> Course:
        maker = CourseMaker(seed=seed)
        maker.begin()
        maker.run(200 * MS)
        maker.crash(down_ns)
        maker.begin()
        maker.run(200 * MS)
        maker.stop(down_ns)
        maker.begin()
        maker.run(200 * MS)
        maker.run(QUIET_NS, rate=0)
        return maker.finish()

    return make


def joined_late(gap: Gap) -> bool:
    """What a late joiner did not hear is told as such."""
    return gap.cause is GapCause.LATE_JOIN


@dataclass(frozen=True)
class Scenario:
    """A course, what happens to it, how it is listened to, and which gaps are as they have to be."""

    course: Callable[[int], Course]
    faults: dict[str, Any] = field(default_factory=dict)
    listening: dict[str, Any] = field(default_factory=dict)
    gaps_allowed: Callable[[Gap], bool] = lambda _gap: False
    is_idle: bool = False
    """So little is sent that nothing may be lost."""
    seed_divisor: int = 1
    """A long one runs with fewer seeds; not at all if there are fewer than this."""


SHORT = steady(400 * MS)
SIGNED = steady(400 * MS, keys=KEYS)
TWICE_RESTARTED = restarted(down_ns=200 * MS)
AT_ONCE_RESTARTED = restarted(down_ns=1 * MS)
LATE: dict[str, Any] = {"join_after_ns": 200 * MS}

SCENARIOS = {
    "loss": Scenario(SHORT, {"loss": 0.01, "line_count": 1}),
    "loss on both lines": Scenario(SHORT, {"loss": 0.05}),
    "bursts": Scenario(SHORT, {"burst": 0.05, "line_count": 1}),
    "reorder": Scenario(SHORT, {"reorder": 0.05, "line_count": 1}),
    "duplicates": Scenario(SHORT, {"duplicate": 0.05, "loss": 0.01, "line_count": 1}),
    "corruption": Scenario(SHORT, {"corrupt": 0.01, "line_count": 1}),
    "corruption, signed": Scenario(SIGNED, {"corrupt": 0.05, "line_count": 1}, {"key_ring": KEYS}),
    "everything": Scenario(SHORT, EVERY_FAULT | {"line_count": 1}),
    "everything on both lines": Scenario(SHORT, EVERY_FAULT),
    "line A dead": Scenario(SHORT, {"loss": 0.01, "line_a_dead": (100 * MS, 300 * MS)}),
    "blackout": Scenario(
        steady(2_600 * MS),
        {"loss": 0.01, "line_count": 1, "blackout": (300 * MS, 2_300 * MS)},
        seed_divisor=2,
    ),
    "stall": Scenario(
        steady(31 * SECOND, rate=500),
        {"loss": 0.01, "stall": (500 * MS, 30_500 * MS)},
        seed_divisor=2,
    ),
    "stall at full rate": Scenario(
        steady(31 * SECOND), {"loss": 0.01, "stall": (500 * MS, 30_500 * MS)}, seed_divisor=40
    ),
    "publisher restarted": Scenario(TWICE_RESTARTED, EVERY_FAULT | {"line_count": 1}),
    "publisher restarted at once": Scenario(AT_ONCE_RESTARTED, EVERY_FAULT | {"line_count": 1}),
    "recovery restarted": Scenario(
        SHORT, {"loss": 0.01, "line_count": 1, "recovery_down": (100 * MS, 300 * MS)}
    ),
    "late join": Scenario(SHORT, EVERY_FAULT | {"line_count": 1}, LATE, joined_late),
    "late join while the log lags": Scenario(
        SHORT, {"loss": 0.01, "line_count": 1}, LATE | {"lag_ns": 60 * MS}, joined_late
    ),
    "late join on idle streams": Scenario(
        SHORT,
        {"loss": 0.01, "line_count": 1},
        {"join_after_ns": 450 * MS},
        joined_late,
        is_idle=True,
    ),
    "late join, then restarts": Scenario(
        TWICE_RESTARTED, EVERY_FAULT | {"line_count": 1}, LATE, joined_late
    ),
}
ONE_LINE_OF_LOSS = Faults(loss=0.01, line_count=1)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every scenario with its share of the seeds."""
    first = metafunc.config.getoption("--first-seed")
    count = metafunc.config.getoption("--seeds")
    if "scenario" in metafunc.fixturenames:
        cases = [
            pytest.param(scenario, seed, id=f"{name}-seed {seed}")
            for name, scenario in SCENARIOS.items()
            for seed in range(first, first + count // scenario.seed_divisor)
        ]
        metafunc.parametrize(("scenario", "seed"), cases)
    elif "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(first, first + count))


@lru_cache(maxsize=8)
def course_of(make: Callable[[int], Course], seed: int) -> Course:
    """The same course is listened to in several scenarios."""
    return make(seed)


def test_nothing_is_missing_twice_or_out_of_order(scenario: Scenario, seed: int) -> None:
    """Each message once and in order, as published; every book and quote right and LIVE."""
    course = course_of(scenario.course, seed)
    simulation = Simulation(course, seed, Faults(**scenario.faults), **scenario.listening)
    simulation.run()
    simulation.check(gaps_allowed=scenario.gaps_allowed)
    # Of hundreds of seeds a lucky one loses nothing in so short a time.
    if {"loss", "burst", "corrupt"} & set(scenario.faults) and not scenario.is_idle and seed < 4:
        assert simulation.lost_on_the_way


def test_a_position_goes_on_without_a_duplicate_or_a_hole(seed: int) -> None:
    """One subscriber stops in the first session, another goes on from there in the third: together all of it."""
    course = course_of(TWICE_RESTARTED, seed)
    first = Simulation(course, seed, Faults(loss=0.01, line_count=1))
    first.run_until(course.sends[0][0] + 150 * MS)
    place = first.arbiter.places()[1, 0]
    position = position_of(1, 0, place)
    assert isinstance(position, Position)
    later = {"join_after_ns": 900 * MS, "resume": position}
    second = Simulation(course, seed + 1, Faults(loss=0.01, line_count=1), **later)
    second.run()
    assert not first.gaps()
    assert not second.gaps()
    for key, published in course.messages.items():
        got = first.seen.messages.get(key, []) + second.seen.messages.get(key, [])
        assert got == list(enumerate(published, start=1))
    second.check_books()


def test_what_misses_nothing_flows_on_if_it_is_asked_for(seed: int) -> None:
    """Recovery is away for a while: every trade once, quotes and tickers of a market only forward, books in order."""
    course = course_of(SHORT, seed)
    faults = Faults(loss=0.05, line_count=1, recovery_down=(100 * MS, 300 * MS))
    simulation = Simulation(course, seed, faults, is_flowing=True)
    simulation.run()
    assert not simulation.gaps()
    simulation.check_books()
    states = {state.stream: state for state in simulation.arbiter.states()}
    ahead = 0
    for (_, stream), published in course.messages.items():
        got = [(seq, each) for seq, each in simulation.seen.messages[_, stream] if each is not None]
        seqs = [seq for seq, _ in got]
        assert len(set(seqs)) == len(seqs)
        assert all(each == published[seq - 1] for seq, each in got)
        assert len(got) + states[stream].messages_overtaken == len(published)
        ahead += sum(one > other for one, other in pairwise(seqs))
        if stream in (Stream.DELTA, Stream.STATUS):
            assert seqs == sorted(seqs)
        elif stream != Stream.TRADE:
            for ticker in {each.ticker for each in published}:
                own = [seq for seq, each in got if each.ticker == ticker]
                assert own == sorted(own)
    assert ahead
    # A stream may be behind once, at the start, until something of it is heard.
    behind = [each.stream for each in simulation.seen.events if isinstance(each, StreamBehind)]
    assert max(map(behind.count, (Stream.TRADE, Stream.BBO, Stream.TICKER))) <= 1


def test_without_recovery_the_same_loss_is_told(seed: int) -> None:
    """Every message is delivered or in one gap."""
    course = course_of(SHORT, seed)
    simulation = Simulation(course, seed, ONE_LINE_OF_LOSS, with_recovery=False)
    simulation.run()
    # Of hundreds of seeds a lucky one loses nothing.
    assert simulation.gaps() or not simulation.lost_on_the_way
    simulation.check_streams()


def test_recovery_that_stays_away_leaves_gaps_and_nothing_worse(seed: int) -> None:
    """The same when recovery goes down for good: nothing is waited for without end."""
    course = course_of(steady(6 * SECOND, rate=1_000), seed)
    faults = Faults(loss=0.01, line_count=1, recovery_down=(300 * MS, 60 * SECOND))
    simulation = Simulation(course, seed, faults)
    simulation.run(after_ns=20 * SECOND)
    simulation.check_streams()
    assert simulation.gaps()
    assert all(gap.cause is GapCause.NETWORK for gap in simulation.gaps())
    assert not any(state.holes for state in simulation.arbiter.states())


def test_a_dead_plant_is_found_within_three_seconds(seed: int) -> None:
    """And so is a single group that went silent, while the others go on."""
    course = course_of(steady(4 * SECOND, rate=500), seed)
    simulation = Simulation(course, seed, Faults(line_count=1, silent=(Stream.DELTA, 500 * MS)))
    dead_ns = []
    simulation.watch = lambda event, now_ns: (
        dead_ns.append((event.stream, now_ns)) if isinstance(event, StreamDead) else None
    )
    simulation.run(after_ns=4 * SECOND)
    start_ns = course.sends[0][0]
    assert dead_ns[0][0] is Stream.DELTA
    assert dead_ns[0][1] <= start_ns + 500 * MS + 3_100 * MS
    last = {
        decode_stream: time_ns
        for time_ns, _, datagrams in course.sends
        for decode_stream, _ in datagrams
    }
    others = dict(dead_ns[1:])
    assert set(others) == set(Stream) - {Stream.DELTA}
    for stream, time_ns in others.items():
        assert time_ns <= last[stream] + 3_100 * MS
