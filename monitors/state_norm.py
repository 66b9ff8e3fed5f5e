"""How large a state is, how much of its rank is in use, and how far it is from what its gates and values allow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
from torch import Tensor

from memory.lane_state import Column, Columns, Slots
from memory.spectral import largest_singular_value
from monitors.observations import Flags, Floats
from monitors.turns import due

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StateNorms:
    """The states of n lanes, measured: each head alone, and the lane as a whole. H is layers times heads.

    A head that is not finite is NaN in every number, and so is its lane: never a healthy number.

    Attributes
    ----------
    frobenius
        `[n, H]` float64: ‖S‖_F.
    sigma
        `[n, H]` float64: the largest singular value, from below; as of the lane's last turn.
    rank
        `[n, H]` float64: ‖S‖²_F / σ₁², between 1 and R; 0 for a state of zeros; as of the lane's last turn.
    saturation
        `[n, H]` float64: ‖S‖_F over what gates and values allow (`memory.reach`); 0 for a state of zeros, NaN
        where nothing is known of the writes.
    """

    frobenius: Floats
    sigma: Floats
    rank: Floats
    saturation: Floats

    @property
    def state_norm(self) -> Floats:
        """‖S‖_F over all heads, `[n]`."""
        return cast("Floats", np.sqrt((self.frobenius**2).sum(axis=1)))

    @property
    def stable_rank(self) -> Floats:
        """The mean over heads, `[n]`."""
        return cast("Floats", self.rank.mean(axis=1))

    @property
    def largest_singular_value(self) -> Floats:
        """The largest over heads, `[n]`; NaN if any is NaN."""
        return cast("Floats", self.sigma.max(axis=1))

    @property
    def most_saturated(self) -> Floats:
        """The largest saturation over heads, `[n]`; NaN if any is NaN."""
        return cast("Floats", self.saturation.max(axis=1))

    @property
    def sick(self) -> Flags:
        """Lanes with a head that is not finite, `[n]` bool."""
        return cast("Flags", ~np.isfinite(self.frobenius).all(axis=1))


class StateNormMonitor:
    """Frobenius norm, largest singular value, stable rank and saturation of each lane's states.

    σ₁ is followed by power iteration from below (`memory.spectral`), so the stable rank errs on the high side, and is
    cut off at R.

    Parameters
    ----------
    heads, rank
        H (layers times heads) and R.
    every
        σ₁ is looked for on one event in so many (`monitors.turns`); in between, it and the stable rank are those of the
        last turn. Norm and saturation are always those of now. 1: on every call.
    row_gates
        Whether the rows of a head have gates of their own, so that `allow` gets a number for each row.

    References
    ----------
    Rudelson and Vershynin: Sampling from large matrices, J. ACM 2007 (stable rank, there "numerical rank").

    Examples
    --------
    Two associations of unlike strength, where writes so far allow a norm of 2:

    >>> import torch
    >>> monitor = StateNormMonitor(1, 2)
    >>> monitor.lanes.resize(1)
    >>> state, lane = torch.tensor([[[[1.0, 0.0], [0.0, 0.5]]]]), np.array([0])
    >>> monitor.allow(lane, np.array([[[4.0]]]))
    >>> seen = monitor.look(state, lane, np.array([[1.25**0.5]], np.float32))
    >>> seen.sigma.round(4).tolist(), seen.stable_rank.round(3).tolist(), seen.saturation.round(3).tolist()
    ([[1.0]], [1.25], [[0.559]])
    """

    def __init__(self, heads: int, rank: int, *, every: int = 1, row_gates: bool = False):
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.rank, self.every = rank, every
        self.lanes = Columns(
            {
                "direction": Column("float32", (heads, rank)),
                "sigma": Column("float32", (heads,)),
                "rank": Column("float32", (heads,)),
                "reach": Column("float32", (heads, rank if row_gates else 1)),
                "events": Column("int64"),
            }
        )

    def allow(self, slots: Slots, reach: npt.NDArray[np.float32] | Floats) -> None:
        """Take in what the lanes' new writes allow.

        Parameters
        ----------
        slots
            `[n]` int64, all different.
        reach
            `[n, H, 1]`, or `[n, H, R]` with `row_gates`: `memory.reach.write_reach`, the largest of each lane's
            writes.
        """
        column = cast("Vectors", self.lanes["reach"])
        column[slots] = np.maximum(column[slots], reach)

    def start_over(self, slots: Slots) -> None:
        """Forget what was seen of these lanes' states: they were cleared, or replaced by others.

        What their writes allow stays: it still bounds what the last event wrote.
        """
        for name in ("direction", "events"):
            self.lanes[name][slots] = 0

    def look(self, states: Tensor, slots: Slots, head_norms: Vectors, rows: Slots | None = None) -> StateNorms:
        """Measure n lanes after a scan.

        Parameters
        ----------
        states
            `[S, H, R, R]` float32.
        slots
            `[n]` int64, all different.
        head_norms
            `[n, H]`: the Frobenius norms that the scan gave.
        rows
            `[n]` int64: where in `states` each lane's state is; None: at its slot.

        Returns
        -------
        StateNorms
        """
        lanes, norms = self.lanes, head_norms.astype(np.float64)
        turn = np.ones(len(slots), np.bool_)
        if self.every > 1:
            events = lanes["events"][slots] + 1
            lanes["events"][slots] = events
            turn = due(events, self.every)
        at = slots if turn.all() else slots[turn]
        if len(at):
            directions = cast("Vectors", lanes["direction"])[at]
            place = slots if rows is None else rows
            found = largest_singular_value(states, place if turn.all() else place[turn], directions)
            now, zero = norms[turn], norms[turn] == 0
            lanes["direction"][at], lanes["sigma"][at] = directions, found
            lanes["rank"][at] = np.where(
                zero, 0.0, np.minimum((now / np.where(zero, 1.0, found.astype(np.float64))) ** 2, self.rank)
            )
        sigma, rank = lanes["sigma"][slots].astype(np.float64), lanes["rank"][slots].astype(np.float64)
        allowed = np.sqrt(lanes["reach"][slots].sum(axis=2, dtype=np.float64))
        known = (allowed > 0) & np.isfinite(allowed)
        saturation = np.where(norms == 0, 0.0, np.where(known, norms / np.where(known, allowed, 1.0), np.nan))
        sick = ~np.isfinite(norms)
        if sick.any():
            norms[sick & np.isinf(norms)] = np.nan
            for numbers in (sigma, rank, saturation):
                numbers[sick] = np.nan
        return StateNorms(norms, sigma, rank, saturation)

    def measure(self, states: Tensor, slots: Slots, head_norms: Vectors) -> tuple[Floats, Floats]:
        """Return `state_norm` and `stable_rank` of `look`, `[n]` float64 each."""
        seen = self.look(states, slots, head_norms)
        return seen.state_norm, seen.stable_rank
