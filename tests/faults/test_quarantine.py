"""A stream whose state would overflow is put aside whole; no other stream feels it, and a person can let it go on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from memory.state_pool import LaneRecord
from memory.writers import Rows, RowsWriter, Shape
from monitors.detectors import parse_detector
from monitors.policies import ActionKind, load_policy
from stream.engine import Engine, Outcome
from stream.event import Event
from stream.operators import Ask, ByHand

STREAMS, POISONED = 10_000, 5_000
RANK, DIM = 4, 8
NAMES = [f"s{number:05d}" for number in range(STREAMS)]
DETECTORS: dict[str, Any] = {"retrieval_error": "page_hinkley", "state_norm": "shewhart"}


class Lanes:
    """An engine that is given pairs, one for each stream at a time."""

    def __init__(self, policy: str):
        self.writer = RowsWriter(Shape(1, 1, RANK, "plain", DIM))
        detectors = {signal: parse_detector(name) for signal, name in DETECTORS.items()}
        self.engine = Engine(self.writer, detectors=detectors, policy=load_policy(policy))

    def event(self, seed: int, poison: float = 0.0, streams: list[str] | None = None) -> Outcome:
        """Write a pair to each stream; `poison` is a value of the poisoned one's."""
        names, dice = NAMES if streams is None else streams, np.random.default_rng(seed)
        keys, values = dice.normal(size=(2, STREAMS, 1, RANK)).astype(np.float32)
        keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
        if poison:
            values[POISONED] = poison
        embedding = dice.normal(size=(STREAMS, DIM)).astype(np.float32)
        at = [int(name[1:]) for name in names]
        beta = np.full((len(at), 1, 1), 0.5, np.float32)
        rows = Rows(np.arange(len(at) + 1), keys[at], values[at], beta, None, embedding[at])
        ids = self.writer.give(rows, np.ones(len(at), np.int64), np.zeros(len(at)))
        return self.engine.process([Event(name, tokens=[0]) for name in names], ids)

    def record(self, name: str = NAMES[POISONED]) -> LaneRecord:
        return self.engine.pool.record(name)


def but(record: LaneRecord, *left_out: str) -> dict[str, bytes]:
    """Return a lane's state and what is beside it, but for these parts."""
    kept = {name: blob for name, blob in record.beside.items() if name.split("/")[0] not in left_out}
    return kept | {"state": record.state}


@pytest.mark.parametrize(
    ("policy", "poison"),
    [
        *((policy, 1e20) for policy in ("none", "decay", "archive", "auto", "adaptive_gates")),
        ("none", 3e38),
        ("auto", float("nan")),
        ("decay", float("inf")),
    ],
)
def test_of_ten_thousand_streams_only_the_poisoned_one_is_put_aside(policy: str, poison: float) -> None:
    ill, well = Lanes(policy), Lanes(policy)
    for lanes in (ill, well):
        lanes.event(0)
        lanes.event(1)
    before = ill.record()
    outcome = ill.event(2, poison)
    well.event(2)
    finite = np.isfinite(poison)  # rows that are not are known beforehand, and left out: there is nothing to put aside
    assert outcome.put_aside == int(finite)
    assert (outcome.nonfinite > 0) == (not finite or outcome.put_aside > 0)
    if finite:
        assert outcome.alarms["non_finite"].nonzero()[0].tolist() == [POISONED]
        assert outcome.actions.kind[POISONED] == ActionKind.FREEZE
        assert "quarantined" in outcome.actions.reason[POISONED]
        assert but(ill.record(), "counts", "last", "quarantine") == but(before, "counts", "last", "quarantine")
    ill.event(3)
    well.event(3)
    states, expected = dict(ill.engine.pool.records()), dict(well.engine.pool.records())
    assert len(states) == STREAMS
    assert np.isfinite(np.frombuffer(states.pop(NAMES[POISONED]).state, np.float32)).all()
    del expected[NAMES[POISONED]]
    assert states == expected


def test_it_stays_aside_is_counted_and_goes_on_where_it_was_when_it_is_released() -> None:
    ill, well = Lanes("auto"), Lanes("auto")
    name = NAMES[POISONED]
    for lanes in (ill, well):
        lanes.event(0)
        lanes.event(1)
    ill.event(2, 1e25)
    held = ill.record()
    for seed in (3, 4):
        outcome = ill.event(seed)
        assert outcome.put_aside == 0
        assert np.isnan(outcome.signals["write_error"][POISONED])
        assert outcome.seq[POISONED] == seed
    assert but(ill.record(), "counts", "last") == but(held, "counts", "last")
    with pytest.raises(ValueError, match="is not in quarantine"):
        ByHand(ill.engine).do(NAMES[0], Ask(kind="release"))
    assert ByHand(ill.engine).do(name, Ask(kind="release"))[0] == "released: it is written again"
    ill.event(5)
    well.event(5)
    assert ill.record().state == well.record().state


@pytest.mark.parametrize("ask", [Ask(kind="reset"), Ask(kind="decay", factor=0.5)])
def test_acting_on_it_lets_it_go_on(ask: Ask) -> None:
    lanes = Lanes("none")
    lanes.event(0)
    lanes.event(1, 1e25)
    name = NAMES[POISONED]
    ByHand(lanes.engine).do(name, ask)
    assert not np.isnan(lanes.event(2).signals["write_error"][POISONED])


def test_a_policy_that_takes_the_event_back_needs_no_quarantine() -> None:
    policy = load_policy("freeze_on_anomaly").model_copy(update={"on": ("non_finite",), "hold": 1})
    lanes = Lanes("none")
    lanes.engine = Engine(lanes.writer, detectors={}, policy=policy)
    lanes.event(0)
    before = lanes.record().state
    outcome = lanes.event(1, 1e25)
    assert outcome.put_aside == 0
    assert outcome.actions.kind[POISONED] == ActionKind.FREEZE
    assert lanes.record().state == before


def test_a_state_that_was_driven_to_overflow_from_outside_begins_again_from_zero() -> None:
    """Of such a lane there is no copy: nothing could tell beforehand."""
    lanes = Lanes("none")
    lanes.event(0)
    slot = int(lanes.engine.pool.acquire([NAMES[POISONED]])[0])
    lanes.engine.pool.states[slot] *= 1e30
    assert lanes.event(1).put_aside == 1
    assert not lanes.engine.pool.states[slot].any()
    assert lanes.event(2).put_aside == 0
