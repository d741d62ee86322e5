"""What the store process asks of a backend: rows of the log in, durable positions out.

A backend is used by one thread at a time, `upkeep` apart. Between `open` and `discard` it is offered the rows of the
log without hole and in order. `commit` makes durable what was taken, all of it or none, and says up to which position
of the log everything is: what is behind it is never offered again, what is ahead of it is offered again after a crash.
So rows must be idempotent, or rows and position become durable together.
"""

from typing import NamedTuple, Protocol

from tickerplant.core.columns import Tables
from tickerplant.core.logformat import LogPosition
from tickerplant.core.rows import Row


class RejectedRow(NamedTuple):
    """A row that cannot be stored, whatever is done; it goes to the dead letters."""

    table: str
    row: Row
    reason: str


class Committed(NamedTuple):
    """Everything of the log before `position` (None: nothing yet) is durable, but for the rows rejected on the way."""

    position: LogPosition | None
    rejected: list[RejectedRow]


class Backend(Protocol):
    """A database, or a folder of files."""

    def open(self) -> LogPosition | None:
        """Connect, and return from where the log is to be read; None: its start.

        Raises `StoreUnavailableError`: it may be called again. Raises `StoreError`: the user must do something first.
        """
        ...

    def take(self, rows: Tables, position: LogPosition, now_ns: int) -> list[RejectedRow]:
        """Take the rows of the log up to `position`. Returns rows that cannot be stored; the others are taken.

        Raises `StoreUnavailableError`: `discard`, and offer everything after the position that it returns.
        """
        ...

    def is_due(self, now_ns: int, *, is_behind: bool = False) -> bool:
        """Whether it is time to `commit`. `is_behind`: more of the log is there, so large batches are better."""
        ...

    def commit(self, *, wait: bool = False) -> Committed:
        """Make durable what was taken. Raises `StoreUnavailableError`, as `take`.

        A backend that waits for acknowledgements may tell of what was taken now with a later call, for which it is
        due; with `wait` it is told now.
        """
        ...

    def discard(self) -> LogPosition | None:
        """Forget what is not durable; returns from where the log is to be read again. Raises as `open`."""
        ...

    def upkeep(self) -> bool:
        """One bounded piece of work that can wait, such as merging files; whether there may be more.

        Called in a thread of its own, beside the other methods, only between `open` and `close`. Raises `StoreError`:
        it is told, and `upkeep` is called again later.
        """
        ...

    def close(self) -> None:
        """Let go of everything; harmless the second time."""
        ...
