"""Learn how much to write from whether successive mistakes point the same way."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from memory.lane_state import Column, Columns
from monitors.observations import Floats, Observations
from monitors.policies.bank_observations import BankObservations
from monitors.policies.policy import Actions, Policy


class AdaptiveGatesPolicy(Policy):
    r"""Scales each event's write by a gain g of the lane, learnt by hypergradient descent on the prediction error.

    Writing k, v with gate β is a step of size β down the gradient −(v − S k) kᵀ of ½‖v − S k‖². Baydin's rule moves the
    logarithm of the step by the product of two successive gradients, here of their directions::

        log g ← log g + step · cos(m_t, m_{t−1}) cos(k_t, k_{t−1})        least ≤ g ≤ most

    with m = v − S k before the write. The write becomes S ← S + g (S' − S), with S' what the rule alone would have
    made: in mode plain that is gate gβ; in the others the retention moves with it.

    Parameters
    ----------
    step
        How fast g is learnt.
    least, most
        Its bounds. `most` times β should stay at or under 1.
    heads, rank
        H and R of the memory: how many numbers of the last event are kept.

    References
    ----------
    A. G. Baydin, R. Cornish, D. Martínez Rubio, M. Schmidt, F. Wood, "Online learning rate adaptation with
    hypergradient descent", ICLR 2018, eq. 8 (the multiplicative rule).

    Examples
    --------
    The same mistake twice: the second write is stronger.

    >>> policy = AdaptiveGatesPolicy(heads=1, rank=2, step=0.1, most=2)
    >>> lanes = policy.new_lanes()
    >>> lanes.resize(1)
    >>> one = np.ones((1, 1, 2), np.float32)
    >>> for _ in range(2):
    ...     print(policy.decide(lanes, BankObservations(np.array([0]), {}, miss=one, keys=one)).gain.round(3).tolist())
    [1.0]
    [1.105]
    """

    policy: Literal["adaptive_gates"] = "adaptive_gates"
    step: float = Field(default=0.05, ge=0, allow_inf_nan=False)
    least: float = Field(default=0.2, gt=0, le=1)
    most: float = Field(default=1.5, ge=1, allow_inf_nan=False)
    heads: int = Field(default=1, ge=1)
    rank: int = Field(default=64, ge=1)

    undoes_writes: ClassVar[bool] = True
    learns_gates: ClassVar[bool] = True
    shaping: ClassVar[frozenset[str]] = frozenset({"heads", "rank"})
    heedless: ClassVar[bool] = True

    def fitted(self, heads: int, rank: int) -> AdaptiveGatesPolicy:
        """Return the same for states `[H, R, R]`."""
        return self.model_copy(update={"heads": heads, "rank": rank})

    def columns(self) -> dict[str, Column]:
        """Remember g, and the last event's mistake and key."""
        pair = (self.heads, self.rank)
        return {"gain": Column("float64", fill=1), "miss": Column("float32", pair), "key": Column("float32", pair)}

    def decide(self, lanes: Columns, observations: Observations) -> Actions:
        """Learn the gains, and hand them out. Nothing is learnt from what is not finite."""
        actions = Actions.keep(len(observations))
        if not isinstance(observations, BankObservations):
            return actions
        slots, miss, keys = observations.slots, observations.miss, observations.keys
        told = np.isfinite(miss).all(axis=(1, 2)) & np.isfinite(keys).all(axis=(1, 2))
        alike = _cosine(miss, lanes["miss"][slots]) * _cosine(keys, lanes["key"][slots])
        gain = lanes["gain"][slots]
        moved = np.clip(gain * np.exp(self.step * np.nan_to_num(alike)), self.least, self.most)
        lanes["gain"][slots] = np.where(told, moved, gain)
        lanes["miss"][slots[told]], lanes["key"][slots[told]] = miss[told], keys[told]
        actions.gain = lanes["gain"][slots]
        return actions


def _cosine(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> Floats:
    """Cosine of each lane's `[H, R]` with another, `[n]` float64; 0 where either is zero, NaN where not finite."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore"):
        size = np.sqrt((a * a).sum(axis=(1, 2)) * (b * b).sum(axis=(1, 2)))
        cosine: Floats = np.where(size > 0, (a * b).sum(axis=(1, 2)) / np.where(size > 0, size, 1.0), 0.0)
    return cosine
