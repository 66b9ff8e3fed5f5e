"""How sure a difference between two policies is, when the streams might have been others."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from monitors.observations import Floats

RESAMPLES = 10_000


@dataclass(frozen=True)
class Change:
    """How much one policy's error differs from another's, in shares of the other's: −0.1 is 10 % less.

    Attributes
    ----------
    mean
        Over all events.
    low, high
        Of the 95 % interval; NaN where there is a single stream, which says nothing about others.
    """

    mean: float
    low: float
    high: float

    @property
    def sure_gain(self) -> bool:
        """Whether the whole interval is under 0."""
        return self.high < 0

    def __str__(self) -> str:
        """Say it in words.

        >>> str(Change(-0.05, -0.08, 0.001))
        '−5.0 % (95 % interval −8.0 % to +0.1 %)'
        """
        interval = f" (95 % interval {percent(self.low)} to {percent(self.high)})" if math.isfinite(self.low) else ""
        return percent(self.mean) + interval


def percent(share: float) -> str:
    """Return a change as people write it.

    >>> percent(-0.0123), percent(0.0)
    ('−1.2 %', '0.0 %')
    """
    text = f"{abs(share):.1%}".replace("%", " %")
    sign = "" if text == "0.0 %" else "−" if share < 0 else "+"
    return sign + text


def paired_change(errors: Floats, base: Floats, events: npt.NDArray[np.int64], seed: int) -> Change:
    """Return the change from `base` to `errors`, with a bootstrap interval over streams.

    Both policies are taken on the same streams in each resample, so what makes one stream harder than another is in
    both and drops out.

    Parameters
    ----------
    errors, base
        `[S]` float64: the two policies' mean errors in each stream; NaN leaves the stream out.
    events
        `[S]` int64: how many events each mean is of.
    seed
        Of the resamples.

    References
    ----------
    B. Efron, R. Tibshirani, "An introduction to the bootstrap", 1993, ch. 13: the percentile interval.

    Examples
    --------
    >>> paired_change(np.array([0.8, 0.7, 0.9]), np.ones(3), np.array([10, 10, 10]), seed=0)
    Change(mean=-0.2, low=-0.3, high=-0.1)
    """
    told = np.isfinite(errors) & np.isfinite(base) & (events > 0)
    difference, weight = ((errors - base) * events)[told], (base * events)[told]
    if not weight.sum() > 0:
        return Change(np.nan, np.nan, np.nan)
    mean = float(difference.sum() / weight.sum())
    streams = len(weight)
    if streams < 2:
        return Change(mean, np.nan, np.nan)
    drawn = np.random.default_rng(seed).integers(streams, size=(RESAMPLES, streams))
    low, high = np.quantile(difference[drawn].sum(axis=1) / weight[drawn].sum(axis=1), [0.025, 0.975])
    digits = 12  # what is left of rounding in the sums
    return Change(round(mean, digits), round(float(low), digits), round(float(high), digits))
