"""Kill -9 at any moment, then start again: nothing that was sent is missing in the log, and nothing is used twice."""

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import COMMAND, Network, Simulation, SubscriberProcess, free_network, wait_for
from restart_bed import (
    Logged,
    assert_sessions_follow,
    assert_sound,
    kill,
    log_folder,
    read_log,
    start_plant,
    variant,
    wait_equal,
    waited_for_core_s,
)
from wire_recorder import WireRecorder

from tickerplant.core.logformat import RECORD_HEADER_BYTES
from tickerplant.core.wire import Kind, decode_header
from tickerplant.runtime.logfolder import segment_names

READY_MAX_S = 10.0
START_PLANT_S = 2.0
"""About how long a plant takes until it is ready here."""


@pytest.fixture(scope="module")
def simulation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulation]:
    """An exchange of 60 busy markets that stay the same."""
    folder = tmp_path_factory.mktemp("exchange")
    options = ("--markets", "60", "--rate", "3000", "--window", "0")
    with Simulation(folder, *options) as running:
        yield running


@pytest.fixture
def network() -> Network:
    return free_network()


@pytest.mark.timeout(300)
def test_killed_at_random_moments(
    tmp_path: Path, simulation: Simulation, network: Network, kills: int, kill_seed: int
) -> None:
    """In the start, in the middle of a flush, wherever it falls."""
    draw = random.Random(kill_seed)
    with WireRecorder(network) as wire, SubscriberProcess(tmp_path / "sub", network) as subscriber:
        for number in range(kills):
            plant = start_plant(tmp_path, network, simulation, name=f"plant-{number}")
            with plant:
                if draw.random() < 0.6:
                    plant.wait_event("feed_phase")
                    time.sleep(draw.uniform(0, 0.3))
                else:
                    time.sleep(draw.uniform(0, START_PLANT_S))
                kill(plant)
        with start_plant(tmp_path, network, simulation, name="plant-last") as last:
            last.wait_ready()
            books = wait_equal(simulation, subscriber, 60)
            assert last.stop() == 0
        report = assert_sound(log_folder(tmp_path))
    assert books >= 50
    assert [one.ended_in_order for one in report.sessions][-1]
    assert not any(one.ended_in_order for one in report.sessions[:-1])
    datagrams = read_log(log_folder(tmp_path))
    logged = Logged(datagrams)
    assert len(logged.starts) > kills // 3
    assert_sessions_follow(logged)
    kept = set(datagrams)
    assert [one for one in wire.datagrams if one not in kept] == []
    assert len(wire.datagrams) > len(datagrams) // 2


@pytest.mark.parametrize("sends", [1, 60])
def test_killed_between_append_and_send(
    tmp_path: Path, simulation: Simulation, network: Network, sends: int
) -> None:
    """What was appended and never sent is in the log, and the next session tells that it was there."""
    with WireRecorder(network) as wire:
        command = variant(kill_between=sends)
        with start_plant(tmp_path, network, simulation, command=command) as plant:
            assert plant.wait() == -9
        unsent = read_log(log_folder(tmp_path))
        with start_plant(tmp_path, network, simulation, name="next") as following:
            following.wait_ready()
            following.stop()
    assert_sound(log_folder(tmp_path))
    on_wire = set(wire.datagrams)
    session = decode_header(unsent[0]).session
    missing = [one for one in unsent if one not in on_wire]
    assert missing
    assert unsent[-len(missing) :] == missing
    logged = Logged(read_log(log_folder(tmp_path)))
    assert_sessions_follow(logged)
    (start,) = [one for one in logged.starts.values() if one.previous_session == session]
    assert dict(start.final_seqs) == Logged(unsent).next_seqs[session]
    assert any(decode_header(one).kind == Kind.DATA for one in missing)


def test_a_torn_tail_is_cut_and_told(
    tmp_path: Path, simulation: Simulation, network: Network
) -> None:
    """A part of a record, and zeros as after a power failure, are cut; what stands before them is kept."""
    with start_plant(tmp_path, network, simulation) as plant:
        plant.wait_ready()
        kill(plant)
    folder = log_folder(tmp_path)
    whole = read_log(folder)
    newest = folder / str(segment_names(folder)[-1])
    size = newest.stat().st_size
    record = newest.read_bytes()[-RECORD_HEADER_BYTES - len(whole[-1]) :]
    assert record.endswith(whole[-1])
    torn = record[: len(record) // 2] + bytes(4_096)
    with newest.open("ab") as file:
        file.write(torn)
    with start_plant(tmp_path, network, simulation, name="next") as following:
        following.wait_ready()
        (cut,) = following.events("ticklog_tail_cut")
        following.stop()
    assert cut["bytes"] == len(torn)
    assert newest.stat().st_size == size
    datagrams = read_log(folder)
    assert datagrams[: len(whole)] == whole
    assert_sound(folder)
    logged = Logged(datagrams)
    assert_sessions_follow(logged)
    assert len(logged.starts) == 2


def test_two_plants_on_one_log_folder(
    tmp_path: Path, simulation: Simulation, network: Network
) -> None:
    """With states, groups and all else of their own: the second one says who has the log, and ends."""
    shared = {"ticklog": {"directory": str(tmp_path / "log")}}
    with start_plant(tmp_path / "a", network, simulation, shared) as first:
        first.wait_ready()
        with start_plant(tmp_path / "b", free_network(), simulation, shared) as second:
            assert second.wait() == 1
        (line,) = [one for one in second.errors.splitlines() if "error:" in one]
        assert f"process {first.pid}" in line
        assert "ticklog.directory" in line
        first.require_alive()
        assert first.stop() == 0
    assert len(assert_sound(tmp_path / "log").sessions) == 1


def test_two_plants_started_together_on_one_group(
    tmp_path: Path, simulation: Simulation, network: Network
) -> None:
    """Neither hears the other while it listens; the lower session gives way, subscribers have the other's books."""
    with SubscriberProcess(tmp_path / "sub", network) as subscriber:
        plants = [
            start_plant(tmp_path / name, network, simulation, name=name) for name in ("a", "b")
        ]
        with plants[0], plants[1]:

            def survivors() -> list[int] | None:
                left = [i for i, one in enumerate(plants) if one.process.poll() is None]
                return left if len(left) == 1 else None

            (left,) = wait_for(survivors, "one of two giving way")
            plants[left].wait_ready()
            wait_equal(simulation, subscriber, 60)
            assert plants[left].stop() == 0
    lower, higher = plants[1 - left], plants[left]
    assert lower.wait() == 1
    assert "carries" in lower.errors.splitlines()[-1]
    began = [one.events("session_begins") for one in (lower, higher)]
    if began[0]:
        assert began[0][0]["session"] < began[1][0]["session"]
    for plant in plants:
        if plant.events("session_begins"):
            assert_sound(log_folder(plant.folder))


def test_two_thousand_markets_are_ready_within_ten_seconds(
    tmp_path: Path, network: Network
) -> None:
    """After kill -9, with a log of the session before to read. What others take of the cores does not count."""
    options = ("--markets", "2000", "--rate", "200", "--window", "0")
    with Simulation(tmp_path / "sim", *options) as exchange:
        with start_plant(tmp_path, network, exchange, command=(COMMAND, "run")) as plant:
            plant.wait_ready()
            kill(plant)
        started_s, waited_s = time.monotonic(), waited_for_core_s(exchange)
        again = start_plant(tmp_path, network, exchange, command=(COMMAND, "run"), name="again")
        with again:
            again.wait_ready()
            seconds = time.monotonic() - started_s
            waited_s = waited_for_core_s(exchange) + waited_for_core_s(again) - waited_s
            ready = wait_for(
                lambda: next(
                    (one for one in again.events("feed_phase") if one["phase"] == "ready"), None
                ),
                "the log telling that it is ready",
            )
            assert again.stop() == 0
    assert ready["books"] >= 1_950
    assert seconds - waited_s < READY_MAX_S
    assert len(assert_sound(log_folder(tmp_path)).sessions) == 2
