"""A sink whose file is slow, fails once, or hangs: strace delays or fails its system calls, and nobody else's."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults.fed_run import AHEAD, DEADLINE, IMPATIENT, FedRun, outcome, undisturbed
from tests.warm import Warm

if shutil.which("strace") is None:
    pytest.skip("strace is not installed (Debian: apt-get install strace)", allow_module_level=True)

LONG = bool(os.environ.get("EBBTIDE_LONG"))
EVENTS, BATCH = 1_280, 64
GROWTH = 14 << 20
"""Bytes by which memory may grow; the input is twice that."""

TURN = "ebbtide_loop_last_turn_timestamp_seconds"
OPTIONS: dict[str, Any] = {"batch_events": BATCH, "checkpoint_every": 0.0}


@pytest.fixture(scope="module")
def lines() -> list[bytes]:
    """Events of 24 KB, nearly all of it a key that nobody needs: many bytes, little work."""
    dice = random.Random(6)
    events = (
        {"stream": f"s{n % 50}", "id": str(n), "text": f"we said {n} things", "note": "x" * 24_000, "n": dice.random()}
        for n in range(EVENTS)
    )
    return [json.dumps(event).encode() + b"\n" for event in events]


@pytest.fixture(scope="module")
def expected(lines: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    return undisturbed(tmp_path_factory.mktemp("fast"), b"".join(lines))


@contextmanager
def meddled(run: FedRun, inject: str) -> Iterator[None]:
    """Meddle with the system calls of a process that runs, until the end of the block."""
    told = [*traced(run.folder, inject), "-p", str(run.process.pid)]
    with subprocess.Popen(told, stderr=subprocess.DEVNULL) as meddler:
        try:
            run.wait_for(lambda: all("TracerPid:\t0\n" not in one for one in statuses(run.pid)))
            yield
        finally:
            meddler.send_signal(signal.SIGINT)  # it lets go of the process, which goes on


def statuses(pid: int) -> list[str]:
    """Return what the kernel says of each thread."""
    return [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]


def traced(folder: Path, inject: str, *more: str) -> list[str]:
    """Return an strace that meddles with the system calls on the sink's file."""
    sink = str(folder / "out.jsonl")
    calls = inject.split(":")[0]
    told = ["strace", "-f", "-qq", "-o", str(folder / "strace"), "-P", sink, "-e", f"trace={calls}"]
    return [*told, "-e", f"inject={inject}", *more]


def began(folder: Path) -> list[str]:
    """Return what begins a run under strace; a test is skipped where no process may be traced."""
    probe = subprocess.run(["strace", "-qq", "-e", "trace=none", "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"nothing can be traced here: {probe.stderr.strip()}")
    return ["--seccomp-bpf"]


def test_a_slow_sink_holds_the_writer_back_and_nothing_piles_up_or_is_lost(
    lines: list[bytes], tmp_path: Path, expected: tuple[Any, ...]
) -> None:
    slow = traced(tmp_path, "fsync,write:delay_enter=100000", *began(tmp_path))
    length = len(lines[0])
    ahead: list[int] = []
    with FedRun(tmp_path, before=slow, **OPTIONS) as run:
        run.wait_ready()
        run.offer_all(b"".join(lines[:BATCH]))
        run.wait_for(lambda: run.summary()["events"] == BATCH)
        before, run.refused = run.memory(), 0

        def look() -> None:
            taken = run.accepted
            ahead.append(taken - run.summary()["events"] * (length - 20))

        run.offer_all(b"".join(lines[BATCH:]), look)
        depth = run.metric('ebbtide_queue_depth{queue="reader"}')
        grown = run.memory() - before
        assert run.finish() == 0, run.log()
    assert run.refused > 0
    assert max(ahead) < AHEAD + 2 * BATCH * length  # and the two micro-batches under way
    assert depth <= 8
    assert sum(map(len, lines)) > 2 * GROWTH
    assert grown < GROWTH
    assert outcome(tmp_path) == expected


@pytest.mark.parametrize(
    "fault", ["fsync:error=EIO:when=8", "write:error=EIO:when=8"] if LONG else ["fsync:error=EIO:when=8"]
)
def test_a_sink_that_fails_once_ends_the_run_and_the_next_one_goes_on(
    warm: Warm, fault: str, lines: list[bytes], tmp_path: Path, expected: tuple[Any, ...]
) -> None:
    """After a failed fsync nobody knows what the disk holds, so it is not tried again."""
    began(tmp_path)
    with FedRun(tmp_path, warm=warm, **OPTIONS) as run:
        run.wait_ready()
        with meddled(run, fault):
            feed = threading.Thread(target=_offer, args=(run, lines))
            feed.start()
            assert run.process.wait(DEADLINE) == 1
            feed.join()
        assert "Input/output error" in run.log()
    assert "INJECTED" in (tmp_path / "strace").read_text()
    assert len((tmp_path / "out.jsonl").read_bytes()) < len(expected[3])
    with FedRun(tmp_path, warm=warm, **OPTIONS) as run:
        run.offer_all(b"".join(lines))  # it passes over what it had, and is ready only then
        assert run.finish() == 0, run.log()
    assert outcome(tmp_path) == expected


def _offer(run: FedRun, lines: Sequence[bytes]) -> None:
    try:
        run.offer_all(b"".join(lines))
    except (AssertionError, BrokenPipeError):  # it ended, as it should
        return


def test_a_sink_that_hangs_is_told_by_health_and_by_metrics_and_goes_on_when_it_can(
    warm: Warm, lines: list[bytes], tmp_path: Path, expected: tuple[Any, ...]
) -> None:
    began(tmp_path)
    with FedRun(tmp_path, warm=warm, first=IMPATIENT, **OPTIONS) as run:
        run.wait_ready()
        with meddled(run, "fsync:delay_enter=600000000"):
            waiting = b"".join(lines)
            run.wait_for(lambda: not run.offer(lines=b"" if run.accepted else waiting) and run.says("/-/healthy", 503))
            assert run.metric('ebbtide_queue_depth{queue="reader"}') == 8
            assert run.metric(TURN) == pytest.approx(run.metric(TURN), abs=0.5)  # read 1.1 s apart
        run.offer_all(b"")
        run.wait_for(lambda: run.says("/-/healthy", 200))
        assert run.finish() == 0, run.log()
    assert outcome(tmp_path) == expected
