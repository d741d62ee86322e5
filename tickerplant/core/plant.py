"""The plant: exchange events in, datagrams out; no I/O, and time only as an argument.

The feed calls `begin_input` for every input (frame, timer, REST reply, connection event), then any of the event
methods, and the shell calls `flush` at the end of a read batch and of every other entry point. `g` numbers the
inputs, so the same inputs give the same datagram bodies.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tickerplant.core.book import Book, Level, level_changes
from tickerplant.core.books import BookEntry, BookEvent
from tickerplant.core.keyring import KeyRing
from tickerplant.core.logformat import FIRST_SEQS, NO_SEQS, NextSeqs, mark_not_repairable
from tickerplant.core.messages import (
    Bbo,
    BookClear,
    BookState,
    BookVerify,
    FeedPhase,
    FeedState,
    LevelUpdate,
    MarketInfo,
    MarketState,
    SessionStart,
    StaleReason,
    Stream,
    Ticker,
    Trade,
    UpdateCause,
    UpstreamGap,
)
from tickerplant.core.packets import Datagram, Packets
from tickerplant.core.publication import Publication
from tickerplant.core.verification import Verification
from tickerplant.core.wire import FLAG_NOT_REPAIRABLE, FLAG_REBUILDING, FLAG_UPSTREAM_DEGRADED
from tickerplant.limits import (
    DIVERGENCES_KEPT,
    END_OF_SESSION_AT_NS,
    MARKETS_MAX,
    TEXT_FIELD_MAX_BYTES,
    TICKER_MAX_BYTES,
)

# Deltas and quotes wait for their packet as rows of what they encode to: tuples cost half of what structs do.
_UPDATE_TAG = LevelUpdate.__struct_config__.tag
_BBO_TAG = Bbo.__struct_config__.tag
_LIVE = int(BookState.LIVE)
_EXCHANGE = int(UpdateCause.EXCHANGE)


class Divergence(NamedTuple):
    """A LIVE book was not the exchange's: found by a snapshot in which `levels` levels differed."""

    ticker: str
    g: int
    found_ns: int
    levels: int


class Plant:
    """Books, streams and the session of one publisher.

    `session`, `previous_session` and `final_seqs` (stream, next seq) come from the shell; so does every time.
    Without a tick log (`log_on` False) datagrams say that they cannot be repaired. With a `key_ring` they are signed.
    The checksum of a LIVE book is told every `verify_interval_ns`, of one book after the other; 0: never.
    """

    def __init__(
        self,
        session: int,
        now_ns: int,
        *,
        publisher: int = 1,
        previous_session: int = 0,
        final_seqs: Iterable[tuple[int, int]] = (),
        log_on: bool = False,
        key_ring: KeyRing | None = None,
        verify_interval_ns: int = 0,
    ) -> None:
        self.g = 0
        self.now_ns = now_ns
        self.unsettled = True
        """Whether more happened than deltas applied, trades and tickers: phase, flags, deadlines and commands may have
        changed. The shell sets it to False when it has looked at all of them."""
        self.session = session
        self._key_ring = key_ring
        self.packets = Packets(session, publisher, now_ns, key_ring)
        self._append_delta = self.packets.delta.messages.append
        self._append_bbo = self.packets.bbo.messages.append
        self.publication = Publication(self.packets, now_ns)
        self.verification = Verification(verify_interval_ns, now_ns)
        self.entries: dict[str, BookEntry] = {}
        self.phase = FeedPhase.CONNECTING
        self.stale_books = 0
        self.unready_books = 0
        self._discovered = False
        self._connections_missing = True
        self._was_connected = False
        self._down_cause = "starting"
        self._ending_at_ns: int | None = None
        self._ends_sent = 0
        self.deltas_dropped = 0
        self.snapshots_applied = 0
        self.quotes_crossed = 0
        """Deltas and snapshots after which the best bid was not below the best ask, as happens for moments."""
        self.books_diverged = 0
        self._divergences: list[Divergence] = []
        self.books_gone_stale = 0
        self.refused_tickers = 0
        self.trades = 0
        self.tickers = 0
        self.set_log(is_on=log_on, oldest_seqs=FIRST_SEQS if log_on else NO_SEQS)
        start = SessionStart("", 0, 0, now_ns, previous_session, tuple(final_seqs))
        self.packets.status.messages.append(start)
        self._publish_phase()

    # --- inputs -----------------------------------------------------------------------------------

    def begin_input(self, now_ns: int) -> None:
        """Counts one input, read at `now_ns`."""
        self.g += 1
        self.now_ns = now_ns
        self.unsettled = True

    def open_book(self, ticker: str) -> BookEntry | None:
        """The entry of a chosen market, made SYNCING if new; None if the ticker or one more book is refused."""
        entry = self.entries.get(ticker)
        if entry is None:
            if not acceptable_ticker(ticker) or len(self.entries) >= MARKETS_MAX:
                self.refused_tickers += 1
                return None
            entry = self.entries[ticker] = BookEntry(ticker)
            self.unready_books += 1
        return entry

    def close_book(self, entry: BookEntry) -> None:
        """Ends the book of a market: subscribers forget it."""
        if self.entries.pop(entry.ticker, None) is None:
            return
        self._mark_unready(entry)
        self.unready_books -= 1
        self.stale_books -= entry.state is BookState.STALE
        entry.transit(BookEvent.CLOSE)
        stamp = (entry.ticker, self.g, 0, self.now_ns)
        self.packets.delta.messages.append(BookClear(*stamp))
        self.packets.bbo.messages.append(Bbo(*stamp, 0, 0, 0, 0, BookState.CLOSED))

    def apply_snapshot(
        self, entry: BookEntry, bids: Iterable[Level], asks: Iterable[Level]
    ) -> None:
        """The exchange's whole book, in YES prices; makes the book LIVE."""
        fresh = Book(bids, asks)
        self.snapshots_applied += 1
        bid_e4, _, ask_e4, _ = fresh.bbo()
        self.quotes_crossed += bid_e4 >= ask_e4 > 0
        previous = entry.transit(BookEvent.SNAPSHOT)
        if previous is BookState.LIVE:
            if fresh == entry:
                return
            self._note_divergence(entry, fresh)
            entry.stale_reason = StaleReason.INCONSISTENT
            self._mark_unready(entry)
        elif previous is BookState.STALE:
            self.stale_books -= 1
        entry.take(fresh)
        self.publication.enqueue(entry)

    def apply_delta(
        self, entry: BookEntry, side: int, price_e4: int, delta_e2: int, ts_event_ns: int
    ) -> bool:
        """One level of a book changes; False if the book is now STALE because the delta contradicts it."""
        if not entry.in_sync:
            return self._apply_unpublished(entry, side, price_e4, delta_e2)
        size_e2 = entry.apply(side, price_e4, delta_e2)
        if size_e2 < 0:
            self.deltas_dropped += 1
            self.mark_stale(entry, StaleReason.INCONSISTENT)
            return False
        ticker = entry.ticker
        g = self.g
        now_ns = self.now_ns
        self._append_delta(
            (
                _UPDATE_TAG,
                ticker,
                g,
                ts_event_ns,
                now_ns,
                side,
                price_e4,
                delta_e2,
                size_e2,
                _EXCHANGE,
            )
        )
        if entry.best_moved:
            bbo = entry.bbo()
            if bbo[0] >= bbo[2] > 0:
                self.quotes_crossed += 1
            self._append_bbo((_BBO_TAG, ticker, g, ts_event_ns, now_ns, *bbo, _LIVE))
        return True

    def _apply_unpublished(self, entry: BookEntry, side: int, price_e4: int, delta_e2: int) -> bool:
        """A delta for a book that subscribers do not hold now: what waits for publication will contain it."""
        if not entry.live:
            self.deltas_dropped += 1
        elif entry.apply(side, price_e4, delta_e2) < 0:
            self.deltas_dropped += 1
            self.mark_stale(entry, StaleReason.INCONSISTENT)
            return False
        return True

    def mark_stale(self, entry: BookEntry, reason: StaleReason) -> None:
        """The book may be wrong from here on, until its next snapshot."""
        previous = entry.transit(BookEvent.FAULT)
        if previous is not BookState.LIVE:
            return
        self.stale_books += 1
        self.books_gone_stale += 1
        entry.stale_reason = reason
        is_offered = entry.in_sync
        self._mark_unready(entry)
        # Thousands of images may wait, and meanwhile subscribers would go on to take this book for live.
        self.publication.enqueue(entry, first=is_offered)

    def publish_trade(
        self,
        ticker: str,
        ts_event_ns: int,
        trade_id: str,
        price_e4: int,
        size_e2: int,
        taker_side: int,
        is_block: bool,  # noqa: FBT001  # mirrors the message
    ) -> None:
        """A trade, passed on."""
        if not acceptable_ticker(ticker) or len(trade_id) > TEXT_FIELD_MAX_BYTES:
            self.refused_tickers += 1
            return
        self.trades += 1
        message = Trade(
            ticker,
            self.g,
            ts_event_ns,
            self.now_ns,
            trade_id,
            price_e4,
            size_e2,
            taker_side,
            is_block,
        )
        self.packets.trade.messages.append(message)

    def publish_ticker(self, ticker: str, ts_event_ns: int, *numbers: int) -> None:
        """The exchange's ticker, passed on; `numbers` are the fields of `Ticker` after the common ones, in order."""
        if not acceptable_ticker(ticker):
            self.refused_tickers += 1
            return
        self.tickers += 1
        message = Ticker(ticker, self.g, ts_event_ns, self.now_ns, *numbers)
        self.packets.ticker.messages.append(message)

    def publish_upstream_gap(self, stream: Stream, from_ns: int, to_ns: int, cause: int) -> None:
        """Trades or tickers between two times were lost before the plant."""
        message = UpstreamGap("", self.g, 0, self.now_ns, from_ns, to_ns, cause, stream)
        self.packets.by_stream(stream).messages.append(message)

    def publish_market(
        self, ticker: str, info: MarketInfo | None = None, state: MarketState | None = None
    ) -> None:
        """What is known of a market changed; told at the pace of images, the newest word only where it has a book."""
        entry = self.entries.get(ticker)
        if entry is None:
            for message in (info, state):
                if message is not None:
                    self.publication.enqueue_notice(message)
            return
        if info is not None:
            entry.info, entry.info_told = info, False
        if state is not None:
            entry.market_state, entry.market_state_told = state, False
        self.publication.enqueue(entry)

    def _note_divergence(self, entry: BookEntry, fresh: Book) -> None:
        self.books_diverged += 1
        if len(self._divergences) < DIVERGENCES_KEPT:
            levels = len(level_changes(entry, fresh))
            self._divergences.append(Divergence(entry.ticker, self.g, self.now_ns, levels))

    def take_divergences(self) -> list[Divergence]:
        """Those found since the last call, the first `DIVERGENCES_KEPT`; `books_diverged` counts all."""
        taken, self._divergences = self._divergences, []
        return taken

    # --- feed state -------------------------------------------------------------------------------

    def set_upstream(self, *, connections_missing: bool, discovered: bool, cause: str = "") -> None:
        """Whether connections or subscriptions are missing, and whether the choice of markets is complete."""
        self._connections_missing = connections_missing
        self._was_connected = self._was_connected or not connections_missing
        self._discovered = discovered
        if cause:
            self._down_cause = cut_text(cause)

    def _current_phase(self) -> FeedPhase:
        if self._connections_missing:
            return FeedPhase.DOWN if self._was_connected else FeedPhase.CONNECTING
        faulty = self.stale_books > 0 or not self._discovered
        if self.phase is FeedPhase.READY:
            # A new market that is still to come does not take READY away.
            return FeedPhase.DEGRADED if faulty else FeedPhase.READY
        if not faulty and not self.unready_books:
            return FeedPhase.READY
        return self.phase if self.phase is FeedPhase.DEGRADED else FeedPhase.SYNCING

    def _publish_phase(self) -> None:
        causes = {
            FeedPhase.DEGRADED: (
                f"{self.stale_books} stale books" if self.stale_books else "subscriptions to come"
            ),
            FeedPhase.SYNCING: f"{self.unready_books} books to come",
            FeedPhase.READY: "",
        }
        cause = causes.get(self.phase, self._down_cause)
        self.packets.status.messages.append(
            FeedState("", self.g, 0, self.now_ns, self.phase, cause)
        )

    def _mark_unready(self, entry: BookEntry) -> None:
        """Subscribers no longer hold the plant's book; what they hold is kept as the mirror."""
        if entry.in_sync:
            entry.in_sync = False
            entry.mirror = entry.levels()
            self.unready_books += 1

    # --- tick log ---------------------------------------------------------------------------------

    @property
    def log_on(self) -> bool:
        """Whether what is published can be repaired from the tick log."""
        return self.packets.log_on

    def set_log(self, *, is_on: bool, oldest_seqs: NextSeqs = NO_SEQS) -> None:
        """Whether the tick log takes what follows, and the oldest sequence of each stream that it still has."""
        packets = self.packets
        # At once: the next datagrams may go out without another look at the flags.
        if is_on:
            packets.flags &= ~FLAG_NOT_REPAIRABLE
        else:
            packets.flags |= FLAG_NOT_REPAIRABLE
        packets.log_on = is_on
        packets.oldest_seqs = oldest_seqs

    def lose_log(self, datagrams: list[Datagram]) -> list[Datagram]:
        """The tick log did not take `datagrams`: these are to be sent instead; all that follow say so too."""
        self.set_log(is_on=False)
        return mark_not_repairable(datagrams, self._key_ring)

    def begin_session(self, session: int, now_ns: int) -> None:
        """Go over to a new session, in which the tick log is on: markets and books are published anew from memory.

        After a `flush`, and once the ends of the old session are out (`packets.ends_of_session`).
        """
        packets = self.packets
        final_seqs = tuple(enumerate(packets.next_seqs, start=1))
        start = SessionStart("", 0, 0, now_ns, self.session, final_seqs)
        packets.begin_session(session, now_ns)
        self.session, self.g, self.now_ns = session, 0, now_ns
        self.unsettled = True
        self.set_log(is_on=True, oldest_seqs=FIRST_SEQS)
        packets.status.messages.append(start)
        for entry in self.entries.values():
            entry.begin_session()
            self.publication.enqueue(entry)
        self.unready_books = len(self.entries)
        self.phase = FeedPhase.SYNCING
        self.phase = self._current_phase()
        self._publish_phase()

    def use_keys(self, key_ring: KeyRing) -> None:
        """Sign with other keys from now on."""
        self._key_ring = key_ring
        self.packets.use_keys(key_ring)

    # --- outputs ----------------------------------------------------------------------------------

    def flush(self, now_ns: int) -> list[Datagram]:
        """Everything to send now, in order: log it, then send it. `now_ns` becomes `ts_send_ns`."""
        if len(self.publication) and self._ending_at_ns is None:
            self.unready_books -= self.publication.publish_due(self.g, self.now_ns)
        phase = self._current_phase()
        if phase is not self.phase:
            self.phase = phase
            self._publish_phase()
        degraded = FLAG_UPSTREAM_DEGRADED if self.stale_books or self._connections_missing else 0
        rebuilding = FLAG_REBUILDING if self.unready_books else 0
        packets = self.packets
        packets.flags = packets.flags & FLAG_NOT_REPAIRABLE | degraded | rebuilding
        return packets.flush(now_ns)

    def next_deadline_ns(self) -> int:
        """When `handle_timer` wants to be called next."""
        if self._ending_at_ns is not None:
            return self._ending_at_ns + END_OF_SESSION_AT_NS[min(self._ends_sent, 3)]
        deadline_ns = self.packets.next_heartbeat_ns
        for other_ns in (
            self.publication.next_deadline_ns(),
            self.verification.next_deadline_ns(),
        ):
            if other_ns is not None and other_ns < deadline_ns:
                deadline_ns = other_ns
        return deadline_ns

    def handle_timer(self, now_ns: int) -> list[Datagram]:
        """Paced images, checksums, heartbeats and ends of session that are due."""
        verified = None
        if self._ending_at_ns is None:
            verified = self.verification.take_due(self.entries, now_ns)
        if verified is not None or len(self.publication):
            self.begin_input(now_ns)
        if verified is not None:
            verify = BookVerify(verified.ticker, self.g, 0, now_ns, verified.checksum())
            self.packets.delta.messages.append(verify)
        datagrams = self.flush(now_ns)
        if self._ending_at_ns is None:
            return datagrams + self.packets.heartbeats(now_ns)
        while not self.ended and now_ns >= self.next_deadline_ns():
            datagrams += self.packets.ends_of_session(now_ns)
            self._ends_sent += 1
        return datagrams

    def end_session(self, now_ns: int) -> list[Datagram]:
        """Begins the orderly end: ends of session follow from `handle_timer` until `ended`."""
        self.begin_input(now_ns)
        self._ending_at_ns = now_ns
        return self.flush(now_ns)

    @property
    def ended(self) -> bool:
        """Whether the last end of session was handed out."""
        return self._ends_sent >= len(END_OF_SESSION_AT_NS)

    def counters(self) -> Iterator[tuple[str, int]]:
        """(name, value) of the plain counters, for scrapes."""
        for name in (
            "deltas_dropped",
            "snapshots_applied",
            "quotes_crossed",
            "books_diverged",
            "books_gone_stale",
            "refused_tickers",
            "trades",
            "tickers",
            "stale_books",
            "unready_books",
        ):
            yield name, getattr(self, name)
        yield "books_verified", self.verification.books_verified
        yield "books", len(self.entries)
        yield "inputs", self.g


def acceptable_ticker(ticker: str) -> bool:
    """Whether a ticker is non-empty and at most `TICKER_MAX_BYTES` of UTF-8."""
    if not ticker or len(ticker) > TICKER_MAX_BYTES:
        return False
    return ticker.isascii() or len(ticker.encode(errors="replace")) <= TICKER_MAX_BYTES


def cut_text(text: str) -> str:
    """`text` cut to `TEXT_FIELD_MAX_BYTES` of UTF-8."""
    return text.encode(errors="replace")[:TEXT_FIELD_MAX_BYTES].decode(errors="ignore")
