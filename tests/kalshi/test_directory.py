"""When a market is subscribed, how REST reads and lifecycle frames agree, and what bounds hold."""

from typing import Any

import pytest
from directory_samples import (
    ALL_OPEN,
    HOUR_NS,
    NOW_NS,
    SECOND_NS,
    created,
    frame,
    kinds,
    phases,
    record,
    subscriptions,
    with_markets,
)

from tickerplant.core.messages import MarketPhase
from tickerplant.limits import (
    FINISHED_GRACE_NS,
    FINISHED_KEEP_NS,
    REST_LAG_NS,
    SETTLED_KEEP_NS,
    SUBSCRIBE_LEAD_NS,
)
from tickerplant_kalshi import directory as directory_module
from tickerplant_kalshi.directory import (
    InfoChanged,
    LookUpMarket,
    MarketDirectory,
    PhaseChanged,
    Selection,
    Unsubscribe,
)
from tickerplant_kalshi.messages import LifecycleBody

# --- when it is subscribed ------------------------------------------------------------------------


def test_timers_open_and_close_a_market() -> None:
    open_ns, close_ns = NOW_NS + HOUR_NS, NOW_NS + 2 * HOUR_NS
    directory = with_markets(
        ALL_OPEN, record(phase=MarketPhase.INITIALIZED, open_ns=open_ns, close_ns=close_ns)
    )
    story = [(NOW_NS, kinds(directory.take_changes()))]
    while (deadline_ns := directory.next_deadline_ns()) is not None:
        directory.handle_timer(deadline_ns)
        story.append((deadline_ns, kinds(directory.take_changes())))
    assert story == [
        (NOW_NS, ["InfoChanged", "PhaseChanged"]),
        (open_ns - SUBSCRIBE_LEAD_NS, ["Subscribe", "InfoChanged", "PhaseChanged"]),
        (open_ns, ["PhaseChanged"]),
        (close_ns, ["PhaseChanged"]),
        (close_ns + FINISHED_GRACE_NS, ["Unsubscribe"]),
        (close_ns + FINISHED_KEEP_NS, []),
    ]
    assert len(directory) == 0
    assert directory.counters.markets_forgotten == 1


def test_a_timer_that_comes_late_catches_up() -> None:
    directory = with_markets(
        ALL_OPEN,
        record(
            phase=MarketPhase.INITIALIZED, open_ns=NOW_NS + HOUR_NS, close_ns=NOW_NS + 2 * HOUR_NS
        ),
    )
    directory.take_changes()
    directory.handle_timer(NOW_NS + 3 * HOUR_NS)
    assert phases(directory.take_changes()) == [MarketPhase.CLOSED]
    assert directory.subscribed_count == 0


def test_determined_then_settled() -> None:
    directory = with_markets(ALL_OPEN, record())
    directory.take_changes()
    at_ns = NOW_NS + 5 * SECOND_NS
    body = frame("determined", result="yes", settlement_value="1.0000")
    directory.apply_lifecycle(body, at_ns, combo=False)
    assert directory.take_changes() == [
        PhaseChanged("KXA-1-T1", MarketPhase.DETERMINED, "yes", 10_000)
    ]
    assert directory.next_deadline_ns() == at_ns + FINISHED_GRACE_NS
    directory.handle_timer(at_ns + FINISHED_GRACE_NS)
    assert directory.take_changes() == [Unsubscribe("KXA-1-T1", MarketPhase.DETERMINED)]
    settled_ns = at_ns + HOUR_NS
    directory.apply_lifecycle(frame("settled"), settled_ns, combo=False)
    assert directory.take_changes() == [
        PhaseChanged("KXA-1-T1", MarketPhase.SETTLED, "yes", 10_000)
    ]
    directory.handle_timer(settled_ns + SETTLED_KEEP_NS - 1)
    assert len(directory) == 1
    directory.handle_timer(settled_ns + SETTLED_KEEP_NS)
    assert len(directory) == 0
    assert directory.next_deadline_ns() is None


def test_settlement_within_the_grace_does_not_lengthen_it() -> None:
    directory = with_markets(ALL_OPEN, record())
    directory.apply_lifecycle(frame("determined", result="no"), NOW_NS, combo=False)
    directory.apply_lifecycle(frame("settled"), NOW_NS + SECOND_NS, combo=False)
    directory.take_changes()
    directory.handle_timer(NOW_NS + FINISHED_GRACE_NS)
    assert directory.take_changes() == [Unsubscribe("KXA-1-T1", MarketPhase.SETTLED)]


def test_a_pause_keeps_the_subscription() -> None:
    directory = with_markets(ALL_OPEN, record())
    directory.take_changes()
    directory.apply_lifecycle(frame("deactivated", is_deactivated=True), NOW_NS, combo=False)
    directory.apply_lifecycle(frame("activated", is_deactivated=False), NOW_NS + 1, combo=False)
    changes = directory.take_changes()
    assert phases(changes) == [MarketPhase.INACTIVE, MarketPhase.ACTIVE]
    assert subscriptions(changes) == []


def test_a_close_that_moves_closes_and_reopens() -> None:
    directory = with_markets(ALL_OPEN, record())
    directory.take_changes()
    now_s = NOW_NS // SECOND_NS
    directory.apply_lifecycle(frame("close_date_updated", close_ts=now_s), NOW_NS, combo=False)
    assert phases(directory.take_changes()) == [MarketPhase.CLOSED]
    later_ns = NOW_NS + FINISHED_GRACE_NS
    directory.handle_timer(later_ns)
    assert subscriptions(directory.take_changes()) == ["-KXA-1-T1"]
    body = frame("close_date_updated", close_ts=now_s + 7_200)
    directory.apply_lifecycle(body, later_ns, combo=False)
    changes = directory.take_changes()
    assert kinds(changes) == ["Subscribe", "InfoChanged", "PhaseChanged"]
    assert phases(changes) == [MarketPhase.INACTIVE]
    directory.apply_lifecycle(frame("activated"), later_ns + 1, combo=False)
    assert phases(directory.take_changes()) == [MarketPhase.ACTIVE]
    directory.handle_timer(later_ns + REST_LAG_NS)
    assert directory.take_changes() == [LookUpMarket("KXA-1-T1")]


def test_a_reopening_within_the_grace_keeps_the_subscription() -> None:
    directory = with_markets(ALL_OPEN, record(close_ns=NOW_NS + SECOND_NS))
    directory.handle_timer(NOW_NS + SECOND_NS)
    body = frame("close_date_updated", close_ts=NOW_NS // SECOND_NS + 600)
    directory.apply_lifecycle(body, NOW_NS + 2 * SECOND_NS, combo=False)
    directory.handle_timer(NOW_NS + 300 * SECOND_NS)
    assert subscriptions(directory.take_changes()) == ["+KXA-1-T1"]
    directory.handle_timer(NOW_NS + 600 * SECOND_NS)
    changes = directory.take_changes()
    assert phases(changes) == [MarketPhase.CLOSED]
    assert subscriptions(changes) == [], "the second closing has its own grace"


def test_settled_is_the_end() -> None:
    directory = with_markets(ALL_OPEN, record())
    directory.apply_lifecycle(frame("settled", result="yes"), NOW_NS, combo=False)
    directory.take_changes()
    directory.apply_lifecycle(frame("activated"), NOW_NS + 1, combo=False)
    assert directory.take_changes() == []
    assert directory.counters.contradicting_events == 1
    directory.handle_timer(NOW_NS + 1 + REST_LAG_NS)
    assert directory.take_changes() == [LookUpMarket("KXA-1-T1")]


def test_a_created_market_is_read_again_once_rest_knows_it() -> None:
    directory = MarketDirectory(ALL_OPEN)
    directory.apply_lifecycle(created(open_in_s=600), NOW_NS, combo=False)
    changes = directory.take_changes()
    assert kinds(changes) == ["InfoChanged", "PhaseChanged"]
    assert phases(changes) == [MarketPhase.INITIALIZED]
    directory.apply_lifecycle(created(open_in_s=600), NOW_NS, combo=False)
    directory.apply_event("KXA-1", "KXA", NOW_NS)
    assert kinds(directory.take_changes()) == ["InfoChanged"]
    directory.handle_timer(NOW_NS + REST_LAG_NS)
    assert directory.take_changes() == [LookUpMarket("KXA-1-T1")]
    directory.handle_timer(NOW_NS + 600 * SECOND_NS)
    assert LookUpMarket("KXA-1-T1") not in directory.take_changes(), "once is enough"


@pytest.mark.parametrize(
    ("body", "asks"),
    [
        (frame("price_level_structure_updated", price_level_structure="deci_cent"), True),
        (frame("determined"), True),
        (frame("renamed"), True),
        (frame("close_date_updated"), True),
        (frame("metadata_updated", floor_strike=5), False),
        (frame("determined", result="yes"), False),
        (frame("deactivated"), False),
    ],
)
def test_what_a_frame_leaves_open_is_looked_up(body: LifecycleBody, asks: bool) -> None:
    directory = with_markets(ALL_OPEN, record())
    directory.apply_lifecycle(body, NOW_NS, combo=False)
    directory.take_changes()
    directory.handle_timer(NOW_NS + REST_LAG_NS)
    assert (LookUpMarket("KXA-1-T1") in directory.take_changes()) == asks
    assert directory.counters.unknown_event_types == (body.event_type == "renamed")


# --- REST reads against frames --------------------------------------------------------------------


def test_a_read_from_before_a_frame_does_not_undo_it() -> None:
    directory = with_markets(ALL_OPEN, record(strike_type=""))
    at_ns = NOW_NS + HOUR_NS // 2
    directory.apply_lifecycle(frame("determined", result="yes"), at_ns, combo=False)
    directory.take_changes()
    for read_ns in (NOW_NS + 1, at_ns, at_ns + REST_LAG_NS - 1):
        directory.apply_markets([record(read_ns=read_ns, strike_type="greater")], at_ns)
    assert kinds(directory.take_changes()) == ["InfoChanged"]
    assert directory.counters.early_reads == 3
    read = record(read_ns=at_ns + REST_LAG_NS)
    directory.apply_markets([read], at_ns + REST_LAG_NS)
    assert phases(directory.take_changes()) == [MarketPhase.ACTIVE]


def test_an_older_read_does_not_undo_a_newer() -> None:
    directory = with_markets(ALL_OPEN, record(phase=MarketPhase.SETTLED, read_ns=NOW_NS))
    directory.apply_markets([record(read_ns=NOW_NS - 1)], NOW_NS)
    assert directory.take_changes() == []
    assert directory.counters.stale_reads == 1


def test_a_frame_that_overtook_the_discovery_wins_in_the_end() -> None:
    """`determined` comes while the discovery is still reading pages; its record of the market is older."""
    directory = MarketDirectory(ALL_OPEN)
    frame_ns = NOW_NS + 10 * SECOND_NS
    directory.apply_lifecycle(frame("determined", result="yes"), frame_ns, combo=False)
    directory.apply_markets([record(read_ns=NOW_NS)], frame_ns + SECOND_NS)
    assert subscriptions(directory.take_changes()) == ["+KXA-1-T1"]
    directory.handle_timer(frame_ns + REST_LAG_NS)
    assert directory.take_changes() == [LookUpMarket("KXA-1-T1")]
    answer = record(phase=MarketPhase.DETERMINED, result="yes", read_ns=frame_ns + REST_LAG_NS)
    directory.apply_markets([answer], frame_ns + REST_LAG_NS)
    directory.handle_timer(frame_ns + REST_LAG_NS + FINISHED_GRACE_NS)
    changes = directory.take_changes()
    assert phases(changes) == [MarketPhase.DETERMINED]
    assert subscriptions(changes) == ["-KXA-1-T1"]


def test_a_market_first_seen_finished_is_published_only_if_listed() -> None:
    finished = record(phase=MarketPhase.DETERMINED, result="no", settlement_e4=0)
    assert with_markets(ALL_OPEN, finished).take_changes() == []
    listed = with_markets(Selection(tickers=("KXA-1-T1",)), finished)
    assert listed.take_changes() == [
        InfoChanged(finished),
        PhaseChanged("KXA-1-T1", MarketPhase.DETERMINED, "no", 0),
    ]
    assert listed.next_deadline_ns() is None, "listed markets are not forgotten"


def test_after_lost_frames_what_a_discovery_did_not_read_is_looked_up() -> None:
    directory = with_markets(
        ALL_OPEN,
        record("KXA-1-T1"),
        record("KXA-1-T2"),
        record("KXA-1-T3", phase=MarketPhase.SETTLED),
    )
    again_ns = NOW_NS + 60 * SECOND_NS
    directory.apply_markets([record("KXA-1-T1", read_ns=again_ns)], again_ns)
    directory.take_changes()
    directory.look_up_unread(again_ns)
    assert directory.take_changes() == [LookUpMarket("KXA-1-T2")]


# --- bounds ---------------------------------------------------------------------------------------


def test_markets_beyond_the_bound_are_refused_and_counted() -> None:
    directory = with_markets(
        ALL_OPEN, *(record(f"KXA-1-T{number}") for number in range(7)), markets_max=5
    )
    assert len(directory) == 5
    assert directory.counters.markets_refused_full == 2
    directory.apply_lifecycle(frame("activated", "KXA-1-T6"), NOW_NS, combo=False)
    assert directory.counters.look_ups_refused_full == 1


def test_tickers_that_cannot_be_published_are_refused_and_counted() -> None:
    directory = with_markets(ALL_OPEN, record("T" * 201), record("é" * 101), record(""))
    directory.apply_lifecycle(frame("activated", "T" * 201), NOW_NS, combo=False)
    directory.apply_event("E" * 201, "S", NOW_NS)
    directory.apply_event("E", "S" * 201, NOW_NS)
    assert directory.take_changes() == []
    assert directory.counters.tickers_refused == 6


def test_refused_fields_are_counted_by_name() -> None:
    directory = with_markets(ALL_OPEN, record(refused=("cap_strike",)), record("KXA-1-T2"))
    directory.apply_lifecycle(frame("determined", result="x" * 99), NOW_NS, combo=False)
    assert directory.counters.fields_refused == {"cap_strike": 1, "result": 1}


def test_waiting_markets_and_events_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UNDECIDED_MARKETS_MAX", "UNKNOWN_MARKETS_MAX", "EVENTS_KNOWN_MAX"):
        monkeypatch.setattr(directory_module, name, 3)
    directory = MarketDirectory(Selection(series=("KXA",)))
    for number in range(5):
        body = created(f"ODD-{number}-T", event=f"ODD-{number}")
        directory.apply_lifecycle(body, NOW_NS, combo=False)
        directory.apply_lifecycle(frame("activated", f"KXA-{number}-T"), NOW_NS, combo=False)
    assert len(directory) == 3
    assert directory.counters.markets_refused_full == 2
    assert directory.counters.look_ups_refused_full == 2
    for number in range(5):
        directory.apply_event(f"ODD-{number}", "KXA", NOW_NS)
    assert subscriptions(directory.take_changes()) == ["+ODD-0-T", "+ODD-1-T", "+ODD-2-T"]
    assert directory.next_deadline_ns() == NOW_NS + REST_LAG_NS, "no event is waited for any more"
    directory.apply_lifecycle(created("ODD-0-U", event="ODD-0"), NOW_NS, combo=False)
    assert directory.take_changes() == [], "the oldest event was forgotten, so it is asked again"
    directory.apply_lifecycle(created("ODD-4-U", event="ODD-4"), NOW_NS, combo=False)
    assert subscriptions(directory.take_changes()) == ["+ODD-4-U"]
    assert len(directory) == 5, "those that were decided wait no longer, so there is room again"


def test_many_markets_cost_no_scan() -> None:
    """A timer that opens one market looks at few deadlines, however many markets there are."""
    count = 20_000
    opens = [NOW_NS + HOUR_NS + number * SECOND_NS for number in range(count)]
    directory = with_markets(
        ALL_OPEN,
        *(
            record(f"KXA-1-T{number}", open_ns=open_ns, close_ns=open_ns + 10**15)
            for number, open_ns in enumerate(opens)
        ),
    )
    directory.take_changes()
    looked_at = 0
    reconcile = directory._reconcile

    def counted(*arguments: Any) -> None:
        nonlocal looked_at
        looked_at += 1
        reconcile(*arguments)

    directory._reconcile = counted  # type: ignore[method-assign]
    directory.handle_timer(opens[0])
    assert subscriptions(directory.take_changes()) == ["+KXA-1-T0", "+KXA-1-T1"]
    assert looked_at <= 4
