"""The timer of a pure state machine's deadlines, of the plant and of a subscriber alike, as fine as the kernel's.

Timers of an event loop count whole milliseconds and round: the single millisecond for reordering would become one and a
half to two and a half.
"""

import asyncio
from collections.abc import Callable

from tickerplant.limits import TIMER_WAIT_MAX_NS
from tickerplant.timer_file import TimerFile

NOT_ARMED = 2**63
"""Later than every deadline."""


class DeadlineTimer:
    """Calls `fire` at the armed deadline or a little after; on the loop's own timers where there are no finer.

    Deadlines mostly come earlier than the one before, or do not matter yet.
    """

    def __init__(self, clock_ns: Callable[[], int], fire: Callable[[], None]) -> None:
        """`clock_ns` is what deadlines are compared with. The timer belongs to the loop on which it is armed first."""
        self.armed_ns = NOT_ARMED
        """The deadline it is armed for."""
        self._clock_ns = clock_ns
        self._fire = fire
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._file: TimerFile | None = None
        self._is_closed = False

    def arm(self, deadline_ns: int) -> None:
        """Fire once at `deadline_ns`, within `TIMER_WAIT_MAX_NS` in any case; does nothing if armed for earlier."""
        if deadline_ns >= self.armed_ns or self._is_closed:
            return
        loop = self._loop or self._enter_loop()
        self.armed_ns = deadline_ns
        wait_ns = min(max(0, deadline_ns - self._clock_ns()), TIMER_WAIT_MAX_NS)
        if self._file is not None:
            self._file.set(wait_ns)
            return
        if self._handle is not None:
            self._handle.cancel()
        self._handle = loop.call_later(wait_ns / 1e9, self._run)

    def disarm(self) -> None:
        """Do not fire, not even if the time is up already."""
        if self.armed_ns == NOT_ARMED:
            return
        self.armed_ns = NOT_ARMED
        if self._file is not None:
            self._file.disarm()
            self._file.clear()
        elif self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def close(self) -> None:
        """Never fire any more; harmless the second time."""
        if self._is_closed:
            return
        self.disarm()
        self._is_closed = True
        if self._file is not None and self._loop is not None:
            self._loop.remove_reader(self._file.number)
            self._file.close()

    def _enter_loop(self) -> asyncio.AbstractEventLoop:
        loop = self._loop = asyncio.get_running_loop()
        try:
            self._file = TimerFile()
        except OSError:
            return loop
        loop.add_reader(self._file.number, self._run)
        return loop

    def _run(self) -> None:
        if self._file is not None:
            self._file.clear()
        if self.armed_ns == NOT_ARMED:
            return
        self.armed_ns = NOT_ARMED
        self._handle = None
        self._fire()
