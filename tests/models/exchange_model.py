"""The exchange's side of one connection as the exchange documents it: books, sids, sequences, replies.

It is honest; faults are made by who carries its frames. After every frame of the book channel it remembers all books
(`history`), so that a client's book can be compared with the state as of any sequence number.
"""

import copy
import json
from collections import deque
from typing import NamedTuple

BOOKS = "orderbook_delta"
UNSEQUENCED = {"ticker"}


class Sent(NamedTuple):
    """One frame on its way: `seq` 0 where it carries none."""

    sid: int
    seq: int
    kind: str
    fields: dict

    @property
    def data(self):
        """As on the wire."""
        return json.dumps(self.fields).encode()


def dollars(price_e4):
    """Four decimals, as the exchange writes them."""
    return f"{price_e4 // 10_000}.{price_e4 % 10_000:04}"


def contracts(size_e2):
    """Two decimals, signed."""
    return f"{'-' if size_e2 < 0 else ''}{abs(size_e2) // 100}.{abs(size_e2) % 100:02}"


class ExchangeModel:
    """Books in YES prices per ticker: ({price_e4: size_e2} bids, asks); frames in `pipe` in order."""

    def __init__(self, tickers, *, use_yes_price=False, data_first=False):
        self.books = {ticker: ({}, {}) for ticker in tickers}
        self.use_yes_price = use_yes_price
        self.data_first = data_first
        self.refusals = deque()
        self.connect()

    def connect(self):
        """A new connection: sids and sequences begin anew."""
        self.pipe = deque()
        self.sids = {}
        self.next_sid = 1
        self.next_seq = {}
        self.subscribed = {}
        self.history = {}

    # --- what the market does ---------------------------------------------------------------------

    def change(self, ticker, side, price_e4, delta_e2):
        """One level changes (cut at zero); a delta goes to who is subscribed."""
        levels = self.books[ticker][side]
        delta_e2 = max(delta_e2, -levels.get(price_e4, 0))
        size_e2 = levels.pop(price_e4, 0) + delta_e2
        if size_e2:
            levels[price_e4] = size_e2
        if delta_e2 and ticker in self.subscribed:
            quoted_e4 = price_e4 if side == 0 or self.use_yes_price else 10_000 - price_e4
            msg = {
                "market_ticker": ticker,
                "market_id": "5f0c1c1e-7a52-4d0e-9f77-2b9a4a1f6d10",
                "price_dollars": dollars(quoted_e4),
                "delta_fp": contracts(delta_e2),
                "side": "no" if side else "yes",
                "ts_ms": 1_795_197_851_207,
            }
            self.send_sequenced(self.sids[BOOKS], "orderbook_delta", msg)

    def snapshot(self, ticker, command_id=None):
        """A snapshot frame; an empty side is an absent key."""
        msg = {"market_ticker": ticker, "market_id": "5f0c1c1e-7a52-4d0e-9f77-2b9a4a1f6d10"}
        bids, asks = self.books.get(ticker, ({}, {}))
        if bids:
            msg["yes_dollars_fp"] = [[dollars(p), contracts(s)] for p, s in bids.items()]
        if asks:
            msg["no_dollars_fp"] = [
                [dollars(p if self.use_yes_price else 10_000 - p), contracts(s)]
                for p, s in asks.items()
            ]
        self.send_sequenced(self.sids[BOOKS], "orderbook_snapshot", msg, command_id)

    def end_subscription(self, channel, code):
        """Error 10 or 25: the sid is dead, the socket is not."""
        sid = self.sids.pop(channel)
        self.send_sequenced(sid, "error", {"code": code, "msg": "ended"})
        if channel == BOOKS:
            self.subscribed.clear()

    # --- frames -----------------------------------------------------------------------------------

    def send(self, kind, *, sid=0, seq=0, **fields):
        """Queues a frame."""
        self.pipe.append(Sent(sid, seq, kind, {"type": kind, **fields}))

    def send_sequenced(self, sid, kind, msg=None, command_id=None):
        """Queues a frame with the next number of its sid, and remembers the books as of it."""
        seq = self.next_seq[sid]
        self.next_seq[sid] = seq + 1
        fields = {"sid": sid, "seq": seq}
        if command_id:
            fields["id"] = command_id
        if msg is not None:
            fields["msg"] = msg
        self.history[sid, seq] = copy.deepcopy(self.books)
        self.pipe.append(Sent(sid, seq, kind, {"type": kind, **fields}))

    # --- commands ---------------------------------------------------------------------------------

    def command(self, data):
        """Answers one command of the client."""
        command = json.loads(data)
        if self.refusals:
            code = self.refusals.popleft()
            self.send("error", id=command["id"], msg={"code": code, "msg": "refused"})
            return
        params = command.get("params", {})
        if command["cmd"] == "subscribe":
            for channel in params["channels"]:
                self._subscribe(channel, params, command["id"])
        elif command["cmd"] == "list_subscriptions":
            listing = [{"channel": channel, "sid": sid} for channel, sid in self.sids.items()]
            self.send("ok", id=command["id"], msg=listing)
        elif command["cmd"] == "update_subscription":
            self._update(params, command["id"])
        else:
            raise AssertionError(f"unexpected command {command}")

    def _subscribe(self, channel, params, command_id):
        tickers = params.get("market_tickers", [])
        if channel == BOOKS:
            assert tickers, "error 14: market ticker required"
            assert params["use_yes_price"] is self.use_yes_price
        known = channel in self.sids
        if not known:
            self.sids[channel] = self.next_sid
            self.next_seq[self.next_sid] = 1
            self.next_sid += 1
        added = [ticker for ticker in tickers if ticker not in self.subscribed]
        self.subscribed.update(dict.fromkeys(added))
        sid = self.sids[channel]

        def acknowledge():
            if known:
                self.send_sequenced(sid, "ok", {}, command_id)
            else:
                self.send("subscribed", id=command_id, msg={"channel": channel, "sid": sid})

        self._with_snapshots(acknowledge, added)

    def _update(self, params, command_id):
        (sid,) = params["sids"]
        if sid != self.sids.get(BOOKS):
            self.send("error", id=command_id, msg={"code": 7, "msg": "Unknown subscription ID"})
            return
        tickers = params["market_tickers"]
        assert tickers
        if params["action"] == "get_snapshot":
            for ticker in tickers:
                self.snapshot(ticker, command_id)
            return
        added = []
        if params["action"] == "add_markets":
            added = [ticker for ticker in tickers if ticker not in self.subscribed]
            self.subscribed.update(dict.fromkeys(added))
        else:
            assert params["action"] == "delete_markets"
            for ticker in tickers:
                self.subscribed.pop(ticker, None)
        self._with_snapshots(lambda: self.send_sequenced(sid, "ok", {}, command_id), added)

    def _with_snapshots(self, acknowledge, tickers):
        if not self.data_first:
            acknowledge()
        for ticker in tickers:
            self.snapshot(ticker)
        if self.data_first:
            acknowledge()
