"""One WebSocket connection to the exchange as a state machine (pure): frames in, plant calls and commands out.

Rules that no shell may bend (ARCHITECTURE.md, "Healing rules"):

* Every frame that carries `seq` is accounted for on its sid, understood or not, before anything else is done with it.
* A frame at or below the last `seq` is dropped. A hole makes every book of the sid STALE and asks for snapshots.
* A frame that cannot be applied makes its market STALE; if the market cannot be read, the whole sid; if the sid
  cannot be read, every sid of the connection.
* One subscription owns a market; frames of another are dropped and counted.
* Error 10 or 25 ends a subscription: its books are STALE and the channel is subscribed anew.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec

from tickerplant.core.books import BookEntry
from tickerplant.core.fixedpoint import SIZE_TEXTS
from tickerplant.core.messages import GapCause, StaleReason, Stream
from tickerplant.core.plant import Plant
from tickerplant.core.sequence import DUPLICATE
from tickerplant.errors import FixedPointError, ObsoleteFormatError
from tickerplant.limits import SEQUENCE_GAP_MAX
from tickerplant_kalshi.commands import ConnectionCommands
from tickerplant_kalshi.counters import FeedCounters, count_name
from tickerplant_kalshi.messages import (
    ENVELOPE_DECODER,
    FRAME_DECODER,
    MARKET_TICKER_DECODER,
    EventFeeUpdate,
    EventLifecycle,
    Frame,
    FrameEnvelope,
    MarketLifecycle,
    MultivariateLifecycle,
    OrderbookDelta,
    OrderbookSnapshot,
    TickerFrame,
    TradeFrame,
    delta_ts,
    obsolete_fields,
)
from tickerplant_kalshi.normalise import MILLISECOND_NS, Normaliser, event_time_ns
from tickerplant_kalshi.replies import ReplyRules
from tickerplant_kalshi.subscriptions import (
    BOOK_CHANNEL,
    CHANNEL_OF_TYPE,
    KNOWN_TYPES,
    Subscription,
    SubscriptionState,
)

_decode_frame = FRAME_DECODER.decode
_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_STREAM_OF_CHANNEL = {"trade": Stream.TRADE, "ticker": Stream.TICKER}


class FeedEvents(Protocol):
    """What a connection tells the feed."""

    def is_chosen(self, ticker: str) -> bool:
        """Whether trades and tickers of a market are wanted."""

    def subscriptions_changed(self) -> None:
        """A subscription began or ended."""

    def lifecycle(self, frame: MarketLifecycle | MultivariateLifecycle) -> None:
        """A market's life went on."""

    def event_lifecycle(self, frame: EventLifecycle) -> None:
        """An event was created or changed."""

    def lifecycle_gap(self) -> None:
        """Lifecycle frames were lost: only REST knows what they said."""


class FeedConnection:
    """Frames of one connection. `close_reason` set means: close the socket and connect anew.

    The shell calls `opened`, `receive_frames` with text messages, `note_activity` at the end of a read batch (and for
    pings and pongs), `handle_timer` when `next_deadline_ns` has passed, `closed`; then sends `outgoing()`.
    """

    def __init__(
        self,
        index: int,
        plant: Plant,
        events: FeedEvents,
        channels: Iterable[str],
        *,
        use_yes_price: bool,
        check_interval_ns: int = 0,
    ) -> None:
        self.index = index
        self.plant = plant
        self.counters = FeedCounters()
        self.commands = ConnectionCommands(
            channels, use_yes_price=use_yes_price, check_interval_ns=check_interval_ns
        )
        self.close_reason: str | None = None
        self.is_open = False
        self._events = events
        self._normaliser = Normaliser(plant, use_yes_price=use_yes_price)
        self._sides = self._normaliser.sides
        self._by_sid = self.commands.by_sid
        self._books = self.commands.books
        self._snapshots = self.commands.snapshots
        self._replies = ReplyRules(self)
        self.last_activity_ns = 0
        self.ping_wanted = False

    # --- the hot path -----------------------------------------------------------------------------

    def receive_frame(self, data: bytes, now_ns: int) -> None:
        """As `receive_frames`, for one."""
        self.receive_frames((data,), now_ns)

    def receive_frames(self, frames: Sequence[bytes], now_ns: int) -> None:
        """Whole text messages in order, read at `now_ns`. Raises `ObsoleteFormatError`, and nothing else."""
        plant = self.plant
        plant.now_ns = now_ns
        apply_delta = plant.apply_delta
        by_sid, sides, sizes_e2 = self._by_sid, self._sides, SIZE_TEXTS
        subscription: Subscription | None
        for data in frames:
            plant.g += 1
            try:
                frame = _decode_frame(data)
            except _UNDECODABLE:
                self._receive_unusable(data)
                continue
            if type(frame) is not OrderbookDelta:
                self._receive_other(frame, data)
                continue
            seq = frame.seq
            subscription = by_sid.get(frame.sid)
            if subscription is not None and seq == subscription.expected:
                subscription.expected = seq + 1
            else:
                subscription = self._account(frame.sid, seq, "orderbook_delta")
                if subscription is None:
                    continue
            body = frame.msg
            entry = subscription.entries.get(body.market_ticker)
            if entry is None:
                self._receive_foreign(subscription, body.market_ticker)
                continue
            try:
                side, prices_e4 = sides[body.side]
                price_e4 = prices_e4[body.price_dollars]
                delta_e2 = sizes_e2[body.delta_fp]
            except FixedPointError:
                self._unusable_for(entry)
                continue
            ts_event_ns = body.ts_ms * MILLISECOND_NS or event_time_ns(0, delta_ts(data))
            if not apply_delta(entry, side, price_e4, delta_e2, ts_event_ns):
                plant.unsettled = True
                self.counters.contradicting_deltas += 1
                self._snapshots.request(entry.ticker)

    # --- sequence ---------------------------------------------------------------------------------

    def _account(self, sid: int, seq: int, frame_type: str) -> Subscription | None:
        """Accounts for `seq` on `sid`; the subscription whose frame it is, None if the frame is to be dropped."""
        self.plant.unsettled = True
        subscription = self._by_sid.get(sid) or self._adopt(sid, frame_type)
        if subscription is None:
            self.counters.unknown_sid_frames += 1
            return None
        missing = subscription.observe(seq)
        if missing == DUPLICATE:
            self.counters.duplicate_frames += 1
            return None
        if missing:
            self._lost(subscription, missing)
        return subscription

    def account_reply(self, sid: int, seq: int) -> Subscription | None:
        """Accounts for a control reply, which is acted on even if its `seq` repeats the last one."""
        subscription = self._by_sid.get(sid)
        if subscription is not None and seq:
            missing = subscription.observe(seq)
            if missing > 0:
                self._lost(subscription, missing)
        return subscription

    def _adopt(self, sid: int, frame_type: str) -> Subscription | None:
        """The requested subscription that a sid must belong to when data comes before its ack."""
        channel = CHANNEL_OF_TYPE.get(frame_type, "")
        subscription = self.commands.subscriptions.get(channel)
        if subscription is None or subscription.state is not SubscriptionState.REQUESTED:
            return None
        if sid <= self.commands.last_ended_sid:
            return None
        self.counters.sids_before_ack += 1
        self.activated(subscription, sid)
        return subscription

    def activated(self, subscription: Subscription, sid: int) -> None:
        """A sid became known, by its ack or by its first frame."""
        if subscription is self._books and subscription.sid:
            self.books_stale(StaleReason.SUBSCRIPTION_ENDED)
        self.commands.activate(subscription, sid, self.plant.now_ns)
        self._events.subscriptions_changed()
        if subscription.lost_at_ns:
            self._tell_gap(subscription, subscription.lost_at_ns)
            subscription.lost_at_ns = 0

    def _lost(self, subscription: Subscription, missing: int) -> None:
        self.counters.sequence_gaps += 1
        self.counters.missing_frames += missing
        if missing > SEQUENCE_GAP_MAX:
            self.close_reason = f"seq of {subscription.channel} jumps by {missing}"
        if subscription is self._books:
            self.books_stale(StaleReason.SEQUENCE_GAP)
        else:
            self._tell_gap(subscription, subscription.last_frame_ns)

    def _tell_gap(self, subscription: Subscription, from_ns: int) -> None:
        stream = _STREAM_OF_CHANNEL.get(subscription.channel)
        if stream is not None:
            plant = self.plant
            plant.publish_upstream_gap(stream, from_ns, plant.now_ns, GapCause.UPSTREAM)
        elif subscription is not self._books:
            self._events.lifecycle_gap()

    # --- faults -----------------------------------------------------------------------------------

    def books_stale(self, reason: StaleReason, *, request: bool = True) -> None:
        """Every book of this connection may be wrong."""
        for ticker in self._books.tickers:
            entry = self._books.entries.get(ticker)
            if entry is not None:
                self.plant.mark_stale(entry, reason)
                if request:
                    self._snapshots.request(ticker)

    def _receive_foreign(self, subscription: Subscription, ticker: str) -> None:
        """A book frame of a market that the subscription does not own; without any market it may be of each."""
        self.plant.unsettled = True
        self.counters.foreign_market_frames += 1
        if not ticker and subscription is self._books:
            self.books_stale(StaleReason.UNUSABLE_FRAME)

    def _unusable_for(self, entry: BookEntry) -> None:
        self.plant.unsettled = True
        self.counters.unusable_frames += 1
        self.plant.mark_stale(entry, StaleReason.UNUSABLE_FRAME)
        self._snapshots.request(entry.ticker)

    def _receive_unusable(self, data: bytes) -> None:
        """A frame that does not decode as its type: its `seq` counts all the same."""
        self.plant.unsettled = True
        try:
            envelope = ENVELOPE_DECODER.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.counters.unreadable_frames += 1
            self._everything_suspect()
            return
        name = envelope.type
        if name and name not in KNOWN_TYPES:
            count_name(self.counters.frame_types, name)
            if envelope.sid and envelope.seq:
                self._account(envelope.sid, envelope.seq, name)
            return
        self.counters.unusable_frames += 1
        channel = CHANNEL_OF_TYPE.get(name)
        if channel is not None:
            self._refuse_obsolete(envelope)
        if not envelope.sid:
            self._everything_suspect()
            return
        subscription = self._unusable_subscription(envelope)
        if subscription is self._books:
            self._heal_unusable(envelope)
        elif subscription is not None:
            self._tell_gap(subscription, self.plant.now_ns)

    def _unusable_subscription(self, envelope: FrameEnvelope) -> Subscription | None:
        """The subscription of an unusable frame, its `seq` accounted for; None if there is nothing to heal."""
        subscription = self._by_sid.get(envelope.sid)
        if subscription is None or envelope.seq:
            return self._account(envelope.sid, envelope.seq, envelope.type)
        # A book frame whose seq cannot be read: the next frame will show the hole.
        return subscription

    def _heal_unusable(self, envelope: FrameEnvelope) -> None:
        try:
            ticker = MARKET_TICKER_DECODER.decode(envelope.msg).market_ticker
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            ticker = ""
        entry = self._books.entries.get(ticker)
        if entry is not None:
            self.plant.mark_stale(entry, StaleReason.UNUSABLE_FRAME)
            self._snapshots.request(ticker)
        else:
            self.books_stale(StaleReason.UNUSABLE_FRAME)

    def _everything_suspect(self) -> None:
        """A frame whose sid cannot be read may have been of any subscription."""
        self.books_stale(StaleReason.UNUSABLE_FRAME)
        for subscription in self.commands.subscriptions.values():
            if subscription is not self._books and subscription.sid:
                self._tell_gap(subscription, self.plant.now_ns)

    def _refuse_obsolete(self, envelope: FrameEnvelope) -> None:
        fields = obsolete_fields(envelope.msg)
        if fields and not self.plant.snapshots_applied:
            raise ObsoleteFormatError(
                f"{envelope.type} carries {', '.join(fields)}: the exchange format of before 2026-03-12 is refused; "
                "point exchange.websocket_url at a current endpoint (or replay a newer capture)"
            )

    # --- everything but deltas --------------------------------------------------------------------

    def _receive_other(self, frame: Frame, data: bytes) -> None:
        if isinstance(frame, TickerFrame):
            self._receive_ticker(frame)
            return
        if isinstance(frame, TradeFrame):
            self._receive_trade(frame)
            return
        self.plant.unsettled = True
        if isinstance(frame, OrderbookSnapshot):
            if _hides_levels(frame, data):
                self._receive_unusable(data)
            else:
                self._receive_snapshot(frame)
        elif isinstance(
            frame, MarketLifecycle | MultivariateLifecycle | EventLifecycle | EventFeeUpdate
        ):
            self._receive_lifecycle(frame)
        else:
            self._replies.receive(frame)

    def _receive_ticker(self, frame: TickerFrame) -> None:
        subscription = self._by_sid.get(frame.sid)
        if subscription is None:
            self.plant.unsettled = True
            subscription = self._adopt(frame.sid, "ticker")
        if subscription is None:
            self.counters.unknown_sid_frames += 1
            return
        subscription.frames += 1
        subscription.last_frame_ns = self.plant.now_ns
        if not self._events.is_chosen(frame.msg.market_ticker):
            self.counters.not_chosen_frames += 1
            return
        try:
            self._normaliser.publish_ticker(frame.msg)
        except FixedPointError:
            self.counters.unusable_frames += 1
            self._tell_gap(subscription, self.plant.now_ns)

    def _receive_trade(self, frame: TradeFrame) -> None:
        subscription = self._by_sid.get(frame.sid)
        if subscription is not None and frame.seq == subscription.expected:
            subscription.expected += 1
        else:
            subscription = self._account(frame.sid, frame.seq, "trade")
        if subscription is None:
            return
        if not self._events.is_chosen(frame.msg.market_ticker):
            self.counters.not_chosen_frames += 1
        else:
            try:
                self._normaliser.publish_trade(frame.msg)
            except FixedPointError:
                self.counters.unusable_frames += 1
                self._tell_gap(subscription, self.plant.now_ns)
        subscription.last_frame_ns = self.plant.now_ns

    def _receive_snapshot(self, frame: OrderbookSnapshot) -> None:
        subscription = self._account(frame.sid, frame.seq, "orderbook_snapshot")
        asked_for = bool(frame.id) and self._replies.snapshot_reply(frame.id)
        if subscription is None:
            return
        entry = subscription.entries.get(frame.msg.market_ticker)
        confirmed = subscription.tickers.get(frame.msg.market_ticker)
        # A market that is asked for but not subscribed (yet) would be LIVE without getting deltas.
        if entry is None or confirmed is None or (asked_for and not confirmed):
            self._receive_foreign(subscription, frame.msg.market_ticker)
            return
        subscription.tickers[entry.ticker] = True
        self._snapshots.arrived(entry.ticker)
        try:
            self._normaliser.apply_snapshot(entry, frame.msg)
        except FixedPointError:
            self.counters.unusable_frames += 1
            self.plant.mark_stale(entry, StaleReason.UNUSABLE_FRAME)
            # Asked for again after a time-out, not at once: the next one may be unusable too.
            self._snapshots.expect(entry.ticker, self.plant.now_ns)

    def _receive_lifecycle(
        self, frame: MarketLifecycle | MultivariateLifecycle | EventLifecycle | EventFeeUpdate
    ) -> None:
        subscription = self._by_sid.get(frame.sid)
        if subscription is None and isinstance(frame, EventLifecycle):
            # The only type that comes on two channels: the sid alone cannot be adopted from it.
            self.counters.unknown_sid_frames += 1
            return
        subscription = self._account(frame.sid, frame.seq, str(frame.__struct_config__.tag))
        if subscription is None:
            return
        subscription.last_frame_ns = self.plant.now_ns
        if isinstance(frame, EventLifecycle):
            self._events.event_lifecycle(frame)
        elif isinstance(frame, EventFeeUpdate):
            count_name(self.counters.frame_types, "event_fee_update")
        else:
            self._events.lifecycle(frame)

    # --- connection -------------------------------------------------------------------------------

    def opened(self, now_ns: int) -> None:
        """The handshake is done: a new epoch begins."""
        self.commands.reset()
        self.is_open = True
        self.close_reason = None
        self.counters.connections_opened += 1
        self.last_activity_ns = now_ns
        self._replies.opened(now_ns)

    def closed(self) -> None:
        """The socket is gone, whatever the reason."""
        if not self.is_open:
            return
        self.is_open = False
        self.counters.connections_lost += 1
        self.books_stale(StaleReason.CONNECTION_LOST, request=False)
        for subscription in self.commands.subscriptions.values():
            if subscription.sid and not subscription.lost_at_ns:
                subscription.lost_at_ns = subscription.last_frame_ns
        self.commands.reset()
        self._replies.closed()

    def note_activity(self, now_ns: int) -> None:
        """Frames of any kind (pings and pongs too) were read at `now_ns`."""
        self.last_activity_ns = now_ns

    def outgoing(self, now_ns: int) -> list[bytes]:
        """The commands to send now."""
        return self.commands.sendable(now_ns) if self.is_open else []

    def handle_timer(self, now_ns: int) -> None:
        """Overdue replies and snapshots, pings, silence."""
        if self.is_open:
            self._replies.handle_timer(now_ns)

    def next_deadline_ns(self) -> int | None:
        """When `handle_timer` has something to do; None while closed."""
        return self._replies.next_deadline_ns() if self.is_open else None

    @property
    def complete(self) -> bool:
        """Whether the connection is up and everything wanted is subscribed."""
        return self.is_open and self.commands.complete()

    # --- markets ----------------------------------------------------------------------------------

    def want_book(self, entry: BookEntry) -> None:
        """Takes a market into this connection's care."""
        self._books.entries[entry.ticker] = entry
        self.commands.want_book(entry.ticker)

    def unwant_book(self, ticker: str) -> None:
        """Lets a market go."""
        self._books.entries.pop(ticker, None)
        self.commands.unwant_book(ticker)

    def end_subscription(self, subscription: Subscription) -> None:
        """The exchange ended a subscription (error 10 or 25, or it is no longer listed)."""
        self.counters.subscriptions_ended += 1
        if subscription is self._books:
            self.books_stale(StaleReason.SUBSCRIPTION_ENDED, request=False)
        elif not subscription.lost_at_ns:
            subscription.lost_at_ns = subscription.last_frame_ns
        self.commands.end_subscription(subscription)
        self._events.subscriptions_changed()


def _hides_levels(frame: OrderbookSnapshot, data: bytes) -> bool:
    """Whether a snapshot looks empty only because its levels stand under their names of before 2026-03-12."""
    if frame.msg.yes_dollars_fp or frame.msg.no_dollars_fp:
        return False
    try:
        return bool(obsolete_fields(ENVELOPE_DECODER.decode(data).msg))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


assert BOOK_CHANNEL in CHANNEL_OF_TYPE.values()
