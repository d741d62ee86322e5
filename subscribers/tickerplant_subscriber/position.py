"""Where a subscriber stands in the streams of one plant: kept, it lets another one go on from there."""

import msgspec

StreamSeqs = tuple[tuple[int, int], ...]
"""(stream, next sequence) pairs."""


class Position(msgspec.Struct, frozen=True):
    """The next sequence of each stream in `session`, as a value that goes through JSON unchanged.

    Streams that have left `session` before the others did are in `moved_seqs` as (stream, session, next sequence).
    `msgspec.json.encode(position)` and `msgspec.json.decode(text, type=Position)` write and read it.
    """

    publisher: int
    partition: int
    session: int
    next_seqs: StreamSeqs
    moved_seqs: tuple[tuple[int, int, int], ...] = ()

    def of(self, stream: int) -> tuple[int, int] | None:
        """(session, next sequence) of a stream, None if it is not among them."""
        for moved, session, next_seq in self.moved_seqs:
            if moved == stream:
                return session, next_seq
        for kept, next_seq in self.next_seqs:
            if kept == stream:
                return self.session, next_seq
        return None


PlantPlaces = dict[int, tuple[int, int]]
"""stream -> (session, next sequence)"""


def first_position(
    places: dict[tuple[int, int], PlantPlaces],
    unfinished: dict[tuple[int, int], PlantPlaces],
) -> Position | None:
    """The position in the plant with the lowest (publisher, partition); None if no plant was heard.

    `unfinished` is what was delivered there, but not handed out to its end.
    """
    for plant in sorted(places):
        return position_of(*plant, {**places[plant], **unfinished.get(plant, {})})
    return None


def position_of(publisher: int, partition: int, places: PlantPlaces) -> Position | None:
    """The position of the streams in `places` (stream -> (session, next sequence)), None if there are none."""
    if not places:
        return None
    lowest = min(session for session, _ in places.values())
    return Position(
        publisher,
        partition,
        lowest,
        tuple(
            (stream, seq) for stream, (session, seq) in sorted(places.items()) if session == lowest
        ),
        tuple(
            (stream, session, seq)
            for stream, (session, seq) in sorted(places.items())
            if session > lowest
        ),
    )
