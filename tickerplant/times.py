"""Points in time as people write them, and nanoseconds since 1970."""

import re
from datetime import UTC, datetime

from tickerplant.errors import UsageError

_SECOND_NS = 1_000_000_000
_FRACTION = re.compile(r"(?<=:\d\d)[.,](\d{1,9})")


def parse_time_ns(text: str) -> int:
    """Nanoseconds of a number of them, or of `2026-11-21T14:30:05.25`, in UTC unless it says otherwise.

    Raises `UsageError`.
    """
    if text.isascii() and text.isdigit():
        return int(text)
    fraction = _FRACTION.search(text)
    whole = text if fraction is None else text[: fraction.start()] + text[fraction.end() :]
    try:
        moment = datetime.fromisoformat(whole)
    except ValueError:
        raise UsageError(
            f"{text!r} is no time: write 2026-11-21T14:30:05 (UTC) or nanoseconds since 1970"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    nanoseconds = 0 if fraction is None else int(fraction[1].ljust(9, "0"))
    return int(moment.timestamp()) * _SECOND_NS + nanoseconds
