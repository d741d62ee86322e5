"""The audit on real folders: what was deleted, damaged, torn off, lost with the power, or is still written."""

import json
from pathlib import Path
from typing import Any

import pytest
from audited_course import (
    PREVIOUS,
    SESSION,
    AuditBed,
    AuditedCourse,
    run_course,
    seqs_after,
    write_capture,
    write_in_segments,
    write_segment,
)

from tickerplant.audit.findings import Cause
from tickerplant.audit.run import audit_session
from tickerplant.cli import main
from tickerplant.core.logformat import (
    FIRST_SEQS,
    SEGMENT_HEADER_BYTES,
    NextSeqs,
    SegmentName,
)
from tickerplant.core.packets import Datagram
from tickerplant.core.wire import Kind, decode_header
from tickerplant.errors import ConfigurationError
from tickerplant_kalshi.inputs import Frames, SessionBegun, decode_inputs, encode_inputs

OTHER_BOOT = b"another boot id!"
NEXT = SESSION + 10**12


@pytest.fixture(scope="module")
def course() -> AuditedCourse:
    return run_course()


@pytest.fixture
def bed(tmp_path: Path) -> AuditBed:
    return AuditBed(tmp_path)


def only(report: Any, cause: Cause) -> list[Any]:
    """The findings, all of which have this cause."""
    assert report.by_cause.keys() == {cause}, report.findings
    return list(report.findings)


# --- the log's files ------------------------------------------------------------------------------


def test_several_segments_are_one_session(course: AuditedCourse, bed: AuditBed) -> None:
    write_in_segments(bed, course.datagrams, 5)
    seen: list[tuple[int, int]] = []
    report = audit_session(
        bed.log, SESSION, tell_progress=lambda done, total: seen.append((done, total))
    )
    assert report.is_complete, report.findings
    assert report.figures["log"]["segments"] == 5
    assert seen == sorted(seen)
    assert seen[-1][1] == report.figures["log"]["bytes"]


def test_a_beginning_that_was_deleted_is_named_as_such_and_the_rest_is_still_proven(
    course: AuditedCourse, bed: AuditBed
) -> None:
    paths = write_in_segments(bed, course.datagrams, 5)
    paths[0].unlink()
    findings = only(audit_session(bed.log, SESSION), Cause.RETENTION)
    assert {finding.from_seq for finding in findings} == {1}
    part = course.datagrams[: len(course.datagrams) // 5 + 1]
    assert sorted(finding.to_seq for finding in findings) == sorted(
        seq - 1 for seq in seqs_after(part) if seq > 1
    )


def test_segments_deleted_in_the_middle_are_holes_of_the_disk(
    course: AuditedCourse, bed: AuditBed
) -> None:
    paths = write_in_segments(bed, course.datagrams, 5)
    paths[2].unlink()
    findings = only(audit_session(bed.log, SESSION), Cause.DISK)
    assert any("segments missing" in finding.what for finding in findings)
    assert {finding.stream for finding in findings} >= {"trade", "bbo", "ticker", "delta"}
    holes = [finding for finding in findings if finding.from_seq]
    assert all(finding.from_ns < finding.to_ns for finding in holes)


def test_damage_is_a_hole_of_the_disk_and_after_it_books_are_proven_anew(
    course: AuditedCourse, bed: AuditBed
) -> None:
    """Neither the books nor the quotes after it are called wrong."""
    write_segment(bed.log, course.datagrams)
    path = bed.log / str(SegmentName(SESSION, 1))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3_000] = bytes(3_000)
    path.write_bytes(data)
    findings = only(audit_session(bed.log, SESSION), Cause.DISK)
    assert any("damaged at offset" in finding.what for finding in findings)
    assert any(finding.stream == "delta" and finding.from_seq for finding in findings)


def test_a_damaged_header_is_named(course: AuditedCourse, bed: AuditBed) -> None:
    write_segment(bed.log, course.datagrams)
    path = bed.log / str(SegmentName(SESSION, 1))
    data = bytearray(path.read_bytes())
    data[20] ^= 255
    path.write_bytes(data)
    report = audit_session(bed.log, SESSION)
    assert Cause.DISK in report.by_cause
    assert any("header" in finding.what for finding in report.findings)


def test_a_log_that_is_still_written_is_complete_so_far(
    course: AuditedCourse, bed: AuditBed
) -> None:
    """No end of session, a flush that is only half there: neither is a hole while nothing follows."""
    running = [one for one in course.datagrams if decode_header(one[1]).kind != Kind.END_OF_SESSION]
    write_segment(bed.log, running)
    path = bed.log / str(SegmentName(SESSION, 1))
    path.write_bytes(path.read_bytes()[:-7])
    report = audit_session(bed.log, SESSION)
    assert report.is_complete, report.findings
    assert report.figures["log"]["ended in order"] is False
    assert int(report.figures["log"]["bytes torn off or being written"]) > 0


@pytest.mark.parametrize("cut_to", [10, 60, 200, 333, 400, 410, 421])
def test_a_plant_that_was_killed_left_a_log_that_is_right_as_far_as_it_goes(
    cut_to: int, course: AuditedCourse, bed: AuditBed
) -> None:
    write_segment(bed.log, course.datagrams[:cut_to])
    assert audit_session(bed.log, SESSION).is_complete


# --- the end, as the next session tells it --------------------------------------------------------


def killed(course: AuditedCourse) -> list[Datagram]:
    """Two thirds of the session."""
    return course.datagrams[: len(course.datagrams) * 2 // 3]


def follow(bed: AuditBed, seqs: NextSeqs, *, boot_id: bytes = OTHER_BOOT, **header: Any) -> None:
    """The log of a next session that says how far this one came."""
    last = SegmentName(SESSION, 1)
    values = {
        "previous_session": SESSION,
        "previous_seqs": seqs,
        "created_ns": NEXT,
        "previous_segment": last,
        "previous_bytes": (bed.log / str(last)).stat().st_size,
    } | header
    write_segment(bed.log, [], session=NEXT, boot_id=boot_id, **values)


@pytest.mark.parametrize(
    ("boot_id", "cause"),
    [(OTHER_BOOT, Cause.POWER_LOSS), (b"0123456789abcdef", Cause.LOG_OFF)],
)
def test_what_was_sent_and_is_not_in_the_log_is_told_by_the_next_session(
    boot_id: bytes, cause: Cause, course: AuditedCourse, bed: AuditBed
) -> None:
    """After another start of the machine it was the power, else the log was off."""
    datagrams = killed(course)
    write_segment(bed.log, datagrams)
    told = tuple(seq + 3 for seq in seqs_after(datagrams))
    follow(bed, told, boot_id=boot_id)
    findings = only(audit_session(bed.log, SESSION), cause)
    assert len(findings) == 5
    assert {finding.to_seq - finding.from_seq for finding in findings} == {2}
    assert {finding.to_ns for finding in findings} == {NEXT}


def test_a_session_that_may_have_sent_more_is_not_called_complete(
    course: AuditedCourse, bed: AuditBed
) -> None:
    """The machine restarted: what was not on disk yet is gone, and nobody knows how much that was."""
    datagrams = killed(course)
    write_segment(bed.log, datagrams)
    follow(bed, seqs_after(datagrams))
    (finding,) = only(audit_session(bed.log, SESSION), Cause.POWER_LOSS)
    assert "may have sent more" in finding.what


def test_a_session_that_was_killed_and_is_all_in_the_log_is_complete(
    course: AuditedCourse, bed: AuditBed
) -> None:
    datagrams = killed(course)
    write_segment(bed.log, datagrams)
    follow(bed, seqs_after(datagrams), is_previous_complete=True)
    assert audit_session(bed.log, SESSION).is_complete


def test_a_session_whose_successor_left_no_log_has_an_unknown_end(
    course: AuditedCourse, bed: AuditBed
) -> None:
    write_segment(bed.log, killed(course))
    follow(bed, FIRST_SEQS, previous_session=SESSION + 5)
    only(audit_session(bed.log, SESSION), Cause.UNKNOWN)


def test_the_end_of_the_session_before_is_compared_with_its_log(
    course: AuditedCourse, bed: AuditBed
) -> None:
    """The session says that the one before ended before 1 on every stream: its log must say the same."""
    write_segment(bed.log, course.datagrams)
    write_segment(bed.log, [], session=PREVIOUS)
    report = audit_session(bed.log, SESSION)
    assert report.is_complete
    assert report.figures["log"]["end of the session before compared"] is True
    write_segment(bed.log, [], session=PREVIOUS, first_seqs=tuple(seq + 1 for seq in FIRST_SEQS))
    assert len(only(audit_session(bed.log, SESSION), Cause.PLANT)) == 5


# --- the capture's files --------------------------------------------------------------------------


def test_a_capture_that_ends_before_the_log_says_where(
    course: AuditedCourse, bed: AuditBed
) -> None:
    report = bed.audit(course.datagrams, course.records[: len(course.records) // 2])
    (finding,) = only(report, Cause.CAPTURE_OFF)
    assert "the capture ends here" in finding.what
    assert int(report.figures["exchange"]["level changes equal"]) > 20


def flush_times(course: AuditedCourse) -> list[int]:
    """When something was sent, each once."""
    return sorted({decode_header(datagram).ts_send_ns for _, datagram in course.datagrams})


def sent_until(course: AuditedCourse, time_ns: int) -> list[Datagram]:
    return [one for one in course.datagrams if decode_header(one[1]).ts_send_ns <= time_ns]


def taken_in_until(course: AuditedCourse, time_ns: int) -> list[bytes]:
    """The records of the capture up to a time."""
    kept = []
    for record in course.records:
        items = [
            item for item in decode_inputs(record) if getattr(item, "now_ns", time_ns) <= time_ns
        ]
        if items:
            kept.append(encode_inputs(items))
    return kept


@pytest.mark.parametrize("back", range(40, 60))
def test_a_flush_that_was_taken_in_and_never_sent_is_no_hole(
    back: int, course: AuditedCourse, bed: AuditBed
) -> None:
    """Killed between the two: nobody was sent it, and the exchange's frames of it came to nothing."""
    times = flush_times(course)
    records = taken_in_until(course, times[-back])
    report = bed.audit(sent_until(course, times[-back - 1]), records)
    assert report.is_complete, report.findings


def test_a_log_that_ends_long_before_its_capture_says_where(
    course: AuditedCourse, bed: AuditBed
) -> None:
    """Cut at the end of a record and a flush: the log by itself would pass."""
    times = flush_times(course)
    shorter = sent_until(course, times[-90])
    assert bed.audit(shorter).is_complete
    (finding,) = only(bed.audit(shorter, taken_in_until(course, times[-40])), Cause.LOG_OFF)
    assert "the log ends here" in finding.what


def test_a_capture_with_a_hole_says_so_and_what_follows_is_compared_again(
    course: AuditedCourse, bed: AuditBed
) -> None:
    """Whatever the hole hid is not called the plant's fault."""
    write_segment(bed.log, course.datagrams)
    half = len(course.records) // 2
    write_capture(bed.capture, course.records)
    (path,) = bed.capture.glob("*.ktc")
    data = path.read_bytes()
    index = data.index(course.records[half])
    path.write_bytes(data[: index + 3] + b"\xff" + data[index + 4 :])
    report = audit_session(bed.log, SESSION, capture_folder=bed.capture)
    assert Cause.PLANT not in report.by_cause, report.findings
    assert Cause.DISK in report.by_cause
    assert Cause.CAPTURE_OFF in report.by_cause


def test_a_capture_that_has_lost_its_beginning_is_compared_as_far_as_it_can_be(
    course: AuditedCourse, bed: AuditBed
) -> None:
    report = bed.audit(course.datagrams, course.records[len(course.records) // 2 :])
    assert Cause.PLANT not in report.by_cause, report.findings
    assert "the beginning of the capture is missing" in {one.what for one in report.findings}
    assert int(report.figures["exchange"]["trades equal"]) > 5


def test_an_empty_or_foreign_capture_is_refused(course: AuditedCourse, bed: AuditBed) -> None:
    write_segment(bed.log, course.datagrams)
    bed.capture.mkdir()
    with pytest.raises(ConfigurationError, match="holds no capture of session"):
        audit_session(bed.log, SESSION, capture_folder=bed.capture)
    write_capture(bed.capture, course.records, session=SESSION + 1)
    with pytest.raises(ConfigurationError, match="holds no capture of session"):
        audit_session(bed.log, SESSION, capture_folder=bed.capture)


def test_flushes_in_one_nanosecond_count_as_one(bed: AuditBed) -> None:
    """The log cannot tell them apart: a clock that stands still is no fault."""
    course = AuditedCourse(3)
    course.start()
    for _ in range(30):
        for _ in range(4):
            course.change()
            for index, exchange in enumerate(course.exchanges):
                connection = course.feed.connections[index]
                while exchange.pipe:
                    connection.receive_frame(exchange.pipe.popleft().data, course.now_ns)
                course.publish()
        course.wait(1_000_000)
    course.finish()
    report = bed.audit(course.datagrams, course.records)
    assert report.is_complete, report.findings
    assert int(report.figures["exchange"]["level changes equal"]) > 50


def test_a_session_that_the_plant_went_over_to_is_found_in_the_capture_of_the_one_before(
    bed: AuditBed,
) -> None:
    """The log was off and came on again in a new session, books published anew from memory."""
    course = AuditedCourse()
    course.start()
    course.run(40)
    course.datagrams.clear()
    course.feed.begin_session(NEXT, course.now_ns)
    course.publish()
    for _ in range(20):
        course.deliver()
        course.wait(10_000_000)
    course.run(60)
    course.finish()
    write_segment(bed.log, course.datagrams, session=NEXT, previous_session=SESSION)
    write_capture(bed.capture, course.records)
    report = audit_session(bed.log, NEXT, capture_folder=bed.capture)
    assert report.is_complete, report.findings
    assert int(report.figures["exchange"]["books compared"]) > 20
    assert any(
        type(item) is SessionBegun for record in course.records for item in decode_inputs(record)
    )


def test_a_frame_that_was_never_captured_is_missed(course: AuditedCourse, bed: AuditBed) -> None:
    """A level change in the log that no frame of the capture explains."""
    records = []
    removed = 0
    for record in course.records:
        items = decode_inputs(record)
        for index, item in enumerate(items):
            late = type(item) is Frames and item.now_ns > course.now_ns - 300_000_000
            if late and not removed and b"orderbook_delta" in item.frames[0]:
                items[index] = Frames(item.now_ns, item.connection, item.frames[1:])
                removed += 1
        records.append(encode_inputs(items))
    assert removed
    report = bed.audit(course.datagrams, records)
    assert any("never came" in finding.what for finding in report.findings)
    assert not report.is_complete


# --- the command ----------------------------------------------------------------------------------


def test_the_command_tells_by_its_exit_code(
    course: AuditedCourse, bed: AuditBed, capsys: pytest.CaptureFixture[str]
) -> None:
    write_segment(bed.log, course.datagrams)
    write_capture(bed.capture, course.records)
    arguments = ["audit", "--log", str(bed.log), "--session", "last"]
    assert main([*arguments, "--capture", str(bed.capture)]) == 0
    assert "complete: every message is accounted for" in capsys.readouterr().out
    write_segment(bed.log, course.datagrams[:100] + course.datagrams[103:])
    assert main(arguments) == 1
    text = capsys.readouterr().out
    assert "not complete" in text
    assert "messages are not in the log" in text
    assert main([*arguments, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["is_complete"] is False
    assert report["by_cause"] == {"plant": report["finding_count"]}
    assert report["findings"][0].keys() >= {"cause", "what", "stream", "from_seq", "from_ns"}


def test_all_sessions_are_audited_one_after_the_other(
    course: AuditedCourse, bed: AuditBed, capsys: pytest.CaptureFixture[str]
) -> None:
    """The oldest first; a hole in any of them is one."""
    before = {
        "previous_segment": SegmentName(PREVIOUS, 1),
        "previous_bytes": SEGMENT_HEADER_BYTES,
        "previous_seqs": FIRST_SEQS,
    }
    write_segment(bed.log, [], session=PREVIOUS, previous_session=0)
    write_segment(bed.log, course.datagrams, is_previous_complete=True, **before)
    arguments = ["audit", "--log", str(bed.log), "--session", "all"]
    assert main([*arguments, "--json"]) == 0
    reports = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [report["session"] for report in reports] == [PREVIOUS, SESSION]
    write_segment(bed.log, course.datagrams, **before)
    assert main(arguments) == 1
    assert "may have sent more" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--log", "nowhere"], "holds no tick log"),
        (["--session", "7"], "holds no session 7"),
        (["--session", "x"], "is not a session"),
        (["--capture", "nowhere"], "is no folder"),
    ],
)
def test_what_is_asked_wrongly_is_a_usage_error(
    arguments: list[str],
    words: str,
    course: AuditedCourse,
    bed: AuditBed,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_segment(bed.log, course.datagrams)
    where = [] if "--log" in arguments else ["--log", str(bed.log)]
    try:
        code = main(["audit", *where, *arguments])
    except SystemExit as end:
        code = int(end.code or 0)
    assert code == 2
    assert words in capsys.readouterr().err


def test_a_segment_without_records_is_an_empty_session(bed: AuditBed) -> None:
    """A plant that was killed before its first datagram."""
    write_segment(bed.log, [])
    report = audit_session(bed.log, SESSION)
    assert report.is_complete
    assert report.figures["log"]["bytes"] == SEGMENT_HEADER_BYTES
