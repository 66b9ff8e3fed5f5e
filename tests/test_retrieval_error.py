"""Probes against what the rule must give: exactly for orthogonal keys, within sampling error for random ones."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from memory.probes import probe_answers, probe_errors
from memory.rule import Mode, coefficients
from memory.scan_forms import scan
from monitors.forgetting import NullModel, forgetting_curve, half_life
from monitors.retrieval_error import CONTROLS, Retrieval, RetrievalErrorMonitor
from monitors.turns import due

RULES: list[tuple[str, float, float | None]] = [
    ("coupled", 0.18, None),
    ("coupled", 0.02, None),
    ("decay_outside", 0.05, None),
    ("decay_outside", 0.5, 0.98),
    ("plain", 0.5, None),
    ("plain", 0.1, None),
    ("gated", 0.5, 0.99),
]
TOLERANCE = 2e-5  # float32: 300 writes, each rounded once or twice, to numbers below 1


def three(mode: str, beta: float, lam: float | None) -> tuple[float, float, float]:
    gates = torch.tensor(beta, dtype=torch.float64), None if lam is None else torch.tensor(lam, dtype=torch.float64)
    keep, erase, write = (float(number) for number in coefficients(Mode.parse(mode), *gates))
    return keep, erase, write


class Lanes:
    """n lanes that take one write each at a time, with their monitor."""

    def __init__(self, n: int, rank: int, rule: tuple[str, float, float | None], **options: Any):
        self.states, self.slots, self.rule = torch.zeros(n, 1, rank, rank), np.arange(n), rule
        self.monitor = RetrievalErrorMonitor(1, rank, **options)
        self.monitor.lanes.resize(n)

    def write(self, k: Tensor, v: Tensor) -> Tensor:
        """Write one pair `[n, R]` on each lane; return the write errors `[n]`."""
        mode, beta, lam = self.rule
        n = len(k)
        at, ends = torch.arange(n), torch.arange(n + 1)
        gates = [None if gate is None else torch.full((n, 1, 1), gate) for gate in (beta, lam)]
        assert gates[0] is not None
        k, v = k[:, None], v[:, None]
        done = scan(self.states, at, at, ends, k, k, v, gates[0], gates[1], mode=mode, want_reads=False)
        self.monitor.hold_out(self.slots, done.mean_write_error[:, 0].double().numpy())
        self.monitor.remember(self.slots, k.numpy(), v.numpy())
        return done.mean_write_error[:, 0]

    def measure(self) -> Retrieval:
        return self.monitor.measure(self.states, self.slots)


# The closed form --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_error_of_a_pair_n_writes_old_is_the_closed_form(rule: tuple[str, float, float | None]) -> None:
    """Orthogonal keys, each written once: S k = write · keepⁿ · v, the error is |1 − write · keepⁿ|, the cosine 1."""
    rank, keep, write = 64, three(*rule)[0], three(*rule)[2]
    lanes = Lanes(3, rank, rule)
    torch.manual_seed(0)
    keys = torch.linalg.qr(torch.randn(3, rank, rank))[0]
    seen = set()
    for number in range(rank):
        lanes.write(keys[:, number], normalize(torch.randn(3, rank), dim=-1))
        found = lanes.measure()
        held = found.ages >= 0
        expected = np.abs(1 - write * keep ** found.ages[held].astype(np.float64))
        np.testing.assert_allclose(found.errors[held], expected, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(found.cosines[held], 1, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(found.error, np.nanmean(found.errors, axis=1), rtol=1e-12)
        assert (found.ages == found.writes).all()
        seen |= set(found.ages[held].tolist())
    assert seen >= {0, 1, 2, 3, 4, 8, 16, 32, 48}


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_so_it_is_for_long_streams_that_come_back_to_their_keys(rule: tuple[str, float, float | None]) -> None:
    """16 orthogonal pairs in turn, 300 writes: what is left of a pair is one number, followed here in float64."""
    rank, (keep, erase, write) = 16, three(*rule)
    lanes = Lanes(2, rank, rule)
    torch.manual_seed(1)
    keys = torch.linalg.qr(torch.randn(2, rank, rank))[0]
    values = normalize(torch.randn(2, rank, rank), dim=-1)
    left, oldest = np.zeros(rank), 0
    for number in range(300):
        pair = number % rank
        lanes.write(keys[:, pair], values[:, pair])
        own = (keep - erase) * left[pair] + write
        left *= keep
        left[pair] = own
        if number % 7 == 0:
            found = lanes.measure()
            held = found.ages >= 0
            which = (number - found.ages[held]) % rank
            np.testing.assert_allclose(found.errors[held], np.abs(1 - left[which]), rtol=0, atol=TOLERANCE)
            oldest = max(oldest, int(found.ages.max()))
    assert oldest > 200


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_with_random_keys_the_mean_squared_error_is_the_exact_expectation(
    rule: tuple[str, float, float | None],
) -> None:
    """4,000 lanes, keys uniform on the sphere, values of mean zero, 100 writes: within 5 standard errors at all ages.

    With T = E‖S‖², a = E‖S k‖² of a remembered key, and c = E[v · S k]: a write unrelated to it takes
    T ← T (keep² − (2 keep erase − erase²) / R) + write²,
    a ← a (keep² − 2 keep erase / R + 2 erase² / (R (R + 2))) + T erase² / (R (R + 2)) + write² / R, and
    c ← c (keep − erase / R), by the second and fourth moments of the sphere.
    """
    rank, writes, n, (keep, erase, write) = 8, 100, 4000, three(*rule)
    lanes = Lanes(n, rank, rule)
    torch.manual_seed(2)
    for _ in range(writes):
        lanes.write(normalize(torch.randn(n, rank), dim=-1), normalize(torch.randn(n, rank), dim=-1))
    found = lanes.measure()
    size = [0.0]  # T before each write
    for _ in range(writes):
        size.append(size[-1] * (keep**2 - (2 * keep * erase - erase**2) / rank) + write**2)
    for place in np.flatnonzero(found.ages[0] >= 0):
        age = int(found.ages[0, place])
        born = writes - 1 - age
        a, c = (keep - erase) ** 2 * size[born] / rank + write**2, write
        for later in range(born + 1, writes):
            a *= keep**2 - 2 * keep * erase / rank + 2 * erase**2 / (rank * (rank + 2))
            a += size[later] * erase**2 / (rank * (rank + 2)) + write**2 / rank
            c *= keep - erase / rank
        squared = found.errors[:, place] ** 2
        assert abs(squared.mean() - (1 - 2 * c + a)) < 5 * squared.std() / math.sqrt(n), age
        left = NullModel.of(rule[0], rank, rule[1], rule[2]).left
        assert c == pytest.approx(write * left**age, rel=1e-12)
    norms = lanes.states.double().square().sum((1, 2, 3)).numpy()
    assert abs(norms.mean() - size[-1]) < 5 * norms.std() / math.sqrt(n)


def test_the_half_life_of_the_closed_form_is_exact() -> None:
    """Coupled, orthogonal keys: the lift is β (1 − β)ⁿ; half of it is gone after ln ½ / ln (1 − β) writes."""
    lanes = Lanes(2, 64, ("coupled", 0.07, None))
    for number in range(64):
        lanes.write(torch.eye(64)[[number, number]], torch.eye(64)[[number, 63 - number]])
    found = lanes.measure()
    assert found.control.tolist() == [1.0, 1.0]
    np.testing.assert_allclose(found.lift, 1 - found.error, rtol=1e-12)
    order = np.argsort(found.writes[0])
    order = order[found.writes[0][order] >= 0]
    exact = math.log(0.5) / math.log(0.93)
    assert half_life(found.writes[0][order].astype(float), 1 - found.errors[0][order]) == pytest.approx(exact, rel=1e-4)
    curve = forgetting_curve([found])  # by buckets: the mean of a bucket is not the value at its mean age
    assert curve.half_life() == pytest.approx(exact, rel=0.02)


# Which pairs ------------------------------------------------------------------------------------------------------


def test_every_age_has_a_probe_within_a_factor_of_four() -> None:
    monitor = RetrievalErrorMonitor(1, 1)
    monitor.lanes.resize(1)
    lane, pair = np.array([0]), np.ones((1, 1, 1), np.float32)
    for number in range(1, 1500):
        monitor.remember(lane, pair, pair)
        ages = np.sort(monitor.ages(lane)[0])
        ages = ages[ages >= 0]
        assert ages[0] == 0
        assert len(set(ages.tolist())) == len(ages)
        for low, high in pairwise(ages[ages > 0].tolist()):
            assert high <= 4 * low
        assert ages[-1] >= min(number - 1, 128) / 2
        assert ages[-1] < 512


def test_ages_in_writes_count_every_token() -> None:
    monitor = RetrievalErrorMonitor(1, 1)
    monitor.lanes.resize(2)
    pair = np.ones((2, 1, 1), np.float32)
    for tokens, since in (([5, 1], [4, 0]), ([3, 1], [0, 0]), ([7, 1], [2, 0])):
        monitor.remember(np.array([1, 0]), pair, pair, np.array(tokens), np.array(since))
    found = monitor.measure(torch.zeros(2, 1, 1, 1), np.array([1, 0]))
    by_age = [dict(zip(a.tolist(), w.tolist(), strict=True)) for a, w in zip(found.ages, found.writes, strict=True)]
    assert by_age == [{0: 2, 1: 7, 2: 14, -1: -1}, {0: 0, 1: 1, 2: 2, -1: -1}]


# The control ------------------------------------------------------------------------------------------------------


def test_the_control_is_the_mean_of_the_last_write_errors() -> None:
    lanes = Lanes(4, 8, ("plain", 0.5, None))
    torch.manual_seed(3)
    mean = np.zeros(4)
    for number in range(1, 60):
        error = lanes.write(*normalize(torch.randn(2, 4, 8), dim=-1)).double().numpy()
        mean += (error - mean) / min(number, CONTROLS)
        np.testing.assert_allclose(lanes.measure().control, mean, rtol=1e-12)


def test_what_only_the_map_from_keys_to_values_gives_is_no_lift() -> None:
    """Values that are a fixed linear map of the keys: old pairs read well, and so do pairs that were never written."""
    torch.manual_seed(4)
    lanes, fixed = Lanes(200, 4, ("plain", 0.5, None)), torch.linalg.qr(torch.randn(4, 4))[0]
    for _ in range(60):
        k = normalize(torch.randn(200, 4), dim=-1)
        lanes.write(k, k @ fixed.T)
    found = lanes.measure()
    assert found.cosine.mean() > 0.99
    assert abs(found.lift.mean()) < 0.05
    unrelated = Lanes(200, 32, ("plain", 0.5, None))
    for _ in range(60):
        unrelated.write(*normalize(torch.randn(2, 200, 32), dim=-1))
    assert unrelated.measure().lift.mean() > 0.2


def test_a_write_error_that_is_not_a_number_leaves_the_control_alone() -> None:
    monitor = RetrievalErrorMonitor(1, 1)
    monitor.lanes.resize(3)
    monitor.hold_out(np.arange(3), np.array([0.5, 0.6, np.nan]))
    monitor.hold_out(np.arange(3), np.array([np.nan, np.inf, np.nan]))
    control = monitor.measure(torch.zeros(3, 1, 1, 1), np.arange(3)).control
    assert control[:2].tolist() == [0.5, 0.6]
    assert np.isnan(control[2])


# Turns ------------------------------------------------------------------------------------------------------------


def test_between_turns_the_last_measurement_stands_and_says_so() -> None:
    """And it is, bit for bit, the one of the monitor that always measures."""
    always, seldom = Lanes(3, 8, ("plain", 0.5, None)), Lanes(3, 8, ("plain", 0.5, None), every=6)
    torch.manual_seed(5)
    last = np.full(3, np.nan)
    for number in range(1, 40):
        pairs = normalize(torch.randn(2, 3, 8), dim=-1)
        always.write(*pairs)
        seldom.write(*pairs)
        a, b = always.measure(), seldom.measure()
        turn = number in (1, 2, 4, 8, 16, 32) or number % 6 == 0
        assert a.measured.tolist() == [0, 1, 2]
        assert b.measured.tolist() == ([0, 1, 2] if turn else [])
        assert due(np.full(3, number), 6).tolist() == [turn] * 3
        if turn:
            last = a.error
            for name in ("errors", "cosines", "ages", "writes"):
                assert getattr(b, name).tobytes() == getattr(a, name).tobytes()
        assert b.error.tobytes() == last.tobytes()


def test_a_lane_that_was_acted_on_has_a_turn_and_a_reset_forgets_its_controls() -> None:
    lanes = Lanes(3, 8, ("plain", 0.5, None), every=100)
    torch.manual_seed(6)
    for number in range(70):
        lanes.write(*normalize(torch.randn(2, 3, 8), dim=-1))
        before = lanes.measure()
        assert len(before.measured) == 3 * (number + 1 in (1, 2, 4, 8, 16, 32, 64))
    lanes.states[:2] = 0
    lanes.monitor.expire(np.array([0]))
    lanes.monitor.expire(np.array([1]), reset=True)
    lanes.write(*normalize(torch.randn(2, 3, 8), dim=-1))
    after = lanes.measure()
    assert after.measured.tolist() == [0, 1]
    assert (after.error[:2] > 0.9).all()
    assert after.error[2] == before.error[2]
    assert after.control[1] == 1.0 != after.control[0]
    assert not len(lanes.measure().measured), "one turn, not two"


def test_a_lane_measures_the_same_whatever_lies_beside_it_and_after_it_was_stored() -> None:
    torch.manual_seed(7)
    pairs = normalize(torch.randn(40, 2, 6, 8), dim=-1)
    together, alone = Lanes(6, 8, ("plain", 0.5, None), every=4), Lanes(6, 8, ("plain", 0.5, None), every=4)
    alone.slots = np.array([2])
    for number, (k, v) in enumerate(pairs):
        together.write(k, v)
        state = alone.states[[2]]
        scan(
            state, *(torch.tensor([0]), torch.tensor([0]), torch.tensor([0, 1])), *(k[2:3, None],) * 2,
            *(v[2:3, None], torch.full((1, 1, 1), 0.5)), mode="plain", want_reads=False,
        )  # fmt: skip
        alone.states[2] = state[0]
        alone.monitor.remember(alone.slots, k[2:3, None].numpy(), v[2:3, None].numpy())
        a, b = together.measure(), alone.measure()
        assert (a.error[2], a.cosine[2]) == (b.error[0], b.cosine[0])
        if number == 20:
            fresh = RetrievalErrorMonitor(1, 8, every=4)
            fresh.lanes.resize(6)
            fresh.lanes.load(2, alone.monitor.lanes.dump(np.array([2]))[0])
            alone.monitor = fresh


# What is not finite, and other edges ------------------------------------------------------------------------------


@pytest.mark.parametrize("sick", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("every", [1, 50])
def test_a_sick_state_never_reads_healthy(sick: float, every: int) -> None:
    lanes = Lanes(3, 8, ("plain", 0.5, None), every=every)
    torch.manual_seed(8)
    for _ in range(9):
        lanes.write(*normalize(torch.randn(2, 3, 8), dim=-1))
        lanes.measure()
    lanes.states[1, 0, 3, 4] = sick
    found = lanes.monitor.measure(lanes.states, lanes.slots, sick=np.array([False, True, False]))
    assert found.measured.tolist() == ([0, 1, 2] if every == 1 else [1])
    assert np.isnan([found.error[1], found.cosine[1], found.lift[1]]).all()
    assert np.isfinite(found.error[[0, 2]]).all()
    assert np.isnan(found.errors[found.measured == 1]).all()
    assert not len(forgetting_curve([found]).age) or np.isfinite(forgetting_curve([found]).error).all()


def test_one_sick_head_of_several_is_enough() -> None:
    states, pair = torch.ones(1, 3, 2, 2), np.ones((1, 3, 2), np.float32)
    monitor = RetrievalErrorMonitor(3, 2)
    monitor.lanes.resize(1)
    monitor.remember(np.array([0]), pair, pair)
    states[0, 2, 1, 0] = math.nan
    assert np.isnan(monitor.measure(states, np.array([0])).error).all()


@pytest.mark.parametrize("scale", [1e-25, 1e-18, 1.0, 1e18, 1e30])
def test_answers_hold_for_numbers_whose_squares_do_not_fit(scale: float) -> None:
    rng = np.random.default_rng(0)
    S, k, v = rng.standard_normal((2, 1, 8, 8)), rng.standard_normal((2, 3, 1, 8)), rng.standard_normal((2, 3, 1, 8))
    states = torch.from_numpy((scale * S).astype(np.float32))
    keys, values = k.astype(np.float32), (scale * v).astype(np.float32)
    errors, cosines = probe_answers(states, np.arange(2), keys, values)
    reads = np.einsum("nhij,nphj->nphi", states.double().numpy(), keys.astype(np.float64))
    wide = values.astype(np.float64)
    norm, size = np.linalg.norm(wide, axis=-1), np.linalg.norm(reads, axis=-1)
    np.testing.assert_allclose(errors, np.linalg.norm(reads - wide, axis=-1) / norm, rtol=1e-5)
    np.testing.assert_allclose(cosines, (reads * wide).sum(-1) / (norm * size), rtol=0, atol=1e-5)


def test_zeros_have_no_direction() -> None:
    """A state of zeros: an error of 1, a cosine of 0. A value of zeros: 0, unless the read is sick."""
    states = torch.zeros(2, 1, 2, 2)
    states[1, 0, 0, 0] = math.nan
    keys, values = np.ones((2, 2, 1, 2), np.float32), np.ones((2, 2, 1, 2), np.float32)
    values[:, 1] = 0
    errors, cosines = (answers[..., 0] for answers in probe_answers(states, np.arange(2), keys, values))
    assert errors[0].tolist() == [1, 0]
    assert cosines[0].tolist() == [0, 0]
    assert np.isnan([errors[1], cosines[1]]).all()
    assert np.array_equal(probe_errors(states, np.arange(2), keys, values)[..., 0], errors, equal_nan=True)


def test_a_lane_without_probes_has_no_error() -> None:
    monitor = RetrievalErrorMonitor(2, 4)
    monitor.lanes.resize(1)
    found = monitor.measure(torch.zeros(1, 2, 4, 4), np.array([0]))
    assert np.isnan([found.error[0], found.cosine[0], found.control[0], found.lift[0]]).all()
    assert found.ages.shape == found.writes.shape == found.errors.shape == (0, 16)
    assert monitor.measure(torch.zeros(1, 2, 4, 4), np.zeros(0, np.int64)).error.shape == (0,)


def test_a_monitor_that_never_looks_is_refused() -> None:
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        RetrievalErrorMonitor(1, 1, every=0)
