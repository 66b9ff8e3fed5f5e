"""Advance lanes by one event each under a policy: predict, write, decide, act. Everything that runs a policy runs this.

The caller writes the events itself, with `memory.scan`, and measures what it likes in between:

    before = runner.before(states, slots, written, embeddings)     what can be known only before the write
    result = written.scan(states, slots, mode)                     the caller's own write and signals
    actions = runner.after(states, slots, written, before, observations)

`after` decides, and puts into `states` what the action makes of them. A lane's numbers depend on its own events alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from memory.blend import blend, step_from
from memory.lane_state import LaneState, Slots
from memory.naive_scan import sum_last
from memory.predict import prediction_errors
from memory.writers.segments import Segments
from monitors.filed_states import FiledStates
from monitors.observations import Floats, Observations
from monitors.policies.bank_observations import BankObservations
from monitors.policies.policy import Actions, Moves, Policy


@dataclass(frozen=True, slots=True)
class Before:
    """What was true before the write.

    Attributes
    ----------
    states
        `[n, H, R, R]`: a copy of the lanes' own states; None where nothing asks for it.
    errors, likeness
        `[n, W]` float64: see `BankObservations`.
    embeddings
        `[n, D]` float32, centred.
    miss, keys
        `[n, H, R]` float32: see `BankObservations`.
    """

    states: Tensor | None = None
    errors: Floats | None = None
    likeness: Floats | None = None
    embeddings: npt.NDArray[np.float32] | None = None
    miss: npt.NDArray[np.float32] | None = None
    keys: npt.NDArray[np.float32] | None = None


class PolicyRunner:
    """A policy, what it remembers of each lane, and the states that it keeps besides the lanes' own.

    Parameters
    ----------
    policy
        Decides.
    heads, rank
        H (layers times heads) and R.
    dim
        D, the width of the embeddings.
    mode
        The delta rule's mode.
    mean
        `[D]` float32, subtracted from embeddings before they are compared; None: nothing.
    device
        Where the states lie.

    Examples
    --------
    Two events of one lane, under a policy that weakens what was there before each.

    >>> from monitors.policies import DecayPolicy
    >>> runner = PolicyRunner(DecayPolicy(factor=0.5), heads=1, rank=2, dim=3, mode="plain")
    >>> runner.resize(1)
    >>> states, lane = torch.zeros(1, 1, 2, 2), np.array([0])
    >>> for row in torch.eye(2)[:, None, None]:
    ...     written = Segments(lane, np.array([0, 1]), row, row, row, torch.ones(1, 1, 1))
    ...     before = runner.before(states, lane, written, np.zeros((1, 3), np.float32))
    ...     _ = written.scan(states, lane, "plain")
    ...     actions = runner.after(states, lane, written, before, Observations(lane, {}))
    >>> states[0, 0].tolist()
    [[0.5, 0.0], [0.0, 1.0]]
    """

    def __init__(
        self,
        policy: Policy,
        *,
        heads: int,
        rank: int,
        dim: int,
        mode: str,
        mean: npt.NDArray[np.float32] | None = None,
        device: torch.device | str = "cpu",
    ):
        self.policy, self.mode, self.mean = policy, mode, mean
        self.lanes = policy.new_lanes()
        self.filed = FiledStates(policy.ways, heads, rank, dim, device) if policy.ways else None

    @property
    def beside(self) -> dict[str, LaneState]:
        """What is kept for each lane: to be grown, cleared, spilled and stored with its state."""
        return {"policy": self.lanes} | ({"filed": self.filed} if self.filed is not None else {})

    def resize(self, capacity: int) -> None:
        """Make room for `capacity` lanes, where no pool does it."""
        for part in self.beside.values():
            part.resize(capacity)

    def before(self, states: Tensor, slots: Slots, written: Segments, embeddings: npt.NDArray[np.float32]) -> Before:
        """Ask what must be asked before the events are written.

        Parameters
        ----------
        states
            `[S, H, R, R]` float32: the lanes' own states.
        slots
            `[n]` int64: the lanes, all different.
        written
            What each of them is about to write.
        embeddings
            `[n, D]` float32; zeros or NaN where there is none.
        """
        if self.filed is None:
            old = self._copy(states, slots) if self.policy.undoes_writes else None
            if old is None or not self.policy.learns_gates:
                return Before(old)
            keys, values = _means(written, written.k), _means(written, written.v)
            miss = values - sum_last(old * keys[..., None, :])
            return Before(old, miss=miss.cpu().numpy(), keys=keys.cpu().numpy())
        filed, live = self.filed, self.lanes["live"][slots]
        filed.hold(slots, np.asarray(live))
        starts, lengths = written.bounds[written.index], np.diff(written.bounds)[written.index]
        places = filed.places[slots].copy()
        each = np.arange(len(slots))
        places[each, live] = -1  # the lane's own state lies in `states`
        rows = (starts, lengths, written.k, written.v, written.mask)
        errors = prediction_errors(filed.states, places, *rows)
        errors[each, live] = prediction_errors(states, slots[:, None], *rows)[:, 0]
        centred = embeddings if self.mean is None else (embeddings - self.mean).astype(np.float32)
        return Before(self._copy(states, slots), errors, filed.likeness(slots, centred), centred)

    def after(
        self, states: Tensor, slots: Slots, written: Segments, before: Before, observations: Observations
    ) -> Actions:
        """Decide, and act on what the events left in `states`.

        Parameters
        ----------
        states, slots, written
            As in `before`; `states` after the write.
        before
            What `before` returned.
        observations
            Signals and alarms of these lanes, in the order of `slots`.
        """
        if self.filed is None:
            if before.miss is not None and before.keys is not None:
                observations = BankObservations(
                    slots, observations.signals, observations.alarms, miss=before.miss, keys=before.keys
                )
            actions = self.policy.decide(self.lanes, observations)
            self._scale(states, slots, written, before, actions)
            return actions
        assert before.states is not None
        assert before.embeddings is not None
        assert before.errors is not None
        assert before.likeness is not None
        live = self.lanes["live"][slots].copy()
        held = self.filed.places[slots] >= 0
        seen = BankObservations(slots, observations.signals, observations.alarms, before.errors, before.likeness, held)
        actions = self.policy.decide(self.lanes, seen)
        assert actions.moves is not None
        self._move(states, slots, written, before.states, live, actions.moves)
        self._learn(slots, actions.moves, before.embeddings)
        return actions

    def filed_ways(self, slot: int) -> list[int]:
        """Return the ways that a topic of this lane is filed under, the one in force among them."""
        if self.filed is None:
            return []
        return [int(way) for way in np.flatnonzero(self.filed.places[slot, : self.policy.newcomer] >= 0)]

    def take_up(self, states: Tensor, slot: int, way: int) -> None:
        """Make a filed state the lane's own, and file that one in its place, as somebody outside of the policy asks.

        Raises
        ------
        ValueError
            Nothing is filed there.
        """
        if way not in self.filed_ways(slot):
            filed = ", ".join(map(str, self.filed_ways(slot))) or "none"
            raise ValueError(f"expected the number of a filed topic ({filed}), got {way}")
        assert self.filed is not None
        filed_states, places = self.filed.states, self.filed.places[slot]
        live = int(self.lanes["live"][slot])
        if live != way:
            filed_states[int(places[live])] = states[slot]
            states[slot] = filed_states[int(places[way])]
        self.policy.took_up(self.lanes, slot, way)

    def _copy(self, states: Tensor, slots: Slots) -> Tensor:
        return states[torch.from_numpy(slots).to(states.device)]

    def _scale(self, states: Tensor, slots: Slots, written: Segments, before: Before, actions: Actions) -> None:
        """Scale what the lanes held before this event, or take back what the event wrote.

        The rule is affine in the state, so with S∅ the state that the event alone would have made of zeros, the event's
        write on f·S is f·S' + (1 − f)·S∅, where S' is its write on S.
        """
        acting = np.flatnonzero(actions.factor != 1)
        if len(acting):
            # Lanes that write the same event share one S∅. A reset forgets even what is not finite.
            _, first, rows = np.unique(written.index[acting], return_index=True, return_inverse=True)
            alone = torch.zeros((len(first), *states.shape[1:]), device=states.device)
            written.scan(alone, np.arange(len(first)), self.mode, acting[first])
            blend(states, slots[acting], actions.factor[acting], alone, rows)
        if actions.gain is not None:
            assert before.states is not None
            changed = np.flatnonzero(actions.gain != 1)
            step_from(states, slots[changed], actions.gain[changed], before.states, changed)

    def _at(self, states: Tensor, rows: Slots) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(rows)).to(states.device)

    def _move(self, states: Tensor, slots: Slots, written: Segments, old: Tensor, live: Slots, moves: Moves) -> None:
        """Write into the ways that are not the lane's own state; exchange that one where another way is to be it."""
        assert self.filed is not None
        filed, newcomer = self.filed, self.policy.newcomer
        lane, way = np.nonzero(moves.write)
        filed.hold(slots[lane], way)
        again = np.flatnonzero(moves.restart)
        if len(again):
            place = filed.places[slots[again], newcomer]
            filed.states[self._at(filed.states, place)] = self._beginning(slots, again, old, live, moves)
            filed.centroids[place] = 0
        # Where the lane's own state stays what it is, the caller has written it; elsewhere all ways are written here.
        changed = (moves.live != live) | (moves.put == live)
        if changed.any():
            i = np.flatnonzero(changed)
            place = filed.places[slots[i], live[i]]
            filed.states[self._at(filed.states, place)] = old[self._at(old, i)]
        split = np.flatnonzero(moves.branch >= 0)
        if len(split):
            place = filed.places[slots[split], newcomer + 1]
            from_own = moves.branch[split] == live[split]
            source = filed.places[slots[split], moves.branch[split]]
            copied = filed.states[self._at(filed.states, source)]
            copied[self._at(copied, np.flatnonzero(from_own))] = old[self._at(old, split[from_own])]
            filed.states[self._at(filed.states, place)] = copied
        keep = changed[lane] | (way != live[lane])
        lane, way = lane[keep], way[keep]
        written.scan(filed.states, filed.places[slots[lane], way], self.mode, lane)
        put = np.flatnonzero(moves.put >= 0)
        if len(put):
            filed.hold(slots[put], moves.put[put])
            at, to = slots[put], moves.put[put]
            place = filed.places[at, to].copy()
            filed.places[at, to] = filed.places[at, newcomer]
            filed.places[at, newcomer] = place
        if changed.any():
            i = np.flatnonzero(changed)
            place = filed.places[slots[i], moves.live[i]]
            states[self._at(states, slots[i])] = filed.states[self._at(filed.states, place)]

    def _beginning(self, slots: Slots, lanes: Slots, old: Tensor, live: Slots, moves: Moves) -> Tensor:
        """Return what the newcomers of these lanes begin as, `[m, H, R, R]`."""
        assert self.filed is not None
        begun = torch.zeros_like(old[: len(lanes)])
        if moves.begin is None:
            return begun
        for row, lane in enumerate(lanes.tolist()):
            for way in np.flatnonzero(moves.begin[lane]).tolist():
                own = way == live[lane]
                state = old[lane] if own else self.filed.states[int(self.filed.places[slots[lane], way])]
                begun[row] += np.float32(moves.begin[lane, way]).item() * state
        return begun

    def _learn(self, slots: Slots, moves: Moves, embeddings: npt.NDArray[np.float32]) -> None:
        """Take the events' embeddings into the centroids of the ways that they were written into."""
        assert self.filed is not None
        newcomer = self.policy.newcomer
        write = moves.write[:, : newcomer + 1].copy()
        put = np.flatnonzero(moves.put >= 0)
        write[put, newcomer] = False  # its centroid went with it
        write[put, moves.put[put]] = True
        lane, way = np.nonzero(write)
        self.filed.learn(slots[lane], way, embeddings[lane])


def _means(written: Segments, rows: Tensor) -> Tensor:
    """Mean of each lane's rows, `[n, H, R]`; NaN for a lane that writes nothing."""
    starts, counts = written.bounds[written.index], np.diff(written.bounds)[written.index]
    if (counts == 1).all():
        picked = rows[torch.from_numpy(starts).to(rows.device)]
        if written.mask is None:
            return picked
    means = []
    for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
        part = rows[start : start + count]
        if written.mask is not None:
            part = part[written.mask[start : start + count]]
        means.append(sum_last(part.movedim(0, -1)) / len(part) if len(part) else rows.new_full(rows.shape[1:], np.nan))
    return torch.stack(means)
