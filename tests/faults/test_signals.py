"""Signals at every time of a run's life: what they end it with, and that nothing is lost.

Each moment is certain: the process sends itself the signal in the midst of the work that the test is about.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from stream.generate import GenerateSettings, generate
from stream.stop_signals import HANGUP
from stream.store import StateStore
from tests.warm import ROOT, Warm

DEADLINE = 60.0
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def at(module: str, owner: str, name: str, *numbers: int, after: bool = False, once: bool = True) -> str:
    """Return a plugin: when this function is called, or has returned, the process sends itself these signals."""
    return f"""
import os, {module}
owner = {module}{"." + owner if owner else ""}
real = owner.{name}
done = []
def hit(*given, **more):
    found = real(*given, **more) if {after} else None
    if not done or not {once}:
        done.append(True)
        for number in {[int(number) for number in numbers]}:
            os.kill(os.getpid(), number)
    return found if {after} else real(*given, **more)
owner.{name} = hit
"""


@pytest.fixture(scope="module")
def lines() -> bytes:
    settings = GenerateSettings(scenario="recurring", streams=5, events=16, seed=3)
    return b"".join(json.dumps(event).encode() + b"\n" for event, _ in generate(settings))


class Run:
    def __init__(self, folder: Path, lines: bytes, *options: str):
        (folder / "in.jsonl").write_bytes(lines)
        self.folder = folder
        self.command = [
            *("run", "--source", f"file:{folder / 'in.jsonl'}", "--backbone", "hashing", "--batch-events", "16"),
            *("--state", f"sqlite:///{folder / 'state.db'}", "--sink", f"jsonl:{folder / 'out.jsonl'}"),
            *("--metrics-port", "0", "--checkpoint-every", "0", "--log-format", "json", *options),
        ]

    def outcome(self) -> tuple[Any, ...]:
        store = StateStore(f"sqlite:///{self.folder / 'state.db'}", create=False)
        try:
            counters = json.dumps(store.load().counters, sort_keys=True)
            return dict(store.lanes()), counters, (self.folder / "out.jsonl").read_bytes()
        finally:
            store.close()


@pytest.fixture(scope="module")
def expected(lines: bytes, warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    run = Run(tmp_path_factory.mktemp("expected"), lines)
    assert warm.run(run.command).returncode == 0
    return run.outcome()


LATE = {
    "when the summary is about to be printed": at("stream.summary", "", "print_summary", *STOPS),
    "when the summary is printed": at("stream.summary", "", "print_summary", *STOPS, after=True),
    "when the store is closed": at("stream.store", "StateStore", "close", *STOPS),
    "when all is closed": at("stream.consumer", "Consumer", "close", *STOPS, after=True),
    "when nothing but the exit is left": at("sys", "", "exit", *STOPS),
}


@pytest.mark.parametrize("moment", LATE.values(), ids=LATE)
def test_a_finished_run_ends_well_whatever_comes_then(
    moment: str, lines: bytes, warm: Warm, tmp_path: Path, expected: tuple[Any, ...]
) -> None:
    run = Run(tmp_path, lines)
    done = warm.run(run.command, before=moment)
    assert done.returncode == 0, done.stderr
    assert run.outcome() == expected


LAST = """
import os, signal, sys

class Last:
    def __del__(self):  # after the interpreter has put the system's defaults in place of its handlers
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), number)
        os.write(2, b"late\\n")

last = Last()
from stream.cli import main
main()
"""


def test_a_finished_run_ends_well_if_a_signal_comes_while_the_interpreter_ends(lines: bytes, tmp_path: Path) -> None:
    run = Run(tmp_path, lines)
    given = [sys.executable, "-c", LAST, *run.command]
    done = subprocess.run(given, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("late\n")


FIRST = {
    "while the store is opened": at("stream.store", "", "check_store", signal.SIGTERM),
    "while every row is read": at("stream.store", "CheckedRows", "read", signal.SIGTERM),
    "while it is taken over": at("stream.store", "StateStore", "claim", signal.SIGTERM, after=True),
    "while the checkpoint is loaded": at("stream.store", "StateStore", "load", signal.SIGTERM),
    "while the outputs are cut back": at("stream.append_file", "AppendFile", "open", signal.SIGTERM),
    "while the source is opened": at("stream.sources.file_source", "FileSource", "open", signal.SIGTERM),
    "at the first commit": at("stream.consumer", "Consumer", "_commit", signal.SIGTERM),
    "while a micro-batch is taken in": at("stream.engine", "Engine", "process", signal.SIGTERM),
    "SIGHUP while every row is read": at("stream.store", "CheckedRows", "read", signal.SIGHUP),
}


@pytest.mark.parametrize("moment", FIRST.values(), ids=FIRST)
def test_a_stop_while_a_run_goes_on_from_its_checkpoint_ends_it_in_order(
    moment: str, lines: bytes, warm: Warm, tmp_path: Path, expected: tuple[Any, ...]
) -> None:
    half = lines[: lines.index(b"\n", len(lines) // 2) + 1]
    run = Run(tmp_path, half)
    assert warm.run(run.command).returncode == 0
    with (tmp_path / "in.jsonl").open("ab") as file:
        file.write(lines[len(half) :])
    done = warm.run([*run.command, "--drain", "0"], before=moment)
    assert done.returncode == 0, done.stderr
    assert '"event": "stopped"' in done.stderr
    assert not (tmp_path / "state.db.starts").exists()
    assert run.outcome() != expected
    assert warm.run(run.command).returncode == 0
    assert run.outcome() == expected


def test_a_hangup_drains_and_says_that_settings_are_not_read_again(
    lines: bytes, warm: Warm, tmp_path: Path, expected: tuple[Any, ...]
) -> None:
    run = Run(tmp_path, lines, "--follow")
    done = warm.run(run.command, before=at("stream.engine", "Engine", "process", signal.SIGHUP))
    assert done.returncode == 0, done.stderr
    (told,) = [json.loads(line) for line in done.stderr.splitlines() if '"told_to_stop"' in line]
    assert told["hint"] == HANGUP
    assert "settings are read at the start only" in told["hint"]
    assert '"drained": true' in done.stderr
    assert run.outcome() == expected


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ((signal.SIGTERM, signal.SIGTERM), 128 + signal.SIGTERM),
        ((signal.SIGTERM, signal.SIGINT), 128 + signal.SIGINT),
        ((signal.SIGHUP, signal.SIGTERM, signal.SIGTERM), 128 + signal.SIGTERM),
        ((signal.SIGHUP, signal.SIGHUP, signal.SIGHUP), 0),  # a closed terminal sends several
        ((signal.SIGTERM, signal.SIGHUP), 0),  # as systemd's SendSIGHUP= does
        ((signal.SIGHUP, signal.SIGTERM), 0),
    ],
)
def test_a_second_signal_ends_it_at_once_unless_it_is_a_hangup(
    numbers: tuple[int, ...], code: int, lines: bytes, warm: Warm, tmp_path: Path, expected: tuple[Any, ...]
) -> None:
    run = Run(tmp_path, lines, "--follow")
    done = warm.run(run.command, before=at("stream.engine", "Engine", "process", *numbers))
    assert done.returncode == code, done.stderr
    if code:
        assert warm.run(run.command[:-1]).returncode == 0
    assert run.outcome() == expected


def test_a_hangup_that_is_ignored_at_the_start_stays_ignored(
    lines: bytes, warm: Warm, tmp_path: Path, expected: tuple[Any, ...]
) -> None:
    run = Run(tmp_path, lines)
    nohup = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    hup = at("stream.engine", "Engine", "process", signal.SIGHUP, once=False)
    done = warm.run(run.command, before=nohup + hup)
    assert done.returncode == 0, done.stderr
    assert '"event": "finished"' in done.stderr
    assert "told_to_stop" not in done.stderr
    assert run.outcome() == expected


TERMINAL = """
import fcntl, os, termios
os.setsid()
fcntl.ioctl(1, termios.TIOCSCTTY, 0)
"""


@pytest.mark.parametrize("form", ["json", "auto"])
def test_a_terminal_that_is_closed_stops_it_in_order(
    form: str, lines: bytes, warm: Warm, tmp_path: Path, expected: tuple[Any, ...]
) -> None:
    """What it says then, a progress bar with it, goes nowhere: its end must not depend on that."""
    run = Run(tmp_path, lines, "--follow", "--log-format", form)
    ours, theirs = os.openpty()
    with open(theirs, "wb", buffering=0) as terminal:
        process = warm.start(run.command, terminal, before=TERMINAL)
    end = time.monotonic() + DEADLINE
    while not (tmp_path / "out.jsonl").exists() or (tmp_path / "out.jsonl").stat().st_size < len(expected[2]):
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.001)
    assert b"started" in os.read(ours, 1 << 16)
    os.close(ours)
    assert process.wait(DEADLINE) == 0
    assert run.outcome() == expected
