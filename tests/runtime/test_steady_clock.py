"""Time that never goes back, and one loop timer for many deadlines."""

import asyncio
import time

from tickerplant.limits import CLOCK_SLEW_DIVISOR
from tickerplant.runtime.steady_clock import DeadlineTimer, SteadyClock

SECOND_NS = 1_000_000_000


class Clocks:
    """A wall clock and a monotonic clock that go when told."""

    def __init__(self) -> None:
        self.wall = 1_800_000_000 * SECOND_NS
        self.monotonic = 50 * SECOND_NS

    def go(self, elapsed_ns: int) -> None:
        self.wall += elapsed_ns
        self.monotonic += elapsed_ns

    def steady(self) -> SteadyClock:
        return SteadyClock(lambda: self.wall, lambda: self.monotonic)


def test_it_is_the_wall_clock_while_nobody_sets_that() -> None:
    clocks = Clocks()
    steady = clocks.steady()
    for _ in range(5):
        clocks.go(SECOND_NS)
        assert steady.now_ns() == clocks.wall
        assert steady.discipline() == 0


def test_a_wall_clock_set_forward_is_adopted_at_once() -> None:
    clocks = Clocks()
    steady = clocks.steady()
    clocks.wall += 3_600 * SECOND_NS
    assert steady.discipline() == 0
    assert steady.now_ns() == clocks.wall
    assert steady.steps_back == 0


def test_a_wall_clock_set_back_is_approached_while_time_goes_on() -> None:
    clocks = Clocks()
    steady = clocks.steady()
    clocks.go(SECOND_NS)
    steady.discipline()
    clocks.wall -= SECOND_NS
    previous = steady.now_ns()
    for second in range(1, CLOCK_SLEW_DIVISOR + 1):
        clocks.go(SECOND_NS)
        left = steady.discipline()
        assert left == SECOND_NS - second * SECOND_NS // CLOCK_SLEW_DIVISOR
        assert steady.now_ns() > previous
        previous = steady.now_ns()
    assert steady.now_ns() == clocks.wall
    assert steady.steps_back == CLOCK_SLEW_DIVISOR


async def test_the_timer_fires_once_at_the_earliest_deadline() -> None:
    fired_ns: list[int] = []
    fired = asyncio.Event()

    def fire() -> None:
        fired_ns.append(time.monotonic_ns())
        fired.set()

    timer = DeadlineTimer(time.monotonic_ns, fire)
    now_ns = time.monotonic_ns()
    early_ns = now_ns + 30_000_000
    timer.arm(now_ns + 60_000_000)
    timer.arm(early_ns)
    timer.arm(now_ns + 45_000_000)
    await asyncio.wait_for(fired.wait(), 5)
    assert early_ns <= fired_ns[0]
    await asyncio.sleep(0.06)
    assert len(fired_ns) == 1


async def test_a_deadline_that_has_passed_fires_soon_and_a_far_one_within_a_second() -> None:
    fired = asyncio.Event()
    timer = DeadlineTimer(time.monotonic_ns, fired.set)
    timer.arm(time.monotonic_ns() - SECOND_NS)
    await asyncio.wait_for(fired.wait(), 0.5)
    fired.clear()
    started_ns = time.monotonic_ns()
    timer.arm(started_ns + 3_600 * SECOND_NS)
    await asyncio.wait_for(fired.wait(), 5)
    assert time.monotonic_ns() - started_ns > 0.9 * SECOND_NS


async def test_a_cancelled_timer_stays_silent_and_can_be_armed_again() -> None:
    fired = asyncio.Event()
    timer = DeadlineTimer(time.monotonic_ns, fired.set)
    timer.arm(time.monotonic_ns() + 10_000_000)
    timer.cancel()
    await asyncio.sleep(0.03)
    assert not fired.is_set()
    timer.arm(time.monotonic_ns())
    await asyncio.wait_for(fired.wait(), 0.5)
