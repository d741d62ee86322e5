"""Logging: structlog to standard error, for people (console) or machines (json), and the standard library's through it.

Every line has an ISO time in UTC, a level and an event name. Warnings are limited to one a second per event name; the
next one says how many were `suppressed`. What looks like a secret is never written, whatever field it came in.
"""

import json
import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, TextIO

from tickerplant.limits import (
    LOG_EVENT_NAMES_MAX,
    LOG_REPEAT_NS,
    LOG_TEXT_MAX_CHARACTERS,
    LOG_VALUE_DEPTH_MAX,
)
from tickerplant.runtime.plain_structlog import structlog

HIDDEN = "[hidden]"
RATE_KEY = "rate_key"
"""Field that, when given, replaces the event name as what a warning's rate is counted by; it is not written."""

_SECRET_FIELD = re.compile(
    r"(pem|secret|password|passphrase|token|authorization|signature|private_?key|signing_?key)$",
    re.IGNORECASE,
)
# A PEM private key, its line ends real or escaped, cut off or whole; and the value of a signature header.
_KEY_TEXT = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:\\[nr]|[A-Za-z0-9+/=\s])*(?:-----END [A-Z ]*PRIVATE KEY-----)?"
)
_SIGNATURE_TEXT = re.compile(r"(ACCESS-SIGNATURE\W{1,6})[A-Za-z0-9+/=_-]+", re.IGNORECASE)
_CONTROL_CHARACTER = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_MULTI_LINE_FIELDS = frozenset({"exception", "stack"})
_OTHER_NAMES = "(other)"

Event = MutableMapping[str, Any]


class LineWriter:
    """Writes finished lines. A stream that fails loses lines, counted; it never stops the plant."""

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream`, one flush a line."""
        self.stream = stream
        self.lost_lines = 0

    def msg(self, line: str) -> None:
        """Write one line."""
        try:
            self.stream.write(f"{line}\n")
            self.stream.flush()
        except (OSError, ValueError):
            self.lost_lines += 1

    log = debug = info = warning = warn = error = critical = fatal = exception = failure = msg


class WarningLimit:
    """A structlog processor that drops warnings beyond one per event name and `interval_ns`."""

    def __init__(
        self,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        interval_ns: int = LOG_REPEAT_NS,
    ) -> None:
        """`clock_ns` gives the time in nanoseconds."""
        self.suppressed_total = 0
        self._clock_ns = clock_ns
        self._interval_ns = interval_ns
        self._next_ns: dict[str, int] = {}
        self._suppressed: dict[str, int] = {}

    def __call__(self, _logger: object, method: str, event: Event) -> Event:
        """`event`, with the number of those suppressed before it. Raises `structlog.DropEvent`."""
        name = str(event.pop(RATE_KEY, event.get("event")))
        if method not in {"warning", "warn"}:
            return event
        if name not in self._next_ns and len(self._next_ns) >= LOG_EVENT_NAMES_MAX:
            name = _OTHER_NAMES
        now_ns = self._clock_ns()
        if now_ns < self._next_ns.get(name, now_ns):
            self.suppressed_total += 1
            self._suppressed[name] = self._suppressed.get(name, 0) + 1
            raise structlog.DropEvent
        self._next_ns[name] = now_ns + self._interval_ns
        suppressed = self._suppressed.pop(name, 0)
        if suppressed:
            event["suppressed"] = suppressed
        return event

    def take_suppressed(self) -> dict[str, int]:
        """Event name to how many are suppressed and not yet told; they count as told now."""
        taken, self._suppressed = self._suppressed, {}
        return taken


class StandardLibraryHandler(logging.Handler):
    """Hands the records of the standard library's `logging` to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log `record` with its logger's name; its format, not its text, limits its rate."""
        logger = structlog.get_logger()
        levels = (
            (logging.ERROR, logger.error),
            (logging.WARNING, logger.warning),
            (logging.INFO, logger.info),
        )
        write = next((log for level, log in levels if record.levelno >= level), logger.debug)
        fields: dict[str, Any] = {"exc_info": record.exc_info} if record.exc_info else {}
        try:
            text = record.getMessage()
        except (TypeError, ValueError, KeyError):
            text = str(record.msg)
        write(text, logger=record.name, rate_key=f"{record.name}:{record.msg}", **fields)


class LogOutput:
    """What `configure_logging` set up: its counters, and the tail of suppressed warnings."""

    def __init__(self, writer: LineWriter, limit: WarningLimit) -> None:
        """Made by `configure_logging`."""
        self._writer = writer
        self._limit = limit

    def counters(self) -> Mapping[str, int]:
        """For the metrics."""
        return {
            "lines_lost": self._writer.lost_lines,
            "warnings_suppressed": self._limit.suppressed_total,
        }

    def tell_suppressed(self) -> None:
        """Log what is suppressed and would otherwise never be told; call it now and then, and at the end."""
        for name, count in self._limit.take_suppressed().items():
            structlog.get_logger().info("warnings_suppressed", warning=name, suppressed=count)


def configure_logging(
    level: str = "info", line_format: str = "console", stream: TextIO | None = None
) -> LogOutput:
    """Set up logging for the process. `level` and `line_format` are the configuration's `log.level`, `log.format`.

    Libraries are heard from level warning on, unless `level` is debug.
    """
    stream = sys.stderr if stream is None else stream
    writer = LineWriter(stream)
    limit = WarningLimit()
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            limit,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            # Plain tracebacks: the pretty ones print local variables, and with them keys.
            structlog.processors.format_exc_info,
            hide_secrets,
            _renderer(line_format, stream),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_names: writer,
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers = [StandardLibraryHandler()]
    root.setLevel(number if level == "debug" else max(number, logging.WARNING))
    return LogOutput(writer, limit)


def _renderer(line_format: str, stream: TextIO) -> Callable[[Any, str, Event], str]:
    if line_format == "json":
        return lambda _logger, _method, event: json.dumps(event)
    colors = stream.isatty() and not os.environ.get("NO_COLOR")
    return structlog.dev.ConsoleRenderer(
        colors=colors, exception_formatter=structlog.dev.plain_traceback
    )


def hide_secrets(_logger: object, _method: str, event: Event) -> Event:
    """A structlog processor: `event` of plain values, bounded, on one line each, and without secrets."""
    return {
        str(name): _clean(name, value, LOG_VALUE_DEPTH_MAX, multi_line=name in _MULTI_LINE_FIELDS)
        for name, value in event.items()
    }


def _clean(name: object, value: object, depth: int, *, multi_line: bool = False) -> object:
    if isinstance(name, str | bytes) and _SECRET_FIELD.search(_text_of(name)):
        return HIDDEN
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        if depth == 0:
            return "[too deep]"
        if isinstance(value, Mapping):
            return {str(key): _clean(key, item, depth - 1) for key, item in value.items()}
        return [_clean("", item, depth - 1) for item in value]
    text = _text_of(value) if isinstance(value, str | bytes) else repr(value)
    text = _SIGNATURE_TEXT.sub(rf"\1{HIDDEN}", _KEY_TEXT.sub(HIDDEN, text))
    if len(text) > LOG_TEXT_MAX_CHARACTERS:
        text = f"{text[:LOG_TEXT_MAX_CHARACTERS]}… ({len(text)} characters)"
    if multi_line:
        return text
    return _CONTROL_CHARACTER.sub(lambda match: repr(match[0])[1:-1], text)


def _text_of(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")
