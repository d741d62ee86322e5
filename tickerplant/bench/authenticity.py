"""In-process measurement of what signing costs the plant, and verifying a subscriber; for information."""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tickerplant.bench.load import ReferenceLoad
from tickerplant.bench.subscriber_rate import CountingStrategy, pack_load, receiver_of
from tickerplant.core.keyring import KeyRing
from tickerplant_subscriber.admission import Admission

if TYPE_CHECKING:
    from tickerplant.core.packets import Datagram


def measure_authenticity(load: ReferenceLoad, *, chunks: int) -> dict[str, float]:
    """{"sign_us", "verify_us", "datagram_bytes"} each, and the ratios of the whole with keys to that without.

    "plant_ratio" is of frame bytes to datagrams, "subscriber_ratio" of datagrams to callbacks, in CPU time.
    """
    packed = pack_load(load, chunks=chunks)
    ring = KeyRing([(1, bytes(range(32)))])
    plain, keyed = CountingStrategy(), CountingStrategy()
    receive_plain, receive_keyed = receiver_of(plain), receiver_of(keyed, Admission(ring))
    for _, datagram in packed.start:
        receive_plain(0, datagram, packed.now_ns)
        receive_keyed(0, ring.sign(datagram), packed.now_ns)
    gc.collect()
    gc.freeze()
    sign_ns, plain_ns, keyed_ns, verify_ns = [], [], [], []
    for run in packed.runs:
        started_ns = time.process_time_ns()
        signed = [(stream, ring.sign(datagram)) for stream, datagram in run]
        sign_ns.append(time.process_time_ns() - started_ns)
        plain_ns.append(_timed(receive_plain, run, packed.now_ns))
        keyed_ns.append(_timed(receive_keyed, signed, packed.now_ns))
        started_ns = time.process_time_ns()
        for _, datagram in signed:
            ring.verify(datagram)
        verify_ns.append(time.process_time_ns() - started_ns)
    assert keyed.updates == plain.updates > 0, "with keys as much must arrive as without"
    count = sum(map(len, packed.runs)) / chunks
    sizes = [len(datagram) for run in packed.runs for _, datagram in run]
    sign = statistics.median(sign_ns)
    return {
        "sign_us": sign / count / 1e3,
        "verify_us": statistics.median(verify_ns) / count / 1e3,
        "datagram_bytes": statistics.mean(sizes),
        "plant_ratio": 1 + sign * chunks / packed.plant_ns,
        "subscriber_ratio": statistics.median(keyed_ns) / statistics.median(plain_ns),
    }


def _timed(
    receive: Callable[[int, bytes, int], None], run: "Sequence[Datagram]", now_ns: int
) -> int:
    started_ns = time.process_time_ns()
    for _, datagram in run:
        receive(0, datagram, now_ns)
    return time.process_time_ns() - started_ns
