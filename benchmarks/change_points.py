"""Annotated series with change points, and the two measures that the Turing benchmark scores detections by.

The series come with `river`, their annotations too. Some of river's files are longer or finer than what the annotators
saw; `load` cuts them as the benchmark did, so that an annotated index is the index that was meant.

References
----------
G. J. J. van den Burg and C. K. I. Williams, "An evaluation of change point detection algorithms", arXiv:2003.06222
(2020): the series, the annotations, and both measures (sections 3.2 and 5.1).
P. Arbeláez, M. Maire, C. Fowlkes, J. Malik, "Contour detection and hierarchical image segmentation", IEEE TPAMI 33
(2011): the covering.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Annotations = Sequence[Sequence[int]]
"""Each annotator's change points: the index of the first value of each new segment."""


@dataclass(frozen=True)
class Series:
    """One annotated series.

    Attributes
    ----------
    name
        As the benchmark calls it.
    values
        `[T, D]` float64, each dimension with mean 0 and deviation 1 over the whole series, as in the benchmark. This
        is a choice of unit made in hindsight; what a detector does with the values is causal.
    annotations
        Each annotator's change points.
    """

    name: str
    values: npt.NDArray[np.float64]
    annotations: Annotations


def load() -> list[Series]:
    """Return the seven series that river ships, in the order of their names."""
    import river.drift.datasets

    datasets: Any = river.drift.datasets
    apple = _columns(datasets.Apple(), "Close", "Volume")[1::3]
    bitcoin = _columns(datasets.Bitcoin())[:774]  # up to 2019-06-19
    brent = _columns(datasets.BrentSpotPrice())[::10][-500:]  # from 2000 on
    return [
        _series("apple", apple, datasets.Apple()),
        _series("bitcoin", bitcoin, datasets.Bitcoin()),
        _series("brent_spot", brent, datasets.BrentSpotPrice()),
        _series("jfk_passengers", _columns(datasets.AirlinePassengers()), datasets.AirlinePassengers()),
        _series("occupancy", _columns(datasets.Occupancy(), "V1", "V2", "V3", "V4"), datasets.Occupancy()),
        _series("run_log", _columns(datasets.RunLog(), "Pace", "Distance"), datasets.RunLog()),
        _series("uk_coal_employ", _columns(datasets.UKCoalEmploy()), datasets.UKCoalEmploy()),
    ]


def _columns(dataset: Any, *names: str) -> npt.NDArray[np.float64]:
    rows = [[target[name] for name in names] if names else [target] for _, target in dataset]
    return np.array(rows, dtype=np.float64)


def _series(name: str, values: npt.NDArray[np.float64], dataset: Any) -> Series:
    standard = (values - values.mean(axis=0)) / values.std(axis=0, ddof=1)
    return Series(name, standard, list(dataset.annotations.values()))


def cover(annotations: Annotations, found: Sequence[int], length: int) -> float:
    """Return how well the segments between the points found cover those of the annotators, between 0 and 1.

    For each annotator, each segment A counts by its length with the best overlap |A ∩ B| / |A ∪ B| that a found segment
    B has with it; the mean over annotators is returned.

    Parameters
    ----------
    annotations
        Each annotator's change points.
    found
        The change points found.
    length
        Values in the series.

    Examples
    --------
    One annotator cuts 10 values into 4 and 6; found were 5 and 5. 4 · 4/5 + 6 · 5/6 = 8.2 of 10.

    >>> cover([[4]], [5], 10)
    0.82
    """
    ours = _segments(found, length)
    scores = []
    for points in annotations:
        total = 0.0
        for start, end in _segments(points, length):
            shares = (
                max(0, min(end, e) - max(start, s)) / (max(end, e) - min(start, s))
                for s, e in ours
                if s < end and start < e  # those that meet: their union is one stretch
            )
            total += (end - start) * max(shares)
        scores.append(total / length)
    return float(np.mean(scores))


def _segments(points: Sequence[int], length: int) -> list[tuple[int, int]]:
    return list(pairwise([0, *sorted({point for point in points if 0 < point < length}), length]))


def f1(annotations: Annotations, found: Sequence[int], margin: int = 5) -> float:
    """Return the harmonic mean of precision and recall, where a point counts if it lies within `margin` of another.

    Index 0 is a change point of every annotator, and found. Precision is against the points of all annotators together,
    recall the mean over annotators. A point found is matched to one annotated point at most.

    Parameters
    ----------
    annotations
        Each annotator's change points.
    found
        The change points found.
    margin
        How far from an annotated point a found one may lie, early or late.

    Examples
    --------
    Annotators: {0, 10} and {0, 30}; found: {0, 12}. Precision 2/2, recall the mean of 2/2 and 1/2.

    >>> round(f1([[10], [30]], [12]), 6) == round(2 * 0.75 / 1.75, 6)
    True
    """
    ours = sorted({0, *found})
    theirs = [sorted({0, *points}) for points in annotations]
    precision = _matched(sorted({point for points in theirs for point in points}), ours, margin) / len(ours)
    recall = float(np.mean([_matched(points, ours, margin) / len(points) for points in theirs]))
    return 2 * precision * recall / (precision + recall)  # index 0 is always right: neither is 0


def _matched(points: Sequence[int], found: Sequence[int], margin: int) -> int:
    left, count = set(found), 0
    for point in points:
        near = min((abs(point - one), one) for one in left) if left else (margin + 1, 0)
        if near[0] <= margin:
            left.remove(near[1])
            count += 1
    return count


def delays(annotations: Annotations, found: Sequence[int], length: int) -> list[int | None]:
    """Return, for each annotated point, how many values later the first one was found; None: not before the next point.

    Examples
    --------
    >>> delays([[10, 20]], [5, 13, 17], 30)
    [3, None]
    """
    late: list[int | None] = []
    for points in annotations:
        for start, end in _segments(points, length)[1:]:
            late.append(next((one - start for one in sorted(found) if start <= one < end), None))
    return late
