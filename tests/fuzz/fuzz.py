"""Fuzzing: a million frames, datagrams and requests to recovery each, and some of its answers, all garbage, by default.

    python tests/fuzz/fuzz.py --frames 1000000 --datagrams 1000000 --requests 1000000 --replies 100000 --seed 7

Frames go through the whole feed into the plant, datagrams through the decoder and a whole subscriber, requests into
recovery on a real tick log, and its answers into a whole subscriber that has lost much. Exits 1 on any exception that
is not allowed, on memory that grows beyond the bound, and on a fuzzer that no longer reaches what it should. The seed
is printed first: the same seed gives the same inputs.
"""
# ruff: noqa: T201 - a command prints

import argparse
import contextlib
import gc
import os
import resource
import sys
import time
import traceback
from collections import Counter
from typing import Protocol

from datagram_fuzz import DatagramFuzzer
from frame_fuzz import FrameFuzzer
from reply_fuzz import ReplyFuzzer
from request_fuzz import RequestFuzzer

GROWTH_MAX_MIB = 96
"""Resident memory may grow by so much after the first tenth of the inputs: caches and tables have their bounds."""
SPIKE_MAX_MIB = 1_024
"""Address space beyond what is mapped at the start: a larger allocation fails, and with it the run."""
WARM_UP_SHARE = 0.1
MIB = 1024 * 1024
FRAME_OUTCOMES = (
    "contradicting_deltas",
    "snapshots_applied",
    "trades",
    "tickers",
    "unusable_frames",
    "sequence_gaps",
)
DATAGRAM_OUTCOMES = ("decoded", "bbo", "trade", "book", "live", "stale", "gap", "session")
REQUEST_OUTCOMES = (
    "gap fill served",
    "gap fill unauthenticated",
    "gap fill throttled",
    "gap fill too_old",
    "conversation malformed",
    "range served",
    "snapshot served",
    "repaired datagram",
    "not answered",
)
REPLY_OUTCOMES = (
    "repaired",
    "snapshot",
    "unusable",
    "connection failed",
    "signed and right",
    "Gap",
)


class Fuzzer(Protocol):
    """One kind of input."""

    exceptions: Counter[str]
    outcomes: Counter[str]
    last_input: bytes

    def run_batch(self) -> int:
        """Some inputs; returns how many."""


def resident_mib() -> float:
    """Memory in use by this process."""
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - read in place, no path object to keep
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


def limit_address_space() -> None:
    """Makes one huge allocation a MemoryError instead of a slow machine."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - as above
        mapped = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + SPIKE_MAX_MIB * MIB, hard))


def run(name: str, fuzzer: Fuzzer, count: int, seconds: float, expected: tuple[str, ...]) -> bool:
    """Feeds `count` inputs, or as many as `seconds` allow, and reports; whether all was well."""
    started = time.perf_counter()
    done, warm_mib, well = 0, 0.0, True
    try:
        while done < count and not (seconds and time.perf_counter() - started > seconds):
            done += fuzzer.run_batch()
            if not warm_mib and done >= WARM_UP_SHARE * count:
                warm_mib = resident_mib()
    except Exception:  # noqa: BLE001 - whatever it is, it is the finding
        print(traceback.format_exc(limit=12))
        print(f"{name} {done}: input of {len(fuzzer.last_input)} B: {fuzzer.last_input[:2000]!r}")
        well = False
    elapsed = time.perf_counter() - started
    growth_mib = resident_mib() - (warm_mib or resident_mib())
    print(
        f"{name}: {done:,} in {elapsed:.1f} s = {done / elapsed:,.0f}/s; memory +{growth_mib:.1f} MiB"
    )
    print(f"  exceptions: {dict(fuzzer.exceptions.most_common())}")
    print(f"  outcomes: {dict(fuzzer.outcomes.most_common(24))}")
    if growth_mib > GROWTH_MAX_MIB:
        print(f"  memory grew by {growth_mib:.1f} MiB; the bound is {GROWTH_MAX_MIB} MiB")
        well = False
    missing = [outcome for outcome in expected if well and not fuzzer.outcomes[outcome]]
    if missing:
        print(f"  never reached: {', '.join(missing)}")
    return well and not missing


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=1_000_000, help="frames to feed")
    parser.add_argument("--datagrams", type=int, default=1_000_000, help="datagrams to feed")
    parser.add_argument("--requests", type=int, default=1_000_000, help="requests to feed")
    parser.add_argument("--replies", type=int, default=100_000, help="answers to feed")
    parser.add_argument(
        "--seconds", type=float, default=0, help="bound for each of the four, 0 for none"
    )
    parser.add_argument("--seed", type=int, default=None, help="default: from the clock")
    options = parser.parse_args()
    seed = time.time_ns() % 2**32 if options.seed is None else options.seed
    print(f"seed {seed}")
    limit_address_space()
    well = True
    if options.frames:
        frames = FrameFuzzer(seed)
        well = run("frames", frames, options.frames, options.seconds, FRAME_OUTCOMES)
        del frames
    if options.datagrams:
        datagrams = DatagramFuzzer(seed)
        well = (
            run("datagrams", datagrams, options.datagrams, options.seconds, DATAGRAM_OUTCOMES)
            and well
        )
        del datagrams
    if options.requests:
        with contextlib.closing(RequestFuzzer(seed)) as requests:
            well = (
                run("requests", requests, options.requests, options.seconds, REQUEST_OUTCOMES)
                and well
            )
    if options.replies:
        replies = ReplyFuzzer(seed)
        well = run("replies", replies, options.replies, options.seconds, REPLY_OUTCOMES) and well
    print("all well" if well else f"FAILED with seed {seed}")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
