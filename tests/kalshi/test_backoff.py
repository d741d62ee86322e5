"""Delays grow, stay under the cap, and depend on nothing but their arguments."""

from hypothesis import given
from hypothesis import strategies as st

from tickerplant_kalshi.backoff import Backoff, backoff_delay_ns

units = st.floats(min_value=0, max_value=1, exclude_max=True)


@given(st.integers(0, 10**6), units, st.integers(1, 10**12), st.integers(0, 10**12))
def test_delay_lies_in_the_upper_half_below_a_ceiling_that_doubles_up_to_the_cap(
    attempt: int, unit: float, base_ns: int, above_ns: int
) -> None:
    cap_ns = base_ns + above_ns
    ceiling_ns = min(cap_ns, base_ns * 2 ** min(attempt, 62))
    delay_ns = backoff_delay_ns(attempt, unit, base_ns, cap_ns)
    assert ceiling_ns // 2 <= delay_ns <= ceiling_ns
    assert delay_ns == backoff_delay_ns(attempt, unit, base_ns, cap_ns)


def test_delays_of_a_row_of_failures() -> None:
    backoff = Backoff(100, 1_000)
    assert [backoff.next_delay_ns(0.0) for _ in range(6)] == [50, 100, 200, 400, 500, 500]
    assert backoff.failures == 6
    backoff.reset()
    assert backoff.next_delay_ns(0.5) == 75


def test_the_random_number_spreads_the_delay() -> None:
    assert {backoff_delay_ns(3, unit / 10, 1_000, 10**9) for unit in range(10)} == {
        4_000 + 400 * unit for unit in range(10)
    }
