"""The account's key pair and the check of signatures, both key types."""

import base64
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa

from tickerplant.errors import ConfigurationError, CredentialsError
from tickerplant_kalshi_sim.keys import (
    KeyType,
    SignatureVerifier,
    SimulatedKey,
    default_directory,
    load_or_create_key,
)

PATH = "/trade-api/ws/v2"
NOW_NS = 1_795_197_851_207_000_000


@pytest.fixture(scope="module", params=["rsa", "ed25519"])
def key(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimulatedKey:
    key_type: KeyType = request.param
    return load_or_create_key(tmp_path_factory.mktemp("keys") / "deep", key_type)


def headers(
    key: SimulatedKey, *, message: str | None = None, timestamp_ms: int = NOW_NS // 1_000_000
) -> dict[str, str]:
    """Headers signed over `message`, by default over the right one."""
    private_key = serialization.load_pem_private_key(key.path.read_bytes(), password=None)
    data = (message or f"{timestamp_ms}GET{PATH}").encode()
    if isinstance(private_key, rsa.RSAPrivateKey):
        pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)
        signature = private_key.sign(data, pss, hashes.SHA256())
    else:
        assert isinstance(private_key, ed25519.Ed25519PrivateKey)
        signature = private_key.sign(data)
    return {
        "KALSHI-ACCESS-KEY": key.key_id,
        "KALSHI-ACCESS-TIMESTAMP": str(timestamp_ms),
        "KALSHI-ACCESS-SIGNATURE": base64.b64encode(signature).decode(),
    }


def refusal(key: SimulatedKey, given: dict[str, str], path: str = PATH) -> tuple[str, str] | None:
    refused = SignatureVerifier([key], 15).refusal("GET", path, given, NOW_NS)
    return None if refused is None else (refused.code, refused.details)


def test_right_signature_is_accepted(key: SimulatedKey) -> None:
    assert refusal(key, headers(key)) is None


@pytest.mark.parametrize("skew_s", [-14, 14])
def test_small_skew_is_accepted(key: SimulatedKey, skew_s: int) -> None:
    assert refusal(key, headers(key, timestamp_ms=NOW_NS // 1_000_000 + skew_s * 1_000)) is None


@pytest.mark.parametrize("skew_s", [-30, -16, 16, 60])
def test_large_skew_is_refused(key: SimulatedKey, skew_s: int) -> None:
    given = headers(key, timestamp_ms=NOW_NS // 1_000_000 + skew_s * 1_000)
    assert refusal(key, given) == ("header_timestamp_expired", "")


@pytest.mark.parametrize(
    "message",
    [
        f"{NOW_NS // 1_000_000}GET{PATH}?query=1",
        f"{NOW_NS // 1_000_000}get{PATH}",
        f"{NOW_NS // 1_000_000}GET{PATH}/",
        f"{NOW_NS // 1_000_000 + 1}GET{PATH}",
        f"GET{PATH}",
    ],
)
def test_wrong_message_is_refused(key: SimulatedKey, message: str) -> None:
    expected = ("authentication_error", "INCORRECT_API_KEY_SIGNATURE")
    assert refusal(key, headers(key, message=message)) == expected


@pytest.mark.parametrize("signature", ["", "!!!", "AAAA", "=", "ü"])
def test_nonsense_signature_is_refused(key: SimulatedKey, signature: str) -> None:
    given = headers(key) | {"KALSHI-ACCESS-SIGNATURE": signature}
    expected = (
        ("authentication_error", "INCORRECT_API_KEY_SIGNATURE")
        if signature
        else ("signature_is_missing_from_headers", "")
    )
    assert refusal(key, given) == expected


def test_unknown_key_and_missing_headers(key: SimulatedKey) -> None:
    given = headers(key)
    assert refusal(key, given | {"KALSHI-ACCESS-KEY": "other"}) == (
        "authentication_error",
        "NOT_FOUND",
    )
    for name in given:
        partial = {k: v for k, v in given.items() if k != name}
        assert refusal(key, partial) == ("signature_is_missing_from_headers", "")
    for text in ("soon", "-5", "1" * 40, "\uff11\uff12"):
        refused = refusal(key, given | {"KALSHI-ACCESS-TIMESTAMP": text})
        assert refused == ("header_timestamp_invalid", "")


def test_pkcs1_v15_padding_is_refused(tmp_path: Path) -> None:
    key = load_or_create_key(tmp_path, "rsa")
    private_key = serialization.load_pem_private_key(key.path.read_bytes(), password=None)
    assert isinstance(private_key, rsa.RSAPrivateKey)
    message = f"{NOW_NS // 1_000_000}GET{PATH}".encode()
    signature = private_key.sign(message, padding.PKCS1v15(), hashes.SHA256())
    given = headers(key) | {"KALSHI-ACCESS-SIGNATURE": base64.b64encode(signature).decode()}
    assert refusal(key, given) == ("authentication_error", "INCORRECT_API_KEY_SIGNATURE")


def test_refusal_body_is_nested(key: SimulatedKey) -> None:
    refused = SignatureVerifier([key], 15).refusal("GET", PATH, {}, time.time_ns())
    assert refused is not None
    assert refused.body() == (
        b'{"error":{"code":"signature_is_missing_from_headers","message":"signature headers are missing"}}'
    )


def test_key_files(key: SimulatedKey) -> None:
    """Private mode, the format that the exchange hands out, and the same key at the next start."""
    assert stat.S_IMODE(key.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.path.parent.stat().st_mode) == 0o700
    is_rsa = key.path.name == "sim-rsa.pem"
    first_line = key.path.read_text().splitlines()[0]
    assert first_line == f"-----BEGIN {'RSA ' if is_rsa else ''}PRIVATE KEY-----"
    if is_rsa:
        assert isinstance(key.public_key, rsa.RSAPublicKey)
        assert key.public_key.key_size == 2_048
    again = load_or_create_key(key.path.parent, "rsa" if is_rsa else "ed25519")
    assert again.key_id == key.key_id
    assert [path.name for path in key.path.parent.iterdir()] == [key.path.name]


def unreadable(path: Path) -> None:
    path.write_text("no PEM")


def other_type(path: Path) -> None:
    pem = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(pem)


@pytest.mark.parametrize("spoil", [unreadable, other_type])
def test_spoilt_key_file_is_named(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    spoil(tmp_path / "sim-rsa.pem")
    with pytest.raises(CredentialsError, match=r"sim-rsa\.pem .*delete it") as caught:
        load_or_create_key(tmp_path, "rsa")
    assert "\n" not in str(caught.value)


def test_unusable_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="choose --directory"):
        load_or_create_key(tmp_path / "file" / "keys", "rsa")


def test_default_directory() -> None:
    assert default_directory({"STATE_DIRECTORY": "/var/lib/x"}) == Path("/var/lib/x/sim")
    assert default_directory({}) == Path.home() / ".local" / "state" / "tickerplant" / "sim"
