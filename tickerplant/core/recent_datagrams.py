"""The newest datagrams of each stream of one session, in memory, so that most repairs need no disk. Pure."""

from bisect import bisect_right

from tickerplant.core.messages import Stream
from tickerplant.limits import RECOVERY_RECENT_BYTES

_ENTRY_BYTES = 120
"""What an entry takes besides its datagram."""


class _StreamRing:
    """Data datagrams of one stream without a hole; `first` is the index of the oldest one that is kept."""

    __slots__ = ("datagrams", "first", "next_seq", "seqs", "size")

    def __init__(self, next_seq: int) -> None:
        self.seqs: list[int] = []
        self.datagrams: list[bytes | None] = []
        self.first = 0
        self.size = 0
        self.next_seq = next_seq


class RecentDatagrams:
    """Rings by stream; `find` answers only what it holds without a hole."""

    def __init__(self, max_bytes: int = RECOVERY_RECENT_BYTES) -> None:
        """`max_bytes` for each stream."""
        self.session = 0
        self._max_bytes = max_bytes
        self._rings: dict[int, _StreamRing] = {}

    @property
    def size_bytes(self) -> int:
        """What is kept, about."""
        return sum(ring.size for ring in self._rings.values())

    def clear(self, session: int) -> None:
        """Another session begins, or the log is entered in the middle of one."""
        self.session = session
        self._rings = {int(stream): _StreamRing(0) for stream in Stream}

    def add(self, stream: int, seq: int, next_seq: int, datagram: bytes) -> None:
        """The next data datagram of a stream, messages `seq` up to but not including `next_seq`."""
        ring = self._rings[stream]
        if seq != ring.next_seq:
            ring = self._rings[stream] = _StreamRing(seq)
        ring.next_seq = next_seq
        ring.seqs.append(seq)
        ring.datagrams.append(datagram)
        ring.size += len(datagram) + _ENTRY_BYTES
        while ring.size > self._max_bytes:
            oldest = ring.datagrams[ring.first]
            assert oldest is not None
            ring.size -= len(oldest) + _ENTRY_BYTES
            ring.datagrams[ring.first] = None
            ring.first += 1
        if ring.first > 1_024 and ring.first * 2 > len(ring.seqs):
            del ring.seqs[: ring.first], ring.datagrams[: ring.first]
            ring.first = 0

    def find(
        self, stream: int, from_seq: int, to_seq: int, count_max: int, bytes_max: int
    ) -> list[bytes] | None:
        """The datagrams that intersect `from_seq`..`to_seq`, as many as the bounds allow; None: ask the log."""
        ring = self._rings.get(stream)
        if ring is None or from_seq >= ring.next_seq:
            return None
        index = bisect_right(ring.seqs, from_seq, ring.first) - 1
        if index < ring.first:
            return None
        found: list[bytes] = []
        size = 0
        while index < len(ring.seqs) and ring.seqs[index] <= to_seq and len(found) < count_max:
            datagram = ring.datagrams[index]
            assert datagram is not None
            size += len(datagram)
            if size > bytes_max:
                break
            found.append(datagram)
            index += 1
        return found
