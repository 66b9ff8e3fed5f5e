"""The check suite: what must hold of every detector, every policy and every monitor.

A check is a function of a `Case`; its docstring says which bug it catches. `test_checks.py` runs every (case, check)
pair over what the registries hold, and shows for each check a broken object that it catches. To add one, see
`docs/extending.md`.

A check feeds the same streams to all kinds. A detector sees the values themselves. A policy sees observations whose
signals they are, made by `policy_adapter.py`, with every alarm wherever a value is above 2. A monitor sees events made
from them by its adapter in `monitor_adapters.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import TypeAdapter, ValidationError

from memory.lane_state import Columns, LaneState
from monitors.detectors import AnyDetector, Detector
from monitors.policies import ActionKind, AnyPolicy, Policy
from tests.monitor_adapters import Measured, Monitored, MonitorLanes
from tests.policy_adapter import act

LEVEL, NOISE = 0.5, 0.1

Streams = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """One object under check.

    Parameters
    ----------
    label
        Its name in the test's id.
    subject
        The settings under check, or a monitor's adapter.
    jump
        What a shift adds to the signal's level of 0.5 ± 0.1.
    within
        Events after a shift by which it must have acted.
    most_bytes
        Bytes that one lane's blob may take, however long the lane.
    skips
        Check's name → why it does not apply.
    """

    label: str
    subject: Detector | Policy | Monitored
    jump: float = 4.0
    within: int = 1
    most_bytes: int = 128
    skips: Mapping[str, str] = field(default_factory=dict)


Check = Callable[[Case], None]


def streams(seed: int, events: int, lanes: int, shifts: Sequence[int] = (), jump: float = 0.0) -> Streams:
    """Return `[events, lanes]` float64: noise about a level, which each shift moves up by `jump`, the next one back."""
    values = np.random.default_rng(seed).normal(LEVEL, NOISE, (events, lanes))
    for at, sign in zip(shifts, [1, -1] * len(shifts), strict=False):
        values[at:] += sign * jump
    return values


def feed(case: Case, lanes: LaneState, slots: Sequence[int], values: Streams) -> list[list[Hashable]]:
    """Advance the lanes by `values` `[events, lanes]`; return what came out for each event and lane."""
    return [one_round(case, lanes, np.array(slots, dtype=np.int64), row) for row in values]


def one_round(case: Case, lanes: LaneState, slots: npt.NDArray[np.int64], values: Streams) -> list[Hashable]:
    if isinstance(case.subject, Detector):
        alarms = case.subject.update(lanes, slots, values)
        assert alarms.shape == slots.shape
        assert alarms.dtype == np.bool_
        return list(alarms.tolist())
    if isinstance(case.subject, Monitored):
        assert isinstance(lanes, MonitorLanes)
        return list(case.subject.measure(lanes, slots, values))
    assert isinstance(lanes, Columns)
    return act(case.subject, lanes, slots, values)


def acted(outcome: Hashable) -> bool:
    if isinstance(outcome, Measured):
        return outcome.away
    return outcome[0] != ActionKind.KEEP if isinstance(outcome, tuple) else bool(outcome)


def acts(outcomes: list[list[Hashable]], lane: int) -> list[int]:
    """Return the events at which a lane alarmed, was acted on, or was measured to be elsewhere."""
    return [event for event, row in enumerate(outcomes) if acted(row[lane])]


def room(case: Case, capacity: int) -> LaneState:
    lanes = case.subject.new_lanes()
    lanes.resize(capacity)
    return lanes


def quiet_when_stationary(case: Case) -> None:
    """Catch the trigger-happy: one that acts on a signal which never changes costs the memory what it holds."""
    outcomes = feed(case, room(case, 3), [0, 1, 2], streams(1, 1_500, 3))
    assert [acts(outcomes, lane) for lane in range(3)] == [[], [], []]


def fires_after_a_shift(case: Case) -> None:
    """Catch the deaf, and the late: it acts within the events that its case promises, and not before the shift."""
    outcomes = feed(case, room(case, 3), [0, 1, 2], streams(2, 300 + case.within, 3, [300], case.jump))
    for lane in range(3):
        first = acts(outcomes, lane)[:1]
        assert first, f"lane {lane} did not act within {case.within} events of the shift"
        assert first[0] >= 300


def sees_again_after_nonfinite_values(case: Case) -> None:
    """Catch the one that a NaN or an infinity blinds for good, as it does river's ADWIN and PageHinkley."""
    values = streams(3, 300 + case.within, 3, [300], case.jump)
    values[[0, 40, 41, 42, 250]] = np.nan
    values[[90, 91]] = np.inf
    values[[120, 121]] = -np.inf
    if isinstance(case.subject, Policy):
        values[[90, 91]] = np.nan  # an infinite signal may well be a reason to act
    outcomes = feed(case, room(case, 3), [0, 1, 2], values)
    for lane in range(3):
        first = acts(outcomes, lane)[:1]
        assert first, f"lane {lane} did not act within {case.within} events of the shift"
        assert first[0] >= 300


def nonfinite_values_leave_no_trace(case: Case) -> None:
    """Catch the detector that counts, averages or alarms on a value that is not one."""
    values = streams(4, 400, 2, [300], case.jump)
    bad = np.random.default_rng(5).random(400) < 0.2
    with_bad = np.repeat(values, 1 + bad, axis=0)
    is_bad = np.concatenate([[True, False] if one else [False] for one in bad])
    with_bad[is_bad] = np.random.default_rng(6).choice([np.nan, np.inf, -np.inf], (int(is_bad.sum()), 2))
    outcomes = feed(case, room(case, 2), [0, 1], with_bad)
    assert not any(acted(one) for row, wrong in zip(outcomes, is_bad, strict=True) if wrong for one in row)
    kept = [row for row, wrong in zip(outcomes, is_bad, strict=True) if not wrong]
    assert kept == feed(case, room(case, 2), [0, 1], values)


def fresh_after_clear(case: Case) -> None:
    """Catch the row that is not wiped, or wiped with its neighbour: a new stream must not inherit another's past."""
    before = streams(7, 303, 2, [300], case.jump)  # cut while it gathers evidence, or cools down
    after = streams(8, 350, 2, [2, 250, 300], case.jump)
    lanes = room(case, 2)
    feed(case, lanes, [0, 1], before)
    lanes.clear(np.array([0]))
    outcomes = feed(case, lanes, [0, 1], after)
    untouched = feed(case, room(case, 2), [0, 1], np.concatenate([before, after]))[303:]
    assert [row[0] for row in outcomes] == [row[0] for row in feed(case, room(case, 1), [0], after[:, :1])]
    assert [row[1] for row in outcomes] == [row[1] for row in untouched]


def new_lanes_are_fresh(case: Case) -> None:
    """Catch the object that remembers beside its lanes: one set of settings serves many pools, live and replayed."""
    unused = replace(case, subject=deepcopy(case.subject))
    feed(case, room(case, 2), [0, 1], streams(17, 303, 2, [300], case.jump))
    after = streams(18, 310, 2, [300], case.jump)
    assert feed(case, room(case, 2), [0, 1], after) == feed(unused, room(unused, 2), [0, 1], after)


def resumes_in_mid_stream(case: Case) -> None:
    """Catch what is missing from a blob: a lane spilled, or a process killed, must go on as if it had not been.

    The cuts lie before the first value, early, around the first act, and late. A blob must also be a copy, and a lane
    that was loaded must dump the same blob.
    """
    values = streams(9, 700, 1, [300, 500], case.jump)
    whole = feed(case, room(case, 1), [0], values)
    first = (acts(whole, 0) or [310])[0]
    cuts = sorted({0, 1, 37, 299, first, first + 1, first + 2, 499, 540})
    lanes = room(case, 1)
    blobs = {}
    for event, row in enumerate(values):
        if event in cuts:
            blobs[event] = lanes.dump(np.array([0]))[0]
        feed(case, lanes, [0], row[None])
    for cut, blob in blobs.items():
        resumed = room(case, 5)
        assert resumed.layout == lanes.layout
        feed(case, resumed, [3], values[:50])  # what was in the row before must not matter
        resumed.load(3, blob)
        assert list(resumed.dump(np.array([3, 3]))) == [blob, blob]
        assert feed(case, resumed, [3], values[cut:]) == whole[cut:], f"differs when cut before event {cut}"


def growing_keeps_rows(case: Case) -> None:
    """Catch the pool that loses what its lanes remember when it grows."""
    values = streams(10, 400, 2, [300], case.jump)
    lanes = room(case, 2)
    outcomes = feed(case, lanes, [0, 1], values[:310])
    lanes.resize(50)
    lanes.resize(50)
    assert outcomes + feed(case, lanes, [0, 1], values[310:]) == feed(case, room(case, 2), [0, 1], values)


def memory_is_bounded(case: Case) -> None:
    """Catch the lane that remembers everything: a consumer runs for weeks."""
    values = streams(11, 5_000, 1, range(1_000, 5_000, 1_000), case.jump)
    lanes = room(case, 1)
    sizes = []
    for start in range(0, 5_000, 250):
        feed(case, lanes, [0], values[start : start + 250])
        sizes.append(len(lanes.dump(np.array([0]))[0]))
    assert max(sizes) <= case.most_bytes


def order_of_lanes_is_irrelevant(case: Case) -> None:
    """Catch what leaks from one lane to the next, or pairs a value with another lane's row."""
    values = streams(12, 400, 5, [300], case.jump)
    values[:, 3:] = values[::-1, 3:]  # these shift the other way, at another time
    slots = np.array([4, 0, 7, 2, 5])
    in_order, shuffled = room(case, 8), room(case, 8)
    order = np.random.default_rng(13)
    for row in values:
        expected = one_round(case, in_order, slots, row)
        turn = order.permutation(5)
        got = one_round(case, shuffled, slots[turn], row[turn])
        assert got == [expected[i] for i in turn]


def alone_as_in_a_batch(case: Case) -> None:
    """Catch the lane whose result depends on who else is in the batch: a replay has other company than the live run."""
    values = streams(14, 400, 4, [300], case.jump)
    values[:, 2:] = values[::-1, 2:]  # these shift the other way, at another time
    present = np.random.default_rng(15).random((400, 4)) < 0.7
    batch = room(case, 4)
    outcomes: list[list[Hashable]] = [[] for _ in range(4)]
    for row, here in zip(values, present, strict=True):
        who = np.flatnonzero(here)
        for lane, outcome in zip(who.tolist(), one_round(case, batch, who, row[who]), strict=True):
            outcomes[lane].append(outcome)
    for lane in range(4):
        alone = feed(case, room(case, 1), [0], values[present[:, lane], lane : lane + 1])
        assert outcomes[lane] == [row[0] for row in alone]


def an_empty_round_is_nothing(case: Case) -> None:
    """Catch the reduction over no lanes: all of a round's values may be non-finite, or all its events empty."""
    lanes = room(case, 2)
    feed(case, lanes, [0, 1], streams(19, 40, 2))
    before = list(lanes.dump(np.arange(2)))
    assert one_round(case, lanes, np.empty(0, np.int64), np.empty(0)) == []
    assert list(lanes.dump(np.arange(2))) == before
    assert list(lanes.dump(np.empty(0, np.int64))) == []


def inputs_are_left_alone(case: Case) -> None:
    """Catch the in-place operation on an array that the next monitor is about to read."""
    lanes = room(case, 2)
    slots = np.array([1, 0])
    for row in streams(16, 350, 2, [300], case.jump):
        given_slots, given = slots.copy(), row.copy()
        given_slots.flags.writeable = given.flags.writeable = False
        one_round(case, lanes, given_slots, given)
        kept = slots.copy(), row.copy()
        one_round(case, lanes, *kept)
        assert (kept[0].tolist(), kept[1].tolist()) == (slots.tolist(), row.tolist())


def settings_round_trip(case: Case) -> None:
    """Catch the setting that is lost on the way to a file and back: a tuned policy must arrive as it was tuned."""
    assert not isinstance(case.subject, Monitored)
    text = case.subject.model_dump_json()
    assert type(case.subject).model_validate_json(text) == case.subject
    union: TypeAdapter[Detector | Policy] = TypeAdapter(
        AnyDetector if isinstance(case.subject, Detector) else AnyPolicy
    )
    again = union.validate_json(text)
    assert (type(again), again) == (type(case.subject), case.subject)


def settings_refuse_a_slip(case: Case) -> None:
    """Catch the misspelled key that is silently dropped."""
    assert not isinstance(case.subject, Monitored)
    try:
        type(case.subject).model_validate(case.subject.model_dump() | {"cooldown_": 3})
    except ValidationError:
        return
    raise AssertionError("an unknown key was accepted")


LANE_CHECKS: tuple[Check, ...] = (
    quiet_when_stationary,
    fires_after_a_shift,
    sees_again_after_nonfinite_values,
    fresh_after_clear,
    new_lanes_are_fresh,
    resumes_in_mid_stream,
    growing_keeps_rows,
    memory_is_bounded,
    order_of_lanes_is_irrelevant,
    alone_as_in_a_batch,
    an_empty_round_is_nothing,
    inputs_are_left_alone,
)
SETTINGS_CHECKS: tuple[Check, ...] = (settings_round_trip, settings_refuse_a_slip)
DETECTOR_CHECKS: tuple[Check, ...] = (nonfinite_values_leave_no_trace,)
ALL_CHECKS: tuple[Check, ...] = LANE_CHECKS + SETTINGS_CHECKS + DETECTOR_CHECKS


def checks_of(case: Case) -> tuple[Check, ...]:
    if isinstance(case.subject, Monitored):
        return LANE_CHECKS
    return ALL_CHECKS if isinstance(case.subject, Detector) else LANE_CHECKS + SETTINGS_CHECKS


def pairs(cases: Sequence[Case]) -> list[tuple[Case, Check]]:
    """Return every pair of a case and a check, and hold the skips to the names of checks."""
    for case in cases:
        unknown = set(case.skips) - {check.__name__ for check in checks_of(case)}
        assert not unknown, f"{case.label} skips what is no check: {unknown}"
    return [(case, check) for case in cases for check in checks_of(case)]


def run(case: Case, check: Check) -> None:
    """Run one pair, or skip it for the reason that the case declares."""
    if check.__name__ in case.skips:
        pytest.skip(case.skips[check.__name__])
    check(case)
