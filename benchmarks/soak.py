"""A soak: a real run for millions of events over more streams than its pool holds, watched all the time.

    python -m benchmarks.soak [--quick] [--folder DIR] [--json FILE] [--picture FILE]

Ten million events of 100,000 streams (see `benchmarks/traffic.py` for who talks when) go through a pipe into `ebbtide
run` with the hashing backbone, `decay_on_shift`, a JSONL sink and an SQLite store, and a pool for a tenth of the
streams: the others are spilled to the store and come back. Every few seconds the kernel is asked for the process's
memory, descriptors and threads, and the run itself for its metrics.

At the end 200 streams, drawn by a seed, are computed once more, alone, from the same events by an engine that never
spills, and compared bit for bit: their states, all that is kept beside them, and each of their records in the sink.

A soak that was interrupted goes on from its last checkpoint when it is given the same folder.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

from benchmarks.report import print_table
from benchmarks.soak_check import check
from benchmarks.soak_report import draw, figures
from benchmarks.traffic import BLOCK, Traffic
from benchmarks.watched_run import Scrape, WatchedRun, buckets, quantile, value
from stream.config import RunSettings
from stream.store import StateStore

QUICK = {"events": 150_000, "streams": 20_000, "rank": 32}
FULL = {"events": 10_000_000, "streams": 100_000, "rank": 32}
EVERY = {True: 1.0, False: 5.0}
"""Seconds between samples, of the quick form and of the full one."""

ENOUGH = 500
"""Batches, about, over which each p99 is taken: fewer have no hundredth."""


def settings_of(folder: Path, streams: int, rank: int, share: float) -> RunSettings:
    """Return what the run is told."""
    return RunSettings(
        source="stdin:",
        stdin_continues=True,
        backbone="hashing",
        rank=rank,
        policy="decay_on_shift",
        state=f"sqlite:///{folder}/state.db",
        sink=f"jsonl:{folder}/out.jsonl",
        pool_bytes=int(streams * share) * 4 * rank**2,
    )


def options_of(settings: RunSettings) -> list[str]:
    """Return the same as options of the command line."""
    options = ["--log-format", "plain"]
    for name in ("source", "backbone", "rank", "policy", "state", "sink", "pool_bytes"):
        options += ["--" + name.replace("_", "-"), str(getattr(settings, name))]
    return [*options, "--stdin-continues"]


def stored_events(state: str) -> int:
    """Return how many events a store has, 0 where there is none."""
    if not Path(state.removeprefix("sqlite:///")).exists():
        return 0
    store = StateStore(state, create=False)
    try:
        rows = store.load().counters.get("ebbtide_events_total", [[0]])
        return int(rows[0][-1])
    finally:
        store.close()


def feed(traffic: Traffic, first: int, pipe: BinaryIO) -> None:
    """Write all events from a number on, as fast as they are taken, and end the input."""
    try:
        for number, lines in enumerate(traffic.lines(first // BLOCK)):
            skipped = first % BLOCK if number == 0 else 0
            pipe.write(b"".join(lines.splitlines(keepends=True)[skipped:]) if skipped else lines)
        pipe.close()
    except BrokenPipeError:
        return  # the run ended, and its exit code says why


def sample(run: WatchedRun, before: dict[str, Any] | None, shown: Scrape, done: int) -> dict[str, Any]:
    """Return one row of the series: now, and how fast since the row before."""
    now = time.monotonic() - run.begun
    events = done + value(shown, "ebbtide_sink_records_total")
    spilled = {way: value(shown, "ebbtide_spills_total", direction=way) for way in ("out", "in")}
    row = {
        "seconds": now,
        "events": events,
        **run.kernel(),
        **run.sizes(),
        "load": os.getloadavg()[0],
        "resident": value(shown, "ebbtide_streams_resident"),
        "stored": value(shown, "ebbtide_streams_stored"),
        "queue": value(shown, "ebbtide_queue_depth", queue="reader"),
        "spilled_out": spilled["out"],
        "spilled_in": spilled["in"],
    }
    if before is not None and now > before["seconds"]:
        passed = now - before["seconds"]
        row["rate"] = (events - before["events"]) / passed
        row["spills"] = (spilled["out"] - before["spilled_out"]) / passed
        row["returns"] = (spilled["in"] - before["spilled_in"]) / passed
    return row


def watch(run: WatchedRun, done: int, every: float, file: Path, start: int) -> dict[str, float]:
    """Take samples until the run ends; return the quantiles over all of it."""
    before: dict[str, Any] | None = None
    whole: dict[str, dict[str, float]] = {}
    last: dict[str, dict[str, float]] = {}
    told = time.monotonic()
    with file.open("a") as out:
        while run.process.poll() is None:
            shown = run.scrape()
            if shown:
                try:
                    row = {"start": start, **sample(run, before, shown, done)}
                except (KeyError, FileNotFoundError):
                    break  # it ended meanwhile
                latency = {
                    "batch": buckets(shown, "ebbtide_batch_seconds"),
                    "commit": buckets(shown, "ebbtide_stage_seconds", stage="commit"),
                }
                for name, now in latency.items():
                    whole[name] = now
                    last.setdefault(name, now)
                    if now.get("+Inf", 0) - last[name].get("+Inf", 0) >= ENOUGH:
                        row[f"{name}_p99"] = quantile(0.99, now, last[name])
                        last[name] = now
                out.write(
                    json.dumps({k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()})
                )
                out.write("\n")
                out.flush()
                before = row
                if time.monotonic() - told > 60:
                    told = time.monotonic()
                    print(
                        f"{row['seconds']:,.0f} s: {row['events']:,.0f} events, {row.get('rate', 0):,.0f}/s, "
                        f"{row['rss'] / 1e6:,.1f} MB, load {row['load']:.1f}",
                        file=sys.stderr,
                    )
            try:
                run.process.wait(every)
            except Exception:
                continue
    return {
        f"{name}_{label}": quantile(share, found)
        for name, found in whole.items()
        for label, share in (("p50", 0.5), ("p99", 0.99))
    }


def soak(folder: Path, traffic: Traffic, rank: int, share: float, every: float) -> dict[str, Any]:
    """Run, watch, check; return everything that is reported."""
    settings = settings_of(folder, traffic.streams, rank, share)
    assert settings.state is not None
    plan = {"events": traffic.events, "streams": traffic.streams, "seed": traffic.seed, "rank": rank, "share": share}
    known = folder / "plan.json"
    if known.exists() and json.loads(known.read_text()) != plan:
        raise SystemExit(
            f"{folder}: expected a soak of {plan}, got one of {known.read_text()}; give it another --folder"
        )
    known.write_text(json.dumps(plan))
    samples, quantiles = folder / "samples.jsonl", folder / "quantiles.json"
    done = stored_events(settings.state)
    if done < traffic.events:
        starts = {json.loads(line)["start"] for line in samples.read_text().splitlines()} if samples.exists() else set()
        with WatchedRun(options_of(settings), folder) as run:
            assert run.process.stdin is not None
            feeder = threading.Thread(target=feed, args=(traffic, done, run.process.stdin), daemon=True)
            feeder.start()
            whole = watch(run, done, every, samples, len(starts))
            code = run.process.wait()
        if code:
            raise SystemExit(f"the run ended with exit code {code}; see {folder / 'run.log'}")
        quantiles.write_text(json.dumps(whole))
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    print("checking", file=sys.stderr)
    checked = check(traffic, settings, folder / "out.jsonl")
    return {
        "plan": plan,
        "machine": {"cpus": os.cpu_count()},
        "figures": figures(rows, plan) | json.loads(quantiles.read_text()),
        "check": checked,
        "samples": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about a minute: fewer events of fewer streams")
    parser.add_argument("--events", type=int)
    parser.add_argument("--streams", type=int)
    parser.add_argument("--rank", type=int)
    parser.add_argument("--share", type=float, default=0.1, help="of the streams that the pool holds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where everything goes, and stays; to go on, give the same again")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path, help="a PNG or SVG")
    given = parser.parse_args()
    form = QUICK if given.quick else FULL
    traffic = Traffic(given.events or form["events"], given.streams or form["streams"], given.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        result = soak(folder, traffic, given.rank or form["rank"], given.share, EVERY[given.quick])
    print_table(
        f"Soak: {traffic.events:,} events of {traffic.streams:,} streams, a pool of {given.share:.0%} of them",
        [{"what": name, "figure": number} for name, number in (result["figures"] | result["check"]).items()],
    )
    if given.json:
        given.json.write_text(json.dumps(result, indent=1))
    if given.picture:
        draw(result, given.picture)
    if result["check"]["streams that differ"] or result["check"]["records that differ"]:
        raise SystemExit("what was spilled and came back is not what it was")


if __name__ == "__main__":
    main()
