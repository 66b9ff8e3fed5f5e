"""The definition: the delta rule as a readable loop over tokens, in torch.

Every other form is tested against this one in float64. It is differentiable, and slow: one pass of the loop is one
token of all the lanes that still have one. Sums are written out as trees of element-wise additions, so that a lane's
bits do not depend on how the library would split a reduction over a batch of this size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from memory.rule import coefficients
from memory.scan_forms import ScanInputs, ScanResult


def naive_scan(inputs: ScanInputs) -> ScanResult:
    """Run the scan token by token. Arguments and result as in `memory.scan`."""
    device, dtype = inputs.states.device, inputs.states.dtype
    slots, starts, lengths, outs = (
        torch.from_numpy(numbers).to(device)
        for numbers in (inputs.slots, inputs.starts, inputs.lengths, inputs.lane_offsets[:-1])
    )
    heads, rank = inputs.states.shape[1:3]
    S = inputs.states[slots]  # [N, H, R, R]
    keep, erase, write = coefficients(inputs.mode, inputs.beta, inputs.lam)  # [T, H, R]
    closed = (write == 0) & (erase == 0) & (keep == 1)

    row = [torch.zeros(0, dtype=torch.int64, device=device)]
    errors = [torch.zeros(0, heads, device=device, dtype=dtype)]
    reads = [torch.zeros(0, heads, rank, device=device, dtype=dtype)]
    for t in range(int(inputs.lengths.max(initial=0))):
        active = (lengths > t).nonzero()[:, 0]
        token = starts[active] + t
        q, k, v, seen = inputs.q[token], inputs.k[token], inputs.v[token], S[active]
        read = sum_last(seen * q[..., None, :])
        predicted = sum_last(seen * k[..., None, :])
        change = write[token] * v - erase[token] * predicted
        fresh = keep[token][..., None] * seen + change[..., None] * k[..., None, :]
        fresh = left_alone(fresh, seen, closed[token][..., None])
        error = relative_error(v - predicted, v)
        if inputs.token_mask is not None:
            on = inputs.token_mask[token]
            fresh = torch.where(on[:, None, None, None], fresh, seen)
            read = torch.where(on[:, None, None], read, torch.zeros_like(read))
            error = torch.where(on[:, None], error, torch.zeros_like(error))
        S = S.index_copy(0, active, fresh)
        row.append(outs[active] + t)
        reads.append(read)
        errors.append(error)

    with torch.no_grad():
        inputs.states.index_copy_(0, slots, S)
    order = torch.cat(row).argsort()
    write_error = torch.cat(errors)[order]
    return ScanResult(
        reads=torch.cat(reads)[order] if inputs.want_reads else None,
        lane_offsets=torch.from_numpy(inputs.lane_offsets),
        write_error=write_error,
        **statistics(inputs, S.detach(), write_error.detach()),
        final_states=S if inputs.needs_grad else None,
    )


def sum_last(numbers: Tensor) -> Tensor:
    """Sum over the last dimension, as a tree: halves are added until one number is left."""
    while numbers.shape[-1] > 1:
        half = numbers.shape[-1] // 2
        rest = numbers[..., 2 * half :]  # the odd one out
        numbers = torch.cat([numbers[..., :half] + numbers[..., half : 2 * half], rest], -1)
    return numbers[..., 0]


def left_alone(fresh: Tensor, seen: Tensor, closed: Tensor) -> Tensor:
    """Return `fresh`, but where a gate is `closed` the row as it was, bit for bit: no 0·NaN, no −0 + 0.

    The two are equal in exact arithmetic, and the gradient is that of `fresh`: a closed gate can be learnt open.
    """
    result: Tensor = _LeftAlone.apply(fresh, seen.detach(), closed)  # type: ignore[no-untyped-call]
    return result


class _LeftAlone(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fresh: Tensor, seen: Tensor, closed: Tensor) -> Tensor:
        return torch.where(closed, seen, fresh)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None


def relative_error(error: Tensor, value: Tensor) -> Tensor:
    """‖error‖ / ‖value‖ over the last dimension; 0 where ‖value‖ = 0 (its gradient too).

    In float64, where the square of a float32 cannot overflow.
    """
    error_sq, value_sq = sum_last(error.double() ** 2), sum_last(value.double() ** 2)
    usual = (error_sq != 0) & (value_sq != 0)
    one = torch.ones_like(error_sq)
    ratio = (torch.where(usual, error_sq, one) / torch.where(usual, value_sq, one)).sqrt()  # keeps sqrt′(0) out
    return torch.where(usual, ratio, torch.zeros_like(ratio)).to(error.dtype)


def statistics(inputs: ScanInputs, S: Tensor, write_error: Tensor) -> dict[str, Tensor]:
    """Per lane and head: write errors, sizes of the states S `[N, H, R, R]` after, non-finite numbers met."""
    lanes, heads = S.shape[:2]
    mean, largest = (torch.zeros(lanes, heads, device=S.device, dtype=S.dtype) for _ in range(2))
    met = (~torch.isfinite(S)).sum((-2, -1))
    gates = [inputs.beta] if inputs.lam is None else [inputs.beta, inputs.lam]
    numbers = [inputs.k, inputs.v, *gates, *([inputs.q] if inputs.want_reads else [])]
    bad = torch.stack([(~torch.isfinite(tensor)).sum(-1) for tensor in numbers]).sum(0)  # [T, H]
    for lane in range(lanes):
        tokens = slice(inputs.starts[lane], inputs.starts[lane] + inputs.lengths[lane])
        on = slice(None) if inputs.token_mask is None else inputs.token_mask[tokens]
        errors = write_error[inputs.lane_offsets[lane] : inputs.lane_offsets[lane + 1]][on]
        met[lane] += bad[tokens][on].sum(0)
        if len(errors):
            mean[lane], largest[lane] = errors.double().mean(0), errors.amax(0)
    return {
        "mean_write_error": mean,
        "max_write_error": largest,
        "state_norm": sum_last(S.flatten(2).double() ** 2).sqrt().to(S.dtype),
        "state_max_abs": S.abs().amax((-2, -1)),
        "nonfinite": met,
    }
