"""A real run that is fed through a pipe by a writer who never waits, and what it left at its end."""

from __future__ import annotations

import http.client
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.watched_run import free_port
from stream.config import RunSettings
from stream.consumer import Consumer
from stream.dead_letters import read_dead_letters
from stream.sources import CHUNK_BYTES
from stream.store import StateStore
from tests.warm import Command, Warm

DEADLINE = 180.0
"""Seconds after which a test gives up."""

DETECTORS = {"state_norm": "page_hinkley"}
"""Without river, whose import takes as long as the rest."""

AHEAD = (8 + 3) * CHUNK_BYTES + (1 << 20)
"""Bytes that a run may have taken in and not processed: eight chunks in the queue, one each in the hands of the reader,
the batcher and the line cutter, and a pipe's buffer."""


def settings_of(folder: Path, source: str, **options: Any) -> RunSettings:
    return RunSettings(
        **{
            "source": source,
            "backbone": "hashing",
            "rank": 8,
            "policy": "none",
            "detectors": DETECTORS,
            "state": f"sqlite:///{folder}/state.db",
            "sink": f"jsonl:{folder}/out.jsonl",
            "metrics_port": 0,
            **options,
        }
    )


IMPATIENT = "import stream.service; stream.service.STALL = 2.0"
"""Makes two seconds a stall, and not a minute."""


def command(settings: RunSettings) -> list[str]:
    """Return the command line of the settings that are not the defaults'."""
    return [sys.executable, "-m", "stream.cli", *arguments(settings)]


def arguments(settings: RunSettings) -> list[str]:
    """Return what comes behind `ebbtide`."""
    words = ["run"]
    for name in sorted(settings.model_fields_set):
        value = getattr(settings, name)
        shown = str(value).replace("'", '"') if isinstance(value, dict) else str(value)
        words += ["--" + name.replace("_", "-"), shown]
    return words


def outcome(folder: Path) -> tuple[Any, ...]:
    """Return what a run left: its lanes whole, its counters, positions, and its files."""
    store = StateStore(f"sqlite:///{folder}/state.db", create=False)
    try:
        checkpoint = store.load()
        places = {name: (place.offset, place.lines) for name, place in checkpoint.positions.items()}
        lanes = dict(store.lanes())
    finally:
        store.close()
    letters = read_dead_letters(folder / "out.dead.jsonl")
    dead = [(letter.offset, letter.line, letter.reason, letter.raw) for letter in letters]
    return lanes, list(places.values()), checkpoint.counters, (folder / "out.jsonl").read_bytes(), dead


def undisturbed(folder: Path, lines: bytes, **options: Any) -> tuple[Any, ...]:
    """Return what a run leaves that is alone with a file of these lines."""
    path = folder / "in.jsonl"
    path.write_bytes(lines)
    consumer = Consumer(settings_of(folder, f"file:{path}", **options))
    try:
        consumer.open()
        consumer.run()
    finally:
        consumer.close()
    return outcome(folder)


class FedRun:
    """One process, its pipe, and its HTTP server.

    Parameters
    ----------
    folder
        Where everything goes.
    before
        What stands before the command, such as strace.
    warm
        What starts it in place of an interpreter of its own.
    first
        Python that is run first in a process that `warm` starts.
    options
        Of the run.

    Attributes
    ----------
    accepted
        Bytes that went into the pipe.
    refused
        How often the pipe took nothing: the run held the writer back.
    """

    def __init__(
        self, folder: Path, *, before: Sequence[str] = (), warm: Warm | None = None, first: str = "", **options: Any
    ):
        self.folder, self.port, self._before = folder, free_port(), before
        self.accepted = self.refused = 0
        self._waiting = memoryview(b"")
        end, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        self.settings = settings_of(folder, "stdin:", **options | {"metrics_port": self.port})
        with (folder / "log").open("ab") as log:
            self.process: Command | subprocess.Popen[bytes]
            if warm:
                self.process = warm.start(arguments(self.settings), log, stdin=end, before=first)
            else:
                self.process = subprocess.Popen([*before, *command(self.settings)], stdin=end, stdout=log, stderr=log)
        os.close(end)

    def __enter__(self) -> FedRun:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end_input()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def offer(self, lines: bytes = b"") -> bool:
        """Offer lines behind those offered before; take what the pipe takes now, and say whether that was all."""
        if lines:
            self._waiting = memoryview(bytes(self._waiting) + lines)
        try:
            while self._waiting:
                taken = os.write(self._pipe, self._waiting[: 1 << 16])
                self.accepted += taken
                self._waiting = self._waiting[taken:]
        except BlockingIOError:
            self.refused += 1
        return not self._waiting

    def offer_all(self, lines: bytes, each: Callable[[], None] = lambda: None) -> None:
        """Offer lines until all are taken, as fast as they are; `each` is called every quarter of a second."""
        until = time.monotonic() + DEADLINE
        due = time.monotonic() + 0.25
        while not self.offer(lines):
            lines = b""
            select.select([], [self._pipe], [], 0.05)
            if time.monotonic() >= due:
                each()
                assert self.process.poll() is None, self.log()
                assert time.monotonic() < until
                due = time.monotonic() + 0.25

    def end_input(self) -> None:
        """Close the pipe."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1

    def finish(self) -> int:
        """End the input, and return the exit code."""
        self.end_input()
        return self.process.wait(DEADLINE)

    def get(self, path: str) -> tuple[int, str]:
        """Return the server's answer: its code and text; 0 where there is none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except (OSError, http.client.HTTPException):
            return 0, ""
        finally:
            connection.close()

    def says(self, path: str, code: int) -> bool:
        return self.get(path)[0] == code

    def summary(self) -> dict[str, Any]:
        """Return `/api/summary`, waited for."""
        found: list[dict[str, Any]] = []

        def asked() -> bool:
            code, text = self.get("/api/summary")
            if code == 200:
                found.append(json.loads(text))
            return code == 200

        self.wait_for(asked)
        return found[0]

    def metric(self, name: str) -> float:
        """Return a sample of a new exposition."""
        time.sleep(1.1)  # one is kept for a second
        return number(self.get("/metrics")[1], name)

    def memory(self) -> int:
        """Return the most bytes that were ever resident."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])

    @property
    def pid(self) -> int:
        """The run's own process, whatever stands before it."""
        if not self._before:
            return self.process.pid
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[0])

    def wait_for(self, what: Callable[[], bool]) -> None:
        """Wait until something is so."""
        until = time.monotonic() + DEADLINE
        while not what():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < until
            time.sleep(0.05)

    def wait_ready(self) -> None:
        self.wait_for(lambda: self.says("/-/ready", 200))

    def log(self) -> str:
        return (self.folder / "log").read_text()[-2000:]


def number(exposition: str, name: str) -> float:
    """Return one sample's value.

    >>> number('a_total{way="in"} 3.0', 'a_total{way="in"}')
    3.0
    """
    return next(float(line.split()[-1]) for line in exposition.splitlines() if line.startswith(name))
