"""Is the control fair? A stream's own next pair, against pairs of other streams and of its own later messages.

    python -m benchmarks.control_probes [--source FILE] [--only hashing|minilm] [--json FILE]

FILE is any file of events. Without it: the private conversations that the defaults were chosen on where they are there,
else generated streams. Each stream is written message by message under the backbone's default rule; after the first 64
messages, before each write, the state is asked for pairs that were never written to it:

- next: the message that is about to be written. Its error is the event's write error: what the running consumer has
  for nothing, and takes as its control;
- later: 8 messages of the same stream, 32 or more messages ahead;
- elsewhere: 8 messages of other streams;

and, after the write, for its probes. A pair with the same bits as one that was written is no control; how many of the
next ones are such repeats is said. The mean over messages of each stream, then over streams; ± is the standard error
over streams.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.report import print_table
from memory.backbones import Backbone, load_backbone
from memory.probes import probe_answers
from memory.projections import Projections
from memory.scan_forms import scan
from memory.threads import torch_threads
from monitors.retrieval_error import RetrievalErrorMonitor
from stream.generate import GenerateSettings, generate

PRIVATE = Path(__file__).resolve().parents[2] / "shared" / "data" / "locomo" / "events.jsonl"
RULES: dict[str, tuple[tuple[int, str, float], ...]] = {
    "hashing": ((32, "plain", 0.5), (8, "plain", 0.5), (8, "coupled", 0.18)),
    "minilm": ((64, "plain", 0.5), (8, "plain", 0.5), (8, "coupled", 0.18)),
}
"""Rank, mode and β; the first is the backbone's default."""
WARM_UP, AHEAD, ASKED = 64, 32, 8
KINDS = ("next", "later", "elsewhere", "probes")


def texts_of(source: Path | None) -> list[list[str]]:
    """Read the streams' messages in order; generated ones where there is no file."""
    if source is None:
        lines = [event for event, _ in generate(GenerateSettings(scenario="recurring", streams=6, events=400))]
    else:
        lines = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    streams: dict[str, list[str]] = {}
    for line in lines:
        streams.setdefault(line["stream"], []).append(line["text"])
    return list(streams.values())


def embed(backbone: Backbone, texts: Sequence[str]) -> Tensor:
    """Return each message's embedding, `[messages, D]`; messages without tokens are left out."""
    ids = [each for each in backbone.tokenize(list(texts)) if len(each)]
    parts = []
    for first in range(0, len(ids), 64):
        some = ids[first : first + 64]
        offsets = np.concatenate([[0], np.cumsum([len(each) for each in some])])
        parts.append(backbone.encode(np.concatenate(some), offsets, want_hidden=False).embedding)
    return torch.cat(parts)


def follow(
    own: tuple[npt.NDArray[np.float32], ...], others: tuple[npt.NDArray[np.float32], ...], mode: str, beta: float
) -> dict[str, float]:
    """Write one stream's pairs and ask for controls and probes as it goes; return the means."""
    rng = np.random.default_rng(0)
    (keys, values), rank = own, own[0].shape[-1]
    state, lane, ends = torch.zeros(1, 1, rank, rank), np.array([0]), torch.tensor([0, 1])
    monitor = RetrievalErrorMonitor(1, rank)
    monitor.lanes.resize(1)
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    written: set[bytes] = set()
    lifts, repeats, asked = [], 0, 0

    def ask(kind: str, k: npt.NDArray[np.float32], v: npt.NDArray[np.float32]) -> None:
        new = [row for row in range(len(k)) if k[row].tobytes() not in written]
        if new:
            error, cosine = probe_answers(state, lane, k[None, new], v[None, new])
            found[kind].append((float(error.mean()), float(cosine.mean())))

    for number in range(len(keys)):
        now = slice(number, number + 1)
        look = number >= WARM_UP and number + AHEAD + ASKED < len(keys)
        if look:
            asked += 1
            repeats += keys[number].tobytes() in written
            ask("next", keys[now], values[now])
            later = rng.choice(np.arange(number + AHEAD, len(keys)), ASKED, replace=False)
            ask("later", keys[later], values[later])
            elsewhere = rng.choice(len(others[0]), ASKED, replace=False)
            ask("elsewhere", others[0][elsewhere], others[1][elsewhere])
        k, v = (torch.from_numpy(part[now]) for part in own)
        at = torch.from_numpy(lane)
        done = scan(state, at, at, ends, k, k, v, torch.full((1, 1, 1), beta), mode=mode, want_reads=False)
        monitor.hold_out(lane, done.mean_write_error[:, 0].double().numpy())
        monitor.remember(lane, keys[now], values[now])
        written.add(keys[number].tobytes())
        if look:
            seen = monitor.measure(state, lane)
            found["probes"].append((float(seen.error[0]), float(seen.cosine[0])))
            lifts.append(float(seen.lift[0]))
    means = {kind: np.mean(numbers, axis=0) for kind, numbers in found.items()}
    result = {"repeats": repeats / asked, "lift shown": float(np.mean(lifts))}
    for kind in KINDS:
        result |= {f"{kind} error": float(means[kind][0]), f"{kind} cosine": float(means[kind][1])}
    return result


def experiment(name: str, streams: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Measure one backbone's rules."""
    backbone = load_backbone(name)
    embedded = [embed(backbone, texts) for texts in streams]
    rows = []
    for rank, mode, beta in RULES[name]:
        project = Projections(backbone.dim, 1, rank, beta=beta, mean=backbone.mean, seed=0)
        pairs = [(out.k.numpy(), out.v.numpy()) for out in map(project, embedded)]
        results = []
        for number, own in enumerate(pairs):
            others = tuple(
                np.concatenate([other[part] for at, other in enumerate(pairs) if at != number]) for part in (0, 1)
            )
            results.append(follow(own, others, mode, beta))
        row: dict[str, Any] = {"backbone": name, "R": rank, "rule": f"{mode} {beta}"}
        row |= {key: float(np.mean([each[key] for each in results])) for key in results[0]}
        for kind in ("next", "later", "elsewhere"):
            lift = np.array([each[f"{kind} error"] - each["probes error"] for each in results])
            row[f"lift over {kind}"] = float(lift.mean())
            row[f"± {kind}"] = float(lift.std(ddof=1) / math.sqrt(len(lift)))
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--only", choices=list(RULES))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    streams = texts_of(arguments.source or (PRIVATE if PRIVATE.exists() else None))
    with torch_threads(1):
        rows = [row for name in RULES if arguments.only in (None, name) for row in experiment(name, streams)]
    for part in ("error", "cosine"):
        shown = ["backbone", "R", "rule", *(f"{kind} {part}" for kind in KINDS)]
        print_table(f"{part}: pairs never written, and probes", [{key: row[key] for key in shown} for row in rows])
    shown = ["backbone", "R", "rule", "repeats", "lift shown"]
    shown += [f"{what} {kind}" for kind in ("next", "later", "elsewhere") for what in ("lift over", "±")]
    print_table("lift in error", [{key: row[key] for key in shown} for row in rows])
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
