"""When checkpoints are written, and what is told to the tick log's retention about them."""

import asyncio
import time
from collections import Counter
from typing import Any

from tickerplant.core.checkpoint import CheckpointEncoder
from tickerplant.core.logformat import LogPosition
from tickerplant.core.recovery_cut import Cut
from tickerplant.runtime.checkpoints import CheckpointFile
from tickerplant.runtime.logfolder import store_position
from tickerplant.runtime.recovery_log import Begin, RecoveryLog

CONSUMER = "recovery"
"""Name of recovery's position in the log's folder."""
_SECOND_NS = 1_000_000_000


class CheckpointKeeper:
    """Writes a checkpoint after each interval and each rotation; `write_if_due` is to be called now and then."""

    def __init__(self, ticklog: RecoveryLog, begin: Begin, interval_s: float, log: Any) -> None:
        """`begin` is where recovery began, `log` a structlog logger."""
        self.counts: Counter[str] = Counter()
        self._ticklog = ticklog
        self._interval_ns = int(interval_s * _SECOND_NS)
        self._log = log
        self._writing = asyncio.Lock()
        self._written_at = begin.position if begin.is_from_checkpoint else None
        self._due_ns = time.monotonic_ns() + self._interval_ns
        if begin.position is not None and not begin.is_from_checkpoint:
            self._register(begin.position)

    async def write_if_due(self) -> None:
        """One checkpoint, if it is time for one."""
        boundary, last = self._ticklog.tail.boundary, self._written_at
        if boundary is None:
            return
        is_rotated = last is None or boundary.segment != last.segment
        # While it catches up, the interval is enough.
        if time.monotonic_ns() >= self._due_ns or (is_rotated and self._ticklog.tail.is_at_end):
            await self.write()

    async def write(self) -> None:
        """One checkpoint of the books as they are now; what goes wrong is told, and tried again later.

        Waits for one that is being written, so that the end of the process does not cut it off.
        """
        async with self._writing:
            await self._write()

    async def _write(self) -> None:
        state, boundary = self._ticklog.state, self._ticklog.tail.boundary
        self._due_ns = time.monotonic_ns() + self._interval_ns
        if boundary is None or not state.session or boundary == self._written_at:
            return
        self._written_at = boundary
        cut = state.cut()
        try:
            needed = await self._save(cut, boundary)
        except OSError as error:
            self._tell_failure("failures", error)
        else:
            if needed is not None:
                self.counts["written"] += 1
                self._register(needed)
        finally:
            cut.fail()

    async def _save(self, cut: Cut, boundary: LogPosition) -> LogPosition | None:
        """The position from which the log is needed from now on; None if the cut failed. Raises `OSError`."""
        file = CheckpointFile(self._ticklog.folder, boundary)
        try:
            encoder = CheckpointEncoder(cut, boundary)
            await asyncio.to_thread(file.write, encoder.head())
            for images in cut.slices():
                if cut.is_failed:
                    return None
                await asyncio.to_thread(file.write, encoder.block(images))
            await asyncio.to_thread(file.write, encoder.end())
            return await asyncio.to_thread(file.commit)
        finally:
            file.discard()

    def _register(self, position: LogPosition) -> None:
        """From here on the log is needed."""
        try:
            store_position(self._ticklog.folder, CONSUMER, position)
        except OSError as error:
            self._tell_failure("position_failures", error)

    def _tell_failure(self, what: str, error: OSError) -> None:
        self.counts[what] += 1
        folder = str(self._ticklog.folder)
        self._log.warning("checkpoint_failed", reason=error.strerror, folder=folder)

    def counters(self) -> dict[str, int]:
        """For the metrics."""
        names = ("written", "failures", "position_failures")
        return {f"checkpoints_{name}": self.counts[name] for name in names}
