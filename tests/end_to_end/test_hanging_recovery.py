"""A recovery that hangs beside its plant: the plant goes on as if nothing was there."""

import os
import signal
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import (
    Network,
    Plant,
    Settings,
    Simulation,
    free_network,
    wait_for,
)
from restart_bed import assert_sound, log_folder, start_plant, variant
from wire_recorder import WireRecorder

from tickerplant.core.messages import LevelUpdate, Stream
from tickerplant.core.wire import (
    FLAG_NOT_REPAIRABLE,
    Kind,
    decode_body,
    decode_header,
)

WITH_RECOVERY: Settings = {"recovery": {"enabled": True}}
WAIT_MAX_S = 1.0
"""From the read of a frame to the send of what it caused; a plant that waited for anybody would take longer."""


@pytest.fixture(scope="module")
def simulation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulation]:
    """An exchange of 40 markets."""
    folder = tmp_path_factory.mktemp("exchange")
    with Simulation(folder, "--markets", "40", "--rate", "1000", "--window", "0") as running:
        yield running


@pytest.fixture
def network() -> Network:
    return free_network()


def waits_ns(datagrams: list[bytes]) -> list[int]:
    """From the read of its frame to the send, for each datagram of levels."""
    waits = []
    for datagram in datagrams:
        header = decode_header(datagram)
        if header.stream == Stream.DELTA and header.kind == Kind.DATA:
            messages: list[Any] = decode_body(datagram, header)
            if type(messages[0]) is LevelUpdate:
                waits.append(header.ts_send_ns - messages[0].ts_recv_ns)
    return waits


def assert_not_slowed(datagrams: list[bytes]) -> None:
    waits = waits_ns(datagrams)
    assert len(waits) > 100, "the feed went on"
    assert statistics.median(waits) < WAIT_MAX_S * 1e9
    assert not any(decode_header(one).flags & FLAG_NOT_REPAIRABLE for one in datagrams)


def assert_undisturbed(plant: Plant) -> None:
    """Connection, log and books were never in trouble."""
    metrics = plant.metrics()
    assert metrics["ticklog_on"] == 1
    for event in ("disconnected", "companion_ended", "ticklog_off", "internal_error"):
        assert not plant.events(event), event


def test_a_recovery_that_hangs_costs_the_plant_nothing(
    tmp_path: Path, simulation: Simulation, network: Network
) -> None:
    """Stopped in its tracks, and killed at the end because it does not end by itself."""
    command = variant(limits={"COMPANION_STOP_TIMEOUT_S": 0.5})
    with (
        WireRecorder(network) as wire,
        start_plant(tmp_path, network, simulation, WITH_RECOVERY, command=command) as plant,
    ):
        plant.wait_ready()
        plant.wait_event("recovery_caught_up")
        os.kill(plant.events("companion_started")[0]["process"], signal.SIGSTOP)
        begin = len(wire.datagrams)
        wait_for(lambda: len(waits_ns(wire.datagrams[begin:])) > 150, "the feed going on")
        assert_not_slowed(wire.datagrams[begin:])
        assert_undisturbed(plant)
        assert plant.stop() == 0
        assert [one["name"] for one in plant.events("companion_killed")] == ["recovery"]
    assert assert_sound(log_folder(tmp_path)).sessions[-1].ended_in_order
