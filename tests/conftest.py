"""Fixtures for every area: where the exchange's documents and recorded frames are."""

import os
from pathlib import Path
from typing import Any

import pytest

PROJECT_ROOT = Path(__file__).resolve().parent.parent
LONG_FOLDERS = ("store", "soak", "bench", "end_to_end", "packaging")
"""Their files take longest, in this order."""
STORE = "tests/store/"
"""All of it shares a database server, which one process starts."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long the tests are that can be made longer."""
    parser.addoption("--kills", type=int, default=12, help="how often the plant is killed")
    parser.addoption("--kill-seed", type=int, default=1, help="draws when it is killed")
    parser.addoption("--seeds", type=int, default=2, help="seeds of each lossy network")
    parser.addoption("--first-seed", type=int, default=0, help="the first of them")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes share the files, the long ones come first, so that none is left over at the end."""
    if hasattr(config, "workerinput"):
        order = {name: place for place, name in enumerate(LONG_FOLDERS)}
        tests = PROJECT_ROOT / "tests"
        items.sort(
            key=lambda item: order.get(item.path.relative_to(tests).parts[0], len(LONG_FOLDERS))
        )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Whole files to each process, and all files of the store to one."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return STORE if nodeid.startswith(STORE) else str(super()._split_scope(nodeid))

    return ByFile(config, log)


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    """How often a test kills what it tests."""
    return int(request.config.getoption("--kills"))


@pytest.fixture
def kill_seed(request: pytest.FixtureRequest) -> int:
    """Seed of the moments; a failing test names it among its arguments."""
    return int(request.config.getoption("--kill-seed"))


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder `shared` beside the project; a clone without it skips the test, a CI run fails it."""
    for parent in PROJECT_ROOT.parents:
        folder = parent / "shared"
        if (folder / "captures").is_dir() and (folder / "kalshi").is_dir():
            return folder
    reason = f"no folder `shared` with captures and kalshi beside {PROJECT_ROOT}"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
