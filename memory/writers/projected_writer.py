"""Writes of a memory beside a frozen encoder: projections of its hidden states, scanned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from memory.backbones.backbone import Backbone, Ids
from memory.lane_state import Slots
from memory.projections import Projected, Projections
from memory.reach import largest_by_event, write_reach
from memory.stages import Stages
from memory.token_edges import token_edges
from memory.writers.segments import Segments
from memory.writers.writer import Batch, Rows, Writer, Written


class ProjectedWriter(Writer):
    """One layer of memory; keys, values and gates by seeded projections.

    Parameters
    ----------
    backbone, projections
        What turns token ids into hidden states, and those into keys, values and gates.
    mode
        The delta rule's mode.
    write
        ``segment``: one write an event, from the mean hidden state; ``token``: one a token.

    Examples
    --------
    >>> from memory.backbones import load_backbone
    >>> backbone = load_backbone("hashing")
    >>> writer = ProjectedWriter(backbone, Projections(backbone.dim, 1, 4, beta=0.5), mode="plain", write="token")
    >>> states, lane = torch.zeros(1, 1, 1, 4, 4), np.array([0])
    >>> batch = writer.begin([np.array([5, 9, 5])], Stages())
    >>> written = batch.advance(states, lane, np.array([0]), turn=np.array([2]))
    >>> written.count.tolist(), written.keys.shape
    ([3], (1, 1, 4))
    """

    layers = 1

    def __init__(self, backbone: Backbone, projections: Projections, *, mode: str, write: str):
        if write not in ("segment", "token"):
            raise ValueError(f"write must be segment or token, got {write!r}")
        self.backbone, self.project, self.mode, self.write = backbone, projections, mode, write
        self.heads, self.rank = projections.heads, projections.rank

    @property
    def row_gates(self) -> bool:
        """Where the input moves them."""
        return self.project.gain > 0

    @property
    def own_lam(self) -> bool:
        """Where it was given."""
        return self.project.lam is not None

    @property
    def settings(self) -> dict[str, str]:
        """Backbone, rule and projections."""
        project = self.project
        return {
            "--backbone": self.backbone.fingerprint,
            "--rank": str(self.rank),
            "--mode": self.mode,
            "--write": self.write,
            "--beta": str(project.beta),
            "--lam": str(project.lam),
            "--gate-gain": str(project.gain),
            "--seed": str(project.seed),
        }

    def begin(self, ids: Sequence[Ids], stages: Stages) -> ProjectedBatch:
        """Encode and project a micro-batch."""
        lengths = np.fromiter((len(row) for row in ids), np.int64, len(ids))
        with stages("backbone"):
            offsets = np.concatenate([[0], np.cumsum(lengths)])
            wants_hidden = self.write == "token" or self.wants_edges
            encoded = self.backbone.encode(np.concatenate(ids), offsets, want_hidden=wants_hidden)
        with stages("projection"):
            embeddings = encoded.embedding.cpu().numpy()
            embeddings[lengths == 0] = np.nan  # of no tokens there is no embedding, whatever a model makes of them
            edges = None
            if self.wants_edges:
                edges = token_edges(cast(Tensor, encoded.hidden).cpu().numpy(), offsets)
            if self.write == "token":
                rows, bounds = cast(Tensor, encoded.hidden), offsets
            else:  # one row an event; an event without tokens has nothing to write
                some = torch.from_numpy(lengths > 0).to(encoded.embedding.device)
                rows, bounds = encoded.embedding[some], np.concatenate([[0], np.cumsum(lengths > 0)])
            return ProjectedBatch(self.mode, embeddings, rows, self.project(rows), bounds, stages, edges=edges)


class ProjectedBatch(Batch):
    """A micro-batch whose rows to write are known.

    Parameters
    ----------
    mode
        The delta rule's.
    embeddings
        `[n, D]` float32.
    hidden, rows
        `[M, D]`, and its projections: what is written.
    bounds
        `[n + 1]` int64: event i writes the rows `bounds[i]:bounds[i + 1]`.
    stages
        Where the time goes.
    edges
        `[n, 3 D]` float32, or None.
    """

    def __init__(
        self,
        mode: str,
        embeddings: npt.NDArray[np.float32],
        hidden: Tensor,
        rows: Projected,
        bounds: npt.NDArray[np.int64],
        stages: Stages,
        *,
        edges: npt.NDArray[np.float32] | None = None,
    ):
        self._edges = edges
        self._mode, self._embeddings, self._rows, self._bounds, self._stages = mode, embeddings, rows, bounds, stages
        self._sound: Tensor | None = None  # [M] bool: rows to write; None: all of them
        if not bool(torch.isfinite(hidden.sum() + rows.k.sum() + rows.v.sum())):  # rare: only then look
            finite = torch.isfinite(hidden)
            self.nonfinite = int(finite.numel() - finite.sum())
            self._sound = (torch.isfinite(rows.k) & torch.isfinite(rows.v)).flatten(1).all(dim=1)
            self.nonfinite += int((finite.all(dim=1) & ~self._sound).sum())  # huge numbers overflow here
        # Sound rows before each event, and the pairs of those rows alone.
        self._before, self._keys, self._values = bounds, rows.k.cpu().numpy(), rows.v.cpu().numpy()
        if self._sound is not None:
            sound = self._sound.cpu().numpy()
            self._before = np.concatenate([[0], np.cumsum(sound)])[bounds]
            self._keys, self._values = self._keys[sound], self._values[sound]
        self._counts = np.diff(self._before)
        self._largest: npt.NDArray[np.float64] | None = None
        own = self.rows()
        reach = write_reach(mode, own.keys.shape[2], own.values, own.beta, own.lam)
        self._reach = largest_by_event(reach, self._before)

    def advance(self, states: Tensor, slots: Slots, index: Slots, turn: npt.NDArray[np.int64]) -> Written:
        """Scan the events' rows."""
        with self._stages("scan"):
            result = self.segments(index).scan(states.flatten(1, 2), slots, self._mode)
            norms = result.state_norm.cpu().numpy()
            error = result.mean_write_error.cpu().numpy().astype(np.float64)
        keys, values = self._pairs(index, turn)
        count = self._counts[index]
        error[count == 0] = np.nan
        edges = None if self._edges is None else self._edges[index]
        return Written(self._embeddings[index], count, error, norms, keys, values, self._reach[index], edges)

    def _pairs(self, index: Slots, turn: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float32], ...]:
        count = self._counts[index]
        row = self._before[index] + turn % np.maximum(count, 1)
        wrote = count > 0
        if wrote.all():
            return self._keys[row], self._values[row]
        pairs = np.zeros((2, len(index), *self._keys.shape[1:]), np.float32)
        pairs[0, wrote], pairs[1, wrote] = self._keys[row[wrote]], self._values[row[wrote]]
        return pairs[0], pairs[1]

    def largest(self, index: Slots) -> npt.NDArray[np.float64]:
        """Return the size of the largest number in the events' values; 0 for an event that writes nothing."""
        if self._largest is None:
            each = np.abs(self._values).max(axis=(1, 2), initial=0).astype(np.float64)
            events = np.repeat(np.arange(len(self._counts)), self._counts)
            self._largest = np.zeros(len(self._counts))
            np.maximum.at(self._largest, events, each)
        return self._largest[index]

    def embeddings(self, index: Slots) -> npt.NDArray[np.float32]:
        """Return the events' embeddings."""
        return self._embeddings[index]

    def segments(self, index: Slots) -> Segments:
        """Return the rows of the whole batch, and where the events' are."""
        rows = self._rows
        return Segments(index, self._bounds, rows.q, rows.k, rows.v, rows.beta, rows.lam, self._sound)

    def rows(self) -> Rows:
        """Return the rows without non-finite numbers."""
        gates = [None if gate is None else gate.cpu().numpy() for gate in (self._rows.beta, self._rows.lam)]
        if self._sound is not None:
            sound = self._sound.cpu().numpy()
            gates = [None if gate is None else gate[sound] for gate in gates]
        beta, lam = gates
        assert beta is not None
        return Rows(self._before, self._keys, self._values, beta, lam, self._embeddings)
