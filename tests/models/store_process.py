"""`tickerplant store` as a process, and what it should have stored."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import pytest

from tickerplant.core.rows import RowMapper
from tickerplant.runtime.logreader import LogReader

SECONDS_MAX = 30.0


class Store:
    """The command in a process of its own, on a free port."""

    def __init__(self, state: Path, *settings: str, options: tuple[str, ...] = ()) -> None:
        words = [
            *("log.format=json", f"state.directory={state}", "store.metrics_port=0"),
            *("store.close_s=1", "store.close_rows=1000"),
            *settings,
        ]
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("TICKERPLANT")
        }
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tickerplant", "store", *options]
            + [part for word in words for part in ("--set", word)],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd="/",
        )
        self.lines: list[dict] = []

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self.kill()

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=SECONDS_MAX)

    def wait_event(self, event: str) -> dict:
        for line in self.process.stderr:
            self.lines.append(json.loads(line) if line.startswith("{") else {"event": line})
            if self.lines[-1]["event"] == event:
                return self.lines[-1]
        pytest.fail(f"{event} was not logged: {self.lines}")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=SECONDS_MAX)

    def fail(self) -> tuple[int, str]:
        """Exit code and last line of a process that ends by itself."""
        _, errors = self.process.communicate(timeout=SECONDS_MAX)
        return self.process.returncode, errors.splitlines()[-1]


def page(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def rows_in_log(log: Path) -> dict[str, Counter]:
    mapper = RowMapper()
    with LogReader(log) as reader:
        while (batch := reader.read()) is not None:
            for _offset, datagram in batch.records:
                mapper.add_datagram(datagram)
    return {name: Counter(rows) for name, rows in mapper.take().items()}


def metric(text: str, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    assert found is not None, name
    return float(found[1])
