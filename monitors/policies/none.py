"""The policy that leaves every lane alone."""

from __future__ import annotations

from typing import ClassVar, Literal

from memory.lane_state import Columns
from monitors.observations import Observations
from monitors.policies.policy import Actions, Policy


class NoPolicy(Policy):
    """Keeps every lane as it is: the null version, and what the others are measured against.

    Examples
    --------
    >>> import numpy as np
    >>> policy = NoPolicy()
    >>> seen = Observations(np.array([0, 1]), {}, {"topic_shift": np.array([True, False])})
    >>> policy.decide(policy.new_lanes(), seen).kind.tolist()
    [0, 0]
    """

    policy: Literal["none"] = "none"

    heedless: ClassVar[bool] = True

    def decide(self, lanes: Columns, observations: Observations) -> Actions:
        """Keep."""
        return Actions.keep(len(observations))
