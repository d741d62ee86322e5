"""Runs the measurements and sets them beside the budgets."""

import asyncio
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from tickerplant.bench.authenticity import measure_authenticity
from tickerplant.bench.end_to_end import measure_end_to_end
from tickerplant.bench.fan_out import measure_fan_out
from tickerplant.bench.in_process import measure_book, measure_hot_path
from tickerplant.bench.load import ReferenceLoad
from tickerplant.bench.repair import measure_repair
from tickerplant.bench.restart import measure_restart
from tickerplant.bench.subscriber_rate import measure_subscriber

RATE_PER_S = 5_000
BUDGET_REFERENCE_PER_S = 190_000
"""Frames that `json.loads` parses in a second on a machine like the one that the budgets were written for."""


class Size(msgspec.Struct, frozen=True):
    """How much to measure; `short` serves the tests, whose numbers mean nothing."""

    markets: int = 2_000
    chunks: int = 30
    runs: int = 11
    frames: int = 60_000
    seconds: float = 10.0
    restarts: int = 3
    subscribers: int = 16
    books_joined: int = 5_000
    joins: int = 110
    tails: int = 20

    @classmethod
    def short(cls) -> "Size":
        """A run of a few seconds."""
        return cls(
            markets=200,
            chunks=3,
            runs=1,
            frames=20_000,
            seconds=1.0,
            restarts=1,
            subscribers=3,
            books_joined=200,
            joins=2,
            tails=2,
        )


class Row(msgspec.Struct, frozen=True):
    """One line of the report; `met` is None where nothing is demanded.

    `floor_met` says whether the machine alone, without a plant, stays within the budget.
    """

    what: str
    value: str
    must: str
    goal: str
    met: bool | None = None
    floor_met: bool = True

    @property
    def verdict(self) -> str:
        """The last column."""
        if self.met is None:
            return ""
        if self.met:
            return "ok"
        return "MISSED" if self.floor_met else "MISSED, as by a bare relay"


def machine() -> str:
    """Processor, cores, kernel and Python, for the head of the report."""
    model = "unknown processor"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{model}, {os.cpu_count()} cores, Linux {platform.release()}, {python}"


def measure(size: Size, tell: Callable[[str], None]) -> dict[str, Any]:
    """All measurements; `tell` gets a line before each."""
    tell("in process: frames to datagrams, beside json.loads")
    hot_path = measure_hot_path(ReferenceLoad(markets=size.markets), chunks=size.chunks)
    tell("in process: the book, beside a SortedDict book")
    book = measure_book(ReferenceLoad(markets=size.markets), chunks=size.chunks)
    tell("in process: datagrams to strategy callbacks")
    subscriber = measure_subscriber(ReferenceLoad(markets=size.markets), chunks=size.chunks)
    tell("in process: signing and verifying datagrams")
    authenticity = measure_authenticity(ReferenceLoad(markets=size.markets), chunks=size.chunks)
    tell("end to end: WebSocket, plant, multicast, subscriber")
    end_to_end = asyncio.run(
        measure_end_to_end(
            markets=size.markets,
            runs=size.runs,
            frames=size.frames,
            per_second=RATE_PER_S,
            seconds=size.seconds,
        )
    )
    tell("end to end: many subscribers")
    fan_out = asyncio.run(
        measure_fan_out(
            subscribers=size.subscribers,
            markets=size.markets,
            per_second=RATE_PER_S,
            seconds=size.seconds,
        )
    )
    tell("end to end: late joins, lost datagrams and lost tails")
    repair = asyncio.run(
        measure_repair(
            markets=size.books_joined,
            joins=size.joins,
            tails=size.tails,
            per_second=RATE_PER_S,
            seconds=size.seconds,
        )
    )
    tell("end to end: kill -9 to READY")
    restart = asyncio.run(measure_restart(markets=size.markets, restarts=size.restarts))
    return {
        "hot_path": hot_path,
        "book": book,
        "subscriber": subscriber,
        "fan_out": fan_out,
        "authenticity": authenticity,
        "recovery": repair,
        "restart": restart,
        **end_to_end,
    }


def rows(results: dict[str, Any]) -> list[Row]:
    """The report, line by line."""
    hot, book = results["hot_path"], results["book"]
    saturated, restart = results["saturated"], results["restart"]
    whole = saturated["lost"] == 0 and results["books"] == results["books_equal"]
    return [
        _ratio_row("in process, frame to datagrams", hot["ratio"], hot["frames_per_s"], 1.2, 1.5),
        _ratio_row(
            "WebSocket to tick log and multicast, saturated",
            saturated["ratio"],
            saturated["frames_per_s"],
            0.85,
            1.0,
        ),
        Row(
            "  beside json.loads while the other core is idle",
            f"{saturated['ratio_alone']:.2f}x ({_micros_each(saturated['reference_alone_per_s'])} a frame, "
            f"{_micros_each(saturated['reference_per_s'])} during the runs)",
            "",
            "",
        ),
        Row(
            "  lost; books equal at the subscriber",
            f"{saturated['lost']}; {results['books_equal']} of {results['books']}",
            "0; all",
            "",
            whole,
        ),
        Row(
            "cost of the tick log at saturation",
            f"{saturated['log_cost']:.1%} of the throughput",
            "10 %",
            "",
            saturated["log_cost"] <= 0.1 and saturated["unlogged"] == 0,
        ),
        *_latency_rows("tick to wire", "plant", results, (40, 150), (25, 80)),
        *_latency_rows("wire to callback", "subscriber", results, (50, 250), (30, 150)),
        *_whole_way_rows(results),
        Row(
            "change and best bid and offer in the book",
            f"{book['reference_ratio']:.1f}x json.loads ({book['book_ns'] / 1000:.2f} us, "
            f"{book['ratio']:.1f}x faster than SortedDict)",
            f"1 us or {_budget_ratio(1e6):.1f}x",
            f"{_budget_ratio(1e6 / 0.3):.1f}x",
            _is_rate_met(1e9 / book["book_ns"], book["reference_ratio"], 1e6),
        ),
        Row(
            "subscriber, decode and callback",
            f"{results['subscriber']['reference_ratio']:.1f}x json.loads "
            f"({results['subscriber']['messages_per_s']:,.0f}/s)",
            f"500,000/s or {_budget_ratio(500_000):.1f}x",
            f"{_budget_ratio(900_000):.1f}x",
            _is_rate_met(
                results["subscriber"]["messages_per_s"],
                results["subscriber"]["reference_ratio"],
                500_000,
            ),
        ),
        _fan_out_row(results["fan_out"]),
        *_authenticity_rows(results["authenticity"]),
        *_recovery_rows(results["recovery"]),
        Row(
            f"restart after kill -9 to READY, {restart['books']:,} markets",
            f"{restart['median_s']:.1f} s (max {max(restart['seconds']):.1f})",
            "10 s",
            "5 s",
            max(restart["seconds"]) <= 10,
        ),
    ]


def _fan_out_row(fan_out: dict[str, Any]) -> Row:
    lost = fan_out["messages"] - fan_out["delivered"]
    return Row(
        f"{fan_out['subscribers']} subscribers on this host at {RATE_PER_S:,}/s",
        f"{lost} messages lost, {fan_out['gaps']} gaps",
        "none",
        "",
        lost == fan_out["gaps"] == fan_out["datagrams_lost"] == 0,
    )


def _authenticity_rows(measured: dict[str, float]) -> list[Row]:
    """What keys cost; nothing is demanded."""
    size = f"{measured['datagram_bytes']:.0f} B"
    return [
        Row(
            f"signing, a datagram of {size}",
            f"{measured['sign_us']:.1f} us (plant {measured['plant_ratio']:.2f}x)",
            "",
            "",
        ),
        Row(
            "verifying one",
            f"{measured['verify_us']:.1f} us (subscriber {measured['subscriber_ratio']:.2f}x)",
            "",
            "",
        ),
    ]


def _recovery_rows(measured: dict[str, Any]) -> list[Row]:
    """Repairs, lost tails and late joins."""
    repair, asleep, join = measured["repair"], measured["repair_asleep"], measured["join"]
    repair_us, join_us = repair["us"], join["us"]
    whole = repair["missing"] == repair["gaps"] == 0
    return [
        Row(
            f"loss repaired at {RATE_PER_S:,}/s, 1 % lost, subscriber spinning on its core, p50 p99",
            f"{_millis(repair_us)}; {repair['missing']} of {repair['lost']:,} missing",
            "2, 25 ms; none",
            "1.3 ms",
            whole and repair_us["p50"] <= 2_000 and repair_us["p99"] <= 25_000,
        ),
        Row(
            "  subscriber sleeping between datagrams",
            f"{_millis(asleep['us'])}; {asleep['missing']} of {asleep['lost']:,} missing",
            "",
            "",
            None if asleep["missing"] == asleep["gaps"] == 0 else False,
        ),
        _tail_row("tail loss found, p50 p99", measured["tail"], 15),
        _tail_row("  if the first heartbeat is lost too", measured["late_tail"], 60),
        Row(
            f"late join, {measured['books']:,} books, p50 p99",
            f"{_millis(join_us)} of {join['joins']}",
            "300 ms p99",
            "150 ms",
            join_us["p99"] <= 300_000,
        ),
        Row(
            "  processor time of the subscriber for it",
            f"{join['cpu_us'] / 1_000:.0f} ms = {join['cpu_ratio']:.1f}x json.loads of snapshots",
            "",
            "",
        ),
    ]


def _tail_row(what: str, tail: dict[str, Any], must_ms: int) -> Row:
    found_us, repaired_us = tail["found_us"], tail["delivered_us"]
    return Row(
        what,
        f"{_millis(found_us)}; delivered {_millis(repaired_us)}",
        f"{must_ms} ms",
        "",
        tail["missing"] == 0 and found_us["p99"] <= must_ms * 1_000,
    )


def _millis(measured_us: dict[str, float]) -> str:
    return f"{measured_us['p50'] / 1_000:.1f}, {measured_us['p99'] / 1_000:.1f} ms"


def _ratio_row(what: str, ratio: float, per_s: float, must: float, goal: float) -> Row:
    value = f"{ratio:.2f}x json.loads ({per_s:,.0f}/s)"
    return Row(what, value, f"{must:g}x", f"{goal:g}x", ratio >= must)


def _latency_rows(
    what: str,
    spinning: str,
    results: dict[str, Any],
    must_us: tuple[int, int],
    goal_us: tuple[int, int],
) -> list[Row]:
    """The latency where the measured process spins on its core, beside a bare relay so arranged, and the others."""
    name = f"{what.replace(' ', '_')}_us"
    runs = {
        "plant spinning on its core": results["paced"][name],
        "subscriber spinning on its core": results["apart"][name],
        "all sleeping between frames": results["asleep"][name],
    }
    judged = f"{spinning} spinning on its core"
    measured_us = runs.pop(judged)
    bare_us = results["floor" if spinning == "plant" else "floor_apart"][name]
    must, goal = (f"{p50}, {p99} us" for p50, p99 in (must_us, goal_us))
    ratios = ", ".join(f"{measured_us[p] / max(bare_us[p], 1):.1f}x" for p in ("p50", "p99"))
    return [
        Row(
            f"{what} at {RATE_PER_S:,}/s, {judged}, p50 p99",
            _micros(measured_us),
            must,
            goal,
            _is_within(measured_us, must_us),
            floor_met=_is_within(bare_us, must_us),
        ),
        Row("  beside a bare relay so arranged", f"{ratios} of {_micros(bare_us)}", "", ""),
        *(Row(f"  {other}", _micros(other_us), "", "") for other, other_us in runs.items()),
    ]


def _whole_way_rows(results: dict[str, Any]) -> list[Row]:
    """Latencies that span more than one process; nothing is demanded."""
    paced, apart = results["paced"], results["apart"]
    return [
        Row("intended send to callback, plant spinning", _micros(paced["intended_us"]), "", ""),
        Row("  subscriber spinning", _micros(apart["intended_us"]), "", ""),
        Row(
            "stamp in the datagram, before it is logged, to callback, subscriber spinning",
            _micros(apart["stamp_to_callback_us"]),
            "",
            "",
        ),
    ]


def _is_within(measured_us: dict[str, float], must_us: tuple[int, int]) -> bool:
    return measured_us["p50"] <= must_us[0] and measured_us["p99"] <= must_us[1]


def _budget_ratio(per_second: float) -> float:
    """A rate that is demanded of the machine the budgets are of, as a ratio to its `json.loads`."""
    return per_second / BUDGET_REFERENCE_PER_S


def _is_rate_met(per_second: float, reference_ratio: float, demanded: float) -> bool:
    """The rate itself, or on a slower machine as much of what `json.loads` does there."""
    return per_second >= demanded or reference_ratio >= _budget_ratio(demanded)


def _micros_each(per_second: float) -> str:
    return f"{1e6 / per_second:.1f} us"


def _micros(measured_us: dict[str, float]) -> str:
    return f"{measured_us['p50']:.0f}, {measured_us['p99']:.0f} us (max {measured_us['max']:.0f})"


def table(lines: list[Row]) -> str:
    """The report as text."""
    head = Row("measured", "value", "must", "goal")
    widths = [
        max(len(getattr(row, name)) for row in (head, *lines)) for name in ("what", "value", "must")
    ]
    return "\n".join(
        f"{row.what:<{widths[0]}}  {row.value:<{widths[1]}}  {row.must:<{widths[2]}}  {row.goal:<12} "
        f"{row.verdict}".rstrip()
        for row in (head, *lines)
    )
