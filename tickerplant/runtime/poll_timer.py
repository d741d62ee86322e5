"""A timer finer than the event loop's milliseconds: the kernel's timerfd, by way of ctypes."""

import asyncio
import ctypes
import os
import struct
from collections.abc import Callable
from contextlib import suppress

_CLOCK_MONOTONIC = 1
_TIMER_SPEC = struct.Struct("@qqqq")
"""struct itimerspec: interval and first expiry, each in seconds and nanoseconds."""
_COUNT_BYTES = 8
_SECOND_NS = 1_000_000_000


class PollTimer:
    """Calls `fire` each interval; a call that comes late stands for those that it missed."""

    def __init__(self, fire: Callable[[], None]) -> None:
        """Needs a running event loop. Raises `OSError` if the kernel has no timer left."""
        self.interval_ns = 0
        self._fire = fire
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._file: int = self._libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._file < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        asyncio.get_running_loop().add_reader(self._file, self._on_readable)

    def set_interval(self, interval_ns: int) -> None:
        """Fire so often from now on; cheap if nothing changes."""
        if interval_ns == self.interval_ns:
            return
        self.interval_ns = interval_ns
        parts = divmod(interval_ns, _SECOND_NS)
        self._libc.timerfd_settime(self._file, 0, _TIMER_SPEC.pack(*parts, *parts), None)

    @property
    def is_closed(self) -> bool:
        """Whether it will never fire again."""
        return self._file < 0

    def close(self) -> None:
        """Do not fire any more; harmless the second time."""
        if self._file >= 0:
            asyncio.get_running_loop().remove_reader(self._file)
            os.close(self._file)
            self._file = -1

    def _on_readable(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._file, _COUNT_BYTES)
        self._fire()
