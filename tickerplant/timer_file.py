"""The kernel's timerfd, by way of ctypes: timers finer than an event loop's milliseconds.

Recovery looks at its log by it, subscribers wait for reordering by it, so this module belongs to both.
"""

import ctypes
import os
import struct
from contextlib import suppress

_CLOCK_MONOTONIC = 1
_TIMER_SPEC = struct.Struct("@qqqq")
"""struct itimerspec: interval and first expiry, each in seconds and nanoseconds."""
_COUNT_BYTES = 8
_SECOND_NS = 1_000_000_000


class TimerFile:
    """A file that becomes readable when time is up; whoever waits for it calls `clear` then."""

    def __init__(self) -> None:
        """Raises `OSError` if the kernel has no timer left, or none at all."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        if not hasattr(self._libc, "timerfd_create"):
            raise OSError("this system has no timerfd")
        self.number: int = self._libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        """The descriptor, negative once closed."""
        if self.number < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def set(self, first_ns: int, interval_ns: int = 0) -> None:
        """Be readable in `first_ns`, at once for less than 1, and then each `interval_ns` if that is not 0."""
        first, interval = divmod(max(1, first_ns), _SECOND_NS), divmod(interval_ns, _SECOND_NS)
        self._libc.timerfd_settime(self.number, 0, _TIMER_SPEC.pack(*interval, *first), None)

    def disarm(self) -> None:
        """Do not become readable any more."""
        self._libc.timerfd_settime(self.number, 0, _TIMER_SPEC.pack(0, 0, 0, 0), None)

    def clear(self) -> None:
        """It is not readable until the next time; harmless when it is not."""
        with suppress(BlockingIOError):
            os.read(self.number, _COUNT_BYTES)

    def close(self) -> None:
        """Harmless the second time."""
        if self.number >= 0:
            os.close(self.number)
            self.number = -1
