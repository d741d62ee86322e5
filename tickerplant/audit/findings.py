"""What an audit finds: holes and contradictions, each with its cause and time. Pure."""

from collections import Counter
from enum import StrEnum

import msgspec

from tickerplant.limits import AUDIT_FINDINGS_KEPT

LOG = "log"
EXCHANGE = "exchange"
STREAM_NAMES = ("", "trade", "bbo", "ticker", "delta", "status")
"""By stream number."""


class Cause(StrEnum):
    """Where something was lost or went wrong."""

    UPSTREAM = "upstream"
    """Before the plant: exchange or the way from it."""
    PLANT = "plant"
    """The plant contradicts itself or what it was given."""
    NETWORK = "network"
    KERNEL_DROP = "kernel drop"
    CONSUMER = "consumer"
    """Who received it did not take or keep it."""
    LATE_JOIN = "late join"
    """Who should have received it was not there yet, or away, and recovery did not give it."""
    LOG_OFF = "log off"
    """The plant sent it and could not log it; the datagrams said so."""
    CAPTURE_OFF = "capture off"
    """The plant took it in and could not keep it, or was not asked to."""
    POWER_LOSS = "power loss"
    """Written, and not yet on disk when the machine stopped."""
    RETENTION = "retention"
    """Deleted because it was old or there was too much."""
    DISK = "disk"
    """Damaged, or deleted by somebody."""
    UNKNOWN = "unknown"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One hole or contradiction.

    `where`: `log`, `exchange`, or the folder of a recording. Sequences are both included, 0 where it is not about any;
    `to_seq` 0 with a `from_seq`: up to nobody knows where. Times are nanoseconds since the epoch, 0: not known.
    """

    where: str
    cause: Cause
    what: str
    session: int
    stream: str = ""
    ticker: str = ""
    from_seq: int = 0
    to_seq: int = 0
    from_ns: int = 0
    to_ns: int = 0


class Findings:
    """All findings counted, the first `AUDIT_FINDINGS_KEPT` kept."""

    def __init__(self, session: int) -> None:
        """Of one session."""
        self.session = session
        self.kept: list[Finding] = []
        self.counts: Counter[Cause] = Counter()
        self.now_ns = 0
        """When what is looked at was sent; the time of findings that name none."""

    def add(
        self,
        where: str,
        cause: Cause,
        what: str,
        *,
        stream: int = 0,
        ticker: str = "",
        seqs: tuple[int, int] = (0, 0),
        times_ns: tuple[int, int] | None = None,
    ) -> None:
        """One more."""
        self.counts[cause] += 1
        if len(self.kept) >= AUDIT_FINDINGS_KEPT:
            return
        from_ns, to_ns = times_ns or (self.now_ns, self.now_ns)
        self.kept.append(
            Finding(
                where=where,
                cause=cause,
                what=what,
                session=self.session,
                stream=STREAM_NAMES[stream],
                ticker=ticker,
                from_seq=seqs[0],
                to_seq=seqs[1],
                from_ns=from_ns,
                to_ns=to_ns,
            )
        )

    @property
    def count(self) -> int:
        """How many in all."""
        return self.counts.total()
