"""How far off a replay under another policy is when the memory was attached to a language model.

    python -m benchmarks.replay_attached [--events N] [--seeds N] [--json FILE]

What a layer reads from its state changes what the next layer is given, so under another policy the keys and values on
a tape are exact for the first layer only. Here a tiny random model (hidden 64, 4 layers, rank 8) with a random adapter
runs under `none` and is taped; the tape is replayed under another policy, and the model runs under that policy itself.
The table compares the two, layer by layer: the distance of the states over their norm (`states`), and of the write
errors over theirs (`write error`). `spread` scales the adapter's random weights: how strongly reads feed back.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.report import print_table
from memory.deltamem import new_adapter
from memory.deltamem.adapter_io import read_tensors, write_adapter
from memory.deltamem.config import AdapterConfig
from memory.threads import set_threads
from monitors.policies import DecayPolicy, Policy, ScheduledResetPolicy
from stream.config import RunSettings
from stream.consumer import Consumer
from stream.replay import replay

STREAMS, RANK, LAYERS = 4, 8, 4
POLICIES: dict[str, Policy] = {
    "decay 0.9": DecayPolicy(factor=0.9),
    "reset every 20": ScheduledResetPolicy(every=20),
}
SPREADS = (0.03, 0.1, 0.3)


def tiny(folder: Path, spread: float, seed: int) -> dict[str, Any]:
    """Write a random model and a random adapter; return the settings that load them."""
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            hidden_size=64,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            intermediate_size=128,
            vocab_size=256,
        )
    ).eval()
    model.save_pretrained(folder / "model")
    settings = {"rank": RANK}
    new_adapter(model, settings, folder / "fresh", seed=seed)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: tensor + spread * torch.randn(tensor.shape, generator=generator)
        for name, tensor in read_tensors(folder / "fresh").items()
    }
    write_adapter(folder / "adapter", AdapterConfig(**settings), tensors)
    return {"backbone": f"hf:{folder / 'model'}", "adapter": folder / "adapter"}


def talk(path: Path, events: int, seed: int) -> None:
    """Write events of random tokens."""
    dice = np.random.default_rng(seed)
    with path.open("w") as file:
        for number in range(events):
            tokens = dice.integers(3, 256, dice.integers(4, 24)).tolist()
            file.write(json.dumps({"stream": f"s{number % STREAMS}", "tokens": tokens}) + "\n")


def run(settings: dict[str, Any], source: Path, policy: Path | str, tape: Path | None = None) -> Consumer:
    """Run the consumer over the events."""
    consumer = Consumer(RunSettings(source=f"file:{source}", policy=str(policy), tape=tape, metrics_port=0, **settings))
    try:
        consumer.open()
        consumer.run()
    finally:
        consumer.close()
    return consumer


def states(engine: Any) -> np.ndarray[Any, Any]:
    """Return all states `[streams, layers, heads, R, R]`, by the stream's name."""
    slots = engine.pool.slots()
    return np.stack([engine.pool.states[slots[name]].numpy() for name in sorted(slots)]).astype(np.float64)


def measure(spread: float, events: int, seed: int) -> list[dict[str, Any]]:
    """Return one row a policy and layer."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = tiny(folder, spread, seed)
        talk(folder / "talk.jsonl", events, seed)
        run(settings, folder / "talk.jsonl", "none", folder / "tape")
        again = replay(folder / "tape", POLICIES)
        for (label, policy), engine, result in zip(POLICIES.items(), again.engines, again.results, strict=True):
            file = folder / "policy.yaml"
            file.write_text(json.dumps(policy.model_dump(mode="json")))
            real = run(settings, folder / "talk.jsonl", file)
            seen = real.metrics.distribution("ebbtide_policy_write_error_ratio", "policy", "live")
            assert seen is not None
            truth, taped = states(real.engine), states(engine)
            off = np.sqrt(((truth - taped) ** 2).sum(axis=(0, 2, 3, 4)) / (truth**2).sum(axis=(0, 2, 3, 4)))
            error = seen.sum / seen.count
            for layer, share in enumerate(off.tolist()):
                rows.append({"policy": label, "layer": layer, "states": share})
            rows.append(
                {"policy": label, "layer": "all", "write error": abs(result.means["write_error"] - error) / error}
            )
    return rows


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    set_threads(1)
    table = []
    for spread in SPREADS:
        runs = [measure(spread, given.events, seed) for seed in range(given.seeds)]
        for rows in zip(*runs, strict=True):
            what = next(name for name in ("states", "write error") if name in rows[0])
            table.append({"spread": spread, **rows[0], what: median(row[what] for row in rows)})
    print_table(f"Replay against the model itself, median of {given.seeds} seeds", table)
    if given.json:
        given.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
