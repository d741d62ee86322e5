"""Gap-fill requests over UDP: a datagram in, datagrams out. Pure; the log is asked through `GapFillSource`."""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from tickerplant.core.rates import ClientRates
from tickerplant.core.recovery_wire import (
    GAP_FILL,
    GAP_FILL_BYTES,
    GapFill,
    GapFillKind,
    RecoveryCode,
    decode_gap_fill,
    encode_gap_fill,
    is_gap_fill,
)
from tickerplant.core.wire import FLAG_RETRANSMITTED, FLAGS_OFFSET
from tickerplant.errors import AuthenticationError, WireError
from tickerplant.limits import RECOVERY_REFUSALS_PER_SECOND


class Found(NamedTuple):
    """What the log has of a request: `code` is SERVED exactly if there are datagrams.

    `oldest_seq` and `next_seq` of the stream and session asked for, 0 where unknown.
    """

    code: RecoveryCode
    datagrams: list[bytes]
    oldest_seq: int = 0
    next_seq: int = 0


class GapFillSource(Protocol):
    """The log, as far as it was read."""

    def find(self, request: GapFill) -> Found:
        """The logged datagrams for a request, within the bounds of one."""
        ...


class GapFillServer:
    """Answers requests of many clients within their rates. It answers nothing but requests, so that no two can loop."""

    def __init__(
        self,
        source: GapFillSource,
        *,
        client_bytes_per_second: int,
        total_bytes_per_second: int,
        keys: Mapping[int, bytes] | None = None,
        key_id: int = 0,
    ) -> None:
        """With `keys` (key id -> key) every request needs a trailer; replies are signed with that of `key_id`."""
        self.served_datagrams = 0
        self.served_bytes = 0
        self.ignored_datagrams = 0
        """Which are no requests at all: not answered."""
        self.unanswered_requests = 0
        """Of a client that asks too much even to be refused."""
        self.codes: Counter[str] = Counter()
        self._source = source
        self._keys = keys
        self._key = None if keys is None else (key_id, keys[key_id])
        self._bytes = ClientRates(client_bytes_per_second, total_bytes_per_second)
        self._refusals = ClientRates(RECOVERY_REFUSALS_PER_SECOND, RECOVERY_REFUSALS_PER_SECOND * 8)

    def use_keys(self, key_id: int, keys: Mapping[int, bytes]) -> None:
        """Other keys from now on."""
        self._keys, self._key = keys, (key_id, keys[key_id])

    def receive(self, datagram: bytes, client: str, now_ns: int) -> list[bytes]:
        """What to send back to `client`, an address; at most `GAP_FILL_DATAGRAMS_MAX` + 1 datagrams."""
        try:
            request = decode_gap_fill(datagram, self._keys)
        except WireError as error:
            is_forged = isinstance(error, AuthenticationError)
            code = RecoveryCode.UNAUTHENTICATED if is_forged else RecoveryCode.MALFORMED
            return self._refuse_unreadable(datagram, code, client, now_ns)
        if request.kind != GapFillKind.REQUEST:
            self.ignored_datagrams += 1
            return []
        if self._bytes.wait_ns(client, now_ns):
            return self._refuse(request, Found(RecoveryCode.THROTTLED, []), client, now_ns)
        found = self._source.find(request)
        if not found.datagrams:
            return self._refuse(request, found, client, now_ns)
        answer = [mark_retransmitted(logged) for logged in found.datagrams]
        size = sum(map(len, answer))
        self._bytes.use(client, size, now_ns)
        self.served_datagrams += len(answer)
        self.served_bytes += size
        answer.append(self._reply(request, found))
        return answer

    def _refuse_unreadable(
        self, datagram: bytes, code: RecoveryCode, client: str, now_ns: int
    ) -> list[bytes]:
        """A datagram that fails its checks is answered only if it claims to be a request."""
        is_claimed = len(datagram) >= GAP_FILL_BYTES and is_gap_fill(datagram)
        if not is_claimed or datagram[3] != GapFillKind.REQUEST:
            self.ignored_datagrams += 1
            return []
        fields = GAP_FILL.unpack_from(datagram)
        _magic, _version, kind, stream, _flags, _code, *rest = fields
        return self._refuse(GapFill(kind, stream, 0, *rest), Found(code, []), client, now_ns)

    def _refuse(self, request: GapFill, found: Found, client: str, now_ns: int) -> list[bytes]:
        self.codes[found.code.name.lower()] += 1
        if self._refusals.wait_ns(client, now_ns):
            self.unanswered_requests += 1
            return []
        self._refusals.use(client, 1, now_ns)
        return [self._encode(request, found)]

    def _reply(self, request: GapFill, found: Found) -> bytes:
        self.codes[found.code.name.lower()] += 1
        return self._encode(request, found)

    def _encode(self, request: GapFill, found: Found) -> bytes:
        reply = request._replace(
            kind=GapFillKind.REPLY,
            code=found.code,
            from_seq=found.oldest_seq,
            to_seq=found.next_seq,
        )
        return encode_gap_fill(reply, self._key)

    def counters(self) -> dict[str, int | dict[str, int]]:
        """For the metrics."""
        return {
            "gap_fill_requests{code}": dict(self.codes),
            "gap_fill_datagrams": self.served_datagrams,
            "gap_fill_bytes": self.served_bytes,
            "gap_fill_ignored_datagrams": self.ignored_datagrams,
            "gap_fill_unanswered_requests": self.unanswered_requests,
        }


def mark_retransmitted(datagram: bytes) -> bytes:
    """A logged datagram as it is sent again; its trailer, if any, stays valid."""
    flags = datagram[FLAGS_OFFSET] | FLAG_RETRANSMITTED
    return datagram[:FLAGS_OFFSET] + bytes((flags,)) + datagram[FLAGS_OFFSET + 1 :]
