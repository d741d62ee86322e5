"""Keys of both kinds and forms sign what the exchange verifies; every wrong key is told in one line without the key."""

import base64
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
)

from tickerplant.errors import CredentialsError
from tickerplant_kalshi.auth import load_signer

KEY_ID = "0a1b2c3d-1111-2222-3333-444455556666"
NOW_MS = 1_795_197_851_207
PemOf = Callable[..., bytes]


def forms(key: str) -> list[PrivateFormat]:
    return [PrivateFormat.PKCS8] + ([PrivateFormat.TraditionalOpenSSL] if key == "rsa_key" else [])


@pytest.mark.parametrize(
    ("key", "form"), [(key, form) for key in ("rsa_key", "ed25519_key") for form in forms(key)]
)
def test_signature_verifies_over_time_method_and_path_without_query(
    key: str,
    form: PrivateFormat,
    tmp_path: Path,
    pem_of: PemOf,
    signature_verifies: Callable[[Any, bytes, bytes], bool],
    request: pytest.FixtureRequest,
) -> None:
    private_key = request.getfixturevalue(key)
    path = tmp_path / "key.pem"
    path.write_bytes(pem_of(private_key, form))
    signer = load_signer(KEY_ID, path)
    headers = signer.headers("get", "/trade-api/v2/markets/orderbooks?tickers=A&tickers=B", NOW_MS)
    assert headers["KALSHI-ACCESS-KEY"] == KEY_ID
    assert headers["KALSHI-ACCESS-TIMESTAMP"] == "1795197851207"
    signature = base64.b64decode(headers["KALSHI-ACCESS-SIGNATURE"], validate=True)
    assert len(signature) == (256 if key == "rsa_key" else 64)
    public_key = private_key.public_key()
    message = b"1795197851207GET/trade-api/v2/markets/orderbooks"
    assert signature_verifies(public_key, signature, message)
    assert not signature_verifies(public_key, signature, message + b"?tickers=A&tickers=B")
    assert set(headers) == {
        "KALSHI-ACCESS-KEY",
        "KALSHI-ACCESS-TIMESTAMP",
        "KALSHI-ACCESS-SIGNATURE",
    }


def test_key_text_may_come_from_an_environment_variable(
    ed25519_key: Any, pem_of: PemOf, signature_verifies: Callable[[Any, bytes, bytes], bool]
) -> None:
    """With line ends written as backslash and n, as shells and unit files often hold them."""
    pem = pem_of(ed25519_key).replace(b"\n", b"\\n")
    headers = load_signer(KEY_ID, pem=pem).headers("GET", "/trade-api/ws/v2", NOW_MS)
    signature = base64.b64decode(headers["KALSHI-ACCESS-SIGNATURE"])
    message = b"1795197851207GET/trade-api/ws/v2"
    assert signature_verifies(ed25519_key.public_key(), signature, message)


def test_repr_tells_the_key_id_and_algorithm_and_nothing_of_the_key(
    rsa_key: Any, ed25519_key: Any, pem_of: PemOf
) -> None:
    assert repr(load_signer(KEY_ID, pem=pem_of(rsa_key))) == (
        f"Signer(key_id='{KEY_ID}', algorithm='RSA-PSS 2048')"
    )
    assert "Ed25519" in repr(load_signer(KEY_ID, pem=pem_of(ed25519_key)))


def public_pem(key: Any) -> bytes:
    return bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def wrong_keys(pem_of: PemOf) -> dict[str, bytes]:
    """PEM text by the word that its error must contain."""
    good = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = pem_of(good)
    pkcs1 = good.public_key().public_bytes(Encoding.PEM, PublicFormat.PKCS1)
    encrypted = BestAvailableEncryption(b"passphrase")
    openssh = pem_of(good, PrivateFormat.OpenSSH)
    return {
        "no BEGIN line": b"just some text\n",
        "not PEM": b"",
        "a public key": public_pem(good),
        "public key instead": pkcs1,
        "a certificate": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "no private key": b"-----BEGIN DH PARAMETERS-----\nAAAA\n-----END DH PARAMETERS-----\n",
        "OpenSSH": openssh,
        "passphrase": pem_of(good, PrivateFormat.PKCS8, encrypted),
        "encrypted": pem_of(good, PrivateFormat.TraditionalOpenSSL, encrypted),
        "type EC": pem_of(ec.generate_private_key(ec.SECP256R1())),
        "type DSA": pem_of(dsa.generate_private_key(2048)),
        "type X25519": pem_of(x25519.X25519PrivateKey.generate()),
        "1024 bits": pem_of(rsa.generate_private_key(public_exponent=65537, key_size=1024)),
        "damaged": pem[:400] + b"!" + pem[401:],
        "damaged or": pem[: len(pem) // 2],
    }


def test_every_wrong_key_is_one_line_that_names_the_file_and_hides_the_key(
    tmp_path: Path, pem_of: PemOf
) -> None:
    path = tmp_path / "key.pem"
    for words, pem in wrong_keys(pem_of).items():
        path.write_bytes(pem)
        with pytest.raises(CredentialsError) as caught:
            load_signer(KEY_ID, path)
        text = str(caught.value)
        assert words in text, (words, text)
        assert str(path) in text
        assert "\n" not in text
        secrets = [
            line for line in pem.decode().splitlines() if len(line) > 20 and "---" not in line
        ]
        assert not any(line in text for line in secrets)
        assert caught.value.__cause__ is None


def test_missing_file_and_folder_and_huge_file(tmp_path: Path) -> None:
    with pytest.raises(
        CredentialsError, match=r"absent\.pem does not exist: set exchange\.key_path"
    ):
        load_signer(KEY_ID, tmp_path / "absent.pem")
    with pytest.raises(CredentialsError, match="not a regular file"):
        load_signer(KEY_ID, tmp_path)
    huge = tmp_path / "huge.pem"
    huge.write_bytes(b"x" * 100_000)
    with pytest.raises(CredentialsError, match=r"huge\.pem is too large"):
        load_signer(KEY_ID, huge)
    with pytest.raises(CredentialsError, match="cannot be read"):
        load_signer(KEY_ID, tmp_path / "key\0.pem")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(CredentialsError, match="not a regular file"):
        load_signer(KEY_ID, pipe)
    with pytest.raises(CredentialsError, match="cannot be read"):
        load_signer(KEY_ID, huge / "below")


@pytest.fixture
def without_privileges() -> Iterator[None]:
    """Permissions do not bind the superuser, so act as nobody where the tests run as root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65_534)
    yield
    os.seteuid(user)


def test_unreadable_file(
    tmp_path: Path, ed25519_key: Any, pem_of: PemOf, without_privileges: None
) -> None:
    path = tmp_path / "key.pem"
    if os.access(tmp_path, os.W_OK, effective_ids=True):
        path.write_bytes(pem_of(ed25519_key))
        path.chmod(stat.S_IWUSR)
    with pytest.raises(CredentialsError, match=r"key\.pem cannot be read: make it readable"):
        load_signer(KEY_ID, path)


@pytest.mark.parametrize("key_id", ["", "two words", "line\nbreak", "naïve", "x" * 200])
def test_key_id_is_one_word_and_never_echoed(key_id: str, ed25519_key: Any, pem_of: PemOf) -> None:
    with pytest.raises(CredentialsError) as caught:
        load_signer(key_id, pem=pem_of(ed25519_key))
    assert "exchange.key_id" in str(caught.value)
    assert not key_id or key_id not in str(caught.value)


def test_exactly_one_source_of_the_key(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match="neither of a key file and a key text"):
        load_signer(KEY_ID)
    with pytest.raises(CredentialsError, match="both"):
        load_signer(KEY_ID, tmp_path / "key.pem", b"x")
