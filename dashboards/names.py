"""The names that a query may ask for, and those that it does ask for.

A metric or a label that does not exist fails here, when a query is built, and not as an empty panel on a screen.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

from monitors.catalogue import CATALOGUE, WORST_GAUGES, Metric

TARGET_LABELS = ("job", "instance")
"""Labels that Prometheus adds to whatever it scrapes."""

OTHER_METRICS = frozenset(
    {
        "process_cpu_seconds_total",
        "process_max_fds",
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
        "python_gc_collections_total",
        "scrape_duration_seconds",
        "up",
        "ALERTS",
    }
)
"""Metrics outside of the catalogue that a query may use: prometheus_client's of the process, and Prometheus's own."""

SAMPLES = {sample: metric for metric in CATALOGUE.values() for sample in metric.samples}
"""Name of a sample, as a scrape shows it → its metric."""

SIGNAL_NAMES = tuple(name.removeprefix("ebbtide_worst_") for name in WORST_GAUGES.values())
"""What a dashboard's `$signal` stands for: `ebbtide_worst_$signal` are the worst streams by it, and
`ebbtide_${signal}_bucket` is the distribution over all of them."""

_WORDS = frozenset({"and", "or", "unless", "bool", "offset", "inf", "nan", "start", "end"})


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
    bare = re.sub(r"\boffset\s+\w+", " ", bare)
    # A name that a parenthesis follows is a function or an aggregation.
    names = re.findall(r"(?<![\w.$:])[a-zA-Z_:][\w:]*\b(?!\s*\()", bare)
    return {name for name in names if name.lower() not in _WORDS}


def expanded(expr: str) -> list[str]:
    """Return the expressions that one with `$signal` stands for, or itself.

    Examples
    --------
    >>> expanded("ebbtide_worst_$signal")[:2]
    ['ebbtide_worst_state_norm', 'ebbtide_worst_stable_rank']
    >>> expanded("up")
    ['up']
    """
    if "$signal" not in expr and "${signal}" not in expr:
        return [expr]
    return [expr.replace("${signal}", name).replace("$signal", name) for name in SIGNAL_NAMES]


def check(expr: str, also: Collection[str] = ()) -> str:
    """Return the expression if each of its metrics exists.

    Parameters
    ----------
    expr
        PromQL.
    also
        Further names that it may use, such as those of recording rules.

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
    known = SAMPLES.keys() | OTHER_METRICS | set(also)
    for each in expanded(expr):
        for name in sorted(metric_names(each) - known):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "declare it in monitors/catalogue.py"
            raise ValueError(f"expected metrics of the catalogue, got {name!r}; {hint}")
    return expr


def labels_of(sample: str) -> tuple[str, ...]:
    """Return the labels that a sample has, those of its target included.

    Examples
    --------
    >>> labels_of("ebbtide_alarms_total")
    ('job', 'instance', 'alarm')
    """
    metric: Metric | None = SAMPLES.get(sample)
    own = metric.labels if metric else ()
    if sample.startswith("ebbtide_worst_"):
        own = ("place",)
    return (*TARGET_LABELS, *own, *(("le",) if sample.endswith("_bucket") else ()))
