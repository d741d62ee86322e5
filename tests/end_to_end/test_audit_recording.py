"""The audit of recordings: what a lossy network took is named, and a broken arbiter or recorder is found out.

The mutations are kept here: the proof can fail.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from audited_course import SESSION, AuditedCourse, run_course, write_capture, write_segment

from tickerplant.audit.findings import Cause, Finding
from tickerplant.audit.report import AuditReport
from tickerplant.audit.run import audit_session
from tickerplant.cli import main
from tickerplant.core.messages import Stream, Trade
from tickerplant.core.packets import Datagram
from tickerplant.core.wire import Kind, decode_body, decode_header
from tickerplant.limits import REORDER_WAIT_NS
from tickerplant_subscriber import Recorder
from tickerplant_subscriber.delivery import Delivery
from tickerplant_subscriber.recording_files import segment_names
from tickerplant_subscriber.recording_format import Place
from tickerplant_subscriber.recording_writer import RecordingWriter, Rotation
from tickerplant_subscriber.stream_state import Buffered, StreamState

ROTATION = Rotation(64 * 1024, 3_600 * 10**9)
Received = list[tuple[int, bytes]]
"""(line, datagram) in the order of receipt"""


@pytest.fixture(scope="module")
def course() -> AuditedCourse:
    return run_course()


class Bed:
    """The log and the capture of a course, and a recording of it that is to be audited."""

    def __init__(self, folder: Path, course: AuditedCourse) -> None:
        self.log, self.capture = folder / "log", folder / "capture"
        self.recording = folder / "recording"
        self.course = course
        write_segment(self.log, course.datagrams)

    def audit(self) -> AuditReport:
        return audit_session(self.log, SESSION, recordings=[self.recording])

    async def record(self, received: Received) -> Recorder:
        """As `tickerplant record` would, but for the sockets and the clock."""
        now_ns = 0
        recorder = Recorder(self.recording, group_b="239.192.78.1", recovery=[])
        arbiter = recorder._reception.arbiter
        for line, datagram in received:
            now_ns = max(now_ns, sent_ns(datagram))
            while (due_ns := arbiter.next_deadline_ns()) is not None and due_ns <= now_ns:
                arbiter.handle_timer(due_ns)
            arbiter.receive(line, datagram, now_ns)
        arbiter.handle_timer(now_ns + REORDER_WAIT_NS)
        recorder._close()
        return recorder

    def write(self, datagrams: Sequence[Datagram]) -> None:
        """A recording that a broken recorder left: these messages, whatever they are."""
        writer = RecordingWriter(self.recording, ROTATION)
        for stream, datagram in datagrams:
            header = decode_header(datagram)
            if header.kind == Kind.DATA:
                place = Place(header.publisher, header.partition, header.session, stream)
                messages = decode_body(datagram, header)
                writer.append(place, header.seq, header.ts_send_ns, messages, header.ts_send_ns)
        writer.close()


@pytest.fixture
def bed(tmp_path: Path, course: AuditedCourse) -> Bed:
    return Bed(tmp_path, course)


def network(datagrams: Sequence[Datagram], *, lost: float = 0.0, seed: int = 1) -> Received:
    """Two lines, each of which loses for itself; neighbours of a stream change places, within the wait for them."""
    chance = random.Random(seed)
    order = list(datagrams)
    last: dict[int, int] = {}
    firsts: set[int] = set()
    begun: set[int] = set()
    for index, (stream, datagram) in enumerate(datagrams):
        if not is_data(datagram):
            last.pop(stream, None)
            continue
        before = last.get(stream)
        last[stream] = index
        if stream not in begun:
            begun.add(stream)
            firsts.add(index)
        if before is None or before in firsts or chance.random() < 0.5:
            continue
        waits_ns = sent_ns(datagram) - sent_ns(order[before][1])
        if 0 <= waits_ns < REORDER_WAIT_NS // 2:
            order[index], order[before] = order[before], order[index]
            del last[stream]
    begun.clear()
    received: Received = []
    for stream, datagram in order:
        may_be_lost = is_data(datagram) and stream in begun
        if is_data(datagram):
            begun.add(stream)
        received += [
            (line, datagram) for line in (0, 1) if not (may_be_lost and chance.random() < lost)
        ]
    return received


def is_data(datagram: bytes) -> bool:
    return decode_header(datagram).kind == Kind.DATA


def sent_ns(datagram: bytes) -> int:
    return decode_header(datagram).ts_send_ns


def lost_on_both(datagrams: Sequence[Datagram], received: Received) -> set[tuple[int, int]]:
    """(stream, sequence) of all messages that came on no line."""
    came = {datagram for _, datagram in received}
    return {
        (stream, header.seq + index)
        for stream, datagram in datagrams
        if datagram not in came
        for header in [decode_header(datagram)]
        for index in range(header.message_count)
    }


def covered(findings: Sequence[Finding]) -> set[tuple[int, int]]:
    """(stream, sequence) of all messages that findings are about."""
    names = {stream.name.lower(): int(stream) for stream in Stream}
    return {
        (names[finding.stream], seq)
        for finding in findings
        for seq in range(finding.from_seq, finding.to_seq + 1)
    }


def figures(report: AuditReport, bed: Bed) -> dict[str, Any]:
    return report.figures[str(bed.recording)]


# --- what is as it should be ----------------------------------------------------------------------


async def test_two_lossy_lines_make_one_complete_recording(bed: Bed, course: AuditedCourse) -> None:
    received = network(course.datagrams)
    await bed.record([one for one in received if not is_data(one[1]) or one[0] == len(one[1]) % 2])
    report = bed.audit()
    assert report.is_complete, report.findings[:3]
    assert figures(report, bed)["messages equal"] == report.figures["log"]["messages"]


async def test_what_both_lines_lost_is_named_message_by_message(
    bed: Bed, course: AuditedCourse
) -> None:
    """Cause network, the sequences exactly, and the time at which they were sent."""
    received = network(course.datagrams, lost=0.3)
    lost = lost_on_both(course.datagrams, received)
    await bed.record(received)
    report = bed.audit()
    assert len(lost) > 20
    assert report.by_cause.keys() == {Cause.NETWORK}
    assert covered(report.findings) == lost
    sent = {decode_header(datagram).ts_send_ns for _, datagram in course.datagrams}
    assert {finding.from_ns for finding in report.findings} <= sent
    counted = figures(report, bed)
    assert counted["messages equal"] == int(report.figures["log"]["messages"]) - len(lost)


async def test_capture_log_and_recording_in_one_audit(bed: Bed, course: AuditedCourse) -> None:
    write_capture(bed.capture, course.records)
    await bed.record(network(course.datagrams))
    report = audit_session(bed.log, SESSION, capture_folder=bed.capture, recordings=[bed.recording])
    assert report.is_complete, report.findings[:3]
    assert report.figures.keys() == {"log", "exchange", str(bed.recording)}


async def test_what_the_log_lacks_and_the_recording_has_is_counted(
    bed: Bed, course: AuditedCourse
) -> None:
    """The machine lost power after the recorder had received it."""
    await bed.record(network(course.datagrams))
    write_segment(bed.log, course.datagrams[:-200])
    report = bed.audit()
    assert report.is_complete, report.findings[:3]
    assert figures(report, bed)["only in the recording"] > 20


def test_a_recording_of_other_sessions_lacks_all_of_this_one(
    bed: Bed, course: AuditedCourse
) -> None:
    writer = RecordingWriter(bed.recording, ROTATION)
    writer.mark(Place(1, 0, SESSION + 1, 1), 1, 1)
    writer.close()
    report = bed.audit()
    assert len(report.findings) == 5
    assert len(covered(report.findings)) == report.figures["log"]["messages"]


# --- a broken arbiter -----------------------------------------------------------------------------


def passes_holes_in_silence(patch: pytest.MonkeyPatch) -> None:
    def reveal(self: StreamState, next_seq: int, *_rest: object) -> None:
        if next_seq > self.known:
            self.known = self.expected = next_seq

    patch.setattr(StreamState, "reveal", reveal)


def tells_everything_twice(patch: pytest.MonkeyPatch) -> None:
    deliver = Delivery._deliver

    def twice(self: Delivery, *arguments: Any) -> None:
        deliver(self, *arguments)
        if arguments[0].stream == Stream.TRADE:
            deliver(self, *arguments)

    patch.setattr(Delivery, "_deliver", twice)


def hands_out_the_newest_first(patch: pytest.MonkeyPatch) -> None:
    def take(self: StreamState, *_limit: int) -> tuple[int, Buffered] | None:
        if not self.buffered:
            return None
        seq, held = self.buffered.popitem(-1)
        self.expected = max(self.expected, seq + len(held.messages))
        return seq, held

    patch.setattr(StreamState, "take", take)


def forgets_what_waits(patch: pytest.MonkeyPatch) -> None:
    hold = StreamState.hold

    def lossy(self: StreamState, seq: int, messages: list[Any], ts_send_ns: int) -> bool:
        if seq % 7 == 0:
            self.fill(seq, seq + len(messages))
            self.known = max(self.known, seq + len(messages))
            self.expected = self.known if not self.buffered and not self.holes else self.expected
            return True
        return hold(self, seq, messages, ts_send_ns)

    patch.setattr(StreamState, "hold", lossy)


def is_off_by_one(patch: pytest.MonkeyPatch) -> None:
    take = StreamState.take

    def shifted(self: StreamState, *limit: int) -> tuple[int, Buffered] | None:
        taken = take(self, *limit)
        if taken is None or len(taken[1].messages) < 2:
            return taken
        return taken[0] + 1, Buffered(taken[1].messages[:-1], taken[1].ts_send_ns)

    patch.setattr(StreamState, "take", shifted)


@pytest.mark.parametrize(
    "break_it",
    [
        passes_holes_in_silence,
        tells_everything_twice,
        hands_out_the_newest_first,
        forgets_what_waits,
        is_off_by_one,
    ],
    ids=lambda one: one.__name__,
)
async def test_a_broken_arbiter_is_found_out(
    break_it: Callable[[pytest.MonkeyPatch], None],
    bed: Bed,
    course: AuditedCourse,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a network on which the one that is not broken makes a complete recording."""
    received = network(course.datagrams)
    break_it(monkeypatch)
    await bed.record(received)
    report = bed.audit()
    assert not report.is_complete
    assert {finding.where for finding in report.findings} == {str(bed.recording)}


# --- a broken recorder ----------------------------------------------------------------------------


def trade_at(datagrams: Sequence[Datagram], number: int = 5) -> int:
    """Index of a data datagram of the trades."""
    found = [
        index
        for index, (stream, datagram) in enumerate(datagrams)
        if stream == Stream.TRADE and decode_header(datagram).kind == Kind.DATA
    ]
    return found[number]


def drop_one(datagrams: list[Datagram]) -> list[Datagram]:
    index = trade_at(datagrams)
    return datagrams[:index] + datagrams[index + 1 :]


def repeat_one(datagrams: list[Datagram]) -> list[Datagram]:
    index = trade_at(datagrams)
    return [*datagrams[: index + 1], *datagrams[index:]]


def swap_two(datagrams: list[Datagram]) -> list[Datagram]:
    first, second = trade_at(datagrams), trade_at(datagrams, 6)
    datagrams[first], datagrams[second] = datagrams[second], datagrams[first]
    return datagrams


def stop_early(datagrams: list[Datagram]) -> list[Datagram]:
    return datagrams[: trade_at(datagrams, -3)]


def begin_late(datagrams: list[Datagram]) -> list[Datagram]:
    return datagrams[trade_at(datagrams) :]


def change_a_price(datagrams: list[Datagram]) -> list[Datagram]:
    index = trade_at(datagrams)
    stream, datagram = datagrams[index]
    trade = decode_body(datagram, decode_header(datagram))[0]
    assert isinstance(trade, Trade)
    place = datagram.index(trade.trade_id.encode())
    changed = datagram[:place] + b"x" + datagram[place + 1 :]
    datagrams[index] = (stream, changed)
    return datagrams


@pytest.mark.parametrize(
    "mutate",
    [drop_one, repeat_one, swap_two, stop_early, begin_late, change_a_price],
    ids=lambda one: one.__name__,
)
def test_a_broken_recorder_is_found_out(
    mutate: Callable[[list[Datagram]], list[Datagram]], bed: Bed, course: AuditedCourse
) -> None:
    bed.write(mutate(list(course.datagrams)))
    report = bed.audit()
    assert report.by_cause.keys() == {Cause.CONSUMER}
    assert {finding.where for finding in report.findings} == {str(bed.recording)}


def test_a_damaged_recording_names_the_disk(bed: Bed, course: AuditedCourse) -> None:
    bed.write(course.datagrams)
    path = bed.recording / str(segment_names(bed.recording)[0])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    report = bed.audit()
    assert report.by_cause.keys() == {Cause.DISK}
    assert any("damaged at offset" in finding.what for finding in report.findings)
    assert covered([finding for finding in report.findings if finding.from_seq])


def test_a_recorder_that_still_runs_may_be_a_moment_behind(bed: Bed, course: AuditedCourse) -> None:
    bed.write(stop_early(list(course.datagrams)))
    writer = RecordingWriter(bed.recording, ROTATION)
    report = bed.audit()
    writer.close()
    assert report.is_complete, report.findings[:3]
    assert figures(report, bed)["not yet recorded"] > 0
    assert not bed.audit().is_complete


def test_the_command_takes_recordings(
    bed: Bed, course: AuditedCourse, capsys: pytest.CaptureFixture[str]
) -> None:
    bed.write(course.datagrams)
    arguments = ["audit", "--log", str(bed.log), "--recording", str(bed.recording)]
    assert main(arguments) == 0
    assert str(bed.recording) in capsys.readouterr().out
    assert main([*arguments, "--recording", str(bed.log.parent)]) == 1
    assert "holds no recording" in capsys.readouterr().err
