"""What a lane still returns for what it was taught, at all ages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numba
import numpy as np
import numpy.typing as npt
from torch import Tensor

from memory.lane_state import Column, Columns, Slots
from memory.probes import probe_answers
from memory.threads import share_out
from monitors.observations import Flags, Floats
from monitors.turns import due

EACH = 2
"""Probes kept on each level."""

CONTROLS = 16
"""About so many of the last events make up the control."""

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Retrieval:
    """The probes of n lanes, measured.

    Attributes
    ----------
    error
        `[n]` float64: the mean over the lane's probes of ‖S k − v‖ / ‖v‖, as of its last turn; NaN for a lane without
        probes, and for a state that is not finite.
    cosine
        `[n]` float64: the mean of the cosine of S k and v, otherwise like `error`.
    control
        `[n]` float64: the error for pairs of the same kind that were never written; NaN before the first.
    measured
        `[m]` int64: which of the n lanes had a turn now; with `every` = 1 all that have probes. The rest is of these.
    errors, cosines
        `[m, P]` float64: each probe's, the mean over heads; NaN for an empty place.
    ages
        `[m, P]` int64: segments written since the probe's own; −1 for an empty place.
    writes
        `[m, P]` int64: the ages in writes; −1 for an empty place. The same as `ages` where a segment is one write.
    """

    error: Floats
    cosine: Floats
    control: Floats
    measured: Integers
    errors: Floats
    cosines: Floats
    ages: Integers
    writes: Integers

    @property
    def lift(self) -> Floats:
        """How much smaller the error is than the control's, `[n]` float64: 0 or less, nothing is remembered."""
        return self.control - self.error


class RetrievalErrorMonitor:
    """A bounded set of remembered (key, value) pairs of each lane, and what the state returns for them.

    Which pairs: segment n of a lane (n = 1, 2, …) goes to level min(number of trailing zero bits of n, `levels` − 1),
    and each level keeps its last two. Level l is reached every 2^(l+1) segments (the top one every 2^l), so its two
    probes are at most 2^(l+2) segments old, and at least one is older than 2^l once the stream is: every age up to
    2^`levels` has a probe within a factor of 4 of it. No randomness, no search, and the same probes whatever the batch.

    The control: each event's own pair, asked of the state before the event was written, has never been written to it
    and is of the same kind. Its error is the event's write error. `hold_out` takes it in, and `Retrieval.control` is
    its mean over about the last `CONTROLS` events (m ← m + (e − m) / min(j, `CONTROLS`) for the j-th).

    Parameters
    ----------
    heads, rank
        H (layers times heads) and R.
    levels
        Two probes on each.
    every
        A lane's probes are asked for on one segment in so many (`monitors.turns`), all at once. In between, `error`
        and `cosine` are those of the last turn, at most `every` − 1 segments ago. 1: on every call.

    Examples
    --------
    After 16 segments with 3 levels, the probes' ages in segments:

    >>> monitor = RetrievalErrorMonitor(1, 2, levels=3)
    >>> monitor.lanes.resize(1)
    >>> lane, pair = np.array([0]), np.ones((1, 1, 2), np.float32)
    >>> for _ in range(16):
    ...     monitor.remember(lane, pair, pair)
    >>> sorted(monitor.ages(lane)[0].tolist())
    [0, 1, 2, 3, 4, 6]

    A state that returns half of each value, where a pair that was never written gave an error of 0.9:

    >>> import torch
    >>> monitor.hold_out(lane, np.array([0.9]))
    >>> seen = monitor.measure(torch.full((1, 1, 2, 2), 0.25), lane)
    >>> seen.error.tolist(), seen.cosine.round(6).tolist(), seen.lift.round(6).tolist()
    ([0.5], [1.0], [0.4])
    """

    def __init__(self, heads: int, rank: int, levels: int = 8, *, every: int = 1):
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.levels, self.every = levels, every
        self.size = EACH * levels
        pair = (self.size, heads, rank)
        self.lanes = Columns(
            {
                "count": Column("int64"),
                "writes": Column("int64"),
                "written": Column("int64", (self.size,), fill=0),  # the segment's number; 0 for an empty place
                "write": Column("int64", (self.size,), fill=0),  # the write's number
                "controls": Column("int64"),
                "control": Column("float64"),
                "last": Column("float64", (2,), fill=np.nan),  # error and cosine as of the last turn
                "expired": Column("bool"),
                "key": Column("float32", pair),
                "value": Column("float32", pair),
            }
        )

    def remember(
        self,
        slots: Slots,
        keys: npt.NDArray[np.float32],
        values: npt.NDArray[np.float32],
        writes: Integers | None = None,
        since: Integers | None = None,
    ) -> None:
        """Take in the pair that each lane's segment wrote.

        Parameters
        ----------
        slots
            `[n]` int64, all different.
        keys, values
            `[n, H, R]` float32.
        writes
            `[n]` int64: how many pairs the segment wrote; None for one.
        since
            `[n]` int64: how many of them after this one; None for none.
        """
        n = len(slots)
        if not n:
            return
        lanes = self.lanes
        arguments = (
            *(slots, keys, values, np.ones(n, np.int64) if writes is None else writes),
            np.zeros(n, np.int64) if since is None else since,
            *(lanes["count"], lanes["writes"], lanes["written"], lanes["write"], lanes["key"], lanes["value"]),
        )
        share_out(lambda first, last: _remember(first, last, self.levels, *arguments), n, 4 * keys.size)

    def hold_out(self, slots: Slots, errors: Floats) -> None:
        """Take in the error of pairs that were never written to the state that was asked for them.

        Parameters
        ----------
        slots
            `[n]` int64, all different.
        errors
            `[n]` float64: ‖S k − v‖ / ‖v‖; what is not finite is passed over.
        """
        fine = np.isfinite(errors)
        if not fine.all():
            slots, errors = slots[fine], errors[fine]
        controls, control = self._integers("controls"), cast("Floats", self.lanes["control"])
        number = controls[slots] + 1
        controls[slots] = number
        mean = control[slots]
        control[slots] = mean + (errors - mean) / np.minimum(number, CONTROLS)

    def expire(self, slots: Slots, *, reset: bool = False) -> None:
        """Let these lanes have a turn at their next event: something was done to their states.

        Parameters
        ----------
        slots
            `[n]` int64.
        reset
            The states were cleared: what the controls were asked of is gone, too.
        """
        self.lanes["expired"][slots] = True
        if reset:
            self.lanes["controls"][slots] = 0
            self.lanes["control"][slots] = 0

    def ages(self, slots: Slots) -> Integers:
        """Return the ages of the lanes' probes, `[n, P]` int64, in segments; −1 for an empty place."""
        return self._since("count", "written", slots)

    def measure(self, states: Tensor, slots: Slots, sick: Flags | None = None, rows: Slots | None = None) -> Retrieval:
        """Ask states for the probes of the lanes that have a turn.

        Parameters
        ----------
        states
            `[S, H, R, R]` float32.
        slots
            `[n]` int64.
        sick
            `[n]` bool: lanes whose state is not finite; they have a turn, so that none shows an old, healthy number.
            None: unknown.
        rows
            `[n]` int64: where in `states` each lane's state is; None: at its slot.
        """
        last = cast("Floats", self.lanes["last"])
        count = self._integers("count")[slots]
        turn = due(count, self.every)
        if self.every > 1:  # where nothing is known, or what is known is sick, at once
            extra = np.isnan(last[slots, 0]) | self.lanes["expired"][slots]
            turn |= (extra if sick is None else extra | sick) & (count > 0)
        measured = np.flatnonzero(turn)
        at = slots[measured]
        ages, writes = self.ages(at), self._since("writes", "write", at)
        held: Flags = ages >= 0
        keys, values = (cast("npt.NDArray[np.float32]", self.lanes[name]) for name in ("key", "value"))
        place = at if rows is None else rows[measured]
        found = [
            answer.mean(axis=2, dtype=np.float64) for answer in probe_answers(states, place, keys, values, rows=at)
        ]
        for column, answer in enumerate(found):
            # One that is not finite makes the sum so.
            last[at, column] = np.where(held, answer, 0.0).sum(axis=1) / held.sum(axis=1)
            answer[~held] = np.nan
        self.lanes["expired"][at] = False
        known = last[slots]
        control = np.where(self._integers("controls")[slots] > 0, self.lanes["control"][slots], np.nan)
        return Retrieval(known[:, 0], known[:, 1], control, measured, found[0], found[1], ages, writes)

    def _since(self, now: str, then: str, slots: Slots) -> Integers:
        written = self._integers("written")[slots]
        since: Integers = np.where(written > 0, self._integers(now)[slots][:, None] - self._integers(then)[slots], -1)
        return since

    def _integers(self, name: str) -> Integers:
        return cast("Integers", self.lanes[name])


@numba.njit(cache=True, nogil=True)
def _remember(
    first: Any,
    last: Any,
    levels: Any,
    slots: Any,
    keys: Any,
    values: Any,
    writes: Any,
    since: Any,
    counts: Any,
    totals: Any,
    written: Any,
    write: Any,
    kept_keys: Any,
    kept_values: Any,
) -> None:
    for lane in range(first, last):
        slot = slots[lane]
        counts[slot] += 1
        totals[slot] += writes[lane]
        number, level = counts[slot], 0
        while level < levels - 1 and not (number >> level) & 1:
            level += 1
        stride = level + 1 if level < levels - 1 else level  # the top level takes every multiple of 2^level
        place = EACH * level + ((number >> stride) & 1)
        written[slot, place] = number
        write[slot, place] = totals[slot] - since[lane]
        key, value = kept_keys[slot, place], kept_values[slot, place]
        for head in range(keys.shape[1]):
            for i in range(keys.shape[2]):
                key[head, i] = keys[lane, head, i]
                value[head, i] = values[lane, head, i]
