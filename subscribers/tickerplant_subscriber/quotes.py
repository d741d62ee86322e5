"""The last best bid and offer of every ticker, with its own staleness (pure).

A strategy that listens to BBO alone has no book whose state it could ask: what the plant says in `Bbo.state`, and
what we lose ourselves, is told as `Stale` and `Live` for the stream BBO. A `Bbo` is absolute, so the next one heals.
"""

from collections.abc import Callable, Iterable, Mapping

import msgspec

from tickerplant.core.messages import Bbo, BookState, StaleReason, Stream
from tickerplant.limits import MARKETS_MAX
from tickerplant_subscriber.events import (
    Event,
    Gap,
    Live,
    SessionChanged,
    SessionEnded,
    Stale,
    StreamAlive,
    StreamBehind,
    StreamCaughtUp,
    StreamDead,
)
from tickerplant_subscriber.stream_state import Messages, StreamState

OnBbo = Callable[[Bbo], None]

_LIVE = int(BookState.LIVE)


class PlantQuotes:
    """Last quotes of one plant, with what it lost made STALE; `paused` went silent LIVE."""

    __slots__ = ("behind", "last", "paused", "session")

    def __init__(self, session: int, *, behind: bool = False) -> None:
        self.session = session
        self.behind = behind
        self.last: dict[str, Bbo] = {}
        self.paused: dict[str, Bbo] = {}

    def live(self) -> dict[str, Bbo]:
        """The quotes that may be traded on, by ticker and in the order of tickers."""
        return {name: bbo for name, bbo in sorted(self.last.items()) if bbo.state == _LIVE}


class Quotes:
    """All wanted quotes of all plants; `tell` gets `Stale` and `Live` before `on_bbo` gets the message."""

    def __init__(
        self,
        wanted: Mapping[str, bool],
        tell: Callable[[Event], None],
        on_bbo: OnBbo | None = None,
    ) -> None:
        self.quotes_refused = 0
        self._wanted = wanted
        self._tell = tell
        self._on_bbo = on_bbo
        self._plants: dict[tuple[int, int], PlantQuotes] = {}

    def last(self, ticker: str) -> Bbo | None:
        """The last quote, its `state` STALE if something was lost since; None if there was none."""
        for quotes in self._plants.values():
            bbo = quotes.last.get(ticker)
            if bbo is not None:
                return _as_stale(bbo) if quotes.behind and bbo.state == _LIVE else bbo
        return None

    @property
    def live_count(self) -> int:
        """Tickers whose quote may be traded on."""
        return sum(len(quotes.live()) for quotes in self._plants.values() if not quotes.behind)

    @property
    def ticker_count(self) -> int:
        """Tickers with a quote."""
        return sum(len(quotes.last) for quotes in self._plants.values())

    def receive(self, state: StreamState, messages: Messages) -> bool:
        """Takes messages of the BBO stream, in order; False, with nothing done, if they are of an old session."""
        quotes = self._plants.get((state.publisher, state.partition))
        if quotes is None or quotes.session != state.session:
            return False
        wanted, last, on_bbo = self._wanted, quotes.last, self._on_bbo
        for message in messages:
            if type(message) is not Bbo:
                continue
            ticker = message.ticker
            previous = last.get(ticker)
            if previous is not None and previous.state == _LIVE == message.state:
                last[ticker] = message
            elif not wanted[ticker] or not self._change(state, quotes, message):
                continue
            if on_bbo is not None:
                on_bbo(message)
        return True

    def _change(self, state: StreamState, quotes: PlantQuotes, bbo: Bbo) -> bool:
        """A quote that is new, not LIVE or LIVE again; False if it is one too many."""
        ticker = bbo.ticker
        previous = quotes.last.get(ticker)
        if previous is None and len(quotes.last) >= MARKETS_MAX:
            self._forget_closed(quotes)
            if len(quotes.last) >= MARKETS_MAX:
                self.quotes_refused += 1
                return False
        quotes.last[ticker] = bbo
        plant = {"publisher": state.publisher, "partition": state.partition}
        if bbo.state == _LIVE:
            if not quotes.behind:
                self._tell(Live(ticker, Stream.BBO, **plant))
            return True
        if previous is None or previous.state == _LIVE:
            closed = bbo.state == BookState.CLOSED
            reason = StaleReason.SUBSCRIPTION_ENDED if closed else StaleReason.UNKNOWN
            self._tell(Stale(ticker, Stream.BBO, reason, **plant))
        return True

    @staticmethod
    def _forget_closed(quotes: PlantQuotes) -> None:
        for ticker in [name for name, bbo in quotes.last.items() if bbo.state == BookState.CLOSED]:
            del quotes.last[ticker]

    def receive_event(self, event: Event) -> list[Event]:
        """Takes an event of the arbiter; returns the `Stale` and `Live` that follow, all states already changed."""
        key = (event.publisher, event.partition)
        if isinstance(event, SessionChanged):
            quotes = self._plants.get(key)
            stale = self._invalidate(quotes, event, StaleReason.NEW_SESSION) if quotes else []
            behind = quotes is not None and quotes.behind
            self._plants[key] = PlantQuotes(event.session, behind=behind)
            return stale
        quotes = self._plants.get(key)
        if quotes is None or getattr(event, "stream", None) != Stream.BBO:
            return []
        if isinstance(event, StreamBehind):
            quotes.behind = True
            return _told(quotes.live(), event, StaleReason.REPAIRING)
        if isinstance(event, StreamCaughtUp):
            quotes.behind = False
            return [_live(ticker, event) for ticker in quotes.live()]
        if isinstance(event, StreamAlive):
            return self._resume(quotes, event)
        if isinstance(event, StreamDead | SessionEnded):
            quotes.paused = quotes.live()
            return self._invalidate(quotes, event, StaleReason.STREAM_DEAD)
        if isinstance(event, Gap) and event.session == quotes.session:
            quotes.paused = {}
            return self._invalidate(quotes, event, StaleReason.NETWORK_GAP)
        return []

    def _invalidate(self, quotes: PlantQuotes, event: Event, reason: StaleReason) -> list[Event]:
        live = quotes.live()
        for ticker, bbo in live.items():
            quotes.last[ticker] = _as_stale(bbo)
        return _told(live, event, reason)

    def _resume(self, quotes: PlantQuotes, event: StreamAlive) -> list[Event]:
        """What was missed, if anything, either comes (then the stream is behind) or makes all quotes STALE."""
        paused, quotes.paused = quotes.paused, {}
        if event.session != quotes.session or not (event.contiguous or quotes.behind):
            return []
        quotes.last.update(paused)
        return [] if quotes.behind else [_live(ticker, event) for ticker in paused]


def _as_stale(bbo: Bbo) -> Bbo:
    return msgspec.structs.replace(bbo, state=int(BookState.STALE))


def _live(ticker: str, event: Event) -> Live:
    return Live(ticker, Stream.BBO, publisher=event.publisher, partition=event.partition)


def _told(tickers: Iterable[str], event: Event, reason: StaleReason) -> list[Event]:
    plant = {"publisher": event.publisher, "partition": event.partition}
    return [Stale(ticker, Stream.BBO, reason, **plant) for ticker in tickers]
