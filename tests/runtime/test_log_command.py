"""`tickerplant log` as its user meets it: lists, messages, verdicts and exit codes."""

import argparse
import itertools
import json
import signal
import subprocess
import sys
import textwrap

import pytest
from tick_log import QUICK, SESSION, Sender, begun, write_log

from tickerplant.commands import log
from tickerplant.core.logformat import SEGMENT_HEADER_BYTES, LogPosition, SegmentName
from tickerplant.core.messages import BookStale, Stream
from tickerplant.errors import EXIT_FAILURE, EXIT_OK, TickLogError
from tickerplant.runtime.logfolder import segment_names, store_position
from tickerplant.runtime.ticklog import open_ticklog
from tickerplant_subscriber.recording_format import Place, RecordedEvent
from tickerplant_subscriber.recording_writer import RecordingWriter, Rotation

pytestmark = pytest.mark.usefixtures("no_configuration")


@pytest.fixture
def run(tmp_path, capsys):
    """Runs `tickerplant log ...` on the folder `log`; exit code, output and errors."""

    def run_log(*arguments: str) -> tuple[int, str, str]:
        parser = argparse.ArgumentParser()
        log.register(parser.add_subparsers())
        parsed = parser.parse_args(["log", *arguments, "--directory", str(tmp_path / "log")])
        code = parsed.run(parsed)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_log


@pytest.fixture
def folder(tmp_path):
    """A log of two sessions: three BTC and two ETH updates with a quote each; then one update without an end."""
    folder = tmp_path / "log"
    sender = Sender()
    with begun(folder) as ticklog:
        for ticker, count in (("KXBTC-1", 3), ("KXETH-1", 2)):
            quote = sender.data(Stream.BBO, ticker=ticker)
            assert ticklog.append([quote, sender.data(count=count, ticker=ticker)])
        assert ticklog.append([sender.heartbeat(Stream.TRADE)])
        for _ in range(4):
            assert ticklog.append(sender.ends())
        ticklog.end_session()
    write_log(folder, SESSION + 1, 1, ends=False)
    return folder


def spoil(folder, name: SegmentName, offset: int) -> None:
    path = folder / str(name)
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def messages_of(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


# --- ls -------------------------------------------------------------------------------------------


def test_ls_shows_sessions_segments_ranges_consumers_and_the_owner(run, folder):
    store_position(folder, "store", LogPosition(SESSION, 1, 400))
    code, text, _errors = run("ls")
    assert code == EXIT_OK
    first, second = text.split(f"session {SESSION + 1}  publisher 1")
    assert first.startswith(f"session {SESSION}  publisher 1")
    row = first.splitlines()[2].split()
    assert row[0] == "1"
    size = (folder / str(SegmentName(SESSION, 1))).stat().st_size
    assert int(row[1].replace(",", "")) == size
    assert row[2].startswith("2026-09-21")
    assert row[6:] == ["-", "1-2", "-", "1-5", "-"]
    assert second.splitlines()[2].split()[-2:] == ["1-1", "-"]
    assert f"store is at session {SESSION} segment 1 offset 400" in text
    assert f"session {SESSION + 1}, log on" in text
    assert "2 segments" in text


def test_ls_in_json_holds_the_same(run, folder):
    store_position(folder, "store", LogPosition(SESSION, 1, 400))
    code, text, _errors = run("ls", "--format", "json")
    assert code == EXIT_OK
    listing = json.loads(text)
    assert listing["consumers"]["store"] == {"session": SESSION, "ordinal": 1, "offset": 400}
    assert listing["owner"]["log"] == "on"
    first, second = listing["segments"]
    assert (first["session"], first["ordinal"]) == (SESSION, 1)
    assert first["first_seqs"] == [1, 1, 1, 1, 1]
    assert first["next_seqs"] == [1, 3, 1, 6, 1]
    assert (first["first_ns"], first["last_ns"]) == (SESSION, SESSION + 6)
    assert second["next_seqs"] == [1, 1, 1, 2, 1]


def test_ls_gives_segments_that_rotated_the_range_up_to_the_next(run, tmp_path):
    sender = Sender()
    with begun(tmp_path / "log") as ticklog:
        while ticklog.rotations < 2:
            assert ticklog.append([sender.data(count=10)])
    segments = json.loads(run("ls", "--format", "json")[1])["segments"]
    for one, following in itertools.pairwise(segments):
        assert one["next_seqs"] == following["first_seqs"]
        assert one["first_seqs"][3] < one["next_seqs"][3]
    assert segments[-1]["next_seqs"] == list(sender.next_seqs)


def test_a_folder_without_log_is_an_error_that_says_what_to_name(run, tmp_path):
    with pytest.raises(TickLogError, match="--directory"):
        run("ls")
    (tmp_path / "log").mkdir()
    for action in ("ls", "cat", "verify"):
        with pytest.raises(TickLogError, match="holds no tick log"):
            run(action)


def test_the_folder_is_the_configured_one_without_directory(folder, tmp_path, capsys):
    (tmp_path / "state").mkdir()
    folder.rename(tmp_path / "state" / "ticklog")
    parser = argparse.ArgumentParser()
    log.register(parser.add_subparsers())
    parsed = parser.parse_args(["log", "verify", "--set", f"state.directory={tmp_path}/state"])
    assert parsed.run(parsed) == EXIT_OK
    assert "2 sessions" in capsys.readouterr().out


# --- cat ------------------------------------------------------------------------------------------


def test_cat_prints_messages_with_their_sequence_in_the_order_of_sending(run, folder):
    code, text, errors = run("cat")
    assert (code, errors) == (EXIT_OK, "")
    lines = text.splitlines()
    assert lines[0] == f"*** session {SESSION}"
    assert [line.split()[0] for line in lines[1:8]] == ["1", "1", "2", "3", "2", "4", "5"]
    assert "KXBTC-1" in lines[1]
    assert "0.4200" in lines[2]
    ends = [line for line in lines if "end of session" in line]
    assert ends[3] == "*** end of session on delta, next sequence 6"
    assert len(ends) == 5
    assert lines[-2] == f"*** session {SESSION + 1}"
    assert len(lines) == 1 + 7 + 5 + 1 + 1


def test_cat_selects_session_stream_and_ticker(run, folder):
    def selected(*arguments: str) -> list[tuple]:
        code, text, _errors = run("cat", "--format", "json", *arguments)
        assert code == EXIT_OK
        return [(one["session"], one["stream"], one["seq"]) for one in messages_of(text)]

    assert selected("--session", "last") == [(SESSION + 1, "delta", 1)]
    assert selected("--session", str(SESSION), "--stream", "bbo") == [
        (SESSION, "bbo", 1),
        (SESSION, "bbo", 2),
        (SESSION, "bbo", 3),
    ], "the last is the end of session"
    assert selected("--ticker", "KXETH*", "--stream", "delta", "--session", str(SESSION))[:2] == [
        (SESSION, "delta", 4),
        (SESSION, "delta", 5),
    ]


def test_cat_in_json_holds_the_fields_of_the_wire(run, folder):
    _code, text, _errors = run("cat", "--session", "last", "--format", "json")
    (message,) = messages_of(text)
    assert message == {
        "session": SESSION + 1,
        "stream": "delta",
        "seq": 1,
        "ts_send_ns": SESSION + 2,
        "message": "LevelUpdate",
        "ticker": "KXBTC",
        "g": 1,
        "ts_event_ns": SESSION + 2,
        "ts_recv_ns": SESSION + 2,
        "side": 0,
        "price_e4": 4_200,
        "delta_e2": 100,
        "size_e2": 500,
        "cause": 0,
    }


def test_cat_of_an_unknown_session_and_a_bad_number_are_refused(run, folder, capsys):
    with pytest.raises(TickLogError, match="no such session"):
        run("cat", "--session", "5")
    with pytest.raises(SystemExit):
        run("cat", "--session", "newest")
    assert "give its number, or last" in capsys.readouterr().err


def test_cat_names_damage_on_standard_error_prints_the_rest_and_fails(run, folder):
    spoil(folder, SegmentName(SESSION, 1), SEGMENT_HEADER_BYTES + 30)
    code, text, errors = run("cat", "--format", "json")
    assert code == EXIT_FAILURE
    assert f"damaged at offset {SEGMENT_HEADER_BYTES}" in errors
    assert len(messages_of(text)) == 7 - 1 + 5 + 1


FOLLOW = """
    import argparse, sys
    from pathlib import Path
    from tickerplant.commands import log
    parser = argparse.ArgumentParser()
    log.register(parser.add_subparsers())
    parsed = parser.parse_args(["log", "cat", "--follow", "--format", "json", "--directory", sys.argv[1]])
    try:
        sys.exit(parsed.run(parsed))
    except KeyboardInterrupt:
        sys.exit(130)
"""


def test_cat_follows_what_is_written_over_rotation_and_into_the_next_session(folder):
    command = [sys.executable, "-P", "-c", textwrap.dedent(FOLLOW), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
        seen = [json.loads(follower.stdout.readline()) for _ in range(7 + 5 + 1)]
        assert seen[-1]["session"] == SESSION + 1
        sender = Sender(SESSION + 2)
        with open_ticklog(folder, QUICK) as ticklog:
            assert ticklog.begin_session(SESSION + 2, 0)
            expected = 0
            while ticklog.rotations < 2:
                assert ticklog.append([sender.data(count=20)])
                for _ in range(20):
                    expected += 1
                    message = json.loads(follower.stdout.readline())
                    assert (message["session"], message["seq"]) == (SESSION + 2, expected)
        follower.send_signal(signal.SIGINT)
        assert follower.wait(10) == 130
    assert len([name for name in segment_names(folder) if name.session == SESSION + 2]) == 3


# --- verify ---------------------------------------------------------------------------------------


def test_verify_of_a_sound_log_shows_each_stream_and_exits_0(run, folder):
    code, text, _errors = run("verify")
    assert code == EXIT_OK
    assert f"session {SESSION}: 1 segments, ended in order" in text
    assert f"session {SESSION + 1}: 1 segments, no end of session" in text
    bbo, delta = (
        next(line.split() for line in text.splitlines() if line.startswith(f"  {name} "))
        for name in ("bbo", "delta")
    )
    assert bbo[:6] == ["bbo", "1-2", "2", "messages", "2", "datagrams"]
    assert delta[:6] == ["delta", "1-5", "5", "messages", "2", "datagrams"]
    assert text.splitlines()[-1].startswith("ok: 2 sessions, 2 segments, 26 records")


def test_verify_in_json_counts_messages_heartbeats_and_times(run, folder):
    code, text, _errors = run("verify", "--format", "json")
    assert code == EXIT_OK
    report = json.loads(text)
    assert (report["fault_count"], report["torn_bytes"], report["records"]) == (0, 0, 26)
    streams = report["sessions"][0]["streams"]
    assert streams["1"]["heartbeats"] == 1
    assert streams["4"]["messages"] == 5
    assert (streams["4"]["first_ns"], streams["4"]["last_ns"]) == (SESSION + 1, SESSION + 6)


def test_verify_names_damage_with_its_offset_and_the_lost_sequences_and_exits_1(run, folder):
    spoil(folder, SegmentName(SESSION, 1), SEGMENT_HEADER_BYTES + 30)
    code, text, _errors = run("verify")
    assert code == EXIT_FAILURE
    assert f"damaged at offset {SEGMENT_HEADER_BYTES}" in text
    assert f"session {SESSION} stream bbo: 1 to 1 missing" in text
    assert "damaged: 2 faults" in text.splitlines()[-1]


def test_verify_finds_a_hole_a_repeat_and_a_foreign_datagram(run, tmp_path):
    sender, foreign = Sender(), Sender(SESSION - 1)
    first, lost, third = sender.data(), sender.data(count=3), sender.data()
    with begun(tmp_path / "log") as ticklog:
        assert ticklog.append([first, third, lost, (4, b"K" * 60), foreign.data()])
    code, text, _errors = run("verify", "--format", "json")
    assert code == EXIT_FAILURE
    report = json.loads(text)
    assert "2 to 4 missing" in report["faults"][0]
    assert "2 again after 5" in report["faults"][1]
    assert "no valid datagram" in report["faults"][2]
    assert f"datagram of session {SESSION - 1}" in report["faults"][3]
    assert report["fault_count"] == 4
    delta = report["sessions"][0]["streams"]["4"]
    assert (delta["missing_messages"], delta["repeated_messages"]) == (3, 4)


def test_verify_tells_a_torn_tail_and_calls_the_log_sound(run, folder):
    path = folder / str(SegmentName(SESSION + 1, 1))
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-10])
    code, text, _errors = run("verify")
    assert code == EXIT_OK
    assert f"{size - 10 - SEGMENT_HEADER_BYTES} B after {path.name} offset" in text


def test_verify_tells_of_a_session_that_was_not_logged_to_its_end(run, folder):
    with open_ticklog(folder, QUICK) as ticklog:
        assert ticklog.begin_session(SESSION + 2, 0, previous=(SESSION + 1, (1, 1, 1, 900, 1)))
        assert ticklog.append([Sender(SESSION + 2).data()])
    code, text, _errors = run("verify")
    assert code == EXIT_OK
    assert f"session {SESSION + 1} before it may have sent more than was logged" in text


def test_verify_of_a_log_whose_oldest_segments_retention_took_is_sound(run, tmp_path):
    sender = Sender()
    with begun(tmp_path / "log") as ticklog:
        while ticklog.rotations < 2:
            assert ticklog.append([sender.data(count=10)])
    (tmp_path / "log" / str(SegmentName(SESSION, 1))).unlink()
    code, text, _errors = run("verify")
    assert code == EXIT_OK
    assert "begins at segment 2, older ones were deleted" in text


def test_verify_ends_also_while_the_log_is_being_written(run, folder):
    sender = Sender(SESSION + 2)
    with open_ticklog(folder, QUICK) as ticklog:
        assert ticklog.begin_session(SESSION + 2, 0)
        for _ in range(50):
            assert ticklog.append([sender.data()])
            assert run("verify")[0] == EXIT_OK


def write_recording(folder, told=()):
    """Two sessions as a recorder writes them when the plant restarts: stream by stream, the old one goes on meanwhile.

    Of the old one 4 to 6 and 9 of stream delta are missing; `told` of that are its gaps (from, to).
    """
    writer = RecordingWriter(folder, Rotation(10**9, 10**18))
    old, new = SESSION, SESSION + 1
    steps = [
        (old, Stream.DELTA, 1, 3),
        (old, Stream.STATUS, 1, 1),
        (new, Stream.STATUS, 1, 2),
        (old, Stream.DELTA, 7, 2),
        (new, Stream.DELTA, 1, 2),
        (old, Stream.DELTA, 10, 1),
        (new, Stream.STATUS, 3, 1),
    ]
    for number, (session, stream, seq, count) in enumerate(steps):
        messages = [BookStale("KXA", 1, 0, 0, 1)] * count
        writer.append(Place(1, 0, session, stream), seq, session + number, messages, session)
    for first, last in told:
        event = RecordedEvent(1, "Gap", old, Stream.DELTA, first, last, "network")
        writer.tell(event)
    writer.close()


def test_verify_of_a_recording_whose_sessions_overlap_is_sound_if_all_that_lacks_was_told(
    run, tmp_path
):
    write_recording(tmp_path / "log", told=[(9, 9), (4, 6)])
    code, text, _ = run("verify")
    assert (code, "ok: 2 sessions, 2 segments, 7 records" in text) == (EXIT_OK, True)
    assert "4 missing, told by the recorder as lost" in text
    code, text, _ = run("verify", "--format", "json")
    old, new = json.loads(text)["sessions"]
    delta = old["streams"][str(int(Stream.DELTA))]
    assert (delta["messages"], delta["missing_messages"], delta["told_messages"]) == (6, 4, 4)
    assert not any(stream["missing_messages"] for stream in new["streams"].values())
    assert run("cat")[0] == EXIT_OK


@pytest.mark.parametrize("told", [(), [(4, 6)], [(9, 9), (5, 6)], [(9, 9), (4, 4), (6, 6)]])
def test_verify_of_a_recording_names_what_is_missing_and_was_not_told(run, tmp_path, told):
    write_recording(tmp_path / "log", told)
    code, text, _ = run("verify")
    assert code == EXIT_FAILURE
    lacks = "9 to 9 missing" if told == [(4, 6)] else "4 to 6 missing"
    assert lacks in text


def test_verify_of_a_recording_finds_damage(run, tmp_path):
    folder = tmp_path / "log"
    write_recording(folder, told=[(9, 9), (4, 6)])
    spoil(folder, SegmentName(SESSION, 1), SEGMENT_HEADER_BYTES + 30)
    code, text, _ = run("verify")
    assert (code, f"damaged at offset {SEGMENT_HEADER_BYTES}" in text) == (EXIT_FAILURE, True)
