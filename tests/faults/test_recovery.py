"""`ebbtide run --recover`: a damaged store or output, and the last good checkpoint, only when somebody asks for it."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from memory.errors import ConfigurationError, EbbtideError
from stream.cli import app
from stream.config import RunSettings
from stream.consumer import Consumer
from stream.store import StateStore
from stream.store_copy import StoreCopier
from stream.store_files import copy_paths
from stream.tape import TapeReader
from tests.faults.recurring import recurring

PARTS = 4
LINES = 150
"""Lines read between one copy and the next."""


@pytest.fixture(scope="module")
def lines() -> list[bytes]:
    """A recurring conversation over five streams, with a refused line after every fifteenth."""
    return recurring(PARTS * LINES)


def settings_in(folder: Path) -> RunSettings:
    return RunSettings(
        source=f"file:{folder / 'in.jsonl'}",
        backbone="hashing",
        policy="archive",
        state=f"sqlite:///{folder / 'state.db'}",
        sink=f"jsonl:{folder / 'out.jsonl'}",
        tape=folder / "tape",
        metrics_port=0,
        checkpoint_every=0,
        batch_events=64,
    )


def run(folder: Path, *, recover: bool = False) -> Consumer:
    consumer = Consumer(settings_in(folder), recover=recover)
    try:
        consumer.open()
        consumer.run()
    finally:
        consumer.close()
    return consumer


def copy(folder: Path) -> None:
    copier = StoreCopier(folder / "state.db", every=1e-9)
    copier.look()
    while not copier.made + copier.failed:
        time.sleep(0.01)
    copier.close()
    assert copier.made == 1


def feed(folder: Path, lines: list[bytes], part: int) -> None:
    size = len(lines) // PARTS
    with (folder / "in.jsonl").open("ab") as file:
        file.writelines(lines[part * size : len(lines) if part == PARTS - 1 else (part + 1) * size])


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> Path:
    """A run over three parts of the lines, with a copy after the first and one after the second."""
    folder = tmp_path_factory.mktemp("history")
    for part in range(PARTS - 1):
        feed(folder, lines, part)
        run(folder)
        if part < 2:
            copy(folder)
    return folder


@pytest.fixture(scope="module")
def expected(history: Path, tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> dict[str, Any]:
    """What the same run comes to when nothing is damaged."""
    folder = tmp_path_factory.mktemp("expected") / "run"
    shutil.copytree(history, folder)
    feed(folder, lines, PARTS - 1)
    run(folder)
    return outcome(folder)


@pytest.fixture
def folder(history: Path, tmp_path: Path, lines: list[bytes]) -> Path:
    """A copy of the history, with the last lines of the input waiting."""
    shutil.copytree(history, tmp_path / "run")
    feed(tmp_path / "run", lines, PARTS - 1)
    return tmp_path / "run"


def outcome(folder: Path) -> dict[str, Any]:
    store = StateStore(f"sqlite:///{folder / 'state.db'}", create=False)
    try:
        counters = {name: values for name, values in store.load().counters.items() if "recoveries" not in name}
        return {
            "lanes": dict(store.lanes()),
            "counters": json.dumps(counters, sort_keys=True),
            "sink": (folder / "out.jsonl").read_bytes(),
            "dead": (folder / "out.dead.jsonl").read_bytes(),
        }
    finally:
        store.close()


def flip(path: Path, share: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(share * len(data))] ^= 1
    path.write_bytes(data)


def spoil_lanes(folder: Path) -> None:
    with sqlite3.connect(folder / "state.db") as database:
        database.execute("UPDATE lanes SET state = zeroblob(length(state))")
    database.close()


def cut_sink(folder: Path) -> None:
    path = folder / "out.jsonl"
    path.write_bytes(path.read_bytes()[:-2000])


def cut_dead_letters(folder: Path) -> None:
    path = folder / "out.dead.jsonl"
    path.write_bytes(path.read_bytes()[:-10])


def spoil_tape(folder: Path) -> None:
    flip(folder / "tape" / "part-000000.arrows", 0.9)


def empty_store(folder: Path) -> None:
    (folder / "state.db").write_bytes(b"")


def lose_store(folder: Path) -> None:
    (folder / "state.db").unlink()


def spoil_head(folder: Path) -> None:
    flip(folder / "state.db", 0.0)


DAMAGE: list[Callable[[Path], None]] = [
    spoil_lanes,
    spoil_head,
    empty_store,
    lose_store,
    cut_sink,
    cut_dead_letters,
]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_damage_is_refused_until_somebody_asks_and_then_nothing_is_missing(
    damage: Callable[[Path], None], folder: Path, expected: dict[str, Any]
) -> None:
    damage(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(EbbtideError, match="--recover"):
        run(folder)
    for name in ("out.jsonl", "out.dead.jsonl", "state.db.copy-1", "state.db.copy-2"):
        assert (folder / name).read_bytes() == before[name]

    consumer = run(folder, recover=True)
    assert outcome(folder) == expected
    assert consumer.metrics.get("ebbtide_recoveries_total") == 1
    again = run(folder, recover=True)  # asked for once more, there is nothing to do
    assert outcome(folder) == expected
    assert again.metrics.get("ebbtide_recoveries_total") == 1


def test_a_tape_that_was_damaged_is_recorded_again_from_a_checkpoint_before_it(
    folder: Path, expected: dict[str, Any]
) -> None:
    spoil_tape(folder)
    with pytest.raises(EbbtideError, match="was damaged"):
        list(TapeReader(folder / "tape").batches())
    run(folder, recover=True)
    assert outcome(folder) == expected
    rows = sum(batch.num_rows for batch in TapeReader(folder / "tape").batches())
    assert rows == expected["sink"].count(b"\n")


def test_the_newest_copy_that_is_whole_is_taken_and_the_damaged_store_is_kept(
    folder: Path, expected: dict[str, Any]
) -> None:
    spoil_lanes(folder)
    damaged = (folder / "state.db").read_bytes()
    newest = copy_paths(folder / "state.db")[1]
    with sqlite3.connect(newest) as database:
        database.execute("UPDATE partitions SET position = replace(position, '1', '2')")
    database.close()
    run(folder, recover=True)
    assert outcome(folder) == expected
    assert (folder / "state.db.damaged-1").read_bytes() == damaged


def test_without_a_good_copy_nothing_is_changed(folder: Path) -> None:
    spoil_lanes(folder)
    for path in copy_paths(folder / "state.db"):
        flip(path, 0.5)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(ConfigurationError, match=r"no good checkpoint is left.*begin from\s+scratch"):
        run(folder, recover=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_a_copy_of_another_store_is_none(folder: Path, tmp_path: Path) -> None:
    spoil_lanes(folder)
    other = StateStore(f"sqlite:///{tmp_path / 'other.db'}")
    other.claim({})
    other.close()
    for path in copy_paths(folder / "state.db"):
        shutil.copyfile(tmp_path / "other.db", path)
    with pytest.raises(ConfigurationError, match="a copy of another store"):
        run(folder, recover=True)


def test_a_store_in_use_is_not_recovered(folder: Path) -> None:
    holder = StateStore(f"sqlite:///{folder / 'state.db'}")
    holder.claim(holder.settings)
    try:
        with pytest.raises(ConfigurationError, match="another ebbtide run is using this store"):
            run(folder, recover=True)
    finally:
        holder.close()


def test_a_damaged_store_is_never_copied_over_a_good_copy(folder: Path) -> None:
    good = [path.read_bytes() for path in copy_paths(folder / "state.db")]
    spoil_lanes(folder)
    copier = StoreCopier(folder / "state.db", every=1e-9)
    copier.look()
    while not copier.made + copier.failed:
        time.sleep(0.01)
    copier.close()
    assert (copier.made, copier.failed) == (0, 1)
    assert [path.read_bytes() for path in copy_paths(folder / "state.db")] == good
    assert not list(folder.glob("*.part*"))


def test_a_copy_is_of_one_checkpoint_while_the_store_goes_on(folder: Path) -> None:
    url = f"sqlite:///{folder / 'state.db'}"
    store = StateStore(url)
    store.claim(store.settings)
    checkpoint, lanes = store.load(), list(store.lanes())
    copier = StoreCopier(folder / "state.db", every=1e-9)
    copier.look()
    numbers = 0
    while not copier.made + copier.failed:
        store.commit(lanes, checkpoint.positions, checkpoint.marks, {"n": numbers})
        numbers += 1
    copier.close()
    store.close()
    assert copier.made == 1
    assert numbers > 0
    newest = max(copy_paths(folder / "state.db"), key=lambda path: path.stat().st_mtime)
    copied = StateStore(f"sqlite:///{newest}", create=False)
    assert copied.check() > 0
    assert dict(copied.lanes()) == dict(lanes)
    copied.close()


def test_copies_are_private_and_made_in_a_run(tmp_path: Path, lines: list[bytes]) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"".join(lines))
    consumer = Consumer(settings_in(tmp_path).model_copy(update={"copy_every": 1e-9}))
    try:
        consumer.open()
        while consumer.copier is not None and not consumer.copier.made:
            consumer.copier.look()
        consumer.run()
        assert (consumer.metrics.get("ebbtide_store_copies_total") or 0) >= 1
    finally:
        consumer.close()
    made = [path for path in copy_paths(tmp_path / "state.db") if path.exists()]
    assert made
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in made)


def test_recover_needs_a_store_and_says_so() -> None:
    said = CliRunner().invoke(app, ["run", "--source", "file:x", "--backbone", "hashing", "--recover"])
    assert isinstance(said.exception, ConfigurationError)
    assert "--recover: expected a --state to recover, got none" in str(said.exception)
