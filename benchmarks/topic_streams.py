"""Training streams made of labelled dialogues: cut, spliced, thinned, with few topic shifts or none.

Nothing in them tells the time: dialogues begin anywhere, turns and so parities are lost, lengths vary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from benchmarks.topic_data import Bank, Index

LONGEST = 40
"""Events of one training stream."""

MIX = {
    "tiage.train": 2.4,
    "dialseg711.a": 0.8,
    "superdialseg.val": 0.7,
    "superdialseg.bare": 0.4,
    "clinc150.spliced": 1.7,
    "gen.stationary": 0.8,
    "gen.abrupt": 0.6,
}
"""How often each set is drawn from, where it is there."""

Labels = npt.NDArray[np.float32]
Stream = tuple[Index, Labels, bool]
"""Rows, labels, and whether shifts are so sparse that an alarm one or two events late is still worth having."""


def segments(bank: Bank, dialogue: Index) -> list[Index]:
    """Cut a dialogue where topics begin."""
    return [part for part in np.split(dialogue, np.flatnonzero(bank.label[dialogue])) if len(part)]


def domains(bank: Bank, dialogues: Sequence[Index], count: int = 10, rounds: int = 50) -> list[Index]:
    """Sort spliced intents back into domains: spherical k-means over segments' mean embeddings; rows of each."""
    parts = [part for dialogue in dialogues for part in segments(bank, dialogue)]
    means = np.stack([bank.unit[part].mean(dim=0).numpy() for part in parts])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    centres = means[:1]
    while len(centres) < count:  # the farthest segment begins the next domain
        centres = np.concatenate([centres, means[[(means @ centres.T).max(axis=1).argmin()]]])
    for _ in range(rounds):
        nearest = (means @ centres.T).argmax(axis=1)
        centres = np.stack([means[nearest == k].sum(axis=0) for k in range(count)])
        centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-9)
    groups = [[part for part, own in zip(parts, nearest, strict=True) if own == k] for k in range(count)]
    return [np.concatenate(group) for group in groups if group]


class Streams:
    """Draws training streams.

    Parameters
    ----------
    bank, train
        The utterances, and the dialogues of each set that may be used.
    """

    def __init__(self, bank: Bank, train: Mapping[str, Sequence[Index]]):
        self.bank, self.train = bank, train
        self.names = [name for name in MIX if train.get(name)]
        self.pools = domains(bank, train["clinc150.spliced"]) if train.get("clinc150.spliced") else []

    def draw(self, count: int, rng: np.random.Generator) -> list[Stream]:
        """Return so many streams."""
        share = np.array([MIX[name] for name in self.names])
        picks = rng.choice(len(self.names), count, p=share / share.sum())
        return [self._one(self.names[pick], rng) for pick in picks]

    def _one(self, name: str, rng: np.random.Generator) -> Stream:
        kind = rng.random()
        late = name.startswith(("clinc", "gen"))
        if name.startswith("clinc") and kind < 0.85:
            rows, labels = self._spliced(rng)
        elif name.startswith("dialseg") and kind < 0.3:
            rows, labels, late = *self._long_segments(name, rng), True
        else:
            rows, labels = self._dialogue(name, rng)
            if kind > 0.85 and not name.startswith("gen"):
                other = name if rng.random() < 0.5 else self.names[rng.integers(len(self.names))]
                more, new = self._dialogue(other, rng)
                cut = rng.integers(4, len(rows) + 1) if len(rows) > 4 else len(rows)
                rows, labels = np.r_[rows[:cut], more], np.r_[labels[:cut], np.float32(1), new[1:]]
        rows, labels = rows[:LONGEST], labels[:LONGEST]
        return (*(_thinned(rows, labels, rng) if rng.random() < 0.3 else (rows, labels)), late)

    def _dialogue(self, name: str, rng: np.random.Generator) -> tuple[Index, Labels]:
        """Draw a dialogue, or the end of one, or a piece of a long one."""
        rows = self.train[name][int(rng.integers(len(self.train[name])))]
        first = 0
        if len(rows) > LONGEST + 20:
            first = int(rng.integers(len(rows) - LONGEST))
        elif rng.random() < 0.5 and len(rows) > 6:
            first = int(rng.integers(len(rows) // 2))
        rows = rows[first : first + LONGEST]
        return rows, self.bank.label[rows].astype(np.float32)

    def _spliced(self, rng: np.random.Generator) -> tuple[Index, Labels]:
        """Draw utterances of one domain after another; sometimes of one domain only."""
        longest = LONGEST if rng.random() < 0.3 else 20
        rows, labels, domain = np.zeros(0, np.int64), np.zeros(0, np.float32), -1
        while len(rows) < LONGEST + 5:
            other = int(rng.integers(len(self.pools)))
            if other == domain and len(self.pools) > 1:
                continue
            domain = other
            length = rng.integers(4, longest + 1) if longest < LONGEST else LONGEST
            rows = np.r_[rows, self.pools[domain][rng.integers(len(self.pools[domain]), size=length)]]
            labels = np.r_[labels, np.float32(1), np.zeros(length - 1, np.float32)]
        first = rng.integers(5)
        return rows[first : first + LONGEST], labels[first : first + LONGEST]

    def _long_segments(self, name: str, rng: np.random.Generator) -> tuple[Index, Labels]:
        """Draw long segments of different dialogues."""
        rows, labels = np.zeros(0, np.int64), np.zeros(0, np.float32)
        for _ in range(100):
            if len(rows) >= LONGEST:
                break
            parts = segments(self.bank, self.train[name][int(rng.integers(len(self.train[name])))])
            long = [part for part in parts if len(part) >= 5]
            if long:
                rows = np.r_[rows, long[rng.integers(len(long))]]
                labels = np.r_[labels, np.float32(1), np.zeros(len(rows) - len(labels) - 1, np.float32)]
        return rows, labels


def _thinned(rows: Index, labels: Labels, rng: np.random.Generator) -> tuple[Index, Labels]:
    """Lose a tenth of the events; a topic whose first event is lost begins with its next."""
    keep = rng.random(len(rows)) > 0.1
    keep[0] = True
    moved, begun = [], np.float32(0)
    for label, kept in zip(labels, keep, strict=True):
        begun = max(begun, label)
        if kept:
            moved.append(begun)
            begun = np.float32(0)
    return rows[keep], np.array(moved, np.float32)
