"""What one connection has asked of the exchange: subscriptions by sid, commands, snapshot requests (pure)."""

from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import TYPE_CHECKING

from tickerplant.core.sequence import SequenceCounter
from tickerplant.limits import (
    COMMAND_ATTEMPTS,
    COMMAND_TIMEOUT_NS,
    COMMANDS_IN_FLIGHT,
    SNAPSHOT_ATTEMPTS,
    SNAPSHOT_TICKERS_IN_FLIGHT,
    SNAPSHOT_TIMEOUT_NS,
    TICKERS_PER_COMMAND,
)
from tickerplant_kalshi.messages import Command, CommandParams

if TYPE_CHECKING:
    from tickerplant.core.books import BookEntry

BOOK_CHANNEL = "orderbook_delta"
CHANNEL_OF_TYPE = {
    "orderbook_snapshot": BOOK_CHANNEL,
    "orderbook_delta": BOOK_CHANNEL,
    "trade": "trade",
    "ticker": "ticker",
    "market_lifecycle_v2": "market_lifecycle_v2",
    "event_fee_update": "market_lifecycle_v2",
    "multivariate_market_lifecycle": "multivariate_market_lifecycle",
}
"""Channel that a frame type belongs to; `event_lifecycle` comes on both lifecycle channels."""
KNOWN_TYPES = CHANNEL_OF_TYPE.keys() | {
    "event_lifecycle",
    "subscribed",
    "unsubscribed",
    "ok",
    "error",
}


class SubscriptionState(Enum):
    """Life of one channel on one connection."""

    IDLE = auto()
    REQUESTED = auto()
    ACTIVE = auto()
    REFUSED = auto()


class Subscription(SequenceCounter):
    """One channel of one connection, and the sequence of its sid.

    `entries` are the books that it owns, for as long as they are wanted; `tickers` are those that were asked for since
    the sid began, in insertion order: True once the exchange has shown that they are subscribed.
    """

    __slots__ = (
        "channel",
        "entries",
        "frames",
        "last_frame_ns",
        "lost_at_ns",
        "probed",
        "progress",
        "progress_at_ns",
        "retry_at_ns",
        "sid",
        "state",
        "tickers",
    )

    def __init__(self, channel: str) -> None:
        super().__init__()
        self.channel = channel
        self.entries: dict[str, BookEntry] = {}
        self.tickers: dict[str, bool] = {}
        self.frames = 0
        self.last_frame_ns = 0
        self.lost_at_ns = 0
        self.retry_at_ns = 0
        self.reset()

    def reset(self) -> None:
        """Forgets the sid; the next one counts from 1."""
        self.state = SubscriptionState.IDLE
        self.sid = 0
        self.restart()
        self.tickers.clear()
        self.progress = -1
        self.progress_at_ns = 0
        self.probed = False

    def activate(self, sid: int, now_ns: int) -> None:
        """The exchange gave (or showed, by data before the ack) the sid."""
        self.state = SubscriptionState.ACTIVE
        self.sid = sid
        self.restart()
        self.last_frame_ns = now_ns
        self.progress_at_ns = now_ns

    def note_progress(self, now_ns: int) -> int:
        """Ns since the last frame was seen on this sid, as far as calls of this method can tell."""
        progress = self.expected + self.frames
        if progress != self.progress:
            self.progress = progress
            self.progress_at_ns = now_ns
            self.probed = False
        return now_ns - self.progress_at_ns


class PendingCommand:
    """A command that waits to be sent, or for its reply. A check is asked once, whatever comes of it."""

    __slots__ = ("attempts", "cmd", "deadline_ns", "id", "is_check", "params", "subscription")

    def __init__(
        self,
        cmd: str,
        params: CommandParams | None,
        subscription: Subscription | None,
        *,
        is_check: bool = False,
    ) -> None:
        self.cmd = cmd
        self.params = params
        self.subscription = subscription
        self.is_check = is_check
        self.id = 0
        self.attempts = 0
        self.deadline_ns = 0

    @property
    def name(self) -> str:
        """`subscribe`, `list_subscriptions`, ... or the action of an update."""
        return (self.params.action if self.params else None) or self.cmd

    @property
    def tickers(self) -> list[str]:
        """The markets that it names."""
        return (self.params.market_tickers if self.params else None) or []


class CommandQueue:
    """Commands in order, at most `COMMANDS_IN_FLIGHT` without reply; ids count from 1 per connection."""

    def __init__(self) -> None:
        self._waiting: deque[PendingCommand] = deque()
        self._in_flight: dict[int, PendingCommand] = {}
        self._last_id = 0
        self.timeouts = 0

    def __len__(self) -> int:
        """Commands that wait to be sent or answered."""
        return len(self._waiting) + len(self._in_flight)

    def clear(self) -> None:
        """A new connection starts with nothing asked."""
        self._waiting.clear()
        self._in_flight.clear()
        self._last_id = 0

    def add(self, command: PendingCommand) -> None:
        """Queues a command."""
        self._waiting.append(command)

    def drop_subscription(self, subscription: Subscription) -> None:
        """Forgets what was asked of a subscription that ended."""
        self._waiting = deque(c for c in self._waiting if c.subscription is not subscription)
        for command in [c for c in self._in_flight.values() if c.subscription is subscription]:
            del self._in_flight[command.id]

    def room(self, now_ns: int) -> int:
        """How many more commands could be sent at once; 0 or less: further ones would wait."""
        ready = sum(command.deadline_ns <= now_ns for command in self._waiting)
        return COMMANDS_IN_FLIGHT - len(self._in_flight) - ready

    def is_idle(self, now_ns: int) -> bool:
        """Whether nothing waits for a reply or to be sent now; a delayed retry may wait for its time."""
        return self.room(now_ns) == COMMANDS_IN_FLIGHT

    def sendable(
        self, now_ns: int, prepare: Callable[[PendingCommand], bool] = lambda _: True
    ) -> list[Command]:
        """The commands to send now; each waits for its reply from here on.

        `prepare` sees each right before and may change its parameters; False drops it.
        """
        commands = []
        for command in list(self._waiting):
            if len(self._in_flight) >= COMMANDS_IN_FLIGHT:
                break
            if command.deadline_ns > now_ns:
                continue  # a delayed retry holds up nothing else
            self._waiting.remove(command)
            if not prepare(command):
                continue
            self._last_id += 1
            command.id = self._last_id
            command.attempts += 1
            command.deadline_ns = now_ns + COMMAND_TIMEOUT_NS
            self._in_flight[command.id] = command
            commands.append(Command(command.id, command.cmd, command.params))
        return commands

    def in_flight(self, command_id: int) -> PendingCommand | None:
        """The command that waits for its reply under an id."""
        return self._in_flight.get(command_id)

    def answered(self, command_id: int) -> PendingCommand | None:
        """The command that a reply answers; None if unknown or already answered."""
        return self._in_flight.pop(command_id, None)

    def retry(self, command: PendingCommand, not_before_ns: int) -> bool:
        """Queues a refused or unanswered command again; False if its attempts are used up."""
        if command.attempts >= COMMAND_ATTEMPTS:
            return False
        command.deadline_ns = not_before_ns
        self._waiting.append(command)
        return True

    def expire(self, now_ns: int) -> list[PendingCommand]:
        """The commands whose reply is overdue; they are no longer in flight."""
        expired = [c for c in self._in_flight.values() if c.deadline_ns <= now_ns]
        for command in expired:
            del self._in_flight[command.id]
        self.timeouts += len(expired)
        return expired

    def next_deadline_ns(self) -> int | None:
        """When `expire` or `sendable` may have something."""
        deadlines = [command.deadline_ns for command in self._in_flight.values()]
        if self._waiting and len(self._in_flight) < COMMANDS_IN_FLIGHT:
            deadlines.append(min(command.deadline_ns for command in self._waiting))
        return min(deadlines, default=None)


class SnapshotRequests:
    """Books of one subscription that wait for a snapshot: expected from it, asked for, or still to ask."""

    def __init__(self) -> None:
        # All three keep insertion order, and the time-out is constant, so the first entry is the next to expire.
        self._expected: dict[str, int] = {}
        self._in_flight: dict[str, int] = {}
        self._waiting: dict[str, None] = {}
        self._attempts: dict[str, int] = {}
        self.exhausted = False

    def clear(self) -> None:
        """A new sid starts with nothing asked."""
        for table in (self._expected, self._in_flight, self._waiting, self._attempts):
            table.clear()
        self.exhausted = False

    def __len__(self) -> int:
        """Books without snapshot."""
        return len(self._expected) + len(self._in_flight) + len(self._waiting)

    def expect(self, ticker: str, now_ns: int) -> None:
        """The exchange owes a snapshot, unless one is asked for anyway."""
        if ticker in self._in_flight or ticker in self._waiting:
            return
        self._expected.pop(ticker, None)
        self._expected[ticker] = now_ns + SNAPSHOT_TIMEOUT_NS

    def request(self, ticker: str) -> None:
        """Asks for a snapshot, unless that is under way."""
        if ticker not in self._in_flight and ticker not in self._waiting:
            self._expected.pop(ticker, None)
            self._waiting[ticker] = None

    def arrived(self, ticker: str) -> None:
        """A snapshot of the market came."""
        self._expected.pop(ticker, None)
        self._in_flight.pop(ticker, None)
        self._waiting.pop(ticker, None)
        self._attempts.pop(ticker, None)

    forget = arrived

    def next_batch(self, now_ns: int) -> list[str]:
        """Tickers to ask for in one command; empty if none wait or too many are in flight."""
        room = min(TICKERS_PER_COMMAND, SNAPSHOT_TICKERS_IN_FLIGHT - len(self._in_flight))
        batch = list(self._waiting)[:room] if room > 0 else []
        for ticker in batch:
            del self._waiting[ticker]
            self._in_flight[ticker] = now_ns + SNAPSHOT_TIMEOUT_NS
        return batch

    def expire(self, now_ns: int) -> None:
        """Overdue snapshots are asked for again; `exhausted` once one was asked for `SNAPSHOT_ATTEMPTS` times."""
        for table in (self._expected, self._in_flight):
            overdue = []
            for ticker, deadline_ns in table.items():
                if deadline_ns > now_ns:
                    break
                overdue.append(ticker)
            for ticker in overdue:
                del table[ticker]
                attempts = self._attempts.get(ticker, 0) + (table is self._in_flight)
                self._attempts[ticker] = attempts
                self.exhausted = self.exhausted or attempts >= SNAPSHOT_ATTEMPTS
                self._waiting[ticker] = None

    def next_deadline_ns(self) -> int | None:
        """When `expire` may have something."""
        deadlines = [next(iter(t.values())) for t in (self._expected, self._in_flight) if t]
        return min(deadlines, default=None)
