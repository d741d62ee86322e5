"""Command queue, snapshot requests and planning: bounds and completeness under any course of events."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tickerplant.core.books import BookEntry
from tickerplant.limits import (
    COMMAND_ATTEMPTS,
    COMMAND_TIMEOUT_NS,
    COMMANDS_IN_FLIGHT,
    SNAPSHOT_ATTEMPTS,
    SNAPSHOT_TICKERS_IN_FLIGHT,
    SNAPSHOT_TIMEOUT_NS,
    TICKERS_PER_COMMAND,
)
from tickerplant_kalshi.commands import ConnectionCommands
from tickerplant_kalshi.messages import CommandParams
from tickerplant_kalshi.subscriptions import (
    BOOK_CHANNEL,
    CommandQueue,
    PendingCommand,
    SnapshotRequests,
    Subscription,
    SubscriptionState,
)

SECOND = 1_000_000_000


def command(name="subscribe", subscription=None):
    """A command to queue."""
    return PendingCommand(name, CommandParams(channels=["x"]), subscription)


# --- command queue --------------------------------------------------------------------------------


class QueueMachine(RuleBasedStateMachine):
    """Adds, sends, answers, expires and retries, against plain counting."""

    def __init__(self):
        super().__init__()
        self.queue = CommandQueue()
        self.now_ns = 0
        self.added = self.done = self.last_id = 0
        self.flying = {}

    @rule(count=st.integers(1, 6))
    def add(self, count):
        """New commands."""
        for _ in range(count):
            self.queue.add(command())
            self.added += 1

    @rule()
    def send(self):
        """Whatever may go now."""
        for sent in self.queue.sendable(self.now_ns):
            assert sent.id == self.last_id + 1, "ids count up"
            self.last_id = sent.id
            self.flying[sent.id] = self.now_ns

    @rule(data=st.data(), retried=st.booleans(), wait_ns=st.sampled_from([0, SECOND, 30 * SECOND]))
    def answer(self, data, retried, wait_ns):
        """A reply: done, or asked again later."""
        command_id = data.draw(st.sampled_from([0, *self.flying, 10**6]))
        assert (self.queue.in_flight(command_id) is not None) == (command_id in self.flying)
        answered = self.queue.answered(command_id)
        assert (answered is not None) == (command_id in self.flying)
        if answered is None:
            return
        del self.flying[command_id]
        again = retried and self.queue.retry(answered, self.now_ns + wait_ns)
        assert again or not retried or answered.attempts == COMMAND_ATTEMPTS
        self.done += not again

    @rule(wait_ns=st.sampled_from([1, SECOND, COMMAND_TIMEOUT_NS]))
    def expire(self, wait_ns):
        """Time goes by."""
        self.now_ns += wait_ns
        overdue = {
            i for i, sent_ns in self.flying.items() if sent_ns + COMMAND_TIMEOUT_NS <= self.now_ns
        }
        expired = self.queue.expire(self.now_ns)
        assert {c.id for c in expired} == overdue
        for lost in expired:
            del self.flying[lost.id]
            self.done += not self.queue.retry(lost, self.now_ns)

    @invariant()
    def bounded_and_complete(self):
        """Never more in flight than allowed; nothing is forgotten; the deadline is never missed."""
        assert len(self.flying) <= COMMANDS_IN_FLIGHT
        assert len(self.queue) == self.added - self.done
        deadline_ns = self.queue.next_deadline_ns()
        if self.flying:
            assert deadline_ns <= min(self.flying.values()) + COMMAND_TIMEOUT_NS
        if self.queue.room(self.now_ns) < COMMANDS_IN_FLIGHT - len(self.flying) and (
            len(self.flying) < COMMANDS_IN_FLIGHT
        ):
            assert deadline_ns <= self.now_ns, "something could be sent now"


def test_the_command_queue_is_bounded_and_forgets_nothing():
    """See the machine."""
    run_state_machine_as_test(QueueMachine, settings=settings(max_examples=60, deadline=None))


def test_a_delayed_retry_holds_up_nothing_else():
    """What may go, goes."""
    queue = CommandQueue()
    queue.add(command("a"))
    queue.sendable(0)
    queue.retry(queue.answered(1), 30 * SECOND)
    queue.add(command("b"))
    assert [c.cmd for c in queue.sendable(SECOND)] == ["b"]
    assert [c.cmd for c in queue.sendable(30 * SECOND)] == ["a"]


def test_commands_of_an_ended_subscription_are_dropped():
    """Waiting or in flight; those of others stay."""
    queue, ended, other = CommandQueue(), Subscription("x"), Subscription("y")
    for subscription in (ended, other, ended, other, ended, other):
        queue.add(command("u", subscription))
    queue.sendable(0)
    queue.drop_subscription(ended)
    assert len(queue) == 3
    assert queue.answered(1) is None
    assert queue.answered(2) is not None


def test_what_is_prepared_away_is_not_sent():
    """`prepare` sees a command right before it goes; a refused one takes no id and no place."""
    queue = CommandQueue()
    for name in "abcdef":
        queue.add(command(name))
    sent = queue.sendable(0, lambda pending: pending.cmd in "bdf")
    assert [(c.id, c.cmd) for c in sent] == [(1, "b"), (2, "d"), (3, "f")]
    assert len(queue) == 3


# --- snapshot requests ----------------------------------------------------------------------------


class SnapshotMachine(RuleBasedStateMachine):
    """Books that wait for a snapshot, against a set."""

    def __init__(self):
        super().__init__()
        self.requests = SnapshotRequests()
        self.now_ns = 0
        self.wanted = set()
        self.asked_ns = {}
        self.tries = {}

    tickers = st.sampled_from([f"T{index}" for index in range(8)])

    @rule(ticker=tickers)
    def request(self, ticker):
        """A fault."""
        self.requests.request(ticker)
        self.wanted.add(ticker)

    @rule(ticker=tickers)
    def expect(self, ticker):
        """Subscribed: the exchange owes it."""
        self.requests.expect(ticker, self.now_ns)
        self.wanted.add(ticker)

    @rule(ticker=tickers)
    def arrive(self, ticker):
        """A snapshot comes, wanted or not."""
        self.requests.arrived(ticker)
        self.wanted.discard(ticker)
        self.asked_ns.pop(ticker, None)
        self.tries.pop(ticker, None)

    @rule()
    def ask(self):
        """What goes out now."""
        while batch := self.requests.next_batch(self.now_ns):
            assert len(set(batch)) == len(batch) <= TICKERS_PER_COMMAND
            for ticker in batch:
                assert ticker in self.wanted
                assert ticker not in self.asked_ns, "asked for twice at a time"
                self.asked_ns[ticker] = self.now_ns

    @rule(wait_ns=st.sampled_from([1, SECOND, SNAPSHOT_TIMEOUT_NS]))
    def expire(self, wait_ns):
        """Time goes by."""
        self.now_ns += wait_ns
        self.requests.expire(self.now_ns)
        for ticker, asked_ns in list(self.asked_ns.items()):
            if asked_ns + SNAPSHOT_TIMEOUT_NS <= self.now_ns:
                del self.asked_ns[ticker]
                self.tries[ticker] = self.tries.get(ticker, 0) + 1
        assert self.requests.exhausted or max(self.tries.values(), default=0) < SNAPSHOT_ATTEMPTS

    @invariant()
    def nothing_is_forgotten(self):
        """Each book without snapshot waits exactly once, and its turn comes."""
        assert len(self.requests) == len(self.wanted)
        deadline_ns = self.requests.next_deadline_ns()
        if self.asked_ns:
            assert deadline_ns <= min(self.asked_ns.values()) + SNAPSHOT_TIMEOUT_NS

    def teardown(self):
        """Without arrivals every wanted book is asked for within two time-outs."""
        self.expire(SNAPSHOT_TIMEOUT_NS)
        self.ask()
        assert set(self.asked_ns) == self.wanted


def test_snapshot_requests_forget_nothing_and_ask_once_at_a_time():
    """See the machine."""
    run_state_machine_as_test(SnapshotMachine, settings=settings(max_examples=80, deadline=None))


def test_snapshots_in_flight_are_bounded():
    """By markets, over all commands; the others wait."""
    requests = SnapshotRequests()
    for index in range(3 * SNAPSHOT_TICKERS_IN_FLIGHT):
        requests.request(f"T{index}")
    asked = []
    while batch := requests.next_batch(0):
        assert len(batch) <= TICKERS_PER_COMMAND
        asked += batch
    assert len(asked) == SNAPSHOT_TICKERS_IN_FLIGHT
    requests.arrived(asked[0])
    assert requests.next_batch(0) == [f"T{SNAPSHOT_TICKERS_IN_FLIGHT}"]


def test_a_repeated_expectation_does_not_hold_up_the_others():
    """The oldest deadline is always the first one looked at."""
    requests = SnapshotRequests()
    requests.expect("A", 0)
    requests.expect("B", SECOND)
    requests.expect("A", 3 * SECOND)
    requests.expire(SECOND + SNAPSHOT_TIMEOUT_NS)
    assert requests.next_batch(0) == ["B"]
    assert requests.next_deadline_ns() == SNAPSHOT_TIMEOUT_NS


# --- planning -------------------------------------------------------------------------------------


def plan(commands, now_ns=0):
    """The commands that go out now, decoded."""
    return [json.loads(data) for data in commands.sendable(now_ns)]


def wanting(count, channels=(BOOK_CHANNEL,)):
    """Commands of a connection that wants so many books."""
    commands = ConnectionCommands(channels, use_yes_price=False)
    for index in range(count):
        entry = BookEntry(f"KX-{index:05}")
        commands.books.entries[entry.ticker] = entry
        commands.want_book(entry.ticker)
    return commands


@pytest.mark.parametrize("count", [1, 499, 500, 501, 4_321])
def test_every_book_is_asked_for_once_in_bounded_commands(count):
    """First in the subscription, the rest as additions; never more commands without reply than allowed."""
    commands = wanting(count)
    now_ns, asked, waiting = 0, [], []
    for _ in range(100):
        sent = plan(commands, now_ns)
        waiting += sent
        assert len(waiting) <= COMMANDS_IN_FLIGHT
        for message in sent:
            tickers = message["params"]["market_tickers"]
            assert 0 < len(tickers) <= TICKERS_PER_COMMAND
            asked += tickers
        if not waiting:
            break
        answered = waiting.pop(0)
        commands.queue.answered(answered["id"])
        if answered["cmd"] == "subscribe":
            commands.activate(commands.books, 1, now_ns)
    assert asked == list(commands.desired_books)
    assert commands.books.state is SubscriptionState.ACTIVE


def test_snapshots_are_asked_for_only_when_they_can_be_sent():
    """Their time-out runs from then: behind a long queue of additions they would all be overdue."""
    commands = wanting(6_000)
    (subscribe,) = plan(commands)
    commands.queue.answered(subscribe["id"])
    commands.activate(commands.books, 1, 0)
    additions = plan(commands)
    assert {c["params"]["action"] for c in additions} == {"add_markets"}
    for index in range(500):
        commands.snapshots.arrived(f"KX-{index:05}")
    commands.snapshots.request("KX-00000")
    for attempt in range(1, 2 * SNAPSHOT_ATTEMPTS):
        assert plan(commands) == []
        commands.snapshots.expire(attempt * SNAPSHOT_TIMEOUT_NS)
    assert not commands.snapshots.exhausted
    asked = []
    for _ in range(20):
        for message in additions:
            commands.queue.answered(message["id"])
        additions = plan(commands, 60 * SECOND)
        asked += [c for c in additions if c["params"]["action"] == "get_snapshot"]
    assert [c["params"]["market_tickers"] for c in asked] == [["KX-00000"]]


def test_a_new_epoch_asks_for_everything_again():
    """Nothing of the old connection survives but what is wanted."""
    commands = wanting(3, (BOOK_CHANNEL, "trade"))
    plan(commands)
    commands.activate(commands.books, 1, 0)
    commands.snapshots.request("KX-00001")
    commands.unwant_book("KX-00002")
    commands.reset()
    assert (len(commands.queue), len(commands.snapshots), commands.by_sid) == (0, 0, {})
    again = plan(commands, 10 * SECOND)
    assert [c["id"] for c in again] == [1, 2]
    assert again[0]["params"]["market_tickers"] == ["KX-00000", "KX-00001"]


def test_a_subscription_nobody_wants_any_more_is_not_sent():
    """All its markets were let go while it waited for its second."""
    commands = wanting(1)
    plan(commands)
    commands.activate(commands.books, 1, 0)
    commands.end_subscription(commands.books)
    assert plan(commands, 1) == []
    commands.unwant_book("KX-00000")
    assert plan(commands, 5 * SECOND) == []
    assert commands.books.state is SubscriptionState.IDLE
    commands.want_book("KX-00000")
    (message,) = plan(commands, 5 * SECOND) or plan(commands, 10 * SECOND)
    assert message["params"]["market_tickers"] == ["KX-00000"]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), max_size=40), st.integers(1, 7))
def test_any_change_of_mind_ends_in_what_is_wanted(changes, every):
    """The exchange, obeying every command in order, ends with exactly the wanted markets subscribed."""
    commands = wanting(1)
    exchange, now_ns = None, 0

    def obey():
        nonlocal exchange
        for message in plan(commands, now_ns):
            params = message["params"]
            tickers = params["market_tickers"]
            if message["cmd"] == "subscribe":
                exchange = set(tickers)
                commands.activate(commands.books, 1, now_ns)
                commands.confirm_books(tickers)
            elif params["action"] == "add_markets":
                exchange.update(tickers)
                commands.confirm_books(tickers)
            elif params["action"] == "delete_markets":
                exchange.difference_update(tickers)
            commands.queue.answered(message["id"])

    for step, (want, index) in enumerate(changes):
        ticker = f"KX-{index:05}"
        (commands.want_book if want else commands.unwant_book)(ticker)
        if step % every == 0:
            now_ns += SECOND
            obey()
    for _ in range(5):
        now_ns += SECOND
        obey()
    if exchange is not None:
        assert exchange == set(commands.desired_books)
    else:
        assert not commands.desired_books
