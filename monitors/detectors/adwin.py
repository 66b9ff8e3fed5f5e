"""ADWIN: alarm when the window, cut somewhere, has two halves whose means differ by more than chance allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import numba
import numpy as np
from pydantic import Field

from memory.lane_state import Column, Columns, LaneState, Slots
from memory.threads import share_out
from monitors.detectors.detector import Detector
from monitors.observations import Flags, Floats

LEVELS = 8
"""Levels of buckets that lanes have room for at first: about 500 values at five buckets each. More come as needed."""


class ADWIN(Detector):
    """Adaptive windowing, alarming at the indices where `river.drift.ADWIN` alarms.

    A lane keeps a window of its values since it began or last alarmed, as buckets: a bucket of level j holds the sum
    of 2^j values. Of each level there are at most `max_buckets`; one more, and the two oldest merge into one of the
    next level. A window of W values is then about max_buckets · log₂(W / max_buckets) buckets.

    With W, σ² the window's length and variance, every `clock` values, for each cut between two buckets into n₀ older
    and n₁ newer values with means μ₀ and μ₁::

        m = 1 / (n₀ − l + 1) + 1 / (n₁ − l + 1)        l = min_window_length
        δ' = ln(2 · ln(W) / δ)
        ε = √(2 · m · σ² · δ') + ⅔ · δ' · m
        alarm when |μ₀ − μ₁| > ε at some cut

    An alarm starts the lane anew, as river's does. (The paper drops the oldest buckets only, for which each has to keep
    its variance too; a window that only grows needs no more than its own.) It needs no baseline, as ε follows the
    variance; it is late by up to `clock` values, and by more where the change is small. The term ⅔ · δ' · m is meant
    for signals between 0 and 1: one that moves by far less than 1 alarms on long windows only.

    Parameters
    ----------
    delta
        Confidence δ: the smaller, the fewer false alarms.
    clock
        Values between two looks at the window.
    max_buckets
        Most buckets of one level: more of them cut the window more finely, and cost more memory.
    min_window_length
        Least values on each side of a cut.
    grace_period
        Values before the first look.

    References
    ----------
    A. Bifet and R. Gavaldà, "Learning from time-changing data with adaptive windowing", SIAM International Conference
    on Data Mining, 2007. B. P. Welford, Technometrics 4 (1962), 419-420: the running variance.

    Examples
    --------
    A lane whose signal climbs from 0 to 1 beside one whose signal does not.

    >>> import numpy as np
    >>> detector = ADWIN(clock=1)
    >>> lanes = detector.new_lanes()
    >>> lanes.resize(2)
    >>> for i in range(100):
    ...     alarms = detector.update(lanes, np.array([0, 1]), np.array([float(i >= 50), 0.0]))
    ...     if alarms.any():
    ...         print(i, alarms.tolist())
    71 [True, False]
    """

    name: Literal["adwin"] = "adwin"
    delta: float = Field(default=0.002, gt=0, lt=1)
    clock: int = Field(default=32, ge=1, le=1_000_000)
    max_buckets: int = Field(default=5, ge=2, le=100)
    min_window_length: int = Field(default=5, ge=1, le=1_000_000)
    grace_period: int = Field(default=10, ge=0, le=1_000_000)

    def new_lanes(self) -> ADWINLanes:
        """Make empty windows."""
        return ADWINLanes(self.max_buckets)

    def _update(self, lanes: LaneState, slots: Slots, values: Floats) -> Flags:
        windows = cast(ADWINLanes, lanes)
        alarms = np.zeros(len(slots), dtype=np.bool_)
        deepest = np.zeros(len(slots), dtype=np.int64)
        settings = (self.delta, self.clock, self.max_buckets, self.min_window_length, self.grace_period)
        arguments = (
            slots,
            values,
            windows["window"],
            windows["counts"],
            windows["buckets"],
            *settings,
            alarms,
            deepest,
        )
        share_out(lambda first, last: _advance(first, last, *arguments), len(slots), 100 * len(slots))
        if alarms.any():
            windows.clear(slots[alarms])
        if len(slots):
            windows.make_levels(int(deepest.max()) + 2)
        return alarms


class ADWINLanes(Columns):
    """The windows: length, sum and squared deviations of each, and its buckets' sums by level, oldest first.

    How many buckets each level holds follows from the window's length alone. A blob holds only the buckets in use, so
    that it is as long as its own window is deep; the columns are as wide as the deepest window needs.

    Parameters
    ----------
    max_buckets
        Most buckets of one level, between updates.
    """

    def __init__(self, max_buckets: int):
        self.max_buckets = max_buckets
        super().__init__(
            {
                "window": Column("float64", (3,)),  # values, their sum, their squared deviations from the mean
                "counts": Column("uint8", (LEVELS,)),
                "buckets": Column("float64", (LEVELS, max_buckets + 1)),  # the sum of each
            }
        )

    @property
    def layout(self) -> str:
        """The form of a blob, which is the same whatever the number of levels."""
        return f"adwin window:float64[3];buckets of {self.max_buckets} a level:float64"

    def make_levels(self, levels: int) -> None:
        """Make room for so many levels in every lane, where there is less."""
        have = self["counts"].shape[1]
        if levels <= have:
            return
        for name in ("counts", "buckets"):
            old, column = self._arrays[name], self.columns[name]
            self.columns[name] = Column(column.dtype, (levels, *column.shape[1:]))
            self._arrays[name] = self._fresh(self.columns[name], len(old))
            self._arrays[name][:, :have] = old

    def dump(self, slots: Slots) -> Sequence[bytes]:
        """Return each window with the buckets it holds."""
        counts = self["counts"][slots]
        held = np.arange(self.max_buckets + 1) < counts[:, :, None]
        buckets = self["buckets"][slots][held].tobytes()
        windows = self["window"][slots].tobytes()
        ends = (8 * counts.sum(axis=1, dtype=np.int64)).cumsum().tolist()
        starts = [0, *ends[:-1]]
        return (
            [
                windows[24 * i : 24 * i + 24] + buckets[start:end]
                for i, (start, end) in enumerate(zip(starts, ends, strict=True))
            ]
            if ends
            else []
        )

    def load(self, slot: int, blob: bytes) -> None:
        """Put a window back."""
        length = np.frombuffer(blob, np.float64, 1)[0] if len(blob) >= 24 else np.nan
        whole = 0 <= length < 2**53 and length.is_integer()
        counts = bucket_counts(int(length), self.max_buckets) if whole else [-1]
        if len(blob) != 24 + 8 * sum(counts):
            raise ValueError(f"expected {self.layout!r} of a window of {length} values, got {len(blob)} bytes")
        self.make_levels(len(counts) + 1)
        self.clear(np.array([slot]))
        self["window"][slot] = np.frombuffer(blob, np.float64, 3)
        self["counts"][slot, : len(counts)] = counts
        held = np.arange(self.max_buckets + 1) < self["counts"][slot][:, None]
        self["buckets"][slot][held] = np.frombuffer(blob, np.float64, offset=24)


def bucket_counts(length: int, max_buckets: int) -> list[int]:
    """Return how many buckets each level of a window of `length` values holds.

    Examples
    --------
    A sixth value merges the two oldest of the six.

    >>> bucket_counts(5, 5), bucket_counts(6, 5), bucket_counts(1_000, 5)
    ([5], [4, 1], [4, 4, 5, 5, 4, 5, 5, 3])
    """
    counts = []
    while length > 0:
        merges = max(0, (length - max_buckets + 1) // 2)
        counts.append(length - 2 * merges)
        length = merges
    return counts


# The order of operations is river's, to the bit: no sum may be reordered, no product contracted into a sum.
@numba.njit(cache=True, nogil=True, error_model="numpy")
def _advance(
    first: Any,
    last: Any,
    slots: Any,
    values: Any,
    windows: Any,
    counts: Any,
    buckets: Any,
    delta: Any,
    clock: Any,
    max_buckets: Any,
    least: Any,
    grace: Any,
    alarms: Any,
    deepest: Any,
) -> None:
    for i in range(first, last):
        slot = slots[i]
        window, held, rows = windows[slot], counts[slot], buckets[slot]
        deepest[i] = _add(values[i], window, held, rows, max_buckets)
        if window[0] % clock == 0 and window[0] > grace:
            alarms[i] = _changed(window, held, rows, deepest[i], delta, least)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _add(value: Any, window: Any, held: Any, rows: Any, max_buckets: Any) -> Any:
    """Put a value into a window; return the deepest level that holds a bucket."""
    length = window[0] + 1.0
    if length > 1.0:
        away = value - window[1] / (length - 1.0)
        window[2] += (length - 1.0) * away * away / length
    window[0] = length
    window[1] += value

    rows[0, held[0]] = value
    held[0] += 1
    level = 0
    while held[level] > max_buckets:
        row = rows[level]
        rows[level + 1, held[level + 1]] = row[0] + row[1]
        held[level + 1] += 1
        held[level] -= 2
        for k in range(held[level]):
            row[k] = row[k + 2]
        level += 1
    while level + 1 < len(held) and held[level + 1] > 0:
        level += 1
    return level


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _changed(window: Any, held: Any, rows: Any, deepest: Any, delta: Any, least: Any) -> Any:
    """Say whether the halves of a window differ at some cut."""
    length, total = window[0], window[1]
    confidence = np.log(2.0 * np.log(length) / delta)
    variance = window[2] / length
    older, newer = 0.0, length
    older_sum, newer_sum = 0.0, total
    for level in range(deepest, -1, -1):
        size = 2.0**level
        for k in range(held[level]):
            older += size
            newer -= size
            older_sum += rows[level, k]
            newer_sum -= rows[level, k]
            if older >= least and newer >= least:
                m = 1.0 / (older - least + 1.0) + 1.0 / (newer - least + 1.0)
                epsilon = np.sqrt(2.0 * m * variance * confidence) + 2.0 / 3.0 * confidence * m
                if abs(older_sum / older - newer_sum / newer) > epsilon:
                    return True
    return False
