"""Where the time and the memory go: stages, queues, checkpoints, the pool, the process."""

from __future__ import annotations

from dashboards import limits, parts
from dashboards.board import Dashboard, Row
from dashboards.panels import Panel, Target
from dashboards.parts import TRAFFIC, by_instance, heatmap, quantiles
from dashboards.promql import gauge, increase, quantile, rate, recorded, select
from dashboards.recordings import POOL, RETURNS

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
            no_limit="the number of instances is the limit.",
        ),
        Panel(
            "Time of a stage for one batch, p99",
            "A stage that stands out stops the loop from time to time: commit and sink wait for the disk, backbone and "
            "scan for the processor or the GPU.",
            [Target(quantile(0.99, "ebbtide_stage_seconds", "stage"), "{{stage}}")],
            unit="s",
            thresholds=[(5, "orange")],
        ),
        heatmap(
            "Time for a batch",
            "ebbtide_batch_seconds",
            "How long batches take from start to end. A second band far above the first: something stops the loop; "
            "compare with the checkpoints and with the garbage collector.",
            unit="none",
        ),
        Panel(
            "Time for a batch, quantiles",
            "p99 far above p50: something stops the loop from time to time; compare with the checkpoints.",
            quantiles("ebbtide_batch_seconds"),
            unit="s",
            thresholds=[(5, "orange")],
        ),
        Panel(
            "Events in a batch, quantiles",
            "At the limit: the consumer is behind and makes its batches as large as it may. Near 1 with a backlog: "
            "the source delivers too slowly.",
            quantiles("ebbtide_batch_events"),
            unit="short",
            width=8,
            no_limit="the limit is --batch-events.",
        ),
        Panel(
            "Queue depth, by queue",
            "A queue that stays full is followed by the slowest stage; one that stays empty is preceded by it.",
            [Target(gauge("ebbtide_queue_depth", "queue"), "{{queue}}")],
            unit="short",
            width=8,
            no_limit="queues are bounded; a full one is no fault.",
        ),
        Panel(
            "Records to the sink per second",
            "One for each event. Fewer than events for longer than a batch: the sink is slow or fails.",
            by_instance("ebbtide_sink_records_total"),
            unit="cps",
            width=8,
            no_limit=TRAFFIC,
        ),
        parts.LAG,
        parts.BACKLOG,
        Panel(
            "Lines and events per second",
            "Lines read, and events written to memory. Lines well above events: they are refused or blank; see the "
            "dead letters on the overview.",
            [
                Target(rate("ebbtide_source_lines_total"), "lines"),
                Target(rate("ebbtide_events_total"), "events"),
            ],
            unit="cps",
            width=8,
            no_limit=TRAFFIC,
        ),
    ],
)

_CHECKPOINTS = Row(
    "Checkpoints",
    [
        Panel(
            "Checkpoint age, by instance",
            "A saw whose teeth are as high as the checkpoint interval is right. A line that climbs while events come "
            "in: checkpoints fail, or the loop stands still.",
            [parts.checkpoint_age("instance", legend="{{instance}}")],
            unit="s",
            width=8,
            thresholds=[(limits.CHECKPOINT_SECONDS, "red")],
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
            no_limit="committed ones follow --checkpoint-every; any failure is one too many.",
        ),
        Panel(
            "Time for a commit, quantiles",
            "The loop waits for each commit. Near the checkpoint interval: the store is too slow for what changes; "
            "raise --checkpoint-every, or give the store a faster disk.",
            quantiles("ebbtide_stage_seconds", where='stage="commit"'),
            unit="s",
            width=8,
            thresholds=[(1, "orange"), (5, "red")],
        ),
        Panel(
            "Age of the last copy of the store",
            "How far back --recover would go if the store were damaged now. A copy is read whole before it counts: one "
            "that fails means no room for it, or damage; the log says which. Without --copy-every there is none.",
            [
                Target(f"time() - {gauge('ebbtide_last_store_copy_timestamp_seconds', 'instance')}", "{{instance}}"),
            ],
            unit="s",
            width=8,
            thresholds=[(limits.COPY_SECONDS, "orange")],
        ),
        Panel(
            "Copies, recoveries, gaps and fenced commits, in 1 h",
            "A recovery began at an earlier checkpoint because somebody asked for it; a gap was accepted where the "
            "rest of the source was gone. A fenced commit was refused since another consumer has the store: two were "
            "started on one.",
            [
                Target(increase("ebbtide_store_copies_total", "1h"), "copies"),
                Target(increase("ebbtide_store_copy_failures_total", "1h"), "failed copies"),
                Target(increase("ebbtide_recoveries_total", "1h"), "recoveries"),
                Target(increase("ebbtide_source_gaps_total", "1h"), "gaps"),
                Target(increase("ebbtide_fenced_commits_total", "1h"), "fenced"),
            ],
            unit="short",
            width=8,
            no_limit="the counts are of different things; failed copies have an alert.",
        ),
        Panel(
            "Since the loop last turned",
            "Under a second in health, with or without input. Climbing: the loop waits for something that does not "
            "answer, such as a disk; the stage quantiles show where time went before.",
            [
                Target(
                    f"time() - {gauge('ebbtide_loop_last_turn_timestamp_seconds', 'instance', how='min')}",
                    "{{instance}}",
                )
            ],
            unit="s",
            width=8,
            thresholds=[(limits.TURN_SECONDS, "red")],
        ),
        Panel(
            "Lanes written per checkpoint",
            "Lanes that changed since the last checkpoint. Near the number of streams in memory: nearly all are "
            "active, and a longer interval would save no work.",
            [Target(f"{rate('ebbtide_checkpoint_lanes_total')} / {rate('ebbtide_checkpoints_total')}", "lanes")],
            unit="short",
            no_limit=TRAFFIC,
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
            no_limit="the disk is the limit.",
        ),
    ],
)

_POOL = Row(
    "The state pool",
    [
        Panel(
            "State pool",
            "Bytes that hold a state, bytes reserved, and the bound. Used at the bound: every new stream pushes "
            "another one out; raise --pool-bytes if states come back often.",
            [
                Target(gauge("ebbtide_pool_used_bytes"), "used"),
                Target(gauge("ebbtide_pool_reserved_bytes"), "reserved"),
                Target(gauge("ebbtide_pool_limit_bytes"), "bound"),
            ],
            unit="bytes",
            width=8,
            no_limit="the bound is drawn.",
        ),
        Panel(
            "Share of the pool's bound in use",
            "Near 1: new streams will push out others soon. That alone is no fault; it is one when they come back.",
            [Target(recorded(POOL), "{{instance}}")],
            unit="percentunit",
            width=8,
            thresholds=[(limits.POOL_SHARE, "orange")],
        ),
        Panel(
            "States brought back for each event",
            "How often an event's state has to be fetched from the store first. Above a tenth: more streams are active "
            "than fit; raise --pool-bytes, or share the streams among more instances.",
            [Target(recorded(RETURNS), "{{instance}}")],
            unit="none",
            width=8,
            thresholds=[(limits.RETURN_SHARE, "red")],
        ),
        Panel(
            "Spills per second, by direction",
            "States moved out of the pool and back in. If both are high, more streams are active than fit: make the "
            "pool larger.",
            [Target(rate("ebbtide_spills_total", "direction"), "{{direction}}")],
            unit="cps",
            no_limit="the share beside it has one.",
        ),
        Panel(
            "Bytes of filed states",
            "Reserved for states that policies hold besides the lanes' own, of live lanes and of shadows. Larger than "
            "the pool: shadows cost more than the work; run fewer, or with smaller archives.",
            [Target(gauge("ebbtide_filed_bytes", "instance"), "{{instance}}")],
            unit="bytes",
            no_limit="memory of the machine is the limit.",
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
            by_instance("process_cpu_seconds_total"),
            unit="percentunit",
            width=6,
            no_limit="the number of cores is the limit.",
        ),
        Panel(
            "Resident memory",
            "Should be flat however much has been read. A line that rises for days is a leak: restart, and report it.",
            [Target(gauge("process_resident_memory_bytes", "instance"), "{{instance}}")],
            unit="bytes",
            width=6,
            no_limit="memory of the machine is the limit.",
        ),
        Panel(
            "GPU memory",
            "Taken by this process's tensors, free, and all there is, on the GPU that the states live on. Free near 0: "
            "the next larger batch fails; lower --batch-tokens or --pool-bytes. Empty on a CPU.",
            [
                Target(gauge("ebbtide_device_memory_allocated_bytes", "instance"), "{{instance}}, tensors"),
                Target(gauge("ebbtide_device_memory_free_bytes", "instance"), "{{instance}}, free"),
                Target(gauge("ebbtide_device_memory_total_bytes", "instance"), "{{instance}}, all"),
            ],
            unit="bytes",
            width=6,
            no_limit="all there is, is drawn.",
        ),
        Panel(
            "Open files, share of the limit",
            "Should be flat. Rising: files or connections are not closed, and at 1 nothing can be opened any more.",
            [
                Target(
                    f"{gauge('process_open_fds', 'instance')} / {gauge('process_max_fds', 'instance')}",
                    "{{instance}}",
                )
            ],
            unit="percentunit",
            width=6,
            thresholds=[(0.8, "orange")],
        ),
        Panel(
            "Time to write an exposition",
            "What a scrape costs the loop. Above 50 ms: too many series, or too slow a machine; scrape less often.",
            quantiles("ebbtide_exposition_seconds"),
            unit="s",
            width=8,
            thresholds=[(limits.EXPOSITION_SECONDS, "orange")],
        ),
        Panel(
            "Time for a scrape, as Prometheus sees it",
            "Far above the time to write an exposition: requests wait their turn, or the network is slow. At the "
            "scrape timeout, 10 s unless set otherwise, there are gaps in every graph.",
            [Target(f"max by (instance) ({select('scrape_duration_seconds')})", "{{instance}}")],
            unit="s",
            width=8,
            thresholds=[(1, "orange"), (10, "red")],
        ),
        Panel(
            "Garbage collections per second, by generation",
            "Python's collector. Many of generation 2 per second with a processor at its limit: something makes far "
            "too many objects; report it.",
            [
                Target(
                    f"sum by (generation) (rate({select('python_gc_collections_total')}[$__rate_interval]))",
                    "{{generation}}",
                )
            ],
            unit="cps",
            width=8,
            no_limit=TRAFFIC,
        ),
        parts.running("What is running", 24, 5),
    ],
)

RUNTIME = Dashboard(
    uid="ebbtide-runtime",
    title="Ebbtide: runtime",
    description="Where the time and the memory go: stages, queues, checkpoints, the pool, the process.",
    rows=(_LOOP, _CHECKPOINTS, _POOL, _PROCESS),
)
