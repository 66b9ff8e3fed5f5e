"""To how many tokens inputs are padded, so that a forward pass gives a row the same bits whatever shares it."""

from __future__ import annotations

STEP, SHORTEST, MOST = 8, 16, 8192
"""Inputs are padded to a multiple of `STEP` tokens, at least `SHORTEST` (below that many rows, matrix libraries change
the order of their sums); one forward pass takes at most `MOST` padded tokens."""


def padded_length(length: int) -> int:
    """Return the tokens that an input of `length` tokens is padded to.

    >>> padded_length(3), padded_length(16), padded_length(17)
    (16, 16, 24)
    """
    return max(SHORTEST, -(-length // STEP) * STEP)
