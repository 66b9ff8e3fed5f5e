"""What a report shows, as plain data: filled by `stream.report`, told in words, drawn and written by its neighbours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from monitors.observations import Floats

DRAWN = ("state_norm", "retrieval_error", "topic_shift_score")
"""The signals with a chart each."""


@dataclass(frozen=True)
class Band:
    """One signal over the run, a number for each of k slices of equally many events.

    Attributes
    ----------
    low, middle, high
        `[k]` float64: the 10 %, 50 % and 90 % quantiles over streams, of each stream's mean in the slice; NaN where
        nothing was measured.
    """

    low: Floats
    middle: Floats
    high: Floats


@dataclass(frozen=True)
class OverTime:
    """The run in k slices.

    Attributes
    ----------
    at
        `[k]` float64: the number of each slice's middle event, in the order in which events were consumed.
    bands
        Signal → its band.
    alarms, actions
        Name or kind → `[k]` float64: how many. Actions without ``keep``.
    shifts
        `[k]` float64: true topic shifts; None where they are not known.
    """

    at: Floats
    bands: Mapping[str, Band]
    alarms: Mapping[str, Floats]
    actions: Mapping[str, Floats]
    shifts: Floats | None = None


@dataclass(frozen=True)
class OneStream:
    """One stream, event by event.

    Attributes
    ----------
    name
        As the events call it: any text whatever.
    why
        Why it was chosen.
    events
        How many it has; the arrays may be of the last ones only.
    seq
        `[m]` int: the events' numbers.
    signals
        Signal → `[m]` float64.
    alarms, actions
        Name or kind → the numbers of the events.
    shifts
        The numbers of the events that truly begin a topic; None where that is not known.
    """

    name: str
    why: str
    events: int
    seq: Sequence[int]
    signals: Mapping[str, Floats]
    alarms: Mapping[str, Sequence[int]]
    actions: Mapping[str, Sequence[int]]
    shifts: Sequence[int] | None = None


@dataclass(frozen=True)
class Forgetting:
    """What was left of a pair by its age.

    Attributes
    ----------
    age
        `[A]` float64, in writes.
    lift
        `[A]` float64: how much smaller the error is than that of pairs never written.
    count
        `[A]` int: probes.
    half_life
        In writes; NaN: nothing is left even of the youngest, or more than half of the oldest.
    left
        What one write leaves of an older pair when writes are unrelated; None where the gates are not one number.
    writes_per_event
        On average.
    """

    age: Floats
    lift: Floats
    count: Sequence[int]
    half_life: float
    left: float | None
    writes_per_event: float

    @property
    def messages(self) -> float:
        """The half-life in messages; NaN where there is none.

        Examples
        --------
        >>> import numpy as np
        >>> Forgetting(np.array([0.0]), np.array([0.5]), [1], 12.0, None, writes_per_event=2.0).messages
        6.0
        """
        return self.half_life / self.writes_per_event if self.writes_per_event else math.nan

    @property
    def outlasts(self) -> bool:
        """Whether more than half is left even of the oldest: the half-life is longer than what was looked at."""
        return math.isnan(self.half_life) and len(self.lift) > 0 and self.lift[0] > 0 and len(self.age) > 2


@dataclass(frozen=True)
class PolicyRow:
    """What a policy came to on the tape.

    Attributes
    ----------
    name
        In the table.
    own
        Whether the run had it.
    means
        Signal → its mean.
    actions
        Kind → how many, ``keep`` among them.
    events
        Events replayed.
    """

    name: str
    own: bool
    means: Mapping[str, float]
    actions: Mapping[str, int]
    events: int

    @property
    def acted_per_1000(self) -> float:
        """Actions other than keep, per 1,000 events.

        Examples
        --------
        >>> PolicyRow("x", False, {}, {"keep": 990, "decay": 10}, 1000).acted_per_1000
        10.0
        """
        acted = sum(count for kind, count in self.actions.items() if kind != "keep")
        return 1000 * acted / self.events if self.events else 0.0


@dataclass(frozen=True)
class Returns:
    """How often a topic comes back.

    Attributes
    ----------
    share
        Of the topics that began after a stream's first, in [0, 1]; NaN where it cannot be said.
    topics
        Those it was counted on.
    length
        Events from one shift to the next, the median; NaN where there were no two.
    known
        Whether it was counted in the truth, rather than estimated.
    why_not
        Why it cannot be said.
    """

    share: float
    topics: int
    length: float
    known: bool
    why_not: str = ""


@dataclass(frozen=True)
class Report:
    """Everything on the page.

    Attributes
    ----------
    name
        Of the tape or the file of records.
    kind
        ``tape`` or ``records``.
    events, tokens, streams
        Consumed.
    first, last
        Timestamps of the first and the last event, as they came; "" where there were none.
    means
        Signal → its mean over all events where it was measured.
    lately
        The same over the last third of the events.
    alarms, actions
        Name or kind → how many; the policy's actions.
    by_hand
        Kind → how many actions of operators.
    found
        Of the true shifts those with an alarm on the event or up to two events later; None where they are not known.
    shifts
        True shifts; None where they are not known.
    rank, mode, policy, beta
        Of the run; None where the source does not tell.
    over_time, lines, forgetting, policies, returns
        The parts; None or empty where the source does not have them.
    replayed
        How much was replayed for the forgetting curve and the policies, in words.
    tables
        Heading → rows of configuration, versions, counters.
    notes
        What the reader must know of what is missing.
    """

    name: str
    kind: str
    events: int
    tokens: int
    streams: int
    first: str
    last: str
    means: Mapping[str, float]
    lately: Mapping[str, float]
    alarms: Mapping[str, int]
    actions: Mapping[str, int]
    over_time: OverTime
    lines: Sequence[OneStream]
    returns: Returns
    by_hand: Mapping[str, int] = field(default_factory=dict)
    found: int | None = None
    shifts: int | None = None
    rank: int | None = None
    mode: str | None = None
    policy: str | None = None
    beta: float | None = None
    forgetting: Forgetting | None = None
    policies: Sequence[PolicyRow] = ()
    replayed: str = ""
    tables: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def acted(self) -> int:
        """Actions other than keep."""
        return sum(count for kind, count in self.actions.items() if kind != "keep")
