"""What is known of one plant and its sessions, and what recovery is asked through (pure)."""

from dataclasses import dataclass, field
from typing import Protocol

from tickerplant.core.messages import SessionStart
from tickerplant.core.recovery_wire import SessionRange
from tickerplant.limits import SESSION_FINISH_NS
from tickerplant_subscriber.stream_state import Hole, StreamState

PlantKey = tuple[int, int]
"""(publisher, partition)"""


class Repair(Protocol):
    """What the arbiter asks of recovery."""

    def is_out_of_reach(self, publisher: int, partition: int) -> bool:
        """Whether recovery of a plant is known not to answer."""

    def wake(self) -> None:
        """There is something to ask: `handle_timer` wants to be called soon."""

    def take_hole(self, state: StreamState, hole: Hole, now_ns: int) -> bool:
        """Does the next step about a hole that is due and sets its deadline; False if nothing can be done."""

    def next_deadline_ns(self) -> int | None:
        """When `handle_timer` wants to be called."""

    def handle_timer(self, now_ns: int) -> None:
        """Asks what is to be asked."""


@dataclass(slots=True)
class Candidate:
    """A higher session that nobody has confirmed yet, and what was heard of it."""

    session: int
    first_ns: int
    line: int
    streams: dict[int, StreamState] = field(default_factory=dict)


@dataclass(slots=True)
class PlantState:
    """One plant; `session` is 0 until one is confirmed.

    `start` is the `SessionStart` of its session; `start_lost` if it will not come. `ranges` is what recovery holds of
    its sessions, as of `hello_ns`. `unplanned`: streams wait for recovery to say how their old session ended, and at
    most `patience_ns` after `changed_ns`. `resuming`: nothing goes on until recovery has said where the plant stands.
    """

    publisher: int
    partition: int
    session: int
    start: SessionStart | None = None
    start_lost: bool = False
    streams: dict[int, StreamState] = field(default_factory=dict)
    candidates: dict[int, Candidate] = field(default_factory=dict)
    ranges: dict[int, SessionRange] = field(default_factory=dict)
    hello_ns: int = 0
    changed_ns: int = 0
    patience_ns: int = SESSION_FINISH_NS
    unplanned: bool = False
    resuming: bool = False
    resumed: bool = False


@dataclass(slots=True)
class Refusals:
    """Count of refused datagrams of one kind on one line, and when it was last told."""

    count: int = 0
    told_ns: int | None = None
