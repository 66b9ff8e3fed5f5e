"""How fast a memory forgets: what is left of a pair by its age, and after how many writes it is half."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memory.rule import Mode
from monitors.observations import Floats
from monitors.retrieval_error import Retrieval

AGES: tuple[tuple[int, float], ...] = (
    *((0, 0), (1, 1), (2, 3), (4, 7), (8, 15), (16, 31), (32, 63), (64, 127), (128, 255), (256, 511), (512, 1023)),
    *((1024, 4095), (4096, math.inf)),
)
"""Age buckets, both ends included; the pair written last has age 0."""


AGE_LABELS: tuple[tuple[str, int], ...] = (
    ("0", 0), ("1-3", 1), ("4-15", 4), ("16-63", 16), ("64-255", 64), ("256-", 256),
)  # fmt: skip
"""Coarser buckets, for metrics: name, and the least age in writes."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A forgetting curve: means over pairs, by age.

    Attributes
    ----------
    age
        `[A]` float64: the mean age in each bucket, rising; buckets without a pair are left out.
    error, cosine
        `[A]` float64: relative error, and cosine of read and value.
    lift
        `[A]` float64: how much smaller the error is than that of pairs that were never written.
    count
        `[A]` int64: pairs.
    """

    age: Floats
    error: Floats
    cosine: Floats
    lift: Floats
    count: npt.NDArray[np.int64]

    def half_life(self) -> float:
        """Return the age at which half of the youngest bucket's lift is left: see `half_life`."""
        return half_life(self.age, self.lift, self.count.astype(np.float64))


def forgetting_curve(measured: Sequence[Retrieval], buckets: Sequence[tuple[int, float]] = AGES) -> Curve:
    """Sum up probes over lanes and segments.

    Parameters
    ----------
    measured
        What `RetrievalErrorMonitor.measure` returned, for as many segments as wanted. A probe of a lane without a turn
        or without a control, or that is not finite, is left out.
    buckets
        Ages in writes, both ends included, ascending.

    Returns
    -------
    Curve

    Examples
    --------
    Two probes of one lane, 0 and 2 writes old, where pairs never written give an error of 1:

    >>> one = Retrieval(
    ...     *(np.array([0.3]), np.array([0.9]), np.array([1.0]), np.array([0])),
    ...     *(np.array([[0.1, 0.5]]), np.array([[1.0, 0.8]]), np.array([[0, 2]]), np.array([[0, 2]])),
    ... )
    >>> curve = forgetting_curve([one])
    >>> curve.age.tolist(), curve.error.tolist(), curve.lift.tolist()
    ([0.0, 2.0], [0.1, 0.5], [0.9, 0.5])
    """
    sums, count = np.zeros((4, len(buckets))), np.zeros(len(buckets), np.int64)
    lows = np.array([low for low, _ in buckets])
    for each in measured:
        lift = each.control[each.measured, None] - each.errors
        fine = (each.writes >= 0) & np.isfinite(lift) & np.isfinite(each.cosines)
        ages = each.writes[fine]
        bucket = np.searchsorted(lows, ages, side="right") - 1
        inside = (bucket >= 0) & (ages <= np.array([high for _, high in buckets])[bucket])
        numbers = np.stack([ages, each.errors[fine], each.cosines[fine], lift[fine]])[:, inside]
        for row in range(len(sums)):
            sums[row] += np.bincount(bucket[inside], numbers[row], len(buckets))
        count += np.bincount(bucket[inside], minlength=len(buckets))
    some = count > 0
    age, error, cosine, lift = sums[:, some] / count[some]
    return Curve(age, error, cosine, lift, count[some])


def by_age(measured: Retrieval) -> dict[str, Floats]:
    """Return label, as in `AGE_LABELS` → the errors of the probes of that age, `[m]` float64, if there are any.

    Examples
    --------
    >>> seen = Retrieval(
    ...     *(np.array([0.3]), np.array([0.9]), np.array([1.0]), np.array([0])),
    ...     *(np.array([[0.1, 0.5, np.nan]]), np.array([[1.0, 0.8, np.nan]]), np.array([[0, 2, -1]])),
    ...     np.array([[0, 2, -1]]),
    ... )
    >>> {label: errors.tolist() for label, errors in by_age(seen).items()}
    {'0': [0.1], '1-3': [0.5]}
    """
    held = measured.writes >= 0
    lows = np.array([low for _, low in AGE_LABELS])
    bucket, errors = np.searchsorted(lows, measured.writes[held], side="right") - 1, measured.errors[held]
    return {name: errors[bucket == at] for at, (name, _) in enumerate(AGE_LABELS) if (bucket == at).any()}


def half_life(age: Floats, strength: Floats, weight: Floats | None = None) -> float:
    """Return the age at which half of the strength of the youngest is left, in the units of `age`.

    The strengths are made to fall with age first (isotonic regression: neighbours that rise are averaged, by their
    weights), then the age is found between two points as if the strength fell exponentially from one to the other, so
    that a memory that forgets exponentially gives the exact number.

    Parameters
    ----------
    age
        `[A]` float64, rising.
    strength
        `[A]` float64: what is left, 0 for nothing; such as `Curve.lift`.
    weight
        `[A]` float64; None for 1 each.

    Returns
    -------
    float
        NaN if nothing is left of the youngest, or if more than half is left of the oldest: the half-life is then longer
        than `age[-1]`.

    References
    ----------
    Barlow, Bartholomew, Bremner, Brunk: Statistical inference under order restrictions, 1972, section 1.2 (pool
    adjacent violators).

    Examples
    --------
    >>> age = np.array([0.0, 1.0, 4.0, 10.0, 30.0])
    >>> round(half_life(age, 0.7 * 0.5 ** (age / 6)), 9)
    6.0
    >>> half_life(age, np.array([1.0, 0.9, 0.8, 0.8, 0.7]))
    nan
    """
    if not len(age):
        return math.nan
    left = _falling(strength, np.ones(len(age)) if weight is None else weight)
    goal = left[0] / 2
    below = np.flatnonzero(left <= goal)
    if not left[0] > 0 or not len(below):
        return math.nan
    at = int(below[0])
    high, low = left[at - 1], left[at]
    # Down to nothing or less there is no exponential: a straight line then.
    if low > 0:
        share = (math.log(high) - math.log(goal)) / (math.log(high) - math.log(low))
    else:
        share = (high - goal) / (high - low)
    return float(age[at - 1] + share * (age[at] - age[at - 1]))


def _falling(strength: Floats, weight: Floats) -> Floats:
    """Return the nearest sequence that never rises, by weighted least squares."""
    pools: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, mass in zip(strength.tolist(), weight.tolist(), strict=True):
        mean, total, length = value, mass, 1
        while pools and pools[-1][0] < mean:
            before, heavy, more = pools.pop()
            mean = (before * heavy + mean * total) / (heavy + total)
            total, length = heavy + total, length + more
        pools.append((mean, total, length))
    return np.concatenate([np.full(length, mean) for mean, _, length in pools])


@dataclass(frozen=True, slots=True)
class NullModel:
    """What the rule alone would do: every write unrelated to what the state holds (keys uniform on the sphere).

    In the mean, each write then leaves keep − erase / R of every older pair: 1 − β − β/R in mode `coupled`, whose
    horizon is about 1 / β writes; 1 − β/R in mode `plain`. A measured half-life far below it says that writes are more
    alike than that, so that they overwrite each other; one far above it, that they say the same again.

    Attributes
    ----------
    left
        What one write leaves of an older pair, in the mean.

    Examples
    --------
    >>> coupled, plain = NullModel.of("coupled", 8, beta=0.18), NullModel.of("plain", 64, beta=0.5)
    >>> round(coupled.horizon, 1), round(coupled.half_life, 1), round(plain.horizon, 1), round(plain.half_life, 1)
    (4.4, 3.1, 127.5, 88.4)
    """

    left: float

    @classmethod
    def of(cls, mode: str, rank: int, beta: float, lam: float | None = None) -> NullModel:
        """Make the null model of a rule, given the mean gates.

        Parameters
        ----------
        mode
            The delta rule's, by name.
        rank
            R.
        beta, lam
            Means over the writes; `lam` as `memory.scan` takes it.
        """
        rule = Mode.parse(mode)
        if rule is Mode.GATED and lam is None:
            raise ValueError("mode 'gated' needs lam: the retention gate of each row")
        keep = 1.0 if rule is Mode.PLAIN else 1 - beta if lam is None or rule is Mode.COUPLED else lam
        return cls(keep - (keep * beta if rule is Mode.DECAY_OUTSIDE else beta) / rank)

    @property
    def horizon(self) -> float:
        """Writes after which 1/e of a pair is left; infinite if all of it stays, 0 if nothing does."""
        return math.inf if self.left >= 1 else -1 / math.log(self.left) if self.left > 0 else 0.0

    @property
    def half_life(self) -> float:
        """Writes after which half of a pair is left."""
        return self.horizon * math.log(2)


class ForgettingTracker:
    """A forgetting curve that goes on: what was measured lately counts, over all lanes.

    Parameters
    ----------
    keep
        What is left of the older measurements' weight when new ones are taken in.

    Examples
    --------
    Probes of one lane that lose a tenth of their lift with each write:

    >>> tracker, ages = ForgettingTracker(), np.array([[0, 1, 3, 7, 15]])
    >>> one = Retrieval(
    ...     *(np.array([0.5]), np.array([0.9]), np.array([1.0]), np.array([0])),
    ...     *(1 - 0.9**ages, np.ones((1, 5)), ages, ages),
    ... )
    >>> tracker.take(one)
    >>> round(tracker.curve().half_life(), 2)
    6.58
    """

    def __init__(self, keep: float = 0.99):
        if not 0 < keep <= 1:
            raise ValueError(f"keep must lie in (0, 1], got {keep}")
        self._keep = keep
        self._sums, self._count = np.zeros((4, len(AGES))), np.zeros(len(AGES))

    def take(self, measured: Retrieval) -> None:
        """Take in what the probes of some lanes gave."""
        if not len(measured.measured):
            return
        curve = forgetting_curve([measured])
        at = np.searchsorted([low for low, _ in AGES], curve.age, side="right") - 1
        self._sums *= self._keep
        self._count *= self._keep
        self._sums[:, at] += curve.count * np.stack([curve.age, curve.error, curve.cosine, curve.lift])
        self._count[at] += curve.count

    def curve(self) -> Curve:
        """Return the curve; counts are rounded up."""
        some = self._count > 0
        age, error, cosine, lift = self._sums[:, some] / self._count[some]
        return Curve(age, error, cosine, lift, np.ceil(self._count[some]).astype(np.int64))
