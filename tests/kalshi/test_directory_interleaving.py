"""Any interleaving of reads, frames and timers keeps the rules of the market directory."""

from typing import Any

import msgspec
from directory_samples import ALL_OPEN, NOW_NS, SECOND_NS, frame, record
from hypothesis import given, settings
from hypothesis import strategies as st

from tickerplant.core.messages import MarketPhase
from tickerplant.limits import SUBSCRIBE_LEAD_NS
from tickerplant_kalshi.directory import (
    Change,
    InfoChanged,
    MarketDirectory,
    MarketRecord,
    PhaseChanged,
    Selection,
    Subscribe,
    Unsubscribe,
)
from tickerplant_kalshi.messages import AdditionalMetadata, EventBody, LifecycleBody
from tickerplant_kalshi.records import FINISHED_PHASES, phase_at

TICKERS = ("KXA-1-T1", "KXA-1-T2", "KXA-2-T1", "KXB-1-T1", "KXMVE-1-T1")
times = st.integers(-4, 12).map(lambda count: NOW_NS + count * 30 * SECOND_NS)
tickers = st.sampled_from(TICKERS)
reads = st.builds(
    lambda ticker, phase, open_ns, close_ns, back_s, series: record(
        ticker,
        phase=phase,
        open_ns=open_ns,
        close_ns=close_ns,
        read_ns=-back_s * SECOND_NS,
        series_ticker=ticker.partition("-")[0] if series else "",
        combo=ticker.startswith("KXMVE"),
    ),
    tickers,
    st.sampled_from(MarketPhase),
    times,
    times,
    st.sampled_from((0, 1, 4, 6, 40)),
    st.booleans(),
)
frames = st.builds(
    lambda ticker, event_type, open_ns, close_ns, named: frame(
        event_type,
        ticker,
        open_ts=open_ns // SECOND_NS,
        close_ts=close_ns // SECOND_NS,
        result="yes",
        additional_metadata=AdditionalMetadata(event_ticker=ticker.rpartition("-")[0])
        if named
        else None,
    ),
    tickers,
    st.sampled_from(
        (
            "created",
            "activated",
            "deactivated",
            "close_date_updated",
            "determined",
            "settled",
            "price_level_structure_updated",
            "metadata_updated",
            "unheard_of",
        )
    ),
    times,
    times,
    st.booleans(),
)
steps = st.tuples(
    st.sampled_from((0, 0, 1, 5, 30, 60, 700)),
    st.one_of(
        reads, frames, st.sampled_from(("KXA-1", "KXA-2", "KXB-1", "KXMVE-1", "timer", "unread"))
    ),
)
selections = st.sampled_from(
    (
        ALL_OPEN,
        Selection(all_open=True, include_combos=True),
        Selection(tickers=("KXA-1-T1", "KXMVE-1-T1")),
        Selection(series=("KXA",)),
        Selection(series=("KXA", "KXMVE"), events=("KXB-1",)),
        Selection(events=("KXA-1",)),
    )
)


def apply_step(directory: MarketDirectory, step: Any, now_ns: int) -> None:
    if isinstance(step, MarketRecord):
        read = msgspec.structs.replace(step, read_ns=now_ns + step.read_ns)
        directory.apply_markets([read], now_ns)
    elif isinstance(step, LifecycleBody):
        directory.apply_lifecycle(step, now_ns, combo=step.market_ticker.startswith("KXMVE"))
    elif step == "timer":
        directory.handle_timer(now_ns)
    elif step == "unread":
        directory.look_up_unread(now_ns)
    else:
        directory.apply_event_lifecycle(EventBody(step, step.partition("-")[0]), now_ns)


class Follower:
    """What a consumer of the changes believes, checked at every change."""

    def __init__(self) -> None:
        self.subscribed: set[str] = set()
        self.phase: dict[str, MarketPhase] = {}
        self.info: dict[str, MarketRecord] = {}

    def take(self, changes: list[Change]) -> None:
        for change in changes:
            if isinstance(change, Subscribe):
                assert change.ticker not in self.subscribed
                self.subscribed.add(change.ticker)
            elif isinstance(change, Unsubscribe):
                assert change.ticker in self.subscribed
                assert change.phase in FINISHED_PHASES
                assert self.phase[change.ticker] is change.phase
                self.subscribed.remove(change.ticker)
            elif isinstance(change, PhaseChanged):
                self.phase[change.ticker] = change.phase
            elif isinstance(change, InfoChanged):
                self.info[change.record.ticker] = change.record


@settings(max_examples=300, deadline=None)
@given(selections, st.lists(steps, max_size=40))
def test_any_interleaving_keeps_the_rules(selection: Selection, script: list[Any]) -> None:
    directory, twin = MarketDirectory(selection), MarketDirectory(selection)
    follower = Follower()
    now_ns = NOW_NS
    for pause_s, step in script:
        now_ns += pause_s * SECOND_NS
        apply_step(directory, step, now_ns)
        apply_step(twin, step, now_ns)
        changes = directory.take_changes()
        assert changes == twin.take_changes(), "the same inputs give the same changes"
        assert directory.next_deadline_ns() == twin.next_deadline_ns()
        follower.take(changes)
        assert directory.subscribed_count == len(follower.subscribed)
        if step == "timer":
            assert_in_line(directory, follower, now_ns)
    settle(directory, follower, now_ns)


def assert_in_line(directory: MarketDirectory, follower: Follower, now_ns: int) -> None:
    """After the timers of a moment: what is published is what is known, and what lives is subscribed."""
    deadline_ns = directory.next_deadline_ns()
    assert deadline_ns is None or deadline_ns > now_ns
    for ticker in TICKERS:
        assert directory.is_subscribed(ticker) == (ticker in follower.subscribed)
        known = directory.record(ticker)
        if known is None:
            continue
        phase = phase_at(known, now_ns)
        entry = directory._entries[ticker]
        if entry.undecided:
            assert ticker not in follower.subscribed
        elif phase not in FINISHED_PHASES and now_ns >= known.open_ns - SUBSCRIBE_LEAD_NS:
            assert ticker in follower.subscribed
        if ticker in follower.subscribed:
            assert follower.phase[ticker] is phase
            assert follower.info[ticker].info(0, 0) == known.info(0, 0)


def settle(directory: MarketDirectory, follower: Follower, now_ns: int) -> None:
    """Running all timers out ends; then only markets without an end are subscribed."""
    for _ in range(200):
        deadline_ns = directory.next_deadline_ns()
        if deadline_ns is None:
            break
        now_ns = max(now_ns, deadline_ns)
        directory.handle_timer(now_ns)
        follower.take(directory.take_changes())
        assert_in_line(directory, follower, now_ns)
    assert directory.next_deadline_ns() is None
    for ticker in follower.subscribed:
        known = directory.record(ticker)
        assert known is not None
        assert phase_at(known, now_ns) not in FINISHED_PHASES
        assert known.close_ns == 0
