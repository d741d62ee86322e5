"""The raw capture of a running plant: everything that goes into the feed, kept on disk; told once a second.

Where no capture is wanted nothing of this exists, and the feed is the plain one.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tickerplant.config import CaptureConfig
from tickerplant.limits import LOG_REMINDER_S
from tickerplant.runtime.capturefolder import capture_folder
from tickerplant.runtime.captureupkeep import CaptureOptions
from tickerplant.runtime.capturewriter import CaptureWriter, open_capture
from tickerplant.steady_clock import SteadyClock
from tickerplant_kalshi.recording import InputRecorder


class FeedCapture:
    """The recorder of the feed and its files. `log` is a structlog logger."""

    def __init__(self, writer: CaptureWriter, log: Any) -> None:
        """Begins at once."""
        self.writer = writer
        self.recorder = InputRecorder(writer)
        self._log = log
        self._is_told_off = False
        self._told_warnings: frozenset[str] = frozenset()
        self._remind_at_s = 0.0
        log.info("capture_begins", folder=str(writer.folder), session=writer.session)

    def tell(self, now_s: float) -> None:
        """To be called once a second: log what is news, and what is wrong again after `LOG_REMINDER_S`."""
        status = self.writer.status()
        is_due = now_s >= self._remind_at_s
        if is_due:
            self._remind_at_s = now_s + LOG_REMINDER_S
        if not status.is_on and (is_due or not self._is_told_off):
            self._is_told_off = True
            self._log.error(
                "capture_off", reason=status.reason, inputs_lost=self.recorder.inputs_lost
            )
        warnings = frozenset(status.warnings)
        for text in sorted(warnings if is_due else warnings - self._told_warnings):
            self._log.warning("capture_warning", reason=text, rate_key=f"capture_warning {text}")
        self._told_warnings = warnings

    def counters(self) -> Mapping[str, int]:
        """For the metrics."""
        recorder = self.recorder
        return {
            "frames": recorder.frame_count,
            "inputs": recorder.input_count,
            "inputs_lost": recorder.inputs_lost,
            **self.writer.counters(),
        }

    def gauges(self) -> Mapping[str, int]:
        """For the metrics."""
        return self.writer.gauges()

    async def close(self) -> None:
        """Write what waits, and close the files."""
        self.recorder.write()
        await asyncio.to_thread(self.writer.close)


def options_of(capture: CaptureConfig) -> CaptureOptions:
    """The section [capture] as the writer takes it."""
    return CaptureOptions(
        segment_max_bytes=capture.segment_max_bytes,
        segment_max_s=capture.segment_max_s,
        retain_s=capture.retain_s,
        max_bytes=capture.max_bytes,
        compress=capture.compress,
    )


def open_feed_capture(
    capture: CaptureConfig, state_directory: Path, session: int, clock: SteadyClock, log: Any
) -> FeedCapture | None:
    """The capture of a session; None if none is wanted. Raises `CaptureError`."""
    if not capture.enabled:
        return None
    folder = capture_folder(capture.directory, state_directory)
    writer = open_capture(folder, session, options_of(capture), now_ns=clock.now_ns)
    return FeedCapture(writer, log)
