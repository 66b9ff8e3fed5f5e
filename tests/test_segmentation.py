"""Hand-worked cases of the segmentation scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_everything_flagged() -> None:
    # 8 utterances, 2 segments: window 2. True counts 0 0 1 1 0 0, predicted 2 everywhere: 4 of 6 wrong as same or
    # different topic, and every count wrong. One hit of 7 flags and 1 true: F1 = 2 / 8.
    found = compare(bits("01111111"), bits("00001000"))
    assert (found.f1, found.pk, found.window_diff) == (0.25, pytest.approx(4 / 6), 1.0)
    assert found.score == pytest.approx(0.25 / 2 + (1 - 4 / 6) / 4)


def test_a_long_segment_widens_the_window() -> None:
    # 12 utterances, 2 segments of 6: window 3, 9 pairs. True counts 0 0 0 1 1 1 0 0 0, predicted, one late,
    # 0 0 0 0 1 1 1 0 0.
    found = compare(bits("000000010000"), bits("000000100000"))
    assert (found.f1, found.pk, found.window_diff) == (0.0, pytest.approx(2 / 9), pytest.approx(2 / 9))


def test_no_boundary_and_none_flagged_is_right() -> None:
    assert compare(bits("00000"), bits("00000")).score == 1.0


def test_a_dialogue_shorter_than_the_window() -> None:
    assert compare(bits("01"), bits("01")).score == 1.0
    assert compare(bits("00"), bits("01")).score == 0.0


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_scores_are_shares(true: list[bool], random: object) -> None:
    label = np.array([0, *true], np.int64)
    flags = np.array([0, *(random.random() < 0.3 for _ in true)], np.int64)  # type: ignore[attr-defined]
    found = compare(flags, label)
    assert 0 <= found.pk <= found.window_diff <= 1
    assert 0 <= found.f1 <= 1
    assert compare(label, label).score == 1.0
