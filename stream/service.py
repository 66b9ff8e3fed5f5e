"""What the HTTP server may ask of a running consumer: read-only, from another thread."""

from __future__ import annotations

import math
import platform
import time
from collections import deque
from concurrent.futures import Future
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from memory.lane_state import Slots
from monitors.catalogue import ORIGINS, WORST, WORST_GAUGES
from monitors.exporter import Exporter
from monitors.observations import SIGNALS
from monitors.policies.policy import ActionKind
from stream.consumer import Consumer
from stream.operators import Ask
from stream.store import Acted

WINDOW = 5.0
"""Seconds over which `events_per_second` and the means of the signals are taken."""

STALL = 60.0
"""Seconds without a turn of the loop after which the consumer counts as stuck."""


class ConsumerService:
    """The consumer as the HTTP server sees it (`stream.http.Service`).

    The loop's arrays are read while it writes them: a number may be of one event and its neighbour of the next, and
    each by itself is right.

    Parameters
    ----------
    consumer
        The one that runs.
    """

    def __init__(self, consumer: Consumer):
        self._consumer = consumer
        settings, engine = consumer.settings, consumer.engine
        self.exporter = Exporter(
            consumer.metrics,
            build_info={
                "version": version("ebbtide"),
                "python": platform.python_version(),
                "torch": torch.__version__,
                "backbone": settings.backbone,
                "device": str(engine.pool.device),
                "policy": consumer.label,
            },
            refresh=self._refresh,
        )
        self._pace: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics and their content type."""
        return self.exporter.exposition(accept)

    def _refresh(self) -> None:
        metrics, engine = self._consumer.metrics, self._consumer.engine
        metrics.set("ebbtide_ready", int(self.ready()[0]))
        # Looked at from here, not by the loop: they are for when the loop stands.
        metrics.set("ebbtide_loop_last_turn_timestamp_seconds", time.time() - self._still())
        metrics.set("ebbtide_queue_depth", self._consumer.reader.waiting, "reader")
        slots = engine.pool.slot_array()
        metrics.set("ebbtide_streams_quarantined", int(engine.quarantine.holds(slots).sum()))
        metrics.set("ebbtide_pool_limit_bytes", engine.pool.max_bytes)
        if engine.pool.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(engine.pool.device)
            metrics.set("ebbtide_device_memory_allocated_bytes", torch.cuda.memory_allocated(engine.pool.device))
            metrics.set("ebbtide_device_memory_free_bytes", free)
            metrics.set("ebbtide_device_memory_total_bytes", total)
        for signal, values in worst(engine.last["signals"], slots, WORST).items():
            for place in range(WORST):
                metrics.set(WORST_GAUGES[signal], values[place] if place < len(values) else None, str(place + 1))

    def healthy(self) -> tuple[bool, str]:
        """Say whether the loop turns."""
        still = self._still()
        return still < STALL, f"the loop last turned {still:.1f} s ago"

    def _still(self) -> float:
        """Seconds since the loop last turned."""
        return time.monotonic() - self._consumer.last_tick

    def ready(self) -> tuple[bool, str]:
        """Say whether state is restored, the source open, and no stop under way."""
        if self._consumer.blocked is not None:
            return False, f"waiting for room: {self._consumer.blocked}"
        return self._consumer.ready, "consuming" if self._consumer.ready else "starting or draining"

    def summary(self) -> dict[str, Any]:
        """Return what the live page shows."""
        consumer, metrics = self._consumer, self._consumer.metrics
        now, events = time.monotonic(), consumer.totals.events
        self._pace.append((now, events))
        while len(self._pace) > 2 and now - self._pace[0][0] > WINDOW:
            self._pace.popleft()
        since, before = self._pace[0]
        slots = consumer.engine.pool.slot_array()
        signals = np.asarray(consumer.engine.last["signals"][slots])
        means = [
            float(column[np.isfinite(column)].mean()) if np.isfinite(column).any() else None for column in signals.T
        ]
        return {
            "events": metrics.get("ebbtide_events_total") or 0,
            "tokens": metrics.get("ebbtide_tokens_total") or 0,
            "events_per_second": (events - before) / (now - since) if now > since else 0.0,
            "dead_letters": metrics.by_label("ebbtide_dead_letters_total"),
            "alarms": metrics.by_label("ebbtide_alarms_total"),
            "actions": metrics.by_label("ebbtide_actions_total", "kind", origin="policy"),
            "origins": {
                origin: sum(count for kind, count in kinds.items() if kind != ActionKind.KEEP.label)
                for origin in ORIGINS
                if (kinds := metrics.by_label("ebbtide_actions_total", "kind", origin=origin))
            },
            "shadows": {
                policy if role == "shadow" else f"{policy} (live)": {"write_error": error, "events": events}
                for policy, role, error, events in consumer.accounts.side_by_side()
                if consumer.shadows
            },
            "streams_resident": len(slots),
            "streams_stored": metrics.get("ebbtide_streams_stored") or 0,
            "backlog_bytes": consumer.source.backlog(),
            "last_checkpoint": metrics.get("ebbtide_last_checkpoint_timestamp_seconds") or None,
            "signals": dict(zip(SIGNALS, means, strict=True)),
            "ready": consumer.ready,
        }

    def streams(self, limit: int) -> list[dict[str, Any]]:
        """Return at most `limit` resident streams, those with the largest retrieval error first."""
        slots = self._consumer.engine.pool.slots()
        names, at = list(slots), np.fromiter(slots.values(), np.int64, len(slots))
        error = np.asarray(self._consumer.engine.last["signals"])[at, SIGNALS.index("retrieval_error")]
        rank = np.where(np.isfinite(error), -error, math.inf)
        if limit < len(rank):  # all that might be among them, rather than all in order: there may be 100,000
            near = np.flatnonzero(rank <= np.partition(rank, limit - 1)[limit - 1])
            worst = near[np.argsort(rank[near], kind="stable")][:limit]
        else:
            worst = np.argsort(rank, kind="stable")
        return [self._row(names[place], slots[names[place]]) for place in worst.tolist()]

    def stream(self, name: str) -> dict[str, Any] | None:
        """Return one resident stream's numbers."""
        slot = self._consumer.engine.pool.slots().get(name)
        return (
            None
            if slot is None
            else self._row(name, slot)
            | {
                "tokens": int(self._consumer.engine.counts["tokens"][slot]),
                "heads": self._consumer.engine.heads_of(slot),
                "filed_topics": self._consumer.engine.runner.filed_ways(slot),
            }
        )

    def _row(self, name: str, slot: int) -> dict[str, Any]:
        engine = self._consumer.engine
        alarm = int(engine.last["alarm_seq"][slot])
        return {
            "stream": name,
            "seq": int(engine.counts["events"][slot]) - 1,
            **dict(zip(SIGNALS, np.asarray(engine.last["signals"][slot]).tolist(), strict=True)),
            "last_action": ActionKind(int(engine.last["action"][slot])).label,
            "last_alarm_seq": alarm if alarm >= 0 else None,
            "quarantined": bool(engine.quarantine.holds(np.array([slot]))[0]),
        }

    def act(self, stream: str, ask: Ask) -> Future[Acted] | None:
        """Ask the loop for an action on a stream."""
        return self._consumer.operators.submit(stream, ask) if self._consumer.ready else None


def worst(signals: npt.NDArray[np.float64], slots: Slots, count: int) -> dict[str, list[float]]:
    """Return each signal's worst values among lanes, the worst first: the smallest lift, the largest of the others.

    Parameters
    ----------
    signals
        `[capacity, len(SIGNALS)]` float64; NaN where nothing was measured.
    slots
        `[n]` int64.
    count
        How many of each.

    Examples
    --------
    >>> signals = np.tile(np.array([[3.0], [np.nan], [5.0]]), len(SIGNALS))
    >>> found = worst(signals, np.array([0, 1, 2]), 2)
    >>> found["state_norm"], found["retrieval_lift"]
    ([5.0, 3.0], [3.0, 5.0])
    """
    found = {}
    for column, signal in enumerate(SIGNALS):
        sign = 1.0 if signal == "retrieval_lift" else -1.0
        values = sign * signals[slots, column]
        values = values[~np.isnan(values)]
        few = np.sort(np.partition(values, count - 1)[:count] if len(values) > count else values)
        found[signal] = (sign * few).tolist()
    return found


class Late:
    """A service that says "starting" until there is a consumer: the port is taken before the model is loaded."""

    def __init__(self) -> None:
        self._service: ConsumerService | None = None

    def serve(self, consumer: Consumer) -> None:
        """Answer for this consumer from now on."""
        self._service = ConsumerService(consumer)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics, or nothing yet."""
        return (b"", "text/plain; charset=utf-8") if self._service is None else self._service.exposition(accept)

    def healthy(self) -> tuple[bool, str]:
        """Say whether the loop turns; while starting, it need not."""
        return (True, "starting") if self._service is None else self._service.healthy()

    def ready(self) -> tuple[bool, str]:
        """Say whether events are being consumed."""
        return (False, "starting") if self._service is None else self._service.ready()

    def summary(self) -> dict[str, Any]:
        """Return what the live page shows, or that nothing is ready."""
        return STARTING if self._service is None else self._service.summary()

    def streams(self, limit: int) -> list[dict[str, Any]]:
        """Return the streams that need a look first."""
        return [] if self._service is None else self._service.streams(limit)

    def stream(self, name: str) -> dict[str, Any] | None:
        """Return one stream's numbers."""
        return None if self._service is None else self._service.stream(name)

    def act(self, stream: str, ask: Ask) -> Future[Acted] | None:
        """Ask for an action on a stream."""
        return None if self._service is None else self._service.act(stream, ask)


STARTING: dict[str, Any] = {
    "events": 0,
    "tokens": 0,
    "events_per_second": 0.0,
    "dead_letters": {},
    "alarms": {},
    "actions": {},
    "origins": {},
    "shadows": {},
    "streams_resident": 0,
    "streams_stored": 0,
    "backlog_bytes": None,
    "last_checkpoint": None,
    "signals": dict.fromkeys(SIGNALS),
    "ready": False,
}
"""A summary before there is anything to sum up."""
