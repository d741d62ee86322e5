"""`run` and `run_async`: strategies on real multicast, signals, exceptions, timers."""

import asyncio
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from tickerplant.core.book import Book
from tickerplant.core.messages import (
    Bbo,
    BookClear,
    BookReady,
    LevelUpdate,
    StaleReason,
    Stream,
    Trade,
)
from tickerplant.errors import ConfigurationError, NetworkSetupError
from tickerplant.limits import DATAGRAMS_PER_DRAIN, STREAM_DEAD_NS
from tickerplant_subscriber import (
    BookView,
    Gap,
    SessionChanged,
    SessionEnded,
    Strategy,
    UpstreamGap,
    run,
    run_async,
)

T = "KXTEST-1"
PROGRAM = """
import sys
from tickerplant_subscriber import Bbo, Strategy, run

class Printer(Strategy):
    tickers = ["KXTEST*"]

    def on_start(self) -> None:
        print("started", flush=True)

    def on_bbo(self, bbo: Bbo) -> None:
        print(bbo.ticker, bbo.bid_e4, bbo.ask_e4, flush=True)

    def on_stop(self) -> None:
        print("stopped", flush=True)

run(Printer(), group_a=sys.argv[1], port=int(sys.argv[2]), recovery=())
print("returned", flush=True)
"""


class Trades(Strategy):
    """Stops after `enough` trades."""

    def __init__(self, enough: int) -> None:
        self.enough = enough
        self.trades: list[int] = []
        self.calls: list[str] = []
        self.gaps: list[Gap | UpstreamGap] = []

    def on_start(self) -> None:
        self.calls.append("start")

    def on_stop(self) -> None:
        self.calls.append("stop")

    def on_session(self, session: SessionChanged | SessionEnded) -> None:
        self.calls.append(type(session).__name__)

    def on_gap(self, gap: Gap | UpstreamGap) -> None:
        self.gaps.append(gap)

    def on_trade(self, trade: Trade) -> None:
        self.trades.append(trade.g)
        if len(self.trades) >= self.enough:
            self.stop()


async def running(strategy: Strategy, send: Callable[[], None], **options: Any) -> None:
    """Runs a strategy to its own end, in at most 10 s; `send` is called once it listens."""
    task = asyncio.create_task(run_async(strategy, **options))
    async with asyncio.timeout(10):
        while strategy.stats() is None and not task.done():  # noqa: ASYNC110  # there is no event to await
            await asyncio.sleep(0.001)
        send()
        await task


def trade(g: int) -> Trade:
    """A trade."""
    return Trade(T, g, 0, 0, "t", 1, 1, 0)


async def test_a_strategy_runs_until_it_stops_itself(group: str, port: int, sender: Any) -> None:
    strategy = Trades(3)
    await running(
        strategy,
        lambda: sender.messages(Stream.TRADE, 1, [trade(1), trade(2), trade(3)]),
        group_a=group,
        port=port,
        recovery=(),
    )
    assert strategy.trades == [1, 2, 3]
    assert strategy.calls == ["start", "SessionChanged", "stop"]
    assert strategy.stats() is None


async def test_a_gap_is_told_after_the_wait_without_further_traffic(
    group: str, port: int, sender: Any
) -> None:
    """The timer, not the next datagram, ends the wait for a hole."""
    strategy = Trades(2)
    session = time.time_ns()

    def send() -> None:
        sender.messages(Stream.TRADE, 1, [trade(1)], session + 1)
        sender.messages(Stream.TRADE, 3, [trade(3)], session + 1)

    await running(strategy, send, group_a=group, port=port, recovery=())
    assert strategy.trades == [1, 3]
    assert [(gap.from_seq, gap.to_seq) for gap in strategy.gaps if isinstance(gap, Gap)] == [(2, 2)]


class Broken(Trades):
    """Raises at its second trade."""

    def on_trade(self, trade: Trade) -> None:
        super().on_trade(trade)
        if trade.g == 2:
            raise ValueError("the user's mistake")


async def test_an_exception_ends_the_run_and_comes_out_of_it(
    group: str, port: int, sender: Any
) -> None:
    strategy = Broken(5)
    with pytest.raises(ValueError, match="the user's mistake"):
        await running(
            strategy,
            lambda: sender.messages(Stream.TRADE, 1, [trade(g) for g in range(1, 6)]),
            group_a=group,
            port=port,
            recovery=(),
        )
    assert strategy.trades == [1, 2]
    assert strategy.calls[-1] == "stop"


async def test_a_strategy_may_go_on_after_exceptions(
    group: str, port: int, sender: Any, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = Broken(5)
    stats = []
    strategy.on_stop = lambda: stats.append(strategy.stats())  # type: ignore[method-assign]  # by instance

    def send() -> None:
        for seq in range(1, 6):
            sender.messages(Stream.TRADE, seq, [trade(2 if seq < 4 else seq)])

    with caplog.at_level(logging.ERROR, "tickerplant_subscriber"):
        await running(strategy, send, on_error="continue", group_a=group, port=port, recovery=())
    assert strategy.trades == [2, 2, 2, 4, 5]
    assert stats[0] is not None
    assert stats[0].callback_errors == 3
    assert [record.message for record in caplog.records] == [
        "on_trade raised; going on (1 exceptions so far)"
    ]


async def test_exceptions_of_timers_end_the_run_too(group: str, port: int) -> None:
    class Failing(Strategy):
        timer_interval_s = 0.01

        def on_timer(self, now_ns: int) -> None:
            raise ZeroDivisionError(str(now_ns))

    with pytest.raises(ZeroDivisionError):
        await running(Failing(), lambda: None, group_a=group, port=port, recovery=())


async def test_exceptions_of_on_start_come_out_and_the_groups_are_left(
    group: str, port: int
) -> None:
    class Failing(Strategy):
        def on_start(self) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await run_async(Failing(), group_a=group, port=port, recovery=())


async def test_on_timer_is_called_at_its_interval(group: str, port: int) -> None:
    class Ticking(Strategy):
        timer_interval_s = 0.02

        def __init__(self) -> None:
            self.times: list[int] = []

        def on_timer(self, now_ns: int) -> None:
            self.times.append(now_ns)
            if len(self.times) == 4:
                self.stop()

    strategy = Ticking()
    await running(strategy, lambda: None, group_a=group, port=port, recovery=())
    assert strategy.times[3] - strategy.times[0] >= 50_000_000


async def test_books_and_quotes_may_be_asked_in_any_callback(
    group: str, port: int, sender: Any
) -> None:
    class Asking(Strategy):
        def __init__(self) -> None:
            self.seen: list[object] = []

        def on_book(self, book: BookView, update: LevelUpdate) -> None:
            self.seen += [update.size_e2, self.book(T) is book, self.bbo(T)]
            self.stop()

    strategy = Asking()

    def send() -> None:
        image = [BookClear(T, 0, 0, 0), BookReady(T, 0, 0, 0, Book().checksum())]
        sender.messages(Stream.DELTA, 1, [*image, LevelUpdate(T, 0, 0, 0, 0, 4_000, 5, 5)])

    await running(strategy, send, group_a=group, port=port, recovery=())
    assert strategy.seen == [5, True, None]
    assert strategy.book(T) is None


def test_what_waits_unread_is_read_before_a_hole_is_given_up(
    group: str, group_b: str, port: int, sender: Any, sender_b: Any
) -> None:
    """Line B holds what line A lost, behind more datagrams than one drain reads, and the process stalls."""

    class Stalling(Trades):
        def on_start(self) -> None:
            for seq in (1, 3):
                sender.messages(Stream.TRADE, seq, [trade(seq)])
            for _ in range(DATAGRAMS_PER_DRAIN + 50):
                sender_b.messages(Stream.TRADE, 1, [trade(1)])
            sender_b.messages(Stream.TRADE, 2, [trade(2)])

        def on_trade(self, trade: Trade) -> None:
            super().on_trade(trade)
            time.sleep(0.01)

    strategy = Stalling(2)
    run(strategy, group_a=group, group_b=group_b, port=port, recovery=())
    assert strategy.trades[:2] == [1, 2]
    assert strategy.gaps == []


async def test_a_dead_stream_is_told_without_any_traffic(
    group: str, port: int, sender: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tickerplant_subscriber.arbiter.STREAM_DEAD_NS", STREAM_DEAD_NS // 30)

    class Watching(Strategy):
        reason: StaleReason | None = None

        def on_bbo(self, bbo: Bbo) -> None:
            pass

        def on_stale(self, ticker: str, reason: StaleReason) -> None:
            self.reason = reason
            self.stop()

    strategy = Watching()
    await running(
        strategy,
        lambda: sender.messages(Stream.BBO, 1, [Bbo(T, 1, 0, 0, 1, 1, 2, 1, 1)]),
        group_a=group,
        port=port,
        recovery=(),
    )
    assert strategy.reason is StaleReason.STREAM_DEAD


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_ends_cleanly_on_signals(
    group: str, port: int, sender: Any, number: signal.Signals
) -> None:
    """The ten-line strategy in a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-P", "-c", PROGRAM, group, str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "started\n"
            sender.messages(Stream.BBO, 1, [Bbo(T, 1, 0, 0, 4_000, 1, 5_000, 1, 1)])
            assert child.stdout.readline() == f"{T} 4000 5000\n"
            child.send_signal(number)
            output, errors = child.communicate(timeout=30)
        finally:
            child.kill()
    assert (output, errors, child.returncode) == ("stopped\nreturned\n", "", 0)


def test_run_refuses_what_cannot_be_right(group: str, port: int) -> None:
    with pytest.raises(ConfigurationError, match="on_error"):
        run(Strategy(), on_error="ignore")  # type: ignore[arg-type]  # that it is refused is the test
    with pytest.raises(ConfigurationError, match="UDP port"):
        run(Strategy(), port=-1)
    with pytest.raises(NetworkSetupError, match="no interface has the address"):
        run(Strategy(), group_a=group, port=port, recovery=(), interface="192.0.2.77")


def test_a_ten_line_strategy_type_checks_under_mypy_strict(tmp_path: Any) -> None:
    from mypy import api

    program = tmp_path / "strategy.py"
    program.write_text(PROGRAM)
    output, errors, code = api.run(["--strict", "--cache-dir", str(tmp_path), str(program)])
    assert (code, errors) == (0, ""), output
