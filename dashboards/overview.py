"""The dashboard to open first: is it running, does it keep up, is the memory well, what went wrong?"""

from __future__ import annotations

from dashboards import limits, parts
from dashboards.board import Dashboard, Row
from dashboards.marks import ALERTS_FIRING, POLICY_ACTIONS
from dashboards.panels import Panel, Target
from dashboards.parts import TRAFFIC, USUAL, by_instance, number, quantiles
from dashboards.promql import gauge, increase, mean, quantile, rate

_GLANCE = Row(
    "At a glance",
    [
        number(
            "Alerts firing",
            "Alerts of the chosen instances that fire now; each has its section in the runbook. Red: open the alert in "
            "Prometheus and follow its runbook_url.",
            parts.alerts_firing(),
            "none",
            thresholds=[(1, "red")],
        ),
        number(
            "Ready",
            "Whether every chosen instance is consuming. Not ready: it is restoring state, draining, or has lost "
            "its source; /-/ready of the instance says which. If it lasts longer than a restart does, read its log.",
            Target(gauge("ebbtide_ready", how="min"), "ready"),
            "none",
            base="red",
            thresholds=[(1, "green")],
            names=[(0, "Not ready"), (1, "Ready")],
        ),
        number(
            "Events per second",
            "Events written to memory. Zero while the backlog grows means that the consumer is stuck: look at the "
            "stages and at the checkpoints. Zero without a backlog means that nothing comes in.",
            Target(rate("ebbtide_events_total"), "events"),
            "eps",
            no_limit=TRAFFIC,
        ),
        number(
            "Lag, p90",
            "Time from an event's own ts to the end of its micro-batch, for nine events in ten. Above a minute and "
            "rising: the consumer is too slow for what comes in. Empty: the events carry no ts.",
            Target(quantile(0.9, "ebbtide_event_lag_seconds"), "p90"),
            "s",
            thresholds=[(limits.LAG_SECONDS / 2, "orange"), (limits.LAG_SECONDS, "red")],
        ),
        number(
            "Backlog",
            "Bytes that the source holds and that are not read yet. If it grows for long, the consumer is too slow "
            "for what comes in: look at the stages for what takes the time. Empty where the source cannot tell, "
            "such as standard input.",
            Target(gauge("ebbtide_source_backlog_bytes"), "backlog"),
            "bytes",
            thresholds=[(limits.BACKLOG_BYTES, "orange"), (10 * limits.BACKLOG_BYTES, "red")],
        ),
        number(
            "Dead letters in 1 h",
            "Lines that were refused. Any number that keeps growing means that a producer sends something else than "
            "the input contract; the dead-letter file holds each line with its offset and the reason.",
            Target(increase("ebbtide_dead_letters_total", "1h"), "dead letters"),
            "short",
            thresholds=[(1, "orange"), (1000, "red")],
        ),
        number(
            "Alarms in 1 h",
            "Alarms that detectors raised. Many more than on other days: the streams have changed, or a threshold "
            "is too tight. See which alarm below, and which streams at /api/streams.",
            Target(increase("ebbtide_alarms_total", "1h"), "alarms"),
            "short",
            no_limit=USUAL,
        ),
        number(
            "Oldest checkpoint",
            "Time since the last committed checkpoint, of the instance that waits longest. It is what a crash would "
            "have to do again. More than a few minutes while events come in: checkpoints fail or the loop stands "
            "still. An instance without input writes none.",
            parts.checkpoint_age(legend="age"),
            "s",
            thresholds=[(limits.CHECKPOINT_SECONDS / 2, "orange"), (limits.CHECKPOINT_SECONDS, "red")],
        ),
    ],
)

_THROUGHPUT = Row(
    "Throughput",
    [
        Panel(
            "Events per second, by instance",
            "A line that falls to zero while others go on: that instance is stuck or has lost its source. All of "
            "them falling together: look at the source. Steps as long as the checkpoint interval are usual, since "
            "work counts when it is committed.",
            by_instance("ebbtide_events_total"),
            unit="eps",
            width=8,
            no_limit=TRAFFIC,
        ),
        Panel(
            "Tokens per second, by instance",
            "Tokens written to memory. Falling while events do not: the events got shorter. Rising: they got "
            "longer, and each batch takes longer too.",
            by_instance("ebbtide_tokens_total"),
            unit="cps",
            width=8,
            no_limit=TRAFFIC,
        ),
        Panel(
            "Bytes read per second",
            "What the source delivered. Well above events times their size: many lines are refused or skipped.",
            by_instance("ebbtide_source_bytes_total"),
            unit="Bps",
            width=8,
            no_limit=TRAFFIC,
        ),
    ],
)

_LAG = Row(
    "Lag",
    [
        parts.LAG,
        parts.BACKLOG,
        Panel(
            "Time for a batch, p99",
            "How long the slowest batches take. Seconds: an event waits at least as long; see the stages on the "
            "runtime dashboard.",
            [Target(quantile(0.99, "ebbtide_batch_seconds", "instance"), "{{instance}}")],
            unit="s",
            width=8,
            thresholds=[(5, "orange")],
        ),
    ],
)

_ERRORS = Row(
    "Errors",
    [
        Panel(
            "Dead letters per second, by reason",
            "One reason that appears suddenly points to one producer that changed. Correct it there; the refused "
            "lines can be mended and sent again from the dead-letter file.",
            [Target(rate("ebbtide_dead_letters_total", "reason"), "{{reason}}")],
            unit="cps",
            width=8,
            stacked=True,
            no_limit="the share of the lines has one, beside it.",
        ),
        Panel(
            "Events that came again or out of order, per second",
            "An id that its stream had before: refused unless --duplicates take. Many of them: a producer that sends "
            "again, or ids that are not one an event. Late ones are earlier than the event before them, and taken.",
            [
                Target(rate("ebbtide_duplicate_events_total"), "came again"),
                Target(rate("ebbtide_late_events_total"), "out of order"),
            ],
            unit="cps",
            width=8,
            no_limit="what is usual depends on the producers.",
        ),
        parts.REFUSED_LINES,
        parts.NONFINITE,
        parts.QUARANTINED,
        parts.WAITING_FOR_ROOM,
        Panel(
            "Checkpoints that failed, in 1 h",
            "The stored state is as it was before. Any: the disk is full, the database is away, or another run holds "
            "the store; the log says which.",
            [Target(increase("ebbtide_checkpoint_failures_total", "1h", "instance"), "{{instance}}")],
            unit="short",
            width=24,
            thresholds=[(1, "red")],
        ),
    ],
)

_MEMORY = Row(
    "The memory, and what was done to it",
    [
        Panel(
            "Retrieval error, quantiles",
            "Relative error of what the states return for remembered pairs; 1 is as bad as an empty state. p50 rising "
            "over days: the memory goes stale. More on the memory dashboard.",
            quantiles("ebbtide_retrieval_error_ratio"),
            unit="none",
            width=8,
            thresholds=[(1, "red")],
        ),
        Panel(
            "State norm, quantiles",
            "p99 leaving p50 behind means that few streams grow while most are well; the streams dashboard shows how "
            "far. All of them at zero: states are reset too often, or writing is off.",
            quantiles("ebbtide_state_norm"),
            unit="none",
            width=8,
            no_limit=USUAL,
        ),
        Panel(
            "Topic shift score, mean",
            "How unlike its stream's recent past an event is, on average. Rising for long: conversations jump more, or "
            "their language is one that the backbone does not know.",
            [Target(mean("ebbtide_topic_shift_score_ratio", "instance"), "{{instance}}")],
            unit="none",
            width=8,
            no_limit=USUAL,
        ),
        parts.ALARMS,
        parts.ACTIONS,
        parts.running("What is running", 8, 8),
    ],
)

OVERVIEW = Dashboard(
    uid="ebbtide-overview",
    title="Ebbtide: overview",
    description="Is it running, does it keep up, is the memory well, and what went wrong?",
    rows=(_GLANCE, _THROUGHPUT, _LAG, _ERRORS, _MEMORY),
    marks=(ALERTS_FIRING, POLICY_ACTIONS),
)
