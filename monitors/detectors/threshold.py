"""Alarm on values above a line: the baseline that says what the other detectors buy."""

from __future__ import annotations

from typing import Literal, cast

from pydantic import Field, model_validator

from memory.lane_state import Column, Columns, LaneState, Slots
from monitors.detectors.detector import Detector
from monitors.observations import Flags, Floats


class Threshold(Detector):
    """Alarms when the value is above a fixed line: every time, or once until it has been below another.

    With hysteresis (`rearm`), a lane that alarmed is silent until a value at or below `rearm`, so that a signal which
    hovers about the line alarms once and not at each crossing::

        alarm when x > above and the lane is armed
        armed ← x ≤ rearm, or armed and x ≤ above

    Parameters
    ----------
    above
        The line, in the signal's unit. A value equal to it does not alarm.
    rearm
        The line, at or below `above`, to which the signal must come back before the lane may alarm again. None: the
        lane alarms at every value above the line.

    Examples
    --------
    >>> import numpy as np
    >>> detector = Threshold(above=0.5)
    >>> lanes = detector.new_lanes()
    >>> lanes.resize(3)
    >>> detector.update(lanes, np.array([0, 1, 2]), np.array([0.4, 0.5, 0.6])).tolist()
    [False, False, True]
    >>> detector = Threshold(above=0.5, rearm=0.3)
    >>> signal = [0.4, 0.6, 0.4, 0.6, 0.3, 0.6]
    >>> [i for i, x in enumerate(signal) if detector.update(lanes, np.array([0]), np.array([x]))]
    [1, 5]
    """

    name: Literal["threshold"] = "threshold"
    above: float = Field(default=0.5, allow_inf_nan=False)
    rearm: float | None = Field(default=None, allow_inf_nan=False)

    @model_validator(mode="after")
    def _ordered(self) -> Threshold:
        if self.rearm is not None and self.rearm > self.above:
            raise ValueError(f"expected rearm at or below above ({self.above}), got {self.rearm}; are they swapped?")
        return self

    def new_lanes(self) -> LaneState:
        """Make rows of whether the lane is silent (bool) until the signal comes back."""
        return Columns({"silent": Column("bool")})

    def _update(self, lanes: LaneState, slots: Slots, values: Floats) -> Flags:
        beyond: Flags = values > self.above
        if self.rearm is None:
            return beyond
        silent = cast(Columns, lanes)["silent"]
        before = silent[slots]
        silent[slots] = beyond | (before & (values > self.rearm))
        beyond &= ~before
        return beyond
