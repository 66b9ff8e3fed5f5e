"""What a policy costs: time an event and bytes a stream, as ratios to doing nothing.

    python -m benchmarks.policy_costs [--lanes N] [--rounds N] [--json FILE]

Lanes of synthetic topics that return (6 of them, visits of 24 events), one thread, its own processor time. A round is
`PolicyRunner.before`, the scan and `after`; the median over rounds, after a warm-up in which every topic was met.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import print_table
from memory.threads import set_threads, torch_threads
from memory.writers import Segments
from monitors.observations import Observations
from monitors.policies import POLICIES, AdaptiveGatesPolicy, Policy
from monitors.policy_runner import PolicyRunner

TOPICS, FACTS, VISIT, DIM, WARM_UP = 6, 8, 24, 384, 200


def cost(policy: Policy, rank: int, lanes: int, rounds: int) -> tuple[float, int]:
    """Return the median µs an event, and the mean bytes of a lane: its state and what the policy keeps beside it."""
    random = np.random.Generator(np.random.Philox(key=rank))
    keys, values = (random.standard_normal((TOPICS, FACTS, rank)).astype(np.float32) for _ in range(2))
    keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    values /= np.linalg.norm(values, axis=-1, keepdims=True)
    centres = np.linalg.qr(random.standard_normal((DIM, TOPICS)))[0].T.astype(np.float32)
    runner = PolicyRunner(policy, heads=1, rank=rank, dim=DIM, mode="plain")
    runner.resize(lanes)
    states, slots, bounds = torch.zeros(lanes, 1, rank, rank), np.arange(lanes), np.arange(lanes + 1)
    beta, norm = torch.full((lanes, 1, 1), 0.5), np.ones(lanes)
    phase = random.integers(0, VISIT, lanes)
    times = []
    for t in range(WARM_UP + rounds):
        topic = (t + phase) // VISIT % TOPICS
        told = random.integers(0, FACTS, lanes)
        k, v = (torch.from_numpy(part[topic, told][:, None]) for part in (keys, values))
        embedding = centres[topic] + 0.03 * random.standard_normal((lanes, DIM), np.float32)
        alarms = {"topic_shift": (t + phase) % VISIT == 0}
        written = Segments(slots, bounds, k, k, v, beta)
        start = time.thread_time()
        before = runner.before(states, slots, written, embedding)
        written.scan(states, slots, "plain")
        runner.after(states, slots, written, before, Observations(slots, {"state_norm": norm}, alarms))
        times.append(time.thread_time() - start)
    kept = sum(sum(map(len, part.dump(slots))) for part in runner.beside.values())
    return float(np.median(times[WARM_UP:])) * 1e6 / lanes, 4 * rank * rank + kept // lanes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lanes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    set_threads(1)
    rows: list[dict[str, Any]] = []
    with torch_threads(1):
        for rank in (8, 32, 64):
            base, size = cost(POLICIES["none"](), rank, arguments.lanes, arguments.rounds)
            for name, kind in POLICIES.items():
                policy = kind(rank=rank) if kind is AdaptiveGatesPolicy else kind()
                spent, kept = cost(policy, rank, arguments.lanes, arguments.rounds)
                rows.append(
                    {
                        "rank": rank,
                        "policy": name,
                        "µs an event": round(spent, 2),
                        "times none": round(spent / base, 2),
                        "bytes a stream": kept,
                        "states a stream": round(kept / size, 1),
                    }
                )
    print_table(f"cost of a policy, {arguments.lanes} lanes, one thread", rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
