"""Whatever clients do to recovery, and whatever becomes of it, the plant goes on as if nothing was there."""

import os
import signal
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import (
    Network,
    Plant,
    Settings,
    Simulation,
    SubscriberProcess,
    free_network,
    http,
    wait_for,
)
from recovery_attack import Attack, ask
from restart_bed import assert_sound, log_folder, start_plant, variant, wait_equal
from wire_recorder import WireRecorder

from tickerplant.core.messages import LevelUpdate, Stream
from tickerplant.core.recovery_wire import RecoveryCode
from tickerplant.core.wire import (
    FLAG_NOT_REPAIRABLE,
    FLAG_RETRANSMITTED,
    FLAGS_OFFSET,
    Kind,
    decode_body,
    decode_header,
)

WITH_RECOVERY: Settings = {"recovery": {"enabled": True, "client_bytes_per_second": 1024**2}}
REQUESTS_LEAST = 20_000
FLUSHES_LEAST = 1_000
CONNECTIONS_LEAST = 100
GROWTH_MAX_BYTES = 64 * 1024**2
"""What all buffers of a recovery under attack may come to; the bounds of each kind are proved one by one elsewhere."""
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


class Recovery:
    """The plant's own, looked at from outside."""

    def __init__(self, plant: Plant) -> None:
        plant.wait_event("recovery_caught_up")
        self.plant = plant
        self.port = int(plant.events("recovery_started")[0]["port"])
        self.pid = int(plant.events("companion_started")[0]["process"])
        self.session = int(plant.events("session_begins")[0]["session"])
        self.metrics_port = int(plant.events("metrics_endpoint")[1]["port"])

    def metrics(self) -> dict[str, float]:
        """Every sample, by its name without prefix."""
        text = http(f"http://127.0.0.1:{self.metrics_port}/metrics").decode()
        rows = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name.removeprefix("tickerplant_recovery_"): float(value) for name, _, value in rows}

    def serves(self, wire: WireRecorder) -> bool:
        """A datagram that was on the wire is to be had, as it was."""
        wanted = newest_delta(wire)
        try:
            code, datagrams = ask(self.port, self.session, decode_header(wanted).seq)
        except TimeoutError:
            return False
        if code is not RecoveryCode.SERVED:
            return False
        flags = bytes((wanted[FLAGS_OFFSET] | FLAG_RETRANSMITTED,))
        assert datagrams == [wanted[:FLAGS_OFFSET] + flags + wanted[FLAGS_OFFSET + 1 :]]
        return True


def newest_delta(wire: WireRecorder) -> bytes:
    for datagram in reversed(wire.datagrams):
        header = decode_header(datagram)
        if header.stream == Stream.DELTA and header.kind == Kind.DATA:
            return datagram
    pytest.fail("no delta was on the wire")


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
    assert statistics.quantiles(waits, n=100)[-1] < WAIT_MAX_S * 1e9
    assert not any(decode_header(one).flags & FLAG_NOT_REPAIRABLE for one in datagrams)


def assert_undisturbed(plant: Plant) -> None:
    """Connection, log and books were never in trouble."""
    metrics = plant.metrics()
    assert metrics["ticklog_on"] == 1
    for event in ("disconnected", "companion_ended", "ticklog_off", "internal_error"):
        assert not plant.events(event), event


def test_a_storm_half_open_clients_slow_readers_and_garbage_at_once(
    tmp_path: Path, simulation: Simulation, network: Network
) -> None:
    with (
        WireRecorder(network) as wire,
        SubscriberProcess(tmp_path / "sub", network) as subscriber,
        start_plant(tmp_path, network, simulation, WITH_RECOVERY) as plant,
    ):
        plant.wait_ready()
        recovery = Recovery(plant)
        processes = [psutil.Process(plant.pid), psutil.Process(recovery.pid)]
        wait_for(lambda: recovery.serves(wire), "an honest client being served")
        before = [process.memory_info().rss for process in processes]
        begin = len(wire.datagrams)
        with Attack(recovery.port, recovery.session) as attack:
            wait_for(
                lambda: (
                    attack.sent >= REQUESTS_LEAST
                    and attack.connected >= CONNECTIONS_LEAST
                    and len(wire.datagrams) >= begin + FLUSHES_LEAST
                ),
                "the attack",
            )
            during = [process.memory_info().rss for process in processes]
        assert_not_slowed(wire.datagrams[begin:])
        assert_undisturbed(plant)
        for name, old, new in zip(("plant", "recovery"), before, during, strict=True):
            assert new - old <= GROWTH_MAX_BYTES, name
        wait_for(lambda: recovery.serves(wire), "an honest client being served again")
        metrics = recovery.metrics()
        assert metrics['gap_fill_requests_total{code="throttled"}'] > 0
        assert metrics["gap_fill_ignored_datagrams_total"] > 0
        assert metrics['tcp_rejects_total{code="malformed"}'] > 0
        wait_for(lambda: recovery.metrics()["tcp_connections_open"] == 0, "all being closed")
        assert wait_equal(simulation, subscriber, 20) >= 30
        assert plant.stop() == 0
        assert not plant.events("companion_killed")
    assert_sound(log_folder(tmp_path))


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
        recovery = Recovery(plant)
        os.kill(recovery.pid, signal.SIGSTOP)
        begin = len(wire.datagrams)
        wait_for(lambda: len(waits_ns(wire.datagrams[begin:])) > 150, "the feed going on")
        assert_not_slowed(wire.datagrams[begin:])
        assert_undisturbed(plant)
        assert plant.stop() == 0
        assert [one["name"] for one in plant.events("companion_killed")] == ["recovery"]
    assert assert_sound(log_folder(tmp_path)).sessions[-1].ended_in_order
