"""The daemon with its tick log: what is on the wire is in the log, and the log tells the next session of the last."""

from pathlib import Path

from plant_in_process import (
    Place,
    Receiver,
    daemon_of,
    exchange,
    running,
    settled,
    until,
)
from tick_log import read_folder

from tickerplant.config import TicklogConfig
from tickerplant.core.messages import SessionStart, Stream
from tickerplant.core.wire import FLAG_NOT_REPAIRABLE, HeartbeatBody, Kind, decode_heartbeat
from tickerplant.runtime.logcheck import verify_log
from tickerplant.runtime.startup import SESSION_FILE


def log_of(place: Place, state: str = "state") -> Path:
    return place.folder / state / "ticklog"


def heartbeat_bodies(receiver: Receiver, session: int = 0) -> list[HeartbeatBody]:
    return [
        decode_heartbeat(datagram, header)
        for header, datagram in receiver.datagrams
        if header.kind == Kind.HEARTBEAT and session in (0, header.session)
    ]


def session_start(receiver: Receiver, session: int) -> SessionStart:
    (start,) = [
        one for one in receiver.messages(Stream.STATUS, session) if isinstance(one, SessionStart)
    ]
    return start


async def test_what_is_sent_is_in_the_log_in_the_same_order(
    place: Place, receiver: Receiver
) -> None:
    async with exchange(place, rate=1_000) as server:
        daemon = daemon_of(server, place)
        async with running(daemon):
            await until(lambda: daemon.plant.trades > 20)
            await settled(daemon, server)
    logged, faults = read_folder(log_of(place))
    assert not faults
    for stream in Stream:
        sent = [data for header, data in receiver.datagrams if header.stream == stream]
        assert sent == [data for data in logged if data[4] == stream]
    assert not any(header.flags & FLAG_NOT_REPAIRABLE for header, _ in receiver.datagrams)
    report = verify_log(log_of(place))
    assert report.is_sound
    assert [one.ended_in_order for one in report.sessions] == [True]
    bodies = heartbeat_bodies(receiver)
    assert bodies
    assert all(one.log_on and one.oldest_seq == 1 for one in bodies)


async def test_the_log_alone_tells_the_next_session_of_the_last(
    place: Place, receiver: Receiver
) -> None:
    """The state file is lost and the clock set back by an hour: the session is higher all the same."""
    async with exchange(place) as server:
        first = daemon_of(server, place)
        async with running(first):
            await until(lambda: first.plant.trades)
        (place.folder / "state" / SESSION_FILE).unlink()
        second = daemon_of(server, place)
        second.clock._offset_ns -= 3_600 * 10**9
        async with running(second):
            assert second.plant.session == first.plant.session + 1
            assert second.log.of("session_ahead_of_clock")
    start = session_start(receiver, second.plant.session)
    assert start.previous_session == first.plant.session
    assert start.final_seqs == tuple(enumerate(first.plant.packets.next_seqs, start=1))
    assert verify_log(log_of(place)).is_sound


async def test_without_a_log_every_datagram_says_so(place: Place, receiver: Receiver) -> None:
    async with exchange(place) as server:
        daemon = daemon_of(server, place, ticklog=TicklogConfig(enabled=False))
        async with running(daemon):
            await until(lambda: daemon.plant.trades)
    assert all(header.flags & FLAG_NOT_REPAIRABLE for header, _ in receiver.datagrams)
    assert not any(one.log_on or one.oldest_seq for one in heartbeat_bodies(receiver))
    assert not log_of(place).exists()


async def test_a_session_without_log_is_followed_by_one_with_it(
    place: Place, receiver: Receiver
) -> None:
    """Then the state file knows more than the log does."""
    async with exchange(place) as server:
        sessions = []
        for enabled in (True, False, True):
            daemon = daemon_of(server, place, ticklog=TicklogConfig(enabled=enabled))
            async with running(daemon):
                await until(lambda daemon=daemon: daemon.plant.trades)
            sessions.append(daemon.plant)
    assert session_start(receiver, sessions[2].session).previous_session == sessions[1].session
    finals = tuple(enumerate(sessions[1].packets.next_seqs, start=1))
    assert session_start(receiver, sessions[2].session).final_seqs == finals
    report = verify_log(log_of(place))
    assert report.is_sound
    assert [one.session for one in report.sessions] == [sessions[0].session, sessions[2].session]
    assert report.sessions[1].previous_session == sessions[1].session
    assert not report.sessions[1].is_previous_complete
