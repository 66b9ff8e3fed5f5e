"""The topic-shift alarm of the default configuration against labelled dialogues, beside what costs nothing.

    python -m benchmarks.topic_shift FILE.jsonl [FILE.jsonl …] [--dialogues N] [--json FILE]

Each line of a file is one utterance: ``{"stream": dialogue, "text": str, "boundary": 0 or 1}``. The detector sees an
utterance only after those before it, and decides on it at once. Rows beside ours: flag nothing, flag everything, flag
every third utterance, flag each turn of the first speaker.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import print_table
from benchmarks.segmentation import Bits, Segmentation, compare
from memory.backbones import load_backbone
from monitors.detectors import parse_detector
from monitors.topic_shift import TopicShiftMonitor
from stream.config import DETECTORS

RULES: dict[str, Callable[[int], Bits]] = {
    "flag nothing": lambda n: np.zeros(n, np.int64),
    "flag everything": lambda n: (np.arange(n) > 0).astype(np.int64),
    "flag every third": lambda n: ((np.arange(n) % 3 == 0) & (np.arange(n) > 0)).astype(np.int64),
    "flag the first speaker's turns": lambda n: ((np.arange(n) % 2 == 0) & (np.arange(n) > 0)).astype(np.int64),
}


def alarms(embeddings: np.ndarray[Any, np.dtype[np.float32]], monitor: TopicShiftMonitor) -> Bits:
    """Run one dialogue's embeddings `[n, D]` through the monitor and the default detector; return `[n]` boundary
    bits."""
    detector = parse_detector(DETECTORS["topic_shift_score"])
    lanes, lane = detector.new_lanes(), np.array([0])
    lanes.resize(1)
    monitor.lanes.resize(1)
    monitor.lanes.clear(lane)
    raised = [detector.update(lanes, lane, monitor.measure(lane, row[None]))[0] for row in embeddings]
    return np.array(raised, np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--dialogues", type=int, default=100, help="first N dialogues of each file")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    backbone = load_backbone("minilm")
    monitor = TopicShiftMonitor(backbone.dim, mean=backbone.mean)
    rows: list[dict[str, Any]] = []
    for path in arguments.files:
        dialogues: dict[str, list[dict[str, Any]]] = {}
        for line in path.read_text().splitlines():
            utterance = json.loads(line)
            if utterance["stream"] in dialogues or len(dialogues) < arguments.dialogues:
                dialogues.setdefault(utterance["stream"], []).append(utterance)
        scores: dict[str, list[Segmentation]] = {}
        marked = {"true": 0, "ours": 0}
        for dialogue in dialogues.values():
            true = np.array([utterance["boundary"] for utterance in dialogue], np.int64)
            ids = backbone.tokenize([utterance["text"] for utterance in dialogue])
            offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids])])
            embeddings = backbone.encode(np.concatenate(ids), offsets, want_hidden=False).embedding.numpy()
            ours = alarms(embeddings, monitor)
            marked["true"] += int(true.sum())
            marked["ours"] += int(ours.sum())
            scores.setdefault("default detector", []).append(compare(ours, true))
            for name, rule in RULES.items():
                scores.setdefault(name, []).append(compare(rule(len(true)), true))
        for name, each in scores.items():
            row: dict[str, Any] = {"file": path.name, "rule": name}
            for field in ("score", "f1", "pk", "window_diff"):
                row[field] = float(np.mean([getattr(one, field) for one in each]))
            if name == "default detector":
                row["predicted / true"] = marked["ours"] / max(1, marked["true"])
            rows.append(row)
    print_table(f"topic shift, first {arguments.dialogues} dialogues of each file", rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
