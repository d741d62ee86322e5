"""`tickerplant sim` as a process: what it prints, how it ends, how it fails."""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tickerplant.commands import sim

Spawn = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def spawn(key_directory: Path) -> Iterator[Spawn]:
    """Starts `tickerplant sim`; what still runs at the end is killed."""
    processes: list[subprocess.Popen[str]] = []

    def run(*options: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tickerplant", "sim", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"STATE_DIRECTORY": str(key_directory.parent)},
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def printed(process: "subprocess.Popen[str]") -> dict[str, str]:
    """The four lines that a started simulation prints."""
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(4)]
    return {line[:11].strip(): line[11:].strip() for line in lines}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_starts_prints_where_it_listens_and_ends_cleanly(
    number: signal.Signals, spawn: Spawn, key_directory: Path
) -> None:
    process = spawn("--port", "0", "--rest-port", "0", "--directory", str(key_directory))
    told = printed(process)
    assert set(told) == {"websocket", "rest", "key id", "key path"}
    assert Path(told["key path"]).is_file()
    with urllib.request.urlopen(f"{told['rest']}/exchange/status", timeout=5) as response:
        assert json.load(response)["trading_active"] is True
    process.send_signal(number)
    assert process.wait(timeout=30) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""


def test_port_in_use_fails_with_one_line(spawn: Spawn, key_directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = spawn("--port", str(port), "--rest-port", "0", "--directory", str(key_directory))
        out, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert out == ""
    assert len(err.splitlines()) == 1
    assert f"port {port} on 127.0.0.1 is in use" in err
    assert "--port" in err


def test_capture_that_cannot_be_replayed_fails_with_one_line(
    spawn: Spawn, tmp_path: Path, key_directory: Path
) -> None:
    path = tmp_path / "payloads.jsonl"
    path.write_text('{"log_time_local":"x","msg":{"market_ticker":"A"}}\n')
    process = spawn("--replay", str(path), "--directory", str(key_directory))
    _, err = process.communicate(timeout=20)
    assert process.returncode == 2
    assert len(err.splitlines()) == 1
    assert "payloads.jsonl, line 1 carries no frame type" in err


def test_help_has_an_example_and_every_fault_kind() -> None:
    from tickerplant_kalshi_sim.faults import FAULT_KINDS

    parser = argparse.ArgumentParser(prog="tickerplant")
    sim.register(parser.add_subparsers())
    arguments = parser.parse_args(["sim", "--markets", "7", "--fault-kind", "reset"])
    assert arguments.run is sim.run_sim
    assert arguments.markets == 7
    assert arguments.fault_kind == ["reset"]
    assert "tickerplant sim --markets" in sim.EPILOG
    assert set(FAULT_KINDS) <= set(sim.EPILOG.split())


def test_importing_the_command_needs_no_extra() -> None:
    """The base install lacks aiohttp, websockets and cryptography."""
    code = "import sys, tickerplant.commands.sim; print(*sys.modules)"
    out = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"aiohttp", "websockets", "cryptography", "uvloop"} & set(out.stdout.split())


def test_defaults_of_the_command_line_are_those_of_the_configuration() -> None:
    from tickerplant_kalshi_sim.config import SimulationConfig

    parser = argparse.ArgumentParser()
    sim.register(parser.add_subparsers())
    assert sim._config_of(parser.parse_args(["sim"])) == SimulationConfig()
