"""One run of the demo from start to proof: exchange, subscriber and plant up, the flow, the check, all down again."""

import asyncio
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from tickerplant.demo.comparison import Comparison, compare
from tickerplant.demo.display import Display, Where
from tickerplant.demo.network import INTERFACE, draw_candidates, find_free_groups, reserved_port
from tickerplant.demo.parts import (
    DemoPlant,
    ExchangeBook,
    FlowOptions,
    Loopback,
    PlantCounts,
    SimulatedExchange,
)
from tickerplant.demo.processes import ChildProcess, DemoError, until
from tickerplant.demo.stored import now_ns, read_stored, take_rest
from tickerplant.demo.subscription import DemoBoard, Received, subscribe
from tickerplant.demo.summary import STREAMS, Summary
from tickerplant.errors import EXIT_OK
from tickerplant.limits import DEMO_DRAIN_TIMEOUT_S, DEMO_START_TIMEOUT_S

_POLL_S = 0.1
_REST_POLLS = 10
"""The same is missing for so many polls: nothing more is coming."""
_CHECK_TIMEOUT_S = DEMO_DRAIN_TIMEOUT_S + 30
_END_TIMEOUT_S = 3.0
"""The plant tells the end of its session four times within 250 ms."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):  # noqa: N818  # no error: the user wants it to end
    """A signal, `number`, ended the demo before its check was done."""

    def __init__(self, number: int) -> None:
        """Of this signal."""
        super().__init__(signal.Signals(number).name)
        self.number = number


class Account(NamedTuple):
    """What every part has counted at one moment."""

    frames_sent: int
    plant: PlantCounts
    received: Received

    @property
    def missing(self) -> tuple[int, Counter[str], int]:
        """What has been sent and has not arrived: frames, messages by stream, holes that may still be filled."""
        messages = Counter(self.plant.published)
        messages.subtract(self.received.accounted)
        return self.frames_sent - self.plant.frames, messages, self.received.open_holes

    @property
    def is_drained(self) -> bool:
        """Every frame has become messages, and every message has arrived."""
        frames, messages, holes = self.missing
        return self.plant.is_ready and not (frames or any(messages.values()) or holes)


class Demo:
    """Runs once; `command` starts `tickerplant` in the user's shell."""

    def __init__(
        self, options: FlowOptions, duration_s: float | None, display: Display, command: str
    ) -> None:
        """`duration_s` is how long the market moves once all books are live; None: until Ctrl-C."""
        self._options = options
        self._duration_s = duration_s
        self._display = display
        self._command = command
        self._stop = asyncio.Event()
        self._is_moving = False
        self._is_ending = False
        self._signal = 0
        self._exchange: SimulatedExchange
        self._plant: DemoPlant
        self._board: DemoBoard
        self._subscriber: asyncio.Task[None]
        self._where: Where

    async def run(self) -> Summary:
        """Everything, and everything ended. Ctrl-C ends the flow, a second one (or another signal) the demo.

        Raises `DemoError`, `NetworkSetupError`, `Interrupted`.
        """
        try:
            with self._signals():
                async with AsyncExitStack() as resources:
                    try:
                        await self._start(resources)
                        await self._let_move()
                        return await self._finish()
                    finally:
                        self._is_ending = True
        except (asyncio.CancelledError, OSError):
            # The terminal may have gone with the signal, and cannot be written to then.
            if self._signal:
                raise Interrupted(self._signal) from None
            raise

    # --- signals ----------------------------------------------------------------------------------

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._take_signal, number, task)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def _take_signal(self, number: int, task: "asyncio.Task[Summary]") -> None:
        """While the market moves Ctrl-C is the way to the summary; the end of the processes is not cut short."""
        if number == signal.SIGINT and self._is_moving and not self._stop.is_set():
            self._stop.set()
        elif not self._is_ending:
            self._is_ending = True
            self._signal = number
            task.cancel()

    # --- start ------------------------------------------------------------------------------------

    async def _start(self, resources: AsyncExitStack) -> None:
        """The subscriber before the plant, so that it misses nothing."""
        options = self._options
        self._display.say(
            f"starting a simulated exchange ({options.markets} markets, {options.rate} order actions "
            f"a second, seed {options.seed}), the plant and a subscriber"
        )
        directory = Path(resources.enter_context(TemporaryDirectory(prefix="tickerplant-demo-")))
        http = Loopback()
        resources.push_async_callback(http.close)
        port = resources.enter_context(reserved_port())
        scan = asyncio.create_task(asyncio.to_thread(find_free_groups, port, draw_candidates()))
        resources.callback(scan.cancel)
        self._exchange = SimulatedExchange(http, directory / "exchange", options)
        await self._exchange.start(resources)
        group = await scan
        self._board = DemoBoard(self._display.draw)
        self._subscriber = await subscribe(self._board, group, port)
        resources.push_async_callback(self._end_subscriber)
        self._plant = DemoPlant(http, directory)
        await self._plant.start(resources, self._exchange.announced, group, port)
        self._where = Where(
            websocket_url=self._exchange.announced["websocket"],
            stats_url=self._exchange.stats_url,
            metrics_url=self._plant.metrics_url,
            interface=INTERFACE,
            group=group,
            port=port,
            command=self._command,
        )

    async def _end_subscriber(self) -> None:
        self._subscriber.cancel()
        with suppress(asyncio.CancelledError):
            await self._subscriber

    # --- the flow ---------------------------------------------------------------------------------

    async def _let_move(self) -> None:
        """Until the time is over or Ctrl-C. Raises `DemoError` if anything ends before."""
        self._is_moving = True
        try:
            with self._display.moving(self._where):
                await until(self._wait_for_stop(), self._processes, None, "the flow")
        finally:
            self._is_moving = False

    async def _wait_for_stop(self) -> None:
        stop = asyncio.create_task(self._stop.wait())
        ready = asyncio.create_task(self._plant.wait_ready())
        try:
            await self._first_of(stop, ready, timeout_s=DEMO_START_TIMEOUT_S)
            if ready.done():
                ready.result()
                if self._duration_s is not None:
                    self._display.count_down(self._duration_s)
                await self._first_of(stop, timeout_s=self._duration_s)
            elif not stop.done():
                raise DemoError(
                    f"the plant has not got every book live in {DEMO_START_TIMEOUT_S} s; its log ends with: "
                    f"{self._plant.process.last_line}"
                )
        finally:
            stop.cancel()
            ready.cancel()

    async def _first_of(self, *tasks: "asyncio.Task[Any]", timeout_s: float | None) -> None:
        """Returns when one of `tasks` is done or the time is over; raises what the subscriber failed with."""
        waiting = (*tasks, self._subscriber)
        await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if self._subscriber.done():
            self._subscriber.result()

    @property
    def _processes(self) -> list[ChildProcess]:
        return [self._plant.process, self._exchange.process]

    # --- the check --------------------------------------------------------------------------------

    async def _finish(self) -> Summary:
        """Stop the flow, wait until everything has arrived, compare, end the plant."""
        self._display.say("stopping the flow and comparing the books")
        account, comparison, own = await until(
            self._compare(), self._processes, _CHECK_TIMEOUT_S, "comparing the books"
        )
        at_ns = now_ns()
        ended_streams = await self._end_plant()
        state = self._plant.state_folder
        folder = state / "store"
        await asyncio.to_thread(take_rest, state / "ticklog", folder)
        stored = await asyncio.to_thread(read_stored, folder, own, at_ns)
        return Summary(
            frames_sent=account.frames_sent,
            frames_received=account.plant.frames,
            connections_lost=account.plant.connections_lost,
            published=account.plant.published,
            received=account.received.messages,
            gap_count=self._board.gap_count,
            gaps=self._board.gaps,
            comparison=comparison,
            is_drained=account.is_drained,
            ended_streams=ended_streams,
            stored=stored,
        )

    async def _compare(self) -> tuple[Account, Comparison, dict[str, ExchangeBook]]:
        """At rest. A market that the plant heard of but lately is not followed before it was looked up: wait for it."""
        await self._exchange.pause()
        deadline_s = asyncio.get_running_loop().time() + DEMO_DRAIN_TIMEOUT_S
        while True:
            account = await self._drain(deadline_s)
            own = await self._exchange.books()
            comparison = compare(own, self._board.books(), self._board.bbo)
            if not comparison.missing or asyncio.get_running_loop().time() > deadline_s:
                return account, comparison, own
            await asyncio.sleep(_POLL_S)

    async def _drain(self, deadline_s: float) -> Account:
        """The second account in a row with nothing missing, or the last one when nothing comes any more.

        Only what is missing says whether more is coming: the plant tells checksums of its books also at rest.
        """
        account = await self._take_account()
        polls_at_rest = 0
        while True:
            await asyncio.sleep(_POLL_S)
            previous, account = account, await self._take_account()
            polls_at_rest = polls_at_rest + 1 if account.missing == previous.missing else 0
            if previous.is_drained and account.is_drained:
                return account
            is_late = asyncio.get_running_loop().time() > deadline_s
            if is_late or (polls_at_rest >= _REST_POLLS and account.plant.is_ready):
                return account

    async def _take_account(self) -> Account:
        """From the last of the chain to the first, so that nothing is counted at its end but not at its start."""
        received = self._board.received()
        plant = await self._plant.counts()
        return Account(await self._exchange.frames_sent(), plant, received)

    async def _end_plant(self) -> int:
        """How many streams the subscriber saw end in order. Raises `DemoError` if the plant's own end failed."""
        process = self._plant.process
        if await process.stop() != EXIT_OK:
            raise await process.premature_end()
        deadline_s = asyncio.get_running_loop().time() + _END_TIMEOUT_S
        while (ended := self._board.received().ended_streams) < len(STREAMS):
            if asyncio.get_running_loop().time() > deadline_s:
                break
            await asyncio.sleep(_POLL_S / 10)
        return ended
