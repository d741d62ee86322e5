"""The first failure of any task or callback ends the whole, with a cause and one line."""

import asyncio
from typing import Any

import pytest

from tickerplant.errors import NetworkSetupError
from tickerplant.runtime.supervise import InternalError, Supervisor


class Faults:
    """A log that keeps the errors."""

    def __init__(self) -> None:
        self.errors: list[dict[str, Any]] = []

    def error(self, event: str, **fields: Any) -> None:
        self.errors.append({"event": event, **fields})


async def forever(started: asyncio.Event, ended: list[str]) -> None:
    started.set()
    try:
        await asyncio.Event().wait()
    finally:
        ended.append("cancelled")


async def test_it_waits_for_the_stop_and_cancels_what_runs() -> None:
    supervisor = Supervisor(Faults())
    started, stop, ended = asyncio.Event(), asyncio.Event(), list[str]()
    supervisor.start("forever", forever(started, ended))
    await started.wait()
    stop.set()
    await asyncio.wait_for(supervisor.wait(stop), 1)
    await supervisor.close()
    assert ended == ["cancelled"]
    assert supervisor.error is None


async def test_a_typed_error_of_a_task_is_what_wait_raises_and_is_not_logged() -> None:
    faults = Faults()
    supervisor = Supervisor(faults)

    async def fail() -> None:
        raise NetworkSetupError("port 1 is in use: stop it")

    supervisor.start("start", fail())
    with pytest.raises(NetworkSetupError, match="port 1"):
        await asyncio.wait_for(supervisor.wait(asyncio.Event()), 1)
    await supervisor.close()
    assert faults.errors == []
    assert supervisor.internal_errors == 0


async def test_an_unforeseen_fault_is_logged_with_its_traceback_and_becomes_one_line() -> None:
    faults = Faults()
    supervisor = Supervisor(faults)

    async def fail() -> None:
        raise KeyError("two\nlines")

    supervisor.start("housekeeping", fail())
    with pytest.raises(InternalError, match="internal error in housekeeping: KeyError") as caught:
        await asyncio.wait_for(supervisor.wait(asyncio.Event()), 1)
    await supervisor.close()
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1
    (logged,) = faults.errors
    assert logged["where"] == "housekeeping"
    assert isinstance(logged["exc_info"], KeyError)
    assert logged["exc_info"].__traceback__ is not None


async def test_a_guarded_callback_fails_the_whole_instead_of_being_printed_by_the_loop() -> None:
    supervisor = Supervisor(Faults())

    def callback(divisor: int) -> None:
        _ = 1 // divisor

    asyncio.get_running_loop().call_soon(supervisor.guard("timer", callback), 0)
    with pytest.raises(InternalError, match="timer: ZeroDivisionError"):
        await asyncio.wait_for(supervisor.wait(asyncio.Event()), 1)


async def test_the_first_failure_is_the_cause_and_later_ones_are_counted() -> None:
    supervisor = Supervisor(Faults())
    assert supervisor.attempt("one", lambda: None) is True
    supervisor.fail("two", NetworkSetupError("first"))
    assert supervisor.attempt("three", {}.popitem) is False
    with pytest.raises(NetworkSetupError, match="first"):
        await supervisor.wait(asyncio.Event())
    assert supervisor.internal_errors == 1


async def test_close_waits_for_tasks_that_start_others_on_their_way_out() -> None:
    supervisor = Supervisor(Faults())
    started, ended = asyncio.Event(), list[str]()

    async def breed() -> None:
        try:
            await forever(started, ended)
        finally:
            supervisor.start("child", forever(asyncio.Event(), ended))

    supervisor.start("parent", breed())
    await started.wait()
    await asyncio.wait_for(supervisor.close(), 1)
    assert len(ended) >= 1
    assert len(asyncio.all_tasks()) == 1
