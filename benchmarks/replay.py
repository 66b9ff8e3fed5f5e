"""How many policies a recorded tape is replayed under in a minute.

    python -m benchmarks.replay [--policies N] [--runs N] [--backbone hashing|minilm] [--space NAME] [--quick]

The tape is made by the consumer itself, in a temporary folder, from the conversations in ``../shared/data/locomo``;
without them there is nothing to measure, and the reason is printed. A lane-event is one event under one policy. The
rows to compare with are of the same run: one engine a policy (`stream.replay`), and the bare scan of as many lanes over
the same rows, which measures and decides nothing. Medians over the runs; "CPU" is the processor time of all threads,
which other work on the machine disturbs less than it does seconds on the clock.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.report import print_table
from memory.scan_forms import scan
from memory.threads import threads, torch_threads
from monitors.policies import (
    AdaptiveGatesPolicy,
    ArchivePolicy,
    AutoPolicy,
    DecayOnShiftPolicy,
    DecayPolicy,
    FreezeOnAnomalyPolicy,
    NormCapPolicy,
    Policy,
    ResetOnShiftPolicy,
    ScheduledResetPolicy,
    TopicBelief,
)
from stream.config import RunSettings
from stream.consumer import Consumer
from stream.many import LoadedTape, load, score
from stream.replay import replay

EVENTS = Path(__file__).parents[2] / "shared" / "data" / "locomo" / "events.jsonl"
GOAL = 10_000
SECONDS = 120.0
Random = np.random.Generator


def belief(random: Random) -> TopicBelief:
    """A belief anywhere in the ranges that a search would look through."""
    return TopicBelief(
        hazard=random.uniform(0.005, 0.3),
        novelty=10 ** random.uniform(-4, -0.3),
        passing=random.uniform(0, 0.2),
        passing_ends=random.uniform(0.05, 0.6),
        trust=random.uniform(0.3, 0.95),
        gain=random.uniform(0, 12),
        likeness_gain=random.uniform(0, 40),
        likeness_floor=random.uniform(-0.1, 0.6),
    )


def auto(random: Random) -> Policy:
    """A policy `auto`."""
    return AutoPolicy(
        certainty=random.uniform(0.5, 0.95),
        belief=belief(random),
        enter=10 ** random.uniform(-2, 0.7),
        leave=10 ** random.uniform(-1, 0.7),
    )


def archive(random: Random) -> Policy:
    """A policy `archive`."""
    return ArchivePolicy(certainty=random.uniform(0.5, 0.95), belief=belief(random))


def cheap(random: Random) -> Policy:
    """A policy with one state a lane; one in eight acts on alarms of the lane's own state."""
    cool_down = int(random.integers(0, 60))
    made: list[Callable[[], Policy]] = [
        lambda: DecayPolicy(factor=random.uniform(0.9, 1)),
        lambda: DecayOnShiftPolicy(factor=random.uniform(0.05, 0.95), cool_down=cool_down),
        lambda: ResetOnShiftPolicy(cool_down=cool_down),
        lambda: ScheduledResetPolicy(every=int(random.integers(5, 400))),
        lambda: NormCapPolicy(cap=random.uniform(1, 8), to=random.uniform(0.3, 1)),
        lambda: FreezeOnAnomalyPolicy(hold=int(random.integers(1, 6))),
        lambda: ResetOnShiftPolicy(on=("retrieval_error", "state_norm"), cool_down=cool_down),
        lambda: AdaptiveGatesPolicy(step=10 ** random.uniform(-3, 0), most=random.uniform(1, 2)),
    ]
    return made[random.integers(len(made))]()


SPACES: dict[str, Callable[[Random], Policy]] = {
    "cheap": cheap,
    "archive": archive,
    "auto": auto,
    "mixed": lambda random: (cheap, archive, auto)[random.integers(3)](random),
}


def record(folder: Path, backbone: str) -> None:
    """Record the conversations."""
    settings = RunSettings(
        source=f"file:{EVENTS}", backbone=backbone, policy="none", tape=folder, metrics_port=0, checkpoint_every=0
    )
    consumer = Consumer(settings)
    try:
        consumer.open()
        consumer.run()
    finally:
        consumer.close()


def bare_scan(tape: LoadedTape, lanes: int) -> None:
    """Write all rows to so many lanes, a call for each event."""
    head = tape.head
    for stream in tape.streams.values():
        states = torch.zeros(lanes, head.layers * head.heads, head.rank, head.rank)
        slots, bounds = torch.arange(lanes), torch.from_numpy(stream.bounds)
        for event in range(len(stream)):
            at = torch.full((lanes,), event)
            k, v, beta = stream.k, stream.v, stream.beta
            scan(states, slots, at, bounds, k, k, v, beta, stream.lam, mode=head.mode, want_reads=False)


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Return the seconds on the clock and of the processors that some work takes."""
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - cpu


def row(name: str, tape: LoadedTape, policies: int, taken: list[tuple[float, float]]) -> dict[str, Any]:
    """One row of the table."""
    clock, cpu = (median(numbers) for numbers in zip(*taken, strict=True))
    events = policies * tape.events
    return {
        "what": name,
        "lanes": policies,
        "s": clock,
        "CPU µs a lane-event": cpu / events * 1e6,
        "lane-events/s": events / clock,
        "lane-tokens/s": policies * tape.tokens / clock,
        f"s for {GOAL:,}": clock / policies * GOAL,
        f"CPU s for {GOAL:,}": cpu / policies * GOAL,
    }


def measure(tape_folder: Path, spaces: list[str], policies: int, runs: int) -> list[dict[str, Any]]:
    """Run everything; the spaces take turns, so that a busy minute of the machine is shared by all."""
    tape = load(tape_folder)
    some = {name: [SPACES[name](np.random.default_rng(seed)) for seed in range(policies)] for name in spaces}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ("scan alone", *spaces)}
    few = min(policies, 1024)  # lanes that fit the cache as those of a replay do
    for name in spaces:
        score(tape, some[name][:64], streams=list(tape.streams)[:1])  # compiled code is loaded
    bare_scan(tape, 16)
    for _ in range(runs):
        with torch_threads(1):
            taken["scan alone"].append(timed(lambda: bare_scan(tape, few)))
        for name in spaces:
            taken[name].append(timed(lambda chosen=some[name]: score(tape, chosen)))  # type: ignore[misc]
    rows = [row("one engine", tape, 1, [timed(lambda: replay(tape_folder, {"auto": AutoPolicy()}))])]
    rows += [row(name, tape, few if name == "scan alone" else policies, numbers) for name, numbers in taken.items()]
    return rows


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", type=int, default=GOAL)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--backbone", default="hashing", choices=["hashing", "minilm"])
    parser.add_argument("--space", action="append", choices=[*SPACES])
    parser.add_argument("--quick", action="store_true", help="500 policies, one run")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if not EVENTS.exists():
        print("the private conversations (../shared/data/locomo) are not here: nothing to replay")
        return
    policies, runs = (500, 1) if given.quick else (given.policies, given.runs)
    with tempfile.TemporaryDirectory() as folder:
        record(Path(folder) / "tape", given.backbone)
        rows = measure(Path(folder) / "tape", given.space or [*SPACES], policies, runs)
        head = load(Path(folder) / "tape").head
    title = f"{given.backbone}, R = {head.rank}, {threads()} threads, {runs} runs; goal: {SECONDS:.0f} s for {GOAL:,}"
    print_table(title, rows)
    if given.json:
        given.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
