"""A running plant whose tick log cannot be written: the feed goes on and says so, and logging resumes by itself."""

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from processes import (
    Network,
    Plant,
    Settings,
    Simulation,
    SubscriberProcess,
    free_network,
    merged,
    wait_for,
)
from restart_bed import Logged, assert_sound, read_log, start_plant, variant, wait_equal
from wire_recorder import WireRecorder

from tickerplant.core.messages import Stream
from tickerplant.core.wire import FLAG_NOT_REPAIRABLE, Kind, decode_header
from tickerplant.limits import END_OF_SESSION_AT_NS
from tickerplant.runtime.logcheck import verify_log
from tickerplant.runtime.logfolder import LOCK_FILE, segment_names

KIB = 1024
END_DATAGRAMS = len(Stream) * len(END_OF_SESSION_AT_NS)
SOON = {"LOG_RESUME_WAIT_S": 0.3, "LOG_SURVEY_INTERVAL_S": 1, "LOG_ROTATION_RETRY_BYTES": 4 * KIB}
SMALL: Settings = {
    "ticklog": {
        "segment_max_bytes": 64 * KIB,
        "retain_bytes": 64 * KIB * KIB,
        "max_bytes": 64 * KIB * KIB,
        "fsync_interval_ms": 50,
    }
}
"""Segments that even a small disk has room for."""


@pytest.fixture(scope="module")
def simulation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulation]:
    """An exchange of 40 markets that stay the same."""
    folder = tmp_path_factory.mktemp("exchange")
    options = ("--markets", "40", "--rate", "800", "--window", "0")
    with Simulation(folder, *options) as running:
        yield running


@pytest.fixture
def network() -> Network:
    return free_network()


class Scene:
    """A plant with its log, a subscriber, and what was on the wire."""

    def __init__(
        self,
        plant: Plant,
        log: Path,
        wire: WireRecorder,
        subscriber: SubscriberProcess,
        simulation: Simulation,
    ) -> None:
        self.plant = plant
        self.log = log
        self.wire = wire
        self.subscriber = subscriber
        self.simulation = simulation

    def wait_off(self, code: str) -> None:
        """The log is off for that reason, told, and on the wire; the feed is ready all the while."""
        before = len(self.wire.datagrams)
        wait_for(
            lambda: code in [one["code"] for one in self.plant.events("ticklog_off")],
            f"the log going off with {code}",
        )

        def is_marked() -> bool:
            headers = [decode_header(one) for one in self.wire.datagrams[before:]]
            marked = {one.stream for one in headers if one.flags & FLAG_NOT_REPAIRABLE}
            return marked >= {Stream.DELTA, Stream.BBO, Stream.STATUS}

        wait_for(is_marked, "flag 64 on the wire")
        assert '"ready":true' in self.plant.get("/ready").replace(" ", "")
        wait_for(lambda: self.plant.metrics()["ticklog_on"] == 0, "the metric of the log being off")

    def wait_on(self, times: int) -> None:
        """For the `times`-th time logging has resumed, and the subscriber has all books in the new session."""
        wait_for(lambda: len(self.plant.events("ticklog_on")) >= times, "logging resumed")
        self.plant.wait_ready()
        assert wait_equal(self.simulation, self.subscriber, 60) >= 30
        newest = self.plant.events("session_begins")[-1]
        assert newest["log_on"] is True
        changes = [
            one["session"]
            for one in self.subscriber.report()["events"]
            if one["type"] == "SessionChanged"
        ]
        assert changes[-1] == newest["session"]
        assert self.plant.metrics()["ticklog_on"] == 1

    def end(self) -> None:
        """Stop the plant in order, and let the last datagrams arrive."""
        assert self.plant.stop() == 0
        last = max(one["session"] for one in self.plant.events("session_begins"))

        def ends() -> bool:
            headers = map(decode_header, self.wire.datagrams[-200:])
            streams = [
                one.stream
                for one in headers
                if one.kind == Kind.END_OF_SESSION and one.session == last
            ]
            return len(streams) == END_DATAGRAMS

        wait_for(ends, "the ends of session")

    def assert_wire_and_log_agree(self) -> None:
        """A datagram on the wire is in the log, byte for byte, unless it says that it is not."""
        logged = read_log(self.log)
        kept = set(logged)
        for datagram in self.wire.datagrams:
            is_marked = bool(decode_header(datagram).flags & FLAG_NOT_REPAIRABLE)
            assert is_marked is (datagram not in kept)
        known = Logged(logged)
        on_wire: dict[int, dict[int, int]] = {}
        for header in map(decode_header, self.wire.datagrams):
            seqs = on_wire.setdefault(header.session, dict.fromkeys(range(1, 6), 1))
            seqs[header.stream] = header.seq + header.message_count
        for start in known.starts.values():
            if start.previous_session:
                assert dict(start.final_seqs) == on_wire[start.previous_session]
        ended = {
            (header.session, header.stream)
            for header in map(decode_header, self.wire.datagrams)
            if header.kind == Kind.END_OF_SESSION
        }
        assert ended == {(session, stream) for session in on_wire for stream in Stream}


@contextmanager
def playing(
    tmp_path: Path,
    simulation: Simulation,
    network: Network,
    command: Sequence[str | Path],
    settings: Settings | None = None,
    *,
    mounted: Path | None = None,
) -> Iterator[Scene]:
    """All of it, running; at the end it is stopped in order. `mounted`: the log's folder, in the plant's own mounts."""
    with (
        WireRecorder(network) as wire,
        SubscriberProcess(tmp_path / "sub", network) as subscriber,
        start_plant(
            tmp_path, network, simulation, merged(SMALL, settings or {}), command=command
        ) as plant,
        ExitStack() as resources,
    ):
        plant.wait_event("session_begins")
        log = tmp_path / "state" / "ticklog"
        if mounted is not None:
            # A descriptor keeps the file system when the process and its mounts are gone.
            kept = os.open(f"/proc/{plant.pid}/root{mounted}", os.O_RDONLY)
            resources.callback(os.close, kept)
            log = Path(f"/proc/self/fd/{kept}")
        yield Scene(plant, log, wire, subscriber, simulation)
        assert plant.stop() == 0


def on_small_disk(folder: Path, command: Sequence[str | Path], first: str) -> list[str | Path]:
    """`command` with a file system of 4 MiB on `folder`, after `first` was done there."""
    folder.mkdir()
    script = f'mount -t tmpfs -o size=4m tmpfs "$0" && cd "$0" && {first}; cd / && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, folder, *command]


def require_mounts() -> None:
    """Skip where this user may not make a mount namespace."""
    may = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    if may.returncode:
        pytest.skip("this user may not make a mount namespace")


def fill(folder: Path) -> Path:
    """A file that takes all the space that is left."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(64 * KIB)):
                pass
        except OSError:
            return path


def test_a_full_disk(tmp_path: Path, simulation: Simulation, network: Network) -> None:
    """At the start and later: no log until there is space, then a new session with it."""
    require_mounts()
    folder = tmp_path / "disk"
    command = on_small_disk(folder, variant(limits=SOON), "cat /dev/zero > filler 2> /dev/null")
    settings: Settings = {"ticklog": {"directory": str(folder)}}
    with playing(tmp_path, simulation, network, command, settings, mounted=folder) as scene:
        scene.plant.wait_ready()
        assert scene.plant.events("session_begins")[0]["log_on"] is False
        scene.wait_off("disk_full")
        (scene.log / "filler").unlink()
        scene.wait_on(1)
        filler = fill(scene.log)
        scene.wait_off("disk_full")
        filler.unlink()
        scene.wait_on(2)
        scene.end()
        report = assert_sound(scene.log)
        assert len(report.sessions) == 2
        assert [one.is_previous_complete for one in report.sessions] == [False, False]
        scene.assert_wire_and_log_agree()


def test_a_limit_on_the_size_of_files(
    tmp_path: Path, simulation: Simulation, network: Network
) -> None:
    """Set from outside on the running process, and lifted again: part of a flush is in the log, no part of a record."""
    with playing(tmp_path, simulation, network, variant(limits=SOON)) as scene:
        scene.plant.wait_ready()
        soft, hard = resource.prlimit(scene.plant.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(scene.plant.pid, resource.RLIMIT_FSIZE, (40_000, hard))
        scene.wait_off("file_too_large")
        resource.prlimit(scene.plant.pid, resource.RLIMIT_FSIZE, (soft, hard))
        scene.wait_on(1)
        scene.end()
        assert len(assert_sound(scene.log).sessions) >= 2
        scene.assert_wire_and_log_agree()


def test_a_segment_and_then_the_whole_folder_deleted_underneath(
    tmp_path: Path, simulation: Simulation, network: Network
) -> None:
    settings: Settings = {"ticklog": {"segment_max_bytes": 1024 * KIB}}
    with playing(tmp_path, simulation, network, variant(limits=SOON), settings) as scene:
        scene.plant.wait_ready()
        (scene.log / str(segment_names(scene.log)[-1])).unlink()
        scene.wait_off("deleted")
        scene.wait_on(1)
        shutil.rmtree(scene.log)
        scene.wait_off("deleted")
        scene.wait_on(2)
        assert (scene.log / LOCK_FILE).exists()
        scene.end()
        report = verify_log(scene.log)
        assert report.is_sound
        (last,) = report.sessions
        assert last.ended_in_order
        assert not last.is_previous_complete


def test_a_lost_permission(tmp_path: Path, simulation: Simulation, network: Network) -> None:
    """The open segment can still be written, but not be followed by another: a warning, then the log is off."""
    limits = SOON | {"LOG_SEGMENT_OVERRUN_BYTES": 64 * KIB}
    # Root may write anywhere, unless it gives that up.
    obeying = ["setpriv", "--bounding-set", "-dac_override"]
    if subprocess.run([*obeying, "true"], capture_output=True, check=False).returncode:
        obeying = []
    command = [*obeying, *variant(limits=limits)]
    with playing(tmp_path, simulation, network, command) as scene:
        scene.plant.wait_ready()
        scene.log.chmod(0o500)
        scene.wait_off("no_rotation")
        assert scene.plant.events("ticklog_warning")
        scene.log.chmod(0o750)
        scene.wait_on(1)
        scene.end()
        assert len(assert_sound(scene.log).sessions) >= 2
        scene.assert_wire_and_log_agree()
