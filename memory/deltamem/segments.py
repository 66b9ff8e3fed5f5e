"""Segment writes: one write for each message or sentence, from the mean of its tokens' hidden states.

The mean is taken after the projection, which is linear: one product serves the reads of the tokens and the writes of
the segments. All of it depends on the ids and the mask alone, so it is worked out once for all layers of a forward
pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Segments:
    """The writes of one forward pass: G segments over all streams, each stream's in the order of their ids.

    Attributes
    ----------
    order
        `[M]` int64: the written tokens as rows of `[B·T]`, segment after segment.
    lengths
        `[G]` int64: tokens of each segment.
    offsets
        `[B + 1]` int64 on the host: stream b's segments are `offsets[b]:offsets[b + 1]`.
    """

    order: Tensor
    lengths: Tensor
    offsets: Tensor

    def means(self, rows: Tensor) -> Tensor:
        """Average rows `[B·T, W]` over each segment: `[G, W]`."""
        if not len(self.lengths):
            return rows.new_zeros(0, rows.shape[1])
        sums = torch.segment_reduce(rows[self.order], "sum", lengths=self.lengths, axis=0)
        return sums / self.lengths[:, None]


def group_segments(ids: Tensor, written: Tensor) -> Segments:
    """Group tokens by stream and id.

    Parameters
    ----------
    ids
        `[B, T]` int64: tokens of one stream with the same id are one segment, wherever they stand.
    written
        `[B, T]` bool: which tokens count.

    Examples
    --------
    >>> import torch
    >>> ids = torch.tensor([[7, 7, -1, 9], [3, 2, 2, 3]])
    >>> segments = group_segments(ids, ids >= 0)
    >>> segments.offsets.tolist(), segments.lengths.tolist()
    ([0, 2, 4], [2, 1, 2, 2])
    >>> segments.means(torch.arange(8.0)[:, None]).flatten().tolist()
    [0.5, 3.0, 5.5, 5.5]
    """
    batch = len(ids)
    row, column = written.nonzero(as_tuple=True)
    named = torch.stack([row, ids[row, column]], 1)
    pairs, inverse, counts = torch.unique(named, dim=0, return_inverse=True, return_counts=True)
    order = (row * ids.shape[1] + column)[inverse.argsort(stable=True)]
    per_stream = torch.bincount(pairs[:, 0], minlength=batch).cpu()
    return Segments(order, counts, torch.cat([torch.zeros(1, dtype=torch.int64), per_stream.cumsum(0)]))
