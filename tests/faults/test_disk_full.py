"""A full disk, at each place that a run writes to: it waits, says so, reads nothing, and goes on when there is room.

Each place in turn lies on a small file system of its own (tmpfs), which is filled by the run itself and made larger
while the run waits. What comes out is what a run with room gives, byte for byte.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from stream.generate import GenerateSettings, generate

STREAMS, EVENTS = 20, 1_500
DEADLINE = 120.0
PORT = 9795
LONG = bool(os.environ.get("EBBTIDE_LONG"))
"""Whether the long form of the fault tests is asked for: each place, where the short one takes two."""
PLACES = {"state": "state.db", "sink": "out.jsonl", "dead_letter": "dead.jsonl", "tape": "tape"}


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated talk with mangled lines in it, so that every place is written to."""
    path = tmp_path_factory.mktemp("talk") / "talk.jsonl"
    settings = GenerateSettings(scenario="recurring", streams=STREAMS, events=EVENTS // STREAMS, seed=4)
    with path.open("w") as file:
        for event, _ in generate(settings):
            file.write(json.dumps(event) + "\n" + "no event " * 40 + "\n")
    return path


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 KB."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def paths(folder: Path, **elsewhere: Path) -> dict[str, Path]:
    return {place: elsewhere.get(place, folder) / name for place, name in PLACES.items()}


def command(talk: Path, at: dict[str, Path], port: int) -> list[str]:
    return [
        *(
            sys.executable,
            "-m",
            "stream.cli",
            "run",
            "--source",
            f"file:{talk}",
            "--backbone",
            "hashing",
            "--rank",
            "8",
        ),
        *("--policy", "decay_on_shift", "--detectors", '{"topic_shift_score": "page_hinkley"}', "--batch-events", "64"),
        *("--state", f"sqlite:///{at['state']}", "--sink", f"jsonl:{at['sink']}", "--dead-letter", at["dead_letter"]),
        *("--tape", at["tape"], "--checkpoint-every", "0.05", "--metrics-port", str(port), "--drain", "1"),
        *("--shadow", "none"),
    ]


def everything(at: dict[str, Path]) -> tuple[Any, ...]:
    """Return what a run left, but for what differs from run to run: record batches' ends on a tape."""
    inspect = [sys.executable, "-m", "stream.cli", "inspect", "--state", f"sqlite:///{at['state']}", "--json"]
    told = json.loads(subprocess.run(inspect, capture_output=True, text=True, check=True).stdout)
    del told["marks"]["tape"]
    replay = [sys.executable, "-m", "stream.cli", "replay", at["tape"], "--json"]
    taped = json.loads(subprocess.run(replay, capture_output=True, text=True, check=True).stdout)
    return told, at["sink"].read_bytes(), at["dead_letter"].read_bytes(), taped


@pytest.fixture(scope="module")
def expected(talk: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    at = paths(tmp_path_factory.mktemp("roomy"))
    subprocess.run(command(talk, at, 0), check=True, capture_output=True, timeout=DEADLINE)
    return everything(at)


def wait_for(what: Callable[[], bool], run: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + DEADLINE
    while not what():
        assert run.poll() is None, f"the run ended with {run.returncode}"
        assert time.monotonic() < until
        time.sleep(0.05)


def asked(path: str) -> httpx.Response | None:
    try:
        return httpx.get(f"http://127.0.0.1:{PORT}{path}", timeout=10)
    except httpx.TransportError:
        return None


def waits() -> bool:
    answer = asked("/-/ready")
    return answer is not None and "waiting for room" in answer.text


def is_ready() -> bool:
    answer = asked("/-/ready")
    return answer is not None and answer.status_code == 200


@pytest.mark.parametrize("place", PLACES if LONG else ("state", "sink"))
def test_it_waits_for_room_and_loses_nothing(
    place: str, talk: Path, small: Path, tmp_path: Path, expected: tuple[Any, ...]
) -> None:
    at = paths(tmp_path, **{place: small})
    with (tmp_path / "log").open("wb") as log:
        run = subprocess.Popen([*command(talk, at, PORT), "--follow"], stdout=log, stderr=log)
    try:
        wait_for(waits, run)
        ready = asked("/-/ready")
        assert ready is not None
        assert ready.status_code == 503
        alive = asked("/-/healthy")
        assert alive is not None
        assert alive.status_code == 200
        scraped = asked("/metrics")
        assert scraped is not None
        assert "ebbtide_waiting_for_room 1.0" in scraped.text
        time.sleep(1.1)  # an exposition is kept for a second
        again = asked("/metrics")
        assert again is not None
        assert lines_read(scraped.text) == lines_read(again.text)  # nothing is taken in meanwhile
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        wait_for(lambda: at["sink"].stat().st_size == len(expected[1]), run)
        wait_for(is_ready, run)
        run.send_signal(signal.SIGTERM)
        assert run.wait(DEADLINE) == 0, (tmp_path / "log").read_text()
    finally:
        run.kill()
    log_text = (tmp_path / "log").read_text()
    assert log_text.count("no_room") >= 1
    assert "there_is_room_again" in log_text
    assert everything(at) == expected


def lines_read(exposition: str) -> str:
    return next(line for line in exposition.splitlines() if line.startswith("ebbtide_source_bytes_total"))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL] if LONG else [signal.SIGTERM])
def test_it_can_be_ended_while_it_waits_and_goes_on_later(
    how: signal.Signals, talk: Path, small: Path, tmp_path: Path, expected: tuple[Any, ...]
) -> None:
    at = paths(tmp_path, sink=small)
    with (tmp_path / "log").open("wb") as log:
        run = subprocess.Popen(command(talk, at, PORT), stdout=log, stderr=log)
    wait_for(waits, run)
    run.send_signal(how)
    code = run.wait(DEADLINE)
    assert code == (1 if how == signal.SIGTERM else -signal.SIGKILL), (tmp_path / "log").read_text()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
    subprocess.run(command(talk, at, 0), check=True, capture_output=True, timeout=DEADLINE)
    assert everything(at) == expected


def test_a_folder_that_may_not_be_written_is_refused_at_the_start_in_one_line(talk: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=200k", "tmpfs", str(tmp_path)], check=False)
    else:
        tmp_path.chmod(0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("no file system can be mounted here")
        done = subprocess.run(command(talk, paths(tmp_path), 0), capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "Read-only file system" in done.stderr or "Permission denied" in done.stderr
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", "-l", str(tmp_path)], check=False)
