"""A plant, an attacker process on its groups, and subscribers: with the key only the plant's own is delivered."""

import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from processes import Network, Plant, Process, Simulation, free_network, merged
from tick_log import read_folder

from tickerplant.core.messages import Stream
from tickerplant.core.wire import Kind, decode_body, decode_header
from tickerplant.key_file import make_key_file
from tickerplant_subscriber import Event, Gap, SessionChanged, StreamDead, Subscriber

ATTACKER = Path(__file__).with_name("attacker_process.py")
FORGED = "KXFORGED"
FLOW = ("--markets", "20", "--rate", "300")
ALL_OPEN = {"all_open": True, "include_combos": True}
RATE = 1_000
ATTACK_S = 3.0
WHOLE_STREAMS = (Stream.TRADE, Stream.TICKER, Stream.STATUS)
"""Streams of which `async for` hands out every message."""


class Listener:
    """A subscriber and all that it was handed."""

    def __init__(self, network: Network, key_path: str) -> None:
        self.items: list[Any] = []
        self.subscriber = Subscriber(group_a=network.group, port=network.port, key_path=key_path)

    async def listen(self) -> None:
        async with self.subscriber:
            async for item in self.subscriber:
                self.items.append(item)

    def events(self, kind: type[Event]) -> list[Any]:
        return [item for item in self.items if isinstance(item, kind)]

    def messages(self, stream: Stream) -> list[Any]:
        return [
            item for item in self.items if not isinstance(item, Event) and stream_of(item) == stream
        ]

    def books(self) -> dict[str, tuple[list[list[int]], list[list[int]]]]:
        """Live books as (bids, asks) of [price_e4, size_e2], ascending."""
        return {
            view.ticker: tuple(
                [list(level) for level in side.items()] for side in (view.bids, view.asks)
            )
            for view in self.subscriber.books()
            if view.live
        }  # type: ignore[return-value]


def stream_of(message: Any) -> int:
    """Where a message belongs; an `UpstreamGap` says it itself."""
    return int(getattr(message, "on_stream", 0) or message.stream)


def published(folder: Path) -> dict[Stream, list[Any]]:
    """Every message in a tick log, by stream, in order."""
    datagrams, faults = read_folder(folder)
    assert not faults
    messages: dict[Stream, list[Any]] = {stream: [] for stream in Stream}
    for datagram in datagrams:
        header = decode_header(datagram)
        if header.kind == Kind.DATA:
            messages[Stream(header.stream)] += decode_body(datagram, header)
    return messages


async def until(condition: Callable[[], object], what: str) -> None:
    """Returns as soon as it holds; fails after 20 s."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


async def run_under_attack(
    plant: Callable[[], Plant], simulation: Simulation, listener: Listener
) -> None:
    """A session under attack, then another, in which the attacker has the first one to play back."""
    with await asyncio.to_thread(plant) as first:
        await asyncio.to_thread(first.wait_ready)
        await asyncio.sleep(ATTACK_S)
        assert await asyncio.to_thread(first.stop) == 0
    with await asyncio.to_thread(plant) as second:
        await asyncio.to_thread(second.wait_ready)
        await asyncio.sleep(ATTACK_S)
        await asyncio.to_thread(simulation.post, "/sim/flow", action="pause")
        opened = await asyncio.to_thread(simulation.open_tickers)
        books = await asyncio.to_thread(simulation.books)
        wanted = {ticker: books[ticker] for ticker in opened}
        assert len(wanted) > 10
        await until(lambda: listener.books() == wanted, "the books of the exchange")
        assert await asyncio.to_thread(second.stop) == 0
        assert len(second.events("strangers_on_groups")) == len(Stream)


async def test_with_the_key_nothing_forged_or_played_back_has_any_effect(tmp_path: Path) -> None:
    """Every message of two sessions once and in order, no gap, every book right; the others believe anything."""
    network = free_network()
    key_path = tmp_path / "datagram.keys"
    make_key_file(key_path, 11)
    listener, naive = Listener(network, str(key_path)), Listener(network, "")
    words = ("--group", network.group, "--port", str(network.port), "--rate", str(RATE))
    tasks = [asyncio.create_task(one.listen()) for one in (listener, naive)]
    with (
        Simulation(tmp_path / "sim", "--window", "0", *FLOW) as simulation,
        Process("attacker", tmp_path, [sys.executable, ATTACKER, *words]) as attacker,
    ):
        settings = merged(
            simulation.settings,
            {"markets": ALL_OPEN, "publish": {"key_path": str(key_path)}},
        )
        await run_under_attack(
            lambda: Plant(tmp_path / "plant", network, settings),
            simulation,
            listener,
        )
        assert await asyncio.to_thread(attacker.stop) == 0
        sent = json.loads(attacker.output.splitlines()[-1])
    for one in (listener, naive):
        one.subscriber.close()
    await asyncio.wait_for(asyncio.gather(*tasks), 10)

    assert sum(sent.values()) > RATE * ATTACK_S
    assert min(sent.values()) > 50
    logged = published(tmp_path / "plant" / "state" / "ticklog")
    assert len(logged[Stream.TRADE]) > 100
    for stream in WHOLE_STREAMS:
        assert listener.messages(stream) == logged[stream], stream.name
    assert not listener.events(Gap)
    assert not listener.events(StreamDead)
    assert len(listener.events(SessionChanged)) == 2

    refused = listener.subscriber.stats().refused
    assert refused.keys() >= {
        "AuthenticationError",
        "LengthMismatchError",
        "TruncatedDatagramError",
        "ForeignDatagramError",
    }
    forged = sum(
        count for kind, count in sent.items() if not kind.startswith("replay") or "flags" in kind
    )
    assert sum(refused.values()) > forged / 2
    # The attack is one: without the key it works.
    assert any(getattr(item, "ticker", "") == FORGED for item in naive.items)
    assert naive.events(Gap) or len(naive.events(SessionChanged)) != 2
