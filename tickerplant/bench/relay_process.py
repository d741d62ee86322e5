"""The floor of the latencies (two processes): what this machine takes to pass a frame on without a plant.

The relay takes the same frames from the same sender through the same WebSocket library, appends each payload to a file
and sends it to a multicast group as it is, for every fourth also one to the group of quotes before it: what the plant
asks of the kernel for the same frames. The bare receiver reads both groups on the same event loop. No book, no
packing, no arbiter: what is measured is the kernel, the event loop and how fast a sleeping core wakes up.
"""

import asyncio
import os
import socket
import struct
import sys
import time
from typing import Any

import msgspec
import uvloop
from picows import WSFrame, WSListener, WSTransport, ws_connect

from tickerplant.bench.load import BEST_SHARE
from tickerplant.bench.processes import (
    BenchConfig,
    answer,
    commands,
    percentiles,
    start_child,
    wire_latencies,
)
from tickerplant.busy_poll import BusyPoll
from tickerplant.config import PublishConfig
from tickerplant.core.messages import Stream
from tickerplant.limits import DATAGRAM_MAX_BYTES
from tickerplant.runtime.publisher import open_publisher
from tickerplant_subscriber.options import group_of
from tickerplant_subscriber.sockets import open_group_socket

_STAMP = struct.Struct("<Q")
_POLL_S = 0.002
_FRAMES_PER_QUOTE = round(1 / BEST_SHARE)
_BUFFER_BYTES = 1024 * 1024


class Relay(WSListener):
    """Every frame becomes a datagram: when it was read, and its payload."""

    def __init__(self, config: BenchConfig) -> None:
        super().__init__()
        publish = PublishConfig(group_a=config.group, port=config.port)
        self.publisher = open_publisher(publish)
        self.begin()
        self._log = os.open(config.log_folder, os.O_WRONLY | os.O_TMPFILE)
        self._frames = 0
        self._first_ns = 0

    def begin(self) -> None:
        """Starts to sample."""
        self.samples_ns: list[int] = []
        self.sent_ns: list[tuple[int, int]] = []

    def finish(self, _sent_ns: list[tuple[int, int]]) -> dict[str, Any]:
        """What was measured, and when each datagram was sent."""
        return {"tick_to_wire_us": percentiles(self.samples_ns), "sent_ns": self.sent_ns}

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Pass it on at once; one sample for each read batch."""
        now_ns = time.monotonic_ns()
        self._first_ns = self._first_ns or now_ns
        datagram = _STAMP.pack(now_ns) + frame.get_payload_as_bytes()
        self._frames += 1
        datagrams = [(Stream.DELTA.value, datagram)]
        if not self._frames % _FRAMES_PER_QUOTE:
            datagrams.insert(0, (Stream.BBO.value, datagram))
        os.write(self._log, datagram)
        self.publisher.send(datagrams)
        sent_ns = time.monotonic_ns()
        self.sent_ns.append((now_ns, sent_ns))
        if frame.last_in_buffer:
            self.samples_ns.append(sent_ns - self._first_ns)
            self._first_ns = 0


class BareReceiver:
    """Notes when each delta came, and its stamp: the relay's reading of the clock, right before it is appended."""

    def __init__(self, config: BenchConfig) -> None:
        self.begin()
        loop = asyncio.get_running_loop()
        for stream in (Stream.BBO, Stream.DELTA):
            joined = open_group_socket(
                group_of(config.group, stream), config.port, "127.0.0.1", "", _BUFFER_BYTES
            )
            loop.add_reader(joined, self._drain, joined, stream)

    def begin(self) -> None:
        """Starts to sample."""
        self.arrivals_ns: list[tuple[int, int]] = []

    def finish(self, sent_ns: list[tuple[int, int]]) -> dict[str, Any]:
        """What was measured."""
        return wire_latencies(self.arrivals_ns, sent_ns)

    def _drain(self, joined: socket.socket, stream: Stream) -> None:
        receive = joined.recv
        while True:
            try:
                datagram = receive(DATAGRAM_MAX_BYTES)
            except BlockingIOError:
                return
            if stream is Stream.DELTA:
                (stamp_ns,) = _STAMP.unpack_from(datagram)
                self.arrivals_ns.append((stamp_ns, time.monotonic_ns()))


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
            part.begin()
            if command["busy_poll"]:
                busy_poll.start()
            answer({"begun": True})
        else:
            await asyncio.sleep(_POLL_S)
            answer(part.finish(command["sent_ns"]))


if __name__ == "__main__":
    sys.exit(uvloop.run(serve(start_child())))
