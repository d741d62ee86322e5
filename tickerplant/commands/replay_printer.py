"""A strategy that prints what it is told, as `tickerplant tail` does."""

import sys
from typing import Any

from tickerplant.commands.item_text import as_json, as_text
from tickerplant.core.messages import (
    Bbo,
    LevelUpdate,
    MarketInfo,
    MarketState,
    Ticker,
    Trade,
    UpstreamGap,
)
from tickerplant_subscriber.book_view import BookView
from tickerplant_subscriber.events import Gap, SessionChanged, SessionEnded
from tickerplant_subscriber.strategy import Strategy


class Printer(Strategy):
    """One line for each message and event; levels of books that are live."""

    def __init__(self, *, is_json: bool) -> None:
        """As text, or as JSON."""
        self._show = as_json if is_json else as_text

    def _print(self, item: Any) -> None:
        sys.stdout.write(self._show(item) + "\n")

    def on_bbo(self, bbo: Bbo) -> None:
        """See `Strategy`."""
        self._print(bbo)

    def on_trade(self, trade: Trade) -> None:
        """See `Strategy`."""
        self._print(trade)

    def on_ticker(self, ticker: Ticker) -> None:
        """See `Strategy`."""
        self._print(ticker)

    def on_book(self, book: BookView, update: LevelUpdate) -> None:
        """See `Strategy`."""
        del book
        self._print(update)

    def on_gap(self, gap: Gap | UpstreamGap) -> None:
        """See `Strategy`."""
        self._print(gap)

    def on_session(self, session: SessionChanged | SessionEnded) -> None:
        """See `Strategy`."""
        self._print(session)

    def on_market(self, market: MarketInfo | MarketState) -> None:
        """See `Strategy`."""
        self._print(market)

    def on_feed(self, state: Any) -> None:
        """See `Strategy`."""
        self._print(state)
