"""In-process measurement of the subscriber library: packed datagrams to strategy callbacks, on one core."""

import gc
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from tickerplant.bench.in_process import CHUNK_FRAMES, START_NS, build_feed, make_live, parse_ns
from tickerplant.bench.load import ReferenceLoad
from tickerplant.core.messages import Bbo, LevelUpdate
from tickerplant.limits import FRAMES_PER_FLUSH
from tickerplant_subscriber import BookView, Strategy
from tickerplant_subscriber.admission import Admission
from tickerplant_subscriber.arbiter import Arbiter
from tickerplant_subscriber.dispatch import StrategyDispatch
from tickerplant_subscriber.filters import TickerFilter
from tickerplant_subscriber.strategy import streams_of

if TYPE_CHECKING:
    from tickerplant.core.packets import Datagram


class CountingStrategy(Strategy):
    """The least that a strategy of books and quotes does."""

    def __init__(self) -> None:
        self.updates = 0
        self.bbos = 0

    def on_book(self, book: BookView, update: LevelUpdate) -> None:
        """A delta."""
        self.updates += 1

    def on_bbo(self, bbo: Bbo) -> None:
        """A best moved."""
        self.bbos += 1


class PackedLoad(NamedTuple):
    """What a plant sends: until every book is live, and then in pieces of `CHUNK_FRAMES` deltas."""

    start: "list[Datagram]"
    runs: "list[list[Datagram]]"
    now_ns: int
    plant_ns: int
    """CPU time that the plant took for the runs."""


def pack_load(load: ReferenceLoad, *, chunks: int) -> PackedLoad:
    """The reference load as datagrams, packed as they are when the plant is saturated."""
    feed = build_feed(load.tickers, START_NS)
    start: list[Datagram] = []
    now_ns = make_live(feed, load, START_NS, start.extend)
    runs: list[list[Datagram]] = []
    plant_ns = 0
    for _ in range(chunks):
        run: list[Datagram] = []
        frames = load.deltas(CHUNK_FRAMES)
        started_ns = time.process_time_ns()
        for index, frame in enumerate(frames):
            feed.connections[0].receive_frame(frame, now_ns)
            if index % FRAMES_PER_FLUSH == 0:
                run += feed.flush(now_ns)
        runs.append(run + feed.flush(now_ns))
        plant_ns += time.process_time_ns() - started_ns
    return PackedLoad(start, runs, now_ns, plant_ns)


def measure_subscriber(load: ReferenceLoad, *, chunks: int) -> dict[str, float]:
    """Messages per second of one core: {"messages_per_s", "reference_ratio", "messages_per_datagram"}.

    `reference_ratio`: to frames that `json.loads` parses in a second, in turns with the subscriber.
    """
    packed = pack_load(load, chunks=chunks)
    frames = load.deltas(CHUNK_FRAMES)
    now_ns, runs = packed.now_ns, packed.runs
    strategy = CountingStrategy()
    receive = receiver_of(strategy)
    for _, datagram in packed.start:
        receive(0, datagram, now_ns)
    gc.collect()
    gc.freeze()
    rates, reference_ns, total = [], [], 0
    for run in runs:
        reference_ns.append(parse_ns(frames))
        before = strategy.updates + strategy.bbos
        started_ns = time.process_time_ns()
        for _, datagram in run:
            receive(0, datagram, now_ns)
        seconds = (time.process_time_ns() - started_ns) / 1e9
        messages = strategy.updates + strategy.bbos - before
        total += messages
        rates.append(messages / seconds)
    assert strategy.updates == chunks * CHUNK_FRAMES, "every delta must reach the callback"
    messages_per_s = statistics.median(rates)
    return {
        "messages_per_s": messages_per_s,
        "reference_ratio": messages_per_s * statistics.median(reference_ns) / CHUNK_FRAMES / 1e9,
        "messages_per_datagram": total / sum(map(len, runs)),
    }


def receiver_of(
    strategy: Strategy, admission: Admission | None = None
) -> Callable[[int, bytes, int], None]:
    """A whole subscriber without sockets; takes (line, datagram, now_ns)."""
    streams = streams_of(strategy)
    dispatch = StrategyDispatch(
        strategy, streams, TickerFilter(strategy.tickers), lambda name: getattr(strategy, name)
    )
    arbiter = Arbiter(
        streams,
        dispatch.deliver,
        dispatch.take_event,
        started_ns=START_NS - 1,
        line_count=1,
        admission=admission,
    )
    return arbiter.receive
