"""`tickerplant run` and the recovery that it starts: kept running, ended after it, and never without it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from processes import (
    Network,
    Plant,
    Settings,
    Simulation,
    free_network,
    wait_for,
)
from restart_bed import assert_sound, kill, log_folder, start_plant

WITH_RECOVERY: Settings = {"recovery": {"enabled": True}}


@pytest.fixture(scope="module")
def simulation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulation]:
    """An exchange of 30 markets."""
    folder = tmp_path_factory.mktemp("exchange")
    with Simulation(folder, "--markets", "30", "--rate", "300", "--window", "0") as running:
        yield running


@pytest.fixture
def network() -> Network:
    return free_network()


def recovery_of(plant: Plant, times: int = 1) -> int:
    """The process id of recovery, once it has caught up for the `times`-th time."""
    wait_for(lambda: len(plant.events("recovery_caught_up")) >= times, "recovery catching up")
    started = plant.events("companion_started")
    assert {one["name"] for one in started} == {"recovery"}
    pid = int(started[-1]["process"])
    assert psutil.Process(pid).ppid() == plant.pid
    return pid


def is_gone(pid: int) -> bool:
    """Ended, whether or not somebody has taken note."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_it_starts_with_the_plant_and_ends_after_it(
    tmp_path: Path, simulation: Simulation, network: Network
) -> None:
    with start_plant(tmp_path, network, simulation, WITH_RECOVERY) as plant:
        plant.wait_ready()
        pid = recovery_of(plant)
        assert plant.metrics()['companion_running{name="recovery"}'] == 1
        assert '"recovery": "running"' in plant.get("/health")
        assert plant.stop() == 0
        assert is_gone(pid)
    names = [one["event"] for one in plant.events()]
    assert names.index("session_ended") < names.index("recovery_ended")
    assert not plant.events("companion_ended")
    assert "companion_killed" not in names
    report = assert_sound(log_folder(tmp_path))
    assert report.sessions[-1].ended_in_order
    assert (log_folder(tmp_path) / "positions" / "recovery.json").exists()


def test_one_that_is_killed_comes_back_and_serves_the_same_log(
    tmp_path: Path, simulation: Simulation, network: Network
) -> None:
    with start_plant(tmp_path, network, simulation, WITH_RECOVERY) as plant:
        plant.wait_ready()
        first = recovery_of(plant)
        os.kill(first, signal.SIGKILL)
        second = recovery_of(plant, 2)
        assert second != first
        assert plant.metrics()['companion_ends{how="signal 9",name="recovery"}'] == 1
        caught_up = plant.events("recovery_caught_up")
        assert caught_up[0]["session"] == caught_up[1]["session"]
        assert plant.metrics()['plant_messages{stream="delta"}'] > 0
        assert plant.stop() == 0
        assert is_gone(second)


def test_it_ends_with_a_killed_plant_and_the_next_plant_has_its_own(
    tmp_path: Path, simulation: Simulation, network: Network
) -> None:
    with start_plant(tmp_path, network, simulation, WITH_RECOVERY) as plant:
        plant.wait_ready()
        first = recovery_of(plant)
        kill(plant)
        with start_plant(tmp_path, network, simulation, WITH_RECOVERY, name="next") as following:
            following.wait_ready()
            second = recovery_of(following)
            assert is_gone(first)
            assert second != first
            (began,) = following.events("session_begins")
            assert following.stop() == 0
            (ended,) = following.events("recovery_ended")
            assert ended["session"] == began["session"]


def test_without_log_or_where_it_is_a_service_of_its_own_it_is_not_started(
    tmp_path: Path, simulation: Simulation, network: Network
) -> None:
    without_log: Settings = {"recovery": {"enabled": True}, "ticklog": {"enabled": False}}
    with start_plant(tmp_path / "a", network, simulation, without_log) as plant:
        plant.wait_ready()
        assert not psutil.Process(plant.pid).children()
        plant.stop()
    with start_plant(tmp_path / "b", network, simulation) as plant:
        plant.wait_ready()
        assert not psutil.Process(plant.pid).children()
        assert plant.stop() == 0
        assert not plant.events("companion_started")


def test_it_has_the_plant_s_settings_whatever_became_of_the_file(
    tmp_path: Path, simulation: Simulation, network: Network
) -> None:
    """Also when it is started again: it must follow the log that the plant writes."""
    elsewhere: Settings = {
        "recovery": {"enabled": True},
        "ticklog": {"directory": str(tmp_path / 'a "log" folder')},
    }
    with start_plant(tmp_path, network, simulation, elsewhere) as plant:
        plant.wait_ready()
        first = recovery_of(plant)
        (tmp_path / "tickerplant.toml").write_text("[ticklog]\nenabled = false\n")
        os.kill(first, signal.SIGKILL)
        recovery_of(plant, 2)
        assert plant.stop() == 0
    assert (tmp_path / 'a "log" folder' / "positions" / "recovery.json").exists()
