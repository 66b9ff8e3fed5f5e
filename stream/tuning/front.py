"""The Pareto front, and how much of the space it leaves behind."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from monitors.observations import Flags, Floats


def on_front(costs: Floats) -> Flags:
    """Say which rows no other row beats: none is as small everywhere and smaller somewhere.

    Parameters
    ----------
    costs
        `[n, d]` float64, smaller is better. Of equal rows the first alone is on the front.

    Returns
    -------
    Flags
        `[n]` bool.

    Examples
    --------
    >>> on_front(np.array([[1.0, 3], [2, 2], [3, 3], [3, 1], [2, 2]])).tolist()
    [True, True, False, True, False]
    """
    left: npt.NDArray[np.int64] = np.lexsort(costs.T[::-1])  # by the first cost: no later row beats an earlier one
    flags = np.zeros(len(costs), np.bool_)
    while len(left):
        first, left = left[0], left[1:]
        flags[first] = True
        left = left[(costs[left] < costs[first]).any(axis=1)]
    return flags


def hypervolume(costs: Floats, worst: Floats) -> float:
    """Return the volume of all that is beaten by some row and better than `worst`.

    Parameters
    ----------
    costs
        `[n, d]` float64, d from 1 to 3; smaller is better.
    worst
        `[d]` float64.

    References
    ----------
    E. Zitzler, L. Thiele, "Multiobjective evolutionary algorithms: a comparative case study and the strength Pareto
    approach", IEEE Trans. Evolutionary Computation 3 (1999): the measure.

    Examples
    --------
    >>> hypervolume(np.array([[1.0, 2], [2, 1]]), np.array([3.0, 3]))
    3.0
    >>> hypervolume(np.array([[0.0, 0, 0.5], [0.5, 0.5, 0]]), np.ones(3))
    0.625
    """
    inside = costs[(costs < worst).all(axis=1)]
    if not len(inside):
        return 0.0
    if costs.shape[1] == 1:
        return float(worst[0] - inside.min())
    # Slices between successive values of the last cost, each as thick as the step to the next one.
    inside = inside[np.argsort(inside[:, -1], kind="stable")]
    thick = np.diff(np.append(inside[:, -1], worst[-1]))
    if costs.shape[1] == 2:
        return float(((worst[0] - np.minimum.accumulate(inside[:, 0])) * thick).sum())
    slices = (hypervolume(inside[: place + 1, :-1], worst[:-1]) * thick[place] for place in np.flatnonzero(thick > 0))
    return float(sum(slices))
