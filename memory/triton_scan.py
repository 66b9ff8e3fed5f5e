"""The GPU form: one launch for a whole ragged batch.

A program keeps the states of a few lanes and heads in registers for the length of their segments; slots are gathered
and scattered, and statistics taken, inside the kernel; nothing of size R² a token goes through memory. With gradients
recorded, the state is kept every few tokens and the backward kernel computes those between once more.

Under Triton's interpreter (`TRITON_INTERPRET=1`, set before Triton is first imported) the same kernels run on the host:
slow, and right.
"""

from __future__ import annotations

import torch

from memory.scan_forms import ScanInputs, ScanResult
from memory.triton_autograd import differentiable_scan
from memory.triton_launch import Places, run_forward
from memory.triton_step import INTERPRETED, UNITS


def triton_support(device: torch.device | str, dtype: torch.dtype, rank: int | None = None) -> tuple[bool, str]:
    """Say whether the Triton form can run on a device and dtype (and, if given, at a rank) and, if not, why.

    Examples
    --------
    >>> import torch
    >>> triton_support("cuda", torch.float64)
    (False, 'the triton form computes in float32, not float64')
    """
    device = torch.device(device)
    if rank is not None and rank not in UNITS:
        return False, f"the triton form takes ranks {', '.join(map(str, UNITS))}, not {rank}"
    if dtype != torch.float32:
        return False, f"the triton form computes in float32, not {str(dtype).removeprefix('torch.')}"
    if device.type == "cuda":
        if torch.cuda.is_available():
            return True, ""
        return False, "torch sees no GPU"
    if device.type == "cpu" and INTERPRETED:
        return True, ""
    return False, (
        f"the triton form needs a GPU, not {device} "
        "(TRITON_INTERPRET=1, set before Triton is imported, runs it slowly on the host)"
    )


def triton_scan(inputs: ScanInputs) -> ScanResult:
    """Run the scan by the Triton kernels. Arguments and result as in `memory.scan`.

    Raises
    ------
    ValueError
        The states do not begin on a 16-byte boundary.
    """
    if inputs.needs_grad:
        return differentiable_scan(inputs)
    result, _ = run_forward(inputs, inputs.states.detach(), Places.of(inputs, inputs.slots, 0), every=0)
    return result
