"""Constant forgetting: every segment weakens what came before it by the same factor."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from memory.lane_state import Columns
from monitors.observations import Observations
from monitors.policies.policy import ActionKind, Actions, Policy


class DecayPolicy(Policy):
    """Multiplies each lane's state by a constant factor at every segment.

    What was written n segments ago is weakened by factor ** n on top of what the delta rule itself forgets: by half
    after ln 2 / −ln(factor) segments, 69 of them at 0.99. It looks at no signal, so it needs neither cool-down nor
    budget, and counts against none.

    Parameters
    ----------
    factor
        What the state is multiplied by, a segment. 1 keeps it, and is then reported as keeping.

    Examples
    --------
    >>> import numpy as np
    >>> policy = DecayPolicy(factor=0.9)
    >>> actions = policy.decide(policy.new_lanes(), Observations(np.array([0, 1]), {}))
    >>> actions.kind.tolist(), actions.factor.tolist(), actions.reason
    ([1, 1], [0.9, 0.9], ['constant', 'constant'])
    """

    policy: Literal["decay"] = "decay"
    factor: float = Field(default=0.99, gt=0, le=1)

    heedless: ClassVar[bool] = True

    def decide(self, lanes: Columns, observations: Observations) -> Actions:
        """Decay every lane."""
        actions = Actions.keep(len(observations))
        actions.factor[:] = self.factor
        decays = actions.factor != 1
        actions.kind[decays] = ActionKind.DECAY
        actions.reason = ["constant" if decay else "" for decay in decays.tolist()]
        return actions
