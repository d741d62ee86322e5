"""Counts of a subscriber, as a snapshot to look at or to export."""

import msgspec

from tickerplant.core.wire import FLAG_NOT_REPAIRABLE, FLAG_REBUILDING, FLAG_UPSTREAM_DEGRADED
from tickerplant_subscriber.arbiter import Arbiter
from tickerplant_subscriber.events import Line
from tickerplant_subscriber.mirror import Mirror
from tickerplant_subscriber.recovery_client import RecoveryClient
from tickerplant_subscriber.stream_state import StreamState


class LineStats(msgspec.Struct, frozen=True):
    """One line of one stream in the current session; see `LineState`.

    `lost` are datagrams by the plant's count, as of the last heartbeat; `messages_missing` is up to date.
    """

    line: int
    datagrams: int
    wins: int
    duplicates: int
    heartbeats: int
    lost: int
    messages_missing: int

    @property
    def loss_ratio(self) -> float:
        """Share of the datagrams that were sent and did not come, as of the last heartbeat."""
        sent = self.lost + self.datagrams
        return self.lost / sent if sent else 0.0

    @property
    def win_ratio(self) -> float:
        """Share of the datagrams on this line that were here first."""
        return self.wins / self.datagrams if self.datagrams else 0.0


class StreamStats(msgspec.Struct, frozen=True):
    """One stream of one plant. What is counted in messages, `gaps` and `reordered` count over all sessions heard.

    `messages_lost` are in gaps, `messages_healed` those of them that a snapshot made up for; `messages_repaired` came
    from recovery. `messages_overtaken` were left out because a newer one of the market was handed out before.
    """

    publisher: int
    partition: int
    stream: int
    session: int
    next_seq: int
    messages: int
    gaps: int
    messages_lost: int
    reordered: int
    open_holes: int
    dead: bool
    ended: bool
    upstream_degraded: bool
    rebuilding: bool
    repairable: bool
    kernel_drops: int
    lines: tuple[LineStats, ...]
    behind: bool = False
    messages_healed: int = 0
    messages_repaired: int = 0
    messages_overtaken: int = 0

    @property
    def winner(self) -> int | None:
        """The line that brings most datagrams first; None with one line, or before anything came."""
        if len(self.lines) < 2 or not any(line.wins for line in self.lines):
            return None
        return max(self.lines, key=lambda line: line.wins).line


class RecoveryStats(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked of recovery. `is_reachable` None: not known yet; `replies` to UDP `requests` by code."""

    is_reachable: bool | None
    requests: int
    replies: dict[str, int]
    unusable_datagrams: int
    unrequested_datagrams: int
    connections_opened: int
    connections_failed: int
    snapshots_taken: int
    socket_errors: int = 0


class SubscriberStats(msgspec.Struct, frozen=True, kw_only=True):
    """Everything counted. `refused` are datagrams dropped, by reason."""

    streams: tuple[StreamStats, ...]
    refused: dict[str, int]
    lower_session_datagrams: int
    socket_errors: int
    receive_buffer_bytes: int
    messages_dropped: int = 0
    callback_errors: int = 0
    checksum_mismatches: int = 0
    recovery: RecoveryStats | None = None


def collect_stats(
    arbiter: Arbiter,
    mirror: Mirror | None,
    *,
    socket_errors: int,
    receive_buffer_bytes: int,
    messages_dropped: int = 0,
    callback_errors: int = 0,
    client: RecoveryClient | None = None,
    recovery_socket_errors: int = 0,
) -> SubscriberStats:
    """The counts of the parts of one subscription."""
    kernel_drops = dict(arbiter.kernel_drops())
    refused: dict[str, int] = {}
    for (_, error), refusals in arbiter.refusals.items():
        refused[error] = refused.get(error, 0) + refusals.count
    return SubscriberStats(
        streams=tuple(
            _stream_stats(state, kernel_drops.get(state.stream, 0)) for state in arbiter.states()
        ),
        refused=refused,
        lower_session_datagrams=arbiter.lower_session_datagrams,
        socket_errors=socket_errors,
        receive_buffer_bytes=receive_buffer_bytes,
        messages_dropped=messages_dropped,
        callback_errors=callback_errors,
        checksum_mismatches=0 if mirror is None else mirror.mismatches,
        recovery=(
            None if client is None else _recovery_stats(arbiter, client, recovery_socket_errors)
        ),
    )


def _recovery_stats(arbiter: Arbiter, client: RecoveryClient, socket_errors: int) -> RecoveryStats:
    return RecoveryStats(
        is_reachable=client.is_reachable,
        requests=client.gap_requests.sent,
        replies=dict(client.gap_requests.replies),
        unusable_datagrams=client.unusable_datagrams,
        unrequested_datagrams=arbiter.unrequested_datagrams,
        connections_opened=client.connections_opened,
        connections_failed=client.connections_failed,
        snapshots_taken=client.snapshots_taken,
        socket_errors=socket_errors,
    )


def _stream_stats(state: StreamState, kernel_drops: int) -> StreamStats:
    return StreamStats(
        publisher=state.publisher,
        partition=state.partition,
        stream=state.stream,
        session=state.session,
        next_seq=state.expected,
        messages=state.messages,
        gaps=state.gaps,
        messages_lost=state.messages_lost,
        reordered=state.reordered,
        open_holes=len(state.holes),
        dead=state.dead,
        ended=state.ended,
        upstream_degraded=bool(state.flags & FLAG_UPSTREAM_DEGRADED),
        rebuilding=bool(state.flags & FLAG_REBUILDING),
        repairable=not state.flags & FLAG_NOT_REPAIRABLE,
        kernel_drops=kernel_drops,
        lines=tuple(
            LineStats(
                line=Line(number),
                datagrams=line.datagrams,
                wins=line.wins,
                duplicates=line.duplicates,
                heartbeats=line.heartbeats,
                lost=line.lost,
                messages_missing=state.messages_missing(line),
            )
            for number, line in enumerate(state.lines)
        ),
        behind=state.behind,
        messages_healed=state.messages_healed,
        messages_repaired=state.messages_repaired,
        messages_overtaken=state.messages_overtaken,
    )
