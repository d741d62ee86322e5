"""The short run of `million.py`: plant, store and server as processes, a server and a store killed on the way."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

import pytest
from million import run


@pytest.mark.timeout(300)
def test_nothing_is_missing_and_nothing_is_there_twice(tmp_path: Path) -> None:
    outcome = run(
        tmp_path,
        messages=5_000,
        rate=1_500,
        server_kills=1,
        store_kills=1,
        markets=30,
        is_light=True,
    )
    assert outcome.missing == {}, outcome
    assert outcome.store_starts >= 2
    assert outcome.rows >= outcome.messages >= 5_000
