"""A checkpoint: the state of a plant at one position of the log, as a file's content. Pure.

Magic, the length of the head, the head (msgpack), blocks, an empty block, and a CRC-32 of everything before it. A
block is its length and a msgpack array of messages: those that make the state when they are applied in order, as a
snapshot has them.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import Any
from zlib import crc32

import msgspec

from tickerplant.core.logformat import FIRST_SEQS, LogPosition, NextSeqs
from tickerplant.core.messages import AnyMessage, FeedState, SessionStart
from tickerplant.core.recovery_cut import Cut, MarketImage, book_chunks
from tickerplant.core.recovery_state import PlantState
from tickerplant.core.snapshot_packets import array_header
from tickerplant.core.wire import encode_message
from tickerplant.errors import DamagedCheckpointError
from tickerplant.limits import CHECKPOINT_BLOCK_MAX_BYTES

CHECKPOINT_MAGIC = b"KTPCKPT\n"
CHECKPOINT_VERSION = 1
_LENGTH = struct.Struct("<I")


class CheckpointHead(msgspec.Struct, array_like=True, frozen=True):
    """What a checkpoint begins with; fields are only ever appended, with defaults."""

    version: int
    position: tuple[int, int, int]
    """Session, ordinal, offset: where the log goes on."""
    publisher: int
    partition: int
    session: int
    next_seqs: NextSeqs
    session_start: SessionStart | None = None
    feed_state: FeedState | None = None


_encode = msgspec.msgpack.Encoder().encode
_decode_head = msgspec.msgpack.Decoder(CheckpointHead).decode
_decode_messages = msgspec.msgpack.Decoder(list[AnyMessage]).decode


class CheckpointEncoder:
    """The content of the file piece by piece: `head`, `block` of each slice of the cut, `end`."""

    def __init__(self, cut: Cut, position: LogPosition) -> None:
        self._cut = cut
        self._position = position
        self._crc = 0

    def head(self) -> bytes:
        """The first piece."""
        cut = self._cut
        head = _encode(
            CheckpointHead(
                CHECKPOINT_VERSION,
                (self._position.session, self._position.ordinal, self._position.offset),
                cut.publisher,
                cut.partition,
                cut.session,
                cut.next_seqs,
                cut.session_start,
                cut.feed_state,
            )
        )
        return self._counted(CHECKPOINT_MAGIC + _LENGTH.pack(len(head)) + head)

    def block(self, images: Iterable[MarketImage]) -> bytes:
        """The next piece; at most a slice of a cut, and so far below `CHECKPOINT_BLOCK_MAX_BYTES`."""
        parts: list[bytes] = []
        count = 0
        for image in images:
            for chunk in book_chunks(image.book) if image.book else ():
                parts.append(chunk.encoded)
                count += chunk.message_count
            for message in (image.bbo, image.ticker_update, image.info, image.market_state):
                if message is not None:
                    parts.append(encode_message(message))
                    count += 1
        if not count:
            return b""
        body = array_header(count) + b"".join(parts)
        assert len(body) <= CHECKPOINT_BLOCK_MAX_BYTES
        return self._counted(_LENGTH.pack(len(body)) + body)

    def end(self) -> bytes:
        """The last piece."""
        return self._counted(_LENGTH.pack(0)) + _LENGTH.pack(self._crc)

    def _counted(self, piece: bytes) -> bytes:
        self._crc = crc32(piece, self._crc)
        return piece


def decode_checkpoint(content: bytes) -> tuple[LogPosition, PlantState]:
    """The state and where the log goes on. Raises `DamagedCheckpointError`."""
    if len(content) < len(CHECKPOINT_MAGIC) + 3 * _LENGTH.size:
        raise DamagedCheckpointError("it is cut short")
    if not content.startswith(CHECKPOINT_MAGIC):
        raise DamagedCheckpointError("it is none")
    end = len(content) - _LENGTH.size
    if crc32(memoryview(content)[:end]) != _LENGTH.unpack_from(content, end)[0]:
        raise DamagedCheckpointError("it does not verify")
    try:
        blocks = _blocks(memoryview(content)[len(CHECKPOINT_MAGIC) : end])
        head = _decode_head(next(blocks, b""))
        if head.version != CHECKPOINT_VERSION or len(head.next_seqs) != len(FIRST_SEQS):
            raise DamagedCheckpointError(f"it is of version {head.version}")
        state = PlantState()
        state.begin_session(head.session, head.publisher, head.partition, head.next_seqs)
        state.session_start, state.feed_state = head.session_start, head.feed_state
        for block in blocks:
            messages: Any = _decode_messages(block)
            state.restore(messages)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, struct.error) as error:
        raise DamagedCheckpointError(f"it does not decode: {error}") from error
    if state.mismatches:
        raise DamagedCheckpointError(f"{state.mismatches} books have other checksums")
    return LogPosition(*head.position), state


def _blocks(content: memoryview) -> Iterator[memoryview]:
    """The head, then the blocks. Raises `DamagedCheckpointError`."""
    start = 0
    while True:
        (size,) = _LENGTH.unpack_from(content, start)
        start += _LENGTH.size
        if not size:
            break
        if size > CHECKPOINT_BLOCK_MAX_BYTES or start + size > len(content):
            raise DamagedCheckpointError(f"a block says {size} B")
        yield content[start : start + size]
        start += size
    if start != len(content):
        raise DamagedCheckpointError("something follows its end")
