"""What a run counts: of each micro-batch for the metrics, and in all for its summary."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from monitors.catalogue import SIGNAL_HISTOGRAMS
from monitors.forgetting import ForgettingTracker, by_age
from monitors.metrics import Metrics
from monitors.policies.policy import ActionKind
from stream.assembly import null_model
from stream.batch import MicroBatch
from stream.engine import Engine, Outcome
from stream.event import Reason
from stream.lag import lags
from stream.store_copy import StoreCopier


@dataclass(slots=True)
class Totals:
    """What one run of the loop did.

    Attributes
    ----------
    events, tokens, lines
        Counts.
    seconds
        From the first batch to the end.
    stages
        Stage → seconds.
    drained
        Whether everything that was read was also processed.
    """

    events: int = 0
    tokens: int = 0
    lines: int = 0
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    drained: bool = True


class Accounts:
    """Counts what a run does.

    Parameters
    ----------
    metrics
        Where what is exported is counted.
    engines
        Policy's name → its engine: the live one first, then the shadows.
    sinks
        Whether there is a sink, which has a record of each event.
    """

    def __init__(self, metrics: Metrics, engines: Sequence[tuple[str, Engine]], *, sinks: bool):
        self.metrics = metrics
        self.totals = Totals()
        self._engines = [engine for _, engine in engines]
        self._roles = [(name, "shadow" if place else "live") for place, (name, _) in enumerate(engines)]
        self._sinks = sinks
        self._forgetting = ForgettingTracker()
        self._copies = (0, 0)
        null = null_model(self._engines[0].writer)
        known = null is not None and np.isfinite(null.half_life)
        metrics.set("ebbtide_null_half_life_writes", null.half_life if null and known else None)
        for policy, role in self._roles:
            for kind in ActionKind:
                metrics.add("ebbtide_policy_actions_total", 0, policy, role, kind.label)

    def take(self, batch: MicroBatch, outcome: Outcome, followed: Sequence[Outcome] = ()) -> None:
        """Count a micro-batch.

        Parameters
        ----------
        batch, outcome
            It, and what came of it.
        followed
            What came of it in each shadow.
        """
        self.totals.events += len(batch.events)
        self.totals.tokens += batch.token_count
        self.totals.lines += batch.line_count
        self._count_lines(batch)
        self._count_outcome(outcome)
        self._observe_signals(outcome)
        self._compare([outcome, *followed])

    def _count_lines(self, batch: MicroBatch) -> None:
        metrics = self.metrics
        metrics.add("ebbtide_events_total", len(batch.events))
        metrics.add("ebbtide_tokens_total", batch.token_count)
        metrics.add("ebbtide_source_bytes_total", batch.byte_count)
        metrics.add("ebbtide_source_lines_total", batch.line_count)
        for letter in batch.dead:
            metrics.add("ebbtide_dead_letters_total", 1, letter.reason)
        if self._sinks:
            metrics.add("ebbtide_sink_records_total", len(batch.events))
        metrics.observe("ebbtide_event_lag_seconds", lags(batch.events, time.time()))
        metrics.observe("ebbtide_batch_events", len(batch.events))

    def _count_outcome(self, outcome: Outcome) -> None:
        metrics, pool = self.metrics, self._engines[0].pool
        for name, raised in outcome.alarms.items():
            metrics.add("ebbtide_alarms_total", int(raised.sum()), name)
        done = [("policy", outcome.actions)] + ([] if outcome.would is None else [("dry_run", outcome.would)])
        for origin, actions in done:
            kinds = np.bincount(actions.kind, minlength=len(ActionKind))
            for kind in ActionKind:
                metrics.add("ebbtide_actions_total", int(kinds[kind]), kind.label, origin)
        metrics.add("ebbtide_nonfinite_values_total", outcome.nonfinite)
        metrics.add("ebbtide_quarantines_total", outcome.put_aside)
        metrics.set("ebbtide_streams_resident", pool.resident)
        metrics.set("ebbtide_pool_used_bytes", pool.bytes_used + pool.bytes_beside)
        metrics.set("ebbtide_pool_reserved_bytes", pool.bytes_reserved)
        for direction, count in pool.take_moves().items():
            metrics.add("ebbtide_spills_total", count, direction)

    def _observe_signals(self, outcome: Outcome) -> None:
        metrics = self.metrics
        for signal, histogram in SIGNAL_HISTOGRAMS.items():
            if signal in outcome.signals:
                values = outcome.signals[signal]  # a sum that falls would look like a restart: lift can be negative
                if signal == "retrieval_lift":
                    values = np.maximum(values, 0)
                metrics.observe(histogram, values, whose=lambda row: outcome.events[row].stream)
        for probes in outcome.probes:
            self._forgetting.take(probes)
            for label, errors in by_age(probes).items():
                metrics.observe("ebbtide_probe_error_ratio", errors, label)
        half_life = self._forgetting.curve().half_life()
        metrics.set("ebbtide_forgetting_half_life_writes", half_life if np.isfinite(half_life) else None)

    def _compare(self, outcomes: Sequence[Outcome]) -> None:
        """Show the policies side by side."""
        metrics = self.metrics
        for (policy, role), outcome in zip(self._roles, outcomes, strict=False):
            for signal in ("write_error", "retrieval_error"):
                if signal in outcome.signals:
                    metrics.observe(f"ebbtide_policy_{signal}_ratio", outcome.signals[signal], policy, role)
            kinds = np.bincount(outcome.actions.kind, minlength=len(ActionKind))
            for kind in ActionKind:
                metrics.add("ebbtide_policy_actions_total", int(kinds[kind]), policy, role, kind.label)
        filed = [engine.runner.filed for engine in self._engines if engine.runner.filed is not None]
        metrics.set("ebbtide_filed_states", sum(each.used for each in filed))
        metrics.set("ebbtide_filed_bytes", sum(each.bytes_reserved for each in filed))

    def ahead(self, chunks: int, backlog: int | None) -> None:
        """Show what waits: chunks that were read, and bytes of the source that were not, where that is known."""
        self.metrics.set("ebbtide_queue_depth", chunks, "reader")
        if backlog is not None:
            self.metrics.set("ebbtide_source_backlog_bytes", backlog)

    def gaps(self, count: int) -> None:
        """Count gaps of the source that were accepted."""
        self.metrics.add("ebbtide_source_gaps_total", count)
        if count:
            self.metrics.add("ebbtide_dead_letters_total", count, Reason.SOURCE_GAP)

    def copies(self, copier: StoreCopier) -> None:
        """Count copies of the store that were made, or failed, since the last look."""
        now = (copier.made, copier.failed)
        if now == self._copies:
            return
        self.metrics.add("ebbtide_store_copies_total", now[0] - self._copies[0])
        self.metrics.add("ebbtide_store_copy_failures_total", now[1] - self._copies[1])
        if now[0] > self._copies[0]:
            self.metrics.set("ebbtide_last_store_copy_timestamp_seconds", time.time())
        self._copies = now

    def side_by_side(self) -> list[tuple[str, str, float, int]]:
        """Return each policy's name, role, mean write error in this run, and the events that it is of."""
        rows = []
        for policy, role in self._roles:
            seen = self.metrics.distribution("ebbtide_policy_write_error_ratio", policy, role)
            count = seen.count if seen is not None else 0
            rows.append((policy, role, seen.sum / count if seen is not None and count else np.nan, count))
        return rows

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count how long it takes as time spent in a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.spent(stage, time.perf_counter() - start)

    def spent(self, stage: str, seconds: float) -> None:
        """Count seconds spent in a stage."""
        self.totals.stages[stage] = self.totals.stages.get(stage, 0.0) + seconds
        self.metrics.observe("ebbtide_stage_seconds", seconds, stage)
