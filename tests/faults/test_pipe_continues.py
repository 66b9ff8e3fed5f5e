"""Standard input that goes on where the last run left off: what was read and not taken in is kept at a stop."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import struct
import termios
import time
from itertools import pairwise
from pathlib import Path
from threading import Thread

import pytest

from tests.faults.numbered import WHAT, lines
from tests.warm import Command, Warm

DEADLINE = 120.0
COUNT = 20_000
LINES = lines(0, COUNT).splitlines(keepends=True)


class Pipe:
    """Runs that read one pipe, one after the other."""

    def __init__(self, warm: Warm, folder: Path):
        self.warm, self.folder = warm, folder
        self.end, self.begin = os.pipe()

    def start(self, *more: object) -> Command:
        given = ("run", "--source", "stdin:", "--stdin-continues", "--state", f"sqlite:///{self.folder / 'state.db'}")
        sink = ("--sink", f"jsonl:{self.folder / 'out.jsonl'}", "--dedupe-window", 0)
        with (self.folder / "log").open("ab") as log:
            return self.warm.start([*given, *WHAT, *sink, *more], log, stdin=self.end)

    def ids(self) -> list[str]:
        return [json.loads(line)["id"] for line in (self.folder / "out.jsonl").read_bytes().splitlines()]

    def dead(self) -> bytes:
        return (self.folder / "out.dead.jsonl").read_bytes()


@pytest.fixture
def pipe(warm: Warm, tmp_path: Path) -> Pipe:
    return Pipe(warm, tmp_path)


def wait_until_empty(pipe: Pipe) -> None:
    """Wait until all that was written has been read."""
    deadline = time.monotonic() + DEADLINE
    while struct.unpack("i", fcntl.ioctl(pipe.end, termios.FIONREAD, b"\0\0\0\0"))[0]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_half_a_line_waits_for_its_other_half(pipe: Pipe) -> None:
    text = b"".join(LINES[:20])
    cuts = [0, 700, 705, 1000, 1002, len(text)]
    for first, last in pairwise(cuts):
        run = pipe.start()
        os.write(pipe.begin, text[first:last])
        wait_until_empty(pipe)
        run.terminate()
        assert run.wait(DEADLINE) == 0
    assert pipe.ids() == [f"e{n}" for n in range(20)]
    assert pipe.dead() == b""


def test_what_was_read_and_not_taken_in_before_the_deadline_is_taken_in_by_the_next_run(pipe: Pipe) -> None:
    def feed() -> None:
        for line in LINES:
            os.write(pipe.begin, line)
        os.close(pipe.begin)

    feeder = Thread(target=feed)
    feeder.start()
    cut = 0
    while feeder.is_alive() and cut < 5:
        out = pipe.folder / "out.jsonl"
        size = out.stat().st_size if out.exists() else 0
        run = pipe.start("--drain", 0, "--batch-events", 64, "--checkpoint-every", 0.05)
        deadline = time.monotonic() + DEADLINE
        while not (out.exists() and out.stat().st_size > size) and run.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        run.send_signal(signal.SIGTERM)
        assert run.wait(DEADLINE) == 0
        cut += 1
    assert cut > 1
    assert pipe.start().wait(DEADLINE) == 0
    feeder.join()
    assert pipe.ids() == [f"e{n}" for n in range(COUNT)]
    assert pipe.dead() == b""
