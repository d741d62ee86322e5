"""One timer of a subscriber, as fine as the kernel's: the wait for reordering is a single millisecond.

Timers of the event loop count whole milliseconds and round, which would make one out of two to two and a half.
"""

import asyncio
from collections.abc import Callable

from tickerplant.timer_file import TimerFile

_NOT_ARMED = 0x7FFF_FFFF_FFFF_FFFF


class DeadlineTimer:
    """Calls `fire` once, at the armed deadline or a little after; on the loop's own timers where there are no finer."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fire: Callable[[], None]) -> None:
        self.armed_ns = _NOT_ARMED
        """The deadline it is armed for; far away when it is not."""
        self._loop = loop
        self._fire = fire
        self._handle: asyncio.TimerHandle | None = None
        self._file: TimerFile | None = None
        try:
            self._file = TimerFile()
        except OSError:
            return
        loop.add_reader(self._file.number, self._run)

    def arm(self, deadline_ns: int, now_ns: int) -> None:
        """Fire at `deadline_ns`; nothing changes if it is armed for earlier."""
        if deadline_ns >= self.armed_ns:
            return
        self.armed_ns = deadline_ns
        wait_ns = max(0, deadline_ns - now_ns)
        if self._file is not None:
            self._file.set(wait_ns)
            return
        if self._handle is not None:
            self._handle.cancel()
        self._handle = self._loop.call_later(wait_ns / 1e9, self._run)

    def disarm(self) -> None:
        """Do not fire."""
        if self.armed_ns == _NOT_ARMED:
            return
        self.armed_ns = _NOT_ARMED
        if self._file is not None:
            self._file.disarm()
            self._file.clear()
        elif self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def close(self) -> None:
        """Never fire any more; harmless the second time."""
        self.disarm()
        if self._file is not None and self._file.number >= 0:
            self._loop.remove_reader(self._file.number)
            self._file.close()

    def _run(self) -> None:
        if self._file is not None:
            self._file.clear()
        if self.armed_ns == _NOT_ARMED:
            return
        self.armed_ns = _NOT_ARMED
        self._handle = None
        self._fire()
