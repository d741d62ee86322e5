"""One `FeedConnection` on a plant, with frames written by hand and everything that comes out collected."""

import json

from subscriber_model import SubscriberModel

from tickerplant.core.messages import BookStale
from tickerplant.core.plant import Plant
from tickerplant_kalshi.protocol import FeedConnection

BOOKS = "orderbook_delta"
ALL_CHANNELS = (BOOKS, "trade", "ticker", "market_lifecycle_v2", "multivariate_market_lifecycle")
T0 = 10**18
MS = 1_000_000
SECOND = 1_000_000_000


def kinds(messages):
    """Names of the types."""
    return [type(message).__name__ for message in messages]


def stale_tickers(messages):
    """Markets told stale, and why."""
    return {m.ticker: m.reason for m in messages if isinstance(m, BookStale)}


class RecordedEvents:
    """A feed that notes what the connection tells it; `chosen` None means every market."""

    def __init__(self):
        self.chosen = None
        self.lifecycles = []
        self.events = []
        self.lifecycle_gaps = 0
        self.subscription_changes = 0

    def is_chosen(self, ticker):
        """As the test wants."""
        return self.chosen is None or ticker in self.chosen

    def lifecycle(self, frame):
        """Notes it."""
        self.lifecycles.append(frame)

    def event_lifecycle(self, frame):
        """Notes it."""
        self.events.append(frame)

    def lifecycle_gap(self):
        """Notes it."""
        self.lifecycle_gaps += 1

    def subscriptions_changed(self):
        """Notes it."""
        self.subscription_changes += 1


def delta(seq, ticker="A", *, sid=1, price="0.3300", size="1.00", side="yes", **more):
    """An `orderbook_delta` frame; None leaves a field of `msg` out."""
    msg = {"market_ticker": ticker, "price_dollars": price, "delta_fp": size, "side": side, **more}
    msg = {key: value for key, value in msg.items() if value is not None}
    return {"type": "orderbook_delta", "sid": sid, "seq": seq, "msg": msg}


def snapshot(
    seq, ticker="A", *, sid=1, yes=(("0.3300", "1.00"),), no=(("0.6500", "2.00"),), command_id=0
):
    """An `orderbook_snapshot` frame; an empty side is an absent key."""
    msg = {"market_ticker": ticker, "market_id": "m"}
    if yes:
        msg["yes_dollars_fp"] = yes
    if no:
        msg["no_dollars_fp"] = no
    frame = {"type": "orderbook_snapshot", "sid": sid, "seq": seq, "msg": msg}
    return {**frame, "id": command_id} if command_id else frame


def trade(seq, ticker="A", *, sid=2, **changes):
    """A `trade` frame."""
    msg = {
        "trade_id": "c2b6a1d4",
        "market_ticker": ticker,
        "yes_price_dollars": "0.3500",
        "no_price_dollars": "0.6500",
        "count_fp": "4.25",
        "taker_side": "no",
        "taker_outcome_side": "yes",
        "taker_book_side": "bid",
        "is_block_trade": False,
        "ts_ms": 1_795_197_852_008,
        **changes,
    }
    msg = {key: value for key, value in msg.items() if value is not None}
    return {"type": "trade", "sid": sid, "seq": seq, "msg": msg}


def ticker(market="A", *, sid=3, **changes):
    """A `ticker` frame."""
    msg = {
        "market_ticker": market,
        "price_dollars": "0.3200",
        "yes_bid_dollars": "0.3100",
        "yes_ask_dollars": "0.3500",
        "volume_fp": "8123.75",
        "open_interest_fp": "5011.00",
        "dollar_volume": 2604,
        "dollar_open_interest": -3,
        "yes_bid_size_fp": "120.00",
        "yes_ask_size_fp": "10.25",
        "last_trade_size_fp": "4.00",
        "ts_ms": 1_795_197_851_311,
        **changes,
    }
    msg = {key: value for key, value in msg.items() if value is not None}
    return {"type": "ticker", "sid": sid, "msg": msg}


class ConnectionBed:
    """Frames in with `feed`, messages out in `subscriber`, commands out with `commands`."""

    def __init__(
        self,
        channels=(BOOKS,),
        *,
        tickers=("A",),
        use_yes_price=False,
        plant=None,
        index=0,
        check_interval_ns=0,
    ):
        self.now_ns = T0
        self.plant = plant or Plant(1, T0)
        self.events = RecordedEvents()
        self.connection = FeedConnection(
            index,
            self.plant,
            self.events,
            channels,
            use_yes_price=use_yes_price,
            check_interval_ns=check_interval_ns,
        )
        self.counters = self.connection.counters
        self.subscriber = SubscriberModel()
        self.connection.opened(T0)
        for market in tickers:
            self.want(market)
        self.flush()

    def want(self, market):
        """A chosen market."""
        self.connection.want_book(self.plant.open_book(market))

    def unwant(self, market):
        """A market that is no longer chosen."""
        self.connection.unwant_book(market)
        self.plant.close_book(self.plant.entries[market])

    def feed(self, *frames):
        """Frames (dicts or bytes) as one read batch; returns the messages that came of it."""
        for frame in frames:
            data = frame if isinstance(frame, bytes) else json.dumps(frame).encode()
            self.connection.receive_frame(data, self.now_ns)
        self.connection.note_activity(self.now_ns)
        return self.flush()

    def flush(self):
        """The messages of the batch."""
        self.plant.set_upstream(
            connections_missing=not self.connection.is_open,
            discovered=self.connection.complete,
        )
        return self.subscriber.receive(self.plant.flush(self.now_ns))

    def commands(self):
        """What the connection sends now, decoded."""
        return [json.loads(data) for data in self.connection.outgoing(self.now_ns)]

    def subscribed(self):
        """Answers the subscriptions of all channels: sids from 1 in the order of the commands."""
        sid = 0
        while commands := self.commands():
            for command in commands:
                sid += 1
                (channel,) = command["params"]["channels"]
                msg = {"channel": channel, "sid": sid}
                self.feed({"type": "subscribed", "id": command["id"], "msg": msg})

    def live(self, *markets):
        """Subscribes, and gives every wanted market (or those named) its snapshot; returns the next seq."""
        self.subscribed()
        for seq, market in enumerate(markets or tuple(self.plant.entries), start=1):
            self.feed(snapshot(seq, market))
        return len(markets or self.plant.entries) + 1

    def asked_for(self):
        """Markets in the `get_snapshot` commands that go out now."""
        commands = [
            c for c in self.commands() if c.get("params", {}).get("action") == "get_snapshot"
        ]
        return [market for command in commands for market in command["params"]["market_tickers"]]

    def advance(self, seconds, *, pongs=True):
        """Time goes by; timers fire at their deadlines. Returns the messages that came of it."""
        end_ns = self.now_ns + int(seconds * SECOND)
        messages = []
        for _ in range(1_000):
            deadline_ns = self.connection.next_deadline_ns()
            if deadline_ns is None or deadline_ns > end_ns:
                break
            self.now_ns = max(self.now_ns, deadline_ns)
            messages += self._timer(pongs=pongs)
        self.now_ns = end_ns
        return messages + self._timer(pongs=pongs)

    def _timer(self, *, pongs):
        if pongs:
            self.connection.note_activity(self.now_ns)
        self.plant.begin_input(self.now_ns)
        self.connection.handle_timer(self.now_ns)
        return self.flush()

    def entry(self, market="A"):
        """The book of a market."""
        return self.plant.entries[market]

    def state(self, market="A"):
        """Its state's name."""
        return self.plant.entries[market].state.name
