"""Messages to columns: the very rows that `RowMapper` makes of the same datagrams, whatever is in them."""

import random
from itertools import repeat

import msgspec
import pytest

from tickerplant.core.columns import (
    ColumnMapper,
    Columns,
    Constant,
    Integers,
    Symbols,
    columns_of,
    join,
)
from tickerplant.core.messages import (
    Bbo,
    BookLevels,
    BookReady,
    BookVerify,
    LevelUpdate,
    MarketState,
    Stream,
    Ticker,
    Trade,
    UpstreamGap,
)
from tickerplant.core.rows import RowMapper
from tickerplant.core.wire import (
    HeartbeatBody,
    Kind,
    decode_header,
    encode_datagram,
    encode_heartbeat,
    frame_body,
)
from tickerplant.errors import WireError

SESSION = 1_790_000_000_000_000_000


def usual(draw: random.Random, stream: Stream) -> object:
    """A message as nearly all of the stream are; now and then with a value that no enumeration has."""
    received = SESSION + draw.randrange(10**12)
    event = draw.choice((0, received - 7_000_000, received - 10**15, 2**63 + 5))
    place = (draw.choice(("A", "KXÜ-1", "")), draw.randrange(10**6), event, received)
    small = draw.randrange(3) if draw.random() < 0.9 else draw.choice((7, 300, -1))
    numbers = [draw.randrange(-(10**9), 10**12) for _ in range(10)]
    match stream:
        case Stream.DELTA:
            return LevelUpdate(*place, small, *numbers[:3], draw.randrange(3))
        case Stream.BBO:
            return Bbo(*place, *numbers[:4], small)
        case Stream.TRADE:
            return Trade(*place, str(numbers[0]), *numbers[:2], small, draw.random() < 0.5)
        case Stream.TICKER:
            return Ticker(*place, *numbers)
        case _:
            return MarketState(*place, small)


def rare(draw: random.Random, stream: Stream) -> object:
    place = ("A", 5, 0, SESSION + draw.randrange(10**12))
    if stream in (Stream.TRADE, Stream.TICKER):
        return UpstreamGap(*place, 1, 2, 1, stream)
    if stream == Stream.DELTA:
        levels = tuple((price, 5) for price in range(draw.randrange(4)))
        image = BookLevels(*place, 0, 1, levels, levels[:1])
        return draw.choice((image, BookReady(*place, 9), BookVerify(*place, 9)))
    return usual(draw, stream)


def body_of(draw: random.Random, stream: Stream, count: int) -> bytes:
    """So many messages; rarely of another kind, of a newer or an older plant, or broken."""
    messages: list[object] = [usual(draw, stream) for _ in range(count)]
    chance, index = draw.random(), draw.randrange(count)
    if chance < 0.1:
        messages[index] = rare(draw, stream)
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(messages))
    if 0.1 < chance < 0.2:
        fields[index].append("a field of a newer plant")
    elif 0.2 < chance < 0.25 and stream in (Stream.DELTA, Stream.TRADE):
        del fields[index][-1]
    elif 0.25 < chance < 0.3:
        fields[index] = [200, "a message of a newer plant"]
    elif 0.3 < chance < 0.35:
        fields[index][3] = "no time"
    body = msgspec.msgpack.encode(fields)
    return body[:-3] if 0.35 < chance < 0.4 else body


def datagrams(draw: random.Random, count: int) -> list[bytes]:
    made, seqs = [], dict.fromkeys(Stream, 1)
    session = SESSION
    for number in range(count):
        if draw.random() < 0.01:
            session, seqs = session + 1, dict.fromkeys(Stream, 1)
        stream, size = draw.choice(list(Stream)), draw.randrange(1, 8)
        # A hole here and there.
        seqs[stream] += draw.random() < 0.05
        place = {"session": session, "seq": seqs[stream], "ts_send_ns": SESSION + number}
        body = body_of(draw, stream, size)
        # The header of some is wrong about what is in them.
        told = size if draw.random() < 0.98 else size + 1
        made.append(frame_body(body, kind=0, stream=stream, count=told, **place))
        seqs[stream] += size
    return made


def outcome(step) -> str:
    try:
        step()
    except WireError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("seed", range(8))
def test_columns_are_the_rows_of_the_same_datagrams(seed):
    draw = random.Random(seed)
    mapper, reference, rows = ColumnMapper(), RowMapper(), {}
    failures = 0
    for datagram in datagrams(draw, 1_000):
        header = decode_header(datagram)
        told = outcome(lambda: mapper.add(header, datagram))  # noqa: B023  # called at once
        assert told == outcome(lambda: reference.add_datagram(datagram))  # noqa: B023  # called at once
        failures += bool(told)
        assert mapper.row_count == reference.row_count - sum(map(len, rows.values()))
        if draw.random() < 0.02:
            collect(mapper, rows)
    collect(mapper, rows)
    assert rows == reference.take()
    assert 20 < failures < 500
    assert len(rows["orderbook_deltas"]) > 500


def test_joined_columns_are_the_rows_of_all_in_order():
    draw = random.Random(3)
    mapper, parts = ColumnMapper(), []
    for datagram in datagrams(draw, 400):
        outcome(lambda: mapper.add(decode_header(datagram), datagram))  # noqa: B023  # called at once
        if draw.random() < 0.1:
            parts.append(mapper.take())
    for table in ("orderbook_deltas", "bbo", "trades", "tickers", "feed_events"):
        of_table = [part[table] for part in parts if table in part]
        of_table.insert(2, of_table[0].rows())
        rows = [row for one in of_table for row in columns_of(one).rows()]
        assert join(of_table).rows() == rows
        assert join(of_table).row_count == len(rows) > 20
    same = join([Columns(2, [Constant("live"), Symbols((0, 1), ("bid", "ask"))])] * 2)
    assert same.values == [Constant("live"), Symbols([0, 1, 0, 1], ("bid", "ask"))]


def collect(mapper: ColumnMapper, rows: dict) -> None:
    for name, columns in mapper.take().items():
        assert columns.row_count == len(columns.rows())
        rows.setdefault(name, []).extend(columns.rows())
    assert mapper.row_count == 0
    assert mapper.take() == {}


def test_messages_come_back_as_they_were_decoded():
    mapper = ColumnMapper()
    update, ready = LevelUpdate("A", 1, 0, SESSION, 1, 100, 5, 5), BookReady("A", 1, 0, SESSION, 7)
    for messages, wanted in (
        ([update, update], [msgspec.structs.astuple(update)] * 2),
        ([update, ready], [update, ready]),
    ):
        datagram = encode_datagram(0, Stream.DELTA, SESSION, 1, SESSION, messages)
        found = list(mapper.add(decode_header(datagram), datagram))
        assert found == [(5, *one) if type(one) is tuple else one for one in wanted]
    heartbeat = encode_heartbeat(Stream.BBO, SESSION, 5, SESSION, HeartbeatBody(7))
    with pytest.raises(AssertionError):
        mapper.add(decode_header(heartbeat), heartbeat)
    assert decode_header(heartbeat).kind == Kind.HEARTBEAT


def test_what_is_the_same_in_all_rows_is_kept_once():
    mapper = ColumnMapper()
    for seq in (1, 3):
        updates = repeat(LevelUpdate("A", 1, 0, SESSION, 0, 100, 5, 5), 2)
        datagram = encode_datagram(0, Stream.DELTA, SESSION, seq, SESSION, list(updates))
        mapper.add(decode_header(datagram), datagram)
    values = mapper.take()["orderbook_deltas"].values
    assert values[2:4] == [Constant(SESSION), Integers(range(1, 5))]
    assert values[6:8] == [Constant("update"), Constant("bid")]


def test_columns_of_any_form_give_their_rows():
    symbols = Symbols((1, 0, 1), ("bid", "ask"))
    columns = Columns(3, [Integers(range(4, 7)), Constant(None), symbols])
    rows = [(4, None, "ask"), (5, None, "bid"), (6, None, "ask")]
    assert columns.rows() == rows == columns_of(rows).rows()
    assert columns_of(columns) is columns
