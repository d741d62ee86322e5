"""Recorded datagrams played into a strategy: the same callbacks in the same order, on the recording's own clock."""

import asyncio
import shutil
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "models"))

from recorded_feed import SECOND, T0
from recorded_feed import run_course as run_course_of
from subscriber_model import SubscriberModel
from tick_log import begun, options_of, read_folder, write_log

from tickerplant.core.messages import (
    Bbo,
    BookState,
    FeedPhase,
    FeedState,
    GapCause,
    LevelUpdate,
    MarketInfo,
    SessionStart,
    Stream,
    Trade,
)
from tickerplant.core.wire import (
    HeartbeatBody,
    decode_header,
    encode_datagram,
    encode_heartbeat,
)
from tickerplant.errors import ConfigurationError, TickLogError
from tickerplant_subscriber import (
    Gap,
    SessionChanged,
    SessionEnded,
    Strategy,
    StreamDead,
    read_log,
    replay,
    replay_async,
)

MS = 1_000_000


class Everything(Strategy):
    """Notes what it is told."""

    def __init__(self):
        self.told = []
        self.sent = []
        self.starts = []

    def on_start(self):
        self.starts.append("start")

    def on_stop(self):
        self.starts.append("stop")
        self.final_books = {
            view.ticker: (view.live, dict(view.bids), dict(view.asks)) for view in self.books()
        }

    def note(self, *what):
        self.sent.append(self.ts_send_ns)
        self.told.append(what if len(what) > 1 else what[0])

    on_bbo = on_trade = on_ticker = on_gap = on_session = on_market = on_feed = note
    on_live = on_stale = note

    def on_book(self, book, update):
        assert book.live
        self.note(update)

    def of(self, kind):
        return [one for one in self.told if isinstance(one, kind)]


def run_course(seed, steps=60):
    """A session whose heartbeats come in time."""
    return run_course_of(seed, steps, calm=True)


def timed(datagrams):
    """(time sent, datagram) of (stream, datagram) pairs."""
    return [(decode_header(datagram).ts_send_ns, datagram) for _stream, datagram in datagrams]


def model_of(datagrams):
    """What an independent subscriber makes of them."""
    model = SubscriberModel()
    model.receive(datagrams)
    return model


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A session's datagrams, and a tick log of them in several segments."""
    folder = tmp_path_factory.mktemp("log")
    datagrams = run_course(1, steps=1_200).datagrams
    with begun(folder, T0, options_of(segment_max_bytes=8_192)) as ticklog:
        for datagram in datagrams:
            assert ticklog.append([datagram])
            time.sleep(0.001)  # so that upkeep keeps pace with segments that are so small
        ticklog.end_session()
    return datagrams, folder


@pytest.mark.parametrize("seed", range(5))
def test_a_strategy_is_told_everything_once_and_in_order(seed):
    course = run_course(seed, steps=120)
    strategy = Everything()
    stats = replay(strategy, timed(course.datagrams))
    model = model_of(course.datagrams)
    assert strategy.of(Bbo) == [one for one in model.messages if isinstance(one, Bbo)]
    assert strategy.of(FeedState) == [one for one in model.messages if isinstance(one, FeedState)]
    assert strategy.of(MarketInfo) == [one for one in model.messages if isinstance(one, MarketInfo)]
    updates = [one for one in model.messages if isinstance(one, LevelUpdate)]
    assert [one for one in updates if one in strategy.told] == strategy.of(LevelUpdate)
    assert strategy.of(SessionChanged) == [SessionChanged(T0, 0, publisher=3)]
    assert strategy.of(SessionEnded) == [SessionEnded(5, T0, publisher=3)]
    assert not strategy.of(Gap)
    assert strategy.starts == ["start", "stop"]
    assert sum(stream.messages for stream in stats.streams) == len(model.messages)
    assert stats.checksum_mismatches == 0
    for ticker, (_live, bids, asks) in strategy.final_books.items():
        sides = model.books[ticker].sides
        assert (bids, asks) == sides


def test_only_chosen_tickers_and_overridden_callbacks_are_told():
    class Quotes(Strategy):
        tickers = ("KXA*",)

        def __init__(self):
            self.seen = []

        def on_bbo(self, bbo):
            self.seen.append(bbo.ticker)

    course = run_course(2, steps=120)
    strategy = Quotes()
    stats = replay(strategy, timed(course.datagrams))
    assert set(strategy.seen) == {"KXA-1-A", "KXA-1-B"}
    assert {stream.stream for stream in stats.streams} == {Stream.BBO, Stream.STATUS}


# --- tick logs ----------------------------------------------------------------------------------------


def test_a_tick_log_is_read_as_it_was_written(kept):
    datagrams, folder = kept
    assert len(list(folder.glob("*.ktl"))) >= 3
    assert list(read_log(folder)) == timed(datagrams)
    one, other = Everything(), Everything()
    replay(one, timed(datagrams))
    replay(other, str(folder))
    assert one.told == other.told


def test_sessions_are_chosen_by_number_or_time(tmp_path):
    later = T0 + 3_600 * SECOND
    write_log(tmp_path, T0, ends=False)
    write_log(tmp_path, later, ends=False)
    everything = list(read_log(tmp_path))
    assert {decode_header(datagram).session for _, datagram in everything} == {T0, later}
    for one in (read_log(tmp_path, session=later), read_log(tmp_path, from_ns=later + 5)):
        assert {decode_header(datagram).session for _, datagram in one} == {later}
    assert list(read_log(tmp_path, from_ns=later - 1)) == everything
    assert list(read_log(tmp_path, from_ns=1)) == everything
    cut = list(read_log(tmp_path, to_ns=later + 3))
    assert cut == [one for one in everything if one[0] <= later + 3]
    with pytest.raises(TickLogError, match="no session 7"):
        read_log(tmp_path, session=7)


def test_what_is_no_tick_log_is_refused_in_one_line(tmp_path):
    with pytest.raises(TickLogError, match="no tick log"):
        read_log(tmp_path)
    with pytest.raises(TickLogError, match="No such file"):
        replay(Everything(), tmp_path / "nowhere")


@pytest.mark.parametrize("place", [0, 3, 100, 2_000, 5_000, 8_000])
@pytest.mark.parametrize("size", [1, 40, 3_000])
def test_damage_is_passed_over_and_told_as_a_gap(kept, tmp_path, place, size):
    datagrams, folder = kept
    for path in folder.glob("*.ktl"):
        shutil.copy(path, tmp_path)
    path = sorted(tmp_path.glob("*.ktl"))[1]
    data = bytearray(path.read_bytes())
    data[place : place + size] = bytes(b ^ 0x55 for b in data[place : place + size])
    path.write_bytes(data)
    found = list(read_log(tmp_path))
    everything = timed(datagrams)
    assert [one for one in everything if one in found] == found
    assert found == timed(enumerate(read_folder(tmp_path)[0]))
    strategy = Everything()
    stats = replay(strategy, found)
    counts = [gap.message_count for gap in strategy.of(Gap)]
    accounted = sum(count or 0 for count in counts)
    accounted += sum(stream.messages for stream in stats.streams)
    published = sum(decode_header(datagram).message_count for _, datagram in datagrams)
    # Where the end of a session is damaged nobody can say how much is missing, and the gap says that.
    assert accounted < published if None in counts else accounted == published


def test_a_torn_tail_ends_the_source(tmp_path):
    write_log(tmp_path, ends=False)
    whole = list(read_log(tmp_path))
    (path,) = tmp_path.glob("*.ktl")
    path.write_bytes(path.read_bytes()[:-5])
    assert list(read_log(tmp_path)) == whole[:-1]
    path.write_bytes(b"garbage")
    assert list(read_log(tmp_path)) == []


# --- time ---------------------------------------------------------------------------------------------


def heartbeats(*times_ns, session=T0, stream=Stream.STATUS):
    """A quiet stream."""
    return [
        (now_ns, encode_heartbeat(stream, session, 1, now_ns, HeartbeatBody(0)))
        for now_ns in times_ns
    ]


class Timed(Strategy):
    """Notes when its timer fires."""

    timer_interval_s = 0.5

    def __init__(self):
        self.times = []

    def on_timer(self, now_ns):
        self.times.append(now_ns - T0)


def test_timers_go_by_the_recorded_clock():
    strategy = Timed()
    started = time.monotonic()
    replay(strategy, heartbeats(*(T0 + second * SECOND for second in range(60))))
    assert time.monotonic() - started < 5
    assert strategy.times == [half * SECOND // 2 for half in range(1, 119)]


def test_a_long_silence_is_one_call_of_the_timer():
    strategy = Timed()
    replay(strategy, heartbeats(T0, T0 + 3_600 * SECOND, T0 + 3_601 * SECOND))
    assert strategy.times == [SECOND // 2, 3_600 * SECOND + SECOND // 2, 3_601 * SECOND]


def test_a_stream_that_falls_silent_is_dead_at_its_time():
    strategy = Everything()
    replay(strategy, heartbeats(T0, T0 + 10 * SECOND))
    assert [event.stream for event in strategy.of(StreamDead)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("speed", "least_s"), [(1, 0.3), (3, 0.1), (None, 0)])
def test_the_pace_is_that_of_the_recording_times_the_speed(speed, least_s):
    source = heartbeats(*(T0 + count * 10 * MS for count in range(31)))
    started = time.monotonic()
    replay(Everything(), source, speed=speed)
    elapsed = time.monotonic() - started
    assert least_s - 0.002 <= elapsed < least_s + 1


def test_a_long_silence_is_cut_short():
    source = heartbeats(T0, T0 + 10**6 * SECOND, T0 + (10**6 + 1) * SECOND)
    started = time.monotonic()
    replay(Everything(), source, speed=100)
    assert 0.1 <= time.monotonic() - started < 1


# --- from a time on -----------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_from_a_time_on_the_strategy_knows_how_things_stand_and_then_is_told_the_same(share):
    course = run_course(4, steps=160)
    source = timed(course.datagrams)
    from_ns = source[int(len(source) * share)][0]
    whole, part = Everything(), Everything()
    replay(whole, source)
    replay(part, source, from_ns=from_ns)
    earlier = [
        datagram for datagram in course.datagrams if decode_header(datagram[1]).ts_send_ns < from_ns
    ]
    model = model_of(earlier)
    assert part.told[0] == SessionChanged(T0, 0, publisher=3)
    rest = [one for sent_ns, one in zip(whole.sent, whole.told, strict=True) if sent_ns >= from_ns]
    assert rest
    assert part.told[-len(rest) :] == rest
    introduction = part.told[: -len(rest)]
    quotes = [one for one in introduction if isinstance(one, Bbo)]
    assert quotes == [model.bbos[one.ticker] for one in quotes]
    assert all(one.state == BookState.LIVE for one in quotes)
    live = [one for one in introduction if isinstance(one, str)]
    assert live == [one.ticker for one in quotes]
    assert part.final_books == whole.final_books
    assert part.starts == ["start", "stop"]


def test_a_time_after_the_end_tells_how_it_ended():
    course = run_course(4)
    strategy = Everything()
    replay(strategy, timed(course.datagrams), from_ns=2 * T0)
    assert strategy.of(SessionChanged)
    assert not strategy.of(LevelUpdate)


# --- incomplete recordings ----------------------------------------------------------------------------


def trade(seq):
    return Trade("KXA", seq, 0, 0, f"t{seq}", 5_000, 100, 0)


def test_a_hole_in_the_recording_is_a_gap():
    source = [
        (T0 + seq * MS, encode_datagram(0, Stream.TRADE, T0, seq, T0 + seq * MS, [trade(seq)]))
        for seq in (1, 2, 5, 9)
    ]
    strategy = Everything()
    replay(strategy, [*source, *heartbeats(T0 + SECOND)])
    assert [(gap.from_seq, gap.to_seq) for gap in strategy.of(Gap)] == [(3, 4), (6, 8)]
    assert [one.g for one in strategy.of(Trade)] == [1, 2, 5, 9]


def test_a_recording_that_begins_in_the_middle_is_a_late_join():
    datagram = encode_datagram(0, Stream.TRADE, T0, 100, T0 + SECOND, [trade(100)])
    strategy = Everything()
    replay(strategy, [(T0 + SECOND, datagram)])
    assert strategy.of(Trade) == [trade(100)]
    assert [gap.cause for gap in strategy.of(Gap)] in ([], [GapCause.LATE_JOIN])


def test_garbage_in_the_source_is_counted():
    source = [(T0, b""), (T0, b"x" * 100), *heartbeats(T0)]
    stats = replay(Everything(), source)
    assert sum(stats.refused.values()) == 2


def test_sessions_follow_each_other():
    first = encode_datagram(0, Stream.STATUS, T0, 1, T0, [SessionStart("", 0, 0, T0, 0, ())])
    start = SessionStart("", 0, 0, T0 + 9, T0, tuple((int(s), 2 if s == 5 else 1) for s in Stream))
    phase = FeedState("", 0, 0, T0 + 9, FeedPhase.READY, "")
    second = encode_datagram(0, Stream.STATUS, T0 + 9, 1, T0 + 9, [start, phase])
    strategy = Everything()
    replay(strategy, [(T0, first), (T0 + 9, second)])
    assert [one.session for one in strategy.of(SessionChanged)] == [T0, T0 + 9]
    assert strategy.of(FeedState) == [phase]
    assert not strategy.of(Gap)


# --- the strategy's own doing -------------------------------------------------------------------------


def test_stop_ends_the_replay_after_the_callback():
    class Stopper(Everything):
        def on_bbo(self, bbo):
            super().on_bbo(bbo)
            self.stop()

    strategy = Stopper()
    replay(strategy, timed(run_course(4, steps=160).datagrams))
    assert len(strategy.of(Bbo)) == 1
    assert strategy.starts == ["start", "stop"]
    assert strategy.stats() is None


def test_stop_in_a_wait_ends_it():
    class Stopper(Everything):
        def on_session(self, session):
            asyncio.get_running_loop().call_later(0.05, self.stop)

    started = time.monotonic()
    replay(Stopper(), heartbeats(T0, T0 + 5 * SECOND), speed=1)
    assert time.monotonic() - started < 2


def test_an_exception_ends_the_replay_or_is_counted(caplog):
    class Faulty(Everything):
        def on_bbo(self, bbo):
            super().on_bbo(bbo)
            raise ValueError("mine")

    source = timed(run_course(4, steps=160).datagrams)
    strategy = Faulty()
    with pytest.raises(ValueError, match="mine"):
        replay(strategy, source)
    assert len(strategy.of(Bbo)) == 1
    assert strategy.starts == ["start", "stop"]
    strategy = Faulty()
    stats = replay(strategy, source, on_error="continue")
    assert stats.callback_errors == len(strategy.of(Bbo)) > 1
    assert "on_bbo raised" in caplog.text


def test_streams_that_were_not_joined_are_no_strangers():
    class Quotes(Strategy):
        def __init__(self):
            self.heard = []

        def on_bbo(self, bbo):
            self.heard.append(bbo)

        def on_feed(self, event):
            self.heard.append(event)

    datagrams = run_course(4, steps=160).datagrams
    strategy = Quotes()
    stats = replay(strategy, timed(datagrams))
    assert {stream for stream, _ in datagrams} > {Stream.BBO, Stream.STATUS}
    assert {type(one) for one in strategy.heard} <= {Bbo, FeedState, StreamDead}
    assert any(isinstance(one, Bbo) for one in strategy.heard)
    assert stats.refused == {}


def test_options_that_make_no_sense_are_refused():
    for speed in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ConfigurationError, match="speed"):
            replay(Everything(), [], speed=speed)
    with pytest.raises(ConfigurationError, match="on_error"):
        replay(Everything(), [], on_error="ignore")


def test_a_fault_of_the_source_passes_through():
    def source():
        yield from heartbeats(T0)
        raise TickLogError("the disk is gone")

    strategy = Everything()
    with pytest.raises(TickLogError, match="gone"):
        replay(strategy, source())
    assert strategy.starts == ["start", "stop"]


async def test_within_a_running_loop_other_tasks_go_on():
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(tick())
    strategy = Everything()
    await replay_async(strategy, heartbeats(*(T0 + count for count in range(2_000))))
    task.cancel()
    assert ticks >= 7
    assert strategy.starts == ["start", "stop"]
