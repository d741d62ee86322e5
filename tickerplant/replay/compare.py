"""A capture played through a plant again against the tick log of that time: the proof that both are whole."""

from collections.abc import Iterable
from typing import NamedTuple

from tickerplant.core.wire import HEADER, Header
from tickerplant.limits import CAPTURE_FAULTS_SHOWN, HEADER_BYTES
from tickerplant_subscriber.log_source import TimedDatagram


class Comparison(NamedTuple):
    """What was found. `unlogged`: played datagrams that the log does not have, e.g. because it was off."""

    equal: int
    unlogged: int
    fault_count: int
    faults: tuple[str, ...]

    @property
    def is_proven(self) -> bool:
        """Whether every logged datagram of the captured sessions was played, with the same body."""
        return self.equal > 0 and not self.fault_count


class Comparer:
    """Goes through both in the order of sending; `run` once."""

    def __init__(self, played: Iterable[TimedDatagram]) -> None:
        """What the capture gives."""
        self._source = iter(played)
        self._equal = self._unlogged = self._fault_count = 0
        self._faults: list[str] = []
        self._last_session = 0
        self._played = self._next()
        self._first_session = self._last_session

    def run(self, logged: Iterable[TimedDatagram]) -> Comparison:
        """Compare with the log; sessions that the capture does not know are passed over. Raises what both raise."""
        for _sent_ns, datagram in logged:
            header = _header_of(datagram)
            if header.session >= self._first_session:
                self._compare(header, datagram)
        while self._played is not None:
            self._unlogged += 1
            self._played = self._next()
        return Comparison(self._equal, self._unlogged, self._fault_count, tuple(self._faults))

    def _compare(self, header: Header, datagram: bytes) -> None:
        place = _place_of(header)
        while self._played is not None:
            played, again = self._played
            if played.ts_send_ns > header.ts_send_ns:
                break
            if _place_of(played) == place:
                self._played = self._next()
                if _body_of(played, again) == _body_of(header, datagram):
                    self._equal += 1
                else:
                    self._fault(header, "the bodies differ")
                return
            self._unlogged += 1
            self._played = self._next()
        if self._played is not None or header.session <= self._last_session:
            self._fault(header, "it is in the tick log, and the capture does not give it")

    def _next(self) -> tuple[Header, bytes] | None:
        taken = next(self._source, None)
        if taken is None:
            return None
        header = _header_of(taken[1])
        self._last_session = max(self._last_session, header.session)
        return header, taken[1]

    def _fault(self, header: Header, problem: str) -> None:
        self._fault_count += 1
        if len(self._faults) < CAPTURE_FAULTS_SHOWN:
            self._faults.append(
                f"session {header.session} stream {header.stream} seq {header.seq}: {problem}"
            )


def compare(played: Iterable[TimedDatagram], logged: Iterable[TimedDatagram]) -> Comparison:
    """What the capture gives against what the plant logged; both as (time sent, datagram) in order."""
    return Comparer(played).run(logged)


def _header_of(datagram: bytes) -> Header:
    return Header._make(HEADER.unpack_from(datagram))


def _place_of(header: Header) -> tuple[int, ...]:
    return (header.session, header.stream, header.kind, header.seq, header.ts_send_ns)


def _body_of(header: Header, datagram: bytes) -> bytes:
    return datagram[HEADER_BYTES : HEADER_BYTES + header.body_bytes]
