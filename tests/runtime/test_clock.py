"""Our clock against a server whose clock is wrong on purpose."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tickerplant.errors import EXIT_TEMPORARY, ClockSkewError, ExchangeUnavailableError
from tickerplant.runtime.checks import Status
from tickerplant.runtime.clock import (
    ClockOffset,
    judge_clock,
    measure_clock_offset,
    require_clock,
)

MS = 1_000_000
SECOND = 1_000 * MS


@pytest.mark.parametrize("ahead_s", [0, 3, -3, 30, -30, 86_400])
async def test_offset_is_right_within_what_it_says(exchange: Any, ahead_s: int) -> None:
    exchange.clock_ahead_s = ahead_s
    offset = await measure_clock_offset(exchange.rest_url)
    assert abs(offset.offset_ns + ahead_s * SECOND) <= offset.uncertainty_ns
    assert SECOND // 2 <= offset.uncertainty_ns < SECOND


async def test_a_reply_out_of_a_cache_does_not_mislead(exchange: Any) -> None:
    exchange.age_s = 40
    offset = await measure_clock_offset(exchange.rest_url)
    assert abs(offset.offset_ns) <= offset.uncertainty_ns


@pytest.mark.parametrize(
    ("offset_ms", "status"),
    [
        (0, Status.OK),
        (999, Status.OK),
        (-999, Status.OK),
        (1_001, Status.WARN),
        (-4_999, Status.WARN),
        (5_001, Status.FAIL),
        (-5_001, Status.FAIL),
    ],
)
def test_verdict(offset_ms: int, status: Status) -> None:
    offset = ClockOffset(offset_ms * MS, SECOND // 2)
    result = judge_clock(offset, 5_000 * MS)
    assert result.status is status
    assert bool(result.remedy) == (status is not Status.OK)
    if status is Status.FAIL:
        with pytest.raises(ClockSkewError) as caught:
            require_clock(offset, 5_000 * MS)
        assert caught.value.exit_code == EXIT_TEMPORARY
        assert "chrony" in str(caught.value)
    else:
        require_clock(offset, 5_000 * MS)


def test_offset_in_words() -> None:
    text = "+2.5 s (±0.5 s) to the exchange"
    assert str(ClockOffset(2_500 * MS, 500 * MS)) == text


async def test_nobody_there(free_tcp_port: int) -> None:
    url = f"http://127.0.0.1:{free_tcp_port}/trade-api/v2"
    with pytest.raises(ExchangeUnavailableError) as caught:
        await measure_clock_offset(url)
    assert url in str(caught.value)
    assert "check the network and exchange.rest_url" in str(caught.value)
    assert caught.value.exit_code == EXIT_TEMPORARY


async def test_a_server_that_does_not_answer(exchange: Any) -> None:
    exchange.reply_delay_s = 5
    with pytest.raises(ExchangeUnavailableError, match=r"no answer in 0\.2 s"):
        await measure_clock_offset(exchange.rest_url, timeout_s=0.2)


@contextmanager
def raw_server(answer: bytes) -> Iterator[int]:
    """A TCP server that answers one connection with exactly these bytes; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        port = listener.getsockname()[1]

        def serve() -> None:
            connection, _address = listener.accept()
            # A client that tries a second time is refused, not left waiting.
            listener.close()
            with connection:
                connection.recv(65_536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield port
        finally:
            thread.join()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nDate: yesterday\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nDate: Mon, 01 Jan 99999 00:00:00 GMT\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nDate: Sat, 21 Nov 2026 08:00:00 GMT\r\nAge: old\r\nContent-Length: 0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"",
    ],
)
async def test_an_answer_without_time_is_a_typed_error(answer: bytes) -> None:
    with raw_server(answer) as port, pytest.raises(ExchangeUnavailableError) as caught:
        await measure_clock_offset(f"http://127.0.0.1:{port}/trade-api/v2")
    assert "exchange.rest_url" in str(caught.value)
    assert "\n" not in str(caught.value)
