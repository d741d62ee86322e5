"""Metrics for Prometheus, read from plain integers at scrape time, and the HTTP endpoint that serves them.

The code that counts only does `self.frames_received += 1`. A source is any object with a method `counters()`, or
`gauges()`, or both, that returns a mapping from name to value; pure modules need to import nothing for that:

    {"frames_received": 7,                                    one value
     "errors{code}": {"25": 1, "10": 2},                      one label, values by its text
     "datagrams{stream,line}": {("delta", "a"): 5}}           more labels, values by a tuple of their texts

`Metrics.add("feed", source)` serves these as `tickerplant_feed_frames_received_total` and so on.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from typing import Protocol, runtime_checkable

from aiohttp import web
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from tickerplant import __version__
from tickerplant.errors import NetworkSetupError
from tickerplant.limits import METRIC_SERIES_MAX, METRICS_BACKLOG, METRICS_KEEPALIVE_S
from tickerplant.runtime.health import Readiness

NAMESPACE = "tickerplant"

Value = int | Mapping[str, int] | Mapping[tuple[str, ...], int]
"""A number, or numbers by label."""
Family = CounterMetricFamily | GaugeMetricFamily

_NAME = re.compile(r"([a-z][a-z0-9_]*)(?:\{([a-z][a-z0-9_]*(?:,[a-z][a-z0-9_]*)*)\})?")


@runtime_checkable
class CounterSource(Protocol):
    """Counts that only grow while the process lives."""

    def counters(self) -> Mapping[str, Value]:
        """Name, with label names in braces if any, to value."""
        ...


@runtime_checkable
class GaugeSource(Protocol):
    """Numbers that go up and down."""

    def gauges(self) -> Mapping[str, Value]:
        """Name, with label names in braces if any, to value."""
        ...


class _Registration:
    """One added source with its prefix and the labels that hold for all its values."""

    def __init__(
        self,
        prefix: str,
        source: CounterSource | GaugeSource,
        labels: Mapping[str, str],
        descriptions: Mapping[str, str],
    ) -> None:
        self.prefix = prefix
        self.labels = dict(labels)
        self.descriptions = descriptions
        self.counters = source.counters if isinstance(source, CounterSource) else None
        self.gauges = source.gauges if isinstance(source, GaugeSource) else None
        assert self.counters or self.gauges, f"{source!r} counts nothing"


class Metrics(Collector):
    """Everything that is measured; `scrape()` is the text Prometheus reads."""

    def __init__(self) -> None:
        """Start with the process's own figures (memory, CPU, open files)."""
        self.series_dropped = 0
        self._registrations: list[_Registration] = []
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def add(
        self,
        prefix: str,
        source: CounterSource | GaugeSource,
        labels: Mapping[str, str] | None = None,
        descriptions: Mapping[str, str] | None = None,
    ) -> Callable[[], None]:
        """Serve `source` under `tickerplant_<prefix>_`; call what is returned to stop serving it.

        `labels` hold for all its values, so that several sources (connections, say) may share a prefix.
        `descriptions` are help texts by bare name; a name without one is described by its own words.
        """
        assert _NAME.fullmatch(prefix)
        registration = _Registration(prefix, source, labels or {}, descriptions or {})
        self._registrations.append(registration)
        return lambda: self._registrations.remove(registration)

    def scrape(self) -> bytes:
        """The text exposition of all metrics."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Family]:
        """All families, for prometheus_client."""
        families: dict[str, tuple[Family, list[str]]] = {}
        for registration in self._registrations:
            if registration.counters is not None:
                self._gather(families, registration, registration.counters(), CounterMetricFamily)
            if registration.gauges is not None:
                self._gather(families, registration, registration.gauges(), GaugeMetricFamily)
        yield from (family for family, _labels in families.values())
        build = GaugeMetricFamily(f"{NAMESPACE}_build_info", "Version.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        yield CounterMetricFamily(
            f"{NAMESPACE}_metrics_series_dropped",
            "Label combinations left out of scrapes because one metric had too many.",
            value=self.series_dropped,
        )

    def _gather(
        self,
        families: dict[str, tuple[Family, list[str]]],
        registration: _Registration,
        values: Mapping[str, Value],
        kind: type[CounterMetricFamily] | type[GaugeMetricFamily],
    ) -> None:
        for text, value in values.items():
            matched = _NAME.fullmatch(text)
            assert matched is not None, f"metric name {text!r}"
            bare, label_text = matched.groups()
            labels = [*registration.labels, *(label_text.split(",") if label_text else ())]
            name = f"{NAMESPACE}_{registration.prefix}_{bare}"
            if name not in families:
                words = registration.descriptions.get(bare, f"{bare.replace('_', ' ')}.")
                families[name] = kind(name, words[:1].upper() + words[1:], labels=labels), labels
            family, family_labels = families[name]
            assert isinstance(family, kind), f"{name} is both counter and gauge"
            assert labels == family_labels, f"{name} has labels {labels} and {family_labels}"
            self._add_samples(family, list(registration.labels.values()), value)

    def _add_samples(self, family: Family, constant: list[str], value: Value) -> None:
        if isinstance(value, int):
            family.add_metric(constant, value)
            return
        for index, (key, number) in enumerate(value.items()):
            if len(family.samples) >= METRIC_SERIES_MAX:
                self.series_dropped += len(value) - index
                return
            variable = [key] if isinstance(key, str) else [str(part) for part in key]
            family.add_metric([*constant, *variable], number)


class MetricsServer:
    """HTTP: `/metrics`, `/health` (the loop turns) and `/ready` (200 only if the books are live, else 503)."""

    def __init__(
        self,
        metrics: Metrics,
        readiness: Callable[[], Readiness],
        address: str,
        port: int,
        port_key: str = "metrics.port",
        companions: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """Serve on `address` and TCP `port` (0: any free one), configured as `port_key`, once started.

        `companions` tells the state of the processes beside this one, by name.
        """
        self._companions = companions
        self.requests = 0
        self._metrics = metrics
        self._readiness = readiness
        self._address = address
        self._port = port
        self._port_key = port_key
        self._runner: web.AppRunner | None = None

    @property
    def port(self) -> int:
        """The port listened on, also where 0 was asked for."""
        return self._port

    def counters(self) -> Mapping[str, int]:
        """For the metrics."""
        return {"requests": self.requests}

    async def start(self) -> None:
        """Listen. Raises `NetworkSetupError` if the address or port cannot be had."""
        application = web.Application()
        application.router.add_get("/metrics", self._serve_metrics)
        application.router.add_get("/health", self._serve_health)
        application.router.add_get("/ready", self._serve_ready)
        runner = web.AppRunner(
            application,
            access_log=None,
            keepalive_timeout=METRICS_KEEPALIVE_S,
            handle_signals=False,
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, self._address, self._port, backlog=METRICS_BACKLOG).start()
        except OSError as error:
            await runner.cleanup()
            raise NetworkSetupError(
                f"metrics endpoint {self._address}:{self._port} cannot be opened "
                f"({error.strerror}): stop what uses it, or set metrics.address and {self._port_key}"
            ) from error
        self._runner = runner
        self._port = int(runner.addresses[0][1])

    async def stop(self) -> None:
        """Close; harmless if not started."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _serve_metrics(self, _request: web.Request) -> web.Response:
        self.requests += 1
        return web.Response(
            body=self._metrics.scrape(), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def _serve_health(self, _request: web.Request) -> web.Response:
        self.requests += 1
        return web.json_response(
            {
                "service": NAMESPACE,
                "version": __version__,
                "status": "alive",
                "companions": dict(self._companions()),
            }
        )

    async def _serve_ready(self, _request: web.Request) -> web.Response:
        self.requests += 1
        state = self._readiness()
        return web.json_response(
            {"ready": state.is_ready, "phase": state.phase, "reason": state.reason},
            status=HTTPStatus.OK if state.is_ready else HTTPStatus.SERVICE_UNAVAILABLE,
        )
