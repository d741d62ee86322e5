"""`tickerplant snapshot` as a process, against a real log, a real recovery and real multicast."""

import asyncio
import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "models"))

from recovery_server import recovery
from repaired_feed import MulticastPlant


async def printed(
    group: str, port: int, recovery_port: int, *words: str, plant: MulticastPlant | None = None
) -> tuple[int | None, str, str]:
    """Exit code and output; the plant goes on meanwhile, with heartbeats only."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "tickerplant", "snapshot", *words),
        *("--group-a", group, "--port", str(port), "--recovery", f"127.0.0.1:{recovery_port}"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    ended = asyncio.create_task(child.communicate())
    try:
        async with asyncio.timeout(40):
            while not ended.done():
                if plant is not None:
                    plant.tick()
                await asyncio.sleep(0.01)
    finally:
        if child.returncode is None:
            child.kill()
    output, errors = await ended
    return child.returncode, output.decode(), errors.decode()


async def test_it_prints_every_book_as_the_plant_has_it(
    tmp_path: Path, group: str, port: int
) -> None:
    plant = MulticastPlant(tmp_path / "log", group, port)
    plant.step(30)
    async with recovery(plant.folder) as server:
        code, output, errors = await printed(
            group, port, server.port, "--format", "json", plant=plant
        )
        assert (code, errors) == (0, "")
        books = {book["ticker"]: book for book in map(json.loads, output.splitlines())}
        for entry in plant.plant.entries.values():
            book = books[entry.ticker]
            assert (book["state"] == "LIVE") == (entry.in_sync and entry.live)
            assert [tuple(level) for level in book["bids"]] == entry.ascending(0)
            assert [tuple(level) for level in book["asks"]] == entry.ascending(1)
        ticker = min(books)
        code, output, _ = await printed(
            group, port, server.port, ticker, "--depth", "2", plant=plant
        )
    plant.close()
    assert code == 0
    (line,) = output.splitlines()
    assert line.split()[:2] == [ticker, books[ticker]["state"]]


async def test_without_a_plant_it_says_so_and_may_be_tried_again(group: str, port: int) -> None:
    code, output, errors = await printed(group, port, 1, "--for", "500ms")
    assert (code, output) == (75, "")
    assert errors.count("\n") == 1
    assert "the plant does not answer" in errors
