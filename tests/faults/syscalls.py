"""Faults at chosen system calls of a real consumer, by strace: killed there, or given an error.

    python -m tests.faults.syscalls --points 200

1. The consumer runs once under strace, from nothing and again from the middle of a history that was killed; every call
   that changes the disk is a point: (call, file, how many of these on that file were before).
2. At each point that is drawn, a consumer that does the same work is killed as it enters that call, then started
   again, and what it comes to is compared with what an uninterrupted run leaves, bit for bit.
3. The same with errors: EIO at an fsync or a write ends the run with one line and a code that is not 0, and the next
   run goes on with equal results; EINTR and ENOSPC that pass are not noticed in the results at all.
4. Runs a third of whose writes the kernel takes only in part: equal results.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.kill_histories import WAYS, Folder, talk
from tests.faults.kill_outcome import Outcome, differences, outcome_of
from tests.faults.kill_short_writes import cannot, run_with_short_writes
from tests.faults.kill_zygote import BUFFER, Process, Zygote

CHANGES = (
    *("write", "pwrite64", "fsync", "fdatasync", "ftruncate", "truncate"),
    *("rename", "unlink", "openat", "mkdir"),
)
"""Calls that change the disk, or make it keep what was changed."""

BY_NAME = ("openat", "mkdir", "unlink", "rename", "truncate")
CALL = re.compile(r"^(\d+) +(\w+)\((.*)$")
FD = re.compile(r"^\d+<([^>]*)>")
NAMED = re.compile(r'"((?:[^"\\]|\\.)*)"')


def can_trace() -> str | None:
    """Return why processes cannot be traced here; None if they can."""
    if shutil.which("strace") is None:
        return "strace is not installed (Debian: apt-get install strace)"
    done = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"strace cannot trace here: {done.stderr.strip()[-100:]}"


@dataclass(frozen=True, slots=True)
class Point:
    """One system call: the `number`-th (from 1) of this kind on this file."""

    scene: str
    call: str
    file: str
    number: int

    def __str__(self) -> str:
        return f"{self.scene}: {self.call} {self.number} on {self.file}"


def traced(folder: Folder, strace: list[str], *options: str) -> tuple[Process, subprocess.Popen[bytes]]:
    """Start a consumer under strace from its first step; return both."""
    process = folder.start(*options, stopped=True)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    tracer = subprocess.Popen(
        ["strace", "-f", "-qq", "-p", str(process.pid), *strace], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    status = Path(f"/proc/{process.pid}/status")
    while "\nTracerPid:\t0\n" in status.read_text():
        assert tracer.poll() is None, "strace ended"
        time.sleep(0.001)
    process.send(signal.SIGCONT)
    return process, tracer


def calls(log: Path, run: Path) -> Iterator[tuple[str, str]]:
    """Yield (call, file's name) of each change on the run's folder that a log of strace tells of."""
    for line in log.read_text(errors="replace").splitlines():
        if (match := CALL.match(line)) is None:
            continue
        _, call, rest = match.groups()
        if call == "openat" and "O_CREAT" not in rest:
            continue
        found = (
            FD.match(rest) if call not in ("openat", "mkdir", "unlink", "rename", "truncate") else NAMED.search(rest)
        )
        path = found[1] if found else ""
        if path == str(run) or path.startswith(f"{run}/"):
            yield call, path


@dataclass
class Count:
    """What was tried and found."""

    tried: Counter[str] = field(default_factory=Counter)
    not_reached: int = 0
    wrong: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        return {"tried": dict(self.tried.most_common()), "not_reached": self.not_reached, "wrong": self.wrong}


class Scenes:
    """Two beginnings over one input: ``fresh`` (nothing) and ``resumed`` (a history killed in its midst, with more on
    the disk than the checkpoint knows of).

    Parameters
    ----------
    zygote
        Starts consumers.
    base
        A folder of its own.
    events
        In the input.
    """

    def __init__(self, zygote: Zygote, base: Path, events: int = 120, seed: int = 11):
        self.folder = Folder(zygote, base / "scene")
        self.folder.input.write_bytes(b"".join(talk(events, seed)))
        self.folder.finish("--batch-events", "11", "--checkpoint-every", "1")
        self.expected: Outcome = outcome_of(self.folder.run)
        self._kept = base / "kept"
        self._keep_middle(base)

    def _keep_middle(self, base: Path) -> None:
        """Kill a run after a part of its tape was begun that no checkpoint knows of."""
        shutil.rmtree(self._kept, ignore_errors=True)
        self.begin("fresh")
        sink = self.folder.run / "out.jsonl"
        third = self.folder.input.stat().st_size // 3
        process = self.folder.start("--batch-events", "3", "--checkpoint-every", "0.15")
        while self.folder.committed() < third:
            assert not process.ends_within(0.001)
        length = sink.stat().st_size
        while sink.stat().st_size < length + BUFFER // 2:
            assert not process.ends_within(0.001)
        process.send(signal.SIGKILL)
        process.wait()
        shutil.copytree(self.folder.run, self._kept)

    def begin(self, scene: str) -> None:
        """Set the run's folder up."""
        shutil.rmtree(self.folder.run)
        if scene == "fresh":
            self.folder.run.mkdir()
        else:
            shutil.copytree(self._kept, self.folder.run)

    def points(self, scene: str) -> list[Point]:
        """Return every point of a run."""
        self.begin(scene)
        log = self.folder.path / "calls"
        process, tracer = traced(self.folder, ["-y", "-o", str(log), "-e", f"trace={','.join(CHANGES)}"], *WAYS[0])
        assert process.wait() == 0, self.folder.tail()
        tracer.wait()
        seen: Counter[tuple[str, str]] = Counter()
        found = []
        for call, path in calls(log, self.folder.run):
            seen[call, path] += 1
            name = str(Path(path).relative_to(self.folder.run))
            found.append(Point(scene, call, name, seen[call, path]))
        return found

    def inject(self, point: Point, what: str, *, when: str | None = None) -> int:
        """Do a run with something injected at a point; return its exit code."""
        self.begin(point.scene)
        call = f"inject={point.call}:{what}:when={when or point.number}"
        options = ["-P", str(self.folder.run / point.file), "-e", f"trace={point.call}", "-e", call, "-o", "/dev/null"]
        process, tracer = traced(self.folder, options, *WAYS[0])
        code = process.wait()
        tracer.wait()
        return code

    def differ(self) -> list[str]:
        """Let the run go on to its end; return what is not as it should be."""
        self.folder.finish(*WAYS[1])
        return differences(self.expected, outcome_of(self.folder.run))


def kind(point: Point) -> str:
    """Return a point's call and kind of file, for the count.

    >>> kind(Point("fresh", "pwrite64", "state.db-wal", 3)), kind(Point("fresh", "write", "tape/part-000001.arrows", 1))
    ('pwrite64 state.db-wal', 'write tape/part')
    """
    return f"{point.call} {re.sub('-[0-9]{6}.arrows', '', point.file)}"


def spread(points: list[Point], count: int, dice: random.Random) -> list[Point]:
    """Draw so many points: of each kind of call and file in turn, so that rare ones are not left out."""
    groups: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        groups.setdefault((point.scene, kind(point)), []).append(point)
    for group in groups.values():
        dice.shuffle(group)
    drawn: list[Point] = []
    while len(drawn) < count and any(groups.values()):
        for group in groups.values():
            if group and len(drawn) < count:
                drawn.append(group.pop())
    return drawn


def kill_at(scenes: Scenes, points: list[Point], count: Count) -> None:
    """Kill at each of the points, and compare."""
    for number, point in enumerate(points, 1):
        try:
            code = scenes.inject(point, "signal=KILL")
        except TimeoutError as error:
            count.wrong.append(f"{point}: {error}")
            continue
        if code == 0:
            count.not_reached += 1
        elif code != -signal.SIGKILL:
            count.wrong.append(f"{point}: exit code {code}: {scenes.folder.tail()}")
            continue
        check(scenes, f"killed at {point}", count)
        count.tried[f"killed at {kind(point)}"] += code != 0
        if number % 20 == 0:
            print(f"{number} of {len(points)} points, {len(count.wrong)} wrong", flush=True)


def check(scenes: Scenes, what: str, count: Count) -> None:
    try:
        if differ := scenes.differ():
            count.wrong.append(f"{what}: {len(differ)} differ: {', '.join(differ[:6])}")
    except AssertionError as error:
        count.wrong.append(f"{what}: {error}")


ERRORS = (
    ("fdatasync", "state.db-wal", "EIO"),
    ("fdatasync", "state.db", "EIO"),
    ("fdatasync", "state.db-journal", "EIO"),
    ("fsync", "out.jsonl", "EIO"),
    ("fsync", "dead.jsonl", "EIO"),
    ("fsync", "tape/part-000000.arrows", "EIO"),
    ("fsync", "tape/part-000001.arrows", "EIO"),
    ("fsync", "tape", "EIO"),
    ("write", "out.jsonl", "EIO"),
    ("write", "dead.jsonl", "EIO"),
    ("write", "tape/part-000000.arrows", "EIO"),
    ("pwrite64", "state.db-wal", "EIO"),
)
"""What ends a run."""

PASSING = tuple(
    (call, file, error)
    for call, file in (
        ("write", "out.jsonl"),
        ("write", "dead.jsonl"),
        ("write", "tape/part-000000.arrows"),
        ("pwrite64", "state.db-wal"),
    )
    for error in ("EINTR", "ENOSPC")
)
"""What passes, and must leave no trace."""


def errors_at(
    scenes: Scenes,
    points: list[Point],
    kinds: list[tuple[str, str, str]],
    each: int,
    dice: random.Random,
    count: Count,
) -> None:
    """Give errors at points of each of these kinds."""
    for call, file, error in kinds:
        some = [point for point in points if (point.call, point.file) == (call, file)]
        for point in dice.sample(some, min(each, len(some))):
            passes = (call, file, error) in PASSING
            before = len(scenes.folder.log.read_bytes()) if scenes.folder.log.exists() else 0
            code = scenes.inject(point, f"error={error}", when=f"{point.number}+3" if error == "EINTR" else None)
            told = scenes.folder.log.read_bytes()[before:].decode(errors="replace")
            lines = [line for line in told.splitlines() if line.startswith("ebbtide: ")]
            if passes and code != 0:
                count.wrong.append(f"{error} at {point}: exit code {code}: {lines}")
            elif not passes and code != 0 and ("Traceback" in told or len(lines) != 1 or code not in (1, 2)):
                count.wrong.append(f"{error} at {point}: exit code {code}: {told[-600:]}")
            elif not passes and code == 0:
                count.tried[f"{error} at {kind(point)}: not noticed, exit code 0"] += 1
            check(scenes, f"{error} at {point}", count)
            count.tried[f"{error} at {kind(point)}"] += 1
            if not passes:
                print(f"{error} at {point}: exit code {code}: {lines[0] if lines else ''}", flush=True)


def shortened(scenes: Scenes, runs: int, dice: random.Random, count: Count) -> None:
    """Cut writes short, and compare."""
    for number in range(0 if cannot() else runs):
        scenes.begin(("fresh", "resumed")[number % 2])
        code, cut = run_with_short_writes(scenes.folder, dice, 1 / 3, *WAYS[0])
        if code != 0:
            count.wrong.append(f"short writes {dict(cut)}: exit code {code}: {scenes.folder.tail()}")
            continue
        check(scenes, "short writes", count)
        count.tried.update({f"short {what}": times for what, times in cut.items()})


def main() -> int:
    """Do what the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=200, help="system calls to be killed at")
    parser.add_argument("--errors", type=int, default=3, help="errors of each kind")
    parser.add_argument("--error-kinds", type=int, default=99, help="kinds of errors, drawn")
    parser.add_argument("--short-runs", type=int, default=4, help="runs with writes that are cut short")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--events", type=int, default=120)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path, help="file for the counts")
    given = parser.parse_args()
    if reason := can_trace():
        sys.exit(reason)
    base = given.folder or Path(tempfile.mkdtemp(prefix="ebbtide-syscalls-"))
    base.mkdir(parents=True, exist_ok=True)
    dice, count, begun = random.Random(given.seed), Count(), time.monotonic()
    scenes = Scenes(Zygote(), base, given.events)
    points = [*scenes.points("fresh"), *scenes.points("resumed")]
    print(f"{len(points)} points; {given.points} drawn with seed {given.seed}; in {base}", flush=True)
    kill_at(scenes, spread(points, given.points, dice), count)
    kinds = [*ERRORS, *PASSING]
    if given.error_kinds < len(kinds):
        kinds = dice.sample(kinds, given.error_kinds)
    errors_at(scenes, points, kinds, given.errors, dice, count)
    shortened(scenes, given.short_runs, dice, count)
    told = {**count.plain(), "points_there_are": len(points), "seconds": round(time.monotonic() - begun, 1)}
    if given.json:
        given.json.write_text(json.dumps(told, indent=1))
    print(json.dumps(told, indent=1))
    return 1 if count.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
