"""Which tokens of a batch are real: padding neither reads nor writes.

What an attention module is given tells it, in one of three forms: no mask (all real); a 2-D mask `[B, K]`, not zero
where real; or a 4-D mask `[B, 1, T, K]`, where a token is real if it may see itself. A boolean 4-D mask says True for
what may be seen; an additive one adds 0 there and a hugely negative number elsewhere. K counts what a KV cache
already holds, and with a static cache its empty places too: so the token's own column is found from the cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# A bias that a model adds to a visible token (ALiBi and the like) is far above this; what stands for −∞ is far below.
HIDDEN_BELOW = -1e3


def token_validity(mask: Any, batch: int, tokens: int, first_column: int | None = None) -> Tensor | None:
    """Return `[B, T]` bool, True for real tokens; None where all are.

    Parameters
    ----------
    mask
        The attention mask in one of the three forms.
    batch, tokens
        B and T of the hidden states.
    first_column
        The column of the first token; None: the mask ends with the last token.

    Raises
    ------
    ValueError, TypeError
        The mask is of no known form or does not cover the tokens.

    Examples
    --------
    >>> import torch
    >>> visible = torch.tril(torch.ones(3, 3, dtype=torch.bool))
    >>> visible[0] = False  # a padded first token sees nothing
    >>> visible[:, 0] = False
    >>> token_validity(visible[None, None], 1, 3).tolist()
    [[False, True, True]]
    >>> additive = torch.zeros(1, 1, 3, 3).masked_fill(~visible, torch.finfo(torch.float32).min)
    >>> token_validity(additive, 1, 3).tolist()
    [[False, True, True]]
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        raise TypeError(f"attention_mask must be a tensor or None, got {type(mask).__name__}: use eager, sdpa or flash")
    if mask.ndim not in (2, 4) or mask.shape[0] not in (1, batch):
        raise ValueError(f"attention_mask must be [B, K] or [B, 1, T, K] with B = {batch}, got {list(mask.shape)}")
    first = mask.shape[-1] - tokens if first_column is None else first_column
    if first < 0 or first + tokens > mask.shape[-1]:
        raise ValueError(f"attention_mask has {mask.shape[-1]} columns: expected {first + tokens} or more")
    if mask.ndim == 2:
        return mask[:, first : first + tokens].ne(0).expand(batch, tokens)
    if mask.shape[2] < tokens:
        raise ValueError(f"attention_mask has {mask.shape[2]} rows for {tokens} tokens")
    own = mask[:, :, mask.shape[2] - tokens :, first : first + tokens].diagonal(dim1=-2, dim2=-1)  # [B, 1, T]
    if mask.dtype == torch.bool:
        visible = own
    elif mask.is_floating_point():
        visible = own > HIDDEN_BELOW
    else:
        raise TypeError(
            f"a 4-D attention_mask must be boolean (True: seen) or additive floats (0: seen), got {mask.dtype}"
        )
    return visible.any(dim=1).expand(batch, tokens)
