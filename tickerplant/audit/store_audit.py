"""Stored rows against the tick log: each row of a session that the store says it has, once, as it follows from the log.

Rows are not compared one by one but tallied on both sides, by table and block of sequences: how many, and the sum of
their hashes. That takes any order and little memory. Only blocks whose tallies differ are looked at row by row.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path

import pyarrow as pa

from tickerplant.audit.audited_store import AuditedStore
from tickerplant.audit.findings import Cause, Findings
from tickerplant.audit.sources import Figures
from tickerplant.core.logformat import LogPosition, SegmentName
from tickerplant.core.messages import Stream
from tickerplant.core.rows import STREAM_NAMES, Row, RowMapper, Rows
from tickerplant.core.tables import FEED_EVENTS, TABLES, Table
from tickerplant.core.wire import Kind, decode_header
from tickerplant.errors import StoreError, WireError
from tickerplant.limits import (
    AUDIT_ROW_BLOCK_SEQS,
    AUDIT_ROW_BLOCKS_SHOWN,
    ROW_CLOCK_DIFFERENCE_MAX_NS,
)
from tickerplant.runtime.logreader import LogReader
from tickerplant.store.arrow_tables import day_of_ns

_HASH_MASK = 2**64 - 1
_HOUR_NS = 3_600 * 1_000_000_000
_LIVE_TABLES = tuple(table for table in TABLES.values() if table.streams)
_STREAMS_BY_NAME = {STREAM_NAMES[stream]: stream for stream in Stream}

Block = tuple[str, int]
"""(table, sequence // AUDIT_ROW_BLOCK_SEQS)"""


class StoreAudit:
    """One audit of a session's rows; `run` once."""

    def __init__(
        self, findings: Findings, log: Path, first: SegmentName, store: AuditedStore
    ) -> None:
        """Of the session in `findings`, whose log begins with segment `first`."""
        self._findings = findings
        self._log = log
        self._first = first
        self._store = store
        self._from_seqs: dict[int, int] = {}
        self._next_seqs: dict[int, int] = {}
        self._messages_behind = 0
        self._expired: Counter[tuple[str, date]] = Counter()

    def run(self) -> Figures:
        """Compare, add what is wrong to the findings, and say what was counted. Raises `OSError`."""
        for fault in self._store.faults:
            self._add(Cause.DISK, fault)
        wanted: dict[Block, list[int]] = {}
        row_count = 0
        for rows in self._logged():
            row_count += _tally(rows, wanted)
        expired = self._expired.copy()
        found: dict[Block, list[int]] = {}
        try:
            for table in _LIVE_TABLES:
                for table_rows in self._stored(table):
                    _tally({table.name: table_rows}, found)
            blocks = sorted(
                block
                for block in wanted.keys() | found.keys()
                if wanted.get(block) != found.get(block)
            )
            self._look_at(blocks)
        except StoreError as error:
            self._add(Cause.DISK, str(error))
        return {
            "rows": row_count,
            "tables": len({table for table, _ in wanted}),
            "messages not stored yet": self._messages_behind,
            **self._expired_figures(expired),
        }

    def _expired_figures(self, expired: Counter[tuple[str, date]]) -> Figures:
        """How many rows have expired, and are in the archive; one that is used and lacks some is a finding."""
        if not expired:
            return {}
        figures: Figures = {"rows expired": expired.total()}
        if self._store.open_archive is None:
            return figures
        archived_count, fewer = 0, []
        try:
            archive = self._store.open_archive()
            for (name, day), count in sorted(expired.items()):
                archived = archive.row_count(name, day)
                archived_count += min(count, archived or 0)
                if archived is not None and archived < count:
                    fewer.append((name, f"{day} expired, the archive has {archived} of {count}"))
        except StoreError as error:
            return {**figures, "archive": f"cannot be asked ({error})"}
        for name, words in fewer:
            self._add(Cause.RETENTION, f"rows of {name} {words}", TABLES[name])
        return {**figures, "of these archived": archived_count}

    # --- both sides -------------------------------------------------------------------------------

    def _logged(self) -> Iterator[Rows]:
        """The rows that follow from the log, as far as the store says it is, without those that have expired."""
        self._messages_behind = 0
        self._expired.clear()
        start = self._store.expiry.start
        with LogReader(self._log, LogPosition(*self._first)) as reader:
            while (batch := reader.read()) is not None:
                if batch.segment.session != self._findings.session:
                    return
                old, new = RowMapper(), RowMapper()
                for offset, datagram in batch.records:
                    position = LogPosition(*batch.segment, offset)
                    self._map(old if start is None or position < start else new, position, datagram)
                yield self._unexpired(old.take())
                yield new.take()

    def _unexpired(self, rows: Rows) -> Rows:
        """These, without what the store has deleted for its age, which is counted."""
        kept = {}
        for name, table_rows in rows.items():
            before_ns = self._store.expiry.before_ns.get(name)
            kept[name] = table_rows
            # A table's time is its first column.
            if before_ns is not None and any(row[0] < before_ns for row in table_rows):
                kept[name] = [row for row in table_rows if row[0] >= before_ns]
                self._expired.update(
                    (name, day_of_ns(row[0])) for row in table_rows if row[0] < before_ns
                )
        return kept

    def _map(self, mapper: RowMapper, position: LogPosition, datagram: bytes) -> None:
        try:
            header = decode_header(datagram)
            if header.kind != Kind.DATA:
                return
            if self._store.position is None or position >= self._store.position:
                self._messages_behind += header.message_count
                return
            mapper.add_datagram(datagram)
        except WireError:
            # The audit of the log tells it.
            return
        self._from_seqs.setdefault(header.stream, header.seq)
        self._next_seqs[header.stream] = header.seq + header.message_count

    def _stored(self, table: Table, seqs: tuple[int, int] | None = None) -> Iterator[list[Row]]:
        """The stored rows of what the log has of the session; `seqs`: only these, the last one not included."""
        # Live trades are stored under the exchange's time, which may be so much earlier.
        start_ns = self._findings.session - ROW_CLOCK_DIFFERENCE_MAX_NS - _HOUR_NS
        sql = (
            f"SELECT {', '.join(table.column_names)} FROM {table.name} "
            f"WHERE session = {self._findings.session} "
            f"AND {table.time} >= {self._store.source.time_literal(start_ns)}"
        )
        if seqs is not None:
            sql += f" AND seq >= {seqs[0]} AND seq < {seqs[1]}"
        seq_index = table.column_names.index("seq")
        stream_index = table.column_names.index("stream") if table is FEED_EVENTS else -1
        for batch in self._store.source.stream(sql):
            yield [
                row
                for row in rows_of(batch)
                if self._is_logged(
                    _STREAMS_BY_NAME.get(row[stream_index], 0)
                    if stream_index >= 0
                    else table.streams[0],
                    row[seq_index],
                )
            ]

    def _is_logged(self, stream: int, seq: int) -> bool:
        """Whether the log, as far as it was read, has this sequence; of others nothing can be said."""
        return self._from_seqs.get(stream, 0) <= seq < self._next_seqs.get(stream, 0)

    # --- differences ------------------------------------------------------------------------------

    def _look_at(self, blocks: list[Block]) -> None:
        """Name what differs in these, row by row."""
        shown = blocks[:AUDIT_ROW_BLOCKS_SHOWN]
        wanted: dict[Block, Counter[Row]] = {block: Counter() for block in shown}
        if shown:
            for rows in self._logged():
                for name, table_rows in rows.items():
                    seq_index = TABLES[name].column_names.index("seq")
                    for row in table_rows:
                        counter = wanted.get((name, row[seq_index] // AUDIT_ROW_BLOCK_SEQS))
                        if counter is not None:
                            counter[row] += 1
        for block, counter in wanted.items():
            name, number = block
            start = number * AUDIT_ROW_BLOCK_SEQS
            found: Counter[Row] = Counter()
            for table_rows in self._stored(TABLES[name], (start, start + AUDIT_ROW_BLOCK_SEQS)):
                found.update(table_rows)
            self._name_rows(TABLES[name], counter, found)
        for name, number in blocks[AUDIT_ROW_BLOCKS_SHOWN:]:
            start = number * AUDIT_ROW_BLOCK_SEQS
            self._add(
                Cause.DISK,
                f"rows of {name} differ from the log",
                TABLES[name],
                (start, start + AUDIT_ROW_BLOCK_SEQS - 1),
            )

    def _name_rows(self, table: Table, wanted: Counter[Row], found: Counter[Row]) -> None:
        seq_index = table.column_names.index("seq")
        time_index = table.column_names.index("ts_recv")
        missing, extra = wanted - found, found - wanted
        missing_seqs = {row[seq_index] for row in missing}
        extra_seqs = {row[seq_index] for row in extra}
        twice = {row[seq_index] for row in extra if row in wanted} - missing_seqs
        times = {row[seq_index]: row[time_index] for row in (*missing, *extra)}
        for what, seqs in (
            ("missing", missing_seqs - extra_seqs),
            ("other than in the log", missing_seqs & extra_seqs),
            ("there more than once", twice),
            ("not in the log", extra_seqs - missing_seqs - twice),
        ):
            for first, last in _runs(sorted(seqs)):
                self._add(
                    Cause.DISK,
                    f"rows of {table.name} are {what}",
                    table,
                    (first, last),
                    (times[first], times[last]),
                )

    def _add(
        self,
        cause: Cause,
        what: str,
        table: Table | None = None,
        seqs: tuple[int, int] = (0, 0),
        times_ns: tuple[int, int] | None = None,
    ) -> None:
        stream = table.streams[0] if table is not None and len(table.streams) == 1 else 0
        self._findings.add(
            self._store.name, cause, what, stream=stream, seqs=seqs, times_ns=times_ns
        )


def rows_of(batch: pa.RecordBatch) -> Iterator[Row]:
    """The rows of a batch as `core.rows` makes them: times are integers."""
    columns = [
        (column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist()
        for column in batch.columns
    ]
    return iter(zip(*columns, strict=True))


def _tally(rows: Rows, blocks: dict[Block, list[int]]) -> int:
    """Add rows to the tallies; how many."""
    count = 0
    for name, table_rows in rows.items():
        seq_index = TABLES[name].column_names.index("seq")
        for row in table_rows:
            block = (name, row[seq_index] // AUDIT_ROW_BLOCK_SEQS)
            tally = blocks.get(block)
            if tally is None:
                tally = blocks[block] = [0, 0]
            tally[0] += 1
            tally[1] = (tally[1] + hash(row)) & _HASH_MASK
        count += len(table_rows)
    return count


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """First and last of each run of consecutive numbers."""
    first = last = None
    for number in numbers:
        if first is None or last is None:
            first = last = number
        elif number == last + 1:
            last = number
        else:
            yield first, last
            first = last = number
    if first is not None and last is not None:
        yield first, last
