"""The definition: the delta rule as a readable loop over tokens, in torch.

Every other form is tested against this one in float64. It is differentiable, and slow: one pass of the loop is one token
of all the lanes that still have one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memory.rule import coefficients
from memory.scan import ScanInputs, ScanResult


def naive_scan(inputs: ScanInputs) -> ScanResult:
    """Run the scan token by token. Arguments and result as in `memory.scan`."""
    device, dtype = inputs.states.device, inputs.states.dtype
    slots = inputs.slots.to(device)
    heads, rank = inputs.states.shape[1:3]
    S = inputs.states[slots]  # [N, H, R, R]
    keep, erase, write = coefficients(inputs.mode, inputs.beta, inputs.lam)  # [T, H, R]
    closed = (write == 0) & (erase == 0) & (keep == 1)

    row, errors, reads = [], [], []
    for t in range(int(inputs.lengths.max()) if len(slots) else 0):
        active = (inputs.lengths > t).nonzero()[:, 0]
        token = (inputs.starts[active] + t).to(device)
        row.append(inputs.lane_offsets[active] + t)
        lanes = active.to(device)
        seen = S[lanes]
        q, k, v = inputs.q[token], inputs.k[token], inputs.v[token]
        read = (seen @ q[..., None])[..., 0]
        predicted = (seen @ k[..., None])[..., 0]
        change = write[token] * v - erase[token] * predicted
        fresh = keep[token][..., None] * seen + change[..., None] * k[..., None, :]
        if not inputs.needs_grad:  # a closed gate: the row stays bit for bit (no 0·NaN, no −0 + 0)
            fresh = torch.where(closed[token][..., None], seen, fresh)
        error = _relative((v - predicted), v)
        if inputs.token_mask is not None:
            on = inputs.token_mask[token]
            fresh = torch.where(on[:, None, None, None], fresh, seen)
            read = torch.where(on[:, None, None], read, torch.zeros_like(read))
            error = torch.where(on[:, None], error, torch.zeros_like(error))
        S = S.index_copy(0, lanes, fresh)
        reads.append(read)
        errors.append(error)

    with torch.no_grad():
        inputs.states.index_copy_(0, slots, S)
    order = torch.cat(row).argsort().to(device) if row else torch.zeros(0, dtype=torch.int64, device=device)
    write_error = torch.cat(errors)[order] if row else torch.zeros(0, heads, device=device, dtype=dtype)
    all_reads = torch.cat(reads)[order] if row else torch.zeros(0, heads, rank, device=device, dtype=dtype)
    return ScanResult(
        reads=all_reads if inputs.want_reads else None,
        lane_offsets=inputs.lane_offsets,
        write_error=write_error,
        **_statistics(inputs, S.detach(), write_error.detach()),
        final_states=S if inputs.needs_grad else None,
    )


def _relative(error: Tensor, value: Tensor) -> Tensor:
    """‖error‖ / ‖value‖ over the last dimension; 0 where ‖value‖ = 0 (its gradient too)."""
    value_norm = value.norm(dim=-1)
    silent = value_norm == 0
    error = torch.where(silent[..., None], torch.ones_like(error), error)  # keeps sqrt′(0) out of the gradient
    return torch.where(silent, torch.zeros_like(value_norm), error.norm(dim=-1) / value_norm.masked_fill(silent, 1))


def _statistics(inputs: ScanInputs, S: Tensor, write_error: Tensor) -> dict[str, Tensor]:
    """Per lane and head: errors over the unmasked tokens, norms of the state after, non-finite numbers met."""
    lanes, heads = S.shape[:2]
    device = S.device
    mean, largest = (torch.zeros(lanes, heads, device=device, dtype=S.dtype) for _ in range(2))
    met = (~torch.isfinite(S)).sum((-2, -1))
    gates = [inputs.beta] if inputs.lam is None else [inputs.beta, inputs.lam]
    numbers = [inputs.k, inputs.v, *gates, *([inputs.q] if inputs.want_reads else [])]
    bad = torch.stack([(~torch.isfinite(tensor)).sum(-1) for tensor in numbers]).sum(0)  # [T, H]
    for lane in range(lanes):
        first, length = int(inputs.starts[lane]), int(inputs.lengths[lane])
        on = slice(None) if inputs.token_mask is None else inputs.token_mask[first : first + length]
        errors = write_error[int(inputs.lane_offsets[lane]) : int(inputs.lane_offsets[lane + 1])][on]
        met[lane] += bad[first : first + length][on].sum(0)
        if len(errors):
            mean[lane], largest[lane] = errors.mean(0), errors.amax(0)
    return {
        "mean_write_error": mean,
        "max_write_error": largest,
        "state_norm": S.flatten(2).norm(dim=-1),
        "state_max_abs": S.abs().amax((-2, -1)),
        "nonfinite": met,
    }
