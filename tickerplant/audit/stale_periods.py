"""When books were stale, and why: one finding for all that went stale together, not one for each. Pure."""

from tickerplant.audit.findings import LOG, Cause, Findings
from tickerplant.core.messages import StaleReason, Stream

_WORDS: dict[int, str] = {
    StaleReason.SEQUENCE_GAP: "a hole in the exchange's sequence",
    StaleReason.UNUSABLE_FRAME: "a frame that could not be read",
    StaleReason.INCONSISTENT: "levels that were not the exchange's",
    StaleReason.CONNECTION_LOST: "a lost connection",
    StaleReason.SUBSCRIPTION_ENDED: "a subscription that ended",
    StaleReason.SNAPSHOT_OVERDUE: "a snapshot that did not come",
}


class _Period:
    """Books that went stale for one reason before the first of them was whole again, and so on."""

    def __init__(self, reason: int, from_ns: int) -> None:
        self.reason = reason
        self.from_ns = from_ns
        self.open: set[str] = set()
        self.count = 0
        self.first = ""
        """Ticker of the first of them."""


class StalePeriods:
    """Each period becomes a finding when its last book is live again or gone."""

    def __init__(self, findings: Findings) -> None:
        self.books_stale = 0
        self._findings = findings
        self._by_reason: dict[int, _Period] = {}
        self._of_ticker: dict[str, _Period] = {}

    def begin(self, ticker: str, reason: int, at_ns: int) -> None:
        """A book was told stale."""
        self.forget(ticker, at_ns)
        period = self._by_reason.get(reason)
        if period is None:
            period = self._by_reason[reason] = _Period(reason, at_ns)
        period.first = period.first or ticker
        period.open.add(ticker)
        period.count += 1
        self.books_stale += 1
        self._of_ticker[ticker] = period

    def end(self, ticker: str, at_ns: int) -> None:
        """A book was told ready, or is no longer told of."""
        period = self._of_ticker.pop(ticker, None)
        if period is None:
            return
        period.open.discard(ticker)
        if not period.open:
            self._close(period, at_ns)

    forget = end

    def finish(self) -> None:
        """The session is over; what is still stale stays so."""
        for period in tuple(self._by_reason.values()):
            self._close(period, 0)

    def _close(self, period: _Period, to_ns: int) -> None:
        del self._by_reason[period.reason]
        for ticker in period.open:
            del self._of_ticker[ticker]
        words = _WORDS.get(period.reason, "an unknown reason")
        until = "" if to_ns else ", to the end of the log"
        self._findings.add(
            LOG,
            Cause.UPSTREAM,
            f"{period.count} book{'s' if period.count > 1 else ''} stale by {words}{until}",
            stream=Stream.DELTA,
            ticker=period.first if period.count == 1 else "",
            times_ns=(period.from_ns, to_ns),
        )
