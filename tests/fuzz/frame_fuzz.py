"""Damaged exchange frames into the whole feed: connection, directory, plant, and out through the wire format."""

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mutations import (
    HOSTILE_JSON,
    flip_bits,
    insert,
    json_tokens,
    repeat_part,
    splice,
    substitute,
    truncate,
)

from tickerplant.core import wire
from tickerplant.core.plant import Plant
from tickerplant.errors import ObsoleteFormatError
from tickerplant_kalshi.directory import MarketDirectory, MarketRecord, Selection
from tickerplant_kalshi.feed import KalshiFeed
from tickerplant_kalshi.subscriptions import CHANNEL_OF_TYPE

FRAMES_PER_FLUSH = 32
FRAMES_PER_FEED = 20_000
FRAME_NS = 500_000
START_NS = 1_795_197_851_000_000_000
BOOKS = "orderbook_delta"
CHANNELS = ("ticker", "trade", "market_lifecycle_v2", "multivariate_market_lifecycle")
TICKERS = (
    "KXDEMOTEMP-26NOV21-T58",
    "KXDEMOTEMP-26NOV21-T60",
    "KXDEMOTEMP-26NOV21-T62",
    "KXMVEDEMO-26NOV22-A1B2",
)
_SEQ = re.compile(rb'"seq": ?(\d+)')
_SID = re.compile(rb'"sid": ?(\d+)')
_TYPE = re.compile(rb'"type": ?"(\w+)"')


def shared_examples() -> list[bytes]:
    """Documented frames, where the folder is at hand; the generated ones stand for themselves otherwise."""
    for parent in Path(__file__).resolve().parents:
        path = parent / "shared" / "kalshi" / "examples.jsonl"
        if path.is_file():
            return [line for line in path.read_bytes().splitlines() if b'"type"' in line]
    return []


def generated_frames() -> list[bytes]:
    """One or more frames of every type that the feed acts on, on the sids that the fuzzer hands out."""
    frames = []
    for ticker in TICKERS:
        for side, price, size in (
            ("yes", "0.3300", "1.00"),
            ("no", "0.6400", "-1.00"),
            ("yes", "0.0001", "0.01"),
        ):
            msg = {
                "market_ticker": ticker,
                "price_dollars": price,
                "delta_fp": size,
                "side": side,
                "ts_ms": 1795197851207,
            }
            frames.append({"type": "orderbook_delta", "sid": 1, "seq": 1, "msg": msg})
        levels = [[f"0.{cents:02}00", f"{cents}.50"] for cents in range(5, 30)]
        msg = {
            "market_ticker": ticker,
            "market_id": "x",
            "yes_dollars_fp": levels,
            "no_dollars_fp": levels,
        }
        frames += [
            {"type": "orderbook_snapshot", "sid": 1, "seq": 1, "msg": msg},
            {
                "type": "orderbook_snapshot",
                "sid": 1,
                "seq": 1,
                "msg": {"market_ticker": ticker, "market_id": "x"},
            },
        ]
        for event_type, more in (
            (
                "created",
                {
                    "open_ts": 1795197800,
                    "close_ts": 1795298400,
                    "price_level_structure": "deci_cent",
                    "price_ranges": [{"start": "0.0000", "end": "1.0000", "step": "0.0010"}],
                    "additional_metadata": {
                        "event_ticker": "KXDEMOTEMP-26NOV21",
                        "floor_strike": 58.5,
                    },
                },
            ),
            ("activated", {"is_deactivated": False}),
            ("deactivated", {"is_deactivated": True}),
            ("close_date_updated", {"close_ts": 1795298400}),
            (
                "determined",
                {"determination_ts": 1795183200, "result": "yes", "settlement_value": "1.0000"},
            ),
            ("settled", {"settled_ts": 1795186800}),
            ("metadata_updated", {"strike_type": "between", "floor_strike": 58, "cap_strike": 60}),
            ("price_level_structure_updated", {"price_level_structure": "x", "price_ranges": []}),
        ):
            msg = {"event_type": event_type, "market_ticker": ticker, **more}
            frames.append({"type": "market_lifecycle_v2", "sid": 4, "seq": 1, "msg": msg})
    frames += [
        {"type": "orderbook_news", "sid": 1, "seq": 1, "msg": {}},
        {"type": "error", "sid": 1, "seq": 1, "msg": {"code": 25, "msg": "overflow"}},
        {"type": "error", "id": 3, "msg": {"code": 26, "msg": "too many"}},
        {"type": "subscribed", "id": 2, "msg": {"channel": "trade", "sid": 3}},
        {"type": "ok", "id": 2, "sid": 1, "seq": 1, "msg": {}},
    ]
    return [json.dumps(frame, separators=(",", ":")).encode() for frame in frames]


class FrameFuzzer:
    """Inputs by `step`; an exception other than `ObsoleteFormatError` is a finding and passes through."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.corpus = shared_examples() + generated_frames()
        self.spans = [json_tokens(data) for data in self.corpus]
        self.exceptions: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.last_input = b""
        self._left = 0
        self._new_feed()

    def _new_feed(self) -> None:
        self._count_outcomes()
        self.now_ns = START_NS
        self.plant = Plant(self.now_ns, self.now_ns)
        selection = Selection(tickers=TICKERS, series=("KXDEMOTEMP",))
        directory = MarketDirectory(selection, markets_max=1_000)
        use_yes_price = self.chance.random() < 0.5
        self.feed = KalshiFeed(
            self.plant, directory, channels=CHANNELS, use_yes_price=use_yes_price
        )
        self.feed.markets_read([MarketRecord(ticker, "E", "S") for ticker in TICKERS], self.now_ns)
        self.feed.discovery_done(self.now_ns)
        self.connection = self.feed.connections[0]
        self.feed.connection_opened(0, self.now_ns)
        self._left = FRAMES_PER_FEED
        # Almost pure garbage, or mostly good frames so that the deeper states are reached.
        self._calm = self.chance.choice((0.05, 0.5, 0.9, 0.98))

    def _count_outcomes(self) -> None:
        if hasattr(self, "feed"):
            for name, value in (*self.feed.counters(), *self.plant.counters()):
                self.outcomes[name] += value

    def run_batch(self) -> int:
        """One read batch of frames, its flush and whatever answers it; returns the number of frames."""
        receive = self.connection.receive_frame
        for _ in range(FRAMES_PER_FLUSH):
            data = self.last_input = self._next_frame()
            self.now_ns += FRAME_NS
            try:
                receive(data, self.now_ns)
            except ObsoleteFormatError as error:
                self.exceptions[type(error).__name__] += 1
        self.connection.note_activity(self.now_ns)
        self._check(self.feed.flush(self.now_ns))
        self._left -= FRAMES_PER_FLUSH
        if self._left <= 0:
            self._new_feed()
        self._answer()
        self._let_time_pass()
        return FRAMES_PER_FLUSH

    def _next_frame(self) -> bytes:
        chance = self.chance.random
        index = int(chance() * len(self.corpus))
        data = self.corpus[index]
        if chance() < self._calm:
            ends = data.startswith(b'{"type":"error"') and chance() < 0.95
            return self._in_sequence(self.corpus[-1] if ends else data)
        way = chance()
        if way < 0.50:
            data = substitute(data, self.spans[index], HOSTILE_JSON, self.chance)
            return self._in_sequence(data) if len(data) < 20_000 and chance() < 0.8 else data
        if way < 0.65:
            return flip_bits(self._in_sequence(data), self.chance)
        if way < 0.74:
            return truncate(data, self.chance)
        if way < 0.82:
            return splice(data, self.corpus[int(chance() * len(self.corpus))], self.chance)
        if way < 0.92:
            return repeat_part(self._in_sequence(data), self.chance)
        return insert(data, self.chance)

    def _in_sequence(self, data: bytes) -> bytes:
        """The frame as the next one of its channel's sid, so that it is not all dropped as foreign or repeated."""
        found, sid, kind = _SEQ.search(data), _SID.search(data), _TYPE.search(data)
        if sid is None or kind is None:
            return data
        channel = CHANNEL_OF_TYPE.get(kind[1].decode(), BOOKS)
        subscription = self.connection.commands.subscriptions[channel]
        seq = subscription.expected + (self.chance.random() < 0.02)
        if found is not None:
            data = b"%b%d%b" % (data[: found.start(1)], seq, data[found.end(1) :])
        return b"%b%d%b" % (data[: sid.start(1)], subscription.sid, data[sid.end(1) :])

    def _check(self, datagrams: list[tuple[int, bytes]]) -> None:
        """What leaves the plant must be readable, whatever came in."""
        for _, datagram in datagrams:
            header = wire.decode_header(datagram)
            if header.kind == wire.Kind.DATA:
                wire.decode_body(datagram, header)

    def _answer(self) -> None:
        """An exchange that mostly obeys, so that the feed gets anywhere."""
        for command in map(json.loads, self.connection.outgoing(self.now_ns)):
            if self.chance.random() < 0.1:
                continue
            for reply in self._replies(command):
                encoded = json.dumps(reply).encode()
                damaged = self.chance.random() < 0.02
                self.last_input = flip_bits(encoded, self.chance) if damaged else encoded
                self.connection.receive_frame(self.last_input, self.now_ns)
        self._check(self.feed.flush(self.now_ns))

    def _replies(self, command: dict[str, Any]) -> Iterator[dict[str, object]]:
        params, command_id = command.get("params") or {}, command["id"]
        commands = self.connection.commands
        if command["cmd"] == "subscribe":
            (channel,) = params["channels"]
            sid = commands.last_ended_sid + 1
            while sid in commands.by_sid:
                sid += 1
            msg = {"channel": channel, "sid": sid}
            yield {"type": "subscribed", "id": command_id, "msg": msg}
        elif command["cmd"] == "list_subscriptions":
            rows = [{"channel": s.channel, "sid": sid} for sid, s in commands.by_sid.items()]
            yield {"type": "ok", "id": command_id, "msg": rows}
        elif params["action"] != "get_snapshot":
            books = commands.books
            head = {"type": "ok", "id": command_id, "sid": books.sid, "seq": books.expected}
            yield {**head, "msg": {}}
        if params.get("action") != "delete_markets":
            for ticker in params.get("market_tickers") or ():
                books = commands.books
                head = {"type": "orderbook_snapshot", "sid": books.sid, "seq": books.expected}
                if params.get("action") == "get_snapshot":
                    head["id"] = command_id
                levels = [["0.3300", f"{1 + self.chance.randrange(9)}.00"]]
                yield {**head, "msg": {"market_ticker": ticker, "yes_dollars_fp": levels}}

    def _let_time_pass(self) -> None:
        if self.chance.random() < 0.02:
            self.now_ns += int(self.chance.random() * 12e9)
        if self.feed.next_deadline_ns() <= self.now_ns:
            self.connection.note_activity(self.now_ns)
            self._check(self.feed.handle_timer(self.now_ns))
        self.feed.take_look_ups()
        if self.connection.close_reason or self.chance.random() < 0.0005:
            self.outcomes["reconnects"] += 1
            self.feed.connection_closed(0, self.now_ns, self.connection.close_reason or "x")
            self._check(self.feed.flush(self.now_ns))
            self.feed.connection_opened(0, self.now_ns)
