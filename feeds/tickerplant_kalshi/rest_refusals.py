"""What a REST reply other than 200 means: worth a retry, or which typed error. Pure.

On the wire an error has one of several shapes (`rest_messages.parse_error_body`); codes may embed ids, so they are
compared by their beginning.
"""

from typing import NoReturn

import msgspec

from tickerplant.errors import ClockSkewError, CredentialsError, ExchangeError, NotFoundError
from tickerplant.limits import CLOCK_OFFSET_TOLERATED_NS
from tickerplant_kalshi.rest_messages import ErrorDetail, parse_error_body

_TRANSIENT_STATUS = frozenset({408, 425, 429})
_EXPIRED = "header_timestamp_expired"
_SECOND_NS = 1_000_000_000


class Reply(msgspec.Struct, frozen=True):
    """A reply as received; `clock_offset_ns` is our clock minus the exchange's, None without a `Date` header."""

    status: int
    body: bytes
    clock_offset_ns: int | None = None


def transient_reason(reply: Reply) -> str | None:
    """Why the same request may work later, in words; None if it will not."""
    if reply.status in _TRANSIENT_STATUS or reply.status >= 500:
        return f"status {reply.status}, {parse_error_body(reply.body)}"
    if 400 <= reply.status < 500 and _is_expired(parse_error_body(reply.body)):
        offset_ns = reply.clock_offset_ns
        if offset_ns is not None and abs(offset_ns) <= CLOCK_OFFSET_TOLERATED_NS:
            return "the signature expired on the way"
    return None


def raise_refusal(reply: Reply, host: str, path: str, key_id: str) -> NoReturn:
    """Raise what a reply means that no retry mends; `key_id` is empty for unsigned requests."""
    detail = parse_error_body(reply.body)
    if 400 <= reply.status < 500 and _is_expired(detail):
        raise ClockSkewError(_skew_text(host, reply.clock_offset_ns))
    if reply.status in (401, 403):
        raise CredentialsError(_credentials_text(reply.status, host, path, key_id, detail))
    if reply.status == 404:
        raise NotFoundError(f"{host}: GET {path}: not found ({detail})")
    if 300 <= reply.status < 400:
        raise ExchangeError(
            f"{host}: GET {path} is redirected elsewhere (status {reply.status}); check exchange.rest_url"
        )
    raise ExchangeError(f"{host}: GET {path} refused with status {reply.status}: {detail}")


def _is_expired(detail: ErrorDetail) -> bool:
    return detail.code.startswith(_EXPIRED) or detail.details.startswith(_EXPIRED)


def _skew_text(host: str, offset_ns: int | None) -> str:
    """How far our clock is off, and what to do."""
    if offset_ns is None:
        measured = "by an amount that its answer does not tell"
    else:
        tenths = abs(offset_ns) * 10 // _SECOND_NS
        direction = "ahead of" if offset_ns > 0 else "behind"
        measured = f"about {tenths // 10}.{tenths % 10} s {direction} the exchange's"
    return (
        f"{host} refuses the time stamp of our signature: this machine's clock is {measured}; "
        "synchronise it (chronyd or systemd-timesyncd), then start again"
    )


def _credentials_text(status: int, host: str, path: str, key_id: str, detail: ErrorDetail) -> str:
    """Which part of the credentials is wrong, and what to do."""
    said = f"{detail.code} {detail.details} {detail.message}".upper()
    if not key_id or "SIGNATURE_IS_MISSING" in said:
        return f"{host}: GET {path} needs an API key: set exchange.key_id and exchange.key_path"
    if "INCORRECT_API_KEY_SIGNATURE" in said:
        return (
            f"{host} refuses the signature of key {key_id}: the private key does not belong to this key id; "
            "check exchange.key_id and exchange.key_path"
        )
    if status == 401 and "NOT_FOUND" in said:
        return (
            f"{host} does not know key {key_id}: it was deleted or belongs to the other environment "
            "(production and demo have separate keys); check exchange.key_id and exchange.rest_url"
        )
    return (
        f"{host} refuses key {key_id} for GET {path} (status {status}: {detail}); check its scopes"
    )
