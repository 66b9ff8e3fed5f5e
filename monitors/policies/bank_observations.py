"""What a policy with several states a lane sees besides the signals: how each of them would have done."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from monitors.observations import Flags, Floats, Observations


@dataclass(slots=True)
class BankObservations(Observations):
    """One segment each on `n` lanes that have W states each.

    Attributes
    ----------
    errors
        `[n, W]` float64: each state's prediction error on the segment, before anything of it was written (‖v − S k‖ /
        ‖v‖, the mean over rows and heads); NaN for a way that holds nothing, or where there was nothing to predict.
    likeness
        `[n, W]` float64: cosine between the segment's embedding and the centroid of those filed under the way; NaN
        where there is no centroid or no embedding.
    held
        `[n, W]` bool: the ways that hold a state.
    miss, keys
        `[n, H, R]` float32: v − S k before the write, and k, the mean over the segment's rows. For policies that learn
        gates, which have no ways.
    """

    errors: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    likeness: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    held: Flags = field(default_factory=lambda: np.zeros((0, 0), np.bool_))
    miss: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))
    keys: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))
