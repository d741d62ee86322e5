"""Readiness words, and systemd told over a real unix datagram socket."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tickerplant.core.messages import FeedPhase
from tickerplant.runtime.health import Readiness, SystemdNotifier, readiness_of


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    """What systemd listens on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(5)
        yield listener


def test_states_arrive_as_datagrams(systemd: socket.socket) -> None:
    notifier = SystemdNotifier({"NOTIFY_SOCKET": systemd.getsockname()})
    assert notifier.ready("2000 markets\nlive")
    assert systemd.recv(1024) == b"READY=1\nSTATUS=2000 markets live"
    assert notifier.watchdog()
    assert systemd.recv(1024) == b"WATCHDOG=1"
    assert notifier.status("syncing")
    assert systemd.recv(1024) == b"STATUS=syncing"
    assert notifier.stopping()
    assert systemd.recv(1024) == b"STOPPING=1"
    notifier.close()
    assert not notifier.ready()


def test_abstract_socket() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0tickerplant-test-{os.getpid()}")
        listener.settimeout(5)
        notifier = SystemdNotifier({"NOTIFY_SOCKET": f"@tickerplant-test-{os.getpid()}"})
        assert notifier.ready()
        assert listener.recv(1024) == b"READY=1"
        notifier.close()


def test_without_systemd_nothing_happens() -> None:
    notifier = SystemdNotifier({})
    assert not notifier.ready()
    assert notifier.failures == 0
    assert notifier.watchdog_interval_ns == 0


def test_systemd_that_went_away_or_does_not_read_never_blocks(
    tmp_path: Path, systemd: socket.socket
) -> None:
    gone = SystemdNotifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    assert not gone.ready()
    assert gone.failures == 1
    gone.close()
    slow = SystemdNotifier({"NOTIFY_SOCKET": systemd.getsockname()})
    sent = [slow.watchdog() for _ in range(5_000)]
    assert sent[0]
    assert not sent[-1]
    assert slow.failures == sent.count(False)
    slow.close()


@pytest.mark.parametrize(
    ("environ", "interval_ns"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15_000_000_000),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15_000_000_000),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0),
        ({"WATCHDOG_USEC": "soon"}, 0),
    ],
)
def test_watchdog_interval_is_half_of_what_systemd_allows(
    environ: dict[str, str], interval_ns: int
) -> None:
    assert SystemdNotifier(environ).watchdog_interval_ns == interval_ns


def test_only_a_ready_feed_is_ready() -> None:
    for phase in FeedPhase:
        assert readiness_of(phase).is_ready == (phase is FeedPhase.READY)
    assert readiness_of(FeedPhase.READY, "x") == Readiness(is_ready=True, phase="ready", reason="")
    assert readiness_of(FeedPhase.SYNCING, "12 of 40 books").reason == "12 of 40 books"
    assert readiness_of(FeedPhase.DOWN).reason == "the feed is down"
    assert readiness_of(99).phase == "99"
