"""What a search is told, beside the tape and the space."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class TuneSettings(BaseModel):
    """How to search, and how to choose; the fields are the command's options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trials: int = Field(1000, ge=2, description="Policies to try, those of an earlier part of the same study included")
    batch: int | None = Field(
        None,
        ge=2,
        description="Policies scored in one pass: more is faster, and the search learns less often "
        "[default: an eighth of the trials, at least 64, at most 2,048; of a study that goes on, its own]",
    )
    seed: int = Field(0, ge=0, description="Decides the split, what is tried, and the intervals")
    split: float = Field(
        0.5, gt=0, lt=1, description="Share of the streams that is searched on; the others are reported on"
    )
    patience: int = Field(
        512, ge=0, description="Stop after so many trials that moved the front by under 1 part in 1,000; 0: never"
    )
    timeout: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Stop at the end of a batch after so many seconds [default: never]"
    )
    max_actions: float = Field(250.0, ge=0, description="Most actions per 1,000 events of the policy that is chosen")
    max_forgetting: float = Field(
        0.02, ge=0, description="How much larger its error on returning topics may be than that of none: 0.02 is 2 %"
    )
