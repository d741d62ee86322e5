"""Recovery as a process: follows the tick log, and serves gap fill, streams and snapshots out of it.

It only reads what the plant writes. Everything that it does for clients is cut into pieces, so that it never falls
behind the log for long; a fault of the disk is told and tried again.
"""

import asyncio
import os
import socket
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import msgspec

from tickerplant.core.conversation import Keys
from tickerplant.core.gap_fill import GapFillServer
from tickerplant.core.logformat import LogPosition
from tickerplant.errors import NetworkSetupError, TickLogError
from tickerplant.folder_lock import lock_folder
from tickerplant.limits import (
    RECOVERY_BACKLOG,
    RECOVERY_RETRY_S,
    RECOVERY_STOP_TIMEOUT_S,
    TAIL_FAST_NS,
    TAIL_SLOW_NS,
)
from tickerplant.runtime.health import Readiness
from tickerplant.runtime.logfolder import read_owner
from tickerplant.runtime.logreader import FolderListing
from tickerplant.runtime.plain_structlog import structlog
from tickerplant.runtime.poll_timer import PollTimer
from tickerplant.runtime.recovery_checkpoints import CheckpointKeeper
from tickerplant.runtime.recovery_cuts import SnapshotCuts
from tickerplant.runtime.recovery_log import Begin, RecoveryLog, find_begin
from tickerplant.runtime.recovery_tcp import RecoveryServer
from tickerplant.runtime.recovery_udp import GapFillSocket, bind_udp
from tickerplant.runtime.supervise import Supervisor

RECOVERY_LOCK_FILE = "recovery.lock"
_SWEEP_S = 0.25
_INDEX_S = 0.05
_SECOND_NS = 1_000_000_000
_PORT_ATTEMPTS = 20
_HEADERS_PER_TURN = 20


class RecoveryOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How recovery serves; rates in bytes a second, `keys` (key id -> key) of an authenticated plant."""

    address: str = "127.0.0.1"
    port: int = 26410
    client_bytes_per_second: int = 64 * 1024**2
    total_bytes_per_second: int = 256 * 1024**2
    connections_max: int = 128
    connections_per_client_max: int = 64
    checkpoint_interval_s: float = 60.0
    key_id: int = 0
    keys: Mapping[int, bytes] | None = None


class RecoveryService:
    """One recovery of one log folder; `run` it, or `start` and `close`. `port` is known once `started` is set."""

    def __init__(self, folder: Path, options: RecoveryOptions | None = None) -> None:
        """Opens nothing yet."""
        self.folder = folder
        self.options = options or RecoveryOptions()
        self.log: Any = structlog.get_logger()
        self.supervisor = Supervisor(self.log)
        self.started = asyncio.Event()
        self.port = 0
        self.ticklog: RecoveryLog
        self.gap_fill: GapFillServer
        self.server: RecoveryServer
        self.udp: GapFillSocket
        self.counts: Counter[str] = Counter()
        self.turns = 0
        self._timer: PollTimer
        self._resources = AsyncExitStack()
        self._listing = FolderListing(folder)
        self._is_turn_due = False
        self._guarded_turn = self.supervisor.guard("log", self._turn)
        self._unreadable = ""
        self._told_faults = 0
        self._has_caught_up = False
        self._cuts: SnapshotCuts
        self._checkpoints: CheckpointKeeper

    # --- life -------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set. Raises the `TickerplantError` that ended it."""
        try:
            await self.start()
            await self.supervisor.wait(stop)
        finally:
            await self.close()

    async def start(self) -> None:
        """Lock the folder, find where to begin, and serve. Raises `TickLogError`, `NetworkSetupError`."""
        self._resources.callback(os.close, take_recovery_lock(self.folder))
        begin = await asyncio.to_thread(self._find_begin)
        self.ticklog = RecoveryLog(self.folder, begin)
        self._resources.callback(self.ticklog.close)
        self._cuts = SnapshotCuts(self.ticklog.state)
        self._checkpoints = CheckpointKeeper(
            self.ticklog, begin, self.options.checkpoint_interval_s, self.log
        )
        await self._look_at_folder()
        await self._open_sockets()
        self._timer = PollTimer(self.supervisor.guard("timer", self._on_timer))
        self._resources.callback(self._timer.close)
        self._timer.set_interval(TAIL_SLOW_NS)
        self.supervisor.start("housekeeping", self._keep_house())
        self.supervisor.start("checkpoints", self._keep_checkpoints())
        self.supervisor.start("indexing", self._keep_index())
        position = begin.position or LogPosition(0, 0)
        self.log.info(
            "recovery_started",
            address=self.options.address,
            port=self.port,
            folder=str(self.folder),
            segment=str(position.segment),
            offset=position.offset,
            from_checkpoint=begin.is_from_checkpoint,
        )
        self._turn_soon()
        self.started.set()

    async def close(self) -> None:
        """End in order, with a last checkpoint if that does not take long; harmless the second time."""
        if self.started.is_set():
            self.started.clear()
            self.udp.close()
            self.server.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(RECOVERY_STOP_TIMEOUT_S):
                    await self._checkpoints.write()
            self.log.info("recovery_ended", session=self.ticklog.state.session)
        await self.supervisor.close()
        await self._resources.aclose()

    def use_keys(self, key_id: int, keys: Mapping[int, bytes]) -> None:
        """Other keys from now on, for new requests and connections; `key_id` is the one to sign with."""
        if self.started.is_set():
            self.gap_fill.use_keys(key_id, keys)
            self.server.keys = Keys(key_id, keys)

    def readiness(self) -> Readiness:
        """For `/ready`: whether it serves and has read the log to its end."""
        if not self.started.is_set():
            return Readiness(is_ready=False, phase="starting", reason="recovery is starting")
        if self._unreadable:
            return Readiness(is_ready=False, phase="unreadable", reason=self._unreadable)
        if not self.ticklog.tail.session:
            reason = f"there is no tick log in {self.folder} yet"
            return Readiness(is_ready=False, phase="waiting", reason=reason)
        if not self._has_caught_up:
            reason = f"{self.ticklog.tail.datagrams} datagrams read, the end is not reached"
            return Readiness(is_ready=False, phase="catching up", reason=reason)
        return Readiness(is_ready=True, phase="serving", reason="")

    def _find_begin(self) -> Begin:
        try:
            begin = find_begin(self.folder)
        except OSError as error:
            raise TickLogError(
                f"tick log {self.folder}: {error.strerror}: make it readable for this user"
            ) from error
        for text in begin.refused:
            self.log.warning("checkpoint_refused", reason=text, rate_key=text)
        return begin

    async def _open_sockets(self) -> None:
        options = self.options
        keys = None if options.keys is None else Keys(options.key_id, options.keys)
        self.gap_fill = GapFillServer(
            self.ticklog,
            client_bytes_per_second=options.client_bytes_per_second,
            total_bytes_per_second=options.total_bytes_per_second,
            keys=options.keys,
            key_id=options.key_id,
        )
        self.server = RecoveryServer(
            self.ticklog,
            self._cuts,
            self.supervisor,
            connections_max=options.connections_max,
            connections_per_client_max=options.connections_per_client_max,
            client_bytes_per_second=options.client_bytes_per_second,
            total_bytes_per_second=options.total_bytes_per_second,
            keys=keys,
        )
        tcp, udp = bind_both(options.address, options.port)
        self.port = tcp.getsockname()[1]
        self.udp = GapFillSocket(
            self.gap_fill, udp, lambda: self.ticklog.searches, self.supervisor.guard
        )
        self._resources.callback(self.udp.close)
        listener = await asyncio.get_running_loop().create_server(
            self.server.make_connection, sock=tcp, backlog=RECOVERY_BACKLOG
        )
        self._resources.callback(listener.close)

    # --- following the log ------------------------------------------------------------------------

    def _on_timer(self) -> None:
        self._timer.set_interval(TAIL_FAST_NS if self.server.followers else TAIL_SLOW_NS)
        if not self._is_turn_due:
            self._turn()

    def _turn_soon(self) -> None:
        self._is_turn_due = True
        asyncio.get_running_loop().call_soon(self._guarded_turn)

    def _turn(self) -> None:
        """One bounded piece of following the log; further ones after the loop did other work."""
        self._is_turn_due = False
        if self._timer.is_closed:
            return
        self.turns += 1
        tail, now_ns = self.ticklog.tail, time.monotonic_ns()
        try:
            more = tail.apply(now_ns) or tail.read(now_ns)
        except OSError as error:
            self._tell_unreadable(error)
            return
        self._unreadable = ""
        if more:
            self._turn_soon()
        elif tail.has_caught_up and not self._has_caught_up:
            self._has_caught_up = True
            self.log.info(
                "recovery_caught_up",
                session=tail.session,
                books=len(self.ticklog.state.markets),
                datagrams=tail.datagrams,
            )

    def _tell_unreadable(self, error: OSError) -> None:
        self.counts["read_failures"] += 1
        self._unreadable = f"{self.folder}: {error.strerror}"
        self.log.warning("log_unreadable", reason=self._unreadable)

    # --- now and then -----------------------------------------------------------------------------

    async def _keep_house(self) -> None:
        look_at_ns = 0
        while True:
            await asyncio.sleep(_SWEEP_S)
            now_ns = time.monotonic_ns()
            self.server.sweep(now_ns)
            if now_ns >= look_at_ns:
                look_at_ns = now_ns + int(RECOVERY_RETRY_S * _SECOND_NS)
                with suppress(OSError):
                    await self._look_at_folder()
                self._tell_faults()

    async def _look_at_folder(self) -> None:
        """Which segments there are, and what the plant says of its log. Raises `OSError`."""
        owner, names = await asyncio.to_thread(
            lambda: (read_owner(self.folder), list(self._listing.names()))
        )
        for number, _step in enumerate(self.ticklog.take_folder(owner, names)):
            if number % _HEADERS_PER_TURN == 0:
                await asyncio.sleep(0)

    def _tell_faults(self) -> None:
        tail = self.ticklog.tail
        faults = tail.faults + tail.foreign_records + tail.state.holes
        if faults > self._told_faults:
            self._told_faults = faults
            self.log.warning(
                "log_faults", damaged=tail.faults, holes=tail.state.holes, session=tail.session
            )

    async def _keep_checkpoints(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            await self._checkpoints.write_if_due()

    async def _keep_index(self) -> None:
        while True:
            await asyncio.sleep(_INDEX_S)
            for _step in self.ticklog.index_wanted():
                await asyncio.sleep(0)

    # --- metrics ----------------------------------------------------------------------------------

    def counters(self) -> dict[str, Any]:
        """For the metrics."""
        return {
            "read_failures": self.counts["read_failures"],
            "cuts": self._cuts.taken,
            **self._checkpoints.counters(),
            **self.ticklog.tail.counters(),
            "log_searches": self.ticklog.searches,
            **self.gap_fill.counters(),
            **self.udp.counters(),
            **self.server.counters(),
        }

    def gauges(self) -> dict[str, int]:
        """For the metrics."""
        ticklog = self.ticklog
        return {
            "session": ticklog.state.session,
            "books": len(ticklog.state.markets),
            "backlog_datagrams": ticklog.tail.backlog,
            "index_points": ticklog.index.point_count,
            "cuts_open": len(self._cuts),
            **self.server.gauges(),
        }


def take_recovery_lock(folder: Path) -> int:
    """Make the folder if need be, and lock it for one recovery: the descriptor. Raises `TickLogError`."""
    path = folder / RECOVERY_LOCK_FILE
    try:
        return lock_folder(folder, RECOVERY_LOCK_FILE)
    except BlockingIOError:
        raise TickLogError(
            f"{path} is locked by another recovery: stop it, or serve another log folder"
        ) from None
    except OSError as error:
        raise TickLogError(
            f"recovery: {path}: {error.strerror}: make the folder writable for this user"
        ) from error


def bind_both(address: str, port: int) -> tuple[socket.socket, socket.socket]:
    """A TCP and a UDP socket on the same port, any free one for 0. Raises `NetworkSetupError`."""
    for attempt in range(_PORT_ATTEMPTS):
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tcp.bind((address, port))
            return tcp, bind_udp(address, tcp.getsockname()[1])
        except OSError as error:
            tcp.close()
            if port == 0 and attempt + 1 < _PORT_ATTEMPTS:
                continue
            raise NetworkSetupError(
                f"recovery {address}:{port} cannot be opened ({error.strerror}): stop what uses it, or set "
                "recovery.address and recovery.port"
            ) from error
    raise AssertionError
