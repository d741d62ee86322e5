"""A plant whose datagrams go into a real tick log, and what its state is, rebuilt from them in another way."""

import random
from pathlib import Path
from typing import Any

from tickerplant.core.messages import (
    BookState,
    MarketInfo,
    MarketPhase,
    MarketState,
    Stream,
)
from tickerplant.core.plant import Plant
from tickerplant.core.wire import Kind, authenticate, decode_body, decode_header
from tickerplant.runtime.ticklog import TickLog, TickLogOptions, open_ticklog

START_NS = 1_790_000_000_000_000_000
STEP_NS = 1_000_000


class PlantLog:
    """A plant, its books changed by `step`, written to `folder`; `datagrams` are all that it sent."""

    def __init__(
        self,
        folder: Path,
        *,
        seed: int = 1,
        markets: int = 8,
        levels: int = 10,
        options: TickLogOptions | None = None,
        key: tuple[int, bytes] | None = None,
    ) -> None:
        self.folder = folder
        self.chance = random.Random(seed)
        self.tickers = [f"KXT-{number}" for number in range(markets)]
        self.levels = levels
        self.key = key
        self.now_ns = START_NS
        self.datagrams: list[bytes] = []
        self.ticklog: TickLog = open_ticklog(folder, options)
        self.plant: Plant
        self.begin_session()

    def __enter__(self) -> "PlantLog":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        self.ticklog.close()

    @property
    def session(self) -> int:
        return self.plant.session

    @property
    def next_seqs(self) -> tuple[int, ...]:
        return tuple(self.plant.packets.by_stream(stream).next_seq for stream in Stream)

    def begin_session(self) -> None:
        """Another session of the same plant, all books published anew."""
        self.now_ns += STEP_NS
        first = not hasattr(self, "plant")
        previous = None if first else (self.session, self.next_seqs)
        self.plant = Plant(self.now_ns, self.now_ns, log_on=True)
        assert self.ticklog.begin_session(self.now_ns, self.now_ns, previous=previous)
        self.plant.set_upstream(connections_missing=False, discovered=True)
        self.entries = [self.plant.open_book(ticker) for ticker in self.tickers]
        for entry in self.entries:
            self.plant.begin_input(self.now_ns)
            self.plant.apply_snapshot(entry, *self._levels())
            info = MarketInfo(entry.ticker, self.plant.g, 0, self.now_ns, "E", "S", 1, 2, "x")
            state = MarketState(entry.ticker, self.plant.g, 0, self.now_ns, MarketPhase.ACTIVE)
            self.plant.publish_market(entry.ticker, info=info, state=state)
        self.flush()
        for _ in range(10_000):
            if not len(self.plant.publication):
                break
            self.beat(20 * STEP_NS)
        assert not self.plant.unready_books

    def _levels(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        prices = self.chance.sample(range(1, 9_999), 2 * self.levels)
        split = sorted(prices)
        sized = [(price, self.chance.randrange(1, 10**6)) for price in split]
        return sized[: self.levels], sized[self.levels :]

    def flush(self) -> None:
        self.now_ns += STEP_NS
        self._log(self.plant.flush(self.now_ns))

    def beat(self, after_ns: int = STEP_NS) -> None:
        """Heartbeats, and what waits for the pace."""
        self.now_ns += after_ns
        self._log(self.plant.handle_timer(self.now_ns))

    def _log(self, datagrams: list[tuple[int, bytes]]) -> None:
        if self.key is not None:
            datagrams = [(one, authenticate(datagram, *self.key)) for one, datagram in datagrams]
        if datagrams:
            assert self.ticklog.append(datagrams)
            self.datagrams += [datagram for _stream, datagram in datagrams]

    def end_session(self) -> None:
        self._log(self.plant.end_session(self.now_ns))
        self.now_ns += 10**9
        self._log(self.plant.handle_timer(self.now_ns))
        self.ticklog.end_session()

    def delta(self, ticker_index: int = 0) -> None:
        """One level grows."""
        self.plant.begin_input(self.now_ns)
        entry = self.entries[ticker_index]
        price_e4 = self.chance.randrange(1, 9_999)
        self.plant.apply_delta(entry, self.chance.randrange(2), price_e4, 100, self.now_ns)

    def step(self, count: int = 1) -> None:
        """Something happens, flushed in batches of some inputs."""
        for _ in range(count):
            for _ in range(self.chance.randrange(1, 6)):
                self._input()
            if self.chance.random() < 0.1:
                self.beat(self.chance.choice((STEP_NS, 12 * STEP_NS, 300 * STEP_NS)))
            else:
                self.flush()

    def _input(self) -> None:
        plant, chance = self.plant, self.chance
        plant.begin_input(self.now_ns)
        entry = chance.choice(self.entries)
        kind = chance.random()
        if entry not in plant.entries.values():
            return
        if kind < 0.7:
            sizes = entry.ascending(side := chance.randrange(2))
            if sizes and chance.random() < 0.5:
                price_e4, size_e2 = chance.choice(sizes)
                delta_e2 = -size_e2 if chance.random() < 0.3 else chance.randrange(1, 500)
            else:
                price_e4, delta_e2 = chance.randrange(1, 9_999), chance.randrange(1, 10**5)
            plant.apply_delta(entry, side, price_e4, delta_e2, self.now_ns)
        elif kind < 0.8:
            plant.publish_trade(entry.ticker, self.now_ns, f"t{plant.g}", 3300, 100, 0, False)
        elif kind < 0.9:
            plant.publish_ticker(
                entry.ticker, self.now_ns, *(chance.randrange(9_999) for _ in range(10))
            )
        elif kind < 0.94:
            plant.mark_stale(entry, chance.choice((1, 2, 4)))
        elif kind < 0.98:
            plant.apply_snapshot(entry, *self._levels())
        elif kind < 0.995:
            phase = chance.choice(list(MarketPhase))
            state = MarketState(entry.ticker, plant.g, 0, self.now_ns, phase)
            plant.publish_market(entry.ticker, state=state)
        else:
            plant.close_book(entry)


Rebuilt = dict[str, dict[str, Any]]


def rebuild(datagrams: list[bytes], session: int, next_seqs: tuple[int, ...]) -> Rebuilt:
    """Books and last values at a place of the streams: plain dicts, no book code. Raises on any inconsistency."""
    markets: Rebuilt = {}
    for datagram in datagrams:
        header = decode_header(datagram)
        if header.session != session or header.kind != Kind.DATA:
            continue
        for index, message in enumerate(decode_body(datagram, header)):
            if header.seq + index >= next_seqs[header.stream - 1] or message is None:
                continue
            if message.ticker:
                _apply(markets.setdefault(message.ticker, _nothing()), message)
    return markets


def _nothing() -> dict[str, Any]:
    return {"state": BookState.SYNCING, "sides": ({}, {}), "values": {}}


def _apply(market: dict[str, Any], message: Any) -> None:
    kind = type(message).__name__
    bids, asks = market["sides"]
    if kind == "LevelUpdate":
        side = market["sides"][message.side]
        if message.size_e2:
            side[message.price_e4] = message.size_e2
        else:
            side.pop(message.price_e4, None)
    elif kind == "BookClear":
        market.update(state=BookState.SYNCING, sides=({}, {}))
    elif kind == "BookLevels":
        bids.update(message.bids)
        asks.update(message.asks)
    elif kind == "BookReady":
        market["state"] = BookState.LIVE
    elif kind == "BookStale":
        market["state"] = BookState.STALE
    elif kind in ("Bbo", "Ticker", "MarketInfo", "MarketState"):
        market["values"][kind] = message


def visible(markets: Rebuilt) -> Rebuilt:
    """What a snapshot tells of them: no levels of unknown books, no market without anything known."""
    told: Rebuilt = {}
    for ticker, market in markets.items():
        known = market["state"] != BookState.SYNCING
        sides = market["sides"] if known else ({}, {})
        if known or market["values"]:
            told[ticker] = {"state": market["state"], "sides": sides, "values": market["values"]}
    return told
