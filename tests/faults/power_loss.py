"""Power cuts: what was not fsynced is gone, there, torn or out of order; the consumer goes on from it all the same.

    python -m tests.faults.power_loss --points 1000

1. A consumer runs under strace, is killed twice and goes on; every write, cut, new name, removed name and fsync in its
   folder is recorded, with all bytes.
2. For each crash point, a number of the recording, the folder is built as a disk might hold it after the power went
   there. What a file held when it was fsynced last is there. Of what came after, each write is there or not, or in part
   (512-byte sectors), whatever came before or behind it; a file may have its new length and zeros in it; each change of
   a folder's names since the folder was fsynced is there or not, and a folder without its name is gone with all in it.
3. A consumer is started on that folder. It must come to what an uninterrupted run comes to, bit for bit, or refuse in
   one line; refusals are counted, and each is told.

The shared memory beside the store (`state.db-shm`) is left away, or filled with noise: SQLite makes it anew.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults.kill_histories import WAYS, Folder, talk
from tests.faults.kill_moments import in_workers, summed
from tests.faults.kill_outcome import Outcome, differences, outcome_of
from tests.faults.kill_zygote import Zygote
from tests.faults.syscalls import CHANGES, can_trace, traced

SECTOR = 512
VOLATILE = "state.db-shm"
LINE = re.compile(r"^(\d+) +(?:(\w+)\((.*)|<\.\.\. (\w+) resumed>(.*))$", re.DOTALL)
RESULT = re.compile(r"\) += (-?\d+)[^()]*$")
PATH = re.compile(r"^\d+<((?:[^>\\]|\\.)*)>(\(deleted\))?")
TEXT = re.compile(r'"((?:[^"\\]|\\.)*)"')


class Op(NamedTuple):
    """One change, or an fsync.

    Attributes
    ----------
    what
        ``create``, ``mkdir``, ``unlink``, ``rename``, ``write``, ``cut`` or ``fsync``.
    path
        Relative to the run's folder; ``.`` for that itself.
    at
        Of a write, where it begins; −1: at the end. Of a cut, the length.
    data
        Of a write its bytes, of a renaming the new name.
    """

    what: str
    path: str
    at: int = 0
    data: bytes = b""


def plain(text: str) -> str:
    r"""Return what strace shows as ``\x2f\x61``.

    >>> plain(r"\x2f\x61")
    '/a'
    """
    return bytes.fromhex(text.replace("\\x", "")).decode() if text.startswith("\\x") else text


def recorded(log: Path, run: Path) -> Iterator[Op]:
    """Yield what a log of ``strace -f -y -xx`` says was done in a folder, as each call returned."""
    begun: dict[str, tuple[str, str]] = {}
    base = str(run)
    with log.open() as lines:
        for line in lines:
            if (match := LINE.match(line)) is None:
                continue
            thread, call, rest, again, more = match.groups()
            if call is not None and rest.rstrip().endswith("<unfinished ...>"):
                begun[thread] = (call, rest.rstrip().removesuffix("<unfinished ...>"))
                continue
            if again is not None:
                call, before = begun.pop(thread)
                assert call == again
                rest = before + more
            done = RESULT.search(rest)
            if done is None or int(done[1]) < 0:
                continue  # killed in it, or in vain
            if call in ("openat", "mkdir", "unlink", "truncate", "rename"):
                named = TEXT.search(rest)
                path = plain(named[1]) if named else ""
            else:
                found = PATH.match(rest)
                path = plain(found[1]) if found and not found[2] else ""
            if path != base and not path.startswith(base + "/"):
                continue
            name = os.path.relpath(path, base)
            if name == VOLATILE:
                continue
            tail = rest[: done.start()].rsplit(", ", 2)
            if call == "openat":
                if "O_CREAT" in rest:
                    yield Op("create", name)
            elif call in ("mkdir", "unlink"):
                yield Op(call, name)
            elif call == "rename":
                yield Op(call, name, 0, os.path.relpath(plain(TEXT.findall(rest)[1]), base).encode())
            elif call in ("ftruncate", "truncate"):
                yield Op("cut", name, int(tail[-1]))
            elif call in ("fsync", "fdatasync"):
                yield Op("fsync", name)
            elif call in ("write", "pwrite64"):
                text = TEXT.search(rest)
                assert text is not None
                data = bytes.fromhex(text[1].replace("\\x", ""))[: int(done[1])]
                assert len(data) == int(done[1]), "strace has cut a write short"
                yield Op("write", name, int(tail[-1]) if call == "pwrite64" else -1, data)
            else:
                raise AssertionError(f"expected no {call} in {base}")


@dataclass
class File:
    """A file's bytes: as they were fsynced, and what was done since; as the running system sees them."""

    synced: bytes = b""
    since: list[Op] = field(default_factory=list)
    now: bytearray = field(default_factory=bytearray)

    def do(self, op: Op) -> None:
        at = len(self.now) if op.at < 0 else op.at
        self.since.append(op._replace(at=at))
        apply(self.now, self.since[-1])

    def fsync(self) -> None:
        self.synced, self.since = bytes(self.now), []


def apply(data: bytearray, op: Op) -> None:
    """Do a write or a cut."""
    if op.what == "cut":
        del data[op.at :]
        data.extend(bytes(op.at - len(data)))
        return
    data.extend(bytes(max(0, op.at - len(data))))
    data[op.at : op.at + len(op.data)] = op.data


Name = tuple[str, File | None, bool]
"""A name, of what, and whether it is made; else it is removed."""


class Disk:
    """A folder on a disk: what a power cut leaves for sure, and what it may leave."""

    def __init__(self) -> None:
        self.names: dict[str, File | None] = {}  # None: a folder
        self.kept: dict[str, File | None] = {}
        self.renamed: list[tuple[Name, ...]] = []  # those of one call come together

    def do(self, op: Op) -> None:
        if op.what in ("create", "mkdir"):
            if op.path not in self.names:
                self._rename((op.path, File() if op.what == "create" else None, True))
        elif op.what == "unlink":
            self._rename((op.path, self.names[op.path], False))
        elif op.what == "rename":
            file = self.names[op.path]
            self._rename((op.path, file, False), (op.data.decode(), file, True))
        elif op.what == "fsync" and (op.path == "." or self.names[op.path] is None):
            mine = [each for each in self.renamed if (os.path.dirname(each[0][0]) or ".") == op.path]
            self.renamed = [each for each in self.renamed if each not in mine]
            for each in mine:
                take(self.kept, *each)
        else:
            file = self.names[op.path]
            assert file is not None
            if op.what == "fsync":
                file.fsync()
            else:
                file.do(op)

    def _rename(self, *names: Name) -> None:
        take(self.names, *names)
        self.renamed.append(names)

    def after_a_cut(self, dice: random.Random) -> dict[str, bytes | None]:
        """Return what may be there when the power comes back: name → content; None: a folder."""
        survives = dice.choice((0.0, 0.3, 0.7, 0.9, 1.0))
        names = dict(self.kept)
        for each in self.renamed:
            if dice.random() < survives:
                take(names, *each)
        found: dict[str, bytes | None] = {}
        for name in sorted(names):
            above = os.path.dirname(name)
            if not above or above in found:
                file = names[name]
                found[name] = None if file is None else content(file, survives, dice)
        return found


def take(names: dict[str, File | None], *changes: Name) -> None:
    """Make and remove these names."""
    for name, file, made in changes:
        if made:
            names[name] = file
        else:
            names.pop(name, None)


def content(file: File, survives: float, dice: random.Random) -> bytes:
    """Return what a disk may hold of a file."""
    data = bytearray(file.synced)
    for op in file.since:
        fate = dice.random()
        if fate < survives * 0.8 or survives == 1:
            apply(data, op)
        elif fate < survives and op.what == "write":  # in part
            first = op.at // SECTOR
            for sector in range(first, (op.at + len(op.data) - 1) // SECTOR + 1):
                if dice.random() < 0.5:
                    start, end = max(op.at, sector * SECTOR), min(op.at + len(op.data), (sector + 1) * SECTOR)
                    apply(data, Op("write", op.path, start, op.data[start - op.at : end - op.at]))
    if len(data) < len(file.now) and dice.random() < 0.3 * bool(survives):
        data.extend(bytes(len(file.now) - len(data)))  # the length got there, the bytes did not
    return bytes(data)


class Cuts:
    """A recording, and what becomes of it at crash points.

    Parameters
    ----------
    zygote
        Starts consumers.
    base
        A folder of its own.
    events, seed
        Of the input, and of the moments of the two kills.
    """

    def __init__(self, zygote: Zygote, base: Path, events: int, seed: int):
        self.folder, self._dice = Folder(zygote, base / "cut"), random.Random(f"power {seed}")
        self.folder.input.write_bytes(b"".join(talk(events, seed)))
        self.folder.finish("--batch-events", "11", "--checkpoint-every", "1")
        self.expected: Outcome = outcome_of(self.folder.run)
        shutil.rmtree(self.folder.run)
        self.folder.run.mkdir()
        self.ops = self._record()
        # Files are known by their inodes while nothing is in them: those of the recording are used again.
        self._vault = base / "inodes"
        shutil.rmtree(self._vault, ignore_errors=True)
        self._vault.mkdir()
        self._inodes = {}
        for number, path in enumerate(("out.jsonl", "dead.jsonl", "tape/part-000000.arrows")):
            self._inodes[path] = self._vault / str(number)
            os.link(self.folder.run / path, self._inodes[path])

    def _record(self) -> list[Op]:
        ops: list[Op] = []
        log = self.folder.path / "writes"
        options = ["-y", "-xx", "-s", str(1 << 22), "-o", str(log), "-e", f"trace={','.join(CHANGES)}"]
        size = self.folder.input.stat().st_size
        for share in (self._dice.uniform(0.2, 0.4), self._dice.uniform(0.5, 0.8), None):
            process, tracer = traced(self.folder, options, *WAYS[0])
            if share is None:
                assert process.wait() == 0, self.folder.tail()
            else:
                while self.folder.committed() < share * size:
                    assert not process.ends_within(0.005), self.folder.tail()
                process.send(signal.SIGKILL)
                process.wait()
            tracer.wait()
            ops += recorded(log, self.folder.run)
        log.unlink()
        return ops

    def build(self, state: dict[str, bytes | None], dice: random.Random) -> None:
        """Make the run's folder hold this."""
        run = self.folder.run
        shutil.rmtree(run)
        run.mkdir()
        for name, data in state.items():
            path = run / name
            if data is None:
                path.mkdir()
                continue
            if name in self._inodes:
                os.link(self._inodes[name], path)
            with path.open("wb") as file:
                file.write(data)
        if "state.db" in state and dice.random() < 0.3:
            (run / VOLATILE).write_bytes(dice.randbytes(32768))

    def points(self, count: int) -> Iterator[tuple[int, Disk]]:
        """Yield so many crash points in order, with the disk as it was there."""
        chosen = Counter(self._dice.randrange(len(self.ops) + 1) for _ in range(count))
        disk = Disk()
        for number in range(len(self.ops) + 1):
            for _ in range(chosen[number]):
                yield number, disk
            if number < len(self.ops):
                disk.do(self.ops[number])

    def try_all(self, count: int, say: str = "") -> dict[str, Any]:
        """Cut the power so often; return what was found."""
        tried: Counter[str] = Counter()
        lost: Counter[str] = Counter()
        refused: list[str] = []
        wrong: list[str] = []
        for done, (number, disk) in enumerate(self.points(count), 1):
            state = disk.after_a_cut(self._dice)
            pending = [op for file in disk.names.values() if file is not None for op in file.since]
            tried["with unsynced writes" if pending else "without"] += 1
            lost["unsynced writes"] += len(pending)
            lost["unsynced names"] += len(disk.renamed)
            self.build(state, self._dice)
            where = f"after {number} of {len(self.ops)} changes (the last: {tuple(self.ops[number - 1])[:3]})"
            code = self.folder.start(*self._dice.choice(WAYS)).wait()
            if code == 2:
                refused.append(f"{where}: {self.folder.tail().strip().splitlines()[-1]}")
            elif code:
                wrong.append(f"{where}: exit code {code}: {self.folder.tail()[-300:]}")
            elif differ := differences(self.expected, outcome_of(self.folder.run)):
                wrong.append(f"{where}: {len(differ)} differ: {', '.join(differ[:6])}")
            if done % 50 == 0:
                print(f"{say}{done} of {count} points; {len(refused)} refused, {len(wrong)} wrong", flush=True)
        kinds = Counter(op.what for op in self.ops)
        return {
            "points": count,
            "tried": dict(tried),
            "at_stake": dict(lost),
            "recorded": dict(kinds),
            "refused": refused,
            "wrong": wrong,
        }


def main() -> int:
    """Do what the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--each", type=int, default=250, help="points of one recording")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--events", type=int, default=120)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path, help="file for the counts")
    given = parser.parse_args()
    if reason := can_trace():
        sys.exit(reason)
    base = given.folder or Path(tempfile.mkdtemp(prefix="ebbtide-power-"))
    begun = time.monotonic()
    print(f"{given.points} crash points, seed {given.seed}, in {base}", flush=True)

    def work(worker: int) -> dict[str, Any]:
        zygote, found, left, turn = Zygote(), [], (given.points + worker) // given.workers, 0
        while left > 0:
            seed = given.seed * 1000 + 10 * turn + worker
            cuts = Cuts(zygote, base / f"worker-{worker}", given.events, seed)
            found.append(cuts.try_all(min(left, given.each), f"worker {worker}, seed {seed}: "))
            left, turn = left - given.each, turn + 1
        return summed(found)

    total = {**summed(in_workers(given.workers, work)), "seconds": round(time.monotonic() - begun, 1)}
    if given.json:
        given.json.write_text(json.dumps(total, indent=1))
    print(json.dumps(total, indent=1))
    return 1 if total["wrong"] or total["refused"] else 0


if __name__ == "__main__":
    sys.exit(main())
