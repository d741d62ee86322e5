"""The whole feed: directory, connections and plant behind one set of inputs."""

import json
from zlib import crc32

import pytest
from connection_bed import BOOKS, MS, SECOND, T0, ConnectionBed, delta, snapshot, ticker, trade
from subscriber_model import SubscriberModel

from tickerplant.core.messages import (
    BookState,
    FeedPhase,
    FeedState,
    MarketInfo,
    MarketPhase,
    MarketState,
    Ticker,
    Trade,
    UpstreamGap,
)
from tickerplant.core.plant import Plant
from tickerplant.limits import FINISHED_GRACE_NS, MARKETS_MAX, TICKER_MAX_BYTES
from tickerplant_kalshi.directory import LookUpMarket, MarketDirectory, MarketRecord
from tickerplant_kalshi.feed import KalshiFeed
from tickerplant_kalshi.selection import Selection

CHANNELS = ("trade", "ticker", "market_lifecycle_v2")
HANDLED = {
    "subscribed",
    "ok",
    "unsubscribed",
    "error",
    "orderbook_snapshot",
    "orderbook_delta",
    "ticker",
    "trade",
    "market_lifecycle_v2",
    "multivariate_market_lifecycle",
    "event_lifecycle",
}
COUNTED = {
    "event_fee_update",
    "fill",
    "market_position",
    "user_order",
    "order_group_updates",
    "rfq_created",
    "rfq_deleted",
    "quote_created",
    "quote_accepted",
    "quote_executed",
    "cfbenchmarks_value",
    "cfbenchmarks_value_5hz",
    "pyth_value",
    "pyth_value_underlying_list",
}


class FeedBed:
    """A feed on a plant; each method is one input that ends in a flush, with an obliging exchange."""

    def __init__(self, *, connection_count=1, channels=CHANNELS, **selection):
        self.now_ns = T0
        self.plant = Plant(1, T0)
        self.directory = MarketDirectory(Selection(**selection))
        self.feed = KalshiFeed(
            self.plant, self.directory, channels=channels, connection_count=connection_count
        )
        self.subscriber = SubscriberModel()
        self.sids = [{} for _ in self.feed.connections]
        self.next_seq = {}
        self.sent = [[] for _ in self.feed.connections]

    def flush(self):
        """The messages of the input, and the commands answered."""
        return self.subscriber.receive(self.feed.flush(self.now_ns))

    def read(self, *tickers, **fields):
        """REST told of markets."""
        fields = {
            "phase": MarketPhase.ACTIVE,
            "event_ticker": "E",
            "read_ns": self.now_ns,
            **fields,
        }
        self.feed.markets_read([MarketRecord(t, **fields) for t in tickers], self.now_ns)
        return self.flush()

    def start(self):
        """Connections open, discovery done, everything answered."""
        for index in range(len(self.sids)):
            self.feed.connection_opened(index, self.now_ns)
        self.feed.discovery_done(self.now_ns)
        self.flush()
        return self.obey()

    def give(self, index, frame):
        """One frame, not yet flushed."""
        self.feed.connections[index].receive_frame(json.dumps(frame).encode(), self.now_ns)

    def obey(self):
        """The exchange answers every command of every connection, snapshots included."""
        for index, connection in enumerate(self.feed.connections):
            while commands := connection.outgoing(self.now_ns):
                for data in commands:
                    self._answer(index, json.loads(data))
        return self.flush()

    def _answer(self, index, command):
        self.sent[index].append(command)
        params, sids = command.get("params", {}), self.sids[index]
        if command["cmd"] == "subscribe":
            (channel,) = params["channels"]
            sid = sids[channel] = 1 + max(sids.values(), default=0)
            self.next_seq[index, sid] = 1
            msg = {"channel": channel, "sid": sid}
            self.give(index, {"type": "subscribed", "id": command["id"], "msg": msg})
        elif command["cmd"] == "list_subscriptions":
            rows = [{"channel": channel, "sid": sid} for channel, sid in sids.items()]
            self.give(index, {"type": "ok", "id": command["id"], "msg": rows})
        elif params["action"] != "get_snapshot":
            seq = self.take_seq(index, BOOKS)
            self.give(
                index,
                {"type": "ok", "id": command["id"], "sid": sids[BOOKS], "seq": seq, "msg": {}},
            )
        if params.get("action") != "delete_markets":
            for market in params.get("market_tickers", ()):
                seq = self.take_seq(index, BOOKS)
                command_id = command["id"] if params.get("action") == "get_snapshot" else 0
                self.give(index, snapshot(seq, market, sid=sids[BOOKS], command_id=command_id))

    def take_seq(self, index, channel):
        """The next number of a channel's sid."""
        key = index, self.sids[index][channel]
        self.next_seq[key] += 1
        return self.next_seq[key] - 1

    def advance(self, seconds):
        """Timers at their deadlines; the sockets are alive."""
        end_ns = self.now_ns + int(seconds * SECOND)
        messages = []
        for _ in range(10_000):
            deadline_ns = self.feed.next_deadline_ns()
            if deadline_ns > end_ns:
                break
            self.now_ns = max(self.now_ns, deadline_ns)
            for connection in self.feed.connections:
                connection.note_activity(self.now_ns)
            messages += self.subscriber.receive(self.feed.handle_timer(self.now_ns))
            messages += self.obey()
        self.now_ns = end_ns
        return messages

    @property
    def phases(self):
        """Feed states told so far."""
        return [phase.name for phase in self.subscriber.phases]

    def lifecycle(self, event_type, market="A", **fields):
        """A lifecycle frame on the first connection."""
        seq = self.take_seq(0, "market_lifecycle_v2")
        msg = {"event_type": event_type, "market_ticker": market, **fields}
        sid = self.sids[0]["market_lifecycle_v2"]
        self.give(0, {"type": "market_lifecycle_v2", "sid": sid, "seq": seq, "msg": msg})
        self.flush()
        return self.obey()


def test_ready_once_discovered_connected_and_all_books_live():
    """Not before the last of the three."""
    bed = FeedBed(tickers=("A", "B"))
    bed.flush()
    bed.read("A", "B")
    bed.feed.connection_opened(0, bed.now_ns)
    bed.flush()
    bed.obey()
    assert bed.phases == ["CONNECTING", "SYNCING"]
    assert all(book.live for book in bed.subscriber.books.values())
    bed.feed.discovery_done(bed.now_ns)
    bed.flush()
    assert bed.phases == ["CONNECTING", "SYNCING", "READY"]
    assert {m.ticker for m in bed.subscriber.messages if isinstance(m, MarketInfo)} == {"A", "B"}


def test_markets_are_sharded_and_each_has_one_owner():
    """By checksum of the ticker; unfiltered channels on the first connection only."""
    tickers = tuple(f"KX-{index}" for index in range(40))
    bed = FeedBed(connection_count=3, tickers=tickers)
    bed.read(*tickers)
    bed.start()
    asked = [{t for c in sent for t in c["params"].get("market_tickers", ())} for sent in bed.sent]
    assert set().union(*asked) == set(tickers)
    assert sum(map(len, asked)) == len(tickers)
    for index, owned in enumerate(asked):
        assert owned == {t for t in tickers if crc32(t.encode()) % 3 == index}
    channels = [
        [c["params"]["channels"][0] for c in sent if c["cmd"] == "subscribe"] for sent in bed.sent
    ]
    assert sorted(channels[0]) == sorted((BOOKS, *CHANNELS))
    assert channels[1:] == [[BOOKS], [BOOKS]]
    assert bed.phases[-1] == "READY"


def test_a_frame_on_the_wrong_connection_changes_nothing():
    """Its market is owned by another."""
    tickers = tuple(f"KX-{index}" for index in range(10))
    bed = FeedBed(connection_count=2, tickers=tickers)
    bed.read(*tickers)
    bed.start()
    for market in tickers:
        other = 1 - crc32(market.encode()) % 2
        bed.give(other, delta(bed.take_seq(other, BOOKS), market, sid=bed.sids[other][BOOKS]))
    bed.flush()
    assert dict(bed.feed.counters())["foreign_market_frames"] == len(tickers)
    assert all(entry.bids == {3300: 100} for entry in bed.plant.entries.values())


def test_a_lost_connection_is_told_with_its_reason_and_heals():
    """DOWN, books stale; then connected, synced and READY again."""
    bed = FeedBed(tickers=("A",))
    bed.read("A")
    bed.start()
    bed.now_ns += 5 * SECOND
    bed.feed.connection_closed(0, bed.now_ns, "reset by peer")
    messages = bed.flush()
    (state,) = [m for m in messages if isinstance(m, FeedState)]
    assert (state.phase, state.cause) == (FeedPhase.DOWN, "reset by peer")
    assert bed.subscriber.bbos["A"].state == BookState.STALE
    bed.now_ns += SECOND
    bed.feed.connection_opened(0, bed.now_ns)
    bed.flush()
    bed.sids = [{}]
    messages = bed.obey()
    assert {m.on_stream for m in messages if isinstance(m, UpstreamGap)} == {1, 3}
    assert bed.phases[-3:] == ["DOWN", "SYNCING", "READY"]
    assert bed.subscriber.books["A"].live


def test_one_of_several_connections_lost_is_down():
    """The books of the other stay live."""
    tickers = tuple(f"KX-{index}" for index in range(10))
    bed = FeedBed(connection_count=2, tickers=tickers)
    bed.read(*tickers)
    bed.start()
    bed.feed.connection_closed(1, bed.now_ns, "gone")
    bed.flush()
    bed.advance(0.1)
    assert bed.phases[-1] == "DOWN"
    for market in tickers:
        assert bed.subscriber.books[market].live == (crc32(market.encode()) % 2 == 0)


def test_a_new_market_does_not_take_ready_away():
    """Its book comes; the feed stays READY."""
    bed = FeedBed(series=("S",))
    bed.read("A", series_ticker="S")
    bed.start()
    before = list(bed.phases)
    bed.lifecycle(
        "created",
        "B",
        open_ts=T0 // SECOND - 5,
        close_ts=T0 // SECOND + 500,
        additional_metadata={"event_ticker": "E"},
    )
    assert bed.subscriber.books["B"].live
    assert bed.phases == before


def test_a_market_opens_and_closes_by_its_times():
    """No frame announces either: subscribed at its opening, let go after its close, its book closed."""
    bed = FeedBed(tickers=("A",))
    bed.read(
        "A", phase=MarketPhase.INITIALIZED, open_ns=T0 + 60 * SECOND, close_ns=T0 + 120 * SECOND
    )
    bed.start()
    assert bed.phases[-1] == "READY"
    assert "A" not in bed.plant.entries
    bed.advance(61)
    assert bed.subscriber.books["A"].live
    bed.advance(60 + FINISHED_GRACE_NS / SECOND)
    assert "A" not in bed.plant.entries
    assert not bed.subscriber.books["A"].live
    assert bed.subscriber.bbos["A"].state == BookState.CLOSED
    phases = [m.phase for m in bed.subscriber.messages if isinstance(m, MarketState)]
    assert phases[-1] == MarketPhase.CLOSED
    assert MarketPhase.ACTIVE in phases
    updates = [c["params"]["action"] for c in bed.sent[0] if c["cmd"] == "update_subscription"]
    assert updates[-1] == "delete_markets"


def test_only_chosen_markets_pass():
    """Trades and tickers of the whole exchange come on the unfiltered channels."""
    bed = FeedBed(tickers=("A",))
    bed.read("A")
    bed.start()
    for market in ("A", "OTHER"):
        bed.give(0, trade(bed.take_seq(0, "trade"), market, sid=bed.sids[0]["trade"]))
        bed.give(0, ticker(market, sid=bed.sids[0]["ticker"]))
    passed = [m for m in bed.flush() if isinstance(m, Trade | Ticker)]
    assert [m.ticker for m in passed] == ["A", "A"]
    assert dict(bed.feed.counters())["not_chosen_frames"] == 2


def test_everything_open_passes_everything():
    """Also trades of markets that are not known yet."""
    bed = FeedBed(all_open=True)
    bed.read("A")
    bed.start()
    bed.give(0, trade(bed.take_seq(0, "trade"), "NEW", sid=bed.sids[0]["trade"]))
    assert [m.ticker for m in bed.flush() if isinstance(m, Trade)] == ["NEW"]


def test_a_market_whose_ticker_cannot_be_published_is_not_subscribed():
    """Refused and counted."""
    long = "X" * (TICKER_MAX_BYTES + 1)
    bed = FeedBed(all_open=True)
    bed.read("A", long)
    bed.start()
    assert set(bed.plant.entries) == {"A"}
    assert long not in json.dumps(bed.sent)


def test_a_book_too_many_is_refused_and_the_feed_goes_on():
    """Its market is known, but has no book; its end changes nothing."""
    bed = FeedBed(tickers=("A",))
    bed.flush()
    full = dict.fromkeys(range(MARKETS_MAX))
    bed.plant.entries.update(full)
    bed.feed.markets_read([MarketRecord("A", "E", phase=MarketPhase.ACTIVE)], bed.now_ns)
    bed.flush()
    assert bed.plant.refused_tickers == 1
    for key in full:
        del bed.plant.entries[key]
    bed.start()
    assert bed.sent[0][0]["params"]["channels"] != [BOOKS]
    bed.lifecycle("settled", "A", settled_ts=T0 // SECOND)
    bed.advance(FINISHED_GRACE_NS / SECOND + 1)
    assert bed.plant.entries == {}
    assert bed.phases[-1] == "READY"


def test_an_event_names_the_series_of_its_markets():
    """Undecided until then."""
    bed = FeedBed(series=("S",))
    bed.read("A", series_ticker="S")
    bed.read("B", event_ticker="F")
    bed.start()
    assert set(bed.plant.entries) == {"A"}
    msg = {"event_ticker": "F", "series_ticker": "S"}
    seq, sid = bed.take_seq(0, "market_lifecycle_v2"), bed.sids[0]["market_lifecycle_v2"]
    bed.give(0, {"type": "event_lifecycle", "sid": sid, "seq": seq, "msg": msg})
    bed.flush()
    bed.obey()
    assert bed.subscriber.books["B"].live


def test_lost_lifecycle_frames_ask_for_a_new_discovery():
    """And an event's series read over REST decides about its markets."""
    bed = FeedBed(series=("S",))
    bed.read("A", series_ticker="S")
    bed.start()
    assert not bed.feed.refresh_wanted
    bed.take_seq(0, "market_lifecycle_v2")
    bed.lifecycle("activated", "A", is_deactivated=False)
    assert bed.feed.refresh_wanted
    bed.read("B", event_ticker="F")
    assert "B" not in bed.plant.entries
    bed.feed.event_read("F", "S", bed.now_ns)
    bed.flush()
    bed.obey()
    assert bed.subscriber.books["B"].live


def test_look_ups_are_handed_out_once():
    """A lifecycle frame of a market that is not known."""
    bed = FeedBed(tickers=("A", "LATER"))
    bed.read("A")
    bed.start()
    bed.lifecycle("activated", "LATER", is_deactivated=False)
    bed.advance(10)
    look_ups = bed.feed.take_look_ups()
    assert LookUpMarket("LATER") in look_ups
    assert bed.feed.take_look_ups() == []


def test_the_session_ends():
    """Through the feed as through the plant."""
    bed = FeedBed(tickers=("A",))
    bed.read("A")
    bed.start()
    bed.subscriber.receive(bed.feed.end_session(bed.now_ns))
    for wait_ms in (0, 10, 50, 250):
        assert not bed.feed.ended
        bed.subscriber.receive(bed.feed.handle_timer(bed.now_ns + wait_ms * MS))
    assert bed.feed.ended


def test_the_same_inputs_give_the_same_bytes():
    """Byte-identical datagrams, so that a recorded day can be replayed."""

    def run():
        bed = FeedBed(connection_count=2, tickers=("A", "B", "C"))
        received = []
        receive = bed.subscriber.receive
        bed.subscriber.receive = lambda datagrams: (received.extend(datagrams), receive(datagrams))[
            1
        ]
        bed.read("A", "B", "C")
        bed.start()
        bed.give(0, trade(bed.take_seq(0, "trade"), "A", sid=bed.sids[0]["trade"]))
        bed.flush()
        bed.advance(31)
        bed.feed.connection_closed(0, bed.now_ns, "x")
        bed.flush()
        return received

    first = run()
    assert len(first) > 20
    assert run() == first


# --- the exchange's own examples ------------------------------------------------------------------


def examples(shared_folder):
    """Frames that the exchange sends, of the documented examples."""
    lines = (shared_folder / "kalshi" / "examples.jsonl").read_text().splitlines()
    frames = [json.loads(line) for line in lines if line.strip()]
    return [frame for frame in frames if "type" in frame]


def test_the_examples_hold_every_type(shared_folder):
    """What is handled, and what is counted by name: together, all there is."""
    assert {frame["type"] for frame in examples(shared_folder)} == HANDLED | COUNTED


def test_every_example_is_handled_or_counted_by_name(shared_folder):
    """Each on a connection where it comes next in its sequence: no fault, no gap, no crash."""
    for frame in examples(shared_folder):
        bed = ConnectionBed(
            (BOOKS, "ticker", "trade", "market_lifecycle_v2", "multivariate_market_lifecycle"),
            tickers=("KXDEMOTEMP-26NOV21-T58", "KXDEMOTEMP-26NOV21-T60"),
        )
        bed.subscribed()
        bed.feed(snapshot(1, "KXDEMOTEMP-26NOV21-T58", yes=[("0.3300", "40.50")]))
        sid = frame.get("sid", 0)
        subscription = bed.connection.commands.by_sid.get(sid)
        if subscription is not None and "seq" in frame:
            subscription.expected = frame["seq"]
        messages = bed.feed(frame)
        counters = bed.counters
        name = frame["type"]
        faults = counters.unusable_frames + counters.unreadable_frames + counters.duplicate_frames
        assert faults + counters.sequence_gaps + counters.foreign_market_frames == 0, frame
        if name in COUNTED:
            assert counters.frame_types[name] == 1, frame
        else:
            assert not counters.frame_types, frame
            assert counters.unknown_sid_frames == 0, frame
            assert_handled(bed, frame, messages)


def assert_handled(bed, frame, messages):
    """What each handled type must have done."""
    name, told = frame["type"], [type(message).__name__ for message in messages]
    if name == "orderbook_delta":
        assert told.count("LevelUpdate") == 1
        assert bed.entry("KXDEMOTEMP-26NOV21-T58").bids == {}
    elif name == "orderbook_snapshot":
        assert bed.state(frame["msg"]["market_ticker"]) == "LIVE"
    elif name in {"trade", "ticker"}:
        assert told == [name.capitalize()]
    elif name == "event_lifecycle":
        assert len(bed.events.events) == 1
    elif name.endswith(("lifecycle", "lifecycle_v2")):
        assert len(bed.events.lifecycles) == 1
    elif name == "error":
        code = frame["msg"]["code"]
        assert bed.counters.error_codes == {str(code): 1}
        assert bed.counters.subscriptions_ended == (code == 25)
    elif name in {"ok", "unsubscribed"} and frame.get("sid") == 1:
        assert bed.connection.commands.books.expected == frame["seq"] + 1


@pytest.mark.parametrize("reverse", [False, True])
def test_all_examples_on_one_connection(shared_folder, reverse):
    """In any order, with holes and strangers between: the books end right or STALE, and nothing crashes."""
    bed = ConnectionBed(
        (BOOKS, "ticker", "trade", "market_lifecycle_v2"), tickers=("KXDEMOTEMP-26NOV21-T60",)
    )
    bed.subscribed()
    for frame in sorted(examples(shared_folder), key=json.dumps, reverse=reverse):
        bed.feed(frame)
    assert bed.state("KXDEMOTEMP-26NOV21-T60") in {"SYNCING", "STALE", "LIVE"}
    assert bed.counters.unreadable_frames == 0
