"""The plant's companions: processes that `tickerplant run` starts, starts again when they end, and ends after itself.

They belong to the event loop's thread: the kernel ends a companion with the thread that started it.
"""

import asyncio
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tickerplant.limits import (
    COMPANION_BACKOFF_BASE_S,
    COMPANION_BACKOFF_CAP_S,
    COMPANION_LOOK_S,
    COMPANION_STABLE_S,
    COMPANION_STOP_TIMEOUT_S,
)
from tickerplant.runtime.plain_structlog import structlog
from tickerplant.runtime.supervise import Supervisor

OURS_ALONE = frozenset({"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "KALSHI_KEY_PEM"})
"""Environment variables that companions do not get: systemd talks to the plant, and only the plant has the key."""
_DOUBLINGS_MAX = 16


class CompanionSpec(NamedTuple):
    """What a companion is called in logs and metrics, and the command that it is."""

    name: str
    command: tuple[str, ...]


def tickerplant_command(*arguments: str) -> tuple[str, ...]:
    """The command of `tickerplant` with `arguments`, which ends when this process does."""
    return (sys.executable, "-P", "-m", "tickerplant.child", str(os.getpid()), *arguments)


class Companion:
    """One process, kept running by `watch` and ended by `stop`."""

    def __init__(self, spec: CompanionSpec, log: Any) -> None:
        """Starts nothing yet; `log` is a structlog logger."""
        self.name = spec.name
        self.starts = 0
        self.ends: Counter[str] = Counter()
        """How often it ended by itself, by how: `exit 1`, `signal 9`, `not started`."""
        self._command = spec.command
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._failures = 0

    @property
    def pid(self) -> int:
        """Of the running process; 0 if there is none."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else 0

    async def watch(self) -> None:
        """Keep it running until this is cancelled; the process then stays for `stop`."""
        while True:
            started_s = time.monotonic()
            how = await self._run()
            self.ends[how] += 1
            ran_s = time.monotonic() - started_s
            if ran_s >= COMPANION_STABLE_S:
                self._failures = 0
            wait_s = min(
                COMPANION_BACKOFF_CAP_S,
                COMPANION_BACKOFF_BASE_S * 2 ** min(self._failures, _DOUBLINGS_MAX),
            )
            self._failures += 1
            self._log.warning(
                "companion_ended",
                name=self.name,
                how=how,
                ran_ms=int(ran_s * 1_000),
                restart_in_ms=int(wait_s * 1_000),
                rate_key=f"companion_ended {self.name}",
            )
            await asyncio.sleep(wait_s)

    async def _run(self) -> str:
        """How one life of it ended."""
        try:
            self._process = self._start()
        except OSError as error:
            return f"not started: {error.strerror}"
        self.starts += 1
        self._log.info("companion_started", name=self.name, process=self._process.pid)
        code = await _ended(self._process)
        self._process = None
        return f"signal {-code}" if code < 0 else f"exit {code}"

    def _start(self) -> subprocess.Popen[bytes]:
        """In this thread, about a millisecond. Raises `OSError`."""
        environment = {name: value for name, value in os.environ.items() if name not in OURS_ALONE}
        # A session of its own: Ctrl-C in the terminal is for the plant, which ends its companions in order.
        return subprocess.Popen(  # noqa: S603  # our own command
            self._command, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )

    async def stop(self, timeout_s: float = COMPANION_STOP_TIMEOUT_S) -> None:
        """End it in order, or kill it if it takes too long; `watch` was cancelled before."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(timeout_s):
                await _ended(process)
        except TimeoutError:
            self._log.warning("companion_killed", name=self.name, waited_s=timeout_s)
            process.kill()
            await _ended(process)


async def _ended(process: subprocess.Popen[bytes]) -> int:
    """The exit code of `process`, once it has one; negative: the signal that ended it."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    try:
        process_fd = os.pidfd_open(process.pid)
    except OSError:
        # No descriptor is left: the plant needs none of its own for this.
        while process.poll() is None:  # noqa: ASYNC110  # nothing else tells
            await asyncio.sleep(COMPANION_LOOK_S)
        return process.wait()
    loop.add_reader(process_fd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(process_fd)
        os.close(process_fd)
    return process.wait()


class Companions:
    """All of them, in the order in which they are ended."""

    def __init__(self, specs: Sequence[CompanionSpec] = (), log: Any = None) -> None:
        """Starts nothing yet; `log` is a structlog logger."""
        log = structlog.get_logger() if log is None else log
        self.all = tuple(Companion(spec, log) for spec in specs)

    def start(self, supervisor: Supervisor) -> None:
        """Start and keep them running until `supervisor` is closed."""
        for companion in self.all:
            supervisor.start(f"companion {companion.name}", companion.watch())

    async def stop(self) -> None:
        """End one after the other; harmless if none was started."""
        for companion in self.all:
            await companion.stop()

    def states(self) -> Mapping[str, str]:
        """For `/health`: running or ended, by name."""
        return {one.name: "running" if one.pid else "ended" for one in self.all}

    def counters(self) -> Mapping[str, Mapping[str, int] | Mapping[tuple[str, ...], int]]:
        """For the metrics."""
        ends: dict[tuple[str, ...], int] = {
            (one.name, how): count for one in self.all for how, count in one.ends.items()
        }
        return {"starts{name}": {one.name: one.starts for one in self.all}, "ends{name,how}": ends}

    def gauges(self) -> Mapping[str, Mapping[str, int]]:
        """For the metrics."""
        return {"running{name}": {one.name: int(one.pid > 0) for one in self.all}}
