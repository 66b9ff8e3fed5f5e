"""Events that come twice, events out of order, and clocks that jump."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.arrivals import Arrivals
from stream.config import RunSettings
from stream.consumer import Consumer
from stream.dead_letters import read_dead_letters
from stream.event import Event
from stream.generate import GenerateSettings, generate
from stream.store import StateStore
from tests.warm import Warm

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
WINDOW = 4


@pytest.fixture(scope="module")
def events() -> list[dict[str, Any]]:
    return [event for event, _ in generate(GenerateSettings(scenario="recurring", streams=3, events=60, seed=5))]


def run(folder: Path, lines: list[dict[str, Any]], **given: Any) -> Consumer:
    """Append lines to the input and run until its end."""
    folder.mkdir(exist_ok=True)
    with (folder / "in.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    consumer = Consumer(
        RunSettings(
            source=f"file:{folder / 'in.jsonl'}",
            backbone="hashing",
            policy="archive",
            state=f"sqlite:///{folder / 'state.db'}",
            sink=f"jsonl:{folder / 'out.jsonl'}",
            metrics_port=0,
            **({"dedupe_window": WINDOW} | given),
        )
    )
    try:
        consumer.open()
        consumer.run()
    finally:
        consumer.close()
    return consumer


def states(folder: Path) -> dict[str, Any]:
    store = StateStore(f"sqlite:///{folder / 'state.db'}", create=False)
    try:
        return dict(store.lanes())
    finally:
        store.close()


def doubled(events: list[dict[str, Any]], seed: int) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the events, some of them again after at most three others of their stream; and where those are."""
    dice = random.Random(seed)
    lines, again = [], []
    for event in events:
        lines.append(event)
        if dice.random() < 0.3:
            mine = [line for line in lines if line["stream"] == event["stream"]]
            again.append(len(lines))
            lines.append(dice.choice(mine[-2:]))
    return lines, again


@pytest.mark.parametrize("batch", [1, 7, 1024])
def test_what_comes_again_is_refused_and_changes_nothing(
    events: list[dict[str, Any]], tmp_path: Path, batch: int
) -> None:
    lines, again = doubled(events, 1)
    run(tmp_path / "once", events)
    half = len(lines) // 2
    run(tmp_path / "twice", lines[:half], batch_events=batch, checkpoint_every=0)
    consumer = run(tmp_path / "twice", lines[half:], batch_events=batch)  # what was remembered is in the store
    assert states(tmp_path / "twice") == states(tmp_path / "once")
    assert (tmp_path / "twice" / "out.jsonl").read_bytes() == (tmp_path / "once" / "out.jsonl").read_bytes()
    letters = list(read_dead_letters(tmp_path / "twice" / "out.dead.jsonl"))
    assert [letter.line for letter in letters] == [place + 1 for place in again]
    assert [json.loads(letter.raw) for letter in letters] == [lines[place] for place in again]
    assert {letter.reason for letter in letters} == {"duplicate"}
    assert len(again) > 20
    assert consumer.metrics.get("ebbtide_duplicate_events_total") == len(again)
    assert consumer.metrics.get("ebbtide_dead_letters_total", "duplicate") == len(again)
    assert consumer.metrics.get("ebbtide_events_total") == len(events)


def test_refused_lines_stay_in_the_order_of_the_input(events: list[dict[str, Any]], tmp_path: Path) -> None:
    lines, again = doubled(events[:40], 2)
    mixed: list[dict[str, Any]] = []
    wrong = []
    for place, line in enumerate(lines):
        mixed.append(line)
        if place % 3 == 0:
            wrong.append(len(mixed))
            mixed.append({"stream": 5})
    run(tmp_path, mixed)
    numbers = [letter.line for letter in read_dead_letters(tmp_path / "out.dead.jsonl")]
    assert numbers == sorted(numbers)
    assert len(numbers) == len(wrong) + len(again)


def test_a_batch_of_nothing_but_duplicates(events: list[dict[str, Any]], tmp_path: Path) -> None:
    run(tmp_path, events[:1])
    consumer = run(tmp_path, events[:1] * 3)
    assert consumer.metrics.get("ebbtide_duplicate_events_total") == 3
    assert (tmp_path / "out.jsonl").read_bytes().count(b"\n") == 1


def test_an_input_of_nothing_but_refused_lines(tmp_path: Path) -> None:
    consumer = run(tmp_path, [{"no": "event"}] * 5, batch_events=2)
    assert consumer.metrics.get("ebbtide_dead_letters_total", "missing_stream") == 5
    assert (tmp_path / "out.jsonl").read_bytes() == b""


def test_they_can_be_taken_and_only_counted(events: list[dict[str, Any]], tmp_path: Path) -> None:
    lines, again = doubled(events, 3)
    consumer = run(tmp_path / "taken", lines, duplicates="take")
    assert consumer.metrics.get("ebbtide_duplicate_events_total") == len(again)
    assert consumer.metrics.get("ebbtide_events_total") == len(lines)
    run(tmp_path / "unknown", lines, dedupe_window=0)
    taken, unknown = states(tmp_path / "taken"), states(tmp_path / "unknown")
    assert {name: lane.state for name, lane in taken.items()} == {name: lane.state for name, lane in unknown.items()}


def test_times_are_counted_and_change_nothing(events: list[dict[str, Any]], tmp_path: Path) -> None:
    dice = random.Random(4)
    moved = [
        event | {"ts": dice.choice([-6e10, 0, 4e11, "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", 1.7e308])}
        for event in events
    ]
    plain = run(tmp_path / "plain", events)
    consumer = run(tmp_path / "moved", moved)
    assert plain.metrics.get("ebbtide_late_events_total") == 0
    late = consumer.metrics.get("ebbtide_late_events_total")
    assert late is not None
    assert len(events) / 4 < late < len(events) / 2
    before, after = states(tmp_path / "plain"), states(tmp_path / "moved")
    for name, lane in before.items():
        assert after[name].state == lane.state
        for part, blob in lane.beside.items():
            assert part.startswith("arrivals/") or after[name].beside[part] == blob


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9), st.one_of(st.none(), st.floats(0, 9))), max_size=60),
    st.integers(0, 6),
    st.data(),
)
@settings(deadline=None)
def test_it_is_what_a_loop_over_the_events_says(
    told: list[tuple[int, int, float | None]], window: int, data: st.DataObject
) -> None:
    made = [Event(str(lane), "Hi", id=None if name == 9 else str(name), ts=ts) for lane, name, ts in told]
    ids: dict[str, list[str]] = {}
    last: dict[str, float] = {}
    expected = []
    for event in made:
        mine = ids.setdefault(event.stream, [])
        repeated = window > 0 and event.id in mine[-window:]
        late = False
        if not repeated:
            if event.id is not None:
                mine.append(event.id)
            if isinstance(event.ts, float):
                late = event.ts < last.get(event.stream, -1.0)
                last[event.stream] = event.ts
        expected.append((repeated, late))
    arrivals = Arrivals(window)
    arrivals.lanes.resize(3)
    found: list[tuple[bool, bool]] = []
    at = 0
    while at < len(made):  # however they are cut
        size = data.draw(st.integers(1, len(made) - at))
        slots = np.array([int(event.stream) for event in made[at : at + size]], np.int64)
        repeated_now, late_now = arrivals.take(slots, made[at : at + size])
        found += zip(repeated_now.tolist(), late_now.tolist(), strict=True)
        at += size
    assert found == expected


@pytest.mark.skipif(not FAKETIME.exists(), reason="libfaketime is not installed (Debian: apt-get install faketime)")
def test_a_clock_that_jumps_changes_no_result(events: list[dict[str, Any]], tmp_path: Path) -> None:
    """One run goes on from another under a clock that went back, or ahead by years, or that goes a thousand times as
    fast. The monotonic clock is left alone, as every kernel does."""
    folder = tmp_path / "jumping"
    folder.mkdir()
    command = ["run", "--source", f"file:{folder / 'in.jsonl'}"]
    command += ["--backbone", "hashing", "--policy", "archive", "--state", f"sqlite:///{folder / 'state.db'}"]
    command += ["--sink", f"jsonl:{folder / 'out.jsonl'}", "--metrics-port", "0", "--dedupe-window", str(WINDOW)]
    command += ["--copy-every", "0.001"]
    clocks = {"+10y": 10, "-3y": -3, "+0 x1000": 0}
    preload = {"LD_PRELOAD": str(FAKETIME), "FAKETIME": "+0", "FAKETIME_NO_CACHE": "1"}
    warm = Warm(**preload, FAKETIME_DONT_FAKE_MONOTONIC="1")
    try:
        for number, (clock, years) in enumerate(clocks.items()):
            with (folder / "in.jsonl").open("a") as file:
                file.writelines(json.dumps(event) + "\n" for event in events[number :: len(clocks)])
            said = warm.run(command, before="import time; print('it is', time.time())", FAKETIME=clock)
            assert said.returncode == 0, said.stderr
            ahead = float(re.search(r"it is (.*)", said.stdout)[1]) - time.time()  # type: ignore[index]
            assert ahead / 86_400 == pytest.approx(365 * years, abs=0.4) if years else ahead > 100
    finally:
        warm.close()
    in_that_order = [event for number in range(len(clocks)) for event in events[number :: len(clocks)]]
    run(tmp_path / "ordered", in_that_order)
    assert (folder / "out.jsonl").read_bytes() == (tmp_path / "ordered" / "out.jsonl").read_bytes()
    assert states(folder) == states(tmp_path / "ordered")
