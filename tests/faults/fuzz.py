"""Hostile input, by the million: each target mangles good input and holds what it is given to to its promise.

    python -m tests.faults.fuzz parser                    a million inputs
    python -m tests.faults.fuzz all --minutes 5           of each target, as many as fit
    python -m tests.faults.fuzz parser --inputs 1 --first 12345     one again, by the number that a failure names
    python -m tests.faults.fuzz tape --engine atheris     inputs of a coverage-guided engine (pip install atheris)
    python -m tests.faults.fuzz http --engine schemathesis          requests made from the application's own OpenAPI

Input number n of a seed is always the same one. The inputs are given to child processes, some thousands to each: one
that crashes, or hangs for a minute, is told with the input's number.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import math
import mmap
import os
import shutil
import signal
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.faults import fuzz_files, fuzz_http, fuzz_text, fuzz_wire
from tests.faults.fuzz_input import Target
from tests.faults.fuzz_schema import described

TARGETS: dict[str, Callable[[Path], Target]] = {
    "parser": fuzz_text.parser,
    "http": fuzz_http.http,
    "wire": fuzz_wire.wire,
    "config": fuzz_text.config,
    "adapter": fuzz_files.adapter,
    "tape": fuzz_files.tape,
    "store": fuzz_files.store,
    "names": fuzz_files.names,
    "urls": fuzz_http.urls,
}
HANGS = 60
"""Seconds after which an input hangs."""
BLOCK = 5_000
"""Inputs given to one child process."""


def fuzz(
    name: str,
    *,
    seed: int = 0,
    first: int = 0,
    inputs: int = 1_000_000,
    seconds: float = math.inf,
    block: int | None = None,
    tell: Callable[[Counter[str]], None] = lambda found: None,
) -> Counter[str]:
    """Give a target its inputs; return what came of them.

    Parameters
    ----------
    name
        Of the target.
    seed, first, inputs, seconds
        Which inputs, and for how long.
    block
        How many a child process is given; None: all are taken in this process.
    tell
        Called after each block with what came so far.

    Raises
    ------
    AssertionError
        A promise was broken; the message says by which input.
    """
    folder, back = scratch(), Path.cwd()
    os.chdir(folder)  # a mangled path may name a file here
    outcomes: Counter[str] = Counter()
    target: Target | None = None
    try:
        target = TARGETS[name](folder)
        until, end = time.monotonic() + seconds, first + inputs
        while first < end and time.monotonic() < until:
            last = end if block is None else min(end, first + block)
            outcomes += (_take if block is None else _take_aside)(name, target, seed, first, last, until)
            first = last
            tell(outcomes)
    finally:
        if target is not None:
            target.close()
        os.chdir(back)
        shutil.rmtree(folder, ignore_errors=True)
    return outcomes


def scratch() -> Path:
    """Return a new folder, in memory where there is such a place: millions of small files go through it."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="ebbtide-fuzz-", dir=memory if os.access(memory, os.W_OK) else None))


def _take(
    name: str,
    target: Target,
    seed: int,
    first: int,
    last: int,
    until: float,
    tell: Callable[[int], None] = lambda number: None,
) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    try:
        for number in range(first, last):
            if not number % 256 or number == first:
                faulthandler.dump_traceback_later(HANGS, exit=True)
                if time.monotonic() > until:
                    break
            tell(number)
            try:
                outcomes[target.one(Random(f"{seed}:{number}"))] += 1
            except Exception as error:
                raise AssertionError(f"{name}: input {number} of seed {seed}: {error!r}") from error
    finally:
        faulthandler.cancel_dump_traceback_later()
    return outcomes


def _take_aside(name: str, target: Target, seed: int, first: int, last: int, until: float) -> Counter[str]:
    """Do it in a child process, which says in shared memory at which input it is."""
    at = mmap.mmap(-1, 8)
    tell: Callable[[int], None] = lambda number: struct.pack_into("q", at, 0, number)  # noqa: E731
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(read)
            try:
                said = json.dumps([dict(_take(name, target, seed, first, last, until, tell)), ""])
                target.close()
            except AssertionError as error:
                said = json.dumps([{}, str(error)])
            with os.fdopen(write, "w") as pipe:
                pipe.write(said)
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code or not said:
        (number,) = struct.unpack_from("q", at, 0)
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}; it hung for {HANGS} s, or was ended"
        raise AssertionError(f"{name}: input {number} of seed {seed} ended its process: {how}")
    found, broken = json.loads(said)
    if broken:
        raise AssertionError(broken)
    return Counter(found)


def main() -> None:
    """Run one target, or all."""
    options = argparse.ArgumentParser(prog="python -m tests.faults.fuzz", description=(__doc__ or "").splitlines()[0])
    options.add_argument("target", choices=[*TARGETS, "all"])
    options.add_argument("--minutes", type=float, default=math.inf, help="at most so many for each target")
    options.add_argument("--inputs", type=int, default=1_000_000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--first", type=int, default=0, help="the number of the first input")
    options.add_argument("--engine", choices=["dice", "atheris", "schemathesis"], default="dice")
    given = options.parse_args()
    if given.engine == "schemathesis" and given.target != "http":
        options.error("schemathesis makes requests: expected http")
    if given.engine == "atheris":
        from tests.faults.fuzz_atheris import GUIDED, guided

        for name in GUIDED if given.target == "all" else [given.target]:
            print(guided(name, TARGETS[name], seed=given.seed, inputs=given.inputs, seconds=60 * given.minutes))
        return
    broken = False
    for name in TARGETS if given.target == "all" else [given.target]:
        told = Told(name)
        numbers = {"seed": given.seed, "inputs": given.inputs, "seconds": 60 * given.minutes}
        try:
            if given.engine == "schemathesis":
                found, different = described(**numbers, tell=told)
                print(f"{different:,} of the requests were different ones")
            else:
                found = fuzz(name, **numbers, first=given.first, block=BLOCK, tell=told)
        except AssertionError as error:
            broken = True
            print(f"BROKEN after {told.seconds():.0f} s: {error}", flush=True)
        else:
            print("end of", told.line(found), flush=True)
    raise SystemExit(int(broken))


class Told:
    """Prints what came so far, twice a minute."""

    def __init__(self, name: str) -> None:
        self._name, self._begun = name, time.monotonic()
        self._last = self._begun

    def __call__(self, found: Counter[str]) -> None:
        if time.monotonic() - self._last > 30:
            self._last = time.monotonic()
            print(self.line(found), flush=True)

    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def line(self, found: Counter[str]) -> str:
        return f"{self._name}: {found.total():,} inputs in {self.seconds():.0f} s: {dict(found.most_common())}"


if __name__ == "__main__":
    main()
