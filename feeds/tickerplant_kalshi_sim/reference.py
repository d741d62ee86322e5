"""The channels beside the books: index values, underlyings and requests for quotes on combos.

All values are invented; an index follows a seeded walk. Every frame here carries a sequence number.
"""

import uuid
from collections.abc import Sequence
from random import Random

import msgspec

from tickerplant.core.fixedpoint import format_size_e2
from tickerplant_kalshi_sim.frames import (
    NANOSECONDS,
    Emission,
    Stamp,
    StampClock,
    dollars_e8,
    emission,
    json_body,
)
from tickerplant_kalshi_sim.markets import Market

INDEX_IDS = ("BRTI", "ETHUSD_RTI", "SOLUSD_RTI", "XRPUSD_RTI", "DOGEUSD_RTI")
UNDERLYING_TICKERS = ("Metal.XAU/USD", "Metal.XAG/USD")
FAST_INTERVAL_NS = NANOSECONDS // 5
REQUEST_INTERVAL_NS = 2 * NANOSECONDS


class ReferenceFeed:
    """Emits what is due on the reference and communications channels."""

    def __init__(self, random: Random, start_ns: int) -> None:
        self._random = random
        self._clock = StampClock()
        self._value_e8 = {
            name: 10**10 * (index + 1)
            for index, name in enumerate((*INDEX_IDS, *UNDERLYING_TICKERS))
        }
        self._next_fast_ns = start_ns
        self._next_slow_ns = start_ns
        self._next_request_ns = start_ns
        self._open_requests: list[tuple[str, str]] = []

    def run(self, now_ns: int, combos: Sequence[Market]) -> list[Emission]:
        """The frames due up to `now_ns`; requests for quotes are drawn over `combos`."""
        emissions: list[Emission] = []
        stamp = self._clock.stamp(now_ns)
        if now_ns >= self._next_fast_ns:
            self._next_fast_ns = now_ns + FAST_INTERVAL_NS
            emissions.extend(self._fast(index_id, stamp) for index_id in INDEX_IDS)
            emissions.extend(self._underlying(name, stamp) for name in UNDERLYING_TICKERS)
        if now_ns >= self._next_slow_ns:
            self._next_slow_ns = now_ns + NANOSECONDS
            emissions.extend(self._slow(index_id, stamp) for index_id in INDEX_IDS)
        if now_ns >= self._next_request_ns and combos:
            self._next_request_ns = now_ns + REQUEST_INTERVAL_NS
            emissions.append(self._request(combos, stamp))
        return emissions

    def _walk(self, name: str) -> str:
        self._value_e8[name] += int((self._random.random() - 0.5) * 2_000_000)
        return dollars_e8(self._value_e8[name])

    def _fast(self, index_id: str, stamp: Stamp) -> Emission:
        channel = "cfbenchmarks_value_5hz"
        message = {
            "index_id": index_id,
            "value_usd": self._walk(index_id),
            "source_ts_ms": stamp.ms - 30,
            "received_at": stamp.ms,
            "data": "{}",
        }
        return emission(channel, channel, index_id, json_body(message))

    def _underlying(self, name: str, stamp: Stamp) -> Emission:
        message = {
            "underlying_ticker": name,
            "value_usd": self._walk(name),
            "source_ts_ms": stamp.ms - 60,
            "received_at": stamp.ms,
        }
        return emission("pyth_value", "pyth_value", name, json_body(message))

    def _slow(self, index_id: str, stamp: Stamp) -> Emission:
        channel = "cfbenchmarks_value"
        value = dollars_e8(self._value_e8[index_id])
        data = {"type": "value", "id": index_id, "time": stamp.ms - 50, "value": value}
        message = {
            "index_id": index_id,
            "received_at": stamp.ms,
            "data": msgspec.json.encode(data).decode(),
            "avg_60s_data": {
                "value": value,
                "window_size": 60,
                "window_start_ts_ms": stamp.ms - 60_050,
                "window_end_ts_exclusive": stamp.ms - 50,
            },
        }
        return emission(channel, channel, index_id, json_body(message))

    def _request(self, combos: Sequence[Market], stamp: Stamp) -> Emission:
        """A new request for quotes, or the withdrawal of an old one; quotes themselves go to the parties only."""
        if len(self._open_requests) >= 4:
            request_id, ticker = self._open_requests.pop(0)
            message = {
                "id": request_id,
                "creator_id": "0",
                "market_ticker": ticker,
                "deleted_ts": stamp.text,
            }
            return emission("communications", "rfq_deleted", ticker, json_body(message))
        ticker = combos[int(self._random.random() * len(combos))].ticker
        request_id = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
        self._open_requests.append((request_id, ticker))
        message = {
            "id": request_id,
            "creator_id": "0",
            "market_ticker": ticker,
            "contracts_fp": format_size_e2(100 + int(self._random.random() * 9_900)),
            "created_ts": stamp.text,
        }
        return emission("communications", "rfq_created", ticker, json_body(message))
