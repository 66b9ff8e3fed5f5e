"""Each detector against what it alone promises; `test_checks.py` holds all of them to what they share."""

from __future__ import annotations

import base64
import json
import math
import pickle
import random
import statistics
import sys
from collections import deque
from collections.abc import Iterator
from types import MethodType
from typing import Any, Literal, cast

import numpy as np
import pytest
import river.drift
import river.drift.binary
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from memory.errors import ConfigurationError
from memory.lane_state import Columns
from memory.threads import WORTH, set_threads, threads
from monitors import detectors
from monitors.detectors import (
    ADWIN,
    CUSUM,
    DETECTORS,
    EWMA,
    Detector,
    PageHinkley,
    RiverDetector,
    Shewhart,
    Threshold,
    parse_detector,
)
from monitors.detectors.adwin import LEVELS, bucket_counts
from monitors.detectors.river_codec import decode, encode
from monitors.detectors.river_detector import river_classes
from tests import checks
from tests.checks import Streams


def test_names_are_those_that_settings_use() -> None:
    assert {kind.model_fields["name"].default: kind for kind in DETECTORS.values()} == DETECTORS


def test_public_names_exist_and_are_all_listed() -> None:
    public = {
        name
        for name, thing in vars(detectors).items()
        if not name.startswith("_") and getattr(thing, "__module__", "").startswith("monitors.detectors")
    }
    assert public - {"read_settings"} <= set(detectors.__all__)
    assert all(hasattr(detectors, name) for name in detectors.__all__)


# Page-Hinkley


def alarms_of(detector: Detector, values: Streams) -> list[list[int]]:
    """Return the events at which each lane alarms, all lanes advanced together."""
    lanes = detector.new_lanes()
    lanes.resize(values.shape[1])
    slots = np.arange(values.shape[1])
    alarms = np.array([detector.update(lanes, slots, row) for row in values])
    return [np.flatnonzero(column).tolist() for column in alarms.T]


def alarms_of_river(one: Any, values: Iterator[float]) -> list[int]:
    fired = []
    for event, value in enumerate(values):
        one.update(value)
        if one.drift_detected:
            fired.append(event)
    return fired


@pytest.mark.parametrize("mode", ["up", "down", "both"])
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"threshold": 3.0},
        {"threshold": 1.0, "min_instances": 5, "delta": 0.0},
        {"threshold": 2.0, "alpha": 0.97, "min_instances": 1},
        {"threshold": 0.0, "min_instances": 0, "alpha": 1.0, "delta": 0.3},
    ],
)
def test_page_hinkley_alarms_where_rivers_does(mode: Literal["up", "down", "both"], params: dict[str, Any]) -> None:
    # Levels that walk, with a step of up to ±3 every 100 events or so, on 12 lanes.
    rng = np.random.default_rng(20)
    steps = np.where(rng.random((3_000, 12)) < 0.01, rng.uniform(-3, 3, (3_000, 12)), 0.0)
    values = np.cumsum(steps + rng.normal(0, 0.01, steps.shape), axis=0) + rng.normal(0, 0.2, steps.shape)
    expected = [alarms_of_river(river.drift.PageHinkley(mode=mode, **params), iter(lane)) for lane in values.T.tolist()]
    assert sum(map(len, expected)) > 10
    assert alarms_of(PageHinkley(mode=mode, **params), values) == expected


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    values=st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=80),
    min_instances=st.integers(0, 20),
    delta=st.floats(0, 5),
    threshold=st.floats(0, 1e6),
    alpha=st.floats(0, 1),
    mode=st.sampled_from(["up", "down", "both"]),
)
def test_page_hinkley_alarms_where_rivers_does_on_any_numbers(
    values: list[float],
    min_instances: int,
    delta: float,
    threshold: float,
    alpha: float,
    mode: Literal["up", "down", "both"],
) -> None:
    ours = PageHinkley(min_instances=min_instances, delta=delta, threshold=threshold, alpha=alpha, mode=mode)
    theirs = river.drift.PageHinkley(min_instances, delta, threshold, alpha, mode)
    assert alarms_of(ours, np.array(values).reshape(-1, 1)) == [alarms_of_river(theirs, iter(values))]


def test_page_hinkley_keeps_rivers_numbers_to_the_bit() -> None:
    detector = PageHinkley()
    lanes = cast(Columns, detector.new_lanes())
    lanes.resize(60)
    theirs: list[Any] = [river.drift.PageHinkley() for _ in range(60)]
    for row in np.random.default_rng(25).normal(0.0, 0.1, (200, 60)):
        detector.update(lanes, np.arange(60), row)
        for ours, one, value in zip(lanes["sums"].tolist(), theirs, row.tolist(), strict=True):
            one.update(value)
            rise, fall = (one._sum_increase, one._min_increase), (one._sum_decrease, one._max_decrease)
            assert ours == [one._x_mean.n, one._x_mean.get(), *rise, *fall]


def test_page_hinkley_has_rivers_defaults() -> None:
    theirs = river.drift.PageHinkley()._get_params()
    assert PageHinkley().model_dump(exclude={"name"}) == theirs


# Shewhart


def shewhart_loop(settings: Shewhart, values: list[float]) -> list[int]:
    """The rule as its docstring states it, one value after the other."""
    mean = variance = 0.0
    cooling = 0
    fired = []
    for seen, x in enumerate(values):
        deviation = max(math.sqrt(variance), settings.floor)
        distance = x - mean
        beyond = {"up": distance, "down": -distance, "both": abs(distance)}[settings.side]
        warm = seen >= settings.warm_up
        alarm = warm and cooling == 0 and beyond > settings.width * deviation
        cooling = settings.cool_down if alarm else max(cooling - 1, 0)
        if alarm:
            fired.append(seen)
        if warm:
            distance = max(-settings.clip * deviation, min(settings.clip * deviation, distance))
        weight = max(settings.weight, 1 / (seen + 1))
        mean += weight * distance
        variance = (variance + weight * distance * distance) * (1 - weight)
    return fired


@pytest.mark.parametrize("side", ["up", "down", "both"])
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"width": 1.0, "weight": 0.3, "warm_up": 1},
        {"width": 1.5, "floor": 0.4, "clip": 2.0},
        {"width": 2.0, "cool_down": 7},
    ],
)
def test_shewhart_is_its_stated_rule(side: Literal["up", "down", "both"], params: dict[str, Any]) -> None:
    rng = np.random.default_rng(21)
    values = rng.normal(0.4, 0.2, (2_000, 6)) + 1.5 * (rng.random((2_000, 6)) < 0.02)
    detector = Shewhart(side=side, **params)
    expected = [shewhart_loop(detector, lane) for lane in values.T.tolist()]
    assert sum(map(len, expected)) > 10
    assert alarms_of(detector, values) == expected


def test_shewhart_decides_before_the_value_enters_its_baseline() -> None:
    # Had 10 entered first, it would lie 2.8 of the new deviations from the new mean, and pass.
    values = np.array([1.0, -1.0] * 5 + [10.0]).reshape(-1, 1)
    assert alarms_of(Shewhart(width=5.0, warm_up=10), values) == [[10]]


def test_shewhart_baseline_starts_as_the_plain_mean_and_variance() -> None:
    detector = Shewhart(weight=0.05)
    lanes = cast(Columns, detector.new_lanes())
    lanes.resize(1)
    values = np.random.default_rng(22).normal(0.4, 0.2, 8)
    for value in values:
        detector.update(lanes, np.array([0]), np.array([value]))
    mean, variance = lanes["baseline"][0]
    assert mean == pytest.approx(values.mean(), rel=1e-14)
    assert variance == pytest.approx(values.var(), rel=1e-13)


def test_shewhart_is_not_blinded_by_one_wild_value() -> None:
    values = np.random.default_rng(23).normal(0.5, 0.1, (200, 1))
    values[100] = 1e30
    values[150] = 3.0
    assert alarms_of(Shewhart(width=6.0), values) == [[100, 150]]


def test_shewhart_learns_a_level_that_has_changed_for_good() -> None:
    values = np.random.default_rng(24).normal(0.5, 0.1, (1_000, 1))
    values[500:] += 50.0
    (fired,) = alarms_of(Shewhart(width=6.0), values)
    assert fired[0] == 500
    assert fired[-1] < 515


def test_shewhart_cools_down_for_that_many_events() -> None:
    values = np.concatenate([np.zeros(10), 2.0 ** np.arange(10)]).reshape(-1, 1)
    assert alarms_of(Shewhart(width=2.0, cool_down=3), values) == [[10, 14, 18]]
    assert alarms_of(Shewhart(width=2.0, cool_down=0), values) == [list(range(10, 20))]


# ADWIN


RIVERS_ADWIN: Any = river.drift.ADWIN


def wandering(seed: int, events: int, lanes: int) -> Streams:
    """Return `[events, lanes]`: noise about a level that steps by up to ±1 every 200 events or so."""
    rng = np.random.default_rng(seed)
    steps = np.where(rng.random((events, lanes)) < 0.005, rng.uniform(-1, 1, (events, lanes)), 0.0)
    values: Streams = np.cumsum(steps, axis=0) + rng.normal(0, 0.2, steps.shape)
    return values


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"clock": 1},
        {"delta": 0.3, "clock": 4, "max_buckets": 2},
        {"delta": 1e-4, "max_buckets": 3},
        {"delta": 0.05, "clock": 3, "max_buckets": 9, "min_window_length": 1, "grace_period": 0},
        {"clock": 7, "max_buckets": 100, "min_window_length": 40, "grace_period": 150},
    ],
)
def test_adwin_alarms_where_rivers_does(params: dict[str, Any]) -> None:
    values = wandering(60, 3_000, 12)
    expected = [alarms_of_river(RIVERS_ADWIN(**params), iter(lane)) for lane in values.T.tolist()]
    assert sum(map(len, expected)) > 30
    assert alarms_of(ADWIN(**params), values) == expected


def test_adwin_alarms_where_rivers_does_in_a_long_stream() -> None:
    # Windows of up to 100,000 values, which a shift by a tenth of a deviation then ends.
    values = np.random.default_rng(61).normal(0, 1, (120_000, 3))
    values[100_000:] += 0.1
    expected = [alarms_of_river(RIVERS_ADWIN(delta=1e-9), iter(lane)) for lane in values.T.tolist()]
    assert [[at > 100_000 for at in lane] for lane in expected] == [[True]] * 3
    assert alarms_of(ADWIN(delta=1e-9), values) == expected


@pytest.mark.parametrize(
    ("params", "low", "expected"),
    [
        ({"grace_period": 25, "delta": 0.99}, 13, 25),  # the first look is at 26 values
        ({"grace_period": 0, "delta": 0.99, "max_buckets": 20, "min_window_length": 4}, 4, 9),  # 4 values, and 6
        ({"grace_period": 0, "delta": 0.99, "max_buckets": 20, "min_window_length": 4}, 11, 14),  # 11, and 4
    ],
)
def test_adwin_looks_from_the_values_on_that_its_settings_say(params: Any, low: int, expected: int) -> None:
    values = np.repeat([0.0, 1_000.0], [low, 40]).reshape(-1, 1)
    assert alarms_of_river(RIVERS_ADWIN(clock=1, **params), iter(values[:, 0].tolist()))[0] == expected
    assert alarms_of(ADWIN(clock=1, **params), values)[0][0] == expected


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    values=st.lists(st.one_of(st.floats(-1e9, 1e9), st.sampled_from([0.0, 1.0])), min_size=1, max_size=120),
    delta=st.floats(1e-12, 0.99),
    clock=st.integers(1, 9),
    max_buckets=st.integers(2, 7),
    min_window_length=st.integers(1, 20),
    grace_period=st.integers(0, 30),
)
def test_adwin_alarms_where_rivers_does_on_any_numbers(values: list[float], **params: Any) -> None:
    expected = [alarms_of_river(RIVERS_ADWIN(**params), iter(values))]
    assert alarms_of(ADWIN(**params), np.array(values).reshape(-1, 1)) == expected


def test_adwin_keeps_rivers_numbers_to_the_bit() -> None:
    detector = ADWIN()
    lanes = detector.new_lanes()
    lanes.resize(40)
    theirs: list[Any] = [RIVERS_ADWIN() for _ in range(40)]
    for row in wandering(62, 500, 40):
        alarms = detector.update(lanes, np.arange(40), row)
        for window, one, value, alarm in zip(lanes["window"].tolist(), theirs, row.tolist(), alarms, strict=True):
            one.update(value)
            assert one.drift_detected == alarm
            if not alarm:  # river empties the window with the next value, ours is empty at once
                assert window == [one.width, one.total, one.variance]


def test_adwin_has_rivers_defaults() -> None:
    assert ADWIN().model_dump(exclude={"name"}) == RIVERS_ADWIN()._get_params()


def test_adwin_makes_room_as_windows_grow() -> None:
    detector = ADWIN()
    lanes = detector.new_lanes()
    lanes.resize(2)
    layout = lanes.layout
    values = np.random.default_rng(63).random(9_000)
    for i, value in enumerate(values):
        slots = np.array([0, 1]) if i < 100 else np.array([0])
        detector.update(lanes, slots, np.full(len(slots), value))
    assert lanes["window"][:, 0].tolist() == [9_000, 100]
    counts = bucket_counts(9_000, 5)
    assert lanes["counts"][0, : len(counts)].tolist() == counts
    assert lanes["counts"].shape[1] == len(counts) + 1 > LEVELS
    assert lanes.layout == layout
    deep, shallow = lanes.dump(np.array([0, 1]))
    assert (len(deep), len(shallow)) == (24 + 8 * sum(counts), 24 + 8 * sum(bucket_counts(100, 5)))
    new = detector.new_lanes()
    new.resize(3)
    new.load(2, deep)  # needs more levels than are there
    assert list(new.dump(np.array([1, 2]))) == [bytes(24), deep]


@pytest.mark.parametrize(
    "blob",
    [b"", bytes(23), bytes(40), np.array([6.0, 0, 0]).tobytes(), np.array([-1.0, 0, 0]).tobytes(),
     np.array([1e300, 0, 0]).tobytes(), np.array([np.nan, 0, 0]).tobytes(), np.array([0.5, 0, 0]).tobytes()],
    ids=["empty", "cut", "too long", "no buckets", "negative", "huge", "nan", "half a value"],
)  # fmt: skip
def test_adwin_refuses_a_blob_that_is_no_window(blob: bytes) -> None:
    lanes = ADWIN().new_lanes()
    lanes.resize(1)
    with pytest.raises(ValueError, match="adwin window"):
        lanes.load(0, blob)
    assert lanes["window"].tolist() == [[0, 0, 0]]


def test_adwin_gives_the_same_bits_whatever_the_threads() -> None:
    values = wandering(64, 130, 12_000)
    assert 100 * values.shape[1] > 2 * WORTH
    before, blobs = threads(), []
    try:
        for count in (1, 2, 5):
            set_threads(count)
            detector = ADWIN(clock=1)
            lanes = detector.new_lanes()
            lanes.resize(12_000)
            for row in values:
                detector.update(lanes, np.arange(12_000), row)
            blobs.append(lanes.dump(np.arange(12_000)))
    finally:
        set_threads(before)
    assert blobs[0] == blobs[1] == blobs[2]


# The charts with a baseline


def standardised(values: list[float], start: int, warm_up: int, floor: float) -> Iterator[tuple[int, float]]:
    """Yield the events after the warm-up that begins at `start`, and how far each lies from it."""
    first = values[start : start + warm_up]
    if len(first) == warm_up:
        mean, deviation = statistics.fmean(first), max(statistics.stdev(first), floor)
        for event in range(start + warm_up, len(values)):
            yield event, (values[event] - mean) / deviation


def cusum_loop(settings: CUSUM, values: list[float]) -> list[int]:
    """The rule as its docstring states it."""
    fired: list[int] = []
    while True:
        rise = fall = 0.0
        for event, z in standardised(values, fired[-1] + 1 if fired else 0, settings.warm_up, settings.floor):
            rise, fall = max(0.0, rise + z - settings.slack), max(0.0, fall - z - settings.slack)
            if {"up": rise, "down": fall, "both": max(rise, fall)}[settings.side] > settings.threshold:
                fired.append(event)
                break
        else:
            return fired


def ewma_loop(settings: EWMA, values: list[float]) -> list[int]:
    """The rule as its docstring states it."""
    fired: list[int] = []
    w = settings.weight
    while True:
        e = 0.0
        begin = fired[-1] + 1 if fired else 0
        for event, z in standardised(values, begin, settings.warm_up, settings.floor):
            e = (1 - w) * e + w * z
            t = event - begin - settings.warm_up + 1
            limit = settings.width * math.sqrt(w / (2 - w) * (1 - (1 - w) ** (2 * t)))
            if {"up": e, "down": -e, "both": abs(e)}[settings.side] > limit:
                fired.append(event)
                break
        else:
            return fired


@pytest.mark.parametrize("side", ["up", "down", "both"])
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"warm_up": 2, "threshold": 3.0},
        {"slack": 0.0, "floor": 0.5},
        {"slack": 0.25, "warm_up": 11, "threshold": 1},
    ],
)
def test_cusum_is_its_stated_rule(side: Literal["up", "down", "both"], params: dict[str, Any]) -> None:
    values = wandering(70, 2_000, 8)
    detector = CUSUM(side=side, **params)
    expected = [cusum_loop(detector, lane) for lane in values.T.tolist()]
    assert sum(map(len, expected)) > 3
    assert alarms_of(detector, values) == expected


@pytest.mark.parametrize("side", ["up", "down", "both"])
@pytest.mark.parametrize(
    "params",
    [{}, {"weight": 1.0, "width": 3.0}, {"weight": 0.02, "width": 2.0, "warm_up": 7}, {"floor": 0.5, "warm_up": 2}],
)
def test_ewma_is_its_stated_rule(side: Literal["up", "down", "both"], params: dict[str, Any]) -> None:
    values = wandering(71, 2_000, 8)
    detector = EWMA(side=side, **params)
    expected = [ewma_loop(detector, lane) for lane in values.T.tolist()]
    assert sum(map(len, expected)) > 3
    assert alarms_of(detector, values) == expected


def test_cusum_by_hand() -> None:
    # The baseline 1, 3 has mean 2 and deviation √2; then z − slack is 1, −0.5, 1.5, 1.5.
    values = np.array([1.0, 3.0] + [2 + 2**0.5 * z for z in (1.5, 0.0, 2.0, 2.0)]).reshape(-1, 1)
    assert alarms_of(CUSUM(warm_up=2, slack=0.5, threshold=3.4), values) == [[5]]
    assert alarms_of(CUSUM(warm_up=2, slack=0.5, threshold=3.6), values) == [[]]
    assert alarms_of(CUSUM(warm_up=2, slack=0.5, threshold=3.4, side="down"), 4 - values) == [[5]]


def test_ewma_by_hand() -> None:
    # e is 0.5, 1.25 against limits of width · 0.5 and width · √(1/3 · 15/16) = width · 0.559.
    values = np.array([1.0, 3.0] + [2 + 2**0.5 * z for z in (1.0, 2.0)]).reshape(-1, 1)
    assert alarms_of(EWMA(warm_up=2, weight=0.5, width=0.99), values) == [[2]]
    assert alarms_of(EWMA(warm_up=2, weight=0.5, width=2.2), values) == [[3]]
    assert alarms_of(EWMA(warm_up=2, weight=0.5, width=2.3), values) == [[]]


@pytest.mark.parametrize("kind", [CUSUM, EWMA])
def test_charts_do_not_alarm_at_a_whisper(kind: type[CUSUM] | type[EWMA]) -> None:
    values = np.full((200, 1), 0.4)
    values[100:] += 1e-9  # many deviations of a signal that did not move at all
    assert alarms_of(kind(), values) == [[]]
    assert alarms_of(kind(floor=1e-10), values) != [[]]


# The threshold


def test_threshold_with_hysteresis_alarms_once_an_excursion() -> None:
    values = np.array([0.0, 3, 3, 1.5, 3, 1, 3, 2, 2.1, 0.5, 2, 2.5]).reshape(-1, 1)
    assert alarms_of(Threshold(above=2.0), values) == [[1, 2, 4, 6, 8, 11]]
    assert alarms_of(Threshold(above=2.0, rearm=1.0), values) == [[1, 6, 11]]
    assert alarms_of(Threshold(above=2.0, rearm=2.0), values) == [[1, 4, 6, 8, 11]]


def test_threshold_refuses_lines_that_are_swapped() -> None:
    with pytest.raises(ConfigurationError, match=r"expected rearm at or below above \(0.5\), got 0.9; are"):
        parse_detector({"name": "threshold", "rearm": 0.9})


# river's


@pytest.mark.parametrize("name", river_classes())
def test_river_detector_alarms_where_rivers_does(name: str) -> None:
    values = checks.streams(30, 900, 3, [300, 500, 700], 0.6)
    detector = RiverDetector(
        detector=name, above=0.7 if issubclass(river_classes()[name], river.base.BinaryDriftDetector) else None
    )
    bits = detector.bits
    expected = [
        alarms_of_river(river_classes()[name](**detector.params), iter([int(x > 0.7) if bits else x for x in lane]))
        for lane in values.T.tolist()
    ]
    assert any(expected) or name == "NoDrift"
    assert alarms_of(detector, values) == expected


def test_bits_are_one_above_a_half_if_nothing_else_is_said() -> None:
    assert [RiverDetector(detector="DDM").bit(value) for value in (0.0, 0.5, 0.51, 1.0)] == [0, 0, 1, 1]


def test_adwin_may_be_fed_bits() -> None:
    values = checks.streams(31, 600, 1, [300], 4.0)
    bits = (values > 2.0).astype(np.float64)
    fired = alarms_of(RiverDetector(detector="ADWIN", above=2.0), values)
    assert fired == alarms_of(RiverDetector(detector="ADWIN"), bits)
    assert fired[0]


def test_cleared_kswin_starts_with_an_empty_window() -> None:
    # `KSWIN.clone()` keeps the window of the one it is cloned from.
    detector = RiverDetector(detector="KSWIN", params={"window": [9.0, 9.0]})
    lanes = detector.new_lanes()
    lanes.resize(1)
    for value in (1.0, 2.0, 3.0):
        detector.update(lanes, np.array([0]), np.array([value]))
    assert list(lanes.objects[0].window) == [9.0, 9.0, 1.0, 2.0, 3.0]
    lanes.clear(np.array([0]))
    detector.update(lanes, np.array([0]), np.array([4.0]))
    assert list(lanes.objects[0].window) == [9.0, 9.0, 4.0]


def test_random_detectors_are_seeded() -> None:
    assert RiverDetector(detector="KSWIN").params == {"seed": 0}
    assert RiverDetector(detector="KSWIN", params={"seed": 5}).params == {"seed": 5}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"detector": "ADWIM"}, "got 'ADWIM'; did you mean 'ADWIN'?"),
        ({"params": {"dleta": 0.1}}, "got 'dleta'; did you mean 'delta'?"),
        ({"params": {"delta": "small"}}, "ADWIN.delta: expected a number, got 'small'"),
        ({"params": {"delta": True}}, "ADWIN.delta: expected a number, got True"),
        ({"params": {"delta": float("nan")}}, "ADWIN.delta: expected a number, got nan"),
        ({"params": {"clock": 0}}, "ADWIN.clock: expected a number from 1 to 1,000,000, got 0"),
        ({"params": {"max_buckets": 2**40}}, "ADWIN.max_buckets: expected a number from 1 to 1,000,000"),
        ({"params": {"clock": 2.5}}, "ADWIN cannot run with {'clock': 2.5}"),
        ({"detector": "KSWIN", "params": {"seed": None}}, "KSWIN.seed: expected an integer, got None"),
        ({"detector": "KSWIN", "params": {"window": "abc"}}, "KSWIN.window: expected a number, a list of numbers"),
        # This one fails in river only once 50 values are there.
        ({"detector": "KSWIN", "params": {"window_size": 50, "stat_size": 30}}, "KSWIN cannot run with"),
        ({"detector": "EDDM", "params": {"alpha": 0.5}}, "'alpha' must be greater or equal to 'beta'"),
        ({"detector": "NoDrift", "params": {"delta": 1}}, "NoDrift takes no arguments, got 'delta'"),
        ({"detector": "PageHinkley", "params": {"mode": 1}}, "PageHinkley.mode: expected text, got 1"),
        ({"detector": "HDDMA", "params": {"two_sided_test": 1}}, "expected true or false, got 1"),
        ({"above": float("inf")}, "finite number"),
    ],
)
def test_river_settings_are_refused_with_the_likely_slip(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        RiverDetector(**given)
    assert message in str(caught.value)


def test_blobs_of_other_parameters_are_of_another_layout() -> None:
    layouts = {
        RiverDetector(detector=name, params=params).new_lanes().layout
        for name, params in [("ADWIN", {}), ("ADWIN", {"delta": 0.1}), ("ADWIN", {"delta": 0.2}), ("KSWIN", {})]
    }
    assert len(layouts) == 4


# The codec


def trained(kind: Any, events: int = 250) -> Any:
    one = kind(**({"seed": 3} if kind in (river.drift.KSWIN, river.drift.DummyDriftDetector) else {}))
    for value in np.random.default_rng(40).random(events).round().tolist():
        one.update(int(value))
    return one


def told(value: Any) -> Any:
    """Tell all that an object holds, without the codec: types, numbers, windows, random states, compiled insides."""
    if isinstance(value, MethodType):
        return value.__name__
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, deque):
        return value.maxlen, list(value)
    if hasattr(value, "__dict__"):
        return type(value), {name: told(held) for name, held in vars(value).items()}
    if type(value).__module__.startswith("river._river_rust"):
        return type(value), value.__getstate__()
    return value


@pytest.mark.parametrize("name", river_classes())
def test_codec_gives_back_the_same_state_without_pickle(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **more: object) -> None:
        raise AssertionError("pickle was used")

    one = trained(river_classes()[name])
    for function in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, function, refuse)
    blob = encode(one)
    again = decode(blob, river_classes()[name])
    monkeypatch.undo()
    json.loads(blob.decode("ascii"))
    assert encode(again) == blob
    assert told(again) == told(one)


def test_codec_source_imports_neither_pickle_nor_import_machinery() -> None:
    module = sys.modules["monitors.detectors.river_codec"]
    assert module.__file__
    with open(module.__file__, encoding="utf-8") as file:
        code = [line for line in file if line.startswith(("import ", "from "))]
    assert not [line for line in code if any(word in line for word in ("pickle", "importlib", "shelve", "marshal"))]
    assert not hasattr(module, "importlib")


def test_codec_keeps_shared_and_circular_references_and_special_numbers() -> None:
    one: Any = river.drift.PageHinkley()
    shared = [1, 2.5, -0.0, float("inf"), float("-inf"), float("nan"), None, True, b"\x00\xff", ("a", 2**80)]
    one.first, one.second, one.itself = shared, shared, one
    one.table = {"key": shared, 3: (one, "é")}
    again = decode(encode(one), river.drift.PageHinkley)
    assert again.first is again.second is again.table["key"]
    assert again.itself is again is again.table[3][0]
    assert again._test_drift.__self__ is again
    assert repr(again.first) == repr(shared)


@pytest.mark.parametrize("value", [object(), {1, 2}, np.zeros(2), math.sqrt, lambda: 0, Columns({}), 1j])
def test_codec_refuses_to_write_what_it_has_no_word_for(value: object) -> None:
    one: Any = river.drift.PageHinkley()
    one.extra = value
    with pytest.raises(ValueError, match="expected"):
        encode(one)


PH = "river.drift.page_hinkley:PageHinkley"
ADAPTIVE = "river._river_rust.drift:AdaptiveWindowing"


def as_object(name: str, new: list[Any] | None = None, state: Any = None) -> dict[str, Any]:
    return {"object": name, "new": new or [], "state": {"dict": []} if state is None else state}


def holding(value: Any) -> dict[str, Any]:
    return as_object(PH, state={"dict": [["x", value]]})


HOSTILE: dict[str, Any] = {
    "a function of the system": holding(as_object("os:system", ["true"])),
    "a builtin": holding(as_object("builtins:eval", ["1"])),
    "a class outside river": holding(as_object("subprocess:Popen", [{"list": ["true"]}])),
    "a module that looks like river": holding(as_object("riverx.drift:ADWIN")),
    "a module that a river module imports": holding(as_object("river.drift.kswin:random")),
    "a class that a river module imports": holding(as_object("river.drift.kswin:DriftDetector")),
    "a function of river": holding(as_object("river._river_rust.stats:expected_mutual_info")),
    "a dotted name": holding(as_object("river.drift.kswin:random.Random")),
    "a river module that is not loaded": holding(as_object("river.datasets.synth.agrawal_:Agrawal")),
    "no module": holding(as_object("PageHinkley")),
    "a method of no river object": holding({"method": "append", "of": {"list": []}}),
    "a method of text": holding({"method": "format", "of": "{0.__class__}"}),
    "an attribute that is no method": holding({"method": "__class__", "of": {"ref": 0}}),
    "a property": holding({"method": "drift_detected", "of": {"ref": 0}}),
    "a reference to nothing": holding({"ref": 7}),
    "a reference before the first": holding({"ref": -1}),
    "an unknown word": holding({"reduce": ["os.system", "true"]}),
    "a bare list": holding([1, 2]),
    "a number that is none": holding({"float": "0x1p3"}),
    "bytes that are none": holding({"bytes": "?"}),
    "a deque of no length": holding({"deque": [], "maxlen": "many"}),
    "a deque of negative length": holding({"deque": [], "maxlen": -1}),
    "a short random state": holding({"random": "AAAA", "gauss": None}),
    "a random state out of range": holding({"random": base64.b64encode(b"\xff" * 2500).decode(), "gauss": None}),
    "a key that cannot be one": holding({"dict": [[{"list": []}, 1]]}),
    "pairs that are none": holding({"dict": [1]}),
    "an attribute without a name": as_object(PH, state={"dict": [[1, 2]]}),
    "no state": as_object(PH, state={"list": []}),
    "state that is text": as_object(PH, state="x"),
    "compiled, asked for too much": holding(as_object(ADAPTIVE, [0.002, 32, 2**40, 5, 10], {"bytes": ""})),
    "compiled, with words": holding(as_object(ADAPTIVE, ["x", 32, 5, 5, 10], {"bytes": ""})),
    "compiled, with too few": holding(as_object(ADAPTIVE, [0.002], {"bytes": ""})),
    "compiled, with no bytes": holding(as_object(ADAPTIVE, [0.002, 32, 5, 5, 10], 3)),
    "compiled, with bytes that it panics on": holding(as_object(ADAPTIVE, [0.002, 32, 5, 5, 10], {"bytes": "AAAA"})),
    "another class": as_object("river.drift.no_drift:NoDrift"),
    "no object": {"list": []},
    "null": None,
}


@pytest.mark.parametrize("blob", [pytest.param(json.dumps(value).encode(), id=name) for name, value in HOSTILE.items()])
def test_codec_refuses_hostile_bytes_and_imports_nothing(blob: bytes) -> None:
    loaded = set(sys.modules)
    with pytest.raises(ValueError, match=r"."):
        decode(blob, river.drift.PageHinkley)
    assert set(sys.modules) == loaded


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        pickle.dumps(3),
        b'{"object":NaN}',
        b'{"list":' * 5_000 + b"1" + b"}" * 5_000,
    ],
    ids=["empty", "cut", "not text", "deep JSON", "a pickle", "a bare NaN", "deep objects"],
)
def test_codec_refuses_what_is_not_its_form(blob: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(blob, river.drift.PageHinkley)


@pytest.mark.parametrize("kind", [river.drift.PageHinkley, river.drift.KSWIN, river.drift.binary.EDDM])
def test_codec_meets_damage_with_value_error_alone(kind: type) -> None:
    blob = encode(trained(kind))

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(at=st.integers(0, len(blob) - 1), cut=st.integers(0, 40), put=st.binary(max_size=12))
    @example(at=0, cut=len(blob), put=b"")
    def damaged(at: int, cut: int, put: bytes) -> None:
        try:
            again = decode(blob[:at] + put + blob[at + cut :], kind)
        except ValueError:
            return
        assert type(again) is kind

    damaged()


def test_lane_refuses_a_state_that_lacks_something() -> None:
    lanes = RiverDetector(detector="PageHinkley").new_lanes()
    lanes.resize(1)
    with pytest.raises(ValueError, match=r"with _drift_detected, min_instances, .*, got x$"):
        lanes.load(0, json.dumps(holding(1)).encode())


# Reading settings


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("page_hinkley", PageHinkley()),
        ("shewhart", Shewhart()),
        ("river", RiverDetector()),
        ({"name": "threshold", "above": "0.7"}, Threshold(above=0.7)),
        (
            {"name": "river", "detector": "KSWIN", "params": {"seed": 1}},
            RiverDetector(detector="KSWIN", params={"seed": 1}),
        ),
    ],
)
def test_parse_detector(data: str | dict[str, Any], expected: Detector) -> None:
    assert parse_detector(data) == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            "Shewart",
            "one of adwin, cusum, ewma, never, page_hinkley, river, shewhart, threshold, got name: 'Shewart'; "
            "did you mean 'shewhart'?",
        ),
        ("ADWIN", "got 'ADWIN'; that is one of river's: {'name': 'river', 'detector': 'ADWIN'}"),
        ({"detector": "ADWIN"}, "got no key 'name' among ['detector']"),
        ({"name": ["river"]}, "got name: ['river']"),
        ({"name": "shewhart", "with": 2}, "shewhart has no key 'with', given 2; did you mean 'width' or 'weight'?"),
        ({"name": "shewhart", "width": 0}, "shewhart.width: input should be greater than 0, got 0"),
        ({"name": "shewhart", "side": "above"}, "shewhart.side: input should be 'up', 'down' or 'both', got 'above'"),
        ({"name": "river", "detector": "ADWIM"}, "river.detector: expected one of ADWIN"),
        ({"name": "river", "params": {"clock": 2.5}}, "river: ADWIN cannot run with {'clock': 2.5}"),
        (
            {"name": "threshold", "above": None, "x": 1},
            "threshold.above: input should be a valid number, got None; and ",
        ),
        (7, "expected a detector as keys and values, got 7"),
    ],
)
def test_parse_detector_says_what_is_wrong_on_one_line(data: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_detector(data)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Shewhart().width = 2.0  # type: ignore[misc]
