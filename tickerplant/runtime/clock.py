"""Our clock against the exchange's, which refuses signatures whose time is some seconds off.

The exchange's time is the `Date` of a reply (plus its `Age`, if a cache gave it). `Date` is cut to whole seconds, so
an offset is known to half a second and half the round trip at best.
"""

import time
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import aiohttp

from tickerplant.errors import ClockSkewError, ExchangeUnavailableError
from tickerplant.limits import CLOCK_OFFSET_WARN_NS, NETWORK_PROBE_TIMEOUT_S
from tickerplant.runtime.checks import CheckResult, fail, ok, warn

_SECOND_NS = 1_000_000_000
_REMEDY = "run a time service: `timedatectl set-ntp true`, or chrony; `chronyc tracking` shows it"


class ClockOffset(NamedTuple):
    """Our clock minus the exchange's; positive: ours is ahead."""

    offset_ns: int
    uncertainty_ns: int

    def __str__(self) -> str:
        """In seconds, for people."""
        return (
            f"{self.offset_ns / _SECOND_NS:+.1f} s (±{self.uncertainty_ns / _SECOND_NS:.1f} s) "
            "to the exchange"
        )


async def measure_clock_offset(
    rest_url: str, timeout_s: float = NETWORK_PROBE_TIMEOUT_S
) -> ClockOffset:
    """Ask `rest_url`/exchange/status for the time. Raises `ExchangeUnavailableError`."""
    url = f"{rest_url}/exchange/status"
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session:
            before_ns = time.time_ns()
            # Also 429 and 5xx carry the time.
            async with session.get(url, headers={"Cache-Control": "no-cache"}) as reply:
                after_ns = time.time_ns()
                date, age = reply.headers.get("Date", ""), reply.headers.get("Age", "0")
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        reason = " ".join(str(error).split()) or f"no answer in {timeout_s:g} s"
        raise ExchangeUnavailableError(
            f"{url} cannot be reached ({reason}): check the network and exchange.rest_url"
        ) from error
    try:
        exchange_s = int(parsedate_to_datetime(date).timestamp()) + int(age)
    except (ValueError, OverflowError) as error:
        raise ExchangeUnavailableError(
            f"{url} answers without the time (Date: {date[:40]!r}): check exchange.rest_url"
        ) from error
    middle_ns = exchange_s * _SECOND_NS + _SECOND_NS // 2
    return ClockOffset(
        offset_ns=(before_ns + after_ns) // 2 - middle_ns,
        uncertainty_ns=_SECOND_NS // 2 + (after_ns - before_ns) // 2,
    )


def judge_clock(offset: ClockOffset, max_skew_ns: int) -> CheckResult:
    """FAIL beyond `max_skew_ns`, a warning beyond one second."""
    if abs(offset.offset_ns) > max_skew_ns:
        return fail("clock", str(offset), _REMEDY)
    if abs(offset.offset_ns) > CLOCK_OFFSET_WARN_NS:
        return warn("clock", str(offset), _REMEDY)
    return ok("clock", str(offset))


def require_clock(offset: ClockOffset, max_skew_ns: int) -> None:
    """Raise `ClockSkewError` if the exchange would refuse our signatures."""
    if abs(offset.offset_ns) > max_skew_ns:
        raise ClockSkewError(f"our clock is {offset}: {_REMEDY}")
