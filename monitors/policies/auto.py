"""The default: the archive where it is measured to help, and nothing at all where it is not."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from memory.lane_state import Column, Columns
from monitors.observations import Observations
from monitors.policies.archive import ArchivePolicy
from monitors.policies.bank_observations import BankObservations
from monitors.policies.policy import ActionKind, Actions

MOST_LOSS = 1.5
"""A prediction error above this counts as this: twice as wrong is not twice as bad."""


class AutoPolicy(ArchivePolicy):
    r"""Runs `archive` as a shadow of a state that nothing is ever done to; the one that predicts better leads.

    Both predict every event before it is written. With d = (error of `none`) − (error of the archive's state in force,
    each at most 1.5), two sums are kept::

        a ← max(0, a + d)      the archive's lead since it last fell behind: it leads when a > enter · 2^r
        b ← max(0, b − d)      its lag, while it leads: `none` leads again when b > leave, and r ← r + 1

    A stream starts with `none`. What a lane that trusted the archive can lose against `none` is bounded for any stream
    whatever: each of its times in the lead ends after a lag of `leave` + 1.5 at most, and the k-th can begin only after
    the archive has been ahead by enter · 2^k, which over T events happens log₂(1.5 T / enter) times at most. So the
    loss, summed over T events, is at most (leave + 1.5) · (1 + log₂(1.5 T / enter)) more than that of `none`: the
    average harm goes to nothing as (log T) / T.

    Parameters
    ----------
    enter
        How far the archive must be ahead to take the lead, in summed prediction error.
    leave
        How far behind, to lose it.
    most, certainty, belief, cool_down, budget
        As in `ArchivePolicy`.

    References
    ----------
    E. S. Page, "Continuous inspection schemes", Biometrika 41 (1954), 100-115: the sums. N. Cesa-Bianchi, G. Lugosi,
    "Prediction, Learning, and Games", 2006, ch. 2 (following an expert by its summed loss; the doubling trick).

    Examples
    --------
    >>> policy = AutoPolicy(most=2)
    >>> lanes = policy.new_lanes()
    >>> lanes.resize(1)
    >>> errors, likeness = np.array([[0.2, np.nan, 1.0, np.nan, 0.9]]), np.full((1, 5), np.nan)
    >>> held = ~np.isnan(errors)
    >>> for _ in range(3):
    ...     actions = policy.decide(lanes, BankObservations(np.array([0]), {}, {}, errors, likeness, held))
    ...     print(ActionKind(actions.kind[0]).label, actions.moves.live.tolist())
    keep [4]
    restore [0]
    keep [0]
    """

    policy: Literal["auto"] = "auto"  # type: ignore[assignment]
    enter: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    leave: float = Field(default=2.0, gt=0, allow_inf_nan=False)

    @property
    def ways(self) -> int:
        """The ways of the archive, and the state that nothing is done to."""
        return self.most + 3

    @property
    def untouched(self) -> int:
        """The way of the state that nothing is done to."""
        return self.most + 2

    def columns(self) -> dict[str, Column]:
        """Remember who leads and the two sums, besides what the archive remembers."""
        return super().columns() | {
            "leads": Column("bool"),
            "ahead": Column("float64"),
            "behind": Column("float64"),
            "retreats": Column("int32"),
            "live": Column("int64", fill=self.untouched),
        }

    def took_up(self, lanes: Columns, slot: int, way: int) -> None:
        """Be sure of that state, and let the archive lead until it lags."""
        super().took_up(lanes, slot, way)
        lanes["leads"][slot] = True
        lanes["ahead"][slot] = lanes["behind"][slot] = 0.0

    def decide(self, lanes: Columns, observations: Observations) -> Actions:
        """Move the archive, then choose who leads."""
        if not isinstance(observations, BankObservations):
            return Actions.keep(len(observations))
        seen, slots, untouched = observations, observations.slots, self.untouched
        before = lanes["live"][slots]
        predicted_by = np.where(lanes["branched"][slots], self.newcomer + 1, lanes["in_force"][slots])
        routed, moves = self.route(lanes, seen)
        told = moves.write.any(axis=1)
        moves.write[:, untouched] = told

        each = np.arange(len(seen))
        errors = np.minimum(np.where(np.isnan(seen.errors), 1.0, seen.errors), MOST_LOSS)
        ahead_by = np.where(told, errors[:, untouched] - errors[each, predicted_by], 0.0)
        leads = lanes["leads"][slots]
        ahead = np.where(leads, 0.0, np.maximum(0.0, lanes["ahead"][slots] + ahead_by))
        behind = np.where(leads, np.maximum(0.0, lanes["behind"][slots] - ahead_by), 0.0)
        retreats = lanes["retreats"][slots]
        enters = ~leads & (ahead > np.ldexp(self.enter, np.minimum(retreats, 60)))
        leaves = leads & (behind > self.leave)
        leads = (leads | enters) & ~leaves
        lanes["leads"][slots] = leads
        lanes["ahead"][slots], lanes["behind"][slots] = np.where(enters, 0.0, ahead), np.where(leaves, 0.0, behind)
        lanes["retreats"][slots] = retreats + leaves

        moves.live = np.where(leads, moves.live, untouched)
        lanes["live"][slots] = moves.live
        actions = Actions.keep(len(seen))
        for i in np.flatnonzero(moves.live != before).tolist():
            if enters[i] or leaves[i]:
                actions.kind[i] = ActionKind.RESTORE
                actions.reason[i] = "archive leads" if enters[i] else "archive lags"
            else:
                actions.kind[i], actions.reason[i] = routed.kind[i], routed.reason[i]
        actions.moves = moves
        return actions
