"""Real processes, killed for real: what comes out is what an uninterrupted run gives, bit for bit.

Three histories over the same lines, each from another kind of source, are killed twice each and go on with other
micro-batches and threads every time. They run two at a time while the other tests wait for them. Many more kills, of
runs with everything on, are in `tests/faults/test_kill_moments.py` and `tests/faults/test_kill_syscalls.py`.
"""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from stream.config import DETECTORS, RunSettings
from stream.consumer import Consumer
from stream.dead_letters import read_dead_letters
from stream.generate import GenerateSettings, generate
from tests.warm import Command, Warm

EVENTS = 2_000
KILLS = 2
DEADLINE = 120.0
MANGLED = (b"", b"not json", b'{"stream": "a"}', b'{"stream": "a", "text": "\xff\xfe"}', b'{"text": NaN}', b"\x00\x01")

WAYS = (
    ("--batch-events", "64"),
    ("--batch-events", "7", "--linger", "0", "--checkpoint-every", "0.02"),
    ("--batch-tokens", "700", "--threads", "1"),
    ("--batch-events", "150", "--threads", "2", "--checkpoint-every", "0.05"),
)
"""What may differ between a run and the one that goes on from it."""

QUICK = ("--detectors", json.dumps({"topic_shift_score": DETECTORS["topic_shift_score"], "state_norm": "page_hinkley"}))
"""Without river, whose import takes as long as all the others together."""


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recurring conversation over five streams, a mangled line after every twentieth."""
    path = tmp_path_factory.mktemp("talk") / "talk.jsonl"
    dice = random.Random(7)
    with path.open("wb") as file:
        settings = GenerateSettings(scenario="recurring", streams=5, events=EVENTS // 5, seed=3)
        for number, (event, _) in enumerate(generate(settings)):
            file.write(json.dumps(event).encode() + b"\n")
            if number % 20 == 19:
                file.write(dice.choice(MANGLED) + b"\n")
    return path


class Run:
    """One run's folder, and the command that fills it.

    Parameters
    ----------
    warm
        What starts it.
    folder
        Where everything goes.
    source
        As the command line says it.
    options
        At every start.
    feed
        A file that is given as a pipe, from its beginning, at every start.
    """

    def __init__(self, warm: Warm, folder: Path, source: str, *options: str, feed: Path | None = None):
        folder.mkdir(parents=True)
        self.warm, self.folder, self.feed = warm, folder, feed
        self.sink, self.dead, self.store = folder / "out.jsonl", folder / "dead.jsonl", folder / "state.db"
        self.log = folder / "log"
        self.seen = 0  # bytes of the log before the last start
        self.command = [
            *["run", "--source", source, "--backbone", "hashing"],
            *["--policy", "decay_on_shift", "--metrics-port", "0", "--checkpoint-every", "0"],
            *["--state", f"sqlite:///{self.store}", "--sink", f"jsonl:{self.sink}", "--dead-letter", str(self.dead)],
            *options,
        ]

    def start(self, *options: str, stdin: int | None = None) -> Command:
        self.seen = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            if self.feed is None or stdin is not None:
                return self.warm.start([*self.command, *options], log, stdin=stdin)
            end, begin = os.pipe()
            Thread(target=pump, args=(self.feed.read_bytes(), begin)).start()
            process = self.warm.start([*self.command, *options], log, stdin=end)
            os.close(end)
            return process

    def said(self, pattern: bytes) -> bool:
        """Say whether the process started last has logged this."""
        with self.log.open("rb") as log:
            log.seek(self.seen)
            return re.search(pattern, log.read()) is not None

    def finish(self, *options: str) -> None:
        """Run to the end."""
        code = self.start(*options).wait(DEADLINE)
        assert code == 0, self.log.read_text()[-2000:]

    def interrupt(
        self, *options: str, when: Callable[[], bool], number: int = signal.SIGKILL, delay: float = 0.0
    ) -> int:
        """Start, and send the signal `delay` seconds after `when` has become true; return the exit code."""
        process = self.start(*options)
        come_to(when, process)
        time.sleep(delay)
        process.send_signal(number)
        return process.wait(DEADLINE)

    def at_work(self, length: int) -> Callable[[], bool]:
        """Return what says whether the process started last is consuming, and the sink has grown to this length."""
        return lambda: self.sink.exists() and self.sink.stat().st_size >= length and self.said(b"started|resumed")

    def kill(self, moments: list[int], dice: random.Random) -> int:
        """Kill it when the sink has grown to each of these lengths, and a little later; return how often it was hit."""
        hits = 0
        for number, moment in enumerate(moments):
            ways = WAYS[number % len(WAYS)]
            hits += self.interrupt(*ways, when=self.at_work(moment), delay=dice.uniform(0, 0.03)) == -signal.SIGKILL
        return hits

    def outcome(self) -> dict[str, Any]:
        """Everything that must be the same: states and all beside them, positions, counters, files."""
        # A process: in this one two histories, each in a thread, would take each other's standard output away.
        shown = self.warm.run(["inspect", "--state", f"sqlite:///{self.store}", "--json"], check=True)
        letters = [(letter.raw, letter.reason, letter.length) for letter in read_dead_letters(self.dead)]
        return {
            **json.loads(shown.stdout),
            "sink": self.sink.read_bytes(),
            "letters": letters,
            "dead": self.dead.read_bytes(),
        }


def pump(data: bytes, pipe: int) -> None:
    """Write all of it, or until nobody is left to read it."""
    with suppress(BrokenPipeError), open(pipe, "wb", buffering=0) as file:
        file.write(data)


@pytest.fixture(scope="module")
def quick(warm: Warm, talk: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The outcome of a run that nothing interrupted."""
    run = Run(warm, tmp_path_factory.mktemp("quick") / "run", f"file:{talk}", *QUICK)
    run.finish("--checkpoint-every", "1")
    return run.outcome()


def gzipped(talk: Path, folder: Path) -> str:
    path = folder / "talk.jsonl.gz"
    path.write_bytes(gzip.compress(talk.read_bytes()))
    return f"file:{path}"


def in_parts(talk: Path, folder: Path) -> str:
    """Cut the lines into three files, in order: as a folder they are the same input."""
    lines = talk.read_bytes().splitlines(keepends=True)
    third = len(lines) // 3
    (folder / "in").mkdir()
    for part, some in enumerate((lines[:third], lines[third : 2 * third], lines[2 * third :])):
        (folder / "in" / f"part{part}.jsonl").write_bytes(b"".join(some))
    return f"file:{folder}/in"


SOURCES: dict[str, Callable[[Path, Path], str]] = {
    "gzip": gzipped,
    "folder": in_parts,
    "pipe": lambda *_: "stdin:",
}


def history(warm: Warm, kind: str, talk: Path, folder: Path, size: int) -> tuple[int, dict[str, Any]]:
    """Kill a run on this kind of source at random moments, and let it end; return the hits and the outcome."""
    folder.mkdir()
    run = Run(warm, folder / "run", SOURCES[kind](talk, folder), *QUICK, feed=talk if kind == "pipe" else None)
    dice = random.Random(f"20261121 {kind}")
    if kind == "folder":  # before anything is committed: in the making of the store, and between it and the first event
        for when in (run.store.exists, run.sink.exists):
            assert run.interrupt(when=when, delay=dice.uniform(0, 0.01)) == -signal.SIGKILL
    hits = run.kill(sorted(dice.randrange(1, int(0.95 * size)) for _ in range(KILLS)), dice)
    if kind == "pipe":
        stopped_while_it_waits_for_what_it_has_read_before(run)
    run.finish("--batch-events", "33")
    return hits, run.outcome()


def stopped_while_it_waits_for_what_it_has_read_before(run: Run) -> None:
    """Start with a pipe that little comes from: a run that waits in the middle of its resumption must hear a stop."""
    assert run.feed is not None
    end, begin = os.pipe()
    os.write(begin, run.feed.read_bytes()[:200])
    process = run.start(stdin=end)
    come_to(lambda: not unread(end), process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE) == 0, run.log.read_text()[-2000:]
    os.close(end)
    os.close(begin)


def unread(pipe: int) -> int:
    """Return how many bytes are in a pipe."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def come_to(what: Callable[[], bool], process: Command | subprocess.Popen[bytes]) -> None:
    """Wait until something is so, or the process has ended."""
    end = time.monotonic() + DEADLINE
    while not what() and process.poll() is None:
        assert time.monotonic() < end, "it never came to it"
        time.sleep(0.0005)


@pytest.fixture(scope="module")
def histories(
    warm: Warm, talk: Path, quick: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[tuple[int, dict[str, Any]]]]]:
    base = tmp_path_factory.mktemp("histories")
    with ThreadPoolExecutor(2) as pool:
        yield {kind: pool.submit(history, warm, kind, talk, base / kind, len(quick["sink"])) for kind in SOURCES}


def test_the_uninterrupted_run_is_what_it_seems(quick: dict[str, Any], talk: Path) -> None:
    records = [json.loads(line) for line in quick["sink"].splitlines()]
    assert len(records) == EVENTS
    assert len(quick["letters"]) == EVENTS // 20
    assert len(records) + len(quick["letters"]) == talk.read_bytes().count(b"\n")
    assert {raw for raw, _, _ in quick["letters"]} == set(MANGLED)
    assert any(record["action"]["kind"] == "decay" for record in records)
    assert quick["counters"]["ebbtide_events_total"] == [[EVENTS]]
    assert quick["marks"] == {"jsonl": len(quick["sink"]), "dead_letters": len(quick["dead"])}
    assert len(quick["streams"]) == 5


@pytest.mark.parametrize("kind", SOURCES)
def test_kills_at_random_moments_leave_no_trace(
    kind: str, histories: dict[str, Future[tuple[int, dict[str, Any]]]], quick: dict[str, Any]
) -> None:
    hits, outcome = histories[kind].result()
    assert hits == KILLS, "a run ended before it could be killed"
    for name in ("sink", "letters", "streams", "counters", "settings"):
        assert outcome[name] == quick[name]


def test_a_stop_is_clean_and_loses_nothing(warm: Warm, quick: dict[str, Any], talk: Path, tmp_path: Path) -> None:
    run = Run(warm, tmp_path / "run", f"file:{talk}", *QUICK)
    lengths = [0]
    for number, share in ((signal.SIGTERM, 0.2), (signal.SIGINT, 0.5)):
        moment = run.at_work(int(share * len(quick["sink"])))
        assert run.interrupt("--batch-events", "50", "--drain", "0", when=moment, number=number) == 0
        assert run.said(b"stopped.*drained=False")
        lengths.append(run.sink.stat().st_size)
    assert lengths == sorted(set(lengths))
    assert lengths[-1] < len(quick["sink"]), "both must have stopped in the middle"
    run.finish()
    assert run.outcome() == quick


def test_a_second_signal_ends_the_process_at_once(warm: Warm, tmp_path: Path) -> None:
    silent, never = os.pipe()
    run = Run(warm, tmp_path / "run", "stdin:", *QUICK)
    with run.log.open("wb") as log:
        told = [sys.executable, "-m", "stream.cli", *run.command, "--follow"]
        process = subprocess.Popen(told, stdin=silent, stdout=log, stderr=log)
    come_to(lambda: run.said(b"started"), process)
    process.send_signal(signal.SIGSTOP)  # so that both signals are pending when it goes on
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    assert process.wait(DEADLINE) in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    os.close(silent)
    os.close(never)


def test_a_stop_does_not_wait_for_a_micro_batch_to_fill(talk: Path, tmp_path: Path) -> None:
    """What lingers is processed and committed; how long it was to linger does not matter."""
    some = tmp_path / "some.jsonl"
    some.write_bytes(b"".join(talk.read_bytes().splitlines(keepends=True)[:50]))
    consumer = Consumer(
        RunSettings(
            source=f"file:{some}", follow=True, backbone="hashing", linger=3600, state=f"sqlite:///{tmp_path}/s.db"
        )
    )
    try:
        consumer.open()
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(consumer.run)
            end = time.monotonic() + DEADLINE
            while consumer.source.backlog() != 0:  # until all of it is read
                assert time.monotonic() < end
                time.sleep(0.001)
            consumer.stop()
            totals = running.result(DEADLINE)
    finally:
        consumer.close()
    assert totals.drained
    assert totals.lines in (0, 50)  # 0: it was read and handed on only after the stop
