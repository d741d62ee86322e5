"""Playing a capture to each client from its beginning, and answering commands from what was played so far.

Recorded sequence numbers are kept. Only frames of our own that take a number (a snapshot asked for by the client) shift
the numbers that follow.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from tickerplant.core.fixedpoint import (
    format_price_e4,
    parse_price_e4,
    parse_size_e2,
)
from tickerplant.errors import FixedPointError
from tickerplant.limits import (
    PRICE_E4_MAX,
    SIM_REPLAY_FRAMES_PER_TICK,
    SIM_TRADES_KEPT,
)
from tickerplant_kalshi.messages import DeltaBody, SnapshotBody, TradeBody
from tickerplant_kalshi_sim.book import YesBook, as_yes_book
from tickerplant_kalshi_sim.capture import RESTART, Capture, RecordedFrame, event_time_ns
from tickerplant_kalshi_sim.exchange import Levels
from tickerplant_kalshi_sim.frames import Emission, TradeRecord, snapshot_body
from tickerplant_kalshi_sim.markets import (
    Catalogue,
    Event,
    Market,
    Series,
    ticker_uuid,
)
from tickerplant_kalshi_sim.subscriptions import Subscription, Subscriptions

DAY_NS = 86_400 * 1_000_000_000
SETTLING_NS = 1_000_000_000
"""How long a client may take to subscribe to all markets before playing starts without the rest."""


class ReplayPlayer:
    """Plays the capture to one connection: its position, its books, its numbers."""

    sequenced_acknowledgements = False

    def __init__(
        self, capture: Capture, speed: float, *, use_yes_price: bool, market_ids: dict[str, str]
    ) -> None:
        self._capture = capture
        self._speed = speed
        self._use_yes_price = use_yes_price
        self._market_ids = market_ids
        self._position = 0
        self._subscribed_ns: int | None = None
        self._start_ns: int | None = None
        self._shift: dict[str, int] = {}
        self._sids: dict[str, int] = {}
        self._last_tickers: dict[str, bytes] = {}
        self.books: dict[str, Levels] = {}
        self.trades: deque[TradeRecord] = deque(maxlen=SIM_TRADES_KEPT)

    @property
    def finished(self) -> bool:
        """Whether every frame was played."""
        return self._position == len(self._capture.frames)

    @property
    def next_due_ns(self) -> int | None:
        """When the next frame is due; None before playing has begun and after its end."""
        if self._start_ns is None or self.finished:
            return None
        offset_ns = self._capture.frames[self._position].offset_ns
        return self._start_ns + (math.ceil(offset_ns / self._speed) if self._speed else 0)

    def play(self, now_ns: int, subscriptions: Subscriptions) -> None:
        """Send the frames due at `now_ns`; none before the client has subscribed to all that was recorded."""
        if self._start_ns is None:
            if not self._client_ready(now_ns, subscriptions):
                return
            self._start_ns = now_ns
        if subscriptions.backlog:
            return
        elapsed_ns = int((now_ns - self._start_ns) * self._speed)
        frames = self._capture.frames
        last = min(len(frames), self._position + SIM_REPLAY_FRAMES_PER_TICK)
        while self._position < last:
            frame = frames[self._position]
            if self._speed and frame.offset_ns > elapsed_ns:
                return
            self._position += 1
            self._play_frame(frame, subscriptions)

    def _client_ready(self, now_ns: int, subscriptions: Subscriptions) -> bool:
        if not self._capture.channels <= subscriptions.by_channel.keys():
            return False
        if self._subscribed_ns is None:
            self._subscribed_ns = now_ns
        book = subscriptions.by_channel.get("orderbook_delta")
        chosen = book.keys if book and book.keys else {}
        complete = self._capture.book_tickers <= chosen.keys()
        return complete or now_ns - self._subscribed_ns >= SETTLING_NS

    def _play_frame(self, frame: RecordedFrame, subscriptions: Subscriptions) -> None:
        self._apply(frame)
        subscription = subscriptions.by_channel.get(frame.channel)
        if subscription is None:
            return
        if frame.frame_type == RESTART:
            self._shift[frame.channel] = subscription.seq - subscription.own_sequenced
            return
        if self._sids.setdefault(frame.channel, subscription.sid) != subscription.sid:
            self._rebase(frame, subscription)
        tail = frame.tail
        if subscription.use_yes_price != self._use_yes_price:
            tail = self._converted_tail(frame)
        number = b""
        if frame.seq:
            shift = self._shift.get(frame.channel, 0) + subscription.own_sequenced
            subscription.seq = frame.seq + shift
            number = b',"seq":%d' % subscription.seq
        if not subscription.silent:
            whole = b'%b,"sid":%d%b%b' % (frame.head, subscription.sid, number, tail)
            subscriptions.deliver_frame(subscription, frame.frame_type, whole)

    def _rebase(self, frame: RecordedFrame, subscription: Subscription) -> None:
        """The client subscribed anew while we play: its new sid continues from its own first numbers."""
        self._sids[frame.channel] = subscription.sid
        shift = subscription.seq + 1 - frame.seq - subscription.own_sequenced
        self._shift[frame.channel] = shift

    # --- what was played ------------------------------------------------------------------------------

    def _apply(self, frame: RecordedFrame) -> None:
        """Keep the client's view of books, tickers and trades; frames that cannot be read change nothing."""
        try:
            if frame.frame_type == "orderbook_snapshot":
                self._apply_snapshot(msgspec.json.decode(frame.message, type=SnapshotBody))
            elif frame.frame_type == "orderbook_delta":
                self._apply_delta(msgspec.json.decode(frame.message, type=DeltaBody))
            elif frame.frame_type == "trade":
                self._apply_trade(frame)
            elif frame.frame_type == "ticker":
                body = b',"msg":' + bytes(frame.message) + b"}"
                self._last_tickers[frame.ticker] = body
        except (msgspec.MsgspecError, FixedPointError):
            return

    def _apply_snapshot(self, body: SnapshotBody) -> None:
        yes = {parse_price_e4(price): parse_size_e2(size) for price, size in body.yes_dollars_fp}
        no = {self._no_e4(price): parse_size_e2(size) for price, size in body.no_dollars_fp}
        self.books[body.market_ticker] = (yes, no)

    def _apply_delta(self, body: DeltaBody) -> None:
        levels = self.books.setdefault(body.market_ticker, ({}, {}))
        is_yes = body.side == "yes"
        price_e4 = parse_price_e4(body.price_dollars) if is_yes else self._no_e4(body.price_dollars)
        side = levels[0] if is_yes else levels[1]
        size_e2 = side.pop(price_e4, 0) + parse_size_e2(body.delta_fp)
        if size_e2 > 0:
            side[price_e4] = size_e2

    def _apply_trade(self, frame: RecordedFrame) -> None:
        body = msgspec.json.decode(frame.message, type=TradeBody)
        side = body.taker_outcome_side or body.taker_side
        self.trades.append(
            TradeRecord(
                number=self._position,
                trade_id=body.trade_id,
                ticker=body.market_ticker,
                yes_price_e4=parse_price_e4(body.yes_price_dollars),
                size_e2=parse_size_e2(body.count_fp),
                taker_side=0 if side == "yes" else 1,
                is_block=body.is_block_trade,
                created_ns=event_time_ns({"ts_ms": body.ts_ms or None, "ts": body.ts}),
            )
        )

    def _no_e4(self, text: str) -> int:
        price_e4 = parse_price_e4(text)
        return PRICE_E4_MAX - price_e4 if self._use_yes_price else price_e4

    def _converted_tail(self, frame: RecordedFrame) -> bytes:
        """The tail with NO prices in the convention that the recording does not have."""
        if frame.frame_type not in ("orderbook_snapshot", "orderbook_delta"):
            return frame.tail
        try:
            message = msgspec.json.decode(frame.message)
            if "no_dollars_fp" in message:
                message["no_dollars_fp"] = [
                    [_complement(price), size] for price, size in message["no_dollars_fp"]
                ]
            if message.get("side") == "no":
                message["price_dollars"] = _complement(message["price_dollars"])
        except (msgspec.MsgspecError, FixedPointError, TypeError, ValueError, KeyError):
            return frame.tail
        ending = b"\n" if frame.tail.endswith(b"\n") else b""
        return b',"msg":' + msgspec.json.encode(message) + b"}" + ending

    # --- MarketSource ---------------------------------------------------------------------------------

    def opens_with_snapshot(self, ticker: str) -> bool:
        """Not if the recording itself opens the book, unless it already plays."""
        return self._start_ns is not None or ticker not in self._capture.opened

    def snapshot(self, ticker: str, *, use_yes_price: bool) -> bytes:
        """The book as played so far."""
        yes_levels, no_levels = self.books.get(ticker, ({}, {}))
        market_id = self._market_ids.get(ticker) or ticker_uuid(ticker)
        return snapshot_body(ticker, market_id, yes_levels, no_levels, use_yes_price=use_yes_price)

    def tickers(self, tickers: Iterable[str] | None) -> Iterator[tuple[str, bytes]]:
        """The last ticker played of these markets."""
        for ticker in list(self._last_tickers) if tickers is None else tickers:
            if ticker in self._last_tickers:
                yield ticker, self._last_tickers[ticker]

    def ticker_of_market(self, market_id: str) -> str | None:
        """See `MarketSource`."""
        return next((t for t, known in self._market_ids.items() if known == market_id), None)


class ReplayVenue:
    """A capture as an exchange: its markets are listed as open, every connection gets a player of its own."""

    def __init__(
        self, capture: Capture, *, speed: float, use_yes_price: bool, start_ns: int
    ) -> None:
        self._capture = capture
        self._speed = speed
        self._use_yes_price = use_yes_price
        self._current: ReplayPlayer | None = None
        self.now_ns = start_ns
        self.paused = False
        self.catalogue = _catalogue_of(capture, start_ns)

    def connect(self) -> ReplayPlayer:
        """A player for a new connection; REST and `books` show the newest one's view."""
        self._current = ReplayPlayer(
            self._capture,
            self._speed,
            use_yes_price=self._use_yes_price,
            market_ids=self._capture.market_ids,
        )
        return self._current

    def advance(self, now_ns: int) -> list[Emission]:
        """Move the clock; the players send the frames."""
        self.now_ns = max(now_ns, self.now_ns)
        return []

    def flood(self, actions: int) -> None:
        """A recording has no order flow to add to."""
        del actions

    def levels(self, ticker: str) -> Levels:
        """The bid sides of `ticker` as the newest connection was told."""
        return self._current.books.get(ticker, ({}, {})) if self._current else ({}, {})

    def trades(self) -> Sequence[TradeRecord]:
        """Trades that the newest connection was told."""
        return self._current.trades if self._current else ()

    def books(self) -> dict[str, YesBook]:
        """Every recorded market's book as the newest connection was told."""
        return {ticker: as_yes_book(*self.levels(ticker)) for ticker in self._capture.market_ids}


def _complement(text: str) -> str:
    return format_price_e4(PRICE_E4_MAX - parse_price_e4(text))


def _catalogue_of(capture: Capture, start_ns: int) -> Catalogue:
    """The recorded markets as open ones; series and event follow from the ticker."""
    catalogue = Catalogue()
    structure = _structure_of(capture)
    for ticker, market_id in capture.market_ids.items():
        event_ticker = ticker.rpartition("-")[0] or ticker
        series = Series(
            ticker.partition("-")[0], f"Recorded {ticker.partition('-')[0]}", "Recorded"
        )
        event = catalogue.events.get(event_ticker) or catalogue.add_event(
            Event(
                event_ticker,
                catalogue.add_series(series),
                f"Recorded {event_ticker}",
                capture.name,
                start_ns + DAY_NS,
                start_ns - DAY_NS,
                is_multivariate=ticker.startswith("KXMVE"),
            )
        )
        catalogue.add_market(
            Market(
                number=catalogue.next_number(),
                ticker=ticker,
                event=event,
                market_id=market_id or ticker_uuid(ticker),
                structure=structure,
                yes_sub_title=ticker,
                no_sub_title=ticker,
                created_ns=start_ns - DAY_NS,
                open_ns=start_ns - DAY_NS,
                close_ns=start_ns + DAY_NS,
            )
        )
    return catalogue


def _structure_of(capture: Capture) -> str:
    """The coarsest even grid on which all recorded deltas lie."""
    step_e4 = 100
    for frame in capture.frames:
        if frame.frame_type != "orderbook_delta":
            continue
        try:
            price = msgspec.json.decode(frame.message, type=DeltaBody).price_dollars
            price_e4 = parse_price_e4(price)
        except (msgspec.MsgspecError, FixedPointError):
            continue
        while price_e4 % step_e4:
            step_e4 //= 10
    return {100: "linear_cent", 10: "deci_cent"}.get(step_e4, "center_centi_edge_centi_cent")
