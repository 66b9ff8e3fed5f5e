"""What every policy is: observations and alarms of many lanes in, one action a lane out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from memory.lane_state import Column, Columns
from monitors.observations import Flags, Floats, Observations


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


LABELS = {int(kind): kind.label for kind in ActionKind}
"""A kind's number, as in `Actions.kind` → its name."""


@dataclass(slots=True)
class Moves:
    """What happens to the states of n lanes that have W each, called ways.

    Attributes
    ----------
    restart
        `[n]` bool: the newcomer begins again from zero, before this event is written.
    branch
        `[n]` int64: the way whose state is copied to the way after the newcomer, before this event is written; −1:
        none.
    write
        `[n, W]` bool: the ways that this event is written into.
    put
        `[n]` int64: the way under which the newcomer is filed after the write, in the place of what is there; −1: none.
    live
        `[n]` int64: the way that is the lane's own state from now on.
    begin
        `[n, W]` float64: what the newcomer begins as, a sum of the ways' states before this event, each times its
        share; None: zeros.
    """

    restart: Flags
    branch: npt.NDArray[np.int64]
    write: Flags
    put: npt.NDArray[np.int64]
    live: npt.NDArray[np.int64]
    begin: Floats | None = None


@dataclass(slots=True)
class Actions:
    """One action for each of `n` lanes.

    Attributes
    ----------
    kind
        `[n]` int8, an `ActionKind`.
    factor
        `[n]` float64: what `DECAY` multiplies by what the lane held before this segment; 1 for `KEEP`, 0 for `RESET`,
        and 1 where `gain` or `moves` say what happens.
    reason
        Why, one text for each lane; empty for `KEEP`.
    gain
        `[n]` float64: the share of this segment's own write that is kept, 0 for `FREEZE`; None: all of it, everywhere.
    moves
        What a policy with several states a lane does to them; None for one that has a single state.
    """

    kind: npt.NDArray[np.int8]
    factor: Floats
    reason: list[str]
    gain: Floats | None = None
    moves: Moves | None = None

    @classmethod
    def keep(cls, n: int) -> Actions:
        """Return `n` actions that change nothing."""
        return cls(np.zeros(n, np.int8), np.ones(n), [""] * n)


def of(setting: Any, rows: npt.NDArray[np.int64] | Flags) -> Any:
    """Return a setting for some of the lanes observed: a number as it is, of one number a lane those at `rows`.

    Examples
    --------
    >>> of(8, np.array([2])), of(np.array([8, 9, 10]), np.array([2])).tolist()
    (8, [10])
    """
    return setting[rows] if isinstance(setting, np.ndarray) else setting


class Policy(BaseModel, ABC):
    """Settings and rule of a policy, vectorised over lanes.

    Like a detector, a policy object holds settings only (it *is* the YAML file); what it remembers of each lane lives
    in `Columns`. `decide` is a pure function of the observations and of those columns. It sees events up to this one
    and acts on what the lane held *before* this one: the segment just written is kept whole, since it may be the first
    of a new topic.

    Many policies of one class can decide at once: every number among the settings may be an array `[n]` (in a model
    inside the policy `[n, 1]`), one for each of the lanes observed, which are then all lanes, in their order
    (`stream.many.stacked_policy`). Hence `of`, wherever a setting meets some of the lanes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shaping: ClassVar[frozenset[str]] = frozenset()
    """The numbers among the settings that shape what is remembered, and so cannot differ from lane to lane."""

    heedless: ClassVar[bool] = False
    """Whether `decide` reads no signal and no alarm, so that a replay need not measure any."""

    undoes_writes: ClassVar[bool] = False
    """Whether an action may need the state as it was before the segment, as `gain` does."""

    learns_gates: ClassVar[bool] = False
    """Whether `decide` looks at each event's key and mistake."""

    @property
    def looks_at(self) -> frozenset[str] | None:
        """The signals that `decide` reads; None: it may be any. Elsewhere they need not be measured in a replay."""
        return frozenset() if self.heedless else None

    @property
    def hears(self) -> frozenset[str] | None:
        """The alarms that `decide` reads; None: it may be any."""
        return frozenset() if self.heedless else None

    @property
    def ways(self) -> int:
        """W, the states that each lane has, filed ones and challengers included; 0: only its own."""
        return 0

    @property
    def newcomer(self) -> int:
        """The way that `Moves.restart` and `Moves.put` speak of; the ways after it have no topic of their own."""
        return self.ways - 1

    def fitted(self, heads: int, rank: int) -> Policy:
        """Return this policy for states `[H, R, R]`; the same one where it does not matter."""
        return self

    def columns(self) -> dict[str, Column]:
        """Name the columns that `decide` needs; none by default."""
        return {}

    def took_up(self, lanes: Columns, slot: int, way: int) -> None:
        """Take note that somebody else has made the state filed under `way` the lane's own."""
        raise NotImplementedError(f"{type(self).__name__} has no ways")

    def new_lanes(self) -> Columns:
        """Make the memory that `decide` needs, empty."""
        return Columns(self.columns())

    @abstractmethod
    def decide(self, lanes: Columns, observations: Observations) -> Actions:
        """Choose one action for each lane observed."""
