"""The plant's way out: every datagram goes into the tick log, and then it is sent.

What the log does not take is sent all the same, and says that it cannot be repaired.
"""

from typing import Protocol

from tickerplant.core.logformat import NextSeqs
from tickerplant.core.packets import Datagram


class OutletPlant(Protocol):
    """What the outlet tells the plant; a `core.plant.Plant`."""

    @property
    def log_on(self) -> bool:
        """Whether what is published can be repaired from the tick log."""

    def lose_log(self, datagrams: list[Datagram]) -> list[Datagram]:
        """The log did not take `datagrams`: these are to be sent instead."""

    def set_log(self, *, is_on: bool, oldest_seqs: NextSeqs = ...) -> None:
        """How the log does."""


class Log(Protocol):
    """Where datagrams are kept; a `runtime.ticklog.TickLog`."""

    def append(self, datagrams: list[Datagram]) -> bool:
        """Whether all of them are in the log. Never raises."""

    @property
    def is_on(self) -> bool:
        """Whether what is appended goes into the log."""

    @property
    def oldest_seqs(self) -> NextSeqs:
        """The oldest sequence of each stream that the log has."""


class Sender(Protocol):
    """What sends; a `runtime.publisher.Publisher`."""

    def send(self, datagrams: list[Datagram]) -> None:
        """Send each once. Never raises."""


class Outlet:
    """Log, then wire. `log` is None where nothing is kept."""

    def __init__(self, plant: OutletPlant, log: Log | None, sender: Sender) -> None:
        """The plant has been told whether the log is on."""
        self._plant = plant
        self._log = log
        self._append = _keep_nothing if log is None else log.append
        self._send = sender.send

    def send(self, datagrams: list[Datagram]) -> None:
        """Keep and send (stream, datagram) pairs, at least one. Never raises."""
        if not self._append(datagrams) and self._plant.log_on:
            datagrams = self._plant.lose_log(datagrams)
        self._send(datagrams)

    def look(self) -> None:
        """To be called once a second: heartbeats tell how the log does."""
        log, plant = self._log, self._plant
        if log is not None and plant.log_on:
            plant.set_log(is_on=log.is_on, oldest_seqs=log.oldest_seqs)


def _keep_nothing(_datagrams: list[Datagram]) -> bool:
    return False
