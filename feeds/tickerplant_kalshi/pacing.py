"""A token bucket as integer arithmetic on the caller's clock; pure.

Whoever reserves is told how long to wait and waits on its own: nothing is held meanwhile, and a cancelled wait costs no
more than its tokens.
"""

_SECOND_NS = 1_000_000_000


class TokenBucket:
    """Tokens that refill at `tokens_per_second` up to `capacity`; full at the start."""

    def __init__(self, tokens_per_second: int, capacity: int) -> None:
        """A full bucket; both numbers are at least 1."""
        assert tokens_per_second >= 1
        assert capacity >= 1
        self.tokens_per_second = tokens_per_second
        self.capacity = capacity
        self._full_at_ns = 0

    @property
    def _capacity_ns(self) -> int:
        return self.capacity * _SECOND_NS // self.tokens_per_second

    def reserve(self, tokens: int, now_ns: int) -> int:
        """Take `tokens` and return the nanoseconds to wait before using them; 0 if the bucket holds them.

        Reservations are served in the order in which they are made. More tokens than the bucket holds are allowed and
        wait for the part that must refill.
        """
        cost_ns = -(-tokens * _SECOND_NS // self.tokens_per_second)
        self._full_at_ns = max(self._full_at_ns, now_ns) + cost_ns
        return max(0, self._full_at_ns - self._capacity_ns - now_ns)

    def drain(self, now_ns: int) -> None:
        """Take all there is: the server said that we are too fast, so it counts differently."""
        self._full_at_ns = max(self._full_at_ns, now_ns + self._capacity_ns)
