"""A real QuestDB for all tests of the store, started once, and more of them for tests that kill it."""

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "models"))

from tickerplant.store.local_server import LocalServer, cache_folder


@pytest.fixture(scope="session")
def questdb_server() -> Iterator[LocalServer]:
    """A running server, shared: a test drops the tables that it makes, or has its own names.

    In its development mode, in which a table can be suspended on demand; one that was resumed is looked at soon.
    """
    settings = {"dev.mode.enabled": "true", "cairo.wal.sequencer.check.interval": "100"}
    folder = Path(tempfile.mkdtemp(prefix="questdb-"))
    try:
        with LocalServer(folder, cache_folder(), is_light=True, settings=settings) as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def new_questdb(tmp_path: Path) -> Iterator[Callable[..., LocalServer]]:
    """Makes servers of the test's own, not yet started, with other settings if wanted; they are ended after it."""
    with ExitStack() as stack:

        def make(**settings: str) -> LocalServer:
            dotted = {name.replace("_", "."): value for name, value in settings.items()}
            folder = Path(tempfile.mkdtemp(prefix="questdb-", dir=tmp_path))
            server = LocalServer(folder, cache_folder(), is_light=True, settings=dotted)
            stack.callback(server.kill)
            return server

        yield make
