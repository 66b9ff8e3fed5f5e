"""Labelled dialogues as the topic-shift training sees them: every utterance encoded once, kept in a cache."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from memory.backbones.minilm_backbone import MiniLMBackbone
from monitors.topic_head import BAG, bucket
from stream.generate import GenerateSettings, write_stream

Index = npt.NDArray[np.int64]

BATCH = 256
"""Utterances of one forward pass."""


def read_dialogues(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return each dialogue's utterances, in order; a file may interleave its dialogues."""
    dialogues: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        dialogues.setdefault(row["stream"], []).append(row)
    return dialogues


def bare(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the utterances without a speaker's name in front, so that a model cannot lean on it alone."""
    return [{**row, "text": re.sub(r"^(user|agent): ", "", row["text"]) or "."} for row in rows]


def generated(scenario: str, streams: int = 14, events: int = 150, seed: int = 5) -> list[dict[str, Any]]:
    """Return generated streams with their truth."""
    with TemporaryDirectory() as folder:
        out, truth = Path(folder, "events.jsonl"), Path(folder, "truth.jsonl")
        settings = GenerateSettings(scenario=scenario, streams=streams, events=events * streams // 14, seed=seed)
        write_stream(settings, out, truth)
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        marks = [json.loads(line) for line in truth.read_text().splitlines()]
    labelled = [{**row, "boundary": int(mark["boundary"])} for row, mark in zip(rows, marks, strict=True)]
    return sorted(labelled, key=lambda row: row["stream"])


def encode(rows: Sequence[dict[str, Any]], cache: Path, backbone: MiniLMBackbone) -> dict[str, npt.NDArray[Any]]:
    """Return embeddings, end states, tokens and labels of utterances; from the cache where it has them."""
    if not cache.exists():
        ids = backbone.tokenize([row["text"] for row in rows])
        embeddings, ends = [], []
        for at in range(0, len(ids), BATCH):
            part = ids[at : at + BATCH]
            offsets = np.concatenate([[0], np.cumsum([len(row) for row in part])])
            encoded = backbone.encode(np.concatenate(part), offsets, want_hidden=True)
            assert encoded.hidden is not None
            hidden = encoded.hidden.numpy()
            embeddings.append(encoded.embedding.numpy())
            pairs = pairwise(offsets)
            ends.append(np.stack([[hidden[a], hidden[b - 1], hidden[a:b].max(axis=0)] for a, b in pairs]))
        np.savez(
            cache,
            emb=np.concatenate(embeddings),
            extra=np.concatenate(ends).astype(np.float16),
            ids=np.concatenate(ids),
            off=np.concatenate([[0], np.cumsum([len(row) for row in ids])]),
            stream=np.array([row["stream"] for row in rows]),
            y=np.array([row["boundary"] for row in rows]),
        )
    with np.load(cache, allow_pickle=False) as file:
        return {name: file[name] for name in ("emb", "extra", "ids", "off", "stream", "y")}


@dataclass
class Bank:
    """All utterances in one table of N rows, and the dialogues as rows of it.

    Attributes
    ----------
    unit
        `[N, D]`: embeddings, centred and scaled to length 1.
    ends
        `[N, 3 D]`: hidden states of the first token, the last, and the maximum.
    bag, first, last
        `[N, BAG]`, `[N]` and `[N]` int64: hash buckets of token ids; the number of buckets stands for none.
    length
        `[N]`: log(1 + tokens).
    label
        `[N]`: 1 where a new topic begins.
    dialogues
        Set → rows of each of its dialogues.
    """

    unit: torch.Tensor
    ends: torch.Tensor
    bag: torch.Tensor
    first: torch.Tensor
    last: torch.Tensor
    length: torch.Tensor
    label: Index
    dialogues: dict[str, list[Index]] = field(default_factory=dict)


def build(sets: dict[str, dict[str, npt.NDArray[Any]]], mean: npt.NDArray[np.float32], buckets: int) -> Bank:
    """Lay sets end to end."""
    emb = np.concatenate([one["emb"] for one in sets.values()]) - mean
    unit = emb / np.maximum(np.linalg.norm(emb, axis=1, keepdims=True), 1e-9)
    count = len(unit)
    bag, first, last = np.full((count, BAG), buckets), np.full(count, buckets), np.full(count, buckets)
    length = np.zeros(count, np.float32)
    dialogues: dict[str, list[Index]] = {}
    at = 0
    for name, one in sets.items():
        hashed = bucket(one["ids"], buckets)
        for row, (start, end) in enumerate(zip(one["off"][:-1], one["off"][1:], strict=True), at):
            tokens = hashed[start:end]
            bag[row, : min(BAG, len(tokens))] = tokens[:BAG]
            first[row], last[row] = tokens[0], tokens[-1]
            length[row] = math.log1p(len(tokens))
        starts = np.flatnonzero(np.r_[True, one["stream"][1:] != one["stream"][:-1]])
        bounds = zip(starts, np.r_[starts[1:], len(one["stream"])], strict=True)
        dialogues[name] = [np.arange(a, b) + at for a, b in bounds]
        at += len(one["stream"])
    ends = np.concatenate([one["extra"].reshape(len(one["y"]), -1) for one in sets.values()]).astype(np.float32)
    return Bank(
        unit=torch.from_numpy(unit.astype(np.float32)),
        ends=torch.from_numpy(ends),
        bag=torch.from_numpy(bag),
        first=torch.from_numpy(first),
        last=torch.from_numpy(last),
        length=torch.from_numpy(length),
        label=np.concatenate([one["y"] for one in sets.values()]).astype(np.int64),
        dialogues=dialogues,
    )
