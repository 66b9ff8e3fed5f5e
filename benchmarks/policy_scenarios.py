"""Streams of associations that change in known ways, for measuring what policies do to a memory.

Sentences come from `stream.generate`, so nothing private is needed; keys are projected MiniLM embeddings of them, so
the keys of one topic resemble each other as they do in life; values are random unit codes, so that no linear map from
keys can guess them. An event says one association: its key is that of the association's sentence, and its embedding,
which a policy may look at, is the mean of that sentence's and of one more sentence of the same topic (people say more
than the fact). Which topic is spoken of when follows `stream.generate.schedule`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from memory.backbones import load_backbone
from memory.projections import Projections
from stream.generate import GenerateSettings, generate, topic_names
from stream.generate.dice import Dice
from stream.generate.schedule import schedule

Floats32 = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

SCENARIOS = ("stationary", "abrupt", "gradual", "recurring", "rebinding", "noise", "overload", "locomo")
"""Their names in the results."""
STATIONARY = ("stationary", "rebinding")
"""Those whose topic never changes: a policy can only do harm there."""

EVENTS = 576
"""Events of one stream: 24 visits of 24 events on average."""
FACTS, MANY_FACTS = 8, 48
"""Associations of a topic; and in the scenario `overload`."""
SENTENCES = 64
"""Sentences of each topic that are made into keys and embeddings."""
BURST, BURST_SHARE, REBIND_SHARE = 6, 0.15, 0.1
PRIVATE = Path(__file__).resolve().parents[2] / "shared" / "data" / "locomo" / "events.jsonl"


@dataclass(frozen=True, slots=True)
class Streams:
    """One scenario on N seeds of E events; every array has a row for each seed.

    Attributes
    ----------
    scenario, seeds
        Its name, and the seeds.
    keys, values
        `[N, E, R]` float32: what each event writes.
    embeddings
        `[N, E, D]` float32, of length 1, less the backbone's mean.
    topics
        `[N, E]` int64: the topic in force, from 0 in the order of first mention; what an oracle is told.
    begins
        `[N, E]` int64: the event at which the present visit to the topic began.
    asked
        `[N, E, P]` int64: the events whose pairs are true now and are asked for after this one; −1 for an empty place.
    """

    scenario: str
    seeds: Ints
    keys: Floats32
    values: Floats32
    embeddings: Floats32
    topics: Ints
    begins: Ints
    asked: Ints


@cache
def sentences_of(topic: str) -> Floats32:
    """Return the embeddings of `SENTENCES` different sentences of a topic, `[SENTENCES, D]`, centred, of length 1."""
    settings = GenerateSettings(scenario="stationary", streams=1, events=4 * SENTENCES, seed=7, topics=(topic,))
    return _embed(list(dict.fromkeys(event["text"] for event, _ in generate(settings)))[:SENTENCES])


@cache
def _keys_of(topic: str, rank: int, seed: int) -> Floats32:
    """Return the keys of a topic's sentences, `[SENTENCES, R]`."""
    rows = sentences_of(topic)
    keys: Floats32 = _projections(rows.shape[1], rank, seed)(torch.from_numpy(rows)).k.numpy()[:, 0]
    return keys


def _embed(texts: Sequence[str]) -> Floats32:
    backbone = load_backbone("minilm")
    ids = backbone.tokenize(texts)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids])])
    rows: Floats32 = backbone.encode(np.concatenate(ids), offsets, want_hidden=False).embedding.numpy()
    return _unit(rows if backbone.mean is None else rows - backbone.mean)


def _unit(rows: Any) -> Floats32:
    scaled: Floats32 = (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)
    return scaled


@cache
def _projections(dim: int, rank: int, seed: int) -> Projections:
    return Projections(dim, 1, rank, beta=0.5, seed=seed)


def make(scenario: str, seeds: Sequence[int], rank: int, events: int = EVENTS) -> Streams:
    """Make one scenario on several seeds.

    Parameters
    ----------
    scenario
        One of `SCENARIOS`.
    seeds
        Everything random in a stream follows from its seed and the scenario.
    rank
        R.
    events
        E. `locomo` has as many as its shortest conversation, at most these.

    Raises
    ------
    FileNotFoundError
        `locomo`, where the private conversations are not.
    """
    if scenario == "locomo":
        return _conversations(seeds, rank, events)
    made = [_stream(scenario, seed, rank, events) for seed in seeds]
    return Streams(scenario, np.asarray(seeds, np.int64), *(np.stack(parts) for parts in zip(*made, strict=True)))


def _stream(scenario: str, seed: int, rank: int, events: int) -> tuple[Any, ...]:
    """Return keys, values, embeddings, topics, begins and asked of one stream."""
    kind = {"noise": "recurring", "overload": "recurring"}.get(scenario, scenario)
    settings = GenerateSettings(scenario=kind, seed=seed, events=events, recurring_topics=6)
    facts = MANY_FACTS if scenario == "overload" else FACTS
    dice = Dice("policies", scenario, seed)
    random = np.random.Generator(np.random.Philox(key=[seed, 77]))
    names = topic_names()
    told = {name: dice.shuffled(list(range(SENTENCES)))[:facts] for name in names}

    rows: dict[str, list[Any]] = {name: [] for name in ("key", "value", "embedding", "topic", "begin")}
    asked = np.full((events, facts), -1, np.int64)
    value_of: dict[tuple[str, int], Floats32] = {}
    last: dict[str, dict[int, int]] = {}
    number: dict[str, int] = {}
    begin, left = 0, 0
    for at, moment in zip(range(events), schedule(settings, Dice("topics", seed, 0)), strict=False):
        begin = at if moment.boundary else begin
        name = moment.spoken
        fact = dice.choose(told[name])
        junk = left > 0
        if scenario == "noise":
            left = left - 1 if junk else BURST if dice.chance(BURST_SHARE / BURST) else 0
        if junk:  # words of another topic, with a value that is never asked for
            other = dice.choose([one for one in names if one != moment.topic])
            which = dice.pick(SENTENCES)
            key, value = _keys_of(other, rank, seed)[which], _code(random, rank)
            embedding = sentences_of(other)[which]
        else:
            if (name, fact) not in value_of or (scenario == "rebinding" and dice.chance(REBIND_SHARE)):
                value_of[name, fact] = _code(random, rank)
            key, value = _keys_of(name, rank, seed)[fact], value_of[name, fact]
            embedding = _unit(sentences_of(name)[fact] + sentences_of(name)[dice.pick(SENTENCES)])
            last.setdefault(name, {})[fact] = at
        rows["key"].append(key)
        rows["value"].append(value)
        rows["embedding"].append(embedding)
        rows["topic"].append(number.setdefault(moment.topic, len(number)))
        rows["begin"].append(begin)
        now = list(last.get(moment.topic, {}).values())
        asked[at, : len(now)] = now
    return (
        *(np.stack(rows[name]).astype(np.float32) for name in ("key", "value", "embedding")),
        *(np.array(rows[name], np.int64) for name in ("topic", "begin")),
        asked,
    )


def _code(random: np.random.Generator, rank: int) -> Floats32:
    return _unit(random.standard_normal(rank))


def _conversations(seeds: Sequence[int], rank: int, events: int) -> Streams:
    """Real conversations: seed s is conversation s mod 6 under projections of its own. A topic is a dated session."""
    conversations = list(_read(PRIVATE))
    events = min(events, *(len(rows) for rows, _ in conversations))
    made = []
    for seed in seeds:
        rows, sessions = conversations[seed % len(conversations)]
        out = _projections(rows.shape[1], rank, seed)(torch.from_numpy(rows[:events]))
        topics = np.unique(sessions[:events], return_inverse=True)[1].astype(np.int64)
        begins = np.maximum.accumulate(np.where(np.diff(topics, prepend=topics[0]) != 0, np.arange(events), 0))
        back = np.arange(events)[:, None] - np.arange(32)
        asked = np.where(back >= begins[:, None], back, -1)
        made.append((out.k.numpy()[:, 0], out.v.numpy()[:, 0], rows[:events], topics, begins, asked))
    return Streams("locomo", np.asarray(seeds, np.int64), *(np.stack(parts) for parts in zip(*made, strict=True)))


def _read(path: Path) -> Iterator[tuple[Floats32, Any]]:
    texts: dict[str, list[tuple[str, int]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        session = int(event["id"].split(":")[0].removeprefix("D"))
        texts.setdefault(event["stream"], []).append((event["text"], session))
    for rows in texts.values():
        yield _embed([text for text, _ in rows]), np.array([session for _, session in rows])
