"""What the user or the host got wrong: each ends `tickerplant run` with one line that names the thing and the remedy.

The real command in a process of its own, the real simulated exchange, real sockets. Exit codes: 1 failure, 2 usage or
configuration, 75 try again later.
"""

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from processes import (
    COMMAND,
    Network,
    Plant,
    Settings,
    Simulation,
    free_network,
    free_tcp_port,
    merged,
)

RUN_TIMEOUT_S = 100.0
RUNS_AT_ONCE = 3
MARKETS = 6
SKEW_S = 120
PEM = serialization.Encoding.PEM
PKCS8 = serialization.PrivateFormat.PKCS8
CLEAR = serialization.NoEncryption()


class Ending(NamedTuple):
    """How a run ended: exit code and its line on standard error, without `tickerplant: error: `."""

    code: int
    line: str


class Scene:
    """What the cases share: a simulated exchange, its markets, and a plant that already runs."""

    def __init__(self, folder: Path, simulation: Simulation, neighbour: Plant) -> None:
        self.folder = folder
        self.simulation = simulation
        self.neighbour = neighbour
        self.tickers = sorted(simulation.open_tickers())

    def settings(self) -> Settings:
        """A configuration with nothing wrong."""
        return merged(self.simulation.settings, {"markets": {"tickers": self.tickers[:1]}})

    def run(
        self,
        settings: Settings | None = None,
        *,
        network: Network | None = None,
        options: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        wrapper: Sequence[str] = (),
    ) -> Ending:
        """Run a plant that must end by itself, with what is wrong about it."""
        name = f"run-{threading.get_ident()}-{time.monotonic_ns()}"
        plant = Plant(
            self.folder / name,
            network or free_network(),
            merged(self.settings(), settings or {}),
            command=(*wrapper, COMMAND, "run", *options),
            environment=environment,
        )
        with plant:
            return ending_of(plant, plant.wait(RUN_TIMEOUT_S))


def ending_of(plant: Plant, code: int) -> Ending:
    """The one error line of a run; nothing else may be printed, no traceback and no second complaint."""
    assert plant.output == ""
    lines = [line for line in plant.errors.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, plant.errors
    assert lines[0].startswith("tickerplant: error: ")
    assert [event for event in plant.events() if event["level"] in {"error", "critical"}] == []
    return Ending(code, lines[0].removeprefix("tickerplant: error: "))


def with_key(scene: Scene, name: str, content: bytes) -> Ending:
    """A run with a key file of this content."""
    path = scene.folder / name
    path.write_bytes(content)
    path.chmod(0o600)
    return scene.run({"exchange": {"key_path": str(path)}})


# --- keys ---------------------------------------------------------------------------------------------


def no_key_id(scene: Scene) -> Ending:
    return scene.run({"exchange": {"key_id": ""}})


def no_key_path(scene: Scene) -> Ending:
    return scene.run({"exchange": {"key_path": ""}})


def key_file_missing(scene: Scene) -> Ending:
    return scene.run({"exchange": {"key_path": str(scene.folder / "nowhere.pem")}})


def key_of_another_account(scene: Scene) -> Ending:
    key = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
    return with_key(scene, "stranger.pem", key.private_bytes(PEM, PKCS8, CLEAR))


def key_id_unknown(scene: Scene) -> Ending:
    return scene.run({"exchange": {"key_id": "11111111-2222-4333-8444-555555555555"}})


def key_of_the_wrong_type(scene: Scene) -> Ending:
    key = ec.generate_private_key(ec.SECP256R1())
    return with_key(scene, "elliptic.pem", key.private_bytes(PEM, PKCS8, CLEAR))


def public_key(scene: Scene) -> Ending:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return with_key(scene, "public.pem", key.public_bytes(PEM, form))


def key_with_a_passphrase(scene: Scene) -> Ending:
    key = ec.generate_private_key(ec.SECP256R1())
    form = serialization.BestAvailableEncryption(b"secret")
    return with_key(scene, "locked.pem", key.private_bytes(PEM, PKCS8, form))


def key_file_garbage(scene: Scene) -> Ending:
    return with_key(scene, "garbage.pem", bytes(range(256)) * 4)


def key_file_damaged(scene: Scene) -> Ending:
    pem = scene.simulation.key_path.read_bytes()
    return with_key(scene, "damaged.pem", pem[:200] + pem[260:])


def key_file_is_a_folder(scene: Scene) -> Ending:
    return scene.run({"exchange": {"key_path": str(scene.folder)}})


def key_file_not_readable(scene: Scene) -> Ending:
    path = scene.folder / "private.pem"
    path.write_bytes(scene.simulation.key_path.read_bytes())
    path.chmod(0)
    wrapper: tuple[str, ...] = ()
    if os.geteuid() == 0:
        # Root may read everything; not without these two capabilities.
        dropped = "-dac_override,-dac_read_search"
        wrapper = ("setpriv", f"--bounding-set={dropped}", f"--inh-caps={dropped}")
        require_tool(*wrapper, "true")
    return scene.run({"exchange": {"key_path": str(path)}}, wrapper=wrapper)


# --- clock, markets, configuration --------------------------------------------------------------------


def clock_behind(scene: Scene) -> Ending:
    return with_shifted_exchange(scene, SKEW_S)


def clock_ahead(scene: Scene) -> Ending:
    return with_shifted_exchange(scene, -SKEW_S)


def with_shifted_exchange(scene: Scene, offset_s: int) -> Ending:
    """A run against an exchange whose clock is that far ahead of ours."""
    folder = scene.folder / f"shifted{offset_s}"
    keys = str(scene.simulation.key_path.parent)
    options = ("--paused", "--markets", "1", "--clock-offset", str(offset_s), "--directory", keys)
    with Simulation(folder, *options) as simulation:
        return scene.run(simulation.settings)


def exchange_down(scene: Scene) -> Ending:
    port = free_tcp_port()
    ending = scene.run({"exchange": {"rest_url": f"http://127.0.0.1:{port}/trade-api/v2"}})
    assert f":{port}" in ending.line
    return ending


def no_market_chosen(scene: Scene) -> Ending:
    return scene.run({"markets": {"tickers": []}})


def no_listed_market_exists(scene: Scene) -> Ending:
    return scene.run({"markets": {"tickers": ["KXNOTHERE-1", "KXNOTHERE-2"]}})


def unknown_key_in_the_file(scene: Scene) -> Ending:
    return scene.run({"publish": {"grup_a": "239.196.0.0"}})


def unknown_key_on_the_command_line(scene: Scene) -> Ending:
    return scene.run(options=("--set", "exchange.keyid=x"))


def unknown_key_in_the_environment(scene: Scene) -> Ending:
    return scene.run(environment={"TICKERPLANT__METRICS__PROT": "1"})


# --- ports, interfaces, groups, state -----------------------------------------------------------------


def metrics_port_in_use(scene: Scene) -> Ending:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        return scene.run({"metrics": {"port": holder.getsockname()[1]}})


def group_port_in_use(scene: Scene) -> Ending:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("0.0.0.0", 0))
        network = free_network()._replace(port=holder.getsockname()[1])
        return scene.run(network=network)


def interface_missing(scene: Scene) -> Ending:
    return scene.run({"publish": {"interface": "198.51.100.77"}})


def interface_down(scene: Scene) -> Ending:
    """In a network namespace of its own, where a second interface is there and down."""
    build = (
        "ip link set lo up && ip link add plant0 type veth peer name plant1 && "
        'ip address add 198.51.100.77/24 dev plant0 && exec "$@"'
    )
    wrapper = ("unshare", "--net", "sh", "-c", build, "sh")
    require_tool(*wrapper, "true")
    return scene.run({"publish": {"interface": "198.51.100.77"}}, wrapper=wrapper)


def foreign_protocol_on_the_group(scene: Scene) -> Ending:
    network = free_network()
    stop = threading.Event()
    sender = threading.Thread(target=send_foreign, args=(network, stop))
    sender.start()
    try:
        return scene.run(network=network)
    finally:
        stop.set()
        sender.join()


def send_foreign(network: Network, stop: threading.Event) -> None:
    """Datagrams of another protocol on the third group, a hundred a second, never leaving the host."""
    group = f"{network.group.rpartition('.')[0]}.{int(network.group.rpartition('.')[2]) + 2}"
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
        loopback = socket.inet_aton("127.0.0.1")
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, loopback)
        while not stop.wait(0.01):
            sender.sendto(struct.pack("<HI", 0xBEEF, 1) * 20, (group, network.port))


def another_plant_on_the_groups(scene: Scene) -> Ending:
    return scene.run(network=scene.neighbour.network)


def another_plant_in_the_state_folder(scene: Scene) -> Ending:
    ending = scene.run({"state": scene.neighbour.settings["state"]})
    assert f"process {scene.neighbour.pid}" in ending.line
    return ending


def require_tool(*command: str) -> None:
    """Skip the test where this machine cannot do what the case needs."""
    found = shutil.which(command[0]) is not None
    if not found or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip(f"{command[0]} is not there or not permitted")


CASES: dict[Callable[[Scene], Ending], tuple[int, tuple[str, ...]]] = {
    no_key_id: (2, ("exchange.key_id is not set", "TICKERPLANT__EXCHANGE__KEY_ID")),
    no_key_path: (2, ("exchange.key_path is not set", "PEM", "KALSHI_KEY_PEM")),
    key_file_missing: (2, ("nowhere.pem", "exchange.key_path")),
    key_of_another_account: (
        2,
        ("refuses the signature of key", "exchange.key_id", "exchange.key_path"),
    ),
    key_id_unknown: (2, ("does not know key 11111111-2222", "exchange.key_id")),
    key_of_the_wrong_type: (2, ("elliptic.pem", "RSA", "Ed25519")),
    public_key: (2, ("public.pem", "a public key instead of the private key")),
    key_with_a_passphrase: (2, ("locked.pem", "passphrase", "openssl pkey")),
    key_file_garbage: (2, ("garbage.pem", "not PEM")),
    key_file_damaged: (2, ("damaged.pem", "damaged")),
    key_file_is_a_folder: (2, ("not a regular file", "use the private key file")),
    key_file_not_readable: (2, ("private.pem", "cannot be read", "chmod 600")),
    clock_behind: (75, ("clock is about", "behind the exchange's", "synchronise")),
    exchange_down: (75, ("no answer", "Cannot connect", "try again later")),
    clock_ahead: (75, ("clock is about", "ahead of the exchange's", "synchronise")),
    no_market_chosen: (2, ("no market is chosen", "markets.tickers")),
    no_listed_market_exists: (2, ("KXNOTHERE-1", "KXNOTHERE-2", "[markets]")),
    unknown_key_in_the_file: (2, ("tickerplant.toml", "publish.grup_a", "publish.group_a")),
    unknown_key_on_the_command_line: (2, ("--set", "exchange.keyid", "exchange.key_id")),
    unknown_key_in_the_environment: (
        2,
        ("metrics.prot", "TICKERPLANT__METRICS__PROT", "TICKERPLANT__METRICS__PORT"),
    ),
    metrics_port_in_use: (1, ("metrics endpoint 127.0.0.1:", "in use", "metrics.port")),
    group_port_in_use: (1, ("multicast group 239.196.", "in use", "publish.port")),
    interface_missing: (1, ("198.51.100.77", "publish.interface")),
    interface_down: (1, ("plant0 198.51.100.77 is down", "ip link set dev plant0 up")),
    foreign_protocol_on_the_group: (1, ("carries another protocol", "publish.group_a")),
    another_plant_on_the_groups: (1, ("carries another plant", "publish.group_a")),
    another_plant_in_the_state_folder: (1, ("plant.lock is locked", "state.directory")),
}


@pytest.fixture(scope="module")
def simulation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulation]:
    """An exchange that stands still."""
    folder = tmp_path_factory.mktemp("exchange")
    options = ("--paused", "--markets", str(MARKETS), "--directory", folder, "--window", "0")
    with Simulation(folder, *options) as simulation:
        yield simulation


@pytest.fixture(scope="module")
def ending_in(
    simulation: Simulation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Callable[[Scene], Ending]], Ending]]:
    """The ending of a case; they run side by side, because most of a run is waiting."""
    folder = tmp_path_factory.mktemp("runs")
    with ExitStack() as stack, ThreadPoolExecutor(RUNS_AT_ONCE) as pool:
        everything = merged(simulation.settings, {"markets": {"all_open": True}})
        neighbour = stack.enter_context(Plant(folder / "first", free_network(), everything))
        neighbour.wait_ready()
        scene = Scene(folder, simulation, neighbour)
        endings: dict[Callable[[Scene], Ending], Future[Ending]] = {
            case: pool.submit(case, scene) for case in CASES
        }
        yield lambda case: endings[case].result()
        for future in endings.values():
            future.cancel()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_one_line_names_the_thing_and_the_remedy(
    ending_in: Callable[[Callable[[Scene], Ending]], Ending], case: Callable[[Scene], Ending]
) -> None:
    """Exit code and words of every bad input."""
    code, words = CASES[case]
    ending = ending_in(case)
    assert [word for word in words if word not in ending.line] == [], ending.line
    assert ending.code == code
    assert len(ending.line) < 400


def test_a_missing_market_of_the_list_is_a_warning(simulation: Simulation, tmp_path: Path) -> None:
    """The plant names it, goes on with the others, and counts it; Ctrl-C ends it in order."""
    listed = sorted(simulation.open_tickers())[:2]
    chosen: Settings = {"markets": {"tickers": [listed[0], "KXNOTHERE-1", listed[1]]}}
    with Plant(tmp_path, free_network(), merged(simulation.settings, chosen)) as plant:
        plant.wait_ready()
        (warning,) = plant.events("selection")
        assert warning["level"] == "warning"
        assert "KXNOTHERE-1 does not exist" in warning["problem"]
        metrics = plant.metrics()
        assert (metrics["plant_books"], metrics["reader_markets_missing"]) == (2, 1)
        plant.process.send_signal(signal.SIGINT)
        assert plant.wait() == 0


def test_clock_skew_after_a_good_start_is_retried(simulation: Simulation, tmp_path: Path) -> None:
    """An exchange that comes back with another clock refuses the plant, which goes on trying until it is let in."""
    keys = simulation.key_path.parent
    ports = [str(free_tcp_port()), str(free_tcp_port())]
    options = ["--paused", "--markets", "2", "--window", "0", "--directory", str(keys)]
    options += ["--port", ports[0], "--rest-port", ports[1]]
    refused = 'session_handshake_refusals{status="401"}'
    with ExitStack() as stack:
        first = stack.enter_context(Simulation(tmp_path, *options, name="first"))
        settings = merged(first.settings, {"markets": {"all_open": True}})
        plant = stack.enter_context(Plant(tmp_path, free_network(), settings))
        plant.wait_ready()
        first.stop()
        skewed = (*options, "--clock-offset", str(SKEW_S))
        with Simulation(tmp_path, *skewed, name="skewed"):
            plant.wait_metric(refused, 2)
            assert json.loads(plant.get("/ready"))["ready"] is False
        stack.enter_context(Simulation(tmp_path, *options, name="right"))
        plant.wait_ready()
        assert plant.metrics()["feed_connections_opened"] == 2
        assert plant.stop() == 0


def test_a_port_that_the_simulated_exchange_cannot_have(tmp_path: Path) -> None:
    """The same rule for `tickerplant sim`."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = str(holder.getsockname()[1])
        command = [str(COMMAND), "sim", "--port", port, "--rest-port", "0"]
        command += ["--directory", str(tmp_path)]
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False
        )
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert f"port {port} on 127.0.0.1 is in use" in line
    assert "--port" in line
