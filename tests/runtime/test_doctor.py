"""`tickerplant doctor` against a small exchange that verifies signatures, on real sockets and files."""

import asyncio
import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tickerplant import cli
from tickerplant.config_sources import LoadedConfig, load_config
from tickerplant.core.wire import HeartbeatBody, encode_heartbeat
from tickerplant.doctor import (
    check_datagram_keys,
    check_exchange,
    check_key,
    check_markets,
    check_metrics_port,
)
from tickerplant.key_file import add_key, make_key_file
from tickerplant.runtime.checks import CheckResult, Status
from tickerplant.runtime.health import readiness_of
from tickerplant.runtime.metrics import Metrics, MetricsServer

KEY_ID = "0a1b2c3d-1111-2222-3333-444444444444"

pytestmark = pytest.mark.usefixtures("no_configuration")


def loaded(*settings: str, environ: dict[str, str] | None = None) -> LoadedConfig:
    return load_config(None, settings, environ or {})


async def doctor(*arguments: str) -> int:
    """The command in a thread, for it runs a loop of its own."""
    return await asyncio.to_thread(cli.main, ["doctor", *arguments])


def pem_of(key: Any, form: str = "PKCS8") -> bytes:
    return bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            getattr(serialization.PrivateFormat, form),
            serialization.NoEncryption(),
        )
    )


def with_key(path: Path | str) -> LoadedConfig:
    return loaded(f"exchange.key_id={KEY_ID}", f"exchange.key_path={path}")


@pytest.fixture
def network(free_tcp_port: int, free_udp_port: int, group: str) -> list[str]:
    """`--set` options for groups and ports that nobody else uses."""
    values = {
        "publish.group_a": group,
        "publish.port": free_udp_port,
        "metrics.port": free_tcp_port,
    }
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


async def test_all_well_is_exit_0(
    exchange: Any,
    exchange_key: tuple[Path, Any],
    network: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = exchange.settings(exchange_key[0])
    code = await doctor(*settings, *network, "--set", "markets.series=KXA,KXB")
    lines = capsys.readouterr().out.splitlines()
    assert code == 0, lines
    assert not [line for line in lines if line.startswith("FAIL")]
    names = {line[6:21].strip(): line for line in lines[:-1]}
    assert list(names) == [
        "configuration",
        "markets",
        "key",
        "clock",
        "key accepted",
        "websocket",
        "interface",
        "multicast",
        "groups",
        "port",
        "socket buffers",
        "open files",
        "state directory",
    ]
    assert "2 by series" in names["markets"]
    assert "Ed25519" in names["key"]
    assert "account tier basic" in names["key accepted"]
    assert lines[-1].startswith("13 checks, ")


async def test_failures_are_exit_1_each_with_a_remedy_in_json(
    exchange: Any,
    network: list[str],
    free_tcp_port: int,
    no_configuration: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No such key, no such interface, the port in use, the state directory a file, no market."""
    (no_configuration / "state").write_text("")
    wrong = [
        *exchange.settings(no_configuration / "none.pem"),
        *network,
        *("--set", "publish.interface=203.0.113.9"),
        *("--set", f"state.directory={no_configuration / 'state'}"),
    ]
    with socket.create_server(("127.0.0.1", free_tcp_port)):
        code = await doctor(*wrong, "--json")
    output = capsys.readouterr()
    assert code == 1
    assert output.err == ""
    report = json.loads(output.out)
    assert report["ok"] is False
    checks = {check["name"]: check for check in report["checks"]}
    failed = {name for name, check in checks.items() if check["status"] == "fail"}
    assert failed == {"key", "interface", "port", "state directory"}
    for check in checks.values():
        assert bool(check["remedy"]) == (check["status"] != "ok"), check
    assert "none.pem does not exist" in checks["key"]["detail"]
    assert checks["markets"]["status"] == "warn"
    assert "groups" not in checks


async def test_wrong_configuration_is_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert await doctor("--set", "publish.interface=lo") == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("tickerplant: error: publish.interface = 'lo': ")
    assert output.err.count("\n") == 1


# --- key ------------------------------------------------------------------------------------------


def only(results: list[CheckResult], name: str) -> CheckResult:
    (result,) = [result for result in results if result.name == name]
    return result


async def test_each_line_has_an_interface_of_its_own(
    exchange: Any,
    exchange_key: tuple[Path, Any],
    network: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """That of line B is wrong, and the remedy names its key."""
    line_b = ("--set", "publish.group_b=239.192.79.1", "--set", "publish.interface_b=203.0.113.9")
    settings = exchange.settings(exchange_key[0])
    assert await doctor(*settings, *network, *line_b, "--json") == 1
    checks = json.loads(capsys.readouterr().out)["checks"]
    interfaces = [check for check in checks if check["name"] == "interface"]
    assert [check["status"] for check in interfaces] == ["ok", "fail"]
    assert interfaces[1]["remedy"] == "set publish.interface_b to one of these"


@pytest.mark.parametrize("form", ["PKCS8", "TraditionalOpenSSL"])
def test_rsa_key(tmp_path: Path, form: str) -> None:
    path = tmp_path / "rsa.pem"
    path.write_bytes(pem_of(rsa.generate_private_key(65_537, 2048), form))
    path.chmod(0o600)
    results, signer = check_key(with_key(path))
    assert [(result.name, result.status) for result in results] == [("key", Status.OK)]
    assert "RSA" in results[0].detail
    assert signer is not None


def test_key_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KALSHI_KEY_PEM", pem_of(Ed25519PrivateKey.generate()).decode())
    (result,), signer = check_key(loaded(f"exchange.key_id={KEY_ID}"))
    assert result.status is Status.OK
    assert result.detail == "Ed25519 from the environment"
    assert signer is not None


def test_key_that_every_user_can_read_is_a_warning(exchange_key: tuple[Path, Any]) -> None:
    exchange_key[0].chmod(0o644)
    result = only(check_key(with_key(exchange_key[0]))[0], "key file")
    assert result.status is Status.WARN
    assert f"chmod 600 {exchange_key[0]}" in result.remedy
    exchange_key[0].chmod(0o640)
    assert len(check_key(with_key(exchange_key[0]))[0]) == 1


def test_datagram_keys(tmp_path: Path) -> None:
    """Nothing where none are configured; else who signs, or what is wrong and the remedy."""
    path = tmp_path / "datagram.keys"
    publish = loaded(f"publish.key_path={path}").config.publish
    assert check_datagram_keys(loaded().config.publish) == []
    (result,) = check_datagram_keys(publish)
    assert result.status is Status.FAIL
    assert f"`tickerplant key make {path}`" in result.remedy
    key_id = make_key_file(path)
    add_key(path)
    (result,) = check_datagram_keys(publish)
    assert (result.status, result.detail) == (Status.OK, f"key {key_id} signs, 1 more verify")
    path.chmod(0o604)
    (result,) = check_datagram_keys(publish)
    assert (result.status, result.remedy) == (Status.WARN, f"`chmod o= {path}`")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"not a key", "is not PEM"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "damaged"),
        (pem_of(ec.generate_private_key(ec.SECP256R1())), "key of type E"),
        (pem_of(rsa.generate_private_key(65_537, 1024)), "1024 bits"),
        (
            Ed25519PrivateKey.generate()
            .public_key()
            .public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            ),
            "a public key instead",
        ),
        (
            Ed25519PrivateKey.generate().private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"passphrase"),
            ),
            "encrypted with a passphrase",
        ),
        (b"", "is not PEM"),
    ],
)
def test_unusable_key_names_the_file_and_a_remedy(
    tmp_path: Path, content: bytes, part: str
) -> None:
    path = tmp_path / "bad.pem"
    path.write_bytes(content)
    path.chmod(0o600)
    (result,), signer = check_key(with_key(path))
    assert signer is None
    assert result.status is Status.FAIL
    assert part in result.detail
    assert str(path) in result.detail
    assert result.remedy


def test_no_key_at_all() -> None:
    (result,), _signer = check_key(loaded())
    assert result.status is Status.FAIL
    assert result.detail == "exchange.key_id is not set"
    assert "TICKERPLANT__EXCHANGE__KEY_ID" in result.remedy


def test_no_market_is_only_a_warning() -> None:
    result = check_markets(loaded().config)
    assert result.status is Status.WARN
    assert "markets.tickers" in result.remedy
    chosen = check_markets(loaded("markets.tickers=A,B", "markets.all_open=true").config)
    assert (chosen.status, chosen.detail) == (Status.OK, "2 by ticker, all open ones")


# --- exchange -------------------------------------------------------------------------------------


async def exchange_results(exchange: Any, key_path: Path, *extra: str) -> dict[str, CheckResult]:
    settings = [word for word in exchange.settings(key_path) if word != "--set"]
    configuration = loaded(*settings, *extra)
    _results, signer = check_key(configuration)
    results = await check_exchange(configuration.config.exchange, signer)
    return {result.name: result for result in results}


async def test_exchange_takes_the_key(exchange: Any, exchange_key: tuple[Path, Any]) -> None:
    results = await exchange_results(exchange, exchange_key[0])
    assert {name: result.status for name, result in results.items()} == {
        "clock": Status.OK,
        "key accepted": Status.OK,
        "websocket": Status.OK,
    }


async def test_private_key_of_another_key_id(exchange: Any, tmp_path: Path) -> None:
    path = tmp_path / "other.pem"
    path.write_bytes(pem_of(Ed25519PrivateKey.generate()))
    results = await exchange_results(exchange, path)
    accepted, websocket = results["key accepted"], results["websocket"]
    assert accepted.status is websocket.status is Status.FAIL
    assert "does not belong to this key id" in accepted.detail
    assert "exchange.key_path" in accepted.remedy
    assert "status 401" in websocket.detail


async def test_unknown_key_id(exchange: Any, exchange_key: tuple[Path, Any]) -> None:
    results = await exchange_results(exchange, exchange_key[0], "exchange.key_id=another")
    assert results["key accepted"].status is Status.FAIL
    assert "does not know key another" in results["key accepted"].detail


@pytest.mark.parametrize(
    ("ahead_s", "status"), [(3, Status.WARN), (-3, Status.WARN), (30, Status.FAIL)]
)
async def test_skewed_clock(
    exchange: Any, exchange_key: tuple[Path, Any], ahead_s: int, status: Status
) -> None:
    exchange.clock_ahead_s = ahead_s
    results = await exchange_results(exchange, exchange_key[0])
    assert results["clock"].status is status
    assert "chrony" in results["clock"].remedy
    tried = status is not Status.FAIL
    assert results["key accepted"].status is (Status.OK if tried else Status.WARN)


async def test_allowed_skew_is_configured(exchange: Any, exchange_key: tuple[Path, Any]) -> None:
    exchange.clock_ahead_s = 30
    results = await exchange_results(exchange, exchange_key[0], "exchange.max_clock_skew_ms=60000")
    assert results["clock"].status is Status.WARN


async def test_too_many_websockets(exchange: Any, exchange_key: tuple[Path, Any]) -> None:
    exchange.websocket_status = 429
    result = (await exchange_results(exchange, exchange_key[0]))["websocket"]
    assert result.status is Status.WARN
    assert "too many connections" in result.detail


async def test_unreachable_exchange(
    exchange_key: tuple[Path, Any], exchange: Any, free_tcp_port: int
) -> None:
    url = f"exchange.rest_url=http://127.0.0.1:{free_tcp_port}/trade-api/v2"
    results = await exchange_results(exchange, exchange_key[0], url)
    assert results["exchange"].status is Status.FAIL
    assert f"127.0.0.1:{free_tcp_port}" in results["exchange"].detail
    assert results["exchange"].remedy == "check the network and exchange.rest_url"
    assert results["key accepted"].status is Status.WARN
    elsewhere = f"exchange.websocket_url=ws://127.0.0.1:{free_tcp_port}/trade-api/ws/v2"
    websocket = (await exchange_results(exchange, exchange_key[0], elsewhere))["websocket"]
    assert websocket.status is Status.FAIL
    assert websocket.remedy == "check the network and exchange.websocket_url"


# --- a plant that runs ----------------------------------------------------------------------------


async def test_port_of_a_running_plant_is_only_a_warning() -> None:
    server = MetricsServer(Metrics(), lambda: readiness_of(0), "127.0.0.1", 0)
    await server.start()
    (result,) = await check_metrics_port(loaded(f"metrics.port={server.port}").config.metrics)
    await server.stop()
    assert result.status is Status.WARN
    assert f"a running tickerplant answers on TCP port {server.port}" in result.detail
    (result,) = await check_metrics_port(loaded(f"metrics.port={server.port}").config.metrics)
    assert result.status is Status.OK
    assert await check_metrics_port(loaded("metrics.enabled=false").config.metrics) == []


async def test_port_of_another_program_is_a_failure(exchange: Any) -> None:
    (result,) = await check_metrics_port(loaded(f"metrics.port={exchange.port}").config.metrics)
    assert result.status is Status.FAIL
    assert f"sport = :{exchange.port}" in result.remedy


async def test_running_plant_on_the_groups_is_a_warning(
    exchange: Any,
    exchange_key: tuple[Path, Any],
    network: list[str],
    group: str,
    free_udp_port: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
        sending.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
        sending.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        word = encode_heartbeat(1, time.time_ns(), 1, 0, HeartbeatBody(datagrams_sent=0))
        running = asyncio.create_task(
            doctor(*exchange.settings(exchange_key[0]), *network, "--json")
        )
        deadline_ns = time.monotonic_ns() + 30_000_000_000
        while not running.done() and time.monotonic_ns() < deadline_ns:
            sending.sendto(word, (group, free_udp_port))
            await asyncio.wait({running}, timeout=0.05)
    assert await running == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["groups"]["status"] == "warn"
    assert f"multicast group {group} carries another plant" in checks["groups"]["detail"]
