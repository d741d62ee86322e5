"""The daemon in this process against a running simulated exchange, on real multicast."""

import asyncio
import json
import socket
import urllib.request
from collections import Counter
from typing import Any

import pytest
from plant_in_process import (
    LISTEN_NS,
    Place,
    Receiver,
    config_of,
    daemon_of,
    exchange,
    running,
    settled,
    until,
)

from tickerplant.config import (
    ExchangeConfig,
    MetricsConfig,
)
from tickerplant.core.messages import FeedPhase, FeedState, SessionStart, Stream
from tickerplant.core.wire import Kind
from tickerplant.runtime.daemon import Daemon
from tickerplant.runtime.health import SystemdNotifier
from tickerplant.runtime.startup import SESSION_FILE
from tickerplant.runtime.supervise import InternalError
from tickerplant_kalshi.auth import load_signer
from tickerplant_kalshi_sim.faults import Fault

# --- the life of a plant --------------------------------------------------------------------------


async def test_books_equal_the_exchange_s_and_the_session_ends_in_order(
    place: Place, receiver: Receiver
) -> None:
    async with exchange(place, rate=2_000) as server:
        daemon = daemon_of(server, place)
        async with running(daemon):
            await until(lambda: daemon.plant.trades > 20)
            await settled(daemon, server)
            assert len(daemon.plant.entries) >= 25
            assert daemon.publisher.lost_datagrams == 0
            assert dict(daemon.feed.counters())["sequence_gaps"] == 0
        session = daemon.plant.session
        ends = receiver.of_kind(Kind.END_OF_SESSION)
        assert Counter(header.stream for header in ends) == {int(one): 4 for one in Stream}
        next_seqs = {one.stream: one.next_seq for one in daemon.plant.packets.streams}
        assert {(header.stream, header.seq) for header in ends} == set(next_seqs.items())
        # Nothing follows the first end of session of a stream.
        first_end = receiver.datagrams.index(
            next(one for one in receiver.datagrams if one[0].kind == Kind.END_OF_SESSION)
        )
        assert {one.kind for one, _ in receiver.datagrams[first_end:]} == {Kind.END_OF_SESSION}
    for stream in Stream:
        sequences = sorted(
            (header.seq, header.message_count)
            for header in receiver.of_kind(Kind.DATA)
            if header.stream == stream
        )
        expected = 1
        for seq, count in sequences:
            assert seq == expected
            expected += count
        assert expected == next_seqs[stream]
    phases = [one for one in receiver.messages(Stream.STATUS) if isinstance(one, FeedState)]
    assert phases[-1].phase == FeedPhase.READY
    saved = json.loads((place.folder / "state" / SESSION_FILE).read_text())
    assert saved["session"] == session
    assert dict(saved["final_seqs"]) == next_seqs


async def test_the_next_session_is_higher_and_tells_how_the_previous_one_ended(
    place: Place, receiver: Receiver
) -> None:
    async with exchange(place) as server:
        first = daemon_of(server, place)
        async with running(first):
            await until(lambda: first.plant.trades)
        second = daemon_of(server, place)
        async with running(second):
            assert second.plant.session > first.plant.session
    (start,) = [
        one
        for one in receiver.messages(Stream.STATUS, second.plant.session)
        if isinstance(one, SessionStart)
    ]
    assert start.previous_session == first.plant.session
    assert dict(start.final_seqs) == {
        one.stream: one.next_seq for one in first.plant.packets.streams
    }


async def test_a_lost_connection_is_told_and_healed(place: Place, receiver: Receiver) -> None:
    async with exchange(place, rate=1_000) as server:
        daemon = daemon_of(
            server,
            place,
            exchange=ExchangeConfig(
                websocket_url=server.websocket_url,
                rest_url=server.rest_url,
                key_id=server.key_id,
                key_path=str(server.key_path),
                connections=2,
            ),
        )
        async with running(daemon):
            assert all(one.is_open for one in daemon.feed.connections)
            books = [len(one.commands.desired_books) for one in daemon.feed.connections]
            assert sum(books) == len(daemon.plant.entries)
            assert min(books) > 0
            server.inject(Fault(kind="reset"))
            await until(lambda: dict(daemon.feed.counters())["connections_opened"] == 4)
            await until(lambda: daemon.plant.phase is FeedPhase.READY)
            await settled(daemon, server)
    states = [one.phase for one in receiver.messages(Stream.STATUS) if isinstance(one, FeedState)]
    assert FeedPhase.DOWN in states
    assert states[-1] == FeedPhase.READY
    assert len(daemon.log.of("connection_lost")) == 2


async def test_markets_that_open_while_it_runs_are_followed_without_looking_down(
    place: Place, receiver: Receiver
) -> None:
    async with exchange(place, window_s=2) as server:
        daemon = daemon_of(server, place)
        async with running(daemon):
            before = set(daemon.plant.entries)
            await until(lambda: set(daemon.plant.entries) - before)
            (new, *_) = set(daemon.plant.entries) - before
            await until(lambda: daemon.plant.entries[new].in_sync)
    states = [one.phase for one in receiver.messages(Stream.STATUS) if isinstance(one, FeedState)]
    assert FeedPhase.DOWN not in states


async def test_lost_lifecycle_frames_make_it_read_all_markets_again(place: Place) -> None:
    async with exchange(place, window_s=2, change_interval_s=0.2) as server:
        daemon = daemon_of(server, place)
        async with running(daemon):
            server.inject(Fault(kind="skip_seq", channel="market_lifecycle_v2"))
            await until(lambda: dict(daemon.feed.counters())["sequence_gaps"])
            await until(lambda: daemon._reader.readings == 2)
            assert daemon._reader.readings_failed == 0


async def test_a_stop_during_the_start_ends_it_at_once(place: Place) -> None:
    async with exchange(place) as server:
        daemon = daemon_of(server, place)
        stop = asyncio.Event()
        stop.set()
        await asyncio.wait_for(daemon.run(stop), 5)
        assert not daemon.started.is_set()


async def test_a_fault_of_our_own_is_logged_and_still_ends_the_session_in_order(
    place: Place, receiver: Receiver
) -> None:
    async with exchange(place) as server:
        daemon = daemon_of(server, place)
        task = asyncio.create_task(daemon.run())
        await until(daemon.ready.is_set, task)

        faultless = daemon.feed.handle_timer

        def broken(_now_ns: int) -> list[Any]:
            # Once: until the plant begins to end, its timer may fire again.
            daemon.feed.handle_timer = faultless  # type: ignore[method-assign]  # as it was
            raise IndexError("a bug")

        daemon.feed.handle_timer = broken  # type: ignore[method-assign]  # the fault to be injected
        with pytest.raises(InternalError, match="timer: IndexError: a bug"):
            await asyncio.wait_for(task, 10)
        assert len(receiver.of_kind(Kind.END_OF_SESSION)) == 20
        assert daemon.supervisor.internal_errors == 1


async def test_systemd_is_told_ready_watchdog_and_stopping(place: Place) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(place.folder / "notify"))
        systemd.setblocking(False)
        environ = {"NOTIFY_SOCKET": str(place.folder / "notify"), "WATCHDOG_USEC": "100000"}
        async with exchange(place) as server:
            daemon = Daemon(
                config_of(server, place),
                signer=load_signer(server.key_id, server.key_path),
                state_directory=place.folder / "state",
                session_listen_ns=LISTEN_NS,
                notifier=SystemdNotifier(environ),
            )
            told: list[str] = []

            def tell() -> bool:
                try:
                    while True:
                        told.append(systemd.recv(4_096).decode())
                except BlockingIOError:
                    return sum(text == "WATCHDOG=1" for text in told) >= 3

            async with running(daemon):
                await until(tell)
            tell()
    assert sum(text.startswith("READY=1\nSTATUS=") for text in told) == 1
    assert told[-1] == "STOPPING=1"


async def test_the_endpoint_serves_readiness_and_the_counters_of_every_part(place: Place) -> None:
    async with exchange(place) as server:
        daemon = daemon_of(server, place, metrics=MetricsConfig(port=0))

        def get(path: str) -> tuple[int, str]:
            assert daemon.metrics_server is not None
            url = f"http://127.0.0.1:{daemon.metrics_server.port}{path}"
            with urllib.request.urlopen(url, timeout=5) as reply:
                return reply.status, reply.read().decode()

        async with running(daemon):
            await until(lambda: daemon.plant.trades)
            status, text = await asyncio.to_thread(get, "/ready")
            assert (status, json.loads(text)["phase"]) == (200, "ready")
            _, text = await asyncio.to_thread(get, "/metrics")
    for line in (
        f"tickerplant_plant_books {len(daemon.plant.entries)}.0",
        'tickerplant_plant_messages_total{stream="trade"}',
        "tickerplant_feed_frames_total",
        "tickerplant_session_connect_attempts_total 1.0",
        "tickerplant_reader_readings_total 1.0",
        'tickerplant_publisher_datagrams_total{line="a"}',
        "tickerplant_daemon_internal_errors_total 0.0",
    ):
        assert line in text
