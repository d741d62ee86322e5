"""What an audit compares the log with, message by message: a recording today, whatever else keeps messages tomorrow."""

from collections.abc import Sequence
from typing import Protocol

from tickerplant.core.messages import AnyMessage

Figures = dict[str, int | str | bool]
"""What was counted, by name."""


class Source(Protocol):
    """One keeper of messages. What it lacks, or has otherwise, it adds to the findings of the audit."""

    where: str
    """What findings call it; also the name of its figures."""

    def take(
        self, stream: int, first_seq: int, sent_ns: int, messages: Sequence[AnyMessage | None]
    ) -> None:
        """Consecutive messages of the log, each stream in order and each message once."""

    def finish(self) -> None:
        """The log is at its end."""

    def figures(self) -> Figures:
        """After `finish`."""
