"""Mirrored books: LIVE exactly when proven equal to the plant's, whatever is lost."""

import gc

import msgspec
import pytest
from mirrored_plant import DELTA, SESSION, TICKER, MirroredPlant

from tickerplant.core.book import Book, level_changes
from tickerplant.core.messages import (
    BookClear,
    BookLevels,
    BookReady,
    BookStale,
    BookState,
    BookVerify,
    LevelUpdate,
    StaleReason,
    Stream,
    UpdateCause,
)
from tickerplant.core.packed_books import IS_LIVE, PackedBook, unpack
from tickerplant.limits import STREAM_DEAD_NS
from tickerplant_subscriber import mirror as mirror_module
from tickerplant_subscriber.dispatch import Tables
from tickerplant_subscriber.events import Event, Gap, Live, Stale, StreamAlive
from tickerplant_subscriber.filters import TickerFilter


@pytest.fixture
def plant() -> MirroredPlant:
    """A plant with one LIVE book of three levels."""
    plant = MirroredPlant()
    plant.books[TICKER] = Book([(4_000, 100), (4_100, 200)], [(5_000, 300)])
    plant.image()
    return plant


def test_an_image_makes_a_book_live(plant: MirroredPlant) -> None:
    view = plant.view()
    assert view.live
    assert view.state is BookState.LIVE
    assert view.bbo() == (4_100, 200, 5_000, 300)
    assert (view.best_bid_e4, view.best_bid_size_e2) == (4_100, 200)
    assert (view.best_ask_e4, view.best_ask_size_e2) == (5_000, 300)
    assert (view.mid_e5, view.spread_e4, view.crossed) == (45_500, 900, False)
    assert view.depth(1) == ([(4_100, 200)], [(5_000, 300)])
    assert (view.bids, view.asks) == ({4_000: 100, 4_100: 200}, {5_000: 300})
    assert view.level_count == 3
    assert plant.events() == [Live(TICKER, DELTA)]


def test_a_view_cannot_be_changed(plant: MirroredPlant) -> None:
    view = plant.view()
    dict(view.bids)[4_000] = 1
    view.depth(1)[0].clear()
    assert view.bids[4_000] == 100
    with pytest.raises(AttributeError):
        view.live = False  # type: ignore[misc]  # that it cannot be done is the test
    with pytest.raises(AttributeError):
        view.mine = 1  # type: ignore[attr-defined]  # that it cannot be done is the test


def test_updates_of_a_live_book_are_applied_and_told(plant: MirroredPlant) -> None:
    plant.update(0, 4_100, -200)
    plant.update(1, 4_900, 50)
    plant.update(1, 5_000, 7)
    assert len(plant.updates) == 3
    assert plant.view().bbo() == (4_000, 100, 4_900, 50)
    assert plant.view().checksum() == plant.books[TICKER].checksum()


def test_an_image_in_parts_is_live_only_at_its_end(plant: MirroredPlant) -> None:
    plant.books["KXTEST-2"] = Book([(p, p) for p in range(1_000, 1_010)], [(5_000, 1)])
    plant.image("KXTEST-2", per_part=3)
    assert plant.view("KXTEST-2").live
    assert plant.view("KXTEST-2").bids == plant.books["KXTEST-2"].bids


@pytest.mark.parametrize("lost", range(5))
def test_an_image_with_a_lost_part_is_not_live(plant: MirroredPlant, lost: int) -> None:
    """Except that a lost `BookClear` of a book never seen takes nothing away."""
    plant.books["KXTEST-2"] = Book([(p, p) for p in range(1_000, 1_006)], [(5_000, 1)])
    plant.image("KXTEST-2", per_part=3, lost=lost)
    plant.heartbeat()
    plant.wait()
    assert plant.view("KXTEST-2").live is (lost == 0)
    plant.checksum(BookVerify, "KXTEST-2")
    assert plant.view("KXTEST-2").live is (lost in (0, 4))


def test_a_wrong_checksum_makes_the_book_stale(plant: MirroredPlant) -> None:
    plant.publish(BookVerify(TICKER, 0, 0, 0, 12345))
    assert not plant.view().live
    assert plant.view().stale_reason is StaleReason.CHECKSUM_MISMATCH
    assert plant.events()[-1] == Stale(TICKER, DELTA, StaleReason.CHECKSUM_MISMATCH)
    assert plant.mirror.mismatches == 1


def packed(
    book: Book, ticker: str = TICKER, reason: int = IS_LIVE, **changed: object
) -> PackedBook:
    """A book of a snapshot, as recovery sends it whole."""
    whole = PackedBook(ticker, 1, 0, 0, reason, book.bid_count, book.checksum(), book.packed())
    return msgspec.structs.replace(whole, **changed)


def take(plant: MirroredPlant, *books: PackedBook) -> None:
    """A snapshot of just these books."""
    plant.mirror.take_image(next(iter(plant.arbiter.states())), [], list(map(unpack, books)))


def test_a_snapshot_with_whole_books_replaces_all(plant: MirroredPlant) -> None:
    """States are those of the snapshot; what it does not have is cleared; nothing is told twice."""
    plant.books["KXTEST-2"] = Book([(100, 1)])
    plant.image("KXTEST-2")
    plant.update(0, 100, 1, ticker="KXTEST-2", lost=True)
    plant.heartbeat()
    plant.wait()
    assert plant.view().stale_reason is StaleReason.NETWORK_GAP
    told = len(plant.events())
    fresh, old = Book([(4_200, 7)], [(4_900, 1), (5_000, 2)]), Book([(10, 1)])
    take(plant, packed(fresh), packed(old, "KXTEST-3", StaleReason.SEQUENCE_GAP))
    assert plant.view().live
    assert (plant.view().bids, plant.view().asks) == ({4_200: 7}, {4_900: 1, 5_000: 2})
    assert plant.view("KXTEST-3").stale_reason is StaleReason.SEQUENCE_GAP
    assert plant.view("KXTEST-3").bids == {10: 1}
    assert plant.view("KXTEST-2").level_count == 0
    assert not plant.view("KXTEST-2").live
    assert plant.events()[told:] == [
        Live(TICKER, DELTA),
        Stale("KXTEST-3", DELTA, StaleReason.SEQUENCE_GAP),
    ]
    plant.books[TICKER] = fresh
    plant.update(0, 4_200, -7)
    assert plant.view().live
    assert plant.view().best_bid_e4 == 0


def test_a_live_book_that_a_snapshot_lacks_stays(plant: MirroredPlant) -> None:
    """Nothing of it is missing here; recovery does not know it since it met a hole in the log."""
    plant.books["KXTEST-2"] = Book([(100, 1)])
    plant.image("KXTEST-2")
    told = len(plant.events())
    take(plant, packed(plant.books[TICKER]))
    assert plant.view("KXTEST-2").live
    assert plant.view("KXTEST-2").bids == {100: 1}
    assert plant.events()[told:] == []


@pytest.mark.parametrize(
    "changed",
    [
        {"checksum": 1},
        {"bid_count": 9},
        {"levels": b"12345"},
        {"levels": Book([(4_000, 101), (4_100, 200)], [(5_000, 300)]).packed()},
    ],
)
def test_a_whole_book_that_is_not_what_it_says_is_stale(
    plant: MirroredPlant, changed: dict[str, object]
) -> None:
    take(plant, packed(plant.books[TICKER], **changed))
    assert plant.view().stale_reason is StaleReason.CHECKSUM_MISMATCH
    assert not plant.view().live
    assert plant.mirror.mismatches == 1
    plant.image()
    assert plant.view().live


def test_garbage_is_collected_again_after_a_snapshot(plant: MirroredPlant) -> None:
    assert gc.isenabled()
    take(plant, packed(plant.books[TICKER]))
    assert gc.isenabled()


@pytest.mark.parametrize(
    "update",
    [
        LevelUpdate(TICKER, 0, 0, 0, 0, 4_000, 5, 200),
        LevelUpdate(TICKER, 0, 0, 0, 0, 4_000, -101, -1),
        LevelUpdate(TICKER, 0, 0, 0, 0, 4_200, -1, -1),
        LevelUpdate(TICKER, 0, 0, 0, 0, 10_000, 1, 1),
        LevelUpdate(TICKER, 0, 0, 0, 1, -5, 1, 1),
    ],
)
def test_an_inconsistent_update_makes_the_book_stale_and_is_healed_by_a_checksum(
    plant: MirroredPlant, update: LevelUpdate
) -> None:
    plant.publish(update)
    assert plant.updates == []
    assert plant.events()[-1] == Stale(TICKER, DELTA, StaleReason.INCONSISTENT)
    held = plant.view().size_at(update.side, update.price_e4)
    truth = plant.books[TICKER].size_at(update.side, update.price_e4)
    plant.publish(LevelUpdate(TICKER, 0, 0, 0, update.side, update.price_e4, truth - held, truth))
    plant.checksum(BookVerify)
    assert plant.view().live


def test_a_resync_changes_only_what_differs(plant: MirroredPlant) -> None:
    plant.publish(BookStale(TICKER, 0, 0, 0, StaleReason.SEQUENCE_GAP))
    assert plant.events()[-1] == Stale(TICKER, DELTA, StaleReason.SEQUENCE_GAP)
    assert plant.view().state is BookState.STALE
    assert plant.view().bids == {4_000: 100, 4_100: 200}
    fresh = Book([(4_100, 250)], [(5_000, 300), (5_100, 1)])
    for change in level_changes(plant.books[TICKER], fresh):
        plant.publish(LevelUpdate(TICKER, 0, 0, 0, *change, UpdateCause.RESYNC))
    assert not plant.view().live
    plant.books[TICKER] = fresh
    plant.checksum(BookReady)
    assert plant.view().live
    assert plant.updates == []
    assert plant.events()[-1] == Live(TICKER, DELTA)


def test_a_gap_makes_every_book_stale_until_proven(plant: MirroredPlant) -> None:
    plant.books["KXTEST-2"] = Book([(1_000, 5)])
    plant.image("KXTEST-2")
    plant.update(0, 4_000, 10, lost=True)
    plant.heartbeat()
    assert plant.view().live
    plant.wait()
    assert isinstance(plant.output[-3], Gap)
    assert plant.output[-2:] == [
        Stale(TICKER, DELTA, StaleReason.NETWORK_GAP),
        Stale("KXTEST-2", DELTA, StaleReason.NETWORK_GAP),
    ]
    plant.update(0, 4_100, 1)
    assert plant.updates == []
    plant.checksum(BookVerify)
    plant.checksum(BookVerify, "KXTEST-2")
    assert not plant.view().live
    assert plant.view().stale_reason is StaleReason.NETWORK_GAP
    assert plant.view("KXTEST-2").live
    assert plant.mirror.mismatches == 0
    plant.update(0, 4_000, 1)
    plant.checksum(BookReady)
    assert plant.view().live


def test_states_have_changed_before_the_gap_is_told(plant: MirroredPlant) -> None:
    seen: list[bool] = []
    tables = Tables((DELTA,), TickerFilter(["*"]), lambda _event: seen.append(plant.view().live))
    tables.mirror = plant.mirror
    tables.take_event(Gap(DELTA, SESSION, 5, 6, 3))
    assert seen == [False, False]


def test_a_dead_stream_makes_books_stale_and_continuity_heals_them(plant: MirroredPlant) -> None:
    plant.wait(STREAM_DEAD_NS)
    assert plant.events()[-1] == Stale(TICKER, DELTA, StaleReason.STREAM_DEAD)
    plant.heartbeat()
    assert plant.view().live
    assert plant.events()[-1] == Live(TICKER, DELTA)


def test_a_dead_stream_that_lost_something_does_not_heal(plant: MirroredPlant) -> None:
    plant.wait(STREAM_DEAD_NS)
    plant.update(0, 4_000, 1, lost=True)
    plant.heartbeat()
    assert not plant.view().live
    plant.wait()
    assert not plant.view().live
    plant.wait(STREAM_DEAD_NS)
    plant.heartbeat()
    assert not plant.view().live


def test_what_the_plant_calls_stale_stays_so_through_a_silence(plant: MirroredPlant) -> None:
    plant.publish(BookStale(TICKER, 0, 0, 0, StaleReason.CONNECTION_LOST))
    plant.wait(STREAM_DEAD_NS)
    plant.heartbeat()
    assert any(isinstance(event, StreamAlive) for event in plant.output)
    assert not plant.view().live


def test_a_new_session_on_any_stream_makes_books_syncing(plant: MirroredPlant) -> None:
    plant.session = SESSION + 1
    plant.heartbeat(Stream.STATUS)
    assert plant.events()[-1] == Stale(TICKER, DELTA, StaleReason.NEW_SESSION)
    assert plant.view().state is BookState.SYNCING
    assert plant.view().level_count == 0
    plant.session = SESSION
    plant.checksum(BookReady)
    plant.image()
    assert not plant.view().live
    plant.session, plant.seq = SESSION + 1, 1
    plant.image()
    assert plant.view().live


def test_clear_of_a_live_book_is_its_end(plant: MirroredPlant) -> None:
    plant.publish(BookClear(TICKER, 0, 0, 0))
    assert plant.events()[-1] == Stale(TICKER, DELTA, StaleReason.SUBSCRIPTION_ENDED)
    assert plant.view().state is BookState.SYNCING


def test_a_reason_of_a_newer_plant_reads_as_unknown(plant: MirroredPlant) -> None:
    plant.publish(BookStale(TICKER, 0, 0, 0, 77))
    assert plant.view().stale_reason is StaleReason.UNKNOWN


def test_sizes_beyond_64_bits_never_crash(plant: MirroredPlant) -> None:
    plant.publish(LevelUpdate(TICKER, 0, 0, 0, 0, 4_000, 2**63 - 101, 2**63 - 1))
    plant.publish(LevelUpdate(TICKER, 0, 0, 0, 0, 4_000, 2**62, 2**63 - 1 + 2**62))
    assert not plant.view().live
    plant.checksum(BookVerify)
    # Neither was taken, so the book still is what the plant has.
    assert plant.view().live


@pytest.mark.parametrize("parts", [1, 2])
def test_levels_that_no_book_can_hold_are_left_out(plant: MirroredPlant, parts: int) -> None:
    bids = ((-1, 5), (0, 5), (4_000, 0), (4_100, -3), (4_200, 7), (4_200, 8), (10_000, 5))
    plant.publish(BookLevels(TICKER, 0, 0, 0, 0, parts, bids, ((5_000, 2**63),)))
    assert plant.view().bids == {4_200: 8}
    assert plant.view().asks == {}
    plant.publish(BookReady(TICKER, 0, 0, 0, 1))
    assert not plant.view().live


def test_only_wanted_tickers_are_mirrored() -> None:
    plant = MirroredPlant(tickers=("KXBTC*",))
    for ticker in ("KXETH-1", "KXBTC-1"):
        plant.books[ticker] = Book([(1_000, 5)])
        plant.image(ticker)
    assert [view.ticker for view in plant.mirror.views()] == ["KXBTC-1"]


def test_books_are_bounded_and_idle_ones_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_module, "MARKETS_MAX", 2)
    plant = MirroredPlant()
    for ticker in ("A", "B", "C"):
        plant.books[ticker] = Book([(1_000, 5)])
        plant.image(ticker)
    assert plant.mirror.view("C") is None
    assert plant.mirror.books_refused == 3
    plant.publish(BookClear("A", 0, 0, 0))
    plant.image("C")
    assert plant.view("C").live
    assert plant.mirror.view("A") is None


def test_stale_and_live_alternate_in_the_events(plant: MirroredPlant) -> None:
    for _ in range(3):
        plant.publish(BookStale(TICKER, 0, 0, 0, StaleReason.SEQUENCE_GAP))
        plant.publish(BookStale(TICKER, 0, 0, 0, StaleReason.SEQUENCE_GAP))
        plant.checksum(BookReady)
        plant.checksum(BookReady)
    kinds: list[type[Event]] = [type(event) for event in plant.events()]  # type: ignore[misc]  # only events
    assert kinds == [Live, *(Stale, Live) * 3]
