"""`tickerplant record` as a process beside a real plant with its recovery: killed, away, started again."""

import functools
import random
import signal
import time
from pathlib import Path

import pytest
from processes import COMMAND, Network, Process, Simulation, free_network, free_tcp_port, wait_for
from restart_bed import kill, log_folder, read_log, start_plant

from tickerplant.audit.run import audit_session
from tickerplant.cli import main
from tickerplant.core.messages import AnyMessage
from tickerplant.core.wire import Kind, decode_body, decode_header
from tickerplant_subscriber import read_recording, recorded_events, recorded_sessions

Numbered = dict[tuple[int, int], list[AnyMessage | None]]


def numbered(datagrams: list[bytes]) -> Numbered:
    """(session, stream) -> its messages; fails unless each sequence is there once and in order, from 1."""
    found: Numbered = {}
    for datagram in datagrams:
        header = decode_header(datagram)
        if header.kind == Kind.DATA:
            messages = found.setdefault((header.session, header.stream), [])
            assert header.seq == len(messages) + 1, "each sequence once and in order"
            messages += decode_body(datagram, header)
    return found


def recorded(folder: Path) -> Numbered:
    return numbered([datagram for _, datagram in read_recording(folder)])


def recorder(
    folder: Path, network: Network, recovery_port: int, name: str, *options: str
) -> Process:
    words = ["record", str(folder), "--group-a", network.group, "--port", str(network.port)]
    recovery = ["--recovery", f"127.0.0.1:{recovery_port}"]
    process = Process(name, folder.parent / "recorder", [COMMAND, *words, *recovery, *options])

    def is_there() -> bool:
        process.require_alive()
        return "recording to" in process.errors

    wait_for(is_there, f"{name} beginning")
    return process


def test_a_recorder_that_is_killed_and_away_has_everything_in_the_end(tmp_path: Path) -> None:
    """Signed datagrams. Killed at random moments; away while the plant is killed and runs a new session."""
    network, port, chance = free_network(), free_tcp_port(), random.Random(7)
    folder, keys = tmp_path / "recording", tmp_path / "datagram.keys"
    assert main(["key", "make", str(keys)]) == 0
    settings = {
        "recovery": {"port": port, "enabled": True},
        "publish": {"key_path": str(keys)},
    }
    with Simulation(
        tmp_path / "sim", "--markets", "20", "--rate", "800", "--window", "0"
    ) as simulation:
        with start_plant(tmp_path, network, simulation, settings, name="first") as plant:
            plant.wait_ready()
            for number in range(2):
                with recorder(folder, network, port, f"killed-{number}", "--key", str(keys)) as one:
                    more = size_bytes(folder) + 10_000
                    wait_for(functools.partial(has_grown, folder, more), "the recording growing")
                    time.sleep(chance.uniform(0, 0.3))
                    one.process.send_signal(signal.SIGKILL)
                    assert one.wait() == -signal.SIGKILL
            kill(plant)
        with start_plant(tmp_path, network, simulation, settings, name="second") as plant:
            plant.wait_ready()
            with recorder(folder, network, port, "last", "--key", str(keys)) as one:
                wait_for(lambda: one.errors.count("has caught up") >= 5, "it having caught up")
                assert plant.stop() == 0
                wait_for(lambda: is_told_ended(folder), "the end being recorded")
                assert one.stop() == 0
    assert recorded(folder) == numbered(read_log(log_folder(tmp_path)))
    for session in {session for session, _ in recorded(folder)}:
        report = audit_session(log_folder(tmp_path), session, recordings=[folder])
        assert report.is_complete, report.findings[:3]
    assert "0 gaps" in one.errors
    assert "going on in session" in one.errors


def size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.ktl"))


def has_grown(folder: Path, to_bytes: int) -> bool:
    return size_bytes(folder) >= to_bytes


def is_told_ended(folder: Path) -> bool:
    """On every stream."""
    session = recorded_sessions(folder)[-1]
    return len([one for one in recorded_events(folder, session) if one.kind == "SessionEnded"]) == 5


def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    network = free_network()
    where = ["--group-a", network.group, "--port", str(network.port), "--no-recovery"]
    assert main(["record", str(tmp_path / "file"), *where]) == 1
    assert "name another one" in capsys.readouterr().err
    assert main(["record", str(tmp_path / "new"), *where, "--key", "/nowhere", "--for", "1"]) == 2
    assert "/nowhere" in capsys.readouterr().err
    assert main(["record", str(tmp_path / "new"), *where, "--for", "100ms"]) == 0
    assert "recorded 0 messages" in capsys.readouterr().err
