"""Where the demo multicasts: groups on loopback that nobody uses, so that it runs beside a plant or another demo."""

import random
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tickerplant.config import PublishConfig
from tickerplant.errors import GroupOccupiedError
from tickerplant.runtime.network import Heard, Line, listen_on_groups

INTERFACE = "127.0.0.1"
LISTEN_S = 1.1
"""A plant that lives on a group is heard at least once a second."""
CANDIDATES = 3
_THIRD_OCTETS = range(96, 256)
"""Of 239.192.0.0/16, without those that plants have by default."""


@contextmanager
def reserved_port() -> Iterator[int]:
    """A UDP port that the kernel gives to nobody else who asks for any free one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind((INTERFACE, 0))
        yield int(holder.getsockname()[1])


def draw_candidates() -> list[Line]:
    """A few blocks of five groups, drawn at random."""
    drawn = random.SystemRandom().sample(_THIRD_OCTETS, CANDIDATES)
    return [
        Line(PublishConfig(group_a=f"239.192.{octet}.1").groups("a"), INTERFACE) for octet in drawn
    ]


def find_free_groups(port: int, candidates: Sequence[Line], seconds: float = LISTEN_S) -> str:
    """The first group of the first of `candidates` on which nothing is heard for `seconds`, which this blocks.

    Raises `GroupOccupiedError` if there is none, `NetworkSetupError` if multicast does not work here.
    """
    return choose_free(candidates, listen_on_groups(candidates, port, seconds), port)


def choose_free(candidates: Sequence[Line], heard: Sequence[Heard], port: int) -> str:
    """The first group of the first of `candidates` without a sender. Raises `GroupOccupiedError`."""
    occupied = {item.group for item in heard}
    for candidate in candidates:
        if occupied.isdisjoint(candidate.groups):
            return candidate.groups[0]
    names = ", ".join(candidate.groups[0] for candidate in candidates)
    raise GroupOccupiedError(
        f"multicast groups {names} port {port} on {INTERFACE} all carry something: start the demo again, "
        "it draws other groups"
    )
