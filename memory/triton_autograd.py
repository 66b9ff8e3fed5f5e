"""The Triton form as a differentiable function."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from memory.scan_forms import Indices, ScanInputs, ScanResult
from memory.triton_backward import backward_kernel
from memory.triton_launch import Places, launch, on_boundary, run_forward
from memory.triton_step import UNITS, WARPS

EVERY = 32
"""Tokens in a chunk. Memory is R² numbers for each chunk and, while the kernel runs, for each token of one chunk."""


def differentiable_scan(inputs: ScanInputs) -> ScanResult:
    """Run the scan so that reads, write errors and final states can be differentiated."""
    slots = torch.from_numpy(inputs.slots).to(inputs.states.device)
    outputs = _Scan.apply(  # type: ignore[no-untyped-call]
        inputs, inputs.states[slots], inputs.q, inputs.k, inputs.v, inputs.beta, inputs.lam
    )
    final, reads, errors, mean, largest, norm, top, met = outputs
    with torch.no_grad():
        inputs.states.index_copy_(0, slots, final)
    return ScanResult(
        reads=reads if inputs.want_reads else None,
        lane_offsets=torch.from_numpy(inputs.lane_offsets),
        write_error=errors,
        mean_write_error=mean,
        max_write_error=largest,
        state_norm=norm,
        state_max_abs=top,
        nonfinite=met,
        final_states=final,
    )


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: ScanInputs, S: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, lam: Tensor | None
    ) -> tuple[Tensor, ...]:
        places = Places.of(inputs, np.arange(len(inputs.slots)), EVERY)
        final = S.clone(memory_format=torch.contiguous_format)
        result, checkpoints = run_forward(inputs, final, places, EVERY)
        ctx.save_for_backward(q, k, v, beta, lam, inputs.token_mask, checkpoints)
        # The inputs' own tensors are saved above; here only the shapes of the batch are kept.
        empty = q.new_empty(0)
        ctx.inputs = replace(inputs, states=empty, q=empty, k=empty, v=empty, beta=empty, lam=None, token_mask=None)
        ctx.places = places
        reads = q.new_empty(0) if result.reads is None else result.reads
        rest = (result.mean_write_error, result.max_write_error, result.state_norm, result.state_max_abs)
        ctx.mark_non_differentiable(*rest, result.nonfinite)
        return final, reads, result.write_error, *rest, result.nonfinite

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, beta, lam, mask, checkpoints = ctx.saved_tensors
        inputs, places = ctx.inputs, ctx.places
        grad_states = gradients[0].clone(memory_format=torch.contiguous_format)
        (lanes, heads, rank), rows = grad_states.shape[:3], inputs.rows
        free, reads = lam is not None, inputs.want_reads
        by_row = [torch.zeros(rows, heads, rank, device=q.device) for _ in range(5)]
        if lanes * heads:
            depth = min(EVERY, int(inputs.lengths.max()))
            room = torch.empty(lanes * heads, depth, rank, rank, device=q.device)
            tensors = [on_boundary(tensor) for tensor in (q, k, v, beta, lam if free else beta)]
            launch(
                backward_kernel, (-(-lanes * heads // UNITS[rank]),), WARPS[rank],
                places.starts, places.lengths, places.outs, places.chunks, places.order,
                *tensors, k if mask is None else mask, checkpoints, room,
                on_boundary(gradients[1].contiguous()), gradients[2].contiguous(), grad_states, *by_row,
                lanes * heads, heads, depth,
                R=rank, U=UNITS[rank], MODE=int(inputs.mode), FREE=free, MASKED=mask is not None, READS=reads,
                EVERY=EVERY,
            )  # fmt: skip
        of_tokens = [_by_token(gradient, inputs, len(q)) for gradient in by_row]
        return None, grad_states, *of_tokens[:4], of_tokens[4] if free else None


def _by_token(by_row: Tensor, inputs: ScanInputs, tokens: int) -> Tensor:
    """Add the lanes' rows `[M, H, R]` up into tokens `[T, H, R]`, in the lanes' order: no atomics, so the same bits."""
    gradient = by_row.new_zeros(tokens, *by_row.shape[1:])
    for lanes in _turns(inputs):
        lengths = inputs.lengths[lanes]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        token = np.repeat(inputs.starts[lanes], lengths) + within
        row = np.repeat(inputs.lane_offsets[:-1][lanes], lengths) + within
        at, of = (torch.from_numpy(index).to(by_row.device) for index in (token, row))
        gradient[at] += by_row[of]  # no token twice: each turn has at most one lane of a segment
    return gradient


def _turns(inputs: ScanInputs) -> list[Indices]:
    """Sort the lanes into turns: the first lane of each segment, then the second of each, and so on."""
    lanes = np.flatnonzero(inputs.lengths)
    ordered = lanes[np.argsort(inputs.starts[lanes], kind="stable")]
    if not len(ordered):
        return []
    begins = np.flatnonzero(np.diff(inputs.starts[ordered], prepend=-1))
    turn = np.arange(len(ordered)) - np.repeat(begins, np.diff(begins, append=len(ordered)))
    return [ordered[turn == number] for number in range(int(turn.max()) + 1)]
