"""The EWMA chart: alarm when the weighted mean of recent values lies too far from that of the lane's first ones."""

from __future__ import annotations

from typing import Literal, cast

import numpy as np
from pydantic import Field

from memory.lane_state import Column, Columns, LaneState, Slots
from monitors.detectors import baseline
from monitors.detectors.detector import Detector
from monitors.observations import Flags, Floats

FRESH = (*baseline.FRESH, 0.0)
"""A fresh row: the baseline's three numbers, and the weighted mean of what came after."""


class EWMA(Detector):
    """Control chart of the exponentially weighted moving average, with its exact limit.

    With z = (x − μ) / max(s, floor), where μ and s are the mean and the sample deviation of the lane's first `warm_up`
    values, t = 1, 2, … the values since, and w the weight::

        e ← (1 − w) e + w z                                    from e = 0
        limit_t = width · √(w / (2 − w) · (1 − (1 − w)^(2t)))
        alarm up when e > limit_t        alarm down when e < −limit_t

    An alarm starts the lane anew, baseline too. It lies between `shewhart` (one value) and `cusum` (all values): with a
    small weight it sees small lasting changes, with a large one it is quick. The exact limit, narrow at first, sees a
    change right after the warm-up as soon as any other. Unlike `shewhart`, its baseline stands still until it alarms.

    Parameters
    ----------
    weight
        Weight w of a new value.
    width
        Deviations of e from the baseline's mean at which it alarms. `docs/detectors.md` says how long a stationary lane
        then stays quiet.
    side
        Which changes alarm: `up`, `down` or `both`.
    warm_up
        Values of a lane that make its baseline, and cannot alarm.
    floor
        Least deviation s, in the signal's unit, so that a signal that hardly moves does not alarm at a whisper.

    References
    ----------
    S. W. Roberts, "Control chart tests based on geometric moving averages", Technometrics 1 (1959), 239-250. The limit
    for finite t as in J. M. Lucas and M. S. Saccucci, Technometrics 32 (1990), 1-12.

    Examples
    --------
    A lane whose signal climbs by two deviations beside one whose signal does not.

    >>> import numpy as np
    >>> detector = EWMA(warm_up=4, width=3.0)
    >>> lanes = detector.new_lanes()
    >>> lanes.resize(2)
    >>> for i, x in enumerate([0.9, 1.1, 0.9, 1.1, 1.0, 1.0] + [1.23] * 6):
    ...     alarms = detector.update(lanes, np.array([0, 1]), np.array([x, 1.0]))
    ...     if alarms.any():
    ...         print(i, alarms.tolist())
    8 [True, False]
    """

    name: Literal["ewma"] = "ewma"
    weight: float = Field(default=0.2, gt=0, le=1)
    width: float = Field(default=5.5, gt=0, allow_inf_nan=False)
    side: Literal["up", "down", "both"] = "both"
    warm_up: int = Field(default=50, ge=2)
    floor: float = Field(default=0.01, gt=0, allow_inf_nan=False)

    def new_lanes(self) -> LaneState:
        """Make rows of the four numbers of `FRESH`, float64."""
        return Columns({"averages": Column("float64", (4,), fill=FRESH)})

    def _update(self, lanes: LaneState, slots: Slots, values: Floats) -> Flags:
        rows = cast(Columns, lanes)["averages"]
        now = np.ascontiguousarray(rows[slots].T)  # transposed, each number is one contiguous [n] array
        average = now[3]
        z, warm = baseline.standardise(now[:3], values, self.warm_up, self.floor)
        average += self.weight * (z - average)
        since = np.maximum(now[0] - self.warm_up, 0.0)
        spread = self.weight / (2.0 - self.weight) * (1.0 - (1.0 - self.weight) ** (2.0 * since))
        beyond = average if self.side == "up" else -average if self.side == "down" else np.abs(average)
        alarms: Flags = warm & (beyond > self.width * np.sqrt(spread))
        rows[slots] = now.T
        if alarms.any():
            rows[slots[alarms]] = FRESH
        return alarms
