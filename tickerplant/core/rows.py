"""Messages to rows of the store's tables (`core.tables`). Pure, and without memory.

The same datagrams always give the same rows, whoever maps them and wherever he begins: keys depend on the log alone.
Every message gives at least one row, so that each `seq` of a stream is accounted for in the tables of that stream.
"""

from collections.abc import Callable, Iterable
from typing import Any

from tickerplant.core.book import Book, Level
from tickerplant.core.messages import (
    AnyMessage,
    Bbo,
    BookClear,
    BookLevels,
    BookReady,
    BookStale,
    BookState,
    BookVerify,
    FeedPhase,
    FeedState,
    GapCause,
    LevelUpdate,
    MarketInfo,
    MarketPhase,
    MarketState,
    SessionStart,
    Side,
    StaleReason,
    Stream,
    Ticker,
    Trade,
    UpdateCause,
    UpstreamGap,
)
from tickerplant.core.tables import TABLES
from tickerplant.core.wire import Header, Kind, decode_body, decode_header
from tickerplant.limits import ROW_CLOCK_DIFFERENCE_MAX_NS

Row = tuple[Any, ...]
"""Values in the order of the table's columns; None is null. Times are integers (ns), levels two tuples of integers."""
Rows = dict[str, list[Row]]
"""Rows by table name."""

SOURCE_LIVE = "live"
"""`source` of rows from the plant's own feed."""
MILLISECOND_NS = 1_000_000


class _Names(dict[int, str]):
    """Lower-case names of an enumeration; an unknown value is its number as text."""

    def __missing__(self, value: int) -> str:
        return str(value)


def _names(enumeration: Iterable[Any]) -> _Names:
    return _Names({member.value: member.name.lower() for member in enumeration})


SIDE_NAMES = _names(Side)
STATE_NAMES = _names(BookState)
CAUSE_NAMES = _names(UpdateCause)
REASON_NAMES = _names(StaleReason)
GAP_NAMES = _names(GapCause)
PHASE_NAMES = _names(MarketPhase)
FEED_NAMES = _names(FeedPhase)
STREAM_NAMES = _names(Stream)


class RowMapper:
    """Collects the rows of datagrams until they are taken."""

    def __init__(self) -> None:
        self._rows: Rows = {}
        self.message_count = 0
        self._begin()

    def add_datagram(self, datagram: bytes) -> None:
        """Add the rows of a logged datagram; heartbeats and ends of session have none.

        Raises `WireError` if it does not decode; then nothing was added.
        """
        header = decode_header(datagram)
        if header.kind == Kind.DATA:
            self.add_messages(header, decode_body(datagram, header))

    def add_messages(self, header: Header, messages: list[AnyMessage | None]) -> None:
        """Add the rows of the decoded body of a data datagram."""
        session, seq = header.session, header.seq
        for message in messages:
            kind = type(message)
            if kind is LevelUpdate:
                self._add_update(update_row(message, session, seq))  # type: ignore[arg-type]  # its type was compared
            elif kind is Bbo:
                self._add_bbo(bbo_row(message, session, seq))  # type: ignore[arg-type]  # its type was compared
            else:
                self._add_other(message, header, seq)
            seq += 1
        self.message_count += len(messages)

    @property
    def row_count(self) -> int:
        """Rows collected."""
        return sum(map(len, self._rows.values()))

    def take(self) -> Rows:
        """The rows collected so far, tables without any left out; forgets them."""
        rows = {name: table for name, table in self._rows.items() if table}
        self._begin()
        return rows

    def _begin(self) -> None:
        self._rows = {name: [] for name in TABLES}
        self._add_update = self._rows["orderbook_deltas"].append
        self._add_bbo = self._rows["bbo"].append
        self.message_count = 0

    def _add_other(self, message: AnyMessage | None, header: Header, seq: int) -> None:
        for table, row in _OTHER_ROWS[type(message)](message, header, seq):
            self._rows[table].append(row)


def update_row(message: LevelUpdate, session: int, seq: int) -> Row:
    """A row of `orderbook_deltas`."""
    ts_recv = message.ts_recv_ns
    return (
        ts_recv,
        message.ts_event_ns or ts_recv,
        session,
        seq,
        message.g,
        message.ticker,
        "update",
        SIDE_NAMES[message.side],
        message.price_e4,
        message.delta_e2,
        message.size_e2,
        CAUSE_NAMES[message.cause],
        None,
    )


def bbo_row(message: Bbo, session: int, seq: int) -> Row:
    """A row of `bbo`."""
    ts_recv = message.ts_recv_ns
    return (
        ts_recv,
        message.ts_event_ns or ts_recv,
        session,
        seq,
        message.g,
        message.ticker,
        message.bid_e4,
        message.bid_size_e2,
        message.ask_e4,
        message.ask_size_e2,
        STATE_NAMES[message.state],
    )


def book_snapshot_row(ts_recv: int, session: int, seq: int, ticker: str, book: Book) -> Row:
    """A row of `book_snapshots`: the whole book after message `seq` of stream delta."""
    sides = book.depth(book.level_count)
    return (ts_recv, session, seq, ticker, *map(_levels, sides), book.checksum())


def trade_time_ns(ts_event_ns: int, ts_recv_ns: int) -> int:
    """`ts` of a trade: its time cut to the millisecond, as both the live feed and REST give it.

    A time that is absent, or so far from the receive time that it cannot be one, is replaced by the receive time.
    """
    if abs(ts_event_ns - ts_recv_ns) > ROW_CLOCK_DIFFERENCE_MAX_NS:
        ts_event_ns = ts_recv_ns
    return ts_event_ns - ts_event_ns % MILLISECOND_NS


# --- the rarer messages: lists of (table, row) ------------------------------------------------------

_TableRow = tuple[str, Row]


def _levels(levels: list[Level]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(price_e4 for price_e4, _ in levels), tuple(size_e2 for _, size_e2 in levels)


def _place(message: AnyMessage, header: Header, seq: int) -> Row:
    """The columns that every row of a table whose time is `ts_recv` begins with."""
    ts_recv = message.ts_recv_ns
    return (ts_recv, message.ts_event_ns or ts_recv, header.session, seq, message.g)


def _trade(message: Trade, header: Header, seq: int) -> list[_TableRow]:
    ts = trade_time_ns(message.ts_event_ns, message.ts_recv_ns)
    place = (ts, message.ts_recv_ns, header.session, seq, message.g)
    return [
        (
            "trades",
            (
                *place,
                message.ticker,
                message.trade_id,
                message.price_e4,
                message.size_e2,
                SIDE_NAMES[message.taker_side],
                message.is_block,
                SOURCE_LIVE,
                None,
            ),
        )
    ]


def _ticker(message: Ticker, header: Header, seq: int) -> list[_TableRow]:
    values = (
        message.ticker,
        message.last_e4,
        message.last_size_e2,
        message.bid_e4,
        message.bid_size_e2,
        message.ask_e4,
        message.ask_size_e2,
        message.volume_e2,
        message.open_interest_e2,
        message.dollar_volume,
        message.dollar_open_interest,
    )
    return [("tickers", (*_place(message, header, seq), *values))]


def _delta(message: AnyMessage, header: Header, seq: int, *values: Any) -> _TableRow:
    return "orderbook_deltas", (*_place(message, header, seq), message.ticker, *values)


def _book_stale(message: BookStale, header: Header, seq: int) -> list[_TableRow]:
    reason = REASON_NAMES[message.reason]
    return [_delta(message, header, seq, "stale", None, None, None, None, reason, None)]


def _book_clear(message: BookClear, header: Header, seq: int) -> list[_TableRow]:
    return [_delta(message, header, seq, "clear", None, None, None, None, None, None)]


def _book_levels(message: BookLevels, header: Header, seq: int) -> list[_TableRow]:
    """One row a level; a part without any is one row without side and price."""
    levels: list[tuple[str | None, int | None, int | None]] = [
        (side, price_e4, size_e2)
        for side, levels in (("bid", message.bids), ("ask", message.asks))
        for price_e4, size_e2 in levels
    ]
    return [
        _delta(message, header, seq, "image", side, price_e4, None, size_e2, None, None)
        for side, price_e4, size_e2 in levels or [(None, None, None)]
    ]


def _book_ready(message: BookReady, header: Header, seq: int) -> list[_TableRow]:
    return [_delta(message, header, seq, "ready", None, None, None, None, None, message.checksum)]


def _book_verify(message: BookVerify, header: Header, seq: int) -> list[_TableRow]:
    return [_delta(message, header, seq, "verify", None, None, None, None, None, message.checksum)]


def _told(message: AnyMessage, header: Header, seq: int) -> Row:
    """The columns that every row of a table whose time is `ts_sent` begins with."""
    return (header.ts_send_ns, *_place(message, header, seq))


def _market_info(message: MarketInfo, header: Header, seq: int) -> list[_TableRow]:
    told = _told(message, header, seq)
    event, series = message.event_ticker, message.series_ticker
    bands = ",".join(f"[{start},{end},{step}]" for start, end, step in message.price_bands)
    market = (
        message.ticker,
        "info",
        event or None,
        series or None,
        message.open_ns or None,
        message.close_ns or None,
        message.price_level_structure or None,
        message.strike_type or None,
        f"[{bands}]",
        message.floor_strike or None,
        message.cap_strike or None,
        *(None, None, None, None),
        SOURCE_LIVE,
    )
    rows: list[_TableRow] = [("markets", (*told, *market))]
    if event:
        rows.append(("events", (*told, event, series or None, None, None, SOURCE_LIVE)))
    if series:
        rows.append(("series", (*told, series, None, None, None, SOURCE_LIVE)))
    return rows


def _market_state(message: MarketState, header: Header, seq: int) -> list[_TableRow]:
    settlement_e4 = message.settlement_e4 if message.settlement_e4 >= 0 else None
    market = (
        *(message.ticker, "state", *(None,) * 9),
        PHASE_NAMES[message.phase],
        message.result or None,
        settlement_e4,
        None,
        SOURCE_LIVE,
    )
    return [("markets", (*_told(message, header, seq), *market))]


def _feed_event(place: Row, header: Header, *values: Any) -> list[_TableRow]:
    """`values`: ticker, kind and the columns after it."""
    return [("feed_events", (*place, STREAM_NAMES[header.stream], *values))]


def _session_start(message: SessionStart, header: Header, seq: int) -> list[_TableRow]:
    finals = ", ".join(f"{STREAM_NAMES[stream]} {final}" for stream, final in message.final_seqs)
    values = (None, "session_start", None, None, None, None, None, message.previous_session)
    return _feed_event(_place(message, header, seq), header, *values, finals or None)


def _feed_state(message: FeedState, header: Header, seq: int) -> list[_TableRow]:
    values = (None, "feed_state", FEED_NAMES[message.phase], *(None,) * 5, message.cause or None)
    return _feed_event(_place(message, header, seq), header, *values)


def _upstream_gap(message: UpstreamGap, header: Header, seq: int) -> list[_TableRow]:
    values = (
        message.ticker or None,
        "upstream_gap",
        None,
        GAP_NAMES[message.cause],
        message.from_ns or None,
        message.to_ns or None,
        STREAM_NAMES[message.on_stream],
        None,
        None,
    )
    return _feed_event(_place(message, header, seq), header, *values)


def _unknown(_message: None, header: Header, seq: int) -> list[_TableRow]:
    """A message of a newer plant: its place in the sequence, and when it was sent."""
    place = (header.ts_send_ns, header.ts_send_ns, header.session, seq, None)
    return _feed_event(place, header, None, "unknown", *(None,) * 7)


_OTHER_ROWS: dict[type, Callable[[Any, Header, int], list[_TableRow]]] = {
    Trade: _trade,
    UpstreamGap: _upstream_gap,
    Ticker: _ticker,
    BookStale: _book_stale,
    BookClear: _book_clear,
    BookLevels: _book_levels,
    BookReady: _book_ready,
    BookVerify: _book_verify,
    SessionStart: _session_start,
    MarketInfo: _market_info,
    MarketState: _market_state,
    FeedState: _feed_state,
    type(None): _unknown,
}
