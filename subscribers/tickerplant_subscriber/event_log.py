"""Faults of the feed as log lines, at most one a second for each kind: nothing is lost silently by default."""

import logging
from collections.abc import Callable

from tickerplant.core.messages import GapCause, Stream
from tickerplant.limits import FAULT_LOG_INTERVAL_NS
from tickerplant_subscriber.events import (
    DatagramsRefused,
    Event,
    Gap,
    Line,
    SessionChanged,
    SessionEnded,
    SnapshotApplied,
    StreamAlive,
    StreamBehind,
    StreamCaughtUp,
    StreamDead,
)

logger = logging.getLogger("tickerplant_subscriber")


def describe(event: Event) -> str:
    """One line of text for an event of the arbiter."""
    match event:
        case Gap():
            count = event.message_count
            what = "an unknown number of" if count is None else str(count)
            name = enum_name(GapCause, event.cause)
            healed = ", made up for by a snapshot" if event.healed else ""
            return f"gap: {what} messages lost on {stream_name(event.stream)}, cause {name}{healed}"
        case SessionChanged():
            return f"session {event.session} follows {event.previous_session or 'none'}"
        case SessionEnded():
            return f"session {event.session} ended on {stream_name(event.stream)}"
        case StreamDead():
            return f"stream {stream_name(event.stream)} is dead: no datagram for 3 s"
        case StreamAlive():
            missed = "nothing was missed" if event.contiguous else "messages were missed"
            return f"stream {stream_name(event.stream)} is alive again, {missed}"
        case StreamBehind():
            return f"stream {stream_name(event.stream)} is behind: what it lacks is being fetched"
        case StreamCaughtUp():
            return f"stream {stream_name(event.stream)} has caught up"
        case SnapshotApplied():
            return (
                f"snapshot of {stream_name(event.stream)} before sequence {event.next_seq}: "
                f"{event.message_count} messages"
            )
        case DatagramsRefused():
            return (
                f"{event.count} datagrams refused on line {Line(event.line).name}: "
                f"{event.error}, last: {event.detail}"
            )
    return repr(event)


def stream_name(stream: int) -> str:
    """`trade`, `bbo`, ... or the number of a stream this version does not know."""
    return enum_name(Stream, stream)


def enum_name(kind: type[Stream] | type[GapCause], value: int) -> str:
    """The member's name in lower case, or the number."""
    try:
        return kind(value).name.lower()
    except ValueError:
        return str(value)


class EventLog:
    """Logs faults as warnings and sessions as information; what is held back is told in the next line's count."""

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self._now_ns = now_ns
        self._logged_ns: dict[tuple[type, int], int] = {}
        self._held_back: dict[tuple[type, int], int] = {}

    def take(self, event: Event) -> None:
        """Logs an event, or counts it if one of its kind was logged less than a second ago."""
        if isinstance(
            event, SessionChanged | SessionEnded | StreamAlive | StreamCaughtUp | SnapshotApplied
        ):
            logger.info("%s", describe(event))
            return
        if not isinstance(event, Gap | StreamDead | StreamBehind | DatagramsRefused):
            return
        kind = (type(event), getattr(event, "stream", 0))
        now_ns = self._now_ns()
        logged_ns = self._logged_ns.get(kind)
        if logged_ns is not None and now_ns - logged_ns < FAULT_LOG_INTERVAL_NS:
            self._held_back[kind] = self._held_back.get(kind, 0) + 1
            return
        self._logged_ns[kind] = now_ns
        held_back = self._held_back.pop(kind, 0)
        also = f" (and {held_back} more like it before)" if held_back else ""
        logger.warning("%s%s", describe(event), also)
