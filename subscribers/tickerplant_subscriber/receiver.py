"""The sockets of a subscriber and its timers; everything else is up to the arbiter and the recovery client."""

import asyncio
import logging
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass

from tickerplant.busy_poll import BusyPoll
from tickerplant.core.messages import Stream
from tickerplant.deadline_timer import DeadlineTimer
from tickerplant.errors import CredentialsError
from tickerplant.key_file import KeyFile, is_readable_by_all
from tickerplant.limits import (
    DATAGRAM_MAX_BYTES,
    DATAGRAMS_PER_DRAIN,
    DECISION_DELAY_MAX_NS,
)
from tickerplant.steady_clock import SteadyClock
from tickerplant_subscriber.admission import Admission
from tickerplant_subscriber.arbiter import Arbiter
from tickerplant_subscriber.events import Line
from tickerplant_subscriber.options import ReceiverOptions, group_of
from tickerplant_subscriber.position import Position
from tickerplant_subscriber.recovery_client import RecoveryClient
from tickerplant_subscriber.recovery_link import RecoveryLink
from tickerplant_subscriber.sockets import (
    kernel_drops_of,
    open_group_socket,
    receive_buffer_of,
)

logger = logging.getLogger("tickerplant_subscriber")

HOUSEKEEPING_S = 1.0
_MILLISECOND_NS = 1_000_000
_READ_BYTES = DATAGRAM_MAX_BYTES + 1


@dataclass(slots=True)
class GroupSocket:
    """One joined group."""

    line: Line
    stream: Stream
    socket: socket.socket
    kernel_drops: int = 0


class Receiver:
    """Reads the groups of the joined streams on all lines and feeds the arbiter, which needs our `admission`.

    A key file that changes is taken over while running. An exception from a callback of the arbiter ends the receiver
    and is handed to `fail`, once.
    """

    def __init__(
        self,
        options: ReceiverOptions,
        streams: Collection[Stream],
        fail: Callable[[Exception], None],
        clock: SteadyClock,
    ) -> None:
        """Raises `CredentialsError` for a key file of no use."""
        self._key_file = KeyFile(options.key_path) if options.key_path else None
        self.admission = Admission(
            None if self._key_file is None else self._key_file.ring,
            options.replay_window_ms * _MILLISECOND_NS,
            accept_replay=options.accept_replay,
        )
        self.receive_buffer_bytes = 0
        self.socket_errors = 0
        self._options = options
        self._streams = streams
        self._fail = fail
        self._clock = clock
        self._sockets: list[GroupSocket] = []
        self._arbiter: Arbiter
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: DeadlineTimer | None = None
        self._due_ns = 0
        self._housekeeping: asyncio.TimerHandle | None = None
        self._link: RecoveryLink | None = None
        self._is_paused = False
        self._busy_poll = BusyPoll()

    def open(self, client: RecoveryClient | None = None) -> None:
        """Joins the groups. Raises `NetworkSetupError`, with nothing left open."""
        options = self._options
        try:
            if client is not None:
                self._link = RecoveryLink(options.recovery_addresses, client, self._guard)
                self._link.open()
            for line, (first_group, interface, source) in zip(Line, options.lines, strict=False):
                for stream in sorted(self._streams):
                    receiver = open_group_socket(
                        group_of(first_group, stream),
                        options.port,
                        interface,
                        source,
                        options.receive_buffer_bytes,
                    )
                    group_socket = GroupSocket(line, stream, receiver)
                    self._sockets.append(group_socket)
        except BaseException:
            self.close()
            raise
        self.receive_buffer_bytes = min(receive_buffer_of(each.socket) for each in self._sockets)
        if self.receive_buffer_bytes < options.receive_buffer_bytes:
            logger.warning(
                "receive buffer is %d B, asked for %d B; raise it with: sysctl -w net.core.rmem_max=%d",
                self.receive_buffer_bytes,
                options.receive_buffer_bytes,
                options.receive_buffer_bytes,
            )

        if self._key_file is not None and is_readable_by_all(self._key_file.path):
            path = self._key_file.path
            logger.warning("%s can be read by every user: chmod o= %s", path, path)

    def start(self, arbiter: Arbiter, resume: Position | None = None) -> None:
        """Begins to read, on the running loop; from a position on, if one is given."""
        assert arbiter.admission is self.admission
        self._arbiter = arbiter
        self._loop = asyncio.get_running_loop()
        self._timer = DeadlineTimer(self._clock.now_ns, self._on_timer)
        if self._link is not None:
            self._link.start()
        for group_socket in self._sockets:
            self._loop.add_reader(group_socket.socket, self._on_readable, group_socket)
        self._keep_house()
        if self._options.busy_poll:
            self._busy_poll.start()
        if resume is not None:
            self._guard(lambda now_ns: arbiter.resume(resume, now_ns))

    @property
    def recovery_socket_errors(self) -> int:
        """Of the sockets to recovery."""
        return 0 if self._link is None else self._link.socket_errors

    def pause(self) -> None:
        """Nothing is read and nothing decided until `go_on`: the kernel keeps what it has room for."""
        if self._is_paused or self._loop is None:
            return
        self._is_paused = True
        self._busy_poll.stop()
        for group_socket in self._sockets:
            self._loop.remove_reader(group_socket.socket)
        if self._link is not None:
            self._link.pause()
        if self._timer is not None:
            self._timer.disarm()

    def go_on(self) -> None:
        """Ends `pause`; what waits in the kernel is read before anything is decided."""
        if not self._is_paused or self._loop is None:
            return
        self._is_paused = False
        if self._options.busy_poll:
            self._busy_poll.start()
        for group_socket in self._sockets:
            self._loop.add_reader(group_socket.socket, self._on_readable, group_socket)
        if self._link is not None:
            self._link.resume()
        if self._timer is not None:
            self._due_ns = self._clock.now_ns()
            self._timer.arm(self._due_ns)

    def close(self) -> None:
        """Leaves the groups; may be called twice."""
        self._busy_poll.stop()
        if self._timer is not None:
            self._timer.close()
        if self._housekeeping is not None:
            self._housekeeping.cancel()
        self._timer = self._housekeeping = None
        if self._link is not None:
            self._link.close()
        for group_socket in self._sockets:
            if self._loop is not None:
                self._loop.remove_reader(group_socket.socket)
            group_socket.socket.close()
        self._sockets = []

    # --- reading ----------------------------------------------------------------------------------

    def _on_readable(self, group_socket: GroupSocket) -> None:
        now_ns = self._clock.now_ns()
        try:
            self._drain(group_socket, now_ns)
            self._schedule()
        except Exception as error:  # noqa: BLE001  # a callback of the user raised
            self._stop_with(error)

    def _guard(self, call: Callable[[int], None]) -> None:
        """The same for what comes from recovery."""
        now_ns = self._clock.now_ns()
        try:
            call(now_ns)
            self._schedule()
        except Exception as error:  # noqa: BLE001  # a callback of the user raised
            self._stop_with(error)

    def _drain(self, group_socket: GroupSocket, now_ns: int) -> bool:
        """Reads what is there, at most `DATAGRAMS_PER_DRAIN`; whether more may be waiting."""
        line, read = group_socket.line, group_socket.socket.recv
        receive = self._arbiter.receive
        for _ in range(DATAGRAMS_PER_DRAIN):
            try:
                datagram = read(_READ_BYTES)
            except BlockingIOError:
                return False
            except OSError:
                self.socket_errors += 1
                return False
            receive(line, datagram, now_ns)
        return True

    def _stop_with(self, error: Exception) -> None:
        self.close()
        self._fail(error)

    # --- timers -----------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if self._link is not None and self._sockets:
            self._link.perform()
        due_ns = self._arbiter.next_deadline_ns()
        if due_ns is None or self._timer is None or not self._sockets or self._is_paused:
            return
        if due_ns < self._timer.armed_ns:
            self._due_ns = due_ns
            self._timer.arm(due_ns)

    def _on_timer(self) -> None:
        """Reads first and decides then: after a stall of this process the datagrams are there, only unread."""
        due_ns = self._due_ns
        try:
            now_ns = self._clock.now_ns()
            unread = [each for each in self._sockets if self._drain(each, now_ns)]
            if self._link is not None:
                self._link.drain(now_ns)
            now_ns = self._clock.now_ns()
            if not unread or now_ns - due_ns > DECISION_DELAY_MAX_NS:
                if self._arbiter.hole_due(now_ns):
                    self._read_kernel_drops()
                self._arbiter.handle_timer(now_ns)
            self._schedule()
        except Exception as error:  # noqa: BLE001  # a callback of the user raised
            self._stop_with(error)

    def _keep_house(self) -> None:
        assert self._loop is not None
        self._housekeeping = self._loop.call_later(HOUSEKEEPING_S, self._keep_house)
        self._read_kernel_drops()
        wall_step_ns = self._clock.wall_step_ns()
        self._arbiter.clock_step_ns = max(0, wall_step_ns)
        self.admission.wall_step_ns = wall_step_ns
        self._reread_keys()

    def _reread_keys(self) -> None:
        if self._key_file is None:
            return
        try:
            if self._key_file.reread():
                self.admission.key_ring = self._key_file.ring
                logger.info("datagram keys changed: %s", self._key_file.ring)
        except CredentialsError as error:
            logger.warning("the keys stay as they were: %s", error)

    def _read_kernel_drops(self) -> None:
        """Per stream, over its lines."""
        totals: dict[int, int] = {}
        for each in self._sockets:
            each.kernel_drops = max(each.kernel_drops, kernel_drops_of(each.socket))
            totals[each.stream] = totals.get(each.stream, 0) + each.kernel_drops
        for stream, total in totals.items():
            self._arbiter.note_kernel_drops(stream, total)
