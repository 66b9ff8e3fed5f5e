"""Recording rules: what alerts and dashboards ask for again and again, worked out once by Prometheus.

Named `level:metric:operations`: everything here is by instance, `_total` is left out where a rate was taken, and what
is a quotient says so. A quotient has no sample where nothing happened: 0/0 would be NaN, and one NaN spoils the mean
of a week.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dashboards.names import check

WEEKLY = "5m"
"""How often what looks at a whole week or day is worked out: it reads many samples, and changes slowly."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One recording rule.

    Parameters
    ----------
    name
        `level:metric:operations`.
    expr
        PromQL.
    help
        What it is, for whoever reads the file.

    Examples
    --------
    >>> Recording("events_rate", "rate(ebbtide_events_total[5m])", "Events a second.")
    Traceback (most recent call last):
    ...
    ValueError: events_rate: expected level:metric:operations
    """

    name: str
    expr: str
    help: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z_]+:[a-z][a-z0-9_]*:[a-z][a-z0-9_]*", self.name):
            raise ValueError(f"{self.name}: expected level:metric:operations")


def _share(part: str, whole: str, window: str) -> str:
    return f"{part} / (rate({whole}[{window}]) > 0)"


LAG = Recording(
    "instance:ebbtide_event_lag_seconds:mean5m",
    _share("rate(ebbtide_event_lag_seconds_sum[5m])", "ebbtide_event_lag_seconds_count", "5m"),
    "Mean time from an event's own ts to the end of its micro-batch, in seconds.",
)
REFUSED = Recording(
    "instance:ebbtide_dead_letters_per_source_lines:ratio_rate10m",
    _share("sum without (reason) (rate(ebbtide_dead_letters_total[10m]))", "ebbtide_source_lines_total", "10m"),
    "Share of the lines read that were refused.",
)
RETRIEVAL_ERROR = Recording(
    "instance:ebbtide_retrieval_error_ratio:mean1h",
    _share("rate(ebbtide_retrieval_error_ratio_sum[1h])", "ebbtide_retrieval_error_ratio_count", "1h"),
    "Mean retrieval error of the last hour.",
)
RETRIEVAL_ERROR_WEEK = Recording(
    "instance:ebbtide_retrieval_error_ratio:mean1h_avg1w",
    f"avg_over_time({RETRIEVAL_ERROR.name}[1w])",
    "The mean of the hourly means of the last week: what is usual here.",
)
RETRIEVAL_ERROR_SPREAD = Recording(
    "instance:ebbtide_retrieval_error_ratio:mean1h_stddev1w",
    f"stddev_over_time({RETRIEVAL_ERROR.name}[1w])",
    "How far hourly means usually lie from that.",
)
SHIFTS = Recording(
    "instance:ebbtide_topic_shifts_per_events:ratio_rate15m",
    _share('sum without (alarm) (rate(ebbtide_alarms_total{alarm="topic_shift"}[15m]))', "ebbtide_events_total", "15m"),
    "Share of events that began a new topic.",
)
SHIFTS_DAY = Recording(
    "instance:ebbtide_topic_shifts_per_events:ratio_rate15m_avg1d",
    f"avg_over_time({SHIFTS.name}[1d] offset 1h)",
    "What that share was on average in the day before the last hour.",
)
ACTIONS = Recording(
    "instance:ebbtide_replacing_actions_per_events:ratio_rate15m",
    _share(
        'sum without (kind, origin) (rate(ebbtide_actions_total{kind=~"reset|restore|freeze",origin="policy"}[15m]))',
        "ebbtide_events_total",
        "15m",
    ),
    "Share of events on which the policy replaced or froze a state.",
)
POOL = Recording(
    "instance:ebbtide_pool_used_per_limit:ratio",
    "ebbtide_pool_used_bytes / ebbtide_pool_limit_bytes",
    "Share of the pool's bound that holds states.",
)
RETURNS = Recording(
    "instance:ebbtide_returned_states_per_events:ratio_rate15m",
    _share('sum without (direction) (rate(ebbtide_spills_total{direction="in"}[15m]))', "ebbtide_events_total", "15m"),
    "States brought back into the pool for each event.",
)

RECORDINGS = (LAG, REFUSED, RETRIEVAL_ERROR, SHIFTS, ACTIONS, POOL, RETURNS)
"""Worked out at each evaluation."""

BASELINES = (RETRIEVAL_ERROR_WEEK, RETRIEVAL_ERROR_SPREAD, SHIFTS_DAY)
"""Worked out every `WEEKLY`: what is usual, from the recordings above."""

RECORDED = frozenset(each.name for each in (*RECORDINGS, *BASELINES))
"""Names of all of them."""

assert all(check(each.expr, also=RECORDED) for each in (*RECORDINGS, *BASELINES)), "each metric exists"
