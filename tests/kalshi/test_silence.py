"""Silence: of the socket, of one sid, and the probes that tell a quiet market from a dead subscription."""

import sys

import pytest
from connection_bed import (
    ALL_CHANNELS,
    BOOKS,
    SECOND,
    ConnectionBed,
    delta,
    snapshot,
    ticker,
    trade,
)

from tickerplant.limits import (
    PING_INTERVAL_NS,
    SOCKET_SILENCE_NS,
    SUBSCRIPTION_SILENCE_NS,
)


def listing(command, **sids):
    """The reply to `list_subscriptions`."""
    rows = [{"channel": channel, "sid": sid} for channel, sid in sids.items()]
    return {"type": "ok", "id": command["id"], "msg": rows}


def action_of(command):
    """`subscribe`, `list_subscriptions` or the action of an update."""
    return command.get("params", {}).get("action") or command["cmd"]


@pytest.fixture
def bed():
    """Markets A and B live on sid 1, whose next seq is 3."""
    bed = ConnectionBed(tickers=("A", "B"))
    bed.live()
    return bed


@pytest.fixture
def full():
    """All channels subscribed: books 1, trade 2, ticker 3, lifecycle 4, combos 5; market A live."""
    bed = ConnectionBed(ALL_CHANNELS)
    bed.live()
    return bed


# --- silence --------------------------------------------------------------------------------------


def test_a_socket_without_any_frame_is_dead():
    """Pongs count as frames."""
    bed = ConnectionBed(tickers=())
    bed.advance(100)
    assert bed.connection.close_reason is None
    bed.advance(SOCKET_SILENCE_NS / SECOND - 0.1, pongs=False)
    assert bed.connection.close_reason is None
    bed.advance(0.1, pongs=False)
    assert "no frame of any kind for 25 s" in bed.connection.close_reason


def test_pings_are_wanted_every_ten_seconds():
    """The shell sends them, and clears the flag."""
    bed = ConnectionBed(tickers=())
    wanted = 0
    for _ in range(10):
        bed.advance(PING_INTERVAL_NS / SECOND)
        wanted += bed.connection.ping_wanted
        bed.connection.ping_wanted = False
    assert wanted == 10
    bed.connection.ping_wanted = True
    bed.connection.closed()
    assert not bed.connection.ping_wanted


def test_a_silent_subscription_is_probed(full):
    """30 s without a frame of its sid: is it still listed, and does a snapshot come?"""
    full.advance(SUBSCRIPTION_SILENCE_NS / SECOND + 11)
    commands = full.commands()
    assert [action_of(c) for c in commands].count("list_subscriptions") == 4
    assert len(commands) == 4  # no more may wait for a reply at once
    sids = {BOOKS: 1, "trade": 2, "ticker": 3, "market_lifecycle_v2": 4}
    for command in commands:
        full.feed(listing(command, **sids, multivariate_market_lifecycle=5))
    later = full.commands()
    assert [action_of(c) for c in later] == ["list_subscriptions", "get_snapshot"]
    full.feed(listing(later[0], **sids, multivariate_market_lifecycle=5))
    full.feed(snapshot(2, "A", command_id=later[1]["id"]))
    assert full.commands() == []
    assert full.counters.subscriptions_ended == 0
    assert full.connection.close_reason is None


def test_tail_loss_is_found_by_the_probe(bed):
    """The last delta was lost and nothing follows: the snapshot's number shows the hole, and it heals."""
    bed.advance(SUBSCRIPTION_SILENCE_NS / SECOND + 11)
    probe = next(c for c in bed.commands() if action_of(c) == "get_snapshot")
    assert probe["params"]["market_tickers"] == ["A"]
    bed.feed(snapshot(4, "A", command_id=probe["id"]))
    assert bed.counters.sequence_gaps == 1
    assert bed.asked_for() == ["B"]


def test_a_subscription_that_is_not_listed_any_more_is_made_anew(full):
    """It ended without a word, or the word was lost."""
    full.advance(SUBSCRIPTION_SILENCE_NS / SECOND + 11)
    for probe in full.commands():
        full.feed(listing(probe, trade=2, ticker=3, market_lifecycle_v2=4))
    assert full.state() == "STALE"
    assert full.counters.subscriptions_ended == 2
    full.advance(1)
    channels = [c["params"]["channels"] for c in full.commands() if c["cmd"] == "subscribe"]
    assert channels == [[BOOKS], ["multivariate_market_lifecycle"]]


@pytest.mark.parametrize("rows", [b'"x"', b"[5]", b'[{"channel":"\xff","sid":1}]'])
def test_an_unusable_listing_is_counted(bed, rows):
    """And answers the probe; the next one will come."""
    bed.advance(SUBSCRIPTION_SILENCE_NS / SECOND + 11)
    probe = next(c for c in bed.commands() if action_of(c) == "list_subscriptions")
    bed.feed(b'{"type":"ok","id":%d,"msg":%b}' % (probe["id"], rows))
    assert bed.counters.unusable_frames == 1
    assert bed.state("A") == "LIVE"


def test_a_listing_nested_to_the_recursion_limit_is_no_crash(bed):
    """Wherever the limit is met, in the frame or in its rows, it is an unusable frame."""
    bed.advance(SUBSCRIPTION_SILENCE_NS / SECOND + 11)
    probe = next(c for c in bed.commands() if action_of(c) == "list_subscriptions")
    limit = sys.getrecursionlimit()
    nests = [b"[" * depth + b"]" * depth for depth in range(limit, limit - 200, -1)]
    for nest in nests:
        bed.feed(b'{"type":"ok","id":%d,"msg":%b}' % (probe["id"], nest))
    # Which decoder meets the limit first depends on how deep the caller stands.
    assert bed.counters.unusable_frames >= 1
    assert 0 < bed.counters.unreadable_frames < len(nests)


def test_a_probe_is_not_repeated_while_it_waits(bed):
    """One in flight for each silent sid; no reply in three tries closes the connection."""
    bed.advance(SUBSCRIPTION_SILENCE_NS / SECOND + 11)
    assert len(bed.commands()) == 2
    bed.feed(snapshot(3, "A", command_id=3))
    bed.advance(9)
    assert bed.commands() == []
    bed.advance(1)
    assert [action_of(c) for c in bed.commands()] == ["list_subscriptions"]
    bed.advance(10)
    bed.commands()
    bed.advance(10)
    assert "no reply to list_subscriptions in 3 tries" in bed.connection.close_reason


def test_traffic_on_a_sid_needs_no_probe(full):
    """Tickers carry no seq, and count as traffic all the same."""
    seq = 1
    for _ in range(12):
        full.feed(delta(seq + 1, "A"), trade(seq), ticker())
        for sid, kind in ((4, "market_lifecycle_v2"), (5, "multivariate_market_lifecycle")):
            msg = {"event_type": "activated", "market_ticker": "A"}
            full.feed({"type": kind, "sid": sid, "seq": seq, "msg": msg})
        seq += 1
        full.advance(10)
        assert full.commands() == []
