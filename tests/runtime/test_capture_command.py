"""`tickerplant capture` and `tickerplant replay` on small captures and logs, in this process."""

import json
import os
import sys
from pathlib import Path

import pytest
from raw_capture import options_of, segment_paths
from recorded_feed import SECOND, T0, RecordedCourse, run_course
from tick_log import LARGE, begun

from tickerplant.cli import main
from tickerplant.core.messages import LevelUpdate
from tickerplant.core.packets import Datagram
from tickerplant.core.wire import Kind, decode_body, decode_header
from tickerplant.errors import EXIT_FAILURE, EXIT_OK, EXIT_USAGE
from tickerplant.replay.compare import compare
from tickerplant.replay.sources import capture_datagrams
from tickerplant.runtime.capturewriter import open_capture
from tickerplant_kalshi.inputs import Frames, decode_inputs
from tickerplant_subscriber import Strategy, read_log

pytestmark = pytest.mark.usefixtures("no_configuration")

STRATEGY = """
from tickerplant_subscriber import Strategy

class Counter(Strategy):
    def on_start(self):
        self.quotes = []
    def on_bbo(self, bbo):
        self.quotes.append(bbo.ticker)
    def on_stop(self):
        print("quotes", len(self.quotes), *sorted(set(self.quotes)))

class Broken(Counter):
    def on_bbo(self, bbo):
        raise ValueError("mine")

class Demanding(Strategy):
    def __init__(self, size):
        pass

no_class = 5
"""


@pytest.fixture(scope="module")
def course() -> RecordedCourse:
    """What a plant on one connection took in and sent; of some seeds the one at which most happened."""
    courses = [run_course(seed, 300, calm=True) for seed in range(12)]
    alone = [one for one in courses if one.begin.connection_count == 1]
    return max(alone, key=lambda one: len(one.datagrams))


def write_log(folder: Path, datagrams: list[Datagram], session: int = T0) -> None:
    """A tick log of them."""
    with begun(folder, session, LARGE) as ticklog:
        for datagram in datagrams:
            assert ticklog.append([datagram])
        ticklog.end_session()


@pytest.fixture
def kept(course: RecordedCourse, tmp_path: Path) -> Path:
    """The state folder of a plant that kept both, as it is found without configuration."""
    state = tmp_path / ".local/state/tickerplant"
    writer = open_capture(state / "capture", T0, options_of(segment_max_bytes=16_384))
    for record in course.records:
        writer.write(record)
    assert writer.is_on
    assert writer.close()
    write_log(state / "ticklog", course.datagrams)
    return state


def output_of(capsys: pytest.CaptureFixture[str], *words: str, code: int = EXIT_OK) -> str:
    """What a command prints."""
    assert main(words) == code, capsys.readouterr().err
    return capsys.readouterr().out


# --- capture ------------------------------------------------------------------------------------------


def test_ls_lists_sessions(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = output_of(capsys, "capture", "ls")
    assert str(T0) in text
    listing = json.loads(output_of(capsys, "capture", "ls", "--format", "json"))
    (row,) = listing["sessions"]
    assert row["session"] == T0
    assert row["segments"] == len(segment_paths(kept / "capture")) > 1
    segment_paths(kept / "capture")[0].unlink()
    assert "its beginning was deleted" in output_of(capsys, "capture", "ls")


def test_cat_prints_every_input_and_frame(
    kept: Path, course: RecordedCourse, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = [one for record in course.records for one in decode_inputs(record)]
    frames = [frame for one in inputs if isinstance(one, Frames) for frame in one.frames]
    others = [one for one in inputs if not isinstance(one, Frames)]
    lines = output_of(capsys, "capture", "cat").splitlines()
    assert len(lines) == len(frames) + len(others)
    rows = [
        json.loads(line)
        for line in output_of(capsys, "capture", "cat", "--format", "json").splitlines()
    ]
    assert len(rows) == len(lines)
    assert [row["frame"] for row in rows if row["input"] == "Frames"] == [
        frame.decode(errors="backslashreplace") for frame in frames
    ]
    (begin,) = [row for row in rows if row["input"] == "Begin"]
    assert begin["session"] == T0
    span = ("--from", str(T0 + 1), "--to", str(T0 + SECOND // 10))
    some = output_of(capsys, "capture", "cat", "--format", "json", *span).splitlines()
    assert 0 < len(some) < len(rows)
    assert all(T0 < json.loads(line)["now_ns"] <= T0 + SECOND // 10 for line in some)
    assert kept


def test_verify_tells_sound_from_damaged(
    kept: Path, course: RecordedCourse, capsys: pytest.CaptureFixture[str]
) -> None:
    report = json.loads(output_of(capsys, "capture", "verify", "--format", "json"))
    (session,) = report["sessions"]
    assert report["sound"]
    assert session["records"] == len(course.records)
    assert session["faults"] == []
    path = segment_paths(kept / "capture")[1]
    data = bytearray(path.read_bytes())
    data[300] ^= 1
    path.write_bytes(data)
    text = output_of(capsys, "capture", "verify", "--session", "last", code=EXIT_FAILURE)
    assert "FAULT" in text
    assert path.name in text
    assert main(["capture", "cat"]) == EXIT_FAILURE
    assert path.name in capsys.readouterr().err


def test_verify_against_the_log_proves_both(
    kept: Path, course: RecordedCourse, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("capture", "verify", "--against-log", "--format", "json")
    (session,) = json.loads(output_of(capsys, *words))["sessions"]
    count = len(course.datagrams)
    assert session["comparison"] == {"equal": count, "unlogged": 0, "different": 0}
    assert f"{count} datagrams as logged" in output_of(capsys, "capture", "verify", "--against-log")
    # The same plant, but one level of one book was another: the proof can fail.
    other = kept / "other"
    write_log(other, [*course.datagrams[:50], *_with_one_other(course.datagrams[50:])])
    there = ("--set", f"ticklog.directory={other}")
    text = output_of(capsys, "capture", "verify", "--against-log", *there, code=EXIT_FAILURE)
    assert "the bodies differ" in text


def _with_one_other(datagrams: list[Datagram]) -> list[Datagram]:
    """The last byte of the first data datagram of stream delta is another."""
    for index, (stream, datagram) in enumerate(datagrams):
        header = decode_header(datagram)
        if header.kind == Kind.DATA and any(
            isinstance(one, LevelUpdate) for one in decode_body(datagram, header)
        ):
            changed = bytearray(datagram)
            changed[-1] ^= 1
            return [*datagrams[:index], (stream, bytes(changed)), *datagrams[index + 1 :]]
    raise AssertionError("there is none")


def test_compare_names_what_only_one_of_them_has(course: RecordedCourse, kept: Path) -> None:
    played = list(capture_datagrams(kept / "capture"))
    everything = list(read_log(kept / "ticklog"))
    assert compare(played, everything).is_proven
    without = compare(played, everything[:7] + everything[9:])
    assert (without.equal, without.unlogged, without.fault_count) == (len(played) - 2, 2, 0)
    missing = compare(played[:7] + played[9:], everything)
    assert missing.fault_count >= 2
    assert "the capture does not give it" in missing.faults[0]
    ended = compare(played[:-20], everything)
    assert ended.fault_count == 20
    other = [(now_ns, d[:8] + (T0 + 5).to_bytes(8, "little") + d[16:]) for now_ns, d in everything]
    assert compare(played, other).equal == 0
    assert not compare(played, []).is_proven
    assert compare([], everything).fault_count == 0
    assert course.datagrams


def test_export_writes_what_replay_reads(
    kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for shape in ("raw", "bare", "channel"):
        path = tmp_path / f"{shape}.jsonl"
        assert main(["capture", "export", "--shape", shape, "--output", str(path)]) == EXIT_OK
        assert "frames" in capsys.readouterr().err
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(lines) > 50
        text = output_of(capsys, "replay", "--jsonl", str(path), "--speed", "0")
        assert "KXA-1-A" in text
        assert main(["capture", "export", "--output", str(path)]) == EXIT_FAILURE
        assert "File exists" in capsys.readouterr().err
    assert output_of(capsys, "capture", "export").count("\n") == len(lines)
    assert kept


def test_nothing_to_read_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words in (("capture", "ls"), ("capture", "verify"), ("replay", "--capture"), ("replay",)):
        assert main(words) == EXIT_FAILURE
        error = capsys.readouterr().err
        assert error.startswith("tickerplant: error: ")
        assert error.count("\n") == 1
        assert "--directory" in error or "folder" in error
    (tmp_path / "empty").mkdir()
    assert main(["capture", "ls", "--directory", str(tmp_path / "empty")]) == EXIT_FAILURE


# --- replay -------------------------------------------------------------------------------------------


@pytest.fixture
def strategies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder."""
    name = f"strategies_{os.getpid()}_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(STRATEGY)
    running = (
        f"from {name} import Counter\nfrom tickerplant_subscriber import run\nrun(Counter())\n"
    )
    (tmp_path / f"{name}_running.py").write_text(running)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


@pytest.mark.parametrize("source", [(), ("--log",), ("--capture",)])
def test_a_strategy_is_played_from_log_or_capture_alike(
    kept: Path,
    strategies: str,
    source: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("replay", f"{strategies}:Counter", *source, "--speed", "0")
    whole = output_of(capsys, *words)
    assert whole.split()[0] == "quotes"
    assert int(whole.split()[1]) > 20
    assert whole == output_of(capsys, "replay", f"{strategies}:Counter", "--speed", "0")
    some = output_of(capsys, *words, "--ticker", "KXA*", "--session", str(T0))
    assert some.split()[2:] == ["KXA-1-A", "KXA-1-B"]
    late = output_of(capsys, *words, "--session", "last", "--from", str(T0 + SECOND))
    early = output_of(capsys, *words, "--to", str(T0 + SECOND))
    counts = [int(text.split()[1]) for text in (whole, early, late)]
    assert 0 < counts[1] < counts[0]
    assert counts[2] < counts[0]
    assert kept


def test_without_a_strategy_messages_are_printed_as_tail_does(
    kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = output_of(capsys, "replay", "--speed", "0")
    assert f"*** session {T0} follows none" in text
    rows = [
        json.loads(line)
        for line in output_of(
            capsys, "replay", "--capture", "--speed", "0", "--format", "json"
        ).splitlines()
    ]
    assert {"Bbo", "LevelUpdate", "MarketInfo", "FeedState"} <= {r.get("message") for r in rows}
    assert len(rows) == len(text.splitlines())
    assert kept


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("no_such_module:A",), "no module no_such_module"),
        (("{}",), "MODULE:CLASS"),
        (("{}:Nothing",), "no strategy Nothing"),
        (("{}:no_class",), "no strategy no_class"),
        (("{}:Demanding",), "without arguments"),
        (("{}_running:Counter",), "put that behind if __name__ =="),
        (("--speed", "fast"), "is no speed"),
        (("--speed", "-1"), "is no speed"),
        (("--from", "yesterday"), "is no time"),
        (("--session", "x"), "is not a session"),
        (("--jsonl", "x", "--session", "4"), "not to --jsonl"),
        (("--jsonl", "nowhere"), "cannot read"),
        (("--publish",), "--group-a and --port"),
        (("--publish", "--group-a", "239.192.77.3", "--port", "26400"), "live plant"),
        (("--publish", "--group-a", "10.0.0.1", "--port", "26500"), "multicast"),
        (("--publish", "--group-a", "239.192.79.1", "--port", "26500", "--ticker", "A"), "leave"),
        (("--group-a", "239.192.79.1"), "belong to --publish"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    kept: Path,
    strategies: str,
    words: tuple[str, ...],
    problem: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["replay", *(word.format(strategies) for word in words)]) == EXIT_USAGE
    error = capsys.readouterr().err
    assert problem in error
    assert error.count("\n") == 1
    assert kept


def test_an_exception_of_the_strategy_passes_through_or_is_counted(
    kept: Path, strategies: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="mine"):
        main(["replay", f"{strategies}:Broken", "--speed", "0"])
    words = ["replay", f"{strategies}:Broken", "--speed", "0", "--on-error", "continue"]
    assert main(words) == EXIT_OK
    assert "exceptions" in capsys.readouterr().err
    assert kept


def test_times_are_in_utc_unless_they_say_otherwise() -> None:
    from tickerplant.commands.time_options import parse_time_ns, time_text

    assert parse_time_ns("1970-01-01T00:00:01.5") == 1_500_000_000
    assert parse_time_ns("1970-01-01T01:00:01+01:00") == 1_000_000_000
    assert parse_time_ns("123") == 123
    assert time_text(1_500_000_000) == "1970-01-01 00:00:01.500000"


def test_the_strategy_class_is_the_one_for_run() -> None:
    from tickerplant.commands.replay_printer import Printer

    assert isinstance(Printer(is_json=False), Strategy)
