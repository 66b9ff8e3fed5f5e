"""Talking to an attached model, and the controls as a command: real processes on a tiny model with a byte tokenizer."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests.test_deltamem import random_adapter
from tests.test_deltamem_controls import _one_thread, copying, model, trained
from tests.warm import Warm

__all__ = ["_one_thread", "model", "trained"]  # fixtures


def byte_tokenizer() -> Any:
    """One token a byte."""
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: number for number, symbol in enumerate(["<pad>", "<eos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny random model that has a tokenizer, and a random adapter."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("talker")
    sizes: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 48, "vocab_size": 258, "max_position_embeddings": 256, "pad_token_id": 0,
        "eos_token_id": 1,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built: Any = Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=8))
        with torch.no_grad():
            for parameter in built.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0, 0.3)
    built.eval().save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    return folder / "model", random_adapter(built, folder / "adapter")


@pytest.fixture(scope="module")
def knowing(warm: Warm) -> Warm:
    """Starts commands that have language models imported."""
    warm.learn("transformers.models.qwen3.modeling_qwen3", "transformers.models.auto.tokenization_auto", "stream.chat")
    return warm


Ran = subprocess.CompletedProcess[str]


def chat(warm: Warm, talker: tuple[Path, Path], said: str, *more: str) -> Ran:
    where = ("--backbone", f"hf:{talker[0]}", "--adapter", str(talker[1]), "--threads", "1")
    return warm.run(["chat", *where, "--max-new-tokens", "12", *more], said=said, timeout=240)


def streams(warm: Warm, store: Path) -> Any:
    return json.loads(warm.run(["inspect", "--state", f"sqlite:///{store}", "--json"]).stdout)["streams"]


def test_a_chat_leaves_what_a_run_over_its_transcript_leaves(
    knowing: Warm, talker: tuple[Path, Path], tmp_path: Path
) -> None:
    first = chat(
        knowing, talker, "low water at noon\n/state\n", "--state", f"sqlite:///{tmp_path}/chat.db", "--stream", "ann"
    )
    assert first.returncode == 0, first.stderr
    assert "stream ann: a new memory" in first.stdout
    again = chat(knowing, talker, "when?\n", "--state", f"sqlite:///{tmp_path}/chat.db", "--stream", "ann")
    assert "stream ann: 2 messages remembered" in again.stdout

    from stream.chat import Chat
    from stream.config import RunSettings

    settings = RunSettings(backbone=f"hf:{talker[0]}", adapter=talker[1], threads=1)
    talk = Chat(settings, "ann", max_new_tokens=12)
    talk.open()
    replies = []
    for text in ("low water at noon", "when?"):
        pieces: list[str] = []
        replies.append(talk.say(text, pieces.append))
        assert "".join(pieces).strip() == replies[-1], "what was shown is what was said"
    talk.close()
    # The pipe turns \r into \n.
    assert replies[1].replace("\r", "\n") in again.stdout, "a restart makes no difference to the reply"

    source = tmp_path / "talk.jsonl"
    transcript = ["low water at noon", replies[0], "when?", replies[1]]
    source.write_text("".join(json.dumps({"stream": "ann", "text": text}) + "\n" for text in transcript if text))
    told = ("--backbone", f"hf:{talker[0]}", "--adapter", talker[1], "--state", f"sqlite:///{tmp_path}/run.db")
    ran = knowing.run(["run", "--source", f"file:{source}", *told, "--threads", 1, "--metrics-port", 0])
    assert ran.returncode == 0, ran.stderr
    assert streams(knowing, tmp_path / "run.db") == streams(knowing, tmp_path / "chat.db")


def test_freeze_reset_and_snapshot(knowing: Warm, talker: tuple[Path, Path], tmp_path: Path) -> None:
    store, shot = tmp_path / "state.db", tmp_path / "shot.safetensors"
    kept = ("--state", f"sqlite:///{store}")
    assert chat(knowing, talker, "low water at noon\n", *kept).returncode == 0
    before = streams(knowing, store)
    frozen = chat(
        knowing, talker, f"/freeze\nwhat was that?\n/snapshot {shot}\n/snapshot\n/snapshot /nowhere/x\n", *kept
    )
    assert "frozen: nothing is written" in frozen.stdout
    assert "expected a file: /snapshot states.safetensors" in frozen.stdout
    assert frozen.returncode == 0, "a file that cannot be written ends nothing"
    assert streams(knowing, store) == before
    with safe_open(shot, "pt") as opened:
        assert opened.metadata()["events"] == "2"
        names = sorted(opened.keys())
        assert names == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
        assert all(opened.get_tensor(name).shape == (1, 4, 4) and opened.get_tensor(name).any() for name in names)
    told = chat(knowing, talker, "/reset\n/state\n/what\n/quit\nnever said\n", *kept)
    assert "the state is zero" in told.stdout
    assert "/what: no such command" in told.stdout
    assert told.stdout.count("0.0000") >= 2, "the norms are shown"
    after = streams(knowing, store)
    assert after != before
    assert after[0]["events"] == before[0]["events"], "the message after /quit was not taken"


def test_on_a_terminal_there_is_a_prompt(talker: tuple[Path, Path]) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "stream.cli", "chat", "--backbone", f"hf:{talker[0]}", "--adapter", str(talker[1])],
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    seen = b""
    while b"\n> " not in seen.replace(b"\r", b""):
        seen += os.read(master, 4096)
    os.write(master, b"/help\n/quit\n")
    assert process.wait(timeout=120) == 0
    seen += os.read(master, 65536)
    os.close(master)
    assert b"/freeze" in seen
    assert b"nothing is kept after the end" in seen


def test_a_chat_that_cannot_be_is_refused_in_one_line(knowing: Warm, talker: tuple[Path, Path], tmp_path: Path) -> None:
    without = knowing.run(["chat", "--backbone", f"hf:{talker[0]}"])
    assert (without.returncode, without.stderr.count("\n")) == (2, 1)
    assert "--adapter is needed" in without.stderr
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((talker[0] / name).read_bytes())
    mute = knowing.run(["chat", "--backbone", f"hf:{bare}", "--adapter", talker[1]])
    assert (mute.returncode, mute.stderr.count("\n")) == (2, 1)
    assert "it has no tokenizer, so it cannot be talked to" in mute.stderr


def test_the_controls_find_a_trained_memory_and_are_not_fooled_by_a_random_one(
    knowing: Warm, model: Any, trained: Path, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "model")
    contexts, continuations = copying(120, seed=5)
    source = tmp_path / "talk.jsonl"
    with source.open("w") as lines:
        for number, (context, continuation) in enumerate(zip(contexts.tolist(), continuations.tolist(), strict=True)):
            lines.write(json.dumps({"stream": f"s{number}", "tokens": context}) + "\n")
            lines.write(json.dumps({"stream": f"s{number}", "tokens": continuation}) + "\n")
    sizes = ("--context-tokens", "4", "--continuation-tokens", "2", "--threads", "1")

    def told(adapter: Path) -> list[str]:
        where = ("--backbone", f"hf:{tmp_path / 'model'}", "--adapter", str(adapter), "--source", f"file:{source}")
        return ["controls", *where, *sizes]

    found = json.loads(knowing.run([*told(trained), "--json"]).stdout)
    assert found["remembers"]
    assert found["passages"] == 120
    assert {name: each["verdict"] for name, each in found["gain"].items()} == dict.fromkeys(
        ("zero", "donor", "layer_permuted", "random", "off"), "gain"
    )
    shown = knowing.run(told(random_adapter(model, tmp_path / "random", rank=8)))
    assert "120 passages of 120 streams" in shown.stdout, shown.stderr
    assert "The state's content was not shown to help." in " ".join(shown.stdout.split())
    few = knowing.run([*told(trained), "--context-tokens", "900"], timeout=240)
    assert few.returncode == 2
    assert "902 tokens of two streams are needed, the longest have [6, 6]" in few.stderr
