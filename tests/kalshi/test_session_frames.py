"""Frames, fragments and floods through a session: what a real server may send, and what none may."""

import asyncio
import struct

import pytest
from websocket_exchange import (
    Shell,
    exchange,
    framed,
    on_uvloop,
    running,
    trade,
    until,
    write,
)
from websockets.asyncio.server import ServerConnection
from websockets.frames import Opcode

from tickerplant.limits import FRAMES_PER_FLUSH

# --- frames ---------------------------------------------------------------------------------------


@on_uvloop
async def test_a_large_read_is_published_in_batches_of_at_most_256_frames() -> None:
    count = 1_000
    async with exchange(write(*(framed(trade(seq)) for seq in range(1, count + 1)))) as server:
        shell = Shell(server.url)
        async with running(shell) as task:
            await until(lambda: shell.plant.trades == count, task)
        assert shell.counters.frames == count + 1  # and the acknowledgement
        assert shell.counters.sequence_gaps == 0
        assert max(shell.batches) == FRAMES_PER_FLUSH
        assert len(shell.batches) <= 40
        # One clock reading per batch for its frames, one per flush, and a few for the connection.
        assert shell.clock_reads <= 2 * len(shell.batches) + 12


@on_uvloop
async def test_a_ping_at_the_end_of_a_read_neither_holds_up_the_batch_nor_goes_unanswered() -> None:
    answered = asyncio.Event()

    async def script(connection: ServerConnection) -> None:
        connection.transport.write(framed(trade(1)) + framed(trade(2)))
        pong = await connection.ping(b"heartbeat")
        await pong
        answered.set()
        connection.transport.write(framed(trade(3)) + framed(b"again", Opcode.PING))
        await connection.wait_closed()

    async with exchange(script) as server:
        shell = Shell(server.url)
        async with running(shell) as task:
            await asyncio.wait_for(answered.wait(), 5)
            await until(lambda: shell.plant.trades == 3, task)
            assert sum(shell.batches) == 4
            assert shell.session.counters.pings_received == 2


@on_uvloop
async def test_fragments_are_put_together_even_with_a_ping_between() -> None:
    whole = trade(1)
    parts = [whole[:10], whole[10:60], whole[60:]]
    script = write(
        framed(parts[0], fin=False),
        framed(b"heartbeat", Opcode.PING),
        framed(parts[1], Opcode.CONT, fin=False),
        framed(parts[2], Opcode.CONT),
        framed(trade(2)),
    )
    async with exchange(script) as server:
        shell = Shell(server.url)
        async with running(shell) as task:
            await until(lambda: shell.plant.trades == 2, task)
        assert shell.counters.frames == 3
        assert shell.counters.unreadable_frames == 0
        assert shell.session.counters.fragments == 3


@on_uvloop
async def test_binary_frames_are_counted_and_skipped() -> None:
    script = write(framed(b"\x00" * 125, Opcode.BINARY), framed(trade(1)))
    async with exchange(script) as server:
        shell = Shell(server.url)
        async with running(shell) as task:
            await until(lambda: shell.plant.trades == 1, task)
        assert shell.session.counters.binary_frames == 1
        assert shell.counters.frames == 2
        assert shell.counters.connections_opened == 1


@on_uvloop
async def test_a_binary_frame_too_long_for_a_control_frame_counts_as_unreadable() -> None:
    script = write(framed(b"\x00" * 126, Opcode.BINARY), framed(trade(1)))
    async with exchange(script) as server:
        shell = Shell(server.url)
        async with running(shell) as task:
            await until(lambda: shell.plant.trades == 1, task)
        assert shell.counters.unreadable_frames == 1
        assert shell.counters.frames == 3
        assert shell.counters.connections_opened == 1


def huge(payload_bytes: int) -> bytes:
    """The header of a text frame that is larger than anyone may send."""
    return b"\x81\x7f" + struct.pack(">Q", payload_bytes)


MEBIBYTE = b"x" * 1024 * 1024


@pytest.mark.parametrize(
    ("bad", "counter", "reason"),
    [
        pytest.param((huge(17 * 1024**2),), "oversized_messages", "exceeding max", id="frame"),
        pytest.param((huge(2**62),), "oversized_messages", "exceeding max", id="absurd frame"),
        pytest.param(
            (
                framed(MEBIBYTE, fin=False),
                *[framed(MEBIBYTE, Opcode.CONT, fin=False)] * 16,
            ),
            "oversized_messages",
            "message of more than",
            id="message",
        ),
        pytest.param((b"HTTP/1.1 400 Bad Request\r\n\r\n",), "protocol_errors", "", id="garbage"),
        pytest.param((b"\xff" * 64,), "protocol_errors", "opcode", id="opcode"),
        pytest.param(
            (framed(b"x", Opcode.CONT),), "protocol_errors", "mixed up", id="stray continuation"
        ),
        pytest.param(
            (framed(b"x", fin=False), framed(b"y")), "protocol_errors", "mixed up", id="interrupted"
        ),
        pytest.param((b"\x81\x81\x00\x00\x00\x00x",), "protocol_errors", "masked", id="masked"),
    ],
)
@on_uvloop
async def test_what_no_exchange_may_send_ends_the_connection_and_the_next_follows(
    bad: tuple[bytes, ...], counter: str, reason: str
) -> None:
    async with exchange(write(framed(trade(1)), *bad)) as server:
        shell = Shell(server.url)
        async with running(shell) as task:
            await until(lambda: shell.counters.connections_opened == 2, task)
        assert shell.plant.trades == 1
        assert getattr(shell.session.counters, counter) == 1
        assert reason in shell.log.reasons()[0]
