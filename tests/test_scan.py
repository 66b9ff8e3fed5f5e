"""What `memory.scan` promises, form by form: the naive, the compiled and the chunked. (Triton: `test_triton_scan`.)"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memory.cpu_scan import _pieces
from memory.scan_forms import FORMS, ScanResult, scan, scan_support
from memory.threads import WORTH, set_threads, torch_threads
from memory.threads import threads as threads_now
from tests.scan_batches import MODES, STATISTICS, Batch, distance, gradients, rows, same_bits, worst

HOST_FORMS = ("naive", "cpu", "chunk")
EXACT_FORMS = ("naive", "cpu")  # of these, those that give the same bits however a segment is split
NEAR = 1e-5
"""How far a float32 form may be from the float64 definition, as a part of the largest magnitude; on every machine."""

RANKS = (4, 8, 16, 32, 64)
SHARED = (5, 0, 1, 2, 3, 4, 5)  # lanes 0 and 6 read the same segment


@pytest.fixture(autouse=True)
def _one_torch_thread() -> Iterator[None]:
    """The definition's operations are small: torch's threads would wait for each other."""
    with torch_threads(1):
        yield


@pytest.fixture
def threads() -> Iterator[Any]:
    """Set the number of threads for one test."""
    before = threads_now()
    yield set_threads
    set_threads(before)


@cache
def _ragged(mode: str, rank: int, longest: int) -> tuple[Batch, tuple[ScanResult, Tensor]]:
    heads = {4: 8, 8: 3, 16: 2, 32: 1, 64: 1}[rank]
    lengths = (0, 1, 7, 8, 9, longest)
    batch = Batch.random(mode, rank, heads=heads, lengths=lengths, segments=SHARED, masked=rank != 8, seed=rank)
    return batch, batch.to(torch.float64).run("naive")


# The rule


@pytest.mark.parametrize("mode", MODES)
def test_the_definition_is_the_rule_of_the_papers(mode: str) -> None:
    """The naive form against the modes' formulas, written row by row as the papers print them."""
    batch = Batch.random(mode, 5, lengths=(6,), seed=3).to(torch.float64)
    result, states = batch.run("naive")
    S = batch.states[batch.slots[0], 0].numpy().copy()
    for t in range(6):
        q, k, v, b = (x[t, 0].numpy() for x in (batch.q, batch.k, batch.v, batch.beta))
        lam = 1 - b if batch.lam is None else batch.lam[t, 0].numpy()
        assert result.reads is not None
        np.testing.assert_allclose(result.reads[t, 0].numpy(), S @ q, rtol=0, atol=1e-13)
        wrong = np.linalg.norm(v - S @ k) / np.linalg.norm(v)
        np.testing.assert_allclose(float(result.write_error[t, 0]), wrong, rtol=1e-12)
        for i in range(5):
            s = S[i].copy()
            if batch.mode == "coupled":
                S[i] = (1 - b[i]) * s + b[i] * (v[i] - s @ k) * k
            elif batch.mode == "decay_outside":
                S[i] = lam[i] * (s - b[i] * (s @ k) * k) + b[i] * v[i] * k
            elif batch.mode == "plain":
                S[i] = s + b[i] * (v[i] - s @ k) * k
            else:
                S[i] = lam[i] * s + b[i] * (v[i] - s @ k) * k
    np.testing.assert_allclose(states[batch.slots[0], 0].numpy(), S, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("mode", "share"), [("coupled", 1 / 2), ("decay_outside", 1 / (2 - 0.18)), ("plain", 1.0)])
@pytest.mark.parametrize("form", HOST_FORMS)
def test_a_pair_written_again_and_again_settles_where_the_rule_says(form: str, mode: str, share: float) -> None:
    """Its fixed point is v/2, v/(2 − β) and v: keep and erase balance write there."""
    key, value = torch.eye(8)[2].expand(200, 1, 8), torch.arange(1.0, 9.0).expand(200, 1, 8)
    states, one = torch.zeros(1, 1, 8, 8), torch.tensor([0])
    beta = torch.full((200, 1, 1), 0.18)
    scan(states, one, one, torch.tensor([0, 200]), key, key, value, beta, mode=mode, form=form)  # type: ignore[arg-type]
    torch.testing.assert_close(states[0, 0, :, 2], share * torch.arange(1.0, 9.0), rtol=1e-5, atol=0)


# Every form is the definition


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", HOST_FORMS)
def test_a_form_equals_the_float64_definition(form: str, mode: str, rank: int) -> None:
    batch, expected = _ragged(mode, rank, 40)
    error, of = worst(batch.run(form), expected)
    assert error <= NEAR, of


@pytest.mark.parametrize("form", ["cpu", "chunk"])
@pytest.mark.parametrize(("mode", "rank"), [*zip(MODES, RANKS, strict=True)])
def test_a_form_equals_the_float64_definition_over_a_thousand_tokens(form: str, mode: str, rank: int) -> None:
    batch, expected = _ragged(mode, rank, 1000)
    error, of = worst(batch.run(form), expected)
    assert error <= NEAR, of


@pytest.mark.parametrize("form", HOST_FORMS)
def test_reads_are_left_out_if_not_wanted_and_change_nothing(form: str) -> None:
    batch = _ragged("coupled", 8, 40)[0]
    (full, after), (lean, lean_after) = batch.run(form), batch.run(form, want_reads=False)
    assert lean.reads is None
    assert same_bits(lean_after, after)
    assert same_bits(lean.write_error, full.write_error)


@pytest.mark.parametrize("form", HOST_FORMS)
def test_any_rank_and_a_gate_per_head(form: str) -> None:
    """Ranks that no vector fits; `beta` `[T, H, 1]` is one gate for all rows."""
    batch = Batch.random("gated", 5, heads=2)
    whole = replace(
        batch, beta=batch.beta[..., :1].expand_as(batch.beta), lam=batch.q[..., :1].expand_as(batch.q) * 0.1
    )
    narrow = replace(batch, beta=batch.beta[..., :1], lam=batch.q[..., :1] * 0.1)
    assert same_bits(narrow.run(form)[1], whole.run(form)[1])
    assert worst(narrow.run(form), narrow.to(torch.float64).run("naive"))[0] <= NEAR


# The same bits


def _in_two(batch: Batch, at: int, form: str) -> tuple[Tensor, Tensor, Tensor]:
    first, second = batch.cut(slice(0, at)), batch.cut(slice(at, len(batch.q)))
    result, states = first.run(form)
    rest, states = replace(second, states=states).run(form)
    assert result.reads is not None
    assert rest.reads is not None
    return states, torch.cat([result.reads, rest.reads]), torch.cat([result.write_error, rest.write_error])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", EXACT_FORMS)
def test_a_split_segment_gives_the_bits_of_one_pass(form: str, mode: str) -> None:
    for rank, length in ((4, 3), (8, 9), (64, 3)):
        batch = Batch.random(mode, rank, heads=2, lengths=(length,), masked=True, seed=rank)
        result, after = batch.run(form)
        for at in range(length + 1):
            states, reads, errors = _in_two(batch, at, form)
            assert result.reads is not None
            assert same_bits(states, after), (rank, at)
            assert same_bits(reads, result.reads), (rank, at)
            assert same_bits(errors, result.write_error), (rank, at)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 300), st.sampled_from((*RANKS, 2, 5, 12, 24)), st.booleans())
def test_a_long_segment_split_anywhere_gives_the_bits_of_one_pass(at: int, rank: int, masked: bool) -> None:
    """Write errors too, which the compiled form works out by blocks of tokens where it can."""
    mode = dict(zip(RANKS, MODES, strict=True)).get(rank, "plain")
    batch = Batch.random(mode, rank, heads=2, lengths=(300,), masked=masked, seed=1)
    result, after = batch.run("cpu")
    states, reads, errors = _in_two(batch, at, "cpu")
    assert result.reads is not None
    assert same_bits(states, after)
    assert same_bits(reads, result.reads)
    assert same_bits(errors, result.write_error)


@pytest.mark.parametrize("at", [1, 15, 16, 17, 50])
def test_a_split_segment_is_near_one_pass_in_chunks(at: int) -> None:
    batch = Batch.random("plain", 16, lengths=(100,))
    _, after = batch.run("chunk")
    assert distance(_in_two(batch, at, "chunk")[0], after) <= NEAR


@pytest.mark.parametrize("rank", [4, 8, 64])
@pytest.mark.parametrize("form", EXACT_FORMS)
def test_the_bits_of_a_lane_do_not_depend_on_the_others(form: str, rank: int) -> None:
    batch = Batch.random(
        "coupled", rank, heads=1 if rank == 64 else 3, lengths=(5, 9, 0, 12, 1, 7), segments=SHARED, masked=True
    )
    result, after = batch.run(form)
    for chosen in ([6, 5, 4, 3, 2, 1, 0], [3], [0, 6], [5, 1, 3], [2]):
        other, other_after = batch.lanes(chosen).run(form)
        for place, lane in enumerate(chosen):
            assert result.reads is not None
            assert other.reads is not None
            slot = batch.slots[lane]
            assert same_bits(other_after[slot], after[slot])
            assert same_bits(other.reads[rows(other, place)], result.reads[rows(result, lane)])
            for name in STATISTICS:
                assert same_bits(getattr(other, name)[place], getattr(result, name)[lane]), name


def _large(mode: str = "gated") -> Batch:
    """Enough work for several threads, unevenly spread."""
    lengths = [3000, *([3, 30] * 20), 0, 1000]
    batch = Batch.random(mode, 8, heads=2, lengths=lengths, masked=True)
    assert sum(lengths) * 2 * 3 * 64 > 4 * WORTH
    return batch


def test_the_bits_do_not_depend_on_the_number_of_threads(threads: Any) -> None:
    threads(1)
    result, after = _large().run("cpu")
    for count in (2, 3, 7):
        threads(count)
        other, other_after = _large().run("cpu")
        assert same_bits(other_after, after)
        assert other.reads is not None
        assert result.reads is not None
        assert same_bits(other.reads, result.reads)
        assert same_bits(other.state_norm, result.state_norm)


def test_two_python_threads_may_scan_at_once(threads: Any) -> None:
    threads(2)
    batches = [_large("gated"), _large("coupled")]
    expected = [batch.run("cpu")[1] for batch in batches]
    start, equal = threading.Barrier(2), [[False], [False]]

    def work(number: int) -> None:
        start.wait()
        equal[number] = [same_bits(batches[number].run("cpu")[1], expected[number]) for _ in range(20)]

    workers = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert equal == [[True] * 20, [True] * 20]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 500), min_size=1, max_size=30), st.integers(1, 8), st.integers(1, 64))
def test_pieces_are_all_units_once_and_about_even(lengths: list[int], heads: int, pieces: int) -> None:
    batch = Batch.random("plain", 4, heads=heads, lengths=lengths)
    ranges = _pieces(batch.inputs(), heads, pieces)
    assert [unit for first, last in ranges for unit in range(first, last)] == list(range(heads * len(lengths)))
    assert len(ranges) <= pieces
    work = np.repeat(np.array(lengths) + 4, heads)
    even = work.sum() / pieces + work.max()
    assert max(work[first:last].sum() for first, last in ranges) <= even


# What must stay as it is


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", HOST_FORMS)
def test_a_closed_gate_leaves_the_state_alone_bit_for_bit(form: str, mode: str) -> None:
    """β = 0 (and λ = 1 where it is free), with −0, NaN and inf in the state, and NaN and inf in keys and values."""
    batch = Batch.random(mode, 8, heads=2, lengths=(5, 20))
    batch.states[:, :, 0, :3] = -0.0
    batch.k[::3, 0, 1], batch.k[1::3, 1, 2], batch.v[::2, 0, 3] = torch.nan, torch.inf, -torch.inf
    in_tokens = int((~torch.isfinite(batch.k)).sum() + (~torch.isfinite(batch.v)).sum())
    lam = None if batch.lam is None else torch.ones_like(batch.beta)
    for gate in (0.0, -0.0):
        closed = replace(batch, beta=torch.full_like(batch.beta, gate), lam=lam, states=batch.states.clone())
        result, after = closed.run(form)
        assert same_bits(after, closed.states)
        assert int(result.nonfinite.sum()) == in_tokens
        closed.states[:, :, 1, :2] = torch.tensor([torch.nan, torch.inf])
        result, after = closed.run(form)
        assert same_bits(after, closed.states)
        assert int(result.nonfinite.sum()) == in_tokens + 2 * 2 * 2


@pytest.mark.parametrize("form", HOST_FORMS)
def test_a_row_with_a_closed_gate_is_left_alone_beside_an_open_one(form: str) -> None:
    batch = Batch.random("plain", 8, lengths=(20,))
    batch.states[:, :, 2, :] = -0.0
    batch.k[4] = torch.nan
    batch.beta[:, :, 2] = 0
    _, after = batch.run(form)
    slot = batch.slots[0]
    assert same_bits(after[slot, 0, 2], batch.states[slot, 0, 2])
    assert bool(after[slot, 0, 3].isnan().all())


@pytest.mark.parametrize("form", HOST_FORMS)
def test_an_empty_segment_changes_nothing(form: str) -> None:
    batch = Batch.random("coupled", 8, heads=2, lengths=(0, 0, 3), segments=(0, 1))
    result, after = batch.run(form)
    assert same_bits(after, batch.states)
    assert result.write_error.shape == (0, 2)
    assert result.mean_write_error.tolist() == result.max_write_error.tolist() == [[0, 0], [0, 0]]
    expected = batch.states[batch.slots].flatten(2).norm(dim=-1)
    torch.testing.assert_close(result.state_norm, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("form", HOST_FORMS)
def test_no_lanes_and_no_tokens(form: str) -> None:
    nobody = Batch.random("coupled", 8, lengths=(3,), segments=())
    result, after = nobody.run(form)
    assert same_bits(after, nobody.states)
    assert result.state_norm.shape == (0, 1)
    assert result.lane_offsets.tolist() == [0]
    nothing = Batch.random("coupled", 8, lengths=(0,))
    assert same_bits(nothing.run(form)[1], nothing.states)


@pytest.mark.parametrize("form", HOST_FORMS)
def test_slots_not_named_are_neither_read_nor_written(form: str) -> None:
    batch = Batch.random("coupled", 8, heads=2)
    others = [slot for slot in range(len(batch.states)) if slot not in batch.slots]
    poisoned = replace(batch, states=batch.states.clone())
    poisoned.states[others] = torch.nan
    result, after = poisoned.run(form)
    expected = batch.run(form)
    assert same_bits(after[others], poisoned.states[others])
    assert same_bits(after[batch.slots], expected[1][batch.slots])
    assert int(result.nonfinite.sum()) == 0


@pytest.mark.parametrize("form", HOST_FORMS)
def test_a_masked_token_neither_reads_nor_writes(form: str) -> None:
    """The same as leaving the tokens out, whatever they hold."""
    batch = Batch.random("gated", 8, heads=2, lengths=(30,), masked=True)
    assert batch.token_mask is not None
    assert batch.lam is not None
    on = batch.token_mask
    for tensor in (batch.q, batch.k, batch.v, batch.beta, batch.lam):
        tensor[~on] = torch.nan
    kept = {name: getattr(batch, name)[on] for name in ("q", "k", "v", "beta", "lam")}
    without = replace(batch, offsets=torch.tensor([0, int(on.sum())]), token_mask=None, **kept)
    (result, after), (expected, expected_after) = batch.run(form), without.run(form)
    assert result.reads is not None
    assert expected.reads is not None
    limit = NEAR if form == "chunk" else 0.0
    assert distance(after, expected_after) <= limit
    assert distance(result.reads[on], expected.reads) <= limit
    assert distance(result.mean_write_error, expected.mean_write_error) <= max(limit, 1e-7)
    assert float(result.reads[~on].abs().sum() + result.write_error[~on].abs().sum()) == 0
    assert int(result.nonfinite.sum()) == 0


def test_slots_segments_and_gates_may_be_views() -> None:
    """What a form gets lies in one piece: compiled code is made for that."""
    batch = Batch.random("coupled", 8, heads=2)
    twice = {name: getattr(batch, name).repeat_interleave(2)[::2] for name in ("slots", "segments", "offsets")}
    beta = batch.beta.transpose(0, 1).contiguous().transpose(0, 1)
    views = replace(batch, beta=beta, **twice)
    assert not views.slots.is_contiguous()
    inputs = views.inputs()
    assert inputs.slots.flags.c_contiguous
    assert inputs.beta.is_contiguous()
    assert same_bits(views.run("cpu")[1], batch.run("cpu")[1])


@pytest.mark.parametrize("form", HOST_FORMS)
def test_states_may_be_layers_of_a_larger_tensor(form: str) -> None:
    batch = Batch.random("coupled", 8, heads=2)
    pool = torch.randn(len(batch.states), 3, *batch.states.shape[1:])
    pool[:, 1] = batch.states
    before = pool.clone()
    arguments = (batch.slots, batch.segments, batch.offsets, batch.q, batch.k, batch.v, batch.beta)
    scan(pool[:, 1], *arguments, form=form)  # type: ignore[arg-type]
    assert same_bits(pool[:, 1], batch.run(form)[1])
    assert same_bits(pool[:, 0::2], before[:, 0::2])


@pytest.mark.parametrize("form", HOST_FORMS)
def test_autograd_notices_that_states_were_overwritten(form: str) -> None:
    batch = Batch.random("coupled", 8)
    states = batch.states.clone()
    loss = (torch.ones_like(states, requires_grad=True) * states).sum()
    arguments = (batch.slots, batch.segments, batch.offsets, batch.q, batch.k, batch.v, batch.beta)
    scan(states, *arguments, form=form)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.backward(loss)


# Numbers that are not finite, or nearly not


@pytest.mark.parametrize("spoilt", ["q", "k", "v", "beta", "lam"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("form", HOST_FORMS)
def test_what_is_not_finite_stays_in_its_lane_and_is_counted(form: str, value: float, spoilt: str) -> None:
    batch = Batch.random("gated", 8, heads=2, lengths=(6, 20, 5), masked=True)
    assert batch.token_mask is not None
    batch.token_mask[6:26] = True
    batch.token_mask[20] = False
    clean, clean_after = batch.run(form)
    tensor = getattr(batch, spoilt)
    tensor[10, 0, 3] = tensor[13, 0, 5] = tensor[20, 0, 1] = value  # in lane 1; the last is masked
    result, after = batch.run(form)
    lane, slot = 1, batch.slots[1]
    in_state = int((~torch.isfinite(after[slot])).sum())
    assert result.nonfinite.sum() == result.nonfinite[lane, 0]
    assert int(result.nonfinite[lane, 0]) == 2 + in_state
    assert in_state == {"q": 0, "k": 64, "v": 16, "beta": 16, "lam": 16}[spoilt]
    assert bool(result.state_norm[lane, 0].isfinite()) == (in_state == 0)
    for other in (0, 2):
        assert same_bits(after[batch.slots[other]], clean_after[batch.slots[other]])
    assert same_bits(after[slot, 1], clean_after[slot, 1])  # nor does it reach the other head
    before = rows(result, lane).start + 4
    assert result.reads is not None
    assert clean.reads is not None
    assert same_bits(result.reads[:before], clean.reads[:before])  # nor the tokens before it
    assert same_bits(result.write_error[:before], clean.write_error[:before])


@pytest.mark.parametrize("form", HOST_FORMS)
def test_a_query_is_counted_only_if_it_is_read(form: str) -> None:
    batch = Batch.random("plain", 8)
    batch.q[3, 0, 2] = torch.nan
    assert int(batch.run(form)[0].nonfinite.sum()) == 1
    assert int(batch.run(form, want_reads=False)[0].nonfinite.sum()) == 0


@pytest.mark.parametrize("form", HOST_FORMS)
def test_numbers_not_finite_are_as_in_the_definition(form: str) -> None:
    """NaN where the definition has NaN, infinite where it is, in every result; counts equal."""
    batch = Batch.random("coupled", 8, heads=2, lengths=(9, 9, 9))
    batch.v[3, 0, 1] = torch.inf
    batch.v[12, 0, 1] = torch.nan
    batch.k[20, 1, 0] = torch.nan
    got, expected = batch.run(form), batch.run("naive")
    if form == "chunk":  # its sums meet in another order: inf − inf is NaN, inf alone is not
        got, expected = _without_infinities(*got), _without_infinities(*expected)
    assert worst(got, expected)[0] <= NEAR
    assert bool(expected[0].max_write_error.isnan().any())


def _without_infinities(result: ScanResult, states: Tensor) -> tuple[ScanResult, Tensor]:
    def nan(numbers: Tensor) -> Tensor:
        return torch.where(numbers.isfinite(), numbers, torch.nan)

    assert result.reads is not None
    names = ("reads", "write_error", *STATISTICS)
    return replace(result, **{name: nan(getattr(result, name)) for name in names}), nan(states)


@pytest.mark.parametrize("form", HOST_FORMS)
@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_huge_and_tiny_values_give_finite_write_errors(form: str, scale: float) -> None:
    batch = Batch.random("plain", 16, lengths=(40, 3))
    batch = replace(batch, states=batch.states * scale, v=batch.v * scale)
    result, _ = batch.run(form)
    assert bool(result.write_error.isfinite().all())
    assert bool(result.state_norm.isfinite().all())
    assert int(result.nonfinite.sum()) == 0
    expected, _ = batch.to(torch.float64).run("naive")
    torch.testing.assert_close(result.write_error.double(), expected.write_error, rtol=1e-4, atol=0)
    torch.testing.assert_close(result.state_norm.double(), expected.state_norm, rtol=1e-5, atol=0)
    assert float(result.state_norm.max()) > 10 * scale * 0.9


@pytest.mark.parametrize("form", HOST_FORMS)
def test_a_value_of_zero_has_no_write_error(form: str) -> None:
    batch = Batch.random("plain", 8, lengths=(3,))
    batch.v[1] = 0
    assert batch.run(form)[0].write_error[:, 0].ne(0).tolist() == [True, False, True]


# Gradients


def _loss_inputs(mode: str, dtype: torch.dtype, heads: int = 2) -> tuple[Batch, list[Tensor]]:
    batch = Batch.random(mode, 3, heads=heads, lengths=(0, 1, 4), segments=(2, 1, 0, 2), masked=True).to(dtype)
    batch.beta[:, 0, 1] = 0  # closed in some modes: its gradient is as any other's
    leaves = [batch.states, batch.q, batch.k, batch.v, batch.beta, *([batch.lam] if batch.lam is not None else [])]
    return batch, [leaf.clone().requires_grad_() for leaf in leaves]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", ["naive", "chunk"])
def test_gradients_are_those_of_finite_differences(form: str, mode: str) -> None:
    batch, leaves = _loss_inputs(mode, torch.float64)

    def run(states: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        lanes = (batch.slots, batch.segments, batch.offsets)
        result = scan(states.clone(), *lanes, *tensors, mode=batch.mode, form=form, token_mask=batch.token_mask)  # type: ignore[arg-type]
        assert result.reads is not None
        assert result.final_states is not None
        return result.reads, result.write_error, result.final_states

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("mode", MODES)
def test_the_chunk_forms_gradients_are_the_definitions(mode: str) -> None:
    batch = Batch.random(mode, 8, heads=2, lengths=(0, 1, 40), segments=(2, 1, 0, 2), masked=True)
    batch.beta[5] = 1  # keep = 0 in two modes: products of keeps that vanish
    for got, expected in zip(gradients(batch, "chunk"), gradients(batch.to(torch.float64), "naive"), strict=True):
        assert distance(got, expected) <= 10 * NEAR


def test_auto_takes_a_form_with_gradients_where_they_are_recorded() -> None:
    batch = Batch.random("coupled", 8)
    result, after = replace(batch, v=batch.v.clone().requires_grad_()).run("auto")
    _, expected_after = batch.run("naive")
    assert result.final_states is not None
    assert result.final_states.requires_grad
    assert same_bits(after, expected_after)
    with torch.no_grad():
        without, _ = replace(batch, v=batch.v.clone().requires_grad_()).run("auto")
    assert without.final_states is None


def test_auto_on_the_host_is_the_compiled_form_however_few_and_long_the_lanes() -> None:
    batch = Batch.random("coupled", 16, lengths=(200,))
    assert same_bits(batch.run("auto")[1], batch.run("cpu")[1])
    assert not same_bits(batch.run("auto")[1], batch.run("chunk")[1])


# Messages


class Change:
    """Replace one argument by what a function makes of the batch."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments

    def __call__(self, batch: Batch) -> Batch:
        return replace(batch, **{name: make(batch) for name, make in self.arguments.items()})


SLIPS: list[tuple[str, type[Exception], str, Any]] = [
    (
        "states not square",
        ValueError,
        r"states must be \[S, H, R, R\], got \[7, 2, 8, 4\]",
        Change(states=lambda b: b.states[..., :4]),
    ),
    (
        "states of three dimensions",
        ValueError,
        r"states must be \[S, H, R, R\], got \[2, 8, 8\]",
        Change(states=lambda b: b.states[0]),
    ),
    (
        "states transposed",
        ValueError,
        r"each state must lie in one piece .* got \[128, 64, 1, 8\] for R = 8",
        Change(states=lambda b: b.states.mT),
    ),
    (
        "states expanded",
        ValueError,
        r"without overlap, got \[0, 64, 8, 1\]",
        Change(states=lambda b: b.states[:1].expand(7, -1, -1, -1)),
    ),
    (
        "q of another rank",
        ValueError,
        r"q must be \[T, H, R\] = \[25, 2, 8\], got \[25, 2, 4\]",
        Change(q=lambda b: b.q[..., :4]),
    ),
    ("k shorter", ValueError, r"k must be \[T, H, R\] = \[25, 2, 8\], got \[24, 2, 8\]", Change(k=lambda b: b.k[1:])),
    ("v without heads", ValueError, r"v must be .* got \[25, 8\]", Change(v=lambda b: b.v[:, 0])),
    (
        "beta of two gates",
        ValueError,
        r"beta must be \[25, 2, 8\] or \[25, 2, 1\], got \[25, 2, 2\]",
        Change(beta=lambda b: b.beta[..., :2]),
    ),
    (
        "lam shorter",
        ValueError,
        r"lam must be \[25, 2, 8\] or \[25, 2, 1\], got \[1, 2, 8\]",
        Change(lam=lambda b: b.lam[:1]),
    ),
    (
        "gated without lam",
        ValueError,
        r"mode 'gated' needs lam: the retention gate of each row",
        Change(lam=lambda b: None),
    ),
    (
        "plain with lam",
        ValueError,
        r"mode 'plain' has no free retention gate: leave lam out, or use mode 'gated'",
        Change(mode=lambda b: "plain"),
    ),
    ("coupled with lam", ValueError, r"mode 'coupled' has no free", Change(mode=lambda b: "coupled")),
    (
        "unknown mode",
        ValueError,
        r"unknown mode 'decay': expected one of coupled, decay_outside, plain, gated",
        Change(mode=lambda b: "decay"),
    ),
    (
        "v in float64",
        TypeError,
        r"v must be float32 on cpu like states, got float64 on cpu",
        Change(v=lambda b: b.v.double()),
    ),
    (
        "lam in half",
        TypeError,
        r"lam must be float32 on cpu like states, got float16",
        Change(lam=lambda b: b.lam.half()),
    ),
    (
        "k elsewhere",
        TypeError,
        r"k must be float32 on cpu like states, got float32 on meta",
        Change(k=lambda b: b.k.to("meta")),
    ),
    (
        "mask of integers",
        ValueError,
        r"token_mask must be bool \[25\], got int64 \[25\]",
        Change(token_mask=lambda b: torch.ones(25, dtype=torch.int64)),
    ),
    (
        "mask too long",
        ValueError,
        r"token_mask must be bool \[25\], got bool \[26\]",
        Change(token_mask=lambda b: torch.ones(26, dtype=torch.bool)),
    ),
    (
        "mask elsewhere",
        TypeError,
        r"token_mask must be on cpu like states, got meta",
        Change(token_mask=lambda b: torch.ones(25, dtype=torch.bool, device="meta")),
    ),
    (
        "slots in int32",
        TypeError,
        r"slots must be a row of int64, got int32 \[5\]",
        Change(slots=lambda b: b.slots.int()),
    ),
    (
        "segments a column",
        TypeError,
        r"segments must be a row of int64, got int64 \[5, 1\]",
        Change(segments=lambda b: b.segments[:, None]),
    ),
    (
        "offsets of floats",
        TypeError,
        r"offsets must be a row of int64, got float32 \[6\]",
        Change(offsets=lambda b: b.offsets.float()),
    ),
    (
        "fewer segments than slots",
        ValueError,
        r"slots and segments must be of one length, got 5 and 4",
        Change(segments=lambda b: b.segments[1:]),
    ),
    (
        "offsets not from 0",
        ValueError,
        r"offsets must begin at 0, never fall and end at T = 25, got \[1, 0, 1, 8, 16, 25\]",
        Change(offsets=lambda b: b.offsets + torch.tensor([1, 0, 0, 0, 0, 0])),
    ),
    (
        "offsets that fall",
        ValueError,
        r"offsets must begin at 0.* got \[0, 9, 1, 8, 16, 25\]",
        Change(offsets=lambda b: b.offsets + torch.tensor([0, 9, 0, 0, 0, 0])),
    ),
    (
        "offsets that end early",
        ValueError,
        r"end at T = 25, got \[0, 0, 1, 8, 16\]",
        Change(offsets=lambda b: b.offsets[:-1]),
    ),
    (
        "many offsets",
        ValueError,
        r"end at T = 25, got \[0, 1, 2, 3\] … \[18, 19\]",
        Change(offsets=lambda b: torch.arange(20)),
    ),
    (
        "no offsets",
        ValueError,
        r"offsets must begin at 0, never fall and end at T = 25, got \[\]",
        Change(offsets=lambda b: b.offsets[:0]),
    ),
    (
        "slot past the end",
        ValueError,
        r"slots must lie in 0\.\.6, got 0\.\.7",
        Change(slots=lambda b: torch.tensor([3, 0, 7, 1, 2])),
    ),
    (
        "slot below 0",
        ValueError,
        r"slots must lie in 0\.\.6, got -1\.\.3",
        Change(slots=lambda b: torch.tensor([-1, 0, 1, 2, 3])),
    ),
    (
        "slot twice",
        ValueError,
        r"slots must all be different: two lanes cannot advance one state, got 2 twice",
        Change(slots=lambda b: torch.tensor([3, 2, 1, 2, 0])),
    ),
    (
        "segment past the end",
        ValueError,
        r"segments must lie in 0\.\.4, got 0\.\.5",
        Change(segments=lambda b: torch.tensor([0, 1, 2, 3, 5])),
    ),
    (
        "segment below 0",
        ValueError,
        r"segments must lie in 0\.\.4, got -1\.\.3",
        Change(segments=lambda b: torch.tensor([-1, 0, 1, 2, 3])),
    ),
]


@pytest.mark.parametrize(("kind", "message", "change"), [slip[1:] for slip in SLIPS], ids=[slip[0] for slip in SLIPS])
def test_a_slip_is_named_and_nothing_is_changed(kind: type[Exception], message: str, change: Any) -> None:
    batch = Batch.random("gated", 8, heads=2)
    before = batch.states.clone()
    wrong = change(batch)
    arguments = (wrong.slots, wrong.segments, wrong.offsets, wrong.q, wrong.k, wrong.v, wrong.beta, wrong.lam)
    with pytest.raises(kind, match=message) as slip:
        scan(wrong.states, *arguments, mode=wrong.mode, token_mask=wrong.token_mask)
    assert "\n" not in str(slip.value)
    assert same_bits(batch.states, before)


def test_a_form_that_cannot_run_says_why() -> None:
    batch = Batch.random("coupled", 8)
    with pytest.raises(ValueError, match="form 'cpu' cannot run: the cpu form computes in float32, not float64"):
        batch.to(torch.float64).run("cpu")
    with pytest.raises(
        ValueError, match="form 'cpu' cannot run: the cpu form records no gradients; use form='naive' or"
    ):
        replace(batch, v=batch.v.clone().requires_grad_()).run("cpu")
    with pytest.raises(ValueError, match="unknown form 'gpu': expected one of naive, cpu, triton, chunk"):
        batch.run("gpu")
    assert scan_support("cpu", "cuda") == (False, "the cpu form works on host memory, not on cuda")
    assert scan_support("naive", "cpu", torch.float16) == (
        False,
        "the naive form computes in float32 or float64, not float16",
    )
    assert scan_support("chunk", "cuda", torch.bfloat16)[0] is False
    assert all(scan_support(form, "cpu", torch.float32)[0] for form in HOST_FORMS)
    assert FORMS == ("auto", "naive", "cpu", "triton", "chunk")


# In other processes

_START = """
    import torch
    from memory import cpu_scan
    from memory.scan_forms import scan
    torch.manual_seed(0)
    N, T, R = 512, 80, 2
    normal = [torch.randn(N * T, 2, R) for _ in range(4)]
    states, lanes, offsets = torch.randn(N, 2, R, R), torch.arange(N), torch.arange(N + 1) * T
    def run():
        scan(states, lanes, lanes, offsets, *normal, form="cpu")
"""


def _child(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(_START) + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        cwd=Path(__file__).parent.parent,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_only_the_first_start_compiles(tmp_path: Path) -> None:
    """The cache on disk looks at the kernel's own file; the file that it is built from counts as well."""
    code = """
        cpu_scan._RECIPE += {more}
        run()
        stats = cpu_scan.compiled(R, 0, False, True).stats
        print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
    """
    assert _child(code.format(more=0), NUMBA_CACHE_DIR=str(tmp_path)) == "0 1"
    assert _child(code.format(more=0), NUMBA_CACHE_DIR=str(tmp_path)) == "1 0"
    assert _child(code.format(more=1), NUMBA_CACHE_DIR=str(tmp_path)) == "0 1"  # another vector_step.py


def test_a_forked_child_can_scan() -> None:
    """Its helper threads stayed behind in the parent."""
    code = """
        import os
        from memory.threads import set_threads
        set_threads(2)
        run()
        child = os.fork()
        if child == 0:
            run()
            os._exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert 2 * WORTH < 512 * 80 * 2 * 3 * 4  # enough for helpers to be started
    assert _child(code) == "7"
