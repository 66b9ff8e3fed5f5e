"""What being watched costs: one exposition with many streams, and a crowd of scrapers beside a running loop.

    python -m benchmarks.exporter [--streams N] [--scrapers N] [--runs N] [--quick]

The crowd is a process of its own with that many connections, each asking again as soon as it is answered. Each run of
the consumer with the crowd is beside one without it, in turns; the ratio is of their events per second.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import httpx
import numpy as np

from benchmarks.consumer import write_events
from benchmarks.report import print_table
from stream.config import RunSettings
from stream.consumer import Consumer
from stream.http import create_app
from stream.http_server import HttpServer
from stream.service import ConsumerService


def exposition_milliseconds(streams: int, runs: int) -> tuple[float, float, int]:
    """Return median and most milliseconds for one exposition with so many resident streams, and its lines."""
    consumer = Consumer(RunSettings(source="stdin:", backbone="hashing", rank=8, metrics_port=0))
    dice = np.random.default_rng(0)
    engine = consumer.engine
    for first in range(0, streams, 10_000):
        slots = engine.pool.acquire([f"stream-{number}" for number in range(first, min(first + 10_000, streams))])
        engine.last["signals"][slots] = dice.random((len(slots), engine.last["signals"].shape[1]))
    service = ConsumerService(consumer)
    accept = "application/openmetrics-text;version=1.0.0"
    spent, body = [], b""
    for _ in range(runs):
        service.exporter.forget()
        begun = time.perf_counter()
        body, _ = service.exposition(accept)
        spent.append(1000 * (time.perf_counter() - begun))
    consumer.close()
    return median(spent), max(spent), body.count(b"\n")


async def _scrape(url: str, connections: int) -> None:
    limits = httpx.Limits(max_connections=connections)
    async with httpx.AsyncClient(limits=limits, timeout=60) as client:

        async def again() -> None:
            while True:
                try:
                    await client.get(url)
                except httpx.TransportError:
                    await asyncio.sleep(0.05)

        await asyncio.gather(*(again() for _ in range(connections)))


def crowd(url: str, connections: int) -> None:
    """Scrape until killed."""
    asyncio.run(_scrape(url, connections))


def events_per_second(source: Path, folder: Path, scrapers: int) -> float:
    """Return the speed of one run of the consumer, watched by so many."""
    settings = RunSettings(
        source=f"file:{source}",
        backbone="hashing",
        policy="decay_on_shift",
        state=f"sqlite:///{folder}/state.db",
        sink=f"jsonl:{folder}/out.jsonl",
    )
    with ExitStack() as stack:
        consumer = Consumer(settings)
        stack.callback(consumer.close)
        consumer.open()
        server = HttpServer(create_app(ConsumerService(consumer)), "127.0.0.1", 0)
        stack.callback(server.stop)
        server.start()
        if scrapers:
            watchers = multiprocessing.get_context("spawn").Process(
                target=crowd, args=(server.url + "/metrics", scrapers)
            )
            watchers.start()
            stack.callback(watchers.join)
            stack.callback(watchers.kill)
            time.sleep(3)  # to be up
        consumer.run()
    return consumer.totals.events / consumer.totals.seconds


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=100_000)
    parser.add_argument("--scrapers", type=int, default=64)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--quick", action="store_true", help="fewer runs over less")
    given = parser.parse_args()
    runs, events = (3, 20_000) if given.quick else (given.runs, given.events)
    middle, most, lines = exposition_milliseconds(given.streams, 3 * runs)
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_events(folder / "events.jsonl", 1000, events)
        for run in range(runs):
            speed = {}
            for scrapers in (0, given.scrapers) if run % 2 else (given.scrapers, 0):
                place = folder / f"{run}-{scrapers}"
                place.mkdir()
                speed[scrapers] = events_per_second(folder / "events.jsonl", place, scrapers)
            ratios.append(speed[0] / speed[given.scrapers])
            print(f"run {run}: {speed[0]:,.0f} events/s, with the crowd {speed[given.scrapers]:,.0f}", file=sys.stderr)
    print_table(
        "Being watched",
        [
            {
                "what": f"one exposition, {given.streams:,} streams, {lines} lines (ms)",
                "median": middle,
                "most": most,
            },
            {
                "what": f"time of a run with {given.scrapers} scrapers over one without",
                "median": median(ratios),
                "least": min(ratios),
                "most": max(ratios),
            },
        ],
    )


if __name__ == "__main__":
    main()
