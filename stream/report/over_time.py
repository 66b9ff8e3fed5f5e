"""The signals over time: over all streams in slices of the run, and of single streams event by event."""

from __future__ import annotations

import warnings
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from dashboards.report_data import DRAWN, Band, OneStream, OverTime
from monitors.observations import Floats
from stream.report.read_run import Run
from stream.report.read_truth import Truth

SLICES = 120
"""At most; a slice has at least as many events as there are streams, where the run is long enough for ten."""

PICKED = 12
"""Single streams shown: half of them the worst by retrieval error, the others the longest."""

SHOWN = 2000
"""Events shown of one stream, its last ones."""

LATE = 2
"""Events after a true shift within which an alarm has found it."""

Places = npt.NDArray[np.int64]


def over_time(run: Run, truth: Truth | None = None) -> OverTime:
    """Cut the run into slices of equally many events and sum each up over the streams.

    Examples
    --------
    >>> from pathlib import Path
    >>> streams, n = np.array([0, 1] * 20), np.arange(40)
    >>> run = Run(Path("x"), None, ["a", "b"], streams, n // 2, n, {"state_norm": 1.0 + streams}, {"topic_shift":
    ...     np.array([3, 39])}, {})
    >>> told = over_time(run)
    >>> len(told.at), told.bands["state_norm"].middle[0].item(), told.alarms["topic_shift"].sum().item()
    (20, 1.5, 2.0)
    """
    n = len(run)
    slices = max(1, min(SLICES, max(n // max(1, len(run.streams)), min(10, n))))
    edges = np.linspace(0, n, slices + 1).astype(np.int64)
    where = np.searchsorted(edges, np.arange(n), side="right") - 1
    lane = where * len(run.streams) + run.stream

    def counted(places: Places) -> Floats:
        return np.bincount(where[places], minlength=slices).astype(np.float64)

    return OverTime(
        at=(edges[:-1] + edges[1:] - 1) / 2,
        bands={name: _band(run.signals[name], lane, slices, len(run.streams)) for name in DRAWN if name in run.signals},
        alarms={name: counted(places) for name, places in sorted(run.alarms.items())},
        actions={kind: counted(places) for kind, places in _actions(run)},
        shifts=None if truth is None else counted(np.flatnonzero(truth.boundary)),
    )


def _actions(run: Run) -> list[tuple[str, Places]]:
    """Return what was done and on which events, by the policy first."""
    by_hand = [(f"{kind} by hand", places) for kind, places in sorted(run.by_hand.items())]
    return [*sorted(run.actions.items()), *by_hand]


def _band(values: Floats, lane: Places, slices: int, streams: int) -> Band:
    """Return quantiles over streams of each stream's mean in each slice; `lane` is slice · streams + stream."""
    fine = np.isfinite(values)
    at, place = np.unique(lane[fine], return_inverse=True)
    means = np.bincount(place, values[fine], len(at)) / np.bincount(place, minlength=len(at))
    bounds = np.searchsorted(at // streams, np.arange(slices + 1))
    made = np.full((3, slices), np.nan)
    for slot, (begin, end) in enumerate(pairwise(bounds.tolist())):
        if end > begin:
            made[:, slot] = np.quantile(means[begin:end], (0.1, 0.5, 0.9))
    return Band(*made)


def one_streams(run: Run, truth: Truth | None = None) -> list[OneStream]:
    """Pick the streams worth a look of their own: the worst by their mean retrieval error, then the longest."""
    counts = np.bincount(run.stream, minlength=len(run.streams))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        error = run.signals["retrieval_error"]
        fine = np.isfinite(error)
        known = np.bincount(run.stream[fine], minlength=len(run.streams))
        total = np.bincount(run.stream[fine], error[fine], len(run.streams))
        mean = np.divide(total, known, out=np.full(len(run.streams), -np.inf), where=known > 0)
    worst = [int(place) for place in np.argsort(-mean, kind="stable")[: PICKED // 2] if np.isfinite(mean[place])]
    longest = [int(place) for place in np.argsort(-counts, kind="stable") if int(place) not in worst]
    lines = [_one(run, place, f"mean retrieval error {mean[place]:.3f}", truth) for place in worst]
    return lines + [
        _one(run, place, f"{counts[place]:,} events, one of the longest", truth)
        for place in longest[: PICKED - len(worst)]
    ]


def _one(run: Run, stream: int, why: str, truth: Truth | None) -> OneStream:
    whole = np.flatnonzero(run.stream == stream)
    places = whole[-SHOWN:]

    def seqs(events: Places) -> list[int]:
        return [int(seq) for seq in run.seq[np.intersect1d(places, events, assume_unique=True)]]

    return OneStream(
        run.streams[stream],
        why,
        len(whole),
        run.seq[places].tolist(),
        {name: run.signals[name][places] for name in DRAWN if name in run.signals},
        {name: found for name, events in sorted(run.alarms.items()) if (found := seqs(events))},
        {kind: found for kind, events in _actions(run) if (found := seqs(events))},
        None if truth is None else seqs(np.flatnonzero(truth.boundary)),
    )


def found_shifts(run: Run, truth: Truth) -> int:
    """Count the true shifts with a `topic_shift` alarm on the event or up to `LATE` later, each alarm for one shift.

    Examples
    --------
    >>> from pathlib import Path
    >>> column = np.zeros(9, np.int64)
    >>> run = Run(Path("x"), None, ["a"], column, np.arange(9), column, {}, {"topic_shift": np.array([4, 8])}, {})
    >>> found_shifts(run, Truth(np.arange(9) % 3 == 2, np.zeros(9, bool)))
    2
    """
    raised: dict[int, list[int]] = {}
    for place in run.alarms.get("topic_shift", np.zeros(0, np.int64)).tolist():
        raised.setdefault(int(run.stream[place]), []).append(int(run.seq[place]))
    found = 0
    for place in np.flatnonzero(truth.boundary).tolist():
        alarms, seq = raised.get(int(run.stream[place]), []), int(run.seq[place])
        hit = next((alarm for alarm in alarms if seq <= alarm <= seq + LATE), None)
        if hit is not None:
            alarms.remove(hit)
            found += 1
    return found
