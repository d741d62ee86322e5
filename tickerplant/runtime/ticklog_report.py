"""What operators are told of the tick log: each change once, and what is still wrong once a minute."""

from typing import Any

from tickerplant.limits import LOG_REMINDER_S
from tickerplant.runtime.ticklog import LogStatus

_ON = ""


class TickLogReport:
    """Compares the log's status with what was told; `tell` is called once a second."""

    def __init__(self, log: Any) -> None:
        """`log` is a structlog logger."""
        self._log = log
        self._told_code = _ON
        self._is_alarmed = False
        self._told_warnings: frozenset[str] = frozenset()
        self._remind_at_s = 0.0

    def tell(self, status: LogStatus, now_s: float) -> None:
        """Log what is news, or has not been said for `LOG_REMINDER_S`."""
        is_due = now_s >= self._remind_at_s
        if is_due:
            self._remind_at_s = now_s + LOG_REMINDER_S
        self._tell_state(status, is_due=is_due)
        self._tell_alarm(status, is_due=is_due)
        warnings = frozenset(status.warnings)
        for text in sorted(warnings if is_due else warnings - self._told_warnings):
            self._log.warning("ticklog_warning", reason=text, rate_key=f"ticklog_warning {text}")
        self._told_warnings = warnings

    def _tell_state(self, status: LogStatus, *, is_due: bool) -> None:
        code = _ON if status.is_on else status.code
        if code != self._told_code or (code and is_due):
            if code:
                self._log.error("ticklog_off", code=code, reason=status.reason)
            else:
                self._log.info("ticklog_on", session=status.session, segment=status.segment)
        self._told_code = code

    def _tell_alarm(self, status: LogStatus, *, is_due: bool) -> None:
        if status.is_nearly_full and (is_due or not self._is_alarmed):
            self._log.error(
                "ticklog_nearly_full", bytes=status.total_bytes, max_bytes=status.max_bytes
            )
        self._is_alarmed = status.is_nearly_full
