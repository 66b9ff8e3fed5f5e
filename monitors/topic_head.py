"""The trained weights of the topic-shift monitor, and the shapes that follow from them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

WEIGHTS = Path(__file__).with_name("topic_head.npz")
"""The weights that ship with the package: `python -m benchmarks.topic_train` made them."""

LAGS = 6
"""How many events back the new one is compared with, one by one."""

WINDOWS = (2, 4, 6)
"""How many events back the means reach that the plain embedding is compared with; at most `LAGS`."""

RATES = (0.5, 0.25, 0.1)
"""Weights of the newest event in the running means that the learnt direction is compared with."""

PRIOR, PRIOR_RATE = 0.2, 0.05
"""The rate of shifts that the weights were calibrated at, and how fast a stream's own is learnt."""

BAG = 32
"""Only so many first tokens of an event go into its bag of words."""

BYTES = ("metric", "content", "edges", "words", "inner")
"""Stored as int8, with one scale for each last axis; the rest as float16."""

Array = npt.NDArray[np.float32]


def bucket(tokens: npt.NDArray[np.int64], buckets: int) -> npt.NDArray[np.int64]:
    """Return each token id's hash bucket (Knuth's multiplicative hash; the low byte of the product is least mixed).

    Examples
    --------
    >>> bucket(np.array([0, 1, 2], np.int64), 512).tolist()
    [0, 377, 243]
    """
    return (((tokens & 0xFFFFFFFF) * 2654435761 & 0xFFFFFFFF) >> 8) % buckets


@dataclass(frozen=True, slots=True)
class TopicHead:
    """All matrices, float32, one row an output; see `TrainedTopicShiftMonitor` for what is done with them.

    Attributes
    ----------
    metric, content
        `[A, D]`: the embedding as it is compared, and as it is read.
    edges, edges_bias
        `[X, 3 D]` and `[X]`: read from the hidden states of the first token, the last, and their maximum.
    words
        `[3, B + 1, W]`: a vector for each of B hash buckets of token ids, for all tokens, the first and the last.
        Bucket B is empty.
    inner, inner_bias
        `[M, Z]` and `[M]`: the layer that sees this event, the one before it, and how alike the past is.
    gates_in, gates_in_bias, gates_past, gates_past_bias
        `[3 G, M]`, `[3 G]`, `[3 G, G]`, `[3 G]`: a gated recurrent unit, in the order reset, update, new.
    out, out_bias
        `[G + M]` and `[1]`: the logit of a boundary.
    backbone
        The fingerprint of the backbone whose embeddings these weights were trained on.
    version
        The first digits of the file's SHA-256: another file, another version.
    """

    metric: Array
    content: Array
    edges: Array
    edges_bias: Array
    words: Array
    inner: Array
    inner_bias: Array
    gates_in: Array
    gates_in_bias: Array
    gates_past: Array
    gates_past_bias: Array
    out: Array
    out_bias: Array
    backbone: str
    version: str

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The matrices, in the order of the fields."""
        return tuple(getattr(self, field.name) for field in fields(self)[:-2])

    @property
    def utterance(self) -> int:
        """U, numbers that say what an event is: content, words three times, length, edges."""
        return int(len(self.content) + 3 * self.words.shape[2] + 1 + len(self.edges))

    @property
    def reading(self) -> int:
        """Numbers read from an event alone: the embedding's direction, the metric's, and U."""
        return int(sum(self.metric.shape)) + self.utterance


def save_head(path: Path, arrays: dict[str, npt.NDArray[np.floating]], backbone: str) -> None:
    """Write weights, rounded to int8 or float16, as an uncompressed npz: the same arrays give the same bytes."""
    stored: dict[str, npt.NDArray[Any]] = {"backbone": np.array(backbone)}
    for name, array in arrays.items():
        if name in BYTES:
            scale = np.maximum(np.abs(array).max(axis=-1, keepdims=True), 1e-8).astype(np.float32) / 127
            stored[name], stored[f"{name}_scale"] = np.rint(array / scale).astype(np.int8), scale
        else:
            stored[name] = np.asarray(array, np.float16)
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **stored)


def load_head(path: Path = WEIGHTS) -> TopicHead:
    """Read weights; the file is never unpickled.

    Raises
    ------
    ValueError
        An array is missing, has another name, or the shapes do not fit each other.

    Examples
    --------
    >>> head = load_head()
    >>> head.metric.shape[1], head.backbone.split()[0], len(head.version)
    (384, 'minilm/1', 16)
    """
    blob = path.read_bytes()
    names = [field.name for field in fields(TopicHead)[:-2]]
    with np.load(BytesIO(blob), allow_pickle=False) as file:
        wanted = {*names, *(f"{name}_scale" for name in BYTES), "backbone"}
        if set(file.files) != wanted:
            raise ValueError(f"expected the arrays {sorted(wanted)} in {path}, got {sorted(file.files)}")
        arrays = {name: file[name].astype(np.float32) for name in names}
        arrays |= {name: arrays[name] * file[f"{name}_scale"] for name in BYTES}
        head = TopicHead(**arrays, backbone=str(file["backbone"]), version=sha256(blob).hexdigest()[:16])
    gates, layer = head.gates_past.shape[1], len(head.inner)
    seen = 2 * head.utterance + 2 * LAGS + len(WINDOWS) + len(RATES) + 2 * len(head.metric)
    if head.inner.shape[1] != seen or head.gates_in.shape != (3 * gates, layer) or len(head.out) != gates + layer:
        raise ValueError(
            f"expected inner [{layer}, {seen}], gates_in [{3 * gates}, {layer}] and out [{gates + layer}] in {path}, "
            f"got {head.inner.shape}, {head.gates_in.shape} and {head.out.shape}: weights of another version"
        )
    return head


@cache
def shipped_head() -> TopicHead:
    """Return the weights that ship with the package, read once."""
    return load_head()
