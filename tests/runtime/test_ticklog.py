"""The writer of the tick log on real files: what it takes is readable, and what it cannot take it says."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tick_log import (
    LARGE,
    QUICK,
    SESSION,
    Sender,
    begun,
    eventually,
    newest,
    options_of,
    python,
    read_all,
    read_folder,
    run_python,
    write_log,
)

from tickerplant.core.logformat import (
    FIRST_SEQS,
    SEGMENT_HEADER_BYTES,
    LogPosition,
    SegmentName,
    decode_segment_header,
    encode_segment_header,
)
from tickerplant.core.messages import Stream
from tickerplant.errors import TickLogError
from tickerplant.runtime.logfolder import (
    Owner,
    read_owner,
    segment_files,
    segment_names,
    store_position,
)
from tickerplant.runtime.logreader import FaultKind, LogReader, read_header
from tickerplant.runtime.metrics import Metrics
from tickerplant.runtime.ticklog import open_ticklog


def write_calls() -> int:
    """System calls of this thread that wrote."""
    lines = Path("/proc/thread-self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["syscw"])


# --- what is written ------------------------------------------------------------------------------


def test_what_is_appended_is_read_back_in_order(tmp_path):
    sender = Sender()
    flushes = [
        [sender.data(Stream.BBO), sender.data(Stream.DELTA, 20)],
        [sender.heartbeat(Stream.TRADE)],
        [sender.data(Stream.DELTA) for _ in range(30)],
        sender.ends(),
    ]
    with begun(tmp_path) as ticklog:
        for flush in flushes:
            assert ticklog.append(flush)
    expected = [datagram for flush in flushes for _stream, datagram in flush]
    assert read_folder(tmp_path) == (expected, [])


def test_a_flush_is_in_the_file_when_append_returns_and_takes_one_write(tmp_path):
    sender = Sender()
    with begun(tmp_path) as ticklog:
        for count in (1, 2, 64):
            flush = [sender.data() for _ in range(count)]
            before = write_calls()
            assert ticklog.append(flush)
            assert write_calls() - before == 1
            datagrams, _faults = read_folder(tmp_path)
            assert datagrams[-count:] == [datagram for _stream, datagram in flush]


def test_the_first_segment_names_session_publisher_partition_and_the_log_before(tmp_path):
    sender = write_log(tmp_path, SESSION, 3)
    end = newest(tmp_path).stat().st_size
    with open_ticklog(tmp_path) as ticklog:
        assert ticklog.begin_session(SESSION + 1, 77, publisher=8, partition=9)
    header = read_header(tmp_path, SegmentName(SESSION + 1, 1))
    assert (header.publisher, header.partition, header.created_ns) == (8, 9, 77)
    assert header.first_seqs == FIRST_SEQS
    assert (header.previous_segment, header.previous_bytes) == (SegmentName(SESSION, 1), end)
    assert (header.previous_session, header.previous_seqs) == (SESSION, sender.next_seqs)
    assert header.is_previous_complete


def test_syncing_is_done_by_upkeep_and_can_be_switched_off(tmp_path):
    for policy in ("interval", "never"):
        with begun(tmp_path / policy, options=options_of(fsync=policy)) as ticklog:
            ticklog.append([Sender().data()])
            counters = ticklog.counters
            if policy == "interval":
                eventually(lambda: counters()["syncs"] >= 1, "a sync")  # noqa: B023  # used at once
        assert (counters()["syncs"] > 0) == (policy == "interval")
        assert counters()["sync_failures"] == 0


def test_counters_and_gauges_suit_the_metrics(tmp_path):
    metrics = Metrics()
    with begun(tmp_path, options=LARGE) as ticklog:
        metrics.add("ticklog", ticklog)
        ticklog.append([Sender().data()])
        (tmp_path / str(segment_names(tmp_path)[0])).unlink()
        eventually(lambda: not ticklog.append([Sender().data()]), "going off")
        text = metrics.scrape().decode()
    assert 'tickerplant_ticklog_went_off_total{code="deleted"} 1.0' in text
    assert "tickerplant_ticklog_on 0.0" in text


# --- owner, sessions, torn tails ------------------------------------------------------------------


def test_a_second_owner_is_refused_and_told_who_holds_the_folder(tmp_path):
    with begun(tmp_path):
        with pytest.raises(TickLogError, match=f"process {os.getpid()}"):
            open_ticklog(tmp_path)
        run_python(
            """
            from pathlib import Path
            from tickerplant.errors import TickLogError
            from tickerplant.runtime.ticklog import open_ticklog
            try:
                open_ticklog(Path(sys.argv[1]))
            except TickLogError as error:
                assert f"process {sys.argv[2]}" in str(error)
                assert "ticklog.directory" in str(error)
            else:
                sys.exit("two owners")
            """,
            tmp_path,
            os.getpid(),
        )
    open_ticklog(tmp_path).close()


def test_a_folder_that_cannot_be_used_is_one_line_with_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TickLogError, match=r"set ticklog\.directory"):
        open_ticklog(tmp_path / "file")


def test_a_session_that_is_not_above_all_others_is_refused(tmp_path):
    write_log(tmp_path, SESSION, 1)
    with open_ticklog(tmp_path) as ticklog:
        assert ticklog.previous.session == SESSION
        for session in (SESSION - 1, SESSION):
            with pytest.raises(TickLogError, match="set the clock"):
                ticklog.begin_session(session, session)
        assert ticklog.begin_session(SESSION + 1, 0)


def test_how_the_session_before_ended_is_known_at_the_next_start(tmp_path):
    sender = write_log(tmp_path, SESSION, 3, ends=True)
    with open_ticklog(tmp_path) as ticklog:
        previous = ticklog.previous
    assert previous.ended_in_order
    assert previous.is_complete
    assert previous.final_seqs == ((1, 1), (2, 1), (3, 1), (4, 4), (5, 1))
    assert previous.next_seqs == sender.next_seqs
    assert read_owner(tmp_path) == Owner(os.getpid(), SESSION, "ended")
    write_log(tmp_path, SESSION + 1, 5, ends=False)
    with open_ticklog(tmp_path) as ticklog:
        previous = ticklog.previous
    assert (previous.ended_in_order, previous.is_complete) == (False, True)
    assert dict(previous.final_seqs)[Stream.DELTA] == 6


def test_after_a_reboot_an_unfinished_session_counts_as_incomplete(tmp_path):
    """What was not on disk when the power failed is gone, so the log cannot tell how far the session came."""
    write_log(tmp_path, SESSION, 3, ends=False)
    path = newest(tmp_path)
    content = path.read_bytes()
    header = decode_segment_header(content)._replace(boot_id=b"another boot id.")
    path.write_bytes(encode_segment_header(header) + content[SEGMENT_HEADER_BYTES:])
    with open_ticklog(tmp_path) as ticklog:
        assert dict(enumerate(ticklog.previous.next_seqs, 1))[Stream.DELTA] == 4
        assert not ticklog.previous.is_complete
        assert ticklog.previous.final_seqs == ()


def test_every_torn_tail_is_cut_by_the_owner_and_by_nobody_else(tmp_path):
    write_log(tmp_path, SESSION, 3, ends=False)
    path = newest(tmp_path)
    content = path.read_bytes()
    with LogReader(tmp_path) as reader:
        offsets = [offset for offset, _datagram in reader.read().records]
    for cut in range(offsets[2] + 1, len(content)):
        path.write_bytes(content[:cut])
        assert len(read_folder(tmp_path)[0]) == 2
        assert path.stat().st_size == cut, "a reader has cut it"
        with open_ticklog(tmp_path) as ticklog:
            assert ticklog.previous.cut_bytes == cut - offsets[2]
            assert ticklog.previous.next_seqs[Stream.DELTA - 1] == 3
        assert path.read_bytes() == content[: offsets[2]]


@pytest.mark.parametrize("tail", [bytes(10_000), b"\x28\0\0\0", os.urandom(5_000), b"K" * 3])
def test_zeros_and_garbage_at_the_end_are_cut(tmp_path, tail):
    write_log(tmp_path, SESSION, 3, ends=False)
    path = newest(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content + tail)
    with open_ticklog(tmp_path) as ticklog:
        assert ticklog.previous.cut_bytes == len(tail)
        assert ticklog.begin_session(SESSION + 1, 0)
    assert path.read_bytes() == content
    assert read_folder(tmp_path)[1] == []


def test_damage_with_records_after_it_is_not_a_tail_and_stays(tmp_path):
    write_log(tmp_path, SESSION, 30, ends=False)
    path = newest(tmp_path)
    content = bytearray(path.read_bytes())
    content[SEGMENT_HEADER_BYTES + 500] ^= 1
    path.write_bytes(content)
    with open_ticklog(tmp_path) as ticklog:
        assert ticklog.previous.cut_bytes == 0
        assert ticklog.previous.next_seqs[Stream.DELTA - 1] == 31
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"", bytes(4_096), b"KTPLOG"])
def test_a_segment_whose_beginning_never_reached_the_disk_is_removed(tmp_path, content):
    sender = write_log(tmp_path, SESSION, 3)
    (tmp_path / str(SegmentName(SESSION + 5, 1))).write_bytes(content)
    with open_ticklog(tmp_path) as ticklog:
        assert ticklog.previous.session == SESSION + 5
        assert segment_names(tmp_path) == [SegmentName(SESSION, 1)]
        assert not ticklog.previous.is_complete
        with pytest.raises(TickLogError):
            ticklog.begin_session(SESSION + 4, 0)
        assert ticklog.begin_session(SESSION + 6, 0)
        assert ticklog.previous.segment == SegmentName(SESSION, 1)
    assert len(read_folder(tmp_path)[0]) == 8
    assert sender.next_seqs[Stream.DELTA - 1] == 4


def test_a_damaged_header_does_not_take_the_records_with_it(tmp_path):
    write_log(tmp_path, SESSION, 3, ends=False)
    path = newest(tmp_path)
    content = path.read_bytes()
    path.write_bytes(bytes(SEGMENT_HEADER_BYTES) + content[SEGMENT_HEADER_BYTES:])
    with open_ticklog(tmp_path) as ticklog:
        assert ticklog.previous.next_seqs[Stream.DELTA - 1] == 4
        assert not ticklog.previous.is_complete
    datagrams, faults = read_folder(tmp_path)
    assert len(datagrams) == 3
    assert [fault.kind for fault in faults] == [FaultKind.DAMAGED]


WRITER = """
    import os
    from pathlib import Path
    from tick_log import Sender
    from tickerplant.runtime.ticklog import TickLogOptions, open_ticklog
    folder, session, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    import random
    random.seed(seed)
    sender = Sender(session)
    options = TickLogOptions(segment_max_bytes=4 << 20, fsync="never")
    ticklog = open_ticklog(folder, options)
    assert ticklog.begin_session(session, session)
    while True:
        flush = [sender.data(count=random.randint(1, 20)) for _ in range(random.randint(1, 60))]
        assert ticklog.append(flush)
        os.write(1, sender.seqs[3].to_bytes(8, "little"))
"""


def test_whatever_moment_the_writer_is_killed_all_it_acknowledged_is_there(tmp_path):
    """Kill -9, again and again on one folder: contiguous sequences, nothing acknowledged lost, tails cut."""
    dice = random.Random(4)
    logged = {}
    for number in range(4):
        session = SESSION + number
        command = python(WRITER, tmp_path, session, number)
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert len(writer.stdout.read(8)) == 8
            time.sleep(dice.uniform(0, 0.06))
            os.kill(writer.pid, signal.SIGKILL)
            acknowledged = writer.stdout.read()
        with open_ticklog(tmp_path, QUICK) as ticklog:
            assert ticklog.previous.session == session
            assert ticklog.previous.is_complete
            logged[session] = ticklog.previous.next_seqs[3]
        whole = len(acknowledged) // 8 * 8
        last = int.from_bytes(acknowledged[:whole][-8:], "little")
        assert logged[session] >= last
    check_contiguous(tmp_path, logged)


def check_contiguous(folder: Path, logged: dict[int, int]) -> None:
    from tickerplant.runtime.logcheck import verify_log

    report = verify_log(folder)
    assert report.faults == []
    assert report.torn_bytes == 0
    assert {one.session: one.streams[4].last_seq + 1 for one in report.sessions} == logged


# --- rotation, retention, bounds ------------------------------------------------------------------


def fill(ticklog, sender: Sender, segments: int) -> list[bytes]:
    """Append until that many rotations have taken place."""
    wanted = ticklog.rotations + segments
    appended = []
    deadline = time.monotonic() + 30
    while ticklog.rotations < wanted:
        assert time.monotonic() < deadline, ticklog.status()
        flush = [sender.data(count=20)]
        assert ticklog.append(flush), ticklog.status()
        appended.append(flush[0][1])
        time.sleep(0.0005)
    return appended


def test_segments_rotate_by_size_and_each_names_the_end_of_the_one_before(tmp_path):
    sender = Sender()
    with begun(tmp_path) as ticklog:
        appended = fill(ticklog, sender, 4)
    names = segment_names(tmp_path)
    assert names == [SegmentName(SESSION, ordinal) for ordinal in range(1, 6)]
    headers = [read_header(tmp_path, name) for name in names]
    for name, before in zip(names[:-1], headers[1:], strict=True):
        assert before.previous_segment == name
        assert before.previous_bytes == (tmp_path / str(name)).stat().st_size
        assert before.first_seqs == before.previous_seqs
        assert before.previous_bytes >= QUICK.segment_max_bytes
    assert headers[-1].first_seqs[Stream.DELTA - 1] > headers[1].first_seqs[Stream.DELTA - 1] > 1
    assert read_folder(tmp_path) == (appended, [])


def test_segments_rotate_by_age(tmp_path):
    sender = Sender()
    options = options_of(segment_max_s=0)
    with begun(tmp_path, options=options) as ticklog:

        def rotated() -> bool:
            assert ticklog.append([sender.data()])
            return ticklog.rotations >= 1

        eventually(rotated, "a rotation")
    datagrams, faults = read_folder(tmp_path)
    assert faults == []
    assert len(datagrams) == sender.seqs[3] - 1


def test_retention_by_bytes_deletes_the_oldest_and_the_plant_knows_the_oldest_sequence(tmp_path):
    sender = Sender()
    with begun(tmp_path, options=options_of(retain_bytes=60_000)) as ticklog:
        assert ticklog.oldest_seqs == FIRST_SEQS
        fill(ticklog, sender, 8)
        eventually(lambda: ticklog.status().total_bytes <= 60_000, "retention")
        oldest = segment_names(tmp_path)[0]
        assert oldest.ordinal > 1
        header = read_header(tmp_path, oldest)
        eventually(lambda: ticklog.oldest_seqs == header.first_seqs, "the oldest sequence")
        assert ticklog.counters()["segments_deleted"] >= 4
        assert ticklog.counters()["segments_lost"] == 0
        assert ticklog.is_on
    assert read_folder(tmp_path)[1] == [], "what retention took is no fault"


def test_retention_by_age_deletes_what_is_older(tmp_path):
    for number in range(3):
        write_log(tmp_path, SESSION + number, 3)
    old, recent, _newest = segment_names(tmp_path)
    hours_ago = time.time() - 7_200
    os.utime(tmp_path / str(old), (hours_ago, hours_ago))
    with begun(tmp_path, SESSION + 9, options_of(retain_s=3_600)) as ticklog:
        eventually(lambda: old not in segment_names(tmp_path), "retention")
        assert recent in segment_names(tmp_path)
        assert ticklog.is_on


def test_nothing_is_deleted_that_a_consumer_has_not_taken(tmp_path):
    names = []
    for number in range(5):
        write_log(tmp_path, SESSION + number, 3)
        names.append(SegmentName(SESSION + number, 1))
    store_position(tmp_path, "store", LogPosition(*names[3], 500))
    store_position(tmp_path, "recovery", LogPosition(*names[2], 0))
    with begun(tmp_path, SESSION + 9, options_of(retain_bytes=1)) as ticklog:
        eventually(lambda: names[1] not in segment_names(tmp_path), "retention")
        assert segment_names(tmp_path)[0] == names[2]
        assert "recovery still has to take" in ticklog.status().warnings[0]
        (tmp_path / "positions" / "recovery.json").write_text("{")
        store_position(tmp_path, "store", LogPosition(SESSION + 9, 1, 0))
        fill(ticklog, Sender(SESSION + 9), 1)
        assert segment_names(tmp_path)[0] == names[2], "a damaged position keeps everything"
        store_position(tmp_path, "recovery", LogPosition(SESSION + 9, 1, 0))
        fill(ticklog, Sender(SESSION + 9), 1)
        eventually(lambda: names[4] not in segment_names(tmp_path), "retention")
        assert segment_names(tmp_path)[0] == SegmentName(SESSION + 9, 1)


def test_a_full_log_alarms_goes_off_and_resumes_when_its_consumer_has_caught_up(tmp_path):
    sender = Sender()
    options = options_of(retain_bytes=1, max_bytes=100_000)
    with begun(tmp_path, options=options) as ticklog:
        store_position(tmp_path, "store", LogPosition(SESSION, 1, 0))
        alarmed = False
        while ticklog.append([sender.data(count=20)]):
            alarmed |= ticklog.status().is_nearly_full
            time.sleep(0.0005)
        status = ticklog.status()
        assert alarmed
        assert (status.is_on, status.code) == (False, "max_bytes")
        assert sum(file.size_bytes for file in segment_files(tmp_path)) < 105_000
        assert not status.may_resume
        store_position(tmp_path, "store", LogPosition(SESSION, 99, 0))
        eventually(lambda: ticklog.status().may_resume, "the way to resume")
        assert ticklog.begin_session(SESSION + 1, 0, previous=(SESSION, sender.next_seqs))
        assert ticklog.append([Sender(SESSION + 1).data()])
        header = read_header(tmp_path, SegmentName(SESSION + 1, 1))
    assert header.previous_seqs == sender.next_seqs
    assert not header.is_previous_complete, "one datagram was not logged"


def test_a_closed_segment_that_somebody_deletes_is_counted_and_told(tmp_path):
    sender = Sender()
    with begun(tmp_path) as ticklog:
        fill(ticklog, sender, 2)
        eventually(lambda: not ticklog.status().warnings, "quiet")
        (tmp_path / str(segment_names(tmp_path)[1])).unlink()
        fill(ticklog, sender, 1)
        eventually(lambda: ticklog.counters()["segments_lost"] == 1, "the count")
        assert any("by somebody else" in text for text in ticklog.status().warnings)
        assert ticklog.is_on
    assert [fault.kind for fault in read_folder(tmp_path)[1]] == [FaultKind.MISSING]


def test_closing_is_final_and_harmless_the_second_time(tmp_path):
    ticklog = begun(tmp_path)
    assert ticklog.close()
    assert ticklog.close()
    assert not ticklog.append([Sender().data()])
    assert not list(tmp_path.glob("*.spare"))


def test_readers_see_only_whole_flushes_while_it_is_written(tmp_path):
    sender = Sender()
    with begun(tmp_path) as ticklog, LogReader(tmp_path) as reader:
        for count in (1, 5, 40):
            flush = [sender.data() for _ in range(count)]
            assert ticklog.append(flush)
            assert read_all(reader) == ([datagram for _stream, datagram in flush], [])
