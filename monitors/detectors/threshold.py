"""Alarm on every value above a line: the baseline that says what the other detectors buy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from memory.lane_state import Columns, LaneState, Slots
from monitors.detectors.detector import Detector
from monitors.observations import Flags, Floats


class Threshold(Detector):
    """Alarms whenever the value is above a fixed line; remembers nothing.

    Parameters
    ----------
    above
        The line, in the signal's unit. A value equal to it does not alarm.

    Examples
    --------
    >>> import numpy as np
    >>> detector = Threshold(above=0.5)
    >>> lanes = detector.new_lanes()
    >>> lanes.resize(3)
    >>> detector.update(lanes, np.array([0, 1, 2]), np.array([0.4, 0.5, 0.6])).tolist()
    [False, False, True]
    """

    name: Literal["threshold"] = "threshold"
    above: float = Field(default=0.5, allow_inf_nan=False)

    def new_lanes(self) -> LaneState:
        """Make rows of nothing."""
        return Columns({})

    def _update(self, lanes: LaneState, slots: Slots, values: Floats) -> Flags:
        return values > self.above
