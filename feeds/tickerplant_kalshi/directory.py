"""Which markets are wanted, what is known of them, and which of them are subscribed now. Pure.

Inputs are REST reads, lifecycle frames and timers; outputs are `Change`s, in the order in which they happened and the
same for the same inputs. Rules:

* A market is wanted if its ticker is listed, its event or series is selected, or everything open is. A market gives
  its event and only the event gives the series; a market whose series decides and is unknown waits undecided until
  `event_lifecycle` or a look-up names it.
* A wanted market is subscribed from `SUBSCRIBE_LEAD_NS` before it opens until `FINISHED_GRACE_NS` after it closed or
  was determined. No frame announces opening and closing, so timers do; a later frame may re-open it.
* A lifecycle frame is newer than any REST read sent before it or within `REST_LAG_NS` after it: such a read only fills
  what is unknown. Where a frame leaves something open, the market is looked up once that time has passed.
* A market that is first seen finished is remembered, so that an older read cannot revive it, but published only if its
  ticker is listed.
"""

from collections import OrderedDict
from collections.abc import Iterable

import msgspec

from tickerplant.core.messages import MarketPhase
from tickerplant.limits import (
    EVENT_LOOK_UP_REPEAT_NS,
    EVENT_LOOK_UPS_MAX,
    EVENT_WAIT_NS,
    EVENTS_KNOWN_MAX,
    FINISHED_GRACE_NS,
    FINISHED_KEEP_NS,
    MARKETS_MAX,
    REST_LAG_NS,
    SETTLED_KEEP_NS,
    SUBSCRIBE_LEAD_NS,
    UNDECIDED_MARKETS_MAX,
    UNKNOWN_MARKETS_MAX,
)
from tickerplant_kalshi.deadlines import DeadlineQueue
from tickerplant_kalshi.directory_changes import (
    Change,
    DirectoryCounters,
    InfoChanged,
    LookUpEvent,
    LookUpMarket,
    PhaseChanged,
    Subscribe,
    Unsubscribe,
)
from tickerplant_kalshi.messages import EventBody, LifecycleBody
from tickerplant_kalshi.records import (
    FINISHED_PHASES,
    MarketRecord,
    fits_ticker,
    phase_at,
    record_after_event,
    record_after_read,
    record_completed,
    record_from_created,
    same_info,
)
from tickerplant_kalshi.selection import Selection, SelectionRules

__all__ = [
    "Change",
    "DirectoryCounters",
    "InfoChanged",
    "LookUpEvent",
    "LookUpMarket",
    "MarketDirectory",
    "MarketRecord",
    "PhaseChanged",
    "Selection",
    "Subscribe",
    "Unsubscribe",
]

_KNOWN_EVENT_TYPES = frozenset(
    {
        "created",
        "activated",
        "deactivated",
        "close_date_updated",
        "determined",
        "settled",
        "price_level_structure_updated",
        "metadata_updated",
    }
)
_EVENT, _MARKET, _UNKNOWN = "event", "market", "unknown"


class _Entry:
    """One market that is wanted (or `undecided`), and what was said about it."""

    __slots__ = (
        "drop_ns",
        "event_ns",
        "phase",
        "phase_since_ns",
        "published",
        "read_ns",
        "recheck_ns",
        "record",
        "subscribed",
        "told",
        "told_state",
        "undecided",
    )

    def __init__(self, record: MarketRecord, *, undecided: bool) -> None:
        self.record = record
        self.undecided = undecided
        self.published = False
        self.subscribed = False
        self.told: MarketRecord | None = None
        self.told_state: tuple[MarketPhase, str, int] | None = None
        self.phase: MarketPhase | None = None
        self.phase_since_ns = 0
        self.event_ns: int | None = None
        """When the last lifecycle frame of this market came."""
        self.read_ns = record.read_ns
        self.drop_ns = 0
        """When the grace of a finished market ends; 0 while it lives."""
        self.recheck_ns = 0
        """When to look the market up again; 0 if not needed."""


class MarketDirectory:
    """The markets of a selection; see the module's text for the rules."""

    def __init__(self, selection: Selection, *, markets_max: int = MARKETS_MAX) -> None:
        """An empty directory."""
        self.selection = selection
        self.counters = DirectoryCounters()
        self.subscribed_count = 0
        self._markets_max = markets_max
        self._rules = SelectionRules(selection)
        self._entries: dict[str, _Entry] = {}
        self._undecided_count = 0
        self._series_of: OrderedDict[str, str] = OrderedDict()
        self._markets_of: dict[str, dict[str, None]] = {}
        self._event_look_ups: dict[str, int] = {}
        self._unknown_count = 0
        self._deadlines = DeadlineQueue()
        self._changes: list[Change] = []

    def __len__(self) -> int:
        """Markets that are known, undecided ones included."""
        return len(self._entries)

    def record(self, ticker: str) -> MarketRecord | None:
        """What is known of a market; None if it is not known."""
        entry = self._entries.get(ticker)
        return entry.record if entry is not None else None

    def is_subscribed(self, ticker: str) -> bool:
        """Whether the last word on the market was `Subscribe`."""
        entry = self._entries.get(ticker)
        return entry is not None and entry.subscribed

    @property
    def has_changes(self) -> bool:
        """Whether `take_changes` would return any."""
        return bool(self._changes)

    def take_changes(self) -> list[Change]:
        """What changed since the last call, in order; call it after every input."""
        changes, self._changes = self._changes, []
        return changes

    # --- inputs -----------------------------------------------------------------------------------

    def apply_markets(self, records: Iterable[MarketRecord], now_ns: int) -> None:
        """Markets as REST told them (`record_from_rest`)."""
        for record in records:
            self._apply_read(record, now_ns)

    def apply_event(self, event_ticker: str, series_ticker: str, now_ns: int) -> None:
        """The series of an event, as REST or a frame told it."""
        if not event_ticker or not series_ticker:
            return
        if not (fits_ticker(event_ticker) and fits_ticker(series_ticker)):
            self.counters.tickers_refused += 1
            return
        if self._series_of.get(event_ticker) == series_ticker:
            return
        if len(self._series_of) >= EVENTS_KNOWN_MAX:
            self._series_of.popitem(last=False)
        self._series_of[event_ticker] = series_ticker
        if self._event_look_ups.pop(event_ticker, None) is not None:
            self._deadlines.discard((_EVENT, event_ticker))
        for ticker in list(self._markets_of.get(event_ticker, ())):
            entry = self._entries[ticker]
            entry.record = msgspec.structs.replace(entry.record, series_ticker=series_ticker)
            if self._decide(ticker, entry):
                self._reconcile(entry, now_ns)

    def apply_event_lifecycle(self, body: EventBody, now_ns: int) -> None:
        """An `event_lifecycle` frame."""
        self.apply_event(body.event_ticker, body.series_ticker, now_ns)

    def apply_lifecycle(self, body: LifecycleBody, now_ns: int, *, combo: bool) -> None:
        """A market's lifecycle frame; `combo` if it came on the multivariate channel."""
        if not fits_ticker(body.market_ticker):
            self.counters.tickers_refused += 1
            return
        if body.event_type not in _KNOWN_EVENT_TYPES:
            self.counters.unknown_event_types += 1
        entry = self._entries.get(body.market_ticker)
        if entry is not None:
            self._apply_frame(entry, body, now_ns, combo=combo)
        elif body.event_type == "created":
            self._apply_created(body, now_ns, combo=combo)
        elif self._rules.may_be_wanted(body.market_ticker, combo=combo):
            self._look_up_unknown(body.market_ticker, now_ns)

    def look_up_unread(self, before_ns: int) -> None:
        """Look up every market that lives, as far as known, and was not read over REST since `before_ns`.

        For after a discovery that followed lost lifecycle frames: what it did not list has probably ended.
        """
        for ticker, entry in self._entries.items():
            if entry.published and entry.drop_ns == 0 and entry.read_ns < before_ns:
                self._changes.append(LookUpMarket(ticker))

    def next_deadline_ns(self) -> int | None:
        """When `handle_timer` wants to be called next; None while there is nothing to wait for."""
        return self._deadlines.next_deadline_ns()

    def handle_timer(self, now_ns: int) -> None:
        """Openings, closings, ends of grace and look-ups that are due at `now_ns`."""
        while (due := self._deadlines.pop_due(now_ns)) is not None:
            kind, key = due
            if kind == _MARKET:
                self._reconcile(self._entries[key], now_ns)
            elif kind == _EVENT:
                self._look_up_event(key, now_ns)
            else:
                self._unknown_count -= 1
                self._changes.append(LookUpMarket(key))

    # --- markets ----------------------------------------------------------------------------------

    def _apply_read(self, read: MarketRecord, now_ns: int) -> None:
        self._count_refused(read)
        if read.series_ticker:
            self.apply_event(read.event_ticker, read.series_ticker, now_ns)
        entry = self._entries.get(read.ticker)
        if entry is None:
            self._admit(read, now_ns)
            return
        if read.read_ns < entry.read_ns:
            self.counters.stale_reads += 1
            return
        entry.read_ns = read.read_ns
        if entry.event_ns is not None and read.read_ns < entry.event_ns + REST_LAG_NS:
            self.counters.early_reads += 1
            entry.record = record_completed(entry.record, read)
        else:
            entry.record = record_after_read(entry.record, read)
        self._index_event(entry, now_ns)
        self._reconcile(entry, now_ns)

    def _apply_created(self, body: LifecycleBody, now_ns: int, *, combo: bool) -> None:
        record = record_from_created(body, combo=combo)
        self._count_refused(record)
        if not record.event_ticker and self._rules.verdict(record) is None:
            self._look_up_unknown(record.ticker, now_ns)
            return
        entry = self._admit(record, now_ns)
        if entry is not None:
            entry.event_ns = now_ns
            entry.recheck_ns = now_ns + REST_LAG_NS
            self._schedule(entry, now_ns)

    def _apply_frame(self, entry: _Entry, body: LifecycleBody, now_ns: int, *, combo: bool) -> None:
        before = entry.record
        if body.event_type == "created":
            record = record_completed(before, record_from_created(body, combo=combo))
        else:
            record = record_after_event(before, body, now_ns)
            self._count_refused(record)
        revives = record.phase is not before.phase and record.phase not in FINISHED_PHASES
        if before.phase is MarketPhase.SETTLED and revives:
            self.counters.contradicting_events += 1
            record = before
        if body.event_type != "created":
            entry.event_ns = now_ns
        entry.record = record
        if self._leaves_open(body, before, record, now_ns):
            entry.recheck_ns = now_ns + REST_LAG_NS
        self._index_event(entry, now_ns)
        self._reconcile(entry, now_ns)

    def _leaves_open(
        self, body: LifecycleBody, before: MarketRecord, after: MarketRecord, now_ns: int
    ) -> bool:
        """Whether only REST can tell what a frame did not say."""
        if body.event_type == "price_level_structure_updated":
            return not after.price_bands
        if body.event_type in ("determined", "settled"):
            return not after.result
        if body.event_type == "close_date_updated":
            return phase_at(before, now_ns) in FINISHED_PHASES or not body.close_ts
        return body.event_type not in _KNOWN_EVENT_TYPES or (
            before.phase is MarketPhase.SETTLED and body.event_type == "activated"
        )

    def _admit(self, record: MarketRecord, now_ns: int) -> _Entry | None:
        """Take up a market that is not known yet, if it is or may be wanted; None if not."""
        series_ticker = record.series_ticker or self._series_of.get(record.event_ticker, "")
        if series_ticker != record.series_ticker:
            record = msgspec.structs.replace(record, series_ticker=series_ticker)
        verdict = self._rules.verdict(record)
        undecided = verdict is None
        if not fits_ticker(record.ticker):
            self.counters.tickers_refused += 1
        elif verdict is False:
            self.counters.markets_not_wanted += 1
        elif undecided and not record.event_ticker:
            self.counters.undecided_dropped += 1
        elif len(self._entries) >= self._markets_max or (
            undecided and self._undecided_count >= UNDECIDED_MARKETS_MAX
        ):
            self.counters.markets_refused_full += 1
        else:
            entry = _Entry(record, undecided=undecided)
            self._entries[record.ticker] = entry
            self._undecided_count += undecided
            self._index_event(entry, now_ns)
            self._reconcile(entry, now_ns)
            return entry
        return None

    def _decide(self, ticker: str, entry: _Entry) -> bool:
        """Settle an undecided market whose series is known now; False if it is not wanted and gone."""
        if not entry.undecided:
            return True
        self._undecided_count -= 1
        entry.undecided = False
        if self._rules.verdict(entry.record):
            return True
        self.counters.markets_not_wanted += 1
        self._remove(ticker, entry)
        return False

    def _remove(self, ticker: str, entry: _Entry) -> None:
        del self._entries[ticker]
        self._deadlines.discard((_MARKET, ticker))
        siblings = self._markets_of.get(entry.record.event_ticker)
        if siblings is not None:
            siblings.pop(ticker, None)
            if not siblings:
                del self._markets_of[entry.record.event_ticker]

    def _count_refused(self, record: MarketRecord) -> None:
        for name in record.refused:
            self.counters.fields_refused[name] += 1

    # --- events and look-ups ----------------------------------------------------------------------

    def _index_event(self, entry: _Entry, now_ns: int) -> None:
        """Note the market under its event, and make sure that the series gets known."""
        record = entry.record
        if not record.event_ticker:
            return
        self._markets_of.setdefault(record.event_ticker, {})[record.ticker] = None
        if record.series_ticker:
            return
        series_ticker = self._series_of.get(record.event_ticker, "")
        if series_ticker:
            entry.record = msgspec.structs.replace(record, series_ticker=series_ticker)
        elif record.event_ticker not in self._event_look_ups and (
            entry.undecided or not record.combo
        ):
            self._event_look_ups[record.event_ticker] = 0
            self._deadlines.set((_EVENT, record.event_ticker), now_ns + EVENT_WAIT_NS)

    def _look_up_event(self, event_ticker: str, now_ns: int) -> None:
        """Ask for an event once more; after the last time its undecided markets are dropped."""
        if self._event_look_ups[event_ticker] < EVENT_LOOK_UPS_MAX:
            self._event_look_ups[event_ticker] += 1
            self._deadlines.set((_EVENT, event_ticker), now_ns + EVENT_LOOK_UP_REPEAT_NS)
            self._changes.append(LookUpEvent(event_ticker))
            return
        del self._event_look_ups[event_ticker]
        for ticker in list(self._markets_of.get(event_ticker, ())):
            entry = self._entries[ticker]
            if entry.undecided:
                self._undecided_count -= 1
                self.counters.undecided_dropped += 1
                self._remove(ticker, entry)

    def _look_up_unknown(self, ticker: str, now_ns: int) -> None:
        """Look up a market that is not known, once REST has had the time to know it.

        It stays to be done if the market becomes known meanwhile: by a read that may be older than the frame.
        """
        if (_UNKNOWN, ticker) in self._deadlines:
            return
        full = len(self._entries) >= self._markets_max
        if full or self._unknown_count >= UNKNOWN_MARKETS_MAX:
            self.counters.look_ups_refused_full += 1
            return
        self._unknown_count += 1
        self._deadlines.set((_UNKNOWN, ticker), now_ns + REST_LAG_NS)

    # --- what follows from the state --------------------------------------------------------------

    def _reconcile(self, entry: _Entry, now_ns: int) -> None:
        """Bring what was said about a market in line with its record and the time."""
        record = entry.record
        phase = phase_at(record, now_ns)
        if phase is not entry.phase:
            entry.phase, entry.phase_since_ns = phase, now_ns
        live = phase not in FINISHED_PHASES
        if live:
            entry.drop_ns = 0
        elif entry.drop_ns == 0:
            entry.drop_ns = now_ns + FINISHED_GRACE_NS
        if entry.recheck_ns and entry.recheck_ns <= now_ns:
            entry.recheck_ns = 0
            self._changes.append(LookUpMarket(record.ticker))
        if not entry.undecided:
            entry.published = entry.published or live or self._rules.is_listed(record.ticker)
            self._publish(entry, live=live, now_ns=now_ns)
            if not live and self._may_forget(entry) and self._forget_ns(entry) <= now_ns:
                self.counters.markets_forgotten += 1
                self._remove(record.ticker, entry)
                return
        self._schedule(entry, now_ns)

    def _publish(self, entry: _Entry, *, live: bool, now_ns: int) -> None:
        """Say what changed: subscribe first and unsubscribe last, so that the rest meets a known market."""
        record = entry.record
        if live and not entry.subscribed and now_ns >= record.open_ns - SUBSCRIBE_LEAD_NS:
            entry.subscribed = True
            entry.told = entry.told_state = None
            self.subscribed_count += 1
            self._changes.append(Subscribe(record.ticker))
        if entry.published:
            if entry.told is None or not same_info(entry.told, record):
                self._changes.append(InfoChanged(record))
            entry.told = record
            assert entry.phase is not None
            state = (entry.phase, record.result, record.settlement_e4)
            if state != entry.told_state:
                entry.told_state = state
                self._changes.append(PhaseChanged(record.ticker, *state))
        if entry.subscribed and not live and entry.drop_ns <= now_ns:
            assert entry.phase is not None
            entry.subscribed = False
            self.subscribed_count -= 1
            self._changes.append(Unsubscribe(record.ticker, entry.phase))

    def _may_forget(self, entry: _Entry) -> bool:
        """Listed markets are few and stay, so that reading them again says nothing new."""
        return not entry.subscribed and not self._rules.is_listed(entry.record.ticker)

    def _forget_ns(self, entry: _Entry) -> int:
        """When a finished market is forgotten."""
        settled = entry.phase is MarketPhase.SETTLED
        return entry.phase_since_ns + (SETTLED_KEEP_NS if settled else FINISHED_KEEP_NS)

    def _schedule(self, entry: _Entry, now_ns: int) -> None:
        """Set the market's next deadline: the first of all that can change it, each after `now_ns`."""
        record = entry.record
        candidates = [entry.recheck_ns]
        if not entry.undecided:
            if entry.drop_ns == 0:
                candidates += (record.open_ns, record.close_ns)
                if not entry.subscribed:
                    candidates.append(record.open_ns - SUBSCRIBE_LEAD_NS)
            elif entry.subscribed:
                candidates.append(entry.drop_ns)
            elif self._may_forget(entry):
                candidates.append(self._forget_ns(entry))
        deadline_ns = min((time_ns for time_ns in candidates if time_ns > now_ns), default=0)
        if deadline_ns:
            self._deadlines.set((_MARKET, record.ticker), deadline_ns)
        else:
            self._deadlines.discard((_MARKET, record.ticker))
