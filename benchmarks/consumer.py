"""The whole consumer: how fast, where the time goes, what it adds to the bare model, and whether its memory stays flat.

    python -m benchmarks.consumer [--quick] [--json FILE] [--only throughput|minilm|memory|tape|policies]

Everything is on: parsing, the reader's thread, scan, all signals, detectors (our own and river's), a policy, the JSONL
sink, dead letters, SQLite checkpoints, the HTTP server. Speeds are of this machine at this moment; shares and ratios
are within one run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.report import print_table
from memory.backbones import load_backbone
from memory.backbones.minilm_backbone import MiniLMBackbone
from stream.batch import MicroBatch
from stream.config import RunSettings
from stream.consumer import Consumer
from stream.generate import GenerateSettings, generate
from stream.http import create_app
from stream.http_server import HttpServer
from stream.service import ConsumerService

READER_STAGES = ("parse", "tokenize")
TOKENS = 16


def write_events(path: Path, streams: int, events: int, seed: int = 0) -> int:
    """Write `events` events of 16 tokens each, over `streams` streams in random order; return the bytes written."""
    rng = np.random.default_rng(seed)
    settings = GenerateSettings(scenario="recurring", streams=1, events=2000, seed=seed)
    words = " ".join(event["text"] for event, _ in generate(settings)).replace(".", "").replace(",", "").split()
    plain = np.array(sorted({word.lower() for word in words if word.isalnum()}))
    with path.open("w", encoding="utf-8") as file:
        for number in range(events):
            text = " ".join(rng.choice(plain, TOKENS))
            event = {
                "stream": f"user-{rng.integers(streams):06d}",
                "id": str(number),
                "ts": 1.7e9 + number,
                "text": text,
            }
            file.write(json.dumps(event) + "\n")
    return path.stat().st_size


def consume(source: Path, folder: Path, **settings: Any) -> Consumer:
    """Run the consumer over a file with everything on, and return it, closed."""
    options = {
        "source": f"file:{source}",
        "backbone": "hashing",
        "policy": "decay_on_shift",
        "state": f"sqlite:///{folder}/state.db",
        "sink": f"jsonl:{folder}/out.jsonl",
        **settings,
    }
    with ExitStack() as stack:
        consumer = Consumer(RunSettings(**options))
        stack.callback(consumer.close)
        consumer.open()
        server = HttpServer(create_app(ConsumerService(consumer)), "127.0.0.1", 0)
        stack.callback(server.stop)
        server.start()
        consumer.run()
    return consumer


def throughput(quick: bool) -> list[dict[str, Any]]:
    """Events per second with `hashing`, and the share of each stage."""
    events, streams, runs = (20_000, 1_000, 1) if quick else (100_000, 1_000, 3)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "events.jsonl"
        write_events(source, streams, events)
        warm = Path(folder) / "warm.jsonl"
        write_events(warm, streams, 2_000)
        for run in range(-1, runs):
            place = Path(folder) / f"run{run}"
            place.mkdir()
            consumer = consume(warm if run < 0 else source, place)
            if run >= 0:
                results.append(consumer.totals)
    rates = [totals.events / totals.seconds for totals in results]
    middle = results[int(np.argsort(rates)[len(rates) // 2])]
    rows: list[dict[str, Any]] = [
        {"what": "events/s", "median": median(rates), "min": min(rates), "max": max(rates), "goal": 20_000}
    ]
    for stage, seconds in sorted(middle.stages.items(), key=lambda item: -item[1]):
        thread = "reader" if stage in READER_STAGES else "loop"
        each = seconds / middle.events * 1e6
        rows.append({"stage": stage, "thread": thread, "share of run": seconds / middle.seconds, "µs/event": each})
    loop = sum(seconds for stage, seconds in middle.stages.items() if stage not in READER_STAGES)
    rest = middle.seconds - loop
    each = rest / middle.events * 1e6
    rows.append(
        {"stage": "batching, waiting, rest", "thread": "loop", "share of run": rest / middle.seconds, "µs/event": each}
    )
    print_table(f"hashing, {events:,} events of {TOKENS} tokens, {streams:,} streams, {runs} runs", rows[:1])
    print_table("where the time goes (median run)", rows[1:])
    return rows


def minilm(quick: bool) -> list[dict[str, Any]]:
    """The consumer with `minilm` over the bare model's forward on the same texts, passes and batch sizes."""
    runs, events = (1, 200) if quick else (5, 600)
    settings = GenerateSettings(scenario="recurring", streams=6, events=events // 6, seed=1)
    ratios, rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "events.jsonl"
        source.write_text("".join(json.dumps(event) + "\n" for event, _ in generate(settings)))
        backbone = load_backbone("minilm")
        assert isinstance(backbone, MiniLMBackbone)
        for run in range(runs + 1):
            place = Path(folder) / f"run{run}"
            place.mkdir()
            batches: list[MicroBatch] = []
            with ExitStack() as stack:
                consumer = Consumer(
                    RunSettings(
                        source=f"file:{source}",
                        backbone="minilm",
                        policy="decay_on_shift",
                        state=f"sqlite:///{place}/state.db",
                        sink=f"jsonl:{place}/out.jsonl",
                    )
                )
                stack.callback(consumer.close)
                consumer.open()
                consumer._take = _keeping(consumer._take, batches)  # type: ignore[method-assign]
                whole = consumer.run().seconds
            start = time.perf_counter()
            for batch in batches:
                for tokens, mask in passes(backbone, batch):
                    with torch.inference_mode():
                        backbone.model(input_ids=tokens, attention_mask=mask)
            bare = time.perf_counter() - start
            if run:  # the first one warms up
                ratios.append(whole / bare)
                rows.append({"run": run, "consumer s": whole, "bare forward s": bare, "ratio": whole / bare})
    rows.append({"run": "median", "ratio": median(ratios), "goal": 1.10})
    print_table(f"minilm, {events} messages: the consumer over the bare forward", rows)
    return rows


def tape(quick: bool) -> list[dict[str, Any]]:
    """The consumer with `hashing`, recording and not, in turns: what a tape costs in events per second and bytes."""
    events, runs = (10_000, 2) if quick else (50_000, 5)
    ratios, size = [], 0
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "events.jsonl"
        write_events(source, 1_000, events)
        for run in range(-1, runs):
            seconds = {}
            for name, given in (("without", {}), ("with", {"tape": Path(folder) / f"tape{run}"})):
                place = Path(folder) / f"run{run}{name}"
                place.mkdir()
                seconds[name] = consume(source, place, **given).totals.seconds
            if run >= 0:  # the first pair warms up
                ratios.append(seconds["with"] / seconds["without"])
            size = sum(part.stat().st_size for part in (Path(folder) / f"tape{run}").iterdir())
    rows = [
        {
            "what": "time with a tape over time without",
            "median": median(ratios),
            "min": min(ratios),
            "max": max(ratios),
            "goal": 1.10,
        },
        {"what": "bytes of tape an event", "median": size / events},
    ]
    print_table(f"hashing, {events:,} events of {TOKENS} tokens, {runs} pairs of runs", rows)
    return rows


def duplicates(quick: bool) -> list[dict[str, Any]]:
    """The consumer with `hashing`, with the window of ids and without, in turns: what knowing duplicates costs."""
    events, runs = (10_000, 2) if quick else (50_000, 9)
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "events.jsonl"
        write_events(source, 1_000, events)
        for run in range(-1, runs):
            seconds = {}
            for window in (0, 64) if run % 2 else (64, 0):
                place = Path(folder) / f"run{run}-{window}"
                place.mkdir()
                seconds[window] = consume(source, place, policy="none", dedupe_window=window).totals.seconds
            if run >= 0:  # the first pair warms up
                ratios.append(seconds[64] / seconds[0])
    rows = [
        {
            "what": "time with --dedupe-window 64 over time with 0",
            "median": median(ratios),
            "min": min(ratios),
            "max": max(ratios),
        }
    ]
    print_table(f"hashing, {events:,} events of {TOKENS} tokens, {runs} pairs of runs", rows)
    return rows


POLICIES: dict[str, dict[str, Any]] = {
    "none": {"policy": "none"},
    "decay_on_shift": {"policy": "decay_on_shift"},
    "auto": {"policy": "auto"},
    "none, none as a shadow": {"policy": "none", "shadow": ("none",)},
    "none, auto in a dry run": {"policy": "auto", "dry_run": True},
}


def policies(quick: bool) -> list[dict[str, Any]]:
    """The consumer with `hashing` under policies and with shadows, in turns: what each costs beside `none`."""
    events, runs = (10_000, 2) if quick else (50_000, 5)
    seconds: dict[str, list[float]] = {name: [] for name in POLICIES}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "events.jsonl"
        write_events(source, 1_000, events)
        for run in range(-1, runs):
            for name, given in POLICIES.items():
                place = Path(folder) / f"{run}-{name}"
                place.mkdir()
                spent = consume(source, place, **given).totals.seconds
                if run >= 0:  # the first round warms up
                    seconds[name].append(spent)
    rows = []
    for name, spent_all in seconds.items():
        ratios = [spent / base for spent, base in zip(spent_all, seconds["none"], strict=True)]
        rows.append(
            {
                "policy": name,
                "events/s": events / median(spent_all),
                "time over none": median(ratios),
                "min": min(ratios),
                "max": max(ratios),
            }
        )
    print_table(f"hashing, {events:,} events of {TOKENS} tokens, {runs} rounds", rows)
    return rows


def _keeping(take: Callable[[MicroBatch], None], kept: list[MicroBatch]) -> Callable[[MicroBatch], None]:
    """Return `take`, which also puts each batch into `kept`."""

    def take_and_keep(batch: MicroBatch) -> None:
        kept.append(batch)
        take(batch)

    return take_and_keep


def passes(backbone: MiniLMBackbone, batch: MicroBatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the very inputs that the backbone gives the model for this batch: the same rows, lengths and padding."""
    from memory.backbones.minilm_backbone import _passes

    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in batch.ids])])
    ids = np.concatenate(batch.ids)
    return [backbone.inputs(ids, windows) for _, windows in _passes(offsets)]


def memory(quick: bool) -> list[dict[str, Any]]:
    """Resident memory of the process over a stream, and over one ten times as long."""
    events = 10_000 if quick else 50_000
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for times in (1, 10):
            source = Path(folder) / f"events{times}.jsonl"
            size = write_events(source, 1_000, events * times)
            place = Path(folder) / f"run{times}"
            place.mkdir()
            command = [sys.executable, "-m", "benchmarks.consumer", "--child", str(source), str(place)]
            peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
            rows.append({"events": events * times, "input MB": size / 1e6, "peak resident MB": peak / 1e3})
    rows.append({"events": "ratio", "peak resident MB": rows[1]["peak resident MB"] / rows[0]["peak resident MB"]})
    print_table("resident memory, hashing, 1,000 streams", rows)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=["throughput", "minilm", "memory", "tape", "duplicates", "policies"])
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        import resource

        consume(*arguments.child)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    parts = {
        "throughput": throughput,
        "minilm": minilm,
        "memory": memory,
        "tape": tape,
        "duplicates": duplicates,
        "policies": policies,
    }
    chosen = [arguments.only] if arguments.only else list(parts)
    result = {name: parts[name](arguments.quick) for name in chosen}
    if arguments.json:
        machine = {"cpus": os.cpu_count(), "torch_threads": torch.get_num_threads()}
        arguments.json.write_text(json.dumps({"machine": machine, **result}, indent=1))


if __name__ == "__main__":
    main()
