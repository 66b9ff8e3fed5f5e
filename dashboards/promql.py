"""Queries in PromQL, built from the catalogue: a metric or a label that does not exist fails here, not on a screen.

Every query is narrowed to the dashboard's `$job` and `$instance`, and rates are taken over Grafana's
`$__rate_interval`, which is never shorter than four scrapes.
"""

from __future__ import annotations

from typing import Literal

from dashboards import names
from dashboards.names import labels_of
from dashboards.recordings import RECORDED, Recording

SCOPE = 'job=~"$job",instance=~"$instance"'

Aggregation = Literal["sum", "min", "max", "avg", "count"]


def check(expr: str) -> str:
    """Return the expression if each of its metrics is in the catalogue or recorded; see `names.check`."""
    return names.check(expr, also=RECORDED)


def select(sample: str, where: str = "") -> str:
    """Return a sample's selector, narrowed to what the dashboard shows.

    Examples
    --------
    >>> select("ebbtide_alarms_total", 'alarm="topic_shift"')
    'ebbtide_alarms_total{job=~"$job",instance=~"$instance",alarm="topic_shift"}'
    """
    check(sample)
    return f"{sample}{{{SCOPE}{',' + where if where else ''}}}"


def rate(counter: str, *by: str, where: str = "") -> str:
    """Return a counter's rate a second, summed, for each value of the labels `by`.

    Examples
    --------
    >>> rate("ebbtide_dead_letters_total", "reason")
    'sum by (reason) (rate(ebbtide_dead_letters_total{job=~"$job",instance=~"$instance"}[$__rate_interval]))'
    """
    return f"sum{_by(counter, by)} (rate({select(counter, where)}[$__rate_interval]))"


def increase(counter: str, window: str, *by: str, where: str = "") -> str:
    """Return how much a counter went up in a window such as `1h`, summed."""
    return f"sum{_by(counter, by)} (increase({select(counter, where)}[{window}]))"


def gauge(name: str, *by: str, how: Aggregation = "sum", where: str = "") -> str:
    """Return a gauge, aggregated.

    Examples
    --------
    >>> gauge("ebbtide_ready", "instance", how="min")
    'min by (instance) (ebbtide_ready{job=~"$job",instance=~"$instance"})'
    """
    return f"{how}{_by(name, by)} ({select(name, where)})"


def recorded(rule: Recording, how: Aggregation = "max") -> str:
    """Return what a recording rule recorded, by instance.

    Examples
    --------
    >>> from dashboards.recordings import POOL
    >>> recorded(POOL)
    'max by (instance) (instance:ebbtide_pool_used_per_limit:ratio{job=~"$job",instance=~"$instance"})'
    """
    return f"{how} by (instance) ({select(rule.name)})"


def mean(histogram: str, *by: str, where: str = "") -> str:
    """Return the mean of what a histogram measured.

    Examples
    --------
    >>> mean("ebbtide_state_norm").count("rate(")
    2
    """
    return " / ".join(rate(f"{histogram}_{part}", *by, where=where) for part in ("sum", "count"))


def buckets(histogram: str, where: str = "") -> str:
    """Return values a second in each bucket, for a heatmap."""
    return rate(f"{histogram}_bucket", "le", where=where)


def quantile(q: float, histogram: str, *by: str, where: str = "") -> str:
    """Return a quantile over the streams, estimated from the buckets.

    Examples
    --------
    >>> quantile(0.5, "ebbtide_state_norm")[:50]
    'histogram_quantile(0.5, sum by (le) (rate(ebbtide_'
    """
    return f"histogram_quantile({q:g}, {rate(f'{histogram}_bucket', 'le', *by, where=where)})"


def _by(sample: str, labels: tuple[str, ...]) -> str:
    check(sample)
    known = labels_of(sample)
    if unknown := sorted(set(labels) - set(known)):
        raise ValueError(f"expected labels of {sample}, {sorted(known)}, got {unknown}")
    return f" by ({', '.join(labels)})" if labels else ""
