"""What the monitors cost beside the writes that they watch.

    python -m benchmarks.monitors [--lanes N] [--runs N] [--every K ...] [--threads N] [--json FILE]

N lanes, one segment each: the projection and the scan of those segments, against each monitor on the same lanes, in
turn within one round. Lanes stand anywhere in their streams, as in a long run, so that in each round about one in K of
them has a turn (`monitors.turns`); with K = 1 every probe of every lane is asked for and every σ₁ looked for on every
segment. The median over rounds of each share, and the share of all together; the goal is 0.10.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.report import print_table
from memory.projections import Projections
from memory.reach import write_reach
from memory.scan_forms import scan
from memory.threads import set_threads, threads, torch_threads
from monitors.retrieval_error import RetrievalErrorMonitor
from monitors.state_norm import StateNormMonitor
from monitors.topic_shift import TopicShiftMonitor

SHAPES = (("hashing, R = 8", 256, 8), ("hashing (default)", 256, 32), ("minilm (default)", 384, 64))
AGED = 400
"""Segments that each lane has behind it, at least: all 16 probes are held."""
ALIKE = 0.6
"""How much of a segment is its stream's topic: two of them then have a cosine of 0.26, as MiniLM's have."""
GOAL = 0.10


def measure(name: str, dim: int, rank: int, lanes: int, runs: int, every: int) -> list[dict[str, Any]]:
    """Time one shape; return a row for each part."""
    rng = np.random.default_rng(0)
    project = Projections(dim, 1, rank, beta=0.5, seed=0)
    states, slots, at = torch.zeros(lanes, 1, rank, rank), np.arange(lanes), torch.arange(lanes)
    ends = torch.arange(lanes + 1)
    norm, retrieval, topic = (
        StateNormMonitor(1, rank, every=every),
        RetrievalErrorMonitor(1, rank, every=every),
        TopicShiftMonitor(dim),
    )
    for monitor in (norm, retrieval, topic):
        monitor.lanes.resize(lanes)
    topics = rng.standard_normal((lanes, dim), np.float32)

    def segments() -> torch.Tensor:
        return torch.from_numpy(ALIKE * topics + rng.standard_normal((lanes, dim), np.float32))

    for _ in range(17):  # fill every place of the probes, and the states
        hidden = segments()
        rows = project(hidden)
        scan(states, at, at, ends, rows.q, rows.k, rows.v, rows.beta, mode="plain", want_reads=False)
        for level in range(16):
            retrieval.lanes["key"][:, level], retrieval.lanes["value"][:, level] = rows.k.numpy(), rows.v.numpy()
    age = AGED + rng.integers(0, 1 << 12, lanes)
    retrieval.lanes["count"][:] = norm.lanes["events"][:] = age
    retrieval.lanes["written"][:] = np.maximum(age[:, None] - 2 ** (np.arange(16) // 2), 1)
    retrieval.lanes["last"][:] = 0.5

    shares: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    for run in range(runs + 2):
        hidden = segments()
        spent: dict[str, float] = {}
        clock = _clock(spent)
        rows = clock("projection", lambda h=hidden: project(h))  # type: ignore[misc]
        done = clock(
            "scan",
            lambda r=rows: scan(states, at, at, ends, r.q, r.k, r.v, r.beta, mode="plain", want_reads=False),  # type: ignore[misc]
        )
        keys, values, norms = rows.k.numpy(), rows.v.numpy(), done.state_norm.numpy()
        error = done.mean_write_error.numpy().astype(np.float64).mean(axis=1)
        clock("state norm, saturation", lambda v=values: norm.allow(slots, write_reach("plain", rank, v, 0.5)))  # type: ignore[misc]
        clock("state norm, σ₁, stable rank", lambda s=norms: norm.look(states, slots, s).state_norm)  # type: ignore[misc]
        clock("retrieval, control", lambda e=error: retrieval.hold_out(slots, e))  # type: ignore[misc]
        clock("retrieval, remember", lambda k=keys, v=values: retrieval.remember(slots, k, v))  # type: ignore[misc]
        clock("retrieval, probes", lambda: retrieval.measure(states, slots).lift)
        clock("topic shift", lambda h=hidden: topic.measure(slots, h.numpy()))  # type: ignore[misc]
        if run < 2:
            continue
        base = spent["projection"] + spent["scan"]
        parts = {part: each for part, each in spent.items() if part not in ("projection", "scan")}
        for part, each in {**spent, "all monitors": sum(parts.values())}.items():
            shares.setdefault(part, []).append(each / base)
            seconds.setdefault(part, []).append(each)
    return [
        {
            "shape": name,
            "part": part,
            "µs a lane": median(seconds[part]) / lanes * 1e6,
            "of projection and scan": median(shares[part]),
            "least": min(shares[part]),
            "most": max(shares[part]),
            **({"goal": GOAL} if part == "all monitors" else {}),
        }
        for part in shares
    ]


def _clock(spent: dict[str, float]) -> Callable[[str, Callable[[], Any]], Any]:
    def timed(part: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        spent[part] = spent.get(part, 0.0) + time.perf_counter() - start
        return result

    return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lanes", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=16)
    parser.add_argument("--every", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--threads", type=int, default=threads(), help="1 is steadier on a busy machine")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    result: dict[str, Any] = {"lanes": arguments.lanes, "runs": arguments.runs, "threads": threads()}
    with torch_threads(1):  # as the consumer's loop runs them
        for every in arguments.every:
            for shape in SHAPES:
                rows = measure(*shape, arguments.lanes, arguments.runs, every)
                print_table(f"{shape[0]}: {arguments.lanes:,} lanes, one segment each; a turn every {every}", rows)
                result[f"{shape[0]}, every {every}"] = rows
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
