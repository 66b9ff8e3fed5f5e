"""Every metric, once: the exporter, the dashboards, the alert rules and `docs/metrics.md` read it from here.

The rules of the house, checked when a `Metric` is made:

- One prefix, `ebbtide_`. Base units (seconds, bytes, ratios from 0 on), named by the suffix. `_total` on counters only.
- Counters rather than ratios; timestamps rather than ages; a histogram rather than one number for many streams.
- No label whose values grow with the data: a stream's name is never a label. The worst streams are at `/api/streams`.

**Which counters survive a restart.** Counters of processed work (`persistent=True`: events, tokens, bytes, lines, dead
letters, alarms, actions, non-finite values) are stored by the checkpoint, in the same transaction as the states and
the source's offsets, and a restart goes on counting from there. What a killed process had counted after its last
checkpoint is done again and counted again, so that the counters end as in a run that nothing interrupted. Everything
else begins anew with the process, as Prometheus expects of counters.

Going back to the last checkpoint must not look like a step back to whoever scrapes: Prometheus takes any decrease for
a counter that began at zero, and `increase()` would then report the whole history as new. `Metrics` can therefore show
persistent counters as of the last commit, so that what was shown never decreases; see `Metrics.publish`.

Examples
--------
>>> CATALOGUE["ebbtide_events_total"].kind
'counter'
>>> sorted(name for name, metric in CATALOGUE.items() if metric.kind == "gauge")[:2]
['ebbtide_build_info', 'ebbtide_device_memory_allocated_bytes']
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from monitors.forgetting import AGE_LABELS
from monitors.observations import SIGNALS
from monitors.policies.policy import ActionKind

Kind = Literal["counter", "gauge", "histogram"]

PREFIX = "ebbtide_"

UNBOUNDED_LABELS = frozenset({"stream", "session", "user", "conversation", "id", "event", "offset", "path"})
"""Labels whose values grow with the data. None of them is ever used."""


@dataclass(frozen=True, slots=True)
class Metric:
    """What is known of one metric before it has a value.

    Parameters
    ----------
    name
        The full name, as it is scraped: prefix, what it is, unit, and `_total` for a counter.
    kind
        ``"counter"``, ``"gauge"`` or ``"histogram"``.
    unit
        The unit that the name ends in (before `_total`), plural; empty for a plain count or number.
    labels
        Names of the labels, in the order in which `Metrics` takes their values.
    help
        One sentence that says what is counted, and its unit.
    buckets
        Upper bounds of a histogram's buckets, inclusive, ascending, finite; the last one, `+Inf`, goes without saying.
    persistent
        A counter that the checkpoint stores; see the module's docstring.
    series
        Label values that are known beforehand. They are there at 0 from the start, because `increase()` does not see
        a counter that appears with its first value.

    Raises
    ------
    ValueError
        The metric breaks one of the rules of the house.

    Examples
    --------
    >>> Metric("ebbtide_spills_total", "counter", help="Lanes moved.", labels=("direction",)).samples
    ('ebbtide_spills_total',)
    >>> Metric("ebbtide_spills", "counter", help="Lanes moved.")
    Traceback (most recent call last):
    ...
    ValueError: ebbtide_spills: expected a counter's name to end in _total
    """

    name: str
    kind: Kind
    help: str
    unit: str = ""
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    persistent: bool = False
    series: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        fault = self._fault()
        if fault:
            raise ValueError(f"{self.name}: {fault}")

    def _fault(self) -> str:
        if not re.fullmatch(PREFIX + r"[a-z][a-z0-9]*(_[a-z0-9]+)*", self.name):
            return f"expected {PREFIX} and lower-case words joined by _"
        if self.kind not in ("counter", "gauge", "histogram"):
            return f"expected kind counter, gauge or histogram, got {self.kind!r}"
        if self.name.endswith("_total") != (self.kind == "counter"):
            return (
                "expected a counter's name to end in _total"
                if self.kind == "counter"
                else "only counters end in _total"
            )
        if self.unit and not self.name.removesuffix("_total").endswith("_" + self.unit):
            return f"expected the name to end in its unit, _{self.unit}"
        if unbounded := UNBOUNDED_LABELS.intersection(self.labels):
            return f"label {min(unbounded)!r} grows with the data; use a histogram, and /api/streams for the worst"
        if "le" in self.labels or len(set(self.labels)) != len(self.labels):
            return f"expected labels that are all different and not 'le', got {self.labels}"
        if bool(self.buckets) != (self.kind == "histogram"):
            return "expected buckets on a histogram, and only there"
        if not all(map(math.isfinite, self.buckets)) or list(self.buckets) != sorted(set(self.buckets)):
            return f"expected ascending, finite buckets, got {self.buckets}"
        if self.persistent and self.kind != "counter":
            return "only a counter can be persistent"
        if not self.help.endswith("."):
            return "expected a help text that is a sentence, with its full stop"
        for values in self.series:
            if len(values) != len(self.labels):
                return f"expected {len(self.labels)} label values ({', '.join(self.labels)}) a series, got {values}"
        return ""

    @property
    def samples(self) -> tuple[str, ...]:
        """Names of the samples that a scrape shows, which are those that a query can use."""
        if self.kind == "histogram":
            return (f"{self.name}_bucket", f"{self.name}_sum", f"{self.name}_count")
        return (self.name,)


def _counter(
    name: str,
    text: str,
    unit: str = "",
    label: str = "",
    known: tuple[str, ...] = (),
    persistent: bool = False,
) -> Metric:
    labels = (label,) if label else ()
    series = tuple((value,) for value in known) if label else ((),)
    return Metric(f"{PREFIX}{name}_total", "counter", text, unit, labels, persistent=persistent, series=series)


def _work(name: str, text: str, unit: str = "", label: str = "", known: tuple[str, ...] = ()) -> Metric:
    return _counter(name, text, unit, label, known, persistent=True)


def _gauge(name: str, text: str, unit: str = "", labels: tuple[str, ...] = (), zero: bool = False) -> Metric:
    return Metric(PREFIX + name, "gauge", text, unit, labels, series=((),) if zero else ())


def _histogram(
    name: str, text: str, buckets: tuple[float, ...], unit: str = "", label: str = "", known: tuple[str, ...] = ()
) -> Metric:
    labels = (label,) if label else ()
    series = tuple((value,) for value in known) if label else ((),)
    return Metric(PREFIX + name, "histogram", text, unit, labels, buckets, series=series)


def _by_policy(name: str, text: str) -> Metric:
    return Metric(PREFIX + name, "histogram", text, "ratio", ("policy", "role"), _RATIOS)


ALARMS = tuple("topic_shift" if signal == "topic_shift_score" else signal for signal in SIGNALS)
"""Names of the alarms: each carries its signal's name, and `topic_shift` for `topic_shift_score`."""

ACTIONS = tuple(kind.label for kind in ActionKind)
"""Names of the actions."""

ORIGINS = ("policy", "operator", "dry_run")
"""Who asked for an action: the policy, a person, or a policy that only says what it would have done."""

WORST = 10
"""Streams shown for each signal, by their place and not by their name: so many series, however many streams come."""

# About ten buckets where the values are, a few where they should not be.
_RATIOS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0)
_NORMS = (0.125, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0, 128.0)
_RANKS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0)
_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_LAGS = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 21600.0, 86400.0, 604800.0)
_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0)

_METRICS = (
    # Processed work: these go on counting after a restart.
    _work("events", "Events written to memory.", "events"),
    _work("tokens", "Tokens of the events written to memory.", "tokens"),
    _work("source_bytes", "Bytes read from the source and done with.", "bytes"),
    _work("source_lines", "Lines read from the source and done with: accepted, refused or blank.", "lines"),
    _work("dead_letters", "Lines that were refused and filed as dead letters, by reason.", "", "reason"),
    _work("alarms", "Alarms that detectors raised on live lanes, by alarm.", "", "alarm", ALARMS),
    Metric(
        "ebbtide_actions_total",
        "counter",
        "What was done to live lanes: by the policy, one an event, or by an operator; a dry run only says it would.",
        labels=("kind", "origin"),
        persistent=True,
        series=tuple((kind, origin) for origin in ORIGINS for kind in ACTIONS),
    ),
    Metric(
        "ebbtide_policy_actions_total",
        "counter",
        "Actions of the live policy and of each shadow on its own lanes, one an event.",
        labels=("policy", "role", "kind"),
        persistent=True,
    ),
    _work("nonfinite_values", "Measured values that were NaN or infinite and went to no detector.", "values"),
    _work("quarantines", "Streams that were put into quarantine: an event would have made numbers that are none."),
    _work("duplicate_events", "Events whose id was among the last ones of their stream, refused or taken."),
    _work("late_events", "Events whose time is earlier than that of the event before them in their stream."),
    _work("recoveries", "Times that a run began at an earlier checkpoint because it was asked to with --recover."),
    _work("source_gaps", "Partitions whose unread rest was gone when a run began, accepted with --accept-gap."),
    # What this process did.
    _counter("store_copies", "Copies of the state store made by this process, read and found whole."),
    _counter("store_copy_failures", "Copies of the state store that failed; those before them stand."),
    _counter("checkpoints", "Checkpoints committed by this process."),
    _counter("checkpoint_failures", "Checkpoints that failed and left the stored state as it was."),
    _counter(
        "fenced_commits",
        "Commits, and looks before writing, refused since another consumer has the store; the process ends after it.",
    ),
    _counter("checkpoint_lanes", "Lanes written by committed checkpoints.", "lanes"),
    _counter("spills", "Lanes moved between the pool and the store, by direction.", "", "direction", ("out", "in")),
    _counter("sink_records", "Records handed to the sink by this process.", "records"),
    # How things stand.
    _gauge("streams_resident", "Streams whose state is in the pool."),
    _gauge("streams_quarantined", "Resident streams in quarantine, which are not written until a person lets them."),
    _gauge("streams_stored", "Streams in the state store, as of the last checkpoint."),
    _gauge("queue_depth", "Items waiting in a bounded queue, by queue.", labels=("queue",)),
    _gauge("source_backlog_bytes", "Bytes that the source holds and that are not read yet.", "bytes"),
    _gauge("pool_used_bytes", "Bytes of the state pool that hold a lane, filed states too.", "bytes"),
    _gauge("pool_reserved_bytes", "Bytes that the state pool has reserved.", "bytes"),
    _gauge("pool_limit_bytes", "Bytes that lanes may hold in the pool at most, filed states too.", "bytes"),
    _gauge(
        "device_memory_allocated_bytes", "Bytes of the GPU that this process's tensors take; absent on a CPU.", "bytes"
    ),
    _gauge("device_memory_free_bytes", "Bytes of the GPU that nobody takes; absent on a CPU.", "bytes"),
    _gauge("device_memory_total_bytes", "Bytes of the GPU that states live on; absent on a CPU.", "bytes"),
    _gauge("filed_states", "States that policies hold besides the lanes' own, of live lanes and of shadows."),
    _gauge("filed_bytes", "Bytes reserved for the states that policies hold besides the lanes' own.", "bytes"),
    _gauge("last_checkpoint_timestamp_seconds", "Unix time of the last committed checkpoint, in seconds.", "seconds"),
    _gauge(
        "last_store_copy_timestamp_seconds", "Unix time of the last whole copy of the store, in seconds.", "seconds"
    ),
    _gauge(
        "loop_last_turn_timestamp_seconds",
        "Unix time when the loop last turned, in seconds: it moves on without input too.",
        "seconds",
    ),
    _gauge(
        "build_info",
        "Always 1; the labels tell what is running.",
        labels=("version", "python", "torch", "backbone", "device", "policy"),
    ),
    _gauge(
        "ready", "1 when state is restored, the source connected and the process not draining; 0 otherwise.", zero=True
    ),
    _gauge(
        "waiting_for_room",
        "1 while nothing is read because a disk is full or may not be written; 0 otherwise.",
        zero=True,
    ),
    # Distributions over streams, one value a lane and event.
    _histogram("state_norm", "Frobenius norm of a stream's state after an event.", _NORMS),
    _histogram("stable_rank", "Stable rank of a stream's state after an event: how many directions it uses.", _RANKS),
    _histogram(
        "write_error_ratio",
        "Relative error with which the state predicted an event's values before they were written, as a ratio.",
        _RATIOS,
        "ratio",
    ),
    _histogram(
        "retrieval_error_ratio",
        "Relative error of what the state returns for remembered pairs, as a ratio; 1 is as bad as an empty state.",
        _RATIOS,
        "ratio",
    ),
    _histogram(
        "saturation_ratio",
        "A state's norm over what its gates and values allow, the largest over heads, as a ratio.",
        (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0, 1.1, 1.25, 1.5, 2.0),
        "ratio",
    ),
    _histogram(
        "retrieval_lift_ratio",
        "How much smaller the retrieval error is than that of pairs never written, as a ratio; at least 0.",
        (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0),
        "ratio",
    ),
    _histogram(
        "probe_error_ratio",
        "Relative error of what the state returns for one remembered pair, by its age in writes, as a ratio.",
        _RATIOS,
        "ratio",
        "age",
        tuple(label for label, _ in AGE_LABELS),
    ),
    _gauge(
        "forgetting_half_life_writes",
        "Writes after which half of what is remembered of a pair is left; absent while more is left of the oldest.",
        "writes",
    ),
    _gauge(
        "null_half_life_writes",
        "The half-life in writes if all writes were unrelated: what the rule and its gates alone would do.",
        "writes",
    ),
    _histogram(
        "topic_shift_score_ratio",
        "How unlike its stream's recent past an event is, as a ratio; larger is more unlike.",
        _RATIOS,
        "ratio",
    ),
    # Policies side by side: the live one, and challengers that write the same events to lanes of their own.
    _by_policy(
        "policy_write_error_ratio",
        "Relative error with which a policy's state predicted an event before it was written, as a ratio.",
    ),
    _by_policy(
        "policy_retrieval_error_ratio",
        "Relative error of what a policy's state returns for remembered pairs, as a ratio.",
    ),
    # The streams that need a look, in the place where they stand; /api/streams has their names.
    *(
        _gauge(
            f"worst_{name}",
            f"The {name.removesuffix('_ratio').replace('_', ' ')} of the stream in this place, the worst first.",
            "ratio" if name.endswith("_ratio") else "",
            labels=("place",),
        )
        for name in (
            "state_norm",
            "stable_rank",
            "write_error_ratio",
            "retrieval_error_ratio",
            "topic_shift_score_ratio",
            "saturation_ratio",
            "retrieval_lift_ratio",
        )
    ),
    # The loop.
    _histogram(
        "event_lag_seconds",
        "Time from an event's own ts to the end of its micro-batch, in seconds, of at most 16 events a micro-batch.",
        _LAGS,
        "seconds",
    ),
    _histogram("exposition_seconds", "Time to write one exposition for a scrape, in seconds.", _SECONDS, "seconds"),
    _histogram("batch_seconds", "Time for one micro-batch from start to end, in seconds.", _SECONDS, "seconds"),
    _histogram(
        "stage_seconds", "Time that one stage took for one micro-batch, in seconds.", _SECONDS, "seconds", "stage"
    ),
    _histogram("batch_events", "Events in one micro-batch.", _SIZES, "events"),
)

CATALOGUE: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _METRICS})
"""Full name → metric, in the order in which they are exposed."""

assert len(CATALOGUE) == len(_METRICS), "two metrics carry the same name"

SIGNAL_HISTOGRAMS: Mapping[str, str] = MappingProxyType(
    {signal: next(name for name in CATALOGUE if name.removesuffix("_ratio") == PREFIX + signal) for signal in SIGNALS}
)
"""Signal, as in `Observations.signals` → the histogram that shows it."""

WORST_GAUGES: Mapping[str, str] = MappingProxyType(
    {signal: name.replace(PREFIX, PREFIX + "worst_", 1) for signal, name in SIGNAL_HISTOGRAMS.items()}
)
"""Signal → the gauge that shows the worst streams by it."""
