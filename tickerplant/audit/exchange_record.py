"""What the frames of a capture say that must be in the log: read anew, in plain decimals and plain JSON. Pure.

Nothing here is the plant's: not its decoder, its fixed point, its book or its rules of sequence. The two may agree only
because both are right.
"""

import json
from typing import Any, NamedTuple

from tickerplant.audit.exchange_book import Change, ExchangeBook, UnusableFrameError, units
from tickerplant.audit.findings import EXCHANGE, Cause, Findings
from tickerplant.core.messages import Stream

_BOOK_TYPES = ("orderbook_snapshot", "orderbook_delta")
_STREAM_OF = {"trade": Stream.TRADE, "ticker": Stream.TICKER}
_CHANNEL_OF = {
    "orderbook_snapshot": "orderbook_delta",
    "orderbook_delta": "orderbook_delta",
    "trade": "trade",
    "ticker": "ticker",
    "market_lifecycle_v2": "market_lifecycle_v2",
    "event_fee_update": "market_lifecycle_v2",
    "multivariate_market_lifecycle": "multivariate_market_lifecycle",
}
_ENDING_ERRORS = (10, 25)


class ExchangeTrade(NamedTuple):
    """A trade as the exchange told it."""

    ticker: str
    trade_id: str
    price_e4: int
    size_e2: int
    is_taker_ask: bool


class ExchangeTicker(NamedTuple):
    """A ticker as the exchange told it; the numbers that need no rule."""

    ticker: str
    last_e4: int
    volume_e2: int
    open_interest_e2: int


class _Sid:
    """One subscription of one connection. `last` is None until a number was seen, if the beginning is not there."""

    __slots__ = ("channel", "ended", "last", "last_ns")

    def __init__(self, last: int | None) -> None:
        self.channel = ""
        self.last = last
        self.last_ns = 0
        self.ended = False


class ExchangeRecord:
    """Takes the inputs of a capture in order. What must be in the log since the last `begin_flush` is in the lists.

    `whole`: the capture has the session from its beginning.
    """

    def __init__(self, findings: Findings, *, yes_price: bool, whole: bool = True) -> None:
        self.books: dict[str, ExchangeBook] = {}
        self.untold: dict[str, str] = {}
        """By market: why who listens must be told that the book was not known for a time."""
        self.changes: dict[str, list[Change]] = {}
        self.trades: list[ExchangeTrade] = []
        self.tickers: list[ExchangeTicker] = []
        self.gaps: dict[int, str] = {}
        """By stream: why an `UpstreamGap` is due before any further message of it."""
        self.frames = 0
        self.sids = 0
        self.numbers = 0
        self.missing = 0
        self.duplicates = 0
        self.now_ns = 0
        self._findings = findings
        self._yes_price = yes_price
        self._whole = whole
        self._sids: dict[tuple[int, int], _Sid] = {}
        self._tickers: dict[tuple[int, int], set[str]] = {}

    def begin_flush(self) -> None:
        """What was due has been looked at."""
        self.changes = {}
        self.trades = []
        self.tickers = []

    # --- connections ------------------------------------------------------------------------------

    def opened(self, connection: int) -> None:
        """A connection begins anew: its numbers begin at 1."""
        self._forget(connection)
        self._whole = True

    def closed(self, connection: int, reason: str) -> None:
        """A connection is gone: what its subscriptions would have told is lost."""
        had_sids = any(at == connection and not sid.ended for (at, _), sid in self._sids.items())
        self._lose_connection(connection, "a lost connection")
        if had_sids:
            self._find(f"connection {connection} was lost ({reason or 'no reason'})")
        self._forget(connection)

    def _forget(self, connection: int) -> None:
        for key in [key for key in self._sids if key[0] == connection]:
            del self._sids[key]
            self._tickers.pop(key, None)

    def _lose_connection(self, connection: int, why: str) -> None:
        for (at, number), sid in tuple(self._sids.items()):
            if at == connection and not sid.ended:
                self._lose(at, number, sid, why)

    def _lose(self, connection: int, number: int, sid: _Sid, why: str) -> None:
        """Something of a subscription was lost."""
        if sid.channel == "orderbook_delta":
            for ticker in self._tickers.get((connection, number), ()):
                self._lose_book(ticker, why)
        elif sid.channel in _STREAM_OF:
            self.gaps.setdefault(_STREAM_OF[sid.channel], why)

    def _lose_book(self, ticker: str, why: str) -> None:
        """From here on the levels may be others."""
        book = self.books[ticker]
        if book.known:
            book.known = False
            self.untold.setdefault(ticker, why)

    def begin_session(self) -> None:
        """The plant goes over to another session: who listens holds no book, and no hole is to be told."""
        self.untold.clear()
        self.gaps.clear()

    def lose_all(self) -> None:
        """A part of the capture is missing: nothing is known, and what was told meanwhile is not known either."""
        for book in self.books.values():
            book.known = False
        for sid in self._sids.values():
            sid.last = None
        self._whole = False
        self.untold.clear()
        self.gaps.clear()
        self.begin_flush()

    # --- frames -----------------------------------------------------------------------------------

    def frame(self, connection: int, data: bytes) -> None:
        """One text message as it came."""
        self.frames += 1
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            self._lose_connection(connection, "a frame that cannot be read")
            return
        kind, number = document.get("type"), document.get("sid")
        if kind == "subscribed":
            self._subscribed(connection, document)
        elif isinstance(number, int) and number > 0:
            self._of_sid(connection, number, str(kind), document)
        elif kind in _CHANNEL_OF:
            self._lose_connection(connection, "a frame of no subscription")

    def _subscribed(self, connection: int, document: dict[str, Any]) -> None:
        msg = document.get("msg")
        if isinstance(msg, dict) and isinstance(msg.get("sid"), int):
            sid = self._sid(connection, msg["sid"])
            sid.channel = str(msg.get("channel"))

    def _sid(self, connection: int, number: int) -> _Sid:
        sid = self._sids.get((connection, number))
        if sid is None:
            sid = self._sids[connection, number] = _Sid(0 if self._whole else None)
            self.sids += 1
        return sid

    def _of_sid(self, connection: int, number: int, kind: str, document: dict[str, Any]) -> None:
        sid = self._sid(connection, number)
        if sid.ended:
            return
        sid.channel = sid.channel or _CHANNEL_OF.get(kind, "")
        seq = document.get("seq")
        is_new = self._account(connection, number, sid, seq) if isinstance(seq, int) else True
        sid.last_ns = self.now_ns
        if kind in ("error", "unsubscribed"):
            self._control(connection, number, sid, kind, document)
        elif is_new:
            self._data(connection, number, sid, kind, document)

    def _account(self, connection: int, number: int, sid: _Sid, seq: int) -> bool:
        """Whether a number is a new one; numbers that were left out are a hole."""
        last = seq - 1 if sid.last is None else sid.last
        if seq <= last:
            self.duplicates += 1
            return False
        self.numbers += 1
        missing = seq - last - 1
        if missing:
            self.missing += missing
            self._find(
                f"connection {connection} sid {number} ({sid.channel or 'unknown'}): seq {last + 1} to {seq - 1} "
                "never came",
                sid.last_ns,
            )
            self._lose(connection, number, sid, "a hole in the exchange's sequence")
        sid.last = seq
        return True

    def _control(
        self, connection: int, number: int, sid: _Sid, kind: str, document: dict[str, Any]
    ) -> None:
        msg = document.get("msg")
        code = msg.get("code") if isinstance(msg, dict) else None
        if kind == "error" and code not in _ENDING_ERRORS:
            return
        if kind == "error":
            self._find(f"connection {connection} sid {number} ({sid.channel}) ended: error {code}")
        self._lose(connection, number, sid, "a subscription that ended")
        sid.ended = True
        self._tickers.pop((connection, number), None)

    def _data(
        self, connection: int, number: int, sid: _Sid, kind: str, document: dict[str, Any]
    ) -> None:
        msg = document.get("msg")
        try:
            if not isinstance(msg, dict):
                raise UnusableFrameError("no content")
            if kind in _BOOK_TYPES:
                self._book(connection, number, kind, msg)
            elif kind == "trade":
                self.trades.append(_trade(msg))
            elif kind == "ticker":
                self.tickers.append(_ticker(msg))
        except UnusableFrameError:
            # A ticker tells nothing that the next one does not.
            if kind != "ticker" and kind in _CHANNEL_OF:
                self._lose(connection, number, sid, "a frame that cannot be read")

    # --- books ------------------------------------------------------------------------------------

    def _book(self, connection: int, number: int, kind: str, msg: dict[str, Any]) -> None:
        ticker = msg.get("market_ticker")
        if not isinstance(ticker, str) or not ticker:
            raise UnusableFrameError("no market")
        book = self.books.get(ticker)
        if book is None:
            book = self.books[ticker] = ExchangeBook()
        if (book.connection, book.sid) != (connection, number):
            if kind == "orderbook_delta":
                return  # without a snapshot of this subscription it says nothing
            book.connection, book.sid = connection, number
            book.known = False
        self._tickers.setdefault((connection, number), set()).add(ticker)
        was_known = book.known
        try:
            if kind == "orderbook_snapshot":
                if book.take_snapshot(msg, yes_price=self._yes_price):
                    self._find(
                        "the book was not what its frames had told: some were lost without a hole",
                        ticker=ticker,
                    )
                    self.untold.setdefault(ticker, "a divergence")
            elif was_known:
                change = book.take_delta(msg, yes_price=self._yes_price)
                if ticker not in self.untold:
                    self.changes.setdefault(ticker, []).append(change)
        except UnusableFrameError as error:
            self._lose_book(ticker, str(error))
            if was_known:
                self._find(f"an unusable frame: {error}", ticker=ticker)

    def _find(self, what: str, from_ns: int = 0, *, ticker: str = "") -> None:
        self._findings.add(
            EXCHANGE,
            Cause.UPSTREAM,
            what,
            ticker=ticker,
            times_ns=(from_ns or self.now_ns, self.now_ns),
        )


def _trade(msg: dict[str, Any]) -> ExchangeTrade:
    taker = msg.get("taker_outcome_side") or msg.get("taker_side")
    ticker, trade_id = msg.get("market_ticker"), msg.get("trade_id")
    if taker not in ("yes", "no") or not isinstance(ticker, str) or not isinstance(trade_id, str):
        raise UnusableFrameError("a trade of no side, market or id")
    price_e4, size_e2 = units(msg.get("yes_price_dollars"), 4), units(msg.get("count_fp"), 2)
    if price_e4 + units(msg.get("no_price_dollars"), 4) != 10_000 or size_e2 < 0:
        raise UnusableFrameError("a trade whose prices do not add to 1")
    return ExchangeTrade(ticker, trade_id, price_e4, size_e2, taker == "no")


def _ticker(msg: dict[str, Any]) -> ExchangeTicker:
    ticker, last = msg.get("market_ticker"), msg.get("price_dollars")
    if not isinstance(ticker, str):
        raise UnusableFrameError("a ticker of no market")
    return ExchangeTicker(
        ticker,
        units(last, 4) if last else 0,
        units(msg.get("volume_fp"), 2),
        units(msg.get("open_interest_fp"), 2),
    )
