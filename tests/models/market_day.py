"""A made-up exchange, a real plant and a real tick log: a time of trading, the exchange's own books kept aside."""

import random
from pathlib import Path

from tick_log import LARGE, SECOND_NS, SESSION

from tickerplant.core.messages import MarketInfo, MarketState, StaleReason
from tickerplant.core.plant import Plant
from tickerplant.runtime.ticklog import TickLog, open_ticklog

MILLISECOND_NS = 1_000_000
INFO = ("KXBTC-26NOV21", "KXBTC", SESSION, SESSION + 3_600 * SECOND_NS, "linear_cent")


class MarketDay:
    """Everything that happens is an input of the plant, and is logged; `changes` is the exchange's own account.

    The exchange's clock has milliseconds and is ahead of what it tells by the time the message takes to the plant.
    """

    def __init__(
        self, folder: Path, markets: int = 3, *, seed: int = 1, session: int = SESSION, log=None
    ):
        self.random = random.Random(seed)
        self.now_ns = session
        self.ticklog: TickLog = log or open_ticklog(folder, LARGE)
        assert self.ticklog.begin_session(session, session)
        self.plant = Plant(session, session, log_on=True, verify_interval_ns=20 * MILLISECOND_NS)
        self.tickers = [f"KXBTC-26NOV21-B{number}" for number in range(markets)]
        self.books: dict[str, dict[tuple[int, int], int]] = {}
        self.changes: list[tuple[int, str, dict[tuple[int, int], int]]] = []
        """(time, ticker, all levels by (side, price_e4)) after each change."""
        self.trades = 0
        self._begin()

    def close(self):
        """End the session in order."""
        self._log(self.plant.end_session(self.now_ns))
        while not self.plant.ended:
            self.now_ns = max(self.now_ns + 1, self.plant.next_deadline_ns())
            self._log(self.plant.handle_timer(self.now_ns))
        self.ticklog.end_session()
        self.ticklog.close()

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.ticklog.close()

    def run(self, steps: int, *, step_ns: int = 3_700_000):
        """So many random things happen, on average one each `step_ns`."""
        for _ in range(steps):
            self.now_ns += self.random.randrange(1, 2 * step_ns)
            while self.plant.next_deadline_ns() <= self.now_ns:
                self._log(self.plant.handle_timer(self.now_ns))
            self._step()
        return self

    def book_at(self, ticker: str, time_ns: int) -> dict[tuple[int, int], int]:
        """The exchange's book at a time of its clock."""
        levels: dict[tuple[int, int], int] = {}
        for at_ns, name, book in self.changes:
            if at_ns > time_ns:
                break
            if name == ticker:
                levels = book
        return levels

    def event_ns(self) -> int:
        """The exchange's time of what the plant reads now."""
        return (self.now_ns - 9 * MILLISECOND_NS) // MILLISECOND_NS * MILLISECOND_NS

    # --- what happens -----------------------------------------------------------------------------

    def _begin(self):
        plant = self.plant
        plant.begin_input(self.now_ns)
        plant.set_upstream(connections_missing=False, discovered=True)
        for ticker in self.tickers:
            entry = plant.open_book(ticker)
            assert entry is not None
            plant.publish_market(
                ticker,
                MarketInfo(ticker, plant.g, 0, self.now_ns, *INFO),
                MarketState(ticker, plant.g, 0, self.now_ns, 2),
            )
            self.books[ticker] = {
                (side, 4_000 + 1_000 * side + 100 * step): 100 * self.random.randrange(1, 50)
                for side in (0, 1)
                for step in range(5)
            }
            self._snapshot(ticker)
        self._log(plant.flush(self.now_ns))

    def _step(self):
        plant, ticker = self.plant, self.random.choice(self.tickers)
        plant.begin_input(self.now_ns)
        kind = self.random.random()
        if kind < 0.85:
            self._delta(ticker)
        elif kind < 0.93:
            self._trade(ticker)
        elif kind < 0.98:
            values = [self.random.randrange(1, 9_000) for _ in range(7)]
            plant.publish_ticker(ticker, self.event_ns(), *values)
        elif kind < 0.99:
            plant.mark_stale(plant.entries[ticker], StaleReason.SEQUENCE_GAP)
        else:
            self._snapshot(ticker)
        self._log(plant.flush(self.now_ns))
        if not plant.entries[ticker].live:
            # The exchange is asked, and answers.
            plant.begin_input(self.now_ns)
            self._snapshot(ticker)
            self._log(plant.flush(self.now_ns))

    def _snapshot(self, ticker: str):
        sides: tuple[list[tuple[int, int]], ...] = ([], [])
        for (side, price_e4), size_e2 in self.books[ticker].items():
            sides[side].append((price_e4, size_e2))
        self.plant.apply_snapshot(self.plant.entries[ticker], *sides)
        self.changes.append((self.event_ns(), ticker, dict(self.books[ticker])))

    def _delta(self, ticker: str):
        book = self.books[ticker]
        side = self.random.randrange(2)
        price_e4 = 100 * self.random.randrange(*((30, 48), (48, 70))[side])
        held = book.get((side, price_e4), 0)
        delta_e2 = 100 * self.random.randrange(1, 50)
        if held > 1 and self.random.random() < 0.5:
            delta_e2 = -held if self.random.random() < 0.5 else -self.random.randrange(1, held)
        self.plant.apply_delta(
            self.plant.entries[ticker], side, price_e4, delta_e2, self.event_ns()
        )
        if held + delta_e2:
            book[side, price_e4] = held + delta_e2
        else:
            del book[side, price_e4]
        self.changes.append((self.event_ns(), ticker, dict(book)))

    def _trade(self, ticker: str):
        self.trades += 1
        number = self.random.getrandbits(128)
        trade_id = f"{number:032x}"
        trade_id = "-".join(
            trade_id[start:end] for start, end in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32))
        )
        price_e4 = 100 * self.random.randrange(30, 70)
        size_e2 = self.random.randrange(1, 5_000)
        self.plant.publish_trade(
            ticker, self.event_ns(), trade_id, price_e4, size_e2, self.random.randrange(2), False
        )

    def _log(self, datagrams):
        if datagrams:
            assert self.ticklog.append(datagrams)
