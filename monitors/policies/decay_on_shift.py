"""Weaken a lane when its topic shifts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from monitors.policies.on_alarm import OnAlarm
from monitors.policies.policy import ActionKind


class DecayOnShiftPolicy(OnAlarm):
    """Weakens what a lane held before the segment that raised the alarm.

    Milder than a reset: what a false alarm, or a topic that returns, makes wrong is not wholly lost.

    Parameters
    ----------
    factor
        What that is multiplied by.
    on, cool_down, budget
        As in `OnAlarm` and `ActionGuard`.

    Examples
    --------
    >>> import numpy as np
    >>> from monitors.observations import Observations
    >>> policy = DecayOnShiftPolicy(factor=0.5)
    >>> lanes = policy.new_lanes()
    >>> lanes.resize(2)
    >>> seen = Observations(np.array([0, 1]), {}, {"topic_shift": np.array([False, True])})
    >>> actions = policy.decide(lanes, seen)
    >>> actions.factor.tolist(), actions.reason
    ([1.0, 0.5], ['', 'topic_shift'])
    """

    policy: Literal["decay_on_shift"] = "decay_on_shift"
    factor: float = Field(default=0.3, gt=0, lt=1)

    @property
    def effect(self) -> tuple[ActionKind, float]:
        """Decay by `factor`."""
        return ActionKind.DECAY, self.factor
