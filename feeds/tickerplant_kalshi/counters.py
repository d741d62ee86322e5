"""Plain counters of one connection: incremented on the hot path, read at scrape time (pure)."""

from collections import Counter
from collections.abc import Iterator

from tickerplant.limits import UNKNOWN_NAMES_COUNTED


class FeedCounters:
    """Counts of one connection over all its epochs."""

    def __init__(self) -> None:
        self.frames = 0
        self.duplicate_frames = 0
        self.sequence_gaps = 0
        self.missing_frames = 0
        self.unknown_sid_frames = 0
        self.foreign_market_frames = 0
        self.not_chosen_frames = 0
        self.unusable_frames = 0
        self.unreadable_frames = 0
        self.contradicting_deltas = 0
        self.sids_before_ack = 0
        self.subscriptions_ended = 0
        self.connections_opened = 0
        self.connections_lost = 0
        self.unmatched_replies = 0
        self.command_timeouts = 0
        self.checks_asked = 0
        self.checks_answered = 0
        self.frame_types: Counter[str] = Counter()
        self.error_codes: Counter[str] = Counter()

    def plain(self) -> Iterator[tuple[str, int]]:
        """(name, value) of every counter that has no label."""
        return ((name, value) for name, value in vars(self).items() if isinstance(value, int))


def count_name(counts: Counter[str], name: str) -> None:
    """Counts by name; past `UNKNOWN_NAMES_COUNTED` names, new ones share `other`."""
    known = name in counts or len(counts) < UNKNOWN_NAMES_COUNTED
    counts[name[:60] if known else "other"] += 1
