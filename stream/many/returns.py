"""Where a topic is back, by the tape alone: the same for every policy.

An event's *old likeness* is the largest cosine between its embedding and that of an event of the same stream that is
at least `OLD` events older, both centred on the stream's mean embedding. Its topic counts as back if that is above zero
and above the 75th percentile of the stream's old likenesses. A cosine that means "the same topic" differs from encoder
to encoder and from stream to stream, so the bar is a rank and not a number: the clearest quarter of each stream, which
is enough for a mean and leaves out what is merely the least unlike. Both the mean and the percentile are taken over the
whole tape, with hindsight: they are a yardstick, which no policy sees.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

OLD = 32
"""Events that lie at least between an event and the one that it comes back to."""

SHARE = 0.75
"""The share of a stream's events whose old likeness is too small to say that a topic is back."""


def returns(embeddings: npt.NDArray[np.float32], writes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Name for each event the old one whose topic is back with it.

    Parameters
    ----------
    embeddings
        `[T, D]` float32, of one stream, in order; NaN where there is none.
    writes
        `[T]` int64: the pairs that each event wrote; one without any is never named.

    Returns
    -------
    ndarray
        `[T]` int64: the old event; −1 where no topic is back.

    Examples
    --------
    Three topics, 20 events each; then the first one comes back for 20.

    >>> topic = np.eye(3, 8, dtype=np.float32)[np.repeat([0, 1, 2, 0], 20)]
    >>> told = topic + 0.05 * np.random.default_rng(0).normal(size=(80, 8)).astype(np.float32)
    >>> back = returns(told, np.ones(80, np.int64))
    >>> bool((back[:60] < 0).all()), set((back[back >= 0] // 20).tolist())
    (True, {0})
    """
    found = np.full(len(embeddings), -1)
    rows = embeddings.astype(np.float64)
    sound = cast("npt.NDArray[np.bool_]", np.isfinite(rows).all(axis=1))
    if not sound.any():
        return found
    centred = np.where(sound[:, None], rows - rows[sound].mean(axis=0), 0.0)
    size = np.sqrt((centred * centred).sum(axis=1, keepdims=True))
    unit = centred / np.where(size > 0, size, 1.0)
    asked = sound & (size[:, 0] > 0)
    old = np.flatnonzero(asked & (writes > 0))
    likeness = np.full(len(rows), -np.inf)
    for event in np.flatnonzero(asked).tolist():
        before = old[: np.searchsorted(old, event - OLD, side="right")]
        if len(before):
            cosines = np.einsum("ed,d->e", unit[before], unit[event])
            best = int(cosines.argmax())
            likeness[event], found[event] = cosines[best], before[best]
    some = found >= 0
    if some.any():
        bar = max(0.0, float(np.quantile(likeness[some], SHARE)))
        found[likeness <= bar] = -1
    return found
