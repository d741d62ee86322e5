"""Subscriber library of the ticker plant: every message once and in order, or a gap that says so.

Write a `Strategy` and `run` it, or iterate over a `Subscriber`. Prices are integers in 1e-4 dollar (`_e4`), sizes in
1e-2 contract (`_e2`), times nanoseconds since the epoch (`_ns`); `format_price_e4` and `format_size_e2` show them.
"""

from tickerplant.core.fixedpoint import format_price_e4, format_size_e2
from tickerplant.core.messages import (
    AnyMessage,
    Bbo,
    BookClear,
    BookLevels,
    BookReady,
    BookStale,
    BookState,
    BookVerify,
    FeedPhase,
    FeedState,
    GapCause,
    LevelUpdate,
    MarketInfo,
    MarketPhase,
    MarketState,
    SessionStart,
    Side,
    StaleReason,
    Stream,
    Ticker,
    Trade,
    UpdateCause,
    UpstreamGap,
)
from tickerplant.errors import (
    ConfigurationError,
    NetworkSetupError,
    RecordingError,
    TickerplantError,
)
from tickerplant_subscriber.book_view import BookView
from tickerplant_subscriber.events import (
    UNKNOWN_SEQ,
    AnyEvent,
    DatagramsRefused,
    Event,
    Gap,
    Line,
    Live,
    SessionChanged,
    SessionEnded,
    SnapshotApplied,
    Stale,
    StreamAlive,
    StreamBehind,
    StreamCaughtUp,
    StreamDead,
)
from tickerplant_subscriber.log_source import TimedDatagram, read_log
from tickerplant_subscriber.position import Position
from tickerplant_subscriber.recorder import Recorder, record
from tickerplant_subscriber.recording_format import RecordedEvent
from tickerplant_subscriber.recording_reader import (
    read_recording,
    recorded_events,
    recorded_sessions,
)
from tickerplant_subscriber.replay import replay, replay_async
from tickerplant_subscriber.runner import run, run_async
from tickerplant_subscriber.stats import LineStats, StreamStats, SubscriberStats
from tickerplant_subscriber.strategy import Strategy, StreamChange
from tickerplant_subscriber.subscriber import Subscriber

__all__ = [
    "UNKNOWN_SEQ",
    "AnyEvent",
    "AnyMessage",
    "Bbo",
    "BookClear",
    "BookLevels",
    "BookReady",
    "BookStale",
    "BookState",
    "BookVerify",
    "BookView",
    "ConfigurationError",
    "DatagramsRefused",
    "Event",
    "FeedPhase",
    "FeedState",
    "Gap",
    "GapCause",
    "LevelUpdate",
    "Line",
    "LineStats",
    "Live",
    "MarketInfo",
    "MarketPhase",
    "MarketState",
    "NetworkSetupError",
    "Position",
    "RecordedEvent",
    "Recorder",
    "RecordingError",
    "SessionChanged",
    "SessionEnded",
    "SessionStart",
    "Side",
    "SnapshotApplied",
    "Stale",
    "StaleReason",
    "Strategy",
    "Stream",
    "StreamAlive",
    "StreamBehind",
    "StreamCaughtUp",
    "StreamChange",
    "StreamDead",
    "StreamStats",
    "Subscriber",
    "SubscriberStats",
    "Ticker",
    "TickerplantError",
    "TimedDatagram",
    "Trade",
    "UpdateCause",
    "UpstreamGap",
    "format_price_e4",
    "format_size_e2",
    "read_log",
    "read_recording",
    "record",
    "recorded_events",
    "recorded_sessions",
    "replay",
    "replay_async",
    "run",
    "run_async",
]
