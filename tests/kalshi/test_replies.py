"""What the exchange answers, refuses, and does not answer: subscriptions, errors, time-outs."""

import pytest
from connection_bed import (
    ALL_CHANNELS,
    BOOKS,
    SECOND,
    ConnectionBed,
    delta,
    snapshot,
    stale_tickers,
    trade,
)

from tickerplant.core.messages import StaleReason, Stream, UpstreamGap
from tickerplant.limits import (
    COMMAND_ATTEMPTS,
    COMMAND_TIMEOUT_NS,
    MARKET_LIMIT_RETRY_NS,
    SNAPSHOT_ATTEMPTS,
    SNAPSHOT_TIMEOUT_NS,
)
from tickerplant_kalshi.subscriptions import SubscriptionState


def error(code, *, command=0, sid=0, seq=0):
    """An `error` frame."""
    frame = {"type": "error", "msg": {"code": code, "msg": "as told"}}
    frame |= {"id": command} if command else {}
    frame |= {"sid": sid} if sid else {}
    return frame | ({"seq": seq} if seq else {})


def subscribed(command, sid, channel=BOOKS):
    """A `subscribed` frame."""
    return {"type": "subscribed", "id": command["id"], "msg": {"channel": channel, "sid": sid}}


def ok(command, seq, *, sid=1):
    """An `ok` of an update, with `skip_ticker_ack`."""
    return {"type": "ok", "id": command["id"], "sid": sid, "seq": seq, "msg": {}}


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


# --- subscribing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("use_yes_price", [False, True])
def test_what_is_sent_to_subscribe(use_yes_price):
    """One command a channel, ids from 1, the price convention always said, the ticker's first values asked for."""
    bed = ConnectionBed(ALL_CHANNELS, tickers=("A", "B"), use_yes_price=use_yes_price)
    commands = bed.commands()
    bed.feed(subscribed(commands[0], 1))
    commands += bed.commands()
    assert [c["id"] for c in commands] == [1, 2, 3, 4, 5]
    assert [c["cmd"] for c in commands] == ["subscribe"] * 5
    assert [c["params"] for c in commands] == [
        {
            "channels": [BOOKS],
            "market_tickers": ["A", "B"],
            "use_yes_price": use_yes_price,
            "skip_ticker_ack": True,
        },
        {"channels": ["trade"]},
        {"channels": ["ticker"], "send_initial_snapshot": True},
        {"channels": ["market_lifecycle_v2"]},
        {"channels": ["multivariate_market_lifecycle"]},
    ]


def test_without_markets_books_are_not_subscribed():
    """The exchange would refuse it; the channel waits for the first market."""
    bed = ConnectionBed(tickers=())
    assert bed.commands() == []
    bed.want("A")
    (command,) = bed.commands()
    assert command["params"]["market_tickers"] == ["A"]


def test_the_connection_is_complete_when_its_unfiltered_channels_are_subscribed():
    """Books say themselves what is missing of them; a refused channel does not count."""
    bed = ConnectionBed((BOOKS, "trade", "ticker"))
    assert not bed.connection.complete
    books, trades, tickers = bed.commands()
    bed.feed(subscribed(trades, 1, "trade"))
    assert not bed.connection.complete
    bed.feed(error(8, command=tickers["id"]))
    assert bed.connection.complete
    bed.feed(subscribed(books, 2))
    assert bed.connection.complete


def test_markets_are_added_and_deleted_on_the_running_subscription(bed):
    """By sid; their snapshots may come before or after the `ok`."""
    bed.want("C")
    bed.want("D")
    (add,) = bed.commands()
    assert add["cmd"] == "update_subscription"
    assert add["params"] == {"sids": [1], "action": "add_markets", "market_tickers": ["C", "D"]}
    bed.feed(snapshot(3, "C"), ok(add, 4), snapshot(5, "D"), delta(6, "D"))
    assert (bed.state("C"), bed.state("D")) == ("LIVE", "LIVE")
    assert bed.entry("D").bids == {3300: 200}
    bed.unwant("A")
    (delete,) = bed.commands()
    assert delete["params"] == {"sids": [1], "action": "delete_markets", "market_tickers": ["A"]}
    bed.feed(delta(7, "A"), ok(delete, 8))
    assert bed.counters.foreign_market_frames == 1
    assert bed.counters.sequence_gaps == 0


def test_a_market_wanted_again_at_once_is_not_deleted(bed):
    """Its mind changed before the command went out: only a snapshot for the new book is asked for."""
    bed.unwant("A")
    bed.want("A")
    assert bed.asked_for() == ["A"]
    bed.feed(snapshot(3, "A"))
    assert bed.state("A") == "LIVE"


def test_a_deletion_that_is_tried_again_spares_a_market_wanted_meanwhile(bed):
    """Else its book would stay LIVE without ever changing."""
    bed.unwant("A")
    (delete,) = bed.commands()
    bed.want("A")
    (add,) = bed.commands()
    assert action_of(add) == "add_markets"
    bed.feed(error(18, command=delete["id"]), ok(add, 3), snapshot(4, "A"))
    bed.advance(2)
    assert bed.commands() == []
    assert bed.state("A") == "LIVE"


def test_an_addition_that_is_tried_again_spares_a_market_let_go_meanwhile(bed):
    """What nobody wants is not asked for."""
    bed.want("C")
    bed.want("D")
    (add,) = bed.commands()
    bed.feed(error(27, command=add["id"]))
    bed.unwant("C")
    bed.advance(2)
    (again,) = bed.commands()
    assert again["params"]["market_tickers"] == ["D"]


def test_a_snapshot_that_was_asked_for_does_not_make_an_unsubscribed_book_live(bed):
    """The addition is stuck and later refused: the book would get no deltas."""
    bed.want("C")
    (add,) = bed.commands()
    bed.feed(delta(4, "A"))
    (ask,) = bed.commands()
    assert "C" in ask["params"]["market_tickers"]
    bed.feed(snapshot(5, "C", command_id=ask["id"]))
    assert bed.state("C") == "SYNCING"
    bed.feed(error(26, command=add["id"]), snapshot(6, "C", command_id=ask["id"]))
    assert bed.state("C") == "SYNCING"
    bed.advance(MARKET_LIMIT_RETRY_NS / SECOND)
    add = next(c for c in bed.commands() if action_of(c) == "add_markets")
    bed.feed(ok(add, 7), snapshot(8, "C"))
    assert bed.state("C") == "LIVE"


def test_a_market_that_is_not_subscribed_is_not_asked_for(bed):
    """Its addition was refused; an unusable frame of it changes nothing about that."""
    bed.want("C")
    (add,) = bed.commands()
    bed.feed(error(26, command=add["id"]), delta(3, "C", price="x"))
    assert bed.counters.unusable_frames == 1
    assert bed.commands() == []
    assert bed.state("C") == "SYNCING"


def test_an_addition_whose_ok_is_lost_keeps_what_came_of_it(bed):
    """The snapshot showed that the market is subscribed: only the others are asked for again."""
    bed.want("C")
    bed.want("D")
    (add,) = bed.commands()
    bed.feed(snapshot(3, "C"))
    bed.advance(COMMAND_TIMEOUT_NS / SECOND)
    assert bed.state("C") == "LIVE"
    (again,) = bed.commands()
    assert again["params"] == {**add["params"], "market_tickers": ["D"]}


def test_an_ok_of_a_market_let_go_meanwhile(bed):
    """It is deleted, whatever the late answer confirms."""
    bed.want("C")
    (add,) = bed.commands()
    bed.unwant("C")
    (delete,) = bed.commands()
    bed.feed(ok(add, 3), snapshot(4, "C"), ok(delete, 5))
    assert action_of(delete) == "delete_markets"
    assert "C" not in bed.connection.commands.books.tickers
    assert bed.counters.foreign_market_frames == 1


def test_a_hole_does_not_ask_for_markets_let_go(bed):
    """Also while their deletion waits to be sent."""
    bed.unwant("A")
    bed.feed(delta(4, "B"))
    assert bed.asked_for() == ["B"]


def test_a_merging_subscribe_tells_the_sid_that_was_there():
    """`ok` with sid and seq instead of `subscribed`: the sequence goes on from there, owed snapshots are asked for."""
    bed = ConnectionBed()
    (command,) = bed.commands()
    bed.feed(ok(command, 40, sid=7), snapshot(41, "A", sid=7))
    assert bed.state() == "LIVE"
    assert bed.counters.sequence_gaps == 0


def test_acknowledgements_of_channels_that_were_not_asked_for_are_counted(bed):
    """By name; a second acknowledgement of the running sid changes nothing."""
    bed.feed(subscribed({"id": 99}, 5, "fill"), subscribed({"id": 99}, 1))
    assert bed.counters.frame_types == {"subscribed fill": 1}
    assert bed.counters.unmatched_replies == 2
    bed.feed(delta(3, "A"))
    assert bed.entry("A").bids == {3300: 200}


def test_a_late_acknowledgement_after_its_time_out_is_taken():
    """The command was asked again; the first answer comes, then a merging `ok` for the second."""
    bed = ConnectionBed()
    (first,) = bed.commands()
    bed.advance(COMMAND_TIMEOUT_NS / SECOND)
    (second,) = bed.commands()
    assert second["params"] == first["params"]
    bed.feed(subscribed(first, 1), snapshot(1, "A"), ok(second, 2), delta(3, "A"))
    assert bed.state() == "LIVE"
    assert bed.entry().bids == {3300: 200}
    assert bed.counters.sequence_gaps == 0


def test_an_acknowledgement_with_another_sid_than_the_data_before_it():
    """What came on the first one is not ours: stale, and the sequence of the real sid begins at 1."""
    bed = ConnectionBed()
    (command,) = bed.commands()
    bed.feed(snapshot(1, "A", sid=77))
    assert bed.state() == "LIVE"
    bed.feed(subscribed(command, 1))
    assert bed.state() == "STALE"
    bed.feed(snapshot(1, "A"), delta(2, "A"))
    assert bed.entry().bids == {3300: 200}


# --- terminal errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [10, 25])
def test_a_terminal_error_ends_the_subscription_and_it_is_asked_for_anew(bed, code):
    """Books stale; subscribed again with all markets; the new sid counts from 1."""
    messages = bed.feed(error(code, sid=1, seq=3))
    assert stale_tickers(messages) == dict.fromkeys("AB", StaleReason.SUBSCRIPTION_ENDED)
    assert bed.commands() == []
    bed.advance(1)
    (command,) = bed.commands()
    assert command["params"]["market_tickers"] == ["A", "B"]
    bed.feed(subscribed(command, 2), snapshot(1, "A", sid=2), snapshot(2, "B", sid=2))
    assert bed.state("A") == bed.state("B") == "LIVE"
    assert bed.counters.error_codes == {str(code): 1}
    assert bed.counters.subscriptions_ended == 1


def test_late_frames_of_an_ended_sid_are_not_taken_for_the_next_one(bed):
    """Neither while the new one is asked for, nor after; nor is its old acknowledgement."""
    bed.feed(error(25, sid=1, seq=3))
    bed.advance(1)
    (command,) = bed.commands()
    bed.feed(snapshot(1, "A"), delta(4, "A"), subscribed({"id": 1}, 1))
    assert bed.state("A") == "STALE"
    bed.feed(subscribed(command, 2), snapshot(1, "A", sid=2))
    bed.feed(subscribed({"id": 1}, 1), delta(5, "A"), delta(2, "A", sid=2))
    assert bed.entry("A").bids == {3300: 200}


def test_an_ended_trade_subscription_is_a_gap_until_the_new_one(full):
    """Told when the new sid is known: from the last trade to then. Books are not concerned."""
    full.feed(trade(1))
    seen_ns = full.now_ns
    full.now_ns += SECOND
    full.feed(error(10, sid=2, seq=2))
    assert full.state() == "LIVE"
    full.advance(3)
    (command,) = full.commands()
    assert command["params"]["channels"] == ["trade"]
    (gap,) = [m for m in full.feed(subscribed(command, 6, "trade")) if isinstance(m, UpstreamGap)]
    assert (gap.on_stream, gap.from_ns, gap.to_ns) == (Stream.TRADE, seen_ns, full.now_ns)
    full.feed(trade(1, sid=6))
    assert full.plant.trades == 2


def test_a_gap_is_told_from_the_first_loss(full):
    """Also if the subscription ends twice before it is back."""
    full.feed(trade(1))
    seen_ns = full.now_ns
    full.feed(error(10, sid=2, seq=2))
    full.advance(2)
    (command,) = full.commands()
    full.connection.commands.activate(
        full.connection.commands.subscriptions["trade"], 6, full.now_ns
    )
    full.feed(error(10, sid=6, seq=1))
    full.advance(2)
    (again,) = full.commands()
    assert again["id"] > command["id"]
    (gap,) = [m for m in full.feed(subscribed(again, 7, "trade")) if isinstance(m, UpstreamGap)]
    assert (gap.from_ns, gap.to_ns) == (seen_ns, full.now_ns)


def test_a_subscription_that_keeps_ending_is_asked_for_once_a_second(bed):
    """Not in a loop."""
    asked = 0
    for sid in range(1, 40):
        bed.feed(error(25, sid=sid, seq=1))
        bed.advance(0.25)
        for command in bed.commands():
            asked += 1
            bed.feed(subscribed(command, sid + 1))
    assert 1 <= asked <= 11


def test_what_was_asked_of_an_ended_subscription_is_forgotten(bed):
    """Its answer, should it still come, answers nothing."""
    bed.feed(delta(5, "A"))
    (ask,) = bed.commands()
    bed.feed(error(10, sid=1, seq=6), error(7, command=ask["id"]))
    bed.advance(1)
    (command,) = bed.commands()
    assert command["cmd"] == "subscribe"
    assert bed.counters.subscriptions_ended == 1


# --- refused commands -----------------------------------------------------------------------------


def test_an_unknown_subscription_is_asked_for_anew(bed):
    """Error 7 for an update: the sid does not exist any more."""
    bed.feed(delta(5, "A"))
    (ask,) = bed.commands()
    bed.feed(error(7, command=ask["id"]))
    bed.advance(1)
    (command,) = bed.commands()
    assert command["cmd"] == "subscribe"


def test_an_unknown_channel_is_done_without_unless_it_is_the_books():
    """A removed channel must not stop the feed; a feed without books is none."""
    bed = ConnectionBed((BOOKS, "ticker"))
    books, tickers = bed.commands()
    bed.feed(error(8, command=tickers["id"]))
    subscription = bed.connection.commands.subscriptions["ticker"]
    assert subscription.state is SubscriptionState.REFUSED
    bed.feed(error(8, command=books["id"]))
    for _ in range(COMMAND_ATTEMPTS - 1):
        bed.advance(1)
        (again,) = bed.commands()
        assert bed.connection.close_reason is None
        bed.feed(error(8, command=again["id"]))
    assert "subscribe refused 3 times: error 8" in bed.connection.close_reason


def test_a_lost_authentication_closes_the_connection():
    """Error 9: only a new handshake helps."""
    bed = ConnectionBed()
    (command,) = bed.commands()
    bed.feed(error(9, command=command["id"]))
    assert "authentication" in bed.connection.close_reason


def test_too_many_markets_are_tried_again_without_end():
    """Error 26: every 30 s, and the connection stays."""
    bed = ConnectionBed()
    (command,) = bed.commands()
    for _ in range(10):
        bed.feed(error(26, command=command["id"]))
        bed.advance(29.9)
        assert bed.commands() == []
        bed.advance(0.1)
        (command,) = bed.commands()
    assert bed.connection.close_reason is None


@pytest.mark.parametrize("code", [1, 18, 27, 4711])
def test_other_refusals_are_tried_again_a_bounded_number_of_times(code):
    """Then the connection is made anew, and says why."""
    bed = ConnectionBed()
    (command,) = bed.commands()
    for _ in range(COMMAND_ATTEMPTS - 1):
        bed.feed(error(code, command=command["id"]))
        assert bed.commands() == []
        bed.advance(1)
        (command,) = bed.commands()
    bed.feed(error(code, command=command["id"]))
    assert f"error {code} as told" in bed.connection.close_reason
    assert bed.counters.error_codes == {str(code): COMMAND_ATTEMPTS}


def test_errors_that_answer_nothing_are_only_counted(bed):
    """An unknown id, or none."""
    bed.feed(error(5, command=77), error(5), error(25), error(25, sid=9, seq=1))
    assert bed.counters.error_codes == {"5": 2, "25": 2}
    assert bed.connection.close_reason is None
    assert bed.commands() == []


# --- time-outs ------------------------------------------------------------------------------------


def test_a_command_without_reply_is_sent_again_then_the_connection_is_closed():
    """Three times 10 s."""
    bed = ConnectionBed()
    for _ in range(COMMAND_ATTEMPTS):
        (command,) = bed.commands()
        assert command["cmd"] == "subscribe"
        assert bed.connection.close_reason is None
        bed.advance(COMMAND_TIMEOUT_NS / SECOND)
    assert bed.commands() == []
    assert "no reply to subscribe in 3 tries" in bed.connection.close_reason
    assert bed.counters.command_timeouts == 3


def test_a_snapshot_without_answer_is_asked_for_again_then_the_connection_is_closed(bed):
    """Three times 5 s; other books live on meanwhile."""
    bed.feed(delta(4, "A"), snapshot(5, "B"))
    for attempt in range(SNAPSHOT_ATTEMPTS):
        assert bed.asked_for() == ["A"], attempt
        assert bed.connection.close_reason is None
        bed.advance(SNAPSHOT_TIMEOUT_NS / SECOND)
    assert "get_snapshot" in bed.connection.close_reason
    assert bed.state("B") == "LIVE"
    bed.connection.closed()
    bed.connection.opened(bed.now_ns)
    assert bed.connection.close_reason is None


def test_a_snapshot_that_the_subscription_owes_is_asked_for_when_overdue():
    """Acknowledged, one of two snapshots missing without a hole to see."""
    bed = ConnectionBed(tickers=("A", "B"))
    bed.subscribed()
    bed.feed(snapshot(1, "A"))
    assert bed.asked_for() == []
    bed.advance(SNAPSHOT_TIMEOUT_NS / SECOND)
    assert bed.asked_for() == ["B"]


def test_the_first_snapshot_answers_its_command(bed):
    """The tickers are awaited one by one, the command is not."""
    bed.feed(delta(4, "A"))
    (ask,) = bed.commands()
    bed.feed(snapshot(5, "A", command_id=ask["id"]))
    bed.advance(COMMAND_TIMEOUT_NS / SECOND - 6)
    assert bed.counters.command_timeouts == 0
    assert len(bed.connection.commands.snapshots) == 1


def test_an_initial_snapshot_that_echoes_the_id_of_its_subscribe():
    """It is no answer to `get_snapshot`; the acknowledgement still is one to the command."""
    bed = ConnectionBed()
    (command,) = bed.commands()
    bed.feed(snapshot(1, "A", command_id=command["id"]), subscribed(command, 1))
    assert bed.state() == "LIVE"
    assert bed.counters.unmatched_replies == 0
