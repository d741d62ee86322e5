"""Damaged datagrams into the decoder and into a whole subscriber: arbiter, mirrored books, quotes, callbacks."""

import contextlib
import random
import struct
from collections import Counter
from collections.abc import Callable
from typing import Any

from mutations import HOSTILE_MSGPACK, flip_bits, insert, repeat_part, splice, truncate

from tickerplant.core import wire
from tickerplant.core.messages import (
    GapCause,
    MarketInfo,
    MarketPhase,
    MarketState,
    StaleReason,
    Stream,
)
from tickerplant.core.plant import Plant
from tickerplant.errors import WireError
from tickerplant_subscriber.arbiter import Arbiter
from tickerplant_subscriber.dispatch import StrategyDispatch
from tickerplant_subscriber.filters import TickerFilter
from tickerplant_subscriber.strategy import Strategy

START_NS = 1_795_197_851_000_000_000
DATAGRAM_NS = 20_000
DATAGRAMS_PER_SUBSCRIBER = 10_000
DATAGRAMS_PER_BATCH = 64
KEYS = {7: b"k" * 32}
_SESSION_AND_SEQ = struct.Struct("<QQ")


class EveryCallback(Strategy):
    """Looks at everything that it is given."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def on_bbo(self, bbo: Any) -> None:
        """Counts."""
        self.calls["bbo"] += 1

    def on_trade(self, trade: Any) -> None:
        """Counts."""
        self.calls["trade"] += 1

    def on_ticker(self, ticker: Any) -> None:
        """Counts."""
        self.calls["ticker"] += 1

    def on_book(self, book: Any, update: Any) -> None:
        """Reads what strategies read; only live books are ever offered."""
        assert book.live
        book.depth(3)
        self.calls["book"] += 1

    def on_stale(self, ticker: str, reason: StaleReason) -> None:
        """Counts."""
        self.calls["stale"] += 1

    def on_live(self, ticker: str) -> None:
        """Counts."""
        self.calls["live"] += 1

    def on_gap(self, gap: Any) -> None:
        """Counts."""
        self.calls["gap"] += 1

    def on_session(self, session: Any) -> None:
        """Counts."""
        self.calls["session"] += 1

    def on_market(self, market: Any) -> None:
        """Counts."""
        self.calls["market"] += 1

    def on_feed(self, feed: Any) -> None:
        """Counts."""
        self.calls["feed"] += 1


def real_datagrams(chance: random.Random) -> list[bytes]:
    """A plant's own datagrams of every kind and message type, most of them short."""
    now_ns = START_NS
    plant = Plant(now_ns, now_ns, previous_session=now_ns - 1, final_seqs=[(s, 50) for s in Stream])
    plant.set_upstream(connections_missing=False, discovered=True)
    datagrams = []
    entries = [plant.open_book(f"KXTEST-{index}") for index in range(5)]
    for step in range(400):
        now_ns += 3_000_000
        plant.begin_input(now_ns)
        entry = entries[step % len(entries)]
        assert entry is not None
        kind = chance.randrange(12)
        if kind == 0:
            levels = [
                (price_e4, chance.randrange(1, 10**6))
                for price_e4 in chance.sample(range(1, 9_999), 12)
            ]
            plant.apply_snapshot(entry, levels[:6], levels[6:])
        elif kind == 1:
            plant.mark_stale(entry, StaleReason.SEQUENCE_GAP)
        elif kind == 2:
            plant.publish_trade(entry.ticker, now_ns, f"trade-{step}", 3300, 100, step % 2, False)
        elif kind == 3:
            plant.publish_ticker(entry.ticker, now_ns, *range(10))
        elif kind == 4:
            plant.publish_upstream_gap(Stream.TRADE, 1, 2, GapCause.UPSTREAM)
        elif kind == 5:
            info = MarketInfo(
                entry.ticker, plant.g, 0, now_ns, "E", "S", 1, 2, "x", ((0, 10_000, 10),)
            )
            state = MarketState(entry.ticker, plant.g, 0, now_ns, MarketPhase.ACTIVE)
            plant.publish_market(entry.ticker, info=info, state=state)
        else:
            for _ in range(chance.randrange(1, 5)):
                plant.apply_delta(
                    entry, chance.randrange(2), chance.randrange(1, 9_999), 100, now_ns
                )
        datagrams += [datagram for _, datagram in plant.flush(now_ns)]
        if step % 10 == 0:
            datagrams += [datagram for _, datagram in plant.handle_timer(now_ns + 2_000_000)]
    plant.end_session(now_ns)
    datagrams += [datagram for _, datagram in plant.handle_timer(now_ns)]
    signed = [wire.authenticate(datagram, 7, KEYS[7]) for datagram in datagrams[::10]]
    return datagrams + signed


class DatagramFuzzer:
    """Inputs by `run_batch`; an exception other than `WireError` from the decoder is a finding."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.corpus = real_datagrams(self.chance)
        self.exceptions: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.last_input = b""
        self.now_ns = START_NS
        self._left = 0
        self._events = 0
        self.strategy = EveryCallback()
        self._new_subscriber()

    def _new_subscriber(self) -> None:
        self.outcomes.update(self.strategy.calls)
        self.strategy = EveryCallback()
        self.dispatch = StrategyDispatch(
            self.strategy, tuple(Stream), TickerFilter(["*"]), self._guard
        )
        self.arbiter = Arbiter(
            tuple(Stream), self.dispatch.deliver, self._take_event, started_ns=self.now_ns - 10**9
        )
        self._left = DATAGRAMS_PER_SUBSCRIBER
        # Almost pure garbage, or mostly good datagrams so that the deeper states are reached.
        self._calm = self.chance.choice((0.05, 0.5, 0.95, 0.999))
        self._position = -1

    def _guard(self, name: str) -> Callable[..., None]:
        callback: Callable[..., None] = getattr(self.strategy, name)
        return callback

    def _take_event(self, event: Any) -> None:
        self._events += 1
        self.dispatch.take_event(event)

    def run_batch(self) -> int:
        """Some datagrams through the decoder and the subscriber, then the timers."""
        for _ in range(DATAGRAMS_PER_BATCH):
            datagram = self.last_input = self._next_datagram()
            self.now_ns += DATAGRAM_NS
            self._decode(datagram)
            self.arbiter.receive(int(self.chance.random() * 2), datagram, self.now_ns)
        if self.chance.random() < 0.01:
            self.now_ns += int(self.chance.random() * 4e9)
        deadline_ns = self.arbiter.next_deadline_ns()
        if deadline_ns is not None and deadline_ns <= self.now_ns:
            self.arbiter.handle_timer(self.now_ns)
        self._left -= DATAGRAMS_PER_BATCH
        if self._left <= 0:
            self._look_at_books()
            self._new_subscriber()
        return DATAGRAMS_PER_BATCH

    def _look_at_books(self) -> None:
        mirror = self.dispatch.tables.mirror
        assert mirror is not None
        for view in mirror.views():
            view.depth(5)
            self.outcomes[
                "books live at the end" if view.live else "books not live at the end"
            ] += 1

    def _decode(self, datagram: bytes) -> None:
        try:
            header = wire.decode_header(datagram)
            if header.kind == wire.Kind.DATA:
                wire.decode_body(datagram, header)
            else:
                wire.decode_heartbeat(datagram, header)
        except WireError as error:
            self.exceptions[type(error).__name__] += 1
            return
        self.outcomes["decoded"] += 1
        if header.flags & wire.FLAG_AUTHENTICATED:
            with contextlib.suppress(WireError):
                wire.verify_authentic(datagram, header, KEYS)
                self.outcomes["verified"] += 1

    def _next_datagram(self) -> bytes:
        chance = self.chance.random
        if chance() < self._calm:
            # In the order in which a plant sent them, so that whole images and updates arrive.
            self._position = (self._position + 1) % len(self.corpus)
            return self._in_sequence(self.corpus[self._position], self._calm)
        data = self.corpus[int(chance() * len(self.corpus))]
        way = chance()
        if way < 0.25:
            return flip_bits(self._in_sequence(data, 0.9), self.chance)
        if way < 0.65:
            return self._damage_body(self._in_sequence(data, 0.9))
        if way < 0.72:
            return truncate(data, self.chance)
        if way < 0.79:
            return splice(data, self.corpus[int(chance() * len(self.corpus))], self.chance)
        if way < 0.86:
            return insert(data, self.chance)
        if way < 0.93:
            return repeat_part(data, self.chance)
        return self.chance.randbytes(int(chance() * 1400))

    def _in_sequence(self, data: bytes, exact: float) -> bytes:
        """The datagram as the next one of the session that the subscriber follows, or a little beside it."""
        for state in self.arbiter.states():
            if state.stream == data[4]:
                seq = state.expected
                if self.chance.random() > exact:
                    seq = max(1, seq + int(self.chance.random() * 8) - 3)
                return data[:8] + _SESSION_AND_SEQ.pack(state.session, seq) + data[24:]
        return data

    def _damage_body(self, data: bytes) -> bytes:
        """Hostile msgpack in the body, under a header whose lengths agree."""
        body = data[wire.HEADER.size :]
        start = int(self.chance.random() * len(body))
        hostile = HOSTILE_MSGPACK[int(self.chance.random() * len(HOSTILE_MSGPACK))]
        body = body[:start] + hostile + body[start + int(self.chance.random() * 10) :]
        return data[:34] + len(body).to_bytes(2, "little") + data[36 : wire.HEADER.size] + body
