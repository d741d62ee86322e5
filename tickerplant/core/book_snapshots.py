"""Whole books at regular instants, as rows of `book_snapshots`. Pure.

The instants are multiples of the interval on the clock of the log (`ts_send_ns`): the same log always gives the same
snapshots, as far as the books are known. A row holds the book after its message `seq` of stream delta.
"""

from collections.abc import Sequence

from tickerplant.core.messages import AnyMessage, BookState, Message, Stream
from tickerplant.core.recovery_state import PlantState
from tickerplant.core.rows import Row, book_snapshot_row
from tickerplant.core.wire import Header

BOOK_STREAMS = (Stream.DELTA, Stream.STATUS)
"""What books are made of; and the ends of markets."""


class BookSnapshots:
    """Follows the data datagrams of `BOOK_STREAMS`; the others may be left out."""

    def __init__(self, interval_ns: int, state: PlantState | None = None) -> None:
        """`state` is that before the first datagram; None: no book is known until it is published."""
        assert interval_ns > 0
        self._interval_ns = interval_ns
        self._state = state if state is not None else PlantState()
        self._instant = 0
        self._last: dict[str, Message | None] = {}
        """The newest message in the book of each market at its last snapshot."""

    def receive(self, header: Header, messages: Sequence[AnyMessage | None]) -> list[Row]:
        """The rows that are due before this datagram: books that are live and changed. Then it is applied."""
        rows: list[Row] = []
        if header.stream not in BOOK_STREAMS:
            return rows
        instant = header.ts_send_ns // self._interval_ns
        if instant != self._instant:
            if header.session == self._state.session and instant > self._instant > 0:
                rows = self._take(instant * self._interval_ns)
            self._instant = instant
        if self._state.admit(header):
            self._state.apply(messages)
        return rows

    def _take(self, time_ns: int) -> list[Row]:
        state = self._state
        seq = state.next_seqs[Stream.DELTA - 1] - 1
        rows = []
        for ticker, market in state.markets.items():
            if market.phase != BookState.LIVE or self._last.get(ticker) is market.last:
                continue
            self._last[ticker] = market.last
            rows.append(book_snapshot_row(time_ns, state.session, seq, ticker, market.book))
        if len(self._last) > len(state.markets):
            self._last = {name: self._last[name] for name in state.markets if name in self._last}
        return rows
