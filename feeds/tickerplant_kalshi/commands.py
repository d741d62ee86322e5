"""What one connection wants of the exchange, and the commands that bring it there (pure)."""

from collections.abc import Iterable, Mapping

import msgspec

from tickerplant.core.books import BookEntry
from tickerplant.limits import SUBSCRIPTION_RETRY_NS, TICKERS_PER_COMMAND
from tickerplant_kalshi.messages import CommandParams
from tickerplant_kalshi.rolling_check import RollingCheck
from tickerplant_kalshi.subscriptions import (
    BOOK_CHANNEL,
    CommandQueue,
    PendingCommand,
    SnapshotRequests,
    Subscription,
    SubscriptionState,
)

_encode = msgspec.json.Encoder().encode


class ConnectionCommands:
    """Desired channels and books of a connection against what was asked for.

    `desired_books` outlives the connection; everything else starts anew with each epoch, so that a reconnect asks
    for all of it again.
    """

    def __init__(
        self, channels: Iterable[str], *, use_yes_price: bool, check_interval_ns: int = 0
    ) -> None:
        self._use_yes_price = use_yes_price
        self.check = RollingCheck(check_interval_ns)
        self.subscriptions = {channel: Subscription(channel) for channel in channels}
        self.books = self.subscriptions.get(BOOK_CHANNEL, Subscription(BOOK_CHANNEL))
        self.by_sid: dict[int, Subscription] = {}
        self.queue = CommandQueue()
        self.snapshots = SnapshotRequests()
        self.desired_books: dict[str, None] = {}
        self.last_ended_sid = 0
        self._to_add: dict[str, None] = {}
        self._to_delete: dict[str, None] = {}

    def reset(self) -> None:
        """A new connection epoch: nothing is asked for yet."""
        self.by_sid.clear()
        self.last_ended_sid = 0
        self.queue.clear()
        for subscription in self.subscriptions.values():
            subscription.reset()
        self._reset_books()

    def _reset_books(self) -> None:
        self.snapshots.clear()
        self._to_add = dict(self.desired_books)
        self._to_delete.clear()

    def want_book(self, ticker: str) -> None:
        """Subscribes a market's book, now or when the connection is up."""
        if ticker not in self.desired_books:
            self.desired_books[ticker] = None
            self._to_delete.pop(ticker, None)
            if ticker in self.books.tickers:
                self.snapshots.request(ticker)
            else:
                self._to_add[ticker] = None

    def unwant_book(self, ticker: str) -> None:
        """Unsubscribes a market's book."""
        self.desired_books.pop(ticker, None)
        self._to_add.pop(ticker, None)
        self.snapshots.forget(ticker)
        if ticker in self.books.tickers:
            self._to_delete[ticker] = None

    def activate(self, subscription: Subscription, sid: int, now_ns: int) -> None:
        """The sid of a subscription became known; the exchange owes the snapshots of its books."""
        self._forget_sid(subscription)
        subscription.activate(sid, now_ns)
        self.by_sid[sid] = subscription
        if subscription is self.books:
            self.expect_snapshots(subscription.tickers, now_ns)

    def _forget_sid(self, subscription: Subscription) -> None:
        """Late frames of an ended sid must not be taken for those of the next one: sids ascend."""
        if subscription.sid:
            self.by_sid.pop(subscription.sid, None)
            self.last_ended_sid = max(self.last_ended_sid, subscription.sid)

    def confirm_books(self, tickers: Iterable[str]) -> None:
        """The exchange has shown that these markets are subscribed."""
        for ticker in tickers:
            if ticker in self.books.tickers:
                self.books.tickers[ticker] = True

    def expect_snapshots(self, tickers: Iterable[str], now_ns: int) -> None:
        """The exchange owes the snapshots of these markets."""
        for ticker in tickers:
            self.snapshots.expect(ticker, now_ns)

    def end_subscription(self, subscription: Subscription) -> None:
        """The exchange ended a subscription; it is asked for again with all its books."""
        self._forget_sid(subscription)
        self.queue.drop_subscription(subscription)
        subscription.reset()
        if subscription is self.books:
            self._reset_books()

    def complete(self) -> bool:
        """Whether every unfiltered channel that was not refused is subscribed.

        The books' own subscription does not count: books that are missing or stale say so themselves, and a new market
        must not look like a lost connection.
        """
        return not any(
            subscription.state in (SubscriptionState.IDLE, SubscriptionState.REQUESTED)
            for subscription in self.subscriptions.values()
            if subscription is not self.books
        )

    def probe(self, subscription: Subscription) -> None:
        """Asks whether a silent subscription still lives."""
        subscription.probed = True
        self.queue.add(PendingCommand("list_subscriptions", None, None))
        if subscription is self.books:
            for ticker in list(subscription.tickers)[:1]:
                self.snapshots.request(ticker)

    def check_next(self, entries: Mapping[str, BookEntry], now_ns: int) -> bool:
        """Asks for the snapshot of the next market of the rolling check, unless anything else is under way."""
        idle = self.queue.is_idle(now_ns) and not len(self.snapshots) and not self._to_add
        if self.books.state is not SubscriptionState.ACTIVE or not idle:
            self.check.postpone(now_ns)
            return False
        ticker = self.check.take(self.books.tickers, entries, now_ns)
        if ticker:
            self._update([ticker], "get_snapshot", is_check=True)
        return bool(ticker)

    def sendable(self, now_ns: int) -> list[bytes]:
        """The commands to send now, encoded."""
        self._plan(now_ns)
        return [_encode(command) for command in self.queue.sendable(now_ns, self._prepare)]

    def retry(self, command: PendingCommand, not_before_ns: int) -> bool:
        """Asks again for what was refused or not answered; False if the attempts are used up.

        Markets that the exchange has not shown to be subscribed do not count as asked for meanwhile.
        """
        if command.subscription is self.books and command.name in ("subscribe", "add_markets"):
            for ticker in command.tickers:
                if not self.books.tickers.get(ticker):
                    self.books.tickers.pop(ticker, None)
                    self.snapshots.forget(ticker)
        return self.queue.retry(command, not_before_ns)

    def next_deadline_ns(self) -> int | None:
        """When a reply or a snapshot becomes overdue, or a delayed command may go."""
        deadlines = (
            self.queue.next_deadline_ns(),
            self.snapshots.next_deadline_ns(),
            self.check.next_deadline_ns(),
        )
        return min((d for d in deadlines if d is not None), default=None)

    # --- planning ---------------------------------------------------------------------------------

    def _plan(self, now_ns: int) -> None:
        for subscription in self.subscriptions.values():
            if subscription.state is SubscriptionState.IDLE:
                self._subscribe(subscription, now_ns)
        if self.books.state is SubscriptionState.ACTIVE:
            while self._to_add:
                self._update(self._take(self._to_add), "add_markets")
            while self._to_delete:
                self._update(self._take(self._to_delete), "delete_markets")
            # Asked for only when it can be sent, because its time-out runs from here.
            while self.queue.room(now_ns) > 0 and (batch := self.snapshots.next_batch(now_ns)):
                self._update(batch, "get_snapshot")

    def _subscribe(self, subscription: Subscription, now_ns: int) -> None:
        tickers: list[str] | None = None
        if subscription is self.books:
            tickers = self._take(self._to_add)
            if not tickers:
                return
        is_ticker = subscription.channel == "ticker"
        params = CommandParams(
            channels=[subscription.channel],
            market_tickers=tickers,
            use_yes_price=self._use_yes_price if tickers else None,
            skip_ticker_ack=True if tickers else None,
            send_initial_snapshot=True if is_ticker else None,
        )
        command = PendingCommand("subscribe", params, subscription)
        # A subscription that keeps ending is asked for again once a second, not in a loop.
        command.deadline_ns = subscription.retry_at_ns
        subscription.retry_at_ns = max(now_ns, subscription.retry_at_ns) + SUBSCRIPTION_RETRY_NS
        subscription.state = SubscriptionState.REQUESTED
        self.queue.add(command)

    def _update(self, tickers: list[str], action: str, *, is_check: bool = False) -> None:
        params = CommandParams(sids=[self.books.sid], action=action, market_tickers=tickers)
        command = PendingCommand("update_subscription", params, self.books, is_check=is_check)
        self.queue.add(command)

    def _prepare(self, command: PendingCommand) -> bool:
        """Leaves out the markets that are no longer concerned when a command is sent; False if none is left.

        A command may have waited, for its turn or to be tried again, and markets may have come and gone meanwhile.
        """
        if command.subscription is not self.books or command.params is None:
            return True
        asked, wanted = self.books.tickers, self.desired_books
        if command.name == "delete_markets":
            tickers = [ticker for ticker in command.tickers if ticker not in wanted]
            for ticker in tickers:
                asked.pop(ticker, None)
        elif command.name == "get_snapshot":
            tickers = [ticker for ticker in command.tickers if ticker in asked]
            for ticker in set(command.tickers).difference(tickers):
                self.snapshots.forget(ticker)
        else:
            tickers = [t for t in command.tickers if t in wanted and not asked.get(t)]
            asked.update(dict.fromkeys(tickers, False))
        sids = [self.books.sid] if command.params.sids else None
        command.params = msgspec.structs.replace(command.params, market_tickers=tickers, sids=sids)
        if not tickers and self.books.state is SubscriptionState.REQUESTED:
            self.books.state = SubscriptionState.IDLE
        return bool(tickers)

    @staticmethod
    def _take(table: dict[str, None]) -> list[str]:
        batch = list(table)[:TICKERS_PER_COMMAND]
        for ticker in batch:
            del table[ticker]
        return batch
