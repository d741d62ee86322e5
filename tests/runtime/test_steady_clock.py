"""Time that never goes back."""

from tickerplant.limits import CLOCK_SLEW_DIVISOR
from tickerplant.steady_clock import SteadyClock

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


def test_it_tells_how_far_the_wall_clock_was_set() -> None:
    clocks = Clocks()
    steady = clocks.steady()
    clocks.go(SECOND_NS)
    assert steady.wall_step_ns() == 0
    clocks.wall -= 7 * SECOND_NS
    assert steady.wall_step_ns() == -7 * SECOND_NS
