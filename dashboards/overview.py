"""The dashboard to open first: is it running, is the memory well, and where does the time go?"""

from __future__ import annotations

from dashboards.panels import Dashboard, Panel, Row, Target
from dashboards.promql import SCOPE, buckets, gauge, increase, quantile, rate

_QUANTILES = (0.5, 0.9, 0.99)


def _quantiles(histogram: str, *by: str) -> list[Target]:
    return [Target(quantile(q, histogram, *by), f"p{100 * q:g}") for q in _QUANTILES]


def _heatmap(title: str, histogram: str, description: str) -> Panel:
    return Panel(title, description, [Target(buckets(histogram), "{{le}}")], unit="none", kind="heatmap")


def _checkpoint_age(legend: str) -> Target:
    return Target(f"time() - {gauge('ebbtide_last_checkpoint_timestamp_seconds', 'instance', how='max')}", legend)


_GLANCE = Row(
    "At a glance",
    [
        Panel(
            "Ready",
            "Whether every chosen instance is consuming. Not ready: it is restoring state, draining, or has lost "
            "its source; /-/ready of the instance says which. If it lasts longer than a restart does, read its log.",
            [Target(gauge("ebbtide_ready", how="min"), "ready")],
            unit="none",
            kind="stat",
            width=4,
            height=4,
            base="red",
            thresholds=[(1, "green")],
            names=[(0, "Not ready"), (1, "Ready")],
        ),
        Panel(
            "Events per second",
            "Events written to memory. Zero while the backlog grows means that the consumer is stuck: look at the "
            "stages and at the checkpoints. Zero without a backlog means that nothing comes in.",
            [Target(rate("ebbtide_events_total"), "events")],
            unit="eps",
            kind="stat",
            width=4,
            height=4,
        ),
        Panel(
            "Dead letters in the last hour",
            "Lines that were refused. Any number that keeps growing means that a producer sends something else than "
            "the input contract; the dead-letter file holds each line with its offset and the reason.",
            [Target(increase("ebbtide_dead_letters_total", "1h"), "dead letters")],
            unit="short",
            kind="stat",
            width=4,
            height=4,
            thresholds=[(1, "orange"), (1000, "red")],
        ),
        Panel(
            "Alarms in the last hour",
            "Alarms that detectors raised. Many more than on other days: the streams have changed, or a threshold "
            "is too tight. See which alarm below, and which streams at /api/streams.",
            [Target(increase("ebbtide_alarms_total", "1h"), "alarms")],
            unit="short",
            kind="stat",
            width=4,
            height=4,
        ),
        Panel(
            "Backlog",
            "Bytes that the source holds and that are not read yet. If it grows for long, the consumer is too slow "
            "for what comes in: look at the stages for what takes the time. Empty where the source cannot tell, "
            "such as standard input.",
            [Target(gauge("ebbtide_source_backlog_bytes"), "backlog")],
            unit="bytes",
            kind="stat",
            width=4,
            height=4,
        ),
        Panel(
            "Oldest checkpoint",
            "Time since the last committed checkpoint, of the instance that waits longest. It is what a crash would "
            "have to do again. More than a few minutes: checkpoints fail (see below) or the loop stands still.",
            [
                Target(
                    f"time() - {gauge('ebbtide_last_checkpoint_timestamp_seconds', how='min')}",
                    "age",
                )
            ],
            unit="s",
            kind="stat",
            width=4,
            height=4,
            thresholds=[(120, "orange"), (600, "red")],
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
            [Target(rate("ebbtide_events_total", "instance"), "{{instance}}")],
            unit="eps",
            width=8,
        ),
        Panel(
            "Tokens per second, by instance",
            "Tokens written to memory. Falling while events do not: the events got shorter. Rising: they got "
            "longer, and each batch takes longer too.",
            [Target(rate("ebbtide_tokens_total", "instance"), "{{instance}}")],
            unit="cps",
            width=8,
        ),
        Panel(
            "Bytes read per second",
            "What the source delivered. Well above events times their size: many lines are refused or skipped.",
            [Target(rate("ebbtide_source_bytes_total", "instance"), "{{instance}}")],
            unit="Bps",
            width=8,
        ),
        Panel(
            "Dead letters per second, by reason",
            "One reason that appears suddenly points to one producer that changed. Correct it there; the refused "
            "lines can be mended and sent again from the dead-letter file.",
            [Target(rate("ebbtide_dead_letters_total", "reason"), "{{reason}}")],
            unit="cps",
            width=8,
            stacked=True,
        ),
        Panel(
            "Share of lines that were refused",
            "Dead letters over lines read. A steady share is a format that some producer does not keep; a jump is "
            "an incident.",
            [Target(f"{rate('ebbtide_dead_letters_total')} / {rate('ebbtide_source_lines_total')}", "refused")],
            unit="percentunit",
            width=8,
        ),
        Panel(
            "Backlog, by instance",
            "A line that only rises never catches up: give that instance fewer streams, a larger batch or a faster "
            "backbone.",
            [Target(gauge("ebbtide_source_backlog_bytes", "instance"), "{{instance}}")],
            unit="bytes",
            width=8,
        ),
    ],
)

_HEALTH = Row(
    "Memory health: distributions over streams",
    [
        _heatmap(
            "State norm",
            "ebbtide_state_norm",
            "Frobenius norm of the state after each event. A band that climbs without end: states saturate, and a "
            "decay or a norm_cap policy is due. A second band far above the first: a few streams are sick; "
            "/api/streams names them.",
        ),
        Panel(
            "State norm, quantiles",
            "p99 leaving p50 behind means that few streams grow while most are well. All of them at zero: states "
            "are reset too often, or writing is off.",
            _quantiles("ebbtide_state_norm"),
            unit="none",
        ),
        _heatmap(
            "Retrieval error",
            "ebbtide_retrieval_error_ratio",
            "Relative error of what the state returns for remembered pairs; 1 is as bad as an empty state. A band "
            "near 1: the memory holds nothing any more. Raise the rank, write less, or archive and restore where "
            "topics return.",
        ),
        Panel(
            "Retrieval error, quantiles",
            "p50 rising over days: the memory goes stale. Steps that come with alarms and resets are the price of "
            "the policy; if they do not come down again, the policy does harm: compare it with a shadow.",
            _quantiles("ebbtide_retrieval_error_ratio"),
            unit="none",
        ),
        _heatmap(
            "Topic shift score",
            "ebbtide_topic_shift_score_ratio",
            "How unlike its stream's recent past each event is. Two bands, low and high, are what a detector can "
            "tell apart. One broad band: the score does not separate topics on this traffic, and policies that act "
            "on shifts should not be used.",
        ),
        Panel(
            "Topic shift score, quantiles",
            "p50 rising: conversations jump more, or their language is one that the backbone does not know. The "
            "alarm threshold should lie between p50 and p99.",
            _quantiles("ebbtide_topic_shift_score_ratio"),
            unit="none",
        ),
        Panel(
            "Stable rank, quantiles",
            "How many directions the states use. Near 1: every write goes the same way, the keys are too much "
            "alike. Near the rank of the state: it is full, and each new pair pushes out an old one.",
            _quantiles("ebbtide_stable_rank"),
            unit="none",
        ),
        Panel(
            "Write error, quantiles",
            "How wrong the state was about what was about to be written. Near 1: nothing of it was known. Far above "
            "1: the state predicts something else with confidence, as after a change of topic; look for alarms and "
            "resets.",
            _quantiles("ebbtide_write_error_ratio"),
            unit="none",
        ),
        Panel(
            "Retrieval error by age of the pair",
            "The mean error for pairs by how many writes ago they were written: the forgetting curve. Old ages at 1: "
            "nothing of that age is left. Young ages high too: the memory is overloaded, or its gates are wrong.",
            [
                Target(
                    " / ".join(rate(f"ebbtide_probe_error_ratio_{part}", "age") for part in ("sum", "count")),
                    "{{age}} writes",
                )
            ],
            unit="none",
        ),
        Panel(
            "Forgetting half-life, in writes",
            "Writes after which half of what is remembered of a pair is left, and what the rule alone would do if "
            "writes were unrelated. Far below it: messages are alike and overwrite each other. Empty: more than half "
            "is left of the oldest probe.",
            [
                Target(gauge("ebbtide_forgetting_half_life_writes", "instance"), "{{instance}}"),
                Target(gauge("ebbtide_null_half_life_writes", "instance"), "{{instance}}, unrelated writes"),
            ],
            unit="short",
        ),
        Panel(
            "Retrieval lift, quantiles",
            "How much smaller the error is for what was written than for pairs that never were: memory, and not the "
            "map that all pairs share. Near 0: nothing is remembered, however good the retrieval error looks.",
            _quantiles("ebbtide_retrieval_lift_ratio"),
            unit="none",
        ),
        Panel(
            "Saturation, quantiles",
            "A state's norm over what its gates and values allow. In mode plain, near 1: the state is as full as "
            "endless unrelated writes would make it, and each new pair costs an old one.",
            _quantiles("ebbtide_saturation_ratio"),
            unit="none",
        ),
    ],
)

_ACTIONS = Row(
    "Alarms and actions",
    [
        Panel(
            "Alarms per second, by alarm",
            "One alarm that rises alone points to its signal above. All of them together: the input changed, or the "
            "backbone did.",
            [Target(rate("ebbtide_alarms_total", "alarm"), "{{alarm}}")],
            unit="cps",
            width=8,
            stacked=True,
        ),
        Panel(
            "Actions per second other than keep, by kind",
            "What the policy does to states. Many resets with a rising retrieval error: it forgets what it should "
            "keep. None at all while alarms rise: the policy is `none`, or in its cool-down.",
            [Target(rate("ebbtide_actions_total", "kind", where='kind!="keep"'), "{{kind}}")],
            unit="cps",
            width=8,
            stacked=True,
        ),
        Panel(
            "Values that were not finite, per second",
            "NaN or infinity among what was measured. Anything above zero is a fault: a sick backbone, an overflow "
            "in half precision, a damaged adapter. Detectors never see these values. Find the stream at "
            "/api/streams, and look at what it was sent.",
            [Target(rate("ebbtide_nonfinite_values_total", "instance"), "{{instance}}")],
            unit="cps",
            width=8,
        ),
    ],
)

_STATE = Row(
    "States and checkpoints",
    [
        Panel(
            "Checkpoint age, by instance",
            "A saw whose teeth are as high as the checkpoint interval is right. A line that climbs: checkpoints "
            "fail, or the loop stands still.",
            [_checkpoint_age("{{instance}}")],
            unit="s",
            width=8,
        ),
        Panel(
            "Checkpoints per second",
            "Failures leave the stored state as it was, and their work is done again after a crash. If there are "
            "any, the disk is full, the database is away, or another instance holds the lease; the log says which.",
            [
                Target(rate("ebbtide_checkpoints_total"), "committed"),
                Target(rate("ebbtide_checkpoint_failures_total"), "failed"),
            ],
            unit="cps",
            width=8,
        ),
        Panel(
            "Lanes written per checkpoint",
            "Lanes that changed since the last checkpoint. Near the number of streams in memory: nearly all are "
            "active, and a longer interval would save no work.",
            [Target(f"{rate('ebbtide_checkpoint_lanes_total')} / {rate('ebbtide_checkpoints_total')}", "lanes")],
            unit="short",
            width=8,
        ),
        Panel(
            "Streams",
            "Those with a state in the pool, and all that are stored. Stored ones that only grow fill the disk in "
            "the end: plan for its size.",
            [
                Target(gauge("ebbtide_streams_resident"), "in memory"),
                Target(gauge("ebbtide_streams_stored"), "stored"),
            ],
            unit="short",
            width=8,
        ),
        Panel(
            "State pool",
            "Bytes that hold a state, and bytes reserved. Used near reserved: every new stream pushes another one out.",
            [
                Target(gauge("ebbtide_pool_used_bytes"), "used"),
                Target(gauge("ebbtide_pool_reserved_bytes"), "reserved"),
            ],
            unit="bytes",
            width=8,
        ),
        Panel(
            "Spills per second, by direction",
            "States moved out of the pool and back in. If both are high, more streams are active than fit: make the "
            "pool larger.",
            [Target(rate("ebbtide_spills_total", "direction"), "{{direction}}")],
            unit="cps",
            width=8,
        ),
    ],
)

_LOOP = Row(
    "The loop",
    [
        Panel(
            "Where the time goes: seconds per second, by stage",
            "The share of the time that each stage takes. Together near the number of instances: they are busy "
            "without a pause, and the largest stage is what to make faster.",
            [Target(rate("ebbtide_stage_seconds_sum", "stage"), "{{stage}}")],
            unit="percentunit",
            stacked=True,
        ),
        Panel(
            "Time for a batch, quantiles",
            "p99 far above p50: something stops the loop from time to time; compare with the checkpoints.",
            _quantiles("ebbtide_batch_seconds"),
            unit="s",
        ),
        Panel(
            "Events in a batch, quantiles",
            "At the limit: the consumer is behind and makes its batches as large as it may. Near 1 with a backlog: "
            "the source delivers too slowly.",
            _quantiles("ebbtide_batch_events"),
            unit="short",
            width=8,
        ),
        Panel(
            "Queue depth, by queue",
            "A queue that stays full is followed by the slowest stage; one that stays empty is preceded by it.",
            [Target(gauge("ebbtide_queue_depth", "queue"), "{{queue}}")],
            unit="short",
            width=8,
        ),
        Panel(
            "Records to the sink per second",
            "One for each event. Fewer than events for longer than a batch: the sink is slow or fails.",
            [Target(rate("ebbtide_sink_records_total", "instance"), "{{instance}}")],
            unit="cps",
            width=8,
        ),
    ],
)

_PROCESS = Row(
    "The process",
    [
        Panel(
            "Processor",
            "Seconds of processor time per second. At the number of cores: nothing is left; at 1 with idle cores: "
            "one thread is the limit.",
            [Target(rate("process_cpu_seconds_total", "instance"), "{{instance}}")],
            unit="percentunit",
            width=6,
        ),
        Panel(
            "Resident memory",
            "Should be flat however much has been read. A line that rises for days is a leak: restart, and report it.",
            [Target(gauge("process_resident_memory_bytes", "instance"), "{{instance}}")],
            unit="bytes",
            width=6,
        ),
        Panel(
            "Open files",
            "Should be flat. Rising: files or connections are not closed, and the limit will be reached.",
            [Target(gauge("process_open_fds", "instance"), "{{instance}}")],
            unit="short",
            width=6,
        ),
        Panel(
            "What is running",
            "Version, backbone, device and policy of each instance. Two versions at once for longer than a "
            "roll-out: one instance was forgotten.",
            [Target(f"ebbtide_build_info{{{SCOPE}}}", "{{instance}}")],
            unit="none",
            kind="table",
            width=6,
        ),
    ],
)

OVERVIEW = Dashboard(
    uid="ebbtide-overview",
    title="Ebbtide: overview",
    description="Throughput, the health of the memory, alarms and actions, checkpoints, and where the time goes.",
    rows=(_GLANCE, _THROUGHPUT, _HEALTH, _ACTIONS, _STATE, _LOOP, _PROCESS),
)
