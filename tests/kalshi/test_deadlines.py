"""The deadline queue against a plain dict."""

from hypothesis import given
from hypothesis import strategies as st

from tickerplant_kalshi.deadlines import DeadlineQueue

names = st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"))
steps = st.one_of(
    st.tuples(st.just("set"), names, st.integers(1, 50)),
    st.tuples(st.just("discard"), names, st.just(0)),
    st.tuples(st.just("pop"), st.just(("", "")), st.integers(0, 60)),
)


@given(st.lists(steps, max_size=200))
def test_it_behaves_like_a_dict_searched_for_its_minimum(
    script: list[tuple[str, tuple[str, str], int]],
) -> None:
    queue = DeadlineQueue()
    model: dict[tuple[str, str], int] = {}
    for verb, name, time_ns in script:
        if verb == "set":
            queue.set(name, time_ns)
            model[name] = time_ns
        elif verb == "discard":
            queue.discard(name)
            model.pop(name, None)
        else:
            due = min(((at, one) for one, at in model.items() if at <= time_ns), default=None)
            assert queue.pop_due(time_ns) == (due[1] if due else None)
            if due:
                del model[due[1]]
        assert queue.next_deadline_ns() == min(model.values(), default=None)
        assert len(queue) == len(model)
        assert (name in queue) == (name in model)


def test_moving_one_deadline_again_and_again_does_not_grow_the_queue() -> None:
    queue = DeadlineQueue()
    for time_ns in range(1, 20_000):
        queue.set(("market", "A"), time_ns)
    assert len(queue._heap) < 2_000
    assert queue.next_deadline_ns() == 19_999
