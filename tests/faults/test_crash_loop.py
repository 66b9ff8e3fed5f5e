"""A line that kills the process: refused in the end, with nothing else touched; and kills that no line is to blame for.

The faults are real: a plugin, run before the command in each process, ends that process in the midst of its work.
"""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from memory.errors import EbbtideError
from stream.config import RunSettings
from stream.consumer import Consumer
from stream.crash_guard import IN_A_ROW, CrashGuard
from stream.crash_note import Line, Note, place_of
from stream.dead_letters import read_dead_letters
from stream.sources.position import Position
from stream.store import StateStore
from tests.faults.recurring import recurring
from tests.postgres_server import Server
from tests.warm import ROOT, Command, Warm

DEADLINE = 60.0
HOW_OFTEN = 30 if os.environ.get("EBBTIDE_LONG") else 8
"""Kills at seeded places of a careful run. Each of them gets at most three lines further."""
BATCH = 16
EVENTS = 90

DEATHS = {
    "abort": "os.abort()",
    "exit": "os._exit(9)",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",  # as the kernel does when memory is short
    "memory": "raise MemoryError",
    "unforeseen": "raise RuntimeError('an error that nobody foresaw')",
}
PLACES = {
    "tokenizer": """
from memory.backbones.hashing_backbone import HashingBackbone as Kind
name, texts_of = "tokenize", lambda backbone, texts: texts
""",
    "engine": """
from stream.engine import Engine as Kind
name, texts_of = "process", lambda engine, events, *more: [event.text for event in events]
""",
}


def poison(place: str, death: str, text: str = "POISON") -> str:
    """Return a plugin: the process dies when this place is given a text that holds `text`."""
    return f"""
import os, signal
{PLACES[place]}
real = getattr(Kind, name)
def deadly(self, *given):
    if any({text!r} in text for text in texts_of(self, *given)):
        {DEATHS[death]}
    return real(self, *given)
setattr(Kind, name, deadly)
"""


def a_line(text: str, stream: str = "s000001") -> bytes:
    return json.dumps({"stream": stream, "text": text}).encode() + b"\n"


DEADLY = a_line("this one is POISON"), a_line("more POISON", "s000002")


@pytest.fixture(scope="module")
def lines() -> list[bytes]:
    """A recurring conversation over five streams, with a refused line after every fifteenth."""
    return recurring(EVENTS)


@dataclass
class Run:
    """A run's folder, and its command, given again and again."""

    folder: Path
    warm: Warm
    kind: str = "file"
    options: list[str] = field(default_factory=list)
    state: str = ""
    kills: bool = True
    logs: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.state = self.state or f"sqlite:///{self.folder / 'state.db'}"
        self.note = self.folder / "state.db.starts"

    def give(self, lines: list[bytes]) -> None:
        data = b"".join(lines)
        path = self.folder / ("in.jsonl.gz" if self.kind == "gzip" else "in.jsonl")
        path.write_bytes(gzip.compress(data) if self.kind == "gzip" else data)
        self.source = "stdin:" if self.kind == "pipe" else f"file:{path}"

    def command(self) -> list[str]:
        return [
            *("run", "--source", self.source, "--backbone", "hashing", "--policy", "decay_on_shift"),
            *("--state", self.state, "--sink", f"jsonl:{self.folder / 'out.jsonl'}"),
            *("--metrics-port", "0", "--batch-events", str(BATCH), "--checkpoint-every", "0", "--log-format", "json"),
            *(["--count-kills"] if self.kills else []),
            *self.options,
        ]

    def begin(self, before: str = "") -> Command:
        if self.kind == "pipe":
            before = (
                f"import os\nfeed = os.popen('cat {self.folder / 'in.jsonl'}')\nos.dup2(feed.fileno(), 0)\n{before}"
            )
        with (self.folder / "log").open("wb") as log:
            return self.warm.start(self.command(), log, before=before)

    def start(self, before: str = "") -> int:
        """Start it, wait for its end, return its exit code."""
        code = self.begin(before).wait(DEADLINE)
        self.logs.append((self.folder / "log").read_text())
        return code

    def starts(self, before: str, most: int = 20) -> int:
        """Start it until it ends well; return how often it was started."""
        for number in range(1, most + 1):
            if self.start(before) == 0:
                return number
        raise AssertionError(f"it died {most} times: {self.logs[-1][-2000:]}")

    def said(self, event: str) -> list[dict[str, Any]]:
        found = []
        for log in self.logs:
            found += [json.loads(line) for line in log.splitlines() if line.startswith("{")]
        return [each for each in found if each["event"] == event]

    def crashed(self) -> list[bytes]:
        return [letter.raw + b"\n" for letter in self.letters() if letter.reason == "crashed"]

    def letters(self) -> list[Any]:
        return list(read_dead_letters(self.folder / "out.dead.jsonl"))

    def outcome(self) -> dict[str, Any]:
        """All that a line that was refused must not change."""
        store = StateStore(self.state, create=False)
        try:
            counters = dict(store.load().counters)
            counters.pop("ebbtide_source_bytes_total")
            counters.pop("ebbtide_source_lines_total")
            rejected = counters.pop("ebbtide_dead_letters_total")
            return {
                "lanes": dict(store.lanes()),
                "counters": json.dumps(counters, sort_keys=True),
                "rejected": sorted(each for each in rejected if each[0] != "crashed"),
                "sink": (self.folder / "out.jsonl").read_bytes(),
                "dead": [(each.raw, each.reason) for each in self.letters() if each.reason != "crashed"],
            }
        finally:
            store.close()


@pytest.fixture(scope="module")
def expected(lines: list[bytes], warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run over the lines without the deadly ones comes to, nothing being in its way."""
    run = Run(tmp_path_factory.mktemp("expected"), warm)
    run.give(lines)
    assert run.start() == 0
    assert not run.note.exists()
    return run.outcome()


def with_deadly(lines: list[bytes], where: int, count: int = 1) -> list[bytes]:
    return [*lines[:where], *DEADLY[:count], *lines[where:]]


@dataclass(frozen=True)
class Scenario:
    where: int
    place: str
    death: str
    starts: int
    kind: str = "file"
    count: int = 1
    limit: int = 1


SCENARIOS = {
    # Three die at full speed and three with care; the seventh goes through.
    "the first line, in the tokenizer, by abort": Scenario(0, "tokenizer", "abort", 7, limit=3),
    # The first makes progress before it dies, so it is not counted.
    "in mid-file, in the engine, killed, from gzip": Scenario(50, "engine", "killed", 4, kind="gzip"),
    "two in a row, in the engine, short of memory, from a pipe": Scenario(
        50, "engine", "memory", 5, kind="pipe", count=2
    ),
    "two in a row, the last ones, in the tokenizer, by an exit": Scenario(96, "tokenizer", "exit", 4, count=2),
    "the first line, in the engine, by an error": Scenario(0, "engine", "unforeseen", 3),
}


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_a_line_that_kills_is_refused_and_nothing_else_is_touched(
    scenario: Scenario, lines: list[bytes], expected: dict[str, Any], warm: Warm, tmp_path: Path
) -> None:
    more = ["--crash-limit", str(scenario.limit)]
    run = Run(tmp_path / "run", warm, scenario.kind, more)
    run.give(with_deadly(lines, scenario.where, scenario.count))
    starts = run.starts(poison(scenario.place, scenario.death))
    assert starts == scenario.starts, run.logs
    assert run.crashed() == list(DEADLY[: scenario.count])
    assert run.outcome() == expected
    offset = sum(map(len, lines[: scenario.where]))
    told = run.said("line_crashed")
    assert [each["offset"] for each in told][-1 * scenario.count] == offset
    assert {(each["level"], each["partition"]) for each in told} == {
        ("error", "stdin" if scenario.kind == "pipe" else "in.jsonl.gz" if scenario.kind == "gzip" else "in.jsonl")
    }
    assert not any("POISON" in log for log in run.logs)
    assert all("hint" in each for each in run.said("careful"))
    assert not run.note.exists()
    assert not run.note.with_name(run.note.name + ".new").exists()


def test_without_a_limit_it_dies_each_time(lines: list[bytes], warm: Warm, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", warm, options=["--crash-limit", "0"])
    run.give(with_deadly(lines, 0))
    for _ in range(4):
        assert run.start(poison("tokenizer", "abort")) == -signal.SIGABRT
    assert run.crashed() == []
    assert not run.said("careful")
    assert not run.note.exists()


def test_by_default_a_death_counts_where_it_left_a_trace(
    lines: list[bytes], expected: dict[str, Any], warm: Warm, tmp_path: Path
) -> None:
    """Kills in between, at full speed and over each line that is taken with care, change nothing."""
    run = Run(tmp_path / "run", warm, kills=False)
    run.give(with_deadly(lines, 0))
    traces = 0
    for death in ("abort", "memory", "unforeseen", "abort", "unforeseen", "memory"):  # three at full speed, three not
        for without in ("killed", "exit", "killed", "killed"):
            assert run.start(poison("engine", without)) in (-signal.SIGKILL, 9)
        run.start(poison("engine", death))
        traces += death == "abort"
    assert run.crashed() == []
    assert run.start(poison("engine", "abort")) == 0
    assert run.crashed() == [DEADLY[0]]
    assert run.outcome() == expected
    died = run.said("died")
    assert len(died) == traces
    assert all(each["trace"].startswith("Fatal Python error: Aborted") for each in died)
    assert not any("POISON" in log for log in run.logs)
    assert not [path for path in run.folder.iterdir() if path.name.startswith(("state.db.starts", "state.db.fatal"))]


def test_it_goes_back_to_full_speed_and_takes_care_again_at_the_next_one(
    lines: list[bytes], expected: dict[str, Any], warm: Warm, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run", warm, options=["--crash-limit", "2"])
    run.give([*lines[:10], DEADLY[0], *lines[10:20], DEADLY[1], *lines[20:]])
    few = "import stream.crash_guard\nstream.crash_guard.UNDER_WAY = 1\n"
    # At full speed 2, over the first 2; the next leaves it behind and, at full speed, dies at the second, which is
    # enough; over that one 2; and one goes through.
    assert run.starts(few + poison("engine", "abort")) == 2 + 2 + 1 + 2 + 1
    assert run.crashed() == list(DEADLY)
    assert run.outcome() == expected
    assert len(run.said("careful_no_more")) == 2


# --- kills that no line is to blame for -------------------------------------------------------------------------------

KILLS = """
import os, random, signal
import stream.consumer, stream.crash_guard
from stream.sources.source import Source
dice = random.Random({seed})
left = dice.randrange(1, 4)
def deadly(kind, name, after):
    real = getattr(kind, name)
    def either(self, *given, **more):
        global left
        found = None if not after else real(self, *given, **more)
        if getattr(self, "ready", True) or name != "_commit":
            left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return found if after else real(self, *given, **more)
    setattr(kind, name, either)
kind, name, after = dice.choice([
    (stream.consumer.Consumer, "_commit", False), (stream.consumer.Consumer, "_commit", True),
    (stream.consumer.StateStore, "commit", False), (stream.consumer.StateStore, "commit", True),
    (stream.crash_guard.CrashGuard, "let_go", True), (stream.crash_guard.CrashGuard, "progress", True),
    (stream.crash_guard.CrashGuard, "take", False), (Source, "read", False), (Source, "read", True),
])
if name == "read":
    left = 1  # all of the input is one chunk
deadly(kind, name, after)
"""


def test_kills_that_hit_no_line_at_hand_lose_none_however_many(
    lines: list[bytes], expected: dict[str, Any], warm: Warm, tmp_path: Path
) -> None:
    """One death is enough for care here, and one over a line to refuse it: none is counted that is not over a line."""
    run = Run(tmp_path / "run", warm, options=["--crash-limit", "1"])
    run.give(lines)
    assert run.start(poison("tokenizer", "killed", "")) == -signal.SIGKILL
    for seed in range(HOW_OFTEN):
        assert run.start(KILLS.format(seed=seed)) == -signal.SIGKILL
    assert run.start() == 0
    assert len(run.said("careful")) > 0.8 * HOW_OFTEN  # the others died at the commit before
    assert run.crashed() == []
    assert run.outcome() == expected


def test_kills_over_lines_lose_none_where_they_are_fewer_than_the_limit(
    lines: list[bytes], expected: dict[str, Any], warm: Warm, tmp_path: Path
) -> None:
    """Once over each of three lines, with a limit of two."""
    run = Run(tmp_path / "run", warm, options=["--crash-limit", "2"])
    run.give(lines)
    for text in (0, 0, 0, 3, 7):  # two at full speed, and one with care over each of three lines
        words = json.loads(lines[text])["text"]
        assert run.start(poison("engine", "killed", words)) == -signal.SIGKILL
    assert run.start() == 0
    assert run.crashed() == []
    assert run.outcome() == expected


SLOW = """
import threading
from stream.engine import Engine
Engine.process = lambda *given: threading.Event().wait()
"""


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < end, "it never came to it"
        time.sleep(0.001)


def note_of(path: Path) -> Note | None:
    try:
        return Note.read(path.read_bytes())
    except FileNotFoundError:
        return None


def test_a_stop_that_took_too_long_and_ended_in_a_kill_is_no_crash(
    lines: list[bytes], expected: dict[str, Any], warm: Warm, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run", warm, options=["--crash-limit", "1"])
    run.give(lines)
    assert run.start(poison("tokenizer", "abort", "")) == -signal.SIGABRT
    for _ in range(3):
        process = run.begin(SLOW)
        until(lambda: (note_of(run.note) or Note(store="", at=0)).looked_at)
        process.send_signal(signal.SIGTERM)
        until(lambda: not (note_of(run.note) or Note(store="", at=0)).looked_at)
        process.kill()
        assert process.wait(DEADLINE) == -signal.SIGKILL
    assert run.start() == 0
    assert run.crashed() == []
    assert run.outcome() == expected


def test_ends_in_order_are_not_counted(lines: list[bytes], warm: Warm, tmp_path: Path) -> None:
    """A refusal with one line, a full disk, a stop: however often, the next start is not careful."""
    run = Run(tmp_path / "run", warm, options=["--crash-limit", "1"])
    run.give(lines)
    for error in ("OSError(5, 'it cannot be read')", "FencedError('overtaken')", "ConfigurationError('gone')"):
        refuse = f"""
from memory.errors import ConfigurationError
from stream.store import FencedError
from memory.backbones.hashing_backbone import HashingBackbone
def tokenize(*given): raise {error}
HashingBackbone.tokenize = tokenize
"""
        assert run.start(refuse) in (1, 2)
        assert not run.note.exists()
    stop = """
import os, signal
from stream.batch import Batcher
def batches(*given):
    os.kill(os.getpid(), signal.SIGTERM)
    return iter(())
Batcher.batches = batches
"""
    assert run.start(stop) == 0
    assert not run.note.exists()
    assert run.start() == 0
    assert not run.said("careful")


def test_where_every_line_kills_it_is_not_the_lines(
    lines: list[bytes], expected: dict[str, Any], warm: Warm, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run", warm, options=["--crash-limit", "1"])
    run.give([*DEADLY, *DEADLY, *lines])
    fewer = "import stream.crash_guard\nstream.crash_guard.IN_A_ROW = 2\n"
    fault = fewer + poison("engine", "killed", "")  # too little memory, say, for whatever comes
    for _ in range(1 + 2 + 3):
        assert run.start(fault) == -signal.SIGKILL
    assert run.crashed() == list(DEADLY)
    assert run.said("crashing")
    assert run.start(fewer) == 0  # mended: it goes on by itself
    assert run.crashed() == list(DEADLY)
    taken = (run.folder / "out.jsonl").read_bytes().count(b"\n")
    assert taken == expected["sink"].count(b"\n") + 2
    assert IN_A_ROW == 5


# --- the note ---------------------------------------------------------------------------------------------------------


def settings_in(folder: Path, **more: Any) -> RunSettings:
    return RunSettings(
        **{
            "source": f"file:{folder / 'in.jsonl'}",
            "backbone": "hashing",
            "policy": "archive",
            "state": f"sqlite:///{folder / 'state.db'}",
            "sink": f"jsonl:{folder / 'out.jsonl'}",
            "tape": folder / "tape",
            "metrics_port": 0,
            "batch_events": BATCH,
            "shadow": ("decay",),
            "count_kills": True,
            **more,
        }
    )


def consume(settings: RunSettings, note: Callable[[str], bytes] | None = None) -> Consumer:
    """Run to the end; beforehand, if asked to, put a note there, made for the store's identity."""
    path = Path(str(settings.state).removeprefix("sqlite:///"))
    if note is not None:
        first = Consumer(settings)
        first.open()
        assert first.store is not None
        identity = first.store.identity
        first.close()
        path.with_name("state.db.starts").write_bytes(note(identity))
    consumer = Consumer(settings)
    try:
        consumer.open()
        consumer.was_careful = consumer.guard.careful  # type: ignore[attr-defined]
        consumer.run()
    finally:
        consumer.close()
    return consumer


def test_care_changes_no_bit(lines: list[bytes], tmp_path: Path) -> None:
    """All of the input with care, with an archive, a shadow and a tape."""
    found = []
    for name in ("usual", "careful"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "in.jsonl").write_bytes(b"".join(lines))
        careful = name == "careful"
        done = consume(
            settings_in(folder),
            (lambda identity: Note(store=identity, at=0, starts=3).text()) if careful else None,
        )
        assert done.was_careful is careful  # type: ignore[attr-defined]
        store = StateStore(f"sqlite:///{folder / 'state.db'}", create=False)
        checkpoint = store.load()
        found.append(
            (
                dict(store.lanes()),
                dict(store.lanes("decay")),
                json.dumps(checkpoint.counters, sort_keys=True),
                {name: position.offset for name, position in checkpoint.positions.items()},
                (folder / "out.jsonl").read_bytes(),
                (folder / "out.dead.jsonl").read_bytes(),
            )
        )
        store.close()
        assert not (folder / "state.db.starts").exists()
    assert found[0] == found[1]


SPOILT: Mapping[str, Callable[[str], bytes]] = {
    "empty": lambda identity: b"",
    "torn": lambda identity: Note(store=identity, at=0, starts=9).text()[:-3],
    "half": lambda identity: Note(store=identity, at=0, starts=9).text()[:20],
    "zeros": lambda identity: bytes(len(Note(store=identity, at=0, starts=9).text())),
    "a bit flipped": lambda identity: Note(store=identity, at=0, starts=9).text().replace(b"9", b"8"),
    "other things": lambda identity: b'{"a": 1}\n8f5d8ce9\n',
    "another store's": lambda identity: Note(store="other", at=0, starts=9).text(),
    "of other positions": lambda identity: Note(store=identity, at=place_of({"in.jsonl": 77}), starts=9).text(),
    "of a line elsewhere": lambda identity: Note(
        store=identity, at=place_of({"in.jsonl": 77}), starts=9, line=Line("in.jsonl", 77, 99), lines_left=5
    ).text(),
}


@pytest.mark.parametrize("spoilt", SPOILT.values(), ids=SPOILT)
def test_a_note_that_is_none_or_of_something_else_is_ignored(spoilt: Callable[[str], bytes], tmp_path: Path) -> None:
    path = tmp_path / "state.db.starts"
    for made, careful in ((spoilt, False), (lambda identity: Note(store=identity, at=0, starts=9).text(), True)):
        path.write_bytes(made("a1b2"))
        guard = CrashGuard(limit=1, batch_events=BATCH)
        guard.begin(path, "a1b2", {})
        assert guard.careful is careful
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_note_lost_while_lines_are_taken_with_care_costs_only_time(
    lines: list[bytes], expected: dict[str, Any], warm: Warm, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run", warm, options=["--crash-limit", "1"])
    run.give(with_deadly(lines, 5))
    for lost in (b"torn", None):
        for _ in range(2):
            assert run.start(poison("tokenizer", "killed")) == -signal.SIGKILL
        if lost is None:
            run.note.unlink()
        else:
            run.note.write_bytes(lost)
    run.starts(poison("tokenizer", "killed"))
    assert run.crashed() == [DEADLY[0]]
    assert run.outcome() == expected


def test_a_note_that_cannot_be_written_keeps_nothing_from_running(lines: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"".join(lines))
    (tmp_path / "state.db.starts").mkdir()
    assert consume(settings_in(tmp_path)).totals.lines == len(lines)


@pytest.mark.parametrize("limit", [0, 3])
def test_it_costs_a_usual_run_one_small_file_at_most(
    limit: int, lines: list[bytes], warm: Warm, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run", warm, options=["--crash-limit", str(limit)])
    run.give(lines)
    watch = """
import sys
def look(event, given):
    if event in ("open", "os.rename", "os.remove") and "state.db.starts" in str(given[0]):
        sys.stderr.write(f"seen {event} {given[1] if event == 'open' else ''}\\n")
sys.addaudithook(look)
"""
    assert run.start(watch) == 0
    seen = [line.split()[1] for line in run.logs[0].splitlines() if line.startswith("seen")]
    assert sorted(seen) == (
        ["open", "open", "os.remove", "os.rename"] if limit else []
    )  # is there one? then written, named, and gone


def test_deaths_are_remembered_of_several_lines_that_come_in_any_order(tmp_path: Path) -> None:
    """Partitions that are followed may give their next lines in another order after each start."""
    path = tmp_path / "state.db.starts"
    path.write_bytes(Note(store="a1b2", at=place_of({"a": 5, "b": 7}), starts=3).text())
    first, other = Line("a", 5, 9), Line("b", 7, 12)

    def start(at: dict[str, int]) -> CrashGuard:
        guard = CrashGuard(limit=3, batch_events=BATCH)
        guard.begin(path, "a1b2", at)
        assert guard.careful
        return guard

    for line in (first, other, first, other):
        start({"a": 5, "b": 7}).take(line)
    guard = start({"a": 5, "b": 7})
    assert (guard.deaths("a", 5), guard.deaths("b", 7)) == (2, 2)
    guard.take(first)
    guard.let_go(event=True)
    guard.progress({"a": Position(offset=9, lines=1, identity={})})
    guard.take(other)
    guard = start({"a": 9, "b": 7})
    assert (guard.deaths("a", 5), guard.deaths("b", 7)) == (0, 3)
    assert guard.refuses("b", 7)
    guard.take(other, refused=True)
    assert not (note_of(path) or Note(store="", at=0, looked_at=True)).looked_at
    guard = start({"a": 9, "b": 12})  # killed between the commit and the next line
    assert not guard.deaths("b", 7)


def test_a_line_is_not_at_hand_while_the_run_waits(tmp_path: Path) -> None:
    path = tmp_path / "state.db.starts"
    path.write_bytes(Note(store="a1b2", at=0, starts=3).text())
    guard = CrashGuard(limit=3, batch_events=BATCH)
    guard.begin(path, "a1b2", {})
    guard.take(Line("a", 0, 9))
    at_hand = []
    with guard.waiting():
        at_hand.append((note_of(path) or guard).looked_at)  # type: ignore[union-attr]
    at_hand.append((note_of(path) or guard).looked_at)  # type: ignore[union-attr]
    assert at_hand == [False, True]
    guard.excuse()  # told to stop: whatever it is given now is not counted
    guard.take(Line("a", 9, 12))
    assert not (note_of(path) or guard).looked_at  # type: ignore[union-attr]


def test_an_error_with_a_message_is_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "state.db.starts"
    for error, counted in ((EbbtideError("no"), False), (OSError("no"), False), (ZeroDivisionError("no"), True)):
        guard = CrashGuard(limit=3, batch_events=BATCH)
        guard.begin(path, "a1b2", {})
        with pytest.raises(type(error)), guard.watch():
            raise error
        guard.excuse()  # as the end of every consumer does, twice
        guard.excuse()
        assert path.exists() is counted
    guard = CrashGuard(limit=3, batch_events=BATCH)
    guard.begin(path, "a1b2", {})
    guard.excuse()
    guard.excuse()
    assert (note_of(path) or Note(store="", at=0)).starts == 1  # the one that died, and not this one


# --- elsewhere --------------------------------------------------------------------------------------------------------


def test_with_postgresql_starts_are_noted_beside_the_dead_letters(
    lines: list[bytes], warm: Warm, server: Server, tmp_path: Path
) -> None:
    server.ask("DROP DATABASE IF EXISTS crash_loop WITH (FORCE)")
    server.ask("CREATE DATABASE crash_loop")
    run = Run(tmp_path / "run", warm, options=["--crash-limit", "1"], state=server.url("crash_loop"))
    run.give(with_deadly(lines, 0))
    assert run.starts(poison("tokenizer", "abort")) == 3
    assert run.crashed() == [DEADLY[0]]
    assert not (run.folder / "out.dead.jsonl.starts").exists()


@pytest.fixture(scope="module", autouse=True)
def supervised(lines: list[bytes]) -> Iterator[tuple[Run, subprocess.Popen[bytes]]]:
    """A real interpreter each time, started again by a shell, as a service manager would, beside the other tests."""
    with tempfile.TemporaryDirectory() as name:
        run = Run(Path(name), None, options=["--crash-limit", "1"])  # type: ignore[arg-type]
        run.give(with_deadly(lines, 0))
        program = Path(name) / "program.py"
        program.write_text(f"{poison('engine', 'abort')}\nfrom stream.cli import main\nmain()\n")
        loop = 'for n in 1 2 3 4 5 6; do "$@" && exit $n; done; exit 99'
        given = ["sh", "-c", loop, "sh", sys.executable, str(program), *run.command()]
        ours = {name: value for name, value in os.environ.items() if not name.startswith("EBBTIDE_")}
        environment = {**ours, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with (run.folder / "log").open("wb") as log:
            process = subprocess.Popen(given, stdout=log, stderr=log, env=environment, cwd=ROOT)
        yield run, process
        process.kill()
        process.wait()


def test_real_processes_that_are_started_again_get_past_it(
    supervised: tuple[Run, subprocess.Popen[bytes]], expected: dict[str, Any]
) -> None:
    run, process = supervised
    assert process.wait(240) == 3, (run.folder / "log").read_text()[-3000:]
    assert run.crashed() == [DEADLY[0]]
    assert run.outcome() == expected
