"""A subscriber that writes down all that it is handed, in order, and tells over HTTP what it has (a process).

    python recording_subscriber.py --group 239.196.0.1 --port 20000 --recovery 127.0.0.1:20001 --recording FILE

The report has a field more than that of `subscriber_process.py`: `waiting`, items received and not yet handed out.
A record is a byte (M a message, E an event), a length of four bytes, and the message in msgpack or the event in JSON.
"""

import argparse
import asyncio
import sys
from pathlib import Path

import msgspec
import uvloop

sys.path.append(str(Path(__file__).resolve().parent.parent / "end_to_end"))

import patience  # noqa: F401  # before all that reads these limits
from proof import RECORD
from subscriber_process import Record

from tickerplant_subscriber import AnyMessage, Event, Live, Stale, Subscriber

_KEPT_OF_A_TYPE = 100


class Recording(Record):
    """What the report is made of, and the file."""

    def __init__(self, path: Path) -> None:
        super().__init__(_KEPT_OF_A_TYPE)
        self._file = path.open("wb")

    def take(self, item: AnyMessage | Event) -> None:
        """One message or event."""
        super().take(item)
        if isinstance(item, Stale | Live):
            return
        if isinstance(item, Event):
            kind, content = b"E", msgspec.json.encode(item)
        else:
            kind, content = b"M", msgspec.msgpack.encode(item)
        self._file.write(RECORD.pack(kind, len(content)) + content)

    def flush(self) -> None:
        """All that was taken is in the file."""
        self._file.flush()


async def serve(subscriber: Subscriber, recording: Recording) -> None:
    """Receive, and answer whoever asks, until killed."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        recording.flush()
        waiting = b',"waiting":%d}' % subscriber.waiting_count
        body = recording.report(subscriber)[:-1] + waiting
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        writer.close()

    async with subscriber:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        sys.stdout.write(f"report port {server.sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()
        async with server:
            async for item in subscriber:
                recording.take(item)


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--group", required=True, help="first group of line A")
    parser.add_argument("--group-b", default="", help="first group of line B")
    parser.add_argument("--port", type=int, required=True, help="UDP port of every group")
    parser.add_argument("--recovery", required=True, help="host:port of recovery")
    parser.add_argument("--key", default="", help="file of datagram keys")
    parser.add_argument("--recording", type=Path, required=True, help="the file to write")
    arguments = parser.parse_args()
    subscriber = Subscriber(
        group_a=arguments.group,
        group_b=arguments.group_b,
        port=arguments.port,
        recovery=[arguments.recovery],
        key_path=arguments.key,
        when_slow="block",
    )
    uvloop.run(serve(subscriber, Recording(arguments.recording)))


if __name__ == "__main__":
    main()
