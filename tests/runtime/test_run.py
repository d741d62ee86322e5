"""`tickerplant run` as a process, by its options alone: READY, and a clean end on SIGTERM.

What is wrong with its input, and its neighbours, is in tests/end_to_end/test_bad_input.py.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tickerplant.cli import build_parser
from tickerplant.commands.run import overrides_of

COMMAND = (sys.executable, "-P", "-m", "tickerplant")


def environment(home: Path) -> dict[str, str]:
    """No configuration of this machine."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TICKERPLANT") and name not in {"KALSHI_KEY_PEM", "STATE_DIRECTORY"}
    }
    return kept | {"HOME": str(home)}


class Simulation:
    """A simulated exchange in a process of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        words = ["sim", "--port", "0", "--rest-port", "0", "--directory", str(folder / "sim")]
        words += ["--key-type", "ed25519", "--markets", "20", "--rate", "200", *options]
        self.process = subprocess.Popen(
            [*COMMAND, *words], stdout=subprocess.PIPE, text=True, env=environment(folder)
        )
        assert self.process.stdout is not None
        self.told: dict[str, str] = {}
        for line in self.process.stdout:
            name, _, value = line.strip().partition("  ")
            self.told[name.strip()] = value.strip()
            if "key path" in self.told:
                break

    def stop(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=30)


@pytest.fixture(scope="module")
def simulation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulation]:
    running = Simulation(tmp_path_factory.mktemp("exchange"))
    yield running
    running.stop()


@pytest.fixture
def options(simulation: Simulation, group: str, free_udp_port: int, tmp_path: Path) -> list[str]:
    """Options of a plant on that exchange, without markets."""
    values = {
        "exchange.websocket_url": simulation.told["websocket"],
        "exchange.rest_url": simulation.told["rest"],
        "publish.group_a": group,
        "publish.port": free_udp_port,
        "metrics.port": 0,
        "recovery.enabled": "false",
        "store.enabled": "false",
        "state.directory": tmp_path / "state",
        "log.format": "json",
    }
    words = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    key = ["--key-id", simulation.told["key id"], "--key-path", simulation.told["key path"]]
    return [*words, *key]


class Plant:
    """`tickerplant run` with a thread that reads its log."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "run", *options], stderr=subprocess.PIPE, text=True, env=environment(folder)
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(self.process.stderr)

    def events(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.lines if line.startswith("{")]

    def wait_for(self, event: str, **fields: object) -> dict[str, object]:
        """The first such event. Fails after thirty seconds or when the process ends."""
        deadline = time.monotonic() + 30
        while True:
            for one in self.events():
                if one["event"] == event and fields.items() <= one.items():
                    return one
            assert self.process.poll() is None, self.lines
            assert time.monotonic() < deadline, self.lines
            time.sleep(0.01)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(timeout=30)
        self._reader.join(timeout=5)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


def test_it_gets_ready_from_a_key_and_a_choice_and_stops_cleanly(
    simulation: Simulation, options: list[str], tmp_path: Path
) -> None:
    plant = Plant(tmp_path, *options, "--all-open")
    try:
        plant.wait_for("feed_phase", phase="ready")
        found = plant.wait_for("markets_discovered")
        assert isinstance(found["subscribed"], int)
        assert found["subscribed"] > 10
    finally:
        code = plant.stop()
    assert code == 0, plant.lines
    assert plant.events()[-1]["event"] == "session_ended"
    assert plant.events()[-1]["in_order"] is True
    assert [one for one in plant.events() if one["level"] in {"warning", "error"}] == []
    assert simulation.told["key id"] not in "".join(plant.lines)


def test_options_stand_for_keys_of_the_configuration() -> None:
    words = ["run", "--key-id", "abc", "--ticker", "KX-1", "--ticker", "KX-2", "--event", "KX-E"]
    assert overrides_of(build_parser().parse_args(words)) == [
        'exchange.key_id="abc"',
        'markets.tickers=["KX-1", "KX-2"]',
        'markets.events=["KX-E"]',
    ]
    assert overrides_of(build_parser().parse_args(["run", "--all-open"])) == [
        "markets.all_open=true"
    ]


def test_a_key_path_of_any_characters_survives_the_way_to_the_configuration(
    no_configuration: Path,
) -> None:
    from tickerplant.config_sources import load_config

    path = 'ünï "quoted" \\ 𝄞.pem'
    arguments = build_parser().parse_args(["run", "--key-path", path])
    assert load_config(None, overrides_of(arguments)).config.exchange.key_path == path
