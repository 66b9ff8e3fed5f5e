"""How a growing log is followed."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat


class FollowSettings(BaseModel):
    """How long a source that follows waits for what.

    Attributes
    ----------
    interval
        Seconds between two looks at files that have nothing new.
    rotate_wait
        Seconds for which a log that was rotated must not have grown before the next one is begun: its writer may not
        have noticed yet, and what it writes there later is not read.
    settle_wait
        Seconds for which a compressed file that stops short must not have grown before it counts as damaged (it may
        still be being written), and a deleted file before it is let go.

    Examples
    --------
    >>> FollowSettings(rotate_wait=5).interval
    0.2
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    interval: PositiveFloat = 0.2
    rotate_wait: NonNegativeFloat = 1.0
    settle_wait: NonNegativeFloat = 30.0
