"""Refuse to learn from an event that looks wrong."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from memory.lane_state import Column, Columns
from monitors.observations import Observations
from monitors.policies.on_alarm import OnAlarm
from monitors.policies.policy import ActionKind, Actions


class FreezeOnAnomalyPolicy(OnAlarm):
    """Takes back what an event wrote when it raised an alarm, and what the next events of the lane write.

    What protects a memory from a burst of noise, or from a state that is no longer finite, keeps it from a new topic
    too: do not put it on `topic_shift` unless topics always come back within `hold` events.

    Parameters
    ----------
    on
        As in `OnAlarm`.
    hold
        Events that are not learnt from: the one that alarmed and those after it.
    cool_down, budget
        As in `ActionGuard`. An alarm while the lane is frozen changes nothing.

    Examples
    --------
    >>> policy = FreezeOnAnomalyPolicy(on=("state_norm",), hold=2)
    >>> lanes = policy.new_lanes()
    >>> lanes.resize(1)
    >>> for alarm in (False, True, False, False):
    ...     actions = policy.decide(lanes, Observations(np.array([0]), {}, {"state_norm": np.array([alarm])}))
    ...     print(actions.kind.tolist(), actions.gain, actions.reason)
    [0] None ['']
    [4] [0.] ['state_norm']
    [4] [0.] ['still frozen']
    [0] None ['']
    """

    policy: Literal["freeze_on_anomaly"] = "freeze_on_anomaly"
    on: tuple[str, ...] = Field(default=("state_norm", "non_finite"), min_length=1)
    hold: int = Field(default=1, ge=1)

    undoes_writes: ClassVar[bool] = True

    @property
    def effect(self) -> tuple[ActionKind, float]:
        """Freeze; what the lane held stays."""
        return ActionKind.FREEZE, 1.0

    def columns(self) -> dict[str, Column]:
        """Remember how many more events are not learnt from."""
        return super().columns() | {"frozen": Column("int32")}

    def decide(self, lanes: Columns, observations: Observations) -> Actions:
        """Freeze the lanes that alarm and those that are frozen still."""
        actions = super().decide(lanes, observations)
        slots = observations.slots
        left = lanes["frozen"][slots]
        still = (actions.kind == ActionKind.KEEP) & (left > 0)
        left = np.where(actions.kind == ActionKind.FREEZE, self.hold - 1, np.maximum(left - 1, 0))
        lanes["frozen"][slots] = left
        actions.kind[still] = ActionKind.FREEZE
        for i in np.flatnonzero(still).tolist():
            actions.reason[i] = "still frozen"
        if actions.kind.any():
            actions.gain = np.where(actions.kind == ActionKind.FREEZE, 0.0, 1.0)
        return actions
