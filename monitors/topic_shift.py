"""How unlike the recent past a segment is."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import numba
import numpy as np
import numpy.typing as npt

from memory.lane_state import Column, Columns, Slots
from memory.threads import share_out
from monitors.observations import Floats


class TopicShiftMonitor:
    """Distance between a segment's embedding and an exponentially weighted mean of those before it.

    `topic_shift_score` is (1 − cos(e, m)) / 2, between 0 (the same direction) and 1 (opposite), with m the lane's mean
    *before* the segment: then m ← (1 − w) m + w e, where e is the embedding, centred and scaled to length 1. A lane's
    first segment has score 0. A segment without an embedding (no tokens) has no score (NaN) and leaves m alone.

    Parameters
    ----------
    dim
        D, the width of an embedding.
    weight
        w: how fast the past is forgotten; about 1/w segments count.
    mean
        `[D]` float32 subtracted from each embedding first, or None. All of a transformer's embeddings share one large
        component, which says nothing about the topic.

    Examples
    --------
    >>> monitor = TopicShiftMonitor(2, weight=0.5)
    >>> monitor.lanes.resize(1)
    >>> lane = np.array([0])
    >>> for embedding in ([1, 0], [1, 0], [-1, 0]):
    ...     print(monitor.measure(lane, np.array([embedding], np.float32)).tolist())
    [0.0]
    [0.0]
    [1.0]
    """

    wants_edges = False
    """`measure` needs the embeddings only."""

    detector: ClassVar[dict[str, Any]] = {
        "name": "shewhart",
        "width": 1.5,
        "warm_up": 3,
        "cool_down": 2,
        "floor": 0.015,
    }
    """What decides on the event: the default of `topic_shift_score` where this monitor measures it."""

    def __init__(self, dim: int, weight: float = 0.35, mean: npt.NDArray[np.float32] | None = None):
        if not 0 < weight <= 1:
            raise ValueError(f"weight must lie in (0, 1], got {weight}")
        self.weight = np.float32(weight)
        self.mean = np.zeros(dim, np.float32) if mean is None else np.asarray(mean, np.float32)
        self.lanes = Columns({"recent": Column("float32", (dim,))})

    @property
    def settings(self) -> str:
        """The rule's numbers: under others a lane starts afresh."""
        return f"{self.weight}"

    def measure(
        self,
        slots: Slots,
        embeddings: npt.NDArray[np.float32],
        tokens: Any = None,
        offsets: Any = None,
        edges: Any = None,
    ) -> Floats:
        """Score the embeddings `[n, D]` float32 of the lanes at `slots` `[n]`, and take them in.

        `tokens`, `offsets` and `edges` are what `TrainedTopicShiftMonitor.measure` reads besides; here they are not
        looked at.
        """
        scores = np.empty(len(slots), np.float64)
        if len(slots):
            recent = cast("npt.NDArray[np.float32]", self.lanes["recent"])
            arguments = (slots, embeddings, self.mean, recent, self.weight, scores)
            share_out(lambda first, last: _measure(first, last, *arguments), len(slots), 4 * embeddings.size)
        return scores


# Sums may be reordered into vectors; a row's sums are the same whatever the other rows.
@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"}, error_model="numpy")
def _measure(
    first: Any, last: Any, slots: Any, embeddings: Any, mean: Any, recent: Any, weight: Any, scores: Any
) -> None:
    dim = embeddings.shape[1]
    for row in range(first, last):
        embedding, past = embeddings[row], recent[slots[row]]
        size, length, dot = np.float32(0), np.float32(0), np.float32(0)
        for d in range(dim):
            x = embedding[d] - mean[d]
            size += x * x
            length += past[d] * past[d]
            dot += x * past[d]
        if not (size > 0 and size < np.inf):
            scores[row] = np.nan
            continue
        cosine = min(1.0, max(-1.0, dot / np.sqrt(np.float64(size) * length))) if length > 0 else 1.0
        scores[row] = (1 - cosine) / 2
        scale = np.float32(1 / np.sqrt(size))
        share = weight if length > 0 else np.float32(1)
        for d in range(dim):
            past[d] = (1 - share) * past[d] + share * (embedding[d] - mean[d]) * scale
