"""A progress bar on standard error."""

import sys
from collections.abc import Callable


def progress_bar() -> Callable[[int, int], None] | None:
    """`tell(done, total)`, to be called now and then; None if nobody would see it."""
    if not sys.stderr.isatty():
        return None
    shown = -1

    def tell(done: int, total: int) -> None:
        nonlocal shown
        percent = 100 * done // max(1, total)
        if percent != shown:
            shown = percent
            bar = "#" * (percent // 4)
            print(f"\r[{bar:<25}] {percent:>3} %", end="", file=sys.stderr, flush=True)
            if percent == 100:
                print(file=sys.stderr)

    return tell
