"""When recovery is asked for what is missing, and in which way, on a virtual clock."""

import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "models"))

from lossy_network import Faults, Simulation
from plant_course import MS, SECOND, Course, CourseMaker

from tickerplant.core.messages import GapCause, Stream
from tickerplant.core.wire import Kind, decode_header
from tickerplant_subscriber.recovery_actions import Action, Connect, SendDatagram

LATENCY_NS = 40_000
"""The network's, within which a deadline may be noticed."""


@lru_cache(maxsize=1)
def course() -> Course:
    maker = CourseMaker(seed=9)
    maker.begin()
    maker.run(200 * MS)
    maker.run(9 * SECOND, rate=0)
    return maker.finish()


class Watched(Simulation):
    """Loses one datagram of a stream; requests over UDP may be lost too, and connections refused."""

    def __init__(
        self, stream: Stream, *, seed: int, is_udp_lost: bool, is_tcp_refused: bool
    ) -> None:
        super().__init__(course(), seed, Faults(line_count=1))
        self.stream = stream
        self.is_udp_lost = is_udp_lost
        self.is_tcp_refused = is_tcp_refused
        self.seen_ns = 0
        """When the datagram after the lost one came."""
        self.asked_ns: list[int] = []
        self.connected_ns: list[int] = []
        self._lost_seq = 0

    def _fates(self, line: Any, datagram: bytes) -> Any:
        if line is self._udp:
            return super()._fates(line, datagram)
        header = decode_header(datagram)
        is_it = header.stream == self.stream and header.kind == Kind.DATA
        if is_it and not self._lost_seq and self.now_ns > self.start_ns + 50 * MS:
            self._lost_seq = header.seq
            self.lost_on_the_way += 1
            return ()
        if is_it and self._lost_seq and not self.seen_ns:
            self.seen_ns = self.now_ns
        return super()._fates(line, datagram)

    def _perform(self, action: Action) -> None:
        if self._lost_seq and isinstance(action, SendDatagram):
            self.asked_ns.append(self.now_ns - self.seen_ns)
            if self.is_udp_lost:
                return
        if self._lost_seq and isinstance(action, Connect):
            self.connected_ns.append(self.now_ns - self.seen_ns)
            if self.is_tcp_refused:
                self._at(self.now_ns + MS, self._close, action.connection)
                return
        super()._perform(action)


@pytest.mark.parametrize("stream", [Stream.TRADE, Stream.DELTA])
def test_one_request_after_a_millisecond_is_enough(stream: Stream) -> None:
    simulation = Watched(stream, seed=1, is_udp_lost=False, is_tcp_refused=False)
    simulation.run()
    simulation.check()
    (asked_ns,) = simulation.asked_ns
    assert MS <= asked_ns <= MS + LATENCY_NS + MS // 2
    assert simulation.connected_ns == []


@pytest.mark.parametrize("stream", [Stream.TRADE, Stream.DELTA])
def test_unanswered_requests_are_repeated_and_then_a_range_is_asked_for(stream: Stream) -> None:
    """At 0, 5, 20 and 80 ms after the first, each interval up to a fifth longer, not all alike."""
    seen: set[tuple[int, ...]] = set()
    for seed in range(1, 5):
        simulation = Watched(stream, seed=seed, is_udp_lost=True, is_tcp_refused=False)
        simulation.run()
        simulation.check()
        first, *others = simulation.asked_ns
        assert MS <= first <= MS + LATENCY_NS + MS // 2
        assert len(others) == 3
        waits = [after - before for before, after in zip([first, *others], others, strict=False)]
        for wait_ns, due_ns in zip(waits, (5 * MS, 15 * MS, 60 * MS), strict=True):
            assert due_ns <= wait_ns <= due_ns * 6 // 5 + MS
        assert len(simulation.connected_ns) == 1
        assert simulation.connected_ns[0] > simulation.asked_ns[-1]
        seen.add(tuple(waits))
    assert len(seen) > 1


@pytest.mark.parametrize("stream", [Stream.TRADE, Stream.DELTA, Stream.BBO])
def test_when_nothing_answers_any_more_it_is_a_gap(stream: Stream) -> None:
    """After some seconds, with its cause, and everything behind it goes on."""
    simulation = Watched(stream, seed=2, is_udp_lost=True, is_tcp_refused=True)
    simulation.run()
    (gap,) = simulation.gaps()
    assert (gap.stream, gap.cause, gap.healed) == (stream, GapCause.NETWORK, False)
    simulation.check_streams()
    assert len(simulation.asked_ns) == 4
    assert len(simulation.connected_ns) > 3
