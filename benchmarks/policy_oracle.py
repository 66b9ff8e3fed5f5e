"""What policies are compared with: an oracle that is told shifts and topics, and the soft form of the archive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.policy_scenarios import Floats32, Streams
from memory.predict import prediction_errors
from monitors.policies import TopicBelief

Write = Callable[[Floats32, Floats32, Floats32], Floats32]
"""States `[n, R, R]`, keys and values `[n, R]` → the states after."""
Look = Callable[[Floats32, int], None]
"""Measures the states `[n, R, R]` after event t."""

BEST_ACTIONS = (
    "nothing",
    "decay",
    "reset",
    "weaken",
    "archive, from zero",
    "archive, from a weakened state",
    "archive",
)
"""What an oracle may do, the same at every shift: `archive` alone begins a new topic with the state as it is."""
WEAKENED, DECAY = np.float32(0.3), np.float32(0.99)


def run_oracle(streams: Streams, action: str, write: Write, look: Look) -> None:
    """Take one of `BEST_ACTIONS` at each true shift, before the event that begins the new topic is written."""
    n, events, rank = streams.keys.shape
    states = np.zeros((n, rank, rank), np.float32)
    filed: dict[tuple[int, int], Floats32] = {}
    begin_with = {
        "archive, from zero": np.float32(0),
        "archive, from a weakened state": WEAKENED,
        "archive": np.float32(1),
    }
    for t in range(events):
        for lane in np.flatnonzero((streams.begins[:, t] == t) & (t > 0)).tolist():
            if action == "reset":
                states[lane] = 0
            elif action == "weaken":
                states[lane] *= WEAKENED
            elif action in begin_with:
                filed[lane, int(streams.topics[lane, t - 1])] = states[lane].copy()
                old = filed.get((lane, int(streams.topics[lane, t])))
                states[lane] = states[lane] * begin_with[action] if old is None else old
        if action == "decay":
            states *= DECAY
        states = write(states, streams.keys[:, t], streams.values[:, t])
        look(states, t)


def run_soft(streams: Streams, write: Write, look: Look, belief: TopicBelief, most: int = 12) -> None:
    """The soft form: every state is written and read in proportion to the belief in its topic; no action, no alarm.

    As Mixture-of-Memories (arXiv 2502.13685) routes, with the belief of `TopicBelief` for the router. A newcomer whose
    belief passes one half is filed, in the place of the one least believed in lately.
    """
    n, events, rank = streams.keys.shape
    ways, each = most + 1, np.arange(n)
    states = np.zeros((n, ways, rank, rank), np.float32)
    centroids = np.zeros((n, ways, streams.embeddings.shape[2]), np.float32)
    held, used_at = np.zeros((n, ways), np.bool_), np.full((n, most), -1)
    weight: Any = np.zeros((n, ways + 1))
    held[:, 0] = held[:, -1] = True
    weight[:, 0] = 1
    for t in range(events):
        key, value, embedding = streams.keys[:, t], streams.values[:, t], streams.embeddings[:, t]
        places = np.where(held, each[:, None] * ways + np.arange(ways), -1)
        pairs = torch.from_numpy(key[:, None].copy()), torch.from_numpy(value[:, None].copy())
        errors = prediction_errors(
            torch.from_numpy(states.reshape(-1, 1, rank, rank)), places, each, each * 0 + 1, *pairs
        )
        size = np.linalg.norm(centroids, axis=2)
        likeness = np.where(size > 0, np.einsum("nwd,nd->nw", centroids, embedding) / np.maximum(size, 1e-9), np.nan)
        again = np.zeros(n, np.bool_)
        if t:
            weight, again = belief.step(weight, held, errors, likeness)
        states[again, -1], centroids[again, -1] = 0, 0
        written = write(states.reshape(-1, rank, rank), np.repeat(key, ways, 0), np.repeat(value, ways, 0))
        share = weight[:, :-1].astype(np.float32)
        share[:, -1] = 1  # the newcomer learns from the first event on
        states += share[..., None, None] * (written.reshape(states.shape) - states)
        centroids += share[..., None] * embedding[:, None]
        for lane in np.flatnonzero(weight[:, -2] > 0.5).tolist():
            at = int(np.where(held[lane, :-1], used_at[lane], -2).argmin())
            states[lane, at], centroids[lane, at], held[lane, at] = states[lane, -1], centroids[lane, -1], True
            weight[lane, at], weight[lane, -2] = weight[lane, -2], 0
            weight[lane] /= weight[lane].sum()
        used_at[each, weight[:, :most].argmax(axis=1)] = t
        read = weight[:, :-1] / weight[:, :-1].sum(axis=1, keepdims=True)
        look(np.ascontiguousarray(np.einsum("nw,nwij->nij", read.astype(np.float32), states)), t)
