"""What recorded frames must come to, computed from the raw files in plain Decimal without any code of the project."""

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

Document = dict[str, Any]
Levels = dict[Decimal, Decimal]
BookRows = tuple[list[list[int]], list[list[int]]]
"""(bids, asks) of [price_e4, size_e2] in YES prices, ascending."""


def frames_of(path: Path) -> Iterator[Document]:
    """The frames of a capture, bare or wrapped in `raw`."""
    for line in path.read_text().splitlines():
        if line.strip():
            document = json.loads(line)
            yield json.loads(document["raw"]) if "raw" in document else document


def rebuild(frames: Iterable[Document], *, recorded_yes_price: bool) -> dict[str, BookRows]:
    """The books after the last of `frames`. A level that would fall below zero is an error of the recording."""
    books: dict[str, dict[str, Levels]] = {}
    for frame in frames:
        body = frame.get("msg", {})
        if frame["type"] == "orderbook_snapshot":
            books[body["market_ticker"]] = {
                side: {Decimal(p): Decimal(q) for p, q in body.get(f"{side}_dollars_fp", [])}
                for side in ("yes", "no")
            }
        elif frame["type"] == "orderbook_delta":
            levels = books[body["market_ticker"]][body["side"]]
            price = Decimal(body["price_dollars"])
            size = levels.pop(price, Decimal(0)) + Decimal(body["delta_fp"])
            assert size >= 0, frame
            if size:
                levels[price] = size
    return {
        ticker: (
            in_units(book["yes"]),
            # A NO bid at p is a YES ask at 1 - p; with `use_yes_price` it was recorded as that.
            in_units({p if recorded_yes_price else 1 - p: q for p, q in book["no"].items()}),
        )
        for ticker, book in books.items()
    }


def in_units(levels: Levels) -> list[list[int]]:
    """Levels as [price_e4, size_e2], ascending; exact."""
    return sorted([price_e4(price), size_e2(size)] for price, size in levels.items())


def best_of(rows: BookRows) -> list[int]:
    """Best bid and best ask with their sizes; an absent side is 0, 0."""
    bids, asks = rows
    return [*(bids[-1] if bids else (0, 0)), *(asks[0] if asks else (0, 0))]


def price_e4(dollars: str | Decimal) -> int:
    """Dollars in 1e-4."""
    return _whole(Decimal(dollars) * 10_000)


def size_e2(contracts: str | Decimal) -> int:
    """Contracts in 1e-2."""
    return _whole(Decimal(contracts) * 100)


def time_ns(stamp: str) -> int:
    """An RFC 3339 time in UTC with up to 6 fractional digits."""
    moment = datetime.fromisoformat(stamp).astimezone(UTC)
    return _whole(Decimal(moment.replace(microsecond=0).timestamp())) * 10**9 + (
        moment.microsecond * 1_000
    )


def opening_snapshots(deltas: Iterable[Document]) -> Iterator[Document]:
    """The smallest snapshot `msg` of every market with which no level of `deltas` (their `msg`) falls below zero."""
    sums: dict[tuple[str, str, str], Decimal] = {}
    lowest: dict[tuple[str, str, str], Decimal] = {}
    market_ids: dict[str, str] = {}
    for body in deltas:
        ticker = body["market_ticker"]
        market_ids[ticker] = body["market_id"]
        key = (ticker, body["side"], body["price_dollars"])
        sums[key] = sums.get(key, Decimal(0)) + Decimal(body["delta_fp"])
        lowest[key] = min(lowest.get(key, Decimal(0)), sums[key])
    for ticker, market_id in market_ids.items():
        snapshot: Document = {"market_ticker": ticker, "market_id": market_id}
        for (owner, side, price), low in lowest.items():
            if owner == ticker and low:
                snapshot.setdefault(f"{side}_dollars_fp", []).append([price, f"{-low:.2f}"])
        yield snapshot


def _whole(value: Decimal) -> int:
    assert value == int(value), value
    return int(value)
