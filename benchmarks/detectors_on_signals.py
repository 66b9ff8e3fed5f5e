"""Detectors on the signals of a real run: how often healthy lanes alarm, and how soon a fault put into them does.

`on_records` reads the output records of a run over a stationary stream, such as

    ebbtide generate --scenario stationary --streams 40 --events 400 --seed 3 --out stationary.jsonl --truth truth.jsonl
    ebbtide run --source file:stationary.jsonl --backbone hashing --sink jsonl:records.jsonl --metrics-port 0

Nothing in such a run is wrong, so every alarm is a false one. Two faults are then put into each lane from event 250 on:
a jump to another level, and a slow climb.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monitors.detectors import ADWIN, CUSUM, EWMA, Detector, PageHinkley, Shewhart

AT = 250
"""The event from which a fault lies on each lane."""

CANDIDATES: dict[str, dict[str, Detector]] = {
    "state_norm": {
        "adwin": ADWIN(),
        "page_hinkley, δ 0.1, threshold 10": PageHinkley(delta=0.1, threshold=10.0),
        "cusum": CUSUM(),
        "ewma": EWMA(),
        "shewhart, width 6, both sides": Shewhart(width=6.0, side="both"),
    },
    "retrieval_error": {
        "page_hinkley, up, δ 0.02, threshold 2": PageHinkley(mode="up", delta=0.02, threshold=2.0),
        "page_hinkley, up, δ 0.05, threshold 2": PageHinkley(mode="up", delta=0.05, threshold=2.0),
        "adwin": ADWIN(),
        "adwin, clock 8": ADWIN(clock=8),
        "cusum, up, floor 0.05": CUSUM(side="up", floor=0.05),
        "ewma, up, floor 0.05": EWMA(side="up", floor=0.05),
        "shewhart, width 6": Shewhart(width=6.0),
    },
}

Values = npt.NDArray[np.float64]


def faults(signal: str, values: Values) -> dict[str, Values]:
    """Return `[T, n]` values with each fault in them: of a norm by its own size, of an error by so much."""
    since = np.maximum(np.arange(len(values)) - AT, 0)[:, None]
    later = np.arange(len(values))[:, None] >= AT
    if signal == "state_norm":
        return {"jump ×1.3": np.where(later, 1.3 * values, values), "climb 1 % an event": values * 1.01**since}
    return {"jump +0.15": values + 0.15 * later, "climb 0.003 an event": values + np.minimum(0.3, 0.003 * since)}


def read(records: Path) -> dict[str, Values]:
    """Return each signal as `[T, n]`, of the first T events of all n streams; NaN where a record has none."""
    streams: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with records.open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            streams[record["stream"]].append(record)
    events = min(map(len, streams.values()))
    return {
        signal: np.array(
            [[np.nan if one[i][signal] is None else one[i][signal] for one in streams.values()] for i in range(events)]
        )
        for signal in CANDIDATES
    }


def on_records(records: Path, alarms_of: Callable[[Detector, Values], npt.NDArray[np.bool_]]) -> list[dict[str, Any]]:
    """Return a row for each signal and detector."""
    rows = []
    for signal, values in read(records).items():
        for name, detector in CANDIDATES[signal].items():
            alarms = alarms_of(detector, values)
            row: dict[str, Any] = {
                "signal": signal,
                "detector": name,
                "healthy lanes that alarm": f"{alarms.any(axis=0).sum()}/{alarms.shape[1]}",
                "alarms in 1,000 events": float(1_000 * alarms.mean()),
            }
            for kind, (_, broken) in zip(("jump", "climb"), faults(signal, values).items(), strict=True):
                after = alarms_of(detector, broken)[AT:]
                delays = [int(lane.argmax()) for lane in after.T if lane.any()]
                row[f"{kind}: seen"] = f"{len(delays)}/{after.shape[1]}"
                row[f"{kind}: median delay"] = int(np.median(delays)) if delays else None
            rows.append(row)
    return rows
