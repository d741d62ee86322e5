"""The timer of plant and subscriber: never early, for the earliest deadline only, and once."""

import asyncio
import time

import pytest

from tickerplant import deadline_timer
from tickerplant.deadline_timer import DeadlineTimer

MS = 1_000_000
PATIENCE_S = 20.0


class Bench:
    """A timer that notes when it fired."""

    def __init__(self) -> None:
        self.fired_ns: list[int] = []
        self.fired = asyncio.Event()
        self.timer = DeadlineTimer(time.monotonic_ns, self._fire)

    def _fire(self) -> None:
        self.fired_ns.append(time.monotonic_ns())
        self.fired.set()

    def arm(self, wait_ns: int) -> int:
        now_ns = time.monotonic_ns()
        self.timer.arm(now_ns + wait_ns)
        return now_ns + wait_ns

    async def wait(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self.fired.wait()
        self.fired.clear()


@pytest.fixture(params=["timerfd", "loop"])
def is_fine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With the kernel's timer, and where there is none."""

    def none_left() -> None:
        raise OSError("none left")

    if request.param == "loop":
        monkeypatch.setattr(deadline_timer, "TimerFile", none_left)
    return request.param == "timerfd"


async def test_it_fires_at_the_deadline_and_not_again(is_fine: bool) -> None:
    bench = Bench()
    early_ns = 0 if is_fine else MS
    for wait_ns in (0, -5 * MS, MS // 3, MS, 3 * MS):
        due_ns = bench.arm(wait_ns)
        await bench.wait()
        assert bench.fired_ns[-1] >= due_ns - early_ns
    await asyncio.sleep(0.01)
    assert len(bench.fired_ns) == 5
    bench.timer.close()
    bench.timer.close()


async def test_an_earlier_deadline_counts_and_a_later_one_does_not(is_fine: bool) -> None:
    bench = Bench()
    bench.arm(3_600_000 * MS)
    due_ns = bench.arm(2 * MS)
    bench.arm(3_600_000 * MS)
    assert bench.timer.armed_ns == due_ns
    await bench.wait()
    assert len(bench.fired_ns) == 1
    bench.timer.close()


async def test_disarmed_or_closed_it_does_not_fire(is_fine: bool) -> None:
    """Not even if its time was up already."""
    bench, other = Bench(), Bench()
    due_ns = bench.arm(MS)
    while time.monotonic_ns() < due_ns + MS:
        pass
    bench.timer.disarm()
    other.arm(0)
    await other.wait()
    assert bench.fired_ns == []
    bench.arm(MS)
    bench.timer.close()
    other.arm(3 * MS)
    await other.wait()
    assert bench.fired_ns == []
    other.timer.close()


async def test_a_far_deadline_fires_within_a_second(is_fine: bool) -> None:
    """Whoever armed it looks again: the clock may have been set."""
    bench = Bench()
    started_ns = time.monotonic_ns()
    bench.arm(3_600_000 * MS)
    await bench.wait()
    assert time.monotonic_ns() - started_ns > 900 * MS
    bench.timer.close()


async def test_a_disarmed_timer_can_be_armed_again_and_a_closed_one_cannot(is_fine: bool) -> None:
    bench, other = Bench(), Bench()
    bench.arm(MS)
    bench.timer.disarm()
    bench.arm(2 * MS)
    await bench.wait()
    bench.timer.close()
    bench.arm(0)
    other.arm(3 * MS)
    await other.wait()
    assert len(bench.fired_ns) == 1
    other.timer.close()
