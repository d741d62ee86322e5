"""Messages through exchange, plant and store into a real QuestDB, while server and store are killed; each arrives.

    python tests/store/million.py                       one million messages, nothing killed
    python tests/store/million.py --server-kills 3 --store-kills 2

The database must hold what the tick log holds: the same number of rows in each table and the same sums of all columns.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

TESTS = Path(__file__).resolve().parent.parent
for name in ("models", "end_to_end"):
    sys.path.append(str(TESTS / name))

from processes import COMMAND, Plant, Settings, Simulation, free_network, merged, wait_for
from questdb_rows import http_of
from stored_totals import totals_of_database, totals_of_log

from tickerplant.store.local_server import LocalServer, cache_folder
from tickerplant.store.schema_check import apply

DOWN_S = 0.5
"""How long a killed server stays away."""
TIMEOUT_S = 120.0


class Outcome(NamedTuple):
    """What happened; `rows` are those of the log."""

    messages: int
    rows: int
    missing: dict[str, str]
    store_starts: int
    elapsed_s: float


def store_settings(server: LocalServer, folder: Path) -> Settings:
    """The `[store]` that leads to `server`."""
    password = folder / "password"
    password.parent.mkdir(parents=True, exist_ok=True)
    password.write_text(server.password)
    return {
        "store": {
            "enabled": True,
            "backend": "questdb",
            "conf": f"http::addr={server.address};",
            "username": server.user,
            "password_path": str(password),
            "metrics_port": 0,
            # They are not messages: the log's rows are compared.
            "book_snapshot_interval_s": 0,
        }
    }


def run(
    folder: Path,
    *,
    messages: int,
    rate: int,
    server_kills: int,
    store_kills: int,
    markets: int = 200,
    is_light: bool = False,
) -> Outcome:
    """Everything on this machine, each part a process. `rate` is of the exchange, in frames a second."""
    started_s = time.monotonic()
    with LocalServer(folder / "questdb", cache_folder(), is_light=is_light) as server:
        apply(http_of(server), 0)
        options = ("--markets", str(markets), "--rate", str(rate), "--window", "0", "--seed", "1")
        with Simulation(folder, *options) as simulation:
            everything: Settings = {"markets": {"all_open": True}}
            settings = merged(simulation.settings, everything, store_settings(server, folder))
            with Plant(folder, free_network(), settings) as plant:
                sent = send(plant, server, messages, server_kills, store_kills)
                assert plant.stop() == 0
                starts = store_starts(plant)
        with Plant(
            folder, plant.network, settings, command=(COMMAND, "store"), name="rest"
        ) as store:
            store.wait_event("store_caught_up", TIMEOUT_S)
            code = store.stop()
            assert code == 0, f"the store ended with {code}"
        wanted = totals_of_log(folder / "state" / "ticklog")
        found = totals_of_database(http_of(server))
    missing = {
        name: f"{found.get(name)} instead of {wanted.get(name)}"
        for name in wanted.keys() | found.keys()
        if wanted.get(name) != found.get(name)
    }
    rows = sum(total["rows"] for total in wanted.values())
    return Outcome(sent, rows, missing, len(starts), time.monotonic() - started_s)


def send(
    plant: Plant, server: LocalServer, messages: int, server_kills: int, store_kills: int
) -> int:
    """Wait until the plant has published so many, killing on the way; how many it has published."""
    kills = [partial(restart_server, server)] * server_kills
    for number in range(store_kills):
        kills.insert(2 * number, partial(kill_store, plant))
    step = messages // (len(kills) + 1)
    published = 0
    for kill in kills:
        published = wait_published(plant, published + step)
        kill()
    return wait_published(plant, max(messages, published + step))


def restart_server(server: LocalServer) -> None:
    """SIGKILL to the server, and another one soon."""
    server.kill()
    time.sleep(DOWN_S)
    server.start()


def wait_published(plant: Plant, least: int) -> int:
    """How many messages the plant has published, once it is that many."""

    def look() -> int | None:
        plant.require_alive()
        count = sum(
            value for name, value in plant.metrics().items() if name.startswith("plant_messages{")
        )
        return count if count >= least else None

    return wait_for(look, f"{least} messages", TIMEOUT_S)


def kill_store(plant: Plant) -> None:
    """SIGKILL to the store that the plant has started last, once it writes; the plant starts another."""
    stores = store_starts(plant)
    wait_for(lambda: len(plant.events("store_started")) >= len(stores), "the store", TIMEOUT_S)
    os.kill(int(stores[-1]["process"]), signal.SIGKILL)
    wait_for(lambda: len(store_starts(plant)) > len(stores), "another store", TIMEOUT_S)


def store_starts(plant: Plant) -> list[dict[str, Any]]:
    """The log lines that tell them."""
    return [one for one in plant.events("companion_started") if one["name"] == "store"]


def main() -> int:
    """The command; exit code 1 if anything is missing or there twice."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--rate", type=int, default=15_000, help="frames a second of the exchange")
    parser.add_argument("--server-kills", type=int, default=0)
    parser.add_argument("--store-kills", type=int, default=0)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="million-"))
    try:
        outcome = run(folder, **vars(arguments))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(
        f"{outcome.messages} messages, {outcome.rows} rows in {outcome.elapsed_s:.0f} s; the store was started "
        f"{outcome.store_starts} times"
    )
    for table, words in outcome.missing.items():
        print(f"{table}: {words}")
    print("the database holds what the log holds" if not outcome.missing else "they differ")
    return 1 if outcome.missing else 0


if __name__ == "__main__":
    sys.exit(main())
