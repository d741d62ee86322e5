"""The books of the plant, mirrored from the delta stream (pure).

    SYNCING  nothing proven yet: a new book, a new session, or cleared with an image to follow
    LIVE     equals the plant's book at this place of the sequence
    STALE    may be wrong: the plant said so, or messages were lost, or it contradicts the plant

Levels of a book that is not LIVE are kept and follow the absolute sizes of `LevelUpdate`; only a checksum of the
plant (`BookReady`, `BookVerify`) that equals ours makes it LIVE, whatever was lost before. A dead stream that comes
back without having missed anything makes LIVE again what its silence made STALE.

While the stream is behind, books go on in themselves, with every check and callback, but none of them reads as LIVE.
"""

import gc
from collections.abc import Callable, ItemsView, Iterator, Mapping, Sequence

from tickerplant.core.book import Level
from tickerplant.core.messages import (
    AnyMessage,
    BookClear,
    BookLevels,
    BookReady,
    BookStale,
    BookState,
    BookVerify,
    LevelUpdate,
    StaleReason,
    Stream,
)
from tickerplant.core.packed_books import IS_LIVE, WholeBook
from tickerplant.limits import BOOK_PARTS_MAX, MARKETS_MAX, PRICE_E4_MAX, SIZE_E2_MAX
from tickerplant_subscriber.book_view import BookView, MirroredBook, PlantBooks
from tickerplant_subscriber.events import (
    Event,
    Gap,
    Live,
    SessionChanged,
    SessionEnded,
    Stale,
    StreamAlive,
    StreamBehind,
    StreamCaughtUp,
    StreamDead,
)
from tickerplant_subscriber.stream_state import Messages, StreamState

OnUpdate = Callable[[BookView, LevelUpdate], None]
OnOther = Callable[[AnyMessage], None]


class Mirror:
    """All wanted books of all plants.

    `wanted[ticker]` chooses; `tell` gets `Stale` and `Live`; `on_update` each `LevelUpdate` after it was applied to a
    LIVE book; `on_other` every other message of a wanted ticker after it was applied. `heal` is called whenever a book
    of a stream is found not to be the plant's, which says that its own is right.
    """

    def __init__(
        self,
        wanted: Mapping[str, bool],
        tell: Callable[[Event], None],
        on_update: OnUpdate | None = None,
        on_other: OnOther | None = None,
    ) -> None:
        self.books_refused = 0
        self.mismatches = 0
        self.heal: Callable[[StreamState], None] = _leave_it
        self._wanted = wanted
        self._tell = tell
        self._on_update = on_update
        self._on_other = on_other
        self._plants: dict[tuple[int, int], PlantBooks] = {}
        self._apply_other: dict[type, Callable[[StreamState, MirroredBook, AnyMessage], None]] = {
            LevelUpdate: self._apply_update,
            BookStale: self._apply_stale,
            BookClear: self._apply_clear,
            BookLevels: self._apply_levels,
            BookReady: self._apply_checksum,
            BookVerify: self._apply_checksum,
        }

    def view(self, ticker: str) -> BookView | None:
        """The book of `ticker`, None if the plant never spoke of it."""
        for books in self._plants.values():
            view = books.views.get(ticker)
            if view is not None:
                return view
        return None

    def views(self) -> Iterator[BookView]:
        """Every book."""
        for books in self._plants.values():
            yield from books.views.values()

    # --- messages ---------------------------------------------------------------------------------

    def receive(self, state: StreamState, messages: Messages) -> bool:
        """Applies messages of the delta stream, in order; False, with nothing done, if they are of an old session."""
        books = self._plants.get((state.publisher, state.partition))
        if books is None or books.session != state.session:
            return False
        views = books.views
        on_update = self._on_update
        for message in messages:
            if message is None:
                continue
            view = views.get(message.ticker)
            if view is None:
                view = self._open_view(books, message.ticker)
                if view is None:
                    continue
            if view._live and type(message) is LevelUpdate:
                if view.follow(message):
                    if on_update is not None:
                        on_update(view, message)
                    continue
                self._make_stale(state, view, StaleReason.INCONSISTENT)
                self.heal(state)
            self._receive_other(state, view, message)
        return True

    def _receive_other(self, state: StreamState, view: MirroredBook, message: AnyMessage) -> None:
        apply = self._apply_other.get(type(message))
        if apply is not None:
            apply(state, view, message)
        if self._on_other is not None:
            self._on_other(message)

    def _open_view(self, books: PlantBooks, ticker: str) -> MirroredBook | None:
        if not ticker or not self._wanted[ticker]:
            return None
        if len(books.views) >= MARKETS_MAX:
            for idle in [name for name, view in books.views.items() if not view.live]:
                del books.views[idle]
            if len(books.views) >= MARKETS_MAX:
                self.books_refused += 1
                return None
        view = books.views[ticker] = MirroredBook(ticker, books)
        return view

    def _apply_update(self, _state: StreamState, view: MirroredBook, message: AnyMessage) -> None:
        """A level of a book that is not LIVE: its absolute size is right at this place whatever was lost."""
        assert type(message) is LevelUpdate
        if 0 < message.price_e4 < PRICE_E4_MAX and 0 <= message.size_e2 <= SIZE_E2_MAX:
            view.set_level(message.side, message.price_e4, message.size_e2)

    def _apply_stale(self, state: StreamState, view: MirroredBook, message: AnyMessage) -> None:
        assert type(message) is BookStale
        self._make_stale(state, view, _known_reason(message.reason))

    def _apply_clear(
        self, state: StreamState, view: MirroredBook, _message: AnyMessage | None
    ) -> None:
        """An image may follow; of a LIVE book it is the end, since a new image is announced by `BookStale`."""
        if view._live:
            self._make_stale(state, view, StaleReason.SUBSCRIPTION_ENDED)
        view._state = BookState.SYNCING
        view.clear()
        view._next_part = None

    def _apply_levels(self, state: StreamState, view: MirroredBook, message: AnyMessage) -> None:
        assert type(message) is BookLevels
        if message.part == 0:
            self._apply_clear(state, view, message)
            view._next_part = 0
        in_order = message.part == view._next_part and message.part < message.parts
        if not in_order or message.parts > BOOK_PARTS_MAX:
            view._next_part = -1
            return
        view._next_part = message.part + 1 if message.part + 1 < message.parts else None
        bids, asks = _plausible(message.bids), _plausible(message.asks)
        if message.parts == 1:
            view.load(bids, asks)
            return
        for side, levels in ((0, bids), (1, asks)):
            for price_e4, size_e2 in levels:
                view.set_level(side, price_e4, size_e2)

    def _apply_checksum(self, state: StreamState, view: MirroredBook, message: AnyMessage) -> None:
        """The plant's book is LIVE and has this checksum here; ours is LIVE exactly if it has the same.

        `BookVerify` says nothing new of a book that is known not to be right.
        """
        assert isinstance(message, BookReady | BookVerify)
        complete = view._next_part is None
        view._next_part = None
        if complete and view.checksum() == message.checksum:
            self._make_live(state, view)
        elif view._live or type(message) is BookReady:
            self.mismatches += 1
            self._make_stale(state, view, StaleReason.CHECKSUM_MISMATCH)
            self.heal(state)
        elif view._state is BookState.STALE:
            self.heal(state)

    # --- snapshots --------------------------------------------------------------------------------

    def take_image(
        self, state: StreamState, messages: Messages, whole: Sequence[WholeBook] = ()
    ) -> None:
        """Replaces all books of a plant by those of a snapshot; what is not in it the plant no longer has.

        But for a book that is LIVE: nothing of it is missing, so that it is recovery who does not know it, after a hole
        in the log.
        """
        books = self._plants.get((state.publisher, state.partition))
        if books is None or books.session != state.session:
            return
        # Thousands of objects come and none goes: looking for garbage meanwhile would take as long again.
        is_collecting = gc.isenabled()
        gc.disable()
        try:
            self._take_image(state, books, messages, whole)
        finally:
            if is_collecting:
                gc.enable()

    def _take_image(
        self,
        state: StreamState,
        books: PlantBooks,
        messages: Messages,
        whole: Sequence[WholeBook],
    ) -> None:
        stage = Mirror(self._wanted, lambda _event: None)
        staged = stage._plants[state.publisher, state.partition] = PlantBooks(state.session)
        stage.receive(state, messages)
        for ticker, fresh in staged.views.items():
            view = books.views.get(ticker) or self._open_view(books, ticker)
            if view is not None:
                self._replace(state, view, fresh)
        views = books.views
        for each in whole:
            ticker = each.packed.ticker
            view = views.get(ticker) or self._open_view(books, ticker)
            if view is not None:
                self._put(state, view, each)
        known = {each.packed.ticker for each in whole}.union(staged.views)
        for ticker, view in views.items():
            if ticker not in known and not view._live:
                self._apply_clear(state, view, None)

    def _put(self, state: StreamState, view: MirroredBook, whole: WholeBook) -> None:
        """A book that came whole, in the place of what was known of it."""
        view._next_part = None
        stale_reason = whole.packed.stale_reason
        if whole.book is None:
            view.clear()
            self.mismatches += 1
            self._make_stale(state, view, StaleReason.CHECKSUM_MISMATCH)
            return
        view.take(whole.book)
        if stale_reason == IS_LIVE:
            self._make_live(state, view)
        else:
            self._make_stale(state, view, _known_reason(stale_reason))

    def _replace(self, state: StreamState, view: MirroredBook, fresh: MirroredBook) -> None:
        view.take(fresh)
        view._next_part = fresh._next_part
        if fresh._live:
            self._make_live(state, view)
        elif fresh._state is BookState.STALE:
            self._make_stale(state, view, fresh._reason)
        else:
            view._state = BookState.SYNCING
            view._live = False

    # --- state ------------------------------------------------------------------------------------

    def _make_live(self, state: StreamState, view: MirroredBook) -> None:
        if not view._live:
            view._state = BookState.LIVE
            view._live = True
            if not view._plant.behind:
                self._tell(_live(view, (state.publisher, state.partition)))

    def _make_stale(self, state: StreamState, view: MirroredBook, reason: StaleReason) -> None:
        """Told when the book was not STALE before or the reason is another one."""
        if view._state is BookState.STALE and view._reason is reason:
            return
        view._state = BookState.STALE
        view._live = False
        view._reason = reason
        self._tell(_stale(view, state.publisher, state.partition))

    def receive_event(self, event: Event) -> list[Event]:
        """Takes an event of the arbiter; returns the `Stale` and `Live` that follow, all states already changed."""
        key = (event.publisher, event.partition)
        if isinstance(event, SessionChanged):
            return self._change_session(key, event.session)
        books = self._plants.get(key)
        if books is None or getattr(event, "stream", None) != Stream.DELTA:
            return []
        if isinstance(event, StreamBehind):
            books.behind = True
            return [
                Stale(view._ticker, Stream.DELTA, StaleReason.REPAIRING, **_plant(key))
                for view in books.views.values()
                if view._live
            ]
        if isinstance(event, StreamCaughtUp):
            books.behind = False
            return [_live(view, key) for view in books.views.values() if view._live]
        if isinstance(event, StreamAlive):
            return self._resume(books, event)
        if isinstance(event, StreamDead | SessionEnded):
            books.paused = [view for view in books.views.values() if view._live]
            return self._invalidate(books, key, StaleReason.STREAM_DEAD)
        if isinstance(event, Gap) and event.session == books.session:
            books.paused = []
            return self._invalidate(books, key, StaleReason.NETWORK_GAP)
        return []

    def _resume(self, books: PlantBooks, event: StreamAlive) -> list[Event]:
        """What was missed, if anything, either comes (then the stream is behind) or makes all books STALE."""
        paused, books.paused = books.paused, []
        if event.session != books.session or not (event.contiguous or books.behind):
            return []
        resumed = [view for view in paused if view._reason is StaleReason.STREAM_DEAD]
        for view in resumed:
            view._state = BookState.LIVE
            view._live = True
        if books.behind:
            return []
        return [_live(view, (event.publisher, event.partition)) for view in resumed]

    def _invalidate(
        self, books: PlantBooks, key: tuple[int, int], reason: StaleReason
    ) -> list[Event]:
        stale: list[Event] = []
        for view in books.views.values():
            if view._live:
                view._state = BookState.STALE
                view._live = False
                view._reason = reason
                stale.append(_stale(view, *key))
            view._next_part = None if view._next_part is None else -1
        return stale

    def _change_session(self, key: tuple[int, int], session: int) -> list[Event]:
        books = self._plants.get(key)
        if books is None:
            self._plants[key] = PlantBooks(session)
            return []
        books.session = session
        books.paused = []
        stale = self._invalidate(books, key, StaleReason.NEW_SESSION)
        for view in books.views.values():
            view._state = BookState.SYNCING
            view.clear()
            view._next_part = None
        return stale


def _leave_it(_state: StreamState) -> None:
    """Nobody to ask: the plant's next image or checksum makes the book right."""


def _plant(key: tuple[int, int]) -> dict[str, int]:
    return {"publisher": key[0], "partition": key[1]}


def _live(view: MirroredBook, key: tuple[int, int]) -> Live:
    return Live(view._ticker, Stream.DELTA, **_plant(key))


def _stale(view: MirroredBook, publisher: int, partition: int) -> Stale:
    return Stale(view._ticker, Stream.DELTA, view._reason, publisher=publisher, partition=partition)


def _plausible(levels: tuple[Level, ...]) -> ItemsView[int, int]:
    """The levels that a book can hold, each price once; where any is left out the checksum tells."""
    return {
        price_e4: size_e2
        for price_e4, size_e2 in levels
        if 0 < price_e4 < PRICE_E4_MAX and 0 < size_e2 <= SIZE_E2_MAX
    }.items()


def _known_reason(reason: int) -> StaleReason:
    """Reasons of a newer plant read as UNKNOWN."""
    try:
        return StaleReason(reason)
    except ValueError:
        return StaleReason.UNKNOWN
