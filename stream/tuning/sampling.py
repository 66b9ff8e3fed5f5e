"""What to try next: a tree-structured Parzen estimator for each policy, asked for a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import optuna
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial

from monitors.observations import Floats
from stream.tuning.front import on_front
from stream.tuning.quiet import quiet
from stream.tuning.space import PolicySpace, SearchSpace

LATEST, BEST = 128, 64
"""How many trials of a policy its sampler is shown: of the latest, and of those on its front. What an ask costs grows
with the square of the trials shown, and what was tried long ago without success says little."""

TOGETHER = 64
"""Samples that are told of each other; what one costs grows with their number too."""

STARTUP = 16
"""Trials of a policy that are drawn at random before its sampler begins to learn."""

EVEN = 0.5
"""The share of a batch that is spread evenly over the policies; the rest goes where the front is."""


def shares(space: SearchSpace, count: int, front: Sequence[str]) -> dict[str, int]:
    """Say how many of the next trials each policy gets.

    Parameters
    ----------
    space
        Policies without free settings get none: one trial of theirs says it all.
    count
        Trials to give away.
    front
        The policy of each trial on the front.

    Examples
    --------
    >>> space = SearchSpace({name: PolicySpace(name, {"x": None}, {}) for name in ("auto", "decay")}, "")
    >>> shares(space, 10, ["auto", "auto", "none"])
    {'auto': 8, 'decay': 2}
    """
    names = [name for name, policy in space.policies.items() if policy.free]
    if not names:
        return {}
    found = np.array([front.count(name) for name in names], np.float64)
    even = np.full(len(names), 1 / len(names))
    wanted = count * (EVEN * even + (1 - EVEN) * (found / found.sum() if found.any() else even))
    whole = np.floor(wanted).astype(np.int64)
    for place in np.argsort(whole - wanted, kind="stable")[: count - int(whole.sum())]:
        whole[place] += 1
    return dict(zip(names, whole.tolist(), strict=True))


def suggest(
    space: PolicySpace, tried: Sequence[FrozenTrial], count: int, objectives: int, seed: int
) -> list[dict[str, Any]]:
    """Return the next settings to try of a policy, `policy.setting` → value.

    The sampler is made anew for each batch, from its seed and from what was tried: a search that was killed and goes on
    tries what an uninterrupted one would have.

    Parameters
    ----------
    space
        What is tried of it.
    tried
        Its finished trials, oldest first, with as many values as there are objectives.
    count
        How many to return. Each is told of those before it, up to `TOGETHER` of them (the constant liar), so that they
        keep apart.
    objectives
        How many there are, each to be made small.
    seed
        Decides every draw.

    References
    ----------
    J. Bergstra, R. Bardenet, Y. Bengio, B. Kégl, "Algorithms for hyper-parameter optimization", NeurIPS 2011; Y. Ozaki
    et al., "Multiobjective tree-structured Parzen estimator", JAIR 73 (2022), for several objectives.
    """
    distributions = space.distributions()
    shown, asked = _shown(tried), []
    for place in range(0, count, TOGETHER):
        with quiet():
            sampler = TPESampler(
                seed=seed_of(seed, place), multivariate=True, n_startup_trials=STARTUP, constant_liar=True
            )
            study = optuna.create_study(directions=["minimize"] * objectives, sampler=sampler)
            study.add_trials(shown)
            asked += [study.ask(distributions).params for _ in range(min(TOGETHER, count - place))]
    return asked


def seed_of(*parts: object) -> int:
    """Return a seed for what these name, from 0 to 2³² − 1.

    >>> seed_of(0, "auto", 128) == seed_of(0, "auto", 128) != seed_of(0, "auto", 256)
    True
    """
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=4).digest())


def costs(trials: Sequence[FrozenTrial]) -> Floats:
    """Return the trials' values, `[n, objectives]` float64."""
    return np.array([trial.values for trial in trials], np.float64)


def _shown(tried: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the latest, and before them some older ones that are on the front."""
    older, latest = tried[:-LATEST], tried[-LATEST:]
    if not older:
        return list(latest)
    front = np.flatnonzero(on_front(costs(tried))[: len(older)])
    evenly = front[np.linspace(0, len(front) - 1, min(BEST, len(front))).astype(np.int64)] if len(front) else front
    return [older[place] for place in evenly.tolist()] + list(latest)
