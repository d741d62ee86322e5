"""Query parameters of the REST endpoints, cursors, and the error bodies that the exchange answers with.

Three shapes: nested `{"error":{"code","message"}}` (authentication, most 4xx), flat `{"code","message","details"}` (a
value that cannot be decoded), bare `{"msg"}` (a value out of range). 429 is `{"error":"too many requests"}`.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from tickerplant.errors import ExchangeError

Row = TypeVar("Row")
NANOSECONDS = 1_000_000_000


class RestRefusedError(ExchangeError):
    """A request is answered with `status` and `body`."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(f"request refused with {status}")
        self.status = status
        self.body = msgspec.json.encode(body)


def not_found(what: str) -> RestRefusedError:
    """404, nested."""
    return RestRefusedError(404, {"error": {"code": "not_found", "message": f"{what} not found"}})


def invalid(message: str) -> RestRefusedError:
    """400, bare: a parameter that contradicts another or is out of range."""
    return RestRefusedError(400, {"msg": message})


def undecodable(name: str, text: str) -> RestRefusedError:
    """400, flat: a parameter that is not of its type."""
    details = f"{name}={text[:60]}"
    body = {"code": "invalid_request", "message": "cannot decode query", "details": details}
    return RestRefusedError(400, body)


class Query:
    """Typed access to the query of one request."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def text(self, name: str) -> str | None:
        """The parameter, or None if it is absent or empty."""
        return self._values.get(name) or None

    def choice(self, name: str, choices: Sequence[str]) -> str | None:
        """One of `choices`, or None. Raises the bare 400."""
        value = self.text(name)
        if value is not None and value not in choices:
            raise invalid(f"{name} must be one of {', '.join(choices)}")
        return value

    def flag(self, name: str) -> bool | None:
        """A boolean, or None. Raises the flat 400."""
        value = self.text(name)
        if value is None:
            return None
        if value.lower() not in ("true", "false"):
            raise undecodable(name, value)
        return value.lower() == "true"

    def number(self, name: str) -> int | None:
        """An integer, or None. Raises the flat 400."""
        value = self.text(name)
        if value is None:
            return None
        try:
            return int(value)
        except ValueError:
            raise undecodable(name, value) from None

    def time_ns(self, name: str) -> int | None:
        """Unix seconds as nanoseconds, or None."""
        seconds = self.number(name)
        return None if seconds is None else seconds * NANOSECONDS

    def limit(self, default: int, maximum: int) -> int:
        """Page size. Raises the bare 400 outside 1..`maximum`."""
        value = self.number("limit")
        if value is None:
            return default
        if not 1 <= value <= maximum:
            raise invalid(f"limit must lie between 1 and {maximum}")
        return value

    def names(self, name: str) -> list[str] | None:
        """A comma list, or None."""
        value = self.text(name)
        return None if value is None else [part for part in value.split(",") if part]

    def page(self, rows: Sequence[Row], default: int, maximum: int) -> tuple[Sequence[Row], str]:
        """One page of `rows` and the cursor of the next, empty at the end. A garbage cursor starts over."""
        limit = self.limit(default, maximum)
        start = _decode_cursor(self.text("cursor"))
        rest = start + limit < len(rows)
        return rows[start : start + limit], _encode_cursor(start + limit) if rest else ""


def _encode_cursor(position: int) -> str:
    return base64.urlsafe_b64encode(b"at:%d" % position).decode()


def _decode_cursor(cursor: str | None) -> int:
    try:
        text = base64.urlsafe_b64decode(cursor or "").decode("ascii")
    except (binascii.Error, ValueError):
        return 0
    mark, _, digits = text.partition(":")
    return int(digits) if mark == "at" and digits.isdigit() and len(digits) < 10 else 0
