"""A log with holes beside a capture that has everything: the holes are named as what they are, the rest is proven."""

from pathlib import Path
from typing import Any

import pytest
from audited_course import (
    PREVIOUS,
    SESSION,
    AuditBed,
    AuditedCourse,
    rewritten,
    run_course,
    seqs_after,
    write_capture,
    write_in_segments,
    write_segment,
)

from tickerplant.audit.findings import Cause
from tickerplant.audit.run import audit_session
from tickerplant.core.logformat import SEGMENT_HEADER_BYTES, SegmentName
from tickerplant.core.messages import AnyMessage, LevelUpdate, Stream, Ticker, Trade
from tickerplant.core.packets import Datagram
from tickerplant.core.wire import decode_header

SEGMENTS = 5
KIND_OF: dict[Stream, type] = {Stream.TRADE: Trade, Stream.TICKER: Ticker}


@pytest.fixture(scope="module")
def course() -> AuditedCourse:
    return run_course(steps=200)


@pytest.fixture
def bed(tmp_path: Path, course: AuditedCourse) -> AuditBed:
    """The capture is whole."""
    bed = AuditBed(tmp_path)
    write_capture(bed.capture, course.records)
    return bed


def audit(bed: AuditBed) -> Any:
    return audit_session(bed.log, SESSION, capture_folder=bed.capture)


def numbers(report: Any) -> dict[str, int]:
    """What was compared with the exchange."""
    return {name: int(value) for name, value in report.figures["exchange"].items()}


@pytest.fixture
def whole(course: AuditedCourse, bed: AuditBed) -> dict[str, int]:
    """The same of a log that lacks nothing."""
    write_in_segments(bed, course.datagrams, SEGMENTS)
    report = audit(bed)
    assert report.is_complete, report.findings
    return numbers(report)


def assert_most_is_proven(report: Any, whole: dict[str, int]) -> None:
    found = numbers(report)
    for name in ("trades equal", "tickers equal", "datagrams equal when played again"):
        assert whole[name] // 2 < found[name] <= whole[name], name
    assert sum(found.values()) < sum(whole.values())


def test_what_retention_deleted_is_nobody_s_fault(
    course: AuditedCourse, bed: AuditBed, whole: dict[str, int]
) -> None:
    """The log is kept for a day, the capture for a week: a plant that runs longer is audited all the same."""
    (bed.log / str(SegmentName(SESSION, 1))).unlink()
    report = audit(bed)
    assert set(report.by_cause) == {Cause.RETENTION}, report.findings
    first = course.datagrams[: len(course.datagrams) // SEGMENTS + 1]
    assert {one.to_seq for one in report.findings} == {seq - 1 for seq in seqs_after(first)} - {0}
    times = {(one.from_ns, one.to_ns) for one in report.findings}
    assert times == {(SESSION, decode_header(first[-1][1]).ts_send_ns)}
    assert_most_is_proven(report, whole)


def test_a_beginning_that_retention_cannot_have_deleted_was_deleted_by_somebody(
    bed: AuditBed, whole: dict[str, int]
) -> None:
    """Retention begins with the oldest, and an older session is still there."""
    write_segment(bed.log, [], session=PREVIOUS)
    (bed.log / str(SegmentName(SESSION, 1))).unlink()
    report = audit(bed)
    assert set(report.by_cause) == {Cause.DISK}, report.findings
    assert {one.from_seq for one in report.findings} == {1}
    assert_most_is_proven(report, whole)


@pytest.mark.parametrize("ordinal", [2, 3, 4])
def test_a_segment_that_is_missing_is_a_hole_of_the_disk_and_of_nothing_else(
    ordinal: int, bed: AuditBed, whole: dict[str, int]
) -> None:
    (bed.log / str(SegmentName(SESSION, ordinal))).unlink()
    report = audit(bed)
    assert set(report.by_cause) == {Cause.DISK}, report.findings
    assert_most_is_proven(report, whole)


@pytest.mark.parametrize("percent", range(2, 98, 16))
def test_damage_anywhere_is_a_hole_of_the_disk_and_of_nothing_else(
    percent: int, bed: AuditBed, whole: dict[str, int]
) -> None:
    """It may begin and end in the middle of a flush."""
    path = bed.log / str(SegmentName(SESSION, 3))
    data = bytearray(path.read_bytes())
    at = SEGMENT_HEADER_BYTES + (len(data) - SEGMENT_HEADER_BYTES) * percent // 100
    data[at : at + 600] = bytes(len(data[at : at + 600]))
    path.write_bytes(data)
    report = audit(bed)
    assert set(report.by_cause) == {Cause.DISK}, report.findings
    found = numbers(report)
    assert found["trades equal"] > whole["trades equal"] * 3 // 4
    assert found["datagrams equal when played again"] > whole["trades equal"]


def without_last(datagrams: list[Datagram], kind: type, stream: Stream) -> list[Datagram]:
    """One message less, as if it had never been published."""
    last = [0]

    def find(seq: int, message: AnyMessage) -> list[AnyMessage]:
        if type(message) is kind:
            last[0] = seq
        return [message]

    rewritten(datagrams, stream, find)
    return rewritten(datagrams, stream, lambda seq, message: [] if seq == last[0] else [message])


@pytest.mark.parametrize("lost_ordinal", [1, 3])
@pytest.mark.parametrize("stream", [Stream.TRADE, Stream.TICKER])
def test_behind_a_hole_a_plant_that_left_something_out_is_still_found_out(
    lost_ordinal: int, stream: Stream, course: AuditedCourse, bed: AuditBed
) -> None:
    lacking = without_last(course.datagrams, KIND_OF[stream], stream)
    write_in_segments(bed, lacking, SEGMENTS)
    (bed.log / str(SegmentName(SESSION, lost_ordinal))).unlink()
    report = audit(bed)
    assert "is not in the log" in " ".join(
        one.what for one in report.findings if one.cause is Cause.PLANT and one.where == "exchange"
    )


def test_behind_a_hole_a_book_that_is_proven_again_is_compared_again(
    course: AuditedCourse, bed: AuditBed
) -> None:
    """A change of the very last second that never came to the log."""
    lacking = without_last(course.datagrams, LevelUpdate, Stream.DELTA)
    paths = write_in_segments(bed, lacking, SEGMENTS)
    data = bytearray(paths[0].read_bytes())
    data[-600:-300] = bytes(300)
    paths[0].write_bytes(data)
    report = audit(bed)
    assert Cause.PLANT in report.by_cause, report.findings
    assert Cause.DISK in report.by_cause
