"""Agreement with the outputs of the published implementation, where they are at hand (they are private)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from memory.deltamem import attach
from memory.deltamem.adapter_io import PUBLISHED_FILE, read_tensors

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
TOLERANCE = 1e-4  # on logits and states, absolute


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _cases() -> list[str]:
    return sorted(path.parent.name for path in GOLDEN.glob("*/case.json"))


@pytest.fixture(params=_cases() or ["none"])
def folder(request: pytest.FixtureRequest) -> Path:
    if not _cases():
        pytest.skip("private data not here")
    return GOLDEN / str(request.param)


def _load(folder: Path, attention: str) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder / "base", attn_implementation=attention)
    return model.eval()


def _as_heads(state: Tensor) -> Tensor:
    return state[:, None] if state.ndim == 3 else state


def _largest_differences(folder: Path, attention: str) -> dict[str, float]:
    """Run a case chunk by chunk and return the largest difference of each kind, over real tokens."""
    case, expected = json.loads((folder / "case.json").read_text()), load_file(folder / "expected.safetensors")
    model = _load(folder, attention)
    worst = {"logits": 0.0, "states": 0.0}
    cache, at = None, 0
    with attach(model, folder / "adapter") as memory, torch.no_grad():
        memory.reset(len(expected["input_ids"]))
        for number, length in enumerate(case["chunks"]):
            chunk = {
                name: expected[name][:, at : at + length]
                for name in ("input_ids", "attention_mask", "message_ids", "sentence_ids")
                if name in expected
            }
            at += length
            memory.write_enabled = case["mode"] != "freeze" or number == 0
            if "message_ids" in chunk:
                memory.set_segments(chunk.pop("message_ids"), chunk.pop("sentence_ids", None))
            output = model(**chunk, past_key_values=cache, use_cache=case["mode"] == "cache")
            cache = output.past_key_values
            difference = (output.logits - expected[f"logits_{number}"]).abs()
            if attention != "eager" and "attention_mask" in chunk:
                difference = difference[chunk["attention_mask"].bool()]  # each kernel fills padded rows its own way
            worst["logits"] = max(worst["logits"], float(difference.max()))
            for name, state in memory.states.items():
                difference = (state - _as_heads(expected[f"state_{number}.{name}"])).abs()
                worst["states"] = max(worst["states"], float(difference.max()))
    return worst


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_and_states_agree_with_the_published_implementation(folder: Path, attention: str) -> None:
    worst = _largest_differences(folder, attention)
    print(folder.name, attention, worst)
    assert worst["logits"] < TOLERANCE
    assert worst["states"] < TOLERANCE


def test_the_frozen_model_is_the_one_of_the_case(folder: Path) -> None:
    expected = load_file(folder / "expected.safetensors")
    with torch.no_grad():
        logits = _load(folder, "eager")(expected["input_ids"]).logits
    assert float((logits - expected["base_logits"]).abs().max()) < TOLERANCE


@pytest.mark.parametrize("name", ["memory_k_proj", "beta_bias", "delta_o_proj"])
def test_the_comparison_notices_a_wrong_tensor(name: str, tmp_path: Path) -> None:
    """A comparison that could not fail would prove nothing: one tensor is off by a little in a copy of the adapter."""
    folder = GOLDEN / "tsw_qo"
    if not folder.exists():
        pytest.skip("private data not here")
    broken = {
        key: tensor * 1.01 if key.endswith(name) else tensor for key, tensor in read_tensors(folder / "adapter").items()
    }
    for part in ("base", "case.json", "expected.safetensors"):
        (tmp_path / part).symlink_to(folder / part)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "delta_mem_config.json").symlink_to(folder / "adapter" / "delta_mem_config.json")
    torch.save(broken, tmp_path / "adapter" / PUBLISHED_FILE)
    assert _largest_differences(tmp_path, "eager")["logits"] > 10 * TOLERANCE
