"""Commands of one connection: bytes of a command in, replies and snapshots into the connection's outbox.

Checks are made in the order params, channel or sid, action, tickers; a subscribe with several channels is answered
channel by channel. Source: Kalshi AsyncAPI. Where it is silent, this was chosen: a reply to id 0 has no id; an error
about a sid that exists carries it and takes a number; `ok` comes before the snapshots of added markets; a sid keeps its
price convention when more markets join it; a subscription to the whole exchange stays one whatever is added or
deleted; an unknown ticker is accepted and has an empty book; sids are not used twice on a connection.
"""

import uuid

import msgspec

from tickerplant.errors import ExchangeError
from tickerplant_kalshi_sim.exchange import MarketSource
from tickerplant_kalshi_sim.reference import INDEX_IDS, UNDERLYING_TICKERS
from tickerplant_kalshi_sim.subscriptions import Subscription, Subscriptions

PRIVATE_CHANNELS = frozenset({"fill", "market_positions", "user_orders", "order_group_updates"})
INDEX_CHANNELS = frozenset({"cfbenchmarks_value", "cfbenchmarks_value_5hz"})
FILTERED_CHANNELS = frozenset(
    {"orderbook_delta", "ticker", "trade", "fill", "market_positions", "user_orders"}
)
CHANNELS = (
    FILTERED_CHANNELS
    | PRIVATE_CHANNELS
    | INDEX_CHANNELS
    | {"market_lifecycle_v2", "multivariate_market_lifecycle", "communications", "pyth_value"}
)
MARKET_ACTIONS = frozenset({"add_markets", "delete_markets"})
UPDATABLE_CHANNELS = FILTERED_CHANNELS - {"market_positions"}
INDEX_ACTIONS = frozenset({"subscribe_indices", "unsubscribe_indices", "indexlist"})
UNDERLYING_ACTIONS = frozenset(
    {"subscribe_underlyings", "unsubscribe_underlyings", "underlying_list"}
)
NANOSECONDS = 1_000_000_000


class Params(msgspec.Struct, frozen=True):
    """Every parameter of every command; unknown ones are ignored."""

    channels: list[str] | None = None
    market_ticker: str | None = None
    market_tickers: list[str] | None = None
    market_id: str | None = None
    market_ids: list[str] | None = None
    sid: int | None = None
    sids: list[int] | None = None
    action: str | None = None
    send_initial_snapshot: bool = False
    skip_ticker_ack: bool | None = None
    use_yes_price: bool | None = None
    user_filter: str = ""
    shard_factor: int | None = None
    shard_key: int | None = None
    index_ids: list[str] | None = None
    underlying_tickers: list[str] | None = None


class ClientCommand(msgspec.Struct, frozen=True):
    """`id` 0 means that the command has none."""

    id: int = 0
    cmd: str = ""
    params: Params | None = None


DECODER = msgspec.json.Decoder(ClientCommand)


class CommandLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The caps behind codes 26 and 27 (the exchange does not publish its own) and the default convention."""

    markets_per_subscription: int = 500_000
    commands_per_second: int = 10_000
    use_yes_price_default: bool = False


class CommandRefusedError(ExchangeError):
    """A command is answered with `error`; with a subscription if it concerned one that exists."""

    def __init__(self, code: int, subscription: Subscription | None = None) -> None:
        super().__init__(f"command refused with code {code}")
        self.code = code
        self.subscription = subscription


class Commands:
    """Answers the commands of one connection from `source`."""

    def __init__(
        self,
        source: MarketSource,
        subscriptions: Subscriptions,
        limits: CommandLimits,
        *,
        authenticated: bool = True,
    ) -> None:
        self._source = source
        self._subscriptions = subscriptions
        self._limits = limits
        self._authenticated = authenticated
        self.received = 0
        self.timeouts_due = 0

    def receive(self, data: bytes, now_ns: int) -> None:
        """Answer one command received at virtual time `now_ns`; never raises for what a client sends."""
        self.received += 1
        try:
            command = DECODER.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self._subscriptions.send_error(1)
            return
        if command.id < 0:
            self._subscriptions.send_error(1)
            return
        if self.timeouts_due:
            self.timeouts_due -= 1
            self._subscriptions.send_error(18, command.id)
            return
        try:
            self._dispatch(command, now_ns)
        except CommandRefusedError as refusal:
            self._subscriptions.send_error(refusal.code, command.id, refusal.subscription)

    def _dispatch(self, command: ClientCommand, now_ns: int) -> None:
        if command.cmd == "list_subscriptions":
            rows = [
                {"channel": subscription.channel, "sid": subscription.sid}
                for subscription in self._subscriptions.by_sid.values()
            ]
            self._subscriptions.send_ok(command.id, rows)
            return
        if command.cmd not in ("subscribe", "unsubscribe", "update_subscription"):
            raise CommandRefusedError(5)
        if command.params is None:
            raise CommandRefusedError(2)
        if command.cmd == "subscribe":
            self._subscribe(command.id, command.params)
        elif command.cmd == "unsubscribe":
            self._unsubscribe(command.id, command.params)
        else:
            self._update(command.id, command.params, now_ns)

    # --- subscribe ----------------------------------------------------------------------------------

    def _subscribe(self, command_id: int, params: Params) -> None:
        if not params.channels:
            raise CommandRefusedError(3)
        for channel in params.channels:
            try:
                self._subscribe_channel(command_id, channel, params)
            except CommandRefusedError as refusal:
                self._subscriptions.send_error(refusal.code, command_id, refusal.subscription)

    def _subscribe_channel(self, command_id: int, channel: str, params: Params) -> None:
        if channel not in CHANNELS:
            raise CommandRefusedError(8)
        if channel in PRIVATE_CHANNELS and not self._authenticated:
            raise CommandRefusedError(9)
        keys = self._filter_of(channel, params)
        self._check_size(keys, 0, None)
        if channel == "communications":
            _check_shard(params)
        held = self._subscriptions.by_channel.get(channel)
        if held is not None:
            self._merge(command_id, held, keys, params)
            return
        subscription = self._subscriptions.open(channel)
        subscription.keys = None if keys is None else dict.fromkeys(keys)
        subscription.market_ids = dict.fromkeys(_market_ids(params))
        subscription.use_yes_price = self._wants_yes_price(params)
        subscription.skip_ticker_ack = bool(params.skip_ticker_ack)
        subscription.shard_factor = params.shard_factor or 0
        subscription.shard_key = params.shard_key or 0
        self._subscriptions.send_subscribed(subscription, command_id)
        self._send_opening(subscription, keys, params)

    def _merge(
        self, command_id: int, held: Subscription, keys: list[str] | None, params: Params
    ) -> None:
        """A channel that the connection holds already: new tickers join its sid, the reply is `ok`."""
        added: list[str] | None = keys
        if keys is None:
            held.keys = None
        elif held.keys is not None:
            added = [key for key in dict.fromkeys(keys) if key not in held.keys]
            self._check_size(added, len(held.keys), held)
            held.keys.update(dict.fromkeys(added))
        held.market_ids.update(dict.fromkeys(_market_ids(params)))
        self._send_ok(command_id, held, params)
        self._send_opening(held, added, params)

    def _send_opening(
        self, subscription: Subscription, keys: list[str] | None, params: Params
    ) -> None:
        """Snapshots of newly subscribed books; tickers if they were asked for."""
        if subscription.channel == "orderbook_delta":
            for ticker in keys or ():
                if self._source.opens_with_snapshot(ticker):
                    self._send_snapshot(subscription, ticker, 0)
        elif subscription.channel == "ticker" and params.send_initial_snapshot:
            for _, body in self._source.tickers(keys):
                self._subscriptions.deliver(subscription, "ticker", body)

    def _send_snapshot(self, subscription: Subscription, ticker: str, command_id: int) -> None:
        body = self._source.snapshot(ticker, use_yes_price=subscription.use_yes_price)
        self._subscriptions.send_snapshot(subscription, body, command_id)

    def _filter_of(self, channel: str, params: Params) -> list[str] | None:
        """The keys that a subscription is limited to; None for the whole exchange."""
        if channel in INDEX_CHANNELS:
            return _names(params.index_ids, 24)
        if channel == "pyth_value":
            return _names(params.underlying_tickers, 28)
        if channel not in FILTERED_CHANNELS:
            return None
        tickers = self._tickers(channel, params, None)
        if tickers is None and channel == "orderbook_delta":
            raise CommandRefusedError(14)
        return tickers

    def _tickers(
        self, channel: str, params: Params, subscription: Subscription | None
    ) -> list[str] | None:
        """The markets that a command names, by ticker or, on the ticker channel, by id; None if by neither."""
        ways = (params.market_ticker, params.market_tickers, params.market_id, params.market_ids)
        named = [way for way in ways if way is not None]
        if not named:
            return None
        by_id = params.market_id is not None or params.market_ids is not None
        if len(named) > 1 or (by_id and channel != "ticker"):
            raise CommandRefusedError(11, subscription)
        names = [named[0]] if isinstance(named[0], str) else named[0]
        if not names:
            raise CommandRefusedError(14, subscription)
        if not by_id:
            return names
        for market_id in names:
            _check_uuid(market_id, subscription)
        return [ticker for name in names if (ticker := self._source.ticker_of_market(name))]

    def _check_size(
        self, added: list[str] | None, held: int, subscription: Subscription | None
    ) -> None:
        if added is not None and held + len(added) > self._limits.markets_per_subscription:
            raise CommandRefusedError(26, subscription)

    def _wants_yes_price(self, params: Params) -> bool:
        if params.use_yes_price is None:
            return self._limits.use_yes_price_default
        return params.use_yes_price

    # --- unsubscribe and update ---------------------------------------------------------------------

    def _unsubscribe(self, command_id: int, params: Params) -> None:
        if not params.sids:
            raise CommandRefusedError(4)
        for sid in params.sids:
            subscription = self._subscriptions.by_sid.get(sid)
            if subscription is None:
                self._subscriptions.send_error(7, command_id)
                continue
            self._subscriptions.close(subscription)
            self._subscriptions.send_unsubscribed(command_id, subscription)

    def _update(self, command_id: int, params: Params, now_ns: int) -> None:
        subscription = self._updated_subscription(params)
        self._check_rate(subscription, now_ns)
        if params.action is None:
            raise CommandRefusedError(15, subscription)
        if params.action in MARKET_ACTIONS and subscription.channel in UPDATABLE_CHANNELS:
            self._update_markets(command_id, subscription, params)
        elif params.action == "get_snapshot" and subscription.channel == "orderbook_delta":
            if params.market_tickers is None:
                raise CommandRefusedError(14, subscription)
            for ticker in params.market_tickers:
                self._send_snapshot(subscription, ticker, command_id)
        elif params.action in INDEX_ACTIONS and subscription.channel in INDEX_CHANNELS:
            self._update_names(command_id, subscription, params.action, params.index_ids)
        elif params.action in UNDERLYING_ACTIONS and subscription.channel == "pyth_value":
            self._update_names(command_id, subscription, params.action, params.underlying_tickers)
        else:
            raise CommandRefusedError(13, subscription)

    def _updated_subscription(self, params: Params) -> Subscription:
        if (params.sid is None) == (params.sids is None):
            raise CommandRefusedError(12)
        sids = [params.sid] if params.sid is not None else params.sids
        if sids is None or len(sids) != 1:
            raise CommandRefusedError(12)
        subscription = self._subscriptions.by_sid.get(sids[0])
        if subscription is None:
            raise CommandRefusedError(7)
        return subscription

    def _check_rate(self, subscription: Subscription, now_ns: int) -> None:
        second = now_ns // NANOSECONDS
        if second != subscription.command_second:
            subscription.command_second, subscription.command_count = second, 0
        subscription.command_count += 1
        if subscription.command_count > self._limits.commands_per_second:
            raise CommandRefusedError(27, subscription)

    def _update_markets(self, command_id: int, subscription: Subscription, params: Params) -> None:
        tickers = self._tickers(subscription.channel, params, subscription)
        if tickers is None:
            raise CommandRefusedError(14, subscription)
        if params.action == "delete_markets":
            for ticker in tickers:
                (subscription.keys or {}).pop(ticker, None)
            for market_id in _market_ids(params):
                subscription.market_ids.pop(market_id, None)
            self._send_ok(command_id, subscription, params)
            return
        self._merge(command_id, subscription, tickers, params)

    def _update_names(
        self, command_id: int, subscription: Subscription, action: str, given: list[str] | None
    ) -> None:
        is_index = subscription.channel in INDEX_CHANNELS
        field = "index_ids" if is_index else "underlying_tickers"
        known = INDEX_IDS if is_index else UNDERLYING_TICKERS
        if action in ("indexlist", "underlying_list"):
            frame_type = f"{subscription.channel}_{action}"
            message = {field: list(known)}
            self._subscriptions.send_reference_list(command_id, subscription, frame_type, message)
            return
        if not given:
            raise CommandRefusedError(24 if is_index else 28, subscription)
        names = dict.fromkeys(known if subscription.keys is None else subscription.keys)
        for name in list(known) if given == ["all"] else given:
            if action.startswith("unsubscribe"):
                names.pop(name, None)
            else:
                names[name] = None
        subscription.keys = names
        self._acknowledge(command_id, subscription, {field: list(names)})

    def _send_ok(self, command_id: int, subscription: Subscription, params: Params) -> None:
        """`ok` with everything that the sid now covers, unless the client asked to be spared the list."""
        skip = params.skip_ticker_ack
        message: dict[str, list[str]] = {}
        if not (subscription.skip_ticker_ack if skip is None else skip):
            if subscription.market_ids:
                message = {"market_ids": list(subscription.market_ids)}
            else:
                message = {"market_tickers": list(subscription.keys or ())}
        self._acknowledge(command_id, subscription, message)

    def _acknowledge(
        self, command_id: int, subscription: Subscription, message: dict[str, list[str]]
    ) -> None:
        self._subscriptions.send_ok(
            command_id,
            message,
            subscription,
            sequenced=self._source.sequenced_acknowledgements,
        )


def _names(given: list[str] | None, code: int) -> list[str] | None:
    """Named indices or underlyings; None for all of them. Raises `code` when none are named."""
    if not given:
        raise CommandRefusedError(code)
    return None if given == ["all"] else given


def _market_ids(params: Params) -> list[str]:
    if params.market_id is not None:
        return [params.market_id]
    return params.market_ids or []


def _check_uuid(text: str, subscription: Subscription | None) -> None:
    try:
        uuid.UUID(text)
    except ValueError:
        raise CommandRefusedError(11, subscription) from None


def _check_shard(params: Params) -> None:
    """The shard of a communications subscription. Raises codes 19-22, and 11 for an unknown user filter."""
    if params.user_filter not in ("", "self"):
        raise CommandRefusedError(11)
    factor, key = params.shard_factor, params.shard_key
    if factor is None and key is None:
        return
    if factor is not None and factor <= 0:
        raise CommandRefusedError(19)
    if factor is None or key is None:
        raise CommandRefusedError(20)
    if factor > 100:
        raise CommandRefusedError(22)
    if not 0 <= key < factor:
        raise CommandRefusedError(21)
