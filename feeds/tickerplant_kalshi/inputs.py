"""Everything that goes into a feed, as records that can be kept and played again. Pure.

The same inputs in the same order make the same datagrams, byte for byte: feed and plant read no clock, draw nothing
at random and ask nobody. So each call that changes them is an input here, also those that only send commands upstream.
A record is one msgpack array of inputs, each an array that begins with its tag; fields are only ever appended, with
defaults.
"""

import msgspec

from tickerplant.errors import DamagedCaptureError
from tickerplant_kalshi.records import MarketRecord
from tickerplant_kalshi.selection import Selection


class Input(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Base of all inputs. `now_ns` is the time that the feed was told."""


class Begin(Input, frozen=True, gc=False, tag=0):
    """The first input: with what feed and plant were made. `version` is that of the program."""

    now_ns: int
    session: int
    publisher: int
    previous_session: int
    final_seqs: tuple[tuple[int, int], ...]
    selection: Selection
    channels: tuple[str, ...]
    connection_count: int
    use_yes_price: bool
    version: str
    verify_interval_ns: int = 0
    check_interval_ns: int = 0
    log_on: bool = False


class Frames(Input, frozen=True, gc=False, tag=1):
    """Text messages of one connection, whole and as they came, read at `now_ns`."""

    now_ns: int
    connection: int
    frames: list[bytes]


class Activity(Input, frozen=True, gc=False, tag=2):
    """The end of a read batch of a connection, in which frames of any kind came."""

    now_ns: int
    connection: int


class Flush(Input, frozen=True, gc=False, tag=3):
    """The end of a read batch or of any other input: what it caused is published."""

    now_ns: int


class Timer(Input, frozen=True, gc=False, tag=4):
    """A deadline has passed."""

    now_ns: int


class Outgoing(Input, frozen=True, gc=False, tag=5):
    """The commands that a connection wants to send were taken."""

    now_ns: int
    connection: int


class Opened(Input, frozen=True, gc=False, tag=6):
    """The handshake of a connection is done."""

    now_ns: int
    connection: int


class Closed(Input, frozen=True, gc=False, tag=7):
    """A connection is gone."""

    now_ns: int
    connection: int
    reason: str


class MarketsRead(Input, frozen=True, gc=False, tag=8):
    """Markets as REST gave them."""

    now_ns: int
    records: tuple[MarketRecord, ...]


class EventRead(Input, frozen=True, gc=False, tag=9):
    """The series of an event, as REST gave it."""

    now_ns: int
    event_ticker: str
    series_ticker: str


class Discovered(Input, frozen=True, gc=False, tag=10):
    """Every chosen market has been read at least once."""

    now_ns: int


class UnreadLookedUp(Input, frozen=True, gc=False, tag=11):
    """The markets that were not read since `now_ns` are to be looked up."""

    now_ns: int


class SessionEnding(Input, frozen=True, gc=False, tag=12):
    """The orderly end begins."""

    now_ns: int


class EndTimer(Input, frozen=True, gc=False, tag=13):
    """A deadline of the orderly end has passed."""

    now_ns: int


class Settled(Input, frozen=True, gc=False, tag=14):
    """The shell has looked at commands, look-ups and deadlines: until more happens, flushes need not."""

    now_ns: int


class LogTold(Input, frozen=True, gc=False, tag=15):
    """How the tick log does: whether it takes what follows, and the oldest sequence of each stream that it has."""

    now_ns: int
    is_on: bool
    oldest_seqs: tuple[int, ...]


class SessionBegun(Input, frozen=True, gc=False, tag=16):
    """The plant went over to another session; the ends of the one before went out without the tick log."""

    now_ns: int
    session: int


AnyInput = (
    Begin
    | Frames
    | Activity
    | Flush
    | Timer
    | Outgoing
    | Opened
    | Closed
    | MarketsRead
    | EventRead
    | Discovered
    | UnreadLookedUp
    | SessionEnding
    | EndTimer
    | Settled
    | LogTold
    | SessionBegun
)

encode_inputs = msgspec.msgpack.Encoder().encode
"""A list of inputs to the payload of a record."""
_decode = msgspec.msgpack.Decoder(list[AnyInput]).decode


def decode_inputs(payload: bytes) -> list[AnyInput]:
    """The inputs of one record, in order. Raises `DamagedCaptureError`."""
    try:
        return _decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedCaptureError(
            f"a record holds no inputs that this program knows ({error}): "
            "read it with the version that wrote it"
        ) from None
