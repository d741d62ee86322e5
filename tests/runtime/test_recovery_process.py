"""`tickerplant recovery` as a process: start, lock, metrics, keys, signals."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "models"))

from plant_log import PlantLog
from recovery_server import GapFillClient
from tick_log import LARGE

from tickerplant.core.messages import Stream
from tickerplant.core.recovery_wire import RecoveryCode
from tickerplant.key_file import add_key, make_key_file, read_keys, sign_with
from tickerplant.runtime.checkpoints import checkpoint_positions
from tickerplant.runtime.logfolder import load_position

SECONDS_MAX = 30.0


class Recovery:
    """The command in a process of its own, on free ports."""

    def __init__(self, folder: Path, *settings: str) -> None:
        self.folder = folder
        options = [
            "log.format=json",
            f"ticklog.directory={folder}",
            "recovery.port=0",
            "recovery.metrics_port=0",
            *settings,
        ]
        command = [sys.executable, "-P", "-m", "tickerplant", "recovery"]
        words = [word for option in options for word in ("--set", option)]
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("TICKERPLANT")
        }
        self.process = subprocess.Popen(
            [*command, *words],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd="/",
        )
        self.lines: list[dict] = []

    def __enter__(self) -> "Recovery":
        return self

    def __exit__(self, *_error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=SECONDS_MAX)

    def wait_event(self, event: str) -> dict:
        """The first line of that event."""
        for line in self.lines:
            if line["event"] == event:
                return line
        assert self.process.stderr is not None
        for text in self.process.stderr:
            self.lines.append(json.loads(text) if text.startswith("{") else {"event": text})
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


@pytest.fixture
def plant(tmp_path):
    with PlantLog(tmp_path / "log", options=LARGE) as log:
        log.step(50)
        yield log


async def test_it_serves_tells_how_it_is_and_ends_in_order(plant):
    """Ready, metrics, an answer, SIGTERM: exit code 0 and a checkpoint from which the next one goes on."""
    with Recovery(plant.folder) as recovery:
        port = recovery.wait_event("recovery_started")["port"]
        metrics_port = recovery.wait_event("metrics_endpoint")["port"]
        recovery.wait_event("recovery_caught_up")
        assert page(metrics_port, "/ready")[0] == 200
        with GapFillClient(port) as client:
            code, datagrams, _ = await client.ask(plant.session, Stream.DELTA, 1, 3)
        assert code is RecoveryCode.SERVED
        text = page(metrics_port, "/metrics")[1]
        served = re.search(
            r"^tickerplant_recovery_gap_fill_datagrams_total (\S+)$", text, re.MULTILINE
        )
        assert served is not None
        assert float(served[1]) == len(datagrams)
        assert re.search(r"^tickerplant_recovery_books 8\.0$", text, re.MULTILINE)
        assert recovery.stop() == 0
    assert len(checkpoint_positions(plant.folder)) == 1
    assert load_position(plant.folder, "recovery") is not None
    with Recovery(plant.folder) as recovery:
        assert recovery.wait_event("recovery_started")["from_checkpoint"] is True


def test_it_starts_before_there_is_a_log(tmp_path):
    """And reads it as soon as a plant writes one."""
    with Recovery(tmp_path / "state" / "log") as recovery:
        metrics_port = recovery.wait_event("metrics_endpoint")["port"]
        assert page(metrics_port, "/ready")[0] == 503
        with PlantLog(tmp_path / "state" / "log", options=LARGE):
            deadline = time.monotonic() + SECONDS_MAX
            while "recovery_books 8.0" not in page(metrics_port, "/metrics")[1]:
                assert time.monotonic() < deadline
        assert recovery.stop() == 0


def test_two_of_one_log_are_one_too_many(plant):
    with Recovery(plant.folder) as first:
        first.wait_event("recovery_started")
        with Recovery(plant.folder) as second:
            code, line = second.fail()
        assert code == 1
        assert "is locked by another recovery" in line


def test_a_taken_port_is_told(plant):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with Recovery(plant.folder, f"recovery.port={port}") as recovery:
            code, line = recovery.fail()
    assert code == 1
    assert "set recovery.address and recovery.port" in line


def test_without_a_tick_log_there_is_nothing_to_serve(plant):
    with Recovery(plant.folder, "ticklog.enabled=false") as recovery:
        code, line = recovery.fail()
    assert code == 2
    assert "ticklog.enabled is false" in line


async def test_a_changed_key_file_is_taken_over(tmp_path):
    """Requests under the new key are answered, and signed with the key that signs now."""
    path = tmp_path / "keys"
    old = make_key_file(path)
    ring = read_keys(path)
    with PlantLog(tmp_path / "log", options=LARGE, key=ring.signing_key) as plant:
        plant.step(20)
        with Recovery(plant.folder, f"publish.key_path={path}") as recovery:
            port = recovery.wait_event("recovery_started")["port"]
            with GapFillClient(port) as client:
                code, _, _ = await client.ask(plant.session, Stream.DELTA, 1, 3)
                assert code is RecoveryCode.UNAUTHENTICATED
            new = add_key(path)
            sign_with(path, new)
            keys = read_keys(path).keys
            deadline = time.monotonic() + SECONDS_MAX
            code = RecoveryCode.UNAUTHENTICATED
            with GapFillClient(port, keys, new) as client:
                while code is RecoveryCode.UNAUTHENTICATED:
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.05)
                    code, datagrams, _ = await client.ask(plant.session, Stream.DELTA, 1, 3)
            assert code is RecoveryCode.SERVED
            assert datagrams
            assert old in keys
            path.write_text("nonsense")
            assert "line 1" in recovery.wait_event("keys_unreadable")["reason"]
