"""The central promise: whatever is lost, repeated or damaged, a book is right or it is STALE.

Hypothesis drives an honest exchange and a carrier that is not: frames are lost, repeated (also from a subscription
that ended), damaged in every way that can be seen, commands are lost or refused, subscriptions end, the connection
is lost. After every step:

* right or STALE: a LIVE book equals the exchange's book as of the frame numbered `expected - 1` of the client's sid.
  A frame that was lost and has no successor yet is thereby not held against the client: nobody could know;
* a subscriber that offers a book as live holds exactly what the plant published, and the plant's own LIVE book
  unless the notice of a change is in the publish queue.

At the end nothing is lost any more, and with time alone (no further market activity) every book becomes LIVE and
equal, at the plant and at the subscriber.

Not in the model, because no client could see it: a frame damaged into another valid frame.
"""

import copy
import json

import pytest
from exchange_model import BOOKS, ExchangeModel
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from subscriber_model import SubscriberModel

from tickerplant.core.messages import BookState, FeedPhase
from tickerplant.core.plant import Plant
from tickerplant_kalshi.protocol import FeedConnection

TICKERS = ("KXA", "KXB", "KXC")
PRICES = st.sampled_from([1, 100, 3300, 3400, 9_999])
MS = 1_000_000
HEAL_STEPS = 400
REQUIRED = {
    "orderbook_delta": ("market_ticker", "price_dollars", "delta_fp", "side"),
    "orderbook_snapshot": ("market_ticker",),
}
WRONG_VALUES = {
    "price_dollars": [
        "0.33001",
        "1.0000",
        "0",
        "-0.3300",
        "3.3e-1",
        "",
        "NaN",
        " 0.33",
        0.33,
        33,
        None,
    ],
    "delta_fp": ["1.001", "1e2", "", "+1.00", "1,00", 1, None, [], "9" * 40],
    "side": ["YES", "bid", "", 0, None],
    "market_ticker": [5, None, [], {}, ""],
}
JUNK = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"\xff\xfe",
    b"heartbeat",
    b'{"type":"orderbook_delta"',
    b'{"type":"orderbook_delta","sid":"1","seq":1,"msg":{}}',
    b'{"type":7}',
    b"[" * 5000,
]
UNKNOWN = [
    b'{"type":"news","msg":{}}',
    b'{"type":"news","sid":77,"seq":5,"msg":{}}',
    b'{"type":"fill","sid":6,"msg":{"trade_id":"x"}}',
]


class Quiet:
    """A feed that chose every market and does nothing with its life."""

    def is_chosen(self, _ticker):
        """All are."""
        return True

    def lifecycle(self, frame):
        """Nothing."""

    def event_lifecycle(self, frame):
        """Nothing."""

    def lifecycle_gap(self):
        """Nothing."""

    def subscriptions_changed(self):
        """Nothing."""


class Interleavings(RuleBasedStateMachine):
    """Exchange, carrier, client and subscriber."""

    @initialize(
        use_yes_price=st.booleans(),
        data_first=st.booleans(),
        trades=st.booleans(),
        synced=st.sampled_from([True, True, False]),
        levels=st.lists(
            st.tuples(st.sampled_from(TICKERS), st.integers(0, 1), PRICES, st.integers(1, 9)),
            max_size=8,
        ),
    )
    def start(self, use_yes_price, data_first, trades, synced, levels):
        """All markets chosen, the connection open; usually the books are there, too."""
        self.now_ns = 10**18
        self.exchange = ExchangeModel(TICKERS, use_yes_price=use_yes_price, data_first=data_first)
        for level in levels:
            self.exchange.change(*level)
        self.plant = Plant(1, self.now_ns)
        channels = (BOOKS, "trade") if trades else (BOOKS,)
        self.connection = FeedConnection(
            0, self.plant, Quiet(), channels, use_yes_price=use_yes_price
        )
        self.subscriber = SubscriberModel()
        self.delivered = []
        self.dead_sids = set()
        self.open()
        for ticker in TICKERS:
            self.connection.want_book(self.plant.open_book(ticker))
        self.end_input()
        if synced:
            self.obey()
            self.deliver(30)
            assert all(entry.live for entry in self.plant.entries.values())

    # --- the shell --------------------------------------------------------------------------------

    def open(self):
        """A handshake was done."""
        self.exchange.connect()
        self.delivered, self.dead_sids = [], set()
        self.plant.begin_input(self.now_ns)
        self.connection.opened(self.now_ns)

    def give(self, data):
        """One frame to the client."""
        self.connection.note_activity(self.now_ns)
        self.connection.receive_frame(data, self.now_ns)

    def tell_upstream(self):
        """What the feed knows of its connections."""
        self.plant.set_upstream(
            connections_missing=not self.connection.is_open, discovered=self.connection.complete
        )

    def end_input(self):
        """A flush, with what the feed knows of the upstream."""
        self.tell_upstream()
        self.subscriber.receive(self.plant.flush(self.now_ns))

    # --- the market -------------------------------------------------------------------------------

    @rule(
        ticker=st.sampled_from(TICKERS),
        side=st.integers(0, 1),
        price_e4=PRICES,
        delta_e2=st.integers(-9, 9),
    )
    def trade(self, ticker, side, price_e4, delta_e2):
        """A level changes."""
        self.exchange.change(ticker, side, price_e4, delta_e2)

    @rule(ticker=st.sampled_from(TICKERS), side=st.integers(0, 1), count=st.integers(2, 8))
    def burst(self, ticker, side, count):
        """Many changes of one market."""
        for step in range(count):
            self.exchange.change(ticker, side, 1_000 + 100 * step, 5)

    # --- the carrier ------------------------------------------------------------------------------

    @precondition(lambda self: self.exchange.pipe)
    @rule(count=st.integers(1, 30))
    def deliver(self, count):
        """The next frames arrive in one read batch."""
        for _ in range(min(count, len(self.exchange.pipe))):
            frame = self.exchange.pipe.popleft()
            self.delivered.append(frame.data)
            self.give(frame.data)
            if frame.kind == "error" and frame.sid:
                self.dead_sids.add(frame.sid)
        self.end_input()

    @precondition(lambda self: self.exchange.pipe)
    @rule(count=st.integers(1, 3))
    def lose(self, count):
        """The next frames never arrive."""
        for _ in range(min(count, len(self.exchange.pipe))):
            self.exchange.pipe.popleft()

    @precondition(lambda self: self.delivered)
    @rule(data=st.data())
    def repeat(self, data):
        """A frame that arrived on this connection arrives again, however old."""
        self.give(data.draw(st.sampled_from(self.delivered)))
        self.end_input()

    @precondition(lambda self: self.exchange.pipe)
    @rule(data=st.data())
    def damage(self, data):
        """The next frame arrives so damaged that a client can see it."""
        frame = self.exchange.pipe.popleft()
        fields = copy.deepcopy(frame.fields)
        ways = ["cut", "top"]
        keys = REQUIRED.get(frame.kind, ())
        if keys:
            ways += ["missing", "wrong"]
        if frame.kind == "orderbook_delta":
            ways.append("below zero")
        way = data.draw(st.sampled_from(ways))
        if way == "cut":
            self.give(frame.data[: data.draw(st.integers(0, len(frame.data) - 1))])
        else:
            if way == "top":
                del fields[data.draw(st.sampled_from([k for k in fields if k != "id"]))]
            elif way == "missing":
                del fields["msg"][data.draw(st.sampled_from(keys))]
            elif way == "wrong":
                key = data.draw(st.sampled_from(keys))
                fields["msg"][key] = data.draw(st.sampled_from(WRONG_VALUES[key]))
            else:
                fields["msg"]["delta_fp"] = "-99999999.00"
            self.give(json.dumps(fields).encode())
        self.end_input()

    @rule(junk=st.sampled_from(JUNK + UNKNOWN))
    def junk(self, junk):
        """Something that is no frame of ours arrives."""
        self.give(junk)
        self.end_input()

    @precondition(lambda self: BOOKS in self.exchange.sids)
    @rule(unknown=st.booleans())
    def another(self, unknown):
        """The exchange numbers a frame that is not for us: a foreign market, or a type not known yet."""
        if unknown:
            self.exchange.send_sequenced(self.exchange.sids[BOOKS], "orderbook_news", {})
        else:
            self.exchange.snapshot("KXFOREIGN")

    # --- commands ---------------------------------------------------------------------------------

    @rule()
    def obey(self):
        """The exchange receives what the client sends."""
        for command in self.connection.outgoing(self.now_ns):
            self.exchange.command(command)
        self.end_input()

    @rule()
    def lose_commands(self):
        """What the client sends never arrives."""
        self.connection.outgoing(self.now_ns)

    @rule(code=st.sampled_from([7, 18, 26, 27, 10, 25]))
    def refuse(self, code):
        """The next command will be refused."""
        if len(self.exchange.refusals) < 2:
            self.exchange.refusals.append(code)

    @precondition(lambda self: self.exchange.sids)
    @rule(data=st.data(), code=st.sampled_from([10, 25]))
    def end_subscription(self, data, code):
        """A subscription ends at the exchange."""
        channels = sorted(self.exchange.sids)
        self.exchange.end_subscription(data.draw(st.sampled_from(channels)), code)

    @rule(ticker=st.sampled_from(TICKERS))
    def toggle(self, ticker):
        """A market is no longer chosen, or again."""
        self.plant.begin_input(self.now_ns)
        entry = self.plant.entries.get(ticker)
        if entry is None:
            self.connection.want_book(self.plant.open_book(ticker))
        else:
            self.connection.unwant_book(ticker)
            self.plant.close_book(entry)
        self.end_input()

    @rule(
        wait_ns=st.sampled_from(
            [5 * MS, 500 * MS, 1_100 * MS, 5_001 * MS, 11_000 * MS, 31_000 * MS]
        )
    )
    def wait(self, wait_ns):
        """Time goes by on a healthy socket."""
        end_ns = self.now_ns + wait_ns
        for _ in range(100):
            deadline_ns = min(self.plant.next_deadline_ns(), self.client_deadline_ns())
            if deadline_ns > end_ns:
                break
            self.now_ns = max(self.now_ns, deadline_ns)
            self.timers()
        self.now_ns = end_ns
        self.timers()

    @rule()
    def reconnect(self):
        """The connection is lost and made again."""
        self.plant.begin_input(self.now_ns)
        self.connection.closed()
        self.end_input()
        self.open()
        self.end_input()

    def client_deadline_ns(self):
        """When the client wants to be woken."""
        deadline_ns = self.connection.next_deadline_ns()
        return 2**62 if deadline_ns is None else deadline_ns

    def timers(self):
        """Everything that is due; the socket is alive, so pongs come."""
        self.connection.note_activity(self.now_ns)
        self.plant.begin_input(self.now_ns)
        self.connection.handle_timer(self.now_ns)
        self.tell_upstream()
        self.subscriber.receive(self.plant.handle_timer(self.now_ns))

    # --- what must hold ---------------------------------------------------------------------------

    @invariant()
    def live_books_are_right(self):
        """Compared with the exchange as of the last frame accounted for."""
        if not hasattr(self, "plant"):
            return
        books = self.connection.commands.books
        live = [entry for entry in self.plant.entries.values() if entry.live]
        if not live:
            return
        assert books.sid, "a book without subscription"
        assert books.sid not in self.dead_sids, (
            "a book of a subscription that is known to have ended"
        )
        then = self.exchange.history[books.sid, books.expected - 1]
        for entry in live:
            assert (entry.bids, entry.asks) == then[entry.ticker], entry.ticker

    @invariant()
    def subscribers_hold_what_was_published(self):
        """And nothing else is offered as live."""
        if not hasattr(self, "plant"):
            return
        for ticker, mirrored in self.subscriber.books.items():
            entry = self.plant.entries.get(ticker)
            if not mirrored.live:
                assert entry is None or not entry.in_sync
                continue
            assert entry is not None, "a closed book is offered as live"
            held = entry if entry.in_sync else entry.mirror
            assert entry.in_sync or entry.queued, "subscribers are not told"
            assert mirrored.sides == (held.bids, held.asks)
            bbo = self.subscriber.bbos[ticker]
            assert (bbo.bid_e4, bbo.bid_size_e2, bbo.ask_e4, bbo.ask_size_e2) == held.bbo()
            assert bbo.state == BookState.LIVE
        for entry in self.plant.entries.values():
            assert not entry.in_sync or self.subscriber.books[entry.ticker].live

    def teardown(self):
        """Nothing is lost from here on: everything heals by itself."""
        if not hasattr(self, "plant"):
            return
        self.exchange.refusals.clear()
        for ticker in TICKERS:
            if ticker not in self.plant.entries:
                self.toggle(ticker)
        for _ in range(HEAL_STEPS):
            if self.connection.close_reason:
                self.reconnect()
            self.obey()
            if self.exchange.pipe:
                self.deliver(10)
            elif self.healed():
                break
            else:
                self.now_ns = max(
                    self.now_ns, min(self.plant.next_deadline_ns(), self.client_deadline_ns())
                )
                self.timers()
            self.live_books_are_right()
            self.subscribers_hold_what_was_published()
        assert self.healed(), f"the books do not heal: {self.describe()}"

    def describe(self):
        """Where things stand, for a failure."""
        commands = self.connection.commands
        return {
            "books": {t: (e.state.name, e.in_sync) for t, e in self.plant.entries.items()},
            "channels": {
                c: (s.state.name, s.sid, s.expected, dict(s.tickers))
                for c, s in commands.subscriptions.items()
            },
            "exchange": (self.exchange.sids, self.exchange.next_seq, self.exchange.subscribed),
            "commands": (len(commands.queue), len(commands.snapshots)),
            "phases": self.subscriber.phases[-3:],
            "close": self.connection.close_reason,
        }

    def healed(self):
        """The feed READY, every chosen book LIVE, published and equal to the exchange's at this moment."""
        entries = self.plant.entries
        return self.subscriber.phases[-1] is FeedPhase.READY and all(
            entry.live
            and entry.in_sync
            and (entry.bids, entry.asks) == self.exchange.books[ticker]
            and self.subscriber.books[ticker].sides == self.exchange.books[ticker]
            for ticker, entry in entries.items()
        )


@pytest.mark.timeout(300)
def test_any_interleaving_gives_the_right_book_or_stale():
    """See the module's text."""
    run_state_machine_as_test(
        Interleavings,
        settings=settings(
            max_examples=250, phases=[__import__("hypothesis").Phase.generate],
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
