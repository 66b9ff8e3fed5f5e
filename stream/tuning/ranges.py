"""What a setting may be: a range of numbers, or one of a list."""

from __future__ import annotations

import json
import math
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import BaseModel, ConfigDict, Field, model_validator

DIGITS = 6
"""Significant digits of a sampled number: what a YAML file can show, and more than any policy feels."""


class Range(BaseModel):
    """Numbers from `low` to `high`, both included.

    Parameters
    ----------
    low, high
        The ends.
    log
        Whether to search evenly in the logarithm: for what spans several times its least value.
    int
        Whether only whole numbers will do; a setting that is a whole number needs no saying so.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    log: bool = False
    whole: bool = Field(default=False, alias="int")

    @model_validator(mode="after")
    def _ends(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"expected low under high, got {self.low:g} and {self.high:g}")
        if self.log and self.low < (1 if self.whole else 1e-300):
            least = "of at least 1" if self.whole else "above 0"
            raise ValueError(f"expected a low {least} where log is true, got {self.low:g}")
        if self.whole and (self.low % 1 or self.high % 1):
            raise ValueError(f"expected whole numbers, got {self.low:g} and {self.high:g}")
        return self

    @property
    def values(self) -> tuple[Any, ...]:
        """The ends, as the setting takes them."""
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)

    def beyond(self, value: float) -> float | None:
        """Return a value past the end that this one is within a fiftieth of; None where it is near neither."""
        low, high, at = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        part = (at - low) / (high - low)
        if 0.02 < part < 0.98:
            return None
        past = low - 0.05 * (high - low) if part < 0.5 else high + 0.05 * (high - low)
        told = math.exp(past) if self.log else past
        return (math.floor(told) if part < 0.5 else math.ceil(told)) if self.whole else told

    def distribution(self) -> BaseDistribution:
        """Return it as Optuna has it."""
        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def value(self, sampled: Any) -> Any:
        """Return the setting's value for what Optuna sampled."""
        return int(sampled) if self.whole else min(max(float(f"{sampled:.{DIGITS}g}"), self.low), self.high)


class Choices(BaseModel):
    """One of a list of values, which may be lists themselves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    choices: tuple[Any, ...] = Field(min_length=1)

    @property
    def values(self) -> tuple[Any, ...]:
        """The choices."""
        return self.choices

    def distribution(self) -> BaseDistribution:
        """Return it as Optuna has it: texts, since it takes no lists."""
        return CategoricalDistribution([json.dumps(choice) for choice in self.choices])

    def value(self, sampled: Any) -> Any:
        """Return the setting's value for what Optuna sampled."""
        return json.loads(sampled)
