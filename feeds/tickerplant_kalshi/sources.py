"""What a feed and its sessions count, in the form the metrics endpoint reads at scrape time."""

from collections import Counter
from collections.abc import Iterable, Mapping

from tickerplant.core.messages import Stream
from tickerplant_kalshi.feed import KalshiFeed
from tickerplant_kalshi.session import ExchangeSession

Values = Mapping[str, int | Mapping[str, int]]
_PLANT_GAUGES = frozenset({"stale_books", "unready_books", "books"})
_STREAM_NAMES = {int(stream): stream.name.lower() for stream in Stream}


class PlantSource:
    """Books, streams and publication."""

    def __init__(self, feed: KalshiFeed) -> None:
        """Of the plant of this feed."""
        self._plant = feed.plant

    def counters(self) -> Values:
        """What only grows."""
        plant = self._plant
        publication = plant.publication
        streams = {_STREAM_NAMES[packets.stream]: packets for packets in plant.packets.streams}
        return {
            **{name: value for name, value in plant.counters() if name not in _PLANT_GAUGES},
            "images": publication.images,
            "resyncs": publication.resyncs,
            "resync_levels": publication.resync_levels,
            "stale_notices": publication.stale_notices,
            "messages{stream}": {
                name: one.earlier_messages + one.next_seq - 1 for name, one in streams.items()
            },
            "data_datagrams{stream}": {
                name: one.earlier_datagrams + one.datagrams_sent for name, one in streams.items()
            },
            "oversized_messages{stream}": {name: one.oversized for name, one in streams.items()},
        }

    def gauges(self) -> Values:
        """What goes up and down."""
        plant = self._plant
        return {
            **{name: value for name, value in plant.counters() if name in _PLANT_GAUGES},
            "phase": int(plant.phase),
            "session": plant.session,
            "publish_queue_books": len(plant.publication),
        }


class FeedSource:
    """Frames of all connections, and the market directory."""

    def __init__(self, feed: KalshiFeed) -> None:
        """Of this feed."""
        self._feed = feed

    def counters(self) -> Values:
        """What only grows."""
        connections = self._feed.connections
        directory = {
            f"directory_{name}": value
            for name, value in vars(self._feed.directory.counters).items()
            if isinstance(value, int)
        }
        return {
            **dict(self._feed.counters()),
            **directory,
            "unknown_types{type}": _summed(one.counters.frame_types for one in connections),
            "error_frames{code}": _summed(one.counters.error_codes for one in connections),
            "fields_refused{field}": dict(self._feed.directory.counters.fields_refused),
        }

    def gauges(self) -> Values:
        """What goes up and down."""
        return {
            "markets_known": len(self._feed.directory),
            "markets_subscribed": self._feed.directory.subscribed_count,
            "connections_up": sum(one.is_open for one in self._feed.connections),
        }


class SessionSource:
    """What the WebSocket sessions count."""

    def __init__(self, sessions: Iterable[ExchangeSession]) -> None:
        """Of these sessions together."""
        self._sessions = tuple(sessions)

    def counters(self) -> Values:
        """What only grows."""
        total: Counter[str] = Counter()
        for session in self._sessions:
            total.update(session.counters.plain())
        refusals = _summed(session.counters.handshake_refusals for session in self._sessions)
        return {**total, "handshake_refusals{status}": refusals}


def _summed(tables: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for table in tables:
        total.update(table)
    return dict(total)
