"""Takes a tick log into Parquet files, and dies before its n-th change of the disk; n = 0: never.

Each line of input is `log folder kill_at close_rows read_bytes merge_count`; the answer is how the process made for it
ended. The processes are forked from this one, which has only imported: so a hundred deaths take seconds.
"""

import itertools
import os
import signal
import sys
from pathlib import Path

import pyarrow.parquet as pq

from tickerplant.core.rows import RowMapper
from tickerplant.core.tables import TABLES
from tickerplant.runtime.logreader import LogReader
from tickerplant.store import parquet_merge
from tickerplant.store.arrow_tables import to_arrow
from tickerplant.store.parquet_merge import ParquetMerger
from tickerplant.store.parquet_store import ParquetStore

steps = itertools.count(1)
kill_at = 0


def deadly(owner, name):
    original = getattr(owner, name)

    def step(*arguments, **options):
        if next(steps) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(owner, name, step)


for owner, name in (
    (os, "fsync"),
    (Path, "rename"),
    (Path, "mkdir"),
    (Path, "unlink"),
    (Path, "rmdir"),
    (pq.ParquetWriter, "write_table"),
    (pq.ParquetWriter, "close"),
):
    deadly(owner, name)


def take(log: Path, folder: Path, close_rows: int, read_bytes: int) -> None:
    merger = ParquetMerger(folder)
    with (
        ParquetStore(folder, close_ns=10**18, close_rows=close_rows) as store,
        LogReader(log, store.open(), read_bytes=read_bytes) as reader,
    ):
        while (batch := reader.read()) is not None:
            mapper = RowMapper()
            for _offset, datagram in batch.records:
                mapper.add_datagram(datagram)
            store.take(mapper.take(), batch.position, 0)
            if store.is_due(0):
                store.commit()
                while merger.merge_next():
                    merger.sweep(now_s=2**40)
        store.commit()


# Arrow imports more when it is first used.
to_arrow(TABLES["bbo"], [(0,) * 5 + ("",) + (0,) * 4 + ("",)])

for line in sys.stdin:
    log, folder, *numbers = line.split()
    child = os.fork()
    if not child:
        kill_at, close_rows, read_bytes, parquet_merge.PARQUET_MERGE_COUNT = map(int, numbers)
        take(Path(log), Path(folder), close_rows, read_bytes)
        os._exit(0)
    sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
    sys.stdout.flush()
