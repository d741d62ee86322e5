"""The processes of the end-to-end measurement and how they talk: one JSON object a line, both ways."""

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import msgspec

REPLY_TIMEOUT_S = 120.0
_LINE_MAX_BYTES = 64 * 1024 * 1024


class BenchConfig(msgspec.Struct, frozen=True):
    """What every process of one measurement knows; `clock_offset_ns` makes one clock of theirs.

    `busy_poll` is of the subscriber: the plant is told with each run.
    """

    markets: int
    seed: int
    group: str
    port: int
    clock_offset_ns: int
    core: int
    url: str = ""
    log_folder: str = ""
    busy_poll: bool = False


class ChildProcess:
    """A child that runs one module of this package and answers line by line."""

    def __init__(self, module: str, config: BenchConfig) -> None:
        self._module = module
        self._config = config
        self._process: asyncio.subprocess.Process

    async def __aenter__(self) -> Self:
        """Starts the child."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            f"tickerplant.bench.{self._module}",
            msgspec.json.encode(self._config).decode(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE_MAX_BYTES,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ends the child."""
        if self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()

    async def read(self) -> dict[str, Any]:
        """The next line of the child. Raises `RuntimeError` if it ended, `TimeoutError` if none comes."""
        assert self._process.stdout is not None
        async with asyncio.timeout(REPLY_TIMEOUT_S):
            line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the {self._module} process of the benchmark ended early")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def tell(self, **command: Any) -> None:
        """Sends one command."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")

    async def ask(self, **command: Any) -> dict[str, Any]:
        """Sends one command and waits for its answer."""
        self.tell(**command)
        return await self.read()


def start_child() -> BenchConfig:
    """In a child: its configuration; pins the process to its core, unless that is -1 (any)."""
    config = msgspec.json.decode(sys.argv[1], type=BenchConfig)
    pin_to_core(config.core)
    return config


def pin_to_core(core: int, process_id: int = 0) -> None:
    """Lets a process, ours by default, run on one core only: number `core` of those it may use now, -1 for all."""
    cores = sorted(os.sched_getaffinity(process_id))
    if core >= 0:
        os.sched_setaffinity(process_id, {cores[core % len(cores)]})


def answer(fields: Mapping[str, Any]) -> None:
    """In a child: one line to the parent."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


async def commands() -> asyncio.StreamReader:
    """In a child: its standard input as a stream of lines."""
    reader = asyncio.StreamReader(limit=_LINE_MAX_BYTES)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


def wire_latencies(
    arrivals_ns: list[tuple[int, int]], sent_ns: list[tuple[int, int]]
) -> dict[str, Any]:
    """From the return of `send` to the callback: {"wire_to_callback_us", "stamp_to_callback_us"} -> percentiles.

    `arrivals_ns`: (stamp in the datagram, when the callback was called); `sent_ns`: (stamp, when `send` returned). A
    callback on another core may come before `send` has returned: that is 0.
    """
    returned_ns = dict(sent_ns)
    return {
        "wire_to_callback_us": percentiles([max(0, at - returned_ns[s]) for s, at in arrivals_ns]),
        "stamp_to_callback_us": percentiles([at - stamp for stamp, at in arrivals_ns]),
    }


def percentiles(samples_ns: list[int]) -> dict[str, float]:
    """{"p50", "p99", "max"} in microseconds."""
    ordered = sorted(samples_ns)
    return {
        "p50": ordered[len(ordered) // 2] / 1_000,
        "p99": ordered[len(ordered) * 99 // 100] / 1_000,
        "max": ordered[-1] / 1_000,
    }
