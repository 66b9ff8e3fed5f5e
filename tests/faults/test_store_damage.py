"""A damaged SQLite store: what is read is what was written, or it is refused in a line that says what to do."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from memory.errors import EbbtideError
from memory.state_pool import LaneRecord
from stream.sources.position import Position
from stream.store import Acted, DamagedError, OutputMark, StateStore

LONG = bool(os.environ.get("EBBTIDE_LONG"))
"""Whether the long form of the fault tests is asked for."""
FLIPS = 4_000 if LONG else 240
SETTINGS = {"--rank": "4", "--seed": "0"}
ADVICE = ("restore a copy of it", "start with another --state", "choose another file", "use the release that wrote it")


def lanes(number: int, seed: int) -> list[tuple[str, LaneRecord]]:
    dice = random.Random(seed)
    return [
        (f"stream {n}", LaneRecord("float32[1, 1, 16, 16]", dice.randbytes(1024), {"probes/1": dice.randbytes(700)}))
        for n in range(number)
    ]


def fill(path: Path, seed: int = 0) -> StateStore:
    """Make a store with something in each table; leave it open."""
    store = StateStore(f"sqlite:///{path}")
    store.claim(SETTINGS, ["decay"])
    for number in range(3):
        asked = [store.ask(f"stream {n}", '{"kind": "reset"}') for n in range(4)]
        place = Position(offset=1000 * number, lines=9, identity={"crc": seed, "length": 4096})
        acted = [Acted(asked[n], f"stream {n}", 7, '{"kind": "reset"}', "reset", 1.5e9, b"state") for n in range(2)]
        store.commit(
            lanes(40, seed + number),
            {"a.jsonl": place, "b.jsonl": place},
            {"jsonl": OutputMark(10 * number, "crc32:00000000"), "tape": OutputMark(7, "inode:1:2")},
            {"ebbtide_events_total": [[number]], "ebbtide_alarms_total": [["topic_shift", seed]]},
            shadows={"decay": lanes(20, seed + 50 + number)},
            acted=acted,
        )
    return store


def whole(store: StateStore) -> tuple[Any, ...]:
    names = [lane for lane, _ in lanes(40, 0)]
    return (
        dict(store.lanes()),
        {shadow: dict(store.lanes(shadow)) for shadow in store.shadows()},
        store.fetch(names),
        store.fetch(names, "decay"),
        [store.acted(name) for name in names[:2]],
        store.acted(),
        store.requests(),
        store.shadows(),
        store.count(),
        store.load(),
        store.settings,
    )


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store that was closed: all of it is in one file."""
    folder = tmp_path_factory.mktemp("good")
    fill(folder / "state.db").close()
    assert not (folder / "state.db-wal").exists()
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a kill leaves it: the last checkpoints are in the write-ahead log."""
    folder, copy = tmp_path_factory.mktemp("open"), tmp_path_factory.mktemp("killed") / "store"
    store = fill(folder / "state.db")
    shutil.copytree(folder, copy)
    store.close()
    (copy / "state.db-shm").unlink()  # made anew from the log
    assert (copy / "state.db-wal").stat().st_size > 50_000
    return copy


def read(folder: Path, *, claim: bool) -> tuple[Any, ...]:
    store = StateStore(f"sqlite:///{folder / 'state.db'}", create=claim)
    try:
        if claim:
            store.claim(SETTINGS, ["decay"])
        return whole(store)
    finally:
        store.close()


def tried(folder: Path, expected: tuple[Any, ...], what: str, *, claim: bool) -> bool:
    """Read a damaged store; say whether it was refused. It must be that, or give what was written."""
    try:
        found = read(folder, claim=claim)
    except EbbtideError as error:
        said = str(error)
    else:
        said = ""
    if not said:
        assert found == expected, f"{what}: read as something else"
        return False
    assert "\n" not in said, what
    assert any(advice in said for advice in ADVICE), f"{what}: {said}"
    return True


def copies(good: Path, folder: Path) -> Iterator[Path]:
    """Yield a fresh copy again and again."""
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        yield folder


def flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


@pytest.mark.parametrize("claim", [False, True])
def test_one_flipped_bit_of_the_file(good: Path, tmp_path: Path, claim: bool) -> None:
    """Spread over the whole file, with more of them in the first bytes of pages, where the structure is."""
    expected, dice = read(good, claim=False), random.Random(11 + claim)
    size = (good / "state.db").stat().st_size
    refused = 0
    for number, folder in zip(range(FLIPS // 2), copies(good, tmp_path / "copy"), strict=False):
        place = dice.randrange(size)
        if number % 3 == 0:
            place = place // 4096 * 4096 + dice.randrange(100)
        bit = 8 * place + dice.randrange(8)
        flip(folder / "state.db", bit)
        refused += tried(folder, expected, f"bit {bit}", claim=claim)
    assert refused > FLIPS // 8  # else nothing was hit
    print(f"{FLIPS // 2} flips, claim {claim}: {refused} refused, the others harmless")


def test_one_flipped_bit_of_the_log(killed: Path, tmp_path: Path) -> None:
    """SQLite takes a log up to its first bad frame: an older checkpoint, which is not what was committed."""
    expected, dice = None, random.Random(12)
    size = (killed / "state.db-wal").stat().st_size
    refused = 0
    for number, folder in zip(range(FLIPS // 2), copies(killed, tmp_path / "copy"), strict=False):
        if expected is None:
            expected = read(folder, claim=False)
            continue
        bit = 8 * (dice.randrange(size) if number % 4 else dice.randrange(56)) + dice.randrange(8)
        flip(folder / "state.db-wal", bit)
        refused += tried(folder, expected, f"bit {bit} of the log", claim=bool(number % 2))
    assert refused > FLIPS // 4
    print(f"{FLIPS // 2 - 1} flips in the log: {refused} refused, the others harmless")


def test_a_file_or_a_log_that_was_cut_short(good: Path, killed: Path, tmp_path: Path) -> None:
    dice = random.Random(13)
    for source, name in ((good, "state.db"), (killed, "state.db-wal")):
        (folder,) = zip([0], copies(source, tmp_path / "copy"), strict=False)
        expected = read(folder[1], claim=False)
        size = (source / name).stat().st_size
        lengths = [0, 1, 31, 100, 4096, size - 4096, size - 1] + [dice.randrange(size) for _ in range(FLIPS // 6)]
        refused = 0
        for length, folder in zip(lengths, copies(source, tmp_path / "copy"), strict=False):
            os.truncate(folder / name, length)
            refused += tried(folder, expected, f"{name} cut to {length}", claim=True)
        print(f"{name}: {len(lengths)} lengths: {refused} refused")
        assert refused > len(lengths) // 2


def test_the_log_of_another_store_is_refused(good: Path, killed: Path, tmp_path: Path) -> None:
    """Its pages would take the place of this one's."""
    folder = tmp_path / "mixed"
    shutil.copytree(good, folder)
    shutil.copy(killed / "state.db-wal", folder / "state.db-wal")
    with pytest.raises(EbbtideError, match=r"damaged.*(restore a copy|another --state)"):
        read(folder, claim=True)
    (folder / "state.db.lock").unlink()  # without the note, too: the other's rows are no rows here, unless all are
    both = read_or_none(folder), read(other_whole(killed, tmp_path / "other"), claim=False)
    assert both[0] is None or both[0] == both[1]


def read_or_none(folder: Path) -> tuple[Any, ...] | None:
    try:
        return read(folder, claim=False)
    except EbbtideError:
        return None


def other_whole(killed: Path, folder: Path) -> Path:
    shutil.copytree(killed, folder)
    return folder


def test_rows_of_another_store_are_refused(good: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(good, folder)
    fill(tmp_path / "other.db", seed=5).close()
    with sqlite3.connect(folder / "state.db") as mixed:
        mixed.execute("ATTACH ? AS other", [str(tmp_path / "other.db")])
        mixed.execute("REPLACE INTO lanes SELECT * FROM other.lanes WHERE lane = 'stream 7'")
    mixed.close()
    with pytest.raises(DamagedError, match="the stored lane 'stream 7' fails its checksum: the file was damaged"):
        read(folder, claim=True)


def test_an_older_copy_is_refused_until_it_is_asked_for(good: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(good, folder)
    older = read(folder, claim=False)
    shutil.copy(folder / "state.db", tmp_path / "kept.db")
    store = StateStore(f"sqlite:///{folder / 'state.db'}")
    store.claim(SETTINGS, ["decay"])
    store.commit(lanes(3, 99), {}, {}, {})
    store.close()
    shutil.copy(tmp_path / "kept.db", folder / "state.db")
    with pytest.raises(
        DamagedError, match=r"it holds checkpoint 4, where 6 was: .*; to use it as it is, remove .*state\.db\.lock"
    ):
        read(folder, claim=False)
    (folder / "state.db.lock").unlink()
    assert read(folder, claim=False) == older


def test_a_store_that_was_emptied_is_not_begun_anew(good: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(good, folder)
    os.truncate(folder / "state.db", 0)
    for claim in (False, True):
        with pytest.raises(DamagedError, match="it is empty, where checkpoint 4 was"):
            read(folder, claim=claim)
    (folder / "state.db").unlink()
    with pytest.raises(DamagedError, match="it is gone, where checkpoint 4 was"):
        read(folder, claim=True)
    (folder / "state.db.lock").unlink()  # somebody means it
    assert read(folder, claim=True)[0] == {}


@pytest.mark.parametrize("table", ["run", "owner", "lanes", "shadow_lanes", "partitions", "marks", "counters"])
def test_each_column_of_each_row_is_checked(table: str, good: Path, tmp_path: Path) -> None:
    """A change that SQLite finds nothing wrong with."""
    for column in columns(good, table):
        folder = tmp_path / column
        shutil.copytree(good, folder)
        with sqlite3.connect(folder / "state.db") as changed:
            (value,) = changed.execute(f'SELECT "{column}" FROM {table} LIMIT 1 OFFSET 0').fetchone()
            other = value + 1 if isinstance(value, int) else value + ("x" if isinstance(value, str) else b"x")
            changed.execute(f'UPDATE {table} SET "{column}" = ? WHERE "{column}" = ?', (other, value))
        changed.close()
        with pytest.raises(EbbtideError, match=r"fails its checksum|schema version"):
            read(folder, claim=False)


def columns(folder: Path, table: str) -> list[str]:
    connection = sqlite3.connect(folder / "state.db")
    names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})") if row[1] != "renewed"]
    connection.close()
    return names


def test_a_mixture_of_two_checkpoints_is_refused(killed: Path, tmp_path: Path) -> None:
    """Killed while the log was carried back, page by page, and the log is lost: each row is one that was written."""
    before = (killed / "state.db").read_bytes()
    done = tmp_path / "done"
    shutil.copytree(killed, done)
    with sqlite3.connect(done / "state.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    after = (done / "state.db").read_bytes()
    pages = [at for at in range(0, len(after), 4096) if before[at : at + 4096] != after[at : at + 4096]]
    assert len(pages) > 20
    ends = [settled(before, tmp_path / "old"), settled(after, tmp_path / "new")]
    assert ends[0] != ends[1]
    step = 1 if LONG else max(1, len(pages) // 25)
    refused = whole_ones = 0
    for count in range(0, len(pages) + 1, step):
        mixed = bytearray(before.ljust(len(after), b"\0"))
        for at in pages[:count]:
            mixed[at : at + 4096] = after[at : at + 4096]
        try:
            found = settled(mixed, tmp_path / "mixed")
        except EbbtideError:
            refused += 1
        else:
            assert found in ends, f"{count} of {len(pages)} pages: taken for a whole one"
            whole_ones += 1
    assert refused > 10
    print(f"\n{refused} mixtures of two checkpoints refused, {whole_ones} were whole")


def settled(content: bytes | bytearray, folder: Path) -> tuple[Any, ...]:
    """Return what a run finds in a store of which nothing but the file is left."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "state.db").write_bytes(content)
    return read(folder, claim=True)


def test_a_row_that_is_missing_is_noticed_when_the_store_is_taken_over(good: Path, tmp_path: Path) -> None:
    for table in ("lanes", "shadow_lanes", "partitions", "marks", "counters", "acted"):
        folder = tmp_path / table
        shutil.copytree(good, folder)
        with sqlite3.connect(folder / "state.db") as changed:
            changed.execute(f"DELETE FROM {table} WHERE rowid = (SELECT min(rowid) FROM {table})")
        changed.close()
        with pytest.raises(DamagedError, match="its rows are not those of one checkpoint"):
            read(folder, claim=True)


@pytest.mark.parametrize("after", [0, 1, 600, 900])
def test_a_commit_that_breaks_off_leaves_the_sum_right(after: int, tmp_path: Path) -> None:
    """Some hundreds of rows are written at once: the first ones had been, when a later one could not be."""

    class BrokenError(Exception):
        pass

    def broken(number: int) -> Iterator[tuple[str, LaneRecord]]:
        yield from lanes(number, 7)
        raise BrokenError

    path = tmp_path / "state.db"
    store = fill(path)
    place = Position(offset=1, lines=9, identity={})
    shadows = {"decay": lanes(700, 8)}
    store.commit(lanes(1000, 6), {}, {}, {}, shadows=shadows)
    for tried in (broken(after), iter(lanes(1000, 7))):
        with suppress(BrokenError):
            store.commit(tried, {"a.jsonl": place}, {"jsonl": OutputMark(3)}, {}, shadows=shadows)
    with suppress(BrokenError):
        store.commit([], {}, {}, {}, shadows={"decay": broken(after)})
    store.commit(lanes(20, 9), {}, {}, {}, shadows={"decay": lanes(30, 9)})
    found = whole(store)
    store.close()
    assert read(tmp_path, claim=True)[:2] == found[:2]
