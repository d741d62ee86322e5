"""How a run of the demo is shown: as lines of text, or as the view of `tickerplant top` while the market moves."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import NamedTuple, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from tickerplant.commands.board import Board
from tickerplant.commands.top import draw

_HEAD_ROWS = 5


class Where(NamedTuple):
    """Where this demo can be reached; `command` starts `tickerplant` in the user's shell."""

    websocket_url: str
    stats_url: str
    metrics_url: str
    interface: str
    group: str
    port: int
    command: str

    @property
    def groups(self) -> str:
        """All five."""
        first = self.group.rpartition(".")[2]
        return f"{self.group}-{int(first) + 4}"

    @property
    def tail_command(self) -> str:
        """Prints in another terminal what this demo publishes; short enough for 80 columns."""
        return f"{self.command} tail --group-a {self.group} --port {self.port}"


class Display(Protocol):
    """What a run tells its user."""

    def say(self, line: str) -> None:
        """A line of text."""

    def moving(self, where: Where) -> AbstractContextManager[object]:
        """The market moves while this is entered."""

    def count_down(self, duration_s: float) -> None:
        """All books are live; the market moves for so long from now on."""

    def draw(self, board: Board) -> None:
        """Called twice a second from the subscriber's start to its end."""


class TextDisplay:
    """Lines of text; on a terminal also how long it still takes."""

    def __init__(self) -> None:
        self._end_s: float | None = None
        self._is_terminal = sys.stdout.isatty()

    def say(self, line: str) -> None:
        """At once, also into a pipe."""
        self._clear_progress()
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    @contextmanager
    def moving(self, where: Where) -> Iterator[None]:
        """Say where first."""
        for line in where_lines(where):
            self.say(line)
        try:
            yield
        finally:
            self._clear_progress()
            self._end_s = None

    def count_down(self, duration_s: float) -> None:
        """Say so."""
        self.say(f"all books are live; running for {duration_s:g} s, Ctrl-C ends it earlier")
        self._end_s = time.monotonic() + duration_s

    def draw(self, board: Board) -> None:
        """The countdown."""
        if self._end_s is None or not self._is_terminal:
            return
        left_s = max(0.0, self._end_s - time.monotonic())
        stats = board.stats()
        count = sum(one.messages for one in stats.streams) if stats is not None else 0
        text = f"{left_s:.0f} s left, {count:,} messages, {board.books_text()}"
        columns = shutil.get_terminal_size().columns
        with suppress(OSError):  # SIGHUP tells that the terminal has gone
            sys.stdout.write(f"\r{text[: columns - 1]}\x1b[K")
            sys.stdout.flush()

    def _clear_progress(self) -> None:
        if self._end_s is not None and self._is_terminal:
            sys.stdout.write("\r\x1b[K")


class LiveDisplay(TextDisplay):
    """The view of `tickerplant top` below a few lines that say what runs and what to try."""

    def __init__(self) -> None:
        super().__init__()
        self._console = Console()
        self._show: Callable[[Board], None] | None = None

    @contextmanager
    def moving(self, where: Where) -> Iterator[None]:
        """On the terminal's other screen, so that what was there before comes back."""
        lines = [*where_lines(where), "Ctrl-C    ends it and compares the books"]
        head = Text("\n".join(lines), no_wrap=True, overflow="ellipsis")
        try:
            with Live(console=self._console, screen=True, auto_refresh=False) as live:

                def show(board: Board) -> None:
                    width, height = self._console.size
                    below = Console(width=width, height=max(1, height - _HEAD_ROWS))
                    live.update(Group(head, Text(), draw(board, below)), refresh=True)

                self._show = show
                yield
        finally:
            self._show = None

    def draw(self, board: Board) -> None:
        """One frame."""
        if self._show is not None:
            with suppress(OSError):  # SIGHUP tells that the terminal has gone
                self._show(board)


def where_lines(where: Where) -> list[str]:
    """What runs, where, and what to try next."""
    return [
        f"exchange  {where.websocket_url}, {where.stats_url}",
        f"plant     multicast {where.groups} port {where.port} on {where.interface}, {where.metrics_url}",
        f"try       {where.tail_command}",
    ]
