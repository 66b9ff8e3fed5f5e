"""Tapes: what was recorded replays to the bit, belongs to the checkpoint, and is never read when damaged."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from memory.errors import ConfigurationError, EbbtideError
from monitors.detectors import parse_detector
from monitors.policies import load_policy
from stream.append_file import AppendFile
from stream.config import RunSettings
from stream.consumer import Consumer
from stream.engine import Engine
from stream.generate import GenerateSettings, write_stream
from stream.replay import Replay, recorded_policy, replay
from stream.tape import TapeReader, TapeWriter
from stream.tape.taped_writer import TapedWriter
from tests.test_attached_writer import _one_thread, folders, talk
from tests.warm import Warm

__all__ = ["_one_thread", "folders"]  # fixtures

STREAMS, EVENTS = 4, 40


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "talk.jsonl"
    settings = GenerateSettings(scenario="recurring", streams=STREAMS, events=EVENTS, mean_topic_length=8, seed=3)
    write_stream(settings, path)
    return path


def record(source: Path, folder: Path, **given: Any) -> Consumer:
    settings = {
        "source": f"file:{source}",
        "backbone": "hashing",
        "policy": "decay_on_shift",
        "tape": folder / "tape",
        "metrics_port": 0,
        "batch_events": 16,
        "checkpoint_every": 0,
    }
    consumer = Consumer(RunSettings(**settings | given))
    try:
        consumer.open()
        consumer.run()
    finally:
        consumer.close()
    return consumer


def again(folder: Path) -> Replay:
    tape = folder / "tape"
    return replay(tape, {"own": recorded_policy(TapeReader(tape).head)})


def states(engine: Any) -> dict[str, Any]:
    return {name: (entry.state, entry.beside) for name, entry in engine.pool.records()}


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"policy": "reset_on_shift", "write": "token", "mode": "coupled", "beta": 0.1},
        {"policy": "decay", "mode": "gated", "lam": 0.97, "write": "token", "gate_gain": 1.0},
        {"mode": "decay_outside", "rank": 5, "policy": "adaptive_gates"},
        {"policy": "policy: auto\nenter: 0.05\n", "backbone": "minilm", "batch_events": 64},
        {"policy": "archive", "backbone": "minilm", "batch_events": 64},
    ],
    ids=["plain", "tokens, reset", "own gates", "learnt gates", "auto", "archive, minilm"],
)
def test_the_runs_own_policy_replays_to_the_bit(source: Path, tmp_path: Path, given: dict[str, Any]) -> None:
    if "\n" in given.get("policy", ""):
        (tmp_path / "policy.yaml").write_text(given["policy"])
        given = given | {"policy": str(tmp_path / "policy.yaml")}
    consumer = record(source, tmp_path, **given)
    done = again(tmp_path)
    (result,) = done.results
    assert (result.events, result.differing) == (STREAMS * EVENTS, 0)
    untouched = replay(tmp_path / "tape", {"none": load_policy("none")}).engines[0]
    assert not torch.equal(done.engines[0].pool.states, untouched.pool.states), "the policy did nothing"
    assert not done.late
    own, replayed = states(consumer.engine), states(done.engines[0])
    # What the topic monitor keeps is not made again, its scores are on the tape; nor is how events arrived.
    assert own.keys() == replayed.keys()
    for name, (state, beside) in own.items():
        assert replayed[name][0] == state
        for part, blob in beside.items():
            assert part.startswith(("topic/", "arrivals/")) or replayed[name][1][part] == blob, part


@pytest.mark.parametrize("policy", ["none", "adaptive_gates"])
def test_an_attached_models_run_replays_too(folders: dict[str, Path], tmp_path: Path, policy: str) -> None:
    """Live, what is written is known after the model ran, and on the tape before: the policy must see the same."""
    source = tmp_path / "talk.jsonl"
    source.write_text("".join(json.dumps({"stream": e.stream, "tokens": e.tokens or [3]}) + "\n" for e in talk(30)))
    consumer = record(
        source, tmp_path, backbone=f"hf:{folders['model']}", adapter=folders["heads"], policy=policy, threads=1
    )
    own_policy = recorded_policy(TapeReader(tmp_path / "tape").head)
    done = replay(tmp_path / "tape", {"own": own_policy, "decay": load_policy("decay")})
    own, replayed, other = states(consumer.engine), states(done.engines[0]), states(done.engines[1])
    for name, (state, _) in own.items():
        assert replayed[name][0] == state
        assert other[name][0] != state


def test_other_policies_and_detectors_give_other_results(source: Path, tmp_path: Path) -> None:
    record(source, tmp_path)
    policies = {name: load_policy(name) for name in ("none", "decay")}
    done = replay(tmp_path / "tape", policies, detectors={})
    none, decay = done.results
    assert none.actions == {"keep": STREAMS * EVENTS}
    assert decay.actions_per_1000 == 1000
    assert decay.differing > 0
    assert none.alarms == {"non_finite": 0}
    assert none.means["state_norm"] > decay.means["state_norm"]
    assert none.means["topic_shift_score"] == decay.means["topic_shift_score"], "it depends on no policy"


def test_any_arrow_reader_opens_it_and_texts_are_there_only_if_asked_for(source: Path, tmp_path: Path) -> None:
    record(source, tmp_path)
    part = tmp_path / "tape" / "part-000000.arrows"
    assert part.stat().st_mode & 0o777 == 0o600
    table = pa.ipc.open_stream(str(part)).read_all()
    assert table.num_rows == STREAMS * EVENTS
    assert "text" not in table.schema.names
    words = [word for line in source.read_text().splitlines() for word in json.loads(line)["text"].split()]
    longest = max(words, key=len).encode()
    assert longest not in part.read_bytes()
    (tmp_path / "other").mkdir()
    record(source, tmp_path / "other", tape_text=True)
    told = pa.ipc.open_stream(str(tmp_path / "other" / "tape" / "part-000000.arrows")).read_all()
    assert told["text"].to_pylist() == [json.loads(line)["text"] for line in source.read_text().splitlines()]
    assert again(tmp_path / "other").results[0].differing == 0
    keys = np.array(table["keys"].to_pylist())
    assert np.allclose(np.linalg.norm(keys, axis=1), 1, atol=1e-6)


def test_a_tape_is_cut_back_to_its_checkpoint_after_a_kill(warm: Warm, source: Path, tmp_path: Path) -> None:
    def command(name: str) -> list[str]:
        return [
            "run", "--source", f"file:{source}", "--backbone", "hashing",
            "--policy", "decay_on_shift", "--state", f"sqlite:///{tmp_path}/{name}.db", "--tape",
            str(tmp_path / name / "tape"), "--sink", f"jsonl:{tmp_path}/{name}.jsonl", "--metrics-port", "0",
            "--batch-events", "4", "--checkpoint-every", "0",
        ]  # fmt: skip

    warm.run(command("whole"), check=True)
    for lines in (20, 70, 130):
        sink = tmp_path / "killed.jsonl"
        with (tmp_path / "log").open("wb") as log:
            process = warm.start(command("killed"), log)
        while process.poll() is None and (not sink.exists() or sink.read_bytes().count(b"\n") < lines):
            time.sleep(0.001)
        process.kill()
        process.wait()
    part = tmp_path / "killed" / "tape" / "part-000000.arrows"
    with part.open("ab") as file:
        file.write(b"\xff\xff\xff\xff\x40\0\0\0torn")  # a message that a crash cut short
    warm.run(command("killed"), check=True)
    assert part.read_bytes() == (tmp_path / "whole" / "tape" / "part-000000.arrows").read_bytes()
    assert again(tmp_path / "killed").results[0].differing == 0


def test_what_was_damaged_is_not_read(source: Path, tmp_path: Path) -> None:
    record(source, tmp_path)
    part = tmp_path / "tape" / "part-000000.arrows"
    whole, first = part.read_bytes(), len(TapeReader(tmp_path / "tape").head.model_dump_json())
    found = 0
    for seed in range(60):
        place = int(np.random.default_rng(seed).integers(first + 2000, len(whole) - 9))
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (seed % 8)
        part.write_bytes(bytes(damaged))
        told = ""
        try:
            result = again(tmp_path)
        except EbbtideError as error:
            told = str(error)
        if told:
            assert "damaged" in told, told
            found += 1
        else:  # padding between columns, or what Arrow itself does not use
            assert result.results[0].differing == 0
            assert result.results[0].events == STREAMS * EVENTS
    assert found > 40


def test_a_tape_that_ends_in_mid_batch_is_read_up_to_there(source: Path, tmp_path: Path) -> None:
    record(source, tmp_path)
    part = tmp_path / "tape" / "part-000000.arrows"
    part.write_bytes(part.read_bytes()[:-700])
    with pytest.raises(EbbtideError, match=r"ends in the middle of record batch \d+: a run was killed there"):
        again(tmp_path)
    done = replay(tmp_path / "tape", {"own": recorded_policy(TapeReader(tmp_path / "tape").head)}, partial=True)
    assert done.torn == part
    assert 0 < done.results[0].events < STREAMS * EVENTS
    assert done.results[0].differing == 0


def test_parts_follow_each_other_and_one_begun_after_the_checkpoint_goes(source: Path, tmp_path: Path) -> None:
    record(source, tmp_path)
    reader = TapeReader(tmp_path / "tape")
    whole = list(reader.batches())
    taped = TapedWriter(reader.head)
    taped.keeps_rows = True
    watching = {name: parse_detector(given) for name, given in reader.head.detectors.items()}
    engine = Engine(taped, detectors=watching, policy=recorded_policy(reader.head), every=reader.head.every)
    folder = tmp_path / "parts"
    writer = TapeWriter(folder, reader.head, part_bytes=30_000)
    writer.open(None)
    marks = []
    for batch in whole:  # recorded once more, from the tape itself
        writer.write(engine.process(*taped.load(batch)))
        marks.append((writer.flush(), writer.identity))
    writer.close()
    parts = sorted(folder.iterdir())
    assert len(parts) > 2
    for copy, batch in zip(TapeReader(folder).batches(), whole, strict=True):
        for name in set(copy.schema.names) - {"ts"}:
            assert repr(copy[name].to_pylist()) == repr(batch[name].to_pylist()), name
    back = TapeWriter(folder, reader.head, part_bytes=30_000)
    back.open(*marks[2])
    back.close()
    assert len(list(TapeReader(folder).batches())) == 3


def test_what_cannot_be_a_tape_is_refused_in_one_line(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected the folder of a tape"):
        TapeReader(tmp_path)
    (tmp_path / "part-000000.arrows").write_bytes(b"something else")
    with pytest.raises(ConfigurationError, match="this is no tape of Ebbtide"):
        TapeReader(tmp_path)
    record(source, tmp_path / "run")
    with pytest.raises(ConfigurationError, match="expected a new or empty folder"):
        record(source, tmp_path / "run")
    other = AppendFile(tmp_path / "x", of_lines=False)
    other.open(None)
    other.append(b"no newline")
    assert other.flush() == 10
    other.close()


def test_streams_that_joined_late_are_said(source: Path, tmp_path: Path) -> None:
    state = f"sqlite:///{tmp_path}/state.db"
    lines = source.read_text().splitlines(keepends=True)
    grown = tmp_path / "grown.jsonl"
    grown.write_text("".join(lines[:100]))
    record(grown, tmp_path, state=state, tape=None)
    grown.write_text("".join(lines))
    record(grown, tmp_path / "second", state=state)
    done = again(tmp_path / "second")
    assert len(done.late) == STREAMS
    assert done.results[0].events == len(lines) - 100


def test_the_command_compares_policies(warm: Warm, source: Path, tmp_path: Path) -> None:
    record(source, tmp_path)
    command = ["replay", str(tmp_path / "tape"), "--policy", "none"]
    shown = warm.run(command, check=True).stdout
    assert "every bit" in shown
    assert "none" in shown
    told = json.loads(warm.run([*command, "--json"], check=True).stdout)
    assert [row["policy"] for row in told["policies"]] == ["(as recorded)", "none"]
    assert told["policies"][0]["differing"] == 0
    twice = warm.run([*command, "--policy", "none"])
    assert (twice.returncode, twice.stderr) == (2, "ebbtide: --policy none: given twice\n")
