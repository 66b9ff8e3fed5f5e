"""Lanes with several states each: policies that file states away, as one pool of states that lanes share.

A state is what was written to it, in order, from a state of zeros. Policies that differ in their settings write the
same events into the same states most of the time, and a filed state stays as it is for as long as its topic is away. So
each state is kept once, however many lanes hold it; it is asked once for each event, and its successor by an event is
made once. What the lanes differ in is which states they hold: small integers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from memory.lane_state import Slots
from memory.predict import prediction_errors
from monitors.filed_states import cosines, of_length_one
from monitors.observations import Floats, Observations
from monitors.policies import Actions, BankObservations, Policy
from monitors.policies.policy import Moves
from stream.many.loaded_tape import LoadedStream
from stream.many.shared_rows import NONE, ZERO, SharedRows
from stream.tape.format import TapeHead


class SharedStates:
    """The states of n lanes under a stacked policy with ways. What it does to a lane is what `PolicyRunner` does.

    Parameters and use as those of `OwnStates`.
    """

    def __init__(self, policy: Policy, head: TapeHead, lanes: int):
        heads = head.layers * head.heads
        self.policy, self.mode = policy, head.mode
        self.mean = None if head.mean is None else np.array(head.mean, np.float32)
        self.lanes = policy.new_lanes()
        self.lanes.resize(lanes)
        self._each: Slots = np.arange(lanes)
        self._states, self._centroids = SharedRows((heads, head.rank, head.rank)), SharedRows((head.dim,))
        self._place = np.full((lanes, policy.ways), NONE)  # [n, W]: where each way's state lies
        self._centroid = np.full((lanes, policy.ways), ZERO)  # [n, W]: and its centroid
        self._live: Slots = self.lanes["live"].copy()
        self._place[self._each, self._live] = ZERO
        self.rows: Slots = self._place[self._each, self._live]
        self._next = np.zeros(0, np.int64)  # place → that of the state that the event makes of it, where made
        self._at: tuple[LoadedStream, int] | None = None

    @property
    def states(self) -> Tensor:
        """`[S, N, R, R]` float32, shared by the lanes."""
        return torch.from_numpy(self._states.numbers)

    def ask(self, stream: LoadedStream, event: int) -> Floats:
        """Return the prediction error of each lane's own state on what an event wrote, `[n]` float64."""
        return self._predictions(stream, event, self.rows)

    def write(self, stream: LoadedStream, event: int) -> tuple[Floats, npt.NDArray[np.float32]]:
        """Write an event to the lanes' own states; return the write error and the norms after it, `[n, N]`."""
        self._at = stream, event
        self._next = np.full(len(self._states.numbers) + 1, NONE)
        live = self._states.distinct(self.rows)
        error, norm = self._advance(live)
        errors, norms = (self._states.by_place(live, numbers, np.nan) for numbers in (error, norm))
        before, self.rows = self.rows, self._next[self.rows]
        return errors[before].astype(np.float64), norms[before]

    def after(self, observations: Observations) -> Actions:
        """Let the policy decide, and act."""
        assert self._at is not None
        stream, event = self._at
        errors = self._predictions(stream, event, self._place)
        centred = stream.embeddings[event]
        centred = centred if self.mean is None else (centred - self.mean).astype(np.float32)
        seen = BankObservations(
            observations.slots, observations.signals, observations.alarms,
            errors, self._likeness(centred), self._place != NONE,
        )  # fmt: skip
        actions = self.policy.decide(self.lanes, seen)
        assert actions.moves is not None
        self._move(actions.moves, told=bool(stream.writes[event]))
        self._learn(actions.moves, centred)
        self._live = actions.moves.live
        self.rows = self._place[self._each, self._live]
        self._states.release_all_but(self._place)
        self._centroids.release_all_but(self._centroid)
        return actions

    def _predictions(self, stream: LoadedStream, event: int, places: Slots) -> Floats:
        asked = self._states.distinct(places)
        n = len(asked)
        starts, lengths = np.full(n, stream.bounds[event]), np.full(n, stream.writes[event])
        errors = prediction_errors(self.states, asked[:, None], starts, lengths, stream.k, stream.v)[:, 0]
        found: Floats = self._states.by_place(asked, errors, np.nan)[places]
        return found

    def _likeness(self, embedding: npt.NDArray[np.float32]) -> Floats:
        asked = self._centroids.distinct(self._centroid)
        numbers = cosines(asked[:, None], self._centroids.numbers, embedding[None], np.zeros(len(asked), np.int64))
        found: Floats = self._centroids.by_place(asked, numbers[:, 0], np.nan)[self._centroid]
        return found

    def _advance(self, places: Slots) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Make the successors of these states; return the write errors and the norms after, `[m, N]`."""
        assert self._at is not None
        stream, event = self._at
        made = self._states.copied(places)
        self._next[places] = made
        result = stream.segment(event, len(made)).scan(self.states, made, self.mode)
        return result.mean_write_error.numpy(), result.state_norm.numpy()

    def _move(self, moves: Moves, *, told: bool) -> None:
        """Do to the ways what `PolicyRunner` does; `told`: the event has rows."""
        place, centroid, newcomer, each = self._place, self._centroid, self.policy.newcomer, self._each
        write = moves.write.copy()
        kept = (moves.live == self._live) & (moves.put != self._live)  # their own state is written whatever is moved
        write[each[kept], self._live[kept]] = told
        place[write & (place == NONE)] = ZERO
        again = np.flatnonzero(moves.restart)
        begun = ZERO if moves.begin is None else self._begun(again, moves.begin[again])
        place[again, newcomer], centroid[again, newcomer] = begun, ZERO
        split = np.flatnonzero(moves.branch >= 0)
        place[split, newcomer + 1] = place[split, moves.branch[split]]
        if told:
            written = place[write]
            fresh = self._states.distinct(written)
            fresh = fresh[self._next[fresh] == NONE]
            if len(fresh):
                self._advance(fresh)
            place[write] = self._next[written]
        put = np.flatnonzero(moves.put >= 0)
        to = moves.put[put]
        old = np.where(place[put, to] == NONE, ZERO, place[put, to])
        place[put, to], place[put, newcomer] = place[put, newcomer], old
        centroid[put, to], centroid[put, newcomer] = centroid[put, newcomer], centroid[put, to]

    def _begun(self, lanes: Slots, shares: Floats) -> Slots:
        """Return the places of what the newcomers of these lanes begin as."""
        places = self._place[lanes]
        new = self._states.mixed(np.where(places == NONE, ZERO, places), shares)
        grown = len(self._states.numbers) + 1 - len(self._next)
        self._next = np.concatenate([self._next, np.full(grown, NONE)])
        return new

    def _learn(self, moves: Moves, embedding: npt.NDArray[np.float32]) -> None:
        """Take the event's embedding into the centroids of the ways that it was written into."""
        good, unit = of_length_one(embedding[None])
        if not good[0]:
            return
        newcomer = self.policy.newcomer
        write = np.zeros(self._centroid.shape, np.bool_)
        write[:, : newcomer + 1] = moves.write[:, : newcomer + 1]
        put = np.flatnonzero(moves.put >= 0)
        write[put, newcomer], write[put, moves.put[put]] = False, True  # its centroid went with it
        learning = self._centroid[write]
        before = self._centroids.distinct(learning)
        made = self._centroids.copied(before)
        self._centroids.numbers[made] += unit[0]
        self._centroid[write] = self._centroids.by_place(before, made, NONE)[learning]
