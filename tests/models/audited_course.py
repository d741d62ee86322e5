"""A whole session in virtual time: an honest exchange, a real feed and plant, its log and capture on disk.

What an audit reads, so that a test can break one thing and see whether it is found.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from exchange_model import BOOKS, ExchangeModel, contracts, dollars
from recorded_feed import MS, SECOND, T0, KeptRecords, begin_of

from tickerplant.audit.report import AuditReport
from tickerplant.audit.run import audit_session
from tickerplant.core.logformat import (
    FIRST_SEQS,
    NextSeqs,
    SegmentHeader,
    SegmentName,
    crc_seeds,
    encode_records,
    encode_segment_header,
    next_seqs_after,
)
from tickerplant.core.messages import AnyMessage, MarketPhase
from tickerplant.core.packets import Datagram
from tickerplant.core.wire import Kind, decode_body, decode_header, encode_datagram
from tickerplant.runtime.captureupkeep import CaptureOptions
from tickerplant.runtime.capturewriter import open_capture
from tickerplant_kalshi.directory import MarketRecord, Selection
from tickerplant_kalshi.playback import feed_of, plant_of
from tickerplant_kalshi.recording import InputRecorder

TICKERS = tuple(f"KXA-{event}-{market}" for event in range(3) for market in "ABCD")
CHANNELS = ("trade", "ticker", "market_lifecycle_v2")
SESSION = T0
PREVIOUS = T0 - SECOND


class AuditedCourse:
    """Drives one session. Everything that the exchange sends arrives, unless `lose` takes frames away."""

    def __init__(self, seed: int = 1, *, all_open: bool = True) -> None:
        self.chance = random.Random(seed)
        self.now_ns = T0
        self.records = KeptRecords()
        self.datagrams: list[Datagram] = []
        self.begin = begin_of(
            2,
            session=SESSION,
            previous_session=PREVIOUS,
            final_seqs=tuple(enumerate(FIRST_SEQS, start=1)),
            selection=Selection(all_open=all_open, series=("KXA",)),
            channels=CHANNELS,
            verify_interval_ns=5 * MS,
            check_interval_ns=20 * MS,
            log_on=True,
        )
        self.plant = plant_of(self.begin)
        self.recorder = InputRecorder(self.records)
        self.feed = feed_of(self.begin, self.plant, self.recorder)
        self.exchanges = [ExchangeModel(TICKERS) for _ in self.feed.connections]
        self.trades = 0
        self.publish()

    def publish(self) -> None:
        """As the daemon does it."""
        self.datagrams += self.feed.flush(self.now_ns)
        self.after_input()

    def after_input(self) -> None:
        """Commands go to the exchange."""
        self.feed.settle()
        for connection, exchange in zip(self.feed.connections, self.exchanges, strict=True):
            if connection.is_open:
                for command in connection.outgoing(self.now_ns):
                    exchange.command(command)
        self.feed.take_look_ups()

    # --- what happens -----------------------------------------------------------------------------

    def start(self) -> None:
        """Markets are read, connections open, books come; all are live and told."""
        for exchange in self.exchanges:
            for ticker in TICKERS:
                bids, asks = exchange.books[ticker]
                bids.update({4_000 - 100 * level: 1_000 + level for level in range(8)})
                asks.update({5_000 + 100 * level: 2_000 + level for level in range(8)})
        for index in range(len(self.exchanges)):
            self.feed.connection_opened(index, self.now_ns)
            self.publish()
        self.feed.markets_read([_record_of(ticker, self.now_ns) for ticker in TICKERS], self.now_ns)
        self.feed.discovery_done(self.now_ns)
        self.publish()
        for _ in range(50):
            self.deliver()
            self.wait(10 * MS)
        assert not self.plant.unready_books
        assert len(self.plant.entries) == len(TICKERS)

    def run(self, steps: int) -> None:
        """Levels change, trades and tickers come, time goes by."""
        for _ in range(steps):
            for _ in range(self.chance.randint(1, 5)):
                self.chance.choice(
                    (self.change, self.change, self.change, self.trade, self.quote)
                )()
            self.now_ns += self.chance.choice((MS // 10, MS, 3 * MS))
            self.deliver()
            self.wait(0)

    def change(self) -> None:
        """One level of one market, near its best mostly."""
        draw = self.chance.choice
        ticker, side = draw(TICKERS), draw((0, 1))
        best = 4_000 if side == 0 else 5_000
        price_e4 = best + draw((-200, -100, 0, 0, 100, 200, 5, -30))
        delta_e2 = draw((-2_100, -250, 100, 300))
        for exchange in self.exchanges:
            exchange.change(ticker, side, price_e4, delta_e2)

    def trade(self) -> None:
        """One trade, on the first connection."""
        sid = self.exchanges[0].sids.get("trade")
        if sid is None:
            return
        self.trades += 1
        price_e4 = self.chance.randrange(100, 9_900, 100)
        msg = {
            "trade_id": f"t{self.trades}",
            "market_ticker": self.chance.choice(TICKERS),
            "yes_price_dollars": dollars(price_e4),
            "no_price_dollars": dollars(10_000 - price_e4),
            "count_fp": contracts(self.chance.randrange(1, 10_000)),
            "taker_outcome_side": self.chance.choice(("yes", "no")),
            "ts_ms": 1_795_197_851_207,
        }
        self.exchanges[0].send_sequenced(sid, "trade", msg)

    def quote(self) -> None:
        """One ticker of the exchange."""
        sid = self.exchanges[0].sids.get("ticker")
        if sid is None:
            return
        msg = {
            "market_ticker": self.chance.choice(TICKERS),
            "price_dollars": dollars(self.chance.randrange(100, 9_900, 100)),
            "yes_bid_dollars": "0.4000",
            "yes_ask_dollars": "0.5000",
            "volume_fp": contracts(self.chance.randrange(10**6)),
            "open_interest_fp": "17.00",
            "dollar_volume": 5,
            "dollar_open_interest": 7,
            "yes_bid_size_fp": "10.00",
            "yes_ask_size_fp": "20.00",
            "last_trade_size_fp": "1.00",
        }
        self.exchanges[0].send("ticker", sid=sid, msg=msg)
        sent = self.exchanges[0].pipe.pop()
        fields = {"type": "ticker", "sid": sid, "msg": msg}
        self.exchanges[0].pipe.append(sent._replace(fields=fields))

    def deliver(self) -> None:
        """All frames on their way, each connection a read batch."""
        for index, exchange in enumerate(self.exchanges):
            connection = self.feed.connections[index]
            if not exchange.pipe or not connection.is_open:
                continue
            while exchange.pipe:
                connection.receive_frame(exchange.pipe.popleft().data, self.now_ns)
            connection.note_activity(self.now_ns)
            self.now_ns += 1_000
            self.publish()

    def wait(self, span_ns: int) -> None:
        """Timers fire at their deadlines."""
        end_ns = self.now_ns + span_ns
        while (due_ns := self.feed.next_deadline_ns()) <= end_ns:
            self.now_ns = max(self.now_ns, due_ns) + 100
            self.datagrams += self.feed.handle_timer(self.now_ns)
            self.after_input()
            self.deliver()
        self.now_ns = max(self.now_ns, end_ns) + 100

    def lose(self, channel: str = BOOKS, connection: int = 0) -> bool:
        """Takes away the next frame of a channel that is on its way; whether there was one."""
        exchange = self.exchanges[connection]
        for sent in exchange.pipe:
            if sent.sid == exchange.sids.get(channel) and sent.kind in (BOOKS, channel):
                exchange.pipe.remove(sent)
                return True
        return False

    def finish(self) -> None:
        """The orderly end."""
        self.datagrams += self.feed.end_session(self.now_ns)
        while not self.feed.ended:
            self.now_ns = max(self.now_ns + 1, self.plant.next_deadline_ns())
            self.datagrams += self.feed.handle_end_timer(self.now_ns)
        self.recorder.write()


def _record_of(ticker: str, now_ns: int) -> MarketRecord:
    return MarketRecord(
        ticker,
        event_ticker=ticker.rpartition("-")[0],
        series_ticker="KXA",
        phase=MarketPhase.ACTIVE,
        open_ns=T0 - SECOND,
        close_ns=T0 + 3_600 * SECOND,
        price_bands=((0, 10_000, 100),),
        read_ns=now_ns,
    )


def run_course(seed: int = 1, steps: int = 150, **options: Any) -> AuditedCourse:
    """A session from start to end in which nothing goes wrong."""
    course = AuditedCourse(seed, **options)
    course.start()
    course.run(steps)
    course.finish()
    return course


# --- files ----------------------------------------------------------------------------------------


def write_segment(
    folder: Path, datagrams: Sequence[Datagram], *, ordinal: int = 1, **header: Any
) -> None:
    """One segment of the session with exactly these datagrams, all records valid; other fields of `header`."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "session": SESSION,
        "ordinal": ordinal,
        "publisher": 3,
        "partition": 0,
        "created_ns": T0,
        "first_seqs": FIRST_SEQS,
        "previous_session": PREVIOUS,
        "boot_id": b"0123456789abcdef",
    } | header
    name = SegmentName(values["session"], ordinal)
    content = encode_segment_header(SegmentHeader(**values))
    records = encode_records(datagrams, crc_seeds(values["session"])) if datagrams else b""
    (folder / str(name)).write_bytes(content + records)


def seqs_after(datagrams: list[Datagram]) -> NextSeqs:
    """The next sequences after these."""
    return next_seqs_after(FIRST_SEQS, dict(datagrams))


def write_in_segments(
    bed: "AuditBed", datagrams: list[Datagram], count: int, **header: Any
) -> list[Path]:
    """The session in several segments; their files."""
    size = len(datagrams) // count + 1
    paths, first, before = [], FIRST_SEQS, 0
    for ordinal in range(1, count + 1):
        part = datagrams[(ordinal - 1) * size : ordinal * size]
        values = {"first_seqs": first} | header
        if ordinal > 1:
            values |= {
                "created_ns": decode_header(datagrams[(ordinal - 1) * size - 1][1]).ts_send_ns,
                "previous_segment": SegmentName(SESSION, ordinal - 1),
                "previous_bytes": before,
                "previous_session": SESSION,
                "previous_seqs": first,
                "is_previous_complete": True,
            }
        write_segment(bed.log, part, ordinal=ordinal, **values)
        path = bed.log / str(SegmentName(SESSION, ordinal))
        paths.append(path)
        before = path.stat().st_size
        first = next_seqs_after(first, dict(part))
    return paths


def write_capture(folder: Path, records: Sequence[bytes], session: int = SESSION) -> None:
    """The capture of a session."""
    writer = open_capture(folder, session, CaptureOptions(compress=False))
    for record in records:
        writer.write(record)
    assert writer.is_on
    assert writer.close()


class AuditBed:
    """Log and capture folders of one test, and audits of what is in them."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log"
        self.capture = folder / "capture"

    def audit(
        self,
        datagrams: Sequence[Datagram],
        records: Sequence[bytes] | None = None,
        **header: Any,
    ) -> AuditReport:
        """The report on a session with these datagrams and, if given, this capture."""
        write_segment(self.log, datagrams, **header)
        if records is not None:
            write_capture(self.capture, records)
        return audit_session(
            self.log, SESSION, capture_folder=None if records is None else self.capture
        )


# --- changing datagrams ---------------------------------------------------------------------------

Change = Callable[[int, AnyMessage], Sequence[AnyMessage]]
"""(sequence, message) to what stands in its place."""


def rewritten(datagrams: Sequence[Datagram], stream: int, change: Change) -> list[Datagram]:
    """The same datagrams with messages of one stream changed, left out or added, and numbered anew: all are valid."""
    result: list[Datagram] = []
    seq = 1
    for at, datagram in datagrams:
        header = decode_header(datagram)
        if at != stream:
            result.append((at, datagram))
            continue
        if header.kind != Kind.DATA:
            result.append((at, with_seq(datagram, seq)))
            continue
        messages = [
            new
            for index, message in enumerate(decode_body(datagram, header))
            if message is not None
            for new in change(header.seq + index, message)
        ]
        if messages:
            result.append(
                (
                    at,
                    encode_datagram(
                        0,
                        at,
                        header.session,
                        seq,
                        header.ts_send_ns,
                        messages,
                        header.publisher,
                        header.partition,
                        header.flags,
                    ),
                )
            )
        seq += len(messages)
    return result


def with_seq(datagram: bytes, seq: int) -> bytes:
    """The same datagram with another sequence."""
    return datagram[:16] + seq.to_bytes(8, "little") + datagram[24:]


def with_sent_ns(datagram: bytes, sent_ns: int) -> bytes:
    """The same datagram with another time of sending."""
    return datagram[:24] + sent_ns.to_bytes(8, "little") + datagram[32:]
