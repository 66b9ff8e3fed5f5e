"""A full disk, at each place that a run writes to: it waits, says so, reads nothing, and goes on when there is room.

Each place in turn lies on a small file system of its own (tmpfs), which is filled by the run itself and made larger
while the run waits; or on one (ext4 in a file) that may not be written any more from some moment on, as the kernel has
it after an error of the disk. What comes out is what a run with room gives, byte for byte.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from stream.generate import GenerateSettings, generate
from tests.prometheus_server import free_port
from tests.warm import Command, Warm

STREAMS, EVENTS = 20, 1_500
DEADLINE = 120.0
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
    mount("-t", "tmpfs", "-o", "size=200k", "tmpfs", folder)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[Path]:
    """A file system that can be made to take nothing more, although files are open."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is not installed (Debian: apt-get install e2fsprogs)")
    image, folder = tmp_path / "disk", tmp_path / "failing"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    folder.mkdir()
    mount("-o", "loop", image, folder)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


def mount(*arguments: object) -> None:
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")


def paths(folder: Path, **elsewhere: Path) -> dict[str, Path]:
    return {place: elsewhere.get(place, folder) / name for place, name in PLACES.items()}


def command(talk: Path, at: dict[str, Path], port: int = 0) -> list[object]:
    return [
        *("run", "--source", f"file:{talk}", "--backbone", "hashing", "--rank", 8, "--batch-events", 64),
        *("--policy", "decay_on_shift", "--detectors", '{"topic_shift_score": "page_hinkley"}', "--shadow", "none"),
        *("--state", f"sqlite:///{at['state']}", "--sink", f"jsonl:{at['sink']}", "--dead-letter", at["dead_letter"]),
        *("--tape", at["tape"], "--checkpoint-every", "0.05", "--metrics-port", port, "--drain", 1),
    ]


def everything(warm: Warm, at: dict[str, Path]) -> tuple[Any, ...]:
    """Return what a run left, but for what differs from run to run: record batches' ends on a tape."""
    told = json.loads(warm.run(["inspect", "--state", f"sqlite:///{at['state']}", "--json"], check=True).stdout)
    del told["marks"]["tape"]
    taped = json.loads(warm.run(["replay", at["tape"], "--json"], check=True).stdout)
    return told, at["sink"].read_bytes(), at["dead_letter"].read_bytes(), taped


@pytest.fixture(scope="module")
def expected(warm: Warm, talk: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    at = paths(tmp_path_factory.mktemp("roomy"))
    warm.run(command(talk, at), check=True, timeout=DEADLINE)
    return everything(warm, at)


class Going:
    """A run that goes on, and its health.

    Parameters
    ----------
    argv
        Makes the command of a port.
    """

    def __init__(self, warm: Warm, argv: Callable[[int], list[object]], log: Path):
        self.port, self.log = free_port(), log
        with log.open("wb") as file:
            self.process: Command = warm.start(argv(self.port), file)

    def __enter__(self) -> Going:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()

    def wait_for(self, what: Callable[[], bool]) -> None:
        until = time.monotonic() + DEADLINE
        while not what():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.05)

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(DEADLINE)

    def asked(self, path: str) -> httpx.Response | None:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=10)
        except httpx.TransportError:
            return None

    def waits(self) -> bool:
        answer = self.asked("/-/ready")
        return answer is not None and "waiting for room" in answer.text

    def is_ready(self) -> bool:
        answer = self.asked("/-/ready")
        return answer is not None and answer.status_code == 200

    def is_seen_to_wait(self) -> None:
        """Wait until it waits; health and metrics must say so, and it must take nothing in."""
        self.wait_for(self.waits)
        ready, alive, scraped = self.asked("/-/ready"), self.asked("/-/healthy"), self.asked("/metrics")
        assert ready is not None
        assert ready.status_code == 503
        assert alive is not None
        assert alive.status_code == 200
        assert scraped is not None
        assert "ebbtide_waiting_for_room 1.0" in scraped.text
        time.sleep(1.1)  # an exposition is kept for a second
        again = self.asked("/metrics")
        assert again is not None
        assert lines_read(scraped.text) == lines_read(again.text)


def lines_read(exposition: str) -> str:
    return next(line for line in exposition.splitlines() if line.startswith("ebbtide_source_bytes_total"))


@pytest.mark.parametrize("place", PLACES if LONG else ("state", "sink"))
def test_it_waits_for_room_and_loses_nothing(
    place: str, warm: Warm, talk: Path, small: Path, tmp_path: Path, expected: tuple[Any, ...]
) -> None:
    at = paths(tmp_path, **{place: small})
    with Going(warm, lambda port: [*command(talk, at, port), "--follow"], tmp_path / "log") as run:
        run.is_seen_to_wait()
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        run.wait_for(lambda: at["sink"].stat().st_size == len(expected[1]))
        run.wait_for(run.is_ready)
        assert run.end() == 0, run.log.read_text()
    log_text = run.log.read_text()
    assert log_text.count("no_room") >= 1
    assert "there_is_room_again" in log_text
    assert everything(warm, at) == expected


@pytest.mark.parametrize("place", PLACES if LONG else ("state",))
def test_a_disk_that_may_not_be_written_any_more_is_waited_for_and_what_it_had_is_enough(
    place: str, warm: Warm, talk: Path, failing: Path, tmp_path: Path, expected: tuple[Any, ...]
) -> None:
    at = paths(tmp_path, **{place: failing})
    half = tmp_path / "half" / talk.name
    half.parent.mkdir()
    lines = talk.read_bytes().splitlines(keepends=True)
    half.write_bytes(b"".join(lines[: len(lines) // 2]))
    with Going(warm, lambda port: [*command(half, at, port), "--follow"], tmp_path / "log") as run:
        run.wait_for(lambda: at["sink"].exists() and at["sink"].stat().st_size > len(expected[1]) // 4)
        subprocess.run(["mount", "-o", "remount,abort", str(failing)], check=True)
        with half.open("ab") as file:
            file.writelines(lines[len(lines) // 2 :])
        run.is_seen_to_wait()
        assert run.end() == 1, run.log.read_text()
    assert "Traceback" not in run.log.read_text()
    subprocess.run(["umount", str(failing)], check=True)
    subprocess.run(["e2fsck", "-fy", str(tmp_path / "disk")], check=False, capture_output=True)
    subprocess.run(["mount", "-o", "loop", str(tmp_path / "disk"), str(failing)], check=True)
    done = warm.run(command(half, at), timeout=DEADLINE)
    assert done.returncode == 0, done.stderr
    assert everything(warm, at) == expected


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL] if LONG else [signal.SIGTERM])
def test_it_can_be_ended_while_it_waits_and_goes_on_later(
    how: signal.Signals, warm: Warm, talk: Path, small: Path, tmp_path: Path, expected: tuple[Any, ...]
) -> None:
    at = paths(tmp_path, sink=small)
    with Going(warm, lambda port: command(talk, at, port), tmp_path / "log") as run:
        run.wait_for(run.waits)
        code = run.end(how)
    assert code == (1 if how == signal.SIGTERM else -signal.SIGKILL), run.log.read_text()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
    warm.run(command(talk, at), check=True, timeout=DEADLINE)
    assert everything(warm, at) == expected


def test_a_folder_that_may_not_be_written_is_refused_at_the_start_in_one_line(
    warm: Warm, talk: Path, tmp_path: Path
) -> None:
    if os.geteuid() == 0:
        mount("-t", "tmpfs", "-o", "ro,size=200k", "tmpfs", tmp_path)
    else:
        tmp_path.chmod(0o500)
    try:
        done = warm.run(command(talk, paths(tmp_path)))
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "Read-only file system" in done.stderr or "Permission denied" in done.stderr
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", "-l", str(tmp_path)], check=False)
