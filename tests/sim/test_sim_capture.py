"""Reading recorded captures: which lines are accepted, what is left out, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from tickerplant.errors import ConfigurationError
from tickerplant_kalshi_sim.capture import RESTART, event_time_ns, read_capture

SNAPSHOT = {
    "type": "orderbook_snapshot",
    "sid": 4,
    "seq": 1,
    "msg": {"market_ticker": "KXA-1-X", "market_id": "m1"},
}


def delta(seq: int, milliseconds: int, **extra: Any) -> dict[str, Any]:
    body = {
        "market_ticker": "KXA-1-X",
        "price_dollars": "0.3000",
        "delta_fp": "1.00",
        "side": "yes",
    }
    return {
        "type": "orderbook_delta",
        "sid": 4,
        "seq": seq,
        "msg": body | {"ts_ms": milliseconds} | extra,
    }


def lines(*rows: Any) -> str:
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)


SUBSCRIBED = {"type": "subscribed", "id": 1, "msg": {"channel": "orderbook_delta", "sid": 4}}


def test_replies_are_left_out_unless_they_took_a_number() -> None:
    numbered_ok = {
        "type": "ok",
        "id": 3,
        "sid": 4,
        "seq": 3,
        "msg": {"market_tickers": ["KXA-1-X"]},
    }
    numbered_error = {"type": "error", "id": 4, "sid": 4, "seq": 4, "msg": {"code": 13, "msg": "x"}}
    terminal = {"type": "error", "sid": 4, "seq": 5, "msg": {"code": 25, "msg": "x"}}
    capture = read_capture(
        lines(
            SUBSCRIBED,
            SNAPSHOT,
            "",
            delta(2, 1_000),
            {"type": "error", "id": 9, "msg": {"code": 8, "msg": "Unknown channel name"}},
            {"type": "ok", "id": 6, "msg": [{"channel": "orderbook_delta", "sid": 4}]},
            numbered_ok,
            numbered_error,
            terminal,
            {"type": "unsubscribed", "id": 7, "sid": 4, "seq": 6},
        ),
        "x",
    )
    kept = [(f.frame_type, f.seq) for f in capture.frames]
    assert kept == [
        ("orderbook_snapshot", 1),
        ("orderbook_delta", 2),
        ("ok", 3),
        ("error", 4),
    ]
    assert capture.left_out == 5
    assert capture.channels == {"orderbook_delta"}
    assert capture.market_ids == {"KXA-1-X": "m1"}
    assert capture.opened == {"KXA-1-X"}
    assert b'"id"' not in capture.frames[2].head + capture.frames[2].tail


def test_wrapped_lines_and_their_times() -> None:
    raw = json.dumps(SNAPSHOT) + "\n"
    capture = read_capture(
        lines(
            {"recv_ts_ns": 1_000, "raw": raw},
            {"recv_ts_ns": 4_500, "raw": json.dumps(delta(2, 7))},
            {"recv_ts_ns": 4_000, "raw": json.dumps(delta(3, 9))},
        ),
        "x",
    )
    assert [f.offset_ns for f in capture.frames] == [0, 3_500, 3_500]
    assert capture.frames[0].tail.endswith(b"}\n")
    assert not capture.frames[1].tail.endswith(b"\n")


def test_bare_lines_are_paced_by_exchange_time() -> None:
    capture = read_capture(lines(SNAPSHOT, delta(2, 1_000), delta(3, 1_250)), "x")
    assert [f.offset_ns for f in capture.frames] == [0, 0, 250_000_000]


def test_message_wrapper_with_a_whole_frame_is_accepted() -> None:
    capture = read_capture(lines({"channel": "book", "message": SNAPSHOT}), "x")
    assert [f.frame_type for f in capture.frames] == ["orderbook_snapshot"]


def test_channel_follows_the_type_when_no_subscription_was_recorded() -> None:
    trade = {"type": "trade", "sid": 2, "seq": 10, "msg": {"market_ticker": "KXB-1-Y"}}
    ticker = {"type": "ticker", "sid": 9, "msg": {"market_ticker": "KXB-1-Y"}}
    capture = read_capture(lines(trade, ticker), "x")
    assert [f.channel for f in capture.frames] == ["trade", "ticker"]
    assert capture.channels == {"trade", "ticker"}
    assert capture.book_tickers == frozenset()


def test_a_second_subscription_marks_new_numbers() -> None:
    capture = read_capture(lines(SUBSCRIBED, SNAPSHOT, SUBSCRIBED, SNAPSHOT), "x")
    assert [f.frame_type for f in capture.frames] == [
        "orderbook_snapshot",
        RESTART,
        "orderbook_snapshot",
    ]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (
            lines({"log_time_local": "x", "msg": {"market_ticker": "A"}}),
            "line 1 carries no frame type",
        ),
        (lines({"channel": "book", "message": {"msg": {}}}), "line 1 carries no frame type"),
        (lines(SNAPSHOT, "{"), "line 2 is not JSON"),
        (lines("[1]"), "line 1 is not a JSON object"),
        (lines("[" * 100_000), "line 1 is not JSON"),
        (lines({"recv_ts_ns": 1, "raw": "oops"}), "line 1 is not JSON"),
        (lines(SUBSCRIBED), "holds no data frame"),
        ("", "holds no data frame"),
    ],
)
def test_what_cannot_be_replayed_is_refused(text: str, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match) as caught:
        read_capture(text, "file.jsonl")
    assert "file.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"ts_ms": 1_795_197_851_207, "ts": "ignored"}, 1_795_197_851_207_000_000),
        ({"ts": 1_795_197_851}, 1_795_197_851_000_000_000),
        ({"ts": "2026-11-20T18:04:11.20784Z"}, 1_795_197_851_207_840_000),
        ({"ts": "2026-11-20T18:04:11Z"}, 1_795_197_851_000_000_000),
        ({"ts": "yesterday"}, 0),
        ({}, 0),
    ],
)
def test_event_time(body: dict[str, Any], expected: int) -> None:
    assert event_time_ns(body) == expected


def test_real_captures(shared_folder: Path) -> None:
    """Frames kept and replies left out of every recording, as its manifest describes them."""
    expected = {
        "demo-2026-06-11-use-yes-price-false.jsonl": (5, 2),
        "demo-2026-06-11-use-yes-price-true.jsonl": (3, 2),
        "demo-2026-08-20-empty-book.jsonl": (1, 2),
        "prod-2025-12-03-old-format.jsonl": (123, 1),
        "prod-2026-02-12-ticker.jsonl": (10, 0),
        "prod-2026-02-12-trade.jsonl": (10, 0),
        "prod-2026-04-18-kxbtc-8-markets.jsonl": (69, 5),
        "prod-2026-05-14-kxbtc15m-book.jsonl": (107, 1),
    }
    for name, counts in expected.items():
        text = (shared_folder / "captures" / name).read_text()
        capture = read_capture(text, name)
        assert (len(capture.frames), capture.left_out) == counts, name
    payloads = (shared_folder / "captures" / "prod-2026-03-17-delta-payloads.jsonl").read_text()
    with pytest.raises(ConfigurationError, match="carries no frame type"):
        read_capture(payloads, "payloads")
