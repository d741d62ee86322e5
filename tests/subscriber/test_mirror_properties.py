"""Mirrored books under any course: LIVE exactly when proven equal to the plant's, whatever is lost."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from mirrored_plant import TICKER, MirroredPlant

from tickerplant.core.book import Book, Level, level_changes
from tickerplant.core.messages import (
    AnyMessage,
    BookClear,
    BookLevels,
    BookReady,
    BookStale,
    BookVerify,
    LevelUpdate,
    StaleReason,
    UpdateCause,
)
from tickerplant.limits import STREAM_DEAD_NS

PRICES = st.integers(4_000, 4_006)
Step = tuple[Any, ...]
STEPS = st.one_of(
    st.tuples(st.just("update"), st.integers(0, 1), PRICES, st.integers(1, 5)),
    st.tuples(st.just("update"), st.integers(0, 1), PRICES, st.integers(1, 5)),
    st.tuples(st.just("stale")),
    st.tuples(st.just("resync"), PRICES, st.integers(0, 5)),
    st.tuples(st.just("image"), st.integers(1, 3)),
    st.tuples(st.just("verify")),
    st.tuples(st.just("silence")),
    st.tuples(st.just("session")),
)


class Truth:
    """What the plant itself holds, whether it calls it live and has told it in this session; publishes with loss."""

    def __init__(self, losses: list[bool]) -> None:
        self.plant = MirroredPlant()
        self.plant.books[TICKER] = Book()
        self.live = False
        self.told = False
        self._losses = losses
        self._published = 0

    def publish(self, message: AnyMessage) -> None:
        self._published += 1
        lost = bool(self._losses) and self._losses[self._published % len(self._losses)]
        self.plant.publish(message, lost=lost)

    def apply(self, step: Step) -> None:
        book = self.plant.books[TICKER]
        stamp = (TICKER, 0, 0, 0)
        match step:
            case ("update", side, price, size) if self.live:
                delta = size - book.size_at(side, price)
                self.publish(
                    LevelUpdate(*stamp, side, price, delta, book.apply(side, price, delta))
                )
            case ("stale",) if self.live:
                self.live = False
                self.publish(BookStale(*stamp, StaleReason.SEQUENCE_GAP))
            case ("resync", price, size) if self.told and not self.live:
                fresh = Book(book.bids.items(), book.asks.items())
                fresh.set_level(1, price, size)
                for change in level_changes(book, fresh):
                    self.publish(LevelUpdate(*stamp, *change, UpdateCause.RESYNC))
                self.plant.books[TICKER] = fresh
                self.live = True
                self.publish(BookReady(*stamp, fresh.checksum()))
            case ("image", per_part):
                self._publish_image(book, per_part)
            case ("verify",) if self.live:
                self.publish(BookVerify(*stamp, book.checksum()))
            case ("silence",):
                self.plant.wait(STREAM_DEAD_NS)
            case ("session",):
                self.plant.session += 1
                self.plant.seq = 1
                self.live = self.told = False

    def _publish_image(self, book: Book, per_part: int) -> None:
        stamp = (TICKER, 0, 0, 0)
        self.publish(BookStale(*stamp, StaleReason.UNKNOWN))
        self.publish(BookClear(*stamp))
        bids: list[Level] = book.ascending(0)
        parts = -(-len(bids) // per_part) + 1
        for part in range(parts - 1):
            chunk = tuple(bids[part * per_part : (part + 1) * per_part])
            self.publish(BookLevels(*stamp, part, parts, chunk, ()))
        self.publish(BookLevels(*stamp, parts - 1, parts, (), tuple(book.ascending(1))))
        self.live = self.told = True
        self.publish(BookReady(*stamp, book.checksum()))


@given(st.lists(STEPS, max_size=40), st.lists(st.booleans(), max_size=23), st.booleans())
@settings(deadline=None, max_examples=150)
def test_a_book_offered_as_live_always_equals_the_plants(
    steps: list[Step], losses: list[bool], waits: bool
) -> None:
    """Under any loss: after each step and the heartbeat behind it, LIVE means equal and live at the plant."""
    truth = Truth([lost and index % 3 == 0 for index, lost in enumerate(losses)])
    for step in [("image", 2), *steps]:
        truth.apply(step)
        truth.plant.heartbeat()
        if waits:
            truth.plant.wait()
        open_holes = any(state.holes for state in truth.plant.arbiter.states())
        view = truth.plant.mirror.view(TICKER)
        if view is not None and view.live and not open_holes:
            book = truth.plant.books[TICKER]
            assert truth.live
            assert (dict(view.bids), dict(view.asks)) == (book.bids, book.asks)


@given(st.lists(STEPS, max_size=40))
@settings(deadline=None)
def test_without_loss_the_book_is_live_whenever_the_plants_is(steps: list[Step]) -> None:
    truth = Truth([])
    for step in [("image", 2), *steps]:
        truth.apply(step)
        truth.plant.heartbeat()
        if truth.plant.mirror.view(TICKER) is not None:
            assert truth.plant.view().live is truth.live
