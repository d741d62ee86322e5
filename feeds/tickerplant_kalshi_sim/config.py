"""Configuration of a simulated exchange, validated when it is made."""

from pathlib import Path
from typing import Literal

import msgspec

from tickerplant.errors import ConfigurationError
from tickerplant.limits import SIM_MARKETS_MAX, SIM_SUBSCRIPTION_BUFFER_FRAMES

START_MIN_NS = 1_000_000_000 * 10**9
START_MAX_NS = 4_000_000_000 * 10**9
"""The virtual clock may start from 2001 to 2096."""
WEBSOCKET_PORT = 26490
REST_PORT = 26491


class SimulationConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be chosen. Raises `ConfigurationError` for a value out of range.

    Listening: `host` (loopback by default), `websocket_port` and `rest_port` (0 takes a free one).
    Keys: `directory` (default `$STATE_DIRECTORY/sim`, else `~/.local/state/tickerplant/sim`), `key_type`,
    `allow_anonymous` (WebSocket without signature, private channels then answer code 9),
    `clock_skew_limit_s` (how far a signature's timestamp may be off, either way), `clock_offset_s` (how far the
    exchange's own clock is ahead).
    Flow: `seed`, `markets`, `rate` (order actions a second; each is 1-3 frames), `orders_per_market`, `tick_ms` (the
    frames of one tick go out in one write), `burst_interval_s`, `start_ns` (first moment of the virtual clock; None:
    now; given, the same seed makes the same market at each run). `paused` starts with the flow stopped.
    Life of markets: `window_s` (length of the rolling windows, 0 for none), `change_interval_s` (mean time between
    administrative changes, 0 for none).
    Replay: `replay` (a capture to serve instead of the generator), `speed` (1 recorded pace, 0 as fast as the client
    reads), `replay_use_yes_price` (the capture was recorded with `use_yes_price`).
    Faults: `faults` (a script), `fault_rate` (random ones a minute), `fault_kinds` (which; empty: all).
    Limits of the exchange: `connections`, `subscription_buffer_frames`, `markets_per_subscription`,
    `commands_per_second` (per sid), `rest_tokens_per_second` (a request costs 10; the bucket holds two seconds),
    `ping_interval_s`, `use_yes_price_default` (what a subscribe without the flag means).
    """

    host: str = "127.0.0.1"
    websocket_port: int = WEBSOCKET_PORT
    rest_port: int = REST_PORT
    directory: Path | None = None
    key_type: Literal["rsa", "ed25519"] = "rsa"
    allow_anonymous: bool = False
    clock_skew_limit_s: float = 15.0
    clock_offset_s: float = 0.0
    seed: int = 1
    markets: int = 500
    rate: int = 500
    orders_per_market: int = 20
    tick_ms: int = 10
    burst_interval_s: int = 5
    start_ns: int | None = None
    paused: bool = False
    window_s: int = 60
    change_interval_s: float = 3.0
    replay: Path | None = None
    speed: float = 1.0
    replay_use_yes_price: bool = False
    faults: Path | None = None
    fault_rate: float = 0.0
    fault_kinds: tuple[str, ...] = ()
    connections: int = 200
    subscription_buffer_frames: int = SIM_SUBSCRIPTION_BUFFER_FRAMES
    markets_per_subscription: int = 500_000
    commands_per_second: int = 10_000
    rest_tokens_per_second: int = 200
    ping_interval_s: float = 10.0
    use_yes_price_default: bool = False

    def __post_init__(self) -> None:
        self._check("websocket_port", 0, 65_535)
        self._check("rest_port", 0, 65_535)
        self._check("markets", 1, SIM_MARKETS_MAX)
        self._check("rate", 0, 1_000_000)
        self._check("orders_per_market", 1, 10_000)
        self._check("tick_ms", 1, 1_000)
        self._check("burst_interval_s", 1, 86_400)
        if self.start_ns is not None:
            self._check("start_ns", START_MIN_NS, START_MAX_NS)
        self._check("window_s", 0, 86_400)
        self._check("change_interval_s", 0, 86_400)
        self._check("speed", 0, 1_000_000)
        self._check("fault_rate", 0, 100_000)
        self._check("connections", 1, 10_000)
        self._check("subscription_buffer_frames", 1, 1_000_000)
        self._check("markets_per_subscription", 1, 1_000_000)
        self._check("commands_per_second", 1, 1_000_000)
        self._check("rest_tokens_per_second", 10, 1_000_000)
        self._check("clock_skew_limit_s", 0.001, 86_400)
        self._check("clock_offset_s", -86_400, 86_400)
        self._check("ping_interval_s", 0.01, 3_600)

    def _check(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if not low <= value <= high:
            raise ConfigurationError(f"simulation: {name} is {value}; choose {low} to {high}")
