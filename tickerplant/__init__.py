"""Ticker plant for the Kalshi prediction market: core (pure) and runtime (I/O)."""

from importlib.metadata import version

__version__ = version("kalshi-tickerplant")
