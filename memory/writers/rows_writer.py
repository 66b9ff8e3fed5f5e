"""Writes that are known already, from a tape or from another lane: a writer without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from memory.backbones.backbone import Backbone, Encoded, Ids
from memory.lane_state import Slots
from memory.projections import Projected
from memory.stages import Stages
from memory.writers.projected_writer import ProjectedBatch
from memory.writers.writer import Rows, Writer, Written


class RowsBackbone(Backbone):
    """Stands where the model stood: there is no text to turn into tokens, and no token into a hidden state."""

    name = "rows"
    vocabulary = None

    def __init__(self, dim: int, mean: npt.NDArray[np.float32] | None = None):
        self.dim, self.mean = dim, mean

    @property
    def fingerprint(self) -> str:
        """None of its own."""
        return "rows"

    def tokenize(self, texts: Sequence[str]) -> list[Ids]:
        """There is no text."""
        raise NotImplementedError("rows are written again without their texts")

    def encode(self, ids: Ids, offsets: Ids, *, want_hidden: bool) -> Encoded:
        """There is no model."""
        raise NotImplementedError("rows are written again without a model")


@dataclass(frozen=True, slots=True)
class Shape:
    """What a memory is, as far as writing to it goes.

    Attributes
    ----------
    layers, heads, rank, mode
        L, H, R and the delta rule's mode.
    dim, mean
        D, the width of an embedding; and the `[D]` float32 that are subtracted from it, or None.
    row_gates, own_lam
        As in `Writer`.
    settings
        What stored states depend on.
    """

    layers: int
    heads: int
    rank: int
    mode: str
    dim: int
    mean: npt.NDArray[np.float32] | None = None
    row_gates: bool = False
    own_lam: bool = False
    settings: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, writer: Writer) -> Shape:
        """Return that of another writer's memory."""
        backbone = writer.backbone
        return cls(
            writer.layers,
            writer.heads,
            writer.rank,
            writer.mode,
            backbone.dim,
            backbone.mean,
            writer.row_gates,
            writer.own_lam,
            writer.settings,
        )


class RowsWriter(Writer):
    """Writes the rows that were given to it last.

    Parameters
    ----------
    shape
        Of the memory that they are for.
    device
        Where the states lie.

    Examples
    --------
    >>> writer = RowsWriter(Shape(layers=1, heads=1, rank=2, mode="plain", dim=3))
    >>> one = np.array([[[1.0, 0.0]]], np.float32)
    >>> rows = Rows(np.array([0, 1]), one, one, one[..., :1], None, np.zeros((1, 3), np.float32))
    >>> ids = writer.give(rows, tokens=np.array([4]), scores=np.array([0.5]))
    >>> states, lane = torch.zeros(1, 1, 1, 2, 2), np.array([0])
    >>> written = writer.begin(ids, Stages()).advance(states, lane, np.array([0]), turn=np.array([0]))
    >>> states.flatten().tolist(), written.topic_shift_score.tolist(), len(ids[0])
    ([1.0, 0.0, 0.0, 0.0], [0.5], 4)
    """

    knows_topic_shift = True

    def __init__(self, shape: Shape, device: torch.device | str = "cpu"):
        self.backbone, self.shape, self.device = RowsBackbone(shape.dim, shape.mean), shape, torch.device(device)
        self.layers, self.heads, self.rank, self.mode = shape.layers, shape.heads, shape.rank, shape.mode
        self._rows: Rows | None = None
        self._scores: npt.NDArray[np.float64] = np.zeros(0)

    @property
    def row_gates(self) -> bool:
        """As it was."""
        return self.shape.row_gates

    @property
    def own_lam(self) -> bool:
        """As it was."""
        return self.shape.own_lam

    @property
    def settings(self) -> dict[str, str]:
        """As they were."""
        return self.shape.settings

    def give(self, rows: Rows, tokens: npt.NDArray[np.int64], scores: npt.NDArray[np.float64]) -> list[Ids]:
        """Take what n events wrote; return stand-ins for their tokens, as `begin` wants them.

        Parameters
        ----------
        rows
            What they wrote.
        tokens
            `[n]` int64: how many tokens each had.
        scores
            `[n]` float64: their topic-shift scores, which depend on no policy.
        """
        self._rows, self._scores = rows, scores
        some = np.zeros(int(tokens.max(initial=0)), np.int64)
        return [some[:count] for count in tokens.tolist()]

    def begin(self, ids: Sequence[Ids], stages: Stages) -> RowsBatch:
        """Begin the rows that were given."""
        assert self._rows is not None
        rows, here = self._rows, self.device
        k, v, beta = (torch.from_numpy(part).to(here) for part in (rows.keys, rows.values, rows.beta))
        lam = None if rows.lam is None else torch.from_numpy(rows.lam).to(here)
        projected = Projected(k, k, v, beta, lam)
        return RowsBatch(self.mode, rows.embedding, k.flatten(1), projected, rows.bounds, stages, scores=self._scores)


class RowsBatch(ProjectedBatch):
    """Rows on their way into the states."""

    def __init__(self, *arguments: Any, scores: npt.NDArray[np.float64]):
        super().__init__(*arguments)
        self._scores = scores

    def advance(self, states: torch.Tensor, slots: Slots, index: Slots, turn: npt.NDArray[np.int64]) -> Written:
        """Scan the events' rows; their topic-shift scores are known."""
        return replace(super().advance(states, slots, index, turn), topic_shift_score=self._scores[index])
