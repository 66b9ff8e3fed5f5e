"""The scan: many lanes of the delta rule over a ragged batch, in one call.

This file holds the public function, its result and the choice of a form. The forms are files of their own:
`naive_scan` (the definition, torch), `cpu_scan` (numba), `triton_scan` (GPU), `chunk_scan` (few long lanes).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from memory.rule import Mode

Form = Literal["auto", "naive", "cpu", "triton", "chunk"]
FORMS: tuple[str, ...] = get_args(Form)
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ScanInputs:
    """The arguments of `scan`, checked and brought into the one shape that every form takes.

    Attributes
    ----------
    states
        `[S, H, R, R]`, advanced in place.
    slots, starts, lengths, outs
        `[N]` int64 on the host: each lane's slot, first token, number of tokens, and first row of its output.
    lane_offsets
        `[N + 1]` int64 on the host: lane n's output rows are `lane_offsets[n]:lane_offsets[n + 1]`.
    q, k, v, beta
        `[T, H, R]`, contiguous; `lam` the same or None.
    token_mask
        `[T]` bool or None.
    """

    states: Tensor
    slots: Indices
    starts: Indices
    lengths: Indices
    lane_offsets: Indices
    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    lam: Tensor | None
    token_mask: Tensor | None
    mode: Mode
    want_reads: bool

    @property
    def rows(self) -> int:
        """Output rows: the lanes' lengths added up."""
        return int(self.lane_offsets[-1])

    @property
    def needs_grad(self) -> bool:
        """Whether the caller will differentiate through this scan."""
        tensors = (self.states, self.q, self.k, self.v, self.beta, self.lam)
        return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


@dataclass(frozen=True, slots=True)
class ScanResult:
    """What a scan measured. M is the sum of the lanes' lengths; a lane that shares a segment has rows of its own.

    Attributes
    ----------
    reads
        `[M, H, R]`: S q before each token's write (0 for a masked token), or None if not wanted.
    lane_offsets
        `[N + 1]` int64: lane n's rows of `reads` and `write_error`.
    write_error
        `[M, H]`: ‖v − S k‖ / ‖v‖ before each write; 0 where ‖v‖ = 0 or the token is masked.
    mean_write_error, max_write_error
        `[N, H]`: over the lane's unmasked tokens; 0 for none; NaN if any is NaN.
    state_norm
        `[N, H]`: Frobenius norm of the state after.
    state_max_abs
        `[N, H]`: largest absolute entry of the state after; NaN if any is NaN.
    nonfinite
        `[N, H]` int64: NaN and infinite numbers met: in k, v and the gates (one a row) of unmasked tokens, in q if
        reads are wanted, and in the state after.
    final_states
        `[N, H, R, R]` of the lanes, part of the autograd graph; None unless gradients are recorded.
    """

    reads: Tensor | None
    lane_offsets: Tensor
    write_error: Tensor
    mean_write_error: Tensor
    max_write_error: Tensor
    state_norm: Tensor
    state_max_abs: Tensor
    nonfinite: Tensor
    final_states: Tensor | None = None


def scan(
    states: Tensor,
    slots: Tensor,
    segments: Tensor,
    offsets: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    lam: Tensor | None = None,
    *,
    mode: str = "coupled",
    form: Form = "auto",
    token_mask: Tensor | None = None,
    want_reads: bool = True,
) -> ScanResult:
    """Advance N lanes, each by the tokens of its segment, in order.

    Parameters
    ----------
    states
        `[S, H, R, R]` float32 (the naive and chunk forms also take float64). Advanced in place at the rows `slots`; no
        other row is read or written.
    slots
        `[N]` int64, all different: each lane's row of `states`.
    segments
        `[N]` int64: which segment each lane reads. Lanes may share one.
    offsets
        `[G + 1]` int64, from 0 and not falling: segment g is the tokens `offsets[g]:offsets[g + 1]`.
    q, k, v
        `[T, H, R]`, of the dtype of `states`.
    beta, lam
        `[T, H, R]` or `[T, H, 1]`: gates. `lam` is required by mode `gated`, optional for `decay_outside`.
    mode
        `coupled`, `decay_outside`, `plain` or `gated`: see `memory.rule`.
    form
        `naive`, `cpu`, `triton`, `chunk`, or `auto`: the fastest that can run, that differentiates where gradients are
        recorded, and that gives the same bits however a segment is split. `chunk` does not promise the last and is
        never taken unasked; it is for few long lanes (`docs/scan.md`).
    token_mask
        `[T]` bool: a token that is False neither reads nor writes.
    want_reads
        False leaves `reads` out.

    Returns
    -------
    ScanResult

    Raises
    ------
    ValueError, TypeError
        Shapes, dtypes, devices or offsets do not fit, or the form cannot run here; the message says which.

    References
    ----------
    δ-mem, arXiv 2605.12357, eq. 6 (read) and 10 (write).

    Examples
    --------
    One pair, written into lane 1 with β = 1, is read back whole; lane 0 is not touched.

    >>> import torch
    >>> states = torch.zeros(2, 1, 4, 4)
    >>> key, value = torch.eye(4)[0].reshape(1, 1, 4), torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    >>> lane, segment, offsets = torch.tensor([1]), torch.tensor([0]), torch.tensor([0, 1])
    >>> result = scan(states, lane, segment, offsets, key, key, value, torch.ones(1, 1, 1), mode="plain")
    >>> (states[1, 0] @ key[0, 0]).tolist(), float(result.write_error[0, 0]), float(states[0].abs().sum())
    ([1.0, 2.0, 3.0, 4.0], 1.0, 0.0)
    """
    inputs = _check(states, slots, segments, offsets, q, k, v, beta, lam, Mode.parse(mode), token_mask, want_reads)
    chosen = _choose(form, inputs)
    run = getattr(import_module(f"memory.{chosen}_scan"), f"{chosen}_scan")  # a form's libraries load when it is used
    result: ScanResult = run(inputs)
    if not states.is_inference():
        torch.autograd.graph.increment_version(states)  # so that autograd notices what was overwritten
    return result


def scan_support(
    form: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, rank: int | None = None
) -> tuple[bool, str]:
    """Say whether a form can run on a device and dtype (and, if given, at a rank) and, if not, why.

    Returns
    -------
    tuple of bool and str
        Whether it can, and the reason where not (empty where it can).

    Examples
    --------
    >>> import torch
    >>> scan_support("cpu", "cpu", torch.float32)
    (True, '')
    >>> scan_support("cpu", "cpu", torch.float64)
    (False, 'the cpu form computes in float32, not float64')
    """
    device = torch.device(device)
    if form in ("naive", "chunk"):
        if dtype in (torch.float32, torch.float64):
            return True, ""
        return False, f"the {form} form computes in float32 or float64, not {_short(dtype)}"
    if form == "cpu":
        if device.type != "cpu":
            return False, f"the cpu form works on host memory, not on {device}"
        if dtype != torch.float32:
            return False, f"the cpu form computes in float32, not {_short(dtype)}"
        return True, ""
    if form == "triton":
        try:
            from memory.triton_scan import triton_support
        except ImportError as error:
            return False, f"triton cannot be imported: {error}"
        return triton_support(device, dtype, rank)
    raise ValueError(f"unknown form {form!r}: expected one of {', '.join(FORMS[1:])}")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _choose(form: str, inputs: ScanInputs) -> str:
    where = (inputs.states.device, inputs.states.dtype, inputs.states.shape[2])
    if form == "auto":
        order = ("triton",) if where[0].type == "cuda" else () if inputs.needs_grad else ("cpu",)
        return next((name for name in order if scan_support(name, *where)[0]), "naive")
    able, reason = scan_support(form, *where)
    if able and form == "cpu" and inputs.needs_grad:
        able, reason = False, "the cpu form records no gradients; use form='naive' or 'chunk', or torch.no_grad()"
    if not able:
        raise ValueError(f"form {form!r} cannot run: {reason}")
    return form


def _check(
    states: Tensor,
    slots: Tensor,
    segments: Tensor,
    offsets: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    lam: Tensor | None,
    mode: Mode,
    token_mask: Tensor | None,
    want_reads: bool,
) -> ScanInputs:
    shape, dtype, device = states.shape, states.dtype, states.device
    if len(shape) != 4 or shape[2] != shape[3]:
        raise ValueError(f"states must be [S, H, R, R], got {list(shape)}")
    if not _matrices_in_place(states):
        raise ValueError(
            "each state must lie in one piece to be advanced in place: expected strides [≥ R², ≥ R², R, 1] without "
            f"overlap, got {list(states.stride())} for R = {shape[3]}; use contiguous(), or slots rather than a view"
        )
    if mode is Mode.GATED and lam is None:
        raise ValueError("mode 'gated' needs lam: the retention gate of each row")
    if lam is not None and mode in (Mode.COUPLED, Mode.PLAIN):
        raise ValueError(f"mode '{mode.label}' has no free retention gate: leave lam out, or use mode 'gated'")
    tokens = q.shape[0] if q.ndim else 0
    full = (tokens, shape[1], shape[2])
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.shape != full:
            raise ValueError(f"{name} must be [T, H, R] = {list(full)}, got {list(tensor.shape)}")
    gates = {"beta": beta} if lam is None else {"beta": beta, "lam": lam}
    for name, tensor in gates.items():
        if tensor.shape != full and tensor.shape != (*full[:2], 1):
            raise ValueError(f"{name} must be {list(full)} or {[*full[:2], 1]}, got {list(tensor.shape)}")
    for name, tensor in (("q", q), ("k", k), ("v", v), *gates.items()):
        if tensor.dtype != dtype or tensor.device != device:
            raise TypeError(
                f"{name} must be {_short(dtype)} on {device} like states, got {_short(tensor.dtype)} on {tensor.device}"
            )
    if token_mask is not None:
        if token_mask.shape != (tokens,) or token_mask.dtype != torch.bool:
            got = f"{_short(token_mask.dtype)} {list(token_mask.shape)}"
            raise ValueError(f"token_mask must be bool [{tokens}], got {got}")
        if token_mask.device != device:
            raise TypeError(f"token_mask must be on {device} like states, got {token_mask.device}")
        token_mask = token_mask.contiguous()
    lanes, starts, lengths, lane_offsets = _lanes(slots, segments, offsets, shape[0], tokens)
    return ScanInputs(
        states=states,
        slots=lanes,
        starts=starts,
        lengths=lengths,
        lane_offsets=lane_offsets,
        q=q.contiguous(),
        k=k.contiguous(),
        v=v.contiguous(),
        beta=beta.expand(full).contiguous() if beta.shape != full else beta.contiguous(),
        lam=None if lam is None else lam.expand(full).contiguous(),
        token_mask=token_mask,
        mode=mode,
        want_reads=want_reads,
    )


def _matrices_in_place(states: Tensor) -> bool:
    """Whether each state is R rows of R numbers end to end, and no two overlap: layers of a larger tensor are fine."""
    if states.is_contiguous():
        return True
    sizes, strides, size = states.shape, states.stride(), states.shape[2] * states.shape[3]
    apart = sorted((strides[d], sizes[d]) for d in (0, 1) if sizes[d] > 1)
    for stride, count in apart:
        if stride < size:
            return False
        size = stride * count
    return strides[2:] == (sizes[3], 1) or sizes[3] == 1


def _lanes(slots: Tensor, segments: Tensor, offsets: Tensor, capacity: int, tokens: int) -> tuple[Indices, ...]:
    """Check which lane reads what; return slots, starts, lengths and lane offsets, on the host."""
    for name, tensor in (("slots", slots), ("segments", segments), ("offsets", offsets)):
        if tensor.dtype != torch.int64 or tensor.ndim != 1:
            raise TypeError(f"{name} must be a row of int64, got {_short(tensor.dtype)} {list(tensor.shape)}")
    if slots.shape != segments.shape:
        raise ValueError(f"slots and segments must be of one length, got {len(slots)} and {len(segments)}")
    slot, segment, offset = (tensor.contiguous().numpy(force=True) for tensor in (slots, segments, offsets))
    sizes = offset[1:] - offset[:-1]
    if not offset.size or offset[0] != 0 or offset[-1] != tokens or (sizes.size and sizes.min() < 0):
        raise ValueError(f"offsets must begin at 0, never fall and end at T = {tokens}, got {_glance(offset)}")
    lane_offsets = np.zeros(len(slot) + 1, np.int64)
    if slot.size:
        rising = bool((slot[1:] > slot[:-1]).all())
        ordered = slot if rising else np.sort(slot)
        if ordered[0] < 0 or ordered[-1] >= capacity:
            raise ValueError(f"slots must lie in 0..{capacity - 1}, got {ordered[0]}..{ordered[-1]}")
        if not rising and (ordered[1:] == ordered[:-1]).any():
            twice = ordered[1:][ordered[1:] == ordered[:-1]][0]
            raise ValueError(f"slots must all be different: two lanes cannot advance one state, got {twice} twice")
        low, high = segment.min(), segment.max()
        if low < 0 or high >= sizes.size:
            raise ValueError(f"segments must lie in 0..{sizes.size - 1}, got {low}..{high}")
    lengths = sizes[segment]
    np.cumsum(lengths, out=lane_offsets[1:])
    return slot, offset[segment], lengths, lane_offsets


def _glance(numbers: Indices) -> str:
    return str(numbers.tolist()) if numbers.size <= 8 else f"{numbers[:4].tolist()} … {numbers[-2:].tolist()}"
