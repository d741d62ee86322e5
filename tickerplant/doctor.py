"""What `tickerplant doctor` tries out, in the order it is shown.

Everything is tried on the real thing: sockets, groups, files, and the exchange itself with the configured key.
"""

import asyncio
import contextlib
import time
from urllib.parse import urlsplit

import aiohttp

from tickerplant.config import Config, ExchangeConfig, MetricsConfig, PublishConfig
from tickerplant.config_sources import LoadedConfig
from tickerplant.core.keyring import KeyRing
from tickerplant.errors import (
    ConfigurationError,
    CredentialsError,
    ExchangeUnavailableError,
    NotFoundError,
    TickerplantError,
)
from tickerplant.key_file import is_readable_by_all, read_keys
from tickerplant.limits import (
    NETWORK_PROBE_TIMEOUT_S,
    OPEN_FILES_WANTED,
    SESSION_LISTEN_NS,
    SUBSCRIBER_RECEIVE_BUFFER_BYTES,
)
from tickerplant.runtime.checks import (
    CheckResult,
    Status,
    check_open_files,
    check_state_directory,
    fail,
    from_error,
    ok,
    warn,
)
from tickerplant.runtime.clock import judge_clock, measure_clock_offset
from tickerplant.runtime.network import (
    check_groups,
    check_interface,
    check_multicast,
    check_port_free,
    check_receive_buffer,
    lines_of,
)
from tickerplant_kalshi.auth import Signer, load_signer
from tickerplant_kalshi.rest import RestClient


async def examine(loaded: LoadedConfig) -> list[CheckResult]:
    """Every check, in the order they are shown."""
    config = loaded.config
    key_results, signer = check_key(loaded)
    groups = await asyncio.gather(
        check_exchange(config.exchange, signer),
        check_network(config),
        check_metrics_port(config.metrics),
        asyncio.to_thread(check_host, loaded),
    )
    return [
        ok("configuration", str(loaded.file or "built-in defaults")),
        check_markets(config),
        *key_results,
        *check_datagram_keys(config.publish),
        *(result for group in groups for result in group),
    ]


def check_markets(config: Config) -> CheckResult:
    markets = config.markets
    try:
        markets.require_selection()
    except ConfigurationError as error:
        return from_error("markets", error, Status.WARN)
    chosen = [
        f"{len(names)} {what}"
        for names, what in (
            (markets.tickers, "by ticker"),
            (markets.series, "by series"),
            (markets.events, "by event"),
        )
        if names
    ]
    return ok("markets", ", ".join([*chosen, *(["all open ones"] if markets.all_open else [])]))


def check_key(loaded: LoadedConfig) -> tuple[list[CheckResult], Signer | None]:
    """That the key can be loaded, and by whom it can be read."""
    try:
        given = loaded.credentials()
        signer = load_signer(given.key_id, given.key_path, given.pem)
    except CredentialsError as error:
        return [from_error("key", error)], None
    where = given.key_path or "the environment"
    results = [ok("key", f"{signer.algorithm} from {where}")]
    if given.key_path is not None and given.key_path.stat().st_mode & 0o007:
        results.append(
            warn(
                "key file",
                f"{given.key_path} can be read by every user",
                f"`chmod 600 {given.key_path}`",
            )
        )
    return results, signer


def check_datagram_keys(publish: PublishConfig) -> list[CheckResult]:
    """That the keys that sign datagrams can be loaded, and by whom they can be read; nothing if there are none."""
    name, path = "datagram keys", publish.key_path
    if not path:
        return []
    try:
        ring = read_keys(path)
    except CredentialsError as error:
        return [from_error(name, error)]
    if is_readable_by_all(path):
        return [warn(name, f"{path} can be read by every user", f"`chmod o= {path}`")]
    others = len(ring.keys) - 1
    return [ok(name, f"key {ring.signing_key_id} signs, {others} more verify")]


def key_ring_of(publish: PublishConfig) -> KeyRing | None:
    """The datagram keys, None if there are none; a file of no use is another check's business."""
    with contextlib.suppress(CredentialsError):
        return read_keys(publish.key_path) if publish.key_path else None
    return None


async def check_exchange(exchange: ExchangeConfig, signer: Signer | None) -> list[CheckResult]:
    """The clock, and whether the exchange takes the key on REST and WebSocket."""
    names = ("key accepted", "websocket")
    try:
        offset = await measure_clock_offset(exchange.rest_url)
    except ExchangeUnavailableError as error:
        untried = "not tried, for the exchange cannot be reached"
        return [
            from_error("exchange", error),
            *(warn(name, untried, "mend the line above first") for name in names),
        ]
    clock = judge_clock(offset, exchange.max_clock_skew_ms * 1_000_000)
    if signer is None:
        untried = "not tried, for there is no usable key"
        return [clock, *(warn(name, untried, "mend the key first") for name in names)]
    if clock.status is Status.FAIL:
        untried = "not tried, for the exchange refuses signatures with this clock"
        return [clock, *(warn(name, untried, "mend the clock first") for name in names)]
    return [
        clock,
        *await asyncio.gather(check_accepted(exchange, signer), check_websocket(exchange, signer)),
    ]


async def check_accepted(exchange: ExchangeConfig, signer: Signer) -> CheckResult:
    """A signed read of the account's limits."""
    name = "key accepted"
    client = RestClient(exchange.rest_url, signer, read_account_limits=False)
    try:
        async with asyncio.timeout(NETWORK_PROBE_TIMEOUT_S), client as rest:
            limits = await rest.account_limits()
    except NotFoundError as error:
        return from_error(name, error, Status.WARN)
    except TickerplantError as error:
        return from_error(name, error)
    except TimeoutError:
        text = (
            f"{exchange.rest_url} does not answer a signed request in {NETWORK_PROBE_TIMEOUT_S} s"
        )
        return fail(name, text, "try again later; check the network and exchange.rest_url")
    return ok(name, f"account tier {limits.usage_tier}, {limits.read.refill_rate} read tokens/s")


async def check_websocket(exchange: ExchangeConfig, signer: Signer) -> CheckResult:
    """A signed WebSocket handshake, closed at once."""
    name, url = "websocket", exchange.websocket_url
    headers = signer.headers("GET", urlsplit(url).path, time.time_ns() // 1_000_000)
    timeout = aiohttp.ClientTimeout(total=NETWORK_PROBE_TIMEOUT_S)
    try:
        async with (
            asyncio.timeout(NETWORK_PROBE_TIMEOUT_S),
            aiohttp.ClientSession(timeout=timeout) as session,
            session.ws_connect(url, headers=headers),
        ):
            pass
    except aiohttp.WSServerHandshakeError as error:
        if error.status == 429:
            remedy = "close other connections of this key"
            return warn(name, f"{url} has too many connections of this account (429)", remedy)
        remedy = "check exchange.websocket_url, and that the key belongs to that environment"
        return fail(name, f"{url} refuses the handshake with status {error.status}", remedy)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        reason = " ".join(str(error).split()) or f"no answer in {NETWORK_PROBE_TIMEOUT_S} s"
        remedy = "check the network and exchange.websocket_url"
        return fail(name, f"{url} cannot be reached ({reason})", remedy)
    if url.startswith("ws:") and not _is_local(url):
        return warn(name, f"{url} is not encrypted", "use a wss URL")
    return ok(name, f"{url} takes the key")


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in {"localhost", "::1"} or host.startswith("127.")


async def check_network(config: Config) -> list[CheckResult]:
    """Interfaces, multicast on them, and whether the groups are free."""
    lines = lines_of(config.publish)
    results = []
    keys = {line.interface: line.interface_key for line in reversed(lines)}
    for address in dict.fromkeys(line.interface for line in lines):
        interface = await asyncio.to_thread(check_interface, address, keys[address])
        results.append(interface)
        if interface.status is Status.OK:
            results.append(await asyncio.to_thread(check_multicast, address))
    if all(result.status is Status.OK for result in results):
        port, seconds = config.publish.port, SESSION_LISTEN_NS / 1e9
        key_ring = key_ring_of(config.publish)
        results.append(await asyncio.to_thread(check_groups, lines, port, seconds, key_ring))
    return results


async def check_metrics_port(metrics: MetricsConfig) -> list[CheckResult]:
    """That the port is free, or held by a running plant."""
    if not metrics.enabled:
        return []
    result = check_port_free(metrics.address, metrics.port, "metrics.port")
    if result.status is not Status.FAIL:
        return [result]
    host = "127.0.0.1" if metrics.address == "0.0.0.0" else metrics.address  # noqa: S104  # the setting's text
    timeout = aiohttp.ClientTimeout(total=1)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"http://{host}:{metrics.port}/health") as reply,
        ):
            answer = await reply.json()
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return [result]
    if isinstance(answer, dict) and answer.get("service") == "tickerplant":
        text = f"a running tickerplant answers on TCP port {metrics.port}"
        return [warn(result.name, text, f"if it is not the one you mean: {result.remedy}")]
    return [result]


def check_host(loaded: LoadedConfig) -> list[CheckResult]:
    """Buffers, open files, disk."""
    return [
        check_receive_buffer(SUBSCRIBER_RECEIVE_BUFFER_BYTES),
        check_open_files(OPEN_FILES_WANTED),
        check_state_directory(loaded.state_directory),
    ]
