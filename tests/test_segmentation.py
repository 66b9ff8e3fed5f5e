"""Hand-worked cases of the segmentation scores."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.segmentation import compare


def bits(text: str) -> np.ndarray:
    return np.array([int(bit) for bit in text], np.int64)


def test_perfect() -> None:
    assert compare(bits("00100100"), bits("00100100")).score == 1.0


def test_nothing_flagged() -> None:
    # 8 utterances, 3 segments of 8/3: half of it, 1.33, is below the least window of 2. Pairs (i, i + 2): 6 of them;
    # true counts between are 1 1 0 1 1 0, predicted 0: 4 of 6 are wrong both ways.
    found = compare(bits("00000000"), bits("00100100"))
    assert (found.f1, found.pk, found.window_diff) == (0.0, pytest.approx(4 / 6), pytest.approx(4 / 6))


def test_window_diff_counts_where_pk_does_not() -> None:
    # 8 utterances, 2 segments: window 2. True counts 0 0 1 1 0 0, predicted 0 0 1 2 1 0.
    found = compare(bits("00001100"), bits("00001000"))
    assert found.f1 == pytest.approx(2 / 3)
    assert found.pk == pytest.approx(1 / 6)
    assert found.window_diff == pytest.approx(2 / 6)
