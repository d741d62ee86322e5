"""Background tasks and callbacks under one roof: the first failure ends the plant, in order and with a cause.

This is the only place that catches everything: a fault that nobody foresaw is logged with its traceback, counted, and
becomes an error of one line and exit code 1.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, Protocol

from tickerplant.errors import TickerplantError

_P = ParamSpec("_P")


class FaultLog(Protocol):
    """Where unforeseen faults are written; a structlog logger is one."""

    def error(self, event: str, **fields: Any) -> Any:
        """Write one event at level error."""


class InternalError(TickerplantError):
    """A fault of our own: the traceback is in the log."""


class Supervisor:
    """Runs tasks and callbacks; `wait` ends with the first failure of any of them."""

    def __init__(self, log: FaultLog) -> None:
        """Needs a running event loop from `start` on."""
        self._log = log
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed = asyncio.Event()
        self.error: TickerplantError | None = None
        self.internal_errors = 0

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` until it is done, fails, or `close` cancels it."""
        task = asyncio.get_running_loop().create_task(self._run(name, work), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def guard(self, name: str, callback: Callable[_P, None]) -> Callable[_P, None]:
        """`callback` for the event loop: what it raises counts as a failure instead of being only printed."""

        def guarded(*arguments: _P.args, **options: _P.kwargs) -> None:
            self.attempt(name, lambda: callback(*arguments, **options))

        return guarded

    def attempt(self, name: str, step: Callable[[], None]) -> bool:
        """Whether `step` went through; what it raises counts as a failure and goes no further."""
        try:
            step()
        except Exception as error:  # noqa: BLE001  # the one place that catches everything
            self.fail(name, error)
            return False
        return True

    def fail(self, name: str, error: BaseException) -> None:
        """Take note of a failure of `name`; the first one is what `wait` raises."""
        if not isinstance(error, TickerplantError):
            self.internal_errors += 1
            self._log.error("internal_error", where=name, exc_info=error)
        if self.error is None:
            self.error = as_error(name, error)
            self._failed.set()

    async def wait(self, stop: asyncio.Event) -> None:
        """Return once `stop` is set. Raises the first failure as soon as there is one."""
        waiting = {
            asyncio.ensure_future(stop.wait()),
            asyncio.ensure_future(self._failed.wait()),
        }
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for future in waiting:
                future.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        if self.error is not None:
            raise self.error

    async def close(self) -> None:
        """Cancel every task and wait until all are gone."""
        while self._tasks:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001  # the one place that catches everything
            self.fail(name, error)


def as_error(name: str, error: BaseException) -> TickerplantError:
    """`error` if it is one of ours, else an `InternalError` of one line."""
    if isinstance(error, TickerplantError):
        return error
    text = " ".join(str(error).split())[:200]
    return InternalError(
        f"internal error in {name}: {type(error).__name__}{f': {text}' if text else ''}; the log has the traceback"
    )
