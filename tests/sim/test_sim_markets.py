"""Tick structures and the opening listing."""

from random import Random

import pytest

from tickerplant_kalshi_sim.catalogue import build_catalogue
from tickerplant_kalshi_sim.frames import price_ranges
from tickerplant_kalshi_sim.markets import TICK_STRUCTURES, price_grid

START_NS = 1_795_197_600_000_000_000
EXPECTED_GRIDS = {
    "linear_cent": (99, 100, 9_900),
    "deci_cent": (999, 10, 9_990),
    "tapered_deci_cent": (100 + 80 + 99, 10, 9_990),
    "center_whole_edge_half_cent": (20 + 80 + 19, 50, 9_950),
    "center_whole_edge_quint_cent": (50 + 80 + 49, 20, 9_980),
    "center_half_edge_half_cent": (199, 50, 9_950),
    "center_half_edge_quint_cent": (50 + 160 + 49, 20, 9_980),
    "center_half_edge_deci_cent": (100 + 160 + 99, 10, 9_990),
    "center_quint_edge_quint_cent": (499, 20, 9_980),
    "center_quint_edge_deci_cent": (100 + 400 + 99, 10, 9_990),
    "center_centi_edge_centi_cent": (9_999, 1, 9_999),
    "center_deci_edge_centi_cent": (100 + 980 + 99, 1, 9_999),
    "banded_centi_cent": (1_000 + 800 + 999, 1, 9_999),
}


@pytest.mark.parametrize("structure", sorted(TICK_STRUCTURES))
def test_grid_of_structure(structure: str) -> None:
    """Number of prices, smallest and largest; whole cents are valid and the grid is symmetrical everywhere."""
    grid = price_grid(structure)
    assert (len(grid), grid[0], grid[-1]) == EXPECTED_GRIDS[structure]
    assert set(range(100, 10_000, 100)) <= set(grid)
    assert {10_000 - price_e4 for price_e4 in grid} == set(grid)


def test_every_structure_of_the_reference_is_known() -> None:
    assert set(EXPECTED_GRIDS) == set(TICK_STRUCTURES)


def test_price_ranges_are_the_documented_text() -> None:
    assert price_ranges(TICK_STRUCTURES["tapered_deci_cent"]) == [
        {"start": "0.0000", "end": "0.1000", "step": "0.0010"},
        {"start": "0.1000", "end": "0.9000", "step": "0.0100"},
        {"start": "0.9000", "end": "1.0000", "step": "0.0010"},
    ]


@pytest.mark.parametrize("count", [1, 7, 8, 100, 1_003])
def test_catalogue_lists_as_many_open_markets_as_asked(count: int) -> None:
    catalogue = build_catalogue(Random(1), count, START_NS)
    open_markets = [m for m in catalogue.markets.values() if m.status == "active"]
    assert len(open_markets) == count
    assert all(m.ticker.startswith(m.event.series.ticker + "-") for m in open_markets)
    assert sum(m.event.is_multivariate for m in open_markets) == count // 10
    assert all(
        m.ticker.startswith("KXMVE") == m.event.is_multivariate for m in catalogue.markets.values()
    )
    assert {m.structure for m in catalogue.markets.values() if m.event.is_multivariate} <= {
        "center_deci_edge_centi_cent"
    }


def test_a_large_catalogue_uses_every_structure() -> None:
    catalogue = build_catalogue(Random(1), 300, START_NS)
    assert {market.structure for market in catalogue.markets.values()} == set(TICK_STRUCTURES)
