"""QuestDB as a backend of the store: batches by the official ILP client over HTTP, each acknowledged or sent again.

One batch is on its way, in a thread of its own, while the next one is collected. A batch that was written and not
acknowledged is written again: the tables' DEDUP keys, which come from the log, make that harmless. How far the log is
in the database is kept in a file beside the dead letters, together with the id of the database: another database is
filled from the oldest record of the log.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
from questdb import QuestDBError, QuestDBErrorCode, Sender

from tickerplant.core.columns import Columns, Tables, count_of, join
from tickerplant.core.logformat import LogPosition
from tickerplant.core.rows import Row
from tickerplant.core.tables import TABLES, Table
from tickerplant.errors import CredentialsError, StoreError, StoreUnavailableError
from tickerplant.limits import (
    QUESTDB_BEHIND_BATCH_TIMES,
    QUESTDB_CONVERT_ROWS,
    QUESTDB_REFUSED_PER_BATCH_MAX,
)
from tickerplant.store.arrow_tables import joined, row_of, to_arrow
from tickerplant.store.backend import Committed, RejectedRow
from tickerplant.store.parquet_folder import take_lock
from tickerplant.store.questdb_frames import fitting_rows, symbols, to_frame
from tickerplant.store.questdb_http import Login, QuestDbHttp
from tickerplant.store.schema import MATERIALIZED_VIEWS
from tickerplant.store.schema_check import LiveSchema, blocking, compare, read_schema

POSITION_FILE = "questdb-position.json"
_SYSTEM_FAULT = "errno: "
"""In the server's words when a file cannot be written, for which it blames a line too."""
_LINE = re.compile(r'"line"\s*:\s*(\d+)')


class _Kept(msgspec.Struct, frozen=True):
    """Content of the position file."""

    database_id: str
    session: int
    ordinal: int
    offset: int


class _Part(NamedTuple):
    """The rows of one table in a batch, never none."""

    table: Table
    data: pa.Table


class _Batch(NamedTuple):
    """What one request holds; `position` is the end of it in the log."""

    parts: list[_Part]
    position: LogPosition


class _Waiting:
    """Rows of one table until they are sent: as they came, until they are enough for columns of Arrow."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.parts: list[pa.Table] = []
        self._pieces: list[Columns | Sequence[Row]] = []
        self._row_count = 0

    def add(self, rows: Columns | Sequence[Row]) -> list[RejectedRow]:
        """Those that cannot be stored."""
        self._pieces.append(rows)
        self._row_count += count_of(rows)
        return self.convert() if self._row_count >= QUESTDB_CONVERT_ROWS else []

    def convert(self) -> list[RejectedRow]:
        """What came becomes a part."""
        if not self._row_count:
            return []
        data, unfit = fitting_rows(self.table, join(self._pieces))
        if data.num_rows:
            self.parts.append(data)
        self._pieces, self._row_count = [], 0
        return unfit


class QuestDbBackend:
    """The writer; `open` first. See `backend.Backend`."""

    def __init__(
        self,
        conf: str,
        read_login: Callable[[], Login],
        folder: Path,
        *,
        batch_ns: int,
        batch_rows: int,
    ) -> None:
        """Sends rows when the oldest is `batch_ns` old, at the latest at `batch_rows`; opens nothing.

        `folder` is the store's.
        """
        self.batches = 0
        self.rows_written = 0
        self.rows_rejected = 0
        self.resumed_tables = 0
        self.suspended: dict[str, str] = {}
        """Tables whose rows the server does not apply, and why."""
        self.wal_pending_rows = 0
        self.folder = folder
        self._conf = conf
        self._read_login = read_login
        self._path = folder / POSITION_FILE
        self._batch_ns = batch_ns
        self._batch_rows = batch_rows
        self._lock = -1
        self._database_id = ""
        self._server: QuestDbHttp | None = None
        self._sender: Sender | None = None
        self._writer = ThreadPoolExecutor(1, "store-writer")
        self._writing: Future[Committed] | None = None
        self._durable: LogPosition | None = None
        self._told: LogPosition | None = None
        self._kept: LogPosition | None = None
        self._taken: LogPosition | None = None
        self._sent: LogPosition | None = None
        self._waiting: dict[str, _Waiting] = {}
        self._unfit: list[RejectedRow] = []
        self._row_count = 0
        self._begun_ns = 0
        self._is_sending_due = False

    # --- as the service sees it -------------------------------------------------------------------

    def open(self) -> LogPosition | None:
        """Connect, look at the schema, and return from where the log is to be read; None: its start.

        Raises `StoreUnavailableError`, whatever is wrong with the server, its schema or our password; `StoreError` if
        another store uses the folder.
        """
        if self._lock < 0:
            self._lock = take_lock(self._path.parent)
        try:
            login = self._read_login()
            self._server = QuestDbHttp(self._conf, login)
            live = read_schema(self._server)
            self._check_schema(live)
            self._resume_tables()
            self._connect(login)
        except QuestDBError as error:
            raise self._unavailable(error) from error
        except (CredentialsError, StoreError) as error:
            raise StoreUnavailableError(str(error)) from error
        self._forget()
        self._database_id = live.database_id
        self._durable = self._taken = self._sent = self._told = self._kept = self._load()
        return self._durable

    def take(self, rows: Tables, position: LogPosition, now_ns: int) -> list[RejectedRow]:
        """Take the rows of the log up to `position`. Rows that cannot be stored are told by `commit`."""
        if self._taken == self._sent:
            self._begun_ns = now_ns
        for name, fresh in rows.items():
            waiting = self._waiting.setdefault(name, _Waiting(TABLES[name]))
            self._unfit += waiting.add(fresh)
            self._row_count += count_of(fresh)
        self._taken = position
        return []

    def is_due(self, now_ns: int, *, is_behind: bool = False) -> bool:
        """Whether rows are to be sent, or an acknowledgement has come.

        While a batch is on its way the next one grows, up to `batch_rows`; so it does for longer where there is more of
        the log: a row of a large batch costs client and server a quarter of what one of a small batch does.
        """
        is_acknowledged = self._writing is not None and self._writing.done()
        is_free = self._writing is None or is_acknowledged
        patience = QUESTDB_BEHIND_BATCH_TIMES if is_behind else 1
        is_old = now_ns - self._begun_ns >= self._batch_ns * patience
        is_full = self._row_count >= self._batch_rows
        self._is_sending_due = is_full or (is_old and is_free)
        return is_acknowledged or (self._is_sending_due and self._taken != self._sent)

    def commit(self, *, wait: bool = False) -> Committed:
        """Send what was taken if it is due; tells what was acknowledged before, with `wait` all and everything.

        Raises `StoreUnavailableError`: `discard`.
        """
        # By now the rejected rows of the last answer are among the dead letters.
        self._keep()
        if self._suspended_reason:
            raise StoreUnavailableError(self._suspended_reason)
        rejected = self._collect()
        is_wanted = wait or self._is_sending_due
        if is_wanted and self._taken is not None and self._taken != self._sent:
            batch = self._batch(self._taken)
            rejected += self._unfit
            self._unfit = []
            self._sent = self._taken
            self._writing = self._writer.submit(self._write, batch)
        if wait:
            rejected += self._collect()
        self.rows_rejected += len(rejected)
        self._told = self._durable
        return Committed(self._durable, rejected)

    def discard(self) -> LogPosition | None:
        """Forget what was not acknowledged, and connect anew. Raises as `open`."""
        if self._writing is not None:
            with suppress(StoreError):
                self._writing.result()
            self._writing = None
        self._forget()
        self._disconnect()
        return self.open()

    def upkeep(self) -> bool:
        """Ask the server how it is; False, there is never more to do. Raises `StoreError`."""
        server = self._server
        # What keeps the server from answering keeps it from taking rows too, and is told then.
        with suppress(StoreUnavailableError, CredentialsError):
            if server is not None:
                self.suspended = _suspended(server)
                [[pending]] = server.execute("SELECT sum(wal_pending_row_count) FROM tables()")
                self.wal_pending_rows = pending or 0
        return False

    def close(self) -> None:
        """Wait for what is on its way, and disconnect; harmless the second time."""
        self._writer.shutdown()
        with suppress(StoreUnavailableError):
            self._keep()
        self._disconnect()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def counters(self) -> dict[str, int]:
        """For the metrics."""
        return {
            "batches": self.batches,
            "rows_written": self.rows_written,
            "rows_rejected": self.rows_rejected,
            "resumed_tables": self.resumed_tables,
        }

    def gauges(self) -> dict[str, int]:
        """For the metrics."""
        return {
            "pending_rows": self._row_count,
            "wal_pending_rows": self.wal_pending_rows,
            "suspended_tables": len(self.suspended),
        }

    # --- the server -------------------------------------------------------------------------------

    def _check_schema(self, live: LiveSchema) -> None:
        """Raises `StoreUnavailableError` if the store cannot work with it."""
        wrong = blocking(compare(live, 0))
        if wrong:
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise StoreUnavailableError(
                f"QuestDB {self._address}: {wrong[0].text}{more}: run `tickerplant schema diff`, then "
                "`tickerplant schema apply`"
            )

    def _resume_tables(self) -> None:
        """Have the server go on with suspended tables. Raises `StoreUnavailableError` while there are any."""
        assert self._server is not None
        for table in _suspended(self._server):
            self._server.execute(f"ALTER TABLE {table} RESUME WAL")
            self.resumed_tables += 1
        self.suspended = _suspended(self._server)
        if self._suspended_reason:
            raise StoreUnavailableError(self._suspended_reason)

    @property
    def _suspended_reason(self) -> str:
        if not self.suspended:
            return ""
        table, reason = next(iter(self.suspended.items()))
        return (
            f"QuestDB {self._address}: table {table} is suspended ({reason or 'no reason given'}): see the server's "
            "log; it is resumed with each attempt"
        )

    @property
    def _address(self) -> str:
        return self._server.address if self._server is not None else self._conf

    def _connect(self, login: Login) -> None:
        """Raises `QuestDBError`."""
        self._disconnect()
        arguments: dict[str, Any] = login.sender_arguments()
        sender = Sender.from_conf(self._conf, auto_flush=False, retry_timeout=0, **arguments)
        sender.establish()  # type: ignore[no-untyped-call]  # the client types no method without arguments
        self._sender = sender

    def _disconnect(self) -> None:
        sender, self._sender = self._sender, None
        if sender is not None:
            sender.close(flush=False)

    def _unavailable(self, error: QuestDBError) -> StoreUnavailableError:
        words = " ".join(str(error).split())[:300]
        return StoreUnavailableError(f"QuestDB {self._address}: {words}")

    # --- a batch ----------------------------------------------------------------------------------

    def _batch(self, position: LogPosition) -> _Batch:
        """What waits; rows that cannot be stored are added to `_unfit`."""
        parts = []
        for waiting in self._waiting.values():
            self._unfit += waiting.convert()
            if waiting.parts:
                parts.append(_Part(waiting.table, joined(waiting.parts)))
        self._waiting, self._row_count = {}, 0
        return _Batch(parts, position)

    def _collect(self) -> list[RejectedRow]:
        """Wait for the batch on its way; what of it was refused. Raises `StoreUnavailableError`."""
        writing, self._writing = self._writing, None
        if writing is None:
            return []
        committed = writing.result()
        self._durable = committed.position
        return committed.rejected

    def _write(self, batch: _Batch) -> Committed:
        """In the writer's thread: all but the rows that the server refuses. Raises `StoreUnavailableError`."""
        parts = batch.parts
        refused: list[RejectedRow] = []
        while (error := self._flush(parts)) is not None:
            one, parts = self._without_refused(parts, error)
            refused.append(one)
            if len(refused) > QUESTDB_REFUSED_PER_BATCH_MAX:
                raise StoreUnavailableError(
                    f"QuestDB {self._address} refuses too many rows of a batch, at last: {one.reason}"
                )
        self.batches += 1
        self.rows_written += sum(part.data.num_rows for part in parts)
        return Committed(batch.position, [one for one in refused if self._is_refused_again(one)])

    def _flush(self, parts: list[_Part]) -> QuestDBError | None:
        """One request; the error if the server names a row. Raises `StoreUnavailableError` for any other."""
        assert self._sender is not None
        try:
            for table, data in parts:
                frame = to_frame(table, data)
                names = symbols(table, frame)
                self._sender.dataframe(frame, table_name=table.name, symbols=names, at=table.time)
            self._sender.flush()
        except QuestDBError as error:
            text = str(error)
            is_rows = error.code == QuestDBErrorCode.ServerFlushError and _LINE.search(text)
            if not is_rows or _SYSTEM_FAULT in text:
                raise self._unavailable(error) from error
            return error
        return None

    def _is_refused_again(self, one: RejectedRow) -> bool:
        """Alone, after others were taken: then it is this row's fault, not a passing state of the server."""
        table = TABLES[one.table]
        return self._flush([_Part(table, to_arrow(table, [one.row]))]) is not None

    def _without_refused(
        self, parts: list[_Part], error: QuestDBError
    ) -> tuple[RejectedRow, list[_Part]]:
        """The row that the server named, and the rest. Raises `StoreUnavailableError` if the schema is at fault."""
        assert self._server is not None
        try:
            self._check_schema(read_schema(self._server))
        except CredentialsError as refusal:
            raise StoreUnavailableError(str(refusal)) from refusal
        match = _LINE.search(str(error))
        assert match is not None
        index = int(match[1]) - 1
        for number, (table, data) in enumerate(parts):
            if 0 <= index < data.num_rows:
                rest = joined([data.slice(0, index), data.slice(index + 1)])
                refused = RejectedRow(table.name, row_of(table, data, index), _reason(error))
                fresh = [_Part(table, rest)] if rest.num_rows else []
                return refused, parts[:number] + fresh + parts[number + 1 :]
            index -= data.num_rows
        raise self._unavailable(error) from error

    def _forget(self) -> None:
        self._waiting, self._row_count, self._unfit = {}, 0, []

    # --- position ---------------------------------------------------------------------------------

    def _load(self) -> LogPosition | None:
        """None if there is none for this database, or none that can be read: rows that are there are written again."""
        try:
            kept = msgspec.json.decode(self._path.read_bytes(), type=_Kept)
        except (OSError, msgspec.MsgspecError):
            return None
        if kept.database_id != self._database_id:
            return None
        return LogPosition(kept.session, kept.ordinal, kept.offset)

    def _keep(self) -> None:
        """Keep the position that was told last. Raises `StoreUnavailableError`."""
        position = self._told
        if position is None or position == self._kept:
            return
        fresh = self._path.with_suffix(".new")
        try:
            fresh.write_bytes(msgspec.json.encode(_Kept(self._database_id, *position)))
            fresh.replace(self._path)
        except OSError as error:
            raise StoreUnavailableError(
                f"store: {self._path}: {error.strerror}: free some space or make it writable"
            ) from error
        self._kept = position


def _suspended(server: QuestDbHttp) -> dict[str, str]:
    """Suspended tables of the database and why. Raises as `QuestDbHttp.execute`."""
    rows = server.execute("SELECT name, errorTag, errorMessage FROM wal_tables() WHERE suspended")
    return {
        name: " ".join(f"{tag or ''} {message or ''}".split())
        for name, tag, message in rows
        if name in TABLES or name in MATERIALIZED_VIEWS
    }


def _reason(error: QuestDBError) -> str:
    """The server's words."""
    text = str(error)
    start = text.find("{")
    try:
        message = json.loads(text[start:])["message"] if start >= 0 else text
    except (ValueError, KeyError):
        message = text
    return " ".join(str(message).split())[:500]
