"""Many named deadlines, the earliest first, each of which may be moved at any time; pure.

Due deadlines come out by time, then name, so that the same calls give the same order.
"""

from heapq import heapify, heappop, heappush

Name = tuple[str, str]
"""Kind and key of a deadline."""

_SLACK = 1_024


class DeadlineQueue:
    """One deadline per name; moving one leaves its old place in the heap to be skipped, or swept when many."""

    def __init__(self) -> None:
        """Empty."""
        self._current: dict[Name, int] = {}
        self._heap: list[tuple[int, Name]] = []

    def __len__(self) -> int:
        """Deadlines set."""
        return len(self._current)

    def __contains__(self, name: Name) -> bool:
        """Whether a deadline of that name is set."""
        return name in self._current

    def set(self, name: Name, deadline_ns: int) -> None:
        """Set or move the deadline of `name`."""
        if self._current.get(name) == deadline_ns:
            return
        self._current[name] = deadline_ns
        if len(self._heap) > 2 * len(self._current) + _SLACK:
            self._heap = [(time_ns, name) for name, time_ns in self._current.items()]
            heapify(self._heap)
        else:
            heappush(self._heap, (deadline_ns, name))

    def discard(self, name: Name) -> None:
        """Drop the deadline of `name`, if there is one."""
        self._current.pop(name, None)

    def next_deadline_ns(self) -> int | None:
        """The earliest deadline; None if there is none."""
        while self._heap:
            deadline_ns, name = self._heap[0]
            if self._current.get(name) == deadline_ns:
                return deadline_ns
            heappop(self._heap)
        return None

    def pop_due(self, now_ns: int) -> Name | None:
        """Take out the earliest deadline that is not after `now_ns`; None if there is none."""
        deadline_ns = self.next_deadline_ns()
        if deadline_ns is None or deadline_ns > now_ns:
            return None
        _, name = heappop(self._heap)
        del self._current[name]
        return name
