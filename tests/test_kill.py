"""Real processes, killed for real: what comes out is what an uninterrupted run gives, bit for bit."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stream.generate import GenerateSettings, generate

COMMAND = [sys.executable, "-m", "stream.cli"]
EVENTS = 6_000
KILLS = 20
DEADLINE = 120.0


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recurring conversation over five streams, a mangled line after every fortieth."""
    path = tmp_path_factory.mktemp("talk") / "talk.jsonl"
    dice = random.Random(7)
    mangled = [
        b"",
        b"not json",
        b'{"stream": "a"}',
        b'{"stream": "a", "text": "\xff\xfe"}',
        b'{"text": NaN}',
        b"\x00\x01",
    ]
    with path.open("wb") as file:
        settings = GenerateSettings(scenario="recurring", streams=5, events=EVENTS // 5, seed=3)
        for number, (event, _) in enumerate(generate(settings)):
            file.write(json.dumps(event).encode() + b"\n")
            if number % 40 == 39:
                file.write(dice.choice(mangled) + b"\n")
    return path


class Run:
    """One run's folder, and the command that fills it."""

    def __init__(self, folder: Path, source: str, *options: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.sink = folder / "out.jsonl"
        self.dead = folder / "dead.jsonl"
        self.store = folder / "state.db"
        self.command = [
            *[*COMMAND, "run", "--source", source, "--backbone", "hashing", "--policy", "decay_on_shift"],
            *["--state", f"sqlite:///{self.store}", "--sink", f"jsonl:{self.sink}", "--dead-letter", str(self.dead)],
            *["--metrics-port", "0", "--checkpoint-every", "0", *options],
        ]

    def start(self, stdin: int | None = None) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(self.command, stdin=stdin, stdout=log, stderr=log)

    def finish(self, stdin: int | None = None) -> None:
        """Run to the end."""
        code = self.start(stdin).wait(DEADLINE)
        assert code == 0, (self.folder / "log").read_text()[-2000:]

    def interrupt(self, moment: int, number: int = signal.SIGKILL, stdin: int | None = None) -> int | None:
        """Start, send the signal once the sink has grown to `moment` bytes; None if the run was done before that."""
        process = self.start(stdin)
        end = time.monotonic() + DEADLINE
        while process.poll() is None and time.monotonic() < end:
            if self.sink.exists() and self.sink.stat().st_size >= moment:
                process.send_signal(number)
                return process.wait(DEADLINE)
            time.sleep(0.001)
        assert process.wait(DEADLINE) == 0, (self.folder / "log").read_text()[-2000:]
        return None

    def outcome(self) -> dict[str, object]:
        """Everything that must be the same: states and all beside them, positions, counters, files."""
        command = [*COMMAND, "inspect", "--state", f"sqlite:///{self.store}", "--json"]
        shown = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        return {"store": shown, "sink": self.sink.read_bytes(), "dead": self.dead.read_bytes()}


@pytest.fixture(scope="module")
def uninterrupted(talk: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("whole") / "run", f"file:{talk}", "--checkpoint-every", "1")
    run.finish()
    return run


def test_the_uninterrupted_run_is_what_it_seems(uninterrupted: Run, talk: Path) -> None:
    records = [json.loads(line) for line in uninterrupted.sink.read_text().splitlines()]
    dead = uninterrupted.dead.read_text().splitlines()
    assert len(records) == EVENTS
    assert len(dead) == EVENTS // 40
    assert len(records) + len(dead) == talk.read_bytes().count(b"\n")
    assert any(record["action"]["kind"] == "decay" for record in records)


def test_twenty_kills_at_random_moments(uninterrupted: Run, talk: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", f"file:{talk}", "--batch-events", "64")
    size = uninterrupted.sink.stat().st_size
    dice = random.Random(20261121)
    moments = sorted(dice.randrange(1, size) for _ in range(KILLS))
    hit = 0
    for moment in moments:
        # What a checkpoint does not hold is cut off again, so the file may have to grow a second time.
        hit += run.interrupt(moment) == -signal.SIGKILL
    run.finish()
    assert hit >= KILLS - 2  # two may fall behind the last batch
    assert run.outcome() == uninterrupted.outcome()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_clean_and_loses_nothing(number: int, uninterrupted: Run, talk: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", f"file:{talk}", "--batch-events", "100", "--drain", "0")
    assert run.interrupt(uninterrupted.sink.stat().st_size // 3, number) == 0
    assert run.sink.stat().st_size < uninterrupted.sink.stat().st_size
    run.finish()
    assert run.outcome() == uninterrupted.outcome()


@pytest.mark.parametrize(
    "options",
    [
        ("--batch-events", "7", "--linger", "0"),
        ("--batch-tokens", "500", "--threads", "1"),
        (
            "--threads",
            "2",
        ),
    ],
    ids=["small batches", "one thread", "two threads"],
)
def test_bits_do_not_depend_on_batches_or_threads(
    options: tuple[str, ...], uninterrupted: Run, talk: Path, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run", f"file:{talk}", "--checkpoint-every", "1", *options)
    run.finish()
    assert run.outcome() == uninterrupted.outcome()


def _gzipped(talk: Path, folder: Path) -> str:
    (folder / "talk.jsonl.gz").write_bytes(gzip.compress(talk.read_bytes()))
    return f"file:{folder}/talk.jsonl.gz"


def _folder(talk: Path, folder: Path) -> str:
    lines = talk.read_bytes().splitlines(keepends=True)
    (folder / "in").mkdir()
    for part in range(3):
        (folder / "in" / f"part{part}.jsonl").write_bytes(b"".join(lines[part::3]))
    return f"file:{folder}/in"


@pytest.mark.parametrize("make", [_gzipped, _folder])
def test_other_sources_resume_too(make: Callable[[Path, Path], str], talk: Path, tmp_path: Path) -> None:
    source = make(talk, tmp_path)
    whole = Run(tmp_path / "whole", source)
    whole.finish()
    run = Run(tmp_path / "run", source, "--batch-events", "64")
    size = whole.sink.stat().st_size
    assert run.interrupt(size // 4) == run.interrupt(size // 2) == -signal.SIGKILL
    run.finish()
    assert run.outcome() == whole.outcome()


def test_a_pipe_fed_with_the_same_input_again(uninterrupted: Run, talk: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", "stdin:", "--batch-events", "64")
    codes = []
    for moment in (uninterrupted.sink.stat().st_size // 3, None):
        with subprocess.Popen(["cat", str(talk)], stdout=subprocess.PIPE) as feed:
            assert feed.stdout is not None
            if moment is None:
                run.finish(feed.stdout.fileno())
            else:
                codes.append(run.interrupt(moment, stdin=feed.stdout.fileno()))
    assert codes == [-signal.SIGKILL]
    ended, whole = run.outcome(), uninterrupted.outcome()
    assert ended["sink"] == whole["sink"]
    assert json.loads(json.dumps(ended["store"]))["streams"] == json.loads(json.dumps(whole["store"]))["streams"]


def test_a_second_signal_ends_the_process_at_once(talk: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    run = Run(tmp_path / "run", "stdin:", "--follow")
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(fifo, os.O_WRONLY)
    process = run.start(reader)
    log = run.folder / "log"
    end = time.monotonic() + DEADLINE
    while b"started" not in log.read_bytes() and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)  # so that both signals are pending when it goes on
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    assert process.wait(DEADLINE) in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    os.close(writer)
    os.close(reader)
