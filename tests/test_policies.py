"""What each policy alone promises; `test_checks.py` runs the check suite over all of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from memory.errors import ConfigurationError
from memory.lane_state import Columns
from monitors import policies
from monitors.observations import SIGNALS, Observations
from monitors.policies import (
    ALARMS,
    POLICIES,
    ActionGuard,
    ActionKind,
    Actions,
    AdaptiveGatesPolicy,
    ArchivePolicy,
    AutoPolicy,
    BankObservations,
    DecayOnShiftPolicy,
    DecayPolicy,
    FreezeOnAnomalyPolicy,
    NoPolicy,
    NormCapPolicy,
    Policy,
    ResetOnShiftPolicy,
    ScheduledResetPolicy,
    TopicBelief,
    load_policy,
    policy_to_yaml,
    read_yaml,
)
from monitors.policies.guard import NEVER


def test_names_are_those_that_settings_use() -> None:
    assert {kind.model_fields["policy"].default: kind for kind in POLICIES.values()} == POLICIES


def test_public_names_exist_and_are_all_listed() -> None:
    public = {
        name
        for name, thing in vars(policies).items()
        if not name.startswith("_") and getattr(thing, "__module__", "").startswith("monitors.policies")
    }
    assert public <= set(policies.__all__)
    assert all(hasattr(policies, name) for name in policies.__all__)


class Eager(ActionGuard):
    """Wants what it is told to."""

    def decide(self, lanes: Columns, observations: Observations) -> Actions:
        raise NotImplementedError


def admitted(guard: ActionGuard, wanted: list[bool]) -> list[int]:
    """Return the events of one lane at which it may act."""
    lanes = guard.new_lanes()
    lanes.resize(1)
    return [event for event, one in enumerate(wanted) if guard.admit(lanes, np.array([0]), np.array([one]))[0]]


def admitted_loop(guard: ActionGuard, wanted: list[bool]) -> list[int]:
    """The rule as its docstring states it, from the list of all actions taken so far."""
    taken: list[int] = []
    for event, one in enumerate(wanted):
        cooling = any(event - past <= guard.cool_down for past in taken)
        spent = sum(past // 1_000 == event // 1_000 for past in taken)
        if one and not cooling and (guard.budget is None or spent < guard.budget):
            taken.append(event)
    return taken


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    cool_down=st.sampled_from([0, 1, 2, 8, 150, 1_200]),
    budget=st.sampled_from([None, 0, 1, 2, 7, 300]),
    rate=st.sampled_from([0.002, 0.05, 0.5, 1.0]),
    seed=st.integers(0, 5),
)
def test_guard_admits_what_its_rule_says(cool_down: int, budget: int | None, rate: float, seed: int) -> None:
    guard = Eager(cool_down=cool_down, budget=budget)
    wanted = (np.random.default_rng(seed).random(2_300) < rate).tolist()
    assert admitted(guard, wanted) == admitted_loop(guard, wanted)


def test_cool_down_is_counted_in_events_after_the_action() -> None:
    assert admitted(Eager(cool_down=3), [True] * 10) == [0, 4, 8]
    assert admitted(Eager(cool_down=0), [True] * 4) == [0, 1, 2, 3]


def test_budget_is_for_each_thousand_events() -> None:
    assert admitted(Eager(cool_down=0, budget=2), [True] * 2_500) == [0, 1, 1_000, 1_001, 2_000, 2_001]


def test_an_action_that_was_refused_costs_nothing() -> None:
    wanted = [True, True, True, False, True, False, False, False, True]
    assert admitted(Eager(cool_down=3, budget=2), wanted) == [0, 4]
    assert admitted(Eager(cool_down=3, budget=3), wanted) == [0, 4, 8]


def test_lanes_count_their_own_events() -> None:
    # Lane 1 comes to every second round only, so that its cool-down ends later.
    guard = Eager(cool_down=2)
    lanes = guard.new_lanes()
    lanes.resize(2)
    taken: list[tuple[int, int]] = []
    for event in range(13):
        slots = np.array([0, 1] if event % 2 == 0 else [0])
        allowed = guard.admit(lanes, slots, np.ones(len(slots), dtype=np.bool_))
        taken += [(event, int(slot)) for slot in slots[allowed]]
    assert [event for event, slot in taken if slot == 0] == [0, 3, 6, 9, 12]
    assert [event for event, slot in taken if slot == 1] == [0, 6, 12]


def test_a_fresh_lane_is_past_any_cool_down() -> None:
    assert admitted(Eager(cool_down=10**15), [True, True]) == [0]
    lanes = Eager().new_lanes()
    lanes.resize(1)
    assert lanes["acted_at"].tolist() == [NEVER]


# The policies


def observe(n: int, **alarms: list[int]) -> Observations:
    """Return observations of lanes 0 to n − 1, in which the alarm fires on the lanes named."""
    flags = {name: np.isin(np.arange(n), lanes) for name, lanes in alarms.items()}
    return Observations(np.arange(n), {}, flags)


def decide(policy: Policy, *rounds: Observations) -> Actions:
    """Return what the policy decides in the last of the rounds."""
    lanes = policy.new_lanes()
    lanes.resize(8)
    for observations in rounds:
        actions = policy.decide(lanes, observations)
    return actions


def told(actions: Actions) -> list[tuple[str, float, str]]:
    kinds = [ActionKind(kind).label for kind in actions.kind]
    return list(zip(kinds, actions.factor.tolist(), actions.reason, strict=True))


KEEP = ("keep", 1.0, "")


def test_none_keeps() -> None:
    assert told(decide(NoPolicy(), observe(2, topic_shift=[0, 1]))) == [KEEP, KEEP]


def test_decay_decays_every_lane_at_every_segment() -> None:
    for rounds in (1, 2, 5):
        actions = decide(DecayPolicy(factor=0.97), *[observe(2)] * rounds)
        assert told(actions) == [("decay", 0.97, "constant")] * 2


def test_decay_by_one_is_keeping() -> None:
    assert told(decide(DecayPolicy(factor=1.0), observe(2))) == [KEEP, KEEP]


def test_reset_on_shift_resets_the_lanes_that_shift() -> None:
    assert told(decide(ResetOnShiftPolicy(), observe(3, topic_shift=[1]))) == [
        KEEP,
        ("reset", 0.0, "topic_shift"),
        KEEP,
    ]


def test_decay_on_shift_decays_the_lanes_that_shift() -> None:
    actions = decide(DecayOnShiftPolicy(factor=0.6), observe(3, topic_shift=[0, 2]))
    assert told(actions) == [("decay", 0.6, "topic_shift"), KEEP, ("decay", 0.6, "topic_shift")]
    assert DecayOnShiftPolicy().factor == 0.3


def test_any_of_the_alarms_will_do_and_the_first_named_is_the_reason() -> None:
    policy = ResetOnShiftPolicy(on=("retrieval_error", "topic_shift"))
    actions = decide(policy, observe(4, topic_shift=[0, 2], retrieval_error=[1, 2], state_norm=[3]))
    assert [reason for _, _, reason in told(actions)] == ["topic_shift", "retrieval_error", "retrieval_error", ""]
    assert told(actions)[3] == KEEP


def test_an_alarm_that_no_detector_raises_never_fires() -> None:
    policy = ResetOnShiftPolicy(on=("write_error",))
    assert told(decide(policy, observe(1, topic_shift=[0]))) == [KEEP]
    assert told(decide(policy, observe(1))) == [KEEP]


def test_a_lane_that_was_acted_on_cools_down_alone() -> None:
    actions = decide(ResetOnShiftPolicy(cool_down=1), observe(2, topic_shift=[0]), observe(2, topic_shift=[0, 1]))
    assert told(actions) == [KEEP, ("reset", 0.0, "topic_shift")]


def test_constant_decay_knows_no_budget() -> None:
    assert DecayPolicy.model_fields.keys() == {"policy", "factor"}
    with pytest.raises(ValidationError, match="extra"):
        DecayPolicy.model_validate({"budget": 3})


def test_alarms_are_the_signals_by_name_and_non_finite() -> None:
    expected = (*("topic_shift" if name == "topic_shift_score" else name for name in SIGNALS), "non_finite")
    assert expected == ALARMS
    assert {"state_norm", "topic_shift", "non_finite"} <= set(ALARMS)
    actions = decide(ResetOnShiftPolicy(on=("non_finite",)), observe(2, non_finite=[1]))
    assert told(actions) == [KEEP, ("reset", 0.0, "non_finite")]


def test_reset_and_decay_differ_in_nothing_but_the_effect() -> None:
    rng = np.random.default_rng(50)
    rounds = [observe(8, topic_shift=np.flatnonzero(rng.random(8) < 0.2).tolist()) for _ in range(200)]
    kinds = Counter[str]()
    reset, decay = ResetOnShiftPolicy(budget=9), DecayOnShiftPolicy(budget=9)
    for end in range(1, 200, 20):
        one, other = decide(reset, *rounds[:end]), decide(decay, *rounds[:end])
        assert one.reason == other.reason
        kinds.update(kind for kind, _, _ in told(one) + told(other))
    assert kinds["reset"] == kinds["decay"] > 0


# Policies as files


@pytest.mark.parametrize(
    "policy",
    [
        *[kind() for kind in POLICIES.values()],
        DecayPolicy(factor=1 / 3),
        ResetOnShiftPolicy(on=("write_error", "topic_shift"), cool_down=0, budget=0),
        DecayOnShiftPolicy(factor=1e-7, cool_down=123_456, budget=17),
    ],
)
def test_policy_survives_its_file(policy: Policy, tmp_path: Path) -> None:
    path = tmp_path / "tuned.yaml"
    path.write_text(policy_to_yaml(policy), encoding="utf-8")
    again = load_policy(str(path))
    assert (type(again), again) == (type(policy), policy)
    assert type(policy).model_validate(yaml.safe_load(policy_to_yaml(policy))) == policy


def test_known_names_give_the_defaults() -> None:
    assert [load_policy(name) for name in POLICIES] == [kind() for kind in POLICIES.values()]


def test_the_key_on_is_a_word() -> None:
    # PyYAML's own loader reads this key as `true`.
    assert yaml.safe_load("on: [topic_shift]") == {True: ["topic_shift"]}


def write(folder: Path, text: str | bytes) -> str:
    path = folder / "mine.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def test_a_file_written_by_hand(tmp_path: Path) -> None:
    text = "policy: decay_on_shift  # weaken\non: [topic_shift, retrieval_error]\nfactor: 1e-1\nbudget: null\n"
    expected = DecayOnShiftPolicy(on=("topic_shift", "retrieval_error"), factor=0.1)
    assert load_policy(write(tmp_path, text)) == expected


def test_yaml_values_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    text = "{on: off, yes: no, a: true, b: False, c: 3, d: 0.5, e: null, f: ~, g: 'true'}"
    expected = {"on": "off", "yes": "no", "a": True, "b": False, "c": 3, "d": 0.5, "e": None, "f": None, "g": "true"}
    assert read_yaml(Path(write(tmp_path, text))) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("policy: reset_on_shit\n", "got policy: 'reset_on_shit'; did you mean 'reset_on_shift'"),
        (
            "policy: [decay]\n",
            "decay_on_shift, freeze_on_anomaly, none, norm_cap, reset_on_shift, scheduled_reset, got policy: ['decay']",
        ),
        ("polcy: none\n", "got no key 'policy' among ['polcy']"),
        ("policy: reset_on_shift\ncooldown: 3\n", "no key 'cooldown', given 3; did you mean 'cool_down'?"),
        ("policy: reset_on_shift\ncool_down: -1\n", "reset_on_shift.cool_down: input should be greater than or equal"),
        ("policy: reset_on_shift\ncool_down: 2.5\n", "reset_on_shift.cool_down: input should be a valid integer"),
        ("policy: decay\nfactor: 1.5\n", "decay.factor: input should be less than or equal to 1, got 1.5"),
        ("policy: decay\nfactor: .nan\n", "decay.factor: input should be"),
        ("policy: decay_on_shift\nfactor: 0\n", "decay_on_shift.factor: input should be greater than 0, got 0"),
        ("policy: reset_on_shift\non: [topicshift]\n", "got 'topicshift'; did you mean 'topic_shift'?"),
        ("policy: reset_on_shift\non: []\n", "reset_on_shift.on: tuple should have at least 1 item"),
        ("policy: none\npolicy: decay\n", "line 2: expected YAML, got a mistake: key 'policy' is given twice"),
        ("policy: [\n", "line 2: expected YAML, got a mistake:"),
        ("policy: !!python/name:os.system x\n", "line 1: expected YAML, got a mistake: could not determine"),
        ("", "expected a policy as keys and values, got None"),
        ("reset_on_shift", "expected a policy as keys and values, got 'reset_on_shift'"),
        (b"policy: \xff\n", "expected YAML in UTF-8, got byte 8"),
        (b"policy: \x00\n", "expected YAML, got a mistake:"),
    ],
)
def test_a_bad_file_is_refused_by_name_key_and_likely_slip(text: str | bytes, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigurationError) as caught:
        load_policy(path)
    assert str(caught.value).startswith(f"{path}:")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Decay", "got 'Decay'; did you mean 'decay'"),
        ("archive_everything", "got 'archive_everything'; there is no such file"),
        ("policies/mine.yaml", "got 'policies/mine.yaml'; there is no such file"),
        ("", "got ''"),
        ("x" * 10_000, "got 'xxx"),
        ("a\0b", "got 'a"),
    ],
)
def test_what_is_neither_a_policy_nor_a_file_is_refused(
    name: str, message: str, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError) as caught:
        load_policy(name)
    assert f"expected a policy ({', '.join(POLICIES)}) or a YAML file" in str(caught.value)
    assert message in str(caught.value)


def test_a_folder_is_no_policy(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected a YAML file that can be read, got Is a directory"):
        load_policy(str(tmp_path))


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        DecayPolicy().factor = 0.5  # type: ignore[misc]


# The simple ones


def signals(policy: Policy, alarms: list[bool], name: str = "state_norm") -> list[Actions]:
    """Return what a policy does to one lane that alarms at these events."""
    lanes = policy.new_lanes()
    lanes.resize(1)
    lane = np.array([0])
    return [policy.decide(lanes, Observations(lane, {}, {name: np.array([alarm])})) for alarm in alarms]


def test_a_freeze_holds_for_its_events_and_an_alarm_in_it_does_not_prolong_it() -> None:
    policy = FreezeOnAnomalyPolicy(hold=3, cool_down=8)
    done = signals(policy, [False, True, True, False, False, False])
    assert [actions.kind[0] == ActionKind.FREEZE for actions in done] == [False, True, True, True, False, False]
    assert [None if actions.gain is None else actions.gain.tolist() for actions in done] == [
        None,
        *[[0.0]] * 3,
        None,
        None,
    ]
    assert all(actions.factor.tolist() == [1.0] for actions in done)


def test_a_norm_is_brought_down_to_its_share_of_the_cap() -> None:
    policy = NormCapPolicy(cap=8, to=0.5, cool_down=0)
    lanes = policy.new_lanes()
    lanes.resize(4)
    norms = np.array([8.0, 16.0, np.nan, np.inf])
    actions = policy.decide(lanes, Observations(np.arange(4), {"state_norm": norms}))
    assert actions.factor.tolist() == [1.0, 0.25, 1.0, 0.0]
    assert actions.kind.tolist() == [ActionKind.KEEP, ActionKind.DECAY, ActionKind.KEEP, ActionKind.RESET]


def test_a_schedule_is_kept_within_its_budget() -> None:
    policy = ScheduledResetPolicy(every=100, budget=4)
    lanes = policy.new_lanes()
    lanes.resize(1)
    kinds = [policy.decide(lanes, Observations(np.array([0]), {})).kind[0] for _ in range(1_301)]
    assert np.flatnonzero(kinds).tolist() == [100, 200, 300, 400, 1000, 1100, 1200, 1300]


def test_gains_stay_within_their_bounds_and_learn_nothing_from_nan() -> None:
    policy = AdaptiveGatesPolicy(heads=1, rank=2, step=0.5, least=0.5, most=1.2)
    lanes = policy.new_lanes()
    lanes.resize(1)
    key, nan = np.ones((1, 1, 2), np.float32), np.full((1, 1, 2), np.nan, np.float32)

    def gain(miss: npt.NDArray[np.float32]) -> float:
        actions = policy.decide(lanes, BankObservations(np.array([0]), {}, miss=miss, keys=key))
        assert actions.gain is not None
        return float(actions.gain[0])

    assert [gain(key), gain(key), gain(key)] == [1.0, 1.2, 1.2]
    assert gain(nan) == 1.2
    assert [gain(-key) < 1.2, gain(key) < 1.2, gain(-key), gain(key)] == [True, True, 0.5, 0.5]


# The belief


@given(
    st.lists(st.tuples(st.floats(0, 50), st.floats(-1, 1)), min_size=3, max_size=3),
    st.lists(st.floats(0, 1), min_size=4, max_size=4).filter(lambda row: row[0] > 0.01),
)
def test_a_belief_stays_one(evidence: list[tuple[float, float]], weight: list[float]) -> None:
    before = np.array([weight]) / sum(weight)
    errors, likeness = (np.array([column]) for column in zip(*evidence, strict=True))
    after, _ = TopicBelief().step(before, np.array([[True, False, True]]), errors, likeness)
    assert np.isfinite(after).all()
    assert (after >= 0).all()
    assert abs(after.sum() - 1) < 1e-12
    assert after[0, 1] == 0  # a way that holds nothing is not believed in


def test_what_was_never_told_speaks_against_a_topic_by_its_bound_at_most() -> None:
    belief = TopicBelief(trust=0.7, passing=0.0)
    held, likeness = np.array([[True, True]]), np.full((1, 2), np.nan)
    weight = np.array([[1.0, 0.0, 0.0]])
    odds = [
        float(after[0, 0] / after[0, 1])
        for after, _ in (belief.step(weight, held, np.array([[error, 1.0]]), likeness) for error in (1.0, 1e6))
    ]
    assert odds[1] / odds[0] == pytest.approx(0.3, rel=1e-9)


# Auto


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(0, 3), min_size=3, max_size=3), min_size=1, max_size=200), st.integers(0, 5))
def test_auto_never_loses_more_than_its_bound(rows: list[list[float]], copies: int) -> None:
    """Whatever the states predict, and whoever made that up: the summed loss over `none` is bounded."""
    policy = AutoPolicy(most=1, enter=1.0, leave=2.0, budget=None)
    lanes = policy.new_lanes()
    lanes.resize(1)
    excess, total = 0.0, 0
    for filed, newcomer, untouched in rows * (1 + copies):
        leads = bool(lanes["leads"][0])
        errors = np.array([[filed, newcomer, filed, untouched]])
        seen = BankObservations(np.array([0]), {}, {}, errors, np.full((1, 4), np.nan), np.ones((1, 4), np.bool_))
        policy.decide(lanes, seen)
        excess += min(filed, 1.5) - min(untouched, 1.5) if leads else 0.0
        total += 1
    assert excess <= (2.0 + 1.5) * (1 + max(0.0, np.log2(1.5 * total / 1.0)))


def test_auto_leaves_alone_what_no_policy_improves() -> None:
    policy = AutoPolicy(most=2)
    lanes = policy.new_lanes()
    lanes.resize(1)
    random = np.random.default_rng(0)
    for error in random.random(2_000).tolist():
        errors = np.array([[error, np.nan, 1.0, np.nan, error]])
        seen = BankObservations(np.array([0]), {}, {}, errors, np.full((1, 5), np.nan), ~np.isnan(errors))
        actions = policy.decide(lanes, seen)
        assert actions.kind[0] == ActionKind.KEEP
        assert actions.moves is not None
        assert actions.moves.live[0] == policy.untouched


def test_auto_takes_and_gives_up_the_lead_at_its_thresholds_and_is_slower_to_trust_again() -> None:
    """Over 1 ahead to lead, over 2 behind to stop, over 2 ahead the next time; the sums are exact in halves."""
    policy = AutoPolicy(most=1, enter=1.0, leave=2.0)
    lanes = policy.new_lanes()
    lanes.resize(1)

    def event(filed: float, untouched: float) -> tuple[str, int]:
        errors = np.array([[filed, np.nan, np.nan, untouched]])
        seen = BankObservations(np.array([0]), {}, {}, errors, np.full((1, 4), np.nan), ~np.isnan(errors))
        actions = policy.decide(lanes, seen)
        assert actions.moves is not None
        return actions.reason[0], int(actions.moves.live[0])

    untouched = policy.untouched
    assert [event(0.5, 1.0) for _ in range(3)] == [("", untouched), ("", untouched), ("archive leads", 0)]
    assert [event(1.0, 0.5) for _ in range(5)] == [("", 0)] * 4 + [("archive lags", untouched)]
    assert [event(0.5, 1.0) for _ in range(5)] == [("", untouched)] * 4 + [("archive leads", 0)]
    assert [event(9.0, 0.0), event(9.0, 0.0)] == [("", 0), ("archive lags", untouched)]  # 9 counts as 1.5


UNSURE = ArchivePolicy(most=4, certainty=0.5, belief=TopicBelief(hazard=0.2, novelty=0.3, likeness_floor=0.5))
"""An archive whose beliefs are hardly ever whole: their sums have last bits to lose."""


@pytest.mark.parametrize("policy", [UNSURE, AutoPolicy()], ids=lambda policy: policy.policy)
def test_what_a_lane_does_depends_on_no_other_lane(policy: ArchivePolicy | AutoPolicy) -> None:
    """Bit for bit, whichever lanes stand beside it in a round, and whatever those do."""
    dice, lanes, ways = np.random.default_rng(5), 12, policy.ways
    together, alone = policy.new_lanes(), policy.new_lanes()
    together.resize(lanes)
    alone.resize(lanes)
    kinds = []
    for _ in range(150):
        held = dice.random((lanes, ways)) < 0.7
        held[:, 0] = True
        errors = np.where(held, dice.uniform(0.5, 1.1, (lanes, ways)), np.nan)
        likeness = np.where(held, dice.uniform(-0.5, 0.9, (lanes, ways)), np.nan)
        some = np.flatnonzero(dice.random(lanes) < 0.8)
        for chosen, state in [(some, together), *((some[row : row + 1], alone) for row in range(len(some)))]:
            seen = BankObservations(chosen, {}, {}, errors[chosen], likeness[chosen], held[chosen])
            actions = policy.decide(state, seen)
            kinds += actions.kind.tolist()
    everyone = np.arange(lanes)
    assert together.dump(everyone) == alone.dump(everyone)
    if policy.policy == "archive":
        assert kinds.count(ActionKind.RESET) > 20, "no lane filed anything: nothing was compared"
