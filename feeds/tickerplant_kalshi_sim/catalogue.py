"""The listing with which a simulated exchange opens: series, events of several days, combos, settled leftovers.

All tickers and strikes are invented. A market's ticker is `<series>-<date>-<strike>`, so that series and event follow
from it.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from random import Random

from tickerplant_kalshi_sim.book import NO, YES
from tickerplant_kalshi_sim.markets import (
    COMBO_STRUCTURE,
    TICK_STRUCTURES,
    Catalogue,
    Event,
    Market,
    Series,
    seeded_uuid,
)

SERIES = (
    Series("KXSIMTEMP", "Highest temperature in Simville", "Climate and Weather"),
    Series("KXSIMBTC", "Simcoin price", "Crypto", exchange_index=2),
    Series("KXSIMGAME", "Simville against Othertown", "Sports", exchange_index=3),
    Series("KXSIMRATE", "Policy rate of the Bank of Simville", "Economics"),
    Series("KXSIMVOTE", "Votes in Simville", "Politics"),
)
COMBO_SERIES = Series("KXMVESIM", "Combos of Simville", "Sports", exchange_index=1)
WINDOW_SERIES = Series("KXSIMWIN", "Simcoin up or down in this window", "Crypto", exchange_index=2)
MARKETS_PER_EVENT = 8
COMBO_ONE_IN = 10
SETTLED_MARKETS = 4
SINGLE_STRUCTURES = tuple(name for name in TICK_STRUCTURES if name != COMBO_STRUCTURE)
DAY_NS = 86_400 * 1_000_000_000
HOUR_NS = 3_600 * 1_000_000_000


def build_catalogue(random: Random, market_count: int, start_ns: int) -> Catalogue:
    """`market_count` open markets (one in ten a combo) and a few settled ones, listed at `start_ns`."""
    catalogue = Catalogue()
    combos = market_count // COMBO_ONE_IN
    _add_settled(catalogue, random, start_ns)
    singles = market_count - combos
    for event_number in range(-(-singles // MARKETS_PER_EVENT)):
        day, family = divmod(event_number, len(SERIES))
        structure = SINGLE_STRUCTURES[event_number % len(SINGLE_STRUCTURES)]
        event = _event(catalogue, SERIES[family], start_ns, day)
        count = min(MARKETS_PER_EVENT, singles - event_number * MARKETS_PER_EVENT)
        _add_markets(catalogue, random, event, [structure], count, start_ns)
    for event_number in range(-(-combos // MARKETS_PER_EVENT)):
        event = _event(catalogue, COMBO_SERIES, start_ns, event_number)
        event.is_multivariate = True
        count = min(MARKETS_PER_EVENT, combos - event_number * MARKETS_PER_EVENT)
        _add_markets(catalogue, random, event, [COMBO_STRUCTURE], count, start_ns)
    return catalogue


def add_window_event(
    catalogue: Catalogue, random: Random, open_ns: int, close_ns: int, now_ns: int, count: int
) -> Event:
    """One short window of the rolling series, not open yet, with `count` markets."""
    moment = datetime.fromtimestamp(close_ns // 1_000_000_000, UTC)
    name = f"{WINDOW_SERIES.ticker}-{moment.strftime('%y%b%d%H%M%S').upper()}"
    event = catalogue.add_event(
        Event(
            name, WINDOW_SERIES, WINDOW_SERIES.title, f"until {moment:%H:%M:%S}", close_ns, now_ns
        )
    )
    for index in range(count):
        structure = random.choice(SINGLE_STRUCTURES)
        market = _market(catalogue, random, event, structure, index, now_ns)
        market.open_ns, market.close_ns, market.status = open_ns, close_ns, "initialized"
        catalogue.add_market(market)
    return event


def add_daily_event(catalogue: Catalogue, random: Random, ended: Event, now_ns: int) -> Event:
    """The successor of a daily event that has ended: same series and structures, the next free day, open at once."""
    day = 0
    while _event_ticker(ended.series, now_ns, day) in catalogue.events:
        day += 1
    event = _event(catalogue, ended.series, now_ns, day)
    event.is_multivariate = ended.is_multivariate
    event.updated_ns = now_ns
    structures = [market.structure for market in catalogue.markets_of(ended)]
    _add_markets(catalogue, random, event, structures, len(structures), now_ns)
    for market in catalogue.markets_of(event):
        market.open_ns = now_ns
    return event


def _event_ticker(series: Series, start_ns: int, day: int) -> str:
    date = datetime.fromtimestamp(start_ns // 1_000_000_000, UTC) + timedelta(days=day + 1)
    return f"{series.ticker}-{date.strftime('%y%b%d').upper()}"


def _event(catalogue: Catalogue, series: Series, start_ns: int, day: int) -> Event:
    start = datetime.fromtimestamp(start_ns // 1_000_000_000, UTC)
    date = start + timedelta(days=day + 1)
    name = _event_ticker(series, start_ns, day)
    title = f"{series.title} on {date:%b %d, %Y}"
    strike_ns = start_ns + (day + 1) * DAY_NS
    return catalogue.add_event(
        Event(name, series, title, f"On {date:%b %d, %Y}", strike_ns, start_ns - DAY_NS)
    )


def _add_markets(
    catalogue: Catalogue,
    random: Random,
    event: Event,
    structures: Sequence[str],
    count: int,
    start_ns: int,
) -> None:
    for index in range(count):
        structure = structures[index % len(structures)]
        market = _market(catalogue, random, event, structure, index, start_ns)
        market.open_ns, market.close_ns = start_ns - HOUR_NS, event.strike_ns
        catalogue.add_market(market)


def _market(
    catalogue: Catalogue, random: Random, event: Event, structure: str, index: int, now_ns: int
) -> Market:
    number = catalogue.next_number()
    strike = 40 + 2 * index
    prefix = "A" if event.is_multivariate else "T"
    market = Market(
        number=number,
        ticker=f"{event.ticker}-{prefix}{strike}",
        event=event,
        market_id=seeded_uuid(random),
        structure=structure,
        yes_sub_title=f"{strike} or above",
        no_sub_title=f"{strike - 1} or below",
        created_ns=min(now_ns, event.updated_ns),
        open_ns=now_ns,
        close_ns=event.strike_ns,
        floor_strike=strike,
    )
    market.fair = int(len(market.grid) * (0.1 + 0.8 * random.random()))
    market.quoted_sides = _quoted_sides(number)
    return market


def _quoted_sides(number: int) -> tuple[int, ...]:
    """Some books stay empty and some one-sided, as on the exchange."""
    if number % 37 == 25:
        return ()
    if number % 37 == 29:
        return (YES,)
    if number % 37 == 33:
        return (NO,)
    return (YES, NO)


def _add_settled(catalogue: Catalogue, random: Random, start_ns: int) -> None:
    event = _event(catalogue, SERIES[0], start_ns - 4 * DAY_NS, 0)
    event.updated_ns = event.strike_ns - DAY_NS
    _add_markets(
        catalogue, random, event, ["linear_cent"], SETTLED_MARKETS, event.strike_ns - DAY_NS
    )
    for index, market in enumerate(catalogue.markets_of(event)):
        market.status = "finalized"
        market.result = "yes" if index % 2 else "no"
        market.settlement_value_e4 = 10_000 if index % 2 else 0
        market.settled_ns = event.strike_ns + HOUR_NS
