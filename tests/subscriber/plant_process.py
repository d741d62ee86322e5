"""A plant in a process of its own, for the tests: the real core on multicast, with its flow and its losses by flags.

    python plant_process.py GROUP PORT [--group-b GROUP] [--seconds S] [--markets N] [--drop-a N] [--drop-both N]

Waits for a line on standard input, so that subscribers can start first; ends with an orderly end of session and
prints one JSON object: the books as {ticker: checksum} and the messages sent as {stream: count}.
"""

import argparse
import json
import random
import select
import socket
import struct
import sys
import time
import zlib
from ipaddress import IPv4Address

from tickerplant.core.plant import Plant
from tickerplant.core.wire import decode_header


class Lines:
    """Sends each datagram on line A and B, some not."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._groups = [IPv4Address(arguments.group)]
        if arguments.group_b:
            self._groups.append(IPv4Address(arguments.group_b))
        self._arguments = arguments
        self._count = 0
        self.messages_sent: dict[str, int] = {}
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(
            socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1")
        )
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)

    def send(self, datagrams: list[tuple[int, bytes]]) -> None:
        for stream, datagram in datagrams:
            self._count += 1
            header = decode_header(datagram)
            self.messages_sent[str(stream)] = header.seq + header.message_count - 1
            for line, group in enumerate(self._groups):
                every = self._arguments.drop_both or (self._arguments.drop_a if line == 0 else 0)
                if every and self._count % every == 0:
                    continue
                self._socket.sendto(datagram, (str(group + stream - 1), self._arguments.port))


class Books:
    """The books by their own account: plain dicts of levels."""

    def __init__(self, tickers: list[str]) -> None:
        self.levels: dict[str, tuple[dict[int, int], dict[int, int]]] = {
            ticker: ({3_800: 1_000}, {4_300: 1_000}) for ticker in tickers
        }

    def apply(self, ticker: str, side: int, price_e4: int, delta_e2: int) -> None:
        levels = self.levels[ticker][side]
        levels[price_e4] = levels.get(price_e4, 0) + delta_e2
        if not levels[price_e4]:
            del levels[price_e4]

    def checksum(self, ticker: str) -> int:
        pairs = [level for side in self.levels[ticker] for level in sorted(side.items())]
        return zlib.crc32(b"".join(struct.pack("<qq", *pair) for pair in pairs))


def publish(plant: Plant, lines: Lines, books: Books, end_s: float) -> None:
    """Random deltas and trades until `end_s`."""
    flow = random.Random(1)
    tickers = list(books.levels)
    while time.monotonic() < end_s:
        plant.begin_input(time.time_ns())
        for _ in range(20):
            ticker = flow.choice(tickers)
            side, price_e4 = flow.choice(((0, 4_000), (0, 3_900), (1, 4_100), (1, 4_200)))
            held_e2 = books.levels[ticker][side].get(price_e4, 0)
            delta_e2 = flow.choice((100, 250, -held_e2 or 50))
            books.apply(ticker, side, price_e4, delta_e2)
            plant.apply_delta(plant.entries[ticker], side, price_e4, delta_e2, time.time_ns())
        plant.publish_trade(ticker, time.time_ns(), f"id-{plant.g}", 4_000, 100, 0, is_block=False)
        lines.send(plant.flush(time.time_ns()))
        lines.send(plant.handle_timer(time.time_ns()))
        time.sleep(0.002)


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("group")
    parser.add_argument("port", type=int)
    parser.add_argument("--group-b", default="")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--markets", type=int, default=20)
    parser.add_argument("--drop-a", type=int, default=0)
    parser.add_argument("--drop-both", type=int, default=0)
    arguments = parser.parse_args()
    if not select.select([sys.stdin], [], [], 20)[0] or not sys.stdin.readline():
        return
    lines = Lines(arguments)
    plant = Plant(time.time_ns(), time.time_ns())
    tickers = [f"KXTEST-{number}" for number in range(arguments.markets)]
    books = Books(tickers)
    plant.begin_input(time.time_ns())
    plant.set_upstream(connections_missing=False, discovered=True)
    for ticker in tickers:
        entry = plant.open_book(ticker)
        assert entry is not None
        bids, asks = books.levels[ticker]
        plant.apply_snapshot(entry, list(bids.items()), list(asks.items()))
    lines.send(plant.flush(time.time_ns()))
    end_s = time.monotonic() + arguments.seconds
    while plant.unready_books and time.monotonic() < end_s + 5:
        lines.send(plant.handle_timer(time.time_ns()))
        time.sleep(0.001)
    publish(plant, lines, books, end_s)
    lines.send(plant.end_session(time.time_ns()))
    while not plant.ended:
        lines.send(plant.handle_timer(time.time_ns()))
        time.sleep(0.005)
    checksums = {ticker: books.checksum(ticker) for ticker in tickers}
    sys.stdout.write(json.dumps({"books": checksums, "sent": lines.messages_sent}))


if __name__ == "__main__":
    main()
