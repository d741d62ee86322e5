"""A plant that is killed and started again, its log, and what was on the wire. Shared by the tests of restarts."""

import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from processes import (
    Network,
    Plant,
    Process,
    Settings,
    Simulation,
    SubscriberProcess,
    merged,
    wait_for,
)

from tickerplant.core.messages import SessionStart
from tickerplant.core.wire import Header, Kind, decode_body, decode_header
from tickerplant.runtime.logcheck import LogReport, verify_log
from tickerplant.runtime.logreader import LogReader

SHORT_LISTEN_NS = 50_000_000
VARIANT = Path(__file__).with_name("plant_variant.py")
FIRST = dict.fromkeys(range(1, 6), 1)


def variant(**changes: Any) -> list[str | Path]:
    """The command of a plant that listens only shortly for another one, with further changes."""
    limits = {"SESSION_LISTEN_NS": SHORT_LISTEN_NS} | changes.pop("limits", {})
    return [sys.executable, VARIANT, json.dumps({"limits": limits, **changes}), "run"]


def start_plant(
    folder: Path,
    network: Network,
    simulation: Simulation,
    settings: Settings | None = None,
    *,
    name: str = "plant",
    command: Sequence[str | Path] | None = None,
) -> Plant:
    """A plant of everything open; the same `folder` is the same plant again."""
    chosen: Settings = {"markets": {"all_open": True, "include_combos": True}}
    return Plant(
        folder,
        network,
        merged(simulation.settings, chosen, settings or {}),
        command=variant() if command is None else command,
        name=name,
    )


def kill(plant: Plant) -> None:
    """SIGKILL, at once."""
    plant.process.send_signal(signal.SIGKILL)
    assert plant.process.wait(10) == -signal.SIGKILL


def waited_for_core_s(process: Process) -> float:
    """How long its main thread could have run and had no core: the load of this machine, none of its own doing."""
    try:
        _ran_ns, waited_ns, _slices = Path(f"/proc/{process.pid}/schedstat").read_text().split()
    except FileNotFoundError:
        # A kernel without these figures.
        return 0.0
    return int(waited_ns) / 1e9


def log_folder(folder: Path) -> Path:
    """Where the plant of `folder` has its log."""
    return folder / "state" / "ticklog"


def read_log(folder: Path) -> list[bytes]:
    """Every datagram of a log. Fails if some of it is damaged."""
    datagrams = []
    with LogReader(folder) as reader:
        while (batch := reader.read()) is not None:
            assert not batch.faults
            datagrams += [datagram for _, datagram in batch.records]
    return datagrams


class Logged:
    """What a log holds, by session, and what its sessions said of each other."""

    def __init__(self, datagrams: Sequence[bytes]) -> None:
        self.headers: list[Header] = [decode_header(datagram) for datagram in datagrams]
        self.next_seqs: dict[int, dict[int, int]] = {}
        self.starts: dict[int, SessionStart] = {}
        for header, datagram in zip(self.headers, datagrams, strict=True):
            seqs = self.next_seqs.setdefault(header.session, dict(FIRST))
            if header.kind == Kind.DATA:
                assert header.seq == seqs[header.stream], "each sequence once and in order"
                seqs[header.stream] += header.message_count
                for message in decode_body(datagram, header):
                    if isinstance(message, SessionStart):
                        self.starts[header.session] = message


def assert_sessions_follow(logged: Logged) -> None:
    """Numbers grow, and each session told the final sequences of the one before as the log has them."""
    sessions = list(logged.next_seqs)
    assert sessions == sorted(sessions)
    for session, start in logged.starts.items():
        before = logged.next_seqs.get(start.previous_session)
        assert dict(start.final_seqs) == (before or {}), session
        earlier = [other for other in sessions if other < session]
        assert start.previous_session >= max(earlier, default=0)


def assert_sound(folder: Path) -> LogReport:
    """The log verifies."""
    report = verify_log(folder)
    assert report.is_sound, report.faults
    return report


def wait_equal(simulation: Simulation, subscriber: SubscriberProcess, timeout_s: float) -> int:
    """Until the subscriber holds every book of the exchange, live and equal; how many."""
    simulation.post("/sim/flow", action="pause")
    wanted = simulation.open_tickers()

    def look() -> bool:
        theirs, held = simulation.books(), subscriber.report()["books"]
        live = {ticker for ticker, book in held.items() if book["state"] == "LIVE"}
        return live >= wanted and all(
            (held[ticker]["bids"], held[ticker]["asks"]) == (theirs[ticker][0], theirs[ticker][1])
            for ticker in wanted
        )

    try:
        wait_for(look, "books being equal", timeout_s)
    finally:
        simulation.post("/sim/flow", action="resume")
    return len(wanted)
