"""Forgetting curves, half-lives and the null model; and that the probes' error is the error on what was really said."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from benchmarks.fact_recall import experiment, spearman
from memory.scan_forms import scan
from monitors.forgetting import AGES, NullModel, forgetting_curve, half_life
from monitors.retrieval_error import Retrieval, RetrievalErrorMonitor

# Half-lives -------------------------------------------------------------------------------------------------------


@given(
    life=st.floats(0.5, 500),
    start=st.floats(1e-3, 2),
    ages=st.lists(st.integers(1, 2000), min_size=3, max_size=20, unique=True),
)
def test_an_exponential_gives_its_half_life_back_from_any_ages(life: float, start: float, ages: list[int]) -> None:
    # Below the smallest normal number a strength has too few digits left to tell anything.
    age = np.array([0, *sorted(age for age in ages if age < 1000 * life)], np.float64)
    found = half_life(age, start * 0.5 ** (age / life))
    if age[-1] < life * (1 - 1e-9):
        assert math.isnan(found)
    elif age[-1] > life * (1 + 1e-9):
        assert found == pytest.approx(life, rel=1e-6)


def test_noise_that_rises_again_is_averaged_first_by_its_weight() -> None:
    age = np.array([0.0, 1.0, 2.0, 3.0])
    assert half_life(age, np.array([1.0, 0.4, 0.8, 0.1]), np.array([1.0, 1.0, 3.0, 1.0])) == pytest.approx(
        2 + math.log(0.7 / 0.5) / math.log(0.7 / 0.1)
    )
    assert half_life(age, np.array([1.0, 0.7, 0.7, -0.1])) == pytest.approx(2 + (0.7 - 0.5) / (0.7 + 0.1))


def test_where_nothing_is_left_or_nothing_is_lost_there_is_no_half_life() -> None:
    age = np.array([0.0, 5.0, 9.0])
    for strength in ([0.0, 0.0, 0.0], [-0.1, -0.2, -0.3], [1.0, 0.9, 0.51]):
        assert math.isnan(half_life(age, np.array(strength)))
    assert math.isnan(half_life(np.zeros(0), np.zeros(0)))
    assert half_life(age, np.array([1.0, 0.5, 0.0])) == 5


def test_random_writes_forget_at_the_pace_of_the_null_model() -> None:
    """E[v · S k] = write · leftⁿ exactly; measured over 4,000 lanes, the half-life is within 10 %."""
    n, rank = 4000, 16
    for mode, beta in (("coupled", 0.05), ("plain", 0.5)):
        torch.manual_seed(0)
        states, at, ends = torch.zeros(n, 1, rank, rank), torch.arange(n), torch.arange(n + 1)
        pairs = normalize(torch.randn(2, 64, n, 1, rank), dim=-1)
        for k, v in zip(*pairs, strict=True):
            scan(states, at, at, ends, k, k, v, torch.full((n, 1, 1), beta), mode=mode, want_reads=False)
        left = torch.einsum("nhij,tnhj,tnhi->t", states, *pairs).numpy()[::-1] / n  # by age
        null = NullModel.of(mode, rank, beta)
        expected = beta * null.left ** np.arange(64)
        assert np.abs(left - expected).max() < 5 / math.sqrt(n * rank)
        assert half_life(np.arange(64.0), left) == pytest.approx(null.half_life, rel=0.1)


def test_the_null_models_of_all_modes() -> None:
    assert NullModel.of("coupled", 10**9, 0.18).half_life == pytest.approx(math.log(0.5) / math.log(0.82))
    assert NullModel.of("coupled", 10**9, 0.01).horizon == pytest.approx(1 / 0.01, rel=0.01)
    assert NullModel.of("plain", 64, 0.5).left == 1 - 0.5 / 64
    assert NullModel.of("decay_outside", 4, 0.2).left == pytest.approx(0.8 * (1 - 0.2 / 4))
    assert NullModel.of("decay_outside", 4, 0.2, 0.9).left == pytest.approx(0.9 * (1 - 0.2 / 4))
    assert NullModel.of("gated", 4, 0.2, 0.9).left == pytest.approx(0.9 - 0.2 / 4)
    assert NullModel.of("plain", 8, 0.0).horizon == math.inf
    assert NullModel.of("coupled", 1, 1.0).horizon == 0
    with pytest.raises(ValueError, match="needs lam"):
        NullModel.of("gated", 8, 0.5)


# Curves -----------------------------------------------------------------------------------------------------------


def test_a_curve_is_the_mean_by_age_in_writes_over_lanes_and_segments() -> None:
    torch.manual_seed(1)
    monitor = RetrievalErrorMonitor(1, 4, every=3)
    monitor.lanes.resize(5)
    measured, rows = [], []
    states = torch.randn(5, 1, 4, 4)
    for number in range(1, 40):
        slots = np.arange(5 if number > 10 else 2)
        pairs = torch.randn(2, len(slots), 1, 4).numpy()
        monitor.hold_out(slots, np.full(len(slots), 1.5))
        monitor.remember(slots, *pairs, np.full(len(slots), 3))
        found = monitor.measure(states, slots)
        measured.append(found)
        for lane in range(len(found.measured)):
            rows += [
                (found.writes[lane, place], found.errors[lane, place], found.cosines[lane, place])
                for place in range(16)
                if found.ages[lane, place] >= 0
            ]
    curve, table = forgetting_curve(measured), np.array(rows)
    assert curve.count.sum() == len(table)
    at = 0
    for low, high in AGES:
        inside = table[(low <= table[:, 0]) & (table[:, 0] <= high)]
        if len(inside):
            expected = [*inside.mean(axis=0), 1.5 - inside[:, 1].mean(), len(inside)]
            got = [curve.age[at], curve.error[at], curve.cosine[at], curve.lift[at], curve.count[at]]
            np.testing.assert_allclose(got, expected, rtol=1e-12)
            at += 1
    assert at == len(curve.age)


def test_what_is_not_finite_or_has_no_control_is_left_out_of_a_curve() -> None:
    errors = np.array([[0.5, np.nan, np.inf], [0.1, 0.2, 0.3]])
    ages = np.array([[0, 1, 2], [0, 1, -1]])
    found = Retrieval(
        np.zeros(3), np.zeros(3), np.array([9.0, 1.0, np.nan]), np.array([1, 2]), errors, errors, ages, ages
    )
    curve = forgetting_curve([found])
    assert (curve.age.tolist(), curve.error.tolist(), curve.count.tolist()) == ([0.0], [0.5], [1])
    assert forgetting_curve([]).age.shape == (0,)
    assert math.isnan(forgetting_curve([]).half_life())


# Against the truth ------------------------------------------------------------------------------------------------


def test_the_probes_error_ranks_settings_and_ages_as_the_error_on_the_true_facts_does() -> None:
    """Generated conversations, real engines; `python -m benchmarks.fact_recall` does it with all settings."""
    found = experiment(
        "hashing", 6, 160, ranks=(8, 32, 64), rules=({"mode": "plain", "beta": 0.5}, {"mode": "coupled", "beta": 0.05}),
        writes=("segment",), scenarios=("abrupt", "recurring"),
    )  # fmt: skip
    assert found["setting and age"] > 40
    assert found["rank correlation by setting and age"] >= 0.9
    assert found["of setting means, at the facts' ages"] >= 0.9
    assert found["rank correlation of lanes"] >= 0.8


def test_rank_correlation_is_that_of_the_ranks() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 50), rng.integers(0, 6, 50)

    def ranks(numbers: np.ndarray) -> np.ndarray:
        return np.array([(numbers < x).sum() + ((numbers == x).sum() + 1) / 2 for x in numbers])

    assert spearman(a.tolist(), b.tolist()) == pytest.approx(np.corrcoef(ranks(a), ranks(b))[0, 1])
    assert spearman([1, 2, 3], [1, 4, 9]) == 1
    assert spearman([1, 2, 3], [3, 2, 1]) == -1
