"""The token bucket lets a burst through, then exactly its rate."""

from hypothesis import given
from hypothesis import strategies as st

from tickerplant_kalshi.pacing import TokenBucket

SECOND_NS = 1_000_000_000


def test_a_full_bucket_is_free_and_then_the_rate_counts() -> None:
    bucket = TokenBucket(tokens_per_second=200, capacity=400)
    waits = [bucket.reserve(10, SECOND_NS) for _ in range(43)]
    assert waits[:40] == [0] * 40
    assert waits[40:] == [50_000_000, 100_000_000, 150_000_000]


def test_it_refills_up_to_its_capacity_and_no_more() -> None:
    bucket = TokenBucket(tokens_per_second=10, capacity=20)
    assert bucket.reserve(20, 0) == 0
    assert bucket.reserve(20, 1_000 * SECOND_NS) == 0
    assert bucket.reserve(1, 1_000 * SECOND_NS) == SECOND_NS // 10


def test_drain_makes_the_next_one_wait() -> None:
    bucket = TokenBucket(tokens_per_second=10, capacity=50)
    bucket.drain(0)
    assert bucket.reserve(10, 0) == SECOND_NS
    bucket.drain(100 * SECOND_NS)
    assert bucket.reserve(10, 102 * SECOND_NS) == 0


@given(
    st.integers(1, 5_000),
    st.integers(1, 5_000),
    st.lists(st.tuples(st.integers(1, 100), st.integers(0, SECOND_NS)), max_size=60),
)
def test_tokens_used_never_exceed_capacity_plus_what_refilled(
    rate: int, capacity: int, requests: list[tuple[int, int]]
) -> None:
    bucket = TokenBucket(rate, capacity)
    now_ns = start_ns = 10**18
    used = []
    for tokens, pause_ns in requests:
        now_ns += pause_ns
        used.append((now_ns + bucket.reserve(tokens, now_ns), tokens))
    assert used == sorted(used, key=lambda use: use[0])
    total = 0
    for at_ns, tokens in used:
        total += tokens
        refilled = (at_ns - start_ns) * rate / SECOND_NS
        assert total <= capacity + refilled + 1e-3 + rate * len(used) / SECOND_NS
