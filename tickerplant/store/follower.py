"""Following the tick log into a backend: read, map to rows, hand over, make durable; each in a bounded step.

The same for every backend, and without waiting of its own: `turn` does what there is to do and says whether there is
more. Used by one thread at a time.
"""

from collections import deque
from contextlib import suppress
from pathlib import Path

from tickerplant.core.book_snapshots import BookSnapshots
from tickerplant.core.columns import ColumnMapper, Tables
from tickerplant.core.logformat import LogPosition, sent_ns_of
from tickerplant.core.rows import Row
from tickerplant.core.tables import BOOK_SNAPSHOTS
from tickerplant.core.wire import Kind, decode_header
from tickerplant.errors import WireError
from tickerplant.limits import STORE_READ_BYTES
from tickerplant.runtime.logreader import LogBatch, LogFault, LogReader
from tickerplant.store.backend import Backend
from tickerplant.store.book_grid import BookGrid
from tickerplant.store.book_state import books_at
from tickerplant.store.dead_letters import DeadLetters


class LogFollower:
    """Brings the log in `folder` into `backend`, from where the backend says that it is."""

    def __init__(
        self,
        folder: Path,
        backend: Backend,
        dead_letters: DeadLetters,
        *,
        read_bytes: int = STORE_READ_BYTES,
        snapshot_interval_ns: int = 0,
    ) -> None:
        """Books that changed are stored whole every `snapshot_interval_ns`; 0: never. Opens nothing yet."""
        self.folder = folder
        self.backend = backend
        self.dead_letters = dead_letters
        self.durable: LogPosition | None = None
        """Everything of the log before it is durable; None: nothing yet."""
        self.taken_sent_ns = 0
        """When the last datagram that was taken had been sent, and the last durable one (0: none in this process)."""
        self.durable_sent_ns = 0
        self.faults: list[LogFault] = []
        """Parts of the log that cannot be read, until they are told."""
        self.datagrams = 0
        self.rows = 0
        self.commits = 0
        self.log_faults = 0
        self.undecodable_datagrams = 0
        self._read_bytes = read_bytes
        self._is_behind = False
        self._snapshot_interval_ns = snapshot_interval_ns
        self._snapshots: BookSnapshots | None = None
        self._reader: LogReader | None = None
        self._mapper = ColumnMapper()
        self._sent: deque[tuple[LogPosition, int]] = deque()
        """What was taken and is not durable: up to where, and when the plant had sent it."""

    @property
    def is_open(self) -> bool:
        """Whether `turn` can be called."""
        return self._reader is not None

    def open(self) -> LogPosition | None:
        """Open the backend; where the log is read from, None: its start. Raises as `Backend.open`."""
        self._read_from(self.backend.open())
        return self.durable

    def reopen(self) -> LogPosition | None:
        """After a failure of `turn` or `commit`: forget what is not durable. Raises as `Backend.discard`."""
        self._close_reader()
        self._read_from(self.backend.discard())
        return self.durable

    def turn(self, now_ns: int) -> bool:
        """Make durable what is due, and take the next piece of the log; whether there may be more at once.

        `now_ns` is of a clock that never goes back. Raises `OSError` if the log cannot be read (call it again),
        `StoreUnavailableError` (`reopen`), `StoreError`.
        """
        assert self._reader is not None
        if self.backend.is_due(now_ns, is_behind=self._is_behind):
            self.commit()
        batch = self._reader.read()
        self._is_behind = batch is not None and _bytes_of(batch) >= self._read_bytes // 2
        if batch is not None:
            self._take(batch, now_ns)
        return batch is not None

    def commit(self, *, wait: bool = False) -> None:
        """Make durable what was taken, see `Backend.commit`. Raises `StoreUnavailableError` (`reopen`)."""
        position, rejected = self.backend.commit(wait=wait)
        self.dead_letters.add_rows(rejected)
        if position is None or position == self.durable:
            return
        self.commits += 1
        self.durable = position
        while self._sent and self._sent[0][0] <= position:
            self.durable_sent_ns = self._sent.popleft()[1]

    def close(self) -> None:
        """Forget what is not durable, and close everything; harmless the second time."""
        self._close_reader()
        self.backend.close()

    def _take(self, batch: LogBatch, now_ns: int) -> None:
        self.faults += batch.faults
        self.log_faults += len(batch.faults)
        snapshots: list[Row] = []
        for offset, datagram in batch.records:
            try:
                snapshots += self._map(datagram)
            except WireError as error:
                self.undecodable_datagrams += 1
                position = LogPosition(*batch.segment, offset)
                self.dead_letters.add_datagram(position, datagram, str(error))
        row_count = self._mapper.row_count + len(snapshots)
        rows: Tables = self._mapper.take()
        if snapshots:
            rows = {**rows, BOOK_SNAPSHOTS.name: snapshots}
        self.dead_letters.add_rows(self.backend.take(rows, batch.position, now_ns))
        self.rows += row_count
        self.datagrams += len(batch.records)
        if batch.records:
            self.taken_sent_ns = sent_ns_of(batch.records[-1][1])
            self._sent.append((batch.position, self.taken_sent_ns))

    def _map(self, datagram: bytes) -> list[Row]:
        """Take its rows; the snapshots that are due before it. Raises `WireError`; then nothing was added."""
        header = decode_header(datagram)
        if header.kind != Kind.DATA:
            return []
        messages = self._mapper.add(header, datagram)
        return [] if self._snapshots is None else self._snapshots.receive(header, messages)

    def _read_from(self, position: LogPosition | None) -> None:
        self.durable = position
        self._sent.clear()
        self._mapper = ColumnMapper()
        self._reader = LogReader(self.folder, position, read_bytes=self._read_bytes)
        if self._snapshot_interval_ns:
            with suppress(OSError):
                # What keeps the log from being read here is told when it is read on.
                state = books_at(self.folder, position)
                self._snapshots = BookSnapshots(self._snapshot_interval_ns, state, BookGrid)

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def _bytes_of(batch: LogBatch) -> int:
    """How much of the log its records are, about."""
    return batch.position.offset - batch.records[0][0] if batch.records else 0
