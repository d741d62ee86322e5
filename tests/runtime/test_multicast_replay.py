"""A recording sent onto multicast: what is sent, and that nobody can take it for the live plant."""

import asyncio
import time
from itertools import pairwise

import pytest
from recorded_feed import SECOND, T0, run_course
from subscriber_model import SubscriberModel

from tickerplant.config import PublishConfig
from tickerplant.core.keyring import KeyRing
from tickerplant.core.messages import SessionStart, Stream, Trade
from tickerplant.core.wire import (
    FLAG_AUTHENTICATED,
    FLAG_NOT_REPAIRABLE,
    FLAG_SNAPSHOT,
    HEADER_BYTES,
    HeartbeatBody,
    Kind,
    authenticate,
    decode_body,
    decode_header,
    encode_datagram,
    encode_heartbeat,
)
from tickerplant.errors import AuthenticationError, ConfigurationError, GroupOccupiedError
from tickerplant.limits import REPLAY_PUBLISH_PER_SECOND, STREAM_DEAD_NS
from tickerplant.replay.multicast import MulticastReplay, ReplayStream, open_replay_groups
from tickerplant.runtime.network import lines_of
from tickerplant.runtime.publisher import open_publisher
from tickerplant.runtime.startup import SessionWatch
from tickerplant_subscriber import DatagramsRefused, SessionEnded, Strategy, Subscriber, run_async

LISTEN_NS = 100_000_000
MS = 1_000_000


def timed(datagrams):
    """(time sent, datagram) of (stream, datagram) pairs."""
    return [(decode_header(datagram).ts_send_ns, datagram) for _stream, datagram in datagrams]


def rewritten(datagrams, stream=None, now_ns=None):
    """What goes out for them."""
    stream = stream or ReplayStream()
    now_ns = time.time_ns() if now_ns is None else now_ns
    sent = []
    for _stream, datagram in datagrams:
        sent += stream.rewrite(datagram, now_ns)
    return sent


# --- what is sent -------------------------------------------------------------------------------------


def test_bodies_and_sequences_stay_and_everything_else_says_what_it_is():
    course = run_course(3, steps=200, calm=True)
    now_ns = 2 * T0
    sent = rewritten(course.datagrams, now_ns=now_ns)
    recorded = [d for _s, d in course.datagrams if decode_header(d).kind == Kind.DATA]
    assert len(sent) == len(recorded) > 20
    for (stream, again), datagram in zip(sent, recorded, strict=True):
        ours, theirs = decode_header(again), decode_header(datagram)
        assert ours.flags & FLAG_SNAPSHOT
        assert ours.flags & FLAG_NOT_REPAIRABLE
        assert not ours.flags & FLAG_AUTHENTICATED
        assert (ours.session, ours.ts_send_ns) == (now_ns, now_ns)
        assert ours[9:] == theirs[9:] or theirs.seq == 1
        assert (stream, ours.stream, ours.seq) == (theirs.stream, theirs.stream, theirs.seq)
        if not (theirs.stream == Stream.STATUS and theirs.seq == 1):
            assert again[HEADER_BYTES:] == datagram[HEADER_BYTES:]
    model = SubscriberModel()
    model.receive(sent)
    assert model.books


def test_trailers_are_left_out():
    """A subscriber with the plant's key refuses what is not signed: so it refuses every replay."""
    datagram = encode_datagram(0, Stream.TRADE, T0, 1, T0, [Trade("A", 1, 0, 0, "t", 1, 1, 0)])
    ring = KeyRing([(7, b"k" * 32)])
    signed = authenticate(datagram, 7, b"k" * 32)
    ring.verify(signed)
    ((_stream, again),) = rewritten([(1, signed)])
    assert len(again) == len(datagram)
    with pytest.raises(AuthenticationError):
        ring.verify(again)


def test_sessions_are_numbered_anew_and_the_one_before_is_not_told():
    stream = ReplayStream(heard_session=5 * T0)
    numbers = []
    for session in (T0, T0 + 9):
        start = SessionStart("", 0, 0, session, session - 1, ((1, 5),))
        datagram = encode_datagram(0, Stream.STATUS, session, 1, session, [start])
        ((_stream, again),) = stream.rewrite(datagram, 6 * T0)
        header = decode_header(again)
        numbers.append(header.session)
        (told,) = decode_body(again, header)
        assert (told.previous_session, told.final_seqs) == (0, ())
    assert numbers == [6 * T0, 6 * T0 + 1]
    assert ReplayStream(heard_session=7 * T0).rewrite(datagram, 6 * T0)
    assert stream.sessions == 2


def test_a_session_that_is_played_from_its_middle_is_an_older_one():
    """To who listens it is a late join, and its sequences are not ahead of what is possible."""
    datagram = encode_datagram(
        0, Stream.TRADE, T0, 500, T0 + 60 * SECOND, [Trade("A", 1, 0, 0, "t", 1, 1, 0)]
    )
    ((_stream, again),) = ReplayStream().rewrite(datagram, 2 * T0)
    assert decode_header(again).session == 2 * T0 - 60 * SECOND


def test_recorded_heartbeats_are_replaced_by_heartbeats_of_now():
    stream = ReplayStream()
    beat = encode_heartbeat(Stream.TRADE, T0, 1, T0, HeartbeatBody(0, 1, log_on=True))
    assert stream.next_deadline_ns() is None
    assert stream.rewrite(beat, T0) == []
    assert len(stream.heartbeats(T0)) == 5
    assert stream.heartbeats(T0) == []
    trade = Trade("A", 1, 0, 0, "t", 1, 1, 0)
    assert stream.rewrite(encode_datagram(0, 1, T0, 1, T0, [trade, trade]), T0 + MS)
    times = []
    while len(times) < 6:
        now_ns = stream.next_deadline_ns()
        for number, datagram in stream.heartbeats(now_ns):
            header = decode_header(datagram)
            assert header.flags & FLAG_SNAPSHOT
            if number == Stream.TRADE:
                assert header.seq == 3
                times.append((now_ns - T0) // MS)
    assert times == [11, 51, 251, 1251, 2251, 3251]
    assert max(after - before for before, after in pairwise(times)) * MS < STREAM_DEAD_NS
    ends = stream.ends(T0)
    assert {decode_header(datagram).kind for _s, datagram in ends} == {Kind.END_OF_SESSION}


def test_what_is_no_datagram_is_left_out_and_counted():
    stream = ReplayStream()
    assert rewritten([(1, b""), (1, b"x" * 60)], stream) == []
    assert stream.unreadable == 2


# --- on the wire --------------------------------------------------------------------------------------


@pytest.fixture
def where(group, free_udp_port):
    """Groups of this test alone."""
    return PublishConfig(group_a=group, port=free_udp_port)


class Listening(Strategy):
    """Notes what it hears, until the session has ended."""

    def __init__(self):
        self.messages = []
        self.events = []
        self.heard = asyncio.Event()

    def note(self, what):
        self.messages.append(what)

    on_bbo = on_trade = note

    def on_session(self, session):
        self.events.append(session)
        if isinstance(session, SessionEnded):
            self.stop()

    def on_gap(self, gap):
        self.events.append(gap)

    def on_feed(self, state):
        self.events.append(state)
        self.heard.set()


def options_of(where):
    return {"group_a": where.group_a, "port": where.port}


async def test_a_subscriber_that_accepts_replays_gets_everything(where):
    course = run_course(3, steps=200, calm=True)
    listening = Listening()
    task = asyncio.create_task(run_async(listening, accept_replay=True, **options_of(where)))
    await asyncio.sleep(0.05)
    publisher = open_publisher(where)
    told = await MulticastReplay(publisher, 0, speed=None).run(timed(course.datagrams))
    await asyncio.wait_for(task, 5)
    publisher.close()
    model = SubscriberModel()
    model.receive(course.datagrams)
    bbos = [one for one in model.messages if type(one).__name__ == "Bbo"]
    assert listening.messages == bbos
    assert not [one for one in listening.events if type(one).__name__ == "Gap"]
    assert (told.sessions, told.lost_datagrams, told.unreadable) == (1, 0, 0)


async def test_played_twice_it_is_heard_twice(where):
    """The second run is a session of its own, not a repetition of the first."""
    course = run_course(3, steps=100, calm=True)
    for _ in range(2):
        listening = Listening()
        task = asyncio.create_task(run_async(listening, accept_replay=True, **options_of(where)))
        await asyncio.sleep(0.05)
        publisher = open_publisher(where)
        await MulticastReplay(publisher, 0, speed=None).run(timed(course.datagrams))
        await asyncio.wait_for(task, 5)
        publisher.close()
        assert listening.messages


async def test_a_subscriber_of_live_data_refuses_a_replay_and_says_why(where):
    course = run_course(3, steps=100, calm=True)
    listening = Listening()
    task = asyncio.create_task(run_async(listening, **options_of(where)))
    await asyncio.sleep(0.05)
    publisher = open_publisher(where)
    await MulticastReplay(publisher, 0, speed=None).run(timed(course.datagrams))
    await asyncio.wait_for(listening.heard.wait(), 5)
    listening.stop()
    await task
    publisher.close()
    assert listening.messages == []
    refused = listening.events[0]
    assert isinstance(refused, DatagramsRefused)
    assert refused.error == "replayed"
    assert len(listening.events) == len(
        [one for one in listening.events if isinstance(one, DatagramsRefused)]
    )


async def test_silence_is_filled_with_heartbeats_and_speed_is_kept(where):
    """A recording with a pause of a second at a tenth of its speed would be dead without."""
    course = run_course(3, steps=40, calm=True)
    source = timed(course.datagrams)[:3]
    source.append((source[-1][0] + SECOND // 2, source[-1][1]))
    async with Subscriber(accept_replay=True, **options_of(where)) as subscriber:
        publisher = open_publisher(where)
        started = time.monotonic()
        sending = asyncio.create_task(MulticastReplay(publisher, 0, speed=0.5).run(source))
        await sending
        elapsed = time.monotonic() - started
        await asyncio.sleep(0.05)
        streams = subscriber.stats().streams
        publisher.close()
    assert 1.2 <= elapsed < 4
    assert [stream.dead for stream in streams] == [False] * 5
    assert all(stream.lines[0].heartbeats >= 4 for stream in streams)


async def test_full_speed_is_bounded_for_the_sake_of_receivers(where):
    trade = Trade("A", 1, 0, 0, "t", 1, 1, 0)
    count = REPLAY_PUBLISH_PER_SECOND // 5
    source = [(T0, encode_datagram(0, 1, T0, seq, T0, [trade])) for seq in range(1, count + 1)]
    publisher = open_publisher(where)
    started = time.monotonic()
    told = await MulticastReplay(publisher, 0, speed=None).run(source)
    publisher.close()
    assert told.datagrams == count
    assert time.monotonic() - started > 0.15


async def test_what_was_before_a_time_is_sent_at_full_speed(where):
    trade = Trade("A", 1, 0, 0, "t", 1, 1, 0)
    source = [
        (T0 + n * SECOND, encode_datagram(0, 1, T0, n + 1, T0 + n * SECOND, [trade]))
        for n in range(8)
    ]
    publisher = open_publisher(where)
    started = time.monotonic()
    told = await MulticastReplay(publisher, 0, speed=5, from_ns=T0 + 6 * SECOND).run(source)
    publisher.close()
    assert told.datagrams == 8
    assert 0.4 < time.monotonic() - started < 3


async def test_it_can_be_stopped_in_a_pause_and_ends_in_order(where):
    course = run_course(3, steps=40, calm=True)
    first = timed(course.datagrams)[:2]
    source = [*first, (first[-1][0] + 3_600 * SECOND, first[-1][1])]
    listening = Listening()
    task = asyncio.create_task(run_async(listening, accept_replay=True, **options_of(where)))
    await asyncio.sleep(0.05)
    publisher = open_publisher(where)
    replay = MulticastReplay(publisher, 0, speed=1)
    asyncio.get_running_loop().call_later(0.2, replay.stop)
    told = await asyncio.wait_for(replay.run(source), 5)
    await asyncio.wait_for(task, 5)
    publisher.close()
    assert told.datagrams == len(first)


# --- never the live plant's place ---------------------------------------------------------------------


@pytest.mark.parametrize("line", ["a", "b"])
def test_the_live_plant_s_groups_are_refused(where, line):
    live = PublishConfig(group_a="239.192.77.1", group_b="239.192.78.1", port=where.port)
    shared = PublishConfig(group_a=live.groups(line)[-1], port=where.port)
    with pytest.raises(ConfigurationError, match="live plant"):
        open_replay_groups(shared, live, LISTEN_NS)


async def test_occupied_groups_are_refused(where):
    publisher = open_publisher(where)
    beat = encode_heartbeat(Stream.STATUS, T0, 1, T0, HeartbeatBody(0))

    async def living():
        while True:
            publisher.send([(5, beat)])
            await asyncio.sleep(0.01)

    task = asyncio.create_task(living())
    with pytest.raises(GroupOccupiedError):
        await asyncio.to_thread(open_replay_groups, where, PublishConfig(), LISTEN_NS)
    task.cancel()
    publisher.close()


def test_free_groups_are_opened(where):
    publisher, heard = open_replay_groups(where, PublishConfig(), LISTEN_NS)
    assert heard == 0
    publisher.close()


def test_a_replay_on_a_plant_s_groups_does_not_end_the_plant(where):
    """A plant ends when it hears a newer one; a recording is none, however new its number."""
    session = time.time_ns()
    with_replay = rewritten(run_course(3, steps=20).datagrams)
    watch = SessionWatch(lines_of(where)[0], where.port, session - SECOND, time.time_ns)
    publisher = open_publisher(where)
    publisher.send([one for one in with_replay if one[0] == Stream.STATUS])
    time.sleep(0.05)
    assert watch.newer_session() == 0
    start = SessionStart("", 0, 0, session, 0, ())
    publisher.send([(5, encode_datagram(0, 5, session, 1, session, [start]))])
    deadline = time.monotonic() + 30
    while (found := watch.newer_session()) == 0:
        assert time.monotonic() < deadline
    assert found == session
    publisher.close()
    watch.close()
