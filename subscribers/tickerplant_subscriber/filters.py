"""Which tickers a subscriber wants, by shell patterns (pure)."""

import re
from collections.abc import Iterable
from fnmatch import translate

from tickerplant.errors import ConfigurationError
from tickerplant.limits import TICKER_MATCHES_MAX

EVERY_TICKER = ("*",)


class TickerFilter(dict[str, bool]):
    """`wanted[ticker]`: whether a ticker matches one of the patterns, case-sensitively.

    Patterns are compiled once and each ticker is matched once; beyond `TICKER_MATCHES_MAX` tickers all are forgotten
    and matched anew. The empty ticker (messages about the whole feed) always matches.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        """Raises `ConfigurationError` for a single string, an empty pattern or no pattern at all."""
        super().__init__()
        if isinstance(patterns, str):
            raise ConfigurationError(
                f"tickers = {patterns!r} is one string; give a list of patterns: [{patterns!r}]"
            )
        self.patterns = tuple(patterns)
        if not self.patterns or not all(self.patterns):
            raise ConfigurationError('tickers needs at least one pattern, e.g. ["KXBTC*"]')
        self._match = re.compile("|".join(translate(pattern) for pattern in self.patterns)).match

    def plain_tickers(self) -> tuple[str, ...]:
        """The patterns, if each of them matches exactly one ticker; else none."""
        if any(character in pattern for pattern in self.patterns for character in "*?["):
            return ()
        return self.patterns

    def __missing__(self, ticker: str) -> bool:
        """Matches a ticker not seen before."""
        wanted = not ticker or self._match(ticker) is not None
        if len(self) >= TICKER_MATCHES_MAX:
            self.clear()
        self[ticker] = wanted
        return wanted
