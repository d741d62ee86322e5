"""What is a legal value of each key of the configuration, and how a value is shown in an error line."""

import ipaddress
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from tickerplant.core.messages import Stream
from tickerplant.limits import CONNECTIONS_MAX, RECOVERY_CONNECTIONS_MAX, TICKER_MAX_BYTES

LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("console", "json")
FSYNC_POLICIES = ("interval", "never")
STORE_BACKENDS = ("parquet", "questdb")
CONF_PROTOCOLS = ("http", "https")
"""Of the QuestDB client: those whose requests are acknowledged."""
CONF_SECRETS = frozenset({"password", "token", "token_x", "token_y"})
CONF_OURS = frozenset({"username", "auto_flush", "protocol_version", "retry_timeout"})
"""Keys of a conf string that other settings stand for, or that the store depends on."""
KEY_PEM_VARIABLE = "KALSHI_KEY_PEM"
"""Environment variable that may hold the private key itself (PEM) instead of `exchange.key_path`."""

_SHOWN_MAX_CHARACTERS = 80
_PEM_MARK = "PRIVATE KEY"
# Patterns belong to subscribers; commas and quotes come from a list pasted as one string.
_NOT_IN_TICKER = re.compile(r"[\s*?\[\]{},;\"'/\\]|[^\x21-\x7e]")


def shown(value: object) -> str:
    """`value` for an error line: short, on one line, and never a secret."""
    text = repr(value)
    if _PEM_MARK in text or re.search(r"://[^/]*@|[0-9a-fA-F]{64}|(?:password|token)\w*=", text):
        return "(not shown)"
    if len(text) > _SHOWN_MAX_CHARACTERS:
        return f"{text[:_SHOWN_MAX_CHARACTERS]}…"
    return text


def _url_problem(value: str, *, schemes: tuple[str, ...], example: str) -> str | None:
    try:
        parts = urlsplit(value)
        port_is_legal = parts.port is None or 0 < parts.port < 65_536
    except ValueError:
        return f"is not a URL; write it like {example}"
    if parts.scheme not in schemes or not parts.hostname or not port_is_legal:
        return f"must be a {' or '.join(schemes)} URL with a host, like {example}"
    if parts.username is not None or parts.password is not None:
        return "must not hold a user name or password; the API key is exchange.key_path"
    if parts.query or parts.fragment or re.search(r"\s", value):
        return f"must end with its path; write it like {example}"
    if not parts.path.strip("/") or parts.path.endswith("/"):
        return f"needs the path of the API without a slash at its end, like {example}"
    return None


def _key_path_problem(value: str) -> str | None:
    if _PEM_MARK in value or "\n" in value:
        return f"holds a key, not a path: save the key in a file, or put it in {KEY_PEM_VARIABLE}"
    return "must not hold a NUL character" if "\0" in value else None


def _datagram_key_path_problem(value: str) -> str | None:
    if re.search(r"[0-9a-fA-F]{64}", value) or "\n" in value:
        return "holds a key, not a path: make a file with `tickerplant key make` and name it"
    return "must not hold a NUL character" if "\0" in value else None


def _key_id_problem(value: str) -> str | None:
    if _PEM_MARK in value:
        return "holds a private key: this is the id of the key; save the key in a file"
    if re.search(r"[^\x21-\x7e]", value) or len(value) > 128:
        return "must be the id of an API key: at most 128 ASCII characters without blanks"
    return None


def _conf_problem(value: str) -> str | None:
    """A conf string of the QuestDB client: `protocol::key=value;key=value;`."""
    example = "http::addr=127.0.0.1:9000;"
    protocol, separator, rest = value.partition("::")
    if protocol not in CONF_PROTOCOLS or not separator:
        return (
            f"must begin with {' or '.join(f'{name}::' for name in CONF_PROTOCOLS)}, like {example}"
        )
    keys = {part.partition("=")[0] for part in rest.split(";") if part}
    if keys & CONF_SECRETS:
        return "holds a secret: put it in a file and name that in store.password_path"
    if keys & CONF_OURS:
        return f"must leave out {', '.join(sorted(keys & CONF_OURS))}, which the store decides"
    if "addr" not in keys or not rest.endswith(";") or re.search(r"\s", value):
        return f"must name addr, and end each key=value with a semicolon, like {example}"
    return None


def _username_problem(value: str) -> str | None:
    return "must not hold a semicolon or blanks" if re.search(r"[;\s]", value) else None


def _password_path_problem(value: str) -> str | None:
    return "must be the path of a file" if "\0" in value or "\n" in value else None


def _range_problem(value: int, *, low: int, high: int, what: str = "") -> str | None:
    return None if low <= value <= high else f"must be {low} to {high}{what}"


def _rate_problem(value: int) -> str | None:
    return _range_problem(value, low=64 * 1024, high=1024**4, what=" (bytes a second)")


def _tickers_problem(values: tuple[str, ...]) -> str | None:
    for value in values:
        if not value or len(value.encode()) > TICKER_MAX_BYTES or _NOT_IN_TICKER.search(value):
            return (
                f"{shown(value)} is not a ticker; write a list of whole tickers, "
                'like ["KXBTC15M-26NOV21", "KXINX"]'
            )
    return None


def _address_problem(
    value: str, *, optional: bool = False, any_allowed: bool = False
) -> str | None:
    if optional and not value:
        return None
    try:
        address = ipaddress.IPv4Address(value)
    except ValueError:
        return "must be an IPv4 address of this host, like 127.0.0.1 (`ip -4 address` lists them)"
    if address.is_multicast or (address.is_unspecified and not any_allowed):
        return "must be the address of one interface, like 127.0.0.1 (`ip -4 address` lists them)"
    return None


def _group_problem(value: str, *, optional: bool = False) -> str | None:
    if optional and not value:
        return None
    try:
        first = ipaddress.IPv4Address(value)
        last = first + (len(Stream) - 1)
    except ValueError:
        first = last = ipaddress.IPv4Address(0)
    if not (first.is_multicast and last.is_multicast):
        return "must be an IPv4 multicast address, best one of 239.192.0.0/14, like 239.192.77.1"
    if first in ipaddress.IPv4Network("224.0.0.0/24"):
        return "is reserved for routing protocols; take one of 239.192.0.0/14, like 239.192.77.1"
    return None


def _choice_problem(value: str, *, choices: tuple[str, ...]) -> str | None:
    if value in choices:
        return None
    close = get_close_matches(value.lower(), choices, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"must be one of {', '.join(choices)}{hint}"


def _directory_problem(value: str) -> str | None:
    return "must be the path of a folder" if "\0" in value or "\n" in value else None


def _archive_url_problem(value: str) -> str | None:
    parts = urlsplit(value)
    if not value or (parts.scheme == "file" and not parts.netloc and parts.path.startswith("/")):
        return None
    if (
        parts.scheme == "s3"
        and re.fullmatch(r"[a-z0-9][a-z0-9.-]*", parts.netloc)
        and not parts.query
    ):
        return None
    return "must be like s3://bucket/prefix or file:///data/archive, without credentials"


def _endpoint_problem(value: str) -> str | None:
    parts = urlsplit(value)
    if not value or (parts.scheme in ("http", "https") and parts.hostname and not parts.username):
        return None
    return "must be like https://s3.example.com, without credentials"


def _text_problem(value: str, *, pattern: str, what: str) -> str | None:
    return None if re.fullmatch(pattern, value) else f"must be {what}"


_WEBSOCKET_EXAMPLE = "wss://external-api-ws.kalshi.com/trade-api/ws/v2"
_REST_EXAMPLE = "https://external-api.kalshi.com/trade-api/v2"

CHECKS: Mapping[str, Callable[[Any], str | None]] = {
    "exchange.websocket_url": partial(
        _url_problem, schemes=("wss", "ws"), example=_WEBSOCKET_EXAMPLE
    ),
    "exchange.rest_url": partial(_url_problem, schemes=("https", "http"), example=_REST_EXAMPLE),
    "exchange.key_id": _key_id_problem,
    "exchange.key_path": _key_path_problem,
    "exchange.connections": partial(_range_problem, low=1, high=CONNECTIONS_MAX),
    "exchange.max_clock_skew_ms": partial(
        _range_problem, low=1_000, high=60_000, what=" (milliseconds)"
    ),
    "markets.tickers": _tickers_problem,
    "markets.series": _tickers_problem,
    "markets.events": _tickers_problem,
    "publish.interface": _address_problem,
    "publish.group_a": _group_problem,
    "publish.group_b": partial(_group_problem, optional=True),
    "publish.interface_b": partial(_address_problem, optional=True),
    "publish.port": partial(_range_problem, low=1, high=65_535),
    "publish.ttl": partial(_range_problem, low=0, high=255),
    "publish.publisher": partial(_range_problem, low=0, high=65_535),
    "publish.key_path": _datagram_key_path_problem,
    "verify.interval_ms": partial(_range_problem, low=0, high=3_600_000, what=" (milliseconds)"),
    "verify.upstream_interval_ms": partial(
        _range_problem, low=0, high=3_600_000, what=" (milliseconds)"
    ),
    "metrics.address": partial(_address_problem, any_allowed=True),
    "metrics.port": partial(_range_problem, low=0, high=65_535, what=" (0: any free port)"),
    "ticklog.directory": _directory_problem,
    "ticklog.segment_max_bytes": partial(
        _range_problem, low=64 * 1024, high=4 * 1024**3, what=" (bytes)"
    ),
    "ticklog.segment_max_s": partial(_range_problem, low=1, high=86_400, what=" (seconds)"),
    "ticklog.fsync": partial(_choice_problem, choices=FSYNC_POLICIES),
    "ticklog.fsync_interval_ms": partial(
        _range_problem, low=10, high=60_000, what=" (milliseconds)"
    ),
    "ticklog.retain_s": partial(_range_problem, low=60, high=10 * 366 * 86_400, what=" (seconds)"),
    "ticklog.retain_bytes": partial(_range_problem, low=64 * 1024, high=1024**5, what=" (bytes)"),
    "ticklog.max_bytes": partial(_range_problem, low=64 * 1024, high=1024**5, what=" (bytes)"),
    "recovery.address": partial(_address_problem, any_allowed=True),
    "recovery.port": partial(_range_problem, low=0, high=65_535, what=" (0: any free port)"),
    "recovery.metrics_port": partial(
        _range_problem, low=0, high=65_535, what=" (0: any free port)"
    ),
    "recovery.client_bytes_per_second": _rate_problem,
    "recovery.total_bytes_per_second": _rate_problem,
    "recovery.connections_max": partial(_range_problem, low=1, high=RECOVERY_CONNECTIONS_MAX),
    "recovery.connections_per_client_max": partial(
        _range_problem, low=1, high=RECOVERY_CONNECTIONS_MAX
    ),
    "recovery.checkpoint_interval_s": partial(_range_problem, low=1, high=3_600, what=" (seconds)"),
    "recovery.niceness": partial(_range_problem, low=0, high=19),
    "store.backend": partial(_choice_problem, choices=STORE_BACKENDS),
    "store.directory": _directory_problem,
    "store.close_s": partial(_range_problem, low=1, high=3_600, what=" (seconds)"),
    "store.close_rows": partial(_range_problem, low=1_000, high=100_000_000),
    "store.conf": _conf_problem,
    "store.username": _username_problem,
    "store.password_path": _password_path_problem,
    "store.batch_ms": partial(_range_problem, low=1, high=10_000, what=" (milliseconds)"),
    "store.batch_rows": partial(_range_problem, low=100, high=100_000),
    "store.ttl_days": partial(_range_problem, low=0, high=36_500, what=" (days)"),
    "store.book_snapshot_interval_s": partial(
        _range_problem, low=0, high=86_400, what=" (seconds)"
    ),
    "store.metrics_port": partial(_range_problem, low=0, high=65_535, what=" (0: any free port)"),
    "store.niceness": partial(_range_problem, low=0, high=19),
    "archive.url": _archive_url_problem,
    "archive.endpoint": _endpoint_problem,
    "archive.region": partial(_text_problem, pattern=r"[a-zA-Z0-9-]*", what="the name of a region"),
    "archive.directory": _directory_problem,
    "archive.hot_hours": partial(_range_problem, low=0, high=24 * 366, what=" (hours)"),
    "hdb.conf": lambda value: _conf_problem(value) if value else None,
    "hdb.username": _username_problem,
    "hdb.password_path": _password_path_problem,
    "hdb.days": partial(_range_problem, low=0, high=36_500, what=" (days)"),
    "capture.directory": _directory_problem,
    "capture.segment_max_bytes": partial(
        _range_problem, low=64 * 1024, high=4 * 1024**3, what=" (bytes)"
    ),
    "capture.segment_max_s": partial(_range_problem, low=1, high=86_400, what=" (seconds)"),
    "capture.retain_s": partial(_range_problem, low=60, high=10 * 366 * 86_400, what=" (seconds)"),
    "capture.max_bytes": partial(_range_problem, low=128 * 1024, high=1024**5, what=" (bytes)"),
    "log.level": partial(_choice_problem, choices=LOG_LEVELS),
    "log.format": partial(_choice_problem, choices=LOG_FORMATS),
    "state.directory": _directory_problem,
}
"""For each key that its type alone does not check: value to what is wrong with it, or None."""
