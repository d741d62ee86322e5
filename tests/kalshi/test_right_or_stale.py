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
import random

import pytest
from exchange_model import BOOKS, ExchangeModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from subscriber_model import SubscriberModel

from tickerplant.core.messages import BookState, FeedPhase
from tickerplant.core.plant import Plant
from tickerplant_kalshi.protocol import FeedConnection

TICKERS = ("KXA", "KXB", "KXC")
PRICES = (1, 100, 3300, 3400, 9_999)
FATES = ("arrives",) * 8 + ("lost", "damaged", "damaged", "twice", "late")
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


def damages_of(frame):
    """(way, key, value) of everything that can be done to a frame so that a client can see it."""
    damages = [("cut", "", share) for share in (0, 0.3, 0.6, 0.99)]
    damages += [("top", key, None) for key in frame.fields if key != "id"]
    for key in REQUIRED.get(frame.kind, ()):
        damages.append(("missing", key, None))
        damages += [("wrong", key, value) for value in WRONG_VALUES[key]]
    if frame.kind == "orderbook_delta":
        damages += [("wrong", "delta_fp", "-99999999.00")] * 6
    return damages


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


class Course:
    """Exchange, carrier, client and subscriber; `chance` decides what happens."""

    def __init__(self, chance):
        """All markets chosen, the connection open; usually the books are there, too."""
        self.chance = chance
        self.log = []
        use_yes_price = chance.choice((False, True))
        self.now_ns = 10**18
        self.exchange = ExchangeModel(
            TICKERS, use_yes_price=use_yes_price, data_first=chance.choice((False, True))
        )
        for _ in range(chance.randint(0, 8)):
            self.exchange.change(*self.draw_change())
        self.plant = Plant(1, self.now_ns)
        channels = chance.choice(((BOOKS,), (BOOKS, "trade")))
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
        if chance.randint(0, 3):
            self.settle()
            assert all(entry.live for entry in self.plant.entries.values())

    def draw_change(self):
        """(ticker, side, price, delta)"""
        chance = self.chance
        return (
            chance.choice(TICKERS),
            chance.randint(0, 1),
            chance.choice(PRICES),
            chance.randint(-9, 9),
        )

    def run(self, steps):
        """So many actions, the promises checked after each; then everything heals."""
        for _ in range(steps):
            action = self.chance.choice(ACTIONS)
            self.log.append(action)
            getattr(self, action)()
            self.check()
        self.log.append("heal")
        self.heal()

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

    def change(self):
        """A level changes; its frame waits."""
        self.exchange.change(*self.draw_change())

    def burst(self):
        """Many changes of one market."""
        ticker, side, _, _ = self.draw_change()
        for step in range(6):
            self.exchange.change(ticker, side, 1_000 + 100 * step, 5)

    def traffic(self):
        """Changes, and what is on its way arrives at once: each frame by its own fate."""
        for _ in range(self.chance.randint(1, 5)):
            self.exchange.change(*self.draw_change())
        while self.exchange.pipe:
            fate = self.chance.choice(FATES)
            if fate == "lost":
                self.exchange.pipe.popleft()
            elif fate == "damaged":
                self.damage()
            else:
                self.deliver(1)
                if fate == "twice":
                    self.give(self.delivered[-1])
                elif fate == "late":
                    self.give(self.chance.choice(self.delivered))
        self.end_input()

    def settle(self):
        """For a while nothing goes wrong: commands are obeyed, frames arrive."""
        for _ in range(6):
            self.obey()
            if not self.exchange.pipe:
                break
            self.deliver(len(self.exchange.pipe))

    # --- the carrier ------------------------------------------------------------------------------

    def arrive(self):
        """Some of the frames arrive."""
        self.deliver(self.chance.randint(1, 30))

    def deliver(self, count):
        """The next frames arrive in one read batch."""
        for _ in range(min(count, len(self.exchange.pipe))):
            frame = self.exchange.pipe.popleft()
            self.delivered.append(frame.data)
            self.give(frame.data)
            if frame.kind == "error" and frame.sid:
                self.dead_sids.add(frame.sid)
        self.end_input()

    def lose(self):
        """The next frames never arrive."""
        for _ in range(min(self.chance.randint(1, 3), len(self.exchange.pipe))):
            self.exchange.pipe.popleft()

    def repeat(self):
        """Frames that arrived on this connection arrive again, however old."""
        if self.delivered:
            for _ in range(self.chance.randint(1, 6)):
                self.give(self.chance.choice(self.delivered))
        self.end_input()

    def damage(self):
        """The next frame arrives so damaged that a client can see it."""
        if not self.exchange.pipe:
            return
        frame = self.exchange.pipe.popleft()
        way, key, value = self.chance.choice(damages_of(frame))
        if way == "cut":
            self.give(frame.data[: int(value * len(frame.data))])
        else:
            fields = copy.deepcopy(frame.fields)
            target = fields if way == "top" else fields["msg"]
            if way == "wrong":
                target[key] = value
            else:
                del target[key]
            self.give(json.dumps(fields).encode())
        self.end_input()

    def junk(self):
        """Something that is no frame of ours arrives."""
        self.give(self.chance.choice(JUNK + UNKNOWN))
        self.end_input()

    def another(self):
        """The exchange numbers a frame that is not for us: a foreign market, or a type not known yet."""
        if BOOKS not in self.exchange.sids:
            return
        if self.chance.choice((False, True)):
            self.exchange.send_sequenced(self.exchange.sids[BOOKS], "orderbook_news", {})
        else:
            self.exchange.snapshot("KXFOREIGN")

    # --- commands ---------------------------------------------------------------------------------

    def obey(self):
        """The exchange receives what the client sends."""
        for command in self.connection.outgoing(self.now_ns):
            self.exchange.command(command)
        self.end_input()

    def lose_commands(self):
        """What the client sends never arrives."""
        self.connection.outgoing(self.now_ns)

    def refuse(self):
        """The next command will be refused."""
        if len(self.exchange.refusals) < 2:
            self.exchange.refusals.append(self.chance.choice((7, 18, 26, 27, 10, 25)))

    def end_subscription(self):
        """A subscription ends at the exchange, and usually that is heard."""
        if not self.exchange.sids:
            return
        channel = self.chance.choice(sorted(self.exchange.sids))
        self.exchange.end_subscription(channel, self.chance.choice((10, 25)))
        if self.chance.choice((False, True)):
            self.deliver(len(self.exchange.pipe))
            self.chance.choice((self.end_input, self.obey))()
            self.chance.choice((self.end_input, self.repeat))()

    def change_mind(self):
        """A market is no longer chosen, or again; the command for it has its own fate."""
        self.toggle(self.chance.choice(TICKERS))
        fate = self.chance.choice(("waits", "obeyed", "lost", "refused"))
        if fate == "lost":
            self.lose_commands()
        elif fate != "waits":
            if fate == "refused":
                self.refuse()
            self.obey()

    def toggle(self, ticker):
        """Chosen or not."""
        self.plant.begin_input(self.now_ns)
        entry = self.plant.entries.get(ticker)
        if entry is None:
            self.connection.want_book(self.plant.open_book(ticker))
        else:
            self.connection.unwant_book(ticker)
            self.plant.close_book(entry)
        self.end_input()

    def wait(self):
        """Time goes by on a healthy socket."""
        end_ns = self.now_ns + MS * self.chance.choice((5, 500, 1_100, 5_001, 11_000, 31_000))
        for _ in range(100):
            deadline_ns = min(self.plant.next_deadline_ns(), self.client_deadline_ns())
            if deadline_ns > end_ns:
                break
            self.now_ns = max(self.now_ns, deadline_ns)
            self.timers()
        self.now_ns = end_ns
        self.timers()

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

    def live_books_are_right(self):
        """Compared with the exchange as of the last frame accounted for."""
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

    def subscribers_hold_what_was_published(self):
        """And nothing else is offered as live."""
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

    def check(self):
        """Both promises."""
        self.live_books_are_right()
        self.subscribers_hold_what_was_published()

    def heal(self):
        """Nothing is lost from here on: everything heals by itself."""
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
            self.check()
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


ACTIONS = (
    *["traffic"] * 10,
    *["settle", "repeat", "wait", "change_mind"] * 3,
    *["change", "burst", "arrive", "lose", "damage", "junk", "another", "obey", "lose_commands"],
    *["refuse", "end_subscription", "reconnect"],
)


@given(st.randoms(use_true_random=False), st.integers(1, 12))
@settings(max_examples=150, suppress_health_check=list(HealthCheck))
def test_any_interleaving_gives_the_right_book_or_stale(chance, steps):
    """See the module's text; hypothesis finds the shortest course that breaks a promise."""
    Course(chance).run(steps)


@pytest.mark.parametrize(("courses", "steps"), [(1_200, 3), (250, 20)])
def test_many_courses(courses, steps):
    """The same without a search: short courses show that each fault heals alone, long ones that they do together."""
    for seed in range(courses):
        course = Course(random.Random(seed))
        try:
            course.run(steps)
        except Exception as error:
            error.add_note(f"seed {seed}, {steps} steps: {', '.join(course.log)}")
            raise
