"""What the memory keeps of a conversation, for how long, and which rule, rank, gates and granularity keep most.

    python -m benchmarks.retention [--source FILE] [--only minilm|hashing] [--quick] [--cache DIR]
                                   [--json FILE] [--markdown FILE] [--plot FILE]

FILE is any file of events. Without it: the private conversations that the defaults were chosen on where they are there,
else generated streams. The streams are taken in turn into a half to choose on and a half to report on.

How a default is chosen:

1. A message is asked for by its key, whatever the granularity of the writes. With h the hit rate and c the control's
   (`benchmarks.retention_measures`), the score of a setting is the share (h − c) / (1 − c) of what the map between keys
   and values leaves open: the mean over the ages 4–15, 16–63 and 64–255 messages, on the conversations to choose on,
   the median over the seeds of the projections. Where c is over 1 − `ROOM`, `ROOM` stands for 1 − c.
2. A setting may cost `MOST_BYTES` of state a stream and `MOST_MICROSECONDS` of one core a message (writes, 16 probes
   and stable rank, in a batch of 256 streams).
3. Of one rank's settings, those within `TIE` of the best score are alike; of these, the one with the largest share at
   the ages 0 and 1–3 is taken.
4. From the smallest rank up, a larger rank is taken if it scores at least `GAIN` more for each doubling since the
   rank taken last: a doubling is four times the bytes.

`docs/retention.md` says what of this was fixed before there were results, and what was changed when they came.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from benchmarks.consumer import consume, write_events
from benchmarks.retention_measures import CHOICES, MEASURES, Floats, Ids, Pairs, Project, follow, lift
from benchmarks.retention_report import as_json, curve_svg, markdown, print_results
from memory.backbones import BACKBONES, Backbone, load_backbone
from memory.probes import probe_errors
from memory.projections import Projected, Projections
from memory.scan_forms import scan
from memory.spectral import largest_singular_value
from memory.threads import set_threads, threads, torch_threads
from stream.generate import GenerateSettings, Scenario, generate

PRIVATE = Path(__file__).resolve().parents[2] / "shared" / "data" / "locomo" / "events.jsonl"

RANKS = (8, 16, 32, 64, 128)
BETAS = (0.02, 0.05, 0.18, 0.5, 1.0)
BETWEEN = (0.3, 0.7)
"""Two more β for mode plain, around the best of the others."""
RETAINED = {"segment": 0.995, "token": 0.9998}
"""λ of mode gated, a write: half is left after 140 messages, given 27 tokens a message."""

WARM_UP = 100
"""Messages written before the first question."""

MOST_BYTES = (4 << 30) // 100_000
"""100,000 streams' states fit in the default pool."""
MOST_MICROSECONDS = {"hashing": 5.0, "minilm": 150.0}
"""A twentieth of the 100 µs that 20,000 events/s leave on two cores; a hundredth of MiniLM's own forward pass."""
TIE, GAIN, ROOM = 0.02, 0.05, 0.1
SCORED = slice(2, 5)
"""The age buckets 4–15, 16–63 and 64–255."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One backbone's view of the conversations.

    Attributes
    ----------
    backbone
        The model.
    messages, tokens
        For each conversation: one row a message (its embedding), one row a token (its hidden state).
    generated
        `[D]`: the mean embedding over generated conversations.
    """

    backbone: Backbone
    messages: list[Pairs]
    tokens: list[Pairs]
    generated: Tensor


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to write a memory.

    Attributes
    ----------
    backbone, write, rank, mode, beta, lam, gain
        As the consumer's options; `lam` None where the mode has no gate of its own or λ = 1 − β.
    mean
        What is subtracted from hidden states: ``shipped`` (the backbone's own), ``none``, ``generated`` (the mean over
        generated conversations), ``elsewhere`` (that of the other conversations) or ``running`` (that of the messages
        before, in the same conversation; a pair is asked for as it was written).
    values
        ``unit`` or ``raw`` length.
    """

    backbone: str
    write: str
    rank: int
    mode: str
    beta: float
    lam: float | None = None
    gain: float = 0.0
    mean: str = "shipped"
    values: str = "unit"


def gates(write: str, quick: bool) -> list[tuple[str, float, float | None]]:
    """List (mode, β, λ). Left out: β = 1 where keep = 1 − β, which leaves nothing of what was before."""
    if quick:
        return [("coupled", 0.18, None), ("coupled", 0.02, None), ("plain", 0.18, None), ("plain", 0.5, None)]
    fixed = [(mode, beta, None) for mode in ("coupled", "decay_outside") for beta in BETAS[:-1]]
    return [
        *fixed,
        *(("plain", beta, None) for beta in (*BETAS, *BETWEEN)),
        *(("gated", beta, RETAINED[write]) for beta in BETAS[2:]),
    ]


def cells(name: str, quick: bool) -> Iterator[list[Setting]]:
    """Yield the settings of one backbone, those that share keys and values together."""
    for write in ("segment",) if quick else ("segment", "token"):
        for rank in (8, 32) if quick else RANKS:
            yield [Setting(name, write, rank, *gate) for gate in gates(write, quick)]
    if quick:
        return
    some = [("coupled", 0.02, None), ("plain", 0.18, None), ("plain", 0.5, None)]
    own = "generated" if name == "hashing" else "none"  # hashing ships no mean, MiniLM that of generated conversations
    for write, rank in (("segment", 32), ("segment", 64), ("token", 64)):
        for mean in (own, "elsewhere", "running") if write == "segment" else ("elsewhere",):
            yield [Setting(name, write, rank, *gate, mean=mean) for gate in some]
        yield [Setting(name, write, rank, *gate, values="raw") for gate in some]
        yield [Setting(name, write, rank, *gate, gain=gain) for gate in some for gain in (20.0, 60.0)]


def measure(encoded: Encoded, cell: Sequence[Setting], seeds: int, every: int) -> list[dict[str, Any]]:
    """Measure settings that share keys and values on every conversation; return a line for each and each question."""
    first = cell[0]
    by_mode: dict[str, list[Setting]] = {}
    for setting in cell:
        by_mode.setdefault(setting.mode, []).append(setting)
    asks = {"message": encoded.messages} | ({"token": encoded.tokens} if first.write == "token" else {})
    if first.mean == "running":
        asks = {"message": [pairs.less_running_mean() for pairs in encoded.messages]}
    writes = encoded.tokens if first.write == "token" else asks["message"]
    found: dict[tuple[Setting, str], list[Floats]] = {}
    for number, pairs in enumerate(writes):
        mean = _mean(encoded, writes, number, first)
        heads: dict[str, list[list[Project]]] = {
            mode: [[_head(encoded.backbone.dim, setting, mean, seed) for seed in range(seeds)] for setting in settings]
            for mode, settings in by_mode.items()
        }
        tallies = follow(number, pairs, asks, heads, every=every, warm_up=WARM_UP)
        for (mode, asked), tally in tallies.items():
            mean_by_setting = tally.mean()
            for row, setting in enumerate(by_mode[mode]):
                found.setdefault((setting, asked), []).append(mean_by_setting[:, :, :, row])
    return [
        asdict(setting) | {"ask": asked} | _summary(np.stack(numbers)) for (setting, asked), numbers in found.items()
    ]


def _mean(encoded: Encoded, writes: Sequence[Pairs], number: int, setting: Setting) -> Tensor | None:
    """Return μ `[D]` for the conversation `number`."""
    if setting.mean == "generated":
        return encoded.generated
    if setting.mean == "elsewhere":
        return torch.cat([pairs.rows for other, pairs in enumerate(writes) if other != number]).mean(dim=0)
    if setting.mean in ("none", "running") or encoded.backbone.mean is None:
        return None
    return torch.from_numpy(encoded.backbone.mean)


@cache
def _directions(dim: int, rank: int, seed: int, gated: bool) -> Projections:
    return Projections(dim, 1, rank, beta=0.5, gain=float(gated), seed=seed)


def _head(dim: int, setting: Setting, mean: Tensor | None, seed: int) -> Project:
    project = copy(_directions(dim, setting.rank, seed, setting.gain > 0))  # orthonormal rows are slow to make
    project.beta, project.gain, project.lam, project.mean = setting.beta, setting.gain, setting.lam, mean
    if setting.values == "unit":
        return project

    def raw(rows: Tensor) -> Projected:
        out = project(rows)
        centred = rows if mean is None else rows - mean
        v = (centred @ project.weight[setting.rank : 2 * setting.rank].T)[:, None]
        return Projected(out.q, out.k, v, out.beta, out.lam)

    return raw


def _summary(by_conversation: Floats) -> dict[str, Any]:
    """Sum up `[conversations, 3, 3, A, seeds]`: for each half, medians over seeds of the means over conversations."""
    halves: dict[str, Any] = {}
    for name, part in (("chosen_on", by_conversation[0::2]), ("reported_on", by_conversation[1::2])):
        kinds = _mean_over(part)[0]  # [3, A, seeds]: what past pairs gave
        lifts = _mean_over(np.stack([lift(mean) for mean in part]))
        share = lifts[2] / np.maximum(1 - kinds[2] + lifts[2], ROOM)
        score = share[SCORED].mean(axis=0)
        half: dict[str, Any] = {
            "score": _round(np.median(score)),
            "score_least": _round(score.min()),
            "score_most": _round(score.max()),
            "score_by_lift": _round(np.median(lifts[2, SCORED].mean(axis=0))),
            "recent": _round(np.median(share[:2].mean(axis=0))),
            "share": _rounded(share),
        }
        for measured, past, above in zip(MEASURES, kinds, lifts, strict=True):
            half[measured] = _rounded(past)
            half[f"{measured}_control"] = _rounded(past + above if measured == "error" else past - above)
            half[f"{measured}_lift"] = _rounded(above)
        halves[name] = half
    return halves


def _rounded(by_seed: Floats) -> list[float | None]:
    """Return the medians over the last axis, the seeds."""
    return [_round(number) for number in np.median(by_seed, axis=-1)]


def _mean_over(numbers: Floats) -> Floats:
    """Return the mean over the first axis, of what is not NaN; NaN where there is nothing."""
    held = np.isfinite(numbers)
    with np.errstate(invalid="ignore"):
        mean: Floats = np.where(held, numbers, 0.0).sum(axis=0) / held.sum(axis=0)
    return mean


def _round(number: Any) -> float | None:
    return round(float(number), 3) if np.isfinite(number) else None


def costs(ranks: Sequence[int], tokens: int, *, consumer: bool, lanes: int = 256) -> list[dict[str, Any]]:
    """Time one message by rank, in µs of one core in a batch of `lanes` streams.

    Parameters
    ----------
    ranks
        R.
    tokens
        Tokens of one message.
    consumer
        Whether to run the whole consumer too.
    lanes
        Streams in the batch.

    Returns
    -------
    list
        A line for each rank: the state's bytes; the write of one row, and of one row a token; 16 probes and the stable
        rank; the sums for both granularities; and the consumer's events per second of CPU time, as a share of the
        smallest rank's.
    """
    before = threads()
    set_threads(1)
    try:
        with torch_threads(1):
            lines = [_cost(rank, tokens, lanes) for rank in ranks]
    finally:
        set_threads(before)
    if consumer:
        speeds = consumer_speeds(ranks)
        for line in lines:
            line["consumer"] = round(speeds[line["rank"]] / speeds[ranks[0]], 2)
    return lines


def _cost(rank: int, tokens: int, lanes: int) -> dict[str, Any]:
    states, slots = torch.zeros(lanes, 1, rank, rank), np.arange(lanes)
    noise = np.random.default_rng(0).standard_normal((lanes, 16, 1, rank)).astype(np.float32)
    directions = noise[:, 1].copy()
    k = torch.nn.functional.normalize(torch.from_numpy(noise[:, 0]).repeat(tokens, 1, 1), dim=-1)
    beta, lane = torch.full((len(k), 1, 1), 0.5), torch.from_numpy(slots)

    def write(each: int) -> None:
        rows, ends = k[: lanes * each], torch.arange(0, lanes * each + 1, each)
        scan(states, lane, lane, ends, rows, rows, rows, beta[: lanes * each], mode="plain", want_reads=False)

    def look() -> None:
        probe_errors(states, slots, noise, noise)
        largest_singular_value(states, slots, directions)

    segment, token, beside = (_fastest(work) / lanes * 1e6 for work in (lambda: write(1), lambda: write(tokens), look))
    return {
        "rank": rank,
        "bytes": 4 * rank**2,
        "segment_write": round(segment, 2),
        "token_writes": round(token, 2),
        "probes_and_stable_rank": round(beside, 2),
        "segment": round(segment + beside, 2),
        "token": round(token + beside, 2),
    }


def _fastest(work: Callable[[], None], repeats: int = 20) -> float:
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def choose(
    lines: Sequence[Mapping[str, Any]],
    cost: Sequence[Mapping[str, Any]],
    most_microseconds: float,
    by: Literal["score", "score_by_lift"] = "score",
) -> Mapping[str, Any]:
    """Choose a backbone's default by the rule in this file's head.

    Parameters
    ----------
    lines
        As `measure` gives them, of one backbone; variants that the consumer has no option for are passed over.
    cost
        As `costs` gives them.
    most_microseconds
        The cap.
    by
        The score; ``score_by_lift`` is the mean of h − c instead.

    Returns
    -------
    Mapping
        The line chosen.
    """
    price = {line["rank"]: line for line in cost}
    taken: Mapping[str, Any] | None = None
    for rank in sorted(price):
        settings = [
            line
            for line in lines
            if line["rank"] == rank
            and line["ask"] == "message"
            and (line["mean"], line["values"], line["gain"]) == ("shipped", "unit", 0.0)
            and price[rank][line["write"]] <= most_microseconds
        ]
        if not settings or price[rank]["bytes"] > MOST_BYTES:
            continue
        best = max(line["chosen_on"][by] for line in settings)
        alike = [line for line in settings if line["chosen_on"][by] >= best - TIE]
        winner = max(alike, key=lambda line: line["chosen_on"]["recent"])
        if taken is None:
            taken = winner
            continue
        doublings = float(np.log2(rank / taken["rank"]))
        if winner["chosen_on"][by] >= taken["chosen_on"][by] + GAIN * doublings:
            taken = winner
    if taken is None:
        raise ValueError(f"no setting costs at most {most_microseconds} µs and {MOST_BYTES} bytes")
    return taken


def read_texts(source: Path | None, quick: bool) -> tuple[str, list[list[str]]]:
    """Return what the conversations are, and their messages."""
    if source is None and not PRIVATE.exists():
        name = "generated streams (2 recurring, 2 abrupt)"
        kinds: tuple[Scenario, ...] = ("recurring", "abrupt")
        texts: dict[str, list[str]] = {}
        for scenario in kinds:
            for event, _ in generate(GenerateSettings(scenario=scenario, streams=2, events=500, seed=1)):
                texts.setdefault(f"{scenario}/{event['stream']}", []).append(event["text"])
    else:
        path = source or PRIVATE
        name, texts = ("LoCoMo" if source is None else path.name), {}
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            texts.setdefault(record["stream"], []).append(record["text"])
    long = [messages for messages in texts.values() if len(messages) >= WARM_UP + CHOICES]
    if len(long) < 2:
        raise SystemExit(
            f"retention: expected at least 2 streams of {WARM_UP + CHOICES} messages or more, got {len(long)} in {name}"
        )
    return name, [messages[:300] for messages in long[:2]] if quick else long


def encode(name: str, texts: Sequence[Sequence[str]], cache: Path | None) -> Encoded:
    """Encode every message once, or take it from `cache`."""
    backbone = load_backbone(name)
    settings = GenerateSettings(scenario="abrupt", streams=16, events=16, seed=20261121)
    made = [event["text"] for event, _ in generate(settings)]
    flat = [text for messages in texts for text in messages]
    ids = backbone.tokenize([*flat, *made])
    kept = np.array([len(row) > 0 for row in ids])
    conversation = np.repeat(np.arange(len(texts)), [len(messages) for messages in texts])
    conversation = np.concatenate([conversation, np.full(len(made), -1)])[kept]
    ids = [row for row in ids if len(row)]
    lengths = np.array([len(row) for row in ids])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    embedding, hidden = _forward(backbone, np.concatenate(ids), offsets, cache)
    messages, tokens = [], []
    for number in range(len(texts)):
        mine = conversation == number
        of_token = np.repeat(mine, lengths)
        messages.append(Pairs(embedding[mine], np.arange(int(mine.sum()))))
        tokens.append(Pairs(hidden[of_token], np.repeat(np.arange(int(mine.sum())), lengths[mine])))
    return Encoded(backbone, messages, tokens, embedding[conversation == -1].mean(dim=0))


def _forward(backbone: Backbone, ids: Ids, offsets: Ids, cache: Path | None) -> tuple[Tensor, Tensor]:
    digest = sha256(backbone.fingerprint.encode() + ids.tobytes() + offsets.tobytes()).hexdigest()[:16]
    path = None if cache is None else cache / f"{backbone.name}-{digest}.npz"
    if path is not None and path.exists():
        with np.load(path, allow_pickle=False) as stored:
            return torch.from_numpy(stored["embedding"]), torch.from_numpy(stored["hidden"])
    encoded = backbone.encode(ids, offsets, want_hidden=True)
    hidden = cast(Tensor, encoded.hidden)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, embedding=encoded.embedding.numpy(), hidden=hidden.numpy())
    return encoded.embedding, hidden


def consumer_speeds(ranks: Sequence[int], streams: int = 5000, events: int = 40_000) -> dict[int, float]:
    """Run the whole consumer (hashing, SQLite, everything on) at each rank; return events per second of CPU time."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "events.jsonl"
        write_events(source, streams, events)
        speeds: dict[int, float] = {}
        for turn in range(2):
            for rank in ranks:
                place = Path(folder) / f"{rank}-{turn}"
                place.mkdir()
                start = time.process_time()
                consume(source, place, rank=rank, mode="plain", write="segment")
                speeds[rank] = max(speeds.get(rank, 0.0), events / (time.process_time() - start))
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description="What the memory keeps of a conversation, by age.")
    parser.add_argument("--source", type=Path, help="a file of events, JSON Lines")
    parser.add_argument("--only", choices=BACKBONES, help="one backbone")
    parser.add_argument("--quick", action="store_true", help="two conversations, few settings: half a minute")
    parser.add_argument("--cache", type=Path, help="a folder that keeps hidden states for another run")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--plot", type=Path, help="an SVG")
    options = parser.parse_args()
    name, texts = read_texts(options.source, options.quick)
    seeds, every = (2, 50) if options.quick else (3, 25)
    about: dict[str, str | int] = {"source": name, "conversations": len(texts), "messages": sum(map(len, texts))}
    about |= {"seeds": seeds, "every": every}
    print(", ".join(f"{key}: {value}" for key, value in about.items()))
    lines: list[dict[str, Any]] = []
    found: dict[str, list[dict[str, Any]]] = {}
    tokens = 0
    for backbone in (options.only,) if options.only else BACKBONES:
        encoded = encode(backbone, texts, options.cache)
        mine: list[dict[str, Any]] = []
        for cell in cells(backbone, options.quick):
            start = time.perf_counter()
            mine += measure(encoded, cell, seeds, every)
            print(f"{backbone} {cell[0].write} R={cell[0].rank}: {time.perf_counter() - start:.1f} s", flush=True)
        lines += mine
        found[backbone] = mine
        tokens = round(float(np.mean([len(pairs.message) / (pairs.message[-1] + 1) for pairs in encoded.tokens])))
    cost = costs(sorted({line["rank"] for line in lines}), tokens, consumer=not options.quick)
    choice = {name: choose(mine, cost, MOST_MICROSECONDS[name]) for name, mine in found.items()}
    results = {**about, "costs": cost, "choice": choice, "lines": lines}
    print_results(results)
    if options.json:
        options.json.write_text(as_json(results), encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(markdown(results), encoding="utf-8")
    if options.plot:
        options.plot.write_text(curve_svg(results), encoding="utf-8")


if __name__ == "__main__":
    main()
