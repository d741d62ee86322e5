"""The proof can fail: a plant that is broken on purpose is found out by the audit, each in its way.

The mutations are kept here. Each runs a whole session on real files, and the code is still broken while the audit runs,
so that the audit cannot lean on it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from audited_course import (
    AuditBed,
    AuditedCourse,
    run_course,
)

from tickerplant.audit.findings import Cause
from tickerplant.core.book import Book
from tickerplant.core.books import BookEntry
from tickerplant.core.messages import (
    StaleReason,
)
from tickerplant.core.packets import StreamPackets
from tickerplant.core.plant import Plant
from tickerplant_kalshi.normalise import SidePrices
from tickerplant_kalshi.protocol import FeedConnection


@pytest.fixture
def bed(tmp_path: Path) -> AuditBed:
    return AuditBed(tmp_path)


# --- the plant ------------------------------------------------------------------------------------


class Every:
    """True at each n-th call."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.calls = 0

    def __call__(self) -> bool:
        self.calls += 1
        return self.calls % self.count == 0


def ignores_a_delta(patch: pytest.MonkeyPatch) -> None:
    """A change is told as it came, and the book does not take it."""
    apply, now = Plant.apply_delta, Every(40)

    def broken(
        self: Plant, entry: BookEntry, side: int, price_e4: int, delta_e2: int, ts_event_ns: int
    ) -> bool:
        if entry.in_sync and now():
            return True
        return apply(self, entry, side, price_e4, delta_e2, ts_event_ns)

    patch.setattr(Plant, "apply_delta", broken)


def applies_a_delta_twice(patch: pytest.MonkeyPatch) -> None:
    apply, now = Plant.apply_delta, Every(40)

    def broken(
        self: Plant, entry: BookEntry, side: int, price_e4: int, delta_e2: int, ts_event_ns: int
    ) -> bool:
        if entry.in_sync and now():
            apply(self, entry, side, price_e4, delta_e2, ts_event_ns)
        return apply(self, entry, side, price_e4, delta_e2, ts_event_ns)

    patch.setattr(Plant, "apply_delta", broken)


def applies_to_the_other_side(patch: pytest.MonkeyPatch) -> None:
    apply, now = Plant.apply_delta, Every(30)

    def broken(
        self: Plant, entry: BookEntry, side: int, price_e4: int, delta_e2: int, ts_event_ns: int
    ) -> bool:
        wrong = delta_e2 > 0 and now()
        return apply(self, entry, 1 - side if wrong else side, price_e4, delta_e2, ts_event_ns)

    patch.setattr(Plant, "apply_delta", broken)


def tells_the_second_best(patch: pytest.MonkeyPatch) -> None:
    bbo = Book.bbo

    def broken(self: Book) -> tuple[int, int, int, int]:
        bid_e4, bid_size_e2, ask_e4, ask_size_e2 = bbo(self)
        return bid_e4 - 100, bid_size_e2, ask_e4, ask_size_e2

    patch.setattr(Book, "bbo", broken)


def sums_another_way(patch: pytest.MonkeyPatch) -> None:
    """A checksum that leaves the asks out."""
    patch.setattr(Book, "checksum", lambda self: hash(tuple(self.ascending(0))) & 0xFFFF_FFFF)


def mirrors_prices(patch: pytest.MonkeyPatch) -> None:
    """NO bids are taken for asks at their own price: the log is in harmony with itself, and wrong."""
    begin = SidePrices.__init__
    patch.setattr(SidePrices, "__init__", lambda self, *, flip: begin(self, flip=flip and False))


def forgets_trades(patch: pytest.MonkeyPatch) -> None:
    publish, now = Plant.publish_trade, Every(20)

    def broken(self: Plant, *arguments: Any) -> None:
        if not now():
            publish(self, *arguments)

    patch.setattr(Plant, "publish_trade", broken)


def skips_a_number(patch: pytest.MonkeyPatch) -> None:
    pack, now = StreamPackets.pack, Every(50)

    def broken(self: StreamPackets, *, keep_last: bool = False) -> None:
        if now():
            self.next_seq += 1
        pack(self, keep_last=keep_last)

    patch.setattr(StreamPackets, "pack", broken)


def uses_a_number_twice(patch: pytest.MonkeyPatch) -> None:
    pack, now = StreamPackets.pack, Every(50)

    def broken(self: StreamPackets, *, keep_last: bool = False) -> None:
        if now():
            self.next_seq -= 1
        pack(self, keep_last=keep_last)

    patch.setattr(StreamPackets, "pack", broken)


def counts_inputs_backwards(patch: pytest.MonkeyPatch) -> None:
    publish, now = Plant.publish_trade, Every(20)

    def broken(self: Plant, *arguments: Any) -> None:
        self.g -= 50 if now() else 0
        publish(self, *arguments)

    patch.setattr(Plant, "publish_trade", broken)


PLANT_MUTATIONS = (
    ignores_a_delta,
    applies_a_delta_twice,
    applies_to_the_other_side,
    tells_the_second_best,
    sums_another_way,
    mirrors_prices,
    forgets_trades,
    skips_a_number,
    uses_a_number_twice,
    counts_inputs_backwards,
)


@pytest.mark.parametrize("mutate", PLANT_MUTATIONS, ids=lambda one: one.__name__)
def test_a_broken_plant_is_found_out(
    mutate: Callable[[pytest.MonkeyPatch], None], bed: AuditBed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken while it ran and broken while it is audited; playing it again does not count."""
    mutate(monkeypatch)
    course = run_course()
    report = bed.audit(course.datagrams, course.records)
    own = [one for one in report.findings if "played again" not in one.what]
    assert Cause.PLANT in {one.cause for one in own}, report


# --- faults upstream, hidden ----------------------------------------------------------------------


def says_nothing_of_stale_books(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Plant, "mark_stale", lambda _self, _entry, _reason: None)


def takes_no_snapshot(patch: pytest.MonkeyPatch) -> None:
    """A live book that is not the exchange's stays as it is."""
    apply = Plant.apply_snapshot

    def broken(self: Plant, entry: BookEntry, bids: Any, asks: Any) -> None:
        if not entry.live:
            apply(self, entry, bids, asks)

    patch.setattr(Plant, "apply_snapshot", broken)


def says_nothing_of_lost_trades(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Plant, "publish_upstream_gap", lambda *_arguments: None)


def does_not_count_frames(patch: pytest.MonkeyPatch) -> None:
    """A hole in the exchange's numbers is overlooked."""
    patch.setattr(FeedConnection, "_lost", lambda _self, _subscription, _missing: None)


def lossy_course(*, numbered: bool = True) -> AuditedCourse:
    """Frames of books and trades are lost; if not `numbered`, those of books leave no hole."""
    course = AuditedCourse()
    course.start()
    for _ in range(10):
        course.run(5)
        for _ in range(3):
            course.change()
            course.trade()
        for index, exchange in enumerate(course.exchanges):
            if course.lose(connection=index) and not numbered:
                _close_the_hole(exchange)
        if numbered:
            course.lose("trade")
        course.deliver()
        course.wait(60_000_000)
    course.run(20)
    course.finish()
    return course


def _close_the_hole(exchange: Any) -> None:
    """The frames on their way are numbered as if the lost one had never been."""
    sid = exchange.sids["orderbook_delta"]
    kept = list(exchange.pipe)
    exchange.pipe.clear()
    of_sid = [sent for sent in kept if sent.sid == sid]
    exchange.next_seq[sid] -= 1
    first = exchange.next_seq[sid] - len(of_sid)
    numbers = iter(range(first, first + len(of_sid)))
    for sent in kept:
        if sent.sid == sid:
            seq = next(numbers)
            sent = sent._replace(seq=seq, fields=sent.fields | {"seq": seq})  # noqa: PLW2901
        exchange.pipe.append(sent)


@pytest.mark.parametrize("numbered", [True, False])
def test_losses_upstream_that_were_told_and_healed_are_named_and_are_no_fault_of_the_plant(
    numbered: bool, bed: AuditBed
) -> None:
    course = lossy_course(numbered=numbered)
    report = bed.audit(course.datagrams, course.records)
    assert report.by_cause.keys() == {Cause.UPSTREAM}, report.findings
    words = " ".join(finding.what for finding in report.findings)
    if numbered:
        assert "never came" in words
        assert "trades of this time were lost before the plant" in words
        assert f"stale by {'a hole in the exchange'}" in words
        assert int(report.figures["exchange"]["numbers missing"]) >= 10
    else:
        assert "lost without a hole" in words
        assert course.plant.books_diverged >= 1


@pytest.mark.parametrize(
    ("mutate", "numbered"),
    [
        (says_nothing_of_stale_books, True),
        (does_not_count_frames, True),
        (says_nothing_of_lost_trades, True),
        (takes_no_snapshot, False),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_a_plant_that_hides_losses_is_found_out(
    mutate: Callable[[pytest.MonkeyPatch], None],
    numbered: bool,
    bed: AuditBed,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mutate(monkeypatch)
    course = lossy_course(numbered=numbered)
    report = bed.audit(course.datagrams, course.records)
    own = [one for one in report.findings if "played again" not in one.what]
    assert Cause.PLANT in {one.cause for one in own}, report


def test_a_plant_that_went_stale_without_need_is_not_called_wrong(bed: AuditBed) -> None:
    """It may always be careful; the time is named."""
    course = AuditedCourse()
    course.start()
    for entry in list(course.plant.entries.values())[:4]:
        course.plant.begin_input(course.now_ns)
        course.plant.mark_stale(entry, StaleReason.UNUSABLE_FRAME)
    course.publish()
    course.run(30)
    course.finish()
    report = bed.audit(course.datagrams)
    assert report.by_cause.keys() == {Cause.UPSTREAM}
    assert "4 books stale by a frame that could not be read" in report.findings[0].what
