"""Capped exponential back-off with jitter; pure, the random number is an argument."""

_DOUBLINGS_MAX = 62


def backoff_delay_ns(attempt: int, random_unit: float, base_ns: int, cap_ns: int) -> int:
    """How long to wait before try `attempt` + 1, in nanoseconds.

    The ceiling is `base_ns` doubled `attempt` times (0 is the first failure), at most `cap_ns`; the delay lies between
    half of it and all of it as `random_unit`, in [0, 1), says, so that many clients do not return together.
    """
    assert 0.0 <= random_unit < 1.0
    assert attempt >= 0
    ceiling_ns = min(cap_ns, base_ns << min(attempt, _DOUBLINGS_MAX))
    half_ns = ceiling_ns // 2
    return half_ns + int((ceiling_ns - half_ns) * random_unit)


class Backoff:
    """Consecutive failures of one thing, and how long to wait after each."""

    def __init__(self, base_ns: int, cap_ns: int) -> None:
        """Start without failures; see `backoff_delay_ns`."""
        assert 0 < base_ns <= cap_ns
        self._base_ns = base_ns
        self._cap_ns = cap_ns
        self.failures = 0

    def next_delay_ns(self, random_unit: float) -> int:
        """Count one more failure; the nanoseconds to wait before the next try."""
        delay_ns = backoff_delay_ns(self.failures, random_unit, self._base_ns, self._cap_ns)
        self.failures += 1
        return delay_ns

    def reset(self) -> None:
        """It worked: the next failure waits about `base_ns` again."""
        self.failures = 0
