"""The launch of the forward kernel: where each lane's numbers lie, and room for what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memory.scan_forms import Indices, ScanInputs, ScanResult
from memory.triton_forward import forward_kernel
from memory.triton_step import INTERPRETED, UNITS, WARPS


@dataclass(frozen=True, slots=True)
class Places:
    """Where each lane's numbers lie, on the device: `[N]` int64 each.

    Attributes
    ----------
    slots, starts, lengths, outs
        As in `memory.scan_forms.ScanInputs`.
    chunks
        The lane's first checkpoint.
    order
        The lanes, longest first, so that those of one program end at about the same time.
    count
        Checkpoints of all lanes together.
    """

    slots: Tensor
    starts: Tensor
    lengths: Tensor
    outs: Tensor
    chunks: Tensor
    order: Tensor
    count: int

    @classmethod
    def of(cls, inputs: ScanInputs, slots: Indices, every: int) -> Places:
        """Lay out the lanes of a scan over the states at `slots`, with a checkpoint every so many tokens (0: none)."""
        lengths = inputs.lengths
        kept = -(-lengths // every) if every else np.zeros_like(lengths)
        alike = not len(lengths) or lengths.min() == lengths.max()
        order = np.arange(len(lengths)) if alike else np.argsort(-lengths, kind="stable")
        rows = np.stack([slots, inputs.starts, lengths, inputs.lane_offsets[:-1], np.cumsum(kept) - kept, order])
        slots_, starts, lengths_, outs, chunks, by_length = torch.from_numpy(rows).to(inputs.states.device).unbind()
        return cls(slots_, starts, lengths_, outs, chunks, by_length, int(kept.sum()))


def run_forward(inputs: ScanInputs, states: Tensor, places: Places, every: int) -> tuple[ScanResult, Tensor]:
    """Advance `states` `[…, H, R, R]` in place; return the result, and the checkpoints `[count, H, R, R]`."""
    heads, rank = states.shape[1:3]
    lanes, rows, device = len(inputs.slots), inputs.rows, states.device
    reads = torch.empty(rows if inputs.want_reads else 0, heads, rank, device=device)
    errors = torch.empty(rows, heads, device=device)
    statistics = torch.empty(4, lanes, heads, device=device)
    met = torch.empty(lanes, heads, device=device, dtype=torch.int64)
    checkpoints = torch.empty(places.count, heads, rank, rank, device=device)
    if states.data_ptr() % 16:
        raise ValueError(
            f"states must begin on a 16-byte boundary, got address {states.data_ptr():#x}: clone() the view"
        )
    if lanes * heads:
        lam = inputs.beta if inputs.lam is None else inputs.lam
        q, k, v, beta, lam = (on_boundary(tensor) for tensor in (inputs.q, inputs.k, inputs.v, inputs.beta, lam))
        launch(
            forward_kernel, (-(-lanes * heads // UNITS[rank]),), WARPS[rank],
            states, places.slots, places.starts, places.lengths, places.outs, places.chunks, places.order,
            q, k, v, beta, lam, k if inputs.token_mask is None else inputs.token_mask,
            reads, errors, statistics, met, checkpoints,
            states.stride(0), states.stride(1), lanes * heads, heads,
            R=rank, U=UNITS[rank], MODE=int(inputs.mode), FREE=inputs.lam is not None,
            MASKED=inputs.token_mask is not None, READS=inputs.want_reads, EVERY=every,
        )  # fmt: skip
    mean, largest, norm, top = statistics.unbind()
    result = ScanResult(
        reads=reads if inputs.want_reads else None,
        lane_offsets=torch.from_numpy(inputs.lane_offsets),
        write_error=errors,
        mean_write_error=mean,
        max_write_error=largest,
        state_norm=norm,
        state_max_abs=top,
        nonfinite=met,
    )
    return result, checkpoints


def launch(kernel: Any, grid: tuple[int, ...], warps: int, *arguments: Any, **constants: int) -> None:
    """Start a kernel on the device of its first argument; multiply-adds are fused, now and in later Tritons."""
    if INTERPRETED:
        with np.errstate(all="ignore"):  # NaN and inf are data here, as on a GPU
            kernel[grid](*arguments, **constants)
    else:
        with torch.cuda.device(arguments[0].device):
            kernel[grid](*arguments, **constants, num_warps=warps, enable_fp_fusion=True)


def on_boundary(tensor: Tensor) -> Tensor:
    """The tensor, where 16-byte loads can take it."""
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()
