"""Thousands of policies at once: each one's bits are those of an engine of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import stream.many.scoring as scoring
from memory.errors import ConfigurationError, EbbtideError
from memory.threads import set_threads, threads, torch_threads
from memory.writers import Rows, RowsWriter, Shape
from monitors.detectors import parse_detector
from monitors.observations import SIGNALS
from monitors.policies import (
    POLICIES,
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
    TopicBelief,
)
from monitors.policies.policy import LABELS
from stream.config import RunSettings
from stream.consumer import Consumer
from stream.engine import ALARM_NAMES, Engine, Outcome
from stream.event import Event
from stream.generate import GenerateSettings, write_stream
from stream.many import LoadedTape, Scores, load, score
from stream.many.loaded_tape import LoadedStream
from stream.many.returns import OLD, returns
from stream.many.stacked_policy import alike
from stream.many.stream_run import Plan, run_stream
from stream.quarantine import REASON
from stream.replay import replay
from stream.tape import TapeReader, TapeWriter
from stream.tape.taped_writer import TapedWriter

STREAMS, EVENTS = 2, 90
LOOSE = TopicBelief(hazard=0.4, novelty=0.5, passing=0.2, gain=20, likeness_gain=40)
"""A belief that moves at the least sign: much happens."""

POLICIES_HERE: list[Policy] = [
    NoPolicy(),
    DecayPolicy(factor=0.9),
    DecayPolicy(factor=1),
    DecayPolicy(factor=0.97),
    ScheduledResetPolicy(every=7),
    ScheduledResetPolicy(every=9, cool_down=20),
    ScheduledResetPolicy(every=5, budget=4),
    ResetOnShiftPolicy(),
    ResetOnShiftPolicy(cool_down=1, budget=3),
    ResetOnShiftPolicy(on=("topic_shift", "retrieval_error")),
    DecayOnShiftPolicy(factor=0.2),
    DecayOnShiftPolicy(factor=0.6, cool_down=1),
    NormCapPolicy(cap=0.4),
    NormCapPolicy(cap=0.6, to=0.5),
    FreezeOnAnomalyPolicy(),
    FreezeOnAnomalyPolicy(on=("topic_shift",), hold=3),
    FreezeOnAnomalyPolicy(on=("topic_shift",), hold=2, cool_down=1),
    AdaptiveGatesPolicy(step=0.3),
    AdaptiveGatesPolicy(step=0.1, most=1.9, least=0.7),
    ArchivePolicy(),
    ArchivePolicy(most=3, certainty=0.5, belief=LOOSE),
    ArchivePolicy(most=3, certainty=0.7, belief=LOOSE.model_copy(update={"passing": 0.1, "gain": 8}), budget=9),
    ArchivePolicy(most=1, belief=LOOSE, budget=None),
    ArchivePolicy(most=4, belief=LOOSE, begin="decayed", begin_factor=0.7),
    ArchivePolicy(most=4, belief=LOOSE, begin="decayed"),
    ArchivePolicy(most=4, belief=LOOSE, begin="mean", begin_factor=0.9),
    AutoPolicy(enter=0.05),
    AutoPolicy(most=5, enter=0.02, belief=LOOSE, begin="mean"),
    AutoPolicy(enter=0.01, leave=0.05, certainty=0.5, belief=LOOSE),
    AutoPolicy(enter=0.02, leave=0.2, belief=LOOSE.model_copy(update={"novelty": 0.2, "trust": 0.5})),
]

THRESHOLDS: dict[str, Any] = {
    signal: {"name": "shewhart", "width": 0.8, "side": "both", "warm_up": 3, "cool_down": 1} for signal in SIGNALS
}
"""Detectors that alarm at little, on every signal."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Topics that return, and now and then an event without a word."""
    path = tmp_path_factory.mktemp("source") / "talk.jsonl"
    settings = GenerateSettings(scenario="recurring", streams=STREAMS, events=EVENTS, mean_topic_length=8, seed=3)
    write_stream(settings, path)
    lines = path.read_text().splitlines(keepends=True)
    silent = '{"stream": "s000001", "text": " "}\n'
    path.write_text("".join([*lines[:60], silent, silent, *lines[60:140], silent, *lines[140:]]))
    return path


@pytest.fixture(
    scope="module",
    params=[
        {},
        {"write": "token", "mode": "gated", "lam": 0.97, "gate_gain": 1.0, "rank": 8, "measure_every": 3},
        {"mode": "decay_outside", "rank": 5},
    ],
    ids=["plain", "tokens, own gates", "decay outside"],
)
def tape(request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedTape:
    return load(record(source, tmp_path_factory.mktemp("run") / "tape", **request.param))


@pytest.fixture(scope="module")
def recorded(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(source, tmp_path_factory.mktemp("plain") / "tape")


@pytest.fixture(scope="module")
def plain(recorded: Path) -> LoadedTape:
    return load(recorded)


def record(source: Path, folder: Path, **given: Any) -> Path:
    settings = {"source": f"file:{source}", "backbone": "hashing", "tape": folder, "metrics_port": 0}
    consumer = Consumer(RunSettings(**settings | {"batch_events": 16, "checkpoint_every": 0} | given))
    try:
        consumer.open()
        consumer.run()
    finally:
        consumer.close()
    return folder


@dataclass
class ByEngine:
    """What an engine made of one stream."""

    kind: npt.NDArray[np.int8]
    factor: npt.NDArray[np.float64]
    signals: dict[str, npt.NDArray[np.float64]]
    alarms: dict[str, npt.NDArray[np.bool_]]
    state: torch.Tensor
    put_aside: bool


def engine_of(tape: LoadedTape, policy: Policy, detectors: Mapping[str, Any]) -> tuple[Engine, RowsWriter]:
    head = tape.head
    mean = None if head.mean is None else np.array(head.mean, np.float32)
    shape = Shape(head.layers, head.heads, head.rank, head.mode, head.dim, mean, head.row_gates, head.own_lam, {})
    writer = RowsWriter(shape)
    watching = {name: parse_detector(given) for name, given in detectors.items()}
    return Engine(writer, detectors=watching, policy=policy, layers=head.watched, every=head.every), writer


def feed(engine: Engine, writer: RowsWriter, streams: Sequence[LoadedStream]) -> Outcome:
    """Give an engine the events of these streams, one stream after the other: it takes one of each at a time."""
    k, v, beta = (np.concatenate([getattr(one, part).numpy() for one in streams]) for part in ("k", "v", "beta"))
    lam = (
        None if streams[0].lam is None else np.concatenate([one.lam.numpy() for one in streams if one.lam is not None])
    )
    bounds = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(one.bounds) for one in streams]))])
    rows = Rows(bounds, k, v, beta, lam, np.concatenate([one.embeddings for one in streams]))
    scores = np.concatenate([one.topic_shift_score for one in streams])
    ids = writer.give(rows, np.concatenate([one.tokens for one in streams]), scores)
    return engine.process([Event(one.name, tokens=[0]) for one in streams for _ in range(len(one))], ids)


def state_of(engine: Engine, stream: LoadedStream) -> torch.Tensor:
    return engine.pool.states[int(engine.pool.acquire([stream.name])[0])].flatten(0, 1).clone()


def by_engine(
    tape: LoadedTape, streams: Sequence[LoadedStream], policy: Policy, detectors: Mapping[str, Any]
) -> list[ByEngine]:
    engine, writer = engine_of(tape, policy, detectors)
    outcome = feed(engine, writer, streams)
    found, end = [], 0
    for stream in streams:
        part = slice(end, end + len(stream))
        end = part.stop
        kind, factor, reason = (getattr(outcome.actions, name)[part] for name in ("kind", "factor", "reason"))
        signals, alarms = (
            {name: each[part] for name, each in told.items()} for told in (outcome.signals, outcome.alarms)
        )
        found.append(ByEngine(kind, factor, signals, alarms, state_of(engine, stream), REASON in reason))
    return found


def compare(tape: LoadedTape, policies: Sequence[Policy], detectors: Mapping[str, Any]) -> list[list[ByEngine]]:
    """Compare every policy on every stream, actions, write errors and final states, to the bit."""
    head = tape.head
    fitted = [policy.fitted(head.layers * head.heads, head.rank) for policy in policies]
    watching = {name: parse_detector(given) for name, given in detectors.items()}
    seen = [by_engine(tape, list(tape.streams.values()), policy, detectors) for policy in policies]
    for place, stream in enumerate(tape.streams.values()):
        plan = Plan.of(stream, watching)
        for group in alike(fitted):
            with torch_threads(1):
                run = run_stream(tape, plan, [fitted[row] for row in group], probes=True)
            assert run.marks.retrieval_error is not None
            for lane, row in enumerate(group.tolist()):
                own = seen[row][place]
                told = f"{policies[row]!r} on {stream.name}"
                assert np.array_equal(run.kind[lane], own.kind), told
                assert np.array_equal(run.factor[lane], own.factor), told
                if own.put_aside:
                    assert run.states[lane].isnan().all(), told
                else:
                    assert same(run.states[lane].numpy(), own.state.numpy()), told
                assert same(run.marks.write_error[lane], own.signals["write_error"]), told
                assert same(run.marks.retrieval_error[lane], own.signals["retrieval_error"]), told
                assert run.marks.actions_by_kind[lane].tolist() == np.bincount(own.kind, minlength=5).tolist()
    return seen


def same(one: Any, other: Any) -> bool:
    return np.array_equal(one, other, equal_nan=True)


def test_every_policy_is_here_with_settings_of_its_own() -> None:
    assert {type(policy) for policy in POLICIES_HERE} == set(POLICIES.values())
    for kind in set(POLICIES.values()) - {NoPolicy}:
        assert any(type(policy) is kind and policy != kind() for policy in POLICIES_HERE)


def test_each_policy_does_what_its_own_engine_does_to_the_bit(tape: LoadedTape) -> None:
    seen = compare(tape, POLICIES_HERE, tape.head.detectors)
    untouched, acted = seen[0], {type(policy): 0 for policy in POLICIES_HERE}
    for policy, runs in zip(POLICIES_HERE, seen, strict=True):
        for run, none in zip(runs, untouched, strict=True):
            acted[type(policy)] += not torch.equal(run.state, none.state)
    for kind in set(acted) - {NoPolicy, AutoPolicy, FreezeOnAnomalyPolicy}:
        assert acted[kind] > 1, f"{kind.__name__} did next to nothing"


def test_scores_are_those_of_a_replay(recorded: Path, plain: LoadedTape) -> None:
    done = replay(recorded, {str(place): policy for place, policy in enumerate(POLICIES_HERE)})
    scores = score(plain, POLICIES_HERE, probes=True, slices=3)
    assert scores.events == done.results[0].events
    assert scores.retrieval_error is not None
    assert (scores.actions[-2:] > 3).all(), "auto did next to nothing"
    for place, result in enumerate(done.results):
        kinds = {LABELS[kind]: count for kind, count in enumerate(scores.actions_by_kind[place].tolist()) if count}
        assert kinds == result.actions
        assert scores.actions[place] == scores.events - kinds.get("keep", 0)
        # The same numbers, added up in another order.
        assert scores.write_error[place] == pytest.approx(result.means["write_error"], rel=1e-12)
        assert scores.retrieval_error[place] == pytest.approx(result.means["retrieval_error"], rel=1e-12)


@pytest.mark.parametrize("alarm", [ALARM_NAMES.get(signal, signal) for signal in SIGNALS])
def test_policies_hear_the_alarms_of_their_own_lane(plain: LoadedTape, alarm: str) -> None:
    policies: list[Policy] = [
        ResetOnShiftPolicy(on=(alarm,), cool_down=12),
        ResetOnShiftPolicy(on=(alarm,), cool_down=3),
        DecayOnShiftPolicy(on=(alarm, "topic_shift"), factor=0.4, cool_down=5),
        DecayOnShiftPolicy(on=("topic_shift", alarm), factor=0.7, cool_down=2),
        FreezeOnAnomalyPolicy(on=(alarm,), hold=2),
        FreezeOnAnomalyPolicy(on=(alarm,), cool_down=2),
    ]
    seen = compare(plain, policies, THRESHOLDS)
    for policy, runs in zip(policies, seen, strict=True):
        assert all(run.alarms[alarm].any() and run.kind.any() for run in runs), policy
    if alarm != "topic_shift":  # else it says nothing that the detectors are those of each lane
        assert any(not np.array_equal(a.alarms[alarm], b.alarms[alarm]) for a, b in zip(seen[0], seen[4], strict=True))


def changed(stream: LoadedStream, **given: Any) -> LoadedStream:
    return LoadedStream(**{part.name: getattr(stream, part.name) for part in fields(stream)} | given)


def test_layers_that_are_not_watched_are_written_all_the_same(plain: LoadedTape) -> None:
    head = plain.head.model_copy(update={"layers": 3, "watched": [2, 1]})
    streams = {}
    for name, one in plain.streams.items():
        # What the other layers are told is something else: the same pairs in another order.
        k, v = (torch.cat([part, part.flip(0), part.roll(5, 0)], 1) for part in (one.k, one.v))
        streams[name] = changed(one, k=k, v=v, beta=one.beta.expand(-1, 3, -1).contiguous())
    policies = [
        *POLICIES_HERE,
        *(ResetOnShiftPolicy(on=(name,), cool_down=9) for name in ("stable_rank", "saturation")),
    ]
    compare(LoadedTape(head, streams), policies, THRESHOLDS)


def test_states_that_are_no_longer_finite(plain: LoadedTape) -> None:
    stream = plain.streams["s000000"]
    v, beta = stream.v.clone(), stream.beta.clone()
    v[20:22], beta[20:22] = 0, 1
    v[20, 0, 0], v[21, 0, 1] = -9e17, 9e17  # each can be held alone, and not both together
    huge = changed(stream, v=v, beta=beta)
    tape = LoadedTape(plain.head, {huge.name: huge})
    policies = [
        *POLICIES_HERE,
        ResetOnShiftPolicy(on=("non_finite",)),
        FreezeOnAnomalyPolicy(on=("non_finite",)),
        DecayOnShiftPolicy(on=("non_finite",), factor=0.5),
    ]
    seen = compare(tape, policies, plain.head.detectors)
    assert seen[0][0].put_aside
    assert not all(runs[0].put_aside for runs in seen)


def parts(scores: Scores, rows: Sequence[int] | slice = slice(None)) -> dict[str, Any]:
    names = ("write_error", "recall_error", "retrieval_error", "actions", "actions_by_kind", "over_time", "by_stream")
    return {name: getattr(scores, name)[rows] for name in names}


def test_bits_depend_neither_on_the_company_nor_on_its_order_nor_on_threads(
    plain: LoadedTape, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = [*POLICIES_HERE, *(DecayPolicy(factor=factor / 100) for factor in range(50, 90))]
    before = threads()
    told: list[tuple[int, int]] = []
    try:
        set_threads(1)
        whole = score(plain, policies, probes=True, each=lambda done, total: told.append((done, total)))
        total = plain.events * len(policies)
        assert told[-1] == (total, total)
        assert told == sorted(told)
        order = np.random.default_rng(0).permutation(len(policies))
        set_threads(2)
        monkeypatch.setattr(scoring, "LANES", 3)
        mixed = score(plain, [policies[row] for row in order], probes=True)
    finally:
        set_threads(before)
    for name, numbers in parts(whole, order.tolist()).items():
        assert same(numbers, parts(mixed)[name]), name
    for row in (0, 3, 9, 17, 20, 24, len(policies) - 1):
        alone = score(plain, [policies[row]], probes=True)
        for name, numbers in parts(whole, [row]).items():
            assert same(numbers, parts(alone)[name]), (name, policies[row])
    some = score(plain, policies, streams=["s000001"], probes=False)
    assert some.retrieval_error is None
    assert same(some.by_stream[:, 0], whole.by_stream[:, whole.streams.index("s000001")])
    assert same(some.write_error, some.by_stream[:, 0])


@pytest.mark.parametrize("count", [1, 2])
def test_what_the_caller_raises_ends_it_in_every_thread(plain: LoadedTape, count: int) -> None:
    before, told = threads(), []

    def enough(done: int, total: int) -> None:
        told.append(done)
        if len(told) == 50:
            raise KeyboardInterrupt

    try:
        set_threads(count)
        with pytest.raises(KeyboardInterrupt):
            score(plain, POLICIES_HERE, each=enough)
    finally:
        set_threads(before)
    assert len(told) == 50


def test_errors_over_time_are_of_equal_parts_of_each_stream(plain: LoadedTape) -> None:
    policy, slices = DecayPolicy(factor=0.8), 7
    sums, counts = np.zeros(slices), np.zeros(slices)
    for own in by_engine(plain, list(plain.streams.values()), policy, {}):
        errors = own.signals["write_error"]
        for event, error in enumerate(errors.tolist()):
            if np.isfinite(error):
                sums[event * slices // len(errors)] += error
                counts[event * slices // len(errors)] += 1
    found = score(plain, [policy], slices=slices)
    assert np.allclose(found.over_time[0], sums / counts, rtol=1e-12, atol=0)
    assert found.write_error[0] == pytest.approx(sums.sum() / counts.sum(), rel=1e-12)


@pytest.mark.parametrize("policy", [NoPolicy(), POLICIES_HERE[4], POLICIES_HERE[28]], ids=lambda each: each.policy)
def test_recall_is_of_what_a_topic_that_returns_said_before(plain: LoadedTape, policy: Policy) -> None:
    """By the definition: an engine that is stopped before each return, and asked in float64."""
    errors = []
    for stream in plain.streams.values():
        engine, writer = engine_of(plain, policy, plain.head.detectors)
        back, at = returns(stream.embeddings, stream.writes), 0
        for event in np.flatnonzero(back >= 0).tolist():
            old = int(back[event])
            assert event - old >= OLD
            feed(engine, writer, [cut(stream, at, event)])
            at, state = event, state_of(engine, stream).double()
            rows = slice(int(stream.bounds[old]), int(stream.bounds[old + 1]))
            k, v = stream.k[rows].double(), stream.v[rows].double()
            miss = v - torch.einsum("hij,mhj->mhi", state, k)
            errors.append(float((miss.norm(dim=-1) / v.norm(dim=-1)).mean()))
    assert len(errors) > 25
    found = score(plain, [policy]).recall_error[0]
    assert found == pytest.approx(np.mean(errors), rel=1e-5)  # a state is float32, and so is what it reads


def cut(stream: LoadedStream, begin: int, end: int) -> LoadedStream:
    rows, events = slice(int(stream.bounds[begin]), int(stream.bounds[end])), slice(begin, end)
    lam = None if stream.lam is None else stream.lam[rows]
    return LoadedStream(
        stream.name, 0, stream.tokens[events], stream.bounds[begin : end + 1] - stream.bounds[begin], stream.k[rows],
        stream.v[rows], stream.beta[rows], lam, stream.embeddings[events], stream.topic_shift_score[events],
    )  # fmt: skip


def test_without_a_topic_that_returns_there_is_no_recall(plain: LoadedTape) -> None:
    stream = cut(plain.streams["s000000"], 0, OLD)
    scores = score(LoadedTape(plain.head, {stream.name: stream}), [NoPolicy()], slices=OLD + 1)
    assert np.isnan(scores.recall_error).all()
    assert np.isfinite(scores.write_error).all()
    assert np.isnan(scores.over_time[0, 0]) != np.isnan(scores.over_time[0, -1])  # one part has no event


def test_what_cannot_be_scored_is_refused_in_one_line(plain: LoadedTape) -> None:
    with pytest.raises(ConfigurationError, match=r"expected streams of the tape, got 's000009'"):
        score(plain, [NoPolicy()], streams=["s000009"])
    for policies, given in (([], {}), ([NoPolicy()], {"slices": 0}), ([NoPolicy()], {"streams": []})):
        with pytest.raises(ValueError, match="expected at least one policy, stream and slice"):
            score(plain, policies, **given)


def test_streams_come_apart_in_their_order(plain: LoadedTape, source: Path) -> None:
    assert plain.late == []
    assert plain.events == STREAMS * EVENTS + 3
    silent = plain.streams["s000001"]
    assert int((silent.writes == 0).sum()) == 3
    assert np.isnan(silent.embeddings[silent.writes == 0]).all()
    with_rows = [stream for name, stream in plain.streams.items() if name != "s000001"]
    assert all((stream.writes == 1).all() and len(stream) == EVENTS for stream in with_rows)


def test_a_tape_tells_what_is_left_out_and_where_it_ends(recorded: Path, plain: LoadedTape, tmp_path: Path) -> None:
    reader = TapeReader(recorded)
    taped = TapedWriter(reader.head)
    taped.keeps_rows = True
    engine, batches = Engine(taped, detectors={}, policy=NoPolicy()), 0
    writer = TapeWriter(tmp_path / "again", reader.head)
    writer.open(None)
    for batch in reader.batches():  # recorded once more, with an operator at work before each micro-batch
        outcome = engine.process(*taped.load(batch))
        outcome.by_hand = {0: ['{"kind": "reset"}']}
        writer.write(outcome)
        batches += 1
    writer.flush()
    writer.close()
    again = load(tmp_path / "again")
    assert sum(stream.by_hand for stream in again.streams.values()) == batches > 3
    assert not any(stream.by_hand for stream in plain.streams.values())
    part = tmp_path / "again" / "part-000000.arrows"
    part.write_bytes(part.read_bytes()[:-700])
    with pytest.raises(EbbtideError, match="ends in the middle"):
        load(tmp_path / "again")
    short = load(tmp_path / "again", partial=True)
    assert short.torn == part
    assert 0 < short.events < again.events
