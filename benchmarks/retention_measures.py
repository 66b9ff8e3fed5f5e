"""What a state still gives back for the pairs that it was taught, beside pairs that it never saw.

Words used here. A *pair* is the key and the value of one written row; two rows with the same bits are the same pair,
and a pair is as old as its last writing. *Past* pairs were written and not written again since. *Later* pairs (this
conversation, after the checkpoint) and pairs from *elsewhere* (another conversation) were never written: they are the
controls. What a state returns for those comes from the map between keys and values in general, not from memory;
retention is what past pairs have over them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from memory.projections import Projected
from memory.scan_forms import scan
from memory.threads import torch_threads

AGES: tuple[tuple[int, float], ...] = ((0, 0), (1, 3), (4, 15), (16, 63), (64, 255), (256, np.inf))
"""Age buckets in messages, both ends included; the last message written has age 0."""

KINDS = ("past", "later", "elsewhere")
MEASURES = ("cosine", "error", "hit")

CHOICES = 64
"""A read is a hit if its own value is the nearest of this many; chance is one in so many."""

PROBES = 24
"""Most past pairs asked for in one age bucket at one checkpoint."""

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Project = Callable[[Tensor], Projected]
"""Rows `[M, D]` to one head's keys, values and gates."""


class Pairs:
    """The pairs of one conversation in the order of their writing, and which of them are past, later or elsewhere.

    Parameters
    ----------
    rows
        `[P, D]` float32, what the projections turn into keys and values.
    message
        `[P]` int64, rising: the number of the message that each belongs to.

    Examples
    --------
    Five pairs in four messages; those of messages 0 and 2 are the same.

    >>> pairs = Pairs(torch.tensor([[1.0], [2.0], [3.0], [1.0], [4.0]]), np.array([0, 1, 1, 2, 3]))
    >>> pairs.past(2).tolist(), pairs.past(3).tolist(), pairs.later(1).tolist()
    ([0, 2], [2, 3], [1, 2, 4])
    """

    def __init__(self, rows: Tensor, message: Ids):
        self.rows, self.message = rows, message
        self.name = np.array([_name(row) for row in rows.numpy()], np.int64)
        order = np.lexsort((np.arange(len(message)), self.name))
        again = self.name[order[1:]] == self.name[order[:-1]]
        self._next = np.full(len(message), np.iinfo(np.int64).max)  # the message in which a pair comes next
        self._next[order[:-1][again]] = message[order[1:][again]]
        self._first = np.ones(len(message), np.bool_)
        self._first[order[1:][again]] = False

    def less_running_mean(self) -> Pairs:
        """Return the same pairs, from each row the mean of the rows before it subtracted."""
        other = copy(self)
        before = self.rows.cumsum(dim=0) - self.rows
        other.rows = self.rows - before / torch.arange(len(self.rows)).clamp_min(1)[:, None]
        return other

    def past(self, messages: int) -> Ids:
        """Return pairs in the first `messages` messages and not written again in them: one of each message, in turn."""
        valid = np.flatnonzero((self.message < messages) & (self._next >= messages))
        said, start, count = np.unique(self.message[valid], return_index=True, return_counts=True)
        return valid[start + said % count]

    def later(self, messages: int) -> Ids:
        """Return the pairs that first come after the first `messages` messages."""
        return np.flatnonzero(self._first & (self.message >= messages))

    def unlike(self, other: Pairs, messages: int) -> Ids:
        """Return the pairs that are not among those of `other`'s first `messages` messages."""
        return np.flatnonzero(self._first & ~np.isin(self.name, other.name[other.message < messages]))


def _name(row: npt.NDArray[np.float32]) -> int:
    return int.from_bytes(blake2b(row.tobytes(), digest_size=8).digest(), signed=True)


def spread_out(index: Ids, most: int) -> Ids:
    """Return at most `most` of `index`, evenly spaced.

    Examples
    --------
    >>> spread_out(np.arange(10), 4).tolist()
    [0, 3, 6, 9]
    """
    if len(index) <= most:
        return index
    return index[np.linspace(0, len(index) - 1, most).round().astype(np.int64)]


def ask(states: Tensor, keys: Tensor, values: Tensor, choices: Tensor) -> Tensor:
    """Ask states for pairs.

    Parameters
    ----------
    states
        `[B, H, R, R]` float32.
    keys
        `[P, H, R]`: what to ask for.
    values
        `[C, H, R]`: what there is to choose from.
    choices
        `[P, N]` int64, rows of `values`: the pair's own value first, then N − 1 others.

    Returns
    -------
    Tensor
        `[3, P, B, H]`: the cosine of read and own value, 0 where the read is zero; the relative error ‖S k − v‖ / ‖v‖;
        and 1 where the read is nearer (by cosine) to its own value than to all others, else 0.

    Examples
    --------
    A state that holds one pair of two, at half strength:

    >>> S = torch.tensor([[0.5, 0.0], [0.0, 0.0]]).reshape(1, 1, 2, 2)
    >>> pairs = torch.eye(2).reshape(2, 1, 2)
    >>> ask(S, pairs, pairs, torch.tensor([[0, 1], [1, 0]])).flatten(1).tolist()
    [[1.0, 0.0], [0.5, 1.0], [1.0, 0.0]]
    """
    own = values[choices[:, 0]]
    reads = torch.einsum("bhij,phj->pbhi", states, keys)
    error = (reads - own[:, None]).norm(dim=-1) / own.norm(dim=-1)[:, None]
    reads = reads / reads.abs().amax(-1, keepdim=True).clamp_min(1e-38)  # a faint read has a direction too
    reads = torch.nn.functional.normalize(reads, dim=-1)
    score = torch.einsum("pbhi,chi->pbhc", reads, torch.nn.functional.normalize(values, dim=-1))
    score = score.gather(-1, choices[:, None, None].expand(*score.shape[:-1], -1))
    hit = score[..., 0] > score[..., 1:].amax(-1)  # a read of zeros is as near to one as to another: no hit
    return torch.stack([score[..., 0], error, hit.to(error.dtype)])


@dataclass(slots=True)
class Tally:
    """Sums over checkpoints. A bucket's controls are those of the checkpoints that measured it, with its weights.

    Attributes
    ----------
    total
        `[3, 3, A, B, H]`: by kind, measure and age bucket, for each setting of the gates and each head.
    count
        `[3, A]`: past pairs asked for, where the kind was measured.
    """

    total: Floats
    count: Floats

    @classmethod
    def empty(cls, gates: int, heads: int) -> Tally:
        """Begin."""
        shape = (len(KINDS), len(MEASURES), len(AGES), gates, heads)
        return cls(np.zeros(shape), np.zeros((len(KINDS), len(AGES))))

    def mean(self) -> Floats:
        """Return the means, of the shape of `total`; NaN where nothing was measured."""
        with np.errstate(invalid="ignore"):
            mean: Floats = self.total / self.count[:, None, :, None, None]
        return mean


def lift(mean: Floats) -> Floats:
    """Return what past pairs have over the stricter control.

    Parameters
    ----------
    mean
        `[3, 3, …]` by kind and measure.

    Returns
    -------
    ndarray
        `[3, …]` by measure: cosine and hit rate above the higher control, error below the lower one.

    Examples
    --------
    >>> lift(np.array([[0.9, 0.2, 1.0], [0.5, 0.6, 0.25], [0.4, 0.5, np.nan]])).round(6).tolist()
    [0.4, 0.3, 0.75]
    """
    high, low = np.fmax(mean[1], mean[2]), np.fmin(mean[1], mean[2])
    return np.stack([mean[0, 0] - high[0], low[1] - mean[0, 1], mean[0, 2] - high[2]])


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked for at a checkpoint: indices into some pairs' rows, and who competes with whom.

    Attributes
    ----------
    pairs
        Whose rows.
    candidates
        `[C]`: the pairs whose values compete.
    choices
        `[P, N]`: indices into `candidates`; each question's own pair first.
    """

    pairs: Pairs
    candidates: Ids
    choices: Ids

    @classmethod
    def draw(cls, pairs: Pairs, candidates: Ids, asked: Ids, choices: int, rng: np.random.Generator) -> Question:
        """Ask for `candidates[asked]`, each against `choices` − 1 others drawn from the candidates."""
        order = rng.random((len(asked), len(candidates)))
        order[np.arange(len(asked)), asked] = -1.0
        return cls(pairs, candidates, np.argsort(order, axis=1)[:, :choices])


def questions(asks: Sequence[Pairs], number: int, messages: int, choices: int = CHOICES) -> list[Question | None]:
    """Choose what conversation `number` is asked for after its first `messages` messages.

    Parameters
    ----------
    asks
        The pairs of each conversation.
    number
        The conversation that was written.
    messages
        How much of it.
    choices
        Of how many one is right.

    Returns
    -------
    list
        For each of `KINDS`; None where there are too few pairs to choose from. Past pairs: at most `PROBES` from each
        age bucket; both controls: `choices` pairs, each against the others. The same every time.
    """
    rng = np.random.default_rng([number, messages])
    own = asks[number]
    elsewhere = asks[(number + 1 + int(rng.integers(len(asks) - 1))) % len(asks)]
    past = own.past(messages)
    ages = messages - 1 - own.message[past]
    asked = [spread_out(np.flatnonzero((low <= ages) & (ages <= high)), PROBES) for low, high in reversed(AGES)]
    drawn: list[Question | None] = [None] * len(KINDS)
    if len(past) >= choices:
        drawn[0] = Question.draw(own, past, np.concatenate(asked), choices, rng)
    everyone = np.arange(choices)
    for kind, pairs, index in ((1, own, own.later(messages)), (2, elsewhere, elsewhere.unlike(own, messages))):
        if len(index) >= choices:
            drawn[kind] = Question.draw(pairs, spread_out(index, choices), everyone, choices, rng)
    return drawn


def follow(
    number: int,
    writes: Pairs,
    asks: Mapping[str, Sequence[Pairs]],
    heads: Mapping[str, Sequence[Sequence[Project]]],
    *,
    every: int,
    warm_up: int,
    choices: int = CHOICES,
) -> dict[tuple[str, str], Tally]:
    """Write one conversation, and ask for its pairs as it goes.

    Parameters
    ----------
    number
        Which conversation of `asks`.
    writes
        Its rows in the order of writing.
    asks
        Name → the pairs of every conversation: what is asked for (messages, tokens).
    heads
        The rule's mode → for each setting of its gates, for each seed: the projections. The seeds' keys and values must
        be the same in all settings.
    every, warm_up
        Ask after the first `warm_up` messages, and then after each `every` more, while `choices` messages are left.
    choices
        As in `questions`.

    Returns
    -------
    dict
        (mode, name of what was asked for) → what came back.
    """
    seeds = next(iter(heads.values()))[0]
    modes = {mode: [project for setting in settings for project in setting] for mode, settings in heads.items()}
    states: dict[str, Tensor] = {}
    tallies = {(mode, name): Tally.empty(len(heads[mode]), len(seeds)) for mode in heads for name in asks}
    last = int(writes.message[-1]) + 1
    begin = 0
    with torch_threads(1):  # many small products: a second thread costs more than it brings
        for messages in range(warm_up, last - choices + 1, every):
            end = int(np.searchsorted(writes.message, messages))
            for mode, projects in modes.items():
                states[mode] = _write(states.get(mode), projects, writes.rows[begin:end], mode)
            begin = end
            for name, pairs in asks.items():
                drawn = questions(pairs, number, messages, choices)
                if drawn[0] is None:
                    continue
                asked = [None if question is None else _projected(question, seeds) for question in drawn]
                age = messages - 1 - drawn[0].pairs.message[drawn[0].candidates[drawn[0].choices[:, 0]]]
                for mode in heads:
                    shape = (len(heads[mode]), len(seeds), *states[mode].shape[2:])
                    answers = [
                        None if tensors is None else ask(states[mode].reshape(shape), *tensors) for tensors in asked
                    ]
                    _add(tallies[mode, name], age, answers)
    return tallies


def _write(state: Tensor | None, projects: Sequence[Project], rows: Tensor, mode: str) -> Tensor:
    """Write rows into one lane, a head for each of `projects`; return its state `[1, H, R, R]`."""
    parts = [project(rows) for project in projects]
    k, v, beta = (torch.cat([getattr(part, name) for part in parts], dim=1) for name in ("k", "v", "beta"))
    lam = None if parts[0].lam is None else torch.cat([part.lam for part in parts if part.lam is not None], dim=1)
    if state is None:
        state = torch.zeros(1, k.shape[1], k.shape[2], k.shape[2])
    lane, ends = torch.zeros(1, dtype=torch.int64), torch.tensor([0, len(rows)])
    scan(state, lane, lane, ends, k, k, v, beta, lam, mode=mode, want_reads=False)
    return state


def _projected(question: Question, seeds: Sequence[Project]) -> tuple[Tensor, Tensor, Tensor]:
    """Return keys `[P, H, R]`, candidate values `[C, H, R]` and choices `[P, N]`."""
    parts = [seed(question.pairs.rows[torch.from_numpy(question.candidates)]) for seed in seeds]
    choices = torch.from_numpy(question.choices)
    keys, values = torch.cat([part.k for part in parts], dim=1), torch.cat([part.v for part in parts], dim=1)
    return keys[choices[:, 0]], values, choices


def _add(tally: Tally, age: Ids, answers: Sequence[Tensor | None]) -> None:
    """Add one checkpoint: the answers `[3, P, B, H]` of each kind, the past pairs' ages `[P]`."""
    numbers = [None if answer is None else answer.double().numpy() for answer in answers]
    for bucket, (low, high) in enumerate(AGES):
        inside = (low <= age) & (age <= high)
        asked = int(inside.sum())
        for kind, number in enumerate(numbers):
            if number is not None and asked:
                tally.total[kind, :, bucket] += (
                    number[:, inside].sum(axis=1) if kind == 0 else asked * number.mean(axis=1)
                )
                tally.count[kind, bucket] += asked
