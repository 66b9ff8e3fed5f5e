"""Seeded ragged batches for the tests of the scan, and ways to run and compare them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memory.rule import Mode
from memory.scan_forms import ScanInputs, ScanResult, _check, scan

MODES = ("coupled", "decay_outside", "decay_free", "plain", "gated")
"""The modes, and `decay_free`: decay_outside with a λ of its own."""
STATISTICS = ("mean_write_error", "max_write_error", "state_norm", "state_max_abs")


@dataclass(frozen=True)
class Batch:
    """The arguments of one scan."""

    states: Tensor
    slots: Tensor
    segments: Tensor
    offsets: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    lam: Tensor | None
    mode: str
    token_mask: Tensor | None

    @classmethod
    def random(
        cls,
        mode: str,
        rank: int,
        *,
        heads: int = 1,
        lengths: Sequence[int] = (0, 1, 7, 8, 9),
        segments: Sequence[int] | None = None,
        masked: bool = False,
        seed: int = 0,
    ) -> Batch:
        """Each segment once unless `segments` says which lane reads which; slots shuffled among two more than lanes."""
        draw = torch.Generator().manual_seed(seed)
        tokens, lanes = sum(lengths), len(lengths) if segments is None else len(segments)
        normal = [torch.randn(tokens, heads, rank, generator=draw) for _ in range(3)]
        beta, lam = (torch.rand(tokens, heads, rank, generator=draw) for _ in range(2))
        return cls(
            states=torch.randn(lanes + 2, heads, rank, rank, generator=draw),
            slots=torch.randperm(lanes + 2, generator=draw)[:lanes],
            segments=torch.arange(lanes) if segments is None else torch.tensor(segments, dtype=torch.int64),
            offsets=torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int64),
            q=normal[0],
            k=torch.nn.functional.normalize(normal[1], dim=-1),
            v=normal[2],
            beta=beta,
            lam=lam if mode in ("decay_free", "gated") else None,
            mode="decay_outside" if mode == "decay_free" else mode,
            token_mask=torch.rand(tokens, generator=draw) > 0.25 if masked else None,
        )

    def to(self, target: torch.dtype | torch.device | str) -> Batch:
        """Floats in another dtype, or all tensors on another device (the indices stay on the host)."""

        def moved(value: Any) -> Any:
            return value.to(target) if isinstance(value, Tensor) and value.dtype != torch.int64 else value

        if isinstance(target, torch.dtype):
            moved_mask = self.token_mask
        else:
            moved_mask = None if self.token_mask is None else self.token_mask.to(target)
        values = {field.name: moved(getattr(self, field.name)) for field in fields(self)}
        return replace(self, **(values | {"token_mask": moved_mask}))

    def run(self, form: str, **changes: Any) -> tuple[ScanResult, Tensor]:
        """Scan a copy of the states; return the result and the states after."""
        batch, states = self, self.states.clone()
        arguments = (batch.slots, batch.segments, batch.offsets, batch.q, batch.k, batch.v, batch.beta, batch.lam)
        options: dict[str, Any] = {"mode": batch.mode, "token_mask": batch.token_mask} | changes
        return scan(states, *arguments, form=form, **options), states  # type: ignore[arg-type]

    def inputs(self) -> ScanInputs:
        """As the forms get them."""
        arguments = (self.states, self.slots, self.segments, self.offsets, self.q, self.k, self.v, self.beta, self.lam)
        return _check(*arguments, Mode.parse(self.mode), self.token_mask, True)

    def cut(self, tokens: slice) -> Batch:
        """Some tokens of a batch of one segment."""
        taken = {name: getattr(self, name)[tokens] for name in ("q", "k", "v", "beta")}
        lam = None if self.lam is None else self.lam[tokens]
        mask = None if self.token_mask is None else self.token_mask[tokens]
        return replace(self, offsets=torch.tensor([0, len(taken["q"])]), lam=lam, token_mask=mask, **taken)

    def lanes(self, chosen: Sequence[int]) -> Batch:
        """The same lanes' slots and segments, chosen and ordered."""
        index = torch.tensor(chosen, dtype=torch.int64)
        return replace(self, slots=self.slots[index], segments=self.segments[index])


def gradients(batch: Batch, form: str, seed: int = 5) -> list[Tensor]:
    """Of a random weighting of reads, write errors and final states: by states, q, k, v, beta and, if given, lam."""
    leaves = [batch.states, batch.q, batch.k, batch.v, batch.beta, *([batch.lam] if batch.lam is not None else [])]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    lanes = (batch.slots, batch.segments, batch.offsets)
    result = scan(leaves[0], *lanes, *leaves[1:], mode=batch.mode, form=form, token_mask=batch.token_mask)  # type: ignore[arg-type]
    draw = torch.Generator().manual_seed(seed)
    loss = batch.states.new_zeros(())
    for output in (result.reads, result.write_error, result.final_states):
        assert output is not None
        loss = loss + (output * torch.randn(output.shape, generator=draw).to(output)).sum()
    return list(torch.autograd.grad(loss, leaves))


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit: −0 is not 0, and a NaN is a NaN only if it is the same one."""
    kind = {torch.float32: torch.int32, torch.float64: torch.int64}[a.dtype]
    return a.shape == b.shape and torch.equal(a.contiguous().view(kind), b.contiguous().view(kind))


def rows(result: ScanResult, lane: int) -> slice:
    """The rows of one lane in reads and write errors."""
    return slice(int(result.lane_offsets[lane]), int(result.lane_offsets[lane + 1]))


def distance(got: Tensor, expected: Tensor) -> float:
    """The largest difference, as a part of the largest expected magnitude (of 1 if that is smaller); NaN equals NaN."""
    got, expected = got.double().cpu(), expected.double().cpu()
    assert got.shape == expected.shape
    same = (got == expected) | (got.isnan() & expected.isnan())
    if bool(same.all()):
        return 0.0
    finite = expected[expected.isfinite()]
    scale = max(1.0, float(finite.abs().max()) if len(finite) else 0.0)
    return float((got - expected)[~same].abs().nan_to_num(nan=torch.inf).max()) / scale


def worst(got: tuple[ScanResult, Tensor], expected: tuple[ScanResult, Tensor]) -> tuple[float, str]:
    """The largest `distance` of all that a scan returns, and of what. Counts must be equal."""
    assert torch.equal(got[0].lane_offsets, expected[0].lane_offsets)
    assert torch.equal(got[0].nonfinite.cpu(), expected[0].nonfinite.cpu())
    pairs = {name: (getattr(got[0], name), getattr(expected[0], name)) for name in ("write_error", *STATISTICS)}
    pairs["states"] = (got[1], expected[1])
    if got[0].reads is not None and expected[0].reads is not None:
        pairs["reads"] = (got[0].reads, expected[0].reads)
    return max((distance(*pair), name) for name, pair in pairs.items())
