"""Page-Hinkley: alarm when the sum of deviations from the running mean climbs too far from its extreme."""

from __future__ import annotations

from typing import Literal, cast

import numpy as np
from pydantic import Field

from memory.lane_state import Column, Columns, LaneState, Slots
from monitors.detectors.detector import Detector
from monitors.observations import Flags, Floats

FRESH = (0.0, 0.0, 0.0, np.inf, 0.0, -np.inf)
"""A fresh row: values seen, their mean, rise, its least, fall, its greatest. In one row: one gather reads a lane."""


class PageHinkley(Detector):
    """Page-Hinkley test for a change of the mean, alarming at the indices where `river.drift.PageHinkley` alarms.

    With x̄ the mean of the lane's values since its last alarm, x included::

        rise ← α·rise + (x − x̄) − δ        fall ← α·fall + (x − x̄) + δ
        alarm up   when  rise − min(rise) > threshold
        alarm down when  max(fall) − fall > threshold

    An alarm starts the lane anew. It gathers evidence over several values, so it is late by a few, and in return
    it sees slow climbs: for signals such as `retrieval_error` and `state_norm`.

    Parameters
    ----------
    min_instances
        Values of a lane, since it began or last alarmed, before it may alarm.
    delta
        Slack δ: a change of the mean smaller than this is no change. In the signal's unit.
    threshold
        How far a sum must be from its extreme. In the signal's unit, times values.
    alpha
        Factor α by which a sum forgets, a value.
    mode
        Which changes alarm: `up`, `down` or `both`.

    References
    ----------
    E. S. Page, "Continuous inspection schemes", Biometrika 41 (1954), 100-115.

    Examples
    --------
    A lane whose signal climbs from 0 to 1 beside one whose signal does not.

    >>> import numpy as np
    >>> detector = PageHinkley(min_instances=5, threshold=2.0)
    >>> lanes = detector.new_lanes()
    >>> lanes.resize(2)
    >>> for i in range(20):
    ...     alarms = detector.update(lanes, np.array([0, 1]), np.array([float(i >= 10), 0.0]))
    ...     if alarms.any():
    ...         print(i, alarms.tolist())
    12 [True, False]
    """

    name: Literal["page_hinkley"] = "page_hinkley"
    min_instances: int = Field(default=30, ge=0)
    delta: float = Field(default=0.005, ge=0, allow_inf_nan=False)
    threshold: float = Field(default=50.0, ge=0, allow_inf_nan=False)
    alpha: float = Field(default=1 - 0.0001, ge=0, le=1)
    mode: Literal["up", "down", "both"] = "both"

    def new_lanes(self) -> LaneState:
        """Make rows of the six numbers of `FRESH`, float64."""
        return Columns({"sums": Column("float64", (6,), fill=FRESH)})

    def _update(self, lanes: LaneState, slots: Slots, values: Floats) -> Flags:
        rows = cast(Columns, lanes)["sums"]
        # Transposed, each number is one contiguous [n] array. The order of operations is river's, to the bit.
        n, mean, rise, rise_low, fall, fall_high = now = np.ascontiguousarray(rows[slots].T)
        n += 1.0
        mean += (1.0 / n) * (values - mean)
        deviation = values - mean
        rise *= self.alpha
        rise += deviation
        rise -= self.delta
        fall *= self.alpha
        fall += deviation
        fall += self.delta
        np.minimum(rise_low, rise, out=rise_low)
        np.maximum(fall_high, fall, out=fall_high)
        alarms: Flags
        if self.mode == "up":
            alarms = rise - rise_low > self.threshold
        elif self.mode == "down":
            alarms = fall_high - fall > self.threshold
        else:
            alarms = np.maximum(rise - rise_low, fall_high - fall) > self.threshold
        alarms &= n >= self.min_instances
        rows[slots] = now.T
        if alarms.any():
            rows[slots[alarms]] = FRESH
        return alarms
