"""Wall-clock time that never jumps back, and the loop timer of a pure state machine's deadlines.

A wall clock that is set back by an hour would otherwise hold up every deadline, heartbeats included, for an hour.
"""

import asyncio
import time
from collections.abc import Callable

from tickerplant.limits import CLOCK_SLEW_DIVISOR, TIMER_WAIT_MAX_NS

NOT_ARMED = 2**63
"""Later than every deadline."""
_MILLISECOND_NS = 1_000_000


class SteadyClock:
    """Nanoseconds since the epoch: the monotonic clock plus an offset that `discipline` keeps true."""

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


class DeadlineTimer:
    """One timer of the event loop for deadlines that mostly come earlier than the one before, or do not matter yet."""

    def __init__(self, clock_ns: Callable[[], int], fire: Callable[[], None]) -> None:
        """`fire` is called at the armed deadline or a little after, and not again unless armed again."""
        self._clock_ns = clock_ns
        self._fire = fire
        self._handle: asyncio.TimerHandle | None = None
        self.armed_ns = NOT_ARMED
        """The deadline it is armed for."""

    def arm(self, deadline_ns: int) -> None:
        """Fire at `deadline_ns`, within `TIMER_WAIT_MAX_NS` in any case; does nothing if armed for earlier."""
        if self._handle is not None:
            if deadline_ns >= self.armed_ns:
                return
            self._handle.cancel()
        wait_ns = min(max(0, deadline_ns - self._clock_ns()), TIMER_WAIT_MAX_NS)
        self.armed_ns = deadline_ns
        # Rounded up to the loop's milliseconds: firing early would only mean to be armed again.
        delay_s = (wait_ns // _MILLISECOND_NS + 1) / 1_000
        self._handle = asyncio.get_running_loop().call_later(delay_s, self._run)

    def cancel(self) -> None:
        """Do not fire."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
            self.armed_ns = NOT_ARMED

    def _run(self) -> None:
        self._handle = None
        self.armed_ns = NOT_ARMED
        self._fire()
