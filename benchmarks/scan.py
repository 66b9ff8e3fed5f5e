"""The scan: bytes and operations first, the floor they set, then each form against it and against the rivals.

    python -m benchmarks.scan [--quick] [--device auto|cpu|cuda] [--threads N] [--json FILE]

The rule is `plain`, H = 1, with reads and all statistics; a time is that of the whole call, its checks included. Each
form and rival takes its turn in every round, so that what else the machine does falls on all of them: shown are
medians, and the best round, which is nearer to what a quiet machine does. The rival is a loop over the tokens in torch,
all lanes at once, with one thread or with all, whichever is faster. "statistics" is what write errors, norms and
counts add to the compiled code, in processor time of one thread. The floor is the largest of three: bytes that must
move at the speed of a large copy, operations at the speed of a large matrix product, both measured in the same run;
and, as the tokens of a lane come one after another, the chain of multiply-adds of the longest lane, each waiting for
the last. States that stay in a cache between rounds can be moved faster than the first of these allows.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from benchmarks.report import print_table
from benchmarks.scan_rivals import fla_recurrent, plain_triton, torch_loop, without_statistics
from memory.cpu_scan import compiled
from memory.rule import Mode
from memory.scan_forms import _check, scan, scan_support
from memory.threads import set_threads, threads, torch_threads

HOST = [
    (1, 1, 8), (1, 2048, 8), (1, 8192, 8), (1, 2048, 64), (16, 512, 8), (1024, 1, 8), (1024, 1, 16), (1024, 1, 32),
    (1024, 1, 64), (1024, 16, 8), (1024, 512, 8), (1024, 64, 32), (65_536, 1, 8), (65_536, 16, 8),
]  # fmt: skip
HOST_QUICK = [(1, 1, 8), (1, 2048, 8), (1024, 1, 8), (1024, 1, 64), (1024, 512, 8)]
GPU = [
    (lanes, tokens, rank)
    for rank in (8, 16, 32, 64)
    for lanes in (1, 16, 256, 4096, 65_536)
    for tokens in (1, 16, 128, 1024, 8192)
    if lanes * tokens * rank <= 2**28 and lanes * rank * rank <= 2**29
]
GPU_QUICK = [(1, 8192, 8), (16, 1024, 64), (4096, 128, 8), (65_536, 1, 8), (65_536, 16, 16), (65_536, 1, 64)]
GOALS = {(1, 2048, 8): 500, (1024, 512, 8): 20}


@dataclass(frozen=True)
class Machine:
    """What this machine can do, measured."""

    bytes_per_second: float
    operations_per_second: float
    chain_seconds: float

    @classmethod
    def measure(cls, device: torch.device) -> Machine:
        """Copy 256 MB, multiply 2,048 × 2,048 matrices, and follow a chain of dependent multiply-adds."""
        source = torch.ones(2**26, device=device)
        target = torch.empty_like(source)
        size = 2048
        a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
        copy = min(measure({"copy": lambda: target.copy_(source)}, device)["copy"])
        multiply = min(measure({"multiply": lambda: a @ b}, device)["multiply"])
        chain = 4e-3 / _kilohertz(device) if device.type == "cuda" else _chain()
        return cls(2 * source.numel() * 4 / copy, 2 * size**3 / multiply, chain)


@numba.njit(fastmath={"contract"})
def _dependent(count: int, x: float, y: float) -> float:
    for _ in range(count):
        x = x * y + y
    return x


def _kilohertz(device: torch.device) -> float:
    return float(getattr(torch.cuda.get_device_properties(device), "clock_rate", 1.5e6))


def _chain() -> float:
    count = 1_000_000
    _dependent(1, 0.5, 0.5)
    return min(_seconds(lambda: _dependent(count, 0.5, 0.5)) for _ in range(5)) / count


@dataclass(frozen=True)
class Work:
    """N lanes of T tokens each, H = 1, with reads."""

    lanes: int
    tokens: int
    rank: int

    @property
    def bytes(self) -> int:
        """States in and out; q, k, v, β in; reads, errors and statistics out."""
        rows = self.lanes * self.tokens
        return 4 * (2 * self.lanes * self.rank**2 + rows * (5 * self.rank + 1) + 6 * self.lanes)

    @property
    def operations(self) -> int:
        """A multiply and an add for each entry of the state: in S k, in S q and in the write."""
        return 6 * self.lanes * self.tokens * self.rank**2

    def floor(self, machine: Machine) -> tuple[float, str]:
        """Seconds that it must take, and which of the three says so."""
        links = 2 * self.tokens  # S k as if all at once, and the write
        return max(
            (self.bytes / machine.bytes_per_second, "bytes"),
            (self.operations / machine.operations_per_second, "operations"),
            (links * machine.chain_seconds, "chain"),
        )


def _seconds(run: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    run()
    return clock() - start


def measure(
    runs: dict[str, Callable[[], Any]],
    device: torch.device,
    budget: float = 1.0,
    least: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time each in turns, at least so many rounds and for so many seconds; on a GPU by its own clock.

    One that takes less than 20 ms is run once before it is timed: its turn before was long ago, and what its code and
    data cost to come back into the caches belongs to the others.
    """
    taken: dict[str, list[float]] = {name: [] for name in runs}
    short = {name: _seconds(run) < 0.02 for name, run in runs.items()}
    end, rounds = time.perf_counter() + budget, 0
    while rounds < least or time.perf_counter() < end:
        for name, run in runs.items():
            if short[name]:
                run()
            taken[name].append(_gpu_seconds(run) if device.type == "cuda" else _seconds(run, clock))
        rounds += 1
    return taken


def _gpu_seconds(run: Callable[[], Any]) -> float:
    event: Any = torch.cuda.Event
    begin, done = (event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    done.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(done)) / 1e3


def host_row(work: Work, machine: Machine, budget: float, host: torch.device) -> dict[str, Any]:
    """The whole call of the compiled form, against the loop in torch with one thread and with all."""
    states, tensors, lanes, offsets = _tensors(work, host)
    by_token = [x.view(work.lanes, work.tokens, 1, work.rank).transpose(0, 1).contiguous() for x in tensors]

    def loop(count: int) -> Any:
        with torch_threads(count):
            return torch_loop(states, *by_token)

    runs: dict[str, Callable[[], Any]] = {
        "cpu": lambda: scan(states, lanes, lanes, offsets, *tensors, mode="plain", form="cpu"),
        "loop, 1 thread": lambda: loop(1),
    }
    if threads() > 1 and work.lanes > 1:
        runs[f"loop, {threads()} threads"] = lambda: loop(threads())
    taken = measure(runs, host, budget)
    ours = taken.pop("cpu")
    rival = min(taken, key=lambda name: statistics.median(taken[name]))
    floor, bound = work.floor(machine)
    return {
        "lanes": work.lanes,
        "tokens": work.tokens,
        "R": work.rank,
        "floor µs": floor * 1e6,
        "bound": bound,
        "cpu µs": statistics.median(ours) * 1e6,
        "best µs": min(ours) * 1e6,
        "× floor": min(ours) / floor,
        "ns/token": min(ours) / work.lanes / work.tokens * 1e9,
        "loop µs": statistics.median(taken[rival]) * 1e6,
        "loop/cpu": statistics.median(a / b for a, b in zip(taken[rival], ours, strict=True)),
        "best/best": min(taken[rival]) / min(ours),
        "goal": GOALS.get((work.lanes, work.tokens, work.rank)),
        "statistics": f"{_statistics_cost(states, tensors, lanes, offsets, budget):+.0%}",
    }


def _statistics_cost(states: Tensor, tensors: list[Tensor], lanes: Tensor, offsets: Tensor, budget: float) -> float:
    """What the statistics add to the compiled code: in processor time of one thread, with and without in turns."""
    count, rank = len(states), states.shape[-1]
    rows = len(tensors[0])
    slots, starts, lengths = lanes.numpy(), offsets[:-1].numpy(), offsets.diff().numpy()
    flat = [x.view(-1).numpy() for x in (states, *tensors)]
    reads, errors = np.empty(rows * rank, np.float32), np.empty((rows, 1), np.float32)
    measured, met = np.empty((4, count, 1), np.float32), np.empty((count, 1), np.int64)
    no_mask, size = np.ones(0, np.bool_), rank**2
    full, lean = compiled(rank, int(Mode.PLAIN), False, True), without_statistics(rank)

    def run_full() -> None:
        where = (flat[0], size, size, 1, slots, starts, lengths, starts)
        full(0, count, *where, *flat[1:], flat[-1], no_mask, reads, errors, measured, met)

    def run_lean() -> None:
        lean(0, count, flat[0], size, slots, starts, lengths, *flat[1:], reads)

    taken = measure({"full": run_full, "lean": run_lean}, torch.device("cpu"), budget, clock=time.thread_time)
    return min(taken["full"]) / min(taken["lean"]) - 1


def gpu_row(work: Work, machine: Machine, budget: float, device: torch.device) -> dict[str, Any]:
    """The Triton kernel alone, the whole call, the chunk form for few lanes, and the rivals."""
    from memory.triton_launch import Places, run_forward

    states, tensors, lanes, offsets = _tensors(work, device)
    q, k, v, beta = tensors
    inputs = _check(states, lanes, lanes, offsets, q, k, v, beta, None, Mode.PLAIN, None, True)
    places = Places.of(inputs, inputs.slots, 0)
    shaped = [x.view(work.lanes, work.tokens, 1, work.rank) for x in tensors]
    reads = torch.empty_like(tensors[0])
    naive = plain_triton()
    runs: dict[str, Callable[[], Any]] = {
        "triton": lambda: run_forward(inputs, states, places, every=0),
        "call": lambda: scan(states, lanes, lanes, offsets, *tensors, mode="plain", form="triton"),
        "one program a lane": lambda: naive(states, *tensors, reads, work.tokens),
    }
    if work.lanes <= 16 and work.tokens >= 128:
        runs["chunk"] = lambda: scan(states, lanes, lanes, offsets, *tensors, mode="plain", form="chunk")
    if work.tokens <= 1024:
        by_token = [x.transpose(0, 1).contiguous() for x in shaped]
        runs["torch loop"] = lambda: torch_loop(states, *by_token)
    missing = {}
    try:
        rival = fla_recurrent()
        rival(states, *shaped)
        runs["fla"] = lambda: rival(states, *shaped)
    except ImportError:
        missing["fla µs"] = "not installed"
    except Exception as error:
        missing["fla µs"] = type(error).__name__
    taken = {name: statistics.median(times) for name, times in measure(runs, device, budget).items()}
    floor, bound = work.floor(machine)
    return {
        "lanes": work.lanes,
        "tokens": work.tokens,
        "R": work.rank,
        "floor µs": floor * 1e6,
        "bound": bound,
        "× floor": taken["triton"] / floor,
        "of copy": f"{work.bytes / taken['triton'] / machine.bytes_per_second:.0%}",
        **{f"{name} µs": seconds * 1e6 for name, seconds in taken.items()},
        **missing,
    }


def _tensors(work: Work, device: torch.device) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    rows = work.lanes * work.tokens
    q, k, v = (torch.randn(rows, 1, work.rank, generator=draw) for _ in range(3))
    tensors = [q, torch.nn.functional.normalize(k, dim=-1), v, torch.rand(rows, 1, work.rank, generator=draw)]
    states = torch.randn(work.lanes, 1, work.rank, work.rank, generator=draw)
    offsets = torch.arange(work.lanes + 1) * work.tokens
    return states.to(device), [x.to(device) for x in tensors], torch.arange(work.lanes), offsets


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description="The scan against its floor and its rivals.")
    parser.add_argument("--quick", action="store_true", help="a few sizes")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=threads())
    parser.add_argument("--budget", type=float, default=1.0, help="seconds for a set of forms at a size, at least")
    parser.add_argument("--json", type=Path, help="write the table as JSON here")
    options = parser.parse_args()
    set_threads(options.threads)
    torch.set_num_threads(options.threads)
    gpu = options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda" if gpu else "cpu")
    machine = Machine.measure(device)
    name = torch.cuda.get_device_name() if gpu else f"{_processor()}, {options.threads} threads"
    print(
        f"{name}; torch {torch.__version__}; copy {machine.bytes_per_second / 1e9:.1f} GB/s, "
        f"matrix product {machine.operations_per_second / 1e9:.0f} GFLOP/s, "
        f"a dependent multiply-add {machine.chain_seconds * 1e9:.2f} ns"
    )
    sizes = (GPU_QUICK if options.quick else GPU) if gpu else (HOST_QUICK if options.quick else HOST)
    row = gpu_row if gpu else host_row
    rows = [row(Work(*size), machine, options.budget, device) for size in sizes]
    print_table("The scan, rule plain, H = 1, with reads and statistics", rows)
    if not gpu:
        print(f"Not run: Triton ({scan_support('triton', 'cpu')[1]}), one program a lane, fla (both need a GPU too).")
    if options.json:
        options.json.write_text(json.dumps({"machine": name, **vars(machine), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
