"""Faults that the simulated exchange can be told to make, by command, by script or at random.

Frame faults wait on a subscription for its next frame of the channel; the others happen at once.
"""

import tomllib
from random import Random
from typing import Any, Literal, get_args

import msgspec

from tickerplant.errors import ConfigurationError
from tickerplant.limits import SIM_FAULTS_WAITING, SIM_FLOOD_ACTIONS_MAX

FrameFaultKind = Literal["skip_seq", "duplicate", "unusable", "inconsistent", "silent_loss"]
SubscriptionFaultKind = Literal["error_10", "error_25", "dead_sid", "late_ack", "command_timeout"]
ConnectionFaultKind = Literal["reset", "close", "half_open"]
ExchangeFaultKind = Literal[
    "flood",
    "rest_429",
    "rest_5xx",
    "handshake_429",
    "handshake_502",
    "trading_pause",
    "exchange_pause",
]
FaultKind = FrameFaultKind | SubscriptionFaultKind | ConnectionFaultKind | ExchangeFaultKind
FRAME_KINDS: tuple[str, ...] = get_args(FrameFaultKind)
SUBSCRIPTION_KINDS: tuple[str, ...] = get_args(SubscriptionFaultKind)
CONNECTION_KINDS: tuple[str, ...] = get_args(ConnectionFaultKind)
EXCHANGE_KINDS: tuple[str, ...] = get_args(ExchangeFaultKind)
DELTA_KINDS = ("inconsistent", "silent_loss")
"""Frame faults that only a delta can have."""
FAULT_KINDS = (*FRAME_KINDS, *SUBSCRIPTION_KINDS, *CONNECTION_KINDS, *EXCHANGE_KINDS)
UNUSABLE_VARIANTS = (
    "bad_json",
    "missing_field",
    "bad_number",
    "negative_level",
    "unreadable_ticker",
    "no_ticker",
)
Variant = Literal[
    "bad_json", "missing_field", "bad_number", "negative_level", "unreadable_ticker", "no_ticker"
]


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One fault.

    `at_s` is its time in a script, in seconds from the start. `channel` chooses the subscription of frame and
    subscription faults. `connection` is a connection's number, 0 for all. `count`: frames for frame faults, order
    actions for a flood, ticks for a late ack. `duration_s`: how long REST, handshake and pause faults last.
    `status` is what `rest_5xx` answers.
    """

    kind: FaultKind
    at_s: float = 0.0
    channel: str = "orderbook_delta"
    connection: int = 0
    count: int = 1
    duration_s: float = 1.0
    variant: Variant = "bad_json"
    status: int = 503

    def __post_init__(self) -> None:
        # Decoding checks the literals, building one in Python does not.
        if self.kind not in FAULT_KINDS or self.variant not in get_args(Variant):
            raise ValueError(f"unknown fault kind {self.kind!r} or variant {self.variant!r}")
        if not 1 <= self.count <= SIM_FLOOD_ACTIONS_MAX:
            raise ValueError(f"count must lie in 1..{SIM_FLOOD_ACTIONS_MAX}")
        if not 0 <= self.duration_s <= 86_400 or not 0 <= self.at_s <= 31_536_000:
            raise ValueError("duration_s must lie in 0..86400 and at_s in 0..31536000")
        if not 500 <= self.status <= 599:
            raise ValueError("status must lie in 500..599")

    @property
    def duration_ns(self) -> int:
        """`duration_s` in nanoseconds."""
        return int(self.duration_s * 1_000_000_000)


def parse_fault(data: bytes) -> Fault:
    """One fault as a JSON object. Raises `ConfigurationError` naming what is wrong with it."""
    try:
        return msgspec.json.decode(data, type=Fault)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"not a fault: {error}") from None


def parse_fault_script(text: str, name: str) -> list[Fault]:
    """The faults of a script, in order of `at_s`.

    `text` is TOML with `[[fault]]` tables, or one JSON object a line. Raises `ConfigurationError` naming `name`.
    """
    try:
        rows = _script_rows(text)
        faults = msgspec.convert(rows, list[Fault])
    except (msgspec.MsgspecError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigurationError(f"fault script {name}: {error}") from None
    if len(faults) > SIM_FAULTS_WAITING:
        raise ConfigurationError(f"fault script {name}: more than {SIM_FAULTS_WAITING} faults")
    return sorted(faults, key=lambda fault: fault.at_s)


def _script_rows(text: str) -> Any:
    if text.lstrip().startswith("{"):
        return [msgspec.json.decode(line) for line in text.splitlines() if line.strip()]
    document = tomllib.loads(text)
    unknown = set(document) - {"fault"}
    if unknown:
        raise msgspec.ValidationError(f"unknown key `{min(unknown)}`; write [[fault]] tables")
    return document.get("fault", [])


class RandomFaults:
    """Draws faults at `per_minute` on average, of `kinds` only."""

    def __init__(self, random: Random, per_minute: float, kinds: tuple[str, ...]) -> None:
        unknown = set(kinds) - set(FAULT_KINDS)
        if unknown:
            known = ", ".join(FAULT_KINDS)
            raise ConfigurationError(f"unknown fault kind {min(unknown)!r}; known are {known}")
        self._random = random
        self.per_minute = per_minute
        self._kinds = kinds or FAULT_KINDS

    def due(self, span_ns: int) -> Fault | None:
        """The fault that falls into a step of `span_ns`, if one does."""
        if self.per_minute <= 0 or self._random.random() >= self.per_minute * span_ns / 60e9:
            return None
        kind = self._random.choice(self._kinds)
        channels = ("orderbook_delta", "orderbook_delta", "trade", "ticker", "market_lifecycle_v2")
        row = {
            "kind": kind,
            "channel": "orderbook_delta" if kind in DELTA_KINDS else self._random.choice(channels),
            "count": 2_000 if kind == "flood" else self._random.randint(1, 5),
            "duration_s": self._random.uniform(0.2, 2.0),
            "variant": self._random.choice(UNUSABLE_VARIANTS),
            "status": self._random.choice((500, 502, 503, 504)),
        }
        return msgspec.convert(row, Fault)


# --- frames ---------------------------------------------------------------------------------------

REQUIRED_FIELD = {
    "orderbook_delta": "delta_fp",
    "orderbook_snapshot": "market_ticker",
    "trade": "count_fp",
    "ticker": "yes_bid_dollars",
    "event_lifecycle": "event_ticker",
    "event_fee_update": "event_ticker",
}
NUMBER_FIELD = {
    "orderbook_delta": "price_dollars",
    "trade": "yes_price_dollars",
    "ticker": "yes_ask_dollars",
}


def applies_to(fault: Fault, frame_type: str) -> bool:
    """Whether `fault` can be made with a frame of this type; else it waits for the next one."""
    if fault.kind in DELTA_KINDS or (
        fault.kind == "unusable" and fault.variant == "negative_level"
    ):
        return frame_type == "orderbook_delta"
    return True


def corrupt(fault: Fault, frame_type: str, frame: bytes) -> list[bytes]:
    """What is sent instead of `frame`; its sequence number, if it has one, is used up except by a silent loss."""
    if fault.kind in ("skip_seq", "silent_loss"):
        return []
    if fault.kind == "duplicate":
        return [frame, frame]
    if fault.kind == "unusable" and fault.variant == "bad_json":
        return [frame[: len(frame) * 2 // 3]]
    document: dict[str, Any] = msgspec.json.decode(frame)
    message: dict[str, Any] = document["msg"]
    if fault.kind == "inconsistent":
        message["delta_fp"] = "-99999999.00"
    elif fault.variant == "negative_level":
        document["type"] = "orderbook_snapshot"
        kept = {key: message[key] for key in ("market_ticker", "market_id")}
        document["msg"] = kept | {"yes_dollars_fp": [["0.3000", "-5.00"]]}
    elif fault.variant == "unreadable_ticker":
        message["market_ticker"] = 12345
    elif fault.variant == "no_ticker":
        message.pop("market_ticker", None)
    elif fault.variant == "bad_number" and frame_type in NUMBER_FIELD:
        message[NUMBER_FIELD[frame_type]] = "0.12345"
    else:
        message.pop(REQUIRED_FIELD.get(frame_type, "event_type"), None)
    return [msgspec.json.encode(document)]
