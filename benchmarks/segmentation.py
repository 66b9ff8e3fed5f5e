"""How well predicted topic boundaries match labelled ones, as the dialogue segmentation literature scores it.

References: Beeferman, Berger, Lafferty 1999 (Pk); Pevzner and Hearst 2002 (WindowDiff); Jiang et al., SuperDialseg,
EMNLP 2023 (the combined score).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Segmentation:
    """Scores of one dialogue, each between 0 and 1: F1 (higher is better), Pk and WindowDiff (lower is better)."""

    f1: float
    pk: float
    window_diff: float

    @property
    def score(self) -> float:
        """F1/2 + (1 − Pk)/4 + (1 − WD)/4."""
        return self.f1 / 2 + (1 - self.pk) / 4 + (1 - self.window_diff) / 4


def compare(predicted: Bits, true: Bits) -> Segmentation:
    """Compare boundary bits, `[n]`, 1 on an utterance that begins a new topic and 0 on the first.

    Parameters
    ----------
    predicted, true
        Boundaries of one dialogue of n utterances.

    Examples
    --------
    Four utterances, one boundary, predicted one too late; the window is half the mean true segment, at least 2.

    >>> compare(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 0]))
    Segmentation(f1=0.0, pk=0.5, window_diff=0.5)
    """
    n = len(true)
    hits = int((predicted & true).sum())
    marked = int(predicted.sum() + true.sum())
    f1 = 2 * hits / marked if marked else 1.0
    window = max(2, round(n / (int(true.sum()) + 1) / 2))
    if n <= window:
        wrong = float((predicted != true).any())
        return Segmentation(f1, wrong, wrong)
    between_predicted, between_true = (
        np.cumsum(bits)[window:] - np.cumsum(bits)[:-window] for bits in (predicted, true)
    )
    pk = float(((between_predicted > 0) != (between_true > 0)).mean())
    return Segmentation(f1, pk, float((between_predicted != between_true).mean()))
