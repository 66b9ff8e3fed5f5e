"""Whether spilled lanes came back as they were: some streams once more, alone, by an engine that never spills."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from pydantic_core import to_json

from benchmarks.traffic import Traffic
from memory.state_pool import LaneRecord
from stream.assembly import build_engine
from stream.config import RunSettings
from stream.event import Event, EventParser
from stream.sinks.jsonl_sink import records
from stream.store import StateStore

SAMPLE = 200
"""Streams that are computed again."""

BATCH = 500
"""Events in a batch of the other engine: another cut than the run's, which must not matter."""


def check(traffic: Traffic, settings: RunSettings, sink: Path, count: int = SAMPLE) -> dict[str, Any]:
    """Compare a seeded sample of streams, and count what must be there.

    Returns
    -------
    dict
        What was compared and what differed.
    """
    assert settings.state is not None
    chosen = random.Random(traffic.seed).sample(range(traffic.streams), min(count, traffic.streams))
    slots = settings.pool_bytes // (4 * (settings.rank or 32) ** 2)
    again = returns(traffic, slots, chosen)
    lanes, lines = alone(traffic, settings, chosen)
    store = StateStore(settings.state, create=False)
    try:
        stored = store.fetch(sorted(lanes))
        streams = store.count()
        events = int(store.load().counters["ebbtide_events_total"][0][-1])
    finally:
        store.close()
    written, of_them = read_sink(sink, set(lines))
    return {
        "events in the store's counter": events,
        "records in the sink": written,
        "streams in the store": streams,
        "streams compared": len(lanes),
        "of them spilled and back at least once": sum(each > 0 for each in again.values()),
        "median times each came back": median(again.values()),
        "records compared": sum(map(len, lines.values())),
        "streams that differ": sum(stored.get(name) != lane for name, lane in lanes.items()),
        "records that differ": sum(
            mine != theirs
            for name in lines
            for mine, theirs in zip(lines[name], of_them[name], strict=len(lines[name]) == len(of_them[name]))
        )
        + sum(abs(len(lines[name]) - len(of_them[name])) for name in lines),
    }


def returns(traffic: Traffic, slots: int, chosen: Collection[int]) -> dict[int, int]:
    """Return how often each of some streams came back into a pool of so many slots that forgets the least recent.

    Event by event, where the run goes batch by batch: about as often.

    >>> sum(returns(Traffic(20_000, 100), 10, range(100)).values()) > 1_000
    True
    >>> sum(returns(Traffic(20_000, 100), 100, range(100)).values())
    0
    """
    held: OrderedDict[int, None] = OrderedDict()
    found, seen = dict.fromkeys(chosen, 0), set()
    for block in range(traffic.blocks):
        for number in traffic.numbers(block).tolist():
            if number in held:
                held.move_to_end(number)
                continue
            held[number] = None
            if len(held) > slots:
                held.popitem(last=False)
            if number in found:
                found[number] += number in seen
                seen.add(number)
    return found


def alone(
    traffic: Traffic, settings: RunSettings, chosen: Collection[int]
) -> tuple[dict[str, LaneRecord], dict[str, list[bytes]]]:
    """Return the lanes and the records of some streams, computed without the others and without spilling."""
    engine = build_engine(settings.model_copy(update={"pool_bytes": 1 << 32}))
    lines: dict[str, list[bytes]] = {}
    waiting = _events(traffic, chosen)
    while events := list(islice(waiting, BATCH)):
        ids = engine.backbone.tokenize([event.text or "" for event in events])
        slots, _, _ = engine.sift(events)
        for record in records(engine.process(events, list(ids), slots)):
            lines.setdefault(record["stream"], []).append(to_json(record, inf_nan_mode="null"))
    assert not any(engine.pool.take_moves().values()), "it spilled, and is no measure"
    return {name: engine.pool.record(name) for name in lines}, lines


def _events(traffic: Traffic, chosen: Collection[int]) -> Iterator[Event]:
    parser = EventParser()
    for block in traffic.lines(only=chosen):
        for line in block.splitlines():
            event = parser.parse(line)
            assert isinstance(event, Event)
            yield event


def read_sink(sink: Path, names: Collection[str]) -> tuple[int, dict[str, list[bytes]]]:
    """Return how many records a sink has, and those of some streams."""
    found: dict[str, list[bytes]] = {name: [] for name in names}
    count = 0
    begin, length = len(b'{"stream":"'), len(Traffic.name(0))
    with sink.open("rb") as file:
        for line in file:
            count += 1
            mine = found.get(line[begin : begin + length].decode())
            if mine is not None:
                mine.append(line.rstrip(b"\n"))
    return count, found
