"""Recorded frames through the whole system: `sim --replay`, `run`, multicast, a subscriber, each a process of its own.

What must come out is computed by `recorded` from the raw files, in plain Decimal.
"""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from processes import (
    Plant,
    Settings,
    Simulation,
    SubscriberProcess,
    free_network,
    merged,
    wait_for,
)
from recorded import (
    BookRows,
    Document,
    best_of,
    frames_of,
    opening_snapshots,
    price_e4,
    rebuild,
    size_e2,
    time_ns,
)
from subscriber_model import SubscriberModel

from tickerplant.core.messages import (
    FeedPhase,
    GapCause,
    LevelUpdate,
    MarketPhase,
    Side,
    Stream,
    Ticker,
)
from tickerplant.core.messages import Trade as TradeMessage
from tickerplant.core.plant import Plant as PlantCore
from tickerplant_kalshi.directory import MarketDirectory, MarketRecord
from tickerplant_kalshi.feed import KalshiFeed
from tickerplant_kalshi.selection import Selection

CHECK_TIMEOUT_S = 60.0
CHAINS_AT_ONCE = 3
FEW_DELTAS = 4


class BookCase(NamedTuple):
    """A capture of books: how many markets and deltas it holds, and at what multiple of its pace it is played."""

    file: str
    markets: int
    deltas: int
    speed: int
    yes_price: bool = False


BOOK_CASES = (
    BookCase("prod-2026-05-14-kxbtc15m-book.jsonl", 1, 106, 1),
    BookCase("prod-2026-04-18-kxbtc-8-markets.jsonl", 8, 61, 60),
    BookCase("demo-2026-06-11-use-yes-price-false.jsonl", 1, 4, 20),
    BookCase("demo-2026-06-11-use-yes-price-true.jsonl", 1, 2, 1, yes_price=True),
    BookCase("demo-2026-08-20-empty-book.jsonl", 1, 0, 1),
)
TICKERS_FILE = "prod-2026-02-12-ticker.jsonl"
TRADES_FILE = "prod-2026-02-12-trade.jsonl"
OLD_FORMAT_FILE = "prod-2025-12-03-old-format.jsonl"


# --- the chains ---------------------------------------------------------------------------------------


class Chain(NamedTuple):
    """The three processes."""

    simulation: Simulation
    subscriber: SubscriberProcess
    plant: Plant


@pytest.fixture(scope="module")
def captures(shared_folder: Path) -> Path:
    """The folder of the recorded frames."""
    return shared_folder / "captures"


@pytest.fixture(scope="module")
def chain_of(
    captures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Chain]]:
    """A running chain for each capture, by file name; they start side by side, because starting is mostly waiting."""
    keys = tmp_path_factory.mktemp("key")
    cases = [*BOOK_CASES, *(BookCase(f, 0, 0, 1) for f in (TICKERS_FILE, TRADES_FILE))]
    cases.append(BookCase(OLD_FORMAT_FILE, 0, 0, 1))
    with ExitStack() as stack, ThreadPoolExecutor(CHAINS_AT_ONCE) as pool:

        def begin(case: BookCase) -> Chain:
            folder = tmp_path_factory.mktemp("chain")
            network = free_network()
            # The plant comes last: the subscriber has to hear its session from the start.
            subscriber = stack.enter_context(SubscriberProcess(folder, network))
            replay = ["--replay", str(captures / case.file), "--speed", str(case.speed)]
            replay += ["--recorded-yes-price"] if case.yes_price else []
            simulation = stack.enter_context(Simulation(folder, *replay, "--directory", keys))
            chosen: Settings = {
                "exchange": {"use_yes_price": case.yes_price},
                "markets": {"all_open": True},
                # Every frame and message is accounted for: none but those of the recording.
                "verify": {"interval_ms": 0, "upstream_interval_ms": 0},
            }
            subscriber.require_alive()
            plant = Plant(folder, network, merged(simulation.settings, chosen))
            return Chain(simulation, subscriber, stack.enter_context(plant))

        chains: dict[str, Future[Chain]] = {case.file: pool.submit(begin, case) for case in cases}
        yield lambda file: chains[file].result()
        for future in chains.values():
            future.cancel()


def played(chain: Chain, frames: int) -> dict[str, int]:
    """The plant's metrics once it has read all that was sent, recorded frames and replies."""
    chain.plant.wait_metric("feed_frames", frames, CHECK_TIMEOUT_S)

    def look() -> dict[str, int] | None:
        sent = chain.simulation.get("/sim/stats")["frames_sent_total"]
        metrics = chain.plant.metrics()
        return metrics if sent == metrics["feed_frames"] else None

    return wait_for(look, "the plant reading everything that was sent", CHECK_TIMEOUT_S)


def reported(chain: Chain, complete: Callable[[Document], bool]) -> Document:
    """The subscriber's report once it is complete, or the last one before the time is over, for the test to judge."""
    last: Document = {}

    def look() -> bool:
        last.clear()
        last.update(chain.subscriber.report())
        return complete(last)

    try:
        wait_for(look, "the subscriber", CHECK_TIMEOUT_S)
    except TimeoutError:
        return last
    return last


FAULTS = (
    "sequence_gaps",
    "missing_frames",
    "duplicate_frames",
    "unusable_frames",
    "unreadable_frames",
    "contradicting_deltas",
    "unknown_sid_frames",
    "foreign_market_frames",
    "not_chosen_frames",
    "subscriptions_ended",
    "connections_lost",
    "command_timeouts",
)


def faults_of(metrics: dict[str, int]) -> dict[str, int]:
    """What the plant counted of frames that were missed, repeated, refused or dropped; no entry where it is none."""
    counts = {name: metrics[f"feed_{name}"] for name in FAULTS}
    return {name: count for name, count in counts.items() if count}


def require_no_loss(chain: Chain, metrics: dict[str, int]) -> None:
    """Nothing was lost between plant and subscriber; each of them says so."""
    unsent = ("publisher_dropped", "publisher_send_errors")
    assert sum(count for name, count in metrics.items() if name.startswith(unsent)) == 0
    report = chain.subscriber.report()
    assert not {"Gap", "StreamDead", "Stale", "DatagramsRefused"} & report["messages"].keys()
    assert report["stats"]["checksum_mismatches"] == 0
    for stream in report["stats"]["streams"]:
        assert (stream["gaps"], stream["messages_lost"], stream["open_holes"]) == (0, 0, 0)


def require_orderly_end(chain: Chain) -> None:
    """The plant ends its session with exit code 0, and the subscriber has every stream to its last message."""
    assert chain.plant.stop() == 0
    assert [line["in_order"] for line in chain.plant.events("session_ended")] == [True]
    record = json.loads((chain.plant.folder / "state" / "session.json").read_text())
    assert {stream for stream, _next_seq in record["final_seqs"]} == set(Stream)
    report = reported(chain, lambda report: all(row["ended"] for row in report["stats"]["streams"]))
    rows = report["stats"]["streams"]
    assert [row["ended"] for row in rows] == [True] * len(Stream)
    positions = sorted([row["stream"], row["next_seq"]] for row in rows)
    assert positions == sorted(record["final_seqs"])


def live_books(report: Document) -> dict[str, BookRows]:
    """The books that the subscriber offers as live."""
    return {
        ticker: (book["bids"], book["asks"])
        for ticker, book in report["books"].items()
        if book["state"] == "LIVE"
    }


# --- books --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", BOOK_CASES, ids=lambda case: case.file.removesuffix(".jsonl"))
def test_recorded_books_reach_a_subscriber_exactly(
    captures: Path, chain_of: Callable[[str], Chain], case: BookCase
) -> None:
    """The books of the rebuild at the subscriber, and zero gaps by every counter on the way."""
    expected = rebuild(frames_of(captures / case.file), recorded_yes_price=case.yes_price)
    assert len(expected) == case.markets
    chain = chain_of(case.file)
    played(chain, case.markets + case.deltas)
    report = reported(chain, lambda report: live_books(report) == expected)
    assert live_books(report) == expected
    assert chain.simulation.books() == expected
    # Acknowledgements count as frames too: only now was everything taken for certain.
    metrics = chain.plant.metrics()
    quotes = {ticker: row["quote"] for ticker, row in report["quotes"].items()}
    assert quotes == {ticker: best_of(rows) for ticker, rows in expected.items()}
    # What came before the image went out is in the image, of a few deltas perhaps all; the rest is told one by one.
    updates = report["messages"].get("LevelUpdate", 0)
    assert updates > 0 or case.deltas <= FEW_DELTAS
    assert updates <= case.deltas
    assert metrics["plant_snapshots_applied"] == metrics["plant_books"] == case.markets
    assert metrics["plant_books_gone_stale"] == 0
    assert metrics["plant_phase"] == FeedPhase.READY
    assert faults_of(metrics) == {}
    require_no_loss(chain, metrics)
    require_orderly_end(chain)


# --- the migration weeks of February 2026 -------------------------------------------------------------
#
# What the exchange changed in 2026: the `_fp` fields came on 22 January, the sizes of the ticker on 12 February; all
# integer cents and counts went on 12 March. These frames of 12 February carry both. The exact strings are what every
# version since has, so they are read and the integers are not; `Clock` is undocumented and ignored; `ts` is in seconds,
# `ts_ms` came in April, so the event time is `ts`; `taker_side` is the twin of a field that came in May.


def expected_ticker(body: Document) -> Document:
    """The `Ticker` of a recorded frame; a side of size 0 (written as ask 1.0000) is absent: 0, 0."""
    sizes = {side: size_e2(body[f"yes_{side}_size_fp"]) for side in ("bid", "ask")}
    best = {
        side: price_e4(body[f"yes_{side}_dollars"]) if size else 0 for side, size in sizes.items()
    }
    return {
        "ticker": body["market_ticker"],
        "ts_event_ns": body["ts"] * 10**9,
        "last_e4": price_e4(body["price_dollars"]),
        "bid_e4": best["bid"],
        "bid_size_e2": sizes["bid"],
        "ask_e4": best["ask"],
        "ask_size_e2": sizes["ask"],
        "volume_e2": size_e2(body["volume_fp"]),
        "open_interest_e2": size_e2(body["open_interest_fp"]),
        "last_size_e2": size_e2(body["last_trade_size_fp"]),
        "dollar_volume": body["dollar_volume"],
        "dollar_open_interest": body["dollar_open_interest"],
    }


def expected_trade(body: Document) -> Document:
    """The `Trade` of a recorded frame."""
    assert price_e4(body["yes_price_dollars"]) + price_e4(body["no_price_dollars"]) == 10_000
    return {
        "ticker": body["market_ticker"],
        "ts_event_ns": body["ts"] * 10**9,
        "trade_id": body["trade_id"],
        "price_e4": price_e4(body["yes_price_dollars"]),
        "size_e2": size_e2(body["count_fp"]),
        "taker_side": Side.BID if body["taker_side"] == "yes" else Side.ASK,
        "is_block": False,
    }


def without_receipt(message: Document) -> Document:
    """A reported message without what depends on when and as which input it was received."""
    return {
        name: value for name, value in message.items() if name not in {"type", "g", "ts_recv_ns"}
    }


def test_february_tickers_are_read_by_their_exact_fields(
    captures: Path, chain_of: Callable[[str], Chain]
) -> None:
    """Ten frames, ten messages with their exact values, in order, and nothing refused."""
    expected = [expected_ticker(frame["msg"]) for frame in frames_of(captures / TICKERS_FILE)]
    assert len(expected) == 10
    chain = chain_of(TICKERS_FILE)
    metrics = played(chain, 10)
    report = reported(chain, lambda report: len(report["tickers"]) >= 10)
    assert [without_receipt(message) for message in report["tickers"]] == expected
    assert report["upstream_gaps"] == []
    assert faults_of(metrics) == {}
    require_no_loss(chain, metrics)
    require_orderly_end(chain)


def test_february_trades_are_read_and_their_jumps_of_seq_are_told(
    captures: Path, chain_of: Callable[[str], Chain]
) -> None:
    """Ten trades with their exact values, and an `UpstreamGap` before each that follows a jump.

    The recording is a part of what was sent: its sid begins at 10 and goes on at 48. Section 3.4: `seq` counts every
    frame of a sid from 1, so 9 and then 37 frames are missing, and a subscriber must learn it.
    """
    frames = list(frames_of(captures / TRADES_FILE))
    seqs = [0, *(frame["seq"] for frame in frames)]
    missing = [after - before - 1 for before, after in pairwise(seqs)]
    jumps = [index for index, count in enumerate(missing) if count]
    assert (jumps, [missing[index] for index in jumps]) == ([0, 1], [9, 37])
    chain = chain_of(TRADES_FILE)
    metrics = played(chain, 10)
    report = reported(chain, lambda report: len(report["trades"]) >= 10)
    expected = [expected_trade(frame["msg"]) for frame in frames]
    assert [without_receipt(message) for message in report["trades"]] == expected
    gaps = report["upstream_gaps"]
    # `g` is the input that a message came from: the gap is told with the frame that showed it.
    assert [gap["g"] for gap in gaps] == [report["trades"][index]["g"] for index in jumps]
    assert {(gap["on_stream"], gap["cause"]) for gap in gaps} == {(Stream.TRADE, GapCause.UPSTREAM)}
    assert faults_of(metrics) == {"sequence_gaps": 2, "missing_frames": 46}
    require_no_loss(chain, metrics)
    require_orderly_end(chain)


# --- the format of before 2026-03-12 ------------------------------------------------------------------


def test_the_old_format_is_refused_and_never_misread(chain_of: Callable[[str], Chain]) -> None:
    """The plant ends with exit code 1 and one line that says so; no book was offered as live."""
    chain = chain_of(OLD_FORMAT_FILE)
    assert chain.plant.wait(CHECK_TIMEOUT_S) == 1
    lines = [line for line in chain.plant.errors.splitlines() if not line.startswith("{")]
    assert len(lines) == 1
    assert lines[0].startswith("tickerplant: error: orderbook_snapshot carries ")
    assert "the exchange format of before 2026-03-12 is refused" in lines[0]
    assert [event for event in chain.plant.events() if event["level"] == "error"] == []
    report = reported(chain, lambda report: report["messages"].get("SessionEnded") == len(Stream))
    assert report["messages"]["SessionEnded"] == len(Stream)
    assert not {"Live", "LevelUpdate", "BookLevels", "BookReady"} & report["messages"].keys()
    assert not any("closed by the exchange" in cause for cause in report["causes"])


# --- in process ---------------------------------------------------------------------------------------


class InProcess:
    """The feed and the plant's core with one connection, every channel subscribed, and a strict subscriber."""

    def __init__(self, tickers: list[str]) -> None:
        self.now_ns = 1_773_707_889 * 10**9
        self.model = SubscriberModel()
        self.plant = PlantCore(self.now_ns, self.now_ns)
        directory = MarketDirectory(Selection(all_open=True))
        self.feed = KalshiFeed(self.plant, directory, channels=("trade", "ticker"))
        self.feed.connection_opened(0, self.now_ns)
        records = [MarketRecord(ticker, phase=MarketPhase.ACTIVE) for ticker in tickers]
        self.feed.markets_read(records, self.now_ns)
        self.feed.discovery_done(self.now_ns)
        self.flush()
        self.sids: dict[str, int] = {}
        for command in map(json.loads, self.feed.connections[0].outgoing(self.now_ns)):
            (channel,) = command["params"]["channels"]
            self.sids[channel] = command["id"]
            body = {"channel": channel, "sid": command["id"]}
            self.receive({"type": "subscribed", "id": command["id"], "msg": body})

    def receive(self, frame: Document) -> None:
        """One frame, 1 ms after the one before."""
        self.now_ns += 1_000_000
        self.feed.connections[0].receive_frame(json.dumps(frame).encode(), self.now_ns)
        self.flush()

    def flush(self) -> None:
        """What is to be sent reaches the subscriber."""
        self.model.receive(self.feed.flush(self.now_ns))

    def pass_time(self) -> None:
        """Images are paced: let them all go out."""
        while self.plant.unready_books:
            self.now_ns += 100_000_000
            self.model.receive(self.feed.handle_timer(self.now_ns))


def test_recorded_delta_payloads_keep_every_book_right(captures: Path) -> None:
    """The 4,495 deltas of 143 markets of March 2026, after snapshots that they are consistent with.

    The recording has payloads only: each becomes a frame with sid and seq, after the smallest snapshots from which no
    level falls below zero.
    """
    lines = (captures / "prod-2026-03-17-delta-payloads.jsonl").read_text().splitlines()
    deltas: list[Document] = [json.loads(line)["msg"] for line in lines]
    snapshots = list(opening_snapshots(deltas))
    assert (len(deltas), len(snapshots)) == (4_495, 143)
    system = InProcess([body["market_ticker"] for body in snapshots])
    bodies = [("orderbook_snapshot", body) for body in snapshots]
    bodies += [("orderbook_delta", body) for body in deltas]
    frames = [
        {"type": kind, "sid": system.sids["orderbook_delta"], "seq": seq, "msg": body}
        for seq, (kind, body) in enumerate(bodies, start=1)
    ]
    for frame in frames[: len(snapshots)]:
        system.receive(frame)
    system.pass_time()
    for frame in frames[len(snapshots) :]:
        system.receive(frame)

    expected = rebuild(frames, recorded_yes_price=False)
    entries = system.plant.entries
    assert {
        ticker: (
            [[*level] for level in entry.bids.items()],
            [[*level] for level in entry.asks.items()],
        )
        for ticker, entry in entries.items()
    } == expected
    assert {
        ticker: tuple(sorted(map(list, side.items())) for side in book.sides)
        for ticker, book in system.model.books.items()
    } == expected
    assert all(book.live for book in system.model.books.values())
    updates = [message for message in system.model.messages if isinstance(message, LevelUpdate)]
    assert [(update.ticker, update.delta_e2, update.ts_event_ns) for update in updates] == [
        (body["market_ticker"], size_e2(body["delta_fp"]), time_ns(body["ts"])) for body in deltas
    ]
    assert dict(system.feed.counters())["sequence_gaps"] == 0
    assert system.plant.books_gone_stale == 0


def test_integer_twins_of_the_migration_weeks_are_never_read(captures: Path) -> None:
    """With every old integer field falsified, the messages of the February frames are the same."""
    old = {
        "price",
        "yes_bid",
        "yes_ask",
        "volume",
        "open_interest",
        "yes_price",
        "no_price",
        "count",
    }
    tickers = list(frames_of(captures / TICKERS_FILE))
    trades = list(frames_of(captures / TRADES_FILE))
    for frame in (*tickers, *trades):
        present = old & frame["msg"].keys()
        assert present
        frame["msg"] |= dict.fromkeys(present, 1)
    system = InProcess([])
    for frame in tickers:
        system.receive(frame | {"sid": system.sids["ticker"]})
    for frame in trades:
        system.receive(frame | {"sid": system.sids["trade"]})
    told = [
        {name: getattr(message, name) for name in message.__struct_fields__}
        for message in system.model.messages
        if isinstance(message, Ticker | TradeMessage)
    ]
    expected = [expected_ticker(frame["msg"]) for frame in tickers]
    expected += [expected_trade(frame["msg"]) for frame in trades]
    assert [without_receipt(message) for message in told] == expected
