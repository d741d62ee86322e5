"""structlog without rich, which it would import, where it is there, for coloured tracebacks that we do not show.

Every process that logs imports structlog from here first: that takes a sixth off its start.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _without(name: str) -> Iterator[None]:
    """Meanwhile a module that is not imported yet counts as not installed."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # how the import system is told so
    try:
        yield
    finally:
        del sys.modules[name]


with _without("rich"):
    import structlog

__all__ = ["structlog"]
