"""Trains the topic-shift head that ships with the package, and says how good it is on dialogues it has not seen.

    python -m benchmarks.topic_train --data ../shared/data/topic --cache DIR --out monitors/topic_head.npz \\
        [--folds 3] [--leave-out] [--svg FILE] [--json FILE]

Three things, in this order: k-fold by dialogue (each fold trains a network without the dialogues it is judged on; all
of them together give the calibration and the threshold), training without one of the sets at a time (`--leave-out`),
and the network that is written, trained on everything but `tiage.dev`. Seeded; torch on one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from benchmarks.report import print_table
from benchmarks.segmentation import compare
from benchmarks.topic_data import Bank, Index, bare, build, encode, generated, read_dialogues
from benchmarks.topic_net import BUCKETS, TopicNet, export, logits, pad
from benchmarks.topic_plot import reliability_svg
from benchmarks.topic_shift import brier, sparse
from benchmarks.topic_streams import Streams, domains
from memory.backbones.minilm_backbone import MiniLMBackbone
from monitors.topic_head import PRIOR, PRIOR_RATE, save_head

JUDGED = ("tiage.dev", "dialseg711.a", "superdialseg.val")
"""The sets whose mean Score the threshold is chosen by."""

EPOCHS, STREAMS, BATCH, RATE, DECAY = 18, 1440, 48, 2e-3, 0.1
METRIC_SHARE, PAIRS = 0.5, 10
"""Weight of the metric's own loss, and how many events apart its pairs lie at most."""

Split = Mapping[str, Sequence[Index]]
Values = list[npt.NDArray[np.float64]]


def event_loss(found: torch.Tensor, label: torch.Tensor, late: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy of each event, `[B, T]`.

    In sparse streams (`late`, `[B, 1]`) a boundary is also found by an alarm one or two events after it: most of its
    weight is on −log P(any of the three), and an alarm on the two that follow costs less than elsewhere.
    """
    none = functional.softplus(found)  # −log(1 − p)
    loss = none - found * label
    begun = label * late
    second = functional.pad(begun, (1, 0))[:, :-1] * (1 - label)
    third = functional.pad(begun, (2, 0))[:, :-2] * (1 - label) * (1 - functional.pad(label, (1, 0))[:, :-1])
    later = functional.pad(none * second, (0, 1))[:, 1:] + functional.pad(none * third, (0, 2))[:, 2:]
    any_of_three = -torch.log(-torch.expm1(-(none + later).clamp(min=1e-4)))
    return loss * (1 - 0.6 * begun - 0.7 * (second + third).clamp(max=1)) + 0.6 * begun * any_of_three


def fit(bank: Bank, train: Split, seed: int, epochs: int = EPOCHS) -> TopicNet:
    """Train one network; its weights are the mean over the last 40 % of the epochs."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net, streams = TopicNet(), Streams(bank, train)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, epochs * (STREAMS // BATCH), pct_start=0.15)
    mean: dict[str, torch.Tensor] = {}
    taken = 0
    for epoch in range(epochs):
        net.train()
        drawn = sorted(streams.draw(STREAMS, rng), key=lambda one: len(one[0]) + 8 * rng.random())
        for at in rng.permutation(STREAMS // BATCH) * BATCH:
            part = drawn[at : at + BATCH]
            rows, label, mask = pad([(own, labels) for own, labels, _ in part])
            found, metric = net(bank, rows, mask)
            counted = mask.clone()
            counted[:, 0] = False
            each = event_loss(found, label, torch.tensor([late for *_, late in part])[:, None])
            loss = (each * counted).sum() / counted.sum()
            segment = label.cumsum(1)
            same = (segment[:, :, None] == segment[:, None, :]).float()
            near = torch.ones_like(same[0]).tril(-1).triu(-PAIRS) * mask[:, :, None] * mask[:, None, :]
            alike = net.pair[0] * (metric @ metric.transpose(1, 2)) + net.pair[1]
            pairs = functional.binary_cross_entropy_with_logits(alike, same, reduction="none")
            loss = loss + METRIC_SHARE * (pairs * near).sum() / near.sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        if epoch >= 0.6 * epochs:
            taken += 1
            for name, tensor in net.state_dict().items():
                mean[name] = mean[name] + (tensor - mean[name]) / taken if name in mean else tensor.clone()
    net.load_state_dict(mean)
    return net.eval()


def split(bank: Bank, fold: int, folds: int) -> tuple[dict[str, list[Index]], dict[str, list[Index]]]:
    """Return the dialogues to train on and those to judge by; a text without its speakers stays in its fold."""
    train: dict[str, list[Index]] = {}
    test: dict[str, list[Index]] = {}
    for name, dialogues in bank.dialogues.items():
        if name == "tiage.dev":
            test[name] = dialogues
        elif name == "tiage.train":
            train[name] = dialogues
        else:
            held = set(np.random.default_rng(7).permutation(len(dialogues))[fold::folds].tolist())
            train[name] = [dialogue for at, dialogue in enumerate(dialogues) if at not in held]
            test[name] = [dialogue for at, dialogue in enumerate(dialogues) if at in held]
    return train, test


def calibrate(values: Mapping[str, Values], labels: Mapping[str, list[Index]]) -> tuple[float, float]:
    """Return scale and offset of the logit that make it a probability (Platt), the judged sets weighing the same."""
    parts = [
        (np.concatenate([v[1:] for v in values[name]]), np.concatenate([one[1:] for one in labels[name]]))
        for name in JUDGED
    ]
    x = np.concatenate([part for part, _ in parts])
    y = np.concatenate([part for _, part in parts]).astype(np.float64)
    weight = np.concatenate([np.full(len(part), 1 / len(part)) for part, _ in parts])
    theta = np.array([1.0, 0.0])
    for _ in range(50):  # Newton
        p = 1 / (1 + np.exp(-(theta[0] * x + theta[1])))
        design = np.stack([x, np.ones_like(x)])
        gradient = design @ (weight * (p - y))
        hessian = (design * (weight * p * (1 - p))) @ design.T
        theta = theta - np.linalg.solve(hessian, gradient)
    return float(theta[0]), float(theta[1])


def chances(values: npt.NDArray[np.float64], scale: float, offset: float) -> npt.NDArray[np.float64]:
    """Return one dialogue's probabilities as the monitor gives them: calibrated, and corrected for a lower rate.

    Examples
    --------
    >>> chances(np.array([5.0, -1.5, -1.5]), 1.0, 0.0).round(3).tolist()
    [0.0, 0.182, 0.182]
    """
    rate, found = PRIOR, np.zeros(len(values))
    for at, logit in enumerate(scale * values + offset):
        if at:
            own = min(0.0, float(np.log(rate / (1 - rate)) - np.log(PRIOR / (1 - PRIOR))))
            found[at] = 1 / (1 + np.exp(-(logit + own)))
            rate += PRIOR_RATE * (1 / (1 + np.exp(-logit)) - rate)
    return found


def scored(values: Values, labels: Sequence[Index], above: float) -> dict[str, float]:
    """Return the mean Score and its parts where p > above, and predicted over true boundaries."""
    flags = [np.where(np.arange(len(v)) > 0, v > above, False).astype(np.int64) for v in values]
    each = [compare(flag, label) for flag, label in zip(flags, labels, strict=True)]
    means = {
        name: float(np.mean([getattr(one, name) for one in each])) for name in ("score", "f1", "pk", "window_diff")
    }
    true = sum(int(label.sum()) for label in labels)
    ratio = sum(int(flag.sum()) for flag in flags) / max(1, true)
    return means | {"pred/true": ratio} | sparse(flags, labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the labelled dialogues")
    parser.add_argument("--cache", type=Path, required=True, help="folder for encoded utterances")
    parser.add_argument("--out", type=Path, help="where to write the weights")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--leave-out", action="store_true", help="also train without one set at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--above", type=float, help="threshold for --leave-out without folds")
    parser.add_argument("--calibration", type=float, nargs=2, help="scale and offset, without folds")
    parser.add_argument("--svg", type=Path, help="where to draw the reliability curves of the held-out folds")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.cache.mkdir(parents=True, exist_ok=True)
    backbone = MiniLMBackbone()
    assert backbone.mean is not None
    texts: dict[str, Any] = {}
    for path in sorted(arguments.data.glob("*.jsonl")):
        rows = [row for dialogue in read_dialogues(path).values() for row in dialogue]
        texts[path.stem] = rows
        if path.stem == "superdialseg.val":
            texts["superdialseg.bare"] = bare(rows)
    for scenario in ("stationary", "abrupt"):
        texts[f"gen.{scenario}"] = generated(scenario)
    sets = {name: encode(rows, arguments.cache / f"{name}.npz", backbone) for name, rows in texts.items()}
    bank = build(sets, backbone.mean, BUCKETS)
    report: dict[str, Any] = {}
    scale, offset = arguments.calibration or (1.0, 0.0)
    above = arguments.above or 0.5
    start = time.perf_counter()

    def labels(dialogues: Sequence[Index]) -> list[Index]:
        return [bank.label[dialogue] for dialogue in dialogues]

    if arguments.folds > 1:
        values: dict[str, Values] = {}
        judged: dict[str, list[Index]] = {}
        for fold in range(arguments.folds):
            train, test = split(bank, fold, arguments.folds)
            net = fit(bank, train, arguments.seed + fold)
            if "clinc150.spliced" in test:  # streams without a shift: one domain, utterances never trained on
                rng = np.random.default_rng(fold)
                pools = domains(bank, test["clinc150.spliced"])
                test["clinc150.one domain"] = [pool[rng.integers(len(pool), size=150)] for pool in pools]
            for name, dialogues in test.items():
                values.setdefault(name, []).extend(logits(net, bank, dialogues))
                none = name == "clinc150.one domain"
                judged.setdefault(name, []).extend([0 * own if none else own for own in labels(dialogues)])
            print(f"fold {fold + 1} of {arguments.folds}: {time.perf_counter() - start:.0f} s", flush=True)
        scale, offset = calibrate(values, judged)
        found = {name: [chances(v, scale, offset) for v in own] for name, own in values.items()}
        grid = np.arange(0.05, 0.8, 0.025)
        means = [np.mean([scored(found[n], judged[n], at)["score"] for n in JUDGED]) for at in grid]
        above = round(float(grid[int(np.argmax(means))]), 3)
        table = [{"set": name, **scored(found[name], judged[name], above)} for name in found]
        print(f"calibration {scale:.4f} {offset:.4f}, threshold {above}")
        print_table(f"k-fold by dialogue, {arguments.folds} folds, p > {above}", table)
        pairs = {
            name: {
                "p": np.concatenate([v[1:] for v in found[name]]).round(4).tolist(),
                "y": np.concatenate([one[1:] for one in judged[name]]).tolist(),
            }
            for name in JUDGED
        }
        drawn = {name: (np.array(own["p"]), np.array(own["y"])) for name, own in pairs.items()}
        print_table("the probability on held-out folds", [{"set": name, **brier(*own)} for name, own in drawn.items()])
        if arguments.svg:
            arguments.svg.write_text(reliability_svg(drawn), encoding="utf-8")
        report = {"calibration": [scale, offset], "above": above, "folds": table, "chances": pairs}
    if arguments.leave_out:
        table = []
        for out in ("tiage", "dialseg711", "superdialseg"):
            train = {
                name: own for name, own in bank.dialogues.items() if not name.startswith(out) and name != "tiage.dev"
            }
            net = fit(bank, train, arguments.seed)
            for name in JUDGED:
                if name.startswith(out):
                    own = [chances(v, scale, offset) for v in logits(net, bank, bank.dialogues[name])]
                    table.append({"left out": name, **scored(own, labels(bank.dialogues[name]), above)})
        print_table(f"trained without the set, p > {above}", table)
        report["left out"] = table
    if arguments.out:
        train = {name: own for name, own in bank.dialogues.items() if name != "tiage.dev"}
        net = fit(bank, train, arguments.seed)
        save_head(arguments.out, export(net, scale, offset), backbone.fingerprint)
        print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes, {time.perf_counter() - start:.0f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(report))


if __name__ == "__main__":
    main()
