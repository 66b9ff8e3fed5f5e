"""Runs whose state is on PostgreSQL: a server that is cut off, restarted, killed, hangs, is slow or full."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from stream.generate import GenerateSettings, generate
from tests.postgres_server import Server
from tests.warm import Warm

LONG = bool(os.environ.get("EBBTIDE_LONG"))
"""Whether the long form is asked for: a longer talk, and more cuts, kills and restarts."""
EVENTS = 120 if LONG else 48
CHECKPOINTS = 10 * EVENTS // 16
DEADLINE = 120.0
IMPATIENT = "import stream.store_patience as patience; patience.SILENCE = 0.7"
"""A server may say nothing for less than a second, not for thirty."""


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("talk") / "talk.jsonl"
    with path.open("w") as file:
        for event, _ in generate(GenerateSettings(scenario="recurring", streams=10, events=EVENTS, seed=4)):
            file.write(json.dumps(event) + "\n" + "no event\n")
    return path


def command(talk: Path, state: str, folder: Path) -> list[object]:
    detectors = '{"topic_shift_score": "page_hinkley"}'
    return [
        *("run", "--source", f"file:{talk}", "--backbone", "hashing", "--rank", 8, "--policy", "decay_on_shift"),
        *("--detectors", detectors, "--batch-events", 16, "--checkpoint-every", 0, "--metrics-port", 0),
        *("--state", state, "--sink", f"jsonl:{folder / 'out.jsonl'}", "--dead-letter", folder / "dead.jsonl"),
        *("--tape", folder / "tape", "--shadow", "none", "--drain", 1),
    ]


def everything(warm: Warm, state: str, folder: Path) -> tuple[Any, ...]:
    told = json.loads(warm.run(["inspect", "--state", state, "--json"], check=True).stdout)
    del told["marks"]["tape"]  # record batches end where checkpoints did
    taped = json.loads(warm.run(["replay", folder / "tape", "--json"], check=True).stdout)
    return told, (folder / "out.jsonl").read_bytes(), (folder / "dead.jsonl").read_bytes(), taped


@pytest.fixture(scope="module")
def expected(warm: Warm, talk: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """What an uninterrupted run with SQLite gives."""
    folder = tmp_path_factory.mktemp("quiet")
    state = f"sqlite:///{folder / 'state.db'}"
    warm.run(command(talk, state, folder), check=True)
    return everything(warm, state, folder)


class Going:
    """A run whose checkpoints are counted.

    Parameters
    ----------
    warm, server, database, talk, folder
        What starts it, and where it reads and writes.
    before
        Python that is run first in its process.
    """

    def __init__(self, warm: Warm, server: Server, database: str, talk: Path, folder: Path, before: str = ""):
        self.warm, self.server, self.database, self.before = warm, server, database, before
        self.command = command(talk, server.url(database) + "&connect_timeout=2", folder)
        self.log = folder / "log"
        self.start()

    def start(self) -> None:
        self.since = len(self.said()) if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = self.warm.start(self.command, log, before=self.before)
        until = time.monotonic() + DEADLINE
        while not any(word in self.said()[self.since :] for word in ("started", "resumed")):
            assert self.process.poll() is None, self.said()  # one that finds the server away at its start ends
            assert time.monotonic() < until, self.said()
            time.sleep(0.02)

    def said(self) -> str:
        return self.log.read_text()

    def wait_for(self, checkpoint: int) -> None:
        until = time.monotonic() + DEADLINE
        known = "SELECT 1 FROM pg_tables WHERE schemaname = 'public' AND tablename = 'owner'"
        with self.server.connect(self.database) as asking:
            while self.process.poll() is None:
                assert time.monotonic() < until
                if asking.execute(known).fetchone():
                    found = asking.execute("SELECT checkpoint FROM owner").fetchone()
                    if found and found[0] >= checkpoint:
                        return
                time.sleep(0.005)
        assert self.process.returncode == 0, self.said()

    def wait_while(self, *, away: bool) -> None:
        """Wait until it has logged the other: that the store is away, or that it is not."""
        until = time.monotonic() + DEADLINE
        while True:
            said, ended = self.said()[self.since :], self.process.poll() is not None
            if (said.rfind("store_away") > said.rfind("the_store_is_back")) != away or ended:
                assert self.process.returncode in (None, 0), self.said()
                return
            assert time.monotonic() < until, self.said()
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill it, and wait until the server has noticed."""
        self.process.kill()
        self.process.wait()
        until, known = time.monotonic() + DEADLINE, "datname = %s AND application_name = 'ebbtide'"
        while self.server.ask(f"SELECT 1 FROM pg_stat_activity WHERE {known}", self.database):
            assert time.monotonic() < until
            time.sleep(0.01)

    def finish(self) -> str:
        code = self.process.wait(DEADLINE)
        assert code == 0, self.said()
        return self.said()


@pytest.fixture
def going(warm: Warm, server: Server, database: str, talk: Path, tmp_path: Path) -> Iterator[Going]:
    made = Going(warm, server, database, talk, tmp_path, IMPATIENT)
    yield made
    made.process.kill()
    made.process.wait()


@pytest.fixture
def ended_well(warm: Warm, server: Server, database: str, tmp_path: Path, expected: tuple[Any, ...]) -> Any:
    """What a test calls at its end: all is as in an uninterrupted run with SQLite."""

    def check() -> None:
        assert everything(warm, server.url(database), tmp_path) == expected

    return check


def places(number: int, seed: int) -> list[tuple[int, float]]:
    """Checkpoints at which something is done, and seconds to wait then, so that it falls into whatever comes next."""
    dice = random.Random(seed)
    return [(place, dice.random() * 0.03) for place in sorted(dice.sample(range(4, CHECKPOINTS - 8), number))]


# --- faults: each leaves the server there, and the run going ----------------------------------------------------------


def cut(going: Going) -> None:
    going.server.cut(going.database)


def restart(how: signal.Signals) -> Callable[[Going], None]:
    """SIGKILL takes the server's first process alone: the others notice, and the next one waits for them."""

    def fault(going: Going) -> None:
        going.server.stop(how)
        going.server.start()

    return fault


def hang(*, whole: bool) -> Callable[[Going], None]:
    """All of the server, or the connections of the run: they stay open, and nothing is heard of them."""

    def fault(going: Going) -> None:
        with going.server.hanging(database=None if whole else going.database):
            going.wait_while(away=False)
        going.wait_while(away=True)

    return fault


def kill(going: Going) -> None:
    going.kill()
    going.start()


def stop_while(away: str, *, told_first: bool) -> Callable[[Going], None]:
    """SIGTERM ends the waiting. Where it is told first, it finds the server away while it drains."""

    def fault(going: Going) -> None:
        def end() -> int:
            if not told_first:
                going.wait_while(away=False)
                going.process.terminate()
            return going.process.wait()

        if told_first:
            going.process.terminate()
        if away.startswith("hanging"):
            with going.server.hanging(database=None if away == "hanging" else going.database):
                code = end()
        else:
            going.server.stop({"stopped": signal.SIGINT, "crashed": signal.SIGQUIT, "killed": signal.SIGKILL}[away])
            code = end()
            going.server.start()
        said = going.said()[going.since :]
        assert code == 1 or (code == 0 and (told_first or "finished" in said)), said  # done before the server went
        kill(going)  # waits until the server has let go of it

    return fault


FAULTS: dict[str, Callable[[Going], None]] = {
    "its connections are cut": cut,
    "the server is stopped": restart(signal.SIGINT),
    "the server crashes": restart(signal.SIGQUIT),
    "the server's first process is killed": restart(signal.SIGKILL),
    "the server hangs": hang(whole=True),
    "its connections hang": hang(whole=False),
    "it is killed": kill,
    **{
        f"SIGTERM {when} the server is {away}": stop_while(away, told_first=when == "before")
        for away in ("stopped", "crashed", "killed", "hanging", "hanging for it alone")
        for when in ("while", "before")
    },
}
IN_SHORT = [
    *(name for name in FAULTS if "SIGTERM" not in name),
    *("SIGTERM while the server is crashed", "SIGTERM while the server is hanging"),
]


def met(going: Going, faults: list[str], seed: int) -> int:
    """Cause one fault after the other at seeded moments; return how many the run lived to see."""
    times = 0
    for (place, pause), fault in zip(places(len(faults), seed), faults, strict=True):
        going.wait_for(place)
        going.wait_while(away=True)
        time.sleep(pause)
        if going.process.poll() is None:
            FAULTS[fault](going)
            times += 1
    return times


@pytest.mark.parametrize("seed", range(10 if LONG else 1))
def test_a_run_that_meets_every_fault(seed: int, going: Going, ended_well: Any) -> None:
    faults = IN_SHORT[:]
    random.Random(seed).shuffle(faults)
    assert met(going, faults, seed) > len(faults) // 2
    log = going.finish()
    assert "store_away" in log
    assert "the_store_is_back" in log
    assert "Traceback" not in log
    ended_well()


@pytest.mark.parametrize("fault", FAULTS if LONG else [])
def test_a_run_that_meets_a_fault_again_and_again(fault: str, going: Going, ended_well: Any) -> None:
    times = met(going, [fault] * (30 if fault == "its connections are cut" else 6), 7)
    print(f"{fault}: {times} times")
    assert times > 3
    assert "Traceback" not in going.finish()
    ended_well()


def test_a_stop_makes_the_wait_for_a_silent_server_shorter(
    warm: Warm, server: Server, database: str, talk: Path, tmp_path: Path, ended_well: Any
) -> None:
    """Half a minute is how long it waits otherwise; after SIGTERM no longer than `--drain`, which is a second here."""
    going = Going(warm, server, database, talk, tmp_path)
    going.wait_for(6)
    with server.hanging():
        time.sleep(0.3)  # by now it waits for an answer
        going.process.terminate()
        assert going.process.wait() == 1, going.said()
    said = re.findall(r"said nothing for (\d+\.\d) s", going.said())
    # Where what it asked next was a new connection, that has a deadline of its own.
    assert said or "connection timeout expired" in going.said(), going.said()
    assert all(float(seconds) < 15 for seconds in said)
    kill(going)
    going.finish()
    ended_well()


def test_a_run_that_starts_while_the_server_is_away_says_so(
    warm: Warm, server: Server, database: str, talk: Path, tmp_path: Path, ended_well: Any
) -> None:
    for away in (lambda: server.stop(signal.SIGQUIT), None):
        if away is not None:
            away()
            run = warm.run(command(talk, server.url(database), tmp_path), before=IMPATIENT)
            server.start()
        else:
            with server.hanging():
                run = warm.run(command(talk, server.url(database) + "&connect_timeout=2", tmp_path), before=IMPATIENT)
        assert (run.returncode, run.stderr.count("\n")) == (2, 1), run.stderr
        assert "cannot be opened as a state store" in run.stderr
        assert not (tmp_path / "out.jsonl").exists()
    warm.run(command(talk, server.url(database), tmp_path), check=True)
    ended_well()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, left: int) -> Path:
    """Fill a file system up, to so many bytes."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):  # the server takes some of it meanwhile
        for _ in range(shutil.disk_usage(folder).free - left >> 12):
            file.write(bytes(4096))
    return ballast


@pytest.mark.parametrize("left", [64 << 10, 256 << 10, 1 << 20] if LONG else [64 << 10])
def test_a_server_whose_disk_is_slow_and_gets_full(
    left: int, small: Path, warm: Warm, talk: Path, tmp_path: Path, expected: tuple[Any, ...]
) -> None:
    """It refuses commits, or, where it is its log that finds no room, crashes: the run waits, and goes on by itself."""
    for parent in [small, *small.parents]:
        with suppress(PermissionError):
            parent.chmod(parent.stat().st_mode | 0o111)  # the server is another user
    server = Server(slow=True, folder=small)
    going: Going | None = None
    try:
        server.start()
        going = Going(warm, server, "postgres", talk, tmp_path, IMPATIENT)
        going.wait_for(5)
        ballast = fill(small, left)
        until = time.monotonic() + DEADLINE
        while "store_away" not in going.said() and "no_room" not in going.said():
            assert going.process.poll() is None, going.said()
            assert time.monotonic() < until
            time.sleep(0.05)
        ballast.unlink()
        assert server.process is not None
        with suppress(subprocess.TimeoutExpired):
            server.process.wait(1)
        if server.process.poll() is not None:  # as whoever keeps it running would do
            server.start()
        assert "there_is_room_again" in going.finish() or "the_store_is_back" in going.said()
        assert everything(warm, server.url(), tmp_path) == expected
    finally:
        if going is not None:
            going.process.kill()
        server.stop(signal.SIGQUIT)
