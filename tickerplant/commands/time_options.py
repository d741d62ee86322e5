"""Points in time on the command line, as nanoseconds since the epoch."""

import argparse
from datetime import UTC, datetime

from tickerplant import times
from tickerplant.errors import UsageError

_SECOND_NS = 1_000_000_000


def parse_time_ns(text: str) -> int:
    """Nanoseconds of a number of them, or of `2026-11-21T14:30`, in UTC unless it says otherwise.

    Raises what argparse turns into a usage error.
    """
    try:
        return times.parse_time_ns(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parse_session(text: str) -> int:
    """The number of a session; -1 for `last`. Raises what argparse turns into a usage error."""
    if text == "last":
        return -1
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a session: give its number, or last")
    return int(text)


def time_text(time_ns: int) -> str:
    """Date and time in UTC with microseconds."""
    seconds, nanoseconds = divmod(time_ns, _SECOND_NS)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{nanoseconds // 1000:06d}"
