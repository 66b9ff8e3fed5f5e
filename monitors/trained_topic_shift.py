"""The probability that an event begins a new topic, from a small trained network over the recent past."""

from __future__ import annotations

from typing import Any, ClassVar

import numba
import numpy as np
import numpy.typing as npt

from memory.lane_state import Column, Columns, Slots
from memory.threads import share_out
from monitors.observations import Floats
from monitors.topic_head import BAG, LAGS, PRIOR, PRIOR_RATE, RATES, WINDOWS, TopicHead

ABOVE = 0.35
"""The probability above which an event is taken to begin a new topic: the best mean Score over held-out folds."""

Ids = npt.NDArray[np.int64]
Rows = npt.NDArray[np.float32]


class TrainedTopicShiftMonitor:
    """P(this event begins a new topic | the events so far), causal, for the backbone that the weights were trained on.

    With e the embedding, centred and scaled to length 1, and what the lane remembers of the events before it::

        a = normalised(metric e)     u = [content e, the tokens' mean word vector, the first's, the last's,
                                          log(1 + tokens), edges · (first, last and greatest hidden state)]
        z = [u, u of the event before, a·aₖ and e·eₖ of the last 6 events, cos of e with the mean of the last 2, 4
             and 6, of a with three running means, a∘a₁, a∘(the middle running mean's direction)]
        h = relu(inner z)     g = GRU(h, g)     l = out · [g, h]
        p = σ(l + min(0, logit ρ − logit 0.2))     ρ ← ρ + 0.05 (σ(l) − ρ)

    The last line is Bayes' rule for a stream whose own rate of shifts ρ, as far as seen, is below the 1 in 5 at which
    the weights were calibrated: what alarms in a dense dialogue need not in a long stream with few shifts. Word
    vectors are looked up by a hash of the token's id: the weights hold no vocabulary.

    A lane's first event has probability 0. An event without tokens, or with numbers that are not finite, has none
    (NaN) and leaves the lane alone.

    Parameters
    ----------
    head
        The weights.
    mean
        `[D]` float32 subtracted from each embedding first, or None.

    Examples
    --------
    >>> from monitors.topic_head import shipped_head
    >>> monitor = TrainedTopicShiftMonitor(shipped_head())
    >>> monitor.lanes.resize(2)
    >>> rng = np.random.default_rng(0)
    >>> embeddings, edges = rng.normal(size=(2, 384)).astype("f4"), rng.normal(size=(2, 1152)).astype("f4")
    >>> tokens, offsets = np.array([7, 8, 9]), np.array([0, 2, 3])
    >>> monitor.measure(np.array([0, 1]), embeddings, tokens, offsets, edges).tolist()
    [0.0, 0.0]
    >>> (0 < monitor.measure(np.array([0, 1]), embeddings, tokens, offsets, edges)).tolist()
    [True, True]

    References
    ----------
    Cho et al.: Learning phrase representations using RNN encoder-decoder, EMNLP 2014 (the gated recurrent unit).
    """

    wants_edges = True
    """`measure` needs `token_edges` of the hidden states, not only the embeddings."""

    detector: ClassVar[dict[str, Any]] = {"name": "threshold", "above": ABOVE}
    """What decides on the event: the default of `topic_shift_score` where this monitor measures it."""

    def __init__(self, head: TopicHead, mean: npt.NDArray[np.float32] | None = None):
        self.head = head
        width, dim = head.metric.shape
        self.mean = np.zeros(dim, np.float32) if mean is None else np.asarray(mean, np.float32)
        self.lanes = Columns(
            {
                "count": Column("int64"),
                "rate": Column("float64", fill=PRIOR),
                "units": Column("int8", (LAGS, dim)),  # e and a of the last events, in turn, 1/508 and 1/127 a step
                "metrics": Column("int8", (LAGS, width)),
                "means": Column("float32", (len(RATES), width)),
                "before": Column("float32", (head.utterance,)),
                "gates": Column("float32", (head.gates_past.shape[1],)),
            }
        )

    @property
    def settings(self) -> str:
        """Which weights: under others a lane starts afresh."""
        return f"trained {self.head.version}"

    def measure(self, slots: Slots, embeddings: Rows, tokens: Ids, offsets: Ids, edges: Rows | None) -> Floats:
        """Return the probabilities of n events, each on a lane of its own, and take them in.

        Parameters
        ----------
        slots
            `[n]`: the events' lanes.
        embeddings
            `[n, D]` float32.
        tokens, offsets
            `[T]` and `[n + 1]` int64: event i has the tokens `tokens[offsets[i]:offsets[i + 1]]`.
        edges
            `[n, 3 D]` float32: `token_edges` of the events' hidden states.

        Returns
        -------
        `[n]` float64.

        Raises
        ------
        ValueError
            No edges.
        """
        if edges is None:
            raise ValueError("expected the tokens' edges [n, 3 D], got None: encode with want_hidden=True")
        scores = np.empty(len(slots), np.float64)
        if len(slots):
            rows = np.empty((len(slots), self.head.reading), np.float32)
            weights, lanes = self.head.arrays, [self.lanes[name] for name in self.lanes.columns]
            work = len(slots) * sum(matrix.size for matrix in weights)
            read = (embeddings, self.mean, tokens, offsets, edges, *weights[:5], rows)
            compare = (slots, rows, _WINDOWS, _RATES, *lanes, *weights[5:], scores)

            def run(first: int, last: int) -> None:
                _read(first, last, *read)
                _measure(first, last, *compare)

            share_out(run, len(slots), work)
        return scores


_WINDOWS = np.array(WINDOWS, np.int64)
_RATES = np.array(RATES, np.float32)
_UNIT_STEPS, _METRIC_STEPS = np.float32(508), np.float32(127)


# Sums may be reordered into vectors; a row's sums are the same whatever the other rows.
@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"}, error_model="numpy")
def _dot(a: Any, b: Any) -> Any:
    total = np.float32(0)
    for d in range(len(a)):
        total += a[d] * b[d]
    return total


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _scale_of(a: Any) -> Any:
    """1 over the length; 0 for nothing."""
    length = np.sqrt(_dot(a, a))
    return np.float32(1) / length if length > np.float32(1e-6) else np.float32(0)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _bucket(token: Any, buckets: Any) -> Any:
    """The same as `monitors.topic_head.bucket`."""
    return (((token & 0xFFFFFFFF) * 2654435761 & 0xFFFFFFFF) >> 8) % buckets


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _read(
    first: Any,
    last: Any,
    embeddings: Any,
    mean: Any,
    tokens: Any,
    offsets: Any,
    edges: Any,
    metric: Any,
    content: Any,
    read: Any,
    read_bias: Any,
    words: Any,
    rows: Any,
) -> None:
    """Fill `rows` `[n, reading]` with each event's e, a and u; NaN where there is nothing to read."""
    width, dim = metric.shape
    buckets, size = words.shape[1] - 1, words.shape[2]
    for row in range(first, last):
        start, end, out = offsets[row], offsets[row + 1], rows[row]
        unit = out[:dim]
        for d in range(dim):
            unit[d] = embeddings[row, d] - mean[d]
        length = _dot(unit, unit)
        if end == start or not (length > 0 and length < np.inf):
            out[:] = np.nan
            continue
        unit *= np.float32(1) / np.sqrt(length)
        at = dim + width
        for k in range(width):
            out[dim + k] = _dot(metric[k], unit)
            out[at + k] = _dot(content[k], unit)
        out[dim:at] *= _scale_of(out[dim:at])
        at += width
        bag = min(end - start, BAG)
        out[at : at + size] = 0
        for t in range(start, start + bag):
            out[at : at + size] += words[0, _bucket(tokens[t], buckets)]
        out[at : at + size] *= np.float32(3) / np.float32(bag)
        out[at + size : at + 2 * size] = words[1, _bucket(tokens[start], buckets)]
        out[at + 2 * size : at + 3 * size] = words[2, _bucket(tokens[end - 1], buckets)]
        at += 3 * size
        out[at] = np.float32(np.log1p(np.float64(end - start)) - 2.3)
        for k in range(len(read)):
            out[at + 1 + k] = np.float32(0.3) * (_dot(read[k], edges[row]) + read_bias[k])
        if not np.isfinite(_dot(out, out)):
            out[:] = np.nan


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _steps(a: Any, steps: Any, out: Any) -> None:
    """Round to int8."""
    for d in range(len(a)):
        out[d] = np.int8(min(np.float32(127), max(np.float32(-127), np.rint(a[d] * steps))))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _measure(
    first: Any,
    last: Any,
    slots: Any,
    rows: Any,
    windows: Any,
    rates: Any,
    count: Any,
    rate: Any,
    units: Any,
    metrics: Any,
    means: Any,
    before: Any,
    gates: Any,
    inner: Any,
    inner_bias: Any,
    gates_in: Any,
    gates_in_bias: Any,
    gates_past: Any,
    gates_past_bias: Any,
    out: Any,
    out_bias: Any,
    scores: Any,
) -> None:
    layer, seen = inner.shape
    size, lags, dim, width = gates_past.shape[1], units.shape[1], units.shape[2], metrics.shape[2]
    z, h, total = np.empty(seen, np.float32), np.empty(layer, np.float32), np.empty(dim, np.float32)
    x, y = np.empty(3 * size, np.float32), np.empty(3 * size, np.float32)
    for row in range(first, last):
        slot, new = slots[row], rows[row]
        if not np.isfinite(new[0]):
            scores[row] = np.nan
            continue
        n, e, a, u = count[slot], new[:dim], new[dim : dim + width], new[dim + width :]
        z[: len(u)] = u
        z[len(u) : 2 * len(u)] = before[slot]
        at = 2 * len(u)
        total[:] = 0
        window = 0
        for k in range(lags):  # places that are not filled yet hold zeros
            place = (n - 1 - k) % lags
            z[at + k] = 2 * _dot(a, metrics[slot, place]) / _METRIC_STEPS
            z[at + lags + k] = 2 * _dot(e, units[slot, place]) / _UNIT_STEPS
            for d in range(dim):
                total[d] += np.float32(units[slot, place, d])
            if k + 1 == windows[window]:
                z[at + 2 * lags + window] = 2 * _dot(e, total) * _scale_of(total)
                window = min(window + 1, len(windows) - 1)
        at += 2 * lags + len(windows)
        for k in range(len(rates)):
            z[at + k] = 2 * _dot(a, means[slot, k]) * _scale_of(means[slot, k])
        at += len(rates)
        old, scale = metrics[slot, (n - 1) % lags], _scale_of(means[slot, 1])
        for d in range(width):
            z[at + d] = 6 * a[d] * (np.float32(old[d]) / _METRIC_STEPS)
            z[at + width + d] = 6 * a[d] * means[slot, 1, d] * scale
        for k in range(layer):
            h[k] = max(_dot(inner[k], z) + inner_bias[k], np.float32(0))
        g = gates[slot]
        for k in range(3 * size):
            x[k] = _dot(gates_in[k], h) + gates_in_bias[k]
            y[k] = _dot(gates_past[k], g) + gates_past_bias[k]
        for k in range(size):
            reset = np.float32(1) / (np.float32(1) + np.exp(-(x[k] + y[k])))
            update = np.float32(1) / (np.float32(1) + np.exp(-(x[size + k] + y[size + k])))
            fresh = np.tanh(x[2 * size + k] + reset * y[2 * size + k])
            g[k] = (np.float32(1) - update) * fresh + update * g[k]
        logit = np.float64(_dot(out[:size], g) + _dot(out[size:], h) + out_bias[0])
        scores[row] = 0.0
        if n > 0:
            odds = np.log(rate[slot] / (1 - rate[slot])) - np.log(PRIOR / (1 - PRIOR))
            scores[row] = 1 / (1 + np.exp(-(logit + min(0.0, odds))))
            rate[slot] += PRIOR_RATE * (1 / (1 + np.exp(-logit)) - rate[slot])
        count[slot] = n + 1
        before[slot] = u
        _steps(e, _UNIT_STEPS, units[slot, n % lags])
        _steps(a, _METRIC_STEPS, metrics[slot, n % lags])
        for k in range(len(rates)):
            for d in range(width):
                means[slot, k, d] += rates[k] * (a[d] - means[slot, k, d])
