"""A subscriber that never sleeps: its timers, recovery and signals are served as ever, and it ends."""

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "models"))

from listening import books_right, every, listening
from recovery_server import recovery
from repaired_feed import MulticastPlant

from tickerplant.core.messages import Stream, Trade
from tickerplant_subscriber import (
    Gap,
    SnapshotApplied,
    Strategy,
    Subscriber,
    UpstreamGap,
    run_async,
)

T = "KXTEST-1"
PROGRAM = """
import sys, time
from tickerplant_subscriber import Strategy, Trade, run

class Spinning(Strategy):
    timer_interval_s = 0.2
    last = None

    def on_trade(self, trade: Trade) -> None:
        print(trade.trade_id, flush=True)

    def on_timer(self, now_ns: int) -> None:
        now = time.monotonic(), time.thread_time()
        if self.last:
            print("busy", (now[1] - self.last[1]) / (now[0] - self.last[0]), flush=True)
        self.last = now

run(Spinning(), group_a=sys.argv[1], port=int(sys.argv[2]), recovery=(), busy_poll=sys.argv[3] == "spin")
print("returned", flush=True)
"""


def trade(g: int) -> Trade:
    """A trade."""
    return Trade(T, g, 0, 0, "t", 1, 1, 0)


def processor_shares(group: str, port: int, how: str, sender: Any) -> list[float]:
    """What a strategy takes of its core while nothing comes in; it then gets a trade and an interrupt."""
    command = [sys.executable, "-P", "-c", PROGRAM, group, str(port), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            shares = [float(child.stdout.readline().removeprefix("busy ")) for _ in range(3)]
            sender.messages(Stream.TRADE, 1, [trade(1)])
            while (line := child.stdout.readline()).startswith("busy"):
                pass
            child.send_signal(signal.SIGINT)
            rest, _ = child.communicate(timeout=30)
        finally:
            child.kill()
    assert line == "t\n"
    assert rest.endswith("returned\n")
    assert child.returncode == 0
    return shares


def test_a_strategy_spins_gets_its_trades_and_timers_and_ends_on_an_interrupt(
    group: str, port: int, sender: Any
) -> None:
    spinning = processor_shares(group, port, "spin", sender)
    sleeping = processor_shares(group, port, "sleep", sender)
    assert max(spinning) > 5 * min(sleeping)
    assert max(spinning) > 0.2


class Trades(Strategy):
    """Stops after `enough` trades."""

    def __init__(self, enough: int) -> None:
        self.enough = enough
        self.trades: list[int] = []
        self.gaps: list[Gap] = []

    def on_gap(self, gap: Gap | UpstreamGap) -> None:
        assert isinstance(gap, Gap)
        self.gaps.append(gap)

    def on_trade(self, trade: Trade) -> None:
        self.trades.append(trade.g)
        if len(self.trades) >= self.enough:
            self.stop()


async def test_a_hole_is_given_up_by_the_timer_and_the_loop_sleeps_again_afterwards(
    group: str, port: int, sender: Any
) -> None:
    strategy, session = Trades(2), time.time_ns() + 1
    options: dict[str, Any] = {"group_a": group, "port": port, "recovery": ()}
    running = asyncio.create_task(run_async(strategy, busy_poll=True, **options))
    async with asyncio.timeout(30):
        while strategy.stats() is None:  # noqa: ASYNC110  # there is no event to await
            await asyncio.sleep(0.001)
        sender.messages(Stream.TRADE, 1, [trade(1)], session)
        sender.messages(Stream.TRADE, 3, [trade(3)], session)
        await running
    assert strategy.trades == [1, 3]
    assert [(gap.from_seq, gap.to_seq) for gap in strategy.gaps] == [(2, 2)]
    began = time.monotonic(), time.thread_time()
    await asyncio.sleep(0.1)
    assert (time.thread_time() - began[1]) / (time.monotonic() - began[0]) < 0.5


@pytest.mark.parametrize("queue_messages", [65_536, 16])
async def test_what_is_lost_is_repaired_also_with_pauses_for_a_full_queue(
    tmp_path: Path, group: str, port: int, queue_messages: int
) -> None:
    plant = MulticastPlant(tmp_path / "log", group, port)
    options: dict[str, Any] = {
        "busy_poll": True,
        "when_slow": "block",
        "queue_messages": queue_messages,
    }
    async with (
        recovery(plant.folder) as server,
        listening(group, port, server, **options) as listener,
    ):
        await listener.until(lambda: listener.of(SnapshotApplied), plant)
        plant.is_lost = every(5)
        for _ in range(100):
            plant.step()
            await asyncio.sleep(0.0005)
        plant.is_lost = lambda _header: False
        subscriber: Subscriber = listener.subscriber

        def all_here() -> bool:
            stats = {each.stream: each.next_seq for each in subscriber.stats().streams}
            return tuple(stats[stream] for stream in Stream) == plant.next_seqs

        await listener.until(all_here, plant)
        await listener.until(lambda: books_right(plant, subscriber), plant)
        repaired = sum(each.messages_repaired for each in subscriber.stats().streams)
    plant.close()
    assert repaired >= plant.lost > 5
