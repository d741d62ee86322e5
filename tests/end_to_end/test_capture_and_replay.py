"""A plant with faults upstream, captured; then the same strategy live, from the tick log and from the capture."""

import json
import re
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from processes import (
    COMMAND,
    Network,
    Plant,
    Process,
    Simulation,
    free_network,
    merged,
    wait_for,
)

STRATEGY = '''
"""What each callback was told, apart for each kind and stream: across streams live order is not promised."""
import json
import os
import sys
from collections import defaultdict
from pathlib import Path

import msgspec

from tickerplant_subscriber import SessionEnded, Strategy, run


class Everything(Strategy):
    def on_start(self):
        self.told = defaultdict(list)

    def note(self, kind, item):
        self.told[kind].append(msgspec.to_builtins(item))

    def on_bbo(self, bbo):
        self.note("bbo", bbo)

    def on_trade(self, trade):
        self.note("trade", trade)

    def on_ticker(self, ticker):
        self.note("ticker", ticker)

    def on_book(self, book, update):
        assert book.live and book.size_at(update.side, update.price_e4) == update.size_e2
        self.note("book", update)

    def on_market(self, market):
        self.note("market", market)

    def on_gap(self, gap):
        self.note(f"gap {getattr(gap, 'on_stream', 0) or gap.stream}", gap)

    def on_session(self, session):
        if isinstance(session, SessionEnded):
            self.note("ended", session)

    def on_stop(self):
        Path(os.environ["TOLD"]).write_text(json.dumps(self.told))


if __name__ == "__main__":
    run(Everything(), group_a=sys.argv[1], port=int(sys.argv[2]))
'''
FAULTS = ("skip_seq", "duplicate", "unusable", "inconsistent", "error_25", "reset", "late_ack")


class Recorded:
    """What is left of a session: the plant's folder, and what a strategy was told live."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.network = free_network()
        self.config = folder / "plant" / "tickerplant.toml"
        (folder / "everything.py").write_text(STRATEGY)
        script = [sys.executable, "everything.py", self.network.group, str(self.network.port)]
        live = folder / "live.json"
        chosen = {"markets": {"all_open": True}, "capture": {"enabled": True}}
        with (
            Process("live", folder, script, {"TOLD": str(live)}) as strategy,
            Simulation(folder / "sim", "--markets", "40", "--rate", "1500") as simulation,
            Plant(folder / "plant", self.network, merged(simulation.settings, chosen)) as plant,
        ):
            plant.wait_ready()
            for number, kind in enumerate(FAULTS):
                simulation.post("/sim/fault", kind=kind)
                plant.wait_metric("feed_frames", 700 * (number + 1))
            plant.wait_metric("feed_connections_lost", 1)
            plant.wait_ready()
            self.metrics = plant.metrics()
            assert plant.stop() == 0
            strategy.require_alive()
            strategy.process.send_signal(signal.SIGTERM)
            assert strategy.wait() == 0
        self.told = json.loads(live.read_text())

    def run(self, name: str, *words: str, told: Path | None = None) -> Process:
        """A command with the plant's configuration, ended."""
        environment = {} if told is None else {"TOLD": str(told)}
        command = [COMMAND, *words, "--config", self.config]
        process = Process(name, self.folder, command, environment)
        assert process.wait() == 0, process.errors
        return process


def trade_ids(told: dict[str, list[Any]]) -> list[str]:
    """Of the trades that a strategy was told: the field after tag, ticker, g and the two times."""
    return [trade[5] for trade in told["trade"]]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Some seconds of a busy exchange with every kind of fault."""
    return Recorded(tmp_path_factory.mktemp("recorded"))


def test_the_capture_played_again_is_the_tick_log(recorded: Recorded) -> None:
    """Bodies of all datagrams, by another process than the one that wrote them."""
    assert recorded.metrics["feed_sequence_gaps"] > 0
    assert recorded.metrics["feed_unreadable_frames"] > 0
    assert recorded.metrics["capture_on"] == 1
    report = json.loads(
        recorded.run("verify", "capture", "verify", "--against-log", "--format", "json").output
    )
    (session,) = report["sessions"]
    assert report["sound"]
    assert session["frames"] >= recorded.metrics["feed_frames"]
    comparison = session["comparison"]
    assert comparison["equal"] > 500
    assert (comparison["different"], comparison["unlogged"]) == (0, 0)


@pytest.mark.parametrize("source", ["--log", "--capture"])
def test_a_strategy_is_told_the_same_live_and_played(recorded: Recorded, source: str) -> None:
    told = recorded.folder / f"played{source}.json"
    words = ("replay", "everything:Everything", source, "--speed", "0")
    process = recorded.run(f"replay{source}", *words, told=told)
    again = json.loads(told.read_text())
    assert again.keys() == recorded.told.keys()
    for kind in again:
        assert again[kind] == recorded.told[kind], kind
    assert {"bbo", "trade", "ticker", "book", "market", "ended"} <= again.keys()
    assert re.search(r"replayed \d+ messages on 5 streams, 0 lost", process.errors)


def test_exported_frames_are_played_offline_and_by_the_simulated_exchange(
    recorded: Recorded, tmp_path: Path
) -> None:
    """What one tool writes the others read."""
    path = tmp_path / "frames.jsonl"
    recorded.run("export", "capture", "export", "--shape", "raw", "--output", str(path))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows[0].keys() == {"recv_ts_ns", "raw"}
    told = tmp_path / "told.json"
    words = ("replay", "everything:Everything", "--jsonl", str(path), "--speed", "0")
    recorded.run("offline", *words, told=told)
    ours = json.loads(told.read_text())
    assert trade_ids(ours) == trade_ids(recorded.told)
    words = ("--replay", str(path), "--speed", "0", "--directory", str(tmp_path))
    with Simulation(tmp_path / "sim", *words) as simulation:
        assert simulation.open_tickers()


def test_played_onto_groups_it_is_heard_by_who_accepts_replays_only(
    recorded: Recorded, tmp_path: Path
) -> None:
    network: Network = free_network()
    where = ["--group-a", network.group, "--port", str(network.port)]
    tail = [COMMAND, "tail", "--format", "json", *where]
    with (
        Process("accepting", tmp_path, [*tail, "--accept-replay"]) as accepting,
        Process("refusing", tmp_path, tail) as refusing,
    ):
        wait_for(lambda: _listens(accepting.pid) and _listens(refusing.pid), "both listening")
        words = ("replay", "--publish", *where, "--speed", "2")
        process = recorded.run("publish", *words)
        wait_for(lambda: "SessionEnded" in accepting.output, "the end of the session")
        assert accepting.stop() == refusing.stop() == 0
    rows = [json.loads(line) for line in accepting.output.splitlines()]
    trades = [row["trade_id"] for row in rows if row.get("message") == "Trade"]
    assert trades == trade_ids(recorded.told)
    assert not [row for row in rows if row.get("event") == "Gap"]
    heard = [json.loads(line) for line in refusing.output.splitlines()]
    assert {row["event"] for row in heard} == {"DatagramsRefused"}
    assert {row["error"] for row in heard} == {"replayed"}
    assert re.search(r"sent \d+ datagrams of 1 sessions\n", process.errors)


def _listens(pid: int) -> bool:
    """Whether a process has sockets of five streams open, beside the two of its event loop."""
    links = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since it was listed
            links.append(str(path.readlink()))
    return sum(link.startswith("socket:") for link in links) >= 7
