"""Keys and sources on real multicast over loopback: whom a subscriber and `tail` believe."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from tickerplant.core.keyring import KeyRing, format_key
from tickerplant.core.messages import Stream, Trade
from tickerplant.core.wire import encode_datagram
from tickerplant.errors import ConfigurationError, CredentialsError
from tickerplant_subscriber import DatagramsRefused, Subscriber

RING = KeyRing([(7, b"k" * 32)])
NEWER = KeyRing([(8, b"n" * 32)])
OTHER = KeyRing([(7, b"x" * 32)])


def write_keys(path: Path, *rings: KeyRing) -> None:
    """The signing key of each ring, in one file, replaced at once."""
    fresh = path.with_suffix(".new")
    fresh.write_text("".join(format_key(*ring.signing_key) for ring in rings))
    fresh.chmod(0o600)
    fresh.replace(path)


@pytest.fixture
def key_path(tmp_path: Path) -> str:
    """A file with the key of `RING`."""
    path = tmp_path / "datagram.keys"
    write_keys(path, RING)
    return str(path)


class Trades:
    """A plant's trades, one a datagram, in one session; `sequence` is the next."""

    def __init__(self, sender: Any) -> None:
        self.session = time.time_ns()
        self.sequence = 1
        self._sender = sender

    def datagram(self, seq: int, ring: KeyRing | None, ticker: str = "REAL") -> bytes:
        message = Trade(ticker, seq, 0, 0, f"trade-{seq}", 5_000, 100, 0)
        datagram = encode_datagram(0, Stream.TRADE, self.session, seq, time.time_ns(), [message])
        return datagram if ring is None else ring.sign(datagram)

    def send(self, ring: KeyRing | None) -> None:
        """The next one."""
        self._sender.send(Stream.TRADE, self.datagram(self.sequence, ring))
        self.sequence += 1

    def forge(self, ring: KeyRing | None) -> None:
        """One in the place of the next."""
        self._sender.send(Stream.TRADE, self.datagram(self.sequence, ring, "FORGED"))


@pytest.fixture
def trades(sender: Any) -> Trades:
    """Trades on line A."""
    return Trades(sender)


async def next_trades(subscriber: Subscriber, count: int) -> list[str]:
    """Tickers of the next trades, in at most ten seconds."""
    tickers: list[str] = []
    async with asyncio.timeout(10):
        async for item in subscriber:
            if isinstance(item, Trade):
                tickers.append(item.ticker)
                if len(tickers) == count:
                    break
    return tickers


async def until(condition: Callable[[], bool]) -> None:
    """Returns as soon as it holds; fails after ten seconds."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within thirty seconds"
        await asyncio.sleep(0.01)


async def test_what_is_not_signed_with_our_key_is_dropped_and_counted(
    group: str, port: int, trades: Trades, key_path: str
) -> None:
    async with Subscriber(
        streams=["trade"], group_a=group, port=port, recovery=(), key_path=key_path
    ) as subscriber:
        for _ in range(10):
            trades.forge(None)
            trades.forge(OTHER)
            trades.send(RING)
        assert await next_trades(subscriber, 10) == ["REAL"] * 10
        assert subscriber.stats().refused == {"AuthenticationError": 20}


async def test_a_new_key_is_taken_over_while_running(
    group: str, port: int, trades: Trades, key_path: str
) -> None:
    """Old key, both, new key: nothing is lost, and in the end the old one is believed no more."""
    path = Path(key_path)
    async with Subscriber(
        streams=["trade"], group_a=group, port=port, recovery=(), key_path=key_path
    ) as subscriber:
        admission = subscriber._reception.arbiter.admission
        trades.send(RING)
        write_keys(path, RING, NEWER)
        await until(lambda: admission.key_ring is not None and 8 in admission.key_ring.keys)
        trades.send(RING)
        trades.send(NEWER)
        write_keys(path, NEWER)
        await until(lambda: admission.key_ring is not None and 7 not in admission.key_ring.keys)
        trades.forge(RING)
        trades.send(NEWER)
        assert await next_trades(subscriber, 4) == ["REAL"] * 4
        assert subscriber.stats().refused == {"AuthenticationError": 1}


async def test_a_key_file_spoilt_while_running_changes_nothing(
    group: str, port: int, trades: Trades, key_path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Subscriber(
        streams=["trade"], group_a=group, port=port, recovery=(), key_path=key_path
    ) as subscriber:
        write_keys(Path(key_path))
        await until(lambda: "the keys stay as they were" in caplog.text)
        trades.forge(None)
        trades.send(RING)
        assert await next_trades(subscriber, 1) == ["REAL"]


def test_keys_that_every_user_can_read_are_a_warning(
    group: str, port: int, key_path: str, caplog: pytest.LogCaptureFixture
) -> None:
    Path(key_path).chmod(0o644)
    subscriber = Subscriber(group_a=group, port=port, recovery=(), key_path=key_path)
    subscriber._reception.open()
    subscriber._reception.close()
    assert f"chmod o= {key_path}" in caplog.text


def test_options_that_cannot_be_right_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match="is not there"):
        Subscriber(key_path=str(tmp_path / "none"))
    with pytest.raises(ConfigurationError, match="replay_window_ms = 0"):
        Subscriber(replay_window_ms=0)
    with pytest.raises(ConfigurationError, match="source_b"):
        Subscriber(source_b="plant")


# --- who sends --------------------------------------------------------------------------------------


@asynccontextmanager
async def line_from(source: str, first_group: str, port: int) -> AsyncIterator[Any]:
    """A sender with an address of its own; all of 127.0.0.0/8 is this host."""

    class Line:
        def __init__(self, sender: socket.socket) -> None:
            self._sender = sender

        def send(self, stream: int, datagram: bytes) -> None:
            group = str(IPv4Address(first_group) + stream - 1)
            self._sender.sendto(datagram, (group, port))

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
        sender.bind((source, 0))
        yield Line(sender)


async def test_another_sender_is_not_even_heard(group: str, port: int) -> None:
    """The kernel drops it before it is read: nothing is refused because nothing comes."""
    async with (
        line_from("127.0.0.1", group, port) as plant,
        line_from("127.0.0.9", group, port) as stranger,
        Subscriber(
            streams=["trade"], group_a=group, port=port, recovery=(), source="127.0.0.1"
        ) as subscriber,
    ):
        trades = Trades(plant)
        forged = Trades(stranger)
        for _ in range(10):
            stranger.send(Stream.TRADE, b"another protocol")
            forged.send(None)
            trades.send(None)
        assert await next_trades(subscriber, 10) == ["REAL"] * 10
        stats = subscriber.stats()
        assert stats.refused == {}
        assert {each.session for each in stats.streams} == {trades.session}


async def test_each_line_has_a_source_of_its_own(group: str, group_b: str, port: int) -> None:
    """Line A loses every second datagram; what line B's source sends makes up for it, and no other sender's does."""
    async with (
        line_from("127.0.0.1", group, port) as line_a,
        line_from("127.0.0.2", group_b, port) as line_b,
        line_from("127.0.0.1", group_b, port) as stranger,
        Subscriber(
            streams=["trade"],
            group_a=group,
            group_b=group_b,
            port=port,
            recovery=(),
            source="127.0.0.1",
            source_b="127.0.0.2",
        ) as subscriber,
    ):
        trades = Trades(line_a)
        for seq in range(1, 11):
            stranger.send(Stream.TRADE, trades.datagram(seq, None, "FORGED"))
            line_b.send(Stream.TRADE, trades.datagram(seq, None))
            if seq % 2:
                line_a.send(Stream.TRADE, trades.datagram(seq, None))
        assert await next_trades(subscriber, 10) == ["REAL"] * 10


# --- the command line -------------------------------------------------------------------------------


def tail(group: str, port: int, *options: str) -> "subprocess.Popen[str]":
    """`tickerplant tail` of trades, as JSON."""
    return subprocess.Popen(
        [
            *(
                sys.executable,
                "-P",
                "-m",
                "tickerplant",
                "tail",
                "--format",
                "json",
                "--stream",
                "trade",
            ),
            *("--group-a", group, "--port", str(port), "--for", "20s", *options),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HOME": "/nonexistent"},
        cwd="/",
    )


def lines_while_sending(process: "subprocess.Popen[str]", send: Callable[[], None]) -> list[Any]:
    """What it prints while `send` is called again and again; it ends by itself."""
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        send()
        time.sleep(0.01)
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    return [json.loads(line) for line in output.splitlines()]


def test_tail_with_a_key_prints_what_is_signed(
    group: str, port: int, trades: Trades, key_path: str
) -> None:
    def send() -> None:
        trades.forge(OTHER)
        trades.send(RING)

    with tail(group, port, "--key", key_path, "--count", "30") as process:
        printed = lines_while_sending(process, send)
    tickers = {line["ticker"] for line in printed if "ticker" in line and "price_e4" in line}
    assert tickers == {"REAL"}
    (refused,) = [line for line in printed if line.get("event") == "DatagramsRefused"][:1]
    assert refused["error"] == "AuthenticationError"


def test_tail_with_another_key_prints_why_it_prints_nothing(
    group: str, port: int, trades: Trades, tmp_path: Path
) -> None:
    write_keys(tmp_path / "other.keys", OTHER)
    with tail(group, port, "--key", str(tmp_path / "other.keys"), "--count", "1") as process:
        (line,) = lines_while_sending(process, lambda: trades.send(RING))
    assert line["event"] == DatagramsRefused.__name__
    assert "does not verify under key id 7" in line["detail"]


def test_tail_refuses_a_key_file_of_no_use(group: str, port: int, tmp_path: Path) -> None:
    with tail(group, port, "--key", str(tmp_path / "none")) as process:
        _output, errors = process.communicate(timeout=20)
    assert process.returncode == 2
    assert errors.startswith(f"tickerplant: error: datagram key file {tmp_path / 'none'} is not")
    assert "tickerplant key make" in errors
