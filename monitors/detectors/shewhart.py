"""Shewhart's control chart: alarm on a value that lies too many standard deviations from the lane's own past."""

from __future__ import annotations

from typing import Literal, cast

import numpy as np
from pydantic import Field

from memory.lane_state import Column, Columns, LaneState, Slots
from monitors.detectors.detector import Detector
from monitors.observations import Flags, Floats


class Shewhart(Detector):
    """Alarms on one value far from the lane's exponentially weighted mean.

    With m and s² the weighted mean and variance of the lane's values *before* x, w the weight of a new value::

        alarm up   when  x − m > width · max(s, floor)
        alarm down when  m − x > width · max(s, floor)
        d = clip(x − m, ± clip · max(s, floor))
        m ← m + w·d        s² ← (1 − w)(s² + w·d²)

    The decision is made before x enters the baseline, and on x alone: the detector is never late, which is why it is
    the one for `topic_shift_score`. A value that alarms enters the baseline like any other: a level that has changed
    for good is learnt and stops alarming. What `clip` bounds is how far one wild value can drag the baseline and so
    hide the next shift. While the lane has seen fewer than 1/weight values, w is 1/(values seen): the plain mean and
    variance.

    Parameters
    ----------
    width
        Standard deviations from the mean that a value may lie.
    side
        Which values alarm: those `up` from the mean, those `down`, or `both`.
    weight
        Weight w of a new value: the baseline remembers about 1/w values.
    warm_up
        Values of a lane before it may alarm.
    floor
        Least standard deviation, in the signal's unit, so that a signal that hardly moves does not alarm at a whisper.
    clip
        Standard deviations from the mean beyond which a value is moved inwards before it enters the baseline.
    cool_down
        Values of the lane after an alarm that cannot alarm.

    References
    ----------
    W. A. Shewhart, "Economic Control of Quality of Manufactured Product", Van Nostrand, 1931: the chart.
    S. W. Roberts, "Control chart tests based on geometric moving averages", Technometrics 1 (1959), 239-250: the
    geometric weights. T. Finch, "Incremental calculation of weighted mean and variance", University of Cambridge,
    2009: the update.

    Examples
    --------
    >>> import numpy as np
    >>> detector = Shewhart(warm_up=4, floor=0.05)
    >>> lanes = detector.new_lanes()
    >>> lanes.resize(1)
    >>> signal = [0.2, 0.3, 0.25, 0.3, 0.28, 0.9, 0.3]
    >>> [i for i, x in enumerate(signal) if detector.update(lanes, np.array([0]), np.array([x]))]
    [5]
    """

    name: Literal["shewhart"] = "shewhart"
    width: float = Field(default=3.0, gt=0, allow_inf_nan=False)
    side: Literal["up", "down", "both"] = "up"
    weight: float = Field(default=0.05, gt=0, lt=1)
    warm_up: int = Field(default=8, ge=1)
    floor: float = Field(default=0.01, gt=0, allow_inf_nan=False)
    clip: float = Field(default=5.0, gt=0, allow_inf_nan=False)
    cool_down: int = Field(default=0, ge=0)

    def new_lanes(self) -> LaneState:
        """Make rows of values seen, values still to cool down (int32), mean and variance (float64)."""
        return Columns({"seen": Column("int32"), "cooling": Column("int32"), "baseline": Column("float64", (2,))})

    def _update(self, lanes: LaneState, slots: Slots, values: Floats) -> Flags:
        rows = cast(Columns, lanes)
        seen = rows["seen"][slots]
        baseline = rows["baseline"][slots]
        mean, variance = baseline[:, 0], baseline[:, 1]
        distance = values - mean
        deviation = np.maximum(np.sqrt(variance), self.floor)

        beyond = distance if self.side == "up" else -distance if self.side == "down" else np.abs(distance)
        alarms: Flags = beyond > self.width * deviation
        alarms &= seen >= self.warm_up
        if self.cool_down:
            cooling = rows["cooling"][slots]
            alarms &= cooling == 0
            rows["cooling"][slots] = np.where(alarms, self.cool_down, np.maximum(cooling - 1, 0))

        # A baseline of fewer than `warm_up` values is too raw to call a value wild by.
        reach = np.where(seen >= self.warm_up, self.clip * deviation, np.inf)
        distance = np.clip(distance, -reach, reach)
        seen = np.minimum(seen, np.iinfo(np.int32).max - 1) + 1
        weight = np.maximum(self.weight, 1.0 / seen)
        mean += weight * distance
        variance += weight * distance * distance
        variance *= 1.0 - weight
        rows["seen"][slots] = seen
        rows["baseline"][slots] = baseline
        return alarms
