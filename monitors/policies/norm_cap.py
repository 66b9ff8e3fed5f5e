"""Weaken a lane whose state has grown too large."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from memory.lane_state import Columns
from monitors.observations import Observations
from monitors.policies.guard import ActionGuard
from monitors.policies.policy import ActionKind, Actions, of


class NormCapPolicy(ActionGuard):
    """Weakens what a lane held before the event that took `state_norm` over a cap.

    With unit keys and values and a gate of at most 1 the delta rule keeps a state bounded by itself, so this is a fuse
    against gates or values that have gone wrong, and not a way to forget: what is old and what is new shrink alike.

    Parameters
    ----------
    cap
        The largest Frobenius norm, over all heads and layers, that is left alone.
    to
        The share of the cap that the state is brought down to: under 1, or the next event acts again.
    cool_down, budget
        As in `ActionGuard`; no cool-down by default.

    Examples
    --------
    >>> policy = NormCapPolicy(cap=10, to=0.5)
    >>> lanes = policy.new_lanes()
    >>> lanes.resize(2)
    >>> seen = Observations(np.array([0, 1]), {"state_norm": np.array([20.0, np.nan])})
    >>> policy.decide(lanes, seen).factor.tolist()
    [0.25, 1.0]
    """

    policy: Literal["norm_cap"] = "norm_cap"
    cap: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    to: float = Field(default=0.9, gt=0, le=1)
    cool_down: int = Field(default=0, ge=0)

    @property
    def looks_at(self) -> frozenset[str]:
        """The norm."""
        return frozenset({"state_norm"})

    @property
    def hears(self) -> frozenset[str]:
        """None of the alarms."""
        return frozenset()

    def decide(self, lanes: Columns, observations: Observations) -> Actions:
        """Decay the lanes that are over the cap; reset those whose norm is infinite. NaN is no reason to act."""
        norm = observations.signals["state_norm"]
        now = self.admit(lanes, observations.slots, norm > self.cap)
        actions = Actions.keep(len(observations))
        if now.any():
            factor = of(self.to, now) * of(self.cap, now) / norm[now]
            actions.kind[now] = np.where(factor > 0, ActionKind.DECAY, ActionKind.RESET)
            actions.factor[now] = factor
            for i in np.flatnonzero(now).tolist():
                actions.reason[i] = "state_norm"
        return actions
