"""How often a topic comes back: counted in the truth, or estimated from the embeddings on a tape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dashboards.report_data import Returns
from monitors.observations import Floats
from stream.report.read_run import Run
from stream.report.read_truth import Truth
from stream.tape import TapeReader

LEAST = 4
"""Events that a stretch between two shifts must have to be compared: the mean of fewer says little of its topic."""

MARGIN = 0.15
"""How much more alike the halves of one stretch must be than neighbouring stretches, or embeddings tell nothing."""


def from_truth(truth: Truth, run: Run) -> Returns:
    """Count the topics that return.

    Examples
    --------
    >>> column = np.zeros(4, np.int64)
    >>> run = Run(Path("x"), None, ["a"], column, np.arange(4), column, {}, {}, {})
    >>> told = from_truth(Truth(np.array([False, True, False, True]), np.array([False, False, False, True])), run)
    >>> told.share, told.topics, told.length
    (0.5, 2, 2.0)
    """
    topics = int(truth.boundary.sum())
    share = float(truth.returning.sum()) / topics if topics else np.nan
    return Returns(
        share, topics, _length(run, np.flatnonzero(truth.boundary)), known=True, why_not="" if topics else NONE
    )


NONE = "no topic shift was seen"


def estimated(tape: Path, run: Run, *, partial: bool = False) -> Returns:
    """Estimate the share of topics that return.

    Each stream is cut where a `topic_shift` alarm was raised; stretches of fewer than `LEAST` events are left out. A
    stretch is the mean of its embeddings (the backbone's own mean taken off), of length 1. Two are of one topic if
    their cosine reaches a threshold halfway between the median cosine of the two halves of a stretch (every second
    event each) and that of neighbouring stretches. A stretch that is unlike the one before it counts as a topic that
    began, and as one that returned if it is like any before that: only what came earlier in its stream is looked at.

    A missed shift hides a return and a false alarm does not make one, so the estimate errs on the low side where alarms
    are missed.
    """
    reader = TapeReader(tape, partial=partial)
    mean = np.zeros(reader.head.dim) if reader.head.mean is None else np.array(reader.head.mean)
    stretches: dict[str, list[list[Floats]]] = {}
    for batch in reader.batches():
        rows = batch["embedding"].flatten().to_numpy(zero_copy_only=False).reshape(len(batch), reader.head.dim)
        for name, embedding, alarms in zip(
            batch["stream"].to_pylist(), _units(rows - mean), batch["alarms"].to_pylist(), strict=True
        ):
            lane = stretches.setdefault(name, [[]])
            if "topic_shift" in alarms and lane[-1]:
                lane.append([])
            lane[-1].append(embedding)
    length = _length(run, run.alarms.get("topic_shift", np.zeros(0, np.int64)))
    return share_returning(
        [[np.stack(each) for each in lane if len(each) >= LEAST] for lane in stretches.values()], length
    )


def share_returning(lanes: Sequence[Sequence[Floats]], length: float) -> Returns:
    """Estimate from stretches of embeddings.

    Parameters
    ----------
    lanes
        For each stream its stretches, in order, each `[m, D]` float64, m at least `LEAST`.
    length
        Passed on.

    Examples
    --------
    A stream that speaks of two things in turn, and of a third:

    >>> one, other, third = (np.tile(row, (4, 1)) for row in np.eye(3))
    >>> told = share_returning([[one, other, one, other, third]], 4.0)
    >>> told.share, told.topics
    (0.5, 4)
    """
    same = [_cosine(each[::2].mean(axis=0), each[1::2].mean(axis=0)) for lane in lanes for each in lane]
    centres = [[each.mean(axis=0) for each in lane] for lane in lanes]
    next_to = [_cosine(before, after) for lane in centres for before, after in pairwise(lane)]
    if len(next_to) < 3:
        return Returns(np.nan, 0, length, known=False, why_not=f"too few topic shifts were seen ({len(next_to)})")
    alike, unlike = float(np.median(same)), float(np.median(next_to))
    if alike - unlike < MARGIN:
        why = (
            "the backbone's embeddings do not tell topics apart here: stretches on either side of an alarm are about "
            f"as alike (cosine {unlike:.2f}) as the halves of one stretch ({alike:.2f})"
        )
        return Returns(np.nan, 0, length, known=False, why_not=why)
    threshold, topics, returned = (alike + unlike) / 2, 0, 0
    for lane in centres:
        for place in range(1, len(lane)):
            likeness = [_cosine(lane[place], before) for before in lane[:place]]
            if likeness[-1] < threshold:
                topics += 1
                returned += max(likeness) >= threshold
    return Returns(returned / topics if topics else np.nan, topics, length, known=False, why_not="" if topics else NONE)


def _length(run: Run, begins: npt.NDArray[np.int64]) -> float:
    """Return the median number of events from one shift to the next of the same stream."""
    gaps = list(_gaps(run, begins))
    return float(np.median(gaps)) if gaps else float("nan")


def _gaps(run: Run, begins: npt.NDArray[np.int64]) -> Iterator[int]:
    last: dict[int, int] = {}
    for stream, seq in zip(run.stream[begins].tolist(), run.seq[begins].tolist(), strict=True):
        if stream in last:
            yield seq - last[stream]
        last[stream] = seq


def _units(rows: npt.NDArray[np.floating[Any]]) -> Floats:
    rows = rows.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    units: Floats = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return units


def _cosine(one: Floats, other: Floats) -> float:
    norms = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / norms if norms > 0 else 0.0
