"""What a tape holds, written to states again: a writer without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from memory.backbones.backbone import Backbone, Encoded, Ids
from memory.lane_state import Slots
from memory.projections import Projected
from memory.stages import Stages
from memory.writers import Rows, Writer, Written
from memory.writers.projected_writer import ProjectedBatch
from stream.event import Event
from stream.tape.format import TapeHead, rows_of


class TapedBackbone(Backbone):
    """Stands where the model stood: there is no text to turn into tokens, and no token into a hidden state."""

    name = "tape"
    vocabulary = None

    def __init__(self, dim: int, mean: Sequence[float] | None = None):
        self.dim, self.mean = dim, None if mean is None else np.array(mean, np.float32)

    @property
    def fingerprint(self) -> str:
        """None of its own."""
        return "tape"

    def tokenize(self, texts: Sequence[str]) -> list[Ids]:
        """There is no text on the way through a replay."""
        raise NotImplementedError("a tape is replayed without its texts")

    def encode(self, ids: Ids, offsets: Ids, *, want_hidden: bool) -> Encoded:
        """There is no model."""
        raise NotImplementedError("a tape is replayed without a model")


class TapedWriter(Writer):
    """Writes what the record batch that was loaded last says.

    Parameters
    ----------
    head
        Of the tape.
    """

    def __init__(self, head: TapeHead):
        self.backbone, self._head = TapedBackbone(head.dim, head.mean), head
        self.layers, self.heads, self.rank, self.mode = head.layers, head.heads, head.rank, head.mode
        self._rows: Rows | None = None
        self._scores: npt.NDArray[np.float64] = np.zeros(0)

    @property
    def row_gates(self) -> bool:
        """As in the run."""
        return self._head.row_gates

    @property
    def own_lam(self) -> bool:
        """Whether it is on the tape."""
        return self._head.own_lam

    @property
    def settings(self) -> dict[str, str]:
        """Those of the run that was recorded."""
        return self._head.settings

    def load(self, batch: pa.RecordBatch) -> tuple[list[Event], list[Ids]]:
        """Take a record batch; return its events, without text, and stand-ins for their tokens, as `begin` wants
        them."""
        self._rows = rows_of(batch, self._head)
        self._scores = batch["topic_shift_score"].to_numpy(zero_copy_only=False)
        names, ids = batch["stream"].to_pylist(), batch["id"].to_pylist()
        events = [Event(stream, tokens=[0], id=name) for stream, name in zip(names, ids, strict=True)]
        return events, [np.zeros(count, np.int64) for count in batch["tokens"].to_pylist()]

    def begin(self, ids: Sequence[Ids], stages: Stages) -> TapedBatch:
        """Begin the record batch that was loaded."""
        assert self._rows is not None
        rows = self._rows
        # The scan's tensors must be writable memory, and Arrow's is not.
        k, v, beta = (torch.from_numpy(part.copy()) for part in (rows.keys, rows.values, rows.beta))
        lam = None if rows.lam is None else torch.from_numpy(rows.lam.copy())
        return TapedBatch(
            self.mode, rows.embedding, k, Projected(k, k, v, beta, lam), rows.bounds, stages,
            scores=self._scores,
        )  # fmt: skip


class TapedBatch(ProjectedBatch):
    """A record batch on its way into the states."""

    def __init__(self, *arguments: Any, scores: npt.NDArray[np.float64]):
        super().__init__(*arguments)
        self._scores = scores

    def advance(self, states: torch.Tensor, slots: Slots, index: Slots, turn: npt.NDArray[np.int64]) -> Written:
        """Scan the events' rows; the topic-shift scores are those of the tape."""
        return replace(super().advance(states, slots, index, turn), topic_shift_score=self._scores[index])
