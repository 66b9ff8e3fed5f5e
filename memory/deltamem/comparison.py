"""Losses under the correct state and under controls, compared pair by pair: see `memory.deltamem.controls`."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from memory.deltamem.bootstrap import Interval, paired_interval

Verdict = Literal["gain", "harm", "no difference", "any state's gain"]
CONTENT = ("zero", "donor", "layer_permuted")  # a memory must beat all of these to be one


@dataclass(frozen=True, slots=True)
class Comparison:
    """The correct state against one control.

    Attributes
    ----------
    gain
        Loss under the control minus loss under the correct state, nats a token: more than 0 is better.
    verdict
        ``gain`` or ``harm`` if the interval lies beyond `smallest` on that side, else ``no difference``. A gain over
        the zero state or over corrections off that a donor's state gives as well is ``any state's gain``: not memory.
    """

    gain: Interval
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class ControlsReport:
    """What the controls found.

    Attributes
    ----------
    losses
        Condition → `[N]` float64, mean loss of each passage in nats a token.
    comparisons
        Control → the correct state against it.
    left_out
        Control → why it could not be made.
    confidence, smallest
        As asked for.
    """

    losses: dict[str, npt.NDArray[np.float64]]
    comparisons: dict[str, Comparison]
    confidence: float
    smallest: float
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def remembers(self) -> bool:
        """Whether the state's content is what helps: a gain over zero, the donor's and the layer-permuted state."""
        return all(name in self.comparisons and self.comparisons[name].verdict == "gain" for name in CONTENT)

    def __str__(self) -> str:
        correct = self.losses["correct"].mean()
        lines = [f"correct state: {correct:.4f} nats a token, {len(self.losses['correct'])} passages"]
        for name, comparison in self.comparisons.items():
            gain = comparison.gain
            lines.append(f"against {name}: {gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}] {comparison.verdict}")
        lines += [f"against {name}: left out, {reason}" for name, reason in self.left_out.items()]
        lines.append(f"the state's content {'helps' if self.remembers else 'was not shown to help'}")
        return "\n".join(lines)


def compare(
    losses: dict[str, npt.NDArray[np.float64]],
    streams: Sequence[Hashable],
    *,
    confidence: float = 0.95,
    smallest: float = 0.005,
    resamples: int = 10_000,
    seed: int = 0,
    left_out: dict[str, str] | None = None,
) -> ControlsReport:
    """Compare losses that are measured already: `correct` against every other condition, pair by pair.

    Parameters
    ----------
    losses
        Condition → `[N]`, among them ``correct``.
    streams
        N labels: passages of one stream are resampled together.
    confidence, smallest, resamples, seed, left_out
        As in `run_controls` and `ControlsReport`.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> base = rng.normal(3.0, 0.5, 200)
    >>> better = base - 0.1 + rng.normal(0, 0.05, 200)
    >>> report = compare({"correct": better, "zero": base, "donor": better + rng.normal(0, 0.05, 200)}, range(200))
    >>> {name: comparison.verdict for name, comparison in report.comparisons.items()}, report.remembers
    ({'zero': "any state's gain", 'donor': 'no difference'}, False)
    """
    controls = [name for name in losses if name != "correct"]
    each = 1 - (1 - confidence) / len(controls)
    comparisons = {}
    for name in controls:
        gain = paired_interval(
            losses[name] - losses["correct"], streams, confidence=each, resamples=resamples, seed=seed
        )
        verdict: Verdict = "no difference"
        if gain.low > smallest:
            verdict = "gain"
        elif gain.high < -smallest:
            verdict = "harm"
        comparisons[name] = Comparison(gain, verdict)
    if "donor" in comparisons and comparisons["donor"].verdict != "gain":
        for name in ("zero", "off"):
            if name in comparisons and comparisons[name].verdict == "gain":
                comparisons[name] = Comparison(comparisons[name].gain, "any state's gain")
    return ControlsReport(dict(losses), comparisons, confidence, smallest, left_out or {})
