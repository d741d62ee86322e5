"""What Prometheus would read, parsed by Prometheus's own parser, over real HTTP."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tickerplant import __version__
from tickerplant.core.messages import FeedPhase
from tickerplant.errors import NetworkSetupError
from tickerplant.limits import METRIC_SERIES_MAX
from tickerplant.runtime.health import Readiness, readiness_of
from tickerplant.runtime.metrics import Metrics, MetricsServer


class Feed:
    """A source as the hot code writes it: plain integers."""

    def __init__(self) -> None:
        self.frames = 0
        self.errors_by_code: dict[str, int] = {}
        self.datagrams: dict[tuple[str, str], int] = {}
        self.books_live = 0

    def counters(self) -> Mapping[str, Any]:
        return {
            "frames_received": self.frames,
            "errors{code}": self.errors_by_code,
            "datagrams{stream,line}": self.datagrams,
        }

    def gauges(self) -> Mapping[str, Any]:
        return {"books_live": self.books_live}


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """(name, labels) to value."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_values_are_read_at_scrape_time() -> None:
    feed, metrics = Feed(), Metrics()
    metrics.add("feed", feed)
    assert samples(metrics.scrape().decode())["tickerplant_feed_frames_received_total", ()] == 0
    feed.frames += 7
    feed.books_live += 3
    feed.errors_by_code["25"] = 2
    feed.datagrams["delta", "a"] = 5
    found = samples(metrics.scrape().decode())
    assert found["tickerplant_feed_frames_received_total", ()] == 7
    assert found["tickerplant_feed_books_live", ()] == 3
    assert found["tickerplant_feed_errors_total", (("code", "25"),)] == 2
    assert found["tickerplant_feed_datagrams_total", (("line", "a"), ("stream", "delta"))] == 5
    assert found["tickerplant_build_info", (("version", __version__),)] == 1
    assert found["process_resident_memory_bytes", ()] > 0


def test_kinds_and_descriptions() -> None:
    metrics = Metrics()
    metrics.add("feed", Feed(), descriptions={"frames_received": "frames of any type, pings too."})
    families = {
        family.name: family for family in text_string_to_metric_families(metrics.scrape().decode())
    }
    assert families["tickerplant_feed_frames_received"].type == "counter"
    assert (
        families["tickerplant_feed_frames_received"].documentation
        == "Frames of any type, pings too."
    )
    assert families["tickerplant_feed_books_live"].type == "gauge"
    assert families["tickerplant_feed_books_live"].documentation == "Books live."


def test_sources_share_a_family_by_their_labels_and_can_leave() -> None:
    metrics = Metrics()
    first, second = Feed(), Feed()
    first.frames, second.frames = 1, 2
    metrics.add("feed", first, labels={"connection": "0"})
    remove = metrics.add("feed", second, labels={"connection": "1"})
    text = metrics.scrape().decode()
    assert text.count("# TYPE tickerplant_feed_frames_received_total") == 1
    name = "tickerplant_feed_frames_received_total"
    assert samples(text)[name, (("connection", "0"),)] == 1
    assert samples(text)[name, (("connection", "1"),)] == 2
    remove()
    assert (name, (("connection", "1"),)) not in samples(metrics.scrape().decode())


def test_labels_of_any_text_survive() -> None:
    metrics, feed = Metrics(), Feed()
    metrics.add("feed", feed)
    odd = 'a"b\\c\nd{}'
    feed.errors_by_code[odd] = 1
    assert (
        samples(metrics.scrape().decode())["tickerplant_feed_errors_total", (("code", odd),)] == 1
    )


def test_series_are_bounded_and_counted() -> None:
    metrics, feed = Metrics(), Feed()
    metrics.add("feed", feed)
    feed.errors_by_code = {str(number): 1 for number in range(METRIC_SERIES_MAX + 10)}
    metrics.scrape()
    found = samples(metrics.scrape().decode())
    assert (
        sum(name == "tickerplant_feed_errors_total" for name, _labels in found) == METRIC_SERIES_MAX
    )
    assert found["tickerplant_metrics_series_dropped_total", ()] == 20


def test_wrong_names_are_our_own_bug() -> None:
    class Wrong:
        def counters(self) -> Mapping[str, int]:
            return {"Frames received": 1}

    metrics = Metrics()
    metrics.add("feed", Wrong())
    with pytest.raises(AssertionError, match="Frames received"):
        metrics.scrape()


@pytest.fixture
async def phase() -> dict[str, Readiness]:
    return {"now": readiness_of(FeedPhase.SYNCING, "3 of 5 books are live")}


@pytest.fixture
async def server(phase: dict[str, Readiness]) -> AsyncIterator[MetricsServer]:
    metrics = Metrics()
    started = MetricsServer(metrics, lambda: phase["now"], "127.0.0.1", 0)
    metrics.add("http", started)
    await started.start()
    yield started
    await started.stop()


async def test_metrics_over_http(server: MetricsServer) -> None:
    url = f"http://127.0.0.1:{server.port}/metrics"
    async with aiohttp.ClientSession() as session:
        for expected in (1, 2):
            async with session.get(url) as reply:
                assert reply.status == 200
                assert reply.headers["Content-Type"].startswith("text/plain; version=")
                found = samples(await reply.text())
            assert found["tickerplant_http_requests_total", ()] == expected
        async with session.get(url.replace("metrics", "secrets")) as reply:
            assert reply.status == 404
        async with session.post(url) as reply:
            assert reply.status == 405


async def test_alive_is_not_ready(server: MetricsServer, phase: dict[str, Readiness]) -> None:
    base = f"http://127.0.0.1:{server.port}"
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{base}/health") as reply:
            assert reply.status == 200
            assert (await reply.json())["service"] == "tickerplant"
        async with session.get(f"{base}/ready") as reply:
            assert reply.status == 503
            assert await reply.json() == {
                "ready": False,
                "phase": "syncing",
                "reason": "3 of 5 books are live",
            }
        phase["now"] = readiness_of(FeedPhase.READY)
        async with session.get(f"{base}/ready") as reply:
            assert reply.status == 200
            assert (await reply.json())["ready"] is True


async def test_port_in_use_is_one_line_with_the_remedy(server: MetricsServer) -> None:
    second = MetricsServer(Metrics(), lambda: readiness_of(0), "127.0.0.1", server.port)
    with pytest.raises(NetworkSetupError) as caught:
        await second.start()
    text = str(caught.value)
    assert f"127.0.0.1:{server.port}" in text
    assert "set metrics.address and metrics.port" in text
    assert "\n" not in text
    assert caught.value.exit_code == 1
    await second.stop()


async def test_port_is_free_again_after_stop(free_tcp_port: int) -> None:
    for _ in range(2):
        server = MetricsServer(Metrics(), lambda: readiness_of(0), "127.0.0.1", free_tcp_port)
        await server.start()
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{free_tcp_port}/health") as reply,
        ):
            assert reply.status == 200
        await server.stop()


async def test_address_of_another_host_is_named() -> None:
    server = MetricsServer(Metrics(), lambda: readiness_of(0), "203.0.113.77", 0)
    with pytest.raises(NetworkSetupError, match=r"203\.0\.113\.77.*set metrics\.address"):
        await server.start()
