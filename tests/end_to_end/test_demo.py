"""`tickerplant demo` as its user meets it: without a terminal, in one, interrupted, killed, with something broken."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import psutil
import pytest
from processes import COMMAND, clean_environment, wait_for

from tickerplant.cli import main
from tickerplant.demo.summary import STREAMS
from tickerplant.limits import DEMO_DRAIN_TIMEOUT_S

START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 60.0
PROCESSES = 5
"""The demo, the exchange, the plant, its recovery and its store."""
_NUMBER = r"([\d,]+)"


class DemoRun:
    """A demo whose temporary folder is `folder`; with a terminal if `is_terminal`, else its output goes into a pipe."""

    def __init__(self, folder: Path, *options: str, is_terminal: bool = False) -> None:
        self.folder = folder
        self.output = ""
        self.errors_path = folder.parent / f"{folder.name}.err"
        folder.mkdir()
        environment = clean_environment(folder.parent) | {
            "TMPDIR": str(folder),
            "TERM": "xterm",
            "COLUMNS": "120",
            "LINES": "30",
            # What configures the user's own plant must not reach the demo's.
            "TICKERPLANT__PUBLISH__PORT": "1",
            "KALSHI_KEY_PEM": "none of the demo's",
        }
        command = [str(COMMAND), "demo", *options]
        self._output_fd, theirs = pty.openpty() if is_terminal else os.pipe()
        if is_terminal:
            take_terminal = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)"
            command = [
                *(
                    sys.executable,
                    "-P",
                    "-c",
                    f"{take_terminal}; os.execv(sys.argv[1], sys.argv[1:])",
                ),
                *command,
            ]
        with self.errors_path.open("wb") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=theirs if is_terminal else subprocess.DEVNULL,
                stdout=theirs,
                stderr=errors,
                env=environment,
                start_new_session=True,
            )
        os.close(theirs)

    @property
    def errors(self) -> str:
        """What it wrote to standard error."""
        return self.errors_path.read_text()

    def _read(self, timeout_s: float) -> bool:
        """False at the end of the output."""
        if not select.select([self._output_fd], [], [], timeout_s)[0]:
            return True
        try:
            chunk = os.read(self._output_fd, 65_536)
        except OSError:
            # A terminal whose last user has gone.
            return False
        self.output += chunk.decode(errors="replace")
        return bool(chunk)

    def wait_output(self, pattern: str) -> re.Match[str]:
        """The first match of `pattern`."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            found = re.search(pattern, self.output)
            if found is not None:
                return found
            going_on = self._read(0.05)
            assert going_on, f"ended without {pattern!r}:\n{self.output}\n{self.errors}"
            assert time.monotonic() < deadline_s, f"no {pattern!r} in:\n{self.output}"

    def press(self, key: bytes) -> None:
        """On the keyboard of its terminal."""
        os.write(self._output_fd, key)

    def hang_up(self) -> None:
        """Close its terminal."""
        os.close(self._output_fd)
        self._output_fd = -1

    def processes(self) -> list[psutil.Process]:
        """Every living process of this demo, itself included."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() != psutil.STATUS_ZOMBIE and (
                    process.environ().get("TMPDIR") == str(self.folder)
                ):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def child(self, command: str) -> psutil.Process:
        """The process that runs `tickerplant COMMAND`."""
        return next(one for one in self.processes() if command in one.cmdline()[4:6])

    def exit_code(self) -> int:
        """Waits for the end, of the output too."""
        deadline_s = time.monotonic() + END_TIMEOUT_S
        while self._read(0.05):
            assert time.monotonic() < deadline_s, f"does not end:\n{self.output}\n{self.errors}"
        return self.process.wait(END_TIMEOUT_S)

    def assert_nothing_left(self) -> None:
        """No process, and nothing in the temporary folder."""
        assert self.processes() == []
        assert list(self.folder.iterdir()) == []

    def close(self) -> None:
        """End whatever a failed test has left."""
        for process in self.processes():
            process.kill()
        self.process.wait(END_TIMEOUT_S)
        if self._output_fd >= 0:
            os.close(self._output_fd)


@pytest.fixture
def start_demo(tmp_path: Path) -> Iterator[Callable[..., DemoRun]]:
    """Starts demos that end with the test."""
    runs: list[DemoRun] = []

    def start(*options: str, is_terminal: bool = False) -> DemoRun:
        folder = tmp_path / f"demo{len(runs)}"
        runs.append(DemoRun(folder, *options, is_terminal=is_terminal))
        return runs[-1]

    yield start
    for run in runs:
        run.close()


def numbers(output: str, pattern: str) -> tuple[int, ...]:
    """The numbers of the one line that is `pattern`, in which N stands for a number."""
    lines = re.findall(rf"^{pattern.replace('N', _NUMBER)}\r?$", output, re.MULTILINE)
    assert len(lines) == 1, f"{len(lines)} lines {pattern!r} in:\n{output}"
    found = lines[0] if isinstance(lines[0], tuple) else lines
    return tuple(int(text.replace(",", "")) for text in found)


def assert_all_equal(output: str, books_least: int) -> None:
    """The summary is there, and says that nothing was lost and every book is right."""
    sent, received = numbers(output, "frames: exchange sent N, plant received N")
    assert sent == received > books_least
    for stream in STREAMS:
        published, delivered = numbers(
            output, f"{stream}: plant published N, subscriber received N"
        )
        assert published == delivered > 0
    assert numbers(output, "gaps: N") == (0,)
    assert numbers(output, "stale books: N") == (0,)
    stored = numbers(output, "rows stored: N trades, N bbo, N orderbook_deltas, N tickers")
    assert all(stored)
    rebuilt, equal = numbers(output, "books rebuilt from rows: N, equal: N")
    assert rebuilt == equal >= min(40, books_least)
    assert re.search(r"^ticker +trades +contracts +low +high\r?$", output, re.MULTILINE)
    for what in ("books", "quotes"):
        checked, equal = numbers(output, f"{what} checked: N, equal: N")
        assert checked == equal >= books_least


# --- the command ----------------------------------------------------------------------------------


def test_without_terminal_it_prints_a_summary_that_holds(
    start_demo: Callable[..., DemoRun],
) -> None:
    """Three seconds of flow; every number of the chain agrees with the one before it."""
    demo = start_demo("--for", "3s")
    demo.wait_output("all books are live; running for 3 s")
    live_at_s = time.monotonic()
    assert len(demo.processes()) == PROCESSES
    assert demo.exit_code() == 0, demo.errors
    seconds = time.monotonic() - live_at_s
    assert 3 <= seconds < 3 + DEMO_DRAIN_TIMEOUT_S, (
        "it ends when all has arrived, not by its deadline"
    )
    assert demo.errors == ""
    assert_all_equal(demo.output, 300)
    (deltas, _) = numbers(demo.output, "delta: plant published N, subscriber received N")
    assert deltas > 3 * 300, "the market did not move"
    demo.assert_nothing_left()


def test_in_a_terminal_it_shows_the_market_until_ctrl_c(
    start_demo: Callable[..., DemoRun], tmp_path: Path
) -> None:
    """The view changes, the command line it proposes works, and Ctrl-C leads to the summary and leaves nothing."""
    demo = start_demo("--markets", "60", "--seed", "7", is_terminal=True)
    demo.wait_output(r"KXSIM[A-Z]+-\d\d[A-Z]{3}\d\d-T\d+ .* 0\.\d\d")
    demo.wait_output("feed .*ready")
    proposed = demo.wait_output(r"try +(\S+) (tail --group-a \S+ --port \d+)")
    tail = subprocess.run(
        [proposed[1], *proposed[2].split(), "--count", "3", "--for", "30s"],
        env=clean_environment(tmp_path),
        capture_output=True,
        timeout=60,
        check=True,
        text=True,
    )
    assert len(tail.stdout.splitlines()) == 3
    frames_seen = demo.output.count("tickerplant top")
    demo.wait_output(rf"(?s)(?:tickerplant top.*){{{frames_seen + 2}}}")
    rows = re.findall(r"^ delta +([\d,]+) +([\d,]+)", demo.output, re.MULTILINE)
    counts = [int(total.replace(",", "")) for _rate, total in rows]
    assert counts == sorted(counts)
    assert counts[-1] > counts[0], "the view stands still"
    demo.press(b"\x03")
    assert demo.exit_code() == 0, demo.errors
    assert demo.errors == ""
    assert_all_equal(demo.output, 60)
    demo.assert_nothing_left()


def test_a_gap_is_named_and_fails(start_demo: Callable[..., DemoRun]) -> None:
    """The exchange skips a number on its trades: that is a gap, which no book shows, and the demo says so."""
    demo = start_demo("--for", "2s", "--markets", "60")
    stats_url = demo.wait_output(r"(http://\S+/sim/)stats")[1]
    demo.wait_output("all books are live")
    fault = json.dumps({"kind": "skip_seq", "channel": "trade"}).encode()
    with urlopen(Request(f"{stats_url}fault", data=fault), timeout=10) as reply:
        assert json.loads(reply.read()) == {"connections": 1}
    assert demo.exit_code() == 1, demo.errors
    assert numbers(demo.output, "gaps: N") == (1,), demo.errors
    assert re.fullmatch(
        r"tickerplant: error: the check failed: 1 gap: gap before the plant on trade: \w+\n",
        demo.errors,
    )
    demo.assert_nothing_left()


def test_a_plant_that_dies_ends_the_demo(start_demo: Callable[..., DemoRun]) -> None:
    """At once, with one line, and without leaving the exchange behind."""
    demo = start_demo("--for", "60s", "--markets", "20")
    demo.wait_output("all books are live")
    demo.child("run").kill()
    assert demo.exit_code() == 1
    assert demo.errors.startswith("tickerplant: error: the plant was killed by signal 9: ")
    assert demo.errors.count("\n") == 1
    demo.assert_nothing_left()


def test_sigterm_ends_everything_without_summary(start_demo: Callable[..., DemoRun]) -> None:
    """In order, with the exit code that shells know."""
    demo = start_demo("--for", "60s", "--markets", "20")
    demo.wait_output("all books are live")
    demo.process.terminate()
    assert demo.exit_code() == 128 + signal.SIGTERM
    assert "books checked" not in demo.output
    assert demo.errors == ""
    demo.assert_nothing_left()


def test_a_closed_terminal_ends_everything(start_demo: Callable[..., DemoRun]) -> None:
    """As when its window is closed; there is nobody left to tell."""
    demo = start_demo("--markets", "20", is_terminal=True)
    demo.wait_output("feed .*ready")
    demo.hang_up()
    assert demo.process.wait(END_TIMEOUT_S) == 128 + signal.SIGHUP
    assert demo.errors == ""
    demo.assert_nothing_left()


def test_ctrl_c_while_it_starts(start_demo: Callable[..., DemoRun]) -> None:
    """There is nothing to check yet."""
    demo = start_demo("--for", "60s", "--markets", "20")
    demo.wait_output("starting")
    wait_for(lambda: len(demo.processes()) > 1, "a first process")
    demo.process.send_signal(signal.SIGINT)
    assert demo.exit_code() == 128 + signal.SIGINT
    assert demo.errors == ""
    demo.assert_nothing_left()


def test_children_end_with_a_killed_demo(start_demo: Callable[..., DemoRun]) -> None:
    """SIGKILL leaves no time to end them: the kernel tells them."""
    demo = start_demo("--for", "60s", "--markets", "20")
    demo.wait_output("all books are live")
    assert len(demo.processes()) == PROCESSES
    demo.process.kill()
    wait_for(lambda: demo.processes() == [], "the end of all processes")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--for", "0s"], "0s"),
        (["--for", "soon"], "soon"),
        (["--markets", "0"], "--markets"),
        (["--markets", "100001"], "markets is 100001"),
        (["--rate", "-1"], "--rate"),
        (["--rate", "1000001"], "rate is 1000001"),
        (["--seed", "x"], "--seed"),
        (["KXSIM"], "KXSIM"),
    ],
)
def test_wrong_options_are_usage_errors(
    options: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that names the option or its value, before anything is started."""
    assert main(["demo", *options]) == 2
    captured = capsys.readouterr()
    assert named in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    """With an example."""
    assert main(["demo", "--help"]) == 0
    text = capsys.readouterr().out
    for word in ("--for", "--markets", "--rate", "--seed", "example", "tickerplant demo --for 10s"):
        assert word in text
