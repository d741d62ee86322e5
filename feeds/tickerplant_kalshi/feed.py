"""The whole feed as one state machine (pure): connections, market directory and plant behind recordable inputs.

The methods under "inputs" are what a recording would hold: the same inputs at the same times give the same datagram
bodies. The shell calls `flush` after each, sends the datagrams, then sends what the connections' `outgoing` holds.
"""

from collections.abc import Iterator, Sequence
from zlib import crc32

from tickerplant.core.logformat import NO_SEQS, NextSeqs
from tickerplant.core.messages import FeedPhase
from tickerplant.core.packets import Datagram
from tickerplant.core.plant import Plant
from tickerplant_kalshi.directory import (
    Change,
    InfoChanged,
    LookUpEvent,
    LookUpMarket,
    MarketDirectory,
    MarketRecord,
    PhaseChanged,
    Subscribe,
    Unsubscribe,
)
from tickerplant_kalshi.messages import EventLifecycle, MarketLifecycle, MultivariateLifecycle
from tickerplant_kalshi.protocol import FeedConnection
from tickerplant_kalshi.subscriptions import BOOK_CHANNEL

LookUp = LookUpMarket | LookUpEvent


class KalshiFeed:
    """Several connections, markets sharded among them; unfiltered channels on the first.

    `channels` are the unfiltered ones (trade, ticker, lifecycle); books are always subscribed. Each connection has one
    LIVE book compared with the exchange every `check_interval_ns`; 0: never.
    """

    connection_type = FeedConnection

    def __init__(
        self,
        plant: Plant,
        directory: MarketDirectory,
        *,
        channels: Sequence[str],
        connection_count: int = 1,
        use_yes_price: bool = False,
        check_interval_ns: int = 0,
    ) -> None:
        assert connection_count >= 1
        self.plant = plant
        self.directory = directory
        self.refresh_wanted = False
        self._discovered = False
        self._upstream_changed = True
        self._chosen: set[str] = set()
        self._passes_all = directory.selection.all_open
        self._look_ups: list[LookUp] = []
        self.connections = tuple(
            self.connection_type(
                index,
                plant,
                self,
                (BOOK_CHANNEL, *(channels if index == 0 else ())),
                use_yes_price=use_yes_price,
                check_interval_ns=check_interval_ns,
            )
            for index in range(connection_count)
        )

    # --- inputs -----------------------------------------------------------------------------------

    def connection_opened(self, index: int, now_ns: int) -> None:
        """The handshake of a connection is done."""
        self.plant.begin_input(now_ns)
        self.connections[index].opened(now_ns)

    def connection_closed(self, index: int, now_ns: int, reason: str) -> None:
        """A connection is gone; `reason` is told to subscribers."""
        self.plant.begin_input(now_ns)
        self.connections[index].closed()
        self._set_upstream(reason)

    def markets_read(self, records: Sequence[MarketRecord], now_ns: int) -> None:
        """Markets as REST gave them."""
        self.plant.begin_input(now_ns)
        self.directory.apply_markets(records, now_ns)

    def event_read(self, event_ticker: str, series_ticker: str, now_ns: int) -> None:
        """The series of an event, from REST."""
        self.plant.begin_input(now_ns)
        self.directory.apply_event(event_ticker, series_ticker, now_ns)

    def discovery_done(self, now_ns: int) -> None:
        """Every chosen market has been read at least once."""
        self.plant.begin_input(now_ns)
        self._discovered = True

    def look_up_unread(self, before_ns: int) -> None:
        """Every market that lives and was not read over REST since `before_ns` is looked up at the next flush."""
        self.directory.look_up_unread(before_ns)

    def set_log(self, *, is_on: bool, oldest_seqs: NextSeqs = NO_SEQS) -> None:
        """Whether the tick log takes what follows, and the oldest sequence of each stream that it still has."""
        self.plant.set_log(is_on=is_on, oldest_seqs=oldest_seqs)

    def lose_log(self, datagrams: list[Datagram]) -> list[Datagram]:
        """The tick log did not take `datagrams`: these are to be sent instead."""
        return self.plant.lose_log(datagrams)

    def handle_timer(self, now_ns: int) -> list[Datagram]:
        """Everything whose time has come; call when `next_deadline_ns` has passed."""
        deadline_ns = self.directory.next_deadline_ns()
        if deadline_ns is not None and deadline_ns <= now_ns:
            self.plant.begin_input(now_ns)
            self.directory.handle_timer(now_ns)
        for connection in self.connections:
            deadline_ns = connection.next_deadline_ns()
            if deadline_ns is not None and deadline_ns <= now_ns:
                self.plant.begin_input(now_ns)
                connection.handle_timer(now_ns)
        self._apply_changes(now_ns)
        self._set_upstream()
        return self.plant.handle_timer(now_ns)

    def begin_session(self, session: int, now_ns: int) -> None:
        """The next session of the same plant, books and all."""
        self.plant.begin_session(session, now_ns)

    def end_session(self, now_ns: int) -> list[Datagram]:
        """Begins the orderly end; `handle_end_timer` goes on until `ended`."""
        return self.plant.end_session(now_ns)

    def handle_end_timer(self, now_ns: int) -> list[Datagram]:
        """The ends of session that are due; nothing from upstream counts any more."""
        return self.plant.handle_timer(now_ns)

    # --- outputs ----------------------------------------------------------------------------------

    def flush(self, now_ns: int) -> list[Datagram]:
        """Ends an input or a read batch: the datagrams to log and send, in order."""
        plant = self.plant
        if not plant.unsettled:
            return plant.packets.flush(now_ns)
        if self.directory.has_changes:
            self._apply_changes(now_ns)
        if self._upstream_changed or plant.phase is not FeedPhase.READY:
            self._set_upstream()
        return plant.flush(now_ns)

    def wants_attention(self, armed_ns: int) -> bool:
        """Whether the shell has to look for commands, look-ups and deadlines, its timer being armed for `armed_ns`."""
        return self.plant.unsettled or self.plant.packets.next_heartbeat_ns < armed_ns

    def settle(self) -> None:
        """The shell is about to look at all of that."""
        self.plant.unsettled = False

    def next_deadline_ns(self) -> int:
        """When `handle_timer` wants to be called."""
        deadline_ns = self.plant.next_deadline_ns()
        others_ns = [connection.next_deadline_ns() for connection in self.connections]
        for other_ns in (self.directory.next_deadline_ns(), *others_ns):
            if other_ns is not None and other_ns < deadline_ns:
                deadline_ns = other_ns
        return deadline_ns

    @property
    def log_on(self) -> bool:
        """Whether what is published can be repaired from the tick log."""
        return self.plant.log_on

    @property
    def ended(self) -> bool:
        """Whether the last end of session was handed out."""
        return self.plant.ended

    def take_look_ups(self) -> list[LookUp]:
        """What only REST can tell; each is handed out once."""
        look_ups, self._look_ups = self._look_ups, []
        return look_ups

    def counters(self) -> Iterator[tuple[str, int]]:
        """(name, value) over all connections."""
        for values in zip(*(c.counters.plain() for c in self.connections), strict=True):
            yield values[0][0], sum(value for _, value in values)

    # --- FeedEvents -------------------------------------------------------------------------------

    def is_chosen(self, ticker: str) -> bool:
        """Whether trades and tickers of a market are published."""
        return self._passes_all or ticker in self._chosen

    def subscriptions_changed(self) -> None:
        """The phase of the feed is looked at again at the next flush."""
        self._upstream_changed = True

    def lifecycle(self, frame: MarketLifecycle | MultivariateLifecycle) -> None:
        """Applied to the directory; its changes take effect at the next flush."""
        combo = isinstance(frame, MultivariateLifecycle)
        self.directory.apply_lifecycle(frame.msg, self.plant.now_ns, combo=combo)

    def event_lifecycle(self, frame: EventLifecycle) -> None:
        """Applied to the directory."""
        self.directory.apply_event_lifecycle(frame.msg, self.plant.now_ns)

    def lifecycle_gap(self) -> None:
        """Asks the shell to read the markets again."""
        self.refresh_wanted = True

    # --- changes ----------------------------------------------------------------------------------

    def _connection_of(self, ticker: str) -> FeedConnection:
        return self.connections[crc32(ticker.encode()) % len(self.connections)]

    def _apply_changes(self, now_ns: int) -> None:
        for change in self.directory.take_changes():
            self._apply_change(change, now_ns)

    def _apply_change(self, change: Change, now_ns: int) -> None:
        plant = self.plant
        if isinstance(change, Subscribe):
            self._chosen.add(change.ticker)
            entry = plant.open_book(change.ticker)
            if entry is not None:
                self._connection_of(change.ticker).want_book(entry)
        elif isinstance(change, Unsubscribe):
            self._chosen.discard(change.ticker)
            self._connection_of(change.ticker).unwant_book(change.ticker)
            closing = plant.entries.get(change.ticker)
            if closing is not None:
                plant.close_book(closing)
        elif isinstance(change, InfoChanged):
            plant.publish_market(change.record.ticker, info=change.record.info(plant.g, now_ns))
        elif isinstance(change, PhaseChanged):
            plant.publish_market(change.ticker, state=change.state(plant.g, now_ns))
        else:
            self._look_ups.append(change)

    def _set_upstream(self, cause: str = "") -> None:
        self._upstream_changed = False
        self.plant.set_upstream(
            connections_missing=not all(connection.is_open for connection in self.connections),
            discovered=self._discovered and all(c.complete for c in self.connections),
            cause=cause,
        )
