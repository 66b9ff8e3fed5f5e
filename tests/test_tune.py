"""Tuning: the search sees one part of the streams and the figures come from the other; a study goes on where it was,
and what it recommends is what it can show."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from dashboards.tuning_page import Point, Row, TuningPage, tuning_page
from memory.errors import ConfigurationError
from monitors.policies import (
    AnyPolicy,
    AutoPolicy,
    DecayPolicy,
    NoPolicy,
    Policy,
    load_policy,
    policy_to_yaml,
    read_yaml,
)
from stream.cli import main
from stream.config import RunSettings
from stream.consumer import Consumer
from stream.generate import GenerateSettings, write_stream
from stream.many import LoadedTape, load, score
from stream.tuning.choice import Reported, _recommend, choose, judge
from stream.tuning.front import hypervolume, on_front
from stream.tuning.importance import importances
from stream.tuning.intervals import Change, paired_change
from stream.tuning.journal import SqliteJournal, open_study
from stream.tuning.results import write_results
from stream.tuning.sampling import _shown, costs, suggest
from stream.tuning.settings import TuneSettings
from stream.tuning.space import default_space, read_space
from stream.tuning.split import split_streams
from stream.tuning.study import Study
from stream.tuning.trial import Figures, Trial
from tests.warm import Command, Warm

ROOT = Path(__file__).parents[1]
SPACE = """\
policies:
  decay: {factor: {low: 0.9, high: 0.9999}}
  reset_on_shift: {cool_down: {low: 0, high: 64}, on: {choices: [[topic_shift], [topic_shift, retrieval_error]]}}
  adaptive_gates: {step: {low: 0.01, high: 0.3, log: true}}
"""


def record(source: Path, folder: Path) -> Path:
    consumer = Consumer(
        RunSettings(source=f"file:{source}", backbone="hashing", rank=8, tape=folder / "tape", metrics_port=0)
    )
    try:
        consumer.open()
        consumer.run()
    finally:
        consumer.close()
    return folder / "tape"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    write_stream(
        GenerateSettings(scenario="recurring", streams=6, events=50, mean_topic_length=8, seed=3), folder / "talk.jsonl"
    )
    (folder / "space.yaml").write_text(SPACE)
    record(folder / "talk.jsonl", folder)
    return folder


@pytest.fixture(scope="module")
def tape(place: Path) -> LoadedTape:
    return load(place / "tape")


def searched(
    tape: LoadedTape, place: Path, study: Path, told: Any = lambda study: None, stop: Any = lambda: False, **given: Any
) -> Study:
    """Search in this process."""
    made = Study.of(tape, read_space(place / "space.yaml"), TuneSettings(**{"trials": 24, "batch": 8} | given))
    journal = SqliteJournal(study)
    try:
        made.run(journal, place / "tape", told=told, stop=stop)
    finally:
        journal.close()
    return made


@pytest.fixture(scope="module")
def whole(tape: LoadedTape, place: Path) -> Study:
    """A search of 24 trials, without interruption."""
    return searched(tape, place, place / "whole.db")


def tried(study: Study) -> list[tuple[Any, ...]]:
    return [(trial.number, trial.policy, trial.sampled, trial.costs(3)) for trial in study.trials]


def command(place: Path, out: Path, *more: object) -> list[str]:
    options = ["--space", place / "space.yaml", "--out", out, "--trials", 24, "--batch", 8, *more]
    return ["tune", *map(str, [place / "tape", *options])]


def table(out: Path, name: str = "trials") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = parquet.read_table(out / f"{name}.parquet").to_pylist()
    return rows


# The space


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("policy: {}", "expected one key, policies, that holds policies by name, got keys policy"),
        ("- decay", "expected one key, policies, that holds policies by name, got list"),
        ("policies: {}", "expected at least one policy under policies, got none"),
        ("policies: {deccay: {}}", "got 'deccay'; did you mean 'decay'?"),
        ("policies: {decay: {factr: 1}}", "decay: expected settings among factor, got 'factr'; did you mean 'factor'?"),
        ("policies: {decay: {policy: auto}}", "decay: expected settings among factor, got 'policy'"),
        ("policies: {none: {x: 1}}", "none: expected settings (it has none), got 'x'"),
        ("policies: {decay: 0.9}", "decay: expected settings with their ranges, got 0.9"),
        ("policies: {decay: {factor: {low: 0.9}}}", "decay.factor: expected high, got none"),
        (
            "policies: {decay: {factor: {low: 0.9, high: 0.9}}}",
            "decay.factor: expected low under high, got 0.9 and 0.9",
        ),
        ("policies: {decay: {factor: {low: 0.9, hihg: 1}}}", "decay.factor: expected {low, high, log, int} or"),
        ("policies: {decay: {factor: {low: 0.9, hihg: 1}}}", "got 'hihg'; did you mean 'high'?"),
        ("policies: {decay: {factor: {low: 0, high: 1}}}", "decay.factor as 0.0: expected greater than 0, got 0.0"),
        ("policies: {decay: {factor: {low: 0.5, high: 2}}}", "decay.factor as 2.0: expected less than or equal to 1"),
        ("policies: {decay: {factor: {low: a, high: 2}}}", "decay.factor: expected"),
        ("policies: {decay: {factor: {low: 0.5, high: .inf}}}", "decay.factor: expected a finite number, got inf"),
        ("policies: {decay: {factor: 2}}", "decay.factor as 2: expected less than or equal to 1, got 2"),
        ("policies: {auto: {leave: {low: 0, high: 4, log: true}}}", "auto.leave: expected a low above 0 where log is"),
        ("policies: {auto: {most: {low: 1.5, high: 4}}}", "auto.most: expected whole numbers, got 1.5 and 4"),
        ("policies: {auto: {most: {low: 0, high: 4}}}", "auto.most as 0: expected greater than or equal to 1, got 0"),
        ("policies: {auto: {belief: {gian: 1}}}", "auto.belief: expected settings among hazard"),
        ("policies: {auto: {belief: {gain: {low: 1, high: 101}}}}", "auto.belief.gain as 101.0: expected less than"),
        ("policies: {reset_on_shift: {on: {choices: []}}}", "reset_on_shift.on: expected"),
        ("policies: {reset_on_shift: {on: {choices: [[topic]]}}}", "reset_on_shift.on as ['topic']: expected alarms"),
        ("policies: {decay: {factor: 0.9, factor: 0.8}}", "is given twice"),
    ],
)
def test_a_mistake_in_the_space_is_one_clear_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=re.escape(said)) as caught:
        read_space(tmp_path / "space.yaml")
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_what_is_sampled_is_in_the_space_and_a_policy_of_its_class(tmp_path: Path) -> None:
    """The ends themselves too, and numbers come back as the YAML file will show them."""
    space = read_space(None)
    assert space.describe() == read_space(None).describe()
    for name, part in space.policies.items():
        for sampled in suggest(part, [], 40, 2, seed=5):
            policy = part.policy(sampled)
            path = tmp_path / "policy.yaml"
            path.write_text(policy_to_yaml(policy))
            assert load_policy(str(path)) == policy
            assert policy.model_dump()["policy"] == name
            for setting, kind in part.free.items():
                value: Any = policy
                for piece in setting.split("."):
                    value = getattr(value, piece)
                if len(kind.values) == 2 and hasattr(kind, "low"):
                    assert kind.values[0] <= value <= kind.values[1]
                else:
                    assert value in [tuple(choice) if isinstance(choice, list) else choice for choice in kind.values]


def test_the_example_is_a_space_and_the_built_in_one_is_printed(warm: Warm, tmp_path: Path) -> None:
    assert read_space(ROOT / "examples" / "space.yaml").policies
    done = warm.run(["tune", "--show-space"], check=True)
    assert done.stdout == default_space()
    (tmp_path / "mine.yaml").write_text(done.stdout)
    assert read_space(tmp_path / "mine.yaml").describe() == read_space(None).describe()


@pytest.mark.parametrize(
    ("range_", "value", "said"),
    [
        ("{low: 0.1, high: 8, log: true}", 7.9, ["enter"]),
        ("{low: 0.1, high: 8, log: true}", 0.101, ["enter"]),
        ("{low: 0.1, high: 8, log: true}", 0.3, []),  # near in numbers, far in their logarithm
        ("{low: 0.1, high: 8}", 0.2, []),  # there is nothing to try at 0 and under
    ],
)
def test_a_setting_at_an_end_that_could_be_wider_is_told(
    range_: str, value: float, said: list[str], tmp_path: Path
) -> None:
    (tmp_path / "space.yaml").write_text(f"policies: {{auto: {{enter: {range_}}}}}")
    assert read_space(tmp_path / "space.yaml").policies["auto"].at_ends({"auto.enter": value}) == said


# The parts that are plain functions


@given(st.sets(st.text(min_size=1), min_size=2, max_size=30), st.floats(0.01, 0.99), st.integers(0, 5))
def test_every_stream_is_on_one_side_whatever_its_place_on_the_tape(names: set[str], share: float, seed: int) -> None:
    one, other = split_streams(sorted(names), share, seed)
    assert one
    assert other
    assert sorted(one + other) == sorted(names)
    assert abs(len(one) - share * len(names)) <= 1
    turned = split_streams(sorted(names, reverse=True), share, seed)
    assert (set(turned[0]), set(turned[1])) == (set(one), set(other))


def test_the_seed_chooses_the_side() -> None:
    names = [f"s{number}" for number in range(20)]
    assert len({tuple(split_streams(names, 0.5, seed)[0]) for seed in range(20)}) == 20


small = st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=1, max_size=12)


@given(small)
@settings(deadline=None)
def test_the_front_and_its_volume_are_what_counting_gives(rows: list[list[int]]) -> None:
    costs = np.array(rows, np.float64)
    beaten = [any(all(b <= a for a, b in zip(row, by, strict=True)) and by != row for by in rows) for row in rows]
    first = [row not in rows[:place] for place, row in enumerate(rows)]
    assert on_front(costs).tolist() == [new and not worse for new, worse in zip(first, beaten, strict=True)]
    for d in (1, 2, 3):
        cells = sum(
            any(all(cost <= cell for cost, cell in zip(row[:d], corner, strict=True)) for row in rows)
            for corner in product(range(4), repeat=d)
        )
        assert hypervolume(costs[:, :d], np.full(d, 4.0)) == cells


def test_an_interval_holds_the_change_and_streams_are_drawn_in_pairs() -> None:
    """Streams differ a hundredfold; the change is 10 % in each: drawn apart it would be anywhere."""
    base = np.array([0.01, 0.1, 1.0, 0.5])
    assert paired_change(0.9 * base, base, np.array([5, 9, 20, 1]), 0) == Change(-0.1, -0.1, -0.1)
    alone = paired_change(np.array([0.5]), np.array([1.0]), np.array([7]), 0)
    assert alone.mean == -0.5
    assert math.isnan(alone.low)
    assert not alone.sure_gain
    assert math.isnan(paired_change(np.array([np.nan]), np.array([1.0]), np.array([7]), 0).mean)
    mixed = paired_change(np.array([0.5, 2.0, 0.7, np.nan]), np.ones(4), np.array([1, 1, 2, 5]), 0)
    assert mixed.mean == pytest.approx((0.5 + 2.0 + 1.4) / 4 - 1, abs=1e-12)
    assert mixed.low < mixed.mean < mixed.high
    assert not mixed.sure_gain


def _study(tape: LoadedTape, figures: list[tuple[float, float, float]], **given: Any) -> Study:
    study = Study.of(tape, read_space(None), TuneSettings(**given))
    policies: list[Policy] = [NoPolicy(), AutoPolicy(), *[DecayPolicy(factor=1 - n / 1000) for n in range(1, 50)]]
    study.trials = [Trial(n, policies[n], {}, Figures(*row)) for n, row in enumerate(figures)]
    return study


@pytest.mark.parametrize(
    ("rows", "given", "number"),
    [
        ([(0.9, 0.5, 0), (0.8, 0.5, 10), (0.7, 0.5, 251)], {}, 1),  # too many actions
        ([(0.9, 0.5, 0), (0.8, 0.5, 10), (0.7, 0.5, 251)], {"max_actions": 251}, 2),
        ([(0.9, 0.5, 0), (0.8, 0.5, 10), (0.7, 0.5101, 10)], {}, 1),  # forgets too much
        ([(0.9, 0.5, 0), (0.8, 0.5, 10), (0.7, 0.5101, 10)], {"max_forgetting": 0.03}, 2),
        ([(0.9, 0.5, 0), (0.95, 0.4, 10), (math.nan, 0.5, 1)], {}, 0),  # nothing is better
        ([(0.9, 0.5, 0), (0.9, 0.5, 0), (0.9, 0.5, 0)], {}, 0),  # the simplest of equals
        ([(0.9, math.nan, 0), (0.8, math.nan, 10), (0.7, math.nan, 20)], {}, 2),  # no topic comes back
        ([(0.9, 0.5, 0), (0.8, math.nan, 10), (0.85, 0.4, 10)], {}, 2),
    ],
)
def test_what_is_chosen(
    rows: list[tuple[float, float, float]], given: dict[str, Any], number: int, tape: LoadedTape
) -> None:
    assert choose(_study(tape, rows, **given)).number == number


SURE, UNSURE = Change(-0.1, -0.2, -0.01), Change(-0.1, -0.2, 0.01)


@pytest.mark.parametrize(
    ("chosen", "change", "auto", "against", "number", "said"),
    [
        (2, SURE, SURE, SURE, 2, "surely better than doing nothing"),
        (2, SURE, UNSURE, UNSURE, 2, "surely better than doing nothing"),
        (2, SURE, SURE, UNSURE, 1, "cannot be told from auto with its defaults"),
        (2, UNSURE, SURE, SURE, 0, "cannot be told from doing nothing"),
        (1, SURE, SURE, UNSURE, 1, "auto with its defaults is the best"),
        (1, UNSURE, UNSURE, UNSURE, 0, "auto with its defaults cannot be told from doing nothing"),
        (0, UNSURE, UNSURE, UNSURE, 0, "no policy within the limits predicts better"),
    ],
)
def test_what_is_recommended_is_what_can_be_told(
    chosen: int, change: Change, auto: Change, against: Change, number: int, said: str, tape: LoadedTape
) -> None:
    study = _study(tape, [(0.9, 0.5, 0), (0.8, 0.5, 10), (0.7, 0.5, 10)])
    rows = [Reported(trial, "", trial.figures, change, []) for trial in study.trials]
    recommended, reason = _recommend(
        study, rows[chosen], Reported(study.trials[1], "auto", study.trials[1].figures, auto, []), against
    )
    assert (recommended.number, said in reason) == (number, True), reason


def test_a_single_stream_to_report_on_recommends_nothing(tape: LoadedTape) -> None:
    study = _study(tape, [(0.9, 0.5, 0), (0.8, 0.5, 10), (0.7, 0.5, 10)], split=0.99)
    assert len(study.report) == 1
    row = Reported(study.trials[2], "", study.trials[2].figures, SURE, [])
    assert _recommend(study, row, row, SURE)[0].number == 0


# The search


def test_the_first_trials_are_the_baselines_and_a_search_is_repeated_to_the_bit(
    whole: Study, tape: LoadedTape, place: Path, tmp_path: Path
) -> None:
    assert [trial.policy for trial in whole.trials[:2]] == [NoPolicy(), AutoPolicy()]
    assert len(whole.trials) == 24
    assert {trial.name for trial in whole.trials[2:8]} == {"decay", "reset_on_shift", "adaptive_gates"}
    assert whole.stopped == "all 24 trials are done"
    assert tried(searched(tape, place, tmp_path / "again.db")) == tried(whole)
    other = searched(tape, place, tmp_path / "other.db", seed=1, trials=8)
    assert other.trials[7].sampled != whole.trials[7].sampled


def test_the_figures_of_a_trial_are_those_of_its_policy_alone(whole: Study, tape: LoadedTape) -> None:
    trial = whole.trials[20]
    alone = score(tape, [trial.policy], streams=whole.tune)
    assert Figures.of(alone, 0) == trial.figures


def test_the_search_learns(tape: LoadedTape, place: Path, whole: Study) -> None:
    """What is asked for after many trials lies where the best of them do, and the batch keeps apart."""
    part = whole.space.policies["decay"]
    trials = [
        Trial(n, DecayPolicy(factor=value), {"decay.factor": value}, Figures(abs(value - 0.97), 1.0, 0.0))
        for n, value in enumerate(np.random.default_rng(0).uniform(0.9, 0.9999, 60).tolist())
    ]
    frozen = [trial.frozen(part.distributions(), 2) for trial in trials]
    asked = [sampled["decay.factor"] for sampled in suggest(part, frozen, 16, 2, seed=0)]
    at_random = [sampled["decay.factor"] for sampled in suggest(part, [], 16, 2, seed=0)]
    assert np.median(np.abs(np.array(asked) - 0.97)) < 0.3 * np.median(np.abs(np.array(at_random) - 0.97))
    assert len(set(asked)) == 16


def test_a_long_search_shows_its_sampler_the_latest_and_the_front() -> None:
    rng = np.random.default_rng(0)
    frozen = [
        Trial(n, NoPolicy(), {}, Figures(a, 1.0, b)).frozen({}, 2) for n, (a, b) in enumerate(rng.random((1000, 2)))
    ]
    shown = _shown(frozen)
    assert shown[-128:] == frozen[-128:]
    assert len(shown) < 200
    best = costs(frozen)[on_front(costs(frozen))]
    assert {tuple(row) for row in best} <= {tuple(row) for row in costs(shown)}


def test_the_streams_that_are_reported_on_cannot_change_the_search(whole: Study, place: Path, tmp_path: Path) -> None:
    """Every text of the other part is replaced: the trials are the same to the bit, and the report is not."""
    lines = [json.loads(line) for line in (place / "talk.jsonl").read_text().splitlines()]
    for number, event in enumerate(lines):
        if event["stream"] in whole.report:
            event["text"] = f"wholly other words number {number * 7919 % 101}"
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(event) + "\n" for event in lines))
    (tmp_path / "space.yaml").write_text(SPACE)
    other = searched(load(record(tmp_path / "talk.jsonl", tmp_path)), tmp_path, tmp_path / "study.db")
    assert tried(other) == tried(whole)
    assert choose(other).policy == choose(whole).policy
    one, two = judge(whole), judge(other)
    assert [row.trial.number for row in one.rows] == [row.trial.number for row in two.rows]
    assert all(a.figures.write_error != b.figures.write_error for a, b in zip(one.rows, two.rows, strict=True))


def test_what_is_reported_is_from_the_other_part(whole: Study, tape: LoadedTape, place: Path, tmp_path: Path) -> None:
    judged = judge(whole)
    write_results(whole, judged, tmp_path, tape=place / "tape", command=["ebbtide", "tune"])
    rows = table(tmp_path, "report")
    assert [row["role"] for row in rows[:2]] == ["none", "auto"]
    assert {row["trial"] for row in rows} == {0, 1, judged.chosen.number} | {trial.number for trial in whole.front}
    policies = [read_policy(row["settings"]) for row in rows]
    there = score(tape, policies, streams=whole.report)
    here = score(tape, policies, streams=whole.tune)
    assert [row["write_error"] for row in rows] == there.write_error.tolist()
    assert [row["tuned_write_error"] for row in rows] == here.write_error.tolist()
    assert [row["actions_per_1000"] for row in rows] == (1000 * there.actions / there.events).tolist()
    weights = np.array([len(tape.streams[name]) for name in there.streams])
    changes = ((there.by_stream - there.by_stream[0]) * weights).sum(axis=1) / (there.by_stream[0] * weights).sum()
    assert [row["change"] for row in rows] == pytest.approx(changes.tolist(), abs=1e-9)
    assert sum(row["recommended"] for row in rows) == 1


def read_policy(settings: str) -> Policy:
    policy: Policy = TypeAdapter(AnyPolicy).validate_json(settings)
    return policy


def test_a_front_that_does_not_move_ends_the_search(tape: LoadedTape, place: Path, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("policies: {norm_cap: {cap: {low: 1000, high: 2000}}}")  # never acts
    made = Study.of(tape, read_space(tmp_path / "space.yaml"), TuneSettings(trials=400, batch=4, patience=12))
    journal = SqliteJournal(tmp_path / "study.db")
    made.run(journal, place / "tape")
    journal.close()
    assert len(made.trials) == 16
    assert made.stopped == "the last 12 trials moved the front by less than 1 part in 1,000"


def test_a_space_without_free_settings_ends_when_each_policy_was_tried(
    tape: LoadedTape, place: Path, tmp_path: Path
) -> None:
    (tmp_path / "space.yaml").write_text("policies: {none: , auto: {}, decay: {factor: 0.99}, reset_on_shift: {}}")
    made = Study.of(tape, read_space(tmp_path / "space.yaml"), TuneSettings())
    journal = SqliteJournal(tmp_path / "study.db")
    made.run(journal, place / "tape")
    journal.close()
    assert [trial.name for trial in made.trials] == ["none", "auto", "decay", "reset_on_shift"]
    assert "no free setting" in made.stopped


def test_a_time_limit_ends_the_search_after_its_batch(tape: LoadedTape, place: Path, tmp_path: Path) -> None:
    made = searched(tape, place, tmp_path / "study.db", timeout=1e-9)
    assert len(made.trials) == 8
    assert made.stopped == "the 1e-09 seconds of --timeout were over after 8 trials"


def test_where_no_topic_comes_back_two_things_are_made_small(place: Path, tmp_path: Path) -> None:
    """Streams too short for a topic to be away for 32 events."""
    write_stream(GenerateSettings(scenario="recurring", streams=3, events=20, seed=1), tmp_path / "talk.jsonl")
    (tmp_path / "space.yaml").write_text(SPACE)
    made = searched(load(record(tmp_path / "talk.jsonl", tmp_path)), tmp_path, tmp_path / "study.db", trials=8)
    assert made.objectives == 2
    judged = judge(made)
    write_results(made, judged, tmp_path, tape=tmp_path / "tape", command=["ebbtide"])
    assert {row["recall_error"] for row in table(tmp_path)} == {None}
    resumed = searched(made.tape, tmp_path, tmp_path / "study.db", trials=10)
    assert (resumed.objectives, resumed.resumed, len(resumed.trials)) == (2, 8, 10)


def test_importance_is_found_where_it_is(whole: Study, tape: LoadedTape, place: Path) -> None:
    """Of two settings the error depends on one."""
    study = Study.of(tape, read_space(None), TuneSettings())
    study.objectives = 2
    part = study.space.policies["decay_on_shift"]
    for n, sampled in enumerate(suggest(part, [], 200, 2, seed=0)):
        policy = part.policy(sampled)
        study._take(Trial(n, policy, sampled, Figures(abs(policy.model_dump()["factor"] - 0.6), 1.0, 0.0)))
    found = importances(study)
    assert list(found) == ["decay_on_shift"]
    assert set(found["decay_on_shift"]) == {"factor", "cool_down", "on"}
    assert found["decay_on_shift"]["factor"] > 0.8
    assert sum(found["decay_on_shift"].values()) == pytest.approx(1)
    assert importances(whole) == {}, "too few trials to say anything"


def test_a_batch_is_an_eighth_of_the_trials_and_a_study_keeps_its_own(
    tape: LoadedTape, place: Path, tmp_path: Path, whole: Study
) -> None:
    space = read_space(place / "space.yaml")
    assert [Study.of(tape, space, TuneSettings(trials=trials)).batch for trials in (10, 600, 1000, 10_000, 10**6)] == [
        64,
        75,
        125,
        1250,
        2048,
    ]
    (tmp_path / "study.db").write_bytes((place / "whole.db").read_bytes())
    more = searched(tape, place, tmp_path / "study.db", batch=None, trials=32)
    assert (more.batch, more.resumed, len(more.trials)) == (8, 24, 32)
    assert tried(more)[:24] == tried(whole)


# The study's file


def test_a_study_goes_on_where_it_was(whole: Study, tape: LoadedTape, place: Path, tmp_path: Path) -> None:
    path, batches = tmp_path / "study.db", []
    first = searched(tape, place, path, told=batches.append, stop=lambda: bool(batches))
    assert (len(first.trials), first.stopped) == (8, "interrupted after 8 of 24 trials")
    second = searched(tape, place, path)
    assert second.resumed == 8
    assert tried(second) == tried(whole)
    assert second.front == whole.front
    assert second.since_progress == whole.since_progress
    done = searched(tape, place, path)
    assert (done.resumed, tried(done)) == (24, tried(whole))
    assert done.since_progress == whole.since_progress


def test_of_a_batch_that_was_not_finished_nothing_is_left(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from stream.tuning.journal import SqliteJournal\n"
        "journal = SqliteJournal(Path(sys.argv[1]))\n"
        "journal.append_logs([{'batch': 1}, {'batch': 1}]); journal.commit()\n"
        "journal.append_logs([{'batch': 2}]); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "study.db")], cwd=ROOT, check=True)
    journal = SqliteJournal(tmp_path / "study.db")
    assert journal.read_logs(0) == [{"batch": 1}] * 2
    assert journal.read_logs(1) == [{"batch": 1}]
    journal.close()


def test_optuna_reads_it(whole: Study, place: Path) -> None:
    study = open_study(place / "whole.db")
    assert [trial.number for trial in study.trials] == list(range(24))
    assert study.metric_names == ["write_error", "actions_per_1000", "recall_error"]
    assert {trial.number for trial in study.best_trials} >= {trial.number for trial in whole.front}
    assert {"decay.factor", "adaptive_gates.step"} <= {name for trial in study.trials for name in trial.params}


@pytest.mark.parametrize(
    ("given", "space", "said"),
    [
        ({"seed": 1}, SPACE, "another --split or --seed"),
        ({"split": 0.4}, SPACE, "another --split or --seed"),
        ({"batch": 4}, SPACE, "another --batch"),
        ({}, SPACE.replace("0.3", "0.2"), "another --space"),
    ],
)
def test_a_study_of_another_search_is_refused(
    given: dict[str, Any], space: str, said: str, whole: Study, tape: LoadedTape, place: Path, tmp_path: Path
) -> None:
    (tmp_path / "space.yaml").write_text(space)
    (tmp_path / "study.db").write_bytes((place / "whole.db").read_bytes())
    made = Study.of(tape, read_space(tmp_path / "space.yaml"), TuneSettings(**{"trials": 24, "batch": 8} | given))
    journal = SqliteJournal(tmp_path / "study.db")
    with pytest.raises(ConfigurationError, match=f"expected the study of this search, got one of {said}"):
        made.run(journal, place / "tape")
    journal.close()


def test_a_study_of_another_tape_is_refused(whole: Study, place: Path, tmp_path: Path) -> None:
    write_stream(GenerateSettings(scenario="recurring", streams=6, events=50, seed=4), tmp_path / "talk.jsonl")
    (tmp_path / "space.yaml").write_text(SPACE)
    (tmp_path / "study.db").write_bytes((place / "whole.db").read_bytes())
    tape = load(record(tmp_path / "talk.jsonl", tmp_path))
    with pytest.raises(ConfigurationError, match="got one of another tape"):
        searched(tape, tmp_path, tmp_path / "study.db")


def test_what_is_no_study_is_refused_and_one_process_has_it(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database at all" * 100)
    with pytest.raises(ConfigurationError, match="expected a study that ebbtide tune made, got another file"):
        SqliteJournal(tmp_path / "text.db")
    with pytest.raises(ConfigurationError, match="expected a file to keep the study in, got none: unable to open"):
        SqliteJournal(tmp_path / "nowhere" / "study.db")
    journal = SqliteJournal(tmp_path / "study.db")
    with pytest.raises(ConfigurationError, match="another process has it"):
        SqliteJournal(tmp_path / "study.db")
    journal.close()


# The command


@contextmanager
def started(warm: Warm, told: list[str], said: str) -> Iterator[tuple[Command, IO[str], IO[str]]]:
    """Start a command, and wait until it says that; yield it and what it will say, on both of its outputs."""
    pipes = [os.pipe(), os.pipe()]
    with (
        os.fdopen(pipes[0][0]) as out,
        os.fdopen(pipes[1][0]) as errors,
        os.fdopen(pipes[0][1], "w") as to_out,
        os.fdopen(pipes[1][1], "w") as to_errors,
    ):
        process = warm.start(told, to_out, to_errors)
        to_out.close()
        to_errors.close()
        try:
            assert any(said in line for line in errors), f"it ended without saying {said!r}"
            yield process, out, errors
        finally:
            process.kill()


def test_killed_it_goes_on_and_the_results_are_those_of_an_uninterrupted_run(
    warm: Warm, whole: Study, place: Path, tmp_path: Path
) -> None:
    with started(warm, command(place, tmp_path, "--jobs", 1), "8 of 24 trials") as (killed, *_):
        killed.kill()
        assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / "best.yaml").exists()
    done = warm.run(command(place, tmp_path, "--jobs", 2, "--json"))
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    told = json.loads(done.stdout)
    assert told["resumed"] in (8, 16)  # it may have finished another batch before the signal came
    rows = table(tmp_path)
    assert [read_policy(row["settings"]) for row in rows] == [trial.policy for trial in whole.trials]
    assert [row["write_error"] for row in rows] == [trial.figures.write_error for trial in whole.trials]
    assert [row["trial"] for row in rows if row["front"]] == [trial.number for trial in whole.front]


def test_interrupted_it_finishes_the_batch_and_writes_the_results(warm: Warm, place: Path, tmp_path: Path) -> None:
    """It would go on for hours otherwise."""
    endless = command(place, tmp_path, "--trials", 100_000, "--patience", 0, "--json")
    with started(warm, endless, "16 of 100,000 trials") as (stopped, out, errors):
        stopped.send_signal(signal.SIGINT)
        said, told = errors.read(), json.loads(out.read())
        assert stopped.wait() == 0, said
    assert "Stopping at the end of this batch" in said
    assert "Traceback" not in said
    assert told["trials"] % 8 == 0
    assert told["stopped"] == f"interrupted after {told['trials']:,} of 100,000 trials"
    assert len(table(tmp_path)) == told["trials"]
    assert load_policy(str(tmp_path / "best.yaml"))


def test_what_it_leaves_is_what_a_run_takes(warm: Warm, place: Path, tmp_path: Path) -> None:
    done = warm.run(command(place, tmp_path))
    assert done.returncode == 0, done.stderr
    assert f"{place / 'tape'}: tuning on 3 streams, reporting on 3 others" in done.stderr
    assert "24 of 24 trials" in done.stderr
    for said in ("none", "auto, defaults", "ended: all 24 trials are done", "Recommended: ", "3 streams: rough"):
        assert said in done.stdout
    assert {path.name for path in tmp_path.iterdir()} - {"chosen.yaml"} == {
        "best.yaml", "report.parquet", "study.db", "trials.parquet", "tuning.html",
    }  # fmt: skip
    best = tmp_path / "best.yaml"
    rows = table(tmp_path, "report")
    (recommended,) = [row for row in rows if row["recommended"]]
    assert load_policy(str(best)) == read_policy(recommended["settings"])
    header = [line for line in best.read_text().splitlines() if line.startswith("# ")]
    assert any(f"{recommended['write_error']:.4f}" in line for line in header)
    assert any("--rank 8" in line for line in header)
    assert any("tune" in line and "--trials 24" in line for line in header)
    source = ("--source", f"file:{place / 'talk.jsonl'}", "--backbone", "hashing", "--rank", 8)
    ran = warm.run(["run", *source, "--policy", best, "--metrics-port", 0])
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--trials", 1], "--trials: expected a value greater than or equal to 2, got 1"),
        (["--split", 1], "--split: expected a value less than 1, got 1.0"),
        (["--max-actions", -1], "--max-actions: expected a value greater than or equal to 0, got -1.0"),
        (["--space", "nowhere.yaml"], "nowhere.yaml: expected a YAML file that can be read"),
        (["--study", "/nowhere/study.db"], "--study /nowhere/study.db: expected a file to keep the study in"),
    ],
)
def test_a_mistake_is_one_clear_line(
    more: list[object], said: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["ebbtide", *command(place, tmp_path / "out", *more)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.startswith(f"ebbtide: {said}")
    assert err.count("\n") == 1


def test_one_stream_alone_says_what_to_do(tmp_path: Path) -> None:
    write_stream(GenerateSettings(scenario="recurring", streams=1, events=20), tmp_path / "talk.jsonl")
    with pytest.raises(ConfigurationError, match=r"at least 2 streams.*got 1; record more streams, or give"):
        Study.of(load(record(tmp_path / "talk.jsonl", tmp_path)), read_space(None), TuneSettings())


# The page


def test_the_page_asks_for_nothing_and_no_name_gets_out_of_its_place() -> None:
    name = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    point = Point(name, name, "none", 0.5, None, 1.0)
    page = TuningPage(name, name, name, name, {name: name}, [point], 0, [Row(point, 0, None, None, 0.5, [None])])
    html = tuning_page(page)
    ours = re.sub(r"<script>/\*\*\n\* plotly\.js.*?</script>", "", html, flags=re.DOTALL)
    assert len(ours) < 40_000, "plotly.js is one script of its own"
    assert "<img" not in ours
    assert ours.count("<script") == 2
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", ours)
    assert "default-src 'none'" in ours
    (data,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', ours, re.DOTALL)
    assert json.loads(data)["title"] == name


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_opens_offline_and_draws(browser: Any, whole: Study, tmp_path: Path, width: int) -> None:
    wrong: list[str] = []
    write_results(whole, judge(whole), tmp_path, tape=tmp_path, command=["ebbtide", "tune"])
    context = browser.new_context(offline=True, viewport={"width": width, "height": 900})
    page = context.new_page()
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto((tmp_path / "tuning.html").as_uri())
    page.wait_for_selector(".js-plotly-plot .scatterlayer path.point", state="attached")
    assert page.locator(".js-plotly-plot").count() >= 3
    assert page.locator("path.js-line").count() >= 2
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    context.close()
    assert wrong == []


def test_yaml_of_the_space_and_of_a_policy_are_read_alike(tmp_path: Path) -> None:
    """`on` is a word in both."""
    (tmp_path / "space.yaml").write_text(SPACE)
    assert read_yaml(tmp_path / "space.yaml")["policies"]["reset_on_shift"]["on"]["choices"][0] == ["topic_shift"]
