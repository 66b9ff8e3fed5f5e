"""Clear a lane every so many events, whatever happens in it."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from memory.lane_state import Columns
from monitors.observations import Observations
from monitors.policies.guard import ActionGuard
from monitors.policies.policy import ActionKind, Actions


class ScheduledResetPolicy(ActionGuard):
    """Clears what a lane held before each `every`-th of its events.

    It looks at no signal: right only where the length of a topic is known. It bounds how long a mistake can live.

    Parameters
    ----------
    every
        Events from one reset to the next.
    cool_down, budget
        As in `ActionGuard`; none by default, since the schedule is a bound itself.

    Examples
    --------
    >>> policy = ScheduledResetPolicy(every=3)
    >>> lanes = policy.new_lanes()
    >>> lanes.resize(1)
    >>> [policy.decide(lanes, Observations(np.array([0]), {})).kind.item() for _ in range(7)]
    [0, 0, 0, 2, 0, 0, 2]
    """

    policy: Literal["scheduled_reset"] = "scheduled_reset"
    every: int = Field(default=100, ge=1)
    cool_down: int = Field(default=0, ge=0)

    heedless: ClassVar[bool] = True

    def decide(self, lanes: Columns, observations: Observations) -> Actions:
        """Reset the lanes whose turn it is."""
        event = lanes["events"][observations.slots]
        now = self.admit(lanes, observations.slots, (event > 0) & (event % self.every == 0))
        actions = Actions.keep(len(observations))
        actions.kind[now], actions.factor[now] = ActionKind.RESET, 0.0
        for i in np.flatnonzero(now).tolist():
            actions.reason[i] = "schedule"
        return actions
