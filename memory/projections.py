r"""From hidden states to keys, values and gates, where there is no trained adapter.

One seeded matrix with orthonormal rows gives every head its key and value directions:

    x' = x − μ;   k = P_k x' / ‖P_k x'‖;   q = k;   v = P_v x' / ‖P_v x'‖;   β = σ(b + g · P_β x' / ‖x'‖)

The query map is the key map: nothing was trained that could bring two different ones together, and what was said in
similar words should be found again. Rows of P_k and P_v are orthogonal to each other, so that as little as possible
of the value can be guessed from the key by a fixed linear map. μ is the backbone's mean hidden state (zero for
hashing): without it, all of a transformer's hidden states point the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FEWEST_ROWS = 16
"""Matrix libraries change the order of sums below this many rows (see MiniLMBackbone); fewer are padded."""


@dataclass(frozen=True, slots=True)
class Projected:
    """M rows of hidden states as the scan takes them: q, k, v `[M, H, R]`, beta and lam `[M, H, R]`; lam may be
    None."""

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    lam: Tensor | None


class Projections:
    """Seeded orthonormal projections to q, k, v and gates.

    Parameters
    ----------
    dim
        D, the width of a hidden state; at least 2 · heads · rank.
    heads, rank
        H (layers times heads) and R.
    beta
        β where the input has no say: b = logit(β). In (0, 1], or 0 to write nothing.
    gain
        g, how far the input moves the gate's logit; 0 makes the gate constant.
    lam
        The retention gate, in [0, 1], or None where the mode has none of its own.
    mean
        μ, `[D]` float32, or None for zero.
    seed
        Chooses the directions.
    device
        Where they live.

    Examples
    --------
    >>> project = Projections(8, 1, 2, beta=0.5, seed=0)
    >>> out = project(torch.randn(3, 8))
    >>> out.k.shape, torch.allclose(out.k.norm(dim=-1), torch.ones(3, 1)), float(out.beta[0, 0, 0])
    (torch.Size([3, 1, 2]), True, 0.5)
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        rank: int,
        *,
        beta: float,
        gain: float = 0.0,
        lam: float | None = None,
        mean: npt.NDArray[np.float32] | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ):
        if 2 * heads * rank > dim:
            raise ValueError(
                f"{heads} head(s) of rank {rank} need {2 * heads * rank} directions, but the hidden states have only "
                f"{dim}: choose a rank of at most {dim // (2 * heads)}"
            )
        if not 0 <= beta <= 1:
            raise ValueError(f"beta must lie in [0, 1], got {beta}")
        self.heads, self.rank, self.beta, self.gain, self.lam = heads, rank, beta, gain, lam
        self.seed = seed
        normal = np.random.Generator(np.random.Philox(key=seed)).standard_normal
        rows = np.linalg.qr(normal((dim, 2 * heads * rank)))[0].T
        if gain:
            rows = np.concatenate([rows, np.linalg.qr(normal((dim, heads * rank)))[0].T])
        self.weight = torch.from_numpy(np.ascontiguousarray(rows, np.float32)).to(device)
        self.mean = None if mean is None else torch.from_numpy(np.asarray(mean, np.float32)).to(device)

    def __call__(self, hidden: Tensor) -> Projected:
        """Project `[M, D]` float32 hidden states."""
        rows = len(hidden)
        x = hidden if self.mean is None else hidden - self.mean
        if rows < FEWEST_ROWS:
            x = torch.nn.functional.pad(x, (0, 0, 0, FEWEST_ROWS - rows))
        flat = torch.nn.functional.linear(x, self.weight)[:rows]
        shape = (rows, self.heads, self.rank)
        width = self.heads * self.rank
        k = torch.nn.functional.normalize(flat[:, :width].reshape(shape), dim=-1)
        v = torch.nn.functional.normalize(flat[:, width : 2 * width].reshape(shape), dim=-1)
        if self.gain:
            length = x[:rows].norm(dim=-1, keepdim=True).clamp_min(1e-12)
            logit = float(np.log(self.beta) - np.log1p(-self.beta))
            moved = logit + self.gain * flat[:, 2 * width :] / length
            # torch.sigmoid rounds the last few numbers of a tensor otherwise than the rest; exp does not.
            beta = (1 / (1 + torch.exp(-moved))).reshape(shape)
        else:
            beta = k.new_full((1, 1, 1), self.beta).expand(rows, self.heads, 1)
        lam = None if self.lam is None else k.new_full((1, 1, 1), self.lam).expand(rows, self.heads, 1)
        return Projected(k, k, v, beta, lam)
