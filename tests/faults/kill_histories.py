"""Runs that are interrupted and go on, and what they must come to.

Every run has everything on: a policy with an archive, detectors, a shadow, a tape in several parts, a sink, dead
letters, and a pool that holds half of the lanes. `Folder` is one of them; the histories differ in their input:

    file           one file; when its first half is consumed, operators' actions wait in the store, and it grows
    rotated        a followed log, renamed again and again while it is read and while nobody reads it
    emptied        a followed log, copied and emptied (copytruncate) again and again
    stopped        one file; SIGTERM under load, with deadlines that are long enough or not, and kills while it drains
"""

from __future__ import annotations

import json
import random
import re
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from stream.generate import GenerateSettings, generate
from stream.store import StateStore
from tests.faults.kill_outcome import Outcome, differences, outcome_of
from tests.faults.kill_zygote import DEADLINE, MAIN, NAMES, READER, TAPE, Aim, Process, Zygote

STREAMS = 24
MANGLED = (b"not json", b'{"stream": "a"}', b'{"stream": "a", "text": "\xff\xfe"}', b'{"text": NaN}', b"\x00\x01")
POOL = 12
"""Lanes that the pool holds."""
BATCH = 11
"""Events in the largest micro-batch."""
LANE = 4 * 8 * 8
AHEAD = 6_000
"""Bytes that a log is written ahead of what is committed."""
DRAINS = (0, 0.05, 0.3, 30)
"""Deadlines of a stop, in seconds."""
AIMS = (
    "micro-batch: lanes are spilled",
    "micro-batch: lanes are read from the store",
    "checkpoint: the sink is flushed",
    "checkpoint: the tape is flushed",
    "checkpoint: the transaction",
    "checkpoint: the note beside the store",
    "micro-batch: the sink is written",
    "tape: a record batch",
    "tape: a new part",
    "source: waits whether a rotated log grows",
    "source: goes on in the next file",
    "source: begins an emptied file",
    "operators' actions",
)
"""Where kills are aimed that are not left to chance."""
QUICK = ("micro-batch: lanes are spilled", "checkpoint: the note beside the store", "operators' actions")

OPTIONS = (
    *("--backbone", "hashing", "--rank", "8", "--shadow", "decay_on_shift"),
    *("--pool-bytes", str(POOL * LANE), "--metrics-port", "0", "--measure-every", "2", "--tape-text"),
)
POLICY = "policy: archive\nmost: 4\ncertainty: 0.5\nbelief: {hazard: 0.2, novelty: 0.3, likeness_floor: 0.5}\n"
"""An archive that files and takes up states all the time: one event in eight."""
WAYS: tuple[tuple[str, ...], ...] = (
    ("--batch-events", str(BATCH), "--checkpoint-every", "0", "--copy-every", "0.3"),
    ("--batch-events", "5", "--linger", "0", "--checkpoint-every", "0.1", "--copy-every", "0"),
    ("--batch-tokens", "120", "--batch-events", "9", "--checkpoint-every", "0.4", "--threads", "1"),
    ("--batch-events", "8", "--checkpoint-every", "0.2", "--threads", "2"),
)
"""What may differ between a run and the one that goes on from it."""

ACTIONS = (
    ("s000001", '{"kind": "decay", "factor": 0.5, "reason": "by hand"}'),
    ("s000002", '{"kind": "reset"}'),
    ("s000003", '{"kind": "decay", "factor": 0.25}'),
    ("s000003", '{"kind": "restore"}'),
    ("nobody", '{"kind": "reset"}'),
    ("s000004", '{"kind": "release"}'),
)
"""What operators ask for; the last two are refused."""


def talk(events: int, seed: int) -> list[bytes]:
    """Return the lines of a recurring conversation, one in fifteen mangled."""
    dice = random.Random(seed)
    made = []
    settings = GenerateSettings(
        scenario="recurring", streams=STREAMS, events=max(2, events // STREAMS), mean_topic_length=8, seed=seed
    )
    for number, (event, _) in enumerate(generate(settings)):
        made.append(json.dumps(event).encode() + b"\n")
        if number % 15 == 14:
            made.append(dice.choice(MANGLED) + b"\n")
    return made


class Folder:
    """One run's folder, and the processes that fill it, one after the other.

    Parameters
    ----------
    zygote
        Starts them.
    path
        Made anew.
    follow
        Whether the input is followed.
    """

    def __init__(self, zygote: Zygote, path: Path, *, follow: bool = False):
        shutil.rmtree(path, ignore_errors=True)
        (path / "in").mkdir(parents=True)
        self.zygote, self.path, self.follow = zygote, path, follow
        self.input, self.log = path / "in" / "talk.jsonl", path / "log"
        self.run, self.policy = path / "run", path / "policy.yaml"
        self.run.mkdir()
        self.policy.write_text(POLICY)

    def arguments(self, *options: str) -> list[str]:
        run = self.run
        return [
            *("run", "--source", f"file:{self.input}", *OPTIONS, *(["--follow"] if self.follow else [])),
            *("--state", f"sqlite:///{run}/state.db", "--sink", f"jsonl:{run}/out.jsonl"),
            *("--dead-letter", f"{run}/dead.jsonl", "--tape", f"{run}/tape", "--policy", str(self.policy), *options),
        ]

    def start(self, *options: str, stopped: bool = False) -> Process:
        return self.zygote.start(self.arguments(*options), self.log, stopped=stopped)

    def finish(self, *options: str) -> None:
        """Run to the end."""
        code = self.start(*options).wait()
        assert code == 0, f"{self.path}: exit code {code}: {self.tail()}"

    def tail(self) -> str:
        return self.log.read_bytes()[-400:].decode(errors="replace") if self.log.exists() else ""

    def committed(self) -> int:
        """Return the bytes of the input that the store says are consumed; −1 where it knows of no input yet."""
        try:
            with closing(sqlite3.connect(f"file:{self.run / 'state.db'}?mode=ro", uri=True)) as store:
                rows = store.execute("SELECT position FROM partitions").fetchall()
        except sqlite3.OperationalError:
            return -1
        return sum(json.loads(row[0])["offset"] for row in rows) if rows else -1

    def ask(self, actions: Sequence[tuple[str, str]] = ACTIONS) -> None:
        """Put operators' actions into the store, as `ebbtide act` does."""
        store = StateStore(f"sqlite:///{self.run}/state.db")
        for stream, action in actions:
            store.ask(stream, action)
        store.close()


@dataclass
class Tally:
    """What was tried, and where it hit."""

    kills: int = 0
    aimed: int = 0
    too_late: int = 0
    histories: Counter[str] = field(default_factory=Counter)
    places: Counter[str] = field(default_factory=Counter)
    rotations: Counter[str] = field(default_factory=Counter)
    stops: Counter[str] = field(default_factory=Counter)
    stop_seconds: list[float] = field(default_factory=list)
    ready: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def hit(self, zygote: Zygote, process: Process) -> None:
        marks = zygote.marks
        self.kills += 1
        self.places[marks.place(MAIN) or "starting, or between two steps"] += 1
        for cell in (TAPE, READER):
            if marks.place(cell):
                self.places[marks.place(cell)] += 1
        if marks.ready_at:
            self.ready.append(marks.ready_at - process.started)


class Histories:
    """Kills runs at random moments until they have been killed so often, and compares what they come to.

    Parameters
    ----------
    zygote
        Starts them.
    base
        A folder of their own.
    lines
        The input.
    aim_each
        After how many kills at random moments one is aimed.
    """

    def __init__(self, zygote: Zygote, base: Path, lines: list[bytes], aim_each: int):
        self.zygote, self.base, self.lines, self.aim_each = zygote, base, lines, aim_each
        self.tally = Tally()
        self._expected: dict[bool, Outcome] = {}

    def expected(self, *, acted: bool) -> Outcome:
        """Return the outcome of a run that nothing interrupted, but for the operators' actions where they are asked."""
        if acted not in self._expected:
            folder = Folder(self.zygote, self.base / f"whole-{acted}")
            if acted:
                folder.input.write_bytes(b"".join(self.lines[: len(self.lines) // 2]))
                folder.finish(*WAYS[0])
                folder.ask()
            folder.input.write_bytes(b"".join(self.lines))
            folder.finish("--batch-events", str(BATCH), "--checkpoint-every", "1")
            self._expected[acted] = outcome_of(folder.run)
        return self._expected[acted]

    def kill(self, folder: Folder, dice: random.Random, *, longest: float, feed: Feeder | None = None) -> bool:
        """Start, kill at a random moment, say whether it was still alive.

        One in five falls in the start, the others after it, however long it takes.
        """
        process = folder.start(*dice.choice(WAYS))
        if dice.random() < 0.2:
            self._live(process, process.started + dice.uniform(0, 0.3), dice, feed)
        else:
            self._get_ready(process)
            self._live(process, time.monotonic() + dice.uniform(0, longest), dice, feed)
        return self._end(folder, process)

    def _get_ready(self, process: Process) -> None:
        while not self.zygote.marks.ready_at and not process.ends_within(0.002):
            pass

    def aim(self, folder: Folder, dice: random.Random, *, longest: float, feed: Feeder | None = None) -> bool:
        """Start, with a kill aimed at a place drawn from `AIMS`; or after a while all the same."""
        marks, place = self.zygote.marks, dice.choice(AIMS)
        delay = dice.uniform(0, 100e-6 if place in QUICK else 1e-3)
        marks.aim = Aim(NAMES.index(place), dice.choice((0, 0, 1, 3, 6)), delay)
        process = folder.start(*dice.choice(WAYS))
        marks.aim = None
        self._live(process, process.started + 1.5 + longest, dice, feed)
        self.tally.aimed += 1
        return self._end(folder, process)

    def _live(self, process: Process, until: float, dice: random.Random, feed: Feeder | None) -> None:
        while (rest := until - time.monotonic()) > 0 and not process.ends_within(
            min(rest, dice.uniform(0.005, 0.06)) if feed else rest
        ):
            if feed is not None:
                feed.more()

    def _end(self, folder: Folder, process: Process) -> bool:
        process.send(9)
        code = process.wait()
        if code == 0:
            self.tally.too_late += 1
            return False
        assert code == -9, f"{folder.path}: exit code {code}: {folder.tail()}"
        self.tally.hit(self.zygote, process)
        return True

    def file(self, seed: int, kills: int, longest: float) -> None:
        """One file, in two halves."""
        dice = random.Random(f"file {seed}")
        folder = Folder(self.zygote, self.base / f"file-{seed}")
        folder.input.write_bytes(b"".join(self.lines[: len(self.lines) // 2]))
        for half in range(2):
            for number in range(1, kills // 2 + 1):
                if not self.kill(folder, dice, longest=longest):
                    break
                if number % self.aim_each == 0 and not self.aim(folder, dice, longest=longest):
                    break
            folder.finish(*dice.choice(WAYS))
            if half == 0:
                folder.ask()
                with folder.input.open("ab") as file:
                    file.write(b"".join(self.lines[len(self.lines) // 2 :]))
        self._compare(folder, "file", seed, self.expected(acted=True))

    def followed(self, how: str, seed: int, kills: int, longest: float) -> None:
        """A log that is rotated, by renaming or by copying and emptying."""
        dice = random.Random(f"{how} {seed}")
        folder = Folder(self.zygote, self.base / f"{how}-{seed}", follow=True)
        feed = Feeder(folder, self.lines, how, dice, parts=3 * kills)
        for number in range(kills):
            feed.more()
            if number % 4 == 3:
                feed.rotate()  # while nobody reads
            self.kill(folder, dice, longest=longest, feed=feed)
            if (number + 1) % self.aim_each == 0:
                self.aim(folder, dice, longest=longest, feed=feed)
        process = folder.start(*dice.choice(WAYS))
        end = time.monotonic() + DEADLINE
        while (feed.left or folder.committed() < feed.total) and time.monotonic() < end:
            if process.ends_within(0.03):
                break
            feed.more()
        self._get_ready(process)  # all may be committed already: before it listens, SIGTERM is a kill
        process.send(15)
        code = process.wait()
        assert code == 0, f"{folder.path}: exit code {code}: {folder.tail()}"
        self.tally.rotations.update(feed.rotations)
        self._compare(folder, how, seed, self.expected(acted=False))

    def stopped(self, seed: int, stops: int, longest: float) -> None:
        """SIGTERM at random moments, with deadlines from none to long; now and then a kill while it drains."""
        dice = random.Random(f"stopped {seed}")
        folder = Folder(self.zygote, self.base / f"stopped-{seed}")
        folder.input.write_bytes(b"".join(self.lines))
        for number in range(stops):
            drain = DRAINS[number % len(DRAINS)]
            before = folder.log.stat().st_size if folder.log.exists() else 0
            process = folder.start(*dice.choice(WAYS), "--drain", str(drain))
            self._get_ready(process)
            self._live(process, time.monotonic() + dice.uniform(0, longest), dice, None)
            told = time.monotonic()
            process.send(15)
            if number % 5 == 4:
                process.ends_within(dice.uniform(0, 0.08))
                process.send(9)
            code = process.wait()
            took = time.monotonic() - told
            log = folder.log.read_bytes()[before:].decode(errors="replace")
            if code == -9:
                self.tally.stops["killed while it drained"] += 1
            elif code == -15 and not self.zygote.marks.ready_at:
                self.tally.stops["before it listened"] += 1
            elif code == 0 and " finished " in log:
                self.tally.stops["at its end already"] += 1
            elif code == 0 and re.search("stopped .*drained=", log):
                drained = "drained=True" in log
                self.tally.stops[f"--drain {drain}: {'drained' if drained else 'cut at the deadline'}"] += 1
                self.tally.stop_seconds.append(max(0.0, took - drain) if not drained else took)
            else:
                raise AssertionError(f"{folder.path}: --drain {drain}: exit code {code}: {log[-300:]}")
            self.tally.kills += 1
        folder.finish(*dice.choice(WAYS))
        self._compare(folder, "stopped", seed, self.expected(acted=False))

    def _compare(self, folder: Folder, kind: str, seed: int, expected: Outcome) -> None:
        self.tally.histories[kind] += 1
        differ = differences(expected, outcome_of(folder.run, same_folder=not folder.follow))
        if folder.follow:
            differ = [name for name in differ if not name.startswith("position in")]
            if folder.committed() != sum(map(len, self.lines)):
                differ.append("position")
        if differ:
            self.tally.wrong.append(f"{kind} {seed}: {len(differ)} differ: {', '.join(differ[:8])} ({folder.path})")
        else:
            shutil.rmtree(folder.path)


class Feeder:
    """Writes a log in pieces, and rotates it."""

    def __init__(self, folder: Folder, lines: list[bytes], how: str, dice: random.Random, *, parts: int):
        self._folder, self._how, self._dice = folder, how, dice
        self._pieces = [
            lines[first : first + max(1, len(lines) // parts)]
            for first in range(0, len(lines), max(1, len(lines) // parts))
        ]
        self.total = sum(map(len, lines))
        self._written = self._base = self._number = 0
        self.rotations: Counter[str] = Counter()
        folder.input.touch()

    @property
    def left(self) -> int:
        """Pieces not written yet."""
        return len(self._pieces)

    def more(self) -> None:
        """Write a piece in two, the cut within a line; rotate now and then. Nothing while the reader is far behind."""
        if not self._pieces or self._written - self._folder.committed() > AHEAD:
            return
        data = b"".join(self._pieces.pop(0))
        cut = self._dice.randrange(len(data))
        for part in (data[:cut], data[cut:]):
            with self._folder.input.open("ab") as file:
                file.write(part)
        self._written += len(data)
        if self._dice.random() < 0.12:
            self.rotate()

    def rotate(self) -> None:
        """Rotate, if there is something in the log.

        Not before a run has begun with it. And of a log that is emptied some line must be committed since the last
        time: content that comes and goes unseen is what nobody can find again (docs/sources.md).
        """
        log, committed = self._folder.input, self._folder.committed()
        if not log.stat().st_size or committed < 0 or (self._how == "emptied" and committed <= self._base):
            return
        for number in range(self._number, 0, -1):
            log.with_name(f"{log.name}.{number}").rename(log.with_name(f"{log.name}.{number + 1}"))
        if self._how == "rotated":
            log.rename(log.with_name(f"{log.name}.1"))
            log.touch()
        else:
            shutil.copy2(log, log.with_name(f"{log.name}.1"))
            with log.open("r+b") as file:
                file.truncate(0)
        self._number += 1
        self._base = self._written
        self.rotations[self._how] += 1
