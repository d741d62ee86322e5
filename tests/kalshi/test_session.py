"""The WebSocket session against a real server (the `websockets` library, or a bare socket where it must misbehave)."""

import asyncio
import json
import socket
import ssl
import struct
import time
from base64 import b64decode
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from websocket_exchange import (
    KEY,
    PATH,
    SECOND_NS,
    Shell,
    exchange,
    framed,
    on_uvloop,
    running,
    trade,
    until,
    write,
)
from websockets.asyncio.server import Response, ServerConnection
from websockets.frames import Opcode

from tickerplant.errors import (
    ClockSkewError,
    CredentialsError,
    ExchangeUnavailableError,
    ObsoleteFormatError,
)
from tickerplant.limits import FRAMES_PER_FLUSH, SOCKET_RECEIVE_BUFFER_BYTES

# --- handshake ------------------------------------------------------------------------------------


@on_uvloop
async def test_every_attempt_is_signed_anew_over_the_path_and_offers_no_compression() -> None:
    async with exchange() as server:
        server.answers = [Response(HTTPStatus.BAD_GATEWAY, "Bad Gateway", _headers(), b"")]
        shell = Shell(server.url)
        async with running(shell) as task:
            await until(lambda: shell.session.is_up, task)
        stamps = []
        for request in server.requests:
            assert request.path == PATH
            assert "Sec-WebSocket-Extensions" not in request.headers
            assert request.headers["KALSHI-ACCESS-KEY"] == "key-1"
            stamps.append(request.headers["KALSHI-ACCESS-TIMESTAMP"])
            signature = b64decode(request.headers["KALSHI-ACCESS-SIGNATURE"])
            KEY.public_key().verify(signature, f"{stamps[-1]}GET{PATH}".encode())
            assert abs(int(stamps[-1]) - time.time_ns() // 1_000_000) < 10_000
        assert len(stamps) == 2
        assert stamps[0] <= stamps[1]
        assert (
            server.requests[0].headers["KALSHI-ACCESS-SIGNATURE"]
            != (server.requests[1].headers["KALSHI-ACCESS-SIGNATURE"])
        )
        assert shell.session.counters.handshake_refusals == {"502": 1}


def _headers(**more: str) -> Any:
    from websockets.datastructures import Headers

    return Headers({"Connection": "close", **more})


def refusal(status: HTTPStatus, code: str, details: str = "", **headers: str) -> Response:
    """An error answer of the exchange."""
    error = {"code": code, "message": "no"} | ({"details": details} if details else {})
    body = json.dumps({"error": error}).encode()
    more = {"Content-Length": str(len(body)), **headers}
    return Response(status, status.phrase, _headers(**more), body)


@pytest.mark.parametrize(
    ("details", "remedy"),
    [
        ("INCORRECT_API_KEY_SIGNATURE", "check exchange.key_id and exchange.key_path"),
        ("NOT_FOUND", "check exchange.key_id and exchange.rest_url"),
    ],
)
@on_uvloop
async def test_a_refused_key_ends_a_plant_that_was_never_up(details: str, remedy: str) -> None:
    async with exchange() as server:
        server.answers = [refusal(HTTPStatus.UNAUTHORIZED, "authentication_error", details)]
        with pytest.raises(CredentialsError, match="key-1") as caught:
            await asyncio.wait_for(Shell(server.url).session.run(), 5)
    assert remedy in str(caught.value)
    assert caught.value.exit_code == 2


@on_uvloop
async def test_an_expired_time_stamp_at_the_start_is_a_clock_skew_with_its_size() -> None:
    async with exchange() as server:
        date = formatdate(time.time() + 90, usegmt=True)
        server.answers = [refusal(HTTPStatus.UNAUTHORIZED, "header_timestamp_expired", Date=date)]
        with pytest.raises(ClockSkewError, match=r"(89|90)\.\d s behind") as caught:
            await asyncio.wait_for(Shell(server.url).session.run(), 5)
    assert caught.value.exit_code == 75


@on_uvloop
async def test_once_up_neither_401_nor_429_nor_502_ends_it() -> None:
    async def drop(connection: ServerConnection) -> None:
        connection.transport.abort()

    async with exchange(drop) as server:
        shell = Shell(server.url)
        server.answers = [
            None,
            refusal(HTTPStatus.UNAUTHORIZED, "header_timestamp_expired"),
            refusal(HTTPStatus.UNAUTHORIZED, "authentication_error", "NOT_FOUND"),
            *[refusal(HTTPStatus.TOO_MANY_REQUESTS, "too_many")] * 8,
            refusal(HTTPStatus.BAD_GATEWAY, "down"),
        ]
        async with running(shell) as task:
            await until(lambda: shell.counters.connections_opened == 2, task)
        assert shell.session.counters.handshake_refusals == {"401": 2, "429": 8, "502": 1}


@on_uvloop
async def test_a_redirect_is_not_followed_because_the_signature_is_for_this_host() -> None:
    async with exchange() as elsewhere, exchange() as server:
        moved = Response(
            HTTPStatus.FOUND, "Found", _headers(Location=elsewhere.url.replace("ws:", "http:")), b""
        )
        server.answers = [moved]
        shell = Shell(server.url)
        async with running(shell) as task:
            await until(lambda: shell.session.is_up, task)
        assert elsewhere.requests == []
        assert shell.session.counters.handshake_refusals == {"302": 1}


@on_uvloop
async def test_an_exchange_that_cannot_be_reached_ends_the_start_after_some_attempts() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"ws://127.0.0.1:{unused.getsockname()[1]}{PATH}"
        with pytest.raises(ExchangeUnavailableError, match=r"refused.*exchange\.websocket_url"):
            await asyncio.wait_for(Shell(url).session.run(), 5)


@on_uvloop
async def test_a_server_that_accepts_and_says_nothing_is_given_up_after_the_connect_time_out() -> (
    None
):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"ws://127.0.0.1:{silent.getsockname()[1]}{PATH}"
        shell = Shell(url, connect_timeout_s=0.05)
        with pytest.raises(ExchangeUnavailableError, match="not connected within"):
            await asyncio.wait_for(shell.session.run(), 5)
        assert shell.session.counters.connect_attempts == 6


@on_uvloop
async def test_a_server_that_hangs_up_during_the_handshake_is_tried_again() -> None:
    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}{PATH}"
        with pytest.raises(ExchangeUnavailableError):
            await asyncio.wait_for(Shell(url).session.run(), 5)


@on_uvloop
async def test_tls_needs_a_certificate_that_is_trusted(tmp_path: Path) -> None:
    certificate, key = _certificate(tmp_path)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate, key)
    async with exchange(tls=serving) as server:
        with pytest.raises(ExchangeUnavailableError, match=r"(?i)certificate"):
            await asyncio.wait_for(Shell(server.url).session.run(), 5)
        shell = Shell(server.url, tls=ssl.create_default_context(cafile=str(certificate)))
        async with running(shell) as task:
            await until(lambda: server.commands, task)
            assert shell.session.is_up


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return folder / "certificate.pem", folder / "key.pem"


@on_uvloop
async def test_the_socket_is_set_up_for_short_batches_and_dead_peers() -> None:
    async with exchange() as server:
        shell = Shell(server.url)
        async with running(shell) as task:
            await until(lambda: shell.session.is_up, task)
            transport = shell.session._transport
            assert transport is not None
            connected = transport.underlying_transport.get_extra_info("socket")

            def option(level: int, name: int) -> int:
                return int(connected.getsockopt(level, name))

            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_RECEIVE_BUFFER_BYTES)
                granted = probe.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            assert option(socket.SOL_SOCKET, socket.SO_RCVBUF) == granted
            assert option(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert option(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert option(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 15
            assert option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000


# --- losing the connection ------------------------------------------------------------------------


@on_uvloop
async def test_a_reset_is_told_and_everything_is_subscribed_again() -> None:
    async def reset(connection: ServerConnection) -> None:
        connection.transport.write(framed(trade(1)))
        await asyncio.sleep(0.02)
        opened = connection.transport.get_extra_info("socket")
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.transport.abort()

    async with exchange(reset) as server:
        shell = Shell(server.url)
        async with running(shell) as task:
            await until(lambda: len(server.commands) == 2, task)
            assert shell.counters.connections_lost == 1
        assert server.commands[0]["params"] == server.commands[1]["params"]
        assert shell.log.events[1][0] == "connection_lost"
        assert "reset" in shell.log.reasons()[0]


@on_uvloop
async def test_a_close_frame_is_answered_and_its_reason_told() -> None:
    codes: list[int] = []

    async def close(connection: ServerConnection) -> None:
        await connection.close(4321, "maintenance")
        codes.append(connection.close_code or 0)

    async with exchange(close) as server:
        shell = Shell(server.url)
        async with running(shell) as task:
            await until(lambda: shell.counters.connections_opened == 2, task)
        assert shell.log.reasons() == ["closed by the exchange (code 4321) maintenance"]
        assert codes == [1000]


@on_uvloop
async def test_silence_of_a_half_open_socket_is_probed_by_pings_and_then_ends_it() -> None:
    quiet = asyncio.Event()

    async def stall(connection: ServerConnection) -> None:
        connection.transport.pause_reading()
        quiet.set()
        await over.wait()

    over = asyncio.Event()
    async with exchange(stall) as server:
        shell = Shell(server.url)
        async with running(shell) as task:
            await asyncio.wait_for(quiet.wait(), 5)
            await until(lambda: shell.counters.frames == 1, task)
            shell.ahead_ns = 11 * SECOND_NS
            shell.fire_timer()
            assert shell.session.counters.pings_sent == 1
            assert shell.session.is_up
            shell.ahead_ns = 26 * SECOND_NS
            shell.fire_timer()
            await until(lambda: shell.counters.connections_opened == 2, task)
            over.set()
        assert shell.log.reasons() == ["no frame of any kind for 25 s"]


@on_uvloop
async def test_a_pong_alone_keeps_a_quiet_connection() -> None:
    async with exchange() as server:
        shell = Shell(server.url)
        async with running(shell) as task:
            await until(lambda: shell.counters.frames == 1, task)
            for seconds in (11, 22, 33, 44):
                shell.ahead_ns = seconds * SECOND_NS
                shell.fire_timer()
                pings = shell.session.counters.pings_sent
                await until(lambda n=pings: shell.session.counters.pongs_received == n, task)
            assert shell.session.counters.pings_sent == 4
            assert shell.counters.connections_opened == 1


@on_uvloop
async def test_a_peer_that_pings_without_reading_cannot_fill_our_memory() -> None:
    async def flood(connection: ServerConnection) -> None:
        connection.transport.pause_reading()
        burst = framed(b"p" * 125, Opcode.PING) * 500
        for _ in range(2_000):
            connection.transport.write(burst)
            await asyncio.sleep(0.001 if connection.transport.get_write_buffer_size() else 0)
            if connection.transport.is_closing():
                return

    async with exchange(flood) as server:
        shell = Shell(server.url)
        async with running(shell) as task:
            await until(lambda: shell.counters.connections_opened == 2, task)
        assert "stopped reading" in shell.log.reasons()[0]


@on_uvloop
async def test_the_back_off_grows_and_starts_anew_after_a_stable_connection() -> None:
    async def drop(connection: ServerConnection) -> None:
        connection.transport.abort()

    async with exchange(drop, drop, drop) as server:
        shell = Shell(server.url, random_unit=lambda: 0.0, reconnect_cap_ns=100_000_000)
        async with running(shell) as task:
            await until(lambda: len(server.connections) == 4, task)
            shell.ahead_ns = 61 * SECOND_NS
            server.connections[3].transport.abort()
            await until(lambda: shell.counters.connections_opened == 5, task)
        waits_ms = [
            fields["retry_in_ms"] for _, fields in shell.log.events if "retry_in_ms" in fields
        ]
        assert waits_ms == [0, 1, 2, 0]


# --- the end --------------------------------------------------------------------------------------


@on_uvloop
async def test_a_frame_of_the_old_format_ends_the_plant_with_a_line_that_says_so() -> None:
    old = (
        b'{"type":"orderbook_snapshot","sid":2,"seq":1,"msg":{"market_ticker":"KXTEST-1",'
        b'"market_id":"1","yes":[[30,100]],"no":[[60,100]]}}'
    )
    async with exchange(write(framed(old), framed(trade(1)))) as server:
        shell = Shell(server.url)
        with pytest.raises(ObsoleteFormatError, match="2026-03-12"):
            await asyncio.wait_for(shell.session.run(), 5)
        assert [where for where, _ in shell.failures] == ["connection 0"]
        assert shell.plant.trades == 0


@on_uvloop
async def test_a_fault_of_our_own_ends_it_and_nothing_more_is_read() -> None:
    count = 2_000
    async with exchange(write(*(framed(trade(seq)) for seq in range(1, count + 1)))) as server:
        shell = Shell(server.url)
        honest = shell.publish

        def publish() -> None:
            if shell.plant.trades >= 100:
                raise RuntimeError("a bug")
            honest()

        shell.publish = publish  # type: ignore[method-assign]  # the fault to be injected
        with pytest.raises(RuntimeError, match="a bug"):
            await asyncio.wait_for(shell.session.run(), 5)
        assert str(shell.failures[0][1]) == "a bug"
        assert shell.plant.trades <= 100 + FRAMES_PER_FLUSH


@on_uvloop
async def test_cancelling_closes_the_socket_before_it_returns() -> None:
    async with exchange() as server:
        shell = Shell(server.url)
        async with running(shell) as task:
            await until(lambda: server.commands, task)
            shell.session.detach()
        assert not shell.session.is_up
        await until(lambda: server.connections[0].close_code is not None)
        assert server.connections[0].close_code == 1001
        # Detached: the end of the session is not a lost connection.
        assert shell.counters.connections_lost == 0


@on_uvloop
async def test_cancelling_during_the_handshake_leaves_no_socket_behind() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        shell = Shell(f"ws://127.0.0.1:{silent.getsockname()[1]}{PATH}")
        async with running(shell):
            accepted, _ = await asyncio.to_thread(silent.accept)
            accepted.settimeout(5)
            request = await asyncio.to_thread(accepted.recv, 4096)
            assert request.startswith(b"GET")
        assert await asyncio.to_thread(accepted.recv, 1) == b""
        accepted.close()
