"""Every detector, policy and monitor against every check, and every check against something that it must catch.

What a registry holds is taken up as it is, with its default settings and what `DEFAULT` promises. A table below says
otherwise where the defaults cannot show anything on the checks' streams, or where several settings are worth checking.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import ConfigDict, PrivateAttr

from memory.lane_state import Column, Columns, LaneState, Slots
from monitors.detectors import (
    ADWIN,
    CUSUM,
    DETECTORS,
    EWMA,
    Detector,
    NoDetector,
    PageHinkley,
    RiverDetector,
    Shewhart,
    Threshold,
)
from monitors.detectors.river_detector import river_classes
from monitors.observations import Flags, Floats, Observations
from monitors.policies import (
    POLICIES,
    ActionKind,
    Actions,
    AdaptiveGatesPolicy,
    ArchivePolicy,
    AutoPolicy,
    DecayOnShiftPolicy,
    DecayPolicy,
    FreezeOnAnomalyPolicy,
    NoPolicy,
    NormCapPolicy,
    Policy,
    ResetOnShiftPolicy,
    ScheduledResetPolicy,
)
from tests import checks
from tests.checks import Case, Check
from tests.monitor_adapters import MONITORS, Measured, MonitorLanes, WatchedNorm, WatchedTopic
from tests.policy_adapter import ALARM_ABOVE

NEVER = dict.fromkeys(
    ("fires_after_a_shift", "sees_again_after_nonfinite_values"),
    "it never acts, which is its purpose",
)
BY_THE_CLOCK = dict.fromkeys(
    ("quiet_when_stationary", "fires_after_a_shift", "sees_again_after_nonfinite_values"),
    "it acts by the clock and looks at no value",
)
CONSTANT = dict.fromkeys(
    ("quiet_when_stationary", "fires_after_a_shift", "sees_again_after_nonfinite_values"),
    "it acts at every event, whatever the signals say",
)


def on_river(detector: str, within: int, most_bytes: int = 4_096, **more: Any) -> Case:
    skips = more.pop("skips", {})
    jump = more.pop("jump", 4.0)
    return Case(f"river {detector}", RiverDetector(detector=detector, **more), jump, within, most_bytes, skips)


SCALES = dict.fromkeys(
    ("fires_after_a_shift", "sees_again_after_nonfinite_values"),
    "it acts on no event: it scales the writes of all of them",
)
OF_DETECTORS: dict[str, list[Case]] = {
    "adwin": [
        Case("adwin", ADWIN(), within=32, most_bytes=1_024),
        Case("adwin at each value", ADWIN(clock=1, max_buckets=2, delta=1e-5), within=12, most_bytes=512),
    ],
    "cusum": [
        Case("cusum", CUSUM(), within=1),
        Case("cusum down", CUSUM(side="down", threshold=400.0, slack=2.0, warm_up=12), jump=-4.0, within=30),
    ],
    "ewma": [
        Case("ewma", EWMA(), within=1),
        Case("ewma up", EWMA(side="up", weight=0.05, width=7.0, warm_up=100), within=1),
    ],
    "never": [Case("never", NoDetector(), skips=NEVER)],
    "page_hinkley": [
        Case("page_hinkley", PageHinkley(), within=13),
        Case("page_hinkley down", PageHinkley(mode="down", threshold=20.0, alpha=0.99), jump=-4.0, within=10),
    ],
    "river": [
        on_river("ADWIN", within=32),
        on_river("DummyDriftDetector", 0, params={"trigger_method": "random", "t_0": 90, "w": 50}, skips=BY_THE_CLOCK),
        on_river("KSWIN", within=25, most_bytes=6_144, params={"alpha": 1e-6, "seed": 7}),
        on_river("NoDrift", within=0, skips=NEVER),
        on_river("PageHinkley", within=13),
        on_river("DDM", within=100),
        on_river("EDDM", within=190, params={"alpha": 0.75, "beta": 0.7}),
        on_river("FHDDM", within=60, jump=-4.0),
        on_river("HDDMA", within=40, params={"two_sided_test": True}),
        on_river("HDDMW", within=40, above=0.6, params={"drift_confidence": 1e-6}),
    ],
    "shewhart": [
        Case("shewhart", Shewhart(width=6.0)),
        Case("shewhart down", Shewhart(width=7.0, side="down", weight=0.1, cool_down=5, clip=9.0), jump=-4.0),
        Case("shewhart both", Shewhart(width=6.0, side="both", warm_up=20, floor=0.2), jump=-4.0),
    ],
    "threshold": [
        Case("threshold", Threshold(above=2.0)),
        Case("threshold with hysteresis", Threshold(above=2.0, rearm=1.0)),
    ],
}
OF_POLICIES: dict[str, list[Case]] = {
    "none": [Case("none", NoPolicy(), skips=NEVER)],
    "decay": [
        Case("decay", DecayPolicy(factor=0.9), skips=CONSTANT),
        Case("decay 1", DecayPolicy(factor=1.0), skips=NEVER),
    ],
    "reset_on_shift": [
        Case("reset_on_shift", ResetOnShiftPolicy()),
        Case("reset_on_shift on a budget", ResetOnShiftPolicy(cool_down=0, budget=3)),
    ],
    "decay_on_shift": [
        Case(
            "decay_on_shift",
            DecayOnShiftPolicy(factor=0.25, cool_down=5, budget=40, on=("topic_shift", "state_norm")),
        ),
    ],
    "scheduled_reset": [
        Case("scheduled_reset", ScheduledResetPolicy(), within=100, skips=BY_THE_CLOCK),
        Case("scheduled_reset on a budget", ScheduledResetPolicy(every=7, budget=50), skips=CONSTANT),
    ],
    "norm_cap": [
        Case("norm_cap", NormCapPolicy(), 40.0, within=100),
        Case("norm_cap, low", NormCapPolicy(cap=2.0, to=0.8)),
    ],
    "freeze_on_anomaly": [
        Case("freeze_on_anomaly", FreezeOnAnomalyPolicy(), 40.0, within=100),
        Case("freeze_on_anomaly, held", FreezeOnAnomalyPolicy(on=("topic_shift",), hold=3, cool_down=2)),
    ],
    "adaptive_gates": [
        Case("adaptive_gates", AdaptiveGatesPolicy(), most_bytes=4_096, skips=SCALES),
        Case("adaptive_gates, two heads", AdaptiveGatesPolicy(heads=2, rank=3, step=0.1), skips=SCALES),
    ],
    "archive": [
        Case("archive", ArchivePolicy(), 40.0, within=100, most_bytes=4_096),
        Case("archive of three", ArchivePolicy(most=3, budget=9), 40.0, within=100, most_bytes=256),
    ],
    "auto": [
        Case("auto", AutoPolicy(), 40.0, within=100, most_bytes=4_096),
        Case("auto of three", AutoPolicy(most=3, enter=2.0), 40.0, within=100, most_bytes=256),
    ],
}
OF_MONITORS = [Case(name, monitor, most_bytes=2_048) for name, monitor in MONITORS.items()]


def taken_up(registry: Mapping[str, type[Detector] | type[Any]], tables: Mapping[str, Sequence[Case]]) -> list[Case]:
    """Return the cases of a registry: those of the table, and the defaults of what the table does not have."""
    cases: list[Case] = []
    for name, kind in registry.items():
        # A policy's limits are in the unit of some signal: far enough for any of them.
        jump = 40.0 if issubclass(kind, Policy) else 4.0
        default = Case(name, kind(), jump, within=100, most_bytes=4_096)
        cases += tables.get(name, [default])
    return cases


CASES = taken_up(DETECTORS, OF_DETECTORS) + taken_up(POLICIES, OF_POLICIES) + OF_MONITORS


@pytest.mark.parametrize(
    ("case", "check"), [pytest.param(*pair, id=f"{pair[0].label}-{pair[1].__name__}") for pair in checks.pairs(CASES)]
)
def test_passes_check(case: Case, check: Check) -> None:
    checks.run(case, check)


def test_everything_registered_is_under_check() -> None:
    under_check = {type(case.subject) for case in CASES}
    assert under_check >= {*DETECTORS.values(), *POLICIES.values()}
    assert {case.subject.detector for case in CASES if isinstance(case.subject, RiverDetector)} == set(river_classes())
    assert not {*OF_DETECTORS, *OF_POLICIES} - {*DETECTORS, *POLICIES}
    assert len({case.label for case in CASES}) == len(CASES)


def test_a_new_name_in_a_registry_is_taken_up() -> None:
    class Newcomer(Threshold):
        above: float = 2.0

    cases = taken_up({"newcomer": Newcomer}, OF_DETECTORS)
    assert [(case.label, case.subject) for case in cases] == [("newcomer", Newcomer())]
    for case, check in checks.pairs(cases):
        if check is not checks.settings_round_trip:  # which asks for its place among the detectors
            checks.run(case, check)


def test_a_skip_of_no_check_is_refused() -> None:
    with pytest.raises(AssertionError, match="skips what is no check"):
        checks.pairs([Case("never", NoDetector(), skips={"quiet": "a slip"})])


# Each check is shown to fail, on an object with the bug that it is there for.


class Jumpy(Threshold):
    def _update(self, lanes: LaneState, slots: Slots, values: Floats) -> Flags:
        return values > 0.8


class Deaf(Threshold):
    def _update(self, lanes: LaneState, slots: Slots, values: Floats) -> Flags:
        return np.zeros(len(slots), dtype=np.bool_)


class FedAnything(PageHinkley):
    """The base class's filter taken out: what river's own does with a NaN."""

    def update(self, lanes: LaneState, slots: Slots, values: Floats) -> Flags:
        with np.errstate(invalid="ignore"):
            return self._update(lanes, slots, values)


class CountsAnything(Shewhart):
    """Looks only at finite values, but counts the others towards its warm-up."""

    def update(self, lanes: LaneState, slots: Slots, values: Floats) -> Flags:
        rows = cast(Columns, lanes)
        rows["seen"][slots] += ~np.isfinite(values)
        return super().update(lanes, slots, values)


class Faulty(Columns):
    """A Page-Hinkley's rows, with one fault."""

    def __init__(self, fault: str):
        super().__init__(cast(Columns, PageHinkley().new_lanes()).columns | {"grown": Column("int64")})
        self.fault = fault

    def clear(self, slots: Slots) -> None:
        if self.fault == "clears none":
            return
        if self.fault == "clears all":
            slots = np.arange(len(self["sums"]))
        super().clear(slots)

    def dump(self, slots: Slots) -> list[bytes]:
        blobs = list(super().dump(slots))
        if self.fault == "grows":
            return [blob + bytes(int(self["grown"][slot])) for slot, blob in zip(slots, blobs, strict=True)]
        if self.fault == "half dumped":
            return [blob[:16] + bytes(8) + blob[24:] for blob in blobs]
        return blobs

    def load(self, slot: int, blob: bytes) -> None:
        if self.fault == "never loads":
            return
        super().load(slot, blob[: self._row_bytes])

    def resize(self, capacity: int) -> None:
        if self.fault == "forgets on growing" and len(self["sums"]):
            self._arrays = {name: self._fresh(column, 0) for name, column in self.columns.items()}
        super().resize(capacity)


class FaultyRows(PageHinkley):
    fault: str

    def new_lanes(self) -> LaneState:
        return Faulty(self.fault)

    def _update(self, lanes: LaneState, slots: Slots, values: Floats) -> Flags:
        cast(Columns, lanes)["grown"][slots] += 1
        return super()._update(lanes, slots, values)


class Leaky(PageHinkley):
    """A lane sees a little of the lane before it in the batch."""

    def _update(self, lanes: LaneState, slots: Slots, values: Floats) -> Flags:
        return super()._update(lanes, slots, values + 0.5 * np.roll(values, 1))


class Sociable(PageHinkley):
    """A lane is compared with the batch's mean."""

    def _update(self, lanes: LaneState, slots: Slots, values: Floats) -> Flags:
        return super()._update(lanes, slots, values - values.sum() / max(len(values), 1) + 0.5)


class InPlace(Threshold):
    def _update(self, lanes: LaneState, slots: Slots, values: Floats) -> Flags:
        if values.flags.writeable:
            values -= self.above
            return values > 0
        return values > self.above


class LosesSettings(Shewhart):
    def model_dump_json(self, **more: Any) -> str:
        return super().model_dump_json(exclude={"width"}, **more)


class TakesAnything(Threshold):
    model_config = ConfigDict(extra="ignore")


class Hoarder(Threshold):
    """Remembers in the settings, beside the lanes: all the pools it serves are one."""

    _alarmed: set[int] = PrivateAttr(default_factory=set)

    def _update(self, lanes: LaneState, slots: Slots, values: Floats) -> Flags:
        alarms = (values > self.above) & ~np.isin(slots, list(self._alarmed))
        self._alarmed.update(slots[alarms].tolist())
        return alarms


class Reducer(PageHinkley):
    """Looks at the round's greatest value first."""

    def _update(self, lanes: LaneState, slots: Slots, values: Floats) -> Flags:
        return super()._update(lanes, slots, np.minimum(values, values.max()))


class JumpyPolicy(NoPolicy):
    def decide(self, lanes: Columns, observations: Observations) -> Actions:
        actions = Actions.keep(len(observations))
        actions.kind[observations.signals["state_norm"] > 0.8] = ActionKind.RESET
        return actions


class BlindedPolicy(ResetOnShiftPolicy):
    """Keeps a running maximum of a signal: one NaN, and nothing compares any more."""

    def columns(self) -> dict[str, Column]:
        return super().columns() | {"worst": Column("float64")}

    def decide(self, lanes: Columns, observations: Observations) -> Actions:
        slots = observations.slots
        lanes["worst"][slots] = np.maximum(lanes["worst"][slots], observations.signals["topic_shift_score"])
        worse = lanes["worst"][slots] > ALARM_ABOVE
        return super().decide(lanes, Observations(slots, observations.signals, {"topic_shift": worse}))


class OneForAll(ResetOnShiftPolicy):
    """One lane's cool-down is everybody's."""

    def admit(self, lanes: Columns, slots: npt.NDArray[np.int64], wanted: Flags) -> Flags:
        first = super().admit(lanes, slots, wanted) & (np.cumsum(wanted) == 1)
        return cast(Flags, first)


class Forgetful(MonitorLanes):
    def dump(self, slots: Slots) -> list[bytes]:
        return [b""] * len(slots)

    def load(self, slot: int, blob: bytes) -> None:
        self.rows.clear(np.array([slot]))


class ForgetsWhatWas(WatchedTopic):
    """The past is not dumped."""

    def new_lanes(self) -> MonitorLanes:
        return Forgetful(super().new_lanes().monitor)


class OneTopicForAll(WatchedTopic):
    """Every lane's past is that of the first lane."""

    def measure(self, lanes: MonitorLanes, slots: Slots, values: Floats) -> list[Measured]:
        return [
            super(OneTopicForAll, self).measure(lanes, slots[:1] * 0, values[i : i + 1])[0] for i in range(len(slots))
        ]


class Averaging(MonitorLanes):
    average = 0.0


class AveragesAnything(WatchedNorm):
    """Looks at the mean of what came so far, NaN or not."""

    def new_lanes(self) -> MonitorLanes:
        return Averaging(super().new_lanes().monitor)

    def measure(self, lanes: MonitorLanes, slots: Slots, values: Floats) -> list[Measured]:
        assert isinstance(lanes, Averaging)
        measured = super().measure(lanes, slots, values)
        with np.errstate(invalid="ignore"):
            lanes.average = 0.5 * lanes.average + 0.5 * float(values.sum())
        return [replace(one, away=one.away and lanes.average > 0) for one in measured]


BROKEN = [
    (Case("jumpy", Jumpy()), checks.quiet_when_stationary),
    (Case("deaf", Deaf()), checks.fires_after_a_shift),
    (Case("jumpy", Jumpy()), checks.fires_after_a_shift),
    (Case("late", PageHinkley(), within=12), checks.fires_after_a_shift),
    (Case("fed anything", FedAnything(), within=13), checks.sees_again_after_nonfinite_values),
    (Case("fed anything", FedAnything(), within=13), checks.nonfinite_values_leave_no_trace),
    (Case("counts anything", CountsAnything(width=1.0)), checks.nonfinite_values_leave_no_trace),
    (Case("clears none", FaultyRows(fault="clears none")), checks.fresh_after_clear),
    (Case("clears all", FaultyRows(fault="clears all")), checks.fresh_after_clear),
    (Case("half dumped", FaultyRows(fault="half dumped")), checks.resumes_in_mid_stream),
    (Case("never loads", FaultyRows(fault="never loads")), checks.resumes_in_mid_stream),
    (Case("forgets", FaultyRows(fault="forgets on growing")), checks.growing_keeps_rows),
    (Case("grows", FaultyRows(fault="grows")), checks.memory_is_bounded),
    (Case("leaky", Leaky()), checks.order_of_lanes_is_irrelevant),
    (Case("leaky", Leaky()), checks.alone_as_in_a_batch),
    (Case("sociable", Sociable()), checks.alone_as_in_a_batch),
    (Case("in place", InPlace(above=2.0)), checks.inputs_are_left_alone),
    (Case("loses", LosesSettings(width=2.0)), checks.settings_round_trip),
    (Case("takes anything", TakesAnything()), checks.settings_refuse_a_slip),
    (Case("hoarder", Hoarder(above=2.0)), checks.new_lanes_are_fresh),
    (Case("reducer", Reducer()), checks.an_empty_round_is_nothing),
    (Case("jumpy policy", JumpyPolicy()), checks.quiet_when_stationary),
    (Case("idle policy", NoPolicy()), checks.fires_after_a_shift),
    (Case("spent policy", ResetOnShiftPolicy(budget=0)), checks.fires_after_a_shift),
    (Case("blinded policy", BlindedPolicy()), checks.sees_again_after_nonfinite_values),
    (Case("one for all policy", OneForAll()), checks.order_of_lanes_is_irrelevant),
    (Case("one for all policy", OneForAll()), checks.alone_as_in_a_batch),
    (Case("monitor that forgets", ForgetsWhatWas()), checks.resumes_in_mid_stream),
    (Case("monitor of one topic", OneTopicForAll()), checks.order_of_lanes_is_irrelevant),
    (Case("monitor of one topic", OneTopicForAll()), checks.alone_as_in_a_batch),
    (Case("monitor that averages anything", AveragesAnything()), checks.sees_again_after_nonfinite_values),
]


@pytest.mark.parametrize(
    ("case", "check"), [pytest.param(*pair, id=f"{pair[0].label}-{pair[1].__name__}") for pair in BROKEN]
)
def test_check_catches_its_bug(case: Case, check: Check) -> None:
    with pytest.raises((AssertionError, ValueError)):
        check(case)


def test_every_check_has_caught_a_bug() -> None:
    assert {check for _, check in BROKEN} == set(checks.ALL_CHECKS)
