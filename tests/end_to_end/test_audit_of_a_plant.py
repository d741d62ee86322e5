"""The audit of a real plant's files: faults upstream are told with their cause, a kill leaves no hole."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from processes import Settings, Simulation, free_network
from restart_bed import kill, log_folder, start_plant

from tickerplant.cli import main
from tickerplant.core.logformat import SEGMENT_HEADER_BYTES
from tickerplant.runtime.logfolder import segment_names

CAPTURED: Settings = {"capture": {"enabled": True}, "verify": {"interval_ms": 20}}


def audited(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int) -> dict[str, Any]:
    """What `tickerplant audit --json` tells; its exit code must be `code`."""
    capsys.readouterr()
    assert main(["audit", *arguments, "--json"]) == code
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_every_frame_of_a_plant_that_was_killed_and_started_again_is_accounted_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """First session: killed. Second: a hole upstream, told. Then a datagram is taken out of the log."""
    network = free_network()
    with Simulation(
        tmp_path / "sim", "--markets", "20", "--rate", "1000", "--window", "0"
    ) as simulation:
        with start_plant(tmp_path, network, simulation, CAPTURED, name="first") as first:
            first.wait_ready()
            first.wait_metric('plant_messages{stream="delta"}', 1_000)
            kill(first)
        with start_plant(tmp_path, network, simulation, CAPTURED, name="second") as second:
            second.wait_ready()
            simulation.post("/sim/fault", kind="skip_seq", channel="orderbook_delta")
            second.wait_metric("feed_sequence_gaps", 1)
            second.wait_ready()
            time.sleep(0.2)
            assert second.stop() == 0
    by_configuration = ["--config", str(tmp_path / "tickerplant.toml")]
    sessions = [str(name.session) for name in segment_names(log_folder(tmp_path))]
    report = audited([*by_configuration, "--session", sessions[0]], capsys, 0)
    assert report["figures"]["exchange"]["level changes equal"] > 200
    report = audited(by_configuration, capsys, 1)
    assert report["by_cause"].keys() == {"upstream"}
    assert any("never came" in finding["what"] for finding in report["findings"])
    assert report["figures"]["exchange"]["datagrams equal when played again"] > 50
    assert report["figures"]["log"]["end of the session before compared"] is True

    path = log_folder(tmp_path) / str(segment_names(log_folder(tmp_path))[-1])
    content = bytearray(path.read_bytes())
    size = int.from_bytes(content[SEGMENT_HEADER_BYTES : SEGMENT_HEADER_BYTES + 4], "little")
    del content[SEGMENT_HEADER_BYTES : SEGMENT_HEADER_BYTES + 8 + size]
    path.write_bytes(content)
    report = audited(by_configuration, capsys, 1)
    assert "plant" in report["by_cause"]
    assert any("are not in the log" in finding["what"] for finding in report["findings"])
