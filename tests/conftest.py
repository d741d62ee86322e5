"""Fixtures for every area: where the exchange's documents and recorded frames are."""

import os
from pathlib import Path

import pytest

PROJECT_ROOT = Path(__file__).resolve().parent.parent


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
