"""What a segment's tokens say beyond their mean: the first, the last, and the maximum."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from memory.threads import share_out


def token_edges(hidden: npt.NDArray[np.float32], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Return the first token's hidden state, the last's, and the greatest value in each place, of G segments.

    Parameters
    ----------
    hidden
        `[T, D]` float32, the segments end to end.
    offsets
        `[G + 1]` int64: segment g is `hidden[offsets[g]:offsets[g + 1]]`.

    Returns
    -------
    `[G, 3 D]` float32; NaN for a segment without tokens.

    Examples
    --------
    >>> hidden = np.array([[1, 5], [2, 4], [3, 0]], np.float32)
    >>> token_edges(hidden, np.array([0, 3, 3])).tolist()
    [[1.0, 5.0, 3.0, 0.0, 3.0, 5.0], [nan, nan, nan, nan, nan, nan]]
    """
    edges = np.empty((len(offsets) - 1, 3 * hidden.shape[1]), np.float32)
    share_out(lambda first, last: _edges(first, last, hidden, offsets, edges), len(edges), hidden.size)
    return edges


@numba.njit(cache=True, nogil=True)
def _edges(first: Any, last: Any, hidden: Any, offsets: Any, edges: Any) -> None:
    dim = hidden.shape[1]
    for g in range(first, last):
        start, end = offsets[g], offsets[g + 1]
        if start == end:
            edges[g] = np.nan
            continue
        edges[g, :dim] = hidden[start]
        edges[g, dim : 2 * dim] = hidden[end - 1]
        edges[g, 2 * dim :] = hidden[start]
        for t in range(start + 1, end):
            for d in range(dim):
                edges[g, 2 * dim + d] = max(edges[g, 2 * dim + d], hidden[t, d])
