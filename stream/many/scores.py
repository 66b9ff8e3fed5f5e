"""What policies came to on a tape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from monitors.observations import Floats
from monitors.policies import Policy
from monitors.policies.policy import ActionKind

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Scores:
    """What P policies came to on the same events of S streams.

    Attributes
    ----------
    policies
        The policies.
    events
        Events of each.
    streams
        The names of the streams, in the order of `by_stream`.
    write_error
        `[P]` float64: the mean of the signal `write_error` over events: ‖v − S k‖ / ‖v‖ of what an event says before
        it is written, which is how well the state predicted what was said next.
    recall_error
        `[P]` float64: the mean of ‖v − S k‖ / ‖v‖ over the events with which a topic comes back (`returns`), S being
        the lane's own state before the event is written and (k, v) what the named old event wrote: what is left of a
        topic when it is wanted again. Over all heads, and over the old event's rows. NaN where no topic comes back.
    actions
        `[P]` int64: actions other than keep.
    actions_by_kind
        `[P, 5]` int64, by `ActionKind`.
    over_time
        `[P, B]` float64: `write_error` in B equal parts of each stream's length, all streams together; NaN for a part
        without events.
    by_stream
        `[P, S]` float64: `write_error` in each stream.
    retrieval_error
        `[P]` float64: the mean of the signal `retrieval_error`; None where it was not asked for.
    """

    policies: list[Policy]
    events: int
    streams: list[str]
    write_error: Floats
    recall_error: Floats
    actions: Integers
    actions_by_kind: Integers
    over_time: Floats
    by_stream: Floats
    retrieval_error: Floats | None


@dataclass(frozen=True, slots=True)
class Marks:
    """What n policies did on the T events of one stream: all that `Scores` is made of.

    Attributes
    ----------
    write_error, recall_error, retrieval_error
        `[n, T]` float64; NaN where there is nothing to measure. `retrieval_error` is None where it was not asked for.
    actions_by_kind
        `[n, 5]` int64.
    """

    write_error: Floats
    recall_error: Floats
    retrieval_error: Floats | None
    actions_by_kind: Integers


class Tally:
    """Adds up the marks of many policies on many streams.

    A policy's numbers depend on its own marks alone, and streams are added in their order.
    """

    def __init__(self, policies: int, streams: Sequence[str], slices: int):
        self.streams, self.slices = list(streams), slices
        shape = (len(streams), policies, slices)
        self._written = np.zeros((2, *shape))
        self._others = np.zeros((2, 2, len(streams), policies))
        self._kinds = np.zeros((policies, len(ActionKind)), np.int64)

    def add(self, stream: int, rows: Integers, marks: Marks) -> None:
        """Take in the marks of the policies `rows` on a stream, once for each."""
        length = marks.write_error.shape[1]
        cuts = [(place * length + self.slices - 1) // self.slices for place in range(self.slices + 1)]
        for place in range(self.slices):
            part = marks.write_error[:, cuts[place] : cuts[place + 1]]
            self._written[:, stream, rows, place] = _sum_and_count(part)
        self._others[:, 0, stream, rows] = _sum_and_count(marks.recall_error)
        if marks.retrieval_error is not None:
            self._others[:, 1, stream, rows] = _sum_and_count(marks.retrieval_error)
        self._kinds[rows] += marks.actions_by_kind

    def scores(self, policies: Sequence[Policy], events: int, *, probes: bool) -> Scores:
        """Return what it all comes to."""
        total, count = self._written
        recall, retrieval = (_mean(*self._others[:, place].cumsum(axis=1)[:, -1]) for place in range(2))
        by_slice = self._written.cumsum(axis=1)[:, -1]
        return Scores(
            policies=list(policies),
            events=events,
            streams=self.streams,
            write_error=_mean(*by_slice.cumsum(axis=2)[..., -1]),
            recall_error=recall,
            actions=self._kinds[:, 1:].sum(axis=1),
            actions_by_kind=self._kinds,
            over_time=_mean(*by_slice),
            by_stream=_mean(total.cumsum(axis=2)[..., -1].T, count.cumsum(axis=2)[..., -1].T),
            retrieval_error=retrieval if probes else None,
        )


def _sum_and_count(numbers: Floats) -> Floats:
    """Return the sums of finite numbers along rows, and how many there are: `[2, n]`."""
    finite = np.isfinite(numbers)
    return np.stack([np.where(finite, numbers, 0.0).sum(axis=1), finite.sum(axis=1).astype(np.float64)])


def _mean(total: Floats, count: Floats) -> Floats:
    return np.where(count > 0, total / np.where(count > 0, count, 1.0), np.nan)
