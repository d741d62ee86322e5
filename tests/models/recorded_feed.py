"""A recorded feed driven at random: exchange, REST, timers and faults; every input kept, every datagram too."""

import random
from typing import Any

from exchange_model import ExchangeModel

from tickerplant.core.messages import MarketPhase
from tickerplant.core.packets import Datagram
from tickerplant_kalshi.directory import MarketRecord, Selection
from tickerplant_kalshi.inputs import Begin
from tickerplant_kalshi.playback import feed_of, plant_of
from tickerplant_kalshi.recording import InputRecorder

T0 = 1_795_000_000_000_000_000
MS = 1_000_000
SECOND = 1_000_000_000
TICKERS = ("KXA-1-A", "KXA-1-B", "KXB-2-A", "KXC-3-A")
PRICES = (1, 100, 3300, 3400, 9_999)
CHANNELS = ("trade", "ticker", "market_lifecycle_v2")
JUNK = (b"", b"{", b"\xff\xfe", b'{"type":7}', b'{"type":"news","sid":77,"seq":5,"msg":{}}')


class KeptRecords(list[bytes]):
    """A sink in memory."""

    is_on = True

    def write(self, record: bytes) -> None:
        """Keep it."""
        self.append(record)


def begin_of(connection_count: int = 1, **changes: Any) -> Begin:
    """The beginning of a recording of all markets."""
    values: dict[str, Any] = {
        "now_ns": T0,
        "session": T0,
        "publisher": 3,
        "previous_session": T0 - SECOND,
        "final_seqs": ((1, 7), (2, 9)),
        "selection": Selection(all_open=True, tickers=TICKERS[:1], series=("KXC",)),
        "channels": CHANNELS,
        "connection_count": connection_count,
        "use_yes_price": False,
        "version": "test",
    }
    return Begin(**values | changes)


class RecordedCourse:
    """One session; `step` does something, `finish` ends it. `records` and `datagrams` are what is compared.

    A calm one never stands still for seconds, so that its heartbeats come in time.
    """

    def __init__(self, chance: random.Random, *, calm: bool = False) -> None:
        self.chance = chance
        self.pauses_ns = (0,) if calm else (0, 0, 0, SECOND, 20 * SECOND)
        self.now_ns = T0
        self.records = KeptRecords()
        self.datagrams: list[tuple[int, bytes]] = []
        self.look_ups = 0
        self.begin = begin_of(
            chance.randint(1, 3),
            use_yes_price=chance.choice((False, True)),
            verify_interval_ns=chance.choice((0, 30 * MS)),
            check_interval_ns=chance.choice((0, 50 * MS)),
            log_on=chance.choice((False, True)),
        )
        self.plant = plant_of(self.begin)
        self.recorder = InputRecorder(self.records)
        self.feed = feed_of(self.begin, self.plant, self.recorder)
        self.armed_ns = 2**63
        self.exchanges = [
            ExchangeModel(TICKERS, use_yes_price=self.begin.use_yes_price)
            for _ in self.feed.connections
        ]
        self.publish()

    # --- the shell --------------------------------------------------------------------------------

    def publish(self) -> None:
        """As the daemon does it."""
        self.send(self.feed.flush(self.now_ns))
        if self.feed.wants_attention(self.armed_ns):
            self.after_input()

    def send(self, datagrams: list[Datagram]) -> None:
        """Now and then the tick log does not take them."""
        if datagrams and self.feed.log_on and not self.chance.randrange(60):
            datagrams = self.feed.lose_log(datagrams)
        self.datagrams += datagrams

    def after_input(self) -> None:
        """Commands go to the exchange, look-ups are forgotten, the timer is armed."""
        self.feed.settle()
        for connection, exchange in zip(self.feed.connections, self.exchanges, strict=True):
            if connection.is_open and connection.close_reason is None:
                for command in connection.outgoing(self.now_ns):
                    exchange.command(command)
        self.look_ups += len(self.feed.take_look_ups())
        self.armed_ns = min(self.armed_ns, self.feed.next_deadline_ns())

    # --- what may happen --------------------------------------------------------------------------

    def step(self) -> None:
        """One thing, chosen at random."""
        actions = (self.frames, self.frames, self.frames, self.change, self.change, self.timer)
        actions += (self.timer, self.read, self.connect, self.lose, self.junk, self.lifecycle)
        actions += (self.rest_of_rest, self.log)
        self.now_ns += self.chance.choice((0, 1, MS, 40 * MS))
        self.chance.choice(actions)()

    def change(self) -> None:
        """Levels change."""
        for exchange in self.exchanges:
            for _ in range(self.chance.randint(1, 6)):
                draw = self.chance.choice
                exchange.change(draw(TICKERS), draw((0, 1)), draw(PRICES), draw((-250, 100, 300)))

    def frames(self) -> None:
        """A read batch of one connection; now and then a frame is lost or comes twice."""
        index = self.chance.randrange(len(self.exchanges))
        connection, pipe = self.feed.connections[index], self.exchanges[index].pipe
        if not connection.is_open:
            return
        for _ in range(min(len(pipe), self.chance.randint(1, 5))):
            data = pipe.popleft().data
            for _ in range(self.chance.choice((1, 1, 1, 1, 1, 1, 1, 0, 2))):
                connection.receive_frame(data, self.now_ns)
        if self.chance.randrange(8):
            connection.note_activity(self.now_ns)
            self.publish()

    def junk(self) -> None:
        """Frames that mean nothing."""
        connection = self.chance.choice(self.feed.connections)
        if connection.is_open:
            connection.receive_frame(self.chance.choice(JUNK), self.now_ns)
            self.publish()

    def timer(self) -> None:
        """A deadline passes, or time."""
        self.now_ns = max(self.now_ns, self.feed.next_deadline_ns())
        self.now_ns += self.chance.choice(self.pauses_ns)
        self.armed_ns = 2**63
        self.send(self.feed.handle_timer(self.now_ns))
        self.after_input()

    def connect(self) -> None:
        """A connection comes up."""
        for index, connection in enumerate(self.feed.connections):
            if not connection.is_open:
                self.exchanges[index].connect()
                self.feed.connection_opened(index, self.now_ns)
                self.publish()

    def lose(self) -> None:
        """A connection is lost, for a reason that may be no text."""
        index = self.chance.randrange(len(self.feed.connections))
        if self.feed.connections[index].is_open and not self.chance.randrange(3):
            self.feed.connection_closed(
                index, self.now_ns, self.chance.choice(("reset", "\ud800", ""))
            )
            self.publish()

    def read(self) -> None:
        """REST tells of markets."""
        records = [self.record(t) for t in self.chance.sample(TICKERS, self.chance.randint(1, 4))]
        self.feed.markets_read(records, self.now_ns)
        self.publish()

    def record(self, ticker: str) -> MarketRecord:
        """A market as REST has it, more or less complete."""
        return MarketRecord(
            ticker,
            event_ticker=ticker.rpartition("-")[0],
            series_ticker=self.chance.choice(("", ticker.partition("-")[0])),
            phase=self.chance.choice((MarketPhase.ACTIVE, MarketPhase.ACTIVE, MarketPhase.CLOSED)),
            open_ns=T0 - SECOND,
            close_ns=self.chance.choice((0, T0 + 3_600 * SECOND)),
            price_bands=((0, 10_000, 100),),
            read_ns=self.now_ns,
            refused=self.chance.choice(((), ("floor_strike",))),
        )

    def lifecycle(self) -> None:
        """A market's life goes on."""
        exchange = self.exchanges[0]
        sid = exchange.sids.get("market_lifecycle_v2")
        if sid is None:
            return
        event = self.chance.choice(("activated", "deactivated", "determined", "created", "news"))
        ticker = self.chance.choice((*TICKERS, "KXA-9-Z"))
        exchange.send_sequenced(
            sid, "market_lifecycle_v2", {"event_type": event, "market_ticker": ticker}
        )

    def rest_of_rest(self) -> None:
        """Whatever else REST leads to."""
        ticker = self.chance.choice(TICKERS)
        choice = self.chance.randrange(3)
        if choice == 0:
            event = ticker.rpartition("-")[0]
            self.feed.event_read(event, ticker.partition("-")[0], self.now_ns)
        elif choice == 1:
            self.feed.discovery_done(self.now_ns)
        else:
            self.feed.look_up_unread(self.now_ns)
        self.publish()

    def log(self) -> None:
        """Housekeeping tells how the tick log does, or goes on in another session if it went off."""
        if self.feed.log_on:
            oldest = tuple(self.chance.randint(1, 9) for _ in range(5))
            self.feed.set_log(is_on=True, oldest_seqs=oldest)
        elif self.begin.log_on:
            self.publish()
            self.datagrams += self.plant.packets.ends_of_session(self.now_ns)
            self.feed.begin_session(max(self.now_ns, self.plant.session + 1), self.now_ns)
            self.publish()

    def finish(self) -> None:
        """The orderly end."""
        self.datagrams += self.feed.end_session(self.now_ns)
        while not self.feed.ended:
            self.now_ns = max(self.now_ns, self.plant.next_deadline_ns())
            self.datagrams += self.feed.handle_end_timer(self.now_ns)
        self.recorder.write()


def run_course(seed: int, steps: int = 60, *, calm: bool = False) -> RecordedCourse:
    """A session that begins with everything up, and then has faults."""
    course = RecordedCourse(random.Random(seed), calm=calm)
    course.connect()
    course.feed.markets_read([course.record(ticker) for ticker in TICKERS], course.now_ns)
    course.feed.discovery_done(course.now_ns)
    course.publish()
    for _ in range(steps):
        course.step()
    course.finish()
    return course
