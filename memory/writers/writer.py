"""What turns events into writes on their streams' states: the seam between the models and the engine.

Two kinds of memory stand behind it. Beside a sentence encoder, keys and values are projections of hidden states that do
not depend on the memory, so a micro-batch is encoded at once. Attached to a language model, the memory is read while
the model runs, so each event needs its stream's state, and is encoded when its turn comes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from memory.backbones.backbone import Backbone, Ids
from memory.lane_state import LaneState, Slots
from memory.stages import Stages
from memory.writers.segments import Segments

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Written:
    """What n events, each on a lane of its own, did to their states. L layers, H heads, N = L · H, all on the host.

    Attributes
    ----------
    embedding
        `[n, D]` float32: each event's mean hidden state; NaN for an event without tokens.
    count
        `[n]` int64: writes; 0 for an event without tokens, or one that was kept out for non-finite numbers.
    write_error
        `[n, N]` float64: ‖v − S k‖ / ‖v‖ before each write, the mean over writes; NaN without any.
    head_norms
        `[n, N]` float32: ‖S‖_F of each head afterwards.
    keys, values
        `[n, N, R]` float32: one pair that each event wrote, its writes taking turns; zeros where it wrote none.
    reach
        `[n, N, 1]` or `[n, N, R]` float32: how large the writes allow the state to become (`memory.reach`); None where
        nothing bounds it.
    edges
        `[n, 3 D]` float32: `memory.token_edges` of the hidden states, where they are wanted; else None.
    topic_shift_score
        `[n]` float64 where it is known already, from a tape; else None.
    """

    embedding: Vectors
    count: npt.NDArray[np.int64]
    write_error: npt.NDArray[np.float64]
    head_norms: Vectors
    keys: Vectors
    values: Vectors
    reach: Vectors | None = None
    edges: Vectors | None = None
    topic_shift_score: npt.NDArray[np.float64] | None = None

    def heads(self, chosen: Sequence[int]) -> Written:
        """Return the same of these heads alone."""
        at = list(chosen)
        return replace(
            self,
            write_error=self.write_error[:, at],
            head_norms=self.head_norms[:, at],
            keys=self.keys[:, at],
            values=self.values[:, at],
            reach=None if self.reach is None else self.reach[:, at],
        )


@dataclass(frozen=True, slots=True)
class Rows:
    """Everything that n events wrote, as a tape keeps it: M writes in all, N = L · H. On the host.

    Attributes
    ----------
    bounds
        `[n + 1]` int64: event i wrote the rows `bounds[i]:bounds[i + 1]`, in order.
    keys, values
        `[M, N, R]` float32.
    beta
        `[M, N, R]` float32, or `[M, N, 1]` where all rows of a head share the gate.
    lam
        Like `beta`; None where the mode has no retention gate of its own.
    embedding
        `[n, D]` float32.
    """

    bounds: npt.NDArray[np.int64]
    keys: Vectors
    values: Vectors
    beta: Vectors
    lam: Vectors | None
    embedding: Vectors


class Batch(ABC):
    """One micro-batch on its way into the states.

    Attributes
    ----------
    nonfinite
        Non-finite numbers met so far, and kept out of the states.
    known_before
        Whether what an event writes is known before it is advanced.
    """

    nonfinite: int = 0
    known_before: bool = True

    @abstractmethod
    def advance(self, states: Tensor, slots: Slots, index: Slots, turn: npt.NDArray[np.int64]) -> Written:
        """Write events to their lanes, in place.

        Parameters
        ----------
        states
            `[S, L, H, R, R]` float32: the pool's.
        slots
            `[n]` int64, all different: each event's lane.
        index
            `[n]` int64: which events of the batch. A stream's events are advanced in their order.
        turn
            `[n]` int64: which of its writes an event shows as its pair, modulo their number.
        """

    def embeddings(self, index: Slots) -> Vectors:
        """Return the events' embeddings, `[n, D]` float32, where they are known before."""
        raise NotImplementedError("known only once the events are advanced")

    def largest(self, index: Slots) -> npt.NDArray[np.float64]:
        """Return the size of the largest number in the events' values, `[n]` float64; NaN where it is not known yet."""
        return np.full(len(index), np.nan)

    @abstractmethod
    def segments(self, index: Slots) -> Segments:
        """Return what the events at `index` `[n]` write, to be written elsewhere too: to zeros, or to filed states.

        Where keys and values depend on the states (`known_before` is False), of events that were just advanced.
        """

    @abstractmethod
    def rows(self) -> Rows:
        """Return what the events of the micro-batch wrote, once all of them were advanced."""


class Writer(ABC):
    """A model and the way that its hidden states are written. Its life:

    1. `backbone.tokenize(texts)` as lines are read, in the reader's thread;
    2. `begin(ids, stages)` once for each micro-batch, then its `advance`, in the loop's thread.

    Attributes
    ----------
    backbone
        Tokenises, and says how wide an embedding is.
    layers, heads, rank
        L, H and R: a state is `[L, H, R, R]`.
    mode
        The delta rule's, by its name.
    lanes
        What is kept for each lane beside its state, or None.
    keeps_rows
        Whether `Batch.rows` will be asked for.
    knows_topic_shift
        Whether `Written.topic_shift_score` is known already, so that nobody has to measure it.
    wants_edges
        Whether `Written.edges` will be asked for. A writer attached to a model gives none.
    """

    backbone: Backbone
    layers: int
    heads: int
    rank: int
    mode: str
    lanes: LaneState | None = None
    keeps_rows: bool = False
    knows_topic_shift: bool = False
    wants_edges: bool = False

    @property
    @abstractmethod
    def row_gates(self) -> bool:
        """Whether the rows of a head have gates of their own."""

    @property
    @abstractmethod
    def own_lam(self) -> bool:
        """Whether writes come with a retention gate of their own."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, str]:
        """What stored states depend on, by the name of the option that says it."""

    @abstractmethod
    def begin(self, ids: Sequence[Ids], stages: Stages) -> Batch:
        """Take in a micro-batch of n events, the tokens of event i being `ids[i]`, `[length]` int64."""
