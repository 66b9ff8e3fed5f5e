"""What every policy is: observations and alarms of many lanes in, one action a lane out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from memory.lane_state import Column, Columns
from monitors.observations import Floats, Observations


class ActionKind(IntEnum):
    """What a policy does to a lane. The names are those of the output records and the metrics."""

    KEEP = 0
    DECAY = 1
    RESET = 2
    RESTORE = 3
    FREEZE = 4

    @property
    def label(self) -> str:
        """The name in records, metrics and logs."""
        return self.name.lower()


@dataclass(slots=True)
class Actions:
    """One action for each of `n` lanes.

    Attributes
    ----------
    kind
        `[n]` int8, an `ActionKind`.
    factor
        `[n]` float64: what `DECAY` multiplies by what the lane held before this segment; 1 for `KEEP`, 0 for `RESET`.
    reason
        Why, one text for each lane; empty for `KEEP`.
    """

    kind: npt.NDArray[np.int8]
    factor: Floats
    reason: list[str]

    @classmethod
    def keep(cls, n: int) -> Actions:
        """Return `n` actions that change nothing."""
        return cls(np.zeros(n, np.int8), np.ones(n), [""] * n)


class Policy(BaseModel, ABC):
    """Settings and rule of a policy, vectorised over lanes.

    Like a detector, a policy object holds settings only (it *is* the YAML file); what it remembers of each lane lives
    in `Columns`. `decide` is a pure function of the observations and of those columns. It sees events up to this one
    and acts on what the lane held *before* this one: the segment just written is kept whole, since it may be the first
    of a new topic.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    def columns(self) -> dict[str, Column]:
        """Name the columns that `decide` needs; none by default."""
        return {}

    def new_lanes(self) -> Columns:
        """Make the memory that `decide` needs, empty."""
        return Columns(self.columns())

    @abstractmethod
    def decide(self, lanes: Columns, observations: Observations) -> Actions:
        """Choose one action for each lane observed."""
