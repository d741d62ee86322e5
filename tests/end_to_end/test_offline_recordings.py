"""Recorded frames through feed and plant into a strategy without a socket, and raw captures as recorded frames again.

What must come out is computed by `recorded` from the raw files, in plain Decimal.
"""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from recorded import best_of, frames_of, price_e4, rebuild, size_e2
from recorded_feed import begin_of

from tickerplant.core.messages import Bbo, LevelUpdate, Ticker, Trade, UpstreamGap
from tickerplant.errors import CaptureError, ConfigurationError, ObsoleteFormatError
from tickerplant.replay.export import CONTROL, SHAPES, FrameExport
from tickerplant.replay.offline import read_jsonl
from tickerplant.replay.sources import jsonl_datagrams
from tickerplant_kalshi.inputs import Flush, Frames, encode_inputs
from tickerplant_subscriber import Gap, Strategy, replay

BOOKS = {
    "prod-2026-05-14-kxbtc15m-book.jsonl": 106,
    "prod-2026-04-18-kxbtc-8-markets.jsonl": 61,
    "demo-2026-06-11-use-yes-price-false.jsonl": 4,
    "demo-2026-06-11-use-yes-price-true.jsonl": 2,
    "demo-2026-08-20-empty-book.jsonl": 0,
}
TICKERS_FILE = "prod-2026-02-12-ticker.jsonl"
TRADES_FILE = "prod-2026-02-12-trade.jsonl"
OLD_FORMAT_FILE = "prod-2025-12-03-old-format.jsonl"
PLAYABLE = (*BOOKS, TICKERS_FILE, TRADES_FILE)


class Noting(Strategy):
    """Notes what it is told; `books` are those that are live when the session ends."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.live: dict[str, Any] = {}

    def note(self, *what: Any) -> None:
        self.told.append(what[-1])
        # The end of the session makes books stale; until then each callback sees them as they are.
        books = {
            v.ticker: [list(v.bids.items()), list(v.asks.items())] for v in self.books() if v.live
        }
        self.live = books or self.live

    on_bbo = on_trade = on_ticker = on_gap = on_book = on_live = note

    def of(self, kind: type) -> list[Any]:
        return [one for one in self.told if isinstance(one, kind)]


def is_yes_priced(name: str) -> bool:
    return "price-true" in name


def played(path: Path, *, use_yes_price: bool = False) -> Noting:
    """A strategy that was told all of a recording."""
    strategy = Noting()
    replay(strategy, jsonl_datagrams(path, use_yes_price=use_yes_price))
    return strategy


@pytest.mark.parametrize("name", BOOKS)
def test_recorded_books_reach_a_strategy_exactly(shared_folder: Path, name: str) -> None:
    path = shared_folder / "captures" / name
    expected = rebuild(frames_of(path), recorded_yes_price=is_yes_priced(name))
    strategy = played(path, use_yes_price=is_yes_priced(name))
    books = {
        ticker: ([list(level) for level in bids], [list(level) for level in asks])
        for ticker, (bids, asks) in strategy.live.items()
    }
    assert books == expected
    assert strategy.of(Gap) == strategy.of(UpstreamGap) == []
    # What came before the image went out is in the image; the rest is told level by level.
    updates = len(strategy.of(LevelUpdate))
    assert (updates > 0) == (BOOKS[name] > 0)
    assert updates <= BOOKS[name]
    last = {bbo.ticker: bbo for bbo in strategy.of(Bbo)}
    quotes = {
        ticker: [bbo.bid_e4, bbo.bid_size_e2, bbo.ask_e4, bbo.ask_size_e2]
        for ticker, bbo in last.items()
    }
    assert quotes == {ticker: best_of(rows) for ticker, rows in expected.items()}


def test_recorded_trades_and_tickers_reach_a_strategy_exactly(shared_folder: Path) -> None:
    path = shared_folder / "captures" / TRADES_FILE
    bodies = [frame["msg"] for frame in frames_of(path)]
    strategy = played(path)
    told = [(one.ticker, one.trade_id, one.price_e4, one.size_e2) for one in strategy.of(Trade)]
    assert told == [
        (
            b["market_ticker"],
            b["trade_id"],
            price_e4(b["yes_price_dollars"]),
            size_e2(b["count_fp"]),
        )
        for b in bodies
    ]
    assert len(strategy.of(UpstreamGap)) == 2, "the recording is a part of what was sent"
    path = shared_folder / "captures" / TICKERS_FILE
    bodies = [frame["msg"] for frame in frames_of(path)]
    told = [(one.ticker, one.last_e4, one.volume_e2) for one in played(path).of(Ticker)]
    assert told == [
        (b["market_ticker"], price_e4(b["price_dollars"]), size_e2(b["volume_fp"])) for b in bodies
    ]


def test_the_old_format_and_payloads_without_frames_are_refused(shared_folder: Path) -> None:
    with pytest.raises(ObsoleteFormatError):
        played(shared_folder / "captures" / OLD_FORMAT_FILE)
    with pytest.raises(ConfigurationError, match="no frame type"):
        played(shared_folder / "captures" / "prod-2026-03-17-delta-payloads.jsonl")


def test_playing_twice_gives_the_same_bytes(shared_folder: Path) -> None:
    path = shared_folder / "captures" / "prod-2026-04-18-kxbtc-8-markets.jsonl"
    first = list(jsonl_datagrams(path))
    assert first == list(jsonl_datagrams(path))
    times = [sent_ns for sent_ns, _datagram in first]
    assert times == sorted(times)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert times[0] == rows[0]["recv_ts_ns"]
    assert times[-1] > max(row["recv_ts_ns"] for row in rows if "orderbook_delta" in row["raw"])


def test_a_recording_of_no_use_is_refused_in_one_line(tmp_path: Path) -> None:
    for content, problem in ((b"\xff\xfe", "UTF-8"), (b"", "no data frame"), (b"{", "not JSON")):
        path = tmp_path / "frames.jsonl"
        path.write_bytes(content)
        with pytest.raises(ConfigurationError, match=problem):
            played(path)
    with pytest.raises(ConfigurationError, match="cannot read"):
        played(tmp_path / "nowhere")


# --- out of a raw capture, into the three shapes ------------------------------------------------------


def captured(path: Path) -> list[bytes]:
    """The records of a capture that has the frames of a recording, each at its time."""
    records = [encode_inputs([begin_of()])]
    for number, line in enumerate(path.read_text().splitlines()):
        if line.strip():
            row = json.loads(line)
            frame = row.get("raw", line)
            now_ns = row.get("recv_ts_ns", 1_790_000_000_000_000_000 + number)
            inputs = [Frames(now_ns, 0, [frame.encode()]), Flush(now_ns)]
            records.append(encode_inputs(inputs))
    return records


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PLAYABLE)
def test_frames_survive_the_way_into_a_capture_and_out_of_it(
    shared_folder: Path, tmp_path: Path, name: str, shape: str
) -> None:
    """Read again, the export is the recording: frame by frame, number by number, body by body."""
    path = shared_folder / "captures" / name
    export = FrameExport(shape)
    lines = list(export.export(captured(path)))
    again = tmp_path / name
    again.write_bytes(b"".join(lines))
    assert (export.lines, export.skipped) == (len(list(frames_of(path))), 0)
    ours, theirs = read_jsonl(again), read_jsonl(path)
    assert ours.channels == theirs.channels
    assert ours.market_ids == theirs.market_ids
    assert ours.left_out == theirs.left_out
    whole = [(f.channel, f.frame_type, f.seq, f.head, f.tail.rstrip()) for f in ours.frames]
    assert whole == [
        (f.channel, f.frame_type, f.seq, f.head, f.tail.rstrip()) for f in theirs.frames
    ]


def test_the_raw_shape_keeps_every_byte_and_time(shared_folder: Path, tmp_path: Path) -> None:
    path = shared_folder / "captures" / "prod-2026-04-18-kxbtc-8-markets.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    again = [json.loads(line) for line in FrameExport("raw").export(captured(path))]
    assert again == rows
    exported = tmp_path / "again.jsonl"
    exported.write_bytes(b"".join(FrameExport("raw").export(captured(path))))
    assert list(jsonl_datagrams(exported)) == list(jsonl_datagrams(path))


def test_the_channel_shape_names_the_channel_of_data_and_replies() -> None:
    frames = [
        b'{"type":"subscribed","id":1,"msg":{"channel":"orderbook_delta","sid":7}}',
        b'{"type":"ok","id":2,"sid":7,"seq":1,"msg":{}}',
        b'{"type":"trade","sid":9,"seq":1,"msg":{}}',
        b'{"type":"error","id":3,"msg":{"code":8}}',
    ]
    records = [encode_inputs([begin_of(), Frames(5, 0, frames)])]
    lines = [json.loads(line) for line in FrameExport("channel").export(records)]
    assert [line["channel"] for line in lines] == [
        "orderbook_delta",
        "orderbook_delta",
        "trade",
        CONTROL,
    ]
    assert [line["message"] for line in lines] == [json.loads(frame) for frame in frames]
    assert all(line.keys() == {"channel", "message"} for line in lines)


def test_what_is_no_line_of_json_is_left_out_and_counted() -> None:
    frames = [b"", b"{", b"\xff", b"heartbeat", b'{\n "type":\n "news"}\n', b"[" * 3_000]
    records = [encode_inputs([begin_of(), Frames(5, 0, frames)])]
    for shape, count in (("bare", 5), ("channel", 5)):
        export = FrameExport(shape)
        (line,) = export.export(records)
        assert export.skipped == count
        assert line.count(b"\n") == 1
        assert b'{"type":"news"}' in line
    export = FrameExport("raw")
    (line,) = export.export(records)
    assert json.loads(line) == {"recv_ts_ns": 5, "raw": '{\n "type":\n "news"}\n'}


def test_several_connections_are_exported_one_by_one() -> None:
    """Sids are counted for each connection: together they would be one sequence with holes."""
    frames = [
        Frames(5, index, [msgspec.json.encode({"type": "ok", "sid": index})]) for index in (0, 1)
    ]
    records = [encode_inputs([begin_of(2), *frames])]
    with pytest.raises(CaptureError, match="--connection"):
        list(FrameExport("bare").export(records))
    with pytest.raises(CaptureError, match="--connection"):
        list(FrameExport("bare", 2).export(records))
    for index in (0, 1):
        (line,) = FrameExport("bare", index).export(records)
        assert json.loads(line)["sid"] == index


def test_a_span_of_time_is_exported() -> None:
    frames = [Frames(now_ns, 0, [b'{"type":"%d"}' % now_ns]) for now_ns in (1, 5, 9)]
    records = [encode_inputs([begin_of(), *frames])]
    (line,) = FrameExport("bare", from_ns=2, to_ns=8).export(records)
    assert json.loads(line) == {"type": "5"}
