"""Sessions that are never used twice, and the watch for a newer plant."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tickerplant.config import PublishConfig
from tickerplant.core.messages import Stream
from tickerplant.core.wire import HeartbeatBody, Kind, encode_heartbeat
from tickerplant.errors import StateDirectoryError
from tickerplant.limits import SESSION_AHEAD_MAX_NS
from tickerplant.runtime.network import lines_of
from tickerplant.runtime.publisher import Publisher, open_publisher
from tickerplant.runtime.startup import (
    LOCK_FILE,
    SESSION_FILE,
    SessionRecord,
    SessionWatch,
    open_session_state,
)

NOW_NS = 1_800_000_000_000_000_000


def test_a_new_folder_gives_the_clock_as_session(tmp_path: Path) -> None:
    with open_session_state(tmp_path / "deep" / "state") as state:
        assert state.previous == SessionRecord(0)
        assert state.next_session(NOW_NS, 0) == NOW_NS
        assert state.damaged is False


def test_a_session_is_kept_and_always_exceeded_even_by_a_clock_that_went_back(
    tmp_path: Path,
) -> None:
    with open_session_state(tmp_path) as state:
        state.begin(NOW_NS)
    with open_session_state(tmp_path) as state:
        assert state.previous == SessionRecord(NOW_NS, ())
        assert state.next_session(NOW_NS - 10**15, 0) == NOW_NS + 1
        assert state.next_session(NOW_NS + 5, 0) == NOW_NS + 5
        assert state.next_session(NOW_NS, NOW_NS + 77) == NOW_NS + 78


def test_how_a_session_ended_is_kept_until_the_next_one_begins(tmp_path: Path) -> None:
    with open_session_state(tmp_path) as state:
        state.begin(NOW_NS)
        state.finish(NOW_NS, ((1, 42), (2, 7)))
    with open_session_state(tmp_path) as state:
        assert state.previous == SessionRecord(NOW_NS, ((1, 42), (2, 7)))
        state.begin(NOW_NS + 1)
    with open_session_state(tmp_path) as state:
        assert state.previous == SessionRecord(NOW_NS + 1, ())


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 64, b"{", b'{"session":"x"}', b'{"other":1}', b'{"session":1,"\xff":2}'],
)
def test_a_damaged_session_file_is_noticed_and_the_clock_goes_on(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / SESSION_FILE).write_bytes(content)
    with open_session_state(tmp_path) as state:
        assert state.damaged is True
        assert state.next_session(NOW_NS, 0) == NOW_NS
        state.begin(NOW_NS)
    with open_session_state(tmp_path) as state:
        assert state.previous.session == NOW_NS
        assert state.damaged is False


def test_a_power_cut_while_writing_leaves_the_old_session(tmp_path: Path) -> None:
    with open_session_state(tmp_path) as state:
        state.begin(NOW_NS)
        (tmp_path / f"{SESSION_FILE}.new").write_bytes(b'{"sess')
    with open_session_state(tmp_path) as state:
        assert state.previous.session == NOW_NS
        state.begin(NOW_NS + 1)
        assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK_FILE, SESSION_FILE]


def test_two_plants_cannot_share_a_state_directory(tmp_path: Path) -> None:
    with (
        open_session_state(tmp_path),
        pytest.raises(
            StateDirectoryError, match=f"plant.lock.*process {os.getpid()}.*stop"
        ) as caught,
    ):
        open_session_state(tmp_path)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1
    open_session_state(tmp_path).close()


def test_the_lock_goes_with_its_process_however_that_ends(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time\n"
        "from tickerplant.runtime.startup import open_session_state\n"
        "state = open_session_state(pathlib.Path(sys.argv[1]))\n"
        "print('locked', flush=True)\n"
        "time.sleep(30)\n"
    )
    command = [sys.executable, "-P", "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(StateDirectoryError, match=f"process {holder.pid}"):
            open_session_state(tmp_path)
        holder.kill()
    open_session_state(tmp_path).close()


def test_a_state_directory_that_is_a_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(StateDirectoryError, match=r"/file.*set state\.directory"):
        open_session_state(path)


@pytest.fixture
def publish(group: str, free_udp_port: int) -> PublishConfig:
    return PublishConfig(group_a=group, port=free_udp_port)


@pytest.fixture
def publisher(publish: PublishConfig) -> Iterator[Publisher]:
    opened = open_publisher(publish)
    yield opened
    opened.close()


def heard(watch: SessionWatch) -> int:
    """What the watch hears within a moment."""
    deadline = time.monotonic() + 0.3
    while time.monotonic() < deadline:
        newer = watch.newer_session()
        if newer:
            return newer
        time.sleep(0.01)
    return 0


def heartbeat(session: int) -> tuple[int, bytes]:
    body = HeartbeatBody(0)
    return int(Stream.STATUS), encode_heartbeat(
        Stream.STATUS, session, 1, NOW_NS, body, Kind.HEARTBEAT
    )


def test_a_higher_session_on_our_status_group_is_heard_and_nothing_else(
    publish: PublishConfig, publisher: Publisher
) -> None:
    watch = SessionWatch(lines_of(publish)[0], publish.port, NOW_NS, lambda: NOW_NS)
    publisher.send([heartbeat(NOW_NS), heartbeat(NOW_NS - 1), (int(Stream.STATUS), b"junk")])
    publisher.send([heartbeat(NOW_NS + SESSION_AHEAD_MAX_NS + 1)])
    assert heard(watch) == 0
    publisher.send([heartbeat(NOW_NS + 5), heartbeat(NOW_NS + 9), heartbeat(NOW_NS)])
    assert heard(watch) == NOW_NS + 9
    watch.close()


def test_the_watch_shares_the_port_with_subscribers_and_fails_loudly_without_the_interface(
    publish: PublishConfig,
) -> None:
    line = lines_of(publish)[0]
    first = SessionWatch(line, publish.port, NOW_NS, lambda: NOW_NS)
    SessionWatch(line, publish.port, NOW_NS, lambda: NOW_NS).close()
    first.close()
    with pytest.raises(OSError, match="No such device"):
        SessionWatch(line._replace(interface="192.0.2.77"), publish.port, NOW_NS, lambda: NOW_NS)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as exclusive:
        exclusive.bind((line.groups[Stream.STATUS - 1], publish.port))
        with pytest.raises(OSError, match="in use"):
            SessionWatch(line, publish.port, NOW_NS, lambda: NOW_NS)
