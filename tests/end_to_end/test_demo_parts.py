"""The parts of `tickerplant demo`: the comparison, the verdict, the choice of groups, the child processes."""

import asyncio
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tickerplant.config import PublishConfig
from tickerplant.config_sources import load_config
from tickerplant.core.messages import Bbo, BookState, StaleReason
from tickerplant.demo.comparison import Comparison, compare
from tickerplant.demo.network import INTERFACE, find_free_groups, reserved_port
from tickerplant.demo.parts import ExchangeBook, configuration
from tickerplant.demo.processes import ChildProcess, DemoError, child_environment, until
from tickerplant.demo.stored import Stored
from tickerplant.demo.summary import STREAMS, Summary, faults_of, summary_lines
from tickerplant.errors import GroupOccupiedError
from tickerplant.runtime.network import Line


class View(NamedTuple):
    """A mirrored book."""

    ticker: str
    bids: dict[int, int]
    asks: dict[int, int]
    live: bool = True
    stale_reason: StaleReason = StaleReason.NETWORK_GAP


OWN = ExchangeBook(bids=[(4_000, 500), (4_100, 300)], asks=[(4_300, 100), (4_400, 900)])
BIDS, ASKS = {4_000: 500, 4_100: 300}, {4_300: 100, 4_400: 900}
EMPTY = ExchangeBook(bids=[], asks=[])


def quote(ticker: str, state: BookState = BookState.LIVE, *, ask_size_e2: int = 100) -> Bbo:
    """The quote of `OWN`."""
    return Bbo(ticker, 1, 2, 3, 4_100, 300, 4_300, ask_size_e2, state)


def test_equal_books_and_quotes() -> None:
    """Of two markets, one of them empty."""
    nothing = Bbo("E", 1, 2, 3, 0, 0, 0, 0, BookState.LIVE)
    result = compare(
        {"A": OWN, "E": EMPTY},
        [View("A", BIDS, ASKS), View("E", {}, {})],
        {"A": quote("A"), "E": nothing}.get,
    )
    assert result == Comparison(2, [], [], [], 2, [])
    assert result.equal_books == 2


def test_every_kind_of_difference_is_found() -> None:
    """A missing book, a stale one, a wrong size, a level too many, wrong and stale quotes."""
    views = [
        View("STALE", BIDS, ASKS, live=False),
        View("SIZE", BIDS | {4_000: 400}, ASKS),
        View("LEVEL", BIDS, ASKS | {4_500: 100}),
        View("FOREIGN", BIDS, ASKS),
        View("QUOTE", BIDS, ASKS),
        View("OLD", BIDS, ASKS),
    ]
    tickers = ["MISSING", "STALE", "SIZE", "LEVEL", "QUOTE", "OLD"]
    quotes = {ticker: quote(ticker) for ticker in [*tickers, "FOREIGN"]}
    quotes |= {"QUOTE": quote("QUOTE", ask_size_e2=101), "OLD": quote("OLD", BookState.STALE)}
    result = compare(dict.fromkeys(tickers, OWN), views, quotes.get)
    assert result.books == result.quotes == 7
    assert result.missing == ["MISSING"]
    assert result.stale == ["STALE (network_gap)"]
    assert result.unequal == ["FOREIGN", "LEVEL", "SIZE"]
    assert result.unequal_quotes == ["FOREIGN", "OLD", "QUOTE"]
    assert result.equal_books == 2


def test_closed_markets_do_not_count_unless_they_have_levels() -> None:
    """After a market's end neither side has anything."""
    closed = {"C": quote("C", BookState.CLOSED)}.get
    gone = View("C", {}, {}, live=False, stale_reason=StaleReason.SUBSCRIPTION_ENDED)
    assert compare({"C": EMPTY, "NEVER-HEARD": EMPTY}, [gone], closed).books == 0
    assert compare({}, [gone], closed).books == 0
    assert compare({"C": OWN}, [gone], closed).stale == ["C (subscription_ended)"]


STORED = Stored({"trades": 1_190, "bbo": 1_200}, 1_200, 3, [], "ticker  trades\nA            7\n")
HOLDS = Summary(
    frames_sent=1_000,
    frames_received=1_000,
    connections_lost=0,
    published=dict.fromkeys(STREAMS, 1_200),
    received=dict.fromkeys(STREAMS, 1_200),
    gap_count=0,
    gaps=(),
    comparison=Comparison(3, [], [], [], 3, []),
    is_drained=True,
    ended_streams=5,
    stored=STORED,
)


def test_a_summary_without_fault() -> None:
    """Says so in numbers."""
    assert faults_of(HOLDS) == []
    lines = summary_lines(HOLDS)
    assert lines[0] == "frames: exchange sent 1,000, plant received 1,000"
    assert "bbo: plant published 1,200, subscriber received 1,200" in lines
    end = lines.index("gaps: 0")
    assert lines[end + 1] == "stale books: 0"
    assert lines[end + 3 : end + 6] == [
        "books checked: 3, equal: 3",
        "rows stored: 1,190 trades, 1,200 bbo",
        "books rebuilt from rows: 3, equal: 3",
    ]
    assert lines[-3].startswith('tickerplant sql "SELECT ')
    assert lines[-2:] == ["ticker  trades", "A            7"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"frames_received": 999}, "the plant received 999 of 1000 frames"),
        (
            {"received": dict.fromkeys(STREAMS, 1_200) | {"bbo": 1_199}},
            "the subscriber received 1199 of 1200 messages on bbo",
        ),
        ({"gap_count": 7, "gaps": list("abcde")}, "7 gaps: a, b, c, d, e and 2 more"),
        ({"comparison": Comparison(3, ["A"], [], [], 3, [])}, "1 missing book: A"),
        ({"comparison": Comparison(3, [], ["A (x)"], [], 3, [])}, "1 stale book: A (x)"),
        ({"comparison": Comparison(3, [], [], ["A", "B"], 3, [])}, "2 unequal books: A, B"),
        ({"comparison": Comparison(3, [], [], [], 3, ["A"])}, "1 unequal quote: A"),
        ({"comparison": Comparison(0, [], [], [], 0, [])}, "no book was received"),
        ({"stored": STORED._replace(unequal=["A (stale)"])}, "1 unequal stored book: A (stale)"),
        (
            {"stored": STORED._replace(trade_messages=1_199)},
            "the store has 1199 of 1200 messages on trade",
        ),
        ({"is_drained": False}, "the plant did not come to rest after the flow was stopped"),
        ({"ended_streams": 4}, "4 of 5 streams ended in order"),
    ],
)
def test_each_fault_is_told(change: dict[str, object], fault: str) -> None:
    """Alone, in words."""
    assert faults_of(HOLDS._replace(**change)) == [fault]  # type: ignore[arg-type]  # of several types


def test_frames_lost_with_a_connection_are_no_fault() -> None:
    """The plant read the books anew after it."""
    assert faults_of(HOLDS._replace(frames_received=900, connections_lost=1)) == []


@pytest.fixture
def candidates() -> list[Line]:
    """Three blocks of groups of this process alone."""
    second = os.getpid() % 40 * 6
    return [
        Line(PublishConfig(group_a=f"239.197.{second + index}.1").groups("a"), INTERFACE)
        for index in range(3)
    ]


@pytest.fixture
def send_on() -> Iterator[Callable[[list[Line], int], None]]:
    """Sends something foreign on the last group of each line, until the end of the test."""
    ended = threading.Event()
    threads: list[threading.Thread] = []

    def start(lines: list[Line], port: int) -> None:
        def send() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                own = socket.inet_aton(INTERFACE)
                sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, own)
                sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
                while not ended.wait(0.02):
                    for line in lines:
                        sender.sendto(b"something else", (line.groups[-1], port))

        threads.append(threading.Thread(target=send))
        threads[-1].start()

    yield start
    ended.set()
    for thread in threads:
        thread.join()


def test_groups_in_use_are_left_alone(
    candidates: list[Line], send_on: Callable[[list[Line], int], None]
) -> None:
    """The first block on which nothing is heard is taken."""
    with reserved_port() as port:
        assert find_free_groups(port, candidates, 0.2) == candidates[0].groups[0]
        send_on(candidates[:2], port)
        assert find_free_groups(port, candidates, 0.2) == candidates[2].groups[0]


def test_no_free_group_is_an_error(
    candidates: list[Line], send_on: Callable[[list[Line], int], None]
) -> None:
    """That names what was tried."""
    with reserved_port() as port:
        send_on(candidates, port)
        with pytest.raises(GroupOccupiedError, match=re.escape(candidates[1].groups[0])):
            find_free_groups(port, candidates, 0.2)


def test_ports_of_two_demos_differ() -> None:
    """While both run."""
    with reserved_port() as one, reserved_port() as other:
        assert one != other


def test_the_generated_configuration_is_what_the_plant_reads(tmp_path: Path) -> None:
    """All markets of the announced exchange, on the given group and port, nothing of the user's own."""
    file = tmp_path / "plant.toml"
    state = tmp_path / 'a "quoted" folder of Zoë'
    announced = {
        "websocket": "ws://127.0.0.1:1234/trade-api/ws/v2",
        "rest": "http://127.0.0.1:1235/trade-api/v2",
        "key id": "0123-4567",
        "key path": str(state / "key.pem"),
    }
    file.write_text(configuration(announced, "239.192.100.1", 40_000, state), encoding="utf-8")
    foreign = {"TICKERPLANT__PUBLISH__PORT": "1", "TICKERPLANT_CONFIG": "/x", "PATH": "/bin"}
    environment = child_environment(foreign)
    assert environment == {"PATH": "/bin"}
    loaded = load_config(str(file), (), environment)
    assert loaded.config.markets.all_open
    assert loaded.config.markets.include_combos
    assert loaded.config.publish == PublishConfig(group_a="239.192.100.1", port=40_000)
    assert loaded.config.exchange.rest_url == announced["rest"]
    assert loaded.config.exchange.key_path == announced["key path"]
    assert loaded.config.metrics.port == 0
    assert loaded.state_directory == state


async def test_a_process_that_does_not_start_says_why(tmp_path: Path) -> None:
    """The command's own error line, with the process's name before it."""
    missing = tmp_path / "missing.toml"
    child = await ChildProcess.start("the plant", ["run", "--config", str(missing)], lambda _: None)
    never = asyncio.get_running_loop().create_future()
    with pytest.raises(DemoError, match=r"^the plant ended with exit code 2: --config .*missing"):
        await until(never, [child], 60, "starting")
    assert await child.stop() == 2


async def test_what_takes_too_long_is_named(tmp_path: Path) -> None:
    """With the last line of the process."""
    lines: list[str] = []
    child = await ChildProcess.start(
        "the exchange",
        ["sim", "--port", "0", "--rest-port", "0", "--directory", str(tmp_path), "--markets", "1"],
        lines.append,
    )
    try:
        wanted = asyncio.get_running_loop().create_future()
        with pytest.raises(DemoError, match=r"^dreaming took more than 0\.1 s"):
            await until(wanted, [child], 0.1, "dreaming")
    finally:
        assert await child.stop() in (0, -signal.SIGTERM)
