"""Clear a lane when its topic shifts."""

from __future__ import annotations

from typing import Literal

from monitors.policies.on_alarm import OnAlarm
from monitors.policies.policy import ActionKind


class ResetOnShiftPolicy(OnAlarm):
    """Clears what a lane held before the segment that raised the alarm.

    Right where topics never return; where they do, it throws away what will be asked for again.

    Parameters
    ----------
    on, cool_down, budget
        As in `OnAlarm` and `ActionGuard`.

    Examples
    --------
    >>> import numpy as np
    >>> from monitors.observations import Observations
    >>> policy = ResetOnShiftPolicy(cool_down=1)
    >>> lanes = policy.new_lanes()
    >>> lanes.resize(1)
    >>> shift = {"topic_shift": np.array([True])}
    >>> [policy.decide(lanes, Observations(np.array([0]), {}, shift)).kind.item() for _ in range(4)]
    [2, 0, 2, 0]
    """

    policy: Literal["reset_on_shift"] = "reset_on_shift"

    @property
    def effect(self) -> tuple[ActionKind, float]:
        """Reset."""
        return ActionKind.RESET, 0.0
