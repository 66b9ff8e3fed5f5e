"""Many policies of one class as one: every number among the settings becomes an array, a number for each lane.

Such a policy's `decide` is that of its class, run once for all of its lanes, with the same additions and
multiplications on each lane's numbers as the policy alone would make.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from monitors.policies import Policy

Integers = npt.NDArray[np.int64]


def alike(policies: Sequence[Policy]) -> Iterator[Integers]:
    """Yield the indices of policies that can be stacked: of one class, and alike in all that is no plain number.

    Examples
    --------
    >>> from monitors.policies import ArchivePolicy, DecayPolicy
    >>> some = [DecayPolicy(factor=0.5), ArchivePolicy(most=3), DecayPolicy(factor=0.9), ArchivePolicy(most=4)]
    >>> [group.tolist() for group in alike(some)]
    [[0, 2], [1], [3]]
    """
    groups: dict[Hashable, list[int]] = {}
    for place, policy in enumerate(policies):
        groups.setdefault((type(policy), tuple(_fixed(policy, type(policy).shaping))), []).append(place)
    for group in groups.values():
        yield np.array(group)


def stack(policies: Sequence[Policy]) -> Policy:
    """Return a policy for n lanes, the i-th of which it treats as `policies[i]` would; they are `alike`.

    Examples
    --------
    >>> from monitors.observations import Observations
    >>> from monitors.policies import DecayPolicy
    >>> both = stack([DecayPolicy(factor=0.5), DecayPolicy(factor=1)])
    >>> actions = both.decide(both.new_lanes(), Observations(np.array([0, 1]), {}))
    >>> actions.factor.tolist(), actions.kind.tolist()
    ([0.5, 1.0], [1, 0])
    """
    stacked = _stacked(policies, type(policies[0]).shaping, ())
    assert isinstance(stacked, Policy)
    return stacked


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _fixed(model: BaseModel, shaping: frozenset[str]) -> Iterator[Hashable]:
    """Yield what must be the same in a stack: a budget of None, for one, cannot be in an array with numbers."""
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield (name, type(value), tuple(_fixed(value, frozenset())))
        elif not _is_number(value) or name in shaping:
            yield (name, value)


def _stacked(models: Sequence[BaseModel], shaping: frozenset[str], inner: tuple[int, ...]) -> BaseModel:
    settings: dict[str, Any] = {}
    for name in type(models[0]).model_fields:
        values = [getattr(model, name) for model in models]
        if isinstance(values[0], BaseModel):
            settings[name] = _stacked(values, frozenset(), (1,))
        elif _is_number(values[0]) and name not in shaping:
            settings[name] = np.array(values).reshape(len(models), *inner)
        else:
            settings[name] = values[0]
    return type(models[0]).model_construct(**settings)
