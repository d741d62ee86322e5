"""Messages to columns of the store's tables: the same rows as `core.rows` makes, in a fraction of the time.

The kinds that are nearly all of a feed (changes of a level, quotes, trades, tickers) are decoded as plain tuples,
body by body, and turned into columns together. A body that holds anything else, or holds it in another form, is mapped
message by message with `RowMapper`. Pure, and without memory beyond what is not yet taken.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, repeat
from typing import Any, Literal, NamedTuple, TypeGuard

import msgspec

from tickerplant.core.messages import AnyMessage, Bbo, LevelUpdate, Message, Stream, Ticker, Trade
from tickerplant.core.rows import (
    CAUSE_NAMES,
    SIDE_NAMES,
    SOURCE_LIVE,
    STATE_NAMES,
    Row,
    RowMapper,
    trade_time_ns,
)
from tickerplant.core.tables import TABLES
from tickerplant.core.wire import Header, Kind, decode_body
from tickerplant.limits import HEADER_BYTES

Fields = tuple[Any, ...]
"""A message as it is on the wire: its tag, then its fields in order."""
Messages = Sequence[Fields] | Sequence[AnyMessage | None]
"""Of one datagram, never none."""


def is_fields(messages: Messages) -> TypeGuard[Sequence[Fields]]:
    """Whether they are of the usual kind of their stream, as fields."""
    return type(messages[0]) is tuple


class Constant(NamedTuple):
    """A column with the same value in every row."""

    value: Any


class Symbols(NamedTuple):
    """A column of texts: `texts[code]` for each of `codes`."""

    codes: Sequence[int]
    texts: tuple[str, ...]


class Integers(NamedTuple):
    """A column of integers, none of them null."""

    values: Sequence[int]


ColumnValues = Sequence[Any] | Constant | Symbols | Integers
"""A value for each row, None being null; see `rows.Row`."""


class Columns:
    """Rows of one table, column by column in the order of the table's."""

    __slots__ = ("row_count", "values")

    def __init__(self, row_count: int, values: Sequence[ColumnValues]) -> None:
        self.row_count = row_count
        self.values = values

    def lists(self) -> list[Sequence[Any]]:
        """Every column with its values one by one."""
        return [self.list_of(index) for index in range(len(self.values))]

    def rows(self) -> list[Row]:
        """The same, row by row."""
        return list(zip(*self.lists(), strict=True))

    def list_of(self, index: int) -> Sequence[Any]:
        """The values of one column."""
        values = self.values[index]
        if isinstance(values, Constant):
            return list(repeat(values.value, self.row_count))
        if isinstance(values, Symbols):
            return [values.texts[code] for code in values.codes]
        return values.values if isinstance(values, Integers) else values


Tables = Mapping[str, Columns | Sequence[Row]]
"""Rows by table name, in columns or one by one."""


def columns_of(rows: Columns | Sequence[Row]) -> Columns:
    """`rows` in columns; there is at least one."""
    if isinstance(rows, Columns):
        return rows
    return Columns(len(rows), list(zip(*rows, strict=True)))


def count_of(rows: Columns | Sequence[Row]) -> int:
    """How many rows."""
    return rows.row_count if isinstance(rows, Columns) else len(rows)


def join(parts: Sequence[Columns | Sequence[Row]]) -> Columns:
    """All rows of the parts, of which there is at least one, in their order."""
    if len(parts) == 1:
        return columns_of(parts[0])
    every = [columns_of(part) for part in parts if count_of(part)]
    width = range(len(every[0].values))
    return Columns(
        sum(part.row_count for part in every), [_join_column(every, index) for index in width]
    )


def _join_column(parts: list[Columns], index: int) -> ColumnValues:
    values = [part.values[index] for part in parts]
    first = values[0]
    if isinstance(first, Constant) and all(one == first for one in values):
        return first
    if all(isinstance(one, Integers) for one in values):
        return Integers(list(chain.from_iterable(one.values for one in values)))  # type: ignore[union-attr]  # see above
    if isinstance(first, Symbols) and all(
        isinstance(one, Symbols) and one.texts == first.texts for one in values
    ):
        codes = chain.from_iterable(one.codes for one in values)  # type: ignore[union-attr]  # see above
        return Symbols(list(codes), first.texts)
    return list(chain.from_iterable(part.list_of(index) for part in parts))


class _Run:
    """Messages of one kind and session in the order of their stream, with their sequences."""

    __slots__ = ("messages", "seqs", "session")

    def __init__(self, session: int, seq: int, messages: list[Fields]) -> None:
        self.session = session
        self.messages = messages
        self.seqs = [range(seq, seq + len(messages))]

    def add(self, seq: int, messages: list[Fields]) -> None:
        end = seq + len(messages)
        last = self.seqs[-1]
        if last.stop == seq:
            self.seqs[-1] = range(last.start, end)
        else:
            self.seqs.append(range(seq, end))
        self.messages += messages

    def places(self) -> tuple[Constant, Integers]:
        """The columns `session` and `seq`."""
        seqs = self.seqs
        return Constant(self.session), Integers(seqs[0] if len(seqs) == 1 else list(chain(*seqs)))


_Piece = _Run | list[Row]


class ColumnMapper:
    """Collects the rows of data datagrams until they are taken."""

    def __init__(self) -> None:
        self.row_count = 0
        """Rows collected."""
        self._pieces: dict[str, list[_Piece]] = {name: [] for name in TABLES}
        self._slow = RowMapper()

    def add(self, header: Header, datagram: bytes) -> Messages:
        """Add the rows of a data datagram; its messages, as fields where all are of the usual kind of their stream.

        Raises `WireError` if it does not decode; then nothing was added.
        """
        assert header.kind == Kind.DATA
        usual = _USUAL.get(header.stream)
        if usual is not None:
            try:
                messages = usual.decode(datagram[HEADER_BYTES : HEADER_BYTES + header.body_bytes])
            except (msgspec.DecodeError, UnicodeDecodeError):
                messages = []
            if len(messages) == header.message_count:
                self._add_usual(usual.table, header, messages)
                return messages
        others = decode_body(datagram, header)
        self._add_others(header, others)
        return others

    def take(self) -> dict[str, Columns]:
        """The rows collected so far, tables without any left out; forgets them."""
        taken = {
            name: join([_columns(name, piece) for piece in pieces])
            for name, pieces in self._pieces.items()
            if pieces
        }
        self.row_count = 0
        for pieces in self._pieces.values():
            pieces.clear()
        return taken

    def _add_usual(self, table: str, header: Header, messages: list[Fields]) -> None:
        self.row_count += len(messages)
        pieces = self._pieces[table]
        last = pieces[-1] if pieces else None
        if isinstance(last, _Run) and last.session == header.session:
            last.add(header.seq, messages)
        else:
            pieces.append(_Run(header.session, header.seq, messages))

    def _add_others(self, header: Header, messages: list[AnyMessage | None]) -> None:
        self._slow.add_messages(header, messages)
        for name, rows in self._slow.take().items():
            self.row_count += len(rows)
            pieces = self._pieces[name]
            last = pieces[-1] if pieces else None
            if isinstance(last, list):
                last += rows
            else:
                pieces.append(rows)


def _columns(table: str, piece: _Piece) -> Columns:
    if isinstance(piece, list):
        return columns_of(piece)
    return Columns(len(piece.messages), _COLUMNS[table](piece))


# --- the usual kinds: tuples of fields to the columns of their table --------------------------------


def _times(events: Sequence[int], received: Sequence[int]) -> Integers:
    """The column `ts`: the time of the event; where there is none, when it was received."""
    if 0 not in events:
        return Integers(events)
    pairs = zip(events, received, strict=True)
    return Integers([event_ns or recv_ns for event_ns, recv_ns in pairs])


def _symbols(values: Sequence[int], names: Mapping[int, str]) -> ColumnValues:
    """The names of the values of an enumeration, the known ones of which are 0, 1, …."""
    distinct = set(values)
    if len(distinct) == 1:
        return Constant(names[distinct.pop()])
    if distinct <= names.keys():
        return Symbols(values, tuple(names[code] for code in range(len(names))))
    return [names[value] for value in values]


def _updates(run: _Run) -> list[ColumnValues]:
    _, tickers, g, events, received, sides, *numbers, causes = zip(*run.messages, strict=True)
    return [
        *(*_begin(run, g, events, received), tickers, Constant("update")),
        *(_symbols(sides, SIDE_NAMES), *map(Integers, numbers)),
        *(_symbols(causes, CAUSE_NAMES), Constant(None)),
    ]


def _quotes(run: _Run) -> list[ColumnValues]:
    _, tickers, g, events, received, *numbers, states = zip(*run.messages, strict=True)
    return [
        *(*_begin(run, g, events, received), tickers),
        *(*map(Integers, numbers), _symbols(states, STATE_NAMES)),
    ]


def _trades(run: _Run) -> list[ColumnValues]:
    _, tickers, g, events, received, ids, prices, sizes, sides, is_block = zip(
        *run.messages, strict=True
    )
    times = Integers(list(map(trade_time_ns, events, received)))
    return [
        *(times, Integers(received), *run.places(), Integers(g), tickers, ids),
        *(Integers(prices), Integers(sizes), _symbols(sides, SIDE_NAMES), is_block),
        *(Constant(SOURCE_LIVE), Constant(None)),
    ]


def _tickers(run: _Run) -> list[ColumnValues]:
    _, tickers, g, events, received, *values = zip(*run.messages, strict=True)
    last_e4, *quote, volume_e2, open_interest_e2, last_size_e2, dollars, open_dollars = values
    numbers = (last_e4, last_size_e2, *quote, volume_e2, open_interest_e2, dollars, open_dollars)
    return [*_begin(run, g, events, received), tickers, *map(Integers, numbers)]


def _begin(
    run: _Run, g: Sequence[int], events: Sequence[int], received: Sequence[int]
) -> list[ColumnValues]:
    """The columns that every table whose time is `ts_recv` begins with."""
    return [Integers(received), _times(events, received), *run.places(), Integers(g)]


class _Usual(NamedTuple):
    """The kind of message that nearly all of a stream is, and its table."""

    table: str
    decode: Callable[[bytes], list[Fields]]


def _usual(table: str, kind: type[Message]) -> _Usual:
    """Bodies of this kind alone, each message as a tuple of what its struct is on the wire."""
    tag = kind.__struct_config__.tag
    types = [field.type for field in msgspec.structs.fields(kind)]
    fields: Any = tuple[(Literal[tag], *types)]  # type: ignore[valid-type]  # made here, not written
    decode: Callable[[bytes], list[Fields]] = msgspec.msgpack.Decoder(list[fields]).decode
    return _Usual(table, decode)


_USUAL: Mapping[int, _Usual] = {
    Stream.DELTA: _usual("orderbook_deltas", LevelUpdate),
    Stream.BBO: _usual("bbo", Bbo),
    Stream.TRADE: _usual("trades", Trade),
    Stream.TICKER: _usual("tickers", Ticker),
}
_COLUMNS: Mapping[str, Callable[[_Run], list[ColumnValues]]] = {
    "orderbook_deltas": _updates,
    "bbo": _quotes,
    "trades": _trades,
    "tickers": _tickers,
}
