"""Single things that happen to a subscriber, each by itself."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "models"))

from listening import listening
from lossy_network import Faults, Simulation
from plant_course import MS, SECOND, Course, CourseMaker
from recovery_server import recovery
from repaired_feed import MulticastPlant

from tickerplant.core.messages import Bbo, GapCause, Stream, UpstreamGap
from tickerplant.core.wire import encode_datagram
from tickerplant_subscriber import Gap, Stale, StreamBehind

KERNEL_DEFAULT_BYTES = 212_992
BOOKS = 5_000
DEEP = 2_500
"""Levels a side."""


def course_with_lost_trades() -> Course:
    """In the middle the exchange's trade channel has a hole."""
    maker = CourseMaker(seed=7)
    maker.begin()
    maker.run(100 * MS)
    plant = maker.plant
    assert plant is not None
    plant.begin_input(maker.now_ns)
    plant.publish_upstream_gap(
        Stream.TRADE, maker.now_ns - 50 * MS, maker.now_ns, GapCause.UPSTREAM
    )
    maker.run(100 * MS)
    maker.run(2_500 * MS, rate=0)
    return maker.finish()


def test_trades_lost_upstream_do_not_concern_who_wants_quotes_alone() -> None:
    """Not a gap, not a stale quote; who wants trades is told, in sequence, and nothing of his is missing."""
    course = course_with_lost_trades()
    faults = Faults(loss=0.01, line_count=1)
    quotes = Simulation(course, 1, faults, streams=(Stream.BBO, Stream.STATUS))
    quotes.run()
    quotes.check()
    assert not [event for event in quotes.seen.events if isinstance(event, Stale | Gap)]
    trades = Simulation(course, 1, faults, streams=(Stream.TRADE, Stream.STATUS))
    trades.run()
    trades.check()
    (told,) = [
        message
        for _, message in trades.seen.messages[course.sessions[0], Stream.TRADE]
        if isinstance(message, UpstreamGap)
    ]
    assert told.cause == GapCause.UPSTREAM


def test_trades_lost_on_the_way_do_not_concern_who_wants_quotes_alone() -> None:
    """Nothing passes on the groups of trades: who has not joined them has nothing to repair."""
    course = course_with_lost_trades()
    faults = Faults(line_count=1, silent=(Stream.TRADE, 20 * MS))
    simulation = Simulation(course, 1, faults, streams=(Stream.BBO, Stream.STATUS))
    simulation.run(after_ns=SECOND)
    simulation.check()
    assert simulation.client is not None
    assert simulation.client.gap_requests.sent == 0


def test_a_forged_session_neither_fences_the_plant_nor_holds_anything_up() -> None:
    """Without keys: recovery's hello does not name it, so it is refused, and the real one goes on all the time."""
    maker = CourseMaker(seed=3)
    maker.begin()
    maker.run(400 * MS)
    maker.run(4 * SECOND, rate=0)
    course = maker.finish()
    simulation = Simulation(course, 3, Faults(loss=0.01, line_count=1))
    real = course.sessions[0]

    def forge() -> None:
        for session in (real + 1, real + SECOND, real + 50 * SECOND):
            forged = [Bbo("KXSIM-0", 1, 0, 0, 1, 1, 2, 1, 1)]
            datagram = encode_datagram(0, Stream.BBO, session, 1, simulation.now_ns, forged)
            simulation.arbiter.receive(0, datagram, simulation.now_ns)

    for at_ms in (50, 100, 150):
        simulation._at(simulation.start_ns + at_ms * MS, forge)
    simulation.run()
    simulation.check()
    assert {session for session, _ in simulation.seen.messages} == {real}
    assert not [event for event in simulation.seen.events if isinstance(event, StreamBehind)][2:]
    refused = {error for _, error in simulation.arbiter.refusals}
    assert refused & {"session_unconfirmed", "session_ahead"}


def test_what_an_old_session_lacked_costs_the_new_one_no_snapshot() -> None:
    """Joined late while recovery is away: the books of that session never come, and the next one tells all anew."""
    maker = CourseMaker(seed=3)
    maker.begin()
    maker.run(200 * MS)
    maker.run(5 * SECOND, rate=0)
    maker.stop()
    maker.begin()
    maker.run(200 * MS)
    maker.run(5 * SECOND, rate=0)
    course = maker.finish()
    faults = Faults(line_count=1, recovery_down=(0, 8 * SECOND))
    simulation = Simulation(course, 3, faults, join_after_ns=250 * MS)
    simulation.run()
    assert {gap.session for gap in simulation.gaps()} == {course.sessions[0]}
    assert simulation.client is not None
    assert simulation.client.is_reachable
    assert simulation.images == []
    simulation.check(gaps_allowed=lambda gap: gap.cause is GapCause.LATE_JOIN)


@pytest.fixture
def plant(tmp_path: Path, group: str, port: int) -> Iterator[MulticastPlant]:
    with MulticastPlant(tmp_path / "log", group, port, markets=BOOKS, levels=3) as plant:
        yield plant


async def test_a_resync_of_all_books_fits_a_default_receive_buffer(
    plant: MulticastPlant, group: str, port: int
) -> None:
    """5,000 books stale and right again at once: they leave at a pace, and nothing is missing in the end."""
    async with (
        recovery(plant.folder) as server,
        listening(
            group, port, server, receive_buffer_bytes=KERNEL_DEFAULT_BYTES, streams=["delta"]
        ) as listener,
    ):
        await listener.until(lambda: len(listener.subscriber.books()) == BOOKS, plant)
        await listener.until(lambda: all(view.live for view in listener.subscriber.books()), plant)
        plant.tick()
        plant.plant.begin_input(plant.now_ns)
        for entry in plant.entries:
            plant.plant.mark_stale(entry, 1)
        plant.flush()
        for entry in plant.entries:
            plant.plant.begin_input(plant.now_ns)
            plant.plant.apply_snapshot(entry, *plant._levels())
        plant.flush()
        assert plant.plant.unready_books
        await listener.until(lambda: not plant.plant.unready_books, plant)
        checksums = {entry.ticker: entry.checksum() for entry in plant.entries}
        await listener.until(
            lambda: all(
                view.live and view.checksum() == checksums[view.ticker]
                for view in listener.subscriber.books()
            ),
            plant,
        )
        assert {gap.cause for gap in listener.of(Gap)} <= {GapCause.LATE_JOIN}
        assert listener.subscriber.stats().receive_buffer_bytes == KERNEL_DEFAULT_BYTES


@pytest.fixture
def small_plant(tmp_path: Path, group: str, port: int) -> Iterator[MulticastPlant]:
    with MulticastPlant(tmp_path / "log", group, port) as plant:
        yield plant


@pytest.fixture
def deep_plant(tmp_path: Path, group: str, port: int) -> Iterator[MulticastPlant]:
    with MulticastPlant(tmp_path / "log", group, port, markets=2, levels=DEEP) as plant:
        yield plant


async def test_a_late_join_gets_books_with_thousands_of_levels(
    deep_plant: MulticastPlant, group: str, port: int
) -> None:
    """Too large to travel whole, they come in a hundred parts each; and go on from there."""
    plant = deep_plant
    plant.step(20)
    assert min(entry.level_count for entry in plant.entries) > DEEP
    async with recovery(plant.folder) as server, listening(group, port, server) as listener:
        await listener.until_whole(plant)
        plant.step(20)
        await listener.until_whole(plant)
        assert {gap.cause for gap in listener.of(Gap)} == {GapCause.LATE_JOIN}


async def test_a_join_while_the_log_lags_is_answered_later_and_misses_nothing(
    small_plant: MulticastPlant, group: str, port: int
) -> None:
    """Recovery cannot read on for a while: it says so, nothing is live, and then all comes."""
    plant = small_plant
    plant.step(30)
    async with recovery(plant.folder) as server:
        tail = server.ticklog.tail
        read_on = tail.read
        tail.read = lambda _now_ns: False  # type: ignore[method-assign]  # as from a disk that is busy
        plant.step(30)
        async with listening(group, port, server) as listener:
            await listener.until(lambda: server.server.rejects["not_yet"], plant)
            assert not any(view.live for view in listener.subscriber.books())
            tail.read = read_on  # type: ignore[method-assign]
            await listener.until_whole(plant)
            assert {gap.cause for gap in listener.of(Gap)} == {GapCause.LATE_JOIN}
