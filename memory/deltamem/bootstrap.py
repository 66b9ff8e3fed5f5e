"""Confidence intervals of paired differences, by resampling whole streams."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean, and the interval that holds it at the confidence asked for."""

    mean: float
    low: float
    high: float


def paired_interval(
    differences: npt.ArrayLike,
    groups: Sequence[Hashable] | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Return the mean of paired differences with its percentile bootstrap interval.

    Parameters
    ----------
    differences
        `[N]` numbers, one a pair; all finite.
    groups
        N labels: pairs of one label (one stream) are drawn together, for they are not independent. None: each by
        itself.
    confidence
        Of the interval, two-sided.
    resamples, seed
        How many samples are drawn, and the seed of the drawing.

    References
    ----------
    Efron & Tibshirani 1993, chapter 13 (percentile intervals); Davison & Hinkley 1997, section 3.8 (clusters).

    Examples
    --------
    >>> interval = paired_interval([1.0, 3.0] * 50, seed=1)
    >>> interval.mean, 1.7 < interval.low < 1.9, 2.1 < interval.high < 2.3
    (2.0, True, True)
    """
    values = np.asarray(differences, np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"expected two or more finite differences in a row, got {values.shape} {values[:4]}")
    labels = list(range(len(values))) if groups is None else list(groups)
    if len(labels) != len(values):
        raise ValueError(f"expected {len(values)} groups, got {len(labels)}")
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    which = np.array([numbers[label] for label in labels])
    sums, counts = np.bincount(which, values), np.bincount(which).astype(np.float64)
    if len(sums) < 2:
        raise ValueError("expected two or more groups: one says nothing about the spread between them")
    draws = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=resamples)
    means = (draws @ sums) / (draws @ counts)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(values.mean()), float(low), float(high))
