"""The demo's subscriber: the board of `tickerplant top`, with an account of what arrived."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

from tickerplant.commands.board import Board
from tickerplant.commands.item_text import name_of
from tickerplant.core.messages import GapCause, Stream, UpstreamGap
from tickerplant.demo.network import INTERFACE
from tickerplant.limits import DEMO_FAULTS_SHOWN
from tickerplant_subscriber.event_log import describe, stream_name
from tickerplant_subscriber.events import Gap
from tickerplant_subscriber.runner import run_async

_DRAW_INTERVAL_S = 0.5


class Received(NamedTuple):
    """By name of the stream: messages handed over, and sequences accounted for (handed over or told as a gap)."""

    messages: Mapping[str, int]
    accounted: Mapping[str, int]
    open_holes: int
    ended_streams: int


class DemoBoard(Board):
    """All markets on all streams; `draw` is called twice a second."""

    def __init__(self, draw: Callable[[Board], None]) -> None:
        """Set up; nothing is joined yet."""
        super().__init__(("*",), (Stream.DELTA,), _DRAW_INTERVAL_S, draw)
        self.joined = asyncio.Event()
        self.gaps: list[str] = []
        """The first few gaps in words; `gap_count` counts all."""

    def on_start(self) -> None:
        """The groups are joined."""
        self.joined.set()

    def on_gap(self, gap: Gap | UpstreamGap) -> None:
        """Keep the first ones."""
        super().on_gap(gap)
        if len(self.gaps) < DEMO_FAULTS_SHOWN:
            if isinstance(gap, Gap):
                self.gaps.append(describe(gap))
            else:
                cause = name_of(GapCause, gap.cause)
                self.gaps.append(f"gap before the plant on {stream_name(gap.on_stream)}: {cause}")

    def received(self) -> Received:
        """The counts so far."""
        stats = self.stats()
        streams = stats.streams if stats is not None else ()
        return Received(
            messages={stream_name(one.stream): one.messages for one in streams},
            accounted={stream_name(one.stream): one.next_seq - 1 for one in streams},
            open_holes=sum(one.open_holes for one in streams),
            ended_streams=sum(one.ended for one in streams),
        )


async def subscribe(board: DemoBoard, group: str, port: int) -> "asyncio.Task[None]":
    """Run `board` in the background; it has joined when this returns. Raises `NetworkSetupError`."""
    # The demo tells gaps itself.
    logging.getLogger("tickerplant_subscriber").addHandler(logging.NullHandler())
    running = asyncio.create_task(
        run_async(board, interface=INTERFACE, group_a=group, port=port, recovery=()),
        name="subscriber",
    )
    joined = asyncio.create_task(board.joined.wait())
    await asyncio.wait((running, joined), return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        joined.cancel()
        running.result()
    return running
