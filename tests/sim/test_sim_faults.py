"""Faults without sockets: what becomes of a frame, scripts, random faults."""

import json
from collections import Counter
from random import Random
from typing import Any

import pytest

from tickerplant.errors import ConfigurationError
from tickerplant_kalshi_sim.faults import (
    FAULT_KINDS,
    UNUSABLE_VARIANTS,
    Fault,
    RandomFaults,
    corrupt,
    parse_fault,
    parse_fault_script,
)
from tickerplant_kalshi_sim.frames import Emission
from tickerplant_kalshi_sim.subscriptions import Subscription, Subscriptions

DELTA = (
    b',"msg":{"market_ticker":"KXA-1","market_id":"id","price_dollars":"0.3300","delta_fp":"4.00","side":"yes"'
    b',"ts":"2026-11-20T18:04:11.207Z","ts_ms":1795197851207}}'
)
FRAME = b'{"type":"orderbook_delta","sid":1,"seq":7' + DELTA


def emission(channel: str = "orderbook_delta", frame_type: str = "orderbook_delta") -> Emission:
    return Emission(channel, frame_type, "KXA-1", DELTA, DELTA)


@pytest.fixture
def line() -> Subscriptions:
    """A connection subscribed to books."""
    subscriptions = Subscriptions(1_000, {})
    subscriptions.open("orderbook_delta")
    return subscriptions


def numbers(subscriptions: Subscriptions) -> list[int]:
    return [json.loads(frame)["seq"] for frame in subscriptions.take_frames()]


def test_skipped_sequence_numbers(line: Subscriptions) -> None:
    assert line.inject(Fault(kind="skip_seq", count=2))
    line.publish([emission()] * 4)
    assert numbers(line) == [3, 4]


def test_duplicated_frame(line: Subscriptions) -> None:
    line.inject(Fault(kind="duplicate"))
    line.publish([emission()] * 2)
    frames = line.take_frames()
    assert frames[0] == frames[1]
    assert [json.loads(frame)["seq"] for frame in frames] == [1, 1, 2]


def test_faults_wait_in_order_and_one_frame_takes_one(line: Subscriptions) -> None:
    line.inject(Fault(kind="duplicate"))
    line.inject(Fault(kind="skip_seq"))
    line.publish([emission()] * 3)
    assert numbers(line) == [1, 1, 3]


def test_a_silent_loss_leaves_no_hole(line: Subscriptions) -> None:
    """The exchange's book has the delta, nobody was told, and the next frame has its number."""
    line.inject(Fault(kind="silent_loss", count=2))
    line.publish([emission()])
    line.publish([emission(frame_type="orderbook_snapshot")])
    line.publish([emission()] * 3)
    frames = [json.loads(frame) for frame in line.take_frames()]
    assert [frame["type"] for frame in frames] == [
        "orderbook_snapshot",
        "orderbook_delta",
        "orderbook_delta",
    ]
    assert [frame["seq"] for frame in frames] == [1, 2, 3]


def test_inconsistent_delta_takes_more_than_any_level_holds() -> None:
    (frame,) = corrupt(Fault(kind="inconsistent"), "orderbook_delta", FRAME)
    document = json.loads(frame)
    assert document["seq"] == 7
    assert document["msg"]["delta_fp"] == "-99999999.00"
    assert document["msg"]["price_dollars"] == "0.3300"


def test_inconsistent_waits_for_a_delta(line: Subscriptions) -> None:
    line.inject(Fault(kind="inconsistent"))
    line.publish([emission(frame_type="orderbook_snapshot"), emission()])
    first, second = (json.loads(frame) for frame in line.take_frames())
    assert first["msg"]["delta_fp"] == "4.00"
    assert second["msg"]["delta_fp"] == "-99999999.00"


def unusable(variant: str, frame_type: str = "orderbook_delta") -> bytes:
    fault = Fault(kind="unusable", variant=variant)  # type: ignore[arg-type] # a parametrised name
    (frame,) = corrupt(fault, frame_type, FRAME)
    return frame


def test_unusable_bad_json() -> None:
    with pytest.raises(json.JSONDecodeError):
        json.loads(unusable("bad_json"))


@pytest.mark.parametrize(
    ("variant", "change"),
    [
        ("missing_field", {"delta_fp": None}),
        ("bad_number", {"price_dollars": "0.12345"}),
        ("unreadable_ticker", {"market_ticker": 12345}),
        ("no_ticker", {"market_ticker": None}),
    ],
)
def test_unusable_body(variant: str, change: dict[str, Any]) -> None:
    expected = json.loads(FRAME)
    for key, value in change.items():
        if value is None:
            del expected["msg"][key]
        else:
            expected["msg"][key] = value
    assert json.loads(unusable(variant)) == expected


def test_unusable_negative_level_is_a_snapshot() -> None:
    document = json.loads(unusable("negative_level"))
    assert document["type"] == "orderbook_snapshot"
    assert document["seq"] == 7
    assert document["msg"]["yes_dollars_fp"] == [["0.3000", "-5.00"]]


@pytest.mark.parametrize("variant", UNUSABLE_VARIANTS)
@pytest.mark.parametrize("frame_type", ["trade", "ticker", "event_lifecycle", "pyth_value"])
def test_every_variant_changes_every_frame_type(variant: str, frame_type: str) -> None:
    body = b',"msg":{"market_ticker":"A","market_id":"i","event_ticker":"E","event_type":"x","count_fp":"1.00"'
    body += b',"yes_price_dollars":"0.5","yes_ask_dollars":"0.5","yes_bid_dollars":"0.4"}}'
    frame = b'{"type":"%b","sid":1,"seq":1' % frame_type.encode() + body
    fault = Fault(kind="unusable", variant=variant)  # type: ignore[arg-type] # a parametrised name
    assert corrupt(fault, frame_type, frame) != [frame]


@pytest.mark.parametrize(("kind", "code"), [("error_10", 10), ("error_25", 25)])
def test_terminal_errors_end_the_subscription(line: Subscriptions, kind: str, code: int) -> None:
    line.publish([emission()])
    line.inject(Fault(kind=kind))  # type: ignore[arg-type] # a parametrised name
    line.publish([emission()])
    data, error = (json.loads(frame) for frame in line.take_frames())
    assert data["seq"] == 1
    assert (error["type"], error["sid"], error["seq"]) == ("error", 1, 2)
    assert error["msg"]["code"] == code
    assert "id" not in error
    assert not line.by_sid
    assert not line.inject(Fault(kind=kind))  # type: ignore[arg-type] # nothing left to end


def test_dead_sid_is_silent_until_it_is_given_up(line: Subscriptions) -> None:
    other = line.open("trade")
    line.inject(Fault(kind="dead_sid"))
    line.publish([emission(), emission("trade", "trade")])
    line.send_snapshot(line.by_channel["orderbook_delta"], DELTA, 4)
    assert [json.loads(f)["sid"] for f in line.take_frames()] == [other.sid]
    dead = line.by_channel["orderbook_delta"]
    line.close(dead)
    line.send_unsubscribed(9, dead)
    assert json.loads(line.take_frames()[0])["type"] == "unsubscribed"
    line.open("orderbook_delta")
    line.publish([emission()])
    assert numbers(line) == [1]


def test_late_ack_comes_after_data(line: Subscriptions) -> None:
    line.inject(Fault(kind="late_ack", count=3))
    fresh: Subscription = line.open("trade")
    line.send_subscribed(fresh, 8)
    types = []
    for _ in range(4):
        line.publish([emission("trade", "trade")])
        types += [json.loads(frame)["type"] for frame in line.take_frames()]
    assert types == ["trade", "trade", "trade", "subscribed", "trade"]


def test_script_as_toml() -> None:
    text = """
    [[fault]]
    at_s = 2.5
    kind = "rest_5xx"
    status = 502
    [[fault]]
    at_s = 1
    kind = "skip_seq"
    channel = "trade"
    """
    faults = parse_fault_script(text, "script.toml")
    assert [(f.at_s, f.kind) for f in faults] == [(1.0, "skip_seq"), (2.5, "rest_5xx")]
    assert faults[1].status == 502
    assert faults[0].channel == "trade"


def test_script_as_json_lines() -> None:
    text = '{"kind":"reset","at_s":3}\n\n{"kind":"flood","count":500}\n'
    faults = parse_fault_script(text, "script.jsonl")
    assert [(f.at_s, f.kind, f.count) for f in faults] == [(0.0, "flood", 500), (3.0, "reset", 1)]


@pytest.mark.parametrize(
    "text",
    [
        '[[fault]]\nkind = "explode"',
        '[[fault]]\nkind = "reset"\nwhen = 3',
        '[[faults]]\nkind = "reset"',
        "kind = ",
        '{"kind":"reset"',
        '[[fault]]\nkind = "flood"\ncount = 0',
        '[[fault]]\nkind = "rest_5xx"\nstatus = 200',
        '[[fault]]\nkind = "reset"\nat_s = -1',
    ],
)
def test_unusable_scripts_are_named(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"script\.toml") as caught:
        parse_fault_script(text, "script.toml")
    assert "\n" not in str(caught.value)


def test_parse_fault_says_what_is_wrong() -> None:
    assert parse_fault(b'{"kind":"close"}').kind == "close"
    with pytest.raises(ConfigurationError, match="kind"):
        parse_fault(b"{}")
    with pytest.raises(ConfigurationError, match="not a fault: 'utf-8'"):
        parse_fault(b'{"kind":"\xff"}')


def test_random_faults_are_seeded_and_of_every_kind() -> None:
    def draw(seed: int) -> list[Fault]:
        faults = RandomFaults(Random(seed), 600, ())
        drawn = [faults.due(100_000_000) for _ in range(2_000)]
        return [fault for fault in drawn if fault is not None]

    first = draw(1)
    assert first == draw(1)
    assert first != draw(2)
    assert 1_800 < len(first) <= 2_000, "600 a minute is one each 100 ms"
    assert set(Counter(fault.kind for fault in first)) == set(FAULT_KINDS)


def test_random_faults_can_be_limited_and_stopped() -> None:
    faults = RandomFaults(Random(1), 60, ("reset", "skip_seq"))
    kinds = {f.kind for _ in range(500) if (f := faults.due(1_000_000_000))}
    assert kinds == {"reset", "skip_seq"}
    faults.per_minute = 0
    assert faults.due(10**12) is None
    with pytest.raises(ConfigurationError, match="known are skip_seq"):
        RandomFaults(Random(1), 1, ("explode",))


def test_a_fault_of_an_unknown_kind_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="no_such_kind"):
        Fault(kind="no_such_kind")
