"""Loading an API key and signing requests with it.

The exchange takes `timestamp_ms + METHOD + path` (no query string, host or separators), signed with RSA-PSS (SHA-256,
MGF1 with SHA-256, salt of the digest's length) or Ed25519, in standard base64. Source: Kalshi "API keys" and SDK.
No key material ever stands in an error or a repr.
"""

import base64
import stat
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tickerplant.errors import CredentialsError
from tickerplant.limits import KEY_FILE_MAX_BYTES

KEY_HEADER = "KALSHI-ACCESS-KEY"
TIMESTAMP_HEADER = "KALSHI-ACCESS-TIMESTAMP"
SIGNATURE_HEADER = "KALSHI-ACCESS-SIGNATURE"
RSA_BITS_MIN = 2048

_KEY_ID_MAX_CHARACTERS = 128
_DOWNLOAD = "use the private key file that the exchange gave when the API key was made"
_PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=padding.PSS.DIGEST_LENGTH)
_SHA256 = hashes.SHA256()


class Signer:
    """Signs requests with one API key; made by `load_signer`."""

    __slots__ = ("_sign", "algorithm", "key_id")

    def __init__(self, key_id: str, algorithm: str, sign: Callable[[bytes], bytes]) -> None:
        """`sign` turns the message into the raw signature; `algorithm` is its name for people."""
        self.key_id = key_id
        self.algorithm = algorithm
        self._sign = sign

    def __repr__(self) -> str:
        """Which key and algorithm; never the key."""
        return f"Signer(key_id={self.key_id!r}, algorithm={self.algorithm!r})"

    def headers(self, method: str, path: str, now_ms: int) -> dict[str, str]:
        """The three headers of a request at `now_ms` (milliseconds since the epoch).

        `path` starts at the root of the host (`/trade-api/v2/...`); a query string is left out of what is signed.
        """
        assert path.startswith("/")
        timestamp = str(now_ms)
        message = f"{timestamp}{method.upper()}{path.partition('?')[0]}"
        signature = self._sign(message.encode())
        return {
            KEY_HEADER: self.key_id,
            TIMESTAMP_HEADER: timestamp,
            SIGNATURE_HEADER: base64.b64encode(signature).decode("ascii"),
        }


def load_signer(key_id: str, key_path: Path | None = None, pem: bytes | None = None) -> Signer:
    """A signer from exactly one of a PEM file and PEM text (PKCS#1 or PKCS#8, RSA or Ed25519).

    Text from an environment variable may have its line ends written as backslash and n. Raises `CredentialsError`, one
    line that names the file and the remedy.
    """
    _check_key_id(key_id)
    if key_path is not None and pem is None:
        return _signer_of(key_id, _read_key_file(key_path), f"key file {key_path}")
    if pem is not None and key_path is None:
        return _signer_of(key_id, pem.replace(b"\\n", b"\n"), "key text")
    given = "neither" if pem is None else "both"
    raise CredentialsError(
        f"{given} of a key file and a key text given: set exactly one of exchange.key_path and its "
        "environment variable"
    )


def _check_key_id(key_id: str) -> None:
    """Refuse what cannot be a key id, without showing it: it may be a key pasted into the wrong place."""
    if not key_id:
        raise CredentialsError("no API key id: set exchange.key_id to the id shown with the key")
    acceptable = key_id.isascii() and key_id.isprintable() and " " not in key_id
    if not acceptable or len(key_id) > _KEY_ID_MAX_CHARACTERS:
        raise CredentialsError(
            "exchange.key_id is not an API key id: it is a short text without spaces, usually like "
            "0a1b2c3d-0000-0000-0000-000000000000"
        )


def _read_key_file(path: Path) -> bytes:
    """The bytes of a regular file of at most `KEY_FILE_MAX_BYTES`. Raises `CredentialsError`."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CredentialsError(f"key file {path} is not a regular file: {_DOWNLOAD}")
        if status.st_size > KEY_FILE_MAX_BYTES:
            raise CredentialsError(f"key file {path} is too large for a PEM key: {_DOWNLOAD}")
        with path.open("rb") as file:
            return file.read(KEY_FILE_MAX_BYTES)
    except FileNotFoundError:
        raise CredentialsError(
            f"key file {path} does not exist: set exchange.key_path to the private key's file"
        ) from None
    except PermissionError:
        raise CredentialsError(
            f"key file {path} cannot be read: make it readable for this user (chmod 600, chown)"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a usable path"
        raise CredentialsError(f"key file {path} cannot be read ({reason}): {_DOWNLOAD}") from None


def _signer_of(key_id: str, pem: bytes, source: str) -> Signer:
    """The signer for a PEM from `source`. Raises `CredentialsError`."""
    key = _private_key(pem, source)
    if isinstance(key, Ed25519PrivateKey):
        return Signer(key_id, "Ed25519", key.sign)
    if not isinstance(key, RSAPrivateKey):
        kind = type(key).__name__.removesuffix("PrivateKey").strip("_")
        raise CredentialsError(
            f"{source} holds a key of type {kind}; the exchange takes RSA and Ed25519: {_DOWNLOAD}"
        )
    if key.key_size < RSA_BITS_MIN:
        raise CredentialsError(
            f"{source} holds an RSA key of {key.key_size} bits; at least {RSA_BITS_MIN} are needed: "
            "make a new API key"
        )
    rsa_key = key
    return Signer(
        key_id, f"RSA-PSS {key.key_size}", lambda message: rsa_key.sign(message, _PSS, _SHA256)
    )


def _private_key(pem: bytes, source: str) -> object:
    """Any private key in `pem`. Raises `CredentialsError` that says what is there instead."""
    if b"-----BEGIN " not in pem:
        raise CredentialsError(f"{source} is not PEM (no BEGIN line): {_DOWNLOAD}")
    if b"PRIVATE KEY-----" not in pem:
        what = "a certificate" if b"BEGIN CERTIFICATE" in pem else "a public key"
        if b"PUBLIC KEY-----" not in pem and b"BEGIN CERTIFICATE" not in pem:
            what = "no private key"
        raise CredentialsError(f"{source} holds {what} instead of the private key: {_DOWNLOAD}")
    if b"BEGIN OPENSSH" in pem:
        raise CredentialsError(f"{source} is in OpenSSH format: convert it to PKCS#8 PEM")
    try:
        return load_pem_private_key(pem, password=None)
    except TypeError:
        raise CredentialsError(
            f"{source} is encrypted with a passphrase: decrypt it first "
            "(openssl pkey -in OLD -out NEW) and keep the new file readable for this user only"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise CredentialsError(f"{source} is damaged or no PEM private key: {_DOWNLOAD}") from None
