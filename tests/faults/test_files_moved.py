"""Files that are removed, renamed, cut or linked under a run, and names that are no text: no loss without a word."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.numbered import WHAT, lines
from tests.warm import Command, Warm

DEADLINE = 120.0


class Run:
    """Commands on a folder: `talk.jsonl` in, `run/` out."""

    def __init__(self, warm: Warm, folder: Path):
        self.warm, self.folder = warm, folder
        self.talk, self.out, self.state = folder / "talk.jsonl", folder / "run/out.jsonl", folder / "run/state.db"
        self.out.parent.mkdir()
        self.talk.write_bytes(lines(0, 100))

    def command(self, *more: object, state: Path | None = None, sink: Path | None = None) -> list[object]:
        given = ("run", "--source", f"file:{self.talk}", "--state", f"sqlite:///{state or self.state}", *WHAT)
        return [*given, "--sink", f"jsonl:{sink or self.out}", "--checkpoint-every", 0.1, *more]

    def follow(self) -> Command:
        with (self.folder / "log").open("wb") as log:
            running = self.warm.start(self.command("--follow", "--linger", 0.01), log)
        self.until(lambda: self.events() == 100, running)
        return running

    def until(self, there: Callable[[], bool], running: Command) -> None:
        deadline = time.monotonic() + DEADLINE
        while not there():
            assert running.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)

    def events(self) -> int:
        """Events in the last checkpoint."""
        try:
            with sqlite3.connect(f"file:{self.state}?mode=ro", uri=True) as connection:
                row = connection.execute('SELECT "values" FROM counters').fetchone()
        except sqlite3.OperationalError:
            return 0
        return int(json.loads(row[0]).get("ebbtide_events_total", [[0]])[0][-1]) if row else 0

    def said(self) -> str:
        return (self.folder / "log").read_text()


@pytest.fixture
def run(warm: Warm, tmp_path: Path) -> Run:
    return Run(warm, tmp_path)


def remove(run: Run) -> None:
    run.out.unlink()


def rename(run: Run) -> None:
    run.out.rename(run.out.with_name("out.jsonl.1"))


def replace(run: Run) -> None:
    content = run.out.read_bytes()
    run.out.unlink()
    run.out.write_bytes(content)


def cut(run: Run) -> None:
    os.truncate(run.out, 0)


def write_into(run: Run) -> None:
    with run.out.open("ab") as file:
        file.write(b"x\n")


def remove_state(run: Run) -> None:
    run.state.unlink()


def replace_state(run: Run) -> None:
    run.state.with_name("new.db").write_bytes(run.state.read_bytes())
    run.state.with_name("new.db").replace(run.state)


MOVES = {
    remove: "out.jsonl: it was removed, renamed or replaced while it was written to",
    rename: "out.jsonl: it was removed, renamed or replaced while it was written to",
    replace: "out.jsonl: it was removed, renamed or replaced while it was written to",
    cut: "out.jsonl: it has .* bytes, where this run has written up to",
    write_into: "out.jsonl: it has .* bytes, where this run has written up to",
    remove_state: "state.db: its file was removed, renamed or replaced",
    replace_state: "state.db: its file was removed, renamed or replaced",
}


@pytest.mark.parametrize(("move", "said"), MOVES.items(), ids=[move.__name__ for move in MOVES])
def test_an_output_or_a_store_that_is_moved_under_a_run_stops_it(
    move: Callable[[Run], None], said: str, run: Run
) -> None:
    running = run.follow()
    move(run)
    with run.talk.open("ab") as file:
        file.write(lines(100, 150))
    assert running.wait(DEADLINE) == 1
    assert len([line for line in run.said().splitlines() if line.startswith("ebbtide: ")]) == 1
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(run.said())
    if move is rename:  # as it says: put back, the run goes on, and nothing is missing or there twice
        run.out.with_name("out.jsonl.1").rename(run.out)
        run.warm.run(run.command(), check=True)
        records = [json.loads(line)["id"] for line in run.out.read_bytes().splitlines()]
        assert records == [f"e{n}" for n in range(150)]


def test_a_store_by_another_name_is_the_same_store(run: Run, tmp_path: Path) -> None:
    running = run.follow()
    link = tmp_path / "link.db"
    link.symlink_to(run.state)
    before = {path.name for path in tmp_path.iterdir()}
    second = run.warm.run(run.command(state=link, sink=tmp_path / "out2.jsonl"))
    assert second.returncode == 2
    assert "another ebbtide run is using this store" in second.stderr
    assert {path.name for path in tmp_path.iterdir()} == before
    running.send_signal(signal.SIGTERM)
    assert running.wait(DEADLINE) == 0, run.said()


def test_a_store_with_two_hard_links_is_refused(run: Run, tmp_path: Path) -> None:
    run.warm.run(run.command(), check=True)
    os.link(run.state, tmp_path / "other.db")
    done = run.warm.run(run.command(state=tmp_path / "other.db"))
    assert done.returncode == 2
    assert "expected a file with one name, got one with 2 (hard links)" in done.stderr


def test_what_lies_beside_a_linked_store_is_forgotten_too(run: Run, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(run.state)
    with (tmp_path / "log").open("wb") as log:
        running = run.warm.start(run.command("--follow", "--copy-every", 0.1, state=link), log)
    copy = run.state.with_name("state.db.copy-1")
    run.until(lambda: copy.exists() and b"s3" in copy.read_bytes(), running)
    running.terminate()
    assert running.wait(DEADLINE) == 0, run.said()
    given = ("forget", "s3", "--state", f"sqlite:///{link}", "--sink", f"jsonl:{run.out}", "--yes")
    done = run.warm.run(given)
    assert done.returncode == 0, done.stdout + done.stderr
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.name not in ("log", "talk.jsonl")]
    assert not [path for path in left if b"s3" in path.read_bytes()]


def test_a_store_that_is_gone_is_not_begun_anew(run: Run) -> None:
    run.warm.run(run.command(), check=True)
    run.state.rename(run.state.with_name("kept.db"))
    done = run.warm.run(run.command())
    assert done.returncode == 1
    assert "it is gone, where checkpoint" in done.stderr
    assert not run.state.exists()
    run.state.with_name("kept.db").rename(run.state)
    run.warm.run(run.command(), check=True)
    assert run.events() == 100


@pytest.mark.parametrize("name", ["out.jsonl", "out.dead.jsonl"])
def test_a_link_in_the_folder_that_is_read_to_an_output_is_refused(name: str, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "z.jsonl").symlink_to(run.out.with_name(name))
    run.talk = folder
    done = run.warm.run(run.command("--follow"))
    assert done.returncode == 2
    assert "expected an output that the source" in done.stderr


@pytest.mark.parametrize("command", [("inspect", "\udcff"), ("act", "\udcff", "reset"), ("forget", "\udcff", "--yes")])
def test_a_name_that_is_no_text_is_refused_in_one_line(command: tuple[str, ...], run: Run) -> None:
    run.warm.run(run.command(), check=True)
    more = ("--sink", f"jsonl:{run.out}") if command[0] == "forget" else ()
    done = run.warm.run([*command, "--state", f"sqlite:///{run.state}", *more])
    assert done.returncode == 2
    assert done.stderr.startswith("ebbtide: expected names of 1 to 512 characters of text")
    assert done.stderr.count("\n") == 1


def test_a_name_that_the_terminal_cannot_show_is_shown_as_it_can(run: Run) -> None:
    run.talk.write_bytes(json.dumps({"stream": "b\u00fc\u2603", "text": "snow"}).encode() + b"\n")
    run.warm.run(run.command(), check=True)
    ascii_only = "import sys\nsys.stdout.reconfigure(encoding='ascii', errors='strict')"
    done = run.warm.run(["inspect", "--state", f"sqlite:///{run.state}"], before=ascii_only)
    assert done.returncode == 0, done.stderr
    assert "b\\xfc\\u2603" in done.stdout


def test_a_command_that_is_refused_leaves_the_shadows(run: Run) -> None:
    run.warm.run(run.command("--shadow", "none"), check=True)
    refused = run.warm.run(run.command(sink=run.out.with_name("slip.jsonl")))
    assert refused.returncode == 2, refused.stderr
    with sqlite3.connect(run.state) as connection:
        assert connection.execute("SELECT count(*) FROM shadow_lanes").fetchone() == (5,)
    run.warm.run(run.command(), check=True)  # one that is not refused has no use for them
    with sqlite3.connect(run.state) as connection:
        assert connection.execute("SELECT count(*) FROM shadow_lanes").fetchone() == (0,)


@pytest.mark.parametrize("more", [(), ("--follow",)], ids=["once", "followed"])
def test_a_file_in_the_folder_whose_name_is_no_text(more: tuple[str, ...], run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    odd = folder / os.fsdecode(b"m\xff.jsonl")
    (folder / "a.jsonl").write_bytes(lines(0, 60))
    odd.write_bytes(lines(60, 100))
    run.talk = folder
    if more:
        running = run.follow()
        running.terminate()
        assert running.wait(DEADLINE) == 0, run.said()
    else:
        run.warm.run(run.command(), check=True)
    with odd.open("ab") as file:
        file.write(lines(100, 120))
    run.warm.run(run.command(), check=True)
    ids = [json.loads(line)["id"] for line in run.out.read_bytes().splitlines()]
    assert sorted(ids) == sorted(f"e{n}" for n in range(120))
