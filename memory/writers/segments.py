"""What events write, ready to be written to any states: the lanes' own, filed ones, zeros."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from memory.lane_state import Slots
from memory.scan_forms import ScanResult, scan


@dataclass(frozen=True, slots=True)
class Segments:
    """What n lanes write in one round.

    Attributes
    ----------
    index
        `[n]` int64: which segment each lane writes; several may write the same.
    bounds
        `[G + 1]` int64: segment g is the rows `bounds[g]:bounds[g + 1]`.
    q, k, v, beta, lam
        `[T, H, R]` float32 (beta and lam also `[T, H, 1]`, lam may be None), as `memory.scan` takes them.
    mask
        `[T]` bool: rows that are not written where False; None: all are.
    """

    index: Slots
    bounds: npt.NDArray[np.int64]
    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    lam: Tensor | None = None
    mask: Tensor | None = None

    def scan(self, states: Tensor, slots: Slots, mode: str, lanes: Slots | None = None) -> ScanResult:
        """Write into the rows `slots` of `states`: of all lanes, or of these `lanes` (indices into `index`)."""
        index = self.index if lanes is None else self.index[lanes]
        return scan(
            states,
            torch.from_numpy(slots),
            torch.from_numpy(index),
            torch.from_numpy(self.bounds),
            self.q,
            self.k,
            self.v,
            self.beta,
            self.lam,
            mode=mode,
            token_mask=self.mask,
            want_reads=False,
        )
