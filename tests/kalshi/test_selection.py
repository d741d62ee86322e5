"""Who is wanted: by ticker, event, series or everything open, also when the series is not known yet."""

from pathlib import Path

import pytest
from directory_samples import (
    ALL_OPEN,
    HOUR_NS,
    NOW_NS,
    SECOND_NS,
    created,
    frame,
    kinds,
    record,
    subscriptions,
    with_markets,
)

from tickerplant.core.messages import MarketPhase, MarketState
from tickerplant.limits import (
    EVENT_LOOK_UP_REPEAT_NS,
    EVENT_LOOK_UPS_MAX,
    EVENT_WAIT_NS,
    REST_LAG_NS,
)
from tickerplant_kalshi.directory import (
    InfoChanged,
    LookUpEvent,
    LookUpMarket,
    MarketDirectory,
    MarketRecord,
    PhaseChanged,
    Selection,
    Subscribe,
)
from tickerplant_kalshi.messages import FRAME_DECODER, EventBody


@pytest.mark.parametrize(
    ("selection", "wanted"),
    [
        (Selection(tickers=("KXA-1-T1", "KXMVE-1-T1")), ["KXA-1-T1", "KXMVE-1-T1"]),
        (Selection(events=("KXA-1",)), ["KXA-1-T1", "KXA-1-T2"]),
        (Selection(series=("KXA",)), ["KXA-1-T1", "KXA-1-T2", "KXA-2-T1"]),
        (Selection(series=("KXMVE",)), ["KXMVE-1-T1"]),
        (ALL_OPEN, ["KXA-1-T1", "KXA-1-T2", "KXA-2-T1", "KXB-1-T1"]),
        (
            Selection(all_open=True, include_combos=True),
            ["KXA-1-T1", "KXA-1-T2", "KXA-2-T1", "KXB-1-T1", "KXMVE-1-T1"],
        ),
        (
            Selection(tickers=("KXB-1-T1",), events=("KXA-2",)),
            ["KXA-2-T1", "KXB-1-T1"],
        ),
        (Selection(), []),
    ],
)
def test_the_selection_decides(selection: Selection, wanted: list[str]) -> None:
    tickers = ["KXA-1-T1", "KXA-1-T2", "KXA-2-T1", "KXB-1-T1", "KXMVE-1-T1"]
    directory = with_markets(
        selection, *(record(ticker, combo=ticker.startswith("KXMVE")) for ticker in tickers)
    )
    assert subscriptions(directory.take_changes()) == [f"+{ticker}" for ticker in wanted]
    assert directory.subscribed_count == len(directory) == len(wanted)
    assert directory.counters.markets_not_wanted == len(tickers) - len(wanted)
    assert directory.selection == selection
    assert selection.is_empty == (selection == Selection())


def test_a_subscription_is_followed_by_info_and_phase() -> None:
    directory = with_markets(ALL_OPEN, record())
    assert directory.has_changes
    assert directory.take_changes() == [
        Subscribe("KXA-1-T1"),
        InfoChanged(record()),
        PhaseChanged("KXA-1-T1", MarketPhase.ACTIVE, "", -1),
    ]
    assert not directory.has_changes
    assert directory.is_subscribed("KXA-1-T1")
    assert directory.record("KXA-1-T1") == record()
    assert directory.record("nothing") is None
    assert not directory.is_subscribed("nothing")
    directory.apply_markets([record()], NOW_NS)
    assert directory.take_changes() == []


def test_a_phase_change_becomes_a_message() -> None:
    change = PhaseChanged("A", MarketPhase.DETERMINED, "yes", 10_000)
    expected = MarketState("A", 5, 0, 6, MarketPhase.DETERMINED, "yes", 10_000)
    assert change.state(5, 6) == expected


def test_a_market_waits_for_the_series_of_its_event() -> None:
    directory = MarketDirectory(Selection(series=("KXA",)))
    directory.apply_lifecycle(created("ODD-1-T1", event="ODD-1"), NOW_NS, combo=False)
    directory.apply_lifecycle(created("ODD-2-T1", event="ODD-2"), NOW_NS, combo=False)
    assert directory.take_changes() == []
    directory.apply_event_lifecycle(EventBody("ODD-1", series_ticker="KXA"), NOW_NS)
    directory.apply_event_lifecycle(EventBody("ODD-2", series_ticker="KXB"), NOW_NS)
    changes = directory.take_changes()
    assert kinds(changes) == ["Subscribe", "InfoChanged", "PhaseChanged"]
    info = changes[1]
    assert isinstance(info, InfoChanged)
    assert info.record.series_ticker == "KXA"
    assert len(directory) == 1


def test_an_event_that_was_announced_first_needs_no_look_up() -> None:
    directory = MarketDirectory(Selection(series=("KXA",)))
    directory.apply_event_lifecycle(EventBody("ODD-1", series_ticker="KXA"), NOW_NS)
    directory.apply_event_lifecycle(EventBody("ODD-2", series_ticker="KXB"), NOW_NS)
    directory.apply_event_lifecycle(EventBody("ODD-3"), NOW_NS)
    directory.apply_lifecycle(created("ODD-1-T1", event="ODD-1"), NOW_NS, combo=False)
    directory.apply_lifecycle(created("ODD-2-T1", event="ODD-2"), NOW_NS, combo=False)
    assert subscriptions(directory.take_changes()) == ["+ODD-1-T1"]


def test_an_unknown_event_is_looked_up_a_bounded_number_of_times() -> None:
    directory = MarketDirectory(Selection(series=("KXA",)))
    for ticker in ("ODD-1-T1", "ODD-1-T2"):
        directory.apply_lifecycle(created(ticker, event="ODD-1"), NOW_NS, combo=False)
    asked = []
    now_ns = NOW_NS
    while (deadline_ns := directory.next_deadline_ns()) is not None:
        now_ns = deadline_ns
        directory.handle_timer(now_ns)
        asked += [now_ns for one in directory.take_changes() if one == LookUpEvent("ODD-1")]
    assert asked == [
        NOW_NS + EVENT_WAIT_NS + EVENT_LOOK_UP_REPEAT_NS * count
        for count in range(EVENT_LOOK_UPS_MAX)
    ]
    assert directory.counters.undecided_dropped == 2
    assert len(directory) == 0


def test_the_series_of_a_wanted_market_is_looked_up_for_its_info() -> None:
    directory = with_markets(Selection(tickers=("KXA-1-T1",)), record(series_ticker=""))
    directory.take_changes()
    directory.handle_timer(NOW_NS + EVENT_WAIT_NS)
    assert directory.take_changes() == [LookUpEvent("KXA-1")]
    directory.apply_event("KXA-1", "KXA", NOW_NS + EVENT_WAIT_NS)
    assert directory.take_changes() == [InfoChanged(record())]
    directory.apply_event("KXA-1", "KXA", NOW_NS + EVENT_WAIT_NS)
    assert directory.take_changes() == []


def test_an_event_that_becomes_known_late_brings_the_series_already_known() -> None:
    directory = MarketDirectory(Selection(tickers=("KXA-1-T1",)))
    directory.apply_event("KXA-1", "KXA", NOW_NS)
    directory.apply_lifecycle(frame("created"), NOW_NS, combo=False)
    directory.take_changes()
    read = record(series_ticker="", read_ns=NOW_NS + HOUR_NS // 2)
    directory.apply_markets([read], NOW_NS + HOUR_NS // 2)
    known = directory.record("KXA-1-T1")
    assert known is not None
    assert known.series_ticker == "KXA"
    directory.handle_timer(NOW_NS + HOUR_NS // 2 + EVENT_WAIT_NS)
    assert LookUpEvent("KXA-1") not in directory.take_changes()


def test_combos_cost_no_look_up_unless_one_is_named() -> None:
    directory = MarketDirectory(Selection(series=("KXA",), events=("KXA-9",)))
    directory.apply_lifecycle(created("KXMVEX-1-T1", event="KXMVEX-1"), NOW_NS, combo=True)
    assert directory.next_deadline_ns() is None
    named = MarketDirectory(Selection(series=("KXMVEX",)))
    named.apply_lifecycle(created("KXMVEX-1-T1", event="KXMVEX-1"), NOW_NS, combo=True)
    named.handle_timer(NOW_NS + EVENT_WAIT_NS)
    assert named.take_changes() == [LookUpEvent("KXMVEX-1")]


def test_a_created_market_without_event_is_looked_up_if_the_event_decides() -> None:
    directory = MarketDirectory(Selection(events=("KXA-1",)))
    directory.apply_lifecycle(frame("created"), NOW_NS, combo=False)
    directory.handle_timer(NOW_NS + REST_LAG_NS)
    assert directory.take_changes() == [LookUpMarket("KXA-1-T1")]
    directory.apply_markets([record(event_ticker="")], NOW_NS + REST_LAG_NS)
    assert directory.counters.undecided_dropped == 1
    directory.apply_markets([record()], NOW_NS + REST_LAG_NS)
    assert subscriptions(directory.take_changes()) == ["+KXA-1-T1"]


@pytest.mark.parametrize(
    ("selection", "combo", "asked"),
    [
        (Selection(tickers=("KXA-1-T1",)), False, True),
        (Selection(events=("KXA-1",)), False, True),
        (Selection(series=("KXA",)), False, True),
        (ALL_OPEN, False, True),
        (ALL_OPEN, True, False),
        (Selection(all_open=True, include_combos=True), True, True),
        (Selection(tickers=("KXA-1-T2",), events=("KXA-2",), series=("KXA-1",)), False, False),
    ],
)
def test_a_frame_of_an_unknown_market_asks_once_if_it_may_be_wanted(
    selection: Selection, combo: bool, asked: bool
) -> None:
    directory = MarketDirectory(selection)
    directory.apply_lifecycle(frame("activated"), NOW_NS, combo=combo)
    directory.apply_lifecycle(frame("deactivated"), NOW_NS + 1, combo=combo)
    directory.handle_timer(NOW_NS + REST_LAG_NS - 1)
    assert directory.take_changes() == []
    directory.handle_timer(NOW_NS + REST_LAG_NS)
    assert directory.take_changes() == ([LookUpMarket("KXA-1-T1")] if asked else [])


def test_the_example_frames_of_the_exchange(shared_folder: Path) -> None:
    directory = MarketDirectory(Selection(series=("KXDEMOTEMP",)))
    now_ns = 1_795_212_000 * SECOND_NS
    for line in (shared_folder / "kalshi" / "examples.jsonl").read_bytes().splitlines():
        if b'"market_lifecycle_v2","sid"' in line or b'"event_lifecycle"' in line:
            body = FRAME_DECODER.decode(line).msg
            if isinstance(body, EventBody):
                directory.apply_event_lifecycle(body, now_ns)
            else:
                directory.apply_lifecycle(body, now_ns, combo=False)
    directory.apply_event("KXDEMOTEMP-26NOV22", "KXDEMOTEMP", now_ns)
    assert directory.take_changes() == [
        Subscribe("KXDEMOTEMP-26NOV22-T58"),
        InfoChanged(
            MarketRecord(
                "KXDEMOTEMP-26NOV22-T58",
                event_ticker="KXDEMOTEMP-26NOV22",
                series_ticker="KXDEMOTEMP",
                phase=MarketPhase.INACTIVE,
                open_ns=now_ns,
                close_ns=now_ns + 24 * HOUR_NS,
                price_level_structure="deci_cent",
                price_bands=((0, 10_000, 10),),
                strike_type="between",
                floor_strike="58",
                cap_strike="60",
            )
        ),
        PhaseChanged("KXDEMOTEMP-26NOV22-T58", MarketPhase.INACTIVE, "", -1),
    ]
