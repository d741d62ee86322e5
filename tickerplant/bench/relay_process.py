"""The floor of the latencies (two processes): what this machine takes to pass a frame on without a plant.

The relay takes the same frames from the same sender through the same WebSocket library and sends each payload to a
multicast group as it is; the bare receiver reads it from there on the same event loop. No book, no packing, no
arbiter: what is measured is the kernel, the event loop and how fast a sleeping core wakes up.
"""

import asyncio
import socket
import struct
import sys
import time
from typing import Any

import msgspec
import uvloop
from picows import WSFrame, WSListener, WSTransport, ws_connect

from tickerplant.bench.processes import BenchConfig, answer, commands, percentiles, start_child
from tickerplant.busy_poll import BusyPoll
from tickerplant.config import PublishConfig
from tickerplant.core.messages import Stream
from tickerplant.limits import DATAGRAM_MAX_BYTES
from tickerplant.runtime.publisher import open_publisher

_STAMP = struct.Struct("<Q")
_POLL_S = 0.002


class Relay(WSListener):
    """Every frame becomes a datagram: when it was sent, and its payload."""

    def __init__(self, config: BenchConfig) -> None:
        super().__init__()
        publish = PublishConfig(group_a=config.group, port=config.port)
        self.publisher = open_publisher(publish)
        self.samples_ns: list[int] = []
        self._first_ns = 0

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Pass it on at once; one sample for each read batch."""
        now_ns = time.monotonic_ns()
        self._first_ns = self._first_ns or now_ns
        payload = frame.get_payload_as_bytes()
        self.publisher.send([(Stream.DELTA.value, _STAMP.pack(now_ns) + payload)])
        if frame.last_in_buffer:
            self.samples_ns.append(time.monotonic_ns() - self._first_ns)
            self._first_ns = 0


class BareReceiver:
    """Notes how long each datagram took from the relay's reading of the clock, which is right before its `send`."""

    def __init__(self, config: BenchConfig) -> None:
        group = socket.inet_aton(config.group)
        # The groups of a line are consecutive, by stream number.
        group = group[:3] + bytes((group[3] + Stream.DELTA - 1,))
        self.samples_ns: list[int] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((socket.inet_ntoa(group), config.port))
        membership = group + socket.inet_aton("127.0.0.1")
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        self._socket.setblocking(False)
        asyncio.get_running_loop().add_reader(self._socket, self._drain)

    def _drain(self) -> None:
        receive = self._socket.recv
        while True:
            try:
                datagram = receive(DATAGRAM_MAX_BYTES)
            except BlockingIOError:
                return
            (sent_ns,) = _STAMP.unpack_from(datagram)
            self.samples_ns.append(time.monotonic_ns() - sent_ns)


async def serve(config: BenchConfig) -> None:
    """With a URL the relay, else the bare receiver; runs until the parent closes our input."""
    part: Any
    if config.url:
        _transport, part = await ws_connect(lambda _request, _response: Relay(config), config.url)
    else:
        part = BareReceiver(config)
    busy_poll = BusyPoll()
    answer({"ready": True})
    lines = await commands()
    while line := await lines.readline():
        command = msgspec.json.decode(line)
        if command["do"] == "begin":
            part.samples_ns = []
            if command["busy_poll"]:
                busy_poll.start()
            answer({"begun": True})
        else:
            await asyncio.sleep(_POLL_S)
            answer(percentiles(part.samples_ns))


if __name__ == "__main__":
    sys.exit(uvloop.run(serve(start_child())))
