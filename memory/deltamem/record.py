"""What one layer did in the last forward pass: for the monitors, and for `Attachment.stats`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memory.deltamem.layer import MemoryLayer

PIECE = 1024  # tokens


@dataclass(slots=True)
class LayerRecord:
    """One layer's last forward pass over B streams of T tokens. Clone what must outlast the next one.

    Attributes
    ----------
    batch, tokens
        B and T.
    q, reads
        `[B·T, H, R]`: the memory's queries, and what they read (0 for padding).
    k, v, beta
        `[M, H, R]`: what was offered to the write. M = B·T for token writes and where writes are off, else the
        segments.
    lam
        `[M, H, R]`, λ; the retention gate, which is 1 − β where it is coupled.
    offsets
        `[B + 1]` int64 on the host: stream b's rows of the M.
    written
        `[M]` bool, False for padding; None: all of them.
    write_error
        `[M, H]`: ‖v − S k‖ / ‖v‖ before each write; None: writes were off.
    token_mask
        `[B·T]` bool; None: all tokens are real.
    output_norm
        `[B·T]`: ‖o‖ before its correction; None: o is not corrected, or `scale` was 0.
    scale
        `Attachment.scale` at that time.
    """

    batch: int
    tokens: int
    q: Tensor
    reads: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    lam: Tensor
    offsets: Tensor
    written: Tensor | None
    write_error: Tensor | None
    token_mask: Tensor | None
    scale: float
    output_norm: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LayerStats:
    """One layer in numbers. A mean over nothing, or of what was not measured, is None.

    Attributes
    ----------
    beta, lam
        Mean gates over the writes (over the real tokens where writes were off).
    state_norm
        Frobenius norm of the state now, mean over streams and heads.
    delta_ratio
        ‖δo‖ / ‖o‖, mean over the real tokens.
    write_error
        ‖v − S k‖ / ‖v‖ before the writes, mean over them.
    """

    beta: float | None
    lam: float | None
    state_norm: float
    delta_ratio: float | None
    write_error: float | None


def summarise(record: LayerRecord, states: Tensor, layer: MemoryLayer) -> LayerStats:
    """Return the numbers of one layer from its record, its states `[B, H, R, R]` and its parameters."""
    ratio = None
    if record.output_norm is not None:
        reads = record.reads.detach().flatten(1)
        with torch.no_grad():  # in pieces: one correction is as large as the layer's output
            parts = [layer.correction("o", part).norm(dim=-1) for part in torch.split(reads, PIECE)]
        tiny = torch.finfo(torch.float32).tiny
        ratio = _mean(abs(record.scale) * torch.cat(parts) / record.output_norm.clamp_min(tiny), record.token_mask)
    return LayerStats(
        beta=_mean(record.beta, record.written),
        lam=_mean(record.lam, record.written),
        state_norm=float(states.detach().flatten(2).norm(dim=-1).mean()),
        delta_ratio=ratio,
        write_error=None if record.write_error is None else _mean(record.write_error, record.written),
    )


def _mean(values: Tensor, mask: Tensor | None) -> float | None:
    values = values.detach() if mask is None else values.detach()[mask]
    return float(values.mean()) if values.numel() else None
