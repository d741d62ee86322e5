"""A `tickerplant` command in a process of its own, its output kept for the error if it ends before it should."""

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Self, TypeVar

from tickerplant.config_checks import KEY_PEM_VARIABLE
from tickerplant.config_sources import FILE_VARIABLE, VARIABLE_PREFIX
from tickerplant.errors import TickerplantError
from tickerplant.limits import (
    DEMO_OUTPUT_LINE_MAX_BYTES,
    DEMO_OUTPUT_LINES_KEPT,
    DEMO_STOP_TIMEOUT_S,
)

T = TypeVar("T")

_END_NOTICED_S = 0.5
ERROR_PREFIX = "tickerplant: error: "
"""What the command line puts before its one-line errors."""
FOREIGN_VARIABLES = frozenset(
    {
        FILE_VARIABLE,
        KEY_PEM_VARIABLE,
        "STATE_DIRECTORY",
        "NOTIFY_SOCKET",
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
    }
)
"""Environment variables meant for the user's own plant, which must not reach the one of the demo."""


class DemoError(TickerplantError):
    """A part of the demo ended, did not start, or the final check failed."""


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` without what would change the generated configuration."""
    return {
        name: value
        for name, value in environ.items()
        if name not in FOREIGN_VARIABLES and not name.startswith(VARIABLE_PREFIX)
    }


class ChildProcess:
    """One child; `name` is what errors call it. `on_line` gets each line it prints, errors included."""

    def __init__(self, name: str, process: Process, on_line: Callable[[str], None]) -> None:
        """Made by `start`."""
        self.name = name
        self.pid = process.pid
        self._process = process
        self._lines: deque[str] = deque(maxlen=DEMO_OUTPUT_LINES_KEPT)
        self._reader = asyncio.create_task(self._read(on_line), name=f"output of {name}")
        self._ended = asyncio.create_task(process.wait(), name=f"end of {name}")

    @classmethod
    async def start(
        cls, name: str, arguments: Sequence[str], on_line: Callable[[str], None]
    ) -> Self:
        """Start `tickerplant` with `arguments`. Ctrl-C in the terminal does not reach it: the demo ends it in order."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "tickerplant.child",
            str(os.getpid()),
            *arguments,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            env=child_environment(os.environ),
            start_new_session=True,
            limit=DEMO_OUTPUT_LINE_MAX_BYTES,
        )
        return cls(name, process, on_line)

    @property
    def ended(self) -> asyncio.Task[int]:
        """Done, with the exit code, once the process has ended."""
        return self._ended

    @property
    def last_line(self) -> str:
        """The newest line of its output, empty if there is none."""
        return self._lines[-1] if self._lines else ""

    async def premature_end(self) -> DemoError:
        """The error that says how the process ended, and its last words."""
        code = await self._ended
        await self._finish_reading()
        errors = [line for line in self._lines if line.startswith(ERROR_PREFIX)]
        words = (errors[-1] if errors else self.last_line).removeprefix(ERROR_PREFIX)
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return DemoError(f"{self.name} {how}{f': {words}' if words else ' and said nothing'}")

    async def stop(self) -> int:
        """Ask the process to end, kill it if it does not; returns its exit code."""
        if not self._ended.done():
            with suppress(ProcessLookupError):
                self._process.terminate()
            await asyncio.wait((self._ended,), timeout=DEMO_STOP_TIMEOUT_S)
        if not self._ended.done():
            with suppress(ProcessLookupError):
                self._process.kill()
        code = await self._ended
        await self._finish_reading()
        return code

    async def _finish_reading(self) -> None:
        """What the process said before it ended may still wait in the pipe."""
        await asyncio.wait((self._reader,), timeout=1)
        self._reader.cancel()

    async def _read(self, on_line: Callable[[str], None]) -> None:
        stream = self._process.stdout
        assert stream is not None
        while True:
            try:
                raw = await stream.readline()
            except ValueError:
                # A line beyond the limit: the stream has dropped it and goes on.
                continue
            if not raw:
                return
            line = raw.decode(errors="replace").strip()
            if line:
                self._lines.append(line)
                on_line(line)


async def until(
    awaited: Awaitable[T], processes: Sequence[ChildProcess], timeout_s: float | None, what: str
) -> T:
    """The result of `awaited`. Raises `DemoError` as soon as one of `processes` ends, or after `timeout_s`."""
    task = asyncio.ensure_future(awaited)
    ends = [process.ended for process in processes]
    try:
        await asyncio.wait((task, *ends), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done() and isinstance(task.exception(), DemoError):
            # Its end is what a failed request to a process comes from; it may be noticed a moment later.
            await asyncio.wait(ends, timeout=_END_NOTICED_S, return_when=asyncio.FIRST_COMPLETED)
        for process in processes:
            if process.ended.done():
                raise await process.premature_end()
        if task.done():
            return task.result()
    finally:
        task.cancel()
    said = "; ".join(f"{one.name} said last: {one.last_line}" for one in processes if one.last_line)
    raise DemoError(f"{what} took more than {timeout_s:g} s{f': {said}' if said else ''}")
