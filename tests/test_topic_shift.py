"""The trained topic-shift monitor: what it computes, that it is causal, and that a lane's bits are its own."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.topic_data import Bank, build, read_dialogues
from benchmarks.topic_net import BUCKETS, DIM, TopicNet, export, logits
from benchmarks.topic_shift import RULES, judged, run, sparse
from benchmarks.topic_train import chances, event_loss
from memory.backbones import HashingBackbone, load_backbone
from memory.errors import ConfigurationError
from memory.token_edges import token_edges
from monitors.detectors import parse_detector
from monitors.topic_head import BYTES, WEIGHTS, TopicHead, load_head, save_head, shipped_head
from monitors.topic_monitors import topic_monitor_for
from monitors.topic_shift import TopicShiftMonitor
from monitors.trained_topic_shift import TrainedTopicShiftMonitor

EVENTS, STREAMS = 20, 5
Sets = dict[str, dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def sets() -> Sets:
    """100 utterances of made-up numbers: five streams of twenty."""
    rng = np.random.default_rng(3)
    count = EVENTS * STREAMS
    lengths = rng.integers(1, 50, count)
    drift = np.repeat(rng.normal(size=(count // 5, DIM)), 5, axis=0)
    return {
        "made": {
            "emb": (0.3 * rng.normal(size=(count, DIM)) + 0.3 * drift).astype(np.float32),
            "extra": rng.normal(size=(count, 3, DIM)).astype(np.float16),
            "ids": rng.integers(0, 30_000, lengths.sum()),
            "off": np.r_[0, np.cumsum(lengths)],
            "stream": np.repeat([f"s{k}" for k in range(STREAMS)], EVENTS),
            "y": np.zeros(count, np.int64),
        }
    }


@pytest.fixture(scope="module")
def net() -> TopicNet:
    torch.manual_seed(11)
    made = TopicNet().eval()
    with torch.no_grad():
        made.out.weight *= 8  # so that probabilities lie far apart
    return made


@pytest.fixture(scope="module")
def head(net: TopicNet, tmp_path_factory: pytest.TempPathFactory) -> TopicHead:
    path = tmp_path_factory.mktemp("head") / "head.npz"
    save_head(path, export(net), "minilm/1 made")
    return load_head(path)


@pytest.fixture(scope="module")
def exact(net: TopicNet, sets: Sets, head: TopicHead) -> list[np.ndarray]:
    """The probabilities as torch computes them, from the weights as they are stored."""
    rounded = TopicNet().eval()
    rounded.load_state_dict(net.state_dict())
    with torch.no_grad():
        for name in ("metric", "content", "edges", "inner"):
            getattr(rounded, name).weight.copy_(torch.from_numpy(getattr(head, name)))
        for k, table in enumerate(rounded.words):
            table.weight.copy_(torch.from_numpy(head.words[k]))  # type: ignore[union-attr, operator]
        rounded.out.weight.copy_(torch.from_numpy(head.out)[None])
    bank = build(sets, np.zeros(DIM, np.float32), BUCKETS)
    return [chances(own, 1.0, 0.0) for own in logits(rounded, bank, bank.dialogues["made"])]


def events(sets: Sets, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    made = sets["made"]
    ids = [made["ids"][made["off"][row] : made["off"][row + 1]] for row in rows]
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in ids])])
    return (
        made["emb"][rows],
        np.concatenate(ids),
        offsets,
        made["extra"][rows].reshape(len(rows), -1).astype(np.float32),
    )


def measured(monitor: TrainedTopicShiftMonitor, sets: Sets, streams: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """Run streams through their slots side by side; return `[streams, EVENTS]`."""
    monitor.lanes.resize(int(slots.max()) + 1)
    found = [monitor.measure(slots, *events(sets, streams * EVENTS + at)) for at in range(EVENTS)]
    return np.stack(found, axis=1)


def test_it_computes_what_was_trained(head: TopicHead, sets: Sets, exact: list[np.ndarray]) -> None:
    found = measured(TrainedTopicShiftMonitor(head), sets, np.arange(STREAMS), np.arange(STREAMS))
    assert (found[:, 0] == 0).all(), "a stream's first event begins no new topic"
    expected = np.stack(exact)[:, 1:]
    assert expected.std() > 0.02, "or agreement would mean nothing"
    # What a lane keeps of past embeddings is rounded to steps of 1/508 and 1/127.
    np.testing.assert_allclose(found[:, 1:], expected, atol=0.01)


def test_a_lane_does_not_depend_on_its_neighbours(head: TopicHead, sets: Sets) -> None:
    together = measured(TrainedTopicShiftMonitor(head), sets, np.arange(STREAMS), np.arange(STREAMS))
    shuffled = np.array([3, 0, 4, 1, 2])
    others = measured(TrainedTopicShiftMonitor(head), sets, shuffled, np.array([7, 2, 0, 9, 4]))
    assert (others == together[shuffled]).all()
    for stream in range(STREAMS):
        alone = measured(TrainedTopicShiftMonitor(head), sets, np.array([stream]), np.array([0]))
        assert (alone[0] == together[stream]).all()


def test_a_lane_goes_on_from_its_blob(head: TopicHead, sets: Sets) -> None:
    whole = measured(TrainedTopicShiftMonitor(head), sets, np.array([0]), np.array([0]))[0]
    before, after = TrainedTopicShiftMonitor(head), TrainedTopicShiftMonitor(head)
    before.lanes.resize(1)
    after.lanes.resize(3)
    found = [before.measure(np.array([0]), *events(sets, np.array([at])))[0] for at in range(9)]
    (blob,) = before.lanes.dump(np.array([0]))
    assert len(blob) < 4096
    after.lanes.load(2, blob)
    found += [after.measure(np.array([2]), *events(sets, np.array([at])))[0] for at in range(9, EVENTS)]
    assert found == whole.tolist()


def test_it_is_causal(head: TopicHead, sets: Sets) -> None:
    changed = {"made": {name: array.copy() for name, array in sets["made"].items()}}
    changed["made"]["emb"][12:] *= -1
    one, other = (
        measured(TrainedTopicShiftMonitor(head), made, np.array([0]), np.array([0]))[0] for made in (sets, changed)
    )
    assert (one[:12] == other[:12]).all()
    assert (one[12:] != other[12:]).any()


@pytest.mark.parametrize("sick", ["no tokens", "nan", "inf", "huge", "edges"])
def test_an_event_that_cannot_be_read_is_not_remembered(head: TopicHead, sets: Sets, sick: str) -> None:
    monitor = TrainedTopicShiftMonitor(head)
    monitor.lanes.resize(1)
    lane = np.array([0])
    for at in range(5):
        monitor.measure(lane, *events(sets, np.array([at])))
    (before,) = monitor.lanes.dump(lane)
    embedding, tokens, offsets, edges = events(sets, np.array([5]))
    if sick == "no tokens":
        tokens, offsets = tokens[:0], np.array([0, 0])
    elif sick == "edges":
        edges[0, 40] = np.nan
    else:
        embedding[0, 3] = {"nan": np.nan, "inf": np.inf, "huge": 1e30}[sick]
    assert np.isnan(monitor.measure(lane, embedding, tokens, offsets, edges)).all()
    assert list(monitor.lanes.dump(lane)) == [before]


def test_no_edges_is_an_error(head: TopicHead, sets: Sets) -> None:
    embedding, tokens, offsets, _ = events(sets, np.array([0]))
    with pytest.raises(ValueError, match="want_hidden=True"):
        TrainedTopicShiftMonitor(head).measure(np.array([0]), embedding, tokens, offsets, None)


def test_no_event_is_no_work(head: TopicHead) -> None:
    none = np.zeros(0, np.int64)
    rows = np.zeros((0, DIM), np.float32)
    found = TrainedTopicShiftMonitor(head).measure(none, rows, none, np.array([0]), np.zeros((0, 3 * DIM), np.float32))
    assert found.shape == (0,)


def test_weights_are_small_and_say_what_they_are_for(head: TopicHead) -> None:
    assert WEIGHTS.stat().st_size < 200_000
    shipped = shipped_head()
    assert shipped.backbone.startswith("minilm/1 weights=")
    assert shipped.version != head.version
    assert TrainedTopicShiftMonitor(shipped).settings != TrainedTopicShiftMonitor(head).settings


def test_weights_that_do_not_fit_are_refused(net: TopicNet, tmp_path: Path) -> None:
    arrays = export(net)
    missing = {name: array for name, array in arrays.items() if name != "edges_bias"}
    save_head(tmp_path / "missing.npz", missing, "minilm/1")
    with pytest.raises(ValueError, match="expected the arrays"):
        load_head(tmp_path / "missing.npz")
    save_head(tmp_path / "narrow.npz", arrays | {"inner": arrays["inner"][:, 1:]}, "minilm/1")
    with pytest.raises(ValueError, match="another version"):
        load_head(tmp_path / "narrow.npz")


def test_saving_rounds_by_at_most_half_a_step(net: TopicNet, head: TopicHead) -> None:
    for name, array in export(net).items():
        step = np.abs(array).max(axis=-1, keepdims=True) / 127 if name in BYTES else np.abs(array) / 1024 + 1e-7
        assert (np.abs(getattr(head, name) - array) <= 0.51 * step + 1e-9).all(), name


def test_a_backbone_without_a_head_keeps_the_distance() -> None:
    monitor = topic_monitor_for(HashingBackbone())
    assert isinstance(monitor, TopicShiftMonitor)
    assert parse_detector(monitor.detector).name == "shewhart"  # type: ignore[attr-defined]


def test_the_benchmark_runs_dialogues_side_by_side_as_it_would_alone() -> None:
    texts = [["the cat sat", "the cat purred", "tax forms are due"], ["hello", "goodbye"]]
    together, flags = run(texts, HashingBackbone())
    for dialogue, scores, own in zip(texts, together, flags, strict=True):
        (alone,), (alarms,) = run([dialogue], HashingBackbone())
        assert scores.tolist() == alone.tolist()
        assert own.tolist() == alarms.tolist()


def test_one_alarm_finds_one_shift() -> None:
    found = sparse([np.array([0, 0, 1, 0, 0, 0])], [np.array([0, 1, 1, 0, 0, 0])])
    assert found == {"within 2": 0.5, "delay": 1.0, "false per 1,000": 0.0}


def test_token_edges_against_numpy() -> None:
    rng = np.random.default_rng(0)
    hidden, offsets = rng.normal(size=(12, 7)).astype(np.float32), np.array([0, 1, 5, 5, 12])
    found = token_edges(hidden, offsets)
    for g, (a, b) in enumerate(pairwise(offsets)):
        if a == b:
            assert np.isnan(found[g]).all()
        else:
            assert (found[g] == np.concatenate([hidden[a], hidden[b - 1], hidden[a:b].max(axis=0)])).all()


def test_the_loss_is_cross_entropy_where_shifts_are_dense() -> None:
    found, label = torch.tensor([[0.3, -1.0, 2.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(found, label, reduction="none")
    torch.testing.assert_close(event_loss(found, label, torch.tensor([[False]])), expected)


def test_a_late_alarm_is_worth_something_where_shifts_are_sparse() -> None:
    label, late = torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0]]), torch.tensor([[True]])
    never, one_late, four_late = (
        float(event_loss(torch.tensor([own]), label, late).sum())
        for own in ([-3.0, -3, -3, -3, -3], [-3.0, -3, 3, -3, -3], [-3.0, -3, -3, -3, 3])
    )
    assert one_late < never < four_late


def test_bank_is_a_row_an_utterance(sets: Sets) -> None:
    bank: Bank = build(sets, np.zeros(DIM, np.float32), BUCKETS)
    assert [len(own) for own in bank.dialogues["made"]] == [EVENTS] * STREAMS
    np.testing.assert_allclose(bank.unit.norm(dim=1).numpy(), 1, rtol=1e-5)


def test_the_default_beats_every_rule_that_reads_nothing() -> None:
    """On human-labelled dialogues that the shipped weights were not trained on."""
    path = Path(__file__).parents[2] / "shared" / "data" / "topic" / "tiage.dev.jsonl"
    if not path.exists():
        pytest.skip("private data not here")
    try:
        backbone = load_backbone("minilm")
    except ConfigurationError as error:
        pytest.skip(str(error))
    assert isinstance(topic_monitor_for(backbone), TrainedTopicShiftMonitor)
    dialogues = list(read_dialogues(path).values())[:20]
    true = [np.array([row["boundary"] for row in dialogue], np.int64) for dialogue in dialogues]
    _, alarms = run([[row["text"] for row in dialogue] for dialogue in dialogues], backbone)
    ours = judged(alarms, true)["score"]
    for name, rule in RULES.items():
        assert ours > judged([rule(len(label)) for label in true], true)["score"] + 0.1, name
