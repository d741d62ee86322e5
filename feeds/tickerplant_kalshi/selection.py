"""What the user chose, and whether a market belongs to it. Pure."""

import msgspec

from tickerplant_kalshi.records import COMBO_PREFIX, MarketRecord


class Selection(msgspec.Struct, frozen=True):
    """What the user chose; the union counts. `include_combos` widens `all_open` by the combo (`KXMVE*`) markets."""

    tickers: tuple[str, ...] = ()
    series: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    all_open: bool = False
    include_combos: bool = False

    @property
    def is_empty(self) -> bool:
        """True if nothing is chosen."""
        return not (self.tickers or self.series or self.events or self.all_open)


class SelectionRules:
    """Decides whether a market is wanted."""

    def __init__(self, selection: Selection) -> None:
        """The rules of one selection."""
        self._all_open = selection.all_open
        self._include_combos = selection.include_combos
        self._tickers = frozenset(selection.tickers)
        self._events = frozenset(selection.events)
        self._series = frozenset(selection.series)
        named = (*selection.events, *selection.series)
        self._names_combos = any(name.startswith(COMBO_PREFIX) for name in named)

    def is_listed(self, ticker: str) -> bool:
        """Whether the ticker itself was chosen."""
        return ticker in self._tickers

    def verdict(self, record: MarketRecord) -> bool | None:
        """Whether a market is wanted; None if its event or series decides and is not known."""
        if record.ticker in self._tickers or record.event_ticker in self._events:
            return True
        if self._all_open and (self._include_combos or not record.combo):
            return True
        if record.combo and not self._names_combos:
            # Combos are created all the time; without this each would cost a look-up of its event.
            return False
        if not record.event_ticker and self._events:
            return None
        if not record.series_ticker and self._series:
            return None
        return record.series_ticker in self._series

    def may_be_wanted(self, ticker: str, *, combo: bool) -> bool:
        """Whether a market of which only the ticker is known is worth a look-up.

        Tickers begin with their event's and series' by convention only; that is enough to decide on a look-up.
        """
        if ticker in self._tickers:
            return True
        if self._all_open and (self._include_combos or not combo):
            return True
        if ticker.partition("-")[0] in self._series:
            return True
        parts = ticker.split("-")
        return any("-".join(parts[:count]) in self._events for count in range(1, len(parts)))
