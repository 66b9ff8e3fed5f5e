"""A recorded run again, under other policies, without the model.

The events go through the engine as they did live; only the keys, values, gates, embeddings and topic-shift scores come
from the tape. Under the run's own policy and detectors a replay gives the run's own actions, signals and states, bit
for bit, for streams that are on the tape from their first event.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import TypeAdapter

from monitors.detectors import parse_detector
from monitors.observations import SIGNALS
from monitors.policies import AnyPolicy, Policy
from monitors.policies.policy import LABELS, ActionKind
from stream.engine import Engine, Outcome
from stream.operators import ByHand
from stream.tape.format import TapeHead
from stream.tape.tape_reader import TapeReader
from stream.tape.taped_writer import TapedWriter


@dataclass(slots=True)
class Result:
    """What a policy came to on a tape.

    Attributes
    ----------
    policy
        Its name in the table.
    events
        Events replayed.
    actions
        Kind → how many.
    alarms
        Name → how many.
    means
        Signal → its mean over the events where it could be measured.
    differing
        Events whose action or a signal differs from the recorded one by so much as a bit.
    """

    policy: str
    events: int = 0
    actions: dict[str, int] = field(default_factory=dict)
    alarms: dict[str, int] = field(default_factory=dict)
    differing: int = 0
    _sums: dict[str, float] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)

    @property
    def means(self) -> dict[str, float]:
        """Signal → mean."""
        return {name: total / self._counts[name] for name, total in self._sums.items() if self._counts[name]}

    @property
    def actions_per_1000(self) -> float:
        """Actions other than keep, per 1,000 events."""
        acted = sum(count for kind, count in self.actions.items() if kind != ActionKind.KEEP.label)
        return 1000 * acted / self.events if self.events else 0.0

    def add(self, outcome: Outcome, same: npt.NDArray[np.bool_]) -> None:
        """Take in a micro-batch, and which of its events were as recorded."""
        self.events += len(outcome.events)
        self.differing += int((~same).sum())
        for kind, count in zip(*np.unique(outcome.actions.kind, return_counts=True), strict=True):
            self.actions[LABELS[int(kind)]] = self.actions.get(LABELS[int(kind)], 0) + int(count)
        for name, raised in outcome.alarms.items():
            self.alarms[name] = self.alarms.get(name, 0) + int(raised.sum())
        for name, values in outcome.signals.items():
            finite = np.isfinite(values)
            self._sums[name] = self._sums.get(name, 0.0) + float(values[finite].sum())
            self._counts[name] = self._counts.get(name, 0) + int(finite.sum())


@dataclass(frozen=True, slots=True)
class Replay:
    """A tape, replayed.

    Attributes
    ----------
    results
        One for each policy, in their order.
    engines
        Each policy's engine, with its states as they were at the end.
    late
        Streams that were not on the tape from their first event: their states began elsewhere.
    torn
        The part of the tape that ends in mid-batch, or None.
    """

    results: list[Result]
    engines: list[Engine]
    late: set[str]
    torn: Path | None


def replay(
    tape: Path,
    policies: Mapping[str, Policy],
    *,
    detectors: Mapping[str, Any] | None = None,
    pool_bytes: int = 1 << 30,
    partial: bool = False,
    each: Callable[[int], None] = lambda events: None,
    take: Callable[[str, pa.RecordBatch, Outcome], None] = lambda policy, batch, outcome: None,
) -> Replay:
    """Run a tape through the engine once, under several policies side by side.

    Parameters
    ----------
    tape
        Its folder.
    policies
        Name → policy.
    detectors
        Signal → settings; None for those of the run.
    pool_bytes
        Most bytes of states for each policy.
    partial
        As `TapeReader` takes it.
    each
        Called with the events replayed so far.
    take
        Called with each policy's name, a record batch, and what came of it under that policy.
    """
    reader = TapeReader(tape, partial=partial)
    head = reader.head
    given = head.detectors if detectors is None else detectors
    watching = {name: parse_detector(detector) for name, detector in given.items()}
    writers = [TapedWriter(head) for _ in policies]
    engines = [
        Engine(
            writer,
            detectors=watching,
            policy=policy,
            layers=head.watched,
            every=head.every,
            max_bytes=pool_bytes,
        )
        for writer, policy in zip(writers, policies.values(), strict=True)
    ]
    results = [Result(name) for name in policies]
    hands = [ByHand(engine) for engine in engines]
    late: set[str] = set()
    seen: set[str] = set()
    for batch in reader.batches():
        for stream, seq in zip(batch["stream"].to_pylist(), batch["seq"].to_pylist(), strict=True):
            if stream not in seen:
                seen.add(stream)
                if seq:
                    late.add(stream)
        by_hand = batch["by_hand"].to_pylist() if head.version >= 2 else []
        for writer, engine, result, hand in zip(writers, engines, results, hands, strict=True):
            events, ids = writer.load(batch)
            for event, actions in zip(events, by_hand, strict=False):
                for action in actions or ():
                    hand.repeat(event.stream, action)
            outcome = engine.process(events, ids)
            result.add(outcome, as_recorded(outcome, batch))
            take(result.policy, batch, outcome)
        each(results[0].events if results else 0)
    return Replay(results, engines, late, reader.torn)


def recorded_policy(head: TapeHead) -> Policy:
    """Return the policy that the run had."""
    made: Policy = TypeAdapter(AnyPolicy).validate_python(head.policy)
    return made


def as_recorded(outcome: Outcome, batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    """Say of each event whether its action and its signals are the recorded ones, to the bit: `[n]` bool."""
    kinds = np.array([LABELS[kind] for kind in outcome.actions.kind.tolist()])
    same: npt.NDArray[np.bool_] = kinds == np.array(batch["action"].to_pylist())
    same &= outcome.actions.factor == batch["factor"].to_numpy()
    for name in SIGNALS:
        recorded = batch[name].to_numpy()
        same &= (outcome.signals[name] == recorded) | (np.isnan(outcome.signals[name]) & np.isnan(recorded))
    return same
