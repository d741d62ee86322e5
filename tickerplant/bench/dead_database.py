"""The plant while the store's database answers, is dead, and hangs: it must be all the same to it.

Sender, plant and subscriber of `end_to_end`, a store that follows the plant's tick log, and a real QuestDB. The plant
has a core, everything else shares the other one. The states of the database take turns, so that what the machine does
meanwhile meets all of them. Not part of `tickerplant bench`, because it fetches a server with Maven.

python -m tickerplant.bench.dead_database [--rounds 4] [--seconds 4]
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tickerplant.bench.end_to_end import OTHER_CORE, EndToEnd
from tickerplant.bench.report import Row, machine, table
from tickerplant.errors import StoreError
from tickerplant.limits import BENCH_STORE_TIMEOUT_S
from tickerplant.store.local_server import LocalServer, cache_folder
from tickerplant.store.questdb_http import Login, QuestDbHttp
from tickerplant.store.schema_check import apply

_LOOK_S = 0.2
_ROWS_SQL = "SELECT count() FROM orderbook_deltas WHERE kind = 'update'"


class Database(StrEnum):
    """What the database does during a run."""

    ALIVE = "alive"
    DEAD = "dead"
    """Killed: its port refuses."""
    HANGING = "hanging"
    """Stopped (SIGSTOP): the kernel takes connections and requests, nobody answers."""


class _Bed:
    """The server and the store, both on the core that the plant does not have."""

    def __init__(self, folder: Path, log: Path, *, is_light: bool) -> None:
        self.server = LocalServer(folder / "questdb", cache_folder(), is_light=is_light)
        self._folder = folder
        self._log = log
        self._store: subprocess.Popen[bytes]

    def start(self) -> None:
        """Raises `StoreError`."""
        with _on_core(OTHER_CORE):
            self.server.start()
            password = self._folder / "password"
            password.write_text(self.server.password)
            apply(self._http(), 0)
            settings = {
                "state.directory": str(self._folder),
                "ticklog.directory": str(self._log),
                "store.backend": "questdb",
                "store.conf": f"http::addr={self.server.address};",
                "store.username": self.server.user,
                "store.password_path": str(password),
                "metrics.enabled": "false",
                "log.level": "error",
            }
            words = [part for key in settings for part in ("--set", f"{key}={settings[key]}")]
            self._store = subprocess.Popen(  # noqa: S603  # our own command
                [sys.executable, "-P", "-m", "tickerplant", "store", "--config", os.devnull, *words]
            )

    def set_state(self, state: Database, updates: int) -> None:
        """Where it is alive, the store has caught up: `updates` rows can be queried. Raises `StoreError`."""
        if state is Database.DEAD:
            self.server.kill()
        elif state is Database.HANGING:
            self.server.signal(signal.SIGSTOP)
        else:
            with _on_core(OTHER_CORE):
                if self.server.pid:
                    self.server.signal(signal.SIGCONT)
                else:
                    self.server.start()
            self._wait_rows(updates)

    def row_count(self) -> int:
        """Changes of levels that can be queried."""
        [[count]] = self._http().execute(_ROWS_SQL)
        return int(count)

    def store_mib(self) -> float:
        """Memory of the store's process."""
        for line in Path(f"/proc/{self._store.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1_024
        raise StoreError("the store has ended: its output says why")

    def close(self) -> None:
        """End both."""
        if self.server.pid:
            self.server.signal(signal.SIGCONT)
        self._store.terminate()
        try:
            self._store.wait(BENCH_STORE_TIMEOUT_S)
        finally:
            self._store.kill()
            self.server.kill()

    def _http(self) -> QuestDbHttp:
        login = Login(self.server.user, self.server.password)
        return QuestDbHttp(f"http::addr={self.server.address};", login)

    def _wait_rows(self, least: int) -> None:
        deadline = time.monotonic() + BENCH_STORE_TIMEOUT_S
        while self.row_count() < least:
            if self._store.poll() is not None or time.monotonic() > deadline:
                raise StoreError("the store ended, or did not catch up: its output says why")
            time.sleep(_LOOK_S)


@contextmanager
def _on_core(number: int) -> Iterator[None]:
    """What is started meanwhile runs on that core, if there is more than one."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[number % len(cores)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


async def measure(
    *,
    rounds: int,
    seconds: float,
    per_second: int,
    states: Sequence[Database] = tuple(Database),
    markets: int = 2_000,
    is_light: bool = False,
) -> dict[str, Any]:
    """{"runs": [{"database", "tick_to_wire_us", "store_mib", "gaps", ...}], "updates": sent, "stored": rows of them}.

    Raises `StoreError`.
    """
    updates = 0
    runs: list[dict[str, Any]] = []
    async with AsyncExitStack() as resources:
        end_to_end = EndToEnd(markets)
        await end_to_end.start(resources)
        name = resources.enter_context(TemporaryDirectory(prefix="tickerplant-bench-"))
        bed = _Bed(Path(name), end_to_end.log_folder, is_light=is_light)
        resources.callback(bed.close)
        await asyncio.to_thread(bed.start)
        for number in range(rounds):
            turn = number % len(states)
            for state in (*states[turn:], *states[:turn]):
                # After one that was away the store has something to make up for: not while it is measured.
                await asyncio.to_thread(bed.set_state, Database.ALIVE, updates)
                await asyncio.to_thread(bed.set_state, state, updates)
                result = await end_to_end.pace(
                    per_second=per_second, seconds=seconds, busy_poll=False
                )
                updates += result["updates"]
                runs.append({**result, "database": state.value, "store_mib": bed.store_mib()})
        await asyncio.to_thread(bed.set_state, Database.ALIVE, updates)
        return {"runs": runs, "updates": updates, "stored": bed.row_count()}


def rows_of(results: dict[str, Any]) -> list[Row]:
    """The report. Dead and hanging must not be slower than the slowest run with the database alive."""
    runs = {
        state: [one for one in results["runs"] if one["database"] == state] for state in Database
    }
    alive = [one["tick_to_wire_us"]["p99"] for one in runs[Database.ALIVE]]
    found = []
    for state, ones in runs.items():
        if not ones:
            continue
        medians = [one["tick_to_wire_us"]["p50"] for one in ones]
        slow = [one["tick_to_wire_us"]["p99"] for one in ones]
        must, is_met = "", None
        if state is not Database.ALIVE:
            must, is_met = f"within {max(alive):.0f}", statistics.median(slow) <= max(alive)
        found.append(
            Row(
                f"tick to wire, database {state}, p50, p99 of each run",
                f"{_words(medians)}, {_words(slow)} us",
                must,
                "",
                is_met,
            )
        )
    lost = sum(
        one["gaps"] + one["datagrams_lost"] + one["unlogged_datagrams"] for one in results["runs"]
    )
    missing = results["updates"] - results["stored"]
    memory = [one["store_mib"] for one in results["runs"]]
    found.append(Row("lost by plant or log", f"{lost}", "0", "", lost == 0))
    found.append(Row("rows missing or too many in the end", f"{missing}", "0", "", missing == 0))
    found.append(Row("memory of the store", f"{min(memory):.0f} to {max(memory):.0f} MiB", "", ""))
    return found


def _words(values: list[float]) -> str:
    return "/".join(f"{value:.0f}" for value in values)


def main(arguments: list[str]) -> int:
    """Measure and print; a missed budget is told, not an error."""
    parser = argparse.ArgumentParser(
        prog="dead_database", description="Measure the plant while the store's database is away."
    )
    parser.add_argument("--rounds", type=int, default=4, help="runs in each state")
    parser.add_argument("--seconds", type=float, default=4.0, help="of one run")
    parser.add_argument("--per-second", type=int, default=5_000, help="messages")
    parser.add_argument("--json", action="store_true", help="the raw numbers")
    options = parser.parse_args(arguments)
    results = asyncio.run(
        measure(rounds=options.rounds, seconds=options.seconds, per_second=options.per_second)
    )
    if options.json:
        print(json.dumps(results))
        return 0
    print(machine())
    print(table(rows_of(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
