"""A subscriber in a process of its own, for tests: receives everything and tells over HTTP what it has.

`python subscriber_process.py --group 239.196.0.0 --port 20000` prints `report port N`; a GET of that port answers with
one JSON object:

    books     ticker -> {state, bids, asks}, levels as [price_e4, size_e2] in ascending order
    quotes    ticker -> {state, quote}, quote as [bid_e4, bid_size_e2, ask_e4, ask_size_e2]
    trades, tickers, upstream_gaps   the first `--keep` messages of these types, as objects
    events    the first `--keep` events of the library other than Stale and Live
    messages  messages and events by type
    causes    how often each cause of a feed state was told, the first CAUSES_MAX
    stats     `SubscriberStats`
"""

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec
import uvloop

from tickerplant_subscriber import (
    AnyMessage,
    Bbo,
    BookView,
    Event,
    FeedState,
    Live,
    Stale,
    Subscriber,
    Ticker,
    Trade,
    UpstreamGap,
)

KEPT_MAX = 1_000
CAUSES_MAX = 2_000
_KEPT_MESSAGES = {Trade: "trades", Ticker: "tickers", UpstreamGap: "upstream_gaps"}


class Record:
    """What a report is made of."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.counts: Counter[str] = Counter()
        self.causes: Counter[str] = Counter()
        self.kept: dict[str, list[dict[str, Any]]] = {
            name: [] for name in ("trades", "tickers", "upstream_gaps", "events")
        }
        self.quotes: dict[str, Bbo] = {}

    def take(self, item: AnyMessage | Event) -> None:
        """One message or event."""
        self.counts[type(item).__name__] += 1
        if isinstance(item, Bbo):
            self.quotes[item.ticker] = item
            return
        if isinstance(item, FeedState) and len(self.causes) < CAUSES_MAX:
            self.causes[item.cause] += 1
        name = _KEPT_MESSAGES.get(type(item))
        if isinstance(item, Event) and not isinstance(item, Stale | Live):
            name = "events"
        if name is not None and len(self.kept[name]) < self.keep:
            values = {field: getattr(item, field) for field in item.__struct_fields__}
            self.kept[name].append({"type": type(item).__name__} | values)

    def report(self, subscriber: Subscriber) -> bytes:
        """The whole report, encoded piece by piece: asking must not need more memory than the books themselves."""
        latest = ((ticker, subscriber.bbo(ticker) or own) for ticker, own in self.quotes.items())
        rest = {
            "messages": dict(self.counts),
            "causes": dict(self.causes),
            "stats": subscriber.stats(),
            **self.kept,
        }
        members = [
            _member("books", _object((view.ticker, _book(view)) for view in subscriber.books())),
            _member("quotes", _object((ticker, _quote(quote)) for ticker, quote in latest)),
            *(_member(name, msgspec.json.encode(value)) for name, value in rest.items()),
        ]
        return b"{%b}" % b",".join(members)


def _object(rows: Iterable[tuple[str, dict[str, Any]]]) -> bytes:
    return b"{%b}" % b",".join(_member(name, msgspec.json.encode(value)) for name, value in rows)


def _member(name: str, encoded: bytes) -> bytes:
    return msgspec.json.encode(name) + b":" + encoded


def _book(view: BookView) -> dict[str, Any]:
    return {
        "state": view.state.name,
        "bids": list(view.bids.items()),
        "asks": list(view.asks.items()),
    }


def _quote(bbo: Bbo) -> dict[str, Any]:
    quote = (bbo.bid_e4, bbo.bid_size_e2, bbo.ask_e4, bbo.ask_size_e2)
    return {"state": bbo.state, "quote": quote}


async def serve(group: str, port: int, keep: int) -> None:
    """Receive, and answer whoever asks, until killed."""
    record = Record(keep)
    async with Subscriber(group_a=group, port=port, recovery=()) as subscriber:

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            body = record.report(subscriber)
            writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        sys.stdout.write(f"report port {server.sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()
        async with server:
            async for item in subscriber:
                record.take(item)


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--group", required=True, help="first group of line A")
    parser.add_argument("--port", type=int, required=True, help="UDP port of every group")
    parser.add_argument("--keep", type=int, default=KEPT_MAX, help="messages kept of each type")
    arguments = parser.parse_args()
    uvloop.run(serve(arguments.group, arguments.port, arguments.keep))


if __name__ == "__main__":
    main()
