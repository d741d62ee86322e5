"""The keys of a feed: the first signs every datagram, all of them verify (pure; files are `tickerplant.key_file`).

A key is 32 bytes, named by a 32-bit id that travels in every trailer, so that a new key can be taken over while
datagrams under the old one are still on their way. Whoever holds a key can sign with it: keys keep strangers out, they
do not tell one holder from another.
"""

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from tickerplant.core.wire import (
    FLAG_AUTHENTICATED,
    FLAG_RETRANSMITTED,
    FLAG_SNAPSHOT,
    FLAGS_OFFSET,
    TRAILER_KEY_ID,
    authenticate,
    verify_trailer,
)
from tickerplant.errors import AuthenticationError, CredentialsError
from tickerplant.limits import (
    DATAGRAM_KEY_BYTES,
    DATAGRAM_KEYS_MAX,
    DATAGRAM_MAX_BYTES,
    TRAILER_BYTES,
)

KEY_ID_MAX = 0xFFFF_FFFF
_DIGEST_BYTES = TRAILER_BYTES - TRAILER_KEY_ID.size
_ALTERED = FLAG_RETRANSMITTED | FLAG_SNAPSHOT
"""Flags that count as zero in what is signed: with one of them set a datagram is not what was signed."""


class KeyRing:
    """Keys by id. `sign` and `verify` do what `wire.authenticate` and `wire.verify_authentic` do, in half the time."""

    __slots__ = ("_states", "_trailer_start", "keys", "signing_key_id")

    def __init__(self, keys: Iterable[tuple[int, bytes]]) -> None:
        """(id, key) pairs, the one to sign with first. Raises `CredentialsError`; never shows a key."""
        self.keys: Mapping[int, bytes] = MappingProxyType(_checked(keys))
        self.signing_key_id = next(iter(self.keys))
        self._trailer_start = TRAILER_KEY_ID.pack(self.signing_key_id)
        # Hashing begins with a block that holds the key: it is done once here, and copied.
        self._states = {
            key_id: hashlib.blake2b(key=key, digest_size=_DIGEST_BYTES)
            for key_id, key in self.keys.items()
        }

    def __repr__(self) -> str:
        """Ids only: a repr may end in a log."""
        return f"KeyRing(key_ids={list(self.keys)})"

    @property
    def signing_key(self) -> tuple[int, bytes]:
        """(id, key) of the key that signs, as `recovery_wire` takes it."""
        return self.signing_key_id, self.keys[self.signing_key_id]

    def sign(self, datagram: bytes) -> bytes:
        """`datagram`, which has no trailer yet, with trailer and `FLAG_AUTHENTICATED`."""
        if datagram[FLAGS_OFFSET] & (_ALTERED | FLAG_AUTHENTICATED) != FLAG_AUTHENTICATED:
            return authenticate(datagram, *self.signing_key)
        assert len(datagram) + TRAILER_BYTES <= DATAGRAM_MAX_BYTES
        signed = datagram + self._trailer_start
        state = self._states[self.signing_key_id].copy()
        state.update(signed)
        return signed + state.digest()

    def verify(self, datagram: bytes) -> None:
        """Returns if `datagram`, whose header was decoded, is signed under one of the keys.

        Raises `AuthenticationError`.
        """
        flags = datagram[FLAGS_OFFSET]
        if flags & (_ALTERED | FLAG_AUTHENTICATED) != FLAG_AUTHENTICATED:
            verify_trailer(datagram, flags, len(datagram) - TRAILER_BYTES, self.keys)
            return
        (key_id,) = TRAILER_KEY_ID.unpack_from(datagram, len(datagram) - TRAILER_BYTES)
        prepared = self._states.get(key_id)
        if prepared is None:
            raise AuthenticationError(f"datagram is signed with unknown key id {key_id}")
        state = prepared.copy()
        state.update(datagram[:-_DIGEST_BYTES])
        if not hmac.compare_digest(state.digest(), datagram[-_DIGEST_BYTES:]):
            raise AuthenticationError(f"trailer does not verify under key id {key_id}")


def add_flags(datagram: bytes, flags: int, key_ring: KeyRing | None) -> bytes:
    """`datagram` with `flags` set as well, signed anew if it has a trailer; then `key_ring` must be given."""
    signed = datagram[FLAGS_OFFSET] & FLAG_AUTHENTICATED
    changed = bytearray(datagram[: len(datagram) - TRAILER_BYTES] if signed else datagram)
    changed[FLAGS_OFFSET] |= flags
    if not signed:
        return bytes(changed)
    assert key_ring is not None
    return key_ring.sign(bytes(changed))


def parse_keys(text: str) -> KeyRing:
    """Lines of key id (decimal) and key (64 hex digits); `#` begins a comment. The first key signs.

    Raises `CredentialsError` that names the line, never its content.
    """
    keys = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if words:
            keys.append(_parse_line(words, number))
    if not keys:
        raise CredentialsError("holds no key: make one with `tickerplant key make`")
    return KeyRing(keys)


def format_key(key_id: int, key: bytes) -> str:
    """One line of a key file."""
    return f"{key_id} {key.hex()}\n"


def _parse_line(words: list[str], number: int) -> tuple[int, bytes]:
    wrong = f"line {number} is not a key id (1 to {KEY_ID_MAX}) and 64 hex digits: correct it"
    if len(words) != 2:
        raise CredentialsError(wrong)
    key_id, key = words
    is_number = key_id.isascii() and key_id.isdigit() and len(key_id) <= len(str(KEY_ID_MAX))
    if not is_number or len(key) != 2 * DATAGRAM_KEY_BYTES:
        raise CredentialsError(wrong)
    try:
        return int(key_id), bytes.fromhex(key)
    except ValueError:
        raise CredentialsError(wrong) from None


def _checked(keys: Iterable[tuple[int, bytes]]) -> dict[int, bytes]:
    checked: dict[int, bytes] = {}
    for key_id, key in keys:
        if not 1 <= key_id <= KEY_ID_MAX:
            raise CredentialsError(f"key id {key_id} is out of range: it is 1 to {KEY_ID_MAX}")
        if len(key) != DATAGRAM_KEY_BYTES:
            raise CredentialsError(
                f"key {key_id} has {len(key)} bytes: it needs {DATAGRAM_KEY_BYTES}"
            )
        if checked.setdefault(key_id, key) is not key:
            raise CredentialsError(f"key id {key_id} stands twice: give every key an id of its own")
    if not 1 <= len(checked) <= DATAGRAM_KEYS_MAX:
        raise CredentialsError(
            f"{len(checked)} keys: 1 to {DATAGRAM_KEYS_MAX} are possible, remove the old ones"
        )
    return checked
