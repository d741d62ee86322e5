"""Sequence accounting of one upstream subscription (connection epoch and sid).

The exchange numbers the frames of a sid from 1, across all its markets, control replies included; so every frame
that carries `seq` is observed, understood or not.
"""

IN_ORDER = 0
DUPLICATE = -1


class SequenceCounter:
    """The next number expected, and plain counts of what came instead."""

    __slots__ = ("duplicates", "expected", "gaps", "missing")

    def __init__(self, expected: int = 1) -> None:
        self.expected = expected
        self.duplicates = 0
        self.gaps = 0
        self.missing = 0

    def restart(self) -> None:
        """A new sid counts from 1; the counts of what went wrong go on."""
        self.expected = 1

    def observe(self, seq: int) -> int:
        """Accounts for one frame: `IN_ORDER`, `DUPLICATE` (drop the frame), or how many frames are missing before it.

        The hot path compares with `expected` itself and calls this only on a mismatch.
        """
        missing = seq - self.expected
        if missing < 0:
            self.duplicates += 1
            return DUPLICATE
        self.expected = seq + 1
        if missing:
            self.gaps += 1
            self.missing += missing
        return missing
