"""Make `memory/backbones/minilm_mean.npy`: the mean embedding of all-MiniLM-L6-v2 over generated conversations.

    python -m benchmarks.minilm_mean

The 4,096 messages are those of `ebbtide generate --scenario abrupt --streams 16 --events 256 --seed 20261121`.
"""

from __future__ import annotations

import numpy as np

from memory.backbones import load_backbone
from memory.backbones.minilm_backbone import MEAN
from stream.generate import GenerateSettings, generate

SETTINGS = GenerateSettings(scenario="abrupt", streams=16, events=256, seed=20261121)


def main() -> None:
    if not MEAN.exists():
        np.save(MEAN, np.zeros(384, np.float32))  # the backbone loads one; what it encodes does not depend on it
    backbone = load_backbone("minilm")
    ids = backbone.tokenize([event["text"] for event, _ in generate(SETTINGS)])
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids])])
    embedding = backbone.encode(np.concatenate(ids), offsets, want_hidden=False).embedding.numpy()
    mean = embedding.astype(np.float64).mean(axis=0).astype(np.float32)
    np.save(MEAN, mean)
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    print(f"{len(ids)} messages; ‖mean‖ / mean ‖embedding‖ = {np.linalg.norm(unit.mean(axis=0)):.3f}; wrote {MEAN}")


if __name__ == "__main__":
    main()
