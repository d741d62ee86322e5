"""The simulated exchange as a running server: WebSocket, REST and control endpoints over one venue.

async with SimulationServer(SimulationConfig(websocket_port=0, rest_port=0)) as server:
    ...                                # server.websocket_url, server.rest_url, server.key_id, server.key_path
"""

import asyncio
import errno
import os
import time
from collections import deque
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Self

from aiohttp import web

from tickerplant.errors import ConfigurationError, NetworkSetupError
from tickerplant.limits import SIM_REPLAY_MAX_BYTES, SIM_TICKS_PER_WAKE
from tickerplant_kalshi_sim.book import YesBook
from tickerplant_kalshi_sim.capture import read_capture
from tickerplant_kalshi_sim.config import SimulationConfig
from tickerplant_kalshi_sim.control import SimulationStats, add_control_routes
from tickerplant_kalshi_sim.exchange import Exchange, Venue
from tickerplant_kalshi_sim.faults import Fault, RandomFaults, parse_fault_script
from tickerplant_kalshi_sim.flow import FlowSettings
from tickerplant_kalshi_sim.keys import SignatureVerifier, default_directory, load_or_create_key
from tickerplant_kalshi_sim.lifecycle import LifecycleSettings
from tickerplant_kalshi_sim.replay import ReplayVenue
from tickerplant_kalshi_sim.rest import ROOT, RestApi, RestState
from tickerplant_kalshi_sim.websocket import WEBSOCKET_PATH, Connection, Hub

NANOSECONDS = 1_000_000_000
LOCAL_FAULTS = frozenset({"flood", "rest_429", "rest_5xx", "handshake_429", "handshake_502"})
PAUSE_FAULTS = frozenset({"trading_pause", "exchange_pause"})


class SimulationServer:
    """Async context manager; everything listens after entering, and is closed after leaving.

    Entering raises `ConfigurationError` (keys, capture, fault script), `CredentialsError` (the stored key) or
    `NetworkSetupError` (a port that cannot be listened on).
    """

    def __init__(self, config: SimulationConfig) -> None:
        self._config = config
        self._offset_ns = int(config.clock_offset_s * NANOSECONDS)
        self._script: deque[Fault] = deque()
        random = Random(f"faults {config.seed}")  # noqa: S311 - reproducible, no secret
        self._random_faults = RandomFaults(random, config.fault_rate, config.fault_kinds)
        self._faults: dict[str, int] = {}
        self._flow_paused = config.paused
        self._maintenance_until_ns = 0
        self._ticks = 0
        self._ticks_skipped = 0
        self._start_ns = 0
        self._origin_ns = 0
        self._next_ping_ns = 0
        self._server: asyncio.Server | None = None
        self._runner: web.AppRunner | None = None
        self._clock: asyncio.Task[None] | None = None
        self._venue: Venue
        self._hub: Hub
        self._state: RestState
        self.websocket_url = ""
        self.rest_url = ""
        self.key_id = ""
        self.key_path = Path()

    # --- start and stop -------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        config = self._config
        directory = config.directory or default_directory(os.environ)
        key = load_or_create_key(directory, config.key_type)
        self.key_id, self.key_path = key.key_id, key.path
        if config.faults is not None:
            script = _read_text(config.faults, "fault script")
            self._script.extend(parse_fault_script(script, str(config.faults)))
        self._origin_ns = time.monotonic_ns()
        if config.start_ns is None:
            self._start_ns = self.now_ns()
        else:
            self._start_ns = config.start_ns
        self._next_ping_ns = self._start_ns + self._ping_interval_ns()
        self._venue = _make_venue(config, self._start_ns)
        verifier = SignatureVerifier([key], config.clock_skew_limit_s)
        self._hub = Hub(self._venue, verifier, config, self.now_ns)
        self._state = RestState(config, self.now_ns)
        api = RestApi(self._venue, verifier, self._state, config, self.now_ns)
        try:
            await self._listen(api)
        except BaseException:
            await self._close_listeners()
            raise
        if config.start_ns is not None:
            # Nothing of this clock may be skipped while the books were filled: it begins now.
            self._origin_ns = time.monotonic_ns()
        self._clock = asyncio.create_task(self._run(), name="simulated exchange clock")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._clock is not None
        self._clock.cancel()
        for connection in list(self._hub.connections.values()):
            connection.close()
        await self._close_listeners()
        for connection in list(self._hub.connections.values()):
            connection.reset()
        try:
            await self._clock
        except asyncio.CancelledError:
            return

    async def wait(self) -> None:
        """Until the simulation stops, which it does only by a bug of its own."""
        assert self._clock is not None
        await self._clock

    async def _listen(self, api: RestApi) -> None:
        config = self._config
        loop = asyncio.get_running_loop()
        application = web.Application()
        add_control_routes(application, self)
        api.add_routes(application)
        try:
            self._server = await loop.create_server(
                lambda: Connection(self._hub), config.host, config.websocket_port
            )
        except OSError as error:
            raise _unusable(config.host, config.websocket_port, "--port", error) from None
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, config.host, config.rest_port).start()
        except OSError as error:
            raise _unusable(config.host, config.rest_port, "--rest-port", error) from None
        host = f"[{config.host}]" if ":" in config.host else config.host
        websocket_port = self._server.sockets[0].getsockname()[1]
        rest_port = self._runner.addresses[0][1]
        self.websocket_url = f"ws://{host}:{websocket_port}{WEBSOCKET_PATH}"
        self.rest_url = f"http://{host}:{rest_port}{ROOT}"

    async def _close_listeners(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._runner is not None:
            await self._runner.cleanup()

    # --- the clock ------------------------------------------------------------------------------------

    def now_ns(self) -> int:
        """The exchange's wall clock: signatures and REST limits go by it."""
        return time.time_ns() + self._offset_ns

    async def _run(self) -> None:
        """One tick of the virtual clock per `tick_ms` of real time; a long hold-up is skipped, not made up."""
        tick_ns = self._config.tick_ms * 1_000_000
        origin_ns = self._origin_ns
        done = 0
        while True:
            due = (time.monotonic_ns() - origin_ns) // tick_ns
            if due - done > SIM_TICKS_PER_WAKE:
                self._ticks_skipped += due - done - 1
                done = due - 1
            if done < due:
                done += 1
                self._tick(self._start_ns + done * tick_ns, tick_ns)
            next_ns = origin_ns + (done + 1) * tick_ns
            await asyncio.sleep(max(0, next_ns - time.monotonic_ns()) / NANOSECONDS)

    def _tick(self, now_ns: int, tick_ns: int) -> None:
        self._ticks += 1
        self._make_due_faults(now_ns, tick_ns)
        self._end_maintenance(now_ns)
        emissions = self._venue.advance(now_ns)
        pings = now_ns >= self._next_ping_ns
        if pings:
            self._next_ping_ns = now_ns + self._ping_interval_ns()
        for connection in list(self._hub.connections.values()):
            if connection.is_open:
                connection.subscriptions.publish(emissions)
                connection.play(now_ns)
                connection.flush()
                if pings:
                    connection.ping()

    def _ping_interval_ns(self) -> int:
        return int(self._config.ping_interval_s * NANOSECONDS)

    # --- faults ---------------------------------------------------------------------------------------

    def _make_due_faults(self, now_ns: int, tick_ns: int) -> None:
        elapsed_s = (now_ns - self._start_ns) / NANOSECONDS
        while self._script and self._script[0].at_s <= elapsed_s:
            self.inject(self._script.popleft())
        drawn = self._random_faults.due(tick_ns)
        if drawn is not None:
            self.inject(drawn)

    def inject(self, fault: Fault) -> int:
        """Make `fault` now; returns on how many connections (1 for faults of the exchange itself)."""
        if fault.kind in LOCAL_FAULTS:
            self._make_exchange_fault(fault)
            made = 1
        elif fault.kind in PAUSE_FAULTS:
            self._begin_maintenance(fault)
            made = 1
        else:
            made = self._hub.inject(fault)
        if made:
            self._faults[fault.kind] = self._faults.get(fault.kind, 0) + 1
        return made

    def _make_exchange_fault(self, fault: Fault) -> None:
        if fault.kind == "flood":
            self._venue.flood(fault.count)
        elif fault.kind == "rest_429":
            self._state.fail(429, fault.duration_ns)
        elif fault.kind == "rest_5xx":
            self._state.fail(fault.status, fault.duration_ns)
        else:
            status = 429 if fault.kind == "handshake_429" else 502
            self._hub.block_handshakes(status, fault.duration_ns)

    def _begin_maintenance(self, fault: Fault) -> None:
        """Trading stops and sessions are dropped; an exchange pause also closes REST and handshakes."""
        now_ns = self._venue.now_ns
        self._maintenance_until_ns = now_ns + fault.duration_ns
        self._state.resume_ns = self._maintenance_until_ns
        self._state.trading_active = False
        self._venue.paused = True
        if fault.kind == "exchange_pause":
            self._state.exchange_active = False
            self._hub.block_handshakes(503, fault.duration_ns)
        for connection in list(self._hub.connections.values()):
            connection.reset()

    def _end_maintenance(self, now_ns: int) -> None:
        over = now_ns >= self._maintenance_until_ns
        if over:
            self._state.trading_active = self._state.exchange_active = True
        self._venue.paused = self._flow_paused or not over

    # --- control --------------------------------------------------------------------------------------

    def pause_flow(self) -> None:
        """Stop everything that changes a book or a market; commands, pings and REST go on."""
        self._flow_paused = True
        self._venue.paused = True

    def resume_flow(self) -> None:
        """Let order flow and lifecycle go on at the next tick."""
        self._flow_paused = False

    def stop_faults(self) -> None:
        """No more random or scripted faults, and the end of those that last; dead sids stay dead."""
        self._random_faults.per_minute = 0
        self._script.clear()
        self._state.fault_until_ns = 0
        self._hub.unblock_handshakes()
        self._maintenance_until_ns = 0

    def books(self) -> dict[str, YesBook]:
        """The exchange's own books: (bids, asks) in YES prices, (price_e4, size_e2) ascending."""
        return self._venue.books()

    def stats(self) -> SimulationStats:
        """Counters since the start."""
        hub = self._hub
        return SimulationStats(
            now_ns=self._venue.now_ns,
            flow_paused=self._venue.paused,
            markets=len(self._venue.catalogue.markets),
            connections=len(hub.connections),
            connections_accepted=hub.accepted,
            handshakes_refused=hub.refused,
            commands=hub.commands,
            rest_requests=self._state.requests,
            frames_sent=dict(hub.sent),
            frames_sent_total=sum(hub.sent.values()),
            faults=dict(self._faults),
            ticks=self._ticks,
            ticks_skipped=self._ticks_skipped,
        )


def _make_venue(config: SimulationConfig, start_ns: int) -> Venue:
    if config.replay is not None:
        text = _read_text(config.replay, "capture")
        return ReplayVenue(
            read_capture(text, config.replay.name),
            speed=config.speed,
            use_yes_price=config.replay_use_yes_price,
            start_ns=start_ns,
        )
    return Exchange(
        seed=config.seed,
        market_count=config.markets,
        start_ns=start_ns,
        flow=FlowSettings(
            rate=config.rate,
            step_max_ns=config.tick_ms * 1_000_000,
            orders_per_market=config.orders_per_market,
            burst_interval_s=config.burst_interval_s,
        ),
        lifecycle=LifecycleSettings(
            window_s=config.window_s, change_interval_ms=int(config.change_interval_s * 1_000)
        ),
    )


def _read_text(path: Path, what: str) -> str:
    """The content of a file the user named. Raises `ConfigurationError` naming it."""
    try:
        if path.stat().st_size > SIM_REPLAY_MAX_BYTES:
            raise ConfigurationError(f"{what} {path} is larger than {SIM_REPLAY_MAX_BYTES} bytes")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"cannot read {what} {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{what} {path} is not UTF-8 text") from None


def _unusable(host: str, port: int, option: str, error: OSError) -> NetworkSetupError:
    if error.errno == errno.EADDRINUSE:
        return NetworkSetupError(
            f"port {port} on {host} is in use; stop what listens there or choose another with {option}"
        )
    reason = error.strerror or str(error)
    return NetworkSetupError(f"cannot listen on {host} port {port}: {reason}; check --host")
