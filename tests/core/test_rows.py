"""Messages to rows: every field in its column, every sequence number accounted for, the same from anywhere."""

import random

import pytest

from tickerplant.core.book import Book
from tickerplant.core.messages import (
    Bbo,
    BookClear,
    BookLevels,
    BookReady,
    BookStale,
    BookVerify,
    FeedState,
    LevelUpdate,
    MarketInfo,
    MarketState,
    SessionStart,
    Stream,
    Ticker,
    Trade,
    UpstreamGap,
)
from tickerplant.core.rows import RowMapper, book_snapshot_row, trade_time_ns
from tickerplant.core.tables import TABLES, ColumnType, Table
from tickerplant.core.wire import (
    MESSAGE_TYPES,
    HeartbeatBody,
    Kind,
    encode_datagram,
    encode_heartbeat,
    frame_body,
)
from tickerplant.errors import WireError

SESSION = 1_790_000_000_000_000_000
RECV = SESSION + 5_000_000_123
EVENT = SESSION + 4_990_000_000
SENT = RECV + 70_000
HEAD = ("KXBTC", 77, EVENT, RECV)

SAMPLES = {
    Stream.TRADE: [
        Trade(*HEAD, "c2b6a1d4-0f4e-4b43-9a1d-6f2f6f0f9b11", 3_500, 425, 0, True),
        UpstreamGap("", 78, 0, RECV, EVENT, RECV, 1, Stream.TRADE),
    ],
    Stream.BBO: [Bbo(*HEAD, 4_200, 100, 4_300, 500, 1), Bbo(*HEAD, 0, 0, 4_300, 500, 2)],
    Stream.TICKER: [Ticker(*HEAD, 4_200, 4_100, 7, 4_300, 9, 1_234, 999, 50, 12, 13)],
    Stream.DELTA: [
        BookClear("KXBTC", 70, 0, RECV),
        BookLevels("KXBTC", 70, 0, RECV, 0, 1, ((4_100, 5), (4_200, 100)), ((4_300, 500),)),
        BookReady("KXBTC", 70, 0, RECV, 4_000_000_000),
        LevelUpdate(*HEAD, 0, 4_200, -100, 0),
        LevelUpdate("KXBTC", 79, 0, RECV, 1, 4_300, 1, 501, 1),
        BookStale("KXBTC", 80, 0, RECV, 1),
        BookLevels("KXEMPTY", 81, 0, RECV, 0, 1, (), ()),
        BookVerify("KXBTC", 82, 0, RECV, 17),
    ],
    Stream.STATUS: [
        SessionStart("", 0, 0, RECV, SESSION - 9, ((1, 5), (4, 17))),
        MarketInfo(
            *HEAD, "KXBTC-E", "KXB", EVENT, 0, "linear", ((0, 10_000, 100),), "between", "1.5", ""
        ),
        MarketState(*HEAD, 5, "yes", 10_000),
        MarketState("KXBTC", 83, 0, RECV, 99),
        FeedState("", 84, 0, RECV, 2, "all books are live"),
    ],
}


def rows_of(*datagrams: bytes) -> dict[str, list[dict[str, object]]]:
    """The rows of each table as dicts."""
    mapper = RowMapper()
    for datagram in datagrams:
        mapper.add_datagram(datagram)
    return {
        name: [dict(zip(TABLES[name].column_names, row, strict=True)) for row in rows]
        for name, rows in mapper.take().items()
    }


def sampled(stream: Stream, seq: int = 101) -> bytes:
    return encode_datagram(Kind.DATA, stream, SESSION, seq, SENT, SAMPLES[stream])


def test_a_trade_is_a_row_at_its_own_millisecond():
    message = Trade("KXBTC", 77, EVENT + 1_234_567, RECV, "some-id", 3_500, 425, 0, True)
    datagram = encode_datagram(Kind.DATA, Stream.TRADE, SESSION, 101, SENT, [message])
    assert rows_of(datagram) == {
        "trades": [
            {
                "ts": EVENT + 1_000_000,
                "ts_recv": RECV,
                "session": SESSION,
                "seq": 101,
                "g": 77,
                "ticker": "KXBTC",
                "trade_id": "some-id",
                "price_e4": 3_500,
                "size_e2": 425,
                "taker_side": "bid",
                "is_block": True,
                "source": "live",
                "ts_created": None,
            }
        ]
    }


@pytest.mark.parametrize("event_ns", [0, 1, RECV - 25 * 3_600 * 10**9, 2**64 - 1])
def test_a_trade_without_a_credible_time_takes_the_receive_time(event_ns):
    assert trade_time_ns(event_ns, RECV) == RECV // 1_000_000 * 1_000_000
    assert trade_time_ns(EVENT, RECV) == EVENT


def test_book_messages_are_rows_of_one_table_from_which_the_book_can_be_rebuilt():
    rows = rows_of(sampled(Stream.DELTA))["orderbook_deltas"]
    common = {"ts_recv": RECV, "session": SESSION, "ticker": "KXBTC"}
    short = [
        (
            row["seq"],
            row["kind"],
            row["side"],
            row["price_e4"],
            row["delta_e2"],
            row["size_e2"],
            row["cause"],
            row["checksum"],
        )
        for row in rows
    ]
    assert short == [
        (101, "clear", None, None, None, None, None, None),
        (102, "image", "bid", 4_100, None, 5, None, None),
        (102, "image", "bid", 4_200, None, 100, None, None),
        (102, "image", "ask", 4_300, None, 500, None, None),
        (103, "ready", None, None, None, None, None, 4_000_000_000),
        (104, "update", "bid", 4_200, -100, 0, "exchange", None),
        (105, "update", "ask", 4_300, 1, 501, "resync", None),
        (106, "stale", None, None, None, None, "sequence_gap", None),
        (107, "image", None, None, None, None, None, None),
        (108, "verify", None, None, None, None, None, 17),
    ]
    assert all(row.items() >= common.items() for row in rows if row["seq"] != 107)
    assert [row["ts"] for row in rows if row["seq"] in {104, 105}] == [EVENT, RECV]


def test_quotes_and_tickers_keep_every_field():
    quotes = rows_of(sampled(Stream.BBO))["bbo"]
    assert [(row["bid_e4"], row["ask_e4"], row["state"]) for row in quotes] == [
        (4_200, 4_300, "live"),
        (0, 4_300, "stale"),
    ]
    (row,) = rows_of(sampled(Stream.TICKER))["tickers"]
    message = SAMPLES[Stream.TICKER][0]
    fields = set(message.__struct_fields__) - {"ts_event_ns", "ts_recv_ns"}
    assert {name: row[name] for name in fields} == {name: getattr(message, name) for name in fields}
    assert (row["ts"], row["ts_recv"]) == (EVENT, RECV)


def test_what_a_market_is_and_where_it_stands():
    rows = rows_of(sampled(Stream.STATUS))
    info, state, unknown_state = rows["markets"]
    assert (info["kind"], info["event_ticker"], info["series_ticker"]) == ("info", "KXBTC-E", "KXB")
    assert (info["ts_open"], info["ts_close"], info["cap_strike"]) == (EVENT, None, None)
    assert info["price_bands"] == "[[0,10000,100]]"
    assert (info["ts_sent"], info["ts_recv"], info["ts"]) == (SENT, RECV, EVENT)
    assert (state["kind"], state["phase"], state["result"]) == ("state", "determined", "yes")
    assert state["settlement_e4"] == 10_000
    assert (unknown_state["phase"], unknown_state["settlement_e4"]) == ("99", None)
    assert [row["event_ticker"] for row in rows["events"]] == ["KXBTC-E"]
    assert [row["series_ticker"] for row in rows["series"]] == ["KXB"]


def test_the_state_of_the_feed_and_its_losses():
    start, state = rows_of(sampled(Stream.STATUS))["feed_events"]
    assert (start["kind"], start["previous_session"]) == ("session_start", SESSION - 9)
    assert start["detail"] == "trade 5, delta 17"
    assert (state["kind"], state["phase"], state["detail"]) == (
        "feed_state",
        "ready",
        "all books are live",
    )
    (gap,) = rows_of(sampled(Stream.TRADE))["feed_events"]
    assert (gap["stream"], gap["kind"], gap["cause"]) == ("trade", "upstream_gap", "upstream")
    assert (gap["ts_from"], gap["ts_to"], gap["on_stream"]) == (EVENT, RECV, "trade")


def test_the_samples_cover_every_message():
    assert {type(message) for messages in SAMPLES.values() for message in messages} == set(
        MESSAGE_TYPES
    )


@pytest.mark.parametrize("stream", list(Stream))
def test_every_sequence_number_has_a_row_in_a_table_of_its_stream(stream):
    rows = rows_of(sampled(stream, seq=5))
    assert all(stream in TABLES[name].streams for name in rows)
    seqs = {row["seq"] for table in rows.values() for row in table}
    assert seqs == set(range(5, 5 + len(SAMPLES[stream])))


ALLOWED = {
    ColumnType.TIME: int,
    ColumnType.INTEGER: int,
    ColumnType.SYMBOL: str,
    ColumnType.TEXT: str,
    ColumnType.BOOLEAN: bool,
    ColumnType.LEVELS: tuple,
}


def assert_fits(table: Table, row: dict[str, object]) -> None:
    for column in table.columns:
        value = row[column.name]
        if value is None:
            assert column.name not in set(table.keys) - {"side", "price_e4"}, column
        else:
            assert type(value) is ALLOWED[column.type], column


@pytest.mark.parametrize("stream", list(Stream))
def test_values_are_of_the_type_of_their_column_and_keys_are_never_null(stream):
    for name, table in rows_of(sampled(stream)).items():
        for row in table:
            assert_fits(TABLES[name], row)


def test_rows_have_distinct_keys_and_do_not_depend_on_where_mapping_begins():
    random.seed(4)
    datagrams, seqs = [], dict.fromkeys(Stream, 1)
    for _ in range(300):
        stream = random.choice(list(Stream))
        chosen = random.choices(SAMPLES[stream], k=random.randint(1, 4))
        if stream is Stream.TRADE:
            chosen = [
                message if type(message) is not Trade else Trade(*HEAD, f"id-{number}", 3_500, 1, 0)
                for number, message in enumerate(chosen, start=seqs[stream])
            ]
        datagrams.append(
            encode_datagram(Kind.DATA, stream, SESSION, seqs[stream], SENT + len(datagrams), chosen)
        )
        seqs[stream] += len(chosen)
    whole = rows_of(*datagrams)
    for name, table in whole.items():
        keys = [tuple(row[key] for key in TABLES[name].keys) for row in table]
        assert len(set(keys)) == len(keys), name
    head, tail = rows_of(*datagrams[:111]), rows_of(*datagrams[111:])
    assert {name: head.get(name, []) + tail.get(name, []) for name in whole} == whole


def test_a_message_of_a_newer_plant_keeps_its_place():
    body = b"\x92" + b"\x92\xcc\xc8\xa1x" + b"\x95\x07\xa2KX\x01\x00\x02"
    datagram = frame_body(
        body, kind=0, stream=4, session=SESSION, seq=9, ts_send_ns=SENT, count=2, publisher=1
    )
    rows = rows_of(datagram)
    (unknown,) = rows["feed_events"]
    assert (unknown["kind"], unknown["stream"], unknown["seq"]) == ("unknown", "delta", 9)
    assert unknown["ts_recv"] == SENT
    assert rows["orderbook_deltas"][0]["seq"] == 10


def test_heartbeats_have_no_rows_and_garbage_is_refused_whole():
    body = HeartbeatBody(7, 1, True)
    assert rows_of(encode_heartbeat(Stream.BBO, SESSION, 5, SENT, body)) == {}
    mapper = RowMapper()
    good = sampled(Stream.DELTA)
    mapper.add_datagram(good)
    before = mapper.row_count
    with pytest.raises(WireError):
        mapper.add_datagram(good[:50] + b"\xc1" + good[51:])
    assert mapper.row_count == before
    assert mapper.message_count == len(SAMPLES[Stream.DELTA])
    assert mapper.take()["orderbook_deltas"]
    assert mapper.take() == {}


def test_a_snapshot_row_holds_both_sides_best_first():
    book = Book([(100, 5), (300, 7)], [(400, 1), (500, 2)])
    row = dict(
        zip(
            TABLES["book_snapshots"].column_names,
            book_snapshot_row(RECV, SESSION, 12, "KXBTC", book),
            strict=True,
        )
    )
    assert_fits(TABLES["book_snapshots"], row)
    assert row["bids"] == ((300, 100), (7, 5))
    assert row["asks"] == ((400, 500), (1, 2))
    assert row["checksum"] == book.checksum()
