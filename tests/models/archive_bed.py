"""Days of rows in an embedded store, an S3 server, and archivers that stop where they are told."""

import http.client
import os
import socket
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

from market_day import MarketDay

from tickerplant.core.logformat import LogPosition
from tickerplant.core.rows import RowMapper
from tickerplant.runtime.logreader import LogReader
from tickerplant.store.archiver import Archiver, WorkFolder
from tickerplant.store.arrow_tables import start_of_day_ns
from tickerplant.store.dead_letters import DeadLetters
from tickerplant.store.follower import LogFollower
from tickerplant.store.object_store import ObjectStore
from tickerplant.store.parquet_store import ParquetStore
from tickerplant.store.questdb_http import Login
from tickerplant.store.questdb_store import QuestDbBackend

DAY = date(2026, 9, 20)
NEXT_DAY = date(2026, 9, 21)
SECOND_NS = 1_000_000_000
MIDNIGHT_NS = start_of_day_ns(NEXT_DAY)
LATER_NS = MIDNIGHT_NS + 3 * 86_400 * SECOND_NS
"""When both days are long over."""
S3_ENVIRON = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
BUCKET = "rows"
SECONDS_MAX = 30.0


class Stopped(Exception):  # noqa: N818  # it is no error
    """Instead of a crash."""


class S3Server:
    """An S3 server in a process of its own."""

    def __init__(self) -> None:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        code = "import sys; from moto.server import main; main(sys.argv[1:])"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code, "-H", "127.0.0.1", "-p", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def __enter__(self):
        deadline = time.monotonic() + SECONDS_MAX
        while True:
            try:
                assert self.request("PUT", f"/{BUCKET}") == 200
                return self
            except OSError:
                assert time.monotonic() < deadline, "the S3 server does not answer"
                time.sleep(0.05)

    def __exit__(self, *_exception):
        self._process.kill()
        self._process.wait()

    def request(self, method: str, path: str, body: bytes | None = None) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS_MAX)
        try:
            connection.request(method, path, body)
            return connection.getresponse().status
        finally:
            connection.close()

    def store(self, prefix: str) -> ObjectStore:
        return ObjectStore(
            f"s3://{BUCKET}/{prefix}",
            endpoint=self.endpoint,
            region="us-east-1",
            environ=S3_ENVIRON,
        )


def market_log(folder: Path, steps: int = 800) -> Path:
    """A tick log of the last seconds of `DAY` and the first of the next."""
    begin_ns = MIDNIGHT_NS - 2 * SECOND_NS
    with MarketDay(folder, session=begin_ns) as day:
        day.run(steps, step_ns=12_000_000).close()
    return folder


def market_store(log: Path, folder: Path, *, close_rows: int = 200) -> Path:
    """The embedded store of that log, in many closings."""
    with (
        ParquetStore(folder, close_ns=10**18, close_rows=close_rows) as store,
        LogReader(log, store.open(), read_bytes=8_192) as reader,
    ):
        while (batch := reader.read()) is not None:
            mapper = RowMapper()
            for _offset, datagram in batch.records:
                mapper.add_datagram(datagram)
            store.take(mapper.take(), batch.position, 0)
            if store.is_due(0):
                store.commit()
        store.commit()
    return folder


def questdb_writer(server, folder: Path) -> QuestDbBackend:
    """Of rows into a `LocalServer`."""
    login = Login(server.user, server.password)
    conf = f"http::addr={server.address};"
    return QuestDbBackend(conf, lambda: login, folder, batch_ns=10**9, batch_rows=500)


def write_rows(server, folder: Path, rows) -> None:
    backend = questdb_writer(server, folder)
    backend.open()
    backend.take(rows, LogPosition(7, 1, 900), 0)
    assert backend.commit(wait=True).rejected == []
    backend.close()


def store_log(server, log: Path, folder: Path) -> None:
    """All of a log into a `LocalServer`."""
    backend = questdb_writer(server, folder)
    follower = LogFollower(log, backend, DeadLetters(folder), read_bytes=16_384)
    follower.open()
    while follower.turn(0):
        pass
    follower.commit(wait=True)
    follower.close()


def folder_store(folder: Path) -> ObjectStore:
    return ObjectStore(folder.absolute().as_uri(), environ={})


def archive_all(source, store, work: Path, *, now_ns=LATER_NS, tables=None, **options):
    """Archive everything that is due; the outcomes."""
    from tickerplant.core.archive_plan import ARCHIVED_TABLES
    from tickerplant.store.arrow_tables import day_of_ns

    with WorkFolder(work) as held:
        archiver = Archiver(source, store, held, now_ns=now_ns, **options)
        due = archiver.due_days(list(tables or ARCHIVED_TABLES), day_of_ns(now_ns))
        return [archiver.archive(table, day) for table, day in due]


def stop_before(number: int, how=Stopped):
    """A `before_step` that stops before the `number`-th step."""
    steps = iter(range(1, 10**6))

    def before_step(_table, _day, _due):
        if next(steps) == number:
            if how is Stopped:
                raise Stopped
            os.kill(os.getpid(), how)

    return before_step


def objects(store: ObjectStore) -> dict[str, str]:
    """Everything in an object store: SHA-256 by path."""
    return {one.path: store.sha256(one.path) for one in store.list("")}


def counts(outcomes) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in outcomes:
        found[one.table] = found.get(one.table, 0) + one.row_count
    return found
