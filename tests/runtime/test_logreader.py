"""Readers of the tick log: everything once and in order, while it is written, and nothing that is not valid."""

import os
import random
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tick_log import QUICK, SESSION, Sender, begun, read_all, read_folder, write_log

from tickerplant.core.logformat import SEGMENT_HEADER_BYTES, LogPosition, SegmentName
from tickerplant.core.wire import decode_header
from tickerplant.errors import TickLogError
from tickerplant.limits import LOG_CONSUMERS_MAX
from tickerplant.runtime.logcheck import verify_log
from tickerplant.runtime.logfolder import (
    load_position,
    read_positions,
    segment_names,
    store_position,
)
from tickerplant.runtime.logreader import FaultKind, FolderListing, LogReader
from tickerplant.runtime.ticklog import TickLogOptions, open_ticklog

MODELS = Path(__file__).parent.parent / "models"
SMALL_READ = 4_096


def write_segments(folder: Path, segments: int = 3, session: int = SESSION) -> list[bytes]:
    """A session of that many segments, about 16 KiB each; its datagrams."""
    sender, written = Sender(session), []
    with begun(folder, session) as ticklog:
        deadline = time.monotonic() + 30
        while ticklog.rotations < segments - 1:
            assert time.monotonic() < deadline
            written.append(sender.data(count=random.randint(1, 20))[1])
            assert ticklog.append([(4, written[-1])])
            time.sleep(0.0003)
    return written


@pytest.fixture(scope="module")
def log_of_three(tmp_path_factory) -> tuple[Path, list[bytes]]:
    """A closed log of two sessions, the first of three segments, and its datagrams."""
    folder = tmp_path_factory.mktemp("log")
    written = write_segments(folder, 3) + write_segments(folder, 1, SESSION + 1)
    sender = Sender(SESSION + 2)
    with begun(folder, SESSION + 2) as ticklog:
        for count in range(1, 20):
            written.append(sender.data(count=count)[1])
            assert ticklog.append([(4, written[-1])])
    return folder, written


def copy_log(source: Path, target: Path) -> list[Path]:
    """The segments of `source` again in `target`; their paths."""
    for old in target.glob("*.ktl"):
        old.unlink()
    paths = []
    for name in segment_names(source):
        paths.append(target / str(name))
        paths[-1].write_bytes((source / str(name)).read_bytes())
    return paths


# --- tailing --------------------------------------------------------------------------------------


def test_a_reader_waits_for_a_log_that_is_still_to_come(tmp_path):
    with LogReader(tmp_path) as reader:
        assert reader.read() is None
        assert reader.position is None
        sender = Sender()
        with begun(tmp_path) as ticklog:
            assert reader.read() is None
            ticklog.append([sender.data()])
            batch = reader.read()
            assert batch.segment == SegmentName(SESSION, 1)
            assert batch.header.session == SESSION
            assert [decode_header(datagram).seq for _offset, datagram in batch.records] == [1]
            assert reader.read() is None
            assert reader.position == batch.position


WRITER = """
    import random, time
    from pathlib import Path
    from tick_log import Sender
    from tickerplant.runtime.ticklog import TickLogOptions, open_ticklog
    folder, first = Path(sys.argv[1]), int(sys.argv[2])
    random.seed(5)
    options = TickLogOptions(fsync_interval_ms=20, segment_max_bytes=64 << 10)
    for session in range(first, first + 3):
        sender = Sender(session)
        with open_ticklog(folder, options) as ticklog:
            assert ticklog.begin_session(session, session)
            for number in range(400):
                flush = [sender.data(count=random.randint(1, 20)) for _ in range(random.randint(1, 4))]
                assert ticklog.append(flush)
                if number % 4 == 0:
                    time.sleep(0.001)
            assert ticklog.append(sender.ends())
            ticklog.end_session()
"""


def test_several_readers_follow_a_writing_process_over_rotations_and_sessions(tmp_path):
    """Each at its own pace and read size; each gets everything once, in order, and no fault."""
    code = f"import sys; sys.path.append({str(MODELS)!r})\n" + textwrap.dedent(WRITER)
    readers = [LogReader(tmp_path, read_bytes=size) for size in (SMALL_READ, 50_000, 1 << 20)]
    got: list[list[bytes]] = [[] for _ in readers]
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code, str(tmp_path), str(SESSION)]
    ) as writer:
        deadline = time.monotonic() + 30
        while writer.poll() is None:
            assert time.monotonic() < deadline
            for index, reader in enumerate(readers):
                if index == 0 or random.random() < 0.2:
                    datagrams, faults = read_all(reader)
                    assert faults == []
                    got[index] += datagrams
    assert writer.returncode == 0
    for index, reader in enumerate(readers):
        got[index] += read_all(reader)[0]
        reader.close()
    assert len(segment_names(tmp_path)) > 6
    assert got[0] == got[1] == got[2] == read_folder(tmp_path)[0]
    report = verify_log(tmp_path)
    assert report.is_sound
    assert sum(one.streams[4].datagrams + 5 for one in report.sessions) == len(got[0])
    assert all(one.ended_in_order for one in report.sessions)


def test_a_rotation_between_two_looks_loses_nothing(tmp_path):
    """A thread writes small segments as fast as it can while the reader reads."""
    sender, written, stop = Sender(), [], threading.Event()

    def write() -> None:
        with begun(tmp_path) as ticklog:
            while ticklog.rotations < 12 and not stop.is_set():
                flush = [sender.data(count=20)]
                assert ticklog.append(flush)
                written.append(flush[0][1])
                time.sleep(0.0002)

    thread = threading.Thread(target=write)
    thread.start()
    got = []
    try:
        with LogReader(tmp_path, read_bytes=SMALL_READ) as reader:
            while thread.is_alive() or len(got) < len(written):
                datagrams, faults = read_all(reader)
                assert faults == []
                got += datagrams
    finally:
        stop.set()
        thread.join()
    assert got == written


def test_a_batch_holds_no_more_than_the_read_size(log_of_three):
    folder, written = log_of_three
    read = []
    with LogReader(folder, read_bytes=SMALL_READ) as reader:
        while (batch := reader.read()) is not None:
            assert sum(8 + len(datagram) for _offset, datagram in batch.records) <= SMALL_READ
            read += [datagram for _offset, datagram in batch.records]
    assert read == written


def test_reading_goes_on_at_any_position_that_was_given(log_of_three):
    folder, written = log_of_three
    taken = 0
    position = None
    while True:
        with LogReader(folder, position, read_bytes=SMALL_READ) as reader:
            batch = reader.read()
            if batch is None:
                break
            datagrams = [datagram for _offset, datagram in batch.records]
            assert datagrams == written[taken : taken + len(datagrams)]
            taken += len(datagrams)
            position = batch.position
            rest = read_all(reader)
        assert rest == (written[taken:], [])
    assert taken == len(written)


def test_a_new_segment_is_seen_at_once_however_coarse_the_time_of_the_folder(tmp_path):
    listing = FolderListing(tmp_path)
    for ordinal in range(1, 60):
        (tmp_path / str(SegmentName(SESSION, ordinal))).write_bytes(b"")
        assert len(listing.names()) == ordinal
    os.utime(tmp_path, (1_000_000, 1_000_000))
    assert len(listing.names()) == 59


# --- partial and torn tails -----------------------------------------------------------------------


def test_a_reader_waits_at_a_torn_tail_until_the_next_session_names_the_end(tmp_path):
    """Without a fault: nothing was lost, for nothing of it was ever acknowledged."""
    write_log(tmp_path, SESSION, 3, ends=False)
    path = tmp_path / str(SegmentName(SESSION, 1))
    path.write_bytes(path.read_bytes()[:-7])
    with LogReader(tmp_path) as reader:
        assert len(read_all(reader)[0]) == 2
        for _ in range(3):
            assert reader.read() is None
        with open_ticklog(tmp_path, QUICK) as ticklog:
            assert reader.read() is None, "the end is final only with the next session"
            assert ticklog.begin_session(SESSION + 1, 0)
            assert reader.read() is None
            assert ticklog.append([Sender(SESSION + 1).data()])
            batch = reader.read()
        assert batch.faults == []
        assert batch.header.previous_bytes == path.stat().st_size
        assert len(batch.records) == 1


@pytest.mark.parametrize("tail", [bytes(9_000), b"\x90\0\0\0abc", bytes(range(256)) * 30])
def test_what_stands_after_the_final_position_is_not_read(tmp_path, tail):
    """The owner could not cut it (the disk refused): the next header says where the segment ended."""
    write_log(tmp_path, SESSION, 3)
    write_log(tmp_path, SESSION + 1, 2)
    with (tmp_path / str(SegmentName(SESSION, 1))).open("ab") as file:
        file.write(tail)
    datagrams, faults = read_folder(tmp_path)
    assert len(datagrams) == 3 + 2 + 2 * 5, "datagrams and ends of session"
    assert faults == []


def test_a_record_that_completes_later_is_read_then(tmp_path):
    write_log(tmp_path, SESSION, 3, ends=False)
    path = tmp_path / str(SegmentName(SESSION, 1))
    content = path.read_bytes()
    path.write_bytes(content[:SEGMENT_HEADER_BYTES])
    with LogReader(tmp_path) as reader, path.open("ab", buffering=0) as file:
        read = []
        for start in range(SEGMENT_HEADER_BYTES, len(content), 5):
            file.write(content[start : start + 5])
            datagrams, faults = read_all(reader)
            assert faults == []
            read += datagrams
    assert read == read_folder(tmp_path)[0]
    assert len(read) == 3


def test_damage_at_the_end_becomes_a_fault_when_records_follow_it(tmp_path):
    write_log(tmp_path, SESSION, 4, ends=False)
    path = tmp_path / str(SegmentName(SESSION, 1))
    content = bytearray(path.read_bytes())
    with LogReader(tmp_path) as reader:
        offsets = [offset for offset, _datagram in reader.read().records]
    content[offsets[2] + 20] ^= 1
    path.write_bytes(content[: offsets[3]])
    with LogReader(tmp_path) as reader:
        assert len(read_all(reader)[0]) == 2
        assert reader.read() is None
        path.write_bytes(content)
        batch = reader.read()
    (fault,) = batch.faults
    assert (fault.kind, fault.start.offset, fault.end.offset) == (
        FaultKind.DAMAGED,
        offsets[2],
        offsets[3],
    )
    assert str(offsets[2]) in str(fault)
    assert batch.position.offset == len(content)
    assert [offset for offset, _datagram in batch.records] == offsets[3:]


# --- damage ---------------------------------------------------------------------------------------


DAMAGE = st.lists(
    st.tuples(
        st.sampled_from(["flip", "zero", "cut", "insert"]),
        st.integers(0, 2),
        st.floats(0, 1),
        st.integers(1, 4_000),
    ),
    min_size=1,
    max_size=3,
)


def spoil(path: Path, kind: str, place: float, size: int) -> None:
    content = bytearray(path.read_bytes())
    at = int(place * max(0, len(content) - 1))
    match kind:
        case "flip" if content:
            content[at] ^= 1 << size % 8
        case "zero":
            content[at : at + size] = bytes(len(content[at : at + size]))
        case "cut":
            del content[at:]
        case "insert":
            content[at:at] = os.urandom(size)
    path.write_bytes(content)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(DAMAGE)
def test_whatever_is_damaged_the_rest_is_read_and_the_damage_told(log_of_three, tmp_path, damage):
    """Only datagrams that were written, in their order; if any is missing before the last, a fault says so."""
    source, written = log_of_three
    paths = copy_log(source, tmp_path)
    for kind, segment, place, size in damage:
        spoil(paths[segment], kind, place, size)
    datagrams, faults = read_folder(tmp_path)
    assert read_folder(tmp_path, SMALL_READ) == (datagrams, faults)
    remaining = iter(written)
    assert all(datagram in remaining for datagram in datagrams), "misordered, repeated or invented"
    if len(datagrams) < len(written):
        assert faults, damage
    report = verify_log(tmp_path)
    assert report.is_sound == (not faults)
    assert report.records == len(datagrams)


def test_a_missing_segment_is_a_fault_and_reading_goes_on(log_of_three, tmp_path):
    source, written = log_of_three
    paths = copy_log(source, tmp_path)
    lost = paths[1].read_bytes()
    paths[1].unlink()
    datagrams, faults = read_folder(tmp_path)
    assert [fault.kind for fault in faults] == [FaultKind.MISSING]
    assert (faults[0].start.ordinal, faults[0].end.ordinal) == (1, 3)
    assert datagrams == [one for one in written if one not in lost]
    assert not verify_log(tmp_path).is_sound


def test_an_open_segment_is_read_to_its_end_after_it_was_deleted(log_of_three, tmp_path):
    source, written = log_of_three
    paths = copy_log(source, tmp_path)
    with LogReader(tmp_path, read_bytes=SMALL_READ) as reader:
        first = [datagram for _offset, datagram in reader.read().records]
        paths[0].unlink()
        datagrams, faults = read_all(reader)
    assert first + datagrams == written
    assert faults == []


def test_a_position_whose_segment_is_gone_is_a_fault_and_reading_goes_on_after_it(
    log_of_three, tmp_path
):
    source, _written = log_of_three
    paths = copy_log(source, tmp_path)
    paths[0].unlink()
    assert read_folder(tmp_path)[1] == [], "the oldest segments may be gone: that is retention"
    with LogReader(tmp_path, LogPosition(SESSION, 1, 300)) as reader:
        batch = reader.read()
    assert [fault.kind for fault in batch.faults] == [FaultKind.MISSING]
    assert batch.segment == SegmentName(SESSION, 2)


# --- positions of consumers -----------------------------------------------------------------------


def test_a_position_is_kept_and_loaded(tmp_path):
    assert load_position(tmp_path, "store") is None
    assert read_positions(tmp_path) == {}
    for offset in (0, 77):
        store_position(tmp_path, "store", LogPosition(SESSION, 2, offset))
        assert load_position(tmp_path, "store") == LogPosition(SESSION, 2, offset)
    store_position(tmp_path, "archive-2", LogPosition(SESSION, 1, 0))
    assert read_positions(tmp_path) == {
        "store": LogPosition(SESSION, 2, 77),
        "archive-2": LogPosition(SESSION, 1, 0),
    }


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"session":1,"ordinal":2,"offset":-3}', '{"session":"x"}', " " * 900],
)
def test_a_damaged_position_is_an_error_for_its_owner_and_unknown_to_others(tmp_path, content):
    store_position(tmp_path, "store", LogPosition(SESSION, 2, 3))
    (tmp_path / "positions" / "store.json").write_text(content)
    with pytest.raises(TickLogError, match="remove it"):
        load_position(tmp_path, "store")
    assert read_positions(tmp_path) == {"store": None}


def test_too_many_positions_count_as_unknown(tmp_path):
    for number in range(LOG_CONSUMERS_MAX + 2):
        store_position(tmp_path, f"consumer-{number:03d}", LogPosition(SESSION, 1, 0))
    positions = read_positions(tmp_path)
    assert len(positions) == LOG_CONSUMERS_MAX + 1
    assert None in positions.values()


def test_a_consumer_takes_every_datagram_once_over_restarts_of_both_sides(tmp_path):
    """Position stored after each batch, retention as tight as can be: nothing is deleted before it was taken."""
    options = TickLogOptions(
        fsync="never", segment_max_bytes=16_384, retain_bytes=1, fsync_interval_ms=20
    )
    written, taken = [], []
    store_position(tmp_path, "store", LogPosition(SESSION, 1, 0))
    for session in (SESSION, SESSION + 1):
        sender = Sender(session)
        with begun(tmp_path, session, options) as ticklog:
            for _ in range(150):
                flush = [sender.data(count=20)]
                assert ticklog.append(flush)
                written.append(flush[0][1])
                time.sleep(0.0005)
                if random.random() < 0.1:
                    taken += take_batch(tmp_path)
            while fresh := take_batch(tmp_path):
                taken += fresh
    assert taken == written
    assert segment_names(tmp_path)[0] > SegmentName(SESSION, 1), "nothing was deleted at all"


def take_batch(folder: Path) -> list[bytes]:
    """What a consumer's process does between start and crash."""
    with LogReader(folder, load_position(folder, "store"), read_bytes=SMALL_READ) as reader:
        batch = reader.read()
        if batch is None:
            return []
        assert batch.faults == []
        store_position(folder, "store", batch.position)
        return [datagram for _offset, datagram in batch.records]
