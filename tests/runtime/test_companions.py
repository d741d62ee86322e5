"""Companion processes: real children that crash, hang and are killed."""

import asyncio
import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from plant_in_process import EventList

from tickerplant.limits import COMPANION_BACKOFF_BASE_S
from tickerplant.runtime import companions as module
from tickerplant.runtime.companions import (
    Companion,
    Companions,
    CompanionSpec,
    tickerplant_command,
)
from tickerplant.runtime.metrics import Metrics
from tickerplant.runtime.supervise import Supervisor

ENDS_AT_SIGTERM = """
import signal, sys, time
def end(*_):
    with open(sys.argv[2], "a") as file:
        file.write(sys.argv[1] + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("up", flush=True)
with open(sys.argv[2] + "." + sys.argv[1], "w") as file:
    file.write("up")
time.sleep(60)
"""


def script(code: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-P", "-c", code, *arguments)


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within thirty seconds"
        await asyncio.sleep(0.005)


@asynccontextmanager
async def watched(*specs: CompanionSpec) -> AsyncIterator[tuple[Companions, EventList]]:
    """Kept running; at the end watching ends, then the companions do."""
    log = EventList()
    companions = Companions(specs, log)
    supervisor = Supervisor(log)
    companions.start(supervisor)
    try:
        yield companions, log
    finally:
        await supervisor.close()
        await companions.stop()
    assert supervisor.error is None
    assert not any(one.pid for one in companions.all)


async def test_one_that_crashes_is_started_again_with_growing_pauses() -> None:
    spec = CompanionSpec("crashing", script("import sys; sys.exit(3)"))
    async with watched(spec) as (companions, log):
        (companion,) = companions.all
        await until(lambda: companion.ends["exit 3"] >= 3)
    pauses = [one["restart_in_ms"] for one in log.of("companion_ended")]
    assert pauses[:3] == [int(COMPANION_BACKOFF_BASE_S * 1_000 * 2**n) for n in range(3)]
    assert companion.starts >= 3
    assert companions.counters()["ends{name,how}"]["crashing", "exit 3"] == companion.ends["exit 3"]


async def test_pauses_are_bounded_and_begin_anew_after_a_stable_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "COMPANION_BACKOFF_BASE_S", 0.001)
    monkeypatch.setattr(module, "COMPANION_BACKOFF_CAP_S", 0.004)
    spec = CompanionSpec("crashing", script("import sys; sys.exit(1)"))
    async with watched(spec) as (companions, log):
        await until(lambda: companions.all[0].ends["exit 1"] >= 5)
        pauses = [one["restart_in_ms"] for one in log.of("companion_ended")]
        assert pauses[:5] == [1, 2, 4, 4, 4]
        monkeypatch.setattr(module, "COMPANION_STABLE_S", 0.0)
        log.events.clear()
        await until(lambda: len(log.of("companion_ended")) >= 2)
        assert {one["restart_in_ms"] for one in log.of("companion_ended")[1:]} == {1}


async def test_one_that_is_killed_is_started_again(tmp_path: Path) -> None:
    spec = CompanionSpec("service", script(ENDS_AT_SIGTERM, "service", str(tmp_path / "ends")))
    async with watched(spec) as (companions, log):
        (companion,) = companions.all
        await until(lambda: companion.pid)
        first = companion.pid
        os.kill(first, signal.SIGKILL)
        await until(lambda: companion.pid not in {0, first})
        assert companions.states() == {"service": "running"}
        assert companions.gauges() == {"running{name}": {"service": 1}}
        await until((tmp_path / "ends.service").exists)
    assert companion.ends == {"signal 9": 1}
    assert log.of("companion_started")[0]["process"] == first
    assert companions.states() == {"service": "ended"}


async def test_a_command_that_does_not_exist_is_an_end_like_any_other() -> None:
    async with watched(CompanionSpec("absent", ("/no/such/command",))) as (companions, _log):
        (companion,) = companions.all
        await until(lambda: sum(companion.ends.values()) >= 2)
        assert companion.starts == 0
        assert all("not started" in how for how in companion.ends)


async def test_where_no_descriptor_is_left_it_is_looked_after_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "COMPANION_LOOK_S", 0.01)
    async with watched(CompanionSpec("short", script("import time; time.sleep(0.3)"))) as (both, _):
        (companion,) = both.all
        await until(lambda: companion.pid)
        first = companion.pid
        await until(lambda: companion.ends["exit 0"])
        with monkeypatch.context() as patched:
            patched.setattr(os, "pidfd_open", no_descriptor)
            await until(lambda: companion.ends["exit 0"] >= 2)
        assert companion.pid != first


def no_descriptor(_pid: int) -> int:
    raise OSError(errno.EMFILE, "Too many open files")


async def test_they_end_one_after_the_other_in_the_stated_order(tmp_path: Path) -> None:
    ends = tmp_path / "ends"
    names = ("store", "recovery", "last")
    specs = [CompanionSpec(name, script(ENDS_AT_SIGTERM, name, str(ends))) for name in names]
    async with watched(*specs):
        await until(lambda: all((tmp_path / f"ends.{name}").exists() for name in names))
    assert ends.read_text().split() == list(names)


async def test_one_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    log = EventList()
    companion = Companion(CompanionSpec("deaf", script(code)), log)
    task = asyncio.create_task(companion.watch())
    await until(lambda: companion.pid)
    pid = companion.pid
    await until(lambda: ignores_sigterm(pid))
    task.cancel()
    await asyncio.wait([task])
    assert companion.pid == pid
    await companion.stop(timeout_s=0.1)
    assert companion.pid == 0
    assert [one["name"] for one in log.of("companion_killed")] == ["deaf"]


def ignores_sigterm(pid: int) -> bool:
    mask = re.search(r"^SigIgn:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert mask is not None
    return bool(int(mask[1], 16) & 1 << signal.SIGTERM - 1)


async def test_a_companion_gets_neither_our_key_nor_our_way_to_systemd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in module.OURS_ALONE:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("TICKERPLANT__LOG__LEVEL", "debug")
    code = "import os, sys; open(sys.argv[1], 'w').write('\\n'.join(os.environ)); os.rename(*sys.argv[1:])"
    paths = (str(tmp_path / "writing"), str(tmp_path / "names"))
    async with watched(CompanionSpec("spy", script(code, *paths))):
        await until((tmp_path / "names").exists)
    names = set((tmp_path / "names").read_text().split())
    assert not names & module.OURS_ALONE
    assert "TICKERPLANT__LOG__LEVEL" in names


async def test_what_is_counted_is_served() -> None:
    metrics = Metrics()
    async with watched(CompanionSpec("crashing", script("import sys; sys.exit(3)"))) as (
        all_,
        _log,
    ):
        metrics.add("companion", all_)
        await until(lambda: all_.all[0].ends["exit 3"])
        text = metrics.scrape().decode()
    assert 'tickerplant_companion_ends_total{how="exit 3",name="crashing"} 1.0' in text
    assert 'tickerplant_companion_running{name="crashing"}' in text


PARENT = """
import asyncio, sys
from tickerplant.runtime.companions import Companion, CompanionSpec, tickerplant_command
class Silent:
    def info(self, event, **fields): print(fields["process"], flush=True)
    warning = info
command = tickerplant_command("sim", "--port", "0", "--rest-port", "0", "--directory", sys.argv[1])
asyncio.run(Companion(CompanionSpec("sim", command), Silent()).watch())
"""


def test_a_companion_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        script(PARENT, str(tmp_path)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        assert parent.stdout is not None
        companion = int(parent.stdout.readline())
        # It has asked the kernel for the signal once it says something of its own.
        assert "websocket" in parent.stdout.readline()
        parent.kill()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{companion}").exists():
        state = Path(f"/proc/{companion}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":
            break
        assert time.monotonic() < deadline, "the companion outlived its parent"
        time.sleep(0.01)


def test_a_companion_of_a_parent_that_is_gone_does_not_start() -> None:
    command = list(tickerplant_command("sim", "--port", "0"))
    command[command.index(str(os.getpid()))] = "1"
    done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    assert done.returncode == 1
    assert done.stdout == b""
