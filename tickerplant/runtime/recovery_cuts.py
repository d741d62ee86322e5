"""Cuts that are being read for snapshots: shared where that is right, and bounded in number."""

import time
from collections.abc import Callable
from typing import NamedTuple

from tickerplant.core.recovery_cut import Cut
from tickerplant.core.recovery_state import PlantState
from tickerplant.core.recovery_wire import SnapshotRequest
from tickerplant.limits import SNAPSHOT_CUTS_MAX, SNAPSHOT_GRACE_NS, SNAPSHOT_SHARE_NS


class _OpenCut(NamedTuple):
    """A cut that is being read: since when, and what breaks each reader off."""

    taken_ns: int
    readers: list[Callable[[], None]]


class SnapshotCuts:
    """Hands cuts of one state out; a `SnapshotSource`."""

    def __init__(self, state: PlantState, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        """`clock_ns` is of no epoch in particular."""
        self.taken = 0
        self._state = state
        self._clock_ns = clock_ns
        self._open: dict[Cut, _OpenCut] = {}
        self._shared: Cut | None = None

    def __len__(self) -> int:
        """Cuts that are being read."""
        return len(self._open)

    def take(self, request: SnapshotRequest, drop: Callable[[], None]) -> Cut | None:
        """The state now, or a moment ago if that has the sequences asked for; None: too many are being read.

        `drop` breaks the reader off, who is too slow for others that wait.
        """
        now_ns = self._clock_ns()
        shared = self._shared
        if shared is not None and not request.tickers and self._serves(shared, request, now_ns):
            self._open[shared].readers.append(drop)
            return shared
        if len(self._open) >= SNAPSHOT_CUTS_MAX:
            self._drop_slowest(now_ns)
        if len(self._open) >= SNAPSHOT_CUTS_MAX:
            return None
        cut = self._state.cut(request.tickers)
        if not request.tickers:
            self._shared = cut
        self._open[cut] = _OpenCut(now_ns, [drop])
        self.taken += 1
        return cut

    def release(self, cut: Cut, drop: Callable[[], None]) -> None:
        """It was read, or will not be; `drop` as it was given."""
        reading = self._open.get(cut)
        if reading is not None and drop in reading.readers:
            reading.readers.remove(drop)
            if not reading.readers:
                self._forget(cut)

    def _serves(self, cut: Cut, request: SnapshotRequest, now_ns: int) -> bool:
        """Whether `cut` is as good as a new one for this request."""
        if cut.is_failed or cut.session != self._state.session:
            return False
        if any(cut.next_seqs[stream - 1] < seq for stream, seq in request.min_seqs):
            return False
        is_near = now_ns - self._open[cut].taken_ns <= SNAPSHOT_SHARE_NS
        return is_near or cut.next_seqs == tuple(self._state.next_seqs)

    def _drop_slowest(self, now_ns: int) -> None:
        """Those who read the oldest cut have had their time, and others wait."""
        cut, reading = next(iter(self._open.items()))
        if now_ns - reading.taken_ns >= SNAPSHOT_GRACE_NS:
            for drop in list(reading.readers):
                drop()
            self._forget(cut)

    def _forget(self, cut: Cut) -> None:
        self._open.pop(cut, None)
        cut.fail()
        if self._shared is cut:
            self._shared = None
