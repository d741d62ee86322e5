"""The audit and rows that the store has deleted for their age: expired, not missing, and in the archive or not."""

import json
import time

import pytest
from archive_bed import archive_all, folder_store, store_log
from market_day import MarketDay
from questdb_rows import empty, http_of

from tickerplant.audit.audited_store import Archived, AuditedStore, _expiry_of, open_parquet
from tickerplant.audit.findings import Cause, Findings
from tickerplant.audit.store_audit import StoreAudit
from tickerplant.cli import main
from tickerplant.core.archive_plan import manifest_path
from tickerplant.core.logformat import LogPosition
from tickerplant.core.tables import TABLES
from tickerplant.runtime.logfolder import segment_names
from tickerplant.store.archive_source import FolderSource
from tickerplant.store.archiver import manifest_days
from tickerplant.store.arrow_tables import DAY_NS
from tickerplant.store.dead_letters import DeadLetters
from tickerplant.store.follower import LogFollower
from tickerplant.store.parquet_backend import ParquetBackend
from tickerplant.store.parquet_expiry import delete_expired
from tickerplant.store.parquet_folder import read_folder
from tickerplant.store.questdb_source import QuestDbSource
from tickerplant.store.schema_check import apply

SECONDS_MAX = 30.0


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """A session of four days, with little to do on two of them."""
    folder = tmp_path_factory.mktemp("log") / "ticklog"
    with MarketDay(folder) as day:
        day.run(250)
        day.now_ns += 3 * DAY_NS
        day.run(150)
        day.close()
    return folder


@pytest.fixture
def store(log, tmp_path):
    """All of it, then what is older than a day deleted."""
    folder = tmp_path / "store"
    backend = ParquetBackend(folder, close_ns=10**18, close_rows=150)
    follower = LogFollower(log, backend, DeadLetters(folder), read_bytes=4_000)
    follower.open()
    while follower.turn(0):
        pass
    follower.commit(wait=True)
    follower.close()
    return folder


def audit(log, store):
    findings = Findings(segment_names(log)[-1].session)
    figures = StoreAudit(findings, log, segment_names(log)[0], store).run()
    store.source.close()
    return findings.kept, figures


def test_rows_of_deleted_closings_have_expired(log, store):
    assert "rows expired" not in audit(log, open_parquet(store, 1))[1]
    assert delete_expired(store, time.time_ns(), 1) > 1
    kept, figures = audit(log, open_parquet(store, 1))
    assert kept == []
    assert figures["rows expired"] > 200 < figures["rows"]
    # If they are to be kept longer, or for ever, nothing explains that they are gone.
    for ttl_days in (5, 0):
        kept, figures = audit(log, open_parquet(store, ttl_days))
        assert {one.what.rpartition(" ")[2] for one in kept} == {"missing"}
        assert "rows expired" not in figures


def test_what_was_deleted_by_somebody_is_missing_however_old(log, store):
    contents = read_folder(store)
    for file in contents.files:
        if file.closing == contents.closings[1]:
            file.path.unlink()
    kept, figures = audit(log, open_parquet(store, 1)._replace(faults=[]))
    assert kept
    assert {one.what.rpartition(" ")[2] for one in kept} == {"missing"}
    assert "rows expired" not in figures


def test_expired_rows_are_looked_for_in_the_archive(log, store, tmp_path):
    archive = folder_store(tmp_path / "archive")
    archive_all(
        FolderSource(store, log),
        archive,
        tmp_path / "work",
        now_ns=time.time_ns(),
        tables=["bbo", "trades"],
    )
    delete_expired(store, time.time_ns(), 1)
    audited = open_parquet(store, 1)._replace(open_archive=lambda: Archived(archive))
    kept, figures = audit(log, audited)
    assert kept == []
    assert 20 < figures["of these archived"] < figures["rows expired"], "tables that are archived"

    archive.delete(manifest_path("bbo", min(manifest_days(archive, "bbo"))))
    audited = open_parquet(store, 1)._replace(open_archive=lambda: Archived(archive))
    (finding,), fewer = audit(log, audited)
    assert finding.cause is Cause.RETENTION
    assert finding.what.startswith("rows of bbo 20")
    assert "expired, the archive has 0 of" in finding.what
    assert fewer["of these archived"] < figures["of these archived"]


def test_the_command_knows_how_long_rows_are_kept(log, store, capsys):
    delete_expired(store, time.time_ns(), 1)
    words = ["audit", "--log", str(log), "--store", str(store), "--json"]
    told = {}
    for days in (1, 9):
        main([*words, "--set", f"store.ttl_days={days}"])
        told[days] = json.loads(capsys.readouterr().out)
    assert told[1]["figures"]["store"]["rows expired"] > 200
    assert "disk" not in told[1]["by_cause"]
    assert told[9]["by_cause"]["disk"] > 0


def test_partitions_that_the_server_has_dropped_have_expired(questdb_server, log, tmp_path):
    server = http_of(questdb_server)
    empty(server)
    apply(server, 1)
    try:
        store_log(questdb_server, log, tmp_path)
        for name in TABLES:
            assert server.execute(f"SELECT wait_wal_table('{name}')") == [[True]]
        end = LogPosition(*segment_names(log)[-1]._replace(ordinal=99), 0)

        def look():
            source = QuestDbSource(server)
            return audit(log, AuditedStore(source, end, [], "server", _expiry_of(server)))

        kept, figures = look()
        assert kept == []
        assert figures["rows expired"] > 200
        # A row that is gone from what is kept is missing.
        [[seq]] = server.execute("SELECT max(seq) FROM bbo")
        server.execute(f"UPDATE bbo SET session = 1 WHERE seq = {seq}")
        assert server.execute("SELECT wait_wal_table('bbo')") == [[True]]
        assert [one.what for one in look()[0]] == ["rows of bbo are missing"]
    finally:
        empty(server)
