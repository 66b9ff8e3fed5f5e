"""State norms against numpy's own, and saturation against its proof: no sequence of writes gets past the bound."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from memory.reach import write_reach
from memory.rule import Mode, coefficients
from memory.scan_forms import scan
from memory.spectral import largest_singular_value
from monitors.state_norm import StateNormMonitor

LANE = np.array([0])


def write(
    S: np.ndarray, k: np.ndarray, v: np.ndarray, mode: str, beta: np.ndarray, lam: np.ndarray | None
) -> np.ndarray:
    """One write in float64; gates `[R]`."""
    gates = torch.from_numpy(beta), None if lam is None else torch.from_numpy(lam)
    keep, erase, gain = (each.numpy() for each in coefficients(Mode.parse(mode), *gates))
    return keep[:, None] * S + np.outer(gain * v - erase * (S @ k), k)


# The bound --------------------------------------------------------------------------------------------------------

BOUNDED: list[tuple[str, bool]] = [
    ("coupled", False),
    ("decay_outside", False),
    ("decay_outside", True),
    ("gated", True),
]
gate = st.floats(0.01, 0.99)


@pytest.mark.parametrize(("mode", "free"), BOUNDED)
@pytest.mark.parametrize("by_row", [False, True])
@settings(max_examples=25, deadline=None)
@given(
    data=st.data(),
    rank=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
    worst=st.booleans(),
)
def test_no_sequence_of_writes_exceeds_the_reach(
    mode: str, free: bool, by_row: bool, data: st.DataObject, rank: int, seed: int, worst: bool
) -> None:
    """Gates, values and keys move at will; `worst` aims each value at what the state already returns."""
    rng = np.random.default_rng(seed)
    width = rank if by_row else 1
    S, allowed = np.zeros((rank, rank)), np.zeros(width)
    for _ in range(40):
        beta = np.array(data.draw(st.lists(gate, min_size=width, max_size=width)))
        lam = np.array(data.draw(st.lists(gate, min_size=width, max_size=width))) if free else None
        k = rng.standard_normal(rank)
        k *= rng.choice([1.0, rng.random()]) / np.linalg.norm(k)
        v = rng.standard_normal(rank) * rng.choice([0.1, 1.0, 3.0])
        if worst and S.any():
            k = np.linalg.svd(S)[2][0]
            v = np.linalg.norm(v) * (S @ k) / np.linalg.norm(S @ k) * rng.choice([-1.0, 1.0])
        S = write(
            S,
            k,
            v,
            mode,
            np.broadcast_to(beta, rank).copy(),
            None if lam is None else np.broadcast_to(lam, rank).copy(),
        )
        reach = write_reach(mode, rank, v[None, None], beta[None, None], None if lam is None else lam[None, None])
        assert reach.shape == (1, 1, width)
        allowed = np.maximum(allowed, reach[0, 0])
        norms = np.linalg.norm(S, axis=1) if by_row else np.linalg.norm(S, keepdims=True)[0]
        assert np.isfinite(allowed).all()
        assert (norms <= np.sqrt(allowed) * (1 + 1e-9)).all()


def test_the_bound_is_reached_where_the_proof_says_so() -> None:
    """decay_outside: the same pair again and again ends at v / (2 − β), which is the bound."""
    k, v = np.array([0.6, 0.8]), np.array([1.0, -2.0])
    for beta in (0.05, 0.3, 0.9):
        S = np.zeros((2, 2))
        for _ in range(2000):
            S = write(S, k, v, "decay_outside", np.full(2, beta), None)
        reach = math.sqrt(float(write_reach("decay_outside", 2, v[None, None], beta).item()))
        assert np.linalg.norm(S) == pytest.approx(reach, rel=1e-9)
        assert reach == pytest.approx(np.linalg.norm(v) / (2 - beta), rel=1e-12)
    S = np.zeros((2, 2))
    for _ in range(2000):
        S = write(S, k, v, "coupled", np.full(2, 0.02), None)
    reach = math.sqrt(float(write_reach("coupled", 2, v[None, None], 0.02).item()))
    assert np.linalg.norm(S) == pytest.approx(np.linalg.norm(v) / 2, rel=1e-9)
    assert 1 < reach / np.linalg.norm(S) < 1.0005


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), beta=st.floats(0.01, 2 / 3))
def test_coupled_no_entry_of_a_row_exceeds_its_largest_value_while_beta_is_at_most_two_thirds(
    seed: int, beta: float
) -> None:
    rng = np.random.default_rng(seed)
    S, most = np.zeros((3, 3)), np.zeros(3)
    for _ in range(60):
        k = rng.standard_normal(3)
        v = rng.choice([-1.0, 1.0], 3) * rng.random(3)
        most = np.maximum(most, np.abs(v))
        S = write(S, k / np.linalg.norm(k), v, "coupled", np.full(3, beta), None)
        assert (np.abs(S).max(axis=1) <= most * (1 + 1e-12)).all()
        assert (np.linalg.norm(S, axis=1) <= most * (1 + 1e-12)).all()


def test_coupled_above_two_thirds_an_entry_does_exceed_it() -> None:
    """The key changes its sign from write to write: entries tend to β v / (2 (1 − β)), at β = 0.9 to 4.5 v."""
    S = np.zeros((1, 1))
    for number in range(400):
        S = write(S, np.array([(-1.0) ** number]), np.array([1.0]), "coupled", np.array([0.9]), None)
    assert abs(S[0, 0]) == pytest.approx(4.5)
    assert write_reach("coupled", 1, np.ones((1, 1, 1)), 0.9).item() == pytest.approx(4.5**2)


def test_plain_grows_past_every_multiple_of_the_largest_value_but_no_faster_than_the_root_of_its_writes() -> None:
    """Two keys at a small angle with opposite values: S tends to one with ‖S‖ = ‖v‖ / sin(angle / 2)."""
    angle, v, beta = 0.2, np.array([1.0, 0.0]), 0.9
    keys = [np.array([math.cos(sign * angle / 2), math.sin(sign * angle / 2)]) for sign in (1, -1)]
    S = np.zeros((2, 2))
    for number in range(3000):
        S = write(S, keys[number % 2], v * (-1) ** number, "plain", np.full(2, beta), None)
        assert np.linalg.norm(S) <= math.sqrt((number + 1) * beta / (2 - beta))
    assert np.linalg.norm(S) == pytest.approx(1 / math.sin(angle / 2), rel=1e-6)
    assert np.linalg.norm(S) > 10


@pytest.mark.parametrize(
    ("mode", "beta", "lam"), [("plain", 0.5, None), ("plain", 0.1, None), ("coupled", 0.18, None), ("gated", 0.5, 0.98)]
)
def test_unrelated_writes_settle_at_the_level(mode: str, beta: float, lam: float | None) -> None:
    """E‖S‖² within 5 standard errors, 2,000 lanes; `write_reach` gives the level where keep = 1."""
    rank, n = 8, 2000
    torch.manual_seed(0)
    states, at, ends = torch.zeros(n, 1, rank, rank), torch.arange(n), torch.arange(n + 1)
    gates = [None if number is None else torch.full((n, 1, 1), number) for number in (beta, lam)]
    assert gates[0] is not None
    for _ in range(250):
        k, v = normalize(torch.randn(2, n, 1, rank), dim=-1)
        found = scan(states, at, at, ends, k, k, v, gates[0], gates[1], mode=mode, want_reads=False)
    keep = {"plain": 1.0, "coupled": 1 - beta, "gated": lam}[mode]
    assert keep is not None
    level = beta**2 / (1 - keep**2 + (keep**2 - (keep - beta) ** 2) / rank)
    squares = found.state_norm[:, 0].double().numpy() ** 2
    assert abs(squares.mean() - level) < 5 * squares.std() / math.sqrt(n)
    reach = write_reach(mode, rank, v.numpy(), beta, lam)
    if mode == "plain":
        np.testing.assert_allclose(reach, level, rtol=1e-6)
        assert level == pytest.approx(rank * beta / (2 - beta))
    else:
        assert (squares < reach[:, 0, 0]).all()


def test_gates_that_have_no_bound_and_gates_that_write_nothing() -> None:
    v = np.ones((1, 1, 2))
    assert write_reach("coupled", 2, v, 1.0).item() == 2 / (1 - 1 / 2)  # S ← −S along k: only the mean settles
    assert write_reach("coupled", 1, v[..., :1], 1.0).item() == math.inf  # not even that
    assert write_reach("coupled", 2, v, 0.0).item() == 0
    assert write_reach("gated", 2, v, 0.0, 1.0).item() == 0
    assert write_reach("gated", 2, v, 0.5, 1.0).item() == write_reach("plain", 2, v, 0.5).item()
    with pytest.raises(ValueError, match="needs lam"):
        write_reach("gated", 2, v, 0.5)


# The monitor ------------------------------------------------------------------------------------------------------


def monitor_of(states: torch.Tensor, **options: Any) -> StateNormMonitor:
    monitor = StateNormMonitor(states.shape[1], states.shape[2], **options)
    monitor.lanes.resize(len(states))
    return monitor


def norms_of(states: torch.Tensor) -> np.ndarray:
    return states.double().flatten(2).norm(dim=-1).float().numpy()


def test_each_head_is_measured_as_numpy_measures_it() -> None:
    torch.manual_seed(1)
    states = torch.randn(5, 3, 8, 8) * torch.linspace(0.1, 4, 8)  # a spread of singular values
    monitor = monitor_of(states)
    slots = np.array([4, 0, 2])
    monitor.allow(slots, np.full((3, 3, 1), 9.0))
    for _ in range(3):  # the direction is followed from event to event
        found = monitor.look(states, slots, norms_of(states)[slots])
    sigma = np.linalg.svd(states[slots].double().numpy(), compute_uv=False)
    np.testing.assert_allclose(found.frobenius, np.sqrt((sigma**2).sum(-1)), rtol=1e-6)
    assert (found.sigma <= sigma[..., 0] * (1 + 1e-6)).all()
    np.testing.assert_allclose(found.sigma, sigma[..., 0], rtol=2e-3)
    np.testing.assert_allclose(found.rank, (sigma**2).sum(-1) / sigma[..., 0] ** 2, rtol=5e-3)
    np.testing.assert_allclose(found.saturation, found.frobenius / 3, rtol=1e-7)
    np.testing.assert_allclose(found.state_norm, np.sqrt((sigma**2).sum((-1, -2))), rtol=1e-6)
    assert found.largest_singular_value.tolist() == found.sigma.max(1).tolist()
    assert found.most_saturated.tolist() == found.saturation.max(1).tolist()
    assert not found.sick.any()
    plain = monitor_of(states).measure(states, slots, norms_of(states)[slots])
    np.testing.assert_allclose(plain[0], found.state_norm, rtol=1e-12)


@pytest.mark.parametrize("sick", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("every", [1, 100])
def test_a_sick_head_is_sick_in_every_number_and_is_well_when_it_is_well_again(sick: float, every: int) -> None:
    torch.manual_seed(2)
    states = torch.randn(3, 2, 4, 4)
    monitor, slots, well = monitor_of(states, every=every), np.arange(3), states.clone()
    monitor.allow(slots, np.full((3, 2, 1), 100.0))
    monitor.look(states, slots, norms_of(states))
    states[1, 1, 2, 3] = sick
    for _ in range(2):
        found = monitor.look(states, slots, norms_of(states))
        assert found.sick.tolist() == [False, True, False]
        for head in (found.frobenius, found.sigma, found.rank, found.saturation):
            assert np.isnan(head[1, 1])
            assert np.isfinite(np.delete(head.ravel(), 3)).all()
        for lane in (found.state_norm, found.stable_rank, found.largest_singular_value, found.most_saturated):
            assert np.isnan(lane[1])
            assert np.isfinite(lane[[0, 2]]).all()
    monitor.start_over(np.array([1]))
    found = monitor.look(well, slots, norms_of(well))
    assert np.isfinite([found.state_norm, found.stable_rank, found.largest_singular_value, found.most_saturated]).all()


def test_a_monitor_that_saw_a_sick_state_is_not_blind_for_good() -> None:
    """Even if nobody tells it that the state was replaced: a NaN must not stay in the direction."""
    states = torch.full((1, 1, 4, 4), math.nan)
    directions = np.full((1, 1, 4), np.nan, np.float32)
    assert np.isnan(largest_singular_value(states, LANE, directions)).all()
    states = torch.diag(torch.tensor([4.0, 1.0, 1.0, 1.0]))[None, None]
    assert largest_singular_value(states, LANE, directions)[0, 0] == pytest.approx(4, rel=1e-3)


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e37])
def test_numbers_whose_squares_do_not_fit_have_their_singular_value_too(scale: float) -> None:
    states = (scale * torch.diag(torch.tensor([3.0, 1.0, 0.5, 0.0]))).reshape(1, 1, 4, 4)
    found = largest_singular_value(states, LANE, np.zeros((1, 1, 4), np.float32))
    assert found[0, 0] == pytest.approx(3 * scale, rel=1e-3)


def test_an_empty_state_has_rank_zero_and_no_saturation_and_unknown_writes_are_not_a_number() -> None:
    states = torch.zeros(2, 1, 4, 4)
    states[1, 0, 0, 0] = 2
    found = monitor_of(states).look(states, np.arange(2), norms_of(states))
    assert found.state_norm.tolist() == [0, 2]
    assert found.stable_rank.tolist() == [0, 1]
    assert found.largest_singular_value.tolist() == [0, 2]
    assert found.saturation[0, 0] == 0
    assert np.isnan(found.saturation[1, 0])
    none = monitor_of(states).look(states, np.zeros(0, np.int64), np.zeros((0, 1), np.float32))
    assert none.state_norm.shape == none.stable_rank.shape == (0,)


def test_rows_with_gates_of_their_own_add_up() -> None:
    states = torch.diag(torch.tensor([3.0, 4.0])).reshape(1, 1, 2, 2)
    monitor = monitor_of(states, row_gates=True)
    monitor.allow(LANE, np.array([[[16.0, 1.0]]]))
    monitor.allow(LANE, np.array([[[4.0, 84.0]]]))
    found = monitor.look(states, LANE, norms_of(states))
    assert found.saturation.item() == pytest.approx(0.5)


def test_between_turns_norm_and_saturation_are_of_now_and_the_rest_of_the_last_turn() -> None:
    torch.manual_seed(3)
    always, seldom = (monitor_of(torch.zeros(1, 1, 6, 6), every=every) for every in (1, 5))
    turns = {1, 2, 4, 8, 16, 5, 10, 15, 20}
    states = torch.zeros(1, 1, 6, 6)
    for number in range(1, 21):
        states += torch.randn(1, 1, 6, 6)
        a, b = (monitor.look(states, LANE, norms_of(states)) for monitor in (always, seldom))
        assert b.state_norm == a.state_norm
        if number in turns:
            exact = np.linalg.svd(states[0, 0].numpy(), compute_uv=False)[0]
            assert 0.9 * exact < b.sigma[0, 0] <= exact * (1 + 1e-6)
            last = b.rank.tolist()
        assert b.rank.tolist() == last


def test_a_monitor_that_never_looks_is_refused() -> None:
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        StateNormMonitor(1, 1, every=0)
