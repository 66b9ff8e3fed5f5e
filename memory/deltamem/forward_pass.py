"""What all layers share in one forward pass: its shape, the real tokens, and which tokens are written together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from memory.deltamem.segments import Segments, group_segments
from memory.deltamem.token_validity import token_validity

_ALL_REAL = np.zeros(0, np.bool_)


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """One forward pass over B streams of T tokens.

    Attributes
    ----------
    source
        The attention mask that this was made from: another layer may be given another.
    real, host_real
        `[B·T]` bool, False for padding, None: all are real; the same as numpy (`[0]`: all) for compiled code.
    offsets
        `[B + 1]` int64 on the host: stream b's tokens.
    segments
        For segment writes, else None.
    """

    batch: int
    tokens: int
    source: Any
    real: Tensor | None
    host_real: npt.NDArray[np.bool_]
    offsets: Tensor
    segments: Segments | None

    def serves_again(self, batch: int, tokens: int) -> bool:
        """Whether a later pass without mask and segments is just the same: decoding works nothing out again."""
        return self.source is None and self.segments is None and (self.batch, self.tokens) == (batch, tokens)


def begin_pass(hidden: Tensor, mask: Any, cache: Any, layer: int, ids: tuple[Tensor | None, ...] | None) -> ForwardPass:
    """Work out what a forward pass needs from what its first layer is given.

    Parameters
    ----------
    hidden
        `[B, T, hidden]`.
    mask, cache, layer
        The attention mask, the KV cache before this pass (None without one) and the layer's number in it.
    ids
        For segment writes: id tensors `[B, T]`; a token is written where none is negative, and belongs to the segment
        that the last one names. None: token writes, or no writes.
    """
    batch, tokens = hidden.shape[:2]
    real = token_validity(mask, batch, tokens, _first_column(mask, cache, tokens, layer))
    segments = None
    if ids is not None:
        named = [part.to(hidden.device) for part in ids if part is not None]
        written = torch.stack([part >= 0 for part in named]).all(0)
        segments = group_segments(named[-1], written if real is None else written & real)
    flat = None if real is None else real.reshape(-1).contiguous()
    on_host = flat is not None and flat.device.type == "cpu"
    return ForwardPass(
        batch=batch,
        tokens=tokens,
        source=mask,
        real=flat,
        host_real=flat.numpy() if flat is not None and on_host else _ALL_REAL,
        offsets=torch.arange(batch + 1) * tokens,
        segments=segments,
    )


def _first_column(mask: Any, cache: Any, tokens: int, layer: int) -> int | None:
    """The mask's column of the first token, where a cache with places to spare makes it other than the last T."""
    if cache is None or not isinstance(mask, Tensor) or not hasattr(cache, "get_mask_sizes"):
        return None
    columns, offset = cache.get_mask_sizes(tokens, layer)
    if columns != mask.shape[-1]:
        return None
    return int(cache.get_seq_length(layer)) - int(offset)
