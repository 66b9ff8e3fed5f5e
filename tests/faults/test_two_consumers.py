"""Two consumers on one store: the second refuses; one that was stopped and overtaken writes nothing more, anywhere."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from stream.generate import GenerateSettings, generate
from stream.store import StateStore
from tests.postgres_server import Server
from tests.warm import Command, Warm

DEADLINE = 120.0
KINDS = ("sqlite", "postgresql")
LONG = bool(os.environ.get("EBBTIDE_LONG"))
"""Whether the long form is asked for: one that was stopped is overtaken again and again."""


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("talk") / "talk.jsonl"
    with path.open("w") as file:
        for event, _ in generate(GenerateSettings(scenario="recurring", streams=10, events=100, seed=4)):
            file.write(json.dumps(event) + "\n" + "no event\n")
    return path


@pytest.fixture
def state(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'state.db'}"
    server: Server = request.getfixturevalue("server")
    server.ask("DROP DATABASE IF EXISTS two WITH (FORCE)")
    server.ask("CREATE DATABASE two")
    return server.url("two")


class Starter:
    """Starts consumers whose lease lasts so long.

    Parameters
    ----------
    warm, talk, state
        What starts them, what they read, and where their state is.
    """

    def __init__(self, warm: Warm, talk: Path, state: str):
        self.warm, self.talk, self.state = warm, talk, state

    def __call__(self, folder: Path, *, follow: bool, lease: float = 30) -> Command:
        folder.mkdir(exist_ok=True)
        command = [
            *("run", "--source", f"file:{self.talk}", "--backbone", "hashing", "--rank", 4, "--policy", "none"),
            *("--detectors", "{}", "--metrics-port", 0, "--shadow", "none", "--checkpoint-every", 0),
            *("--batch-events", 32, "--state", self.state, "--sink", f"jsonl:{folder / 'out.jsonl'}"),
            *("--dead-letter", folder / "dead.jsonl", "--tape", folder / "tape"),
            *(["--follow"] if follow else []),
        ]
        with (folder / "log").open("ab") as log:
            return self.warm.start(command, log, before=f"import stream.store_lease as lease; lease.LEASE = {lease}")


def epoch(state: str) -> int:
    if state.startswith("sqlite"):
        connection = sqlite3.connect(state.removeprefix("sqlite:///"))
        row = connection.execute("SELECT epoch FROM owner").fetchone()
        connection.close()
    else:
        import psycopg

        with psycopg.connect(f"host={state.split('=')[1]} user=ann dbname=two") as server:
            row = server.execute("SELECT epoch FROM owner").fetchone()
    assert row is not None
    return int(row[0])


def ready(folder: Path, run: Command, lines: int) -> None:
    """Wait until a run has written this many records."""
    until = time.monotonic() + DEADLINE
    while not (folder / "out.jsonl").exists() or (folder / "out.jsonl").read_bytes().count(b"\n") < lines:
        assert run.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < until
        time.sleep(0.02)


def committed(state: str, run: Command, lines: int) -> None:
    """Wait until a checkpoint holds this many lines: the run has nothing in its hands."""
    until = time.monotonic() + DEADLINE
    store = StateStore(state, create=False)
    try:
        while [place.lines for place in store.load().positions.values()] != [lines]:
            assert run.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
    finally:
        store.close()


def files(folder: Path) -> dict[str, bytes]:
    """All but its log, and its trace of crashes, which goes with the process."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.endswith(("log", ".fatal")))
    return {path.name: path.read_bytes() for path in found}


def append(talk: Path, folder: Path, lines: int) -> Path:
    """Copy a talk, so that more of it can come later."""
    path = folder / "more.jsonl"
    path.write_bytes(b"".join(talk.read_bytes().splitlines(keepends=True)[:lines]))
    return path


@pytest.mark.parametrize("state", KINDS, indirect=True)
def test_the_second_refuses_and_changes_nothing(state: str, talk: Path, warm: Warm, tmp_path: Path) -> None:
    start = Starter(warm, talk, state)
    first = start(tmp_path / "first", follow=True)
    try:
        ready(tmp_path / "first", first, 1000)
        before = epoch(state)
        second = start(tmp_path / "second", follow=False)
        assert second.wait(DEADLINE) == 2
        said = (tmp_path / "second" / "log").read_text()
        assert "another ebbtide run is using this store; stop it first, or give this one its own" in said
        assert epoch(state) == before
        assert files(tmp_path / "second") == {}
        assert first.poll() is None
    finally:
        first.terminate()
        assert first.wait(DEADLINE) == 0
    third = start(tmp_path / "first", follow=False)  # the lease goes with the process
    assert third.wait(DEADLINE) == 0, (tmp_path / "first" / "log").read_text()


def test_a_clock_of_the_server_that_jumps_ahead_ends_no_run(
    server: Server, talk: Path, warm: Warm, tmp_path: Path
) -> None:
    server.ask("DROP DATABASE IF EXISTS two WITH (FORCE)")
    server.ask("CREATE DATABASE two")
    start = Starter(warm, talk, server.url("two"))
    first = start(tmp_path / "first", follow=True, lease=15)
    try:
        ready(tmp_path / "first", first, 1000)
        before = epoch(server.url("two"))
        server.ask("UPDATE owner SET renewed = renewed - 3600", database="two")
        assert start(tmp_path / "second", follow=False, lease=15).wait(DEADLINE) == 2
        assert epoch(server.url("two")) == before
        assert first.poll() is None
    finally:
        first.terminate()
        assert first.wait(DEADLINE) == 0, (tmp_path / "first" / "log").read_text()


@pytest.mark.parametrize("again", range(20 if LONG else 1))
@pytest.mark.parametrize("state", KINDS, indirect=True)
def test_one_that_was_stopped_and_overtaken_writes_nothing_more(
    state: str, again: int, talk: Path, warm: Warm, tmp_path: Path
) -> None:
    """It wakes up and finds more input: the store, the sink, the dead letters and the tape stay as they were."""
    grows = append(talk, tmp_path, 400)
    start = Starter(warm, grows, state)
    first = start(tmp_path / "first", follow=True, lease=0.5)
    try:
        ready(tmp_path / "first", first, 200)
        committed(state, first, 400)
        first.send_signal(signal.SIGSTOP)
        with grows.open("ab") as file:  # what it finds when it wakes up
            file.write(b"".join(talk.read_bytes().splitlines(keepends=True)[400:]))
        if state.startswith("sqlite"):
            (tmp_path / "state.db.lock").unlink()  # a lock of a machine that is not this one, say
        # As on another machine, where no lock on the first one's files is seen.
        shutil.copytree(tmp_path / "first", tmp_path / "second")
        taken = None
        until = time.monotonic() + DEADLINE
        while taken is None:  # refused as long as the first one's lease lasts
            assert time.monotonic() < until
            taken = start(tmp_path / "second", follow=False, lease=0.5)
            code = taken.wait(DEADLINE)
            if code:
                said = (tmp_path / "second" / "log").read_text()
                assert (code, "another ebbtide run is using this store" in said) == (2, True), said
                taken = None
        left, after = files(tmp_path / "first"), epoch(state)
        first.send_signal(signal.SIGCONT)
        assert first.wait(DEADLINE) == 1
        said = (tmp_path / "first" / "log").read_text()
        assert "another consumer has taken this store over; this one stops" in said
        assert "Traceback" not in said
        assert files(tmp_path / "first") == left
        assert epoch(state) == after
    finally:
        first.kill()
        first.wait()
