"""Replies, errors, time-outs and silence of one connection (pure)."""

from typing import TYPE_CHECKING

import msgspec

from tickerplant.limits import (
    MARKET_LIMIT_RETRY_NS,
    PING_INTERVAL_NS,
    REFUSED_COMMAND_RETRY_NS,
    SOCKET_SILENCE_NS,
    SUBSCRIPTION_SILENCE_NS,
)
from tickerplant_kalshi.counters import count_name
from tickerplant_kalshi.messages import (
    LISTING_DECODER,
    ErrorFrame,
    Frame,
    Ok,
    Subscribed,
    Unsubscribed,
)
from tickerplant_kalshi.subscriptions import PendingCommand, Subscription, SubscriptionState

if TYPE_CHECKING:
    from tickerplant_kalshi.protocol import FeedConnection

ERROR_UNKNOWN_SUBSCRIPTION = 7
ERROR_UNKNOWN_CHANNEL = 8
ERROR_AUTHENTICATION_REQUIRED = 9
ERROR_CHANNEL = 10
ERROR_BUFFER_OVERFLOW = 25
ERROR_MARKET_LIMIT = 26
TERMINAL_ERRORS = frozenset({ERROR_CHANNEL, ERROR_BUFFER_OVERFLOW})


class ReplyRules:
    """Acts on what the exchange answers, and on what it does not answer."""

    def __init__(self, connection: "FeedConnection") -> None:
        self._connection = connection
        self._commands = connection.commands
        self._next_ping_ns = 0

    def opened(self, now_ns: int) -> None:
        """A new epoch begins."""
        self._next_ping_ns = now_ns + PING_INTERVAL_NS
        self._commands.check.restart(now_ns)

    def closed(self) -> None:
        """The epoch is over."""
        self._connection.ping_wanted = False

    def receive(self, frame: Frame) -> None:
        """One control frame."""
        if isinstance(frame, Subscribed):
            self._receive_subscribed(frame)
        elif isinstance(frame, Ok):
            self._receive_ok(frame)
        elif isinstance(frame, ErrorFrame):
            self._receive_error(frame)
        elif isinstance(frame, Unsubscribed):
            self._connection.account_reply(frame.sid, frame.seq)
            self._answered(frame.id)

    def snapshot_reply(self, command_id: int) -> bool:
        """Whether a snapshot with a command's id was asked for by `get_snapshot`, and not by subscribing.

        The first one answers the command; the tickers are awaited one by one.
        """
        command = self._commands.queue.in_flight(command_id)
        if command is not None and command.name != "get_snapshot":
            return False
        self._commands.queue.answered(command_id)
        if command is not None and command.is_check:
            self._connection.counters.checks_answered += 1
        return True

    # --- replies ----------------------------------------------------------------------------------

    def _answered(self, command_id: int) -> PendingCommand | None:
        command = self._commands.queue.answered(command_id) if command_id else None
        if command is None:
            self._connection.counters.unmatched_replies += 1
        return command

    def _receive_subscribed(self, frame: Subscribed) -> None:
        command = self._answered(frame.id)
        subscription = self._commands.subscriptions.get(frame.msg.channel)
        if subscription is None:
            count_name(self._connection.counters.frame_types, f"subscribed {frame.msg.channel}")
            return
        requested = subscription.state is SubscriptionState.REQUESTED
        late = requested and frame.msg.sid > self._commands.last_ended_sid
        if subscription.sid != frame.msg.sid and (command is not None or late):
            self._connection.activated(subscription, frame.msg.sid)
        if command is not None:
            self._commands.confirm_books(command.tickers)

    def _receive_ok(self, frame: Ok) -> None:
        subscription = self._connection.account_reply(frame.sid, frame.seq)
        command = self._answered(frame.id)
        if command is None:
            return
        if command.cmd == "list_subscriptions":
            self._receive_listing(frame)
        elif command.cmd == "subscribe" and command.subscription:
            # A merging subscribe tells the sid that the exchange already had for the channel.
            if subscription is None and frame.sid:
                self._connection.activated(command.subscription, frame.sid)
                command.subscription.expected = frame.seq + 1
            self._books_added(command)
        elif command.name == "add_markets":
            self._books_added(command)

    def _books_added(self, command: PendingCommand) -> None:
        """The markets of a command are subscribed; snapshots that did not come before the `ok` are owed."""
        self._commands.confirm_books(command.tickers)
        entries = self._connection.plant.entries
        missing = [t for t in command.tickers if t in entries and not entries[t].live]
        self._commands.expect_snapshots(missing, self._connection.plant.now_ns)

    def _receive_listing(self, frame: Ok) -> None:
        try:
            listing = LISTING_DECODER.decode(frame.msg)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._connection.counters.unusable_frames += 1
            return
        listed = {row.sid for row in listing}
        for subscription in list(self._commands.by_sid.values()):
            if subscription.sid not in listed:
                self._connection.end_subscription(subscription)
            elif subscription is not self._commands.books:
                subscription.progress_at_ns = self._connection.plant.now_ns
                subscription.probed = False

    # --- errors -----------------------------------------------------------------------------------

    def _receive_error(self, frame: ErrorFrame) -> None:
        code = frame.msg.code
        count_name(self._connection.counters.error_codes, str(code))
        subscription = self._connection.account_reply(frame.sid, frame.seq)
        command = self._commands.queue.answered(frame.id) if frame.id else None
        if code in TERMINAL_ERRORS and subscription is not None:
            self._connection.end_subscription(subscription)
        elif command is not None:
            self._refused(command, code, frame.msg.msg)

    def _refused(self, command: PendingCommand, code: int, text: str) -> None:
        now_ns = self._connection.plant.now_ns
        subscription = command.subscription
        if code == ERROR_UNKNOWN_SUBSCRIPTION and subscription is not None and subscription.sid:
            self._connection.end_subscription(subscription)
        elif code == ERROR_UNKNOWN_CHANNEL and self._refuse_channel(subscription):
            return
        elif code == ERROR_AUTHENTICATION_REQUIRED:
            self._connection.close_reason = "the exchange asks for authentication"
        elif command.is_check:
            pass  # the next market's turn comes
        elif code == ERROR_MARKET_LIMIT:
            command.attempts = 0
            self._commands.retry(command, now_ns + MARKET_LIMIT_RETRY_NS)
        elif not self._commands.retry(command, now_ns + REFUSED_COMMAND_RETRY_NS):
            reason = f"{command.name} refused {command.attempts} times: error {code} {text[:80]}"
            self._connection.close_reason = reason

    def _refuse_channel(self, subscription: Subscription | None) -> bool:
        """A channel that the exchange does not know is done without, unless it is the books'."""
        if subscription is None or subscription is self._commands.books:
            return False
        subscription.state = SubscriptionState.REFUSED
        return True

    # --- time -------------------------------------------------------------------------------------

    def handle_timer(self, now_ns: int) -> None:
        """Overdue replies and snapshots, pings, silence of the socket and of each sid."""
        connection, commands = self._connection, self._commands
        for command in commands.queue.expire(now_ns):
            connection.counters.command_timeouts += 1
            if command.name == "get_snapshot":
                # Its tickers are awaited, and asked for again, one by one; that of a check not at all.
                continue
            if not commands.retry(command, now_ns):
                connection.close_reason = f"no reply to {command.name} in {command.attempts} tries"
        commands.snapshots.expire(now_ns)
        if commands.snapshots.exhausted:
            connection.close_reason = "get_snapshot stays without reply"
        if now_ns >= self._next_ping_ns:
            connection.ping_wanted = True
            self._next_ping_ns = now_ns + PING_INTERVAL_NS
            for subscription in list(commands.by_sid.values()):
                silent_ns = subscription.note_progress(now_ns)
                if silent_ns >= SUBSCRIPTION_SILENCE_NS and not subscription.probed:
                    commands.probe(subscription)
        if commands.check.is_due(now_ns):
            connection.counters.checks_asked += commands.check_next(
                connection.plant.entries, now_ns
            )
        if now_ns - connection.last_activity_ns >= SOCKET_SILENCE_NS:
            seconds = SOCKET_SILENCE_NS // 1_000_000_000
            connection.close_reason = f"no frame of any kind for {seconds} s"

    def next_deadline_ns(self) -> int:
        """When `handle_timer` has something to do."""
        silence_ns = self._connection.last_activity_ns + SOCKET_SILENCE_NS
        deadline_ns = min(self._next_ping_ns, silence_ns)
        commands_ns = self._commands.next_deadline_ns()
        return deadline_ns if commands_ns is None else min(deadline_ns, commands_ns)
