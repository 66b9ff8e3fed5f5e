"""What the loop counts, ready to be scraped: numbers by name and labels, in plain dictionaries and arrays.

The loop calls this a few dozen times for each micro-batch, never once an event; prometheus_client enters only when
somebody scrapes (`monitors.exporter`).

Threads: one thread writes (the loop), any number read (scrapes, the live page). A lock is held for each single write
and for the copy that `snapshot` makes; nobody else wanting it, it costs about 0.1 µs. Without it, a copy could meet a
dictionary that grows under it, or a histogram whose buckets and sum are of different moments. A scrape may fall between
two writes of one batch; each metric by itself is whole.
"""

from __future__ import annotations

import difflib
import math
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import structlog

from monitors.catalogue import CATALOGUE, PREFIX, Kind, Metric

log = structlog.get_logger(__name__)

Labels: TypeAlias = tuple[str, ...]
Number: TypeAlias = int | float
Scalar: TypeAlias = int | float | np.number[Any] | np.bool_

MAX_SERIES = 64
"""Label values that one metric keeps apart; what comes after them is counted under `other`."""

_VERBS: Mapping[Kind, str] = {"counter": "add", "gauge": "set", "histogram": "observe"}


class Exemplar(NamedTuple):
    """One of the values that a bucket holds.

    Attributes
    ----------
    name
        Whose it is.
    value
        In the metric's unit.
    time
        Unix time in seconds.
    """

    name: str
    value: float
    time: float


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram at one moment.

    Attributes
    ----------
    counts
        Values in each bucket, not cumulated; the last one is the bucket up to +Inf.
    sum
        Sum of the values, in the metric's unit.
    exemplars
        Bucket, from 0 → one of its values, where names were given.
    """

    counts: tuple[int, ...]
    sum: float
    exemplars: Mapping[int, Exemplar] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many values there are."""
        return sum(self.counts)


Snapshot: TypeAlias = dict[str, dict[Labels, Number | Distribution]]


class _Histogram:
    """Bucket counts and a sum that go up, and the last value of each bucket that has a name."""

    __slots__ = ("bounds", "counts", "exemplars", "sum")

    def __init__(self, buckets: tuple[float, ...]):
        self.bounds = np.array(buckets, dtype=np.float64)
        self.counts = np.zeros(len(buckets) + 1, dtype=np.int64)
        self.sum = 0.0
        self.exemplars: dict[int, Exemplar] = {}

    def observe(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        # A bucket's bound belongs to it: the first bound that is not below the value.
        places: npt.NDArray[np.int64] = np.searchsorted(self.bounds, values, side="left")
        self.counts += np.bincount(places, minlength=len(self.counts))
        self.sum += float(values.sum())
        return places

    def name(self, places: npt.NDArray[np.int64], values: npt.NDArray[np.float64], name: Callable[[int], str]) -> None:
        last = np.full(len(self.counts), -1)
        last[places] = np.arange(len(places))  # of equal places the last one stays
        now = time.time()
        for place in np.flatnonzero(last >= 0).tolist():
            index = int(last[place])
            self.exemplars[place] = Exemplar(name(index), float(values[index]), now)

    def frozen(self) -> Distribution:
        return Distribution(tuple(self.counts.tolist()), self.sum, dict(self.exemplars))


class Metrics:
    """Values of every metric in the catalogue.

    Parameters
    ----------
    catalogue
        Full name → metric.
    publish_on_commit
        Show persistent counters as of the last `publish` or `restore`, rather than as they are, and not at all before
        the first of these. Set it when a checkpoint stores them: what was shown then never decreases, not even when a
        killed process starts again from its last checkpoint. Without a checkpoint nothing would ever be published, so
        leave it off there.

    Examples
    --------
    >>> import numpy as np
    >>> metrics = Metrics()
    >>> metrics.add("ebbtide_events_total", 32)
    >>> metrics.add("ebbtide_actions_total", 2, "decay", "policy")
    >>> metrics.set("ebbtide_queue_depth", 5, "events")
    >>> metrics.observe("ebbtide_retrieval_error_ratio", np.array([0.31, 0.33, np.nan]))
    1
    >>> metrics.get("ebbtide_events_total"), metrics.get("ebbtide_actions_total", "decay", "policy")
    (32, 2)
    >>> metrics.snapshot()["ebbtide_retrieval_error_ratio"][()].count
    2
    >>> metrics.add("ebbtide_event_total")
    Traceback (most recent call last):
    ...
    KeyError: "expected a metric of the catalogue, got 'ebbtide_event_total'; did you mean 'ebbtide_events_total'?"
    """

    def __init__(self, catalogue: Mapping[str, Metric] = CATALOGUE, *, publish_on_commit: bool = False):
        self.catalogue = catalogue
        self._lock = Lock()
        self._numbers: dict[str, dict[Labels, Number]] = {}
        self._histograms: dict[str, dict[Labels, _Histogram]] = {}
        self._publishes = publish_on_commit
        self._published: dict[str, dict[Labels, Number]] | None = None
        for name, metric in catalogue.items():
            if metric.kind == "histogram":
                self._histograms[name] = {labels: _Histogram(metric.buckets) for labels in metric.series}
            else:
                self._numbers[name] = dict.fromkeys(metric.series, 0)

    # Writing

    def add(self, name: str, value: Scalar = 1, *labels: str) -> None:
        """Count `value` more.

        A value of 0 makes a labelled series known before it has counted anything, which `increase()` needs in order
        to see the first.

        Raises
        ------
        KeyError
            There is no such metric.
        ValueError
            It is no counter, the number of labels is wrong, or `value` is negative or not finite.
        TypeError
            `value` is not a number, or a label is not a string.
        """
        table = self._table(self._numbers, name, "counter")
        number = _number(value, name, "add")
        if not 0 <= number < math.inf:
            raise ValueError(f"{name}: a counter only goes up, by a finite number, got {value!r}")
        with self._lock:
            at = self._place(table, name, labels)
            table[at] = table.get(at, 0) + number

    def set(self, name: str, value: Scalar | None, *labels: str) -> None:
        """Make a gauge `value`; None takes it away: unknown, and not shown.

        Raises
        ------
        KeyError
            There is no such metric.
        ValueError
            It is no gauge, the number of labels is wrong, or `value` is not finite.
        TypeError
            `value` is not a number, or a label is not a string.
        """
        table = self._table(self._numbers, name, "gauge")
        if value is None:
            with self._lock:
                table.pop(self._place(table, name, labels), None)
            return
        number = _number(value, name, "set")
        if not math.isfinite(number):
            raise ValueError(f"{name}: expected a finite number, or None for unknown, got {value!r}")
        with self._lock:
            table[self._place(table, name, labels)] = number

    def observe(
        self,
        name: str,
        values: Scalar | npt.NDArray[np.floating[Any]],
        *labels: str,
        whose: Callable[[int], str] | None = None,
    ) -> int:
        """Put one value, or an array of any shape, into a histogram.

        NaN and infinities are left out: one of them would spoil the sum for good.

        Parameters
        ----------
        name, values, labels
            Which histogram, and what to put there.
        whose
            Index of a value in the array → whose it is, asked for one value a bucket: OpenMetrics shows them as
            exemplars.

        Returns
        -------
        int
            How many values were left out. The caller knows whether they mean "not measurable yet" or a sick state, and
            counts them in the second case.

        Raises
        ------
        KeyError
            There is no such metric.
        ValueError
            It is no histogram, or the number of labels is wrong.
        TypeError
            `values` are not numbers, or a label is not a string.
        """
        table = self._table(self._histograms, name, "histogram")
        if isinstance(values, np.ndarray):
            array = values.astype(np.float64, copy=False).ravel()
            sound = np.flatnonzero(np.isfinite(array))
            finite = array[sound]
            with self._lock:
                histogram = self._histogram(table, name, labels)
                places = histogram.observe(finite)
                if whose is not None:
                    histogram.name(places, finite, lambda index: whose(int(sound[index])))
            return len(array) - len(finite)
        number = _number(values, name, "observe")
        with self._lock:
            histogram = self._histogram(table, name, labels)
            if not math.isfinite(number):
                return 1
            # The same as for an array of one, at a tenth of the cost.
            histogram.counts[bisect_left(self.catalogue[name].buckets, number)] += 1
            histogram.sum += number
        return 0

    # Reading

    def get(self, name: str, *labels: str) -> Number | None:
        """Return a counter's or gauge's value as it is now; None when it has none."""
        table = self._numbers.get(name)
        if table is None:
            raise (
                self._unknown(name)
                if name not in self.catalogue
                else ValueError(f"{name} is a histogram: see snapshot()")
            )
        self._check(name, labels)
        with self._lock:
            return table.get(labels)

    def by_label(self, name: str, label: str = "", **where: str) -> dict[str, Number]:
        """Return the values of a counter as they are now, by the values of a label, summed over the others.

        Parameters
        ----------
        name
            The counter, or a gauge whose sum means something.
        label
            Its label; may be left out where it has one only.
        where
            Values that other labels must have.

        Examples
        --------
        >>> metrics = Metrics()
        >>> metrics.add("ebbtide_dead_letters_total", 3, "not_json")
        >>> metrics.by_label("ebbtide_dead_letters_total")
        {'not_json': 3}
        >>> metrics.add("ebbtide_actions_total", 2, "reset", "operator")
        >>> {kind: count for kind, count in metrics.by_label("ebbtide_actions_total", "kind").items() if count}
        {'reset': 2}
        >>> metrics.by_label("ebbtide_actions_total", "kind", origin="policy")["reset"]
        0
        """
        table = self._numbers.get(name)
        if table is None:
            raise (
                self._unknown(name)
                if name not in self.catalogue
                else ValueError(f"{name} is a histogram: see snapshot()")
            )
        known = self.catalogue[name].labels
        unknown = [each for each in (label, *where) if each not in known and (each or len(known) != 1)]
        if unknown:
            raise ValueError(f"{name}: expected one of its labels {known}, got {unknown[0]!r}")
        place = known.index(label) if label else 0
        wanted = [(known.index(other), value) for other, value in where.items()]
        sums: dict[str, Number] = {}
        with self._lock:
            for labels, value in table.items():
                if all(labels[other] == text for other, text in wanted):
                    sums[labels[place]] = sums.get(labels[place], 0) + value
        return sums

    def distribution(self, name: str, *labels: str) -> Distribution | None:
        """Return a histogram as it is now; None where it has no such series.

        Examples
        --------
        >>> metrics = Metrics()
        >>> _ = metrics.observe("ebbtide_batch_seconds", 0.5)
        >>> metrics.distribution("ebbtide_batch_seconds").count
        1
        """
        table = self._table(self._histograms, name, "histogram")
        self._check(name, labels)
        with self._lock:
            return table[labels].frozen() if labels in table else None

    def snapshot(self) -> Snapshot:
        """Copy everything that a scrape shows: name → label values → number or distribution."""
        shown: Snapshot = {}
        with self._lock:
            for name, metric in self.catalogue.items():
                if metric.kind == "histogram":
                    shown[name] = {labels: each.frozen() for labels, each in self._histograms[name].items()}
                elif metric.persistent and self._publishes:
                    shown[name] = self._committed(name)
                else:
                    shown[name] = dict(self._numbers[name])
        return shown

    def _committed(self, name: str) -> dict[Labels, Number | Distribution]:
        # A series that is 0 until it is restored would look like one that began anew: rather none for a moment.
        if self._published is None:
            return {}
        numbers = self._published.get(name, {})
        return {labels: numbers.get(labels, 0) for labels in self._numbers[name]}

    # Checkpoints

    def persistent(self) -> dict[str, list[list[str | Number]]]:
        """Return the persistent counters for the checkpoint, JSON-able and in a fixed order.

        Name → rows of label values with the number last. Zeros are left out, so that the same work gives the same
        bytes. Called by the writing thread, between batches.

        Examples
        --------
        >>> metrics = Metrics()
        >>> metrics.add("ebbtide_alarms_total", 1, "topic_shift")
        >>> metrics.add("ebbtide_events_total", 7)
        >>> metrics.persistent()
        {'ebbtide_alarms_total': [['topic_shift', 1]], 'ebbtide_events_total': [[7]]}
        """
        stored: dict[str, list[list[str | Number]]] = {}
        with self._lock:
            for name in sorted(self._numbers):
                if self.catalogue[name].persistent:
                    rows = sorted((labels, value) for labels, value in self._numbers[name].items() if value)
                    if rows:
                        stored[name] = [[*labels, value] for labels, value in rows]
        return stored

    def publish(self, stored: Mapping[str, Any]) -> None:
        """Show what `persistent` returned, now that it is committed. Does nothing without `publish_on_commit`.

        Until a checkpoint is committed, the work since the last one may have to be done again. A counter that showed
        it already would step back after a crash, which Prometheus reads as "began at zero": `increase()` over the
        restart would then be everything ever counted.

        Examples
        --------
        >>> metrics = Metrics(publish_on_commit=True)
        >>> metrics.restore({})            # a fresh start: there is no checkpoint yet
        >>> metrics.add("ebbtide_events_total", 7)
        >>> stored = metrics.persistent()  # goes into the transaction
        >>> metrics.snapshot()["ebbtide_events_total"][()]
        0
        >>> metrics.publish(stored)        # the transaction is committed
        >>> metrics.snapshot()["ebbtide_events_total"][()]
        7
        """
        if not self._publishes:
            return
        published = self._parse(stored)
        with self._lock:
            self._published = published

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Make the persistent counters what they were when `persistent` returned `stored`; `{}` for a fresh start.

        Counters that this version does not keep are passed over, with a line in the log: another version may have
        written the checkpoint, and a count is no reason to refuse the states beside it.

        Raises
        ------
        ValueError
            `stored` is not what `persistent` returns; nothing was changed.
        """
        numbers = self._parse(stored)
        with self._lock:
            for name, table in self._numbers.items():
                if self.catalogue[name].persistent:
                    table.update(dict.fromkeys(table, 0))
                    table.update(numbers.get(name, {}))
            self._published = numbers

    def _parse(self, stored: Mapping[str, Any]) -> dict[str, dict[Labels, Number]]:
        numbers: dict[str, dict[Labels, Number]] = {}
        passed_over = []
        for name, rows in stored.items():
            metric = self.catalogue.get(name)
            if metric is None or not metric.persistent:
                passed_over.append(name)
                continue
            numbers[name] = table = {}
            for row in rows:
                *labels, value = row
                if len(labels) != len(metric.labels) or not all(isinstance(label, str) for label in labels):
                    raise ValueError(f"{name}: expected {_row_shape(metric)}, got {row!r}; was the checkpoint edited?")
                if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                    raise ValueError(
                        f"{name}: expected a finite number from 0 on, got {value!r}; was the checkpoint edited?"
                    )
                table[tuple(labels)] = value
        if passed_over:
            log.warning("counters_passed_over", names=sorted(passed_over))
        return numbers

    # Finding the place

    def _table(self, tables: Mapping[str, Any], name: str, kind: Kind) -> Any:
        metric = self.catalogue.get(name)
        if metric is None:
            raise self._unknown(name)
        if metric.kind != kind:
            raise ValueError(f"{name} is a {metric.kind}: use {_VERBS[metric.kind]}(), not {_VERBS[kind]}()")
        return tables[name]

    def _place(self, table: Mapping[Labels, object], name: str, labels: Labels) -> Labels:
        if labels in table:
            return labels
        self._check(name, labels)
        if labels and len(table) >= MAX_SERIES:
            return ("other",) * len(labels)
        return labels

    def _histogram(self, table: dict[Labels, _Histogram], name: str, labels: Labels) -> _Histogram:
        at = self._place(table, name, labels)
        if at not in table:
            table[at] = _Histogram(self.catalogue[name].buckets)
        return table[at]

    def _check(self, name: str, labels: Labels) -> None:
        expected = self.catalogue[name].labels
        if len(labels) != len(expected):
            wanted = f"labels {expected}" if expected else "no labels"
            raise ValueError(f"{name}: expected {wanted} after the value, got {labels}")
        for label in labels:
            if not isinstance(label, str):
                raise TypeError(f"{name}: expected label values that are strings, got {label!r}")

    def _unknown(self, name: str) -> KeyError:
        bare = [known.removeprefix(PREFIX) for known in self.catalogue]
        near = difflib.get_close_matches(name.removeprefix(PREFIX), bare, n=1)
        hint = f"did you mean {PREFIX + near[0]!r}?" if near else "every metric is declared in monitors/catalogue.py"
        return KeyError(f"expected a metric of the catalogue, got {name!r}; {hint}")


def _number(value: object, name: str, verb: str) -> Number:
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, int | float):
        hint = f'the value comes before the labels, as in {verb}("{name}", 1, "label")'
        raise TypeError(f"{name}: expected a number, got {value!r}; {hint}")
    return int(value) if isinstance(value, bool) else value


def _row_shape(metric: Metric) -> str:
    return f"[{', '.join([*metric.labels, 'number'])}]"
