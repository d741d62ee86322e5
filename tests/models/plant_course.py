"""What a plant publishes in the course of some seconds, made once: the real core driven on a virtual clock."""

import random
from dataclasses import dataclass, field

from tickerplant.core.keyring import KeyRing
from tickerplant.core.messages import Stream
from tickerplant.core.plant import Plant
from tickerplant.core.wire import Kind, decode_body, decode_header

T0 = 1_800_000_000_000_000_000
MS = 1_000_000
SECOND = 1_000_000_000
TICK_NS = MS


@dataclass
class Course:
    """`sends` are (time, is it sent and not only logged, datagrams as (stream, bytes)), times ascending.

    `messages[session, stream]` is everything published there, in sequence; `checksums` and `quotes` are how the books
    stand at the end.
    """

    sends: list = field(default_factory=list)
    messages: dict = field(default_factory=dict)
    checksums: dict = field(default_factory=dict)
    quotes: dict = field(default_factory=dict)
    sessions: list = field(default_factory=list)
    last_data_ns: int = 0
    end_ns: int = 0


class Flow:
    """Random deltas, trades and tickers; prices within some steps of the middle."""

    def __init__(self, seed, tickers):
        self.random = random.Random(seed)
        self.tickers = tickers

    def input(self, plant, now_ns):
        """One frame's worth."""
        draw = self.random
        plant.begin_input(now_ns)
        ticker = draw.choice(self.tickers)
        kind = draw.random()
        if kind < 0.12:
            plant.publish_trade(ticker, now_ns, f"id-{plant.g}", 4_000, 100, 0, is_block=False)
        elif kind < 0.2:
            plant.publish_ticker(ticker, now_ns, 4_000, 3_900, 1, 4_100, 1, plant.g, 5)
        else:
            entry = plant.entries[ticker]
            side = draw.randrange(2)
            price_e4 = 4_000 + (1 if side else -1) * 100 * draw.randrange(1, 7)
            held_e2 = entry.size_at(side, price_e4)
            delta_e2 = draw.choice((100, 250, -held_e2 or 50))
            plant.apply_delta(entry, side, price_e4, delta_e2, now_ns)


class CourseMaker:
    """Runs one plant after the other."""

    def __init__(
        self,
        *,
        seed=1,
        markets=12,
        levels=0,
        key_ring: KeyRing | None = None,
        verify_interval_ns=0,
    ):
        self.course = Course()
        self.now_ns = T0
        self.tickers = [f"KXSIM-{number}" for number in range(markets)]
        self.flow = Flow(seed, self.tickers)
        self.levels = levels
        self.key_ring = key_ring
        self.verify_interval_ns = verify_interval_ns
        self.plant: Plant | None = None

    def begin(self, session=None):
        """A session: books first, which is what a subscriber of that time sees too."""
        previous = self.plant
        final_seqs = (
            ()
            if previous is None
            else tuple(
                (int(stream), previous.packets.by_stream(stream).next_seq) for stream in Stream
            )
        )
        session = session or self.now_ns
        self.plant = plant = Plant(
            session,
            self.now_ns,
            previous_session=0 if previous is None else previous.session,
            final_seqs=final_seqs,
            log_on=True,
            key_ring=self.key_ring,
            verify_interval_ns=self.verify_interval_ns,
        )
        self.course.sessions.append(session)
        plant.begin_input(self.now_ns)
        plant.set_upstream(connections_missing=False, discovered=True)
        deep = [(100 + 2 * level, 7) for level in range(self.levels)]
        for ticker in self.tickers:
            entry = plant.open_book(ticker)
            plant.begin_input(self.now_ns)
            asks = [(price_e4 + 5_000, size_e2) for price_e4, size_e2 in deep] or [(4_200, 30)]
            plant.apply_snapshot(entry, deep or [(3_800, 20)], asks)
        self._send(plant.flush(self.now_ns))

    def _send(self, datagrams, *, is_sent=True):
        if not datagrams:
            return
        self.course.sends.append((self.now_ns, is_sent, datagrams))
        for stream, datagram in datagrams:
            header = decode_header(datagram)
            if header.kind == Kind.DATA:
                self.course.last_data_ns = self.now_ns
                kept = self.course.messages.setdefault((header.session, int(stream)), [])
                assert header.seq == len(kept) + 1
                kept += decode_body(datagram, header)

    def run(self, duration_ns, *, rate=5_000):
        """So many messages a second, about, for so long; 0 for silence with heartbeats."""
        plant = self.plant
        end_ns = self.now_ns + duration_ns
        # An input makes about one and a half messages.
        inputs = rate * TICK_NS / SECOND / 1.5
        due = 0.0
        while self.now_ns < end_ns:
            self.now_ns += TICK_NS
            due += inputs
            while due >= 1:
                due -= 1
                self.flow.input(plant, self.now_ns)
            self._send(plant.flush(self.now_ns))
            if plant.next_deadline_ns() <= self.now_ns:
                self._send(plant.handle_timer(self.now_ns))

    def crash(self, down_ns=200 * MS):
        """Killed between append and send: the last batch is in the log and nowhere else."""
        for _ in range(8):
            self.flow.input(self.plant, self.now_ns)
        self._send(self.plant.flush(self.now_ns), is_sent=False)
        self.now_ns += down_ns

    def stop(self, down_ns=200 * MS):
        """An end in order."""
        plant = self.plant
        self._send(plant.end_session(self.now_ns))
        while not plant.ended:
            self.now_ns += MS
            self._send(plant.handle_timer(self.now_ns))
        self.now_ns += down_ns

    def finish(self):
        """The course, with how things stand at its end."""
        course, plant = self.course, self.plant
        course.end_ns = self.now_ns
        course.checksums = {ticker: entry.checksum() for ticker, entry in plant.entries.items()}
        course.quotes = {ticker: entry.bbo() for ticker, entry in plant.entries.items()}
        return course
