"""The proof can fail: a log that is broken on purpose is found out by the audit, each in its way.

The mutations are kept here. Every record stays valid, and so does every datagram: only what they say is wrong.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from audited_course import (
    SESSION,
    TICKERS,
    AuditBed,
    AuditedCourse,
    rewritten,
    run_course,
    with_sent_ns,
    with_seq,
)
from msgspec.structs import replace

from tickerplant.audit.findings import Cause
from tickerplant.core.messages import (
    AnyMessage,
    Bbo,
    BookClear,
    BookLevels,
    BookReady,
    BookState,
    BookVerify,
    LevelUpdate,
    SessionStart,
    Stream,
    Ticker,
    Trade,
    UpdateCause,
)
from tickerplant.core.packets import Datagram
from tickerplant.core.wire import Kind, decode_header

Datagrams = list[Datagram]
Mutation = Callable[[Datagrams], Datagrams]


@pytest.fixture(scope="module")
def course() -> AuditedCourse:
    """A session in which nothing went wrong."""
    return run_course()


@pytest.fixture
def bed(tmp_path: Path) -> AuditBed:
    return AuditBed(tmp_path)


def test_what_is_not_mutated_passes(course: AuditedCourse, bed: AuditBed) -> None:
    """Log alone and with the capture: complete, and with something in it of everything that a mutation touches."""
    report = bed.audit(course.datagrams, course.records)
    assert (report.is_complete, report.findings) == (True, [])
    figures = report.figures["exchange"]
    for name in ("level changes equal", "trades equal", "tickers equal", "books compared"):
        assert int(figures[name]) > 50, name
    assert figures["datagrams equal when played again"] == sum(
        decode_header(datagram).kind == Kind.DATA for _, datagram in course.datagrams
    )
    assert report.figures["log"]["ended in order"] is True


# --- the log --------------------------------------------------------------------------------------


def data_at(datagrams: Datagrams, stream: Stream, number: int = 5) -> int:
    """Index of a data datagram of a stream, not one of the first."""
    found = [
        index
        for index, (at, datagram) in enumerate(datagrams)
        if at == stream and decode_header(datagram).kind == Kind.DATA
    ]
    return found[min(number, len(found) - 1)]


def lost(stream: Stream) -> Mutation:
    def mutate(datagrams: Datagrams) -> Datagrams:
        index = data_at(datagrams, stream, 2)
        return datagrams[:index] + datagrams[index + 1 :]

    return mutate


def doubled(stream: Stream) -> Mutation:
    def mutate(datagrams: Datagrams) -> Datagrams:
        index = data_at(datagrams, stream)
        return datagrams[: index + 1] + datagrams[index:]

    return mutate


def swapped(stream: Stream) -> Mutation:
    def mutate(datagrams: Datagrams) -> Datagrams:
        first, second = data_at(datagrams, stream, 3), data_at(datagrams, stream, 4)
        result = list(datagrams)
        result[first], result[second] = result[second], result[first]
        return result

    return mutate


def once(kind: type, change: Callable[[Any], Sequence[AnyMessage]], number: int = 10) -> Mutation:
    """Changes the message with this number among those of a type; the rest is numbered anew and stays valid."""

    def mutate(datagrams: Datagrams) -> Datagrams:
        seen = 0

        def apply(_seq: int, message: AnyMessage) -> Sequence[AnyMessage]:
            nonlocal seen
            if type(message) is not kind:
                return [message]
            seen += 1
            return change(message) if seen == number else [message]

        result = rewritten(datagrams, kind.stream, apply)
        assert seen >= number, f"only {seen} of {kind.__name__}"
        return result

    return mutate


def altered(kind: type, number: int = 10, **changes: Any) -> Mutation:
    """Fields of one message become others: a value, or a function of the old one."""

    def change(message: Any) -> list[AnyMessage]:
        values = {
            name: new(getattr(message, name)) if callable(new) else new
            for name, new in changes.items()
        }
        assert any(getattr(message, name) != value for name, value in values.items())
        return [replace(message, **values)]

    return once(kind, change, number)


def plus(amount: int) -> Callable[[int], int]:
    return lambda value: value + amount


def without(kind: type, number: int = 10) -> Mutation:
    return once(kind, lambda _message: [], number)


def twice(kind: type, number: int = 10) -> Mutation:
    return once(kind, lambda message: [message, message], number)


def late_heartbeat(datagrams: Datagrams) -> Datagrams:
    """A datagram and the heartbeat that would show it are gone, sequences numbered as if it had never been."""
    index = data_at(datagrams, Stream.TICKER)
    count = decode_header(datagrams[index][1]).message_count
    result = datagrams[:index]
    for at, datagram in datagrams[index + 1 :]:
        seq = decode_header(datagram).seq
        result.append((at, with_seq(datagram, seq - count) if at == Stream.TICKER else datagram))
    return result


def earlier(datagrams: Datagrams) -> Datagrams:
    index = data_at(datagrams, Stream.BBO)
    result = list(datagrams)
    result[index] = (result[index][0], with_sent_ns(result[index][1], SESSION))
    return result


def of_another_session(datagrams: Datagrams) -> Datagrams:
    index = data_at(datagrams, Stream.TRADE)
    at, datagram = datagrams[index]
    result = list(datagrams)
    result[index] = (at, datagram[:8] + (SESSION + 1).to_bytes(8, "little") + datagram[16:])
    return result


def on_another_stream(datagrams: Datagrams) -> Datagrams:
    """A trade in the numbers of the tickers."""
    return once(
        Ticker,
        lambda message: [
            Trade(
                message.ticker, message.g, 0, message.ts_recv_ns, "x", 4_000, 100, 0, is_block=False
            )
        ],
    )(datagrams)


def data_after_the_end(datagrams: Datagrams) -> Datagrams:
    index = data_at(datagrams, Stream.TRADE, 10**6)
    at, datagram = datagrams[index]
    header = decode_header(datagrams[-1][1])
    next_seq = next(
        decode_header(one).seq for stream, one in reversed(datagrams) if stream == Stream.TRADE
    )
    late = with_sent_ns(with_seq(datagram, next_seq), header.ts_send_ns)
    return [*datagrams, (at, late)]


LOG_MUTATIONS: dict[str, Mutation] = {
    **{f"a datagram of {stream.name} is lost": lost(stream) for stream in Stream},
    **{f"a datagram of {stream.name} stands twice": doubled(stream) for stream in Stream},
    **{
        f"two datagrams of {stream.name} are swapped": swapped(stream)
        for stream in (Stream.TRADE, Stream.BBO, Stream.TICKER, Stream.DELTA)
    },
    "the first datagram is lost": lambda datagrams: datagrams[1:],
    "the last messages are lost, their end is not": lambda datagrams: (
        datagrams[: data_at(datagrams, Stream.DELTA, 10**6)]
        + [one for one in datagrams if decode_header(one[1]).kind == Kind.END_OF_SESSION]
    ),
    "a datagram is lost and all that follow are numbered anew": late_heartbeat,
    "a datagram was sent earlier than the one before it": earlier,
    "a datagram is of another session": of_another_session,
    "a message stands on another's stream": on_another_stream,
    "messages follow the end of the session": data_after_the_end,
    "a level change is left out": without(LevelUpdate),
    "a level change is told twice": twice(LevelUpdate),
    "a level change has another size": altered(LevelUpdate, size_e2=plus(1)),
    "a level change has another amount": altered(LevelUpdate, delta_e2=plus(1)),
    "a level change has another amount and size": altered(
        LevelUpdate, delta_e2=plus(1), size_e2=plus(1)
    ),
    "a level change has another price": altered(LevelUpdate, price_e4=plus(1)),
    "a level change is on the other side": altered(LevelUpdate, side=lambda side: 1 - side),
    "a level change is of another market": altered(
        LevelUpdate, ticker=lambda ticker: TICKERS[TICKERS.index(ticker) - 1]
    ),
    "a level change says that it is a resync": altered(LevelUpdate, cause=UpdateCause.RESYNC),
    "a level is of a price that no order has": altered(LevelUpdate, price_e4=10_000),
    "a level change is of an earlier input": altered(LevelUpdate, g=plus(-30)),
    "a quote has another bid": altered(Bbo, number=30, bid_e4=plus(1)),
    "a quote has another size": altered(Bbo, number=30, ask_size_e2=plus(1)),
    "a quote has another ask": altered(Bbo, number=30, ask_e4=plus(-1)),
    "a quote is stale that is not": altered(Bbo, number=30, state=int(BookState.STALE)),
    "a quote is left out": without(Bbo, 30),
    "a quote is of another market": altered(
        Bbo, number=30, ticker=lambda ticker: TICKERS[TICKERS.index(ticker) - 1]
    ),
    "an image has another level": altered(
        BookLevels, number=3, bids=lambda bids: ((bids[0][0], bids[0][1] + 1), *bids[1:])
    ),
    "an image is left out": without(BookLevels, 3),
    "a book is ready with another checksum": altered(BookReady, number=3, checksum=plus(1)),
    "a book is never ready": without(BookReady, 3),
    "a book is ready twice": twice(BookReady, 3),
    "a checksum is another": altered(BookVerify, checksum=plus(-1)),
    "a book is cleared in its middle": once(
        LevelUpdate,
        lambda message: [BookClear(message.ticker, message.g, 0, message.ts_recv_ns), message],
    ),
    "the session does not start": without(SessionStart, 1),
    "the session starts twice": twice(SessionStart, 1),
    "the session names another before it": altered(
        SessionStart, number=1, previous_session=plus(1)
    ),
}


@pytest.mark.parametrize("name", LOG_MUTATIONS)
def test_a_broken_log_is_found_out_by_itself(
    name: str, course: AuditedCourse, bed: AuditBed
) -> None:
    report = bed.audit(LOG_MUTATIONS[name](course.datagrams))
    assert not report.is_complete
    assert report.by_cause.keys() == {Cause.PLANT}, report.findings


def trades_swapped(datagrams: Datagrams) -> Datagrams:
    """The contents of two neighbouring trades, each keeping its place and input."""
    trades: list[Trade] = []
    rewritten(datagrams, Stream.TRADE, lambda _seq, message: trades.append(message) or [message])
    first, second = trades[10], trades[11]
    swap = {
        first.trade_id: replace(second, g=first.g, ts_recv_ns=first.ts_recv_ns),
        second.trade_id: replace(first, g=second.g, ts_recv_ns=second.ts_recv_ns),
    }
    return rewritten(
        datagrams,
        Stream.TRADE,
        lambda _seq, message: [
            swap.get(message.trade_id, message) if isinstance(message, Trade) else message
        ],
    )


CAPTURE_MUTATIONS: dict[str, Mutation] = {
    "a trade is left out": without(Trade),
    "a trade is told twice": twice(Trade),
    "a trade has another price": altered(Trade, price_e4=plus(100)),
    "a trade has another size": altered(Trade, size_e2=plus(1)),
    "a trade has another taker": altered(Trade, taker_side=lambda side: 1 - side),
    "a trade has another id": altered(Trade, trade_id="else"),
    "a ticker is left out": without(Ticker),
    "a ticker has another volume": altered(Ticker, volume_e2=plus(1)),
    "a ticker has another last price": altered(Ticker, last_e4=plus(1)),
    "trades change places": trades_swapped,
}


@pytest.mark.parametrize("name", CAPTURE_MUTATIONS)
def test_a_log_that_is_only_wrong_beside_the_exchange_is_found_out_with_the_capture(
    name: str, course: AuditedCourse, bed: AuditBed
) -> None:
    """Nothing in the log contradicts it: the frames do, and without the plant's code."""
    mutated = CAPTURE_MUTATIONS[name](course.datagrams)
    report = bed.audit(mutated)
    # Where a datagram is gone altogether, the count in the next heartbeat tells.
    assert report.is_complete or "left out" in name
    report = bed.audit(mutated, course.records)
    own = [one for one in report.findings if "played again" not in one.what]
    assert own
    assert {one.cause for one in own} == {Cause.PLANT}
