"""Shared parts: free ports and groups, API keys, and a small exchange that really verifies signatures."""

import asyncio
import base64
import itertools
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from email.utils import formatdate
from pathlib import Path

import pytest
from aiohttp import web
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

sys.path.append(str(Path(__file__).parent.parent / "models"))

from plant_in_process import place, receiver  # noqa: F401 - fixtures, found on the path set above

KEY_ID = "0a1b2c3d-1111-2222-3333-444444444444"
_GROUPS_HANDED_OUT = itertools.count()


@pytest.fixture
def free_tcp_port() -> int:
    """A TCP port of the loopback interface that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def free_udp_port() -> int:
    """A UDP port that nobody uses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def group() -> str:
    """A multicast group with room for five, of this process and test alone."""
    number = (os.getpid() % 512) * 128 + next(_GROUPS_HANDED_OUT) % 16 * 8
    return f"239.195.{number >> 8}.{number & 255}"


@pytest.fixture
def no_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory and environment, so that no configuration of this machine is found."""
    for name in list(os.environ):
        if name.startswith("TICKERPLANT") or name in {"KALSHI_KEY_PEM", "STATE_DIRECTORY"}:
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_key(path: Path, key: Ed25519PrivateKey) -> Path:
    """Write `key` as PKCS#8 PEM, readable for its owner only."""
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    path.chmod(0o600)
    return path


class SmallExchange:
    """REST status and limits and the WebSocket handshake, with real signatures and a clock that can be wrong."""

    def __init__(self, public_key: Ed25519PublicKey) -> None:
        self.clock_ahead_s = 0
        self.age_s: int | None = None
        self.websocket_status = 0
        self.reply_delay_s = 0.0
        self.port = 0
        self._public_key = public_key

    @property
    def rest_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/trade-api/v2"

    @property
    def websocket_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/trade-api/ws/v2"

    def settings(self, key_path: Path) -> list[str]:
        """`--set` options that lead here."""
        values = {
            "exchange.rest_url": self.rest_url,
            "exchange.websocket_url": self.websocket_url,
            "exchange.key_id": KEY_ID,
            "exchange.key_path": str(key_path),
        }
        return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]

    def _date(self) -> dict[str, str]:
        headers = {"Date": formatdate(time.time() + self.clock_ahead_s, usegmt=True)}
        if self.age_s is not None:
            headers["Date"] = formatdate(time.time() - self.age_s, usegmt=True)
            headers["Age"] = str(self.age_s)
        return headers

    def _refusal(self, request: web.Request) -> web.Response | None:
        """The 401 of the exchange, None if the signature is right."""
        details = ""
        signature = base64.b64decode(request.headers.get("KALSHI-ACCESS-SIGNATURE", ""))
        text = request.headers.get("KALSHI-ACCESS-TIMESTAMP", "") + "GET" + request.path
        if request.headers.get("KALSHI-ACCESS-KEY") != KEY_ID:
            details = "NOT_FOUND"
        else:
            try:
                self._public_key.verify(signature, text.encode())
            except InvalidSignature:
                details = "INCORRECT_API_KEY_SIGNATURE"
        if not details:
            return None
        error = {"code": "authentication_error", "message": "refused", "details": details}
        return web.json_response({"error": error}, status=401, headers=self._date())

    async def status(self, _request: web.Request) -> web.Response:
        await asyncio.sleep(self.reply_delay_s)
        return web.json_response({"exchange_active": True}, headers=self._date())

    async def limits(self, request: web.Request) -> web.Response:
        rate = {"refill_rate": 200, "bucket_capacity": 400}
        body = {"usage_tier": "basic", "read": rate, "write": rate, "grants": []}
        return self._refusal(request) or web.json_response(body, headers=self._date())

    async def websocket(self, request: web.Request) -> web.StreamResponse:
        if self.websocket_status:
            return web.Response(status=self.websocket_status)
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        connection = web.WebSocketResponse()
        await connection.prepare(request)
        async for _message in connection:
            pass
        return connection


@pytest.fixture
def exchange_key(tmp_path: Path) -> tuple[Path, Ed25519PrivateKey]:
    """A key that `exchange` knows, and its file."""
    key = Ed25519PrivateKey.generate()
    return write_key(tmp_path / "kalshi.pem", key), key


@pytest.fixture
async def exchange(
    exchange_key: tuple[Path, Ed25519PrivateKey],
) -> AsyncIterator[SmallExchange]:
    """A running `SmallExchange`."""
    small = SmallExchange(exchange_key[1].public_key())
    application = web.Application()
    application.router.add_get("/trade-api/v2/exchange/status", small.status)
    application.router.add_get("/trade-api/v2/account/limits", small.limits)
    application.router.add_get("/trade-api/ws/v2", small.websocket)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    small.port = runner.addresses[0][1]
    yield small
    await runner.cleanup()
