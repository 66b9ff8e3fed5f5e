"""The alerts: few, each on something that a person has to see to, each with its section in `docs/runbook.md`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from dashboards import limits
from dashboards.names import check
from dashboards.recordings import (
    ACTIONS,
    LAG,
    POOL,
    RECORDED,
    REFUSED,
    RETRIEVAL_ERROR,
    RETRIEVAL_ERROR_SPREAD,
    RETRIEVAL_ERROR_WEEK,
    RETURNS,
    SHIFTS,
    SHIFTS_DAY,
)

JOB = 'job=~"(.*/)?ebbtide"'
"""The job that scrapes Ebbtide, as metrics need it that other programs have too: `ebbtide`, or `namespace/ebbtide`."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert rule.

    Parameters
    ----------
    name
        CamelCase; its section in the runbook has this heading.
    expr
        PromQL that has a value while something is wrong.
    wait
        How long it must have had one, such as `10m`.
    severity
        `critical`: a person is woken. `warning`: somebody looks today.
    summary
        One line, with the instance.
    description
        What it means and what to look at first. `{{ $value }}` and labels are filled in by Prometheus.
    dashboard
        Uid of the dashboard that shows it.

    Examples
    --------
    >>> Alert("down", "up == 0", "2m", "critical", "Down.", "It is down.", "ebbtide-overview")
    Traceback (most recent call last):
    ...
    ValueError: down: expected a name such as EbbtideDown
    """

    name: str
    expr: str
    wait: str
    severity: Literal["critical", "warning"]
    summary: str
    description: str
    dashboard: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"Ebbtide([A-Z][a-z]+)+", self.name):
            raise ValueError(f"{self.name}: expected a name such as EbbtideDown")
        check(self.expr, also=RECORDED)


_BUSY = "rate(ebbtide_batch_seconds_count[5m]) > 0"

ALERTS = (
    Alert(
        "EbbtideDown",
        f"up{{{JOB}}} == 0",
        "2m",
        "critical",
        "{{ $labels.instance }} cannot be scraped.",
        "Prometheus has had no answer for two minutes: the process has ended, hangs, or cannot be reached.",
        "ebbtide-overview",
    ),
    Alert(
        "EbbtideAbsent",
        f"absent(up{{{JOB}}})",
        "5m",
        "critical",
        "Prometheus knows no instance of Ebbtide.",
        "There is no target with this job any more: it was removed, renamed, or the discovery is broken.",
        "ebbtide-overview",
    ),
    Alert(
        "EbbtideNotReady",
        "ebbtide_ready == 0",
        "10m",
        "critical",
        "{{ $labels.instance }} runs but does not consume.",
        "It has been starting or draining for ten minutes.",
        "ebbtide-overview",
    ),
    Alert(
        "EbbtideRestarting",
        f"changes(process_start_time_seconds{{{JOB}}}[1h]) > {limits.RESTARTS}",
        "0m",
        "critical",
        "{{ $labels.instance }} started {{ $value }} times in an hour.",
        "It ends and is started again, over and over. Nothing is lost, but little is done.",
        "ebbtide-runtime",
    ),
    Alert(
        "EbbtideStalled",
        f"ebbtide_source_backlog_bytes > 0 and ebbtide_ready == 1 and ebbtide_waiting_for_room == 0 unless {_BUSY}",
        "5m",
        "critical",
        "{{ $labels.instance }} has input and does nothing with it.",
        "{{ $value | humanize1024 }}B wait in the source, and no batch has ended for five minutes or more.",
        "ebbtide-runtime",
    ),
    Alert(
        "EbbtideWaitingForRoom",
        "ebbtide_waiting_for_room == 1",
        "2m",
        "critical",
        "{{ $labels.instance }} reads nothing: a disk is full or may not be written.",
        "It tries again by itself and loses nothing, but somebody has to make room.",
        "ebbtide-runtime",
    ),
    Alert(
        "EbbtideLoopStuck",
        f"time() - ebbtide_loop_last_turn_timestamp_seconds > {limits.TURN_SECONDS:g} and ebbtide_ready == 1",
        "1m",
        "critical",
        "{{ $labels.instance }}: the loop has not turned for {{ $value | humanizeDuration }}.",
        "It waits for something that does not answer: a disk, a network file system, a GPU. An idle loop turns, too.",
        "ebbtide-runtime",
    ),
    Alert(
        "EbbtideLagGrowing",
        f"{LAG.name} > {limits.LAG_SECONDS:g} and deriv({LAG.name}[15m]) > {limits.LAG_GROWTH:g}",
        "10m",
        "warning",
        "{{ $labels.instance }} falls behind: events are {{ $value | humanizeDuration }} old when they are done.",
        "The lag is above a minute and grows: more comes in than is done.",
        "ebbtide-overview",
    ),
    Alert(
        "EbbtideBacklogGrowing",
        f"ebbtide_source_backlog_bytes > {limits.BACKLOG_BYTES:.0f} and deriv(ebbtide_source_backlog_bytes[30m]) > 0",
        "30m",
        "warning",
        "{{ $labels.instance }} falls behind: {{ $value | humanize1024 }}B wait in the source.",
        "The backlog has grown for half an hour and more: it will not be caught up with by itself.",
        "ebbtide-overview",
    ),
    Alert(
        "EbbtideDeadLetters",
        f"{REFUSED.name} > {limits.REFUSED_SHARE:g}",
        "10m",
        "warning",
        "{{ $labels.instance }} refuses {{ $value | humanizePercentage }} of its lines.",
        "A producer sends what the input contract does not allow. The dead-letter file has each line with its reason.",
        "ebbtide-overview",
    ),
    Alert(
        "EbbtideNonFiniteState",
        "increase(ebbtide_nonfinite_values_total[10m]) > 0",
        "0m",
        "critical",
        "{{ $labels.instance }} measured values that are NaN or infinite.",
        "A state, or what was to be written to one, is not finite. Other streams are not touched by it.",
        "ebbtide-memory",
    ),
    Alert(
        "EbbtideStreamsQuarantined",
        "ebbtide_streams_quarantined > 0",
        "5m",
        "warning",
        "{{ $labels.instance }} has streams in quarantine: {{ $value }}.",
        "An event would have made their states not finite. They are not written until a person lets them go on.",
        "ebbtide-memory",
    ),
    Alert(
        "EbbtideRetrievalErrorHigh",
        f"{RETRIEVAL_ERROR.name} > {limits.WEEK_RATIO:g} * {RETRIEVAL_ERROR_WEEK.name} "
        f"and {RETRIEVAL_ERROR.name} > {RETRIEVAL_ERROR_WEEK.name} "
        f"+ {limits.WEEK_DEVIATIONS:g} * {RETRIEVAL_ERROR_SPREAD.name} "
        f"and {RETRIEVAL_ERROR.name} offset 1d > 0",
        "30m",
        "warning",
        "{{ $labels.instance }}: the memory returns less than usual, with an error of {{ $value | humanize }}.",
        "The hourly mean of the retrieval error is high against the last week of the same instance.",
        "ebbtide-memory",
    ),
    Alert(
        "EbbtideShiftStorm",
        f"{SHIFTS.name} > {limits.SHIFT_SHARE:g} "
        f"unless {SHIFTS.name} <= {limits.SHIFT_DAY_RATIO:g} * {SHIFTS_DAY.name}",
        "15m",
        "warning",
        "{{ $labels.instance }}: {{ $value | humanizePercentage }} of the events begin a new topic.",
        "Far more shifts than on the day before: other input, or a detector that fires at anything. A policy that acts "
        "on shifts now clears much.",
        "ebbtide-policy",
    ),
    Alert(
        "EbbtidePolicyThrashing",
        f"{ACTIONS.name} > {limits.ACTION_SHARE:g}",
        "15m",
        "warning",
        "{{ $labels.instance }}: the policy replaces states on {{ $value | humanizePercentage }} of the events.",
        "More than the largest budget that a policy has by default: states are replaced before they are of use.",
        "ebbtide-policy",
    ),
    Alert(
        "EbbtidePoolNearBound",
        f"{POOL.name} > {limits.POOL_SHARE:g} "
        'unless sum without (direction) (increase(ebbtide_spills_total{direction="out"}[1d])) > 0',
        "15m",
        "warning",
        "{{ $labels.instance }} uses {{ $value | humanizePercentage }} of its state pool.",
        "Once it is full, the states of streams that were idle longest are spilled to the store.",
        "ebbtide-runtime",
    ),
    Alert(
        "EbbtidePoolTooSmall",
        f"{RETURNS.name} > {limits.RETURN_SHARE:g}",
        "15m",
        "warning",
        "{{ $labels.instance }} fetches {{ $value | humanize }} states from the store for each event.",
        "More streams are active than fit into the pool: states go out and come back all the time.",
        "ebbtide-runtime",
    ),
    Alert(
        "EbbtideCheckpointStale",
        f"time() - ebbtide_last_checkpoint_timestamp_seconds > {limits.CHECKPOINT_SECONDS:g} and {_BUSY}",
        "1m",
        "critical",
        "{{ $labels.instance }} works, but its last checkpoint is {{ $value | humanizeDuration }} old.",
        "All that was done since would have to be done again after a crash.",
        "ebbtide-runtime",
    ),
    Alert(
        "EbbtideCheckpointFailing",
        "increase(ebbtide_checkpoint_failures_total[15m]) > 0",
        "0m",
        "critical",
        "{{ $labels.instance }} cannot commit a checkpoint.",
        "The stored state is as it was before; the disk is full, the database is away, or another run holds the store.",
        "ebbtide-runtime",
    ),
    Alert(
        "EbbtideStoreCopyFailing",
        "increase(ebbtide_store_copy_failures_total[3h]) > 0",
        "0m",
        "warning",
        "{{ $labels.instance }} cannot make a copy of its state store.",
        "There is no room for it, or the store is damaged: the log says which. The copies before it stand.",
        "ebbtide-runtime",
    ),
)
"""All of them, in the order of the runbook."""
