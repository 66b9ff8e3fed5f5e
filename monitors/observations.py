"""The numbers measured on each lane for one segment: what detectors and policies see."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from memory.lane_state import Slots

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

SIGNALS = (
    "state_norm",
    "stable_rank",
    "write_error",
    "retrieval_error",
    "topic_shift_score",
    "saturation",
    "retrieval_lift",
)
"""The signals a detector can be put on, by the names that the output records use."""


@dataclass(slots=True)
class Observations:
    """One segment each on `n` lanes, as arrays.

    Attributes
    ----------
    slots
        `[n]` int64: the lanes' slots, all different.
    signals
        Signal name → `[n]` float64, in the units that `docs/signals.md` gives. NaN: not measurable (yet).
    alarms
        Alarm name → `[n]` bool. An alarm carries its signal's name, and `topic_shift` for `topic_shift_score`.
    """

    slots: Slots
    signals: dict[str, Floats]
    alarms: dict[str, Flags] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.slots)
