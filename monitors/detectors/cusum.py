"""CUSUM: alarm when the sum of deviations from the lane's first values, each less a slack, climbs too high."""

from __future__ import annotations

from typing import Literal, cast

import numpy as np
from pydantic import Field

from memory.lane_state import Column, Columns, LaneState, Slots
from monitors.detectors import baseline
from monitors.detectors.detector import Detector
from monitors.observations import Flags, Floats

FRESH = (*baseline.FRESH, 0.0, 0.0)
"""A fresh row: the baseline's three numbers, the sum upwards, the sum downwards."""


class CUSUM(Detector):
    """Cumulative sums of standardised deviations, upwards and downwards.

    With z = (x − μ) / max(s, floor), where μ and s are the mean and the sample deviation of the lane's first `warm_up`
    values::

        rise ← max(0, rise + z − slack)        alarm up   when rise > threshold
        fall ← max(0, fall − z − slack)        alarm down when fall > threshold

    An alarm starts the lane anew, baseline too. It finds small lasting changes soonest: one of Δ deviations takes about
    threshold / (Δ − slack) values, whatever the signal's unit. The price is that it compares with the beginning, so a
    signal that wanders away for good reasons (a norm that still fills up) alarms too; `page_hinkley` follows such.

    Parameters
    ----------
    slack
        Half the change that matters, in deviations: smaller ones are no change.
    threshold
        How high a sum must climb, in deviations. `docs/detectors.md` says how long a stationary lane then stays quiet:
        a short baseline is itself off by s / √warm_up, which costs more than the textbook's figures say.
    side
        Which changes alarm: `up`, `down` or `both`.
    warm_up
        Values of a lane that make its baseline, and cannot alarm.
    floor
        Least deviation s, in the signal's unit, so that a signal that hardly moves does not alarm at a whisper.

    References
    ----------
    E. S. Page, "Continuous inspection schemes", Biometrika 41 (1954), 100-115.

    Examples
    --------
    A lane whose signal climbs by two deviations beside one whose signal does not.

    >>> import numpy as np
    >>> detector = CUSUM(warm_up=4, threshold=5.0, slack=0.5)
    >>> lanes = detector.new_lanes()
    >>> lanes.resize(2)
    >>> for i, x in enumerate([0.9, 1.1, 0.9, 1.1, 1.0, 1.0] + [1.23] * 6):
    ...     alarms = detector.update(lanes, np.array([0, 1]), np.array([x, 1.0]))
    ...     if alarms.any():
    ...         print(i, alarms.tolist())
    9 [True, False]
    """

    name: Literal["cusum"] = "cusum"
    slack: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    threshold: float = Field(default=8.0, gt=0, allow_inf_nan=False)
    side: Literal["up", "down", "both"] = "both"
    warm_up: int = Field(default=50, ge=2)
    floor: float = Field(default=0.01, gt=0, allow_inf_nan=False)

    def new_lanes(self) -> LaneState:
        """Make rows of the five numbers of `FRESH`, float64."""
        return Columns({"sums": Column("float64", (5,), fill=FRESH)})

    def _update(self, lanes: LaneState, slots: Slots, values: Floats) -> Flags:
        rows = cast(Columns, lanes)["sums"]
        now = np.ascontiguousarray(rows[slots].T)  # transposed, each number is one contiguous [n] array
        rise, fall = now[3], now[4]
        z, warm = baseline.standardise(now[:3], values, self.warm_up, self.floor)
        rise += z
        rise -= self.slack
        np.maximum(rise, 0.0, out=rise)
        fall -= z
        fall -= self.slack
        np.maximum(fall, 0.0, out=fall)
        sums = rise if self.side == "up" else fall if self.side == "down" else np.maximum(rise, fall)
        alarms: Flags = warm & (sums > self.threshold)
        rows[slots] = now.T
        if alarms.any():
            rows[slots[alarms]] = FRESH
        return alarms
