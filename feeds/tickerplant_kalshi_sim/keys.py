"""The key pair of the simulated account, and the check of request signatures.

A signature covers `timestamp_ms + METHOD + path` (no host, no query): RSA-PSS with SHA-256, MGF1 and a salt of 32
bytes, or Ed25519 over the same text. Source: Kalshi API keys page.
"""

import base64
import binascii
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa

from tickerplant.errors import ConfigurationError, CredentialsError

KeyType = Literal["rsa", "ed25519"]
PrivateKey = rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
PublicKey = rsa.RSAPublicKey | ed25519.Ed25519PublicKey
PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=hashes.SHA256.digest_size)
KEY_HEADER = "KALSHI-ACCESS-KEY"
TIMESTAMP_HEADER = "KALSHI-ACCESS-TIMESTAMP"
SIGNATURE_HEADER = "KALSHI-ACCESS-SIGNATURE"


class SimulatedKey(msgspec.Struct, frozen=True):
    """A key of the simulated account; the id is derived from the public key."""

    key_id: str
    path: Path
    public_key: PublicKey


class Refusal(msgspec.Struct, frozen=True):
    """Why a request is answered 401."""

    code: str
    message: str
    details: str = ""

    def body(self) -> bytes:
        """The nested error body of authentication failures."""
        error = {"code": self.code, "message": self.message}
        if self.details:
            error["details"] = self.details
        return msgspec.json.encode({"error": error})


def default_directory(environment: Mapping[str, str]) -> Path:
    """Where the keys are kept when nothing is configured."""
    state = environment.get("STATE_DIRECTORY")
    base = Path(state) if state else Path.home() / ".local" / "state" / "tickerplant"
    return base / "sim"


def load_or_create_key(directory: Path, key_type: KeyType) -> SimulatedKey:
    """The key pair of `key_type` in `directory`, made at first use with mode 0600.

    Raises `ConfigurationError` if the directory cannot be used, `CredentialsError` if the file is no such key.
    """
    path = directory / f"sim-{key_type}.pem"
    try:
        if not path.exists():
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            _create_file(path, _new_pem(key_type))
        pem = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"cannot keep the simulated key in {directory}: {error.strerror}; choose --directory"
        ) from None
    try:
        private_key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        raise CredentialsError(
            f"{path} is not a PEM private key; delete it and start again"
        ) from None
    expected = rsa.RSAPrivateKey if key_type == "rsa" else ed25519.Ed25519PrivateKey
    if not isinstance(private_key, expected):
        raise CredentialsError(f"{path} holds another type of key; delete it and start again")
    public_key = private_key.public_key()
    return SimulatedKey(_key_id(public_key), path, public_key)


def _new_pem(key_type: KeyType) -> bytes:
    """A new private key: RSA 2048 as PKCS#1, as the exchange's web page hands out, or Ed25519 as PKCS#8."""
    if key_type == "rsa":
        key: PrivateKey = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
        style = serialization.PrivateFormat.TraditionalOpenSSL
    else:
        key = ed25519.Ed25519PrivateKey.generate()
        style = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, style, serialization.NoEncryption())


def _create_file(path: Path, content: bytes) -> None:
    """Put `content` at `path` whole or not at all; a file made meanwhile by another process is kept."""
    draft = path.with_suffix(f".{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def _key_id(public_key: PublicKey) -> str:
    der = public_key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    digits = hashlib.sha256(der).hexdigest()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-8{digits[17:20]}-{digits[20:32]}"


class SignatureVerifier:
    """Checks the three headers of a request against the account's keys."""

    def __init__(self, keys: list[SimulatedKey], skew_limit_s: float) -> None:
        self._keys = {key.key_id: key.public_key for key in keys}
        self._skew_limit_ms = int(skew_limit_s * 1_000)

    def refusal(
        self, method: str, path: str, headers: Mapping[str, str], now_ns: int
    ) -> Refusal | None:
        """Why a request signed for `method` and `path` is refused at `now_ns`; None if it is accepted."""
        key_id = headers.get(KEY_HEADER)
        timestamp = headers.get(TIMESTAMP_HEADER)
        signature = headers.get(SIGNATURE_HEADER)
        if not key_id or not timestamp or not signature:
            return Refusal("signature_is_missing_from_headers", "signature headers are missing")
        public_key = self._keys.get(key_id)
        if public_key is None:
            return Refusal("authentication_error", "authentication failed", "NOT_FOUND")
        if not timestamp.isascii() or not timestamp.isdigit() or len(timestamp) > 16:
            return Refusal("header_timestamp_invalid", "timestamp is not in milliseconds")
        if abs(now_ns // 1_000_000 - int(timestamp)) > self._skew_limit_ms:
            return Refusal("header_timestamp_expired", "timestamp is too far from the server's")
        message = f"{timestamp}{method}{path}".encode()
        if not _signature_holds(public_key, signature, message):
            details = "INCORRECT_API_KEY_SIGNATURE"
            return Refusal("authentication_error", "authentication failed", details)
        return None


def _signature_holds(public_key: PublicKey, signature: str, message: bytes) -> bool:
    try:
        raw = base64.b64decode(signature, validate=True)
        if isinstance(public_key, rsa.RSAPublicKey):
            public_key.verify(raw, message, PSS, hashes.SHA256())
        else:
            public_key.verify(raw, message)
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True
