"""How large a state is, and how much of its rank is in use."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt
from torch import Tensor

from memory.lane_state import Column, Columns, Slots
from memory.spectral import largest_singular_value
from monitors.observations import Floats


class StateNormMonitor:
    """Frobenius norm and stable rank of each lane's state.

    `state_norm` is ‖S‖_F over all layers and heads of the lane. `stable_rank` is ‖S‖²_F / σ₁², the mean over
    heads: between 1 (one association) and R (all directions equally in use); 0 for a state of zeros. Since σ₁ is
    followed by power iteration from below (`memory.spectral`), the stable rank errs on the high side, and is cut off at
    R.

    Parameters
    ----------
    heads, rank
        H (layers times heads) and R.

    References
    ----------
    Rudelson and Vershynin: Sampling from large matrices, J. ACM 2007 (stable rank, there "numerical rank").
    """

    def __init__(self, heads: int, rank: int):
        self.rank = rank
        self.lanes = Columns({"direction": Column("float32", (heads, rank))})

    def measure(self, states: Tensor, slots: Slots, head_norms: npt.NDArray[np.float32]) -> tuple[Floats, Floats]:
        """Measure n lanes after a scan.

        Parameters
        ----------
        states
            `[S, H, R, R]` float32.
        slots
            `[n]` int64.
        head_norms
            `[n, H]`: the Frobenius norms that the scan gave.

        Returns
        -------
        tuple
            `state_norm` and `stable_rank`, `[n]` float64.
        """
        column = cast("npt.NDArray[np.float32]", self.lanes["direction"])
        directions = column[slots]
        sigma = largest_singular_value(states, slots, directions).astype(np.float64)
        column[slots] = directions
        norms = head_norms.astype(np.float64)
        zero = norms == 0
        rank = np.where(zero, 0.0, np.minimum((norms / np.where(zero, 1.0, sigma)) ** 2, self.rank))
        return np.sqrt((norms**2).sum(axis=1)), rank.mean(axis=1)
