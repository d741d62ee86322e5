"""Ticker plant for the Kalshi prediction market: core (pure) and runtime (I/O)."""

from typing import TYPE_CHECKING

__version__: str

if not TYPE_CHECKING:

    def __getattr__(name: str) -> str:
        """`__version__`, read from the installed distribution only when asked for: that takes 60 ms."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import version  # noqa: PLC0415  # see above

        return version("kalshi-tickerplant")
