"""What 100,000 idle streams cost in the pool, against one tensor a stream.

    python -m benchmarks.state_pool [--streams N] [--json FILE]

Each measurement is a process of its own: its resident memory with the states written, less that before them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import print_table
from memory.state_pool import StatePool

LAYERS, HEADS, RANK = 36, 1, 8
STATE = 4 * LAYERS * HEADS * RANK * RANK


def resident() -> int:
    """Return this process's resident memory in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def in_pool(streams: int, doubling: bool) -> float:
    """Fill a pool; return the seconds of an `acquire` for each lane."""
    pool = StatePool(LAYERS, HEADS, RANK, capacity=1024 if doubling else streams, max_bytes=streams * STATE)
    names = [f"user-{number:06d}" for number in range(streams)]
    start = time.perf_counter()
    for first in range(0, streams, 1000):
        slots = pool.acquire(names[first : first + 1000])
        pool.states[torch.from_numpy(slots)] = 1.0
    spent = time.perf_counter() - start
    pool.committed()
    KEPT.append(pool)
    return spent / streams


def in_tensors(streams: int) -> float:
    """Keep one tensor a stream."""
    start = time.perf_counter()
    KEPT.append({f"user-{number:06d}": torch.ones(LAYERS, HEADS, RANK, RANK) for number in range(streams)})
    return (time.perf_counter() - start) / streams


KEPT: list[Any] = []
WAYS = {
    "pool, capacity given": lambda streams: in_pool(streams, doubling=False),
    "pool, doubling": lambda streams: in_pool(streams, doubling=True),
    "one tensor a stream": in_tensors,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=list(WAYS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        before = resident()
        seconds = WAYS[arguments.child](arguments.streams)
        print(json.dumps({"bytes": resident() - before, "seconds": seconds}))
        return
    rows = []
    states = arguments.streams * STATE
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.state_pool", "--child", way, "--streams", str(arguments.streams)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        waste = found["bytes"] / states - 1
        rows.append(
            {
                "way": way,
                "GB": found["bytes"] / 1e9,
                "over the states": f"{waste:+.1%}",
                "µs a lane": found["seconds"] * 1e6,
            }
        )
    title = f"{arguments.streams:,} streams at L={LAYERS}, H={HEADS}, R={RANK}: states of {states / 1e9:.3f} GB"
    print_table(title, rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
