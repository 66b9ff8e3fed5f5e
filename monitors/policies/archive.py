"""File the state when the topic changes, and take it up again when the topic comes back."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from memory.lane_state import Column, Columns, Slots
from monitors.observations import Flags, Floats, Observations
from monitors.policies.bank_observations import BankObservations
from monitors.policies.guard import ActionGuard
from monitors.policies.policy import ActionKind, Actions, Moves
from monitors.policies.topic_belief import TopicBelief


class ArchivePolicy(ActionGuard):
    """Keeps one state a topic. The event itself decides which: before it is written, every filed state predicts it.

    A lane has `most` filed states, one of which is in force, and two more: the newcomer, which began from zero with the
    first event that looked like nothing known, and the branch, a copy of the state in force that is written in its
    stead while events look as if they belonged nowhere. The belief over them (`TopicBelief`) needs neither an alarm nor
    a label:

    - it is over `certainty` for another filed state: the one in force stays filed as it was before this event, the
    other
      one is taken up, and the event is written into that one (`restore`);
    - it is over `certainty` for the newcomer: that is filed as a new topic, in the place of the one longest out of
    force
      if there is no room, and is in force (`reset`: what the lane held no longer answers);
    - it is over one half for "in passing": the lane goes on with the branch. If the topic turns out to go on, the
    branch is
      dropped with all that was written into it (`restore`, "in passing"), so that noise leaves no trace.

    A false alarm costs little: old and new are written side by side while there is doubt, and a filed state is one
    event away. Nothing crosses lanes.

    Parameters
    ----------
    most
        Filed states a lane, the one in force among them.
    certainty
        The belief at which to act.
    belief
        How the belief moves.
    begin
        What a newcomer begins as: zeros, the state in force times `begin_factor` (``decayed``), or `begin_factor` times
        the mean of the filed states (``mean``).
    begin_factor
        See there.
    cool_down, budget
        As in `ActionGuard`. There is no cool-down by default: going back at once
        is what makes an error cheap.

    References
    ----------
    J. Du et al., "MoM: linear sequence modeling with mixture-of-memories", arXiv 2502.13685: several states with a
    router.

    Examples
    --------
    >>> policy = ArchivePolicy(most=2)
    >>> lanes = policy.new_lanes()
    >>> lanes.resize(1)
    >>> def event(errors, likeness, held):
    ...     seen = BankObservations(np.array([0]), {}, {}, np.array([errors]), np.array([likeness]), np.array([held]))
    ...     actions = policy.decide(lanes, seen)
    ...     return ActionKind(actions.kind[0]).label, actions.moves.live.tolist()
    >>> nan = float("nan")
    >>> event([1.0, nan, nan, nan], [nan] * 4, [True, False, False, False])
    ('keep', [0])
    >>> event([0.3, nan, 1.0, nan], [0.4, nan, 0.0, nan], [True, False, True, False])
    ('keep', [0])
    >>> event([1.3, nan, 0.1, nan], [-0.4, nan, 0.9, nan], [True, False, True, False])
    ('reset', [1])
    >>> event([0.1, 1.3, 1.0, nan], [0.5, 0.0, 0.0, nan], [True, True, True, False])
    ('restore', [0])
    """

    policy: Literal["archive"] = "archive"
    most: int = Field(default=12, ge=1, le=1000)
    certainty: float = Field(default=0.6, ge=0.5, lt=1)
    belief: TopicBelief = TopicBelief()
    begin: Literal["zero", "decayed", "mean"] = "zero"
    begin_factor: float = Field(default=0.5, gt=0, le=1)
    cool_down: int = Field(default=0, ge=0)
    budget: int | None = Field(default=250, ge=0)

    shaping: ClassVar[frozenset[str]] = frozenset({"most", "begin"})
    heedless: ClassVar[bool] = True

    @property
    def ways(self) -> int:
        """The filed states, the newcomer and the branch, in this order."""
        return self.most + 2

    @property
    def newcomer(self) -> int:
        """The way after the filed ones."""
        return self.most

    def columns(self) -> dict[str, Column]:
        """Remember the belief, each state's last use, which is in force, which is the lane's own, and a branch."""
        return super().columns() | {
            "weight": Column("float64", (self.most + 2,)),
            "used_at": Column("int64", (self.most,), fill=-1),
            "in_force": Column("int64"),
            "branched": Column("bool"),
            "live": Column("int64"),
        }

    def decide(self, lanes: Columns, observations: Observations) -> Actions:
        """Choose the state in force. Without predictions (signals and alarms alone) every lane is kept as it is."""
        if not isinstance(observations, BankObservations):
            return Actions.keep(len(observations))
        actions, moves = self.route(lanes, observations)
        lanes["live"][observations.slots] = moves.live
        actions.moves = moves
        return actions

    def took_up(self, lanes: Columns, slot: int, way: int) -> None:
        """Be sure of that state."""
        lanes["weight"][slot] = np.eye(self.most + 2)[way]
        lanes["in_force"][slot] = lanes["live"][slot] = way
        lanes["branched"][slot] = False

    def route(self, lanes: Columns, seen: BankObservations) -> tuple[Actions, Moves]:
        """Move the belief, and return what to do where the archive is in charge of the lane's own state."""
        slots, n = seen.slots, len(seen)
        each, newcomer = np.arange(n), self.newcomer
        routed = slice(newcomer + 1)
        errors, likeness, held = seen.errors[:, routed], seen.likeness[:, routed], seen.held[:, routed]
        event: Slots = lanes["events"][slots]
        was: Slots = lanes["in_force"][slots]
        first = event == 0
        told = ~np.isnan(seen.errors).all(axis=1)  # an event without rows tells nothing
        weight = np.where(first[:, None], np.eye(newcomer + 2)[0], lanes["weight"][slots])
        belief, again = self.belief.step(weight, held, errors, likeness)
        belief = np.where((told & ~first)[:, None], belief, weight)
        best = belief[:, : newcomer + 1].argmax(axis=1)
        sure = belief[each, best] > self.certainty
        in_branch: Flags = lanes["branched"][slots]
        goes = (best != was) & sure & told
        passed = in_branch & told & (belief[:, -1] < 0.5)
        admitted = self.admit(lanes, slots, goes | passed)
        moved = goes & admitted
        new = moved & (best == newcomer)
        used_at = lanes["used_at"][slots]
        put = np.full(n, -1, np.int64)
        if new.any():
            # The first way that holds nothing, else the one longest out of force; the one in force if it is alone.
            age = np.where(held[:, :newcomer], used_at, -2)
            age[each, was] = np.iinfo(np.int64).max
            put[new] = age.argmin(axis=1)[new]
            belief[each[new], put[new]] = belief[new, newcomer]
            belief[new, newcomer] = 0
            belief[new] /= belief[new].sum(axis=1, keepdims=True)  # of those alone: other lanes keep their bits
        now = np.where(new, put, np.where(moved, best, was))
        used_at[each, now] = event
        dropped = passed & admitted & ~moved
        branched = ~moved & ~dropped & (in_branch | (told & (belief[:, -1] >= 0.5)))
        branch = np.where(branched & ~in_branch, was, -1)

        live = np.where(branched, newcomer + 1, now)
        write = np.zeros((n, self.ways), np.bool_)
        write[each, np.where(new, newcomer, live)] = told
        write[:, newcomer] = told
        lanes["weight"][slots], lanes["used_at"][slots], lanes["in_force"][slots] = belief, used_at, now
        lanes["branched"][slots] = branched
        actions = Actions.keep(n)
        actions.kind[moved | dropped] = ActionKind.RESTORE
        actions.kind[new] = ActionKind.RESET
        for i in np.flatnonzero(moved | dropped).tolist():
            actions.reason[i] = (
                "new topic" if new[i] else "in passing" if dropped[i] else f"topic {int(now[i])} returned"
            )
        restart = (again | first) & told
        moves = Moves(restart=restart, branch=branch, write=write, put=put, live=live)
        if self.begin != "zero":
            moves.begin = self._beginnings(was, held[:, :newcomer])
        return actions, moves

    def _beginnings(self, was: Slots, held: Flags) -> Floats:
        """Return how much of each way a newcomer begins with, `[n, W]`."""
        shares = np.zeros((len(was), self.ways))
        if self.begin == "decayed":
            shares[np.arange(len(was)), was] = self.begin_factor
        else:
            count = np.maximum(held.sum(axis=1), 1)
            shares[:, : self.newcomer] = held * (self.begin_factor / count)[:, None]
        return shares
