"""The inputs of a capture in groups: what was taken in, and the flush that published it."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tickerplant_kalshi.inputs import (
    AnyInput,
    EndTimer,
    Flush,
    SessionEnding,
    Timer,
    decode_inputs,
)

_FLUSHING = (Flush, Timer, SessionEnding, EndTimer)


class Group(NamedTuple):
    """Inputs up to and including a flush at `now_ns`; 0: the capture ends before it."""

    inputs: list[AnyInput]
    now_ns: int


def groups_of(records: Iterable[bytes]) -> Iterator[Group]:
    """In order. Flushes of the same nanosecond are one group, because the log cannot tell them apart.

    Raises `DamagedCaptureError`.
    """
    held: Group | None = None
    inputs: list[AnyInput] = []
    for record in records:
        for item in decode_inputs(record):
            inputs.append(item)
            if not isinstance(item, _FLUSHING):
                continue
            if held is not None and held.now_ns != item.now_ns:
                yield held
                held = None
            held = Group([*held.inputs, *inputs] if held is not None else inputs, item.now_ns)
            inputs = []
    if held is not None:
        yield held
    if inputs:
        yield Group(inputs, 0)
