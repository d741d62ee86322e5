"""The TCP side of recovery: all connections, and what they share."""

from collections import Counter
from collections.abc import Mapping

from tickerplant.core.conversation import Keys, Request
from tickerplant.core.rates import ClientRates
from tickerplant.core.recovery_wire import Hello, StreamRequest
from tickerplant.runtime.log_tail import TailBatch
from tickerplant.runtime.recovery_answers import SnapshotAnswer, SnapshotSource, StreamAnswer
from tickerplant.runtime.recovery_connection import Connection
from tickerplant.runtime.recovery_log import RecoveryLog
from tickerplant.runtime.supervise import Supervisor


class RecoveryServer:
    """Serves streams and snapshots to a bounded number of clients; `sweep` is to be called a few times a second."""

    def __init__(
        self,
        log: RecoveryLog,
        cuts: SnapshotSource,
        supervisor: Supervisor,
        *,
        connections_max: int,
        connections_per_client_max: int,
        client_bytes_per_second: int,
        total_bytes_per_second: int,
        keys: Keys | None = None,
    ) -> None:
        """Everything that is done for a client is done under `supervisor`."""
        self.supervisor = supervisor
        self.keys = keys
        self.rates = ClientRates(client_bytes_per_second, total_bytes_per_second)
        self.accepted = 0
        self.closed: Counter[str] = Counter()
        self.rejects: Counter[str] = Counter()
        self.sent_bytes = 0
        self._log = log
        self._cuts = cuts
        self._connections: set[Connection] = set()
        self._streams: set[StreamAnswer] = set()
        self._snapshots: set[SnapshotAnswer] = set()
        self._connections_max = connections_max
        self._per_client_max = connections_per_client_max
        self._by_client: Counter[str] = Counter()
        log.tail.listeners.append(self._pass_on)

    @property
    def followers(self) -> int:
        """Answers that follow the end of the log, or wait for it."""
        following = sum(one.is_following for one in self._streams)
        return following + sum(one.is_waiting for one in self._snapshots)

    # --- for connections --------------------------------------------------------------------------

    def make_connection(self) -> Connection:
        """For the event loop's `create_server`."""
        return Connection(self)

    def hello(self) -> Hello:
        """What there is."""
        return self._log.hello()

    def admit(self, connection: Connection) -> str:
        """Why the connection is one too many; empty if it is not."""
        self.accepted += 1
        if len(self._connections) >= self._connections_max:
            return "connections"
        if self._by_client[connection.client] >= self._per_client_max:
            return "connections of this address"
        self._connections.add(connection)
        self._by_client[connection.client] += 1
        return ""

    def forget(self, connection: Connection) -> None:
        """It is closed."""
        if connection in self._connections:
            self._connections.remove(connection)
            self._by_client[connection.client] -= 1
            if not self._by_client[connection.client]:
                del self._by_client[connection.client]

    async def answer(self, connection: Connection, request: Request) -> None:
        """Send the whole answer to a request. Raises `OSError` if the log cannot be read."""
        if isinstance(request, StreamRequest):
            stream = StreamAnswer(connection, request, self._log)
            self._streams.add(stream)
            try:
                await stream.run()
            finally:
                self._streams.remove(stream)
            return
        snapshot = SnapshotAnswer(connection, request, self._log, self._cuts)
        self._snapshots.add(snapshot)
        try:
            await snapshot.run()
        finally:
            self._snapshots.remove(snapshot)

    def _pass_on(self, batch: TailBatch) -> None:
        for stream in list(self._streams):
            if stream.is_following:
                stream.offer(batch)

    # --- for the service --------------------------------------------------------------------------

    def sweep(self, now_ns: int) -> None:
        """Close what is stuck, keep alive what is idle."""
        for connection in list(self._connections):
            connection.sweep(now_ns)
        for stream in list(self._streams):
            if stream.is_following:
                stream.end_if_unlogged()

    def close(self) -> None:
        """Close all connections."""
        self._log.tail.listeners.remove(self._pass_on)
        for connection in list(self._connections):
            connection.end()

    def counters(self) -> Mapping[str, int | Mapping[str, int]]:
        """For the metrics."""
        return {
            "tcp_connections": self.accepted,
            "tcp_bytes": self.sent_bytes,
            "tcp_rejects{code}": dict(self.rejects),
            "tcp_closed{cause}": dict(self.closed),
        }

    def gauges(self) -> Mapping[str, int]:
        """For the metrics."""
        return {
            "tcp_connections_open": len(self._connections),
            "followers": self.followers,
            "tcp_unsent_bytes": sum(one.unsent_bytes for one in self._connections),
        }
