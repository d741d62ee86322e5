"""The raw capture on disk: rotation, compression, retention, torn tails, full disks, other people's hands."""

import gzip
import os
import random
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from raw_capture import (
    PLAIN,
    SESSION,
    options_of,
    payloads,
    read_capture,
    segment_paths,
    write_all,
    write_capture,
)
from tick_log import eventually, run_python

from tickerplant.core.captureformat import (
    CAPTURE_HEADER_BYTES,
    CaptureName,
    decode_capture_header,
)
from tickerplant.errors import CaptureError, DamagedCaptureError
from tickerplant.runtime.capturefolder import (
    PART_SUFFIX,
    capture_files,
    open_segment,
    require_capture,
    take_lock,
)
from tickerplant.runtime.capturereader import CaptureReader, capture_sessions, choose_session
from tickerplant.runtime.captureupkeep import CaptureUpkeep
from tickerplant.runtime.capturewriter import open_capture

RECORDS = payloads(300)


def test_what_is_written_is_read_in_order_across_segments(tmp_path):
    write_capture(tmp_path, RECORDS)
    assert len(segment_paths(tmp_path)) > 5
    assert read_capture(tmp_path) == (RECORDS, [], 0)
    assert all(
        path.stat().st_size < PLAIN.segment_max_bytes + 300 for path in segment_paths(tmp_path)
    )


def test_headers_count_the_records_before_them(tmp_path):
    write_capture(tmp_path, RECORDS)
    headers = []
    for file in capture_files(tmp_path):
        with open_segment(tmp_path, file.name) as content:
            headers.append(decode_capture_header(content.read(CAPTURE_HEADER_BYTES)))
    counts = [header.first_record for header in headers]
    assert counts[0] == 0
    assert counts == sorted(set(counts))
    assert [header.ordinal for header in headers] == list(range(1, len(headers) + 1))


def test_a_capture_is_readable_while_it_is_written(tmp_path):
    writer = open_capture(tmp_path, SESSION, PLAIN)
    for count, record in enumerate(RECORDS, 1):
        writer.write(record)
        if count % 50 == 0:
            assert read_capture(tmp_path)[0] == RECORDS[:count]
    counters = writer.counters()
    assert counters["records"] == len(RECORDS)
    assert counters["bytes"] == sum(len(record) + 8 for record in RECORDS)
    assert counters["rotations"] == len(segment_paths(tmp_path)) - 1
    assert writer.gauges()["on"] == 1
    assert writer.close()
    assert writer.close()


def test_closed_segments_are_compressed_and_read_the_same(tmp_path):
    compressible = [record[:4] * 40 for record in RECORDS]
    writer = open_capture(tmp_path, SESSION, options_of(compress=True))
    write_all(writer, compressible)
    eventually(
        lambda: [f.is_compressed for f in capture_files(tmp_path)][:-1].count(False) == 0,
        "compression",
    )
    assert read_capture(tmp_path) == (compressible, [], 0)
    closed = len(segment_paths(tmp_path)) - 1
    eventually(lambda: writer.counters()["segments_compressed"] == closed, "the count of segments")
    counts = writer.counters()
    assert counts["bytes_after_compression"] * 3 < counts["bytes_before_compression"]
    on_disk = sum(path.stat().st_size for path in segment_paths(tmp_path))
    eventually(lambda: writer.gauges()["folder_bytes"] == on_disk, "the count of bytes")
    assert writer.close()
    assert not list(tmp_path.glob(f"*{PART_SUFFIX}"))


def test_the_next_session_goes_on_in_the_folder_and_compresses_what_was_left(tmp_path):
    write_capture(tmp_path, RECORDS)
    (tmp_path / f"x{PART_SUFFIX}").write_bytes(b"left behind")
    left = segment_paths(tmp_path)
    writer = open_capture(tmp_path, SESSION + 1, options_of(compress=True))
    write_all(writer, RECORDS[:3])
    eventually(lambda: not any(path.exists() for path in left), "compression")
    assert writer.close()
    assert capture_sessions(tmp_path) == [SESSION, SESSION + 1]
    assert read_capture(tmp_path) == (RECORDS, [], 0)
    assert read_capture(tmp_path, SESSION + 1) == (RECORDS[:3], [], 0)
    assert not list(tmp_path.glob(f"*{PART_SUFFIX}"))


def test_a_session_is_chosen_or_is_the_newest(tmp_path):
    take_lock(tmp_path)
    with pytest.raises(CaptureError, match="no capture yet"):
        choose_session(tmp_path, None)
    for session in (SESSION, SESSION + 5):
        (tmp_path / str(CaptureName(session, 1))).touch()
    assert choose_session(tmp_path, None) == SESSION + 5
    assert choose_session(tmp_path, SESSION) == SESSION
    with pytest.raises(CaptureError, match="no session 3"):
        choose_session(tmp_path, 3)


def test_the_oldest_segments_are_deleted_beyond_the_bound(tmp_path):
    options = options_of(max_bytes=5 * PLAIN.segment_max_bytes)
    writer = open_capture(tmp_path, SESSION, options)
    write_all(writer, RECORDS * 2)
    eventually(lambda: writer.folder_bytes <= options.max_bytes, "retention")
    eventually(
        lambda: sum(p.stat().st_size for p in segment_paths(tmp_path)) <= options.max_bytes, "it"
    )
    assert writer.close()
    records, faults, _torn = read_capture(tmp_path)
    assert records == (RECORDS * 2)[-len(records) :]
    assert faults == []
    reader = CaptureReader(tmp_path, SESSION)
    with pytest.raises(DamagedCaptureError, match="beginning of session"):
        list(reader.whole_records())


def test_segments_older_than_the_retention_are_deleted(tmp_path):
    write_capture(tmp_path, RECORDS)
    old = segment_paths(tmp_path)[:3]
    for path in old:
        os.utime(path, (time.time() - 100, time.time() - 100))
    writer = open_capture(tmp_path, SESSION + 1, options_of(retain_s=60))
    eventually(lambda: not any(path.exists() for path in old), "retention")
    assert writer.close()
    assert capture_sessions(tmp_path) == [SESSION, SESSION + 1]
    assert read_capture(tmp_path)[1] == []


def test_compression_keeps_the_age(tmp_path):
    write_capture(tmp_path, RECORDS[:5])
    os.utime(segment_paths(tmp_path)[0], (1_000_000_000, 1_000_000_000))
    writer = open_capture(tmp_path, SESSION + 1, options_of(compress=True, retain_s=10**10))
    eventually(lambda: capture_files(tmp_path)[0].is_compressed, "compression")
    assert writer.close()
    assert capture_files(tmp_path)[0].changed_s == 1_000_000_000


def test_segments_rotate_by_time(tmp_path):
    writer = open_capture(tmp_path, SESSION, options_of(segment_max_s=0))
    assert writer.status().is_on
    writer.write(b"one")
    assert len(segment_paths(tmp_path)) == 1
    writer.status()
    writer.write(b"two")
    writer.write(b"three")
    assert len(segment_paths(tmp_path)) == 2
    assert writer.close()
    assert read_capture(tmp_path)[0] == [b"one", b"two", b"three"]


# --- torn tails and damage --------------------------------------------------------------------------


def test_a_torn_tail_of_any_length_costs_the_last_record_only(tmp_path):
    """As after a kill in the middle of a write, or a power cut."""
    records = RECORDS[:4]
    write_capture(tmp_path, records)
    (path,) = segment_paths(tmp_path)
    whole = path.read_bytes()
    last = len(records[-1]) + 8
    for cut in (1, last // 2, last - 1):
        path.write_bytes(whole[:-cut])
        assert read_capture(tmp_path) == (records[:-1], [], last - cut)
        assert list(CaptureReader(tmp_path, SESSION).whole_records()) == records[:-1]
    for size in (0, 5, CAPTURE_HEADER_BYTES - 1):
        path.write_bytes(whole[:size])
        assert read_capture(tmp_path) == ([], [], size)


def test_a_torn_tail_in_the_middle_is_a_fault(tmp_path):
    write_capture(tmp_path, RECORDS)
    path = segment_paths(tmp_path)[1]
    path.write_bytes(path.read_bytes()[:-3])
    records, faults, _torn = read_capture(tmp_path)
    assert len(records) == len(RECORDS) - 1
    assert [str(fault) for fault in faults] == [
        f"{path.name}: {faults[0].problem}",
        f"{segment_paths(tmp_path)[2].name}: 1 records before it are missing",
    ]
    with pytest.raises(DamagedCaptureError, match="cut short"):
        list(CaptureReader(tmp_path, SESSION).whole_records())


def test_a_deleted_or_renamed_segment_shows(tmp_path):
    write_capture(tmp_path, RECORDS)
    paths = segment_paths(tmp_path)
    paths[3].unlink()
    _records, faults, _torn = read_capture(tmp_path)
    assert len(faults) == 1
    assert "are missing" in faults[0].problem
    paths[2].rename(paths[3])
    assert "renamed" in str(read_capture(tmp_path)[1][0])


@pytest.mark.parametrize("compress", [False, True])
def test_garbage_in_the_files_gives_faults_and_no_wrong_record(tmp_path, compress):
    """A few bytes anywhere, in plain and in compressed segments: typed errors only."""
    write_capture(tmp_path, RECORDS)
    if compress:
        for path in segment_paths(tmp_path):
            path.with_suffix(".ktc.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    random.seed(9)
    known = set(RECORDS)
    paths = segment_paths(tmp_path)
    for number in range(60):
        path = random.choice(paths)
        before = path.read_bytes()
        data = bytearray(before)
        for _ in range(random.randint(1, 5)):
            data[random.randrange(len(data))] = random.randrange(256)
        if number % 3 == 0:
            del data[random.randrange(len(data)) :]
        path.write_bytes(data)
        records, _faults, _torn = read_capture(tmp_path)
        assert known.issuperset(records)
        with suppress(DamagedCaptureError):
            played = list(CaptureReader(tmp_path, SESSION).whole_records())
            assert played == RECORDS[: len(played)]
        path.write_bytes(before)
    assert read_capture(tmp_path)[:2] == (RECORDS, [])


# --- what can go wrong while writing ------------------------------------------------------------------


def test_two_plants_cannot_write_into_one_folder(tmp_path):
    writer = open_capture(tmp_path, SESSION, PLAIN)
    with pytest.raises(CaptureError, match="another plant"):
        open_capture(tmp_path, SESSION + 1, PLAIN)
    writer.write(RECORDS[0])
    assert writer.close()
    assert open_capture(tmp_path, SESSION + 1, PLAIN).close()


def test_a_folder_that_is_none_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CaptureError, match=r"capture\.directory"):
            open_capture(folder, SESSION, PLAIN)
    with pytest.raises(CaptureError, match="--directory"):
        require_capture(tmp_path / "nowhere")
    with pytest.raises(CaptureError, match="holds no capture"):
        require_capture(tmp_path)


def test_a_segment_deleted_underneath_turns_the_capture_off(tmp_path):
    writer = open_capture(tmp_path, SESSION, PLAIN)
    writer.write(RECORDS[0])
    segment_paths(tmp_path)[0].unlink()
    eventually(lambda: not writer.status().is_on, "going off")
    assert "was deleted" in writer.status().reason
    assert "off until the plant is started again" in writer.status().reason
    writer.write(RECORDS[1])
    assert writer.counters()["went_off"] == 1
    assert writer.close()


def test_a_file_size_limit_leaves_whole_records_and_turns_the_capture_off(tmp_path):
    run_python(
        """
        import resource
        from pathlib import Path
        from raw_capture import SESSION, options_of, payloads, read_capture
        from tickerplant.runtime.capturewriter import open_capture
        folder = Path(sys.argv[1])
        writer = open_capture(folder, SESSION, options_of(segment_max_bytes=1 << 20))
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, resource.RLIM_INFINITY))
        records = payloads(200)
        for record in records:
            writer.write(record)
        status = writer.status()
        assert not status.is_on and "ulimit" in status.reason, status
        kept, faults, torn = read_capture(folder)
        assert kept == records[:len(kept)] and len(kept) > 10 and not faults and not torn
        assert writer.counters()["records"] == len(kept)
        assert writer.close()
        """,
        tmp_path,
    )


FULL_DISK = """
    import subprocess, time
    from pathlib import Path
    from raw_capture import SESSION, options_of, payloads, read_capture, segment_paths
    from tickerplant.runtime.capturewriter import open_capture
    mount = Path(sys.argv[1])
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", mount], check=True)
    folder = mount / "capture"
    records = payloads(2_000)
    for compress in (False, True):
        session = SESSION + compress
        writer = open_capture(folder, session, options_of(compress=compress))
        for record in records:
            writer.write(record)
        status = writer.status()
        assert not status.is_on and "free some space" in status.reason, status
        assert writer.counters()["went_off"] == 1
        kept, faults, torn = read_capture(folder, session)
        assert kept == records[:len(kept)] and len(kept) > 100 * (not compress), len(kept)
        assert not faults and not torn
        assert writer.close()
        # A plant that starts on the full disk runs without.
        filler = mount / "filler"
        with open(filler, "wb", buffering=0) as file:
            try:
                while file.write(bytes(1)):
                    pass
            except OSError:
                pass
        writer = open_capture(folder, session + 10, options_of(compress=compress))
        assert not writer.is_on and "cannot begin" in writer.status().reason
        writer.write(b"lost")
        assert writer.close()
        filler.unlink()
        for path in segment_paths(folder):
            path.unlink()
    writer = open_capture(folder, SESSION + 100, options_of(compress=True))
    writer.write(records[0])
    assert writer.is_on
    assert writer.close()
"""


def test_a_full_disk_turns_the_capture_off_and_the_next_start_goes_on(tmp_path):
    """A real file system of 64 KiB, in a mount namespace of its own."""
    may = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    if may.returncode:
        pytest.skip("this user may not make a mount namespace")
    run_python(FULL_DISK, tmp_path, prefix=("unshare", "--mount"))


def test_a_kill_in_the_middle_loses_nothing_that_was_written(tmp_path):
    """SIGKILL of a process that writes: everything it has said to be written is there."""
    code = """
        import os, signal
        from pathlib import Path
        from raw_capture import SESSION, options_of, payloads
        from tickerplant.runtime.capturewriter import open_capture
        writer = open_capture(Path(sys.argv[1]), SESSION, options_of(compress=True))
        for record in payloads(1_000):
            writer.write(record)
        print("written", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    with pytest.raises(AssertionError):
        run_python(code, tmp_path)
    assert read_capture(tmp_path) == (payloads(1_000), [], 0)
    assert Path(tmp_path, "capture.lock").exists()
    writer = open_capture(tmp_path, SESSION + 1, options_of(compress=True))
    eventually(
        lambda: [f.is_compressed for f in capture_files(tmp_path)].count(False) == 1, "compression"
    )
    assert writer.close()
    assert read_capture(tmp_path) == (payloads(1_000), [], 0)


def test_upkeep_never_touches_a_segment_that_is_being_written(tmp_path):
    """Upkeep that never rests, against a writer that rotates all the time: nothing is lost."""
    options = options_of(compress=True, segment_max_bytes=500)
    for number in range(6):
        folder = tmp_path / str(number)
        writer = open_capture(folder, SESSION, options)
        for record in RECORDS:
            writer.write(record)
            writer._upkeep.wake()
        assert writer.is_on
        assert writer.close()
        assert read_capture(folder) == (RECORDS, [], 0)


def test_a_segment_that_was_just_made_is_the_writer_s_before_it_says_so(tmp_path):
    """Between two segments none is current; the thread must not take the new one for closed."""
    write_capture(tmp_path, RECORDS[:80])
    first, second = capture_files(tmp_path)[:2]
    upkeep = CaptureUpkeep(tmp_path, options_of(compress=True), second.name)
    assert upkeep.current is None
    upkeep.start()
    eventually(lambda: not first.path.exists(), "compression of the first")
    upkeep.wake()
    upkeep.wake()
    assert upkeep.close(5)
    assert second.path.exists()
    assert upkeep.counts["segments_compressed"] == 1
