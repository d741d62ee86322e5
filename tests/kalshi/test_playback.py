"""What went into a feed, kept and played again: byte for byte the same datagrams."""

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded_feed import T0, KeptRecords, RecordedCourse, begin_of, run_course

from tickerplant.core import publication
from tickerplant.core.packets import Datagram
from tickerplant.core.wire import (
    FLAG_NOT_REPAIRABLE,
    FLAGS_OFFSET,
    Kind,
    decode_body,
    decode_header,
)
from tickerplant.errors import DamagedCaptureError
from tickerplant_kalshi import recording
from tickerplant_kalshi.inputs import (
    Activity,
    AnyInput,
    Begin,
    Closed,
    Discovered,
    EndTimer,
    EventRead,
    Flush,
    Frames,
    LogTold,
    Opened,
    Outgoing,
    SessionBegun,
    SessionEnding,
    Settled,
    Timer,
    UnreadLookedUp,
    decode_inputs,
    encode_inputs,
)
from tickerplant_kalshi.playback import Playback, play
from tickerplant_kalshi.recording import InputRecorder

MODELS = Path(__file__).parent.parent / "models"


def plain(datagrams: list[Datagram]) -> list[Datagram]:
    """Without the flag that says whether the tick log took them: that shows only after they are made."""
    flags = slice(FLAGS_OFFSET, FLAGS_OFFSET + 1)
    kept = []
    for stream, datagram in datagrams:
        changed = bytearray(datagram)
        changed[flags] = bytes([datagram[FLAGS_OFFSET] & ~FLAG_NOT_REPAIRABLE])
        kept.append((stream, bytes(changed)))
    return kept


def played(records: list[bytes]) -> list[Datagram]:
    """All datagrams of a recording."""
    return plain([one for _now_ns, datagrams in play(records) for one in datagrams])


def sent(course: RecordedCourse) -> list[Datagram]:
    """What the plant sent when it was recorded."""
    return plain(course.datagrams)


@given(st.integers(0, 2**32))
def test_a_recording_played_again_gives_the_same_bytes(seed):
    course = run_course(seed)
    assert played(course.records) == sent(course)


def test_the_courses_are_rich():
    """Otherwise the test above would prove little."""
    kinds: Counter[str] = Counter()
    counters: Counter[str] = Counter()
    for seed in range(40):
        course = run_course(seed)
        for _stream, datagram in course.datagrams:
            header = decode_header(datagram)
            if header.kind == Kind.DATA:
                kinds.update(type(one).__name__ for one in decode_body(datagram, header))
        counters.update(dict(course.feed.counters()))
        counters["look_ups"] += course.look_ups
    assert {
        "SessionStart",
        "MarketInfo",
        "MarketState",
        "FeedState",
        "LevelUpdate",
        "Bbo",
        "BookLevels",
        "BookReady",
        "BookStale",
        "BookClear",
        "UpstreamGap",
    } <= kinds.keys()
    wanted = ("sequence_gaps", "duplicate_frames", "unreadable_frames", "connections_lost")
    assert all(counters[name] for name in (*wanted, "look_ups"))


def test_playing_does_not_depend_on_the_hash_seed_of_the_process():
    """Sets and dicts of strings are ordered by it, if anything is."""
    code = f"""
        import hashlib, sys
        sys.path.append({str(MODELS)!r})
        from recorded_feed import run_course
        from tickerplant_kalshi.playback import play
        digest = hashlib.sha256()
        for seed in range(12):
            for _now_ns, datagrams in play(run_course(seed).records):
                for stream, datagram in datagrams:
                    digest.update(datagram)
        print(digest.hexdigest())
    """
    lines = [line[8:] for line in code.splitlines()]
    digests = {
        subprocess.run(
            [sys.executable, "-P", "-c", "\n".join(lines)],
            env=os.environ | {"PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for seed in (1, 2, 3)
    }
    assert len(digests) == 1


def test_the_records_of_a_read_batch_are_one_and_come_before_the_datagrams():
    course = RecordedCourse(random.Random(1))
    course.connect()
    del course.records[:]
    connection = course.feed.connections[0]
    connection.receive_frame(b"{}", T0 + 1)
    connection.receive_frame(b"[]", T0 + 1)
    connection.note_activity(T0 + 1)
    assert course.records == []
    course.feed.flush(T0 + 2)
    (record,) = course.records
    inputs = decode_inputs(record)
    assert inputs[-3:] == [
        Frames(T0 + 1, 0, [b"{}", b"[]"]),
        Activity(T0 + 1, 0),
        Flush(T0 + 2),
    ]
    assert {type(one) for one in inputs[:-3]} == {Settled, Outgoing}
    assert course.recorder.frame_count == 2


def test_frames_of_connections_and_times_are_kept_apart():
    course = RecordedCourse(random.Random(5))
    while len(course.feed.connections) < 2:
        course = RecordedCourse(course.chance)
    course.connect()
    del course.records[:]
    for index, now_ns in ((0, 1), (0, 1), (1, 1), (0, 1), (0, 2)):
        course.feed.connections[index].receive_frame(b"%d" % now_ns, T0 + now_ns)
    course.feed.flush(T0 + 3)
    frames = [one for r in course.records for one in decode_inputs(r) if isinstance(one, Frames)]
    assert frames == [
        Frames(T0 + 1, 0, [b"1", b"1"]),
        Frames(T0 + 1, 1, [b"1"]),
        Frames(T0 + 1, 0, [b"1"]),
        Frames(T0 + 2, 0, [b"2"]),
    ]


def test_inputs_that_never_end_in_a_flush_are_written_all_the_same(monkeypatch):
    monkeypatch.setattr(recording, "CAPTURE_INPUTS_PER_RECORD", 10)
    course = RecordedCourse(random.Random(1))
    course.connect()
    del course.records[:]
    for _ in range(35):
        course.feed.connections[0].receive_frame(b"{}", T0)
    assert len(course.records) == 3
    for number in range(20):
        course.feed.connections[0].note_activity(T0 + number)
    assert len(course.records) == 5


@pytest.mark.parametrize("batch_bytes", [0, 400])
def test_a_batch_too_large_for_a_record_is_split_and_plays_the_same(monkeypatch, batch_bytes):
    whole = run_course(12)
    monkeypatch.setattr(recording, "CAPTURE_BATCH_BYTES", batch_bytes)
    split = run_course(12)
    assert len(split.records) > len(whole.records)
    assert played(split.records) == played(whole.records) == sent(whole)


def test_nothing_is_encoded_once_the_sink_is_off():
    course = run_course(3)
    kept = KeptRecords()
    kept.is_on = False
    recorder = InputRecorder(kept)
    recorder.commit(course.begin)
    assert (kept, recorder.input_count, recorder.inputs_lost) == ([], 0, 1)


def test_what_is_no_recording_is_refused_with_a_typed_error():
    whole = run_course(3).records
    for record in (
        b"",
        b"\x00",
        b"\x91\x92\x63\x01",
        b"\x91\x91\x01",
        os.urandom(40),
        whole[0][:-1],
    ):
        with pytest.raises(DamagedCaptureError):
            list(play([record]))
    with pytest.raises(DamagedCaptureError, match="beginning"):
        list(play(whole[1:]))
    with pytest.raises(DamagedCaptureError, match="twice"):
        list(play([whole[0], whole[0]]))
    for index in (-1, 7):
        for item in (Frames(T0, index, [b""]), Activity(T0, index), Outgoing(T0, index)):
            with pytest.raises(DamagedCaptureError, match="connection"):
                list(play([whole[0], encode_inputs([item])]))


def test_inputs_survive_being_kept():
    course = run_course(21)
    for record in course.records:
        inputs = decode_inputs(record)
        assert encode_inputs(inputs) == record
    assert decode_inputs(course.records[0]) == [course.begin]
    assert Playback(begin_of()).begin.session == T0


def test_the_bytes_of_inputs_are_what_they_were():
    """Captures are kept: what an older version wrote must be read for good."""
    assert (
        encode_inputs([Frames(1, 2, [b"ab"]), Flush(3)]).hex() == "9294010102" + "91c4026162920303"
    )
    for item, text in (
        (Activity(5, 1), "91930205" + "01"),
        (Timer(5), "91920405"),
        (Outgoing(5, 1), "9193050501"),
        (Opened(5, 1), "9193060501"),
        (Closed(5, 1, "x"), "919407" + "0501a178"),
        (EventRead(5, "E", "S"), "91940905a145a153"),
        (Discovered(5), "91920a05"),
        (UnreadLookedUp(5), "91920b05"),
        (SessionEnding(5), "91920c05"),
        (EndTimer(5), "91920d05"),
        (Settled(5), "91920e05"),
        (LogTold(5, True, (1, 2)), "91940f05c3920102"),
        (SessionBegun(5, 6), "9193100506"),
    ):
        assert encode_inputs([item]).hex() == text
        assert decode_inputs(bytes.fromhex(text)) == [item]


WITHOUT_INFLUENCE = {Begin, Activity, UnreadLookedUp}
"""`Begin` is tested above; the other two only lead to questions to the exchange."""


@pytest.mark.parametrize(
    "left_out",
    [kind for kind in get_args(AnyInput) if kind not in WITHOUT_INFLUENCE],
    ids=lambda kind: kind.__name__,
)
def test_every_input_counts(left_out, monkeypatch):
    """Without the inputs of any one type the datagrams are others: the comparison can fail."""
    if left_out is Settled:
        # It counts only while images wait for their turn.
        monkeypatch.setattr(publication, "_BURST_NS", 500_000)
    for seed in range(40):
        course = run_course(seed)
        kept = [
            encode_inputs([one for one in decode_inputs(record) if type(one) is not left_out])
            for record in course.records
        ]
        if played(kept) != sent(course):
            return
    pytest.fail(f"{left_out.__name__} is kept for nothing")
