"""Whoever reads what the run says, or does not, changes nothing of what it does; and a source that is silent is not
mistaken for a loop that hangs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.faults.fed_run import DEADLINE, FedRun, arguments, command, outcome, settings_of, undisturbed
from tests.warm import Warm

TURN = "ebbtide_loop_last_turn_timestamp_seconds"


@pytest.fixture(scope="module")
def lines() -> bytes:
    """A thousand events of seven streams, and a mangled line after every fifth."""
    talk = ""
    for number in range(1_000):
        talk += json.dumps({"stream": f"s{number % 7}", "text": f"we said {number} things"}) + "\n"
        talk += "no event\n" if number % 5 == 0 else ""
    return talk.encode()


@pytest.fixture(scope="module")
def talk(lines: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("talk") / "talk.jsonl"
    path.write_bytes(lines)
    return path


@pytest.fixture(scope="module")
def expected(lines: bytes, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    return undisturbed(tmp_path_factory.mktemp("heard"), lines)


def fill(begin: int) -> None:
    """Write into a pipe until nothing more goes in."""
    os.set_blocking(begin, False)
    for size in (4096, 1):
        with suppress(BlockingIOError):
            while True:
                os.write(begin, b"x" * size)
    os.set_blocking(begin, True)


@pytest.fixture
def unread() -> Iterator[int]:
    """The begin of a full pipe, whose end nobody reads."""
    end, begin = os.pipe()
    fill(begin)
    yield begin
    for each in (end, begin):
        os.close(each)


@pytest.fixture
def unheard() -> Iterator[int]:
    """The begin of a pipe whose end is closed."""
    end, begin = os.pipe()
    os.close(end)
    yield begin
    os.close(begin)


@pytest.mark.parametrize(("pipe", "form"), [("unread", "json"), ("unheard", "plain")])
def test_the_run_ends_as_it_should_when_nobody_reads_what_it_says(
    pipe: str, form: str, talk: Path, tmp_path: Path, expected: tuple[Any, ...], request: pytest.FixtureRequest
) -> None:
    begin = request.getfixturevalue(pipe)
    told = command(settings_of(tmp_path, f"file:{talk}", log_format=form))
    assert subprocess.run(told, stdout=begin, stderr=begin, timeout=DEADLINE, check=False).returncode == 0
    assert outcome(tmp_path) == expected


def test_sigterm_ends_a_run_that_nobody_reads(
    warm: Warm, unread: int, lines: bytes, talk: Path, tmp_path: Path
) -> None:
    told = [*arguments(settings_of(tmp_path, f"file:{talk}", checkpoint_every=0.0)), "--follow"]
    with os.fdopen(unread, "wb", closefd=False) as nobody:
        run = warm.start(told, nobody)
    try:
        until = time.monotonic() + DEADLINE
        out = tmp_path / "out.jsonl"
        while not out.exists() or out.read_bytes().count(b"\n") < 1_000:
            assert time.monotonic() < until
            time.sleep(0.05)
        run.send_signal(signal.SIGTERM)
        assert run.wait(DEADLINE) == 0
    finally:
        run.kill()


def test_an_error_keeps_its_exit_code_when_nobody_reads_it(unread: int) -> None:
    told = [sys.executable, "-m", "stream.cli", "run", "--rank", "zero"]
    assert subprocess.run(told, stdout=unread, stderr=unread, timeout=DEADLINE, check=False).returncode == 2


def test_what_is_not_read_in_time_is_dropped_counted_and_said_later() -> None:
    """A thousand lines wait for a reader at most, and the one who comes late learns how many are missing."""
    script = (
        "import logging, os\n"
        "from stream.logs import set_up_logs\n"
        "set_up_logs('json', 'info')\n"
        "log = logging.getLogger('stream.test')\n"
        "for n in range(5000): log.info('x' * 200 + ' %d', n)\n"
        "os.write(1, b'said\\n')\n"
        "os.read(0, 1)\n"
        "while logging.getLogger().handlers[0]._lines.qsize(): pass\n"
        "log.info('last')\n"
    )
    end, begin = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=begin
    ) as run:
        os.close(begin)
        try:
            assert run.stdout is not None
            assert run.stdin is not None
            assert run.stdout.readline() == b"said\n"  # all 5,000 are out of its hands
            run.stdin.write(b"x")
            run.stdin.flush()
            with os.fdopen(end, "rb") as reader:
                heard = [json.loads(line)["event"] for line in reader]
            assert run.wait(DEADLINE) == 0
        finally:
            run.kill()
    dropped = [int(found[1]) for each in heard if (found := re.match(r"log_dropped: (\d+) records", each))]
    assert sum(dropped) > 3_000
    assert sum(dropped) + len(heard) - len(dropped) == 5_001
    assert heard[-1] == "last"


def test_a_silent_source_and_a_loop_that_stands_are_told_apart_by_metrics(warm: Warm, tmp_path: Path) -> None:
    """No counter moves in either case. While it is idle the loop's last turn moves on, and the queue is empty. While it
    stands (see `test_slow_sink.py`) the turn stands, and the queue is full."""
    with FedRun(tmp_path, warm=warm) as run:
        run.wait_ready()
        before = run.metric(TURN), run.metric("ebbtide_source_lines_total")
        after = run.metric(TURN), run.metric("ebbtide_source_lines_total")
        assert before[1] == after[1] == 0
        assert after[0] > before[0]
        assert run.metric('ebbtide_queue_depth{queue="reader"}') == 0
        assert run.says("/-/healthy", 200)
        assert run.finish() == 0
