r"""The delta rule, in words and in one formula.

A state S `[R, R]` holds associations: S k ≈ v. Writing a pair (k, v) with gate β (one for each row i) moves row i
towards it. All modes are one rule with three coefficients a row,

    S_i ← keep_i · S_i + (write_i · v_i − erase_i · (S k)_i) kᵀ

| mode            | keep  | erase | write | source |
|-----------------|-------|-------|-------|--------|
| `coupled`       | 1 − β | β     | β     | δ-mem, arXiv 2605.12357, eq. 10 with λ = 1 − β |
| `decay_outside` | λ     | λβ    | β     | the published code's `lambda_outside`; λ = 1 − β unless given |
| `plain`         | 1     | β     | β     | the delta rule (Widrow & Hoff 1960; DeltaNet) |
| `gated`         | λ     | β     | β     | eq. 10 with λ free |

Reads come before the write: r = S q. A row with β = 0 and keep = 1 is left alone bit for bit.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Mode(IntEnum):
    """The four modes, numbered as the compiled forms know them.

    Examples
    --------
    >>> Mode.parse("plain").label
    'plain'
    >>> Mode.parse("couple")
    Traceback (most recent call last):
    ...
    ValueError: unknown mode 'couple': expected one of coupled, decay_outside, plain, gated
    """

    COUPLED = 0
    DECAY_OUTSIDE = 1
    PLAIN = 2
    GATED = 3

    @property
    def label(self) -> str:
        """The name in options, files and tables."""
        return self.name.lower()

    @classmethod
    def parse(cls, name: str) -> Mode:
        """Return the mode of that name.

        Raises
        ------
        ValueError
            No mode has that name.
        """
        for mode in cls:
            if mode.label == name:
                return mode
        raise ValueError(f"unknown mode {name!r}: expected one of {', '.join(mode.label for mode in cls)}")


def coefficients(mode: Mode, beta: Tensor, lam: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return keep, erase and write for the gates.

    Parameters
    ----------
    mode
        The rule.
    beta
        Write gates, any shape.
    lam
        Retention gates of the same shape; None where the mode does not need them.

    Returns
    -------
    tuple
        keep, erase, write: tensors of the shape and dtype of `beta`.
    """
    if mode is Mode.COUPLED:
        return 1 - beta, beta, beta
    if mode is Mode.PLAIN:
        return beta.new_ones(beta.shape), beta, beta
    if lam is None:
        if mode is Mode.GATED:
            raise ValueError("mode 'gated' needs lam: the retention gate of each row")
        lam = 1 - beta
    if mode is Mode.DECAY_OUTSIDE:
        return lam, lam * beta, beta
    return lam, beta, beta
