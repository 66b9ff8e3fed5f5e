"""The measures of `benchmarks.retention` against cases whose answers are known, and its rule of choice."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from benchmarks import retention_measures
from benchmarks.retention import (
    MOST_MICROSECONDS,
    PRIVATE,
    Encoded,
    Setting,
    _summary,
    choose,
    encode,
    measure,
    read_texts,
)
from benchmarks.retention_measures import AGES, CHOICES, KINDS, MEASURES, Pairs, Tally, ask, follow, lift, questions
from memory.projections import Projected, Projections
from memory.scan_forms import scan
from stream.assembly import DEFAULTS
from stream.generate import GenerateSettings, generate, write_stream

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "retention.json"


def projecting(beta: float, lam: float | None, turn: Tensor | None = None) -> Any:
    """Rows are keys; values are the keys turned by `turn`, or the next basis vector."""

    def project(rows: Tensor) -> Projected:
        k = rows[:, None]
        v = k.roll(1, dims=-1) if turn is None else k @ turn.T
        gates = k.new_full((len(rows), 1, 1), beta)
        return Projected(k, k, v, gates, None if lam is None else torch.full_like(gates, lam))

    return project


def conversations(rows: Tensor) -> list[Pairs]:
    """Two conversations, a row a message."""
    return [Pairs(half, np.arange(len(half))) for half in rows.chunk(2)]


@pytest.mark.parametrize("beta", [0.05, 0.18, 0.5])
@pytest.mark.parametrize(
    ("mode", "lam"),
    [("plain", None), ("coupled", None), ("decay_outside", None), ("gated", 0.9), ("decay_outside", 0.9)],
)
def test_orthonormal_keys_fade_as_the_closed_form_says(mode: str, lam: float | None, beta: float) -> None:
    """A pair written once reads β · keep^age · v: the error is one minus that, the direction is kept."""
    first = torch.eye(32)
    pairs = [Pairs(first, np.arange(32)), Pairs(-first[24:], np.arange(8))]  # 24 are written, the others never
    heads = {mode: [[projecting(beta, lam)]]}
    tally = follow(0, pairs[0], {"message": pairs}, heads, every=1, warm_up=24, choices=8)[mode, "message"]
    asked = questions(pairs, 0, 24, 8)[0]
    assert asked is not None
    age = 23 - pairs[0].message[asked.candidates[asked.choices[:, 0]]]
    keep = {"plain": 1.0}.get(mode, lam if lam is not None else 1 - beta)
    error = 1 - beta * keep ** age.astype(np.float64)
    mean = tally.mean()[..., 0, 0]  # [kind, measure, age bucket]
    for bucket, (low, high) in enumerate(AGES[:4]):
        inside = (low <= age) & (age <= high)
        assert inside.any()
        assert mean[0, :, bucket] == pytest.approx([1.0, error[inside].mean(), 1.0], abs=1e-5)
        for control in (1, 2):  # nothing was written along these keys
            assert mean[control, :, bucket] == pytest.approx([0.0, 1.0, 0.0], abs=1e-6)
    assert np.isnan(mean[:, :, 4:]).all()  # no message is that old


@pytest.mark.parametrize(("mode", "error"), [("plain", 0.0), ("coupled", 0.5), ("decay_outside", 1 - 1 / (2 - 0.18))])
def test_a_pair_written_again_and_again_ends_at_its_fixed_point(mode: str, error: float) -> None:
    rows = torch.eye(4)[:1].repeat(400, 1)
    out = projecting(0.18, None)(rows)
    states, lane = torch.zeros(1, 1, 4, 4), torch.tensor([0])
    scan(states, lane, lane, torch.tensor([0, 400]), out.k, out.k, out.v, out.beta, mode=mode)
    answer = ask(states[None, 0], out.k[:1], torch.cat([out.v[:1], out.k[:1]]), torch.tensor([[0, 1]]))
    assert answer.flatten().tolist() == pytest.approx([1.0, error, 1.0], abs=1e-5)


def random_rows(count: int, rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.nn.functional.normalize(torch.randn(count, rank, generator=generator), dim=-1)


def test_a_linear_map_shows_no_lift() -> None:
    """Values are a turn of their keys: the state learns the turn, and answers for every pair, written or not."""
    pairs = conversations(random_rows(800, 8))
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))[0]
    tally = follow(0, pairs[0], {"message": pairs}, {"plain": [[projecting(1.0, None, turn)]]}, every=50, warm_up=200)[
        "plain", "message"
    ]
    mean = tally.mean()[..., 0, 0]
    assert mean[:, 0, :5].min() > 0.999  # the cosine alone looks like a perfect memory
    assert np.abs(lift(mean)[:, :5]).max() < 1e-3


def test_values_that_do_not_follow_from_their_keys_show_lift() -> None:
    """The control of the test above: the same keys, values drawn by themselves."""
    rows = random_rows(800, 16)
    pairs = conversations(torch.cat([rows, random_rows(801, 16)[1:].flip(0)], dim=1))

    def project(both: Tensor) -> Projected:
        k, v = both[:, None, :16], both[:, None, 16:]
        return Projected(k, k, v, k.new_full((len(both), 1, 1), 1.0), None)

    tally = follow(0, pairs[0], {"message": pairs}, {"plain": [[project]]}, every=10, warm_up=100)["plain", "message"]
    above = lift(tally.mean()[..., 0, 0])
    assert above[2, 0] > 0.95  # the last one written, hit
    assert above[0, 0] > 0.9
    assert abs(above[2, 4]) < 0.05  # 64 messages are far too many for rank 16


def test_a_state_of_zeros_remembers_nothing() -> None:
    values = random_rows(CHOICES, 8)[:, None]
    choices = torch.stack([torch.arange(CHOICES).roll(-i) for i in range(CHOICES)])
    answer = ask(torch.zeros(1, 1, 8, 8), values, values, choices)
    assert answer.mean(dim=1).flatten().tolist() == pytest.approx([0.0, 1.0, 0.0], abs=1e-6)


def test_a_faint_read_still_has_a_direction() -> None:
    values = torch.eye(4)[:, None]
    answer = ask(1e-30 * torch.eye(4)[None, None], values[:1], values, torch.tensor([[0, 1, 2, 3]]))
    assert answer.flatten().tolist() == pytest.approx([1.0, 1.0, 1.0])


def test_a_state_of_noise_hits_by_chance() -> None:
    values = random_rows(512, 16)[:, None]
    noise = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    rng = np.random.default_rng(0)
    others = np.argsort(rng.random((512, 512)) - 2 * np.eye(512), axis=1)[:, :CHOICES]  # its own first
    rate = float(ask(noise, values, values, torch.from_numpy(others))[2].mean())
    assert 0.5 / CHOICES < rate < 2 / CHOICES


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=30), st.data())
def test_past_and_later_pairs_are_what_they_say(drawn: list[tuple[int, bool]], data: st.DataObject) -> None:
    """Against the definition, pair by pair: which were written, when last, and which never."""
    texts = [text for text, _ in drawn]
    message = np.cumsum([0, *(begins for _, begins in drawn[1:])]).astype(np.int64)
    pairs = Pairs(torch.tensor(texts, dtype=torch.float32)[:, None], message)
    messages = data.draw(st.integers(0, int(message[-1]) + 1))
    written = [text for text, said in zip(texts, message, strict=True) if said < messages]
    past = pairs.past(messages)
    assert len(set(message[past].tolist())) == len(past)  # one of each message
    for index in past.tolist():
        assert message[index] < messages
        again = [said for text, said in zip(texts, message, strict=True) if text == texts[index] and said < messages]
        assert max(again) == message[index]
    last = {
        text: max(said for other, said in zip(texts, message, strict=True) if other == text and said < messages)
        for text in written
    }
    assert set(message[past].tolist()) == {int(said) for said in last.values()}  # and of each message that has one
    assert {texts[i] for i in pairs.later(messages)} == set(texts) - set(written)
    assert len(pairs.later(messages)) == len(set(texts) - set(written))
    other = Pairs(torch.arange(8.0)[:, None], np.arange(8))
    assert {int(other.rows[i, 0]) for i in other.unlike(pairs, messages)} == set(range(8)) - set(written)


def test_the_running_mean_is_that_of_the_messages_before() -> None:
    pairs = Pairs(torch.tensor([[4.0], [2.0], [6.0], [4.0]]), np.arange(4))
    centred = pairs.less_running_mean()
    assert centred.rows.flatten().tolist() == [4.0, -2.0, 3.0, 0.0]
    assert centred.past(4).tolist() == pairs.past(4).tolist() == [1, 2, 3]  # still the same pairs
    assert pairs.rows.flatten().tolist() == [4.0, 2.0, 6.0, 4.0]


def generated_conversations() -> Encoded:
    """Four short conversations under `hashing`."""
    texts: dict[str, list[str]] = {}
    for event, _ in generate(GenerateSettings(scenario="recurring", streams=4, events=190, seed=2)):
        texts.setdefault(event["stream"], []).append(event["text"])
    return encode("hashing", list(texts.values()), None)


def setting(**changes: Any) -> Setting:
    rule: dict[str, Any] = {"backbone": "hashing", "write": "segment", "rank": 8, "mode": "plain", "beta": 0.5}
    return Setting(**(rule | changes))


@pytest.mark.parametrize(
    "changes",
    [{}, {"mode": "gated", "beta": 0.3, "lam": 0.9}, {"gain": 30.0}, {"mean": "elsewhere"}, {"write": "token"}],
    ids=str,
)
def test_a_line_is_the_consumers_own_projections_summed_up(changes: dict[str, Any]) -> None:
    """Every setting reaches the projections; the second and fourth conversation are reported on; medians over seeds."""
    encoded, chosen = generated_conversations(), setting(**changes)
    writes = encoded.tokens if chosen.write == "token" else encoded.messages
    expected = []
    for number in (1, 3):
        mean = None
        if chosen.mean == "elsewhere":
            mean = torch.cat([pairs.rows for other, pairs in enumerate(writes) if other != number]).mean(dim=0).numpy()
        seeds: list[Any] = [
            Projections(256, 1, 8, beta=chosen.beta, gain=chosen.gain, lam=chosen.lam, mean=mean, seed=seed)
            for seed in range(3)
        ]
        heads = {chosen.mode: [seeds]}
        tallies = follow(number, writes[number], {"message": encoded.messages}, heads, every=20, warm_up=100)
        expected.append(tallies[chosen.mode, "message"].mean()[0, :, :5, 0])
    found = measure(encoded, [chosen], seeds=3, every=20)[0]
    for measured, numbers in zip(MEASURES, np.median(np.mean(expected, axis=0), axis=-1), strict=True):
        assert found["reported_on"][measured][:5] == pytest.approx(numbers, abs=6e-4)
    assert found["chosen_on"]["hit"][:5] != found["reported_on"]["hit"][:5]


def test_variants_differ_from_the_plain_setting_in_what_they_name() -> None:
    encoded = generated_conversations()

    def found(**changes: Any) -> Any:
        return measure(encoded, [setting(**changes)], seeds=2, every=30)[0]["reported_on"]

    usual = found()
    assert found(mean="none") == usual  # hashing ships no mean
    assert found(gain=1e-6)["hit"] == usual["hit"]
    changed = [found(mean=mean) for mean in ("generated", "elsewhere", "running")] + [found(gain=60.0)]
    numbers = [json.dumps(each) for each in [usual, *changed, found(values="raw")]]
    assert len(set(numbers)) == len(numbers)


def test_the_score_is_the_share_of_what_the_control_leaves_open() -> None:
    """Two conversations, one seed: hit rates .8 and .6 against .6, then .99 against .97, where 0.1 stands for 0.03."""
    means = np.zeros((2, 3, 3, len(AGES), 1))
    means[:, 0, 2] = np.array([[0.8, 0.8, 0.8, 0.6, 0.8, 0.8], [0.99] * 6])[..., None]
    means[:, 1, 2] = np.array([0.6, 0.97])[:, None, None]
    means[:, 2, 2] = 0.5
    halves = _summary(means)
    assert halves["chosen_on"]["share"] == [0.5, 0.5, 0.5, 0.0, 0.5, 0.5]
    assert halves["chosen_on"]["score"] == round(1 / 3, 3)
    assert halves["chosen_on"]["score_by_lift"] == round(0.4 / 3, 3)
    assert halves["chosen_on"]["hit_control"] == [0.6] * 6
    assert halves["reported_on"]["score"] == pytest.approx(0.2)


def test_the_examples_hold() -> None:
    failed, tried = doctest.testmod(retention_measures)
    assert tried > 0
    assert not failed


def test_asking_in_between_changes_nothing() -> None:
    """What is written does not depend on when it is asked for."""
    pairs = [Pairs(torch.eye(32), np.arange(32)), Pairs(-torch.eye(32), np.arange(32))]
    heads = {"coupled": [[projecting(0.2, None)]]}

    def total(warm_up: int, every: int) -> Any:
        tallies = follow(0, pairs[0], {"message": pairs}, heads, every=every, warm_up=warm_up, choices=8)
        return tallies["coupled", "message"].total

    assert total(8, 16) == pytest.approx(total(8, 1000) + total(24, 1000), abs=1e-5)


def test_errors_are_relative_to_the_values_length() -> None:
    key, value = torch.eye(4)[:1, None], 3 * torch.eye(4)[1:, None]
    answer = ask(torch.zeros(1, 1, 4, 4), key, value, torch.tensor([[0, 1, 2]]))
    assert answer.flatten().tolist() == [0.0, 1.0, 0.0]


def test_controls_weigh_as_much_as_what_they_are_held_against() -> None:
    """A bucket that only late checkpoints can ask for is held against the controls of late checkpoints."""
    pairs = conversations(random_rows(1200, 8))
    heads = {"coupled": [[projecting(0.1, None)]]}
    whole = follow(0, pairs[0], {"message": pairs}, heads, every=100, warm_up=100)["coupled", "message"]
    assert whole.count.shape == (len(KINDS), len(AGES))
    assert (whole.count == whole.count[0]).all()
    assert whole.count[0].tolist() == [5, 15, 60, 120, 24 * 5, 24 * 3]
    early = follow(0, pairs[0], {"message": pairs}, heads, every=1000, warm_up=100)["coupled", "message"]
    assert np.isnan(early.mean()[1, :, 5]).all()
    assert not np.isnan(whole.mean()[1, :, 5]).any()


def test_the_same_bits_every_time() -> None:
    pairs = conversations(random_rows(600, 8))

    def once() -> Tally:
        heads = {"plain": [[projecting(0.3, None)]]}
        return follow(1, pairs[1], {"message": pairs}, heads, every=25, warm_up=100)["plain", "message"]

    assert once().total.tobytes() == once().total.tobytes()


def line(rank: int, score: float, recent: float = 0.5, **changes: Any) -> dict[str, Any]:
    """A line as `measure` gives it, as much as the choice looks at."""
    half = {"score": score, "recent": recent}
    rule = {"write": "segment", "rank": rank, "ask": "message", "mean": "shipped", "values": "unit", "gain": 0.0}
    return rule | {"chosen_on": half} | changes


COST = [{"rank": rank, "bytes": 4 * rank**2, "segment": rank / 10, "token": 3 * rank / 10} for rank in (8, 32, 64, 128)]


def test_a_larger_rank_must_earn_its_bytes() -> None:
    small, middle, large = line(8, 0.10), line(32, 0.19), line(64, 0.21)
    assert choose([small, middle, large], COST, 100.0) is small  # 0.05 a doubling: 0.19 < 0.20, and 0.21 < 0.25
    assert choose([small, middle, line(64, 0.26)], COST, 100.0)["rank"] == 64
    assert choose([small, line(32, 0.21), line(64, 0.25)], COST, 100.0)["rank"] == 32


def test_what_costs_too_much_is_not_chosen() -> None:
    lines = [line(8, 0.1), line(32, 0.5), line(32, 0.9, write="token"), line(64, 0.9), line(128, 1.0)]
    assert choose(lines, COST, 3.5) is lines[1]  # 64 and token writes are too slow
    assert choose(lines, COST, 10.0) is lines[2]
    assert choose([*lines, line(64, 0.99)], COST, 10.0)["rank"] == 64  # the state of 128 is too large
    with pytest.raises(ValueError, match=r"no setting costs at most 0\.1 µs"):
        choose(lines, COST, 0.1)


def test_of_settings_alike_the_one_that_keeps_the_recent_is_chosen() -> None:
    lines = [line(8, 0.40, recent=0.6), line(8, 0.39, recent=0.9), line(8, 0.30, recent=1.0)]
    assert choose(lines, COST, 100.0) is lines[1]


@pytest.mark.parametrize("changes", [{"mean": "elsewhere"}, {"values": "raw"}, {"gain": 20.0}, {"ask": "token"}])
def test_variants_are_measured_but_not_chosen(changes: dict[str, Any]) -> None:
    plain = line(8, 0.1)
    assert choose([plain, line(8, 0.9, **changes)], COST, 100.0) is plain


def test_the_defaults_are_what_was_measured() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    for backbone, rule in DEFAULTS.items():
        chosen = results["choice"][backbone]
        assert (rule.rank, rule.mode, rule.write, rule.beta) == tuple(
            chosen[key] for key in ("rank", "mode", "write", "beta")
        )
        mine = [line for line in results["lines"] if line["backbone"] == backbone]
        assert choose(mine, results["costs"], MOST_MICROSECONDS[backbone]).items() >= chosen.items()


def test_on_real_conversations_the_papers_setting_keeps_nothing_and_the_default_does() -> None:
    if not PRIVATE.exists():
        pytest.skip("private data not here")
    encoded = encode("hashing", read_texts(None, quick=False)[1], None)
    rule = DEFAULTS["hashing"]
    paper, ours = (
        measure(encoded, [setting], seeds=1, every=50)[0]["reported_on"]
        for setting in (
            Setting("hashing", "token", 8, "coupled", 0.18),
            Setting("hashing", rule.write, rule.rank, rule.mode, rule.beta),
        )
    )
    assert max(paper["hit_lift"][1:]) < 0.05  # from one message later on
    assert ours["hit_lift"][2] > 0.5  # 4 to 15 messages later
    assert ours["score"] > 0.3


def test_the_command_on_a_file_of_events(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    write_stream(GenerateSettings(scenario="recurring", streams=2, events=240, seed=5), events)
    command = [sys.executable, "-m", "benchmarks.retention", "--source", str(events), "--quick", "--only", "hashing"]
    outputs = [f"--{name}={tmp_path / name}" for name in ("json", "markdown", "plot")]
    done = subprocess.run([*command, *outputs], capture_output=True, text=True, check=True, timeout=300)
    assert "hashing: the choice" in done.stdout
    results = json.loads((tmp_path / "json").read_text(encoding="utf-8"))
    assert (results["conversations"], results["messages"]) == (2, 480)
    assert len(results["lines"]) == 8
    assert any(line.items() >= results["choice"]["hashing"].items() for line in results["lines"])
    assert "| segment | 32 | plain | 0.5 |" in (tmp_path / "markdown").read_text(encoding="utf-8")
    lines = ElementTree.parse(tmp_path / "plot").getroot().iter("{http://www.w3.org/2000/svg}polyline")
    assert len(list(lines)) == 4


def test_too_little_to_measure_is_said(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    write_stream(GenerateSettings(streams=2, events=50), events)
    with pytest.raises(
        SystemExit, match=r"expected at least 2 streams of 164 messages or more, got 0 in events\.jsonl"
    ):
        read_texts(events, quick=False)
