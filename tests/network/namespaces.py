"""Two network namespaces, each with nothing but a loopback interface: a host of the plant and one of its subscribers.

Nothing passes between them but what `forwarder.py` carries. Needs root, as every test that makes its own network does.
"""

import itertools
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_numbers = itertools.count()


class Namespace:
    """One network namespace, removed at the end; `command` runs a program in it."""

    def __init__(self, role: str) -> None:
        self.name = f"tickerplant-{os.getpid()}-{next(_numbers)}-{role}"

    @property
    def path(self) -> Path:
        """What `setns` takes."""
        return Path("/run/netns") / self.name

    def command(self, words: Sequence[str | Path]) -> list[str]:
        """`words` as a command that runs inside."""
        return ["ip", "netns", "exec", self.name, *map(str, words)]

    def __enter__(self) -> Self:
        _ip("netns", "add", self.name)
        try:
            _ip("-n", self.name, "link", "set", "lo", "up")
        except BaseException:
            _ip("netns", "del", self.name)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _ip("netns", "del", self.name)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)
