"""Wall-clock time that never jumps back, of the plant and of a subscriber alike.

A wall clock that is set back by an hour would otherwise hold up every deadline, heartbeats included, for an hour.
"""

import time
from collections.abc import Callable

from tickerplant.limits import CLOCK_SLEW_DIVISOR

_MILLISECOND_NS = 1_000_000


class SteadyClock:
    """Nanoseconds since the epoch: the monotonic clock plus an offset, which `discipline` keeps true."""

    def __init__(
        self,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Equal to the wall clock now."""
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns
        self._offset_ns = wall_ns() - monotonic_ns()
        self._disciplined_ns = monotonic_ns()
        self.steps_back = 0
        """How often the wall clock was found behind ours."""

    def now_ns(self) -> int:
        """The time; call it as often as you like."""
        return self._monotonic_ns() + self._offset_ns

    def wall_step_ns(self) -> int:
        """How far the wall clock is ahead of ours, or, negative, behind."""
        return self._wall_ns() - self.now_ns()

    def discipline(self) -> int:
        """Follow the wall clock; call it about once a second. Returns by how much ours is ahead still.

        A wall clock ahead of ours is adopted at once; one that is behind is approached by one part in
        `CLOCK_SLEW_DIVISOR` of the time gone by, so that time goes on all the while.
        """
        monotonic_ns = self._monotonic_ns()
        elapsed_ns = monotonic_ns - self._disciplined_ns
        self._disciplined_ns = monotonic_ns
        ahead_ns = monotonic_ns + self._offset_ns - self._wall_ns()
        if ahead_ns > _MILLISECOND_NS:
            self.steps_back += 1
            slewed_ns = min(ahead_ns, elapsed_ns // CLOCK_SLEW_DIVISOR)
        else:
            slewed_ns = ahead_ns
        self._offset_ns -= slewed_ns
        return ahead_ns - slewed_ns
