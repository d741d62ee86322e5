"""A mirrored book that went wrong by itself, whatever the fault was, is found out and fetched again."""

import asyncio
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "models"))

from listening import SECONDS_MAX, books_right, listening
from lossy_network import Faults, Simulation
from plant_course import MS, SECOND, Course, CourseMaker
from recovery_server import recovery
from repaired_feed import MulticastPlant

from tickerplant.core.book import Book
from tickerplant.core.messages import Bbo, BookVerify, LevelUpdate, Side, StaleReason, Stream
from tickerplant.limits import BOOK_HEAL_INTERVAL_NS
from tickerplant_subscriber import Live, SnapshotApplied, Stale, Strategy, run_async

UNTOUCHED_E4 = 100
"""A price at which nothing ever happens."""
MOVED_E4 = 3_900


def course(verify_interval_ns: int, quiet_ns: int) -> Course:
    """Changes, then nothing but checksums."""
    maker = CourseMaker(seed=5, verify_interval_ns=verify_interval_ns)
    maker.begin()
    maker.run(400 * MS)
    maker.run(quiet_ns, rate=0)
    return maker.finish()


def spoil(simulation: Simulation, price_e4: int) -> None:
    """A size that the plant never told."""
    view = simulation.tables.mirror.view("KXSIM-0")
    assert isinstance(view, Book)
    view.set_level(Side.BID, price_e4, view.size_at(Side.BID, price_e4) + 1_000_000)


def told(simulation: Simulation) -> list[tuple[int, type, int]]:
    """From here on: (time since the start, Stale or Live, reason) of the books."""
    seen: list[tuple[int, type, int]] = []

    def watch(event: object, now_ns: int) -> None:
        if isinstance(event, Stale | Live) and event.stream == Stream.DELTA:
            reason = event.reason if isinstance(event, Stale) else -1
            seen.append((now_ns - simulation.start_ns, type(event), reason))

    simulation.watch = watch
    return seen


@pytest.mark.parametrize(
    ("verify_interval_ns", "price_e4", "reason"),
    [
        (10 * MS, UNTOUCHED_E4, StaleReason.CHECKSUM_MISMATCH),
        (0, MOVED_E4, StaleReason.INCONSISTENT),
    ],
)
def test_a_book_that_is_found_to_be_wrong_is_right_again_in_a_moment(
    verify_interval_ns: int, price_e4: int, reason: StaleReason
) -> None:
    """By one snapshot, and nothing is missing or told twice around it."""
    plan = course(verify_interval_ns, SECOND)
    simulation = Simulation(plan, 5, Faults(loss=0.01, line_count=1))
    simulation.run_until(simulation.start_ns + 100 * MS)
    events = told(simulation)
    spoil(simulation, price_e4)
    simulation.run()
    assert simulation.gaps() == []
    simulation.check_streams()
    (stale_ns, *stale), (live_ns, *live) = [
        event for event in events if event[2] != StaleReason.REPAIRING
    ][:2]
    assert stale == [Stale, reason]
    assert live == [Live, -1]
    assert live_ns - stale_ns < 50 * MS
    mirror = simulation.tables.mirror
    for ticker, checksum in plan.checksums.items():
        assert mirror.view(ticker).live
        assert mirror.view(ticker).checksum() == checksum
    assert simulation.client.snapshots_taken == 1


def test_a_subscriber_that_goes_wrong_all_the_time_asks_seldom() -> None:
    """The book is not offered meanwhile, and is right as soon as it may be asked for."""
    plan = course(10 * MS, BOOK_HEAL_INTERVAL_NS + 2 * SECOND)
    simulation = Simulation(plan, 5, Faults(line_count=1))
    for at_ns in (500 * MS, SECOND):
        simulation.run_until(simulation.start_ns + at_ns)
        events = told(simulation)
        spoil(simulation, UNTOUCHED_E4)
    simulation.run_until(simulation.start_ns + BOOK_HEAL_INTERVAL_NS)
    assert simulation.client.snapshots_taken == 1
    assert not simulation.tables.mirror.view("KXSIM-0").live
    simulation.run()
    assert simulation.client.snapshots_taken == 2
    assert [kind for _, kind, _ in events] == [Stale, Live]
    assert BOOK_HEAL_INTERVAL_NS < events[1][0] - 500 * MS < BOOK_HEAL_INTERVAL_NS + SECOND // 2


def test_without_recovery_the_next_checksum_that_is_right_says_so() -> None:
    """As before: nobody is asked, nothing is told twice."""
    simulation = Simulation(course(10 * MS, SECOND), 5, Faults(line_count=1), with_recovery=False)
    simulation.run_until(simulation.start_ns + 450 * MS)
    events = told(simulation)
    spoil(simulation, UNTOUCHED_E4)
    simulation.run()
    assert [kind for _, kind, _ in events] == [Stale]
    assert not any(isinstance(event, SnapshotApplied) for event in simulation.seen.events)


def verify_all(plant: MulticastPlant) -> None:
    """One checksum of each book."""
    for entry in plant.entries:
        plant.plant.begin_input(plant.now_ns)
        stamp = (entry.ticker, plant.plant.g, 0, plant.now_ns)
        plant.plant.packets.delta.messages.append(BookVerify(*stamp, entry.checksum()))
    plant.flush()


async def test_an_iteration_has_the_right_book_again(tmp_path: Path, group: str, port: int) -> None:
    with MulticastPlant(tmp_path / "log", group, port) as plant:
        async with recovery(plant.folder) as server, listening(group, port, server) as listener:
            await listener.until(lambda: books_right(plant, listener.subscriber), plant)
            view = listener.subscriber.book(plant.tickers[0])
            assert isinstance(view, Book)
            view.set_level(Side.BID, 1, 7)
            verify_all(plant)
            await listener.until(
                lambda: any(
                    each.reason == StaleReason.CHECKSUM_MISMATCH for each in listener.of(Stale)
                ),
                plant,
            )
            await listener.until_whole(plant)
            assert view.size_at(Side.BID, 1) == 0


class NoLog:
    """In place of a tick log: takes datagrams and keeps nothing."""

    def append(self, _datagrams: object) -> bool:
        return True


async def test_a_recovery_that_does_not_know_the_books_takes_none_away(
    tmp_path: Path, group: str, port: int
) -> None:
    """It has met a hole in the log, the subscriber has missed nothing: the other books stay as they are."""
    with MulticastPlant(tmp_path / "log", group, port) as plant:
        async with recovery(plant.folder) as server, listening(group, port, server) as listener:
            await listener.until(lambda: books_right(plant, listener.subscriber), plant)
            log, plant.ticklog = plant.ticklog, NoLog()  # type: ignore[assignment]
            for index in range(len(plant.tickers)):
                plant.delta(index)
                plant.flush()
            plant.ticklog = log
            plant.delta()
            plant.flush()
            await listener.until(lambda: server.counters()["log_holes"], plant)
            taken = listener.subscriber.stats().recovery.snapshots_taken
            wrong = listener.subscriber.book(plant.tickers[0])
            assert isinstance(wrong, Book)
            wrong.set_level(Side.BID, 1, 7)
            verify_all(plant)
            await listener.until(
                lambda: listener.subscriber.stats().recovery.snapshots_taken > taken, plant
            )
            assert not wrong.live
            for entry in plant.entries[1:]:
                view = listener.subscriber.book(entry.ticker)
                assert view.live
                assert view.checksum() == entry.checksum()


class Keeper(Strategy):
    """Remembers what it was told of the first book."""

    ticker = ""

    def __init__(self) -> None:
        self.told: list[str] = []

    def on_book(self, _book: object, _update: LevelUpdate) -> None:
        pass

    def on_bbo(self, _bbo: Bbo) -> None:
        pass

    def on_stale(self, ticker: str, reason: StaleReason) -> None:
        if ticker == self.ticker:
            self.told.append(reason.name)

    def on_live(self, ticker: str) -> None:
        if ticker == self.ticker:
            self.told.append("LIVE")


async def test_a_strategy_has_the_right_book_again(tmp_path: Path, group: str, port: int) -> None:
    with MulticastPlant(tmp_path / "log", group, port) as plant:
        keeper = Keeper()
        keeper.ticker = plant.tickers[0]
        async with recovery(plant.folder) as server:
            addresses = [f"127.0.0.1:{server.port}"]
            running = asyncio.create_task(
                run_async(keeper, group_a=group, port=port, recovery=addresses)
            )
            async with asyncio.timeout(SECONDS_MAX):
                while "LIVE" not in keeper.told:
                    plant.tick()
                    await asyncio.sleep(0.002)
                view = keeper.book(keeper.ticker)
                assert isinstance(view, Book)
                view.set_level(Side.BID, 1, 7)
                verify_all(plant)
                while "CHECKSUM_MISMATCH" not in keeper.told or keeper.told[-1] != "LIVE":
                    plant.tick()
                    await asyncio.sleep(0.002)
            assert view.size_at(Side.BID, 1) == 0
            keeper.stop()
            await running
