"""The detector that never alarms: what a run looks like without one."""

from __future__ import annotations

from typing import Literal

import numpy as np

from memory.lane_state import Columns, LaneState, Slots
from monitors.detectors.detector import Detector
from monitors.observations import Flags, Floats


class NoDetector(Detector):
    """Never alarms and remembers nothing: the null version.

    Examples
    --------
    >>> import numpy as np
    >>> detector = NoDetector()
    >>> lanes = detector.new_lanes()
    >>> lanes.resize(2)
    >>> detector.update(lanes, np.array([0, 1]), np.array([0.1, 1e9])).tolist()
    [False, False]
    """

    name: Literal["never"] = "never"

    def new_lanes(self) -> LaneState:
        """Make rows of nothing."""
        return Columns({})

    def _update(self, lanes: LaneState, slots: Slots, values: Floats) -> Flags:
        return np.zeros(len(slots), dtype=np.bool_)
