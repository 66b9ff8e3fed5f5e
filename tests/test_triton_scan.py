"""What the Triton form promises, forward and backward: on a GPU where there is one, else by Triton's interpreter.

The interpreter takes some milliseconds for a token of one program, so sizes are small here. That the kernels can also
be compiled for a GPU, and what they become, is looked at in a process of its own: Triton's compiler needs no GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from memory.scan_forms import scan_support
from memory.threads import torch_threads
from tests.scan_batches import MODES, STATISTICS, Batch, distance, gradients, rows, same_bits, worst

pytest.importorskip("triton", reason="triton has no build for this machine")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NEAR = 1e-5
"""How far the float32 kernels may be from the float64 definition, as a part of the largest magnitude."""


@pytest.fixture(autouse=True)
def _one_torch_thread() -> Iterator[None]:
    with torch_threads(1):
        yield


def _random(*arguments: object, **options: object) -> Batch:
    return Batch.random(*arguments, **options).to(DEVICE)  # type: ignore[arg-type]


# Forward


@pytest.mark.parametrize(
    ("mode", "rank", "heads"),
    [
        *((mode, 8, 2) for mode in MODES),
        ("coupled", 4, 3),
        ("plain", 16, 1),
        ("gated", 32, 1),
        ("decay_outside", 64, 1),
    ],
)
def test_it_equals_the_float64_definition(mode: str, rank: int, heads: int) -> None:
    batch = _random(
        mode, rank, heads=heads, lengths=(0, 1, 9, 8), segments=(3, 0, 1, 2, 3), masked=rank != 8, seed=rank
    )
    error, of = worst(batch.run("triton"), batch.to(torch.float64).run("naive"))
    assert error <= NEAR, of


def test_it_equals_the_float64_definition_over_a_thousand_tokens_and_eight_heads() -> None:
    batch = _random("coupled", 4, heads=8, lengths=(1000,))  # one program
    error, of = worst(batch.run("triton", want_reads=False), batch.to(torch.float64).run("naive", want_reads=False))
    assert error <= NEAR, of


@pytest.mark.parametrize(("mode", "rank"), [("decay_free", 8), ("coupled", 16)])
def test_a_split_segment_gives_the_bits_of_one_pass(mode: str, rank: int) -> None:
    batch = _random(mode, rank, lengths=(6,), masked=True)
    result, after = batch.run("triton")
    for at in (1, 4, 6):
        first, second = (batch.cut(part) for part in (slice(0, at), slice(at, 6)))
        one, states = first.run("triton")
        two, states = replace(second, states=states).run("triton")
        assert result.reads is not None
        assert one.reads is not None
        assert two.reads is not None
        assert same_bits(states, after)
        assert same_bits(torch.cat([one.reads, two.reads]), result.reads)
        assert same_bits(torch.cat([one.write_error, two.write_error]), result.write_error)


def test_the_bits_of_a_lane_do_not_depend_on_the_others() -> None:
    """A program of rank 8 holds four units: others beside this one, of other lengths, or none."""
    batch = _random("coupled", 8, heads=3, lengths=(5, 3, 0, 4, 1), segments=(0, 1, 2, 3, 4, 0), masked=True)
    batch.v[6, 1] = 1e30  # beside a unit whose squares need float64
    result, after = batch.run("triton")
    for chosen in ([5, 4, 3, 2, 1, 0], [3], [0, 5, 2]):
        other, other_after = batch.lanes(chosen).run("triton")
        for place, lane in enumerate(chosen):
            slot = batch.slots[lane]
            assert other.reads is not None
            assert result.reads is not None
            assert same_bits(other_after[slot], after[slot])
            assert same_bits(other.reads[rows(other, place)], result.reads[rows(result, lane)])
            assert same_bits(other.write_error[rows(other, place)], result.write_error[rows(result, lane)])
            for name in STATISTICS:
                assert same_bits(getattr(other, name)[place], getattr(result, name)[lane]), name


@pytest.mark.parametrize("mode", MODES)
def test_a_closed_gate_leaves_the_state_alone_bit_for_bit(mode: str) -> None:
    batch = _random(mode, 8, heads=2, lengths=(3, 4))
    batch.states[:, :, 0, :3] = -0.0
    batch.states[:, :, 1, :2] = torch.tensor([torch.nan, torch.inf])
    batch.k[::3, 0, 1], batch.k[1::3, 1, 2], batch.v[::2, 0, 3] = torch.nan, torch.inf, -torch.inf
    lam = None if batch.lam is None else torch.ones_like(batch.lam)
    result, after = replace(batch, beta=torch.zeros_like(batch.beta), lam=lam).run("triton")
    assert same_bits(after, batch.states)
    expected = 2 * 2 * 2 + int((~torch.isfinite(batch.k)).sum()) + int((~torch.isfinite(batch.v)).sum())
    assert int(result.nonfinite.sum()) == expected


def test_empty_segments_no_lanes_and_slots_not_named() -> None:
    batch = _random("coupled", 8, heads=2, lengths=(0, 2))
    others = [slot for slot in range(len(batch.states)) if slot not in batch.slots]
    batch.states[others] = torch.nan
    result, after = batch.run("triton")
    assert same_bits(after[others], batch.states[others])
    assert same_bits(after[batch.slots[0]], batch.states[batch.slots[0]])
    assert result.mean_write_error[0].tolist() == [0, 0]
    assert int(result.nonfinite.sum()) == 0
    nobody, untouched = batch.lanes([]).run("triton")
    assert same_bits(untouched, batch.states)
    assert nobody.state_norm.shape == (0, 2)


@pytest.mark.parametrize("spoilt", ["q", "k", "v", "beta", "lam"])
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_what_is_not_finite_stays_in_its_lane_and_is_counted(value: float, spoilt: str) -> None:
    batch = _random("gated", 8, heads=2, lengths=(3, 6), masked=True)
    assert batch.token_mask is not None
    batch.token_mask[:] = True
    batch.token_mask[8] = False
    _, clean_after = batch.run("triton")
    tensor = getattr(batch, spoilt)
    tensor[5, 0, 3] = tensor[6, 0, 5] = tensor[8, 0, 1] = value  # in lane 1; the last is masked
    got, expected = batch.run("triton"), batch.run("naive")
    assert worst(got, expected)[0] <= NEAR  # the counts, and NaN and inf, where they are in the definition
    assert int(got[0].nonfinite[1, 0]) == int(got[0].nonfinite.sum()) >= 2
    assert same_bits(got[1][batch.slots[0]], clean_after[batch.slots[0]])
    assert same_bits(got[1][batch.slots[1], 1], clean_after[batch.slots[1], 1])


def test_a_query_is_counted_only_if_it_is_read() -> None:
    batch = _random("plain", 8, lengths=(3,))
    batch.q[1, 0, 2] = torch.nan
    assert int(batch.run("triton")[0].nonfinite.sum()) == 1
    assert int(batch.run("triton", want_reads=False)[0].nonfinite.sum()) == 0


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_huge_and_tiny_values_give_finite_write_errors(scale: float) -> None:
    batch = _random("plain", 8, lengths=(4, 2))
    batch = replace(batch, states=batch.states * scale, v=batch.v * scale)
    batch.v[3] = 0
    result, _ = batch.run("triton")
    expected, _ = batch.to(torch.float64).run("naive")
    assert bool(result.write_error.isfinite().all())
    torch.testing.assert_close(result.write_error.double(), expected.write_error, rtol=1e-4, atol=0)
    torch.testing.assert_close(result.state_norm.double(), expected.state_norm, rtol=1e-5, atol=0)
    assert int(result.nonfinite.sum()) == 0


# Backward


@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_those_of_autograd_through_the_definition(mode: str) -> None:
    batch = _random(mode, 8, heads=2, lengths=(0, 1, 5), segments=(2, 1, 0, 2), masked=True)
    batch.beta[2, 0, 1] = 0
    batch.v[3, 1] = 0
    for name, (got, expected) in _gradient_pairs(batch).items():
        assert distance(got, expected) <= NEAR, name


@pytest.mark.parametrize("rank", [4, 16, 64])
def test_gradients_at_other_ranks(rank: int) -> None:
    batch = _random("coupled", rank, lengths=(4,))
    for name, (got, expected) in _gradient_pairs(batch).items():
        assert distance(got, expected) <= NEAR, name


def test_gradients_over_several_chunks() -> None:
    """More tokens than are kept between two checkpoints; lanes that end in different chunks."""
    from memory.triton_autograd import EVERY

    batch = _random("gated", 4, heads=2, lengths=(2 * EVERY + 3, 5, EVERY), masked=True)
    for name, (got, expected) in _gradient_pairs(batch).items():
        assert distance(got, expected) <= NEAR, name


def test_gradients_have_the_same_bits_again() -> None:
    """Lanes that share a segment add up in the lanes' order, not as they happen to end."""
    batch = _random("coupled", 8, lengths=(3,), segments=(0, 0, 0))
    assert all(same_bits(a, b) for a, b in zip(gradients(batch, "triton"), gradients(batch, "triton"), strict=True))


def test_reads_that_are_not_wanted_need_no_gradient() -> None:
    batch = _random("coupled", 8, lengths=(3,))
    v = batch.v.clone().requires_grad_()
    result, after = replace(batch, v=v).run("triton", want_reads=False)
    assert result.reads is None
    assert result.final_states is not None
    assert same_bits(after[batch.slots], result.final_states.detach())
    assert same_bits(after, batch.run("triton")[1])  # with gradients recorded the bits are the same
    torch.autograd.backward(result.final_states.sum())
    reference = batch.v.double().requires_grad_()
    other, _ = replace(batch.to(torch.float64), v=reference).run("naive")
    assert other.final_states is not None
    torch.autograd.backward(other.final_states.sum())
    assert v.grad is not None
    assert reference.grad is not None
    assert distance(v.grad, reference.grad) <= NEAR


def _gradient_pairs(batch: Batch) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    names = ("states", "q", "k", "v", "beta", "lam")
    pairs = zip(gradients(batch, "triton"), gradients(batch.to(torch.float64), "naive"), strict=True)
    return dict(zip(names, pairs, strict=False))


# The chunk form's walk


def test_the_walk_by_a_kernel_is_the_walk_by_torch() -> None:
    from memory.chunk_scan import Cut, Terms, kernel_walk, torch_walk

    for rank, lengths in ((4, (40, 0, 17)), (16, (33,))):
        batch = _random("gated", rank, heads=2, lengths=lengths, masked=True)
        batch.beta[:16], batch.lam[:16] = 0, 1  # type: ignore[index]
        inputs = batch.inputs()
        cut = Cut.of(inputs)
        terms, S = Terms.of(inputs, cut), inputs.states[batch.slots][cut.order]
        for got, expected in zip(kernel_walk(terms, S, cut.active), torch_walk(terms, S, cut.active), strict=True):
            assert distance(got, expected) <= NEAR


# Where it can run


def test_support_says_why_not() -> None:
    assert scan_support("triton", "cpu", torch.float64) == (False, "the triton form computes in float32, not float64")
    assert scan_support("triton", DEVICE, torch.float32, 5) == (
        False,
        "the triton form takes ranks 4, 8, 16, 32, 64, not 5",
    )
    assert scan_support("triton", DEVICE) == (True, "")
    if DEVICE == "cpu":
        assert scan_support("triton", "cuda") == (False, "torch sees no GPU")
    batch = _random("coupled", 5, lengths=(2,))
    with pytest.raises(ValueError, match="form 'triton' cannot run: the triton form takes ranks"):
        batch.run("triton")


def test_states_off_the_boundary_of_16_bytes_are_refused() -> None:
    batch = _random("coupled", 4, lengths=(2,))
    room = torch.zeros(batch.states.numel() + 1, device=DEVICE)
    shifted = room[1:].view(batch.states.shape)
    assert shifted.data_ptr() % 16 == 4
    from memory.scan_forms import scan

    with pytest.raises(ValueError, match=r"states must begin on a 16-byte boundary, got address 0x[0-9a-f]+: clone"):
        scan(shifted, batch.slots, batch.segments, batch.offsets, batch.q, batch.k, batch.v, batch.beta, form="triton")
    unlucky = torch.zeros(batch.q.numel() + 1, device=DEVICE)[1:].view(batch.q.shape).copy_(batch.q)
    assert same_bits(replace(batch, q=unlucky).run("triton")[1], batch.run("triton")[1])  # these are copied


def _child(code: str, tmp_path: Path) -> str:
    """Run code where the interpreter is off, as in production."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        cwd=Path(__file__).parent.parent,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_kernels_compile_for_a_gpu_with_16_byte_access_and_the_state_in_registers(tmp_path: Path) -> None:
    """Compiled here for compute capability 9.0 (no GPU needed), and read: what the interpreter cannot show."""
    code = r"""
import re
import subprocess
import tempfile
from memory.scan_forms import scan_support
print(*scan_support("triton", "cpu"))
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from memory.triton_backward import backward_kernel
from memory.triton_forward import forward_kernel
from memory.triton_step import UNITS, WARPS
from memory.triton_walk import ROWS, walk_kernel

INDICES = "slots starts lengths outs chunks order met active firsts".split()
COUNTS = "units heads depth parts".split()

def compile(kernel, warps, **constants):
    signature, hints = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in COUNTS:
            signature[name] = "i32"
        else:
            kind = "i32" if "stride" in name else "*i64" if name in INDICES else "*fp32"
            signature[name] = "*i1" if name in ("token_mask", "closed") else kind
            hints[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=hints)
    options = dict(num_warps=warps, enable_fp_fusion=True)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm

def stack(cubin):
    # bytes that a thread has spilled from its registers
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        used = subprocess.run(tool, capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", used)[1])

for rank in (8, 64):
    common = dict(R=rank, U=UNITS[rank], MODE=0, FREE=False, MASKED=True, READS=True)
    made = {"forward": compile(forward_kernel, WARPS[rank], **common, EVERY=0)}
    if rank == 8:
        made["backward"] = compile(backward_kernel, WARPS[rank], **common, EVERY=32)
        made["walk"] = compile(walk_kernel, 1, R=rank, C=16, ROWS=ROWS)
    for name, code in made.items():
        ptx = code["ptx"]
        wide = [len(re.findall(op + r"\.global[.\w]*\.v4\.(?:b32|f32)", ptx)) for op in ("ld", "st")]
        print(name, rank, *wide, stack(code["cubin"]))
"""
    support, *lines = _child(code, tmp_path).splitlines()
    assert support == (
        "False the triton form needs a GPU, not cpu "
        "(TRITON_INTERPRET=1, set before Triton is imported, runs it slowly on the host)"
    )
    kernels = [line.split() for line in lines]
    assert [kernel[0] for kernel in kernels] == ["forward", "backward", "walk", "forward"]
    for name, rank, loads, stores, spilled in kernels:
        threads = 32 * {"8": 1, "64": 4}[rank]
        states = int(rank) ** 2 * {"8": 4, "64": 1}[rank] // (4 * threads)  # pieces of 16 bytes to a thread
        assert int(spilled) <= (64 if name == "backward" else 0), (name, rank)
        if name != "walk":
            assert int(loads) >= states, (name, rank)
            assert int(stores) >= states, (name, rank)
        else:
            assert int(loads) > 0
            assert int(stores) > 0
