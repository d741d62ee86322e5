"""Positions: what is kept of a subscriber, and reading it back."""

from typing import Any

import msgspec

from tickerplant.core.messages import Stream
from tickerplant_subscriber.position import Position, first_position, position_of

SESSION = 1_000


def test_a_position_goes_through_json_unchanged() -> None:
    position = Position(1, 0, SESSION, ((1, 5), (4, 2**63)), ((5, SESSION + 1, 2),))
    assert msgspec.json.decode(msgspec.json.encode(position), type=Position) == position


def test_streams_that_have_moved_on_keep_their_own_session() -> None:
    places = {4: (SESSION, 7), 1: (SESSION, 9), 5: (SESSION + 1, 2)}
    position = position_of(3, 2, places)
    assert position == Position(3, 2, SESSION, ((1, 9), (4, 7)), ((5, SESSION + 1, 2),))
    assert {stream: position.of(stream) for stream in places} == places
    assert position.of(2) is None
    assert position_of(3, 2, {}) is None


def test_the_arbiter_knows_where_delivery_stands(bench: Any) -> None:
    assert first_position(bench.arbiter.places(), {}) is None
    bench.data(1, 3)
    bench.data(9)
    bench.data(1, stream=Stream.STATUS)
    assert first_position(bench.arbiter.places(), {}) == Position(1, 0, SESSION, ((1, 4), (5, 2)))
    unfinished = {(1, 0): {1: (SESSION, 2)}}
    halfway = Position(1, 0, SESSION, ((1, 2), (5, 2)))
    assert first_position(bench.arbiter.places(), unfinished) == halfway
    bench.data(1, 2, session=SESSION + 1)
    assert first_position(bench.arbiter.places(), {}) == Position(
        1, 0, SESSION, ((5, 2),), ((1, SESSION + 1, 3),)
    )
