"""`tickerplant tail` and `tickerplant top` as processes, against a real plant on multicast."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tickerplant.commands.item_text import as_json, as_text
from tickerplant.core.messages import (
    Bbo,
    BookClear,
    BookLevels,
    BookReady,
    BookStale,
    BookVerify,
    FeedState,
    GapCause,
    LevelUpdate,
    MarketInfo,
    MarketState,
    SessionStart,
    StaleReason,
    Stream,
    Ticker,
    Trade,
    UpdateCause,
    UpstreamGap,
)
from tickerplant_subscriber.events import (
    UNKNOWN_SEQ,
    DatagramsRefused,
    Gap,
    Live,
    SessionChanged,
    SessionEnded,
    Stale,
    StreamAlive,
    StreamDead,
)
from tickerplant_subscriber.message_queue import Item

T = "KXTEST-1"
STAMP = (T, 1, 0, 1_800_000_000_123_456_789)
StartPlant = Callable[..., Any]
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(group: str, port: int, tmp_path: Path) -> Iterator[Start]:
    """Starts `tickerplant COMMAND` on the test's group and port; it ends with the test."""
    children: list[subprocess.Popen[str]] = []
    foreign = ("TICKERPLANT", "COLUMNS", "LINES")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(foreign)
    }

    def start(*words: str, **options: Any) -> subprocess.Popen[str]:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        child = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "tickerplant",
                *words,
                *("--group-a", group, "--port", str(port), "--no-recovery"),
            ],
            text=True,
            cwd=tmp_path,
            env=environment,
            **options,
        )
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate(timeout=30)


def wait_for_groups(port: int, count: int) -> None:
    """Returns when `count` sockets of this host are bound to the port. At most 10 s."""
    suffix = f":{port:04X}"
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        rows = Path("/proc/net/udp").read_text().splitlines()[1:]
        if sum(row.split()[1].endswith(suffix) for row in rows) >= count:
            return
        time.sleep(0.01)
    raise AssertionError("nobody listens")


def send_until(child: subprocess.Popen[str], send: Callable[[], None]) -> tuple[str, str]:
    """Calls `send` again and again until the command ends; returns its output. At most 15 s."""
    deadline_s = time.monotonic() + 30
    while child.poll() is None:
        assert time.monotonic() < deadline_s
        send()
        time.sleep(0.05)
    return child.communicate(timeout=30)


class Stepping:
    """Sends one trade and one quote more at each call."""

    def __init__(self, sender: Any) -> None:
        self._sender = sender
        self._session = time.time_ns() + 10**10
        self._seq = 0

    def __call__(self) -> None:
        self._seq += 1
        seq, session = self._seq, self._session
        message = Trade(T, seq, 0, time.time_ns(), f"id-{seq}", 4_200, 1_050, 0)
        self._sender.messages(Stream.TRADE, seq, [message], session)
        quote = Bbo("KXOTHER-1", seq, 0, time.time_ns(), 4_100, 100, 4_300, 100, 1)
        self._sender.messages(Stream.BBO, seq, [quote], session)


# --- tail -----------------------------------------------------------------------------------------


def test_tail_prints_text_and_stops_after_its_count(start: Start, sender: Any) -> None:
    child = start("tail", "--stream", "trade", "--count", "6")
    output, errors = send_until(child, Stepping(sender))
    assert (child.returncode, errors) == (0, "")
    lines = output.splitlines()
    assert len(lines) == 6
    assert lines[0].startswith("*** session ")
    pattern = rf"\d\d:\d\d:\d\d\.\d{{6}}  trade   {T} +0\.4200 x 10\.50, taker bought yes"
    assert re.fullmatch(pattern, lines[-1])


def test_tail_prints_json_of_the_chosen_markets(start: Start, sender: Any) -> None:
    child = start("tail", "KXO*", "--ticker", "KXX*", "--format", "json", "--count", "8")
    output, _ = send_until(child, Stepping(sender))
    objects = [json.loads(line) for line in output.splitlines()]
    messages = [each for each in objects if "message" in each]
    assert objects[0]["event"] == "SessionChanged"
    assert messages
    assert {(each["message"], each["ticker"]) for each in messages} == {("Bbo", "KXOTHER-1")}
    assert messages[0]["bid_e4"] == 4_100
    assert {each["event"] for each in objects if "event" in each} >= {"SessionChanged", "Live"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_tail_prints_at_once_and_ends_on_signals(
    start: Start, sender: Any, number: signal.Signals
) -> None:
    """Each line leaves the pipe without waiting for a full buffer."""
    child = start("tail")
    step = Stepping(sender)
    assert child.stdout is not None
    deadline_s = time.monotonic() + 30
    while not select.select([child.stdout], [], [], 0.05)[0]:
        assert time.monotonic() < deadline_s
        step()
    assert child.stdout.readline().startswith("*** session")
    child.send_signal(number)
    child.communicate(timeout=30)
    assert child.returncode == 0


def test_tail_says_when_nothing_is_heard_and_stops_in_time(start: Start) -> None:
    child = start("tail", "--for", "3200ms")
    output, errors = child.communicate(timeout=30)
    assert (child.returncode, output) == (0, "")
    assert errors.startswith("nothing heard yet")


def test_tail_shows_a_whole_session_of_a_plant(
    start: Start, group: str, port: int, start_plant: StartPlant
) -> None:
    """Started before the plant it loses nothing: every message becomes one line."""
    child = start("tail", "--format", "json", "--for", "2500ms")
    plant = start_plant(group, port, "--seconds", "0.3", "--markets", "3")
    wait_for_groups(port, len(Stream))
    plant.go()
    sent = plant.result()["sent"]
    output, _ = child.communicate(timeout=30)
    objects = [json.loads(line) for line in output.splitlines()]
    counts = {
        str(int(stream)): sum(each.get("stream") == stream.name.lower() for each in objects)
        for stream in Stream
    }
    assert counts == sent
    assert not [each for each in objects if each.get("event") == "Gap"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--count", "0"), "not a positive number"),
        (("--for", "soon"), "not a duration"),
        (("--stream", "trades"), "invalid choice"),
        (("--interface", "192.0.2.77"), "no interface has the address 192.0.2.77"),
        (("--ticker", ""), "at least one pattern"),
    ],
)
def test_tail_refuses_what_cannot_be_right_in_one_line(
    start: Start, words: tuple[str, str], message: str
) -> None:
    child = start("tail", *words)
    output, errors = child.communicate(timeout=30)
    assert child.returncode in {1, 2}
    assert output == ""
    assert message in errors
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (Trade(*STAMP, "a", 4_200, 150, 1, is_block=True), "0.4200 x 1.50, taker bought no, block"),
        (Bbo(*STAMP, 0, 0, 4_300, 100, 2), "-  |  0.4300 x 1.00  stale"),
        (
            Ticker(*STAMP, 4_200, 0, 0, 0, 0, 500, 700),
            "last 0.4200, volume 5.00, open interest 7.00",
        ),
        (Ticker(*STAMP, 0, 0, 0, 0, 0, 0, 0), "last -, volume 0.00, open interest 0.00"),
        (LevelUpdate(*STAMP, 0, 4_100, 50, 150), "bid 0.4100 +0.50 -> 1.50"),
        (
            LevelUpdate(*STAMP, 1, 4_100, -50, 0, UpdateCause.RESYNC),
            "ask 0.4100 -0.50 -> 0.00, resync",
        ),
        (BookStale(*STAMP, 1), "book stale: sequence_gap"),
        (BookStale(*STAMP, 99), "book stale: 99"),
        (BookClear(*STAMP), "book cleared"),
        (BookLevels(*STAMP, 0, 2, ((1, 1),), ()), "image part 1 of 2: 1 bids, 0 asks"),
        (BookReady(*STAMP, 255), "book ready, checksum 000000ff"),
        (BookVerify(*STAMP, 255), "book checksum 000000ff"),
        (SessionStart(*STAMP, 0), "session starts, previous none"),
        (SessionStart(*STAMP, 7), "session starts, previous 7"),
        (
            MarketInfo(*STAMP, "E", "S", 0, 1_800_000_000_000_000_000, "linear_cent"),
            "event E, prices linear_cent, closes 2027-01-15 08:00:00+00:00",
        ),
        (MarketState(*STAMP, 2), "market active"),
        (MarketState(*STAMP, 6, "yes", 10_000), "market settled, result yes, settled at 1.0000"),
        (FeedState(*STAMP, 2), "feed ready"),
        (FeedState(*STAMP, 3, "2 stale books"), "feed degraded 2 stale books"),
        (
            UpstreamGap(*STAMP, 0, 10**9, 1, 3),
            "lost before the plant on ticker: 00:00:00.000000 to 00:00:01.000000, upstream",
        ),
    ],
)
def test_messages_as_text(item: Item, text: str) -> None:
    line = as_text(item)
    assert line.startswith("08:00:00.123456  ")
    assert line.split(maxsplit=3)[2:] == [T, text]
    assert json.loads(as_json(item))["ticker"] == T


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (
            Gap(1, 9, 3, 5, GapCause.NETWORK),
            "*** gap: 3 messages lost on trade, cause network",
        ),
        (
            Gap(1, 9, 3, UNKNOWN_SEQ, GapCause.UNKNOWN),
            "*** gap: an unknown number of messages lost on trade, cause unknown",
        ),
        (SessionChanged(9, 0), "*** session 9 follows none"),
        (SessionEnded(4, 9), "*** session 9 ended on delta"),
        (StreamDead(2, 9), "*** stream bbo is dead: no datagram for 3 s"),
        (StreamAlive(2, 9, contiguous=True), "*** stream bbo is alive again, nothing was missed"),
        (
            StreamAlive(2, 9, contiguous=False),
            "*** stream bbo is alive again, messages were missed",
        ),
        (Stale(T, 2, StaleReason.NETWORK_GAP), f"*** stale: {T} on bbo, network_gap"),
        (Live(T, 4), f"*** live: {T} on delta"),
        (
            DatagramsRefused(1, "ForeignDatagramError", 2, "why"),
            "*** 2 datagrams refused on line B: ForeignDatagramError, last: why",
        ),
    ],
)
def test_events_as_text(item: Item, text: str) -> None:
    assert as_text(item) == text
    assert json.loads(as_json(item))["event"] == type(item).__name__


# --- top ------------------------------------------------------------------------------------------


def test_top_once_prints_one_frame(
    start: Start, group: str, port: int, start_plant: StartPlant
) -> None:
    plant = start_plant(group, port, "--seconds", "4", "--markets", "30")
    child = start("top", "--once", "--for", "2s")
    wait_for_groups(port, len(Stream))
    plant.go()
    output, errors = child.communicate(timeout=20)
    assert (child.returncode, errors) == (0, "")
    lines = output.splitlines()
    assert "feed ready" in lines[0]
    assert lines[1] == "30 markets, 0 stale, books live 30 of 30, 0 gaps"
    delta = next(line.split() for line in lines if line.lstrip().startswith("delta"))
    assert int(delta[1].replace(",", "")) > 1_000
    assert delta[3:] == ["0", "0", "0", "0"]
    markets = [line.split() for line in lines if line.lstrip().startswith("KXTEST-")]
    assert 5 <= len(markets) < 30
    rates = [float(market[4]) for market in markets]
    assert rates == sorted(rates, reverse=True)
    assert all(market[1].startswith("0.") and market[2].startswith("0.") for market in markets)


def test_top_shows_the_loss_of_each_line_and_which_is_first(
    start: Start, group: str, group_b: str, port: int, sender: Any, sender_b: Any
) -> None:
    """Line A brings every second trade, line B all of them, later."""
    child = start("top", "--no-books", "--once", "--for", "2s", "--group-b", group_b)
    wait_for_groups(port, 2 * 4)
    session = time.time_ns() + 10**10
    for seq in range(1, 41):
        message = Trade(T, seq, 0, time.time_ns(), f"id-{seq}", 4_200, 1_050, 0)
        if seq % 2:
            sender.messages(Stream.TRADE, seq, [message], session)
            time.sleep(0.002)
        sender_b.messages(Stream.TRADE, seq, [message], session)
    for line in (sender, sender_b):
        line.heartbeat(Stream.TRADE, 41, session)
    output, errors = child.communicate(timeout=30)
    assert (child.returncode, errors) == (0, "")
    trade = next(line for line in output.splitlines() if line.lstrip().startswith("trade"))
    assert trade.split()[-5:-2] == ["20", "(50.0%)", "0"]
    winner, share = trade.split()[-2:]
    assert winner in "AB"
    assert 50 <= int(share.rstrip("%")) <= 100


def test_top_without_a_terminal_prints_one_frame_of_nothing(start: Start) -> None:
    child = start("top", "--for", "300ms", "--no-books", "KXNONE*")
    output, errors = child.communicate(timeout=30)
    assert (child.returncode, errors) == (0, "")
    assert output.splitlines()[0].endswith("feed not heard yet")
    assert output.splitlines()[1] == "0 markets, 0 stale, 0 gaps"


@pytest.mark.parametrize("way_out", ["duration", "signal"])
def test_top_draws_frames_that_fit_the_terminal(
    start: Start, group: str, port: int, start_plant: StartPlant, way_out: str
) -> None:
    """On a real terminal of 120 x 24: several frames, none taller or wider, and the screen is given back."""
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    plant = start_plant(group, port, "--seconds", "6", "--markets", "300")
    words = ["top", "--every", "100ms", *(["--for", "1s"] if way_out == "duration" else [])]
    child = start(*words, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    wait_for_groups(port, len(Stream))
    plant.go()
    screen = b""
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        if select.select([master], [], [], 0.05)[0]:
            try:
                screen += os.read(master, 65_536)
            except OSError:
                break
        if way_out == "signal" and screen.count(b"tickerplant top") >= 3:
            child.send_signal(signal.SIGINT)
            way_out = "signalled"
        if child.poll() is not None and not select.select([master], [], [], 0)[0]:
            break
    os.close(master)
    assert child.wait(timeout=30) == 0
    frames = screen.split(b"tickerplant top")[1:]
    assert len(frames) >= 3
    text = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", frames[-2]).decode()
    lines = text.replace("\r", "").split("\n")
    assert len(lines) <= 24
    assert max(len(line) for line in lines) <= 120
    assert "KXTEST-" in text
    assert "bid size" in text
    assert b"\x1b[?1049h" in screen
    assert b"\x1b[?1049l" in screen


def test_top_says_what_went_wrong(start: Start, sender: Any) -> None:
    """A gap, a foreign datagram and a stale market are all in the frame."""
    session = time.time_ns() + 10**10
    seqs = iter(range(1, 10_000))

    def send() -> None:
        seq = next(seqs)
        if seq != 3:
            quote = Bbo(T, seq, 0, time.time_ns(), 4_100, 100, 4_300, 100, 1 if seq < 5 else 2)
            sender.messages(Stream.BBO, seq, [quote], session)
        sender.send(Stream.STATUS, b"something else")

    output, _ = send_until(start("top", "--once", "--for", "2s", "--no-books"), send)
    assert re.search(r"1 markets, 1 stale, [12] gaps, \d+ datagrams refused", output)
    assert "datagrams refused on line A: TruncatedDatagramError" in output
    assert re.search(rf"{T}.* stale", output)


def test_tail_and_the_library_need_the_base_install_only(group: str, port: int) -> None:
    """With every module of the daemon extra missing, `tail` runs and `top` says what to install."""
    program = (
        "import sys\n"
        "from tickerplant import cli\n"
        "sys.modules.update(dict.fromkeys(cli.EXTRA_MODULES))\n"
        "import tickerplant_subscriber\n"
        f"words = ['--for', '50ms', '--group-a', '{group}', '--port', '{port}']\n"
        "print(cli.main(['tail', *words]), cli.main(['top', *words]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert done.stdout == "0 2\n"
    assert "needs rich" in done.stderr
    assert "pip install 'kalshi-tickerplant[daemon]'" in done.stderr
