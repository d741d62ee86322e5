"""In-process measurements: the hot path against `json.loads`, the book against a `SortedDict` book.

Reference and subject run in turns over small chunks of the same frames, on process time, and the medians of the
chunks are compared; so a noisy machine disturbs both alike.
"""

import gc
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sortedcontainers import SortedDict

from tickerplant.bench.load import ReferenceLoad
from tickerplant.core.book import Book
from tickerplant.core.fixedpoint import parse_price_e4, parse_size_e2
from tickerplant.core.packets import Datagram
from tickerplant.core.plant import Plant
from tickerplant.limits import FRAMES_PER_FLUSH
from tickerplant_kalshi.directory import MarketDirectory, Selection
from tickerplant_kalshi.feed import KalshiFeed
from tickerplant_kalshi.messages import FRAME_DECODER, OrderbookDelta
from tickerplant_kalshi.records import MarketRecord

CHUNK_FRAMES = 5_000
START_NS = 1_795_197_851_000_000_000
_PACE_STEP_NS = 10_000_000


def live_feed(load: ReferenceLoad, now_ns: int = START_NS) -> tuple[KalshiFeed, int]:
    """A feed whose books are all LIVE and published, and the time by then; no sockets."""
    feed = build_feed(load.tickers, now_ns)
    return feed, make_live(feed, load, now_ns, lambda _datagrams: None)


def make_live(
    feed: KalshiFeed,
    load: ReferenceLoad,
    now_ns: int,
    take: Callable[[list[Datagram]], None],
) -> int:
    """Plays the exchange until every book is published; `take` gets the datagrams. Returns the time by then."""
    take(feed.flush(now_ns))
    feed.connection_opened(0, now_ns)
    connection = feed.connections[0]
    snapshots = load.snapshots()
    while sent := connection.outgoing(now_ns):
        for command in map(json.loads, sent):
            connection.receive_frame(_reply(command, load.sid), now_ns)
            for _ in command["params"]["market_tickers"]:
                connection.receive_frame(next(snapshots), now_ns)
    while feed.plant.unready_books:
        now_ns += _PACE_STEP_NS
        take(feed.handle_timer(now_ns))
    return now_ns


def build_feed(tickers: Sequence[str], now_ns: int) -> KalshiFeed:
    """A feed on one connection that wants the books of `tickers`."""
    directory = MarketDirectory(Selection(tickers=tuple(tickers)))
    feed = KalshiFeed(Plant(now_ns, now_ns), directory, channels=())
    records = [
        MarketRecord(ticker, open_ns=1, close_ns=2**62, read_ns=now_ns) for ticker in tickers
    ]
    feed.markets_read(records, now_ns)
    feed.discovery_done(now_ns)
    return feed


def _reply(command: dict[str, Any], sid: int) -> bytes:
    if command["cmd"] == "subscribe":
        body = {"channel": command["params"]["channels"][0], "sid": sid}
        return json.dumps({"type": "subscribed", "id": command["id"], "msg": body}).encode()
    return json.dumps({"type": "ok", "id": command["id"], "msg": {}}).encode()


def measure_hot_path(load: ReferenceLoad, *, chunks: int) -> dict[str, float]:
    """Frame bytes to encoded datagrams: {"ratio", "frames_per_s", "reference_per_s", "datagrams"}."""
    feed, now_ns = live_feed(load)
    receive, plant = feed.connections[0].receive_frames, feed.plant
    reference_ns, subject_ns, datagrams = [], [], 0
    all_frames = [load.deltas(CHUNK_FRAMES) for _ in range(chunks)]
    _settle()
    for frames in all_frames:
        reference_ns.append(parse_ns(frames))
        between_ns = time.process_time_ns()
        for start in range(0, CHUNK_FRAMES, FRAMES_PER_FLUSH):
            receive(frames[start : start + FRAMES_PER_FLUSH], now_ns)
            datagrams += len(feed.flush(now_ns))
        ended_ns = time.process_time_ns()
        subject_ns.append(ended_ns - between_ns)
    assert_books_equal(plant, load)
    reference, subject = statistics.median(reference_ns), statistics.median(subject_ns)
    return {
        "ratio": reference / subject,
        "frames_per_s": CHUNK_FRAMES * 1e9 / subject,
        "reference_per_s": CHUNK_FRAMES * 1e9 / reference,
        "datagrams": datagrams,
    }


def parse_ns(frames: Sequence[bytes]) -> int:
    """Processor time of `json.loads` over `frames`: the reference of all ratios."""
    started_ns = time.process_time_ns()
    for frame in frames:
        json.loads(frame)
    return time.process_time_ns() - started_ns


def assert_books_equal(plant: Plant, load: ReferenceLoad) -> None:
    """The whole load was applied: what is timed is the real path."""
    for ticker, (bids, asks) in load.books().items():
        entry = plant.entries[ticker]
        assert entry.in_sync, f"{ticker} is {entry.state.name} ({entry.stale_reason.name})"
        assert (entry.bids, entry.asks) == (bids, asks)


class SortedDictBook:
    """The textbook book: a `SortedDict` per side. Here to be compared with, not used."""

    def __init__(self, bids: Iterable[tuple[int, int]], asks: Iterable[tuple[int, int]]) -> None:
        self.sides = (SortedDict(bids), SortedDict(asks))

    def apply(self, side: int, price_e4: int, delta_e2: int) -> tuple[int, int, int, int]:
        """Applies one change and returns the best bid and offer."""
        levels = self.sides[side]
        size_e2 = levels.get(price_e4, 0) + delta_e2
        if size_e2:
            levels[price_e4] = size_e2
        else:
            levels.pop(price_e4, None)
        bids, asks = self.sides
        bid_e4, bid_size_e2 = bids.peekitem(-1) if bids else (0, 0)
        ask_e4, ask_size_e2 = asks.peekitem(0) if asks else (0, 0)
        return bid_e4, bid_size_e2, ask_e4, ask_size_e2


def measure_book(load: ReferenceLoad, *, chunks: int) -> dict[str, float]:
    """One change and the new best bid and offer: {"book_ns", "sorted_dict_ns", "ratio", "reference_ratio"}.

    `reference_ratio`: how many take as long as `json.loads` of one frame.
    """
    start = {t: (list(b.items()), list(a.items())) for t, (b, a) in load.books().items()}
    books = {ticker: Book(*sides) for ticker, sides in start.items()}
    others = {ticker: SortedDictBook(*sides) for ticker, sides in start.items()}
    ours_ns, theirs_ns, reference_ns = [], [], []
    all_frames = [load.deltas(CHUNK_FRAMES) for _ in range(chunks)]
    all_changes = [[_change(frame) for frame in frames] for frames in all_frames]
    _settle()
    for frames, changes in zip(all_frames, all_changes, strict=True):
        reference_ns.append(parse_ns(frames))
        ours = [(books[ticker], *rest) for ticker, *rest in changes]
        theirs = [(others[ticker], *rest) for ticker, *rest in changes]
        ours_ns.append(_timed(_run_book, ours))
        theirs_ns.append(_timed(_run_sorted_dict, theirs))
    assert all(dict(others[t].sides[0]) == book.bids for t, book in books.items())
    book_ns = statistics.median(ours_ns) / CHUNK_FRAMES
    sorted_dict_ns = statistics.median(theirs_ns) / CHUNK_FRAMES
    return {
        "book_ns": book_ns,
        "sorted_dict_ns": sorted_dict_ns,
        "ratio": sorted_dict_ns / book_ns,
        "reference_ratio": statistics.median(reference_ns) / CHUNK_FRAMES / book_ns,
    }


def _change(frame: bytes) -> tuple[str, int, int, int]:
    decoded = FRAME_DECODER.decode(frame)
    assert isinstance(decoded, OrderbookDelta)
    body = decoded.msg
    price_e4 = parse_price_e4(body.price_dollars)
    side = 0 if body.side == "yes" else 1
    return (
        body.market_ticker,
        side,
        10_000 - price_e4 if side else price_e4,
        parse_size_e2(body.delta_fp),
    )


def _run_book(changes: Sequence[tuple[Book, int, int, int]]) -> None:
    for book, side, price_e4, delta_e2 in changes:
        book.apply(side, price_e4, delta_e2)
        if book.best_moved:
            book.bbo()


def _run_sorted_dict(changes: Sequence[tuple[SortedDictBook, int, int, int]]) -> None:
    for book, side, price_e4, delta_e2 in changes:
        book.apply(side, price_e4, delta_e2)


def _timed(run: Callable[[Any], None], argument: Any) -> int:
    started_ns = time.process_time_ns()
    run(argument)
    return time.process_time_ns() - started_ns


def _settle() -> None:
    """Collects garbage before the clock starts; what stays is not looked at again."""
    gc.collect()
    gc.freeze()
