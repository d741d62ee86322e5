"""What the demo says at the end, and whether it holds."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tickerplant.demo.comparison import Comparison
from tickerplant.demo.stored import SAMPLE_SQL, Stored
from tickerplant.limits import DEMO_FAULTS_SHOWN

STREAMS = ("trade", "bbo", "ticker", "delta", "status")


class Summary(NamedTuple):
    """Everything counted up to the moment at which the books were compared.

    `is_drained`: all frames and messages had arrived by then. `ended_streams` ended in order with the plant, all of
    their messages accounted for.
    """

    frames_sent: int
    frames_received: int
    connections_lost: int
    published: Mapping[str, int]
    received: Mapping[str, int]
    gap_count: int
    gaps: Sequence[str]
    comparison: Comparison
    is_drained: bool
    ended_streams: int
    stored: Stored


def summary_lines(summary: Summary) -> list[str]:
    """The text, one fact a line."""
    compared = summary.comparison
    streams = [
        f"{stream}: plant published {summary.published.get(stream, 0):,}, "
        f"subscriber received {summary.received.get(stream, 0):,}"
        for stream in STREAMS
    ]
    equal_quotes = compared.quotes - len(compared.unequal_quotes)
    return [
        f"frames: exchange sent {summary.frames_sent:,}, plant received {summary.frames_received:,}",
        *streams,
        f"gaps: {summary.gap_count:,}",
        f"stale books: {len(compared.stale):,}",
        f"quotes checked: {compared.quotes:,}, equal: {equal_quotes:,}",
        f"books checked: {compared.books:,}, equal: {compared.equal_books:,}",
        *_stored_lines(summary.stored),
    ]


def _stored_lines(stored: Stored) -> list[str]:
    """What was kept, and a question to it with its answer."""
    rows = ", ".join(f"{count:,} {table}" for table, count in stored.rows.items())
    return [
        f"rows stored: {rows}",
        f"books rebuilt from rows: {stored.books:,}, equal: {stored.books - len(stored.unequal):,}",
        f'tickerplant sql "{SAMPLE_SQL}"',
        *stored.answer.splitlines(),
    ]


def faults_of(summary: Summary) -> list[str]:
    """What is wrong, in words; empty if nothing is."""
    compared = summary.comparison
    faults = []
    if not compared.books:
        faults.append("no book was received")
    if summary.gap_count:
        faults.append(_named(summary.gap_count, "gap", summary.gaps))
    faults += [
        _named(len(tickers), what, tickers)
        for what, tickers in (
            ("missing book", compared.missing),
            ("stale book", compared.stale),
            ("unequal book", compared.unequal),
            ("unequal quote", compared.unequal_quotes),
            ("unequal stored book", summary.stored.unequal),
        )
        if tickers
    ]
    return faults + _undelivered(summary)


def _undelivered(summary: Summary) -> list[str]:
    """Frames and messages that did not arrive, beyond what the faults above explain."""
    faults = []
    if summary.frames_sent != summary.frames_received and not summary.connections_lost:
        faults.append(
            f"the plant received {summary.frames_received} of {summary.frames_sent} frames"
        )
    faults += [
        f"the subscriber received {summary.received.get(stream, 0)} of {count} messages on {stream}"
        for stream, count in summary.published.items()
        if summary.received.get(stream, 0) != count
    ]
    if summary.stored.trade_messages != summary.published.get("trade", 0):
        faults.append(
            f"the store has {summary.stored.trade_messages} of {summary.published.get('trade', 0)} messages on trade"
        )
    if not summary.is_drained and not faults:
        faults.append("the plant did not come to rest after the flow was stopped")
    if summary.ended_streams != len(STREAMS):
        faults.append(f"{summary.ended_streams} of {len(STREAMS)} streams ended in order")
    return faults


def _named(count: int, what: str, names: Iterable[str]) -> str:
    """`2 stale books: A, B`."""
    shown = [*names][:DEMO_FAULTS_SHOWN]
    more = f" and {count - len(shown)} more" if count > len(shown) else ""
    return f"{count} {what}{'s' if count != 1 else ''}: {', '.join(shown)}{more}"
