"""Queries in PromQL, built from the catalogue: a metric or a label that does not exist fails here, not on a screen.

Every query is narrowed to the dashboard's `$job` and `$instance`, and rates are taken over Grafana's
`$__rate_interval`, which is never shorter than four scrapes.
"""

from __future__ import annotations

import difflib
import re
from typing import Literal

from monitors.catalogue import CATALOGUE, Metric

SCOPE = 'job=~"$job",instance=~"$instance"'

TARGET_LABELS = ("job", "instance")
"""Labels that Prometheus adds to whatever it scrapes."""

PROCESS_METRICS = frozenset(
    {
        "process_cpu_seconds_total",
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
        "up",
    }
)
"""Metrics outside of the catalogue that a query may use: prometheus_client's of the process, and Prometheus's `up`."""

_SAMPLES = {sample: metric for metric in CATALOGUE.values() for sample in metric.samples}
_WORDS = frozenset({"and", "or", "unless", "bool", "offset", "inf", "nan", "start", "end"})

Aggregation = Literal["sum", "min", "max"]


def metric_names(expr: str) -> set[str]:
    """Return the names of the metrics that an expression asks for.

    Examples
    --------
    >>> sorted(metric_names('sum by (le) (rate(a_bucket{x="b"}[5m])) / 1e3 > bool on (le) group_left b:c:d'))
    ['a_bucket', 'b:c:d']
    """
    bare = re.sub(r'"(?:\\.|[^"\\])*"', '""', expr)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", bare)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\b\s*(\([^)]*\))?", " ", bare)
    # A name that a parenthesis follows is a function or an aggregation.
    names = re.findall(r"(?<![\w.$:])[a-zA-Z_:][\w:]*\b(?!\s*\()", bare)
    return {name for name in names if name.lower() not in _WORDS}


def check(expr: str) -> str:
    """Return the expression if each of its metrics exists.

    Raises
    ------
    ValueError
        It asks for a metric that nothing exposes: a query that would for ever be empty.

    Examples
    --------
    >>> check("ebbtide_event_total")
    Traceback (most recent call last):
    ...
    ValueError: expected metrics of the catalogue, got 'ebbtide_event_total'; did you mean 'ebbtide_events_total'?
    """
    known = _SAMPLES.keys() | PROCESS_METRICS
    for name in sorted(metric_names(expr) - known):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "declare it in monitors/catalogue.py"
        raise ValueError(f"expected metrics of the catalogue, got {name!r}; {hint}")
    return expr


def rate(counter: str, *by: str, where: str = "") -> str:
    """Return a counter's rate a second, summed, for each value of the labels `by`.

    Examples
    --------
    >>> rate("ebbtide_dead_letters_total", "reason")
    'sum by (reason) (rate(ebbtide_dead_letters_total{job=~"$job",instance=~"$instance"}[$__rate_interval]))'
    """
    return f"sum{_by(counter, by)} (rate({_select(counter, where)}[$__rate_interval]))"


def increase(counter: str, window: str, *by: str, where: str = "") -> str:
    """Return how much a counter went up in a window such as `1h`, summed."""
    return f"sum{_by(counter, by)} (increase({_select(counter, where)}[{window}]))"


def gauge(name: str, *by: str, how: Aggregation = "sum") -> str:
    """Return a gauge, aggregated.

    Examples
    --------
    >>> gauge("ebbtide_ready", "instance", how="min")
    'min by (instance) (ebbtide_ready{job=~"$job",instance=~"$instance"})'
    """
    return f"{how}{_by(name, by)} ({_select(name)})"


def buckets(histogram: str) -> str:
    """Return values a second in each bucket, for a heatmap."""
    return rate(f"{histogram}_bucket", "le")


def quantile(q: float, histogram: str, *by: str) -> str:
    """Return a quantile over the streams, estimated from the buckets.

    Examples
    --------
    >>> quantile(0.5, "ebbtide_state_norm")[:50]
    'histogram_quantile(0.5, sum by (le) (rate(ebbtide_'
    """
    return f"histogram_quantile({q:g}, {rate(f'{histogram}_bucket', 'le', *by)})"


def _metric(sample: str) -> Metric | None:
    check(sample)
    return _SAMPLES.get(sample)


def _select(sample: str, where: str = "") -> str:
    _metric(sample)
    return f"{sample}{{{SCOPE}{',' + where if where else ''}}}"


def _by(sample: str, labels: tuple[str, ...]) -> str:
    metric = _metric(sample)
    known = {*TARGET_LABELS, *(metric.labels if metric else ())} | ({"le"} if sample.endswith("_bucket") else set())
    if unknown := sorted(set(labels) - known):
        raise ValueError(f"expected labels of {sample}, {sorted(known)}, got {unknown}")
    return f" by ({', '.join(labels)})" if labels else ""
