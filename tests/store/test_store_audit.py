"""`tickerplant audit` with the rows of the store: complete if each is there once as it was, else it is named."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from market_day import MarketDay

from tickerplant.audit.audited_store import open_parquet
from tickerplant.audit.findings import Findings
from tickerplant.audit.store_audit import StoreAudit
from tickerplant.cli import main
from tickerplant.runtime.logfolder import segment_names
from tickerplant.store.dead_letters import DeadLetters
from tickerplant.store.follower import LogFollower
from tickerplant.store.parquet_backend import ParquetBackend
from tickerplant.store.parquet_folder import read_folder


def store_all(log, folder, close_rows=300):
    backend = ParquetBackend(folder, close_ns=10**18, close_rows=close_rows)
    follower = LogFollower(log, backend, DeadLetters(folder), read_bytes=4_000)
    follower.open()
    while follower.turn(0):
        pass
    follower.commit(wait=True)
    follower.close()


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    folder = tmp_path_factory.mktemp("log") / "ticklog"
    with MarketDay(folder) as day:
        day.run(400)
        day.close()
    return folder


@pytest.fixture
def store(log, tmp_path):
    store_all(log, tmp_path / "store")
    return tmp_path / "store"


def audit(log, folder):
    """Of the rows alone: what the footers of the files tell is left aside."""
    store = open_parquet(folder)._replace(faults=[])
    findings = Findings(segment_names(log)[-1].session)
    figures = StoreAudit(findings, log, segment_names(log)[0], store).run()
    store.source.close()
    return findings, figures


def change(folder, table, edit):
    """Rewrite a middle file of a table with other rows, footer and all."""
    files = read_folder(folder).files_of(table)
    file = files[len(files) // 2]
    data = pq.read_table(file.path)
    pq.write_table(edit(data).replace_schema_metadata(data.schema.metadata), file.path)
    return data


def without_row(index):
    return lambda data: pa.concat_tables([data.slice(0, index), data.slice(index + 1)])


def test_a_store_that_has_everything_is_complete(log, store):
    findings, figures = audit(log, store)
    assert findings.kept == []
    assert figures["rows"] > 500
    assert figures["tables"] >= 6
    assert figures["messages not stored yet"] == 0


@pytest.mark.parametrize("table", ["trades", "bbo", "orderbook_deltas", "tickers"])
def test_a_row_removed_by_hand_is_named(log, store, table):
    row = change(store, table, without_row(1)).slice(1, 1).to_pylist()[0]
    findings, _ = audit(log, store)
    (finding,) = findings.kept
    assert finding.what in (
        f"rows of {table} are missing",
        f"rows of {table} are other than in the log",
    )
    assert (finding.from_seq, finding.to_seq) == (row["seq"], row["seq"])
    assert finding.from_ns == int(row["ts_recv"].value)


def test_a_value_changed_by_hand_is_named(log, store):
    def edit(data):
        sizes = data["bid_size_e2"].to_pylist()
        sizes[2] += 1
        index = data.column_names.index("bid_size_e2")
        return data.set_column(index, "bid_size_e2", pa.array(sizes, pa.int64()))

    row = change(store, "bbo", edit).slice(2, 1).to_pylist()[0]
    (finding,) = audit(log, store)[0].kept
    assert finding.what == "rows of bbo are other than in the log"
    assert finding.from_seq == row["seq"]
    assert finding.stream == "bbo"


def test_rows_that_are_there_twice_are_named(log, store):
    change(store, "trades", lambda data: pa.concat_tables([data, data.slice(0, 1)]))
    (finding,) = audit(log, store)[0].kept
    assert finding.what == "rows of trades are there more than once"


def test_a_closing_that_is_gone_is_named_with_its_rows(log, store):
    contents = read_folder(store)
    gone = contents.closings[1]
    for file in contents.files:
        if file.closing == gone:
            file.path.unlink()
    findings, _ = audit(log, store)
    assert findings.kept
    assert {finding.what.rpartition(" ")[2] for finding in findings.kept} == {"missing"}


def test_what_is_not_stored_yet_is_no_hole(log, store):
    contents = read_folder(store)
    last = contents.closings[-1]
    for file in contents.files:
        if file.closing == last:
            file.path.unlink()
    (store / str(last)).rmdir()
    findings, figures = audit(log, store)
    assert findings.kept == []
    assert figures["messages not stored yet"] > 0


def test_the_command_takes_the_store_in(log, store, capsys):
    """The made-up exchange has faults of its own, which the audit of the log names."""
    words = ["audit", "--log", str(log), "--store", str(store), "--json"]
    main(words)
    report = json.loads(capsys.readouterr().out)
    assert set(report["by_cause"]) == {"upstream"}
    assert report["figures"]["store"]["rows"] > 500
    change(store, "orderbook_deltas", without_row(3))
    assert main(words) == 1
    report = json.loads(capsys.readouterr().out)
    named = [one for one in report["findings"] if one["cause"] == "disk"]
    assert {one["where"] for one in named} == {str(store)}
    assert len(named) == report["by_cause"]["disk"] == 2, "the row, and the file that lacks it"
    assert main([*words[:3], "--store", "/nowhere"]) == 2
