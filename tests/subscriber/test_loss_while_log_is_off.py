"""What is lost on the way while the tick log is off: nobody has it, and a subscriber is told so, and why."""

import asyncio
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "models"))

from listening import books_right, every, listening
from recovery_server import recovery
from repaired_feed import MulticastPlant

from tickerplant.core.messages import GapCause, Stream
from tickerplant.runtime.logfolder import segment_names
from tickerplant.runtime.ticklog import TickLog
from tickerplant_subscriber import Gap


class UncheckedLog:
    """A tick log of which nobody minds that it is off: the feed goes on."""

    def __init__(self, ticklog: TickLog) -> None:
        self._ticklog = ticklog

    def append(self, datagrams: list[tuple[int, bytes]]) -> bool:
        self._ticklog.append(datagrams)
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ticklog, name)


async def test_the_gap_names_the_plant_and_the_next_session_is_whole(
    tmp_path: Path, group: str, port: int
) -> None:
    """A segment is deleted underneath; then messages are lost that are in no log."""
    with MulticastPlant(tmp_path / "log", group, port) as plant:
        ticklog = plant.ticklog
        plant.ticklog = UncheckedLog(ticklog)  # type: ignore[assignment]
        async with recovery(plant.folder) as server, listening(group, port, server) as listener:
            await listener.until_whole(plant)
            (plant.folder / str(segment_names(plant.folder)[-1])).unlink()

            def is_off() -> bool:
                plant.step()
                return not ticklog.is_on

            await listener.until(is_off)
            await listener.until(lambda: server.ticklog.unlogged_session, plant)
            await listener.until(lambda: books_right(plant, listener.subscriber), plant)
            assert {gap.cause for gap in listener.of(Gap)} == {GapCause.LATE_JOIN}
            plant.is_lost = every(3, stream=Stream.TRADE)
            while plant.lost < 2:
                plant.step()
                await asyncio.sleep(0.001)
            plant.is_lost = lambda _header: False
            await listener.until(lambda: listener.places()[1] == plant.next_seqs, plant)
            gaps = [gap for gap in listener.of(Gap) if gap.cause is not GapCause.LATE_JOIN]
            assert gaps
            assert {(gap.stream, GapCause(gap.cause)) for gap in gaps} == {
                (Stream.TRADE, GapCause.PLANT)
            }
            plant.begin_session()
            await listener.until_whole(plant)
            assert ticklog.is_on
