r"""The chunk form: C tokens at a time, for a few long lanes. `docs/scan.md` derives it.

Within a chunk row i of the state is, with γ the product of the row's keeps up to (not with) a token, D[t, u] the
product of those strictly between tokens u and t, and c the row's changes,

    s_i before token t = γ_t s_i + Σ_{u<t} D[t, u] c_u k_uᵀ
    c_t = write_t v_t − erase_t (s_i before token t)·k_t

so that (I + A) c = write ∘ v − erase ∘ γ ∘ (K s_i), A[t, u] = erase_t D[t, u] k_t·k_u for u < t. All chunks are
solved at once for what multiplies s_i; only a short walk from chunk to chunk is left in order; reads and errors again
come all at once. Products of keeps are formed as products over just the tokens between, never as quotients, so a gate
of 0, a long decay that underflows, or a negative keep does no harm.

The order of the sums depends on where the chunks begin, so a split segment has other bits than a whole one: close,
not equal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from memory.naive_scan import left_alone, relative_error, statistics
from memory.rule import coefficients
from memory.scan_forms import ScanInputs, ScanResult, scan_support

CHUNK = 16
"""Tokens of a chunk: R · C² numbers a chunk and head are in memory at once, three times."""


def chunk_scan(inputs: ScanInputs) -> ScanResult:
    """Run the scan chunk by chunk. Arguments and result as in `memory.scan`; differentiable."""
    S = inputs.states[torch.from_numpy(inputs.slots).to(inputs.states.device)]
    heads, rank = S.shape[1:3]
    cut = Cut.of(inputs)
    if not cut.active:
        reads, write_error = S.new_zeros(0, heads, rank), S.new_zeros(0, heads)
    else:
        terms = Terms.of(inputs, cut)
        before, changes, S = _walk(terms, S, cut, inputs.needs_grad)
        reads, write_error = _outputs(terms, before, changes, cut, inputs)
    with torch.no_grad():
        inputs.states.index_copy_(0, torch.from_numpy(inputs.slots).to(S.device), S)
    return ScanResult(
        reads=reads if inputs.want_reads else None,
        lane_offsets=torch.from_numpy(inputs.lane_offsets),
        write_error=write_error,
        **statistics(inputs, S.detach(), write_error.detach()),
        final_states=S if inputs.needs_grad else None,
    )


@dataclass(frozen=True, slots=True)
class Cut:
    """The lanes cut into P chunks: first the first chunk of every lane (the longest lane first), then the second, …

    Attributes
    ----------
    order
        `[N]`: the lanes, longest first.
    active
        For each chunk number, how many lanes have such a chunk: lanes `order[:active]`.
    token
        `[P, C]`: which token; 0 where there is none.
    on
        `[P, C]`: whether there is one, and unmasked.
    row, place
        `[M]`: for each output row, its place among the P · C; in the order of the rows.
    """

    order: Tensor
    active: list[int]
    token: Tensor
    on: Tensor
    place: Tensor

    @classmethod
    def of(cls, inputs: ScanInputs) -> Cut:
        """Cut the lanes of a scan."""
        device = inputs.states.device
        order = np.argsort(-inputs.lengths, kind="stable")
        lengths, starts, outs = inputs.lengths[order], inputs.starts[order], inputs.lane_offsets[:-1][order]
        longest = int(lengths.max(initial=0))
        active = [int((lengths > begin).sum()) for begin in range(0, longest, CHUNK)]
        lane = np.concatenate([np.arange(count) for count in active] or [np.zeros(0, np.int64)])
        within = np.repeat(np.arange(len(active)), active)[:, None] * CHUNK + np.arange(CHUNK)
        real = within < lengths[lane][:, None]
        token = np.where(real, starts[lane][:, None] + within, 0)
        row = (outs[lane][:, None] + within)[real]
        place = np.flatnonzero(real)[np.argsort(row)]
        at, on = torch.from_numpy(token).to(device), torch.from_numpy(real).to(device)
        if inputs.token_mask is not None:
            on = on & inputs.token_mask[at]
        return cls(torch.from_numpy(order).to(device), active, at, on, torch.from_numpy(place).to(device))


@dataclass(frozen=True, slots=True)
class Terms:
    """What of the chunks does not depend on the states: `[P, H, C, R]` by token, or with row i first `[P, H, R, …]`.

    Attributes
    ----------
    q, k, v
        `[P, H, C, R]`; 0 where there is no token.
    key
        `k`, with keys that are not finite set to 0.
    between
        `[P, H, R, C, C]`: D, 0 on and above the diagonal.
    before, after, whole
        Products of keeps: before a token `[P, H, R, C]`, after it `[P, H, R, C]`, of all `[P, H, R]`.
    fresh, pull
        `[P, H, R, C]` and `[P, H, R, C, C]`: c = fresh − pull (K s_i).
    closed
        `[P, H, R]`: whether every gate of the chunk leaves the row alone.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    key: Tensor
    between: Tensor
    before: Tensor
    after: Tensor
    whole: Tensor
    fresh: Tensor
    pull: Tensor
    closed: Tensor

    @classmethod
    def of(cls, inputs: ScanInputs, cut: Cut) -> Terms:
        """Work out the terms of all chunks."""
        gates = coefficients(inputs.mode, inputs.beta, inputs.lam)
        on = cut.on[:, None, :, None]  # [P, 1, C, 1]

        def take(tensor: Tensor, nothing: float) -> Tensor:
            taken = tensor[cut.token].transpose(1, 2)  # [P, C, H, R] to [P, H, C, R]
            return torch.where(on, taken, torch.full_like(taken, nothing))

        q, k, v = take(inputs.q, 0), take(inputs.k, 0), take(inputs.v, 0)
        keep, erase, write = (
            take(gate, nothing).transpose(2, 3) for gate, nothing in zip(gates, (1, 0, 0), strict=True)
        )
        closed = (keep == 1) & (erase == 0) & (write == 0)  # [P, H, R, C]
        sound = torch.isfinite(k).all(-1, keepdim=True)
        key = torch.where(sound, k, torch.zeros_like(k))

        product = _products(keep)  # [P, H, R, C + 1, C + 1]
        before, between = product[..., :-1, 0], _below(product[..., :-1, 1:])
        gram = key @ key.transpose(-1, -2)
        value = write * v.transpose(2, 3)
        value = torch.where(
            sound.transpose(2, 3), value, torch.full_like(value, torch.nan)
        )  # such a key spoils open rows
        value = torch.where(closed & ~torch.isfinite(value), torch.zeros_like(value), value)
        unit = torch.eye(CHUNK, dtype=k.dtype, device=k.device)
        system = unit + erase[..., None] * between * gram[:, :, None]
        right = torch.cat([unit * (erase * before)[..., None], value[..., None]], -1)
        solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
        return cls(
            q=q, k=k, v=v, key=key, between=between,
            before=before, after=product[..., -1, 1:], whole=product[..., -1, 0],
            fresh=solved[..., -1], pull=solved[..., :-1], closed=closed.all(-1),
        )  # fmt: skip


def _products(keep: Tensor) -> Tensor:
    """Products of keeps `[…, C]` over spans: entry [t, u] is that of tokens u to t − 1, 1 where there are none.

    Column 0 begins before the first token; column u + 1 after token u.
    """
    size = keep.shape[-1] + 1
    later = torch.arange(size, device=keep.device)
    factors = torch.cat([torch.ones_like(keep[..., :1]), keep], -1)[..., :, None].expand(*keep.shape[:-1], size, size)
    return torch.where(later[:, None] > later, factors, torch.ones_like(factors)).cumprod(-2)


def _below(square: Tensor) -> Tensor:
    """The part strictly below the diagonal; 0 elsewhere, whatever was there."""
    index = torch.arange(square.shape[-1], device=square.device)
    return torch.where(index[:, None] > index, square, torch.zeros_like(square))


def _walk(terms: Terms, S: Tensor, cut: Cut, needs_grad: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Go from chunk to chunk.

    Returns
    -------
    tuple
        The states before each chunk `[P, H, R, R]`, the changes `[P, H, R, C]`, and the last states `[N, H, R, R]`.
    """
    S, back = S[cut.order], cut.order.argsort()
    by_kernel = S.is_cuda and not needs_grad and scan_support("triton", S.device, S.dtype, S.shape[-1])[0]
    before, changes, S = (kernel_walk if by_kernel else torch_walk)(terms, S, cut.active)
    return before, changes, S[back]


def torch_walk(terms: Terms, S: Tensor, active: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Walk the states S `[N, H, R, R]`, the longest lane first, `active` lanes at each chunk number; differentiable."""
    before, changes, first = [], [], 0
    for count in active:
        now = slice(first, first + count)
        seen, key = S[:count], terms.key[now]
        change = terms.fresh[now] - (terms.pull[now] @ (seen @ key.transpose(-1, -2))[..., None])[..., 0]
        after = terms.whole[now][..., None] * seen + (change * terms.after[now]) @ key
        after = left_alone(after, seen, terms.closed[now][..., None])
        S = torch.cat([after, S[count:]])
        before.append(seen)
        changes.append(change)
        first += count
    return torch.cat(before), torch.cat(changes), S


def kernel_walk(terms: Terms, S: Tensor, active: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """The same by one launch of a Triton kernel; not differentiable."""
    from memory.triton_launch import launch
    from memory.triton_walk import ROWS, walk_kernel

    lanes, heads, rank = S.shape[:3]
    rows = min(ROWS, rank)
    S = S.clone(memory_format=torch.contiguous_format)
    before, changes = S.new_empty(len(terms.key), heads, rank, rank), torch.empty(terms.fresh.shape, device=S.device)
    counts = torch.tensor(active, device=S.device)
    tensors = (terms.key, terms.fresh, terms.pull, terms.after, terms.whole, terms.closed)
    launch(
        walk_kernel, (lanes, heads, rank // rows), 1 if rank < 32 else 4,
        S, before, changes, *(tensor.contiguous() for tensor in tensors), counts, counts.cumsum(0) - counts,
        heads, len(active),
        R=rank, C=CHUNK, ROWS=rows,
    )  # fmt: skip
    return before, changes, S


def _outputs(terms: Terms, before: Tensor, changes: Tensor, cut: Cut, inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """Return reads `[M, H, R]` and write errors `[M, H]` from the states before each chunk and the changes within."""

    def times_state(vectors: Tensor) -> Tensor:
        """(state before each token) · (its vector): `[P, H, C, R]`."""
        outer = terms.before * (before @ vectors.transpose(-1, -2))
        inner = _below(terms.between * (vectors @ terms.key.transpose(-1, -2))[:, :, None] * changes[..., None, :])
        return (outer + inner.sum(-1)).transpose(2, 3)

    def rows(of_chunks: Tensor, on: Tensor) -> Tensor:
        of_chunks = torch.where(on, of_chunks, torch.zeros_like(of_chunks)).transpose(1, 2)
        return of_chunks.flatten(0, 1)[cut.place]

    error = relative_error(terms.v - times_state(terms.k), terms.v)
    write_error = rows(error, cut.on[:, None, :])
    if not inputs.want_reads:
        return write_error, write_error
    return rows(times_state(terms.q), cut.on[:, None, :, None]), write_error
