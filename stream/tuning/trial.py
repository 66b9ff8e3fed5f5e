"""One policy that was tried, and what it came to on the streams that are searched on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, create_trial
from pydantic import TypeAdapter

from monitors.policies import AnyPolicy, Policy
from stream.many import Scores

_POLICY: TypeAdapter[Policy] = TypeAdapter(AnyPolicy)


@dataclass(frozen=True)
class Figures:
    """What a policy came to on some streams.

    Attributes
    ----------
    write_error
        The mean relative error with which the state predicted what was said next.
    recall_error
        The same of old events whose topic has come back; NaN where none does.
    actions_per_1000
        Actions other than keep, per 1,000 events.
    """

    write_error: float
    recall_error: float
    actions_per_1000: float

    @classmethod
    def of(cls, scores: Scores, place: int) -> Figures:
        """Return those of the policy at that place."""
        return cls(
            float(scores.write_error[place]),
            float(scores.recall_error[place]),
            1000 * int(scores.actions[place]) / scores.events,
        )


@dataclass(frozen=True)
class Trial:
    """A policy and its figures.

    Attributes
    ----------
    number
        From 0; 0 is `none` and 1 is `auto` with its defaults.
    policy
        The policy.
    sampled
        `policy.setting` → what Optuna sampled; empty where nothing was.
    figures
        On the streams that are searched on.
    """

    number: int
    policy: Policy
    sampled: dict[str, Any]
    figures: Figures

    @property
    def name(self) -> str:
        """The policy's name."""
        return str(self.policy.model_dump(include={"policy"})["policy"])

    def costs(self, objectives: int) -> list[float]:
        """Return what is to be made small; infinite where it could not be measured."""
        figures = self.figures
        values = [figures.write_error, figures.actions_per_1000, figures.recall_error][:objectives]
        return [value if math.isfinite(value) else math.inf for value in values]

    def frozen(self, distributions: dict[str, Any], objectives: int) -> FrozenTrial:
        """Return it as Optuna has it."""
        return create_trial(
            params=self.sampled,
            distributions=distributions,
            values=self.costs(objectives),
            user_attrs={
                "policy": self.policy.model_dump(mode="json"),
                "recall_error": self.figures.recall_error if math.isfinite(self.figures.recall_error) else None,
            },
        )

    @classmethod
    def thawed(cls, frozen: FrozenTrial) -> Trial:
        """Return what `frozen` was made of."""
        recall = frozen.user_attrs["recall_error"]
        return cls(
            frozen.number,
            _POLICY.validate_python(frozen.user_attrs["policy"]),
            dict(frozen.params),
            Figures(frozen.values[0], math.nan if recall is None else recall, frozen.values[1]),
        )
