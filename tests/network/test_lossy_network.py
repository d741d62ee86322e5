"""A real plant and its recovery on one host, a real subscriber on another, and a network between that loses datagrams.

Each message of the tick log is handed to the subscriber once and in order, and its books are the exchange's. Longer, at
a higher rate and with other seeds: `make network`.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from world import LINE_A_GROUPS, LINE_B_GROUPS, World


@pytest.fixture
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    """Running; skipped where this user may not make a network namespace."""
    if subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not make a network namespace")
    seed = request.config.getoption("--first-seed")
    with World(tmp_path, seed=seed, markets=30, rate=1_500) as running:
        yield running


def test_nothing_is_missing_twice_or_out_of_order_whatever_the_network_does(world: World) -> None:
    """One line dead at a time where losses are to be seen, so that the other one does not make up for them."""
    world.let_pass(1.5, loss=0.01, dead_groups=LINE_B_GROUPS)
    world.let_pass(1.5, burst=0.005, dead_groups=LINE_A_GROUPS)
    world.let_pass(1.5, reorder=0.1, duplicate=0.05, corrupt=0.01)
    world.let_pass(2.0, blackout=True)
    world.let_pass(1.0, stall=True)
    world.kill_recovery()
    world.let_pass(1.5, loss=0.02, dead_groups=LINE_A_GROUPS)
    world.kill_plant()
    world.start_plant()
    world.let_pass(1.0, loss=0.01, dead_groups=LINE_B_GROUPS)
    stats = world.forwarder.stats()
    world.settle()
    proof = world.end()
    assert proof.faults == []
    assert min(stats[name] for name in ("lost", "dead", "reordered", "duplicated", "corrupted")) > 0
    assert stats["requests"] > 0
    assert sum(proof.handed_out.values()) > 2_000
