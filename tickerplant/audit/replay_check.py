"""The same inputs through the plant once more: the bodies that the log has must come out again, byte for byte. Pure.

This accounts for every `g`: each input takes its number again, and each message must carry it.
"""

from collections.abc import Sequence

from tickerplant.audit.findings import EXCHANGE, STREAM_NAMES, Cause, Findings
from tickerplant.core.packets import Datagram
from tickerplant.core.wire import HEADER, Kind
from tickerplant.errors import TickerplantError
from tickerplant.limits import HEADER_BYTES
from tickerplant_kalshi.inputs import AnyInput, Begin
from tickerplant_kalshi.playback import Playback

_KIND, _STREAM, _SEQ, _COUNT, _SIZE = 2, 3, 7, 9, 10
"""Places in the header's fields."""


class ReplayCheck:
    """Plays inputs; `compare` after each flush. After the first difference it stops: all that follows would differ."""

    def __init__(self, findings: Findings, begin: Begin) -> None:
        self.datagrams = 0
        self.is_running = True
        self._findings = findings
        self._playback = Playback(begin)
        self._made: list[bytes] = []

    @property
    def inputs(self) -> int:
        """`g` of the last input."""
        return self._playback.feed.plant.g

    def apply(self, item: AnyInput) -> None:
        """One input."""
        if not self.is_running:
            return
        try:
            self._keep(self._playback.apply(item))
        except TickerplantError as error:
            self.stop()
            self._findings.add(EXCHANGE, Cause.PLANT, f"the inputs cannot be played again: {error}")

    def _keep(self, datagrams: Sequence[Datagram]) -> None:
        self._made += [datagram for _stream, datagram in datagrams if datagram[_KIND_AT] == 0]

    def compare(self, logged: Sequence[bytes]) -> None:
        """What the log has of the inputs played since the last call."""
        if not self.is_running:
            return
        made, self._made = self._made, []
        found = [datagram for datagram in logged if datagram[_KIND_AT] == Kind.DATA]
        self.datagrams += len(found)
        for ours, theirs in zip(made, found, strict=False):
            if _core(ours) != _core(theirs):
                self._differs(theirs)
                return
        if len(made) != len(found):
            self._differs((made[len(found) :] or found[len(made) :])[0])

    def forget(self) -> None:
        """What was played last belongs to another session's log."""
        self._made.clear()

    def _differs(self, datagram: bytes) -> None:
        self.stop()
        fields = HEADER.unpack_from(datagram)
        self._findings.add(
            EXCHANGE,
            Cause.PLANT,
            "played again, the inputs give other messages than the log has; the comparison ends here",
            stream=fields[_STREAM] if fields[_STREAM] < len(STREAM_NAMES) else 0,
            seqs=(fields[_SEQ], fields[_SEQ] + max(0, fields[_COUNT] - 1)),
        )

    def stop(self) -> None:
        """Nothing that follows can be compared."""
        self.is_running = False
        self._made.clear()


_KIND_AT = 3
"""Offset of the kind in a datagram."""


def _core(datagram: bytes) -> tuple[int, int, int, bytes]:
    """What must be equal: stream, sequence, count and body. Flags, signature and times of sending may differ."""
    fields = HEADER.unpack_from(datagram)
    body = datagram[HEADER_BYTES : HEADER_BYTES + fields[_SIZE]]
    return fields[_STREAM], fields[_SEQ], fields[_COUNT], body
