"""Damaged answers of recovery into a whole subscriber that has lost much: recovery client, arbiter, books, quotes.

Each run is a lossy network on a virtual clock, in which the way between subscriber and recovery does damage as well,
there and back. With keys damage must never do more than loss does: what is delivered is what was published, once and in
order.
"""

import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from mutations import HOSTILE_MSGPACK, flip_bits, insert, repeat_part, splice, truncate

sys.path.append(str(Path(__file__).resolve().parent.parent / "models"))

from lossy_network import Faults, Simulation
from plant_course import MS, Course, CourseMaker

from tickerplant.core.keyring import KeyRing
from tickerplant.limits import REPAIR_GIVE_UP_NS

KEYS = KeyRing([(7, b"k" * 32)])
HARM_MAX = 0.5
LOSSES = (0.02, 0.1, 0.3)
QUIET_NS = 2 * REPAIR_GIVE_UP_NS
"""After the last message: what cannot be had is given up by then."""
KEPT_ANSWERS = 200
"""Answers of earlier runs, to be played back and spliced."""


def a_course(seed: int, keys: KeyRing | None) -> Course:
    """Two sessions, the first of which dies."""
    maker = CourseMaker(seed=seed, markets=6, key_ring=keys)
    maker.begin()
    maker.run(80 * MS, rate=3_000)
    maker.crash(50 * MS)
    maker.begin()
    maker.run(80 * MS, rate=3_000)
    maker.run(QUIET_NS, rate=0)
    course: Course = maker.finish()
    return course


class DamagingWay(Simulation):
    """A network whose way between subscriber and recovery damages, replays and invents."""

    def __init__(self, fuzzer: "ReplyFuzzer", course: Course, seed: int, **options: Any) -> None:
        self.fuzzer = fuzzer
        self.harm = fuzzer.chance.random() * HARM_MAX
        super().__init__(course, seed, **options)

    def _serve_datagram(self, datagram: bytes) -> None:
        super()._serve_datagram(self.fuzzer.pass_on(datagram, self.harm))

    def _serve(self, number: int, data: bytes) -> None:
        super()._serve(number, self.fuzzer.pass_on(data, self.harm / 4))

    def _take_datagram(self, datagram: bytes) -> None:
        self.fuzzer.keep(datagram)
        super()._take_datagram(self.fuzzer.pass_on(datagram, self.harm))
        if self.fuzzer.chance.random() < self.harm:
            super()._take_datagram(self.fuzzer.stray_datagram())

    def _deliver_bytes(self, number: int, data: bytes) -> None:
        super()._deliver_bytes(number, self.fuzzer.pass_on(data, self.harm / 4))


class ReplyFuzzer:
    """Inputs by `run_batch`, which is one run of a network; whatever the subscriber raises is a finding."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.exceptions: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.last_input = b""
        self._inputs = 0
        self._kept: list[bytes] = []
        self._courses = {keys: a_course(seed, keys) for keys in (None, KEYS)}

    def run_batch(self) -> int:
        """One run; how many requests and answers there were."""
        chance, before = self.chance, self._inputs
        keys = chance.choice((None, KEYS))
        way = DamagingWay(
            self,
            self._courses[keys],
            chance.randrange(2**32),
            faults=Faults(loss=chance.choice(LOSSES), line_count=1),
            join_after_ns=chance.choice((None, 20 * MS, 150 * MS)),
            key_ring=keys,
        )
        way.run()
        if keys is not None:
            way.check_streams()
            self.outcomes["signed and right"] += 1
        self._tell(way)
        return max(1, self._inputs - before)

    def _tell(self, way: DamagingWay) -> None:
        client = way.client
        self.outcomes["unusable"] += client.unusable_datagrams
        self.outcomes["snapshot"] += client.snapshots_taken
        self.outcomes["connection failed"] += client.connections_failed
        self.outcomes["repaired"] += sum(one.messages_repaired for one in way.arbiter.states())
        self.outcomes.update({f"reply {k}": n for k, n in client.gap_requests.replies.items()})
        self.outcomes.update(type(event).__name__ for event in way.seen.events)
        for (_, error), refusals in way.arbiter.refusals.items():
            self.exceptions[error] += refusals.count

    # --- damage -----------------------------------------------------------------------------------

    def pass_on(self, data: bytes, harm: float) -> bytes:
        """`data`, or in that share of the cases something else."""
        self._inputs += 1
        if self.chance.random() < harm:
            data = self.last_input = self._damaged(data)
        return data

    def keep(self, datagram: bytes) -> None:
        """An answer that may come again."""
        if len(self._kept) < KEPT_ANSWERS:
            self._kept.append(datagram)
        else:
            self._kept[int(self.chance.random() * KEPT_ANSWERS)] = datagram

    def stray_datagram(self) -> bytes:
        """What nobody has asked for: an old answer, whole or not, or nonsense."""
        self._inputs += 1
        way = self.chance.random()
        if way < 0.5:
            self.last_input = self.chance.choice(self._kept)
        elif way < 0.8:
            self.last_input = self._damaged(self.chance.choice(self._kept))
        else:
            self.last_input = self.chance.randbytes(int(self.chance.random() * 1_400))
        return self.last_input

    def _damaged(self, data: bytes) -> bytes:
        chance = self.chance
        ways = (flip_bits, flip_bits, flip_bits, truncate, insert, repeat_part)
        way = chance.randrange(len(ways) + 2)
        if way < len(ways):
            return ways[way](data, chance)
        if way == len(ways) and self._kept:
            return splice(data, chance.choice(self._kept), chance)
        start = int(chance.random() * len(data))
        return data[:start] + chance.choice(HOSTILE_MSGPACK) + data[start + chance.randrange(10) :]
