"""What keeps a policy from acting too often: a cool-down and a budget, for each lane by itself."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from memory.lane_state import Column, Columns, Slots
from monitors.observations import Flags
from monitors.policies.policy import Policy, of

BUDGET_EVENTS = 1_000
"""The events of a lane that one budget is for."""

NEVER = -(2**62)
"""When a lane that has not acted yet did so last: before any cool-down."""


class ActionGuard(Policy):
    """Base of the policies that act now and then.

    A subclass says which lanes it *wants* to act on and asks `admit` which of them it may. Every observation
    of a lane is one event of that lane. Lanes are counted apart, so what one does costs another nothing.

    Parameters
    ----------
    cool_down
        Events of a lane after an action during which no further action is taken. 0: none.
    budget
        Most actions in each 1,000 events of a lane: its events 0 to 999, 1,000 to 1,999, and so on. None: no limit.
        It bounds the harm of a detector that has gone wrong.
    """

    cool_down: int = Field(default=8, ge=0)
    budget: int | None = Field(default=None, ge=0)

    def columns(self) -> dict[str, Column]:
        """Count the lane's events, remember the event last acted on, and the actions in that event's thousand."""
        return {"events": Column("int64"), "acted_at": Column("int64", fill=NEVER), "spent": Column("int32")}

    def admit(self, lanes: Columns, slots: Slots, wanted: Flags) -> Flags:
        """Return which of the wanted actions may be taken, and count them as taken.

        To be called once for every round of observations, with or without a wanted action: it counts the events.

        Parameters
        ----------
        lanes
            The rows that `columns` asks for.
        slots
            `[n]` int64: the lanes observed, all different.
        wanted
            `[n]` bool: on which of them to act.

        Returns
        -------
        Flags
            `[n]` bool: on which of them to act now.
        """
        event = lanes["events"][slots]
        lanes["events"][slots] = event + 1
        if not wanted.any():
            return wanted
        asking = np.flatnonzero(wanted)
        at, event = slots[asking], event[asking]
        acted_at = lanes["acted_at"][at]
        spent = np.where(acted_at // BUDGET_EVENTS == event // BUDGET_EVENTS, lanes["spent"][at], 0)
        may = event - acted_at > of(self.cool_down, asking)
        if self.budget is not None:
            may &= spent < of(self.budget, asking)
        lanes["acted_at"][at[may]] = event[may]
        lanes["spent"][at[may]] = spent[may] + 1
        admitted = np.zeros(len(slots), dtype=np.bool_)
        admitted[asking[may]] = True
        return admitted
