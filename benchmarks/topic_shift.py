"""The topic-shift monitor and its default detector on labelled dialogues, beside rules that read nothing.

    python -m benchmarks.topic_shift --data DIR [FILE.jsonl …] [--backbone minilm] [--svg FILE] [--json FILE]

Each line of a file is one utterance: ``{"stream": dialogue, "text": str, "boundary": 0 or 1}``; dialogues may be
interleaved. An utterance goes through the monitor and the detector as in the consumer, after those before it, and is
decided on at once. Beside the score stand

- Brier: the mean squared difference between the probability and what was so, and of the set's own rate in its place;
- within 2: the share of true shifts with an alarm on the event itself or one of the two after it, each alarm counting
  for one shift; delay: how many events late those are on average; false per 1,000: all other alarms.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.report import print_table
from benchmarks.segmentation import Bits, compare
from benchmarks.topic_data import read_dialogues
from benchmarks.topic_plot import reliability_svg
from memory.backbones import Backbone, load_backbone
from memory.token_edges import token_edges
from monitors.detectors import parse_detector
from monitors.observations import Floats
from monitors.topic_monitors import topic_monitor_for
from monitors.trained_topic_shift import TrainedTopicShiftMonitor

RULES: dict[str, Callable[[int], Bits]] = {
    "none": lambda n: np.zeros(n, np.int64),
    "all": lambda n: (np.arange(n) > 0).astype(np.int64),
    "every 3rd": lambda n: ((np.arange(n) % 3 == 0) & (np.arange(n) > 0)).astype(np.int64),
    "every 5th": lambda n: ((np.arange(n) % 5 == 0) & (np.arange(n) > 0)).astype(np.int64),
    "even turns": lambda n: ((np.arange(n) % 2 == 0) & (np.arange(n) > 0)).astype(np.int64),
    "odd turns": lambda n: (np.arange(n) % 2).astype(np.int64),
}

BATCH = 32
"""Dialogues that run side by side, one lane each."""

WITHIN = 2
"""Events after a shift in which an alarm still counts for it."""


def run(
    texts: Sequence[Sequence[str]], backbone: Backbone, spent: dict[str, float] | None = None
) -> tuple[list[Floats], list[Bits]]:
    """Return each dialogue's scores and alarms, `[n]`, from the monitor and the detector that go with a backbone.

    The seconds that the encoder and the monitor took are added to `spent`.
    """
    spent = {} if spent is None else spent
    monitor = topic_monitor_for(backbone)
    detector = parse_detector(monitor.detector)
    detecting = detector.new_lanes()
    for lanes in (monitor.lanes, detecting):
        lanes.resize(len(texts))
    scores = [np.empty(len(dialogue)) for dialogue in texts]
    alarms = [np.zeros(len(dialogue), np.int64) for dialogue in texts]
    for at in range(max(len(dialogue) for dialogue in texts)):
        lane = np.array([k for k, dialogue in enumerate(texts) if len(dialogue) > at])
        ids = backbone.tokenize([texts[k][at] for k in lane])
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids])])
        tokens = np.concatenate(ids)
        start = time.perf_counter()
        encoded = backbone.encode(tokens, offsets, want_hidden=monitor.wants_edges)
        read = time.perf_counter()
        embeddings = encoded.embedding.numpy()
        embeddings[np.diff(offsets) == 0] = np.nan
        if isinstance(monitor, TrainedTopicShiftMonitor):
            assert encoded.hidden is not None
            found = monitor.measure(lane, embeddings, tokens, offsets, token_edges(encoded.hidden.numpy(), offsets))
        else:
            found = monitor.measure(lane, embeddings)
        raised = detector.update(detecting, lane, found)
        spent["encoder"] = spent.get("encoder", 0.0) + read - start
        spent["monitor"] = spent.get("monitor", 0.0) + time.perf_counter() - read
        for k, score, alarm in zip(lane, found, raised, strict=True):
            scores[k][at], alarms[k][at] = score, alarm
    return scores, alarms


def sparse(alarms: Sequence[Bits], true: Sequence[Bits]) -> dict[str, float]:
    """Return the share of shifts found within two events, their mean delay, and false alarms per 1,000 events.

    Examples
    --------
    >>> found = sparse([np.array([0, 1, 0, 0, 0, 1, 1, 0])], [np.array([0, 0, 0, 0, 1, 0, 0, 0])])
    >>> found == {"within 2": 1.0, "delay": 1.0, "false per 1,000": 250.0}
    True
    """
    delays: list[int] = []
    others = 0
    for own, label in zip(alarms, true, strict=True):
        left = np.flatnonzero(own).tolist()
        for shift in np.flatnonzero(label).tolist():
            first = next((at for at in left if shift <= at <= shift + WITHIN), None)
            if first is not None:
                left.remove(first)
                delays.append(first - shift)
        others += len(left)
    shifts, events = sum(int(label.sum()) for label in true), sum(len(label) for label in true)
    return {
        "within 2": len(delays) / shifts if shifts else float("nan"),
        "delay": float(np.mean(delays)) if delays else float("nan"),
        "false per 1,000": 1000 * others / events,
    }


def judged(alarms: Sequence[Bits], true: Sequence[Bits]) -> dict[str, float]:
    """Return the mean scores over dialogues, and predicted over true boundaries."""
    each = [compare(own, label) for own, label in zip(alarms, true, strict=True)]
    means = {
        name: float(np.mean([getattr(one, name) for one in each])) for name in ("score", "f1", "pk", "window_diff")
    }
    total = sum(int(label.sum()) for label in true)
    ratio = sum(int(own.sum()) for own in alarms) / total if total else float("nan")
    return means | {"pred/true": ratio}


def brier(scores: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> dict[str, float]:
    """Return the Brier score of probabilities, and that of the labels' own rate."""
    fine = np.isfinite(scores)
    rate = labels[fine].mean()
    return {"Brier": float(((scores - labels)[fine] ** 2).mean()), "Brier of rate": float(rate * (1 - rate))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--data", type=Path, help="folder with *.jsonl files")
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--dialogues", type=int, default=10**9, help="first N dialogues of each file")
    parser.add_argument("--svg", type=Path, help="where to draw the reliability curves")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    files = [*arguments.files, *(sorted(arguments.data.glob("*.jsonl")) if arguments.data else [])]
    if not files:
        parser.error("expected --data DIR or files, got neither")
    backbone = load_backbone(arguments.backbone)
    rows: list[dict[str, Any]] = []
    quality: list[dict[str, Any]] = []
    spent: dict[str, float] = {}
    run([["to compile", "what is compiled"]], backbone)
    curves: dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]] = {}
    for path in files:
        dialogues = list(read_dialogues(path).values())[: arguments.dialogues]
        true = [np.array([row["boundary"] for row in dialogue], np.int64) for dialogue in dialogues]
        scores: list[Floats] = []
        alarms: list[Bits] = []
        for at in range(0, len(dialogues), BATCH):
            texts = [[row["text"] for row in dialogue] for dialogue in dialogues[at : at + BATCH]]
            found, raised = run(texts, backbone, spent)
            scores += found
            alarms += raised
        rows.append({"file": path.stem, "rule": "ours", **judged(alarms, true)})
        for name, rule in RULES.items():
            rows.append({"file": path.stem, "rule": name, **judged([rule(len(label)) for label in true], true)})
        # A stream's first event begins nothing: it is not counted.
        curves[path.stem] = (np.concatenate([own[1:] for own in scores]), np.concatenate([own[1:] for own in true]))
        quality.append({"file": path.stem, **brier(*curves[path.stem]), **sparse(alarms, true)})
    print_table("topic shift: Score = F1/2 + (1 - Pk)/4 + (1 - WD)/4, mean over dialogues", rows)
    print_table("the probability, and alarms on long streams", quality)
    print(f"monitor and detector: {spent['monitor'] / spent['encoder']:.1%} of the encoder's time")
    if arguments.svg:
        arguments.svg.write_text(reliability_svg(curves), encoding="utf-8")
    if arguments.json:
        arguments.json.write_text(json.dumps({"scores": rows, "quality": quality}, indent=1))


if __name__ == "__main__":
    main()
