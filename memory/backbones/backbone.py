"""What every backbone is: a frozen model that turns token ids into hidden states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Encoded:
    """G segments as a backbone sees them, T tokens in all.

    Attributes
    ----------
    embedding
        `[G, D]` float32: one vector a segment, the mean of its hidden states as the model pools them.
    hidden
        `[T, D]` float32, the segments end to end; None unless asked for.
    """

    embedding: Tensor
    hidden: Tensor | None


class Backbone(ABC):
    """A frozen model. Its life:

    1. `tokenize(texts)` as lines are read, in the reader's thread;
    2. `encode(ids, offsets)` once for each micro-batch, in the loop's thread.

    A segment's numbers depend on that segment alone, bit for bit: not on the segments beside it, their order, or the
    number of threads. What is stored with a state is `fingerprint`, so that a state is never continued under another
    model.
    """

    name: str
    dim: int
    """D, the width of a hidden state."""
    vocabulary: int | None
    """Token ids lie below this; None: any id will do."""
    mean: npt.NDArray[np.float32] | None = None
    """`[D]`: the mean hidden state over ordinary text, to be subtracted; None where it is zero."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Say which model and weights these are, in a few words that change when the hidden states would."""

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> list[Ids]:
        """Return each text's token ids, `[length]` int64, without special tokens. May be empty."""

    @abstractmethod
    def encode(self, ids: Ids, offsets: Ids, *, want_hidden: bool) -> Encoded:
        """Run the model over G segments laid end to end.

        Parameters
        ----------
        ids
            `[T]` int64.
        offsets
            `[G + 1]` int64: segment g is `ids[offsets[g]:offsets[g + 1]]`.
        want_hidden
            Whether the hidden state of each token is needed, or only the embeddings.
        """
