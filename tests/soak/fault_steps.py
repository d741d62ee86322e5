"""Every fault of the simulated exchange, and by which of its counters the plant must show that it saw it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

BOOKS, TRADES, TICKERS = "orderbook_delta", "trade", "ticker"
LIFECYCLE = "market_lifecycle_v2"
FLOOD_ACTIONS = 5_000
LASTING_S = 600.0
"""For faults that last until they were seen: the plant may wait up to 30 s before it connects anew."""
Fault = dict[str, Any]


class FaultStep(NamedTuple):
    """Faults to make one after the other, and how much each of these metrics of the plant must grow by them."""

    name: str
    faults: tuple[Fault, ...]
    seen: Mapping[str, int]
    reason: str = ""
    """What the plant must tell its subscribers as cause of the lost connection, if that is the point."""
    may_miss: bool = False
    """Whether it may change nothing (on a book that is stale already): then it is made again."""
    ends: tuple[Fault, ...] = ()
    """What ends the fault once it was seen."""


def fault(kind: str, channel: str = BOOKS, **options: Any) -> Fault:
    """One fault as the control endpoint takes it."""
    return {"kind": kind, "channel": channel, **options}


def _frame_steps() -> list[FaultStep]:
    """Frames that are lost, repeated, damaged or wrong."""
    steps = []
    for channel in (BOOKS, TRADES, LIFECYCLE):
        gap = {"feed_sequence_gaps": 1, "feed_missing_frames": 1}
        steps.append(FaultStep(f"skip_seq {channel}", (fault("skip_seq", channel),), gap))
    for channel in (BOOKS, TRADES):
        seen = {"feed_duplicate_frames": 2}
        repeated = fault("duplicate", channel, count=2)
        steps.append(FaultStep(f"duplicate {channel}", (repeated,), seen))
    variants = (
        "missing_field",
        "bad_number",
        "negative_level",
        "unreadable_ticker",
        "no_ticker",
    )
    unusable = {"feed_unusable_frames": 1}
    for variant in variants:
        damaged = fault("unusable", variant=variant)
        steps.append(FaultStep(f"unusable {variant}", (damaged,), unusable))
    for channel, variant in ((TRADES, "missing_field"), (TICKERS, "bad_number")):
        damaged = fault("unusable", channel, variant=variant)
        steps.append(FaultStep(f"unusable {variant} {channel}", (damaged,), unusable))
    bad_json = fault("unusable", variant="bad_json")
    steps.append(FaultStep("unusable bad_json", (bad_json,), {"feed_unreadable_frames": 1}))
    wrong = {"feed_contradicting_deltas": 1, "plant_books_gone_stale": 1}
    steps.append(FaultStep("inconsistent", (fault("inconsistent"),), wrong, may_miss=True))
    return steps


def _subscription_steps() -> list[FaultStep]:
    """Subscriptions that end, replies that come late or not, and a flood."""
    steps = []
    for code in (10, 25):
        for channel in (BOOKS, TRADES):
            seen = {f'feed_error_frames{{code="{code}"}}': 1, "feed_subscriptions_ended": 1}
            ended = fault(f"error_{code}", channel)
            steps.append(FaultStep(f"error_{code} {channel}", (ended,), seen))
    late = (fault("late_ack", count=60), fault("error_25"))
    steps.append(FaultStep("late_ack", late, {"feed_sids_before_ack": 1}))
    unanswered = (fault("command_timeout"), fault("skip_seq"))
    steps.append(FaultStep("command_timeout", unanswered, {'feed_error_frames{code="18"}': 1}))
    flood = fault("flood", count=FLOOD_ACTIONS)
    steps.append(FaultStep("flood", (flood,), {"feed_frames": FLOOD_ACTIONS}))
    return steps


def _rest_steps() -> list[FaultStep]:
    """REST that refuses everything; a gap of the lifecycle channel makes the plant read the markets anew."""
    steps = []
    for kind, metric in (("rest_429", "rest_throttled"), ("rest_5xx", "rest_retries")):
        begin, end = _lasting(kind)
        faults = (begin, fault("skip_seq", LIFECYCLE))
        steps.append(FaultStep(kind, faults, {f"reader_{metric}": 1}, ends=(end,)))
    return steps


def _lasting(kind: str) -> tuple[Fault, Fault]:
    """The beginning and the end of a fault that lasts."""
    return fault(kind, duration_s=LASTING_S), fault(kind, duration_s=0.0)


def _disconnecting_steps() -> list[FaultStep]:
    """What costs the connection, or the exchange as a whole."""
    lost = {"feed_connections_lost": 1}
    steps = [
        FaultStep("reset", (fault("reset"),), lost),
        FaultStep("close", (fault("close"),), lost, "closed by the exchange"),
        FaultStep("half_open", (fault("half_open"),), lost, "no frame of any kind"),
        FaultStep("dead_sid", (fault("dead_sid"),), lost, "get_snapshot stays without reply"),
        FaultStep("trading_pause", (fault("trading_pause", duration_s=1.5),), lost),
    ]
    for kind, status in (("handshake_429", 429), ("handshake_502", 502), ("exchange_pause", 503)):
        begin, end = _lasting(kind)
        refused = {**lost, f'session_handshake_refusals{{status="{status}"}}': 1}
        # A pause drops the connections itself.
        drop = () if kind == "exchange_pause" else (fault("reset"),)
        steps.append(FaultStep(kind, (begin, *drop), refused, ends=(end,)))
    return steps


STEADY_STEPS: tuple[FaultStep, ...] = (*_frame_steps(), *_subscription_steps(), *_rest_steps())
"""The connection outlives these."""
DISCONNECTING_STEPS: tuple[FaultStep, ...] = tuple(_disconnecting_steps())
ALL_STEPS = (*STEADY_STEPS, *DISCONNECTING_STEPS)
