"""Messages and events by `async for`, with mirrored books and quotes beside them.

    async with Subscriber(tickers=["KXBTC*"], streams=["trade", "delta"]) as subscriber:
        async for message in subscriber:
            ...

Books and quotes are as the plant's last datagram left them, which is ahead of the iteration by what still waits in
the queue. After a `Gap` with cause CONSUMER ask `book(ticker).live`: what is told then is the latest only.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Self, Unpack

from tickerplant.core.messages import AnyMessage, Bbo, Stream
from tickerplant.core.packed_books import WholeBook, messages_of
from tickerplant.errors import ConfigurationError
from tickerplant.limits import MESSAGES_PER_TURN, SUBSCRIBER_QUEUE_MESSAGES
from tickerplant_subscriber.book_view import BookView
from tickerplant_subscriber.dispatch import Tables
from tickerplant_subscriber.event_log import EventLog
from tickerplant_subscriber.events import Event
from tickerplant_subscriber.filters import EVERY_TICKER, TickerFilter
from tickerplant_subscriber.message_queue import Batch, Item, MessageQueue
from tickerplant_subscriber.options import (
    NetworkOptions,
    ReceiverOptions,
    WhenSlow,
    WhileRepairing,
    check_when_slow,
    check_while_repairing,
)
from tickerplant_subscriber.position import Position, first_position
from tickerplant_subscriber.reception import Reception
from tickerplant_subscriber.stats import SubscriberStats
from tickerplant_subscriber.stream_state import Messages, StreamState

EVERY_STREAM = tuple(Stream)


class Subscriber(AsyncIterator[Item]):
    """One subscription; receives while the `async with` block runs.

    `tickers` are shell patterns, `streams` members or lower-case names of `Stream`; messages of other streams are not
    handed out. `queue_messages` bounds what waits: at the bound `when_slow` "skip" drops the oldest and tells a `Gap`
    with cause CONSUMER; "block" reads nothing more from the sockets, so that the kernel drops, which recovery makes up
    for later. `while_repairing` as in `run`. `resume` is a `Position` to go on from. The options of the network are
    those of `ReceiverOptions`. Raises `ConfigurationError`, `CredentialsError`; entering raises `NetworkSetupError`.
    """

    def __init__(
        self,
        tickers: Collection[str] = EVERY_TICKER,
        streams: Collection[Stream | str] = EVERY_STREAM,
        *,
        queue_messages: int = SUBSCRIBER_QUEUE_MESSAGES,
        when_slow: WhenSlow = "skip",
        resume: Position | None = None,
        while_repairing: WhileRepairing = "hold",
        **network: Unpack[NetworkOptions],
    ) -> None:
        check_when_slow(when_slow)
        options = ReceiverOptions(**network)
        if queue_messages <= 0:
            raise ConfigurationError(f"queue_messages = {queue_messages}: must be positive")
        self._handed_out = parse_streams(streams)
        joined = self._handed_out | {Stream.STATUS}
        self._wanted = TickerFilter(tickers)
        self._queue_messages = queue_messages
        self._is_blocking = when_slow == "block"
        self._is_paused = False
        self._queue = MessageQueue(None if self._is_blocking else queue_messages)
        self._collected: list[Item] | None = None
        self._tables = Tables(
            joined,
            self._wanted,
            self._tell,
            on_update=lambda _view, update: self._collect(update),
            on_other=self._collect,
            on_bbo=self._collect,
        )
        self._reception = Reception(
            options,
            joined,
            self._wanted,
            deliver=self._deliver,
            tell=self._take_event,
            take_image=self._take_image,
            fail=self._fail,
            resume=resume,
            is_flowing=check_while_repairing(while_repairing),
        )
        self._tables.heal_with(self._reception.arbiter.heal)
        self._event_log = EventLog(self._reception.clock.now_ns)
        self._batch = Batch([])
        self._index = 0
        self._since_turn = 0
        self._waiter: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        self._closed = False

    # --- what a user asks -------------------------------------------------------------------------

    def book(self, ticker: str) -> BookView | None:
        """The mirrored book, None if DELTA is not among the streams or the plant never spoke of the ticker."""
        return self._tables.book(ticker)

    def bbo(self, ticker: str) -> Bbo | None:
        """The last quote, its state STALE if something was lost since; None if BBO is not joined or there was none."""
        return self._tables.bbo(ticker)

    def books(self) -> Collection[BookView]:
        """Every mirrored book."""
        return self._tables.books()

    def stats(self) -> SubscriberStats:
        """The counts so far."""
        return self._reception.stats(
            self._tables.mirror, messages_dropped=self._queue.messages_dropped
        )

    @property
    def position(self) -> Position | None:
        """Where the iteration stands: right after the last item that it handed out. None while nothing was heard.

        `Subscriber(resume=position)` goes on from there without a duplicate or a hole.
        """
        places = self._reception.arbiter.places()
        return first_position(places, self._queue.places(self._batch, self._index))

    @property
    def waiting_count(self) -> int:
        """Messages and events that were received and wait for the iteration."""
        return self._queue.item_count + len(self._batch.items) - self._index

    # --- life -------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Joins the groups. Raises `NetworkSetupError`."""
        self._reception.open()
        self._reception.start()
        return self

    async def __aexit__(self, *_exception: object) -> None:
        """Leaves the groups."""
        self.close()

    def close(self) -> None:
        """Leaves the groups and ends the iteration; may be called twice."""
        self._closed = True
        self._reception.close()
        self._wake()

    def __aiter__(self) -> Self:
        """The one iteration over this subscription."""
        return self

    async def __anext__(self) -> Item:
        """The next message or event; lets the loop read the sockets every `MESSAGES_PER_TURN` items."""
        self._since_turn += 1
        if self._since_turn >= MESSAGES_PER_TURN:
            self._since_turn = 0
            await asyncio.sleep(0)
        while self._index >= len(self._batch.items):
            if self._failure is not None:
                raise self._failure
            if self._closed:
                raise StopAsyncIteration
            self._batch = self._queue.take()
            self._index = 0
            if self._is_paused and 2 * self._queue.item_count <= self._queue_messages:
                self._is_paused = False
                self._reception.go_on()
            if not self._batch.items:
                await self._wait()
        item = self._batch.items[self._index]
        self._index += 1
        return item

    async def _wait(self) -> None:
        self._since_turn = 0
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self._wake()

    # --- from the arbiter -------------------------------------------------------------------------

    def _deliver(
        self, state: StreamState, first_seq: int, messages: Messages, _ts_send_ns: int
    ) -> None:
        collected: list[Item] = []
        self._collected = collected
        applied = False
        if state.stream is Stream.DELTA and self._tables.mirror is not None:
            applied = self._tables.mirror.receive(state, messages)
        elif state.stream is Stream.BBO and self._tables.quotes is not None:
            applied = self._tables.quotes.receive(state, messages)
        if not applied and state.stream in self._handed_out:
            wanted = self._wanted
            collected += [
                message for message in messages if message is not None and wanted[message.ticker]
            ]
        self._collected = None
        if collected:
            self._put(
                Batch(
                    collected,
                    state.publisher,
                    state.partition,
                    state.stream,
                    state.session,
                    first_seq,
                    first_seq + len(messages) - 1,
                    messages,
                )
            )

    def _take_image(
        self, state: StreamState, messages: Messages, books: Sequence[WholeBook]
    ) -> None:
        """The messages of a snapshot stand in the iteration as they are; books and quotes are replaced by them."""
        collected: list[Item] = []
        if state.stream in self._handed_out:
            wanted = self._wanted
            collected += [
                message for message in messages if message is not None and wanted[message.ticker]
            ]
            for book in books:
                if wanted[book.packed.ticker]:
                    collected += messages_of(book)
        events = self._collected = []
        self._tables.take_image(state, messages, books)
        self._collected = None
        collected += [item for item in events if isinstance(item, Event)]
        if collected:
            before = max(1, state.expected - 1)
            place = (state.publisher, state.partition, state.stream, state.session)
            self._put(Batch(collected, *place, before, before))

    def _put(self, batch: Batch) -> None:
        self._queue.put(batch)
        if self._is_blocking and self._queue.item_count >= self._queue_messages:
            self._is_paused = True
            self._reception.pause()
        self._wake()

    def _collect(self, message: AnyMessage) -> None:
        assert self._collected is not None
        self._collected.append(message)

    def _take_event(self, event: Event) -> None:
        self._event_log.take(event)
        self._tables.take_event(event)

    def _tell(self, event: Event) -> None:
        """Events that a datagram's messages cause stand among them, the others alone."""
        item: Item = event  # type: ignore[assignment]  # every subclass of Event is an AnyEvent
        if self._collected is not None:
            self._collected.append(item)
        else:
            self._put(Batch([item]))


def parse_streams(streams: Collection[Stream | str]) -> frozenset[Stream]:
    """Members of `Stream` from members or lower-case names. Raises `ConfigurationError`."""
    if isinstance(streams, str):
        streams = (streams,)
    names = {stream.name.lower(): stream for stream in Stream}
    parsed = set()
    for stream in streams:
        if isinstance(stream, Stream):
            parsed.add(stream)
        elif stream in names:
            parsed.add(names[stream])
        else:
            raise ConfigurationError(f"no stream is named {stream!r}; choose of {', '.join(names)}")
    if not parsed:
        raise ConfigurationError(f"no stream is chosen; choose of {', '.join(names)}")
    return frozenset(parsed)
