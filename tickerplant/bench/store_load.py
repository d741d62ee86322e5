"""The load of the store's benchmark: a tick log as a plant would write it, with 2,000 markets of 20 levels a side."""

import random
from typing import Any

from tickerplant.bench.load import draw_size_e2
from tickerplant.core.book import Book
from tickerplant.core.logformat import STREAM_COUNT
from tickerplant.core.messages import Bbo, BookClear, BookReady, LevelUpdate, Stream
from tickerplant.core.packets import Datagram
from tickerplant.core.wire import encode_datagram
from tickerplant.runtime.ticklog import TickLog

MARKETS = 2_000
_LEVELS = 20
_BEST_E4 = (2_000, 6_000)
"""Lowest bid and best ask."""
_MILLISECOND_NS = 1_000_000


class Feed:
    """What a plant would publish: order-book changes, and a best bid and offer with every fourth."""

    def __init__(self, ticklog: TickLog, session: int) -> None:
        self.session = session
        self.messages = 0
        self._ticklog = ticklog
        self._random = random.Random(1)  # noqa: S311  # the same load each time
        self._seqs = [1] * (STREAM_COUNT + 1)
        self._tickers = [f"KXBTC-26NOV2117-T{90_000 + 25 * n}" for n in range(MARKETS)]
        self._sizes: dict[tuple[str, int, int], int] = {}
        self._g = 0
        self._begin(session)

    def send(self, count: int, now_ns: int) -> None:
        """So many messages in as few datagrams as possible, into the log."""
        quotes = max(1, count // 5)
        self._ticklog.append(
            [
                self._datagram(
                    Stream.DELTA, [self._update(now_ns) for _ in range(count - quotes)], now_ns
                ),
                self._datagram(Stream.BBO, [self._quote(now_ns) for _ in range(quotes)], now_ns),
            ]
        )

    def _begin(self, now_ns: int) -> None:
        """Every book is empty and live."""
        checksum = Book().checksum()
        for ticker in self._tickers:
            place = (ticker, self._g, 0, now_ns)
            messages = [BookClear(*place), BookReady(*place, checksum)]
            self._ticklog.append([self._datagram(Stream.DELTA, messages, now_ns)])

    @property
    def quotes(self) -> int:
        """The last `seq` of the stream of best bids and offers."""
        return self._seqs[Stream.BBO] - 1

    def _datagram(self, stream: Stream, messages: list[Any], now_ns: int) -> Datagram:
        seq = self._seqs[stream]
        self._seqs[stream] += len(messages)
        self.messages += len(messages)
        return stream, encode_datagram(0, stream, self.session, seq, now_ns, messages)

    def _place(self, now_ns: int) -> tuple[str, int, int, int]:
        self._g += 1
        event_ns = now_ns // _MILLISECOND_NS * _MILLISECOND_NS
        return self._random.choice(self._tickers), self._g, event_ns, now_ns

    def _update(self, now_ns: int) -> LevelUpdate:
        draw = self._random
        place, delta_e2 = self._place(now_ns), draw_size_e2(draw)
        side = draw.randrange(2)
        level = (place[0], side, _BEST_E4[side] + draw.randrange(_LEVELS) * 100)
        size_e2 = self._sizes[level] = self._sizes.get(level, 0) + delta_e2
        return LevelUpdate(*place, *level[1:], delta_e2, size_e2)

    def _quote(self, now_ns: int) -> Bbo:
        bid_e4 = self._random.randrange(1, 99) * 100
        size_e2 = draw_size_e2(self._random)
        return Bbo(*self._place(now_ns), bid_e4, size_e2, bid_e4 + 100, size_e2, 1)
