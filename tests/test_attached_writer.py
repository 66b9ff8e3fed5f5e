"""A language model with δ-mem attached, in the consumer: each stream with its own state, whatever shares its batch."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from memory.backbones.backbone import Ids
from memory.backbones.hf_backbone import HFBackbone
from memory.deltamem import attach
from memory.deltamem.adapter_io import SAFETENSORS_FILE
from memory.errors import ConfigurationError
from memory.scan_forms import scan
from memory.threads import set_threads, threads
from memory.writers import AttachedWriter
from monitors.policies import ActionKind, ScheduledResetPolicy
from stream.assembly import build_engine, chosen_layers
from stream.config import RunSettings
from stream.engine import Engine, Outcome
from stream.event import Event
from tests.test_deltamem import MODELS, VOCABULARY, build, random_adapter
from tests.test_engine import lanes, rows
from tests.warm import Warm

STREAMS = 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random model, and random adapters of each kind of write."""
    folder = tmp_path_factory.mktemp("hf")
    model = build("qwen3")
    model.save_pretrained(folder / "model")
    kinds: dict[str, dict[str, Any]] = {
        "token": {},
        "heads": {"num_state_heads": 2, "target_layers": [0, 2]},
        "outside": {"state_update_mode": "lambda_outside", "couple_lambda": False},
        "plain": {"state_update_mode": "no_lambda"},
        "message": {"memory_write_granularity": "message_mean"},
        "sentence": {"memory_write_granularity": "sentence_mean"},
    }
    made = {name: random_adapter(model, folder / name, **config) for name, config in kinds.items()}
    return {"model": folder / "model"} | made


def talk(count: int, seed: int = 0, longest: int = 40) -> list[Event]:
    """Events of token ids, streams taking turns irregularly; one has none, some are of exactly a padded length."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest, count)
    lengths[::7] = 16
    lengths[count // 2] = 0
    return [
        Event(f"s{rng.integers(STREAMS)}", tokens=rng.integers(3, VOCABULARY, length).tolist()) for length in lengths
    ]


def ids_of(events: Sequence[Event]) -> list[Ids]:
    return [np.array(event.tokens, np.int64) for event in events]


def feed(engine: Engine, events: Sequence[Event], cut: int) -> list[Outcome]:
    ids = ids_of(events)
    return [engine.process(events[at : at + cut], ids[at : at + cut]) for at in range(0, len(events), cut)]


def engine_of(folders: dict[str, Path], kind: str, **given: Any) -> Engine:
    settings = {"backbone": f"hf:{folders['model']}", "adapter": folders[kind], "pool_bytes": 1 << 22} | given
    return build_engine(RunSettings(**settings))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models on several threads spend their time waiting for each other."""
    before = threads()
    set_threads(1)
    yield
    set_threads(before)


@pytest.mark.parametrize(
    ("kind", "context", "count"),
    [
        ("token", "last:24", 2),
        ("heads", "none", 1),
        ("outside", "none", 1),
        ("plain", "none", 1),
        ("message", "none", 1),
        ("sentence", "last:24", 1),
    ],
)
def test_the_same_bits_whatever_the_cut_and_the_threads(
    folders: dict[str, Path], kind: str, context: str, count: int
) -> None:
    events = talk(28)
    engine = engine_of(folders, kind, context=context, policy="decay_on_shift")
    expected, expected_lanes = rows(feed(engine, events, len(events))), lanes(engine)
    assert any(record.state.strip(b"\0") for record in expected_lanes.values())
    for cut in (1, 9):
        other = engine_of(folders, kind, context=context, policy="decay_on_shift")
        set_threads(count)
        assert rows(feed(other, events, cut)) == expected
        assert lanes(other) == expected_lanes


@pytest.mark.parametrize("architecture", sorted(set(MODELS) - {"qwen3"}))
def test_every_architecture_gives_the_same_bits_whatever_the_cut(architecture: str, tmp_path: Path) -> None:
    model = build(architecture)
    model.save_pretrained(tmp_path / "model")
    where = {"model": tmp_path / "model", "token": random_adapter(model, tmp_path / "adapter")}
    events = talk(20)
    engine, other = (engine_of(where, "token", context="last:24") for _ in range(2))
    assert rows(feed(engine, events, 20)) == rows(feed(other, events, 3))
    assert lanes(engine) == lanes(other)
    assert any(record.state.strip(b"\0") for record in lanes(engine).values())


@pytest.mark.parametrize("kind", ["token", "heads", "outside", "message"])
def test_a_streams_state_is_what_the_attached_model_makes_of_its_events_alone(
    folders: dict[str, Path], kind: str
) -> None:
    events = [event for event in talk(30) if event.tokens]
    engine = engine_of(folders, kind)
    feed(engine, events, 7)
    model = build("qwen3")
    for stream in sorted({event.stream for event in events}):
        with attach(model, folders[kind]) as memory, torch.inference_mode():
            memory.reset(1)
            for event in events:
                if event.stream == stream:
                    x = torch.tensor([event.tokens])
                    if kind == "message":
                        memory.set_segments(message_ids=torch.zeros_like(x))
                    model(x, use_cache=False)
            expected = memory.stacked_states[0]
        got = engine.pool.states[engine.pool.slots()[stream]]
        assert float((got - expected).abs().max()) < 1e-4 * max(1.0, float(expected.abs().max()))


def test_context_is_read_and_not_written_again(folders: dict[str, Path]) -> None:
    """Against the model called by hand: the last tokens with writes off, then the event's own on their cache."""
    events = [Event("ann", tokens=list(row)) for row in np.random.default_rng(1).integers(3, VOCABULARY, (4, 11))]
    engine = engine_of(folders, "token", context="last:20")
    feed(engine, events, 4)
    model = build("qwen3")
    with attach(model, folders["token"]) as memory, torch.inference_mode():
        memory.reset(1)
        said: list[int] = []
        for event in events:
            cache = None
            if said:
                memory.write_enabled = False
                cache = model(torch.tensor([said[-20:]]), use_cache=True).past_key_values
                memory.write_enabled = True
            model(torch.tensor([event.tokens]), past_key_values=cache, use_cache=cache is not None)
            said += list(event.tokens or [])
        expected = memory.stacked_states[0]
    got = engine.pool.states[engine.pool.slots()["ann"]]
    assert float((got - expected).abs().max()) < 1e-4 * float(expected.abs().max())
    alone = engine_of(folders, "token")
    feed(alone, events, 4)
    assert float((got - alone.pool.states[0]).abs().max()) > 1e-3, "the context made no difference"


def test_an_event_longer_than_a_window_runs_in_several(folders: dict[str, Path]) -> None:
    """Without a context a long event is the same as its windows one after the other."""
    tokens = np.random.default_rng(2).integers(3, VOCABULARY, 300).tolist()
    whole, cut = (engine_of(folders, "token") for _ in range(2))
    window = whole.writer.window  # type: ignore[attr-defined]
    assert window == 128
    feed(whole, [Event("ann", tokens=tokens)], 1)
    feed(cut, [Event("ann", tokens=tokens[at : at + window]) for at in range(0, 300, window)], 1)
    assert torch.equal(whole.pool.states[0], cut.pool.states[0])


@pytest.mark.parametrize("kind", ["token", "message", "outside"])
def test_a_reset_keeps_what_the_event_itself_wrote(folders: dict[str, Path], kind: str) -> None:
    """Resets come every other event: the state is then what that event's own rows make of zeros."""
    policy = ScheduledResetPolicy(every=2)
    settings = {"backbone": f"hf:{folders['model']}", "adapter": folders[kind], "pool_bytes": 1 << 22}
    engine = build_engine(RunSettings(**settings))
    engine = Engine(engine.writer, detectors={}, policy=policy)
    engine.writer.keeps_rows = True
    events = [event for event in talk(40) if event.stream == "s1" and event.tokens]
    resets = 0
    for event in events:
        outcome = feed(engine, [event], 1)[0]
        if outcome.actions.kind[0] == ActionKind.RESET:
            rows = outcome.rows
            assert rows is not None
            k, v, beta = (torch.from_numpy(part) for part in (rows.keys, rows.values, rows.beta))
            lam = None if rows.lam is None else torch.from_numpy(rows.lam)
            alone = torch.zeros(1, *k.shape[1:], k.shape[2])
            lane = torch.tensor([0])
            scan(alone, lane, lane, torch.tensor([0, len(k)]), k, k, v, beta, lam, mode=engine.writer.mode)
            assert torch.equal(engine.pool.states[0].flatten(0, 1), alone[0])
            if kind == "message":  # one write: β v kᵀ
                assert float(torch.linalg.matrix_rank(alone[0, 0])) == 1
            resets += 1
    assert resets > 2


@pytest.mark.parametrize("policy", ["auto", "archive", "adaptive_gates", "freeze_on_anomaly", "norm_cap"])
def test_every_policy_runs_on_an_attached_model_the_same_whatever_the_cut(
    folders: dict[str, Path], policy: str
) -> None:
    events = talk(28)
    engine = engine_of(folders, "heads", policy=policy)
    expected, expected_lanes = rows(feed(engine, events, len(events))), lanes(engine)
    other = engine_of(folders, "heads", policy=policy)
    assert rows(feed(other, events, 5)) == expected
    assert lanes(other) == expected_lanes


def test_signals_come_from_the_layers_that_were_asked_for(folders: dict[str, Path]) -> None:
    events = talk(20)
    everything, some = engine_of(folders, "heads"), engine_of(folders, "heads", monitor_layers="1", measure_every=1)
    said = feed(everything, events, 20)[0], feed(some, events, 20)[0]
    for place in (3, 11):
        assert said[0].signals["state_norm"][place] > said[1].signals["state_norm"][place] > 0
    assert torch.equal(everything.pool.states, some.pool.states), "watching changes nothing"
    last = {event.stream: place for place, event in enumerate(events)}
    for stream, place in last.items():
        own = some.pool.states[some.pool.slots()[stream]]
        assert abs(float(own[1].norm()) - said[1].signals["state_norm"][place]) < 1e-4
    told = some.heads_of(some.pool.slots()["s1"])
    assert [(each["layer"], each["head"]) for each in told] == [(1, 0), (1, 1)]
    own = some.pool.states[some.pool.slots()["s1"]][1]
    for each in told:
        sigma = torch.linalg.svdvals(own[int(each["head"])])
        assert abs(each["state_norm"] - float(own[int(each["head"])].norm())) < 1e-5
        assert each["largest_singular_value"] <= float(sigma[0]) * 1.001
        assert 0 < each["saturation"] <= 1
    assert chosen_layers("0:36:4", 36) == list(range(0, 36, 4))
    with pytest.raises(ConfigurationError, match=r"--monitor-layers 7: the memory's layers are 0\.\.1"):
        engine_of(folders, "heads", monitor_layers="7")


def test_a_model_that_overflows_leaves_the_state_as_it_was(folders: dict[str, Path]) -> None:
    engine = engine_of(folders, "token")
    calm, wild = Event("ann", tokens=[5, 6, 7]), Event("ann", tokens=[9, 9])
    feed(engine, [calm, Event("bob", tokens=[5, 6, 7])], 2)
    before = engine.pool.states.clone()
    with torch.inference_mode():
        engine.backbone.model.get_input_embeddings().weight[9] = float("nan")  # type: ignore[attr-defined]
    outcome = feed(engine, [wild, Event("bob", tokens=[8])], 2)[0]
    slots = engine.pool.slots()
    assert torch.equal(engine.pool.states[slots["ann"]], before[slots["ann"]])
    assert outcome.nonfinite > 0
    assert np.isnan(outcome.signals["write_error"][0])
    assert np.isfinite(outcome.signals["write_error"][1])
    assert not torch.equal(engine.pool.states[slots["bob"]], before[slots["bob"]])


def test_what_does_not_go_together_is_refused_in_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"backbone": "hashing"}, "an adapter goes to a language model"),
        ({"rank": 8}, "--rank 8: with --adapter that is the adapter's to say"),
        ({"gate_gain": 1.0}, "the gates are the adapter's"),
        ({"adapter": None, "context": "last:5"}, "only a model with an --adapter has a context"),
        ({"adapter": tmp_path}, "delta_mem_config.json"),
        ({"backbone": "hf:./nowhere"}, "there is no such folder"),
        ({"backbone": f"hf:{tmp_path}"}, "expected a folder or a hub name of a causal language model"),
        ({"context": "last:120"}, "give at most last:112"),
    ]
    for given, message in cases:
        with pytest.raises(ConfigurationError, match=message) as caught:
            engine_of(folders, "token", **given)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="none or last:N"):
        RunSettings(context="lots")


def test_texts_without_a_tokenizer_are_an_error_that_says_what_to_do(folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigurationError, match="events need `tokens` in place of `text`"):
        HFBackbone(str(folders["model"])).tokenize(["hello"])


def test_another_adapter_or_context_is_another_memory(folders: dict[str, Path], tmp_path: Path) -> None:
    backbone = HFBackbone(str(folders["model"]))
    seen = []
    for kind, context in (("token", 0), ("plain", 0), ("token", 24)):
        writer = AttachedWriter(backbone, folders[kind], context=context)
        writer.close()
        seen.append(json.dumps(writer.settings))
    assert len(set(seen)) == 3
    copy = tmp_path / "copy"
    copy.mkdir()
    for part in folders["token"].iterdir():
        (copy / part.name).write_bytes(part.read_bytes())
    writer = AttachedWriter(backbone, copy)
    assert json.dumps(writer.settings) == seen[0], "the same adapter elsewhere is the same memory"
    writer.close()
    tensors = load_file(copy / SAFETENSORS_FILE)
    name = sorted(tensors)[0]
    tensors[name] += 1
    save_file(tensors, copy / SAFETENSORS_FILE)
    (copy / "delta_mem_adapter.pt").unlink(missing_ok=True)
    assert AttachedWriter(backbone, copy).settings["--adapter"] != writer.settings["--adapter"]


def test_the_command_resumes_bit_for_bit_after_being_killed(
    warm: Warm, folders: dict[str, Path], tmp_path: Path
) -> None:
    warm.learn("transformers.models.qwen3.modeling_qwen3", "memory.writers", "memory.backbones.hf_backbone")
    source = tmp_path / "talk.jsonl"
    lines = [json.dumps({"stream": event.stream, "tokens": event.tokens or [3]}) for event in talk(60)]
    source.write_text("\n".join(lines) + "\n")

    def command(name: str) -> list[str]:
        return [
            "run", "--source", f"file:{source}", "--backbone",
            f"hf:{folders['model']}", "--adapter", str(folders["token"]), "--context", "last:16", "--policy",
            "decay_on_shift", "--state", f"sqlite:///{tmp_path}/{name}.db", "--sink", f"jsonl:{tmp_path}/{name}.jsonl",
            "--metrics-port", "0", "--threads", "1", "--batch-events", "4", "--checkpoint-every", "0",
        ]  # fmt: skip

    warm.run(command("whole"), check=True, timeout=240)
    sink = tmp_path / "killed.jsonl"
    with (tmp_path / "log").open("wb") as log:
        process = warm.start(command("killed"), log)
    while process.poll() is None and (not sink.exists() or sink.read_bytes().count(b"\n") < 20):
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert sink.read_bytes().count(b"\n") < 60, "it was to be killed before its end"
    warm.run(command("killed"), check=True, timeout=240)
    assert sink.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    shown = [
        warm.run(["inspect", "--state", f"sqlite:///{tmp_path}/{name}.db", "--json"], check=True).stdout
        for name in ("whole", "killed")
    ]
    assert shown[0] == shown[1]
    assert json.loads(sink.read_text().splitlines()[0])["action"]["kind"] == ActionKind.KEEP.label
