"""The benchmark runs, measures the real thing and loses nothing; its numbers are judged by `make bench`, not here."""

import json
import subprocess
import sys
from collections import Counter

import pytest

from tickerplant.bench.load import BEST_SHARE, ReferenceLoad
from tickerplant.bench.report import rows, table
from tickerplant.core.book import Book
from tickerplant_kalshi.messages import FRAME_DECODER, OrderbookDelta, OrderbookSnapshot

pytestmark = pytest.mark.timeout(240)
"""All measurements are made in the set-up of the first test; other work on the machine makes them slow."""


@pytest.fixture(scope="module")
def results() -> dict:
    command = [sys.executable, "-P", "-m", "tickerplant", "bench", "--short", "--json"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=220, check=True)
    return json.loads(finished.stdout)


def test_nothing_is_lost_or_unlogged_and_every_book_is_equal_at_the_subscriber(
    results: dict,
) -> None:
    assert results["saturated"]["lost"] == results["saturated"]["unlogged"] == 0
    assert results["books"] == results["books_equal"] == 200
    assert results["paced"]["updates"] == 5_000
    assert results["paced"]["gaps"] == 0


def test_the_ratios_are_of_a_running_plant(results: dict) -> None:
    assert results["hot_path"]["ratio"] > 0.3
    saturated = results["saturated"]
    assert saturated["ratio"] > 0.05
    assert saturated["ratio"] * saturated["reference_per_s"] > 1_000
    assert saturated["ratio_alone"] * saturated["reference_alone_per_s"] > 1_000
    assert results["book"]["ratio"] > 1


def test_a_killed_plant_gets_ready_again_with_every_market(results: dict) -> None:
    assert results["restart"]["books"] >= 150
    assert min(results["restart"]["seconds"]) > 1.5


def test_what_keys_cost_is_told(results: dict) -> None:
    measured = results["authenticity"]
    assert measured["sign_us"] > 0.3
    assert measured["verify_us"] > 0.3
    assert measured["datagram_bytes"] > 500
    assert measured["plant_ratio"] > 1
    assert measured["subscriber_ratio"] > 0.9
    assert "signing, a datagram of" in table(rows(results))


def test_losses_are_repaired_and_late_joins_complete(results: dict) -> None:
    measured = results["recovery"]
    assert measured["books"] == 200
    assert measured["join"]["joins"] == 2
    assert measured["join"]["cpu_ratio"] > 0.5
    assert measured["repair"]["lost"] > 10
    for name in ("repair", "tail", "late_tail"):
        assert measured[name]["missing"] == 0
    assert measured["repair"]["gaps"] == 0
    # Without waiting for a heartbeat nobody can know; the second comes 40 ms after the first.
    assert measured["tail"]["found_us"]["p50"] >= 9_000
    assert measured["late_tail"]["found_us"]["p50"] >= 45_000
    assert measured["tail"]["delivered_us"]["p50"] > measured["tail"]["found_us"]["p50"]
    assert "late join, 200 books" in table(rows(results))


@pytest.mark.parametrize("arrangement", ["paced", "apart", "asleep"])
def test_percentiles_are_in_order(results: dict, arrangement: str) -> None:
    assert results[arrangement]["gaps"] == 0
    for name in ("tick_to_wire_us", "wire_to_callback_us", "intended_us"):
        measured = results[arrangement][name]
        assert 0 <= measured["p50"] <= measured["p99"] <= measured["max"]
        assert measured["max"] > 0
    whole_us, wire_us = (
        results[arrangement][f"{part}_to_callback_us"]["p50"] for part in ("stamp", "wire")
    )
    assert whole_us > wire_us


@pytest.mark.parametrize("arrangement", ["floor", "floor_apart"])
def test_the_floors_are_measured_in_the_same_run(results: dict, arrangement: str) -> None:
    for name in ("tick_to_wire_us", "wire_to_callback_us"):
        measured = results[arrangement][name]
        assert 0 <= measured["p50"] <= measured["p99"] <= measured["max"]
        assert measured["max"] > 0


def test_a_latency_is_judged_where_its_process_spins_and_beside_a_relay_so_arranged(
    results: dict,
) -> None:
    def latency(p50: float, p99: float) -> dict:
        return {"p50": p50, "p99": p99, "max": p99}

    made_up = {
        **results,
        "paced": {**results["paced"], "tick_to_wire_us": latency(41, 150)},
        "apart": {**results["apart"], "wire_to_callback_us": latency(50, 251)},
        "floor": {**results["floor"], "tick_to_wire_us": latency(40, 150)},
        "floor_apart": {**results["floor_apart"], "wire_to_callback_us": latency(10, 300)},
    }
    tick_to_wire = "tick to wire at 5,000/s, plant spinning on its core, p50 p99"
    wire_to_callback = "wire to callback at 5,000/s, subscriber spinning on its core, p50 p99"
    verdicts = {row.what: row.verdict for row in rows(made_up)}
    assert verdicts[tick_to_wire] == "MISSED"
    assert verdicts[wire_to_callback] == "MISSED, as by a bare relay"
    made_up["paced"] = {**results["paced"], "tick_to_wire_us": latency(40, 150)}
    assert {row.what: row.verdict for row in rows(made_up)}[tick_to_wire] == "ok"


def test_many_subscribers_all_get_everything(results: dict) -> None:
    fan_out = results["fan_out"]
    assert fan_out["subscribers"] == 3
    assert fan_out["delivered"] == fan_out["messages"] == 5_000
    assert fan_out["gaps"] == fan_out["datagrams_lost"] == 0


def test_the_report_names_the_machine_and_judges_what_is_demanded(results: dict) -> None:
    assert "cores" in results["machine"]
    lines = rows(results)
    assert sum(row.met is not None for row in lines) == 14
    assert "json.loads" in table(lines)


def test_the_reference_load_is_consistent_and_moves_the_best_as_often_as_it_says() -> None:
    load = ReferenceLoad(markets=20, seed=3)
    books: dict[str, tuple[Book, Book]] = {}
    for data in load.snapshots():
        frame = FRAME_DECODER.decode(data)
        assert isinstance(frame, OrderbookSnapshot)
        sides = (frame.msg.yes_dollars_fp, frame.msg.no_dollars_fp)
        assert [len(levels) for levels in sides] == [20, 20]
        # Each side as bids of a book of its own, as the exchange keeps it.
        yes, no = (Book([(_e4(p), _e2(s)) for p, s in levels]) for levels in sides)
        books[frame.msg.market_ticker] = (yes, no)
    moved = Counter()
    for data in load.deltas(20_000):
        frame = FRAME_DECODER.decode(data)
        assert isinstance(frame, OrderbookDelta)
        book = books[frame.msg.market_ticker][frame.msg.side == "no"]
        assert book.apply(0, _e4(frame.msg.price_dollars), _e2(frame.msg.delta_fp)) >= 0
        moved[book.best_moved] += 1
    assert moved[True] / 20_000 == pytest.approx(BEST_SHARE, abs=0.03)
    assert load.seq == 20_020


def _e4(text: str) -> int:
    return int(text.replace(".", ""))


def _e2(text: str) -> int:
    return int(text.replace(".", ""))
