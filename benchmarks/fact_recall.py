"""Do the probes say what a stream has forgotten? Their error against the error on the facts that were really stated.

    python -m benchmarks.fact_recall [--backbone hashing|minilm] [--streams N] [--events N] [--json FILE]

Generated conversations (`ebbtide generate`) come with the truth: which message stated which fact, and which value is
true now. Real engines run over them, one for each setting of the memory and each scenario. After a quarter, a half and
all of the events, each lane is asked for

- its probes: the monitor's `retrieval_error`, which knows nothing of facts;
- the true facts: for every fact known by then, the pair that the message which last stated it wrote.

A point is a lane at a checkpoint. Reported are rank correlations (Spearman) between the two over all points; within
each setting, which is harder, since the points differ less; by age, a point being a setting's mean over an age bucket;
of settings' means, the probes taken as they are or weighted to the ages of the facts, which are mostly old where probes
are mostly young; and with the share of facts that are not recalled (the value read is nearer to another known fact's).
In token mode a message's pair is that of one of its tokens, as the probes have it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.report import print_table
from memory.lane_state import Slots
from memory.probes import probe_answers
from memory.threads import torch_threads
from monitors.forgetting import AGES
from monitors.retrieval_error import RetrievalErrorMonitor
from stream.assembly import build_engine
from stream.config import RunSettings
from stream.engine import Engine
from stream.event import Event
from stream.generate import GenerateSettings, Scenario, generate

SCENARIOS: tuple[Scenario, ...] = ("abrupt", "recurring", "rebinding", "stationary")
RULES: tuple[dict[str, Any], ...] = (
    *({"mode": "plain", "beta": beta} for beta in (0.1, 0.5, 1.0)),
    *({"mode": "coupled", "beta": beta} for beta in (0.02, 0.18)),
    {"mode": "gated", "beta": 0.5, "lam": 0.99},
)
RANKS = (8, 32, 64)
WRITES = ("segment", "token")
BATCH = 256
FEWEST = 3
"""Facts that a lane must know to be a point."""

Numbers = npt.NDArray[np.float32]


class Recorder(RetrievalErrorMonitor):
    """The monitor, which also keeps each pair that it was shown, in order."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.pairs: dict[int, list[tuple[Numbers, Numbers]]] = {}

    def remember(self, slots: Slots, keys: Numbers, values: Numbers, *rest: Any, **more: Any) -> None:
        """Keep, and remember."""
        super().remember(slots, keys, values, *rest, **more)
        for slot, key, value in zip(slots.tolist(), keys, values, strict=True):
            self.pairs.setdefault(slot, []).append((key, value))


@dataclass
class Points:
    """What was measured on lanes at checkpoints, a list entry each."""

    probes: list[float] = field(default_factory=list)
    facts: list[float] = field(default_factory=list)
    missed: list[float] = field(default_factory=list)
    by_age: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] = field(
        default_factory=lambda: (np.zeros((len(AGES), 2)), np.zeros((len(AGES), 2)))
    )
    """Sum and count of the errors in each age bucket: of the probes, and of the facts."""


def run(settings: RunSettings, conversation: Sequence[tuple[Any, Any]]) -> Points:
    """Run one engine over a conversation and ask it at three checkpoints."""
    engine = build_engine(settings)
    recorder = Recorder(engine.writer.layers * engine.writer.heads, engine.writer.rank)
    recorder.lanes = engine.retrieval.lanes  # the pool knows these columns
    engine.retrieval = recorder
    points = Points()
    known: dict[str, dict[tuple[str, str], int]] = {}
    total = len(conversation)
    stops = {total // 4, total // 2, total}
    for first in _cuts(total, stops):
        part = conversation[first[0] : first[1]]
        events = [Event(event["stream"], text=event["text"]) for event, _ in part]
        texts = [event.text for event in events if event.text is not None]
        engine.process(events, engine.backbone.tokenize(texts))
        for _, truth in part:
            fact = truth["fact"]
            if fact is not None and fact["op"] in ("state", "rebind"):
                known.setdefault(truth["stream"], {})[fact["subject"], fact["attribute"]] = truth["seq"]
        if first[1] in stops:
            _ask(engine, recorder, known, points)
    return points


def _cuts(total: int, stops: set[int]) -> Iterator[tuple[int, int]]:
    edges = sorted({*range(0, total, BATCH), *stops})
    yield from pairwise(edges)


def _ask(engine: Engine, recorder: Recorder, known: dict[str, dict[tuple[str, str], int]], points: Points) -> None:
    states = engine.pool.states.flatten(1, 2)
    for stream, facts in sorted(known.items()):
        if len(facts) < FEWEST:
            continue
        lane = np.array([engine.pool.slots()[stream]])
        pairs = recorder.pairs[int(lane[0])]
        said = sorted(facts.values())
        keys, values = (np.stack([pairs[seq][part] for seq in said])[None] for part in (0, 1))
        errors = probe_answers(states, lane, keys, values)[0][0].astype(np.float64).mean(axis=1)
        found = recorder.measure(states, lane)
        points.probes.append(float(found.error[0]))
        points.facts.append(float(errors.mean()))
        reads = np.einsum("hij,phj->phi", states[lane[0]].numpy(), keys[0]).reshape(len(said), -1)
        choices = values[0].reshape(len(said), -1)
        unlike = np.linalg.norm(reads[:, None] - choices[None], axis=-1)
        points.missed.append(float((unlike.argmin(axis=1) != np.arange(len(said))).mean()))
        held = found.ages[0] >= 0
        for sums, ages, numbers in (
            (points.by_age[0], found.ages[0][held], found.errors[0][held]),
            (points.by_age[1], len(pairs) - 1 - np.array(said), errors),
        ):
            bucket = np.searchsorted([low for low, _ in AGES], ages, side="right") - 1
            np.add.at(sums, bucket, np.stack([numbers, np.ones(len(numbers))], axis=1))


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the rank correlation; ties share their mean rank.

    Examples
    --------
    >>> spearman([1, 2, 3, 4], [10, 20, 40, 30])
    0.8
    """
    ranks = []
    for numbers in (a, b):
        _, place, count = np.unique(np.asarray(numbers), return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(count) - (count - 1) / 2)[place])
    x, y = (rank - rank.mean() for rank in ranks)
    return round(float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum())), 12)


def experiment(
    backbone: str,
    streams: int,
    events: int,
    *,
    ranks: Sequence[int] = RANKS,
    rules: Sequence[dict[str, Any]] = RULES,
    writes: Sequence[str] = WRITES,
    scenarios: Sequence[Scenario] = SCENARIOS,
) -> dict[str, Any]:
    """Run every setting on every scenario; return the rank correlations and the means behind them."""
    rows: list[dict[str, Any]] = []
    everything, within = Points(), []
    by_age: list[tuple[float, float]] = []
    conversations = {
        scenario: list(generate(GenerateSettings(scenario=scenario, streams=streams, events=events)))
        for scenario in scenarios
    }
    for rank, rule, write, scenario in product(ranks, rules, writes, scenarios):
        settings = RunSettings(backbone=backbone, rank=rank, write=write, detectors={}, **rule)
        points = run(settings, conversations[scenario])
        for name in ("probes", "facts", "missed"):
            getattr(everything, name).extend(getattr(points, name))
        within.append(spearman(points.probes, points.facts))
        probes, facts = points.by_age
        both = (probes[:, 1] >= FEWEST) & (facts[:, 1] >= FEWEST)
        curve, truth = (sums[both, 0] / sums[both, 1] for sums in (probes, facts))
        by_age += zip(curve.tolist(), truth.tolist(), strict=True)
        rows.append(
            {
                "R": rank,
                "rule": " ".join(map(str, rule.values())),
                "write": write,
                "scenario": scenario,
                "probes": float(np.mean(points.probes)),
                "probes at the facts' ages": float((curve * facts[both, 1]).sum() / facts[both, 1].sum()),
                "facts": float(facts[:, 0].sum() / facts[:, 1].sum()),
                "missed": float(np.mean(points.missed)),
                "within": within[-1],
            }
        )
    truth = [row["facts"] for row in rows]
    return {
        "settings": rows,
        "lanes at checkpoints": len(everything.probes),
        "rank correlation of lanes": spearman(everything.probes, everything.facts),
        "within a setting, median": float(np.median(within)),
        "within a setting, least": float(np.min(within)),
        "of lanes, with the share of facts missed": spearman(everything.probes, everything.missed),
        "setting means": len(rows),
        "rank correlation of setting means": spearman([row["probes"] for row in rows], truth),
        "of setting means, at the facts' ages": spearman([row["probes at the facts' ages"] for row in rows], truth),
        "setting and age": len(by_age),
        "rank correlation by setting and age": spearman(*zip(*by_age, strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=["hashing", "minilm"], default="hashing")
    parser.add_argument("--streams", type=int, default=6)
    parser.add_argument("--events", type=int, default=200, help="in each stream")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with torch_threads(1):
        result = experiment(arguments.backbone, arguments.streams, arguments.events)
    print_table("each setting", result["settings"])
    print_table(
        "probe error against fact error",
        [{"what": name, "value": value} for name, value in result.items() if name != "settings"],
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
