"""What every detector is: one signal of many lanes in, alarms out."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from pydantic import BaseModel, ConfigDict

from memory.lane_state import LaneState, Slots
from monitors.observations import Flags, Floats


class Detector(BaseModel, ABC):
    """Settings and rule of a change detector, vectorised over lanes.

    A detector object holds settings only. What it remembers of each lane lives in the `LaneState` that `new_lanes`
    makes, which the consumer grows, spills and checkpoints. The life of one:

    1. ``lanes = detector.new_lanes()``, once; then ``lanes.resize(capacity)`` as the pool grows.
    2. ``detector.update(lanes, slots, values)`` for each round: at most one value a lane.
    3. ``lanes.clear(slots)`` when a lane begins anew.

    A lane's alarms depend on that lane's values alone: not on the other lanes, nor their order. Non-finite values
    are an event of their own, counted elsewhere: they raise no alarm and leave the lane's memory as it was.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @abstractmethod
    def new_lanes(self) -> LaneState:
        """Make the memory that `update` needs, empty."""

    @abstractmethod
    def _update(self, lanes: LaneState, slots: Slots, values: Floats) -> Flags:
        """Advance the lanes by finite values; return which of them alarm."""

    def update(self, lanes: LaneState, slots: Slots, values: Floats) -> Flags:
        """Advance the lanes at `slots` `[n]` (all different) by `values` `[n]` float64; return alarms `[n]` bool."""
        finite = np.isfinite(values)
        if finite.all():
            return self._update(lanes, slots, values)
        alarms = np.zeros(len(slots), dtype=np.bool_)
        alarms[finite] = self._update(lanes, slots[finite], values[finite])
        return alarms
