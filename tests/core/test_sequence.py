"""Sequence accounting of one sid against a set of the numbers seen."""

from hypothesis import given
from hypothesis import strategies as st

from tickerplant.core.sequence import DUPLICATE, IN_ORDER, SequenceCounter


@given(st.lists(st.integers(-3, 60), max_size=60))
def test_every_number_is_new_repeated_or_shows_what_is_missing(seqs):
    """Accepted numbers ascend; accepted and missing together cover everything up to the last."""
    counter = SequenceCounter()
    accepted, last = [], 0
    for seq in seqs:
        missing = counter.observe(seq)
        if seq <= last:
            assert missing == DUPLICATE
        else:
            assert missing == seq - last - 1
            accepted.append(seq)
            last = seq
        assert counter.expected == last + 1
    assert counter.duplicates == len(seqs) - len(accepted)
    assert counter.missing == last - len(accepted)
    assert counter.gaps <= counter.missing


def test_in_order_from_one():
    """The first number of a sid is 1, and nothing is counted while all is well."""
    counter = SequenceCounter()
    assert [counter.observe(seq) for seq in range(1, 100)] == [IN_ORDER] * 99
    assert (counter.duplicates, counter.gaps, counter.missing) == (0, 0, 0)


def test_a_first_number_above_one_is_a_gap():
    """Frames lost at the very start are seen, too."""
    counter = SequenceCounter()
    assert counter.observe(4) == 3
    assert (counter.gaps, counter.missing, counter.expected) == (1, 3, 5)


def test_another_start():
    """A merging subscribe tells where the sid stands."""
    counter = SequenceCounter(90)
    assert counter.observe(90) == IN_ORDER
    assert counter.observe(89) == DUPLICATE
