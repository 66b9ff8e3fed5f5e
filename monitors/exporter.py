"""Turns `Metrics` into what Prometheus scrapes, at most once a second."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from threading import Lock
from typing import Any

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.core import Metric as Family
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar as OpenMetricsExemplar

from monitors.catalogue import Metric
from monitors.metrics import Distribution, Exemplar, Labels, Metrics, Number

# Encoder and content type. Given the client's own header, the library would also take over whatever version it names.
_PLAIN_TEXT = choose_encoder("text/plain")
_OPEN_METRICS = choose_encoder("application/openmetrics-text;version=1.0.0")

BUILD_INFO = "ebbtide_build_info"

MOST_NAME = 128 - len("stream")
"""Characters of a stream's name in an exemplar."""


class _Catalogued(Collector):
    """Hands a snapshot to a registry, one family a metric.

    No `_created` samples: as plain text they would double the number of series, and nothing here reads them.
    """

    def __init__(self, metrics: Metrics, build_info: Mapping[str, str]):
        self.metrics = metrics
        self.build_info = dict(build_info)

    def collect(self) -> Iterator[Family]:
        shown = self.metrics.snapshot()
        for name, metric in self.metrics.catalogue.items():
            if name == BUILD_INFO:
                yield InfoMetricFamily(name.removesuffix("_info"), metric.help, self.build_info)
            else:
                yield _family(metric, shown[name])


def _family(metric: Metric, values: Mapping[Labels, Number | Distribution]) -> Family:
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels, unit=metric.unit)
        bounds = [*map(repr, metric.buckets), "+Inf"]
        for labels, value in values.items():
            assert isinstance(value, Distribution)
            counts = enumerate(map(float, accumulate(value.counts)))
            buckets: list[Any] = [
                (bounds[place], count, _exemplar(value.exemplars.get(place))) for place, count in counts
            ]
            histogram.add_metric(labels, buckets, value.sum)
        return histogram
    family: CounterMetricFamily | GaugeMetricFamily
    if metric.kind == "counter":
        family = CounterMetricFamily(
            metric.name.removesuffix("_total"), metric.help, labels=metric.labels, unit=metric.unit
        )
    else:
        family = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels, unit=metric.unit)
    for labels, value in values.items():
        assert not isinstance(value, Distribution)
        family.add_metric(labels, value)
    return family


def _exemplar(exemplar: Exemplar | None) -> OpenMetricsExemplar | None:
    """Return an exemplar with as much of the name as OpenMetrics allows: 128 characters with the label's own name."""
    if exemplar is None:
        return None
    name = exemplar.name.encode("utf-8", "replace").decode()
    return OpenMetricsExemplar(
        {"stream": name[: MOST_NAME - 1] + "…" if len(name) > MOST_NAME else name}, *exemplar[1:]
    )


def wants_open_metrics(accept: str) -> bool:
    """Say whether an Accept header prefers OpenMetrics 1.0 to the Prometheus text format.

    Anything that is not understood is plain text's: every scraper reads that.

    Examples
    --------
    >>> wants_open_metrics("application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5,*/*;q=0.1")
    True
    >>> wants_open_metrics("text/plain,application/openmetrics-text;q=0.5"), wants_open_metrics("*/*")
    (False, False)
    """
    best = {"open": 0.0, "plain": 0.0}
    for item in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in item.split(";"))
        options = dict(part.split("=", 1) for part in parameters if "=" in part)
        try:
            weight = float(options.get("q", "1"))
        except ValueError:
            continue
        if kind == "application/openmetrics-text" and options.get("version", "1.0.0") == "1.0.0":
            best["open"] = max(best["open"], weight)
        elif kind in ("text/plain", "text/*", "*/*"):
            best["plain"] = max(best["plain"], weight)
    return best["open"] > 0 and best["open"] >= best["plain"]


class Exporter:
    """Serves `Metrics`, the process and the platform as Prometheus text or OpenMetrics.

    Writing an exposition holds the interpreter for some milliseconds, so one is kept for a second and whoever asks
    meanwhile gets the same bytes; of many that ask when it is too old, one writes and the others wait for it. However
    many scrape, the loop pays for one exposition a second and format.

    Parameters
    ----------
    metrics
        What the loop fills.
    build_info
        Labels of `ebbtide_build_info`, of those in the catalogue; one that is missing is empty.
    refresh
        Called before an exposition is written: what is known only when somebody looks is set there.
    clock
        Seconds that never go back.
    keep_seconds
        How long an exposition is kept, in seconds.

    Attributes
    ----------
    generations
        How many expositions were written.

    Raises
    ------
    ValueError
        A label of `build_info` is not in the catalogue.

    Examples
    --------
    >>> metrics = Metrics()
    >>> metrics.add("ebbtide_tokens_total", 16)
    >>> body, content_type = Exporter(metrics, build_info={"version": "0.1.0"}).exposition("text/plain")
    >>> content_type
    'text/plain; version=0.0.4; charset=utf-8'
    >>> [line for line in body.decode().splitlines() if line.startswith("ebbtide_tokens")]
    ['ebbtide_tokens_total 16.0']
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        build_info: Mapping[str, str],
        refresh: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        keep_seconds: float = 1.0,
    ):
        known = metrics.catalogue[BUILD_INFO].labels
        if unknown := sorted(set(build_info) - set(known)):
            raise ValueError(
                f"expected build_info with labels of {known}, got {unknown}; add them to the catalogue first"
            )
        # A registry of our own: the global one belongs to whoever imports us.
        self.registry = CollectorRegistry()
        self.registry.register(_Catalogued(metrics, {label: build_info.get(label, "") for label in known}))
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.generations = 0
        self._metrics, self._refresh, self._clock = metrics, refresh, clock
        self._keep_seconds = keep_seconds
        self._lock = Lock()
        self._kept: dict[str, tuple[float, bytes]] = {}

    def forget(self) -> None:
        """Write the next exposition anew."""
        with self._lock:
            self._kept.clear()

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """Return the metrics and their content type, in the format that the Accept header `accept` prefers."""
        encode, content_type = _OPEN_METRICS if wants_open_metrics(accept) else _PLAIN_TEXT
        # Whoever waits here finds the exposition that the holder of the lock has just written.
        with self._lock:
            now = self._clock()
            written, body = self._kept.get(content_type, (-math.inf, b""))
            if now - written >= self._keep_seconds:
                self._refresh()
                body = encode(self.registry)
                self._metrics.observe("ebbtide_exposition_seconds", self._clock() - now)
                self._kept[content_type] = (now, body)
                self.generations += 1
        return body, content_type
