"""A timer of the event loop that fires again and again, finer than the loop's milliseconds."""

import asyncio
from collections.abc import Callable

from tickerplant.timer_file import TimerFile


class PollTimer:
    """Calls `fire` each interval; a call that comes late stands for those that it missed."""

    def __init__(self, fire: Callable[[], None]) -> None:
        """Needs a running event loop. Raises `OSError` if the kernel has no timer left."""
        self.interval_ns = 0
        self._fire = fire
        self._file = TimerFile()
        asyncio.get_running_loop().add_reader(self._file.number, self._on_readable)

    def set_interval(self, interval_ns: int) -> None:
        """Fire so often from now on; cheap if nothing changes."""
        if interval_ns != self.interval_ns:
            self.interval_ns = interval_ns
            self._file.set(interval_ns, interval_ns)

    @property
    def is_closed(self) -> bool:
        """Whether it will never fire again."""
        return self._file.number < 0

    def close(self) -> None:
        """Do not fire any more; harmless the second time."""
        if not self.is_closed:
            asyncio.get_running_loop().remove_reader(self._file.number)
            self._file.close()

    def _on_readable(self) -> None:
        self._file.clear()
        self._fire()
