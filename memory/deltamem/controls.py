r"""Does the memory do it? The state of a stream against states that it should beat, on the same continuation.

An adapter can lower a model's loss without remembering anything: a constant correction helps, or hurts, whatever the
state holds. So each stream's context is written from a zero state, writes are turned off, and the loss of what
follows (with the context out of sight) is measured once under each of these states:

    correct            what its own context wrote
    zero               nothing
    donor              what another stream's context wrote
    layer_permuted     its own, each layer given another layer's
    random             Gaussian numbers
    off                its own, corrections off: the frozen model

Donor, permuted and random states are brought to the norms of the correct one, layer by layer and head by head, so
that they differ in what they say and not in how loudly. The differences in loss are paired, and their intervals are
bootstrapped over streams. A difference counts when its whole interval lies beyond `smallest`; with several
comparisons the confidence is shared out among them (Bonferroni), so that all of them hold together at the confidence
asked for.

A memory that works is better than zero *and* better than the donor's and the permuted state. Better than zero alone
says only that the adapter's corrections help, which a random adapter may do by luck: it is reported, and not as a
gain.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from memory.deltamem.attachment import Attachment
from memory.deltamem.comparison import Comparison, ControlsReport, Verdict, compare

__all__ = [
    "Comparison",
    "ControlsReport",
    "Passage",
    "Verdict",
    "choose_donors",
    "compare",
    "match_norms",
    "run_controls",
]


@dataclass(frozen=True, slots=True)
class Passage:
    """One stream's context and what follows it.

    Attributes
    ----------
    context
        `[T]` int64 token ids, written to the state.
    continuation
        `[U]` int64 token ids, U ≥ 2: the loss is of all but the first.
    stream
        Whose it is. A donor is always another stream; passages of one stream are resampled together.
    segment_ids
        `[T]` int64 for adapters with segment writes: which tokens of the context are written together.
    """

    context: Tensor
    continuation: Tensor
    stream: Hashable
    segment_ids: Tensor | None = None


def run_controls(
    model: Any,
    memory: Attachment,
    passages: Sequence[Passage],
    *,
    batch_size: int = 16,
    seed: int = 0,
    confidence: float = 0.95,
    smallest: float = 0.005,
    resamples: int = 10_000,
) -> ControlsReport:
    """Measure the correct state against every control.

    Parameters
    ----------
    model, memory
        A causal language model, and the memory attached to it. Its states, and whether it writes, are afterwards as
        they were before.
    passages
        Two streams or more. Those whose context and continuation are of the same lengths run together.
    batch_size
        Streams in one forward pass.
    seed
        Of the donors, the permutation, the random states and the resampling.
    confidence
        With which all comparisons hold together.
    smallest
        Nats a token below which a difference counts for nothing. What is detectable grows finer with every passage,
        and no random adapter is exactly neutral.
    resamples
        Of the bootstrap.

    Raises
    ------
    ValueError
        Fewer than two streams, or a passage too short.
    """
    _check(passages)
    before, writes, scale = memory.state_rows.snapshot(), memory.write_enabled, memory.scale
    rng = torch.Generator().manual_seed(seed)
    try:
        with torch.no_grad():
            correct = _write_all(model, memory, passages, batch_size)
            states, left_out = _controls(correct, [passage.stream for passage in passages], rng)
            measure = _measurer(model, memory, passages, batch_size)
            losses = {"correct": measure(correct)}
            losses |= {name: measure(control) for name, control in states.items()}
            memory.scale = 0
            losses["off"] = measure(correct)
    finally:
        memory.write_enabled, memory.scale = writes, scale
        memory.state_rows.restore(before)
    return compare(
        losses,
        [passage.stream for passage in passages],
        confidence=confidence,
        smallest=smallest,
        resamples=resamples,
        seed=seed,
        left_out=left_out,
    )


def match_norms(states: Tensor, like: Tensor) -> Tensor:
    """Scale states `[N, L, H, R, R]` to others' Frobenius norms, layer by layer and head by head; 0 stays 0."""
    norm, wanted = (part.flatten(3).norm(dim=-1)[..., None, None] for part in (states, like))
    return states * torch.where(norm > 0, wanted / norm.clamp_min(torch.finfo(norm.dtype).tiny), torch.zeros_like(norm))


def choose_donors(streams: Sequence[Hashable], generator: torch.Generator) -> list[int]:
    """Return for each passage the index of a passage of another stream, drawn at random."""
    donors = []
    for stream in streams:
        others = [number for number, other in enumerate(streams) if other != stream]
        donors.append(others[int(torch.randint(len(others), (), generator=generator))])
    return donors


def _check(passages: Sequence[Passage]) -> None:
    if len({passage.stream for passage in passages}) < 2:
        raise ValueError("expected passages of two streams or more: without another stream there is no donor")
    for number, passage in enumerate(passages):
        if passage.context.ndim != 1 or not len(passage.context):
            raise ValueError(f"passage {number}: context must be [T] with T ≥ 1, got {list(passage.context.shape)}")
        if passage.continuation.ndim != 1 or len(passage.continuation) < 2:
            raise ValueError(
                f"passage {number}: continuation must be [U] with U ≥ 2 (the first token is given), got "
                f"{list(passage.continuation.shape)}"
            )


def _batches(sizes: Sequence[Hashable], batch_size: int) -> list[list[int]]:
    """Indices of equal size, in batches: nothing is padded."""
    groups: dict[Hashable, list[int]] = {}
    for number, size in enumerate(sizes):
        groups.setdefault(size, []).append(number)
    return [group[at : at + batch_size] for group in groups.values() for at in range(0, len(group), batch_size)]


def _write_all(model: Any, memory: Attachment, passages: Sequence[Passage], batch_size: int) -> Tensor:
    """Write every context from zero; return the states `[N, L, H, R, R]`."""
    states = torch.zeros(len(passages), *memory.state_rows.shape, device=memory.device)
    memory.write_enabled = True
    for batch in _batches([(len(p.context), p.segment_ids is None) for p in passages], batch_size):
        memory.reset(len(batch))
        ids = [passages[number].segment_ids for number in batch]
        known = [part for part in ids if part is not None]
        if known:
            memory.set_segments(torch.stack(known), torch.stack(known))
        model(torch.stack([passages[number].context for number in batch]).to(memory.device), use_cache=False)
        states[batch] = memory.stacked_states
    return states


def _measurer(
    model: Any, memory: Attachment, passages: Sequence[Passage], batch_size: int
) -> Callable[[Tensor], npt.NDArray[np.float64]]:
    """Return a function from states `[N, L, H, R, R]` to each continuation's loss under them, nothing written."""
    batches = _batches([len(passage.continuation) for passage in passages], batch_size)

    def measure(states: Tensor) -> npt.NDArray[np.float64]:
        losses = np.zeros(len(passages))
        memory.write_enabled = False
        for batch in batches:
            memory.reset(len(batch))
            memory.stacked_states = states[batch]
            x = torch.stack([passages[number].continuation for number in batch]).to(memory.device)
            logits = model(x, use_cache=False).logits[:, :-1].float()
            loss = F.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten(), reduction="none").view(len(batch), -1)
            losses[batch] = loss.double().mean(1).cpu().numpy()
        return losses

    return measure


def _controls(
    correct: Tensor, streams: Sequence[Hashable], generator: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Make the control states, each `[N, L, H, R, R]`."""
    left_out = {}
    states = {
        "zero": torch.zeros_like(correct),
        "donor": match_norms(correct[choose_donors(streams, generator)], correct),
    }
    layers = correct.shape[1]
    if layers > 1:  # a random cycle: every layer gets another's
        cycle = torch.randperm(layers, generator=generator)
        source = torch.empty_like(cycle)
        source[cycle] = cycle.roll(1)
        states["layer_permuted"] = match_norms(correct[:, source.to(correct.device)], correct)
    else:
        left_out["layer_permuted"] = "there is one layer alone"
    noise = torch.randn(correct.shape, generator=generator).to(correct.device)
    states["random"] = match_norms(noise, correct)
    return states, left_out
