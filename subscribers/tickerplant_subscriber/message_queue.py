"""What waits for `async for`: messages and events in order, bounded, with nothing dropped silently (pure).

At the bound the oldest datagrams are dropped. What was in them is told before anything newer is handed out: per stream
and session one `Gap` with cause CONSUMER, and of the events the latest of each kind and ticker.
"""

from collections import deque
from dataclasses import dataclass, field

from tickerplant.core.messages import AnyMessage, GapCause
from tickerplant_subscriber.events import AnyEvent, Event, Gap, Live, Stale, StreamAlive, StreamDead
from tickerplant_subscriber.position import PlantPlaces
from tickerplant_subscriber.stream_state import Messages

Item = AnyMessage | AnyEvent


@dataclass(slots=True)
class Batch:
    """The wanted messages of one datagram, with the events they caused; or, with `stream` 0, an event alone.

    `messages` are all of the datagram. Of a snapshot there are none, and the sequences are those it ends before.
    """

    items: list[Item]
    publisher: int = 0
    partition: int = 0
    stream: int = 0
    session: int = 0
    from_seq: int = 0
    to_seq: int = 0
    messages: Messages = field(default_factory=list)

    def seq_after(self, done: int) -> int:
        """The sequence that follows the last message among the first `done` items."""
        for item in reversed(self.items[:done]):
            for index, message in enumerate(self.messages):
                if message is item:
                    return self.from_seq + index + 1
        return self.from_seq


_StreamKey = tuple[int, int, int, int]


class MessageQueue:
    """First in, first out; `item_max` items (None: whoever puts them sees to it), of which one batch always fits."""

    def __init__(self, item_max: int | None) -> None:
        self.item_count = 0
        self.messages_dropped = 0
        self._item_max = item_max
        self._batches: deque[Batch] = deque()
        self._lost: dict[_StreamKey, tuple[int, int]] = {}
        self._conflated: dict[tuple[object, ...], Event] = {}

    def put(self, batch: Batch) -> None:
        """Adds a batch; drops the oldest ones if they are too many now."""
        self._batches.append(batch)
        self.item_count += len(batch.items)
        if self._item_max is None:
            return
        while self.item_count > self._item_max and len(self._batches) > 1:
            self._drop_oldest()

    def take(self) -> Batch:
        """The next items to hand out, none if nothing waits."""
        if self._lost or self._conflated:
            return Batch(self._take_lost())
        if not self._batches:
            return Batch([])
        batch = self._batches.popleft()
        self.item_count -= len(batch.items)
        return batch

    def places(self, current: Batch, index: int) -> dict[tuple[int, int], PlantPlaces]:
        """Where handing out stands on the streams of which something waits.

        `current` is the batch being handed out, of which `index` items are out.
        """
        found: dict[tuple[int, int], PlantPlaces] = {}

        def note(plant: tuple[int, int], stream: int, session: int, seq: int) -> None:
            kept = found.setdefault(plant, {})
            kept[stream] = min(kept.get(stream, (session, seq)), (session, seq))

        for (publisher, partition, stream, session), (from_seq, _) in self._lost.items():
            note((publisher, partition), stream, session, from_seq)
        for batch, done in [(current, index), *((batch, 0) for batch in self._batches)]:
            plant = (batch.publisher, batch.partition)
            if batch.messages and done < len(batch.items):
                note(plant, batch.stream, batch.session, batch.seq_after(done))
            for item in batch.items[done:]:
                if isinstance(item, Gap):
                    note((item.publisher, item.partition), item.stream, item.session, item.from_seq)
        return found

    def _drop_oldest(self) -> None:
        batch = self._batches.popleft()
        self.item_count -= len(batch.items)
        if batch.stream:
            key = (batch.publisher, batch.partition, batch.stream, batch.session)
            self._lose(key, batch.from_seq, batch.to_seq)
        for item in batch.items:
            if isinstance(item, Gap):
                key = (item.publisher, item.partition, item.stream, item.session)
                self._lose(key, item.from_seq, item.to_seq)
            elif isinstance(item, Event):
                # The latest stands at its own place in time, so it moves to the end.
                kind = _conflation_key(item)
                self._conflated.pop(kind, None)
                self._conflated[kind] = item
            else:
                self.messages_dropped += 1

    def _lose(self, key: _StreamKey, from_seq: int, to_seq: int) -> None:
        lost = self._lost.get(key, (from_seq, to_seq))
        self._lost[key] = (min(lost[0], from_seq), max(lost[1], to_seq))

    def _take_lost(self) -> list[Item]:
        gaps = [
            Gap(
                stream,
                session,
                from_seq,
                to_seq,
                GapCause.CONSUMER,
                publisher=publisher,
                partition=partition,
            )
            for (publisher, partition, stream, session), (from_seq, to_seq) in self._lost.items()
        ]
        events = list(self._conflated.values())
        self._lost.clear()
        self._conflated.clear()
        return [*gaps, *events]  # type: ignore[list-item]  # every subclass of Event is an AnyEvent


def _conflation_key(event: Event) -> tuple[object, ...]:
    """Events with the same key say the same thing at different times."""
    plant = (event.publisher, event.partition)
    match event:
        case Stale() | Live():
            return (*plant, "ticker", event.stream, event.ticker)
        case StreamDead() | StreamAlive():
            return (*plant, "stream", event.stream)
    return (
        *plant,
        type(event),
        getattr(event, "stream", 0),
        getattr(event, "line", 0),
        getattr(event, "error", ""),
    )
