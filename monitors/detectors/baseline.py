"""What a lane's signal is like at first: the mean and deviation that control charts standardise by."""

from __future__ import annotations

import numpy as np

from monitors.observations import Flags, Floats

FRESH = (0.0, 0.0, 0.0)
"""A fresh baseline: values seen, their mean, their squared deviations from it."""


def standardise(baseline: Floats, values: Floats, warm_up: int, floor: float) -> tuple[Floats, Flags]:
    """Return how far values lie from their lanes' baselines, in deviations; the first of a lane make its baseline.

    With μ and s the mean and the sample deviation of a lane's first `warm_up` values, z = (x − μ) / max(s, floor).

    Parameters
    ----------
    baseline
        `[3, n]` float64: n lanes' values seen, mean, and squared deviations, which are brought up to date in place.
    values
        `[n]` float64, finite.
    warm_up
        Values that make a baseline; at least 2.
    floor
        Least deviation, in the signal's unit.

    Returns
    -------
    tuple
        z `[n]` float64, 0 where a lane still warms up; and which lanes are past it, `[n]` bool.

    References
    ----------
    B. P. Welford, "Note on a method for calculating corrected sums of squares and products", Technometrics 4 (1962),
    419-420: the running mean and squares.

    Examples
    --------
    Two values, 1 and 3, make a baseline of mean 2 and deviation √2.

    >>> import numpy as np
    >>> baseline = np.zeros((3, 1))
    >>> for x in (1.0, 3.0, 2.0 + 2**0.5):
    ...     z, warm = standardise(baseline, np.array([x]), warm_up=2, floor=0.01)
    ...     print(z.round(6).tolist(), warm.tolist())
    [0.0] [False]
    [0.0] [False]
    [1.0] [True]
    """
    seen, mean, squares = baseline
    warm = seen >= warm_up
    away = values - mean
    seen += 1.0
    weight = np.where(warm, 0.0, 1.0 / seen)
    mean += weight * away
    squares += np.where(warm, 0.0, away * (values - mean))
    z = np.where(warm, away / np.maximum(np.sqrt(squares / (warm_up - 1)), floor), 0.0)
    return z, warm
