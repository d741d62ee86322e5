"""An attacker on the plant's groups, for tests: hears everything, and sends whatever might fool a subscriber.

`python attacker_process.py --group 239.196.0.0 --port 20000 --rate 2000 --seed 1` sends until SIGTERM and then prints
one JSON object: datagrams sent by kind. It knows no key. What it sends never leaves the host.
"""

import argparse
import json
import random
import selectors
import signal
import socket
import struct
import sys
import time
from collections import Counter, deque
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from tickerplant.core.keyring import KeyRing
from tickerplant.core.messages import AnyMessage, Bbo, FeedPhase, FeedState, Stream, Trade
from tickerplant.core.wire import (
    FLAGS_OFFSET,
    HeartbeatBody,
    Kind,
    encode_datagram,
    encode_heartbeat,
)

if TYPE_CHECKING:
    from collections.abc import Callable

FORGED = "KXFORGED"
KEPT = 4_000
TURN_S = 0.005
HOST = "127.0.0.1"
_SESSION_SEQ_TIME = struct.Struct("<QQQ")


class Attacker:
    """What was heard, and what is made of it."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.heard: deque[bytes] = deque(maxlen=KEPT)
        self.oldest: list[bytes] = []
        self.newest: dict[int, bytes] = {}
        self.sent: Counter[str] = Counter()
        self.other = KeyRing([(11, b"x" * 32), (12, b"y" * 32)])
        self._ways: tuple[Callable[[], bytes], ...] = (
            self.replay,
            self.replay_of_the_oldest,
            self.replay_with_other_flags,
            self.forged_next,
            self.forged_next_signed,
            self.forged_position,
            self.forged_heartbeat,
            self.forged_end,
            self.damaged,
            self.cut,
            self.longer,
            self.foreign,
        )

    def hear(self, datagram: bytes) -> None:
        """Takes what the plant sent."""
        self.heard.append(datagram)
        if len(self.oldest) < KEPT:
            self.oldest.append(datagram)
        self.newest[datagram[4]] = datagram

    def next(self) -> bytes:
        """One datagram; its kind is counted."""
        way = self.chance.choice(self._ways)
        self.sent[way.__name__] += 1
        return way()

    def _place(self) -> tuple[int, int, int]:
        """(stream, session, next sequence) of a stream, as far as it was heard."""
        stream = self.chance.choice(list(self.newest))
        session, seq, _ = _SESSION_SEQ_TIME.unpack_from(self.newest[stream], 8)
        (count,) = struct.unpack_from("<H", self.newest[stream], 32)
        return stream, session, seq + count

    def replay(self) -> bytes:
        return self.chance.choice(self.heard)

    def replay_of_the_oldest(self) -> bytes:
        """Once the plant was restarted: an older session."""
        return self.chance.choice(self.oldest)

    def replay_with_other_flags(self) -> bytes:
        changed = bytearray(self.chance.choice(self.heard))
        changed[FLAGS_OFFSET] ^= self.chance.choice((1, 2, 3, 16, 32, 64))
        return bytes(changed)

    def forged_next(self) -> bytes:
        stream, session, seq = self._place()
        stamp = (FORGED, 1, 0, time.time_ns())
        message: AnyMessage = {
            int(Stream.TRADE): Trade(*stamp, "forged", 9_999, 10**6, 0),
            int(Stream.BBO): Bbo(*stamp, 1, 100, 2, 100, 1),
        }.get(stream, FeedState(*stamp, FeedPhase.DOWN, "forged"))
        return encode_datagram(0, stream, session, seq, time.time_ns(), [message])

    def forged_next_signed(self) -> bytes:
        """With the plant's own key id, and a key that is not the plant's."""
        return self.other.sign(self.forged_next())

    def forged_position(self) -> bytes:
        """Another sequence or session, signed or not, over a real body."""
        datagram = self.chance.choice(self.heard)
        session, seq, _ = _SESSION_SEQ_TIME.unpack_from(datagram, 8)
        session += self.chance.choice((0, 1, -1, 10**9, 10**18))
        seq = self.chance.choice((seq, seq + 10, seq + 10**6, 2**60))
        place = _SESSION_SEQ_TIME.pack(session, seq, time.time_ns())
        return datagram[:8] + place + datagram[32:]

    def forged_heartbeat(self) -> bytes:
        stream, session, seq = self._place()
        seq += self.chance.choice((0, 5, 10**5, 2**60))
        session += self.chance.choice((0, 1, 10**9))
        return self._heartbeat(stream, session, seq, Kind.HEARTBEAT)

    def forged_end(self) -> bytes:
        return self._heartbeat(*self._place(), Kind.END_OF_SESSION)

    def _heartbeat(self, stream: int, session: int, seq: int, kind: Kind) -> bytes:
        body = HeartbeatBody(seq)
        datagram = encode_heartbeat(stream, session, seq, time.time_ns(), body, kind=kind)
        return self.other.sign(datagram) if self.chance.random() < 0.5 else datagram

    def damaged(self) -> bytes:
        changed = bytearray(self.chance.choice(list(self.newest.values())))
        place = 6 + int(self.chance.random() * (len(changed) - 6))
        changed[place] ^= 1 << self.chance.randrange(8)
        return bytes(changed)

    def cut(self) -> bytes:
        datagram = self.chance.choice(self.heard)
        return datagram[: self.chance.randrange(len(datagram))]

    def longer(self) -> bytes:
        return self.chance.choice(self.heard) + b"\0" * self.chance.randrange(1, 50)

    def foreign(self) -> bytes:
        return self.chance.randbytes(self.chance.randrange(1_400))


def join(group: str, port: int) -> socket.socket:
    """A socket that hears one group."""
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.setblocking(False)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    receiver.bind((group, port))
    membership = socket.inet_aton(group) + socket.inet_aton(HOST)
    receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    return receiver


def attack(first_group: str, port: int, rate: int, seed: int) -> Counter[str]:
    """Hear and send until SIGTERM."""
    attacker = Attacker(seed)
    ended = False

    def end(*_: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    groups = {stream: str(IPv4Address(first_group) + stream - 1) for stream in Stream}
    with (
        selectors.DefaultSelector() as selector,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(HOST))
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
        sender.bind((HOST, 0))
        me = sender.getsockname()
        for group in groups.values():
            selector.register(join(group, port), selectors.EVENT_READ)
        due = time.monotonic()
        while not ended:
            for key, _ in selector.select(max(0.0, due - time.monotonic())):
                assert isinstance(key.fileobj, socket.socket)
                datagram, address = key.fileobj.recvfrom(2_000)
                if address != me and len(datagram) > 40:
                    attacker.hear(datagram)
            if time.monotonic() < due:
                continue
            due = time.monotonic() + TURN_S
            for _ in range(int(rate * TURN_S) if attacker.heard else 0):
                datagram = attacker.next()
                stream = datagram[4] if len(datagram) > 4 and datagram[4] in groups else 1
                sender.sendto(datagram, (groups[Stream(stream)], port))
    return attacker.sent


def main() -> None:
    """Read the command line and attack."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--group", required=True, help="first group of line A")
    parser.add_argument("--port", type=int, required=True, help="UDP port of every group")
    parser.add_argument("--rate", type=int, default=2_000, help="datagrams a second")
    parser.add_argument("--seed", type=int, default=1, help="of all random draws")
    arguments = parser.parse_args()
    sent = attack(arguments.group, arguments.port, arguments.rate, arguments.seed)
    sys.stdout.write(json.dumps(sent) + "\n")


if __name__ == "__main__":
    main()
