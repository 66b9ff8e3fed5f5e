"""The runner: what actions make of states, what is filed and taken up again, and that lanes keep to themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from memory.lane_state import Column, Columns
from memory.predict import _by_torch, prediction_errors
from memory.writers import Segments
from monitors.filed_states import FiledStates
from monitors.observations import Observations
from monitors.policies import (
    ActionKind,
    Actions,
    AdaptiveGatesPolicy,
    ArchivePolicy,
    AutoPolicy,
    DecayPolicy,
    FreezeOnAnomalyPolicy,
    NoPolicy,
    Policy,
    ResetOnShiftPolicy,
)
from monitors.policy_runner import PolicyRunner

HEADS, RANK, DIM = 2, 8, 16
Rows = npt.NDArray[np.float32]


def unit(rows: Any) -> Rows:
    scaled: Rows = (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)
    return scaled


class Stream:
    """Topics of a few facts each: a key, a value and an embedding near the topic's own direction."""

    def __init__(self, seed: int, topics: Sequence[int], visit: int = 12, facts: int = 3):
        random = np.random.default_rng(seed)
        count = max(topics) + 1
        shape = (count, facts, HEADS, RANK)
        keys, values = unit(random.normal(size=shape)), unit(random.normal(size=shape))
        centres = unit(4 * np.eye(4, DIM)[:count] - np.eye(4, DIM).sum(axis=0))  # as unlike each other as four can be
        told = random.integers(0, facts, (len(topics), visit))
        self.topic = np.repeat(topics, visit)
        self.k = keys[self.topic, told.ravel()]
        self.v = values[self.topic, told.ravel()]
        self.embedding = unit(centres[self.topic] + 0.1 * random.normal(size=(len(self.topic), DIM)))
        self.begins = np.concatenate([[False], np.diff(self.topic) != 0])

    def __len__(self) -> int:
        return len(self.topic)


class Run:
    """Lanes under one policy; `go` advances some of them by one event each."""

    def __init__(self, policy: Policy, capacity: int = 4, mode: str = "plain"):
        self.runner = PolicyRunner(policy, heads=HEADS, rank=RANK, dim=DIM, mode=mode)
        self.runner.resize(capacity)
        self.states = torch.zeros(capacity, HEADS, RANK, RANK)
        self.mode = mode

    def go(
        self, slots: Sequence[int], streams: Sequence[Stream], at: Sequence[int], shift: bool | None = None
    ) -> Actions:
        lanes = np.array(slots, np.int64)
        pick = [(stream, t) for stream, t in zip(streams, at, strict=True)]
        k, v = (torch.from_numpy(np.stack([getattr(s, name)[t] for s, t in pick])) for name in "kv")
        beta = torch.full((len(lanes), HEADS, 1), 0.5)
        lam = torch.full((len(lanes), HEADS, 1), 0.99) if self.mode in ("gated", "decay_outside") else None
        written = Segments(np.arange(len(lanes)), np.arange(len(lanes) + 1), k, k, v, beta, lam)
        before = self.runner.before(self.states, lanes, written, np.stack([s.embedding[t] for s, t in pick]))
        written.scan(self.states, lanes, self.mode)
        shifts = np.array([s.begins[t] if shift is None else shift for s, t in pick])
        seen = Observations(lanes, {"state_norm": np.ones(len(lanes))}, {"topic_shift": shifts, "state_norm": shifts})
        return self.runner.after(self.states, lanes, written, before, seen)

    def all_of(self, stream: Stream, slot: int = 0) -> list[Actions]:
        return [self.go([slot], [stream], [t]) for t in range(len(stream))]

    def blobs(self, slot: int) -> list[bytes]:
        return [part.dump(np.array([slot]))[0] for part in self.runner.beside.values()]


def write(state: Tensor, stream: Stream, t: int, mode: str = "plain") -> Tensor:
    """Return what one event makes of a state `[H, R, R]`, by itself."""
    run = Run(NoPolicy(), 1, mode)
    run.states[0] = state
    run.go([0], [stream], [t])
    return run.states[0]


POLICIES: list[Policy] = [
    NoPolicy(),
    DecayPolicy(factor=0.9),
    ResetOnShiftPolicy(cool_down=0),
    FreezeOnAnomalyPolicy(on=("topic_shift",), hold=2),
    AdaptiveGatesPolicy(heads=HEADS, rank=RANK, step=0.3),
    ArchivePolicy(most=3),
    AutoPolicy(most=3, enter=0.5, leave=0.5),
]
of_each_policy = pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.policy)


# What actions do


def test_decay_weakens_what_was_there_and_keeps_what_the_event_wrote() -> None:
    stream, run = Stream(1, [0]), Run(DecayPolicy(factor=0.5))
    state = torch.zeros(HEADS, RANK, RANK)
    for t in range(6):
        run.go([0], [stream], [t])
        state = write(0.5 * state, stream, t)
        torch.testing.assert_close(run.states[0], state, rtol=1e-5, atol=1e-6)  # float32, another order of the sums


def test_a_reset_leaves_what_the_event_alone_would_have_written_even_of_nan() -> None:
    stream, run = Stream(2, [0, 1]), Run(ResetOnShiftPolicy(cool_down=0))
    run.states[0] = torch.nan
    run.go([0], [stream], [12])
    assert torch.equal(run.states[0], write(torch.zeros(HEADS, RANK, RANK), stream, 12))


def test_a_frozen_event_leaves_no_trace() -> None:
    stream, run = Stream(3, [0, 1]), Run(FreezeOnAnomalyPolicy(on=("topic_shift",), hold=2))
    for t in range(12):
        run.go([0], [stream], [t])
    held = run.states[0].clone()
    run.states[1] = 5.0
    for t in (12, 13):
        assert run.go([0], [stream], [t]).kind.tolist() == [ActionKind.FREEZE]
        assert torch.equal(run.states[0], held)
    run.go([0], [stream], [14])
    assert torch.equal(run.states[0], write(held, stream, 14))
    assert (run.states[1] == 5).all()


class Gains(Policy):
    """Keeps a fixed share of each write."""

    policy: str = "gains"
    share: float = 1.0
    undoes_writes = True

    def decide(self, lanes: Columns, observations: Observations) -> Actions:
        actions = Actions.keep(len(observations))
        actions.gain = np.full(len(observations), self.share)
        return actions


def test_a_gain_is_a_gate() -> None:
    """In mode plain a share g of the write with gate β is the write with gate g β."""
    stream, run = Stream(4, [0]), Run(Gains(share=0.5))
    state = torch.zeros(HEADS, RANK, RANK)
    for t in range(5):
        run.go([0], [stream], [t])
        k, v = torch.from_numpy(stream.k[t]), torch.from_numpy(stream.v[t])
        state = state + 0.25 * (v - (state * k[:, None]).sum(-1))[..., None] * k[:, None]
        torch.testing.assert_close(run.states[0], state, rtol=1e-5, atol=1e-6)


# The archive


@pytest.mark.parametrize("mode", ["plain", "coupled", "decay_outside", "gated"])
def test_a_topic_that_returns_finds_its_state_as_it_was(mode: str) -> None:
    stream, run = Stream(5, [0, 1, 0]), Run(ArchivePolicy(), mode=mode)
    done = []
    left = torch.zeros(HEADS, RANK, RANK)
    for t in range(len(stream)):
        done.append(run.go([0], [stream], [t]))
        if t == 11:
            left = run.states[0].clone()
        if t == 24:
            assert torch.equal(run.states[0], write(left, stream, 24, mode))
    acted = [(t, ActionKind(one.kind[0]).label) for t, one in enumerate(done) if one.kind[0]]
    assert [what for _, what in acted] == ["reset", "restore"]
    assert 12 <= acted[0][0] <= 14
    assert acted[1] == (24, "restore")


def test_a_new_topic_begins_from_zero_with_its_first_event() -> None:
    stream, run = Stream(6, [0, 1]), Run(ArchivePolicy())
    run.all_of(stream)
    state = torch.zeros(HEADS, RANK, RANK)
    for t in range(12, 24):
        state = write(state, stream, t)
    assert torch.equal(run.states[0], state)


@pytest.mark.parametrize(
    ("policy", "share"),
    [
        (ArchivePolicy(begin="decayed", begin_factor=0.25), 0.25),
        (ArchivePolicy(begin="mean", begin_factor=0.5), 0.5),  # of one filed state
    ],
    ids=["decayed", "mean"],
)
def test_a_new_topic_can_begin_with_a_share_of_what_there_was(policy: Policy, share: float) -> None:
    stream, run = Stream(6, [0, 1]), Run(policy)
    for t in range(12):
        run.go([0], [stream], [t])
    state = share * run.states[0].clone()
    done = [run.go([0], [stream], [t]) for t in range(12, 24)]
    assert [ActionKind(one.kind[0]).label for one in done if one.kind[0]] == ["reset"]
    for t in range(12, 24):
        state = write(state, stream, t)
    torch.testing.assert_close(run.states[0], state, rtol=1e-6, atol=1e-7)


def test_the_mean_is_that_of_all_filed_states() -> None:
    stream, run = Stream(6, [0, 1, 2]), Run(ArchivePolicy(begin="mean", begin_factor=1))
    for t in range(24):
        run.go([0], [stream], [t])
    assert run.runner.filed is not None
    other = run.runner.filed.states[run.runner.filed.places[0, 0]]
    state = 0.5 * run.states[0] + 0.5 * other
    done = [run.go([0], [stream], [t]) for t in range(24, 36)]
    assert [ActionKind(one.kind[0]).label for one in done if one.kind[0]] == ["reset"]
    for t in range(24, 36):
        state = write(state, stream, t)
    torch.testing.assert_close(run.states[0], state, rtol=1e-6, atol=1e-7)


def test_noise_in_passing_leaves_no_trace() -> None:
    quiet, noise = Stream(7, [0], visit=40), Stream(8, [1, 2, 3], visit=1)
    run, alone = Run(ArchivePolicy()), Run(NoPolicy())
    for t in range(20):
        run.go([0], [quiet], [t])
        alone.go([0], [quiet], [t])
    for t in range(3):
        run.go([0], [noise], [t])
    assert not torch.equal(run.states[0], alone.states[0])
    for t in range(20, 30):
        run.go([0], [quiet], [t])
        alone.go([0], [quiet], [t])
    assert torch.equal(run.states[0], alone.states[0])


def test_the_archive_is_bounded_and_the_topic_longest_unused_goes() -> None:
    stream, run = Stream(9, [0, 1, 2, 3, 3, 1]), Run(ArchivePolicy(most=3))
    done = run.all_of(stream)
    kinds = [ActionKind(one.kind[0]).label for one in done if one.kind[0]]
    assert kinds == ["reset", "reset", "reset", "restore"]  # 0 went when 3 came; 1 was kept
    assert run.runner.filed is not None
    assert (run.runner.filed.places[0, :3] >= 0).all()


@pytest.mark.parametrize("policy", [ArchivePolicy(budget=0), AutoPolicy(budget=0)], ids=["archive", "auto"])
def test_without_a_budget_nothing_happens_to_the_lane(policy: Policy) -> None:
    stream, run, none = Stream(10, [0, 1, 0, 2]), Run(policy), Run(NoPolicy())
    assert not any(one.kind[0] for one in run.all_of(stream))
    none.all_of(stream)
    assert torch.equal(run.states[0], none.states[0])


def test_auto_follows_the_archive_where_topics_return_and_nothing_else() -> None:
    returning, still = Stream(11, [0, 1] * 6), Stream(12, [0], visit=144, facts=8)
    run, none = Run(AutoPolicy()), Run(NoPolicy())
    reasons = [one.reason[0] for one in run.all_of(returning, 0) if one.kind[0]]
    assert reasons[0] == "archive leads"
    assert "archive lags" not in reasons
    assert [one.kind[0] for one in run.all_of(still, 1)] == [ActionKind.KEEP] * 144
    none.all_of(still, 1)
    assert torch.equal(run.states[1], none.states[1])


def test_an_event_without_rows_or_embedding_changes_nothing() -> None:
    stream, run = Stream(13, [0, 1]), Run(ArchivePolicy())
    for t in range(6):
        run.go([0], [stream], [t])
    held, blobs = run.states.clone(), run.runner.lanes["weight"].copy()
    lane, none = np.array([0]), torch.zeros(0, HEADS, RANK)
    written = Segments(lane, np.array([0, 0]), none, none, none, torch.zeros(0, HEADS, 1))
    before = run.runner.before(run.states, lane, written, np.full((1, DIM), np.nan, np.float32))
    written.scan(run.states, lane, "plain")
    actions = run.runner.after(run.states, lane, written, before, Observations(lane, {}))
    assert actions.kind.tolist() == [ActionKind.KEEP]
    assert torch.equal(run.states, held)
    assert np.array_equal(run.runner.lanes["weight"], blobs)


# A lane by itself


@of_each_policy
def test_a_lane_is_the_same_alone_and_in_company_in_any_order(policy: Policy) -> None:
    streams = [Stream(20 + i, [0, 1, 0, 2, 1]) for i in range(3)]
    alone = []
    for stream in streams:
        run = Run(policy)
        run.all_of(stream)
        alone.append((run.states[0].clone(), run.blobs(0)))
    run, order = Run(policy, 5), np.random.default_rng(1)
    at = [0, 0, 0]
    while any(t < len(streams[0]) for t in at):
        lanes = [i for i in order.permutation(3).tolist() if at[i] < len(streams[i]) and order.random() < 0.7]
        if lanes:
            run.go([4 - i for i in lanes], [streams[i] for i in lanes], [at[i] for i in lanes])
        for i in lanes:
            at[i] += 1
    for i in range(3):
        assert torch.equal(run.states[4 - i], alone[i][0])
        assert run.blobs(4 - i) == alone[i][1]


@of_each_policy
def test_a_lane_goes_on_from_its_blobs_bit_for_bit(policy: Policy) -> None:
    stream = Stream(30, [0, 1, 0, 2, 1])
    whole = Run(policy)
    kept = {}
    for t in range(len(stream)):
        if t in (0, 1, 13, 25, 26, 40):
            kept[t] = (whole.states[0].clone(), whole.blobs(0))
        whole.go([0], [stream], [t])
    for cut, (state, blobs) in kept.items():
        run = Run(policy)
        run.all_of(Stream(31, [0, 1]), slot=2)  # what was in the row before must not matter
        run.states[2] = state
        for part, blob in zip(run.runner.beside.values(), blobs, strict=True):
            part.load(2, blob)
        assert run.blobs(2) == blobs
        for t in range(cut, len(stream)):
            run.go([2], [stream], [t])
        assert torch.equal(run.states[2], whole.states[0])
        assert run.blobs(2) == whole.blobs(0)


@of_each_policy
def test_lanes_that_share_a_segment_are_as_if_each_had_its_own(policy: Policy) -> None:
    stream, run, apart = Stream(40, [0, 1, 0]), Run(policy), Run(policy)
    for t in range(len(stream)):
        lanes = np.array([0, 3])
        k, v = (torch.from_numpy(part[t][None]) for part in (stream.k, stream.v))
        written = Segments(np.array([0, 0]), np.array([0, 1]), k, k, v, torch.full((1, HEADS, 1), 0.5))
        before = run.runner.before(run.states, lanes, written, stream.embedding[[t, t]])
        written.scan(run.states, lanes, "plain")
        shift = np.repeat(stream.begins[t], 2)
        seen = Observations(lanes, {"state_norm": np.ones(2)}, {"topic_shift": shift, "state_norm": shift})
        run.runner.after(run.states, lanes, written, before, seen)
        apart.go([0], [stream], [t])
    assert torch.equal(run.states[0], apart.states[0])
    assert torch.equal(run.states[3], apart.states[0])


# What is filed


def test_a_place_is_wiped_before_another_lane_has_it() -> None:
    filed = FiledStates(2, HEADS, RANK, DIM)
    filed.resize(2)
    filed.hold(np.array([0, 0]), np.array([0, 1]))
    places = filed.places[0].copy()
    filed.states[torch.from_numpy(places)] = 7.0
    filed.centroids[places] = 7.0
    filed.clear(np.array([0]))
    assert filed.places[0].tolist() == [-1, -1]
    filed.hold(np.array([1, 1]), np.array([0, 1]))
    assert sorted(filed.places[1].tolist()) == sorted(places.tolist())
    assert not filed.states[torch.from_numpy(filed.places[1])].any()
    assert not filed.centroids[filed.places[1]].any()


@pytest.mark.parametrize("blob", [b"", b"\1\0\0\0", b"\x09\0\0\0" + bytes(100), b"\xff\xff\xff\xff"])
def test_a_blob_of_another_layout_is_refused(blob: bytes) -> None:
    filed = FiledStates(2, HEADS, RANK, DIM)
    filed.resize(1)
    with pytest.raises(ValueError, match="expected a blob of filed:2x2x8x16"):
        filed.load(0, blob)


def test_predictions_are_those_of_the_definition_in_both_forms() -> None:
    random = np.random.default_rng(50)
    states = torch.from_numpy(random.normal(size=(5, HEADS, RANK, RANK)).astype(np.float32))
    states[4, 0, 0, 0] = torch.nan
    k, v = (torch.from_numpy(random.normal(size=(7, HEADS, RANK)).astype(np.float32)) for _ in range(2))
    v[6] = 0
    places = np.array([[0, 3, -1], [1, 4, 2], [2, 2, 0], [0, 1, 2]])
    starts, lengths, mask = np.array([0, 2, 5, 7]), np.array([2, 3, 2, 0]), torch.ones(7, dtype=torch.bool)
    mask[3] = False
    expected = np.full(places.shape, np.nan)
    for lane, way in np.argwhere(places >= 0).tolist():
        rows = [row for row in range(starts[lane], starts[lane] + lengths[lane]) if mask[row]]
        ratios = []
        for row in rows:
            miss = v[row] - (states[places[lane, way]] @ k[row][..., None])[..., 0]
            ratios += [float(miss[h].norm() / v[row, h].norm()) if v[row, h].any() else 0.0 for h in range(HEADS)]
        expected[lane, way] = np.mean(ratios) if ratios else np.nan
    np.testing.assert_allclose(prediction_errors(states, places, starts, lengths, k, v, mask), expected, rtol=1e-5)
    other = np.full(places.shape, np.nan)
    _by_torch(other, states, places, starts, lengths, k, v, mask)
    np.testing.assert_allclose(other, expected, rtol=1e-5)


def test_a_state_of_zeros_predicts_with_error_one() -> None:
    k = torch.randn(3, HEADS, RANK, generator=torch.Generator().manual_seed(0))
    one = np.array([0])
    states = torch.zeros(1, HEADS, RANK, RANK)
    assert prediction_errors(states, one[:, None], one, one + 3, k, k).tolist() == [[1.0]]


def test_columns_of_policies_with_several_states_have_a_fixed_layout() -> None:
    for policy in (ArchivePolicy(), AutoPolicy()):
        assert policy.new_lanes().layout == type(policy)(certainty=0.9).new_lanes().layout
        assert isinstance(policy.columns()["weight"], Column)
