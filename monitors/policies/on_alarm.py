"""What the policies that act on an alarm share: which alarms, and the guard."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from pydantic import Field, field_validator

from memory.lane_state import Columns
from monitors.detectors.slips import likely_slip
from monitors.observations import SIGNALS, Observations
from monitors.policies.guard import ActionGuard
from monitors.policies.policy import ActionKind, Actions, of

ALARMS = (*("topic_shift" if signal == "topic_shift_score" else signal for signal in SIGNALS), "non_finite")
"""The alarms there can be: one for each signal, by its name or `topic_shift`, and one for a non-finite state."""


class OnAlarm(ActionGuard):
    """Base of the policies that do one thing to a lane when it alarms.

    Parameters
    ----------
    on
        The alarms to act on: any of them will do. The first of them that fired is the action's reason. One that no
        detector raises in this run never fires.
    """

    on: tuple[str, ...] = Field(default=("topic_shift",), min_length=1)

    @field_validator("on")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in ALARMS:
                raise ValueError(f"expected alarms among {', '.join(ALARMS)}, got {name!r}{likely_slip(name, ALARMS)}")
        return names

    @property
    def looks_at(self) -> frozenset[str]:
        """None of the signals."""
        return frozenset()

    @property
    def hears(self) -> frozenset[str]:
        """The alarms to act on."""
        return frozenset(self.on)

    @property
    @abstractmethod
    def effect(self) -> tuple[ActionKind, float]:
        """What to do to a lane that alarms: the kind of action and its factor."""

    def decide(self, lanes: Columns, observations: Observations) -> Actions:
        """Act on the lanes that alarm, as far as the guard lets it."""
        n = len(observations)
        fired = [(name, observations.alarms[name]) for name in self.on if name in observations.alarms]
        wanted = np.logical_or.reduce([flags for _, flags in fired]) if fired else np.zeros(n, dtype=np.bool_)
        acting = np.flatnonzero(self.admit(lanes, observations.slots, wanted))
        actions = Actions.keep(n)
        if len(acting):
            kind, factor = self.effect
            actions.kind[acting], actions.factor[acting] = kind, of(factor, acting)
            for i in acting.tolist():
                actions.reason[i] = next(name for name, flags in fired if flags[i])
        return actions
