"""The state rebuilt from datagrams: equal to another rebuild of them, cuts that stay as they are, holes."""

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).resolve().parent.parent / "models"))

from plant_log import PlantLog, rebuild, visible

from tickerplant.core.messages import (
    Bbo,
    BookClear,
    BookLevels,
    BookReady,
    BookStale,
    BookState,
    BookVerify,
    LevelUpdate,
    MarketInfo,
    Stream,
)
from tickerplant.core.packed_books import decode_books, fits_a_frame, messages_of, unpack
from tickerplant.core.recovery_cut import Market, book_chunks, pack_market
from tickerplant.core.recovery_state import PlantState
from tickerplant.core.snapshot_packets import SNAPSHOT_STREAMS, SnapshotPackets
from tickerplant.core.wire import (
    FLAG_SNAPSHOT,
    decode_body,
    decode_header,
    encode_datagram,
)
from tickerplant.limits import (
    BOOK_LEVELS_PER_PART,
    DATAGRAM_MAX_BYTES,
    FINISHED_MARKETS_KEPT,
    RECOVERY_FRAME_MAX_BYTES,
    SNAPSHOT_SLICE_BYTES,
    SNAPSHOT_SLICE_LEVELS,
    SNAPSHOT_SLICE_MARKETS,
)

SESSION = 1_790_000_000_000_000_000


class Feed:
    """Datagrams of one session, one message each, into a state."""

    def __init__(self) -> None:
        self.state = PlantState()
        self.seqs = dict.fromkeys(Stream, 1)
        self.g = 0

    def tell(self, kind, *values, ticker="KXA", lose=False):
        """The message, applied unless it is lost on its way."""
        self.g += 1
        message = kind(ticker, self.g, 0, SESSION + self.g, *values)
        seq = self.seqs[kind.stream]
        self.seqs[kind.stream] = seq + 1
        datagram = encode_datagram(0, kind.stream, SESSION, seq, SESSION + self.g, [message])
        if not lose:
            self.state.receive(decode_header(datagram), datagram)
        return message

    def image(self, ticker="KXA", bids=((10, 5),), asks=((20, 7),)):
        """A whole image of a LIVE book."""
        market = Market(ticker, 0)
        market.book.load(bids, asks)
        self.tell(BookClear, ticker=ticker)
        self.tell(BookLevels, 0, 1, bids, asks, ticker=ticker)
        self.tell(BookReady, market.book.checksum(), ticker=ticker)

    def market(self, ticker="KXA") -> Market:
        return self.state.markets[ticker]


def told(cut, streams=SNAPSHOT_STREAMS, between=lambda: None):
    """What a cut tells, as `rebuild` has it, in both forms; `between` is called between two slices."""
    packets, whole = SnapshotPackets(cut, streams), SnapshotPackets(cut, streams, is_packed=True)
    datagrams, others = packets.start(1), whole.start(1)
    books = []
    for images in cut.slices():
        between()
        assert packets.books(images) == []
        datagrams += packets.add(images, 1)
        others += whole.add(images, 1)
        for payload in whole.books(images):
            assert len(payload) < RECOVERY_FRAME_MAX_BYTES
            packed = decode_books(payload)
            assert packed.session == cut.session
            books += packed.books
    others += [
        encode_datagram(0, Stream.DELTA, cut.session, 1, 1, [message], flags=FLAG_SNAPSHOT)
        for book in books
        for message in messages_of(unpack(book))
    ]
    seen = told_by(datagrams + packets.finish(1), cut, packets.counts)
    assert told_by(others + whole.finish(1), cut) == seen
    return seen


def told_by(datagrams, cut, counted=None):
    """What these datagrams of a snapshot tell."""
    for datagram in datagrams:
        header = decode_header(datagram)
        assert header.flags == FLAG_SNAPSHOT
        assert header.seq in (cut.next_seqs[header.stream - 1], 1)
        assert len(datagram) <= DATAGRAM_MAX_BYTES
    counts = dict.fromkeys(counted or SNAPSHOT_STREAMS, 0)
    for datagram in datagrams:
        header = decode_header(datagram)
        counts[header.stream] += len(decode_body(datagram, header))
    assert counted in (None, counts)
    plain = [datagram[:16] + (1).to_bytes(8, "little") + datagram[24:] for datagram in datagrams]
    return visible(rebuild(plain, cut.session, (10**12,) * 5))


def state_seen(state):
    """What a state knows, in the same form, without the code of snapshots."""
    markets = {}
    for ticker, market in state.markets.items():
        values = (market.bbo, market.ticker_update, market.info, market.market_state)
        markets[ticker] = {
            "state": market.phase,
            "sides": (market.book.bids, market.book.asks),
            "values": {type(value).__name__: value for value in values if value is not None},
        }
    return visible(markets)


# --- against another rebuild ------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.integers(1, 60), cut_at=st.integers(0, 60))
def test_state_and_cuts_equal_an_independent_rebuild(tmp_path_factory, seed, steps, cut_at):
    """After every flush; and a cut stays what it was while the state goes on between its slices."""
    folder = tmp_path_factory.mktemp("state") / "log"
    with PlantLog(folder, seed=seed, markets=5, levels=6) as plant:
        state = PlantState()
        done = 0

        def receive():
            nonlocal done
            for datagram in plant.datagrams[done:]:
                state.receive(decode_header(datagram), datagram)
            done = len(plant.datagrams)

        receive()
        for step in range(steps):
            plant.step()
            receive()
            assert tuple(state.next_seqs) == plant.next_seqs
            if step == cut_at:
                cut, kept = state.cut(), plant.next_seqs
                shared = state.cut()
        wanted = visible(rebuild(plant.datagrams, plant.session, plant.next_seqs))
        assert state_seen(state) == wanted
        assert told(state.cut()) == wanted
        assert not state.mismatches
        assert not state.holes
        if cut_at < steps:
            before = visible(rebuild(plant.datagrams, plant.session, kept))

            def go_on():
                plant.step(3)
                receive()

            assert told(cut, between=go_on) == before
            assert told(shared) == before
            assert cut.next_seqs == kept


def test_two_cuts_at_different_places_are_each_their_own():
    feed = Feed()
    feed.image()
    first = feed.state.cut()
    feed.tell(LevelUpdate, 0, 10, 1, 6)
    second = feed.state.cut()
    feed.tell(LevelUpdate, 0, 10, 1, 7)
    feed.tell(BookStale, 1)
    assert told(first)["KXA"]["sides"][0] == {10: 5}
    assert told(second)["KXA"]["sides"][0] == {10: 6}
    assert told(second)["KXA"]["state"] == BookState.LIVE
    assert told(feed.state.cut())["KXA"] == {
        "state": BookState.STALE,
        "sides": ({10: 7}, {20: 7}),
        "values": {},
    }


def test_a_cut_of_a_session_outlives_it():
    feed = Feed()
    feed.image()
    cut = feed.state.cut()
    feed.state.begin_session(SESSION + 1, 1, 0)
    assert told(cut)["KXA"]["state"] == BookState.LIVE
    assert not feed.state.markets


def test_a_cut_of_some_markets():
    feed = Feed()
    for ticker in ("KXA", "KXB", "KXC"):
        feed.image(ticker)
    cut = feed.state.cut(("KXC", "KXA", "KXA", "KXNONE"))
    feed.tell(LevelUpdate, 0, 10, 1, 6, ticker="KXA")
    feed.tell(LevelUpdate, 0, 10, 1, 6, ticker="KXB")
    assert {ticker: market["sides"][0] for ticker, market in told(cut).items()} == {
        "KXA": {10: 5},
        "KXC": {10: 5},
    }


def test_what_did_not_change_is_encoded_once():
    feed = Feed()
    for number in range(300):
        feed.image(f"KX{number}")
    assert told(feed.state.cut()) == told(feed.state.cut())
    cut = feed.state.cut()
    list(cut.slices())
    assert cut.levels_encoded == 0
    feed.tell(LevelUpdate, 0, 10, 1, 6, ticker="KX7")
    cut = feed.state.cut()
    list(cut.slices())
    assert cut.levels_encoded == 2
    feed.tell(BookVerify, feed.market("KX7").book.checksum(), ticker="KX7")
    cut = feed.state.cut()
    list(cut.slices())
    assert cut.levels_encoded == 0


# --- bounded work -----------------------------------------------------------------------------------


def test_slices_are_small_whatever_the_books_are_like():
    """Counts, not times: no piece of work encodes more than its bound and one book."""
    feed = Feed()
    sizes = [2] * 500 + [1_000] * 30 + [4_000] * 3
    for number, size in enumerate(sizes):
        bids = tuple((price, 10**9 + price) for price in range(1, size // 2 + 1))
        asks = tuple((price, 10**9 + price) for price in range(5_000, 5_000 + size // 2))
        market = Market(f"KX{number}", 0)
        market.book.load(bids, asks)
        market.phase, market.last = BookState.LIVE, feed.tell(BookClear, ticker="KXOTHER")
        feed.state.markets[market.ticker] = market
    for repeated in range(2):
        cut = feed.state.cut()
        seen, encoded = 0, 0
        for images in cut.slices():
            size = sum(len(image.book) for image in images)
            last = len(images[-1].book)
            assert len(images) <= SNAPSHOT_SLICE_MARKETS
            assert size - last < SNAPSHOT_SLICE_BYTES
            assert cut.levels_encoded - encoded < SNAPSHOT_SLICE_LEVELS + max(sizes)
            seen, encoded = seen + len(images), cut.levels_encoded
        assert seen == len(sizes) + 1
        assert encoded == (0 if repeated else sum(sizes))


def test_a_book_with_thousands_of_levels():
    """In parts of at most 64 levels, each message in a datagram that it fits in; too large to go whole."""
    feed = Feed()
    bids = tuple((price, 10**14 + price) for price in range(1, 5_000))
    asks = tuple((price, 10**14 + price) for price in range(5_001, 9_999))
    market = Market("K" * 200, 0)
    market.book.load(bids, asks)
    market.phase = BookState.LIVE
    market.last = feed.tell(BookClear, ticker=market.ticker)
    feed.state.markets[market.ticker] = market
    seen = told(feed.state.cut())[market.ticker]
    assert seen["sides"] == (dict(bids), dict(asks))
    assert not fits_a_frame(pack_market(market))
    parts = sum(chunk.message_count for chunk in book_chunks(pack_market(market))) - 1
    assert parts == -(-market.book.level_count // BOOK_LEVELS_PER_PART)


def test_closed_markets_are_kept_up_to_a_bound(monkeypatch):
    monkeypatch.setattr("tickerplant.core.recovery_state.FINISHED_MARKETS_KEPT", 3)
    feed = Feed()
    for number in range(10):
        feed.tell(Bbo, 1, 1, 2, 2, BookState.LIVE, ticker=f"KX{number}")
    for number in range(10):
        feed.tell(Bbo, 0, 0, 0, 0, BookState.CLOSED, ticker=f"KX{number}")
    assert set(feed.state.markets) == {"KX7", "KX8", "KX9"}
    feed.tell(Bbo, 1, 1, 2, 2, BookState.LIVE, ticker="KX7")
    for number in range(20, 23):
        feed.tell(Bbo, 0, 0, 0, 0, BookState.CLOSED, ticker=f"KX{number}")
    assert set(feed.state.markets) == {"KX7", "KX20", "KX21", "KX22"}
    assert FINISHED_MARKETS_KEPT > 3


def test_markets_beyond_the_bound_are_refused(monkeypatch):
    monkeypatch.setattr("tickerplant.core.recovery_state.MARKETS_MAX", 2)
    feed = Feed()
    for ticker in ("KXA", "KXB", "KXC"):
        feed.image(ticker)
    assert set(feed.state.markets) == {"KXA", "KXB"}
    assert feed.state.refused_markets == 3
    feed.tell(Bbo, 0, 0, 0, 0, BookState.CLOSED, ticker="KXA")
    feed.image("KXC")
    assert set(feed.state.markets) == {"KXB", "KXC"}


# --- holes ------------------------------------------------------------------------------------------


def test_a_hole_in_the_deltas_makes_books_unknown_until_a_checksum_or_an_image():
    feed = Feed()
    for ticker in ("KXA", "KXB", "KXC"):
        feed.image(ticker)
    checksum = feed.market("KXA").book.checksum()
    feed.tell(LevelUpdate, 0, 10, 1, 6, ticker="KXB", lose=True)
    feed.tell(LevelUpdate, 1, 20, 1, 8, ticker="KXC")
    assert feed.state.holes == 1
    assert told(feed.state.cut()) == {}
    feed.tell(BookVerify, checksum, ticker="KXA")
    feed.tell(BookVerify, 12345, ticker="KXB")
    assert set(told(feed.state.cut())) == {"KXA"}
    feed.image("KXB")
    assert set(told(feed.state.cut())) == {"KXA", "KXB"}


def test_a_heartbeat_reveals_a_hole(tmp_path):
    """The last datagrams of a stream are missing, and nothing but the next heartbeat tells."""
    with PlantLog(tmp_path / "log", markets=3) as plant:
        plant.delta()
        plant.flush()
        plant.beat(10**9)
        state = PlantState()
        lost = [
            index
            for index, datagram in enumerate(plant.datagrams)
            if decode_header(datagram).stream == Stream.DELTA and not decode_header(datagram).kind
        ][-1]
        for index, datagram in enumerate(plant.datagrams):
            if index != lost:
                state.receive(decode_header(datagram), datagram)
        assert state.holes == 1
        assert tuple(state.next_seqs) == plant.next_seqs
        assert {market.phase for market in state.markets.values()} == {BookState.SYNCING}


@pytest.mark.parametrize(
    ("stream", "kept"),
    [
        (Stream.BBO, {"MarketInfo"}),
        (Stream.STATUS, {"Bbo"}),
        (Stream.TRADE, {"Bbo", "MarketInfo"}),
    ],
)
def test_a_hole_in_another_stream_forgets_its_values_alone(stream, kept):
    feed = Feed()
    feed.image()
    feed.tell(Bbo, 10, 5, 20, 7, BookState.LIVE)
    feed.tell(MarketInfo, "E", "S", 1, 2, "x")
    number = feed.state.next_seqs[stream - 1]
    message = Bbo("KXB", 1, 0, 0, 0, 0, 0, 0, 1)
    datagram = encode_datagram(0, stream, SESSION, number + 1, SESSION, [message])
    feed.state.receive(decode_header(datagram), datagram)
    seen = told(feed.state.cut())["KXA"]
    assert seen["state"] == BookState.LIVE
    assert set(seen["values"]) == kept


def test_a_cut_that_is_open_at_a_hole_has_failed():
    feed = Feed()
    feed.image()
    cut = feed.state.cut()
    feed.tell(LevelUpdate, 0, 10, 1, 6, lose=True)
    feed.tell(LevelUpdate, 0, 10, 1, 7)
    assert cut.is_failed
    assert not feed.state.cut().is_failed


def test_a_level_that_contradicts_makes_the_book_unknown():
    feed = Feed()
    feed.image()
    feed.tell(LevelUpdate, 0, 10, 1, 999)
    assert feed.state.mismatches == 1
    assert told(feed.state.cut()) == {}


def test_an_image_with_a_part_missing_is_not_live():
    feed = Feed()
    feed.tell(BookClear)
    feed.tell(BookLevels, 0, 3, ((1, 1),), ())
    feed.tell(BookLevels, 2, 3, (), ((9, 9),))
    market = Market("KXA", 0)
    market.book.load(((1, 1),), ((9, 9),))
    feed.tell(BookReady, market.book.checksum())
    assert feed.market().phase == BookState.SYNCING


def test_what_is_known_already_and_former_sessions_are_skipped():
    feed = Feed()
    feed.image()
    old = encode_datagram(0, Stream.DELTA, SESSION, 1, 1, [BookClear("KXA", 1, 0, 0)])
    older = encode_datagram(0, Stream.DELTA, SESSION - 1, 99, 1, [BookClear("KXA", 1, 0, 0)])
    for datagram in (old, older):
        feed.state.receive(decode_header(datagram), datagram)
    assert told(feed.state.cut())["KXA"]["state"] == BookState.LIVE
    assert feed.state.holes == 0


def test_a_body_that_does_not_decode_is_a_hole():
    feed = Feed()
    feed.image()
    good = encode_datagram(0, Stream.DELTA, SESSION, 4, 1, [BookClear("KXA", 1, 0, 0)])
    datagram = good[:40] + b"\xc1" + good[41:]
    feed.state.receive(decode_header(datagram), datagram)
    assert (feed.state.unreadable_datagrams, feed.state.holes) == (1, 1)
    assert feed.state.next_seqs[Stream.DELTA - 1] == 5
