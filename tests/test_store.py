"""The state store: all of a checkpoint or nothing, one owner, and no damaged byte goes unnoticed."""

from __future__ import annotations

import json
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from memory.errors import ConfigurationError, EbbtideError, StateMismatchError
from memory.state_pool import LaneRecord
from stream.sources.position import Position
from stream.store import Acted, FencedError, OutputMark, Request, StateStore

SETTINGS = {"--rank": "2", "--seed": "0"}
ANN = LaneRecord(
    "float32[1, 1, 2, 2]", bytes(range(16)), {"counts/1": b"\x00\xff", "empty": b"", "probes/2": b"p" * 99}
)
BOB = LaneRecord("float32[1, 1, 2, 2]", bytes(16), {})
PLACE = Position(offset=120, lines=3, identity={"crc": 7, "deep": {"a": [1, None]}})
COUNTERS = {"ebbtide_events_total": [[3]], "ebbtide_alarms_total": [["topic_shift", 1]]}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'state.db'}"


@pytest.fixture
def store(url: str) -> Iterator[StateStore]:
    store = StateStore(url)
    store.claim(SETTINGS)
    yield store
    store.close()


def database(url: str) -> sqlite3.Connection:
    return sqlite3.connect(url.removeprefix("sqlite:///"))


def change(url: str, statement: str, *values: Any) -> None:
    connection = database(url)
    with connection:
        assert connection.execute(statement, values).rowcount == 1
    connection.close()


def whole(store: StateStore) -> tuple[Any, ...]:
    return dict(store.lanes()), store.load(), store.settings


def test_a_checkpoint_comes_back_as_it_was(store: StateStore, url: str) -> None:
    marks = {"jsonl": OutputMark(2**40, "crc32:00000000"), "dead_letters": OutputMark(0, "inode:1:2")}
    assert store.commit([("ann", ANN), ("böb ☃", BOB)], {"a.jsonl": PLACE}, marks, COUNTERS) == 2
    store.close()
    again = StateStore(url)
    assert again.fetch(["ann", "nobody", "böb ☃"]) == {"ann": ANN, "böb ☃": BOB}
    assert list(again.lanes()) == [("ann", ANN), ("böb ☃", BOB)]
    checkpoint = again.load()
    assert (checkpoint.positions, checkpoint.marks, checkpoint.counters) == ({"a.jsonl": PLACE}, marks, COUNTERS)
    assert (again.count(), again.settings) == (2, SETTINGS)
    again.close()


def test_a_new_store_is_empty(store: StateStore) -> None:
    checkpoint = store.load()
    assert (checkpoint.positions, checkpoint.marks, checkpoint.counters) == ({}, {}, {})
    assert (store.count(), store.fetch(["ann"])) == (0, {})


def test_a_later_checkpoint_replaces_what_it_names_and_keeps_the_other_lanes_and_partitions(store: StateStore) -> None:
    store.commit([("ann", ANN), ("bob", BOB)], {"a": PLACE, "b": PLACE}, {"jsonl": OutputMark(5)}, {})
    later = Position(offset=130, lines=4, identity={})
    store.commit([("bob", ANN)], {"b": later}, {"jsonl": OutputMark(9)}, COUNTERS)
    assert dict(store.lanes()) == {"ann": ANN, "bob": ANN}
    assert store.load().positions == {"a": PLACE, "b": later}
    assert store.load().marks == {"jsonl": OutputMark(9)}


def test_the_mark_of_an_output_that_is_left_out_is_forgotten(store: StateStore) -> None:
    """Else a run without a sink, and then one with it again, would leave a gap in the file."""
    store.commit([], {}, {"jsonl": OutputMark(5), "dead_letters": OutputMark(7)}, {})
    store.commit([], {}, {"dead_letters": OutputMark(7)}, {})
    assert store.load().marks == {"dead_letters": OutputMark(7)}
    store.commit([], {}, {}, {})
    assert store.load().marks == {}


def test_more_lanes_than_one_query_takes(store: StateStore) -> None:
    many = [(f"s{number:04}", LaneRecord("float32[1]", number.to_bytes(4, "little"), {})) for number in range(1203)]
    assert store.commit(iter(many), {}, {}, {}) == 1203
    assert store.fetch([lane for lane, _ in many]) == dict(many)
    assert list(store.lanes()) == many


class Crash(Exception):  # noqa: N818 (it stands for one)
    pass


def test_a_commit_that_fails_on_the_way_changes_nothing(store: StateStore, url: str) -> None:
    store.commit([("ann", ANN)], {"a": PLACE}, {"jsonl": OutputMark(5)}, COUNTERS)
    before = whole(store)

    def lanes() -> Iterator[tuple[str, LaneRecord]]:
        for number in range(700):  # the first 500 are written by then
            yield f"s{number}", BOB
        yield "ann", BOB
        raise Crash

    with pytest.raises(Crash):
        store.commit(lanes(), {"a": Position(offset=999, lines=9, identity={})}, {"jsonl": OutputMark(6)}, {})
    assert whole(store) == before
    with pytest.raises(TypeError):
        store.commit([("ann", BOB)], {}, {}, {"not JSON": {1, 2}})
    assert whole(store) == before
    store.commit([("ann", BOB)], {}, {}, {})  # and it goes on
    assert store.fetch(["ann"]) == {"ann": BOB}


def statements_before(url: str, stop_at: int) -> int:
    """Make and claim a store, and crash before its statement number `stop_at`; return how many there were."""
    count = 0

    def counted(*_: object) -> None:
        nonlocal count
        if count == stop_at:
            raise Crash
        count += 1

    event.listen(Engine, "before_cursor_execute", counted)
    try:
        store = StateStore(url)
        try:
            store.claim(SETTINGS)
        finally:
            store.close()
    except Crash:
        pass
    finally:
        event.remove(Engine, "before_cursor_execute", counted)
    return count


def test_a_store_whose_making_was_cut_short_anywhere_can_be_opened_again(tmp_path: Path) -> None:
    """Tables made one by one would be taken for a database of something else by the next start."""
    total = statements_before(f"sqlite:///{tmp_path / 'whole.db'}", -1)
    assert total > 10
    for stop_at in range(total):
        url = f"sqlite:///{tmp_path / f'cut{stop_at}.db'}"
        assert statements_before(url, stop_at) == stop_at
        store = StateStore(url)
        store.claim(SETTINGS)
        assert store.commit([("ann", ANN)], {}, {}, {}) == 1
        store.close()


@pytest.mark.parametrize("column", ["state", "beside"])
@pytest.mark.parametrize("place", [0, 7, -1])
def test_one_flipped_bit_is_noticed(store: StateStore, url: str, column: str, place: int) -> None:
    store.commit([("ann", ANN), ("bob", BOB)], {}, {}, {})
    connection = database(url)
    blob = bytearray(connection.execute(f"SELECT {column} FROM lanes WHERE lane = 'ann'").fetchone()[0])
    connection.close()
    blob[place] ^= 1
    change(url, f"UPDATE lanes SET {column} = ? WHERE lane = 'ann'", bytes(blob))
    with pytest.raises(EbbtideError, match=r"the stored lane 'ann' fails its checksum: the file was damaged"):
        store.fetch(["ann"])
    with pytest.raises(EbbtideError, match="fails its checksum"):
        list(store.lanes())
    assert store.fetch(["bob"]) == {"bob": BOB}


def test_a_consumer_whose_store_was_taken_over_cannot_commit_any_more(url: str, store: StateStore) -> None:
    store.commit([("ann", ANN)], {}, {}, {})
    change(url, "UPDATE owner SET epoch = epoch + 1")  # what a consumer on another machine does
    before = whole(store)
    with pytest.raises(FencedError, match="another consumer has taken this store over"):
        store.commit([("ann", BOB)], {"a": PLACE}, {}, {})
    assert whole(store) == before


def test_each_claim_raises_the_epoch(url: str) -> None:
    for epoch in (1, 2, 3):
        store = StateStore(url)
        store.claim(SETTINGS)
        store.close()
        connection = database(url)
        assert connection.execute("SELECT epoch FROM owner").fetchone() == (epoch,)
        connection.close()


HOLDER = """
import sys
from stream.store import StateStore
store = StateStore(sys.argv[1])
store.claim({"--rank": "2", "--seed": "0"})
print("held", flush=True)
sys.stdin.read()
"""


def test_one_machine_has_one_consumer_at_a_time_and_a_killed_one_leaves_no_lock(url: str) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLDER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    store = StateStore(url)
    with pytest.raises(ConfigurationError, match="another ebbtide run is using this store"):
        store.claim(SETTINGS)
    assert store.count() == 0  # looking is allowed
    other.kill()
    other.communicate()
    store.claim(SETTINGS)
    store.close()


def test_other_settings_are_refused_and_nothing_is_changed(url: str, store: StateStore) -> None:
    store.commit([("ann", ANN)], {}, {}, {})
    store.close()
    before = Path(url.removeprefix("sqlite:///")).read_bytes()
    other = StateStore(url)
    with pytest.raises(
        StateMismatchError, match=r"was made with --rank 2, but this run has --rank 4: give it --rank 2"
    ):
        other.claim({"--rank": "4", "--seed": "0"})
    with pytest.raises(StateMismatchError, match=r"was made with --new None, but this run has --new 1"):
        other.claim({**SETTINGS, "--new": "1"})
    assert other.settings == SETTINGS
    other.close()
    assert Path(url.removeprefix("sqlite:///")).read_bytes() == before


def test_before_the_first_checkpoint_settings_may_still_change(url: str, store: StateStore) -> None:
    """A first run that was refused for another reason must not bind the next one."""
    store.close()
    other = StateStore(url)
    other.claim({"--rank": "4", "--seed": "1"})
    assert other.settings == {"--rank": "4", "--seed": "1"}
    other.close()


@pytest.mark.parametrize("create", [True, False])
def test_another_version_is_refused_and_nothing_is_changed(url: str, store: StateStore, create: bool) -> None:
    store.close()
    change(url, "UPDATE run SET value = '3' WHERE name = 'schema'")
    path = Path(url.removeprefix("sqlite:///"))
    before = path.read_bytes()
    with pytest.raises(
        StateMismatchError, match="schema version 3, this Ebbtide reads version 2: use the release that"
    ):
        StateStore(url, create=create)
    assert path.read_bytes() == before


OLD = Path(__file__).parent / "data" / "state-v1.db"
"""Written by the release before: `hashing`, rank 4, two streams of 30 events."""


@pytest.fixture
def old(url: str) -> StateStore:
    shutil.copy(OLD, url.removeprefix("sqlite:///"))
    return StateStore(url, create=False)


def test_a_store_of_the_release_before_is_brought_up_by_the_next_run(old: StateStore, url: str) -> None:
    lanes, positions, settings = dict(old.lanes()), old.load().positions, old.settings
    assert len(lanes) == 2
    old.claim(settings, ["decay"])
    assert old.load().counters["ebbtide_actions_total"] == [["keep", "policy", 60]]
    assert (dict(old.lanes()), old.load().positions, old.settings) == (lanes, positions, settings)
    old.commit([], {}, {}, old.load().counters, shadows={"decay": [("ann", ANN)]})
    old.close()
    again = StateStore(url, create=False)
    assert again.ask("ann", "{}") == 1
    assert again.fetch(["ann"], shadow="decay") == {"ann": ANN}
    assert again.load().counters["ebbtide_actions_total"] == [["keep", "policy", 60]]
    again.close()


def test_it_is_read_as_it_is_and_left_as_it_is(old: StateStore, url: str) -> None:
    before = Path(url.removeprefix("sqlite:///")).read_bytes()
    assert old.acted() == []
    assert old.load().counters["ebbtide_actions_total"] == [["keep", 60]]
    with pytest.raises(StateMismatchError, match=r"schema version 1: `ebbtide run` with this --state brings it up"):
        old.ask("ann", "{}")
    with pytest.raises(StateMismatchError, match=r"was made with --rank 4, but this run has --rank 2"):
        old.claim({**old.settings, "--rank": "2"})
    old.close()
    database(url).execute("PRAGMA wal_checkpoint(TRUNCATE)")
    found = database(url)
    assert {name for (name,) in found.execute("SELECT name FROM sqlite_master WHERE type = 'table'")} == {
        *("run", "owner", "lanes", "partitions", "marks", "counters")
    }
    assert json.loads(found.execute('SELECT "values" FROM counters').fetchone()[0])["ebbtide_actions_total"] == [
        ["keep", 60]
    ]
    assert len(Path(url.removeprefix("sqlite:///")).read_bytes()) == len(before)


def test_shadows_have_lanes_of_their_own(store: StateStore, url: str) -> None:
    store.commit([("ann", ANN)], {}, {}, {}, shadows={"decay": [("ann", BOB), ("bob", ANN)], "auto": []})
    assert store.fetch(["ann", "bob"]) == {"ann": ANN}
    assert store.fetch(["ann", "bob"], shadow="decay") == {"ann": BOB, "bob": ANN}
    assert store.fetch(["ann"], shadow="auto") == {}
    store.commit([], {}, {}, {}, shadows={"decay": [("ann", ANN)]})
    assert store.fetch(["ann", "bob"], shadow="decay") == {"ann": ANN, "bob": ANN}
    assert dict(store.lanes()) == {"ann": ANN}
    store.claim(SETTINGS, ["decay"])
    assert len(store.fetch(["ann", "bob"], shadow="decay")) == 2
    store.claim(SETTINGS)  # a run without it: there will be a gap, if it begins
    assert len(store.fetch(["ann", "bob"], shadow="decay")) == 2
    store.commit([], {}, {}, {})
    assert store.fetch(["ann", "bob"], shadow="decay") == {}


def test_what_an_operator_asks_for_is_kept_until_it_is_done(store: StateStore, url: str) -> None:
    other = StateStore(url, create=False)
    assert [other.ask("ann", '{"kind": "reset"}'), other.ask("bob", '{"kind": "decay"}')] == [1, 2]
    assert store.requests() == [Request(1, "ann", '{"kind": "reset"}'), Request(2, "bob", '{"kind": "decay"}')]
    done = Acted(1, "ann", 7, '{"kind": "reset"}', "reset", 1.5, b"state")
    store.commit([], {}, {}, {}, acted=[done])
    assert [each.id for each in store.requests()] == [2]
    store.commit([], {}, {}, {}, acted=[done._replace(request=2, stream="bob")])
    assert other.ask("bob", "{}") == 3  # no number is given twice
    by_http = done._replace(request=None, stream="bob")
    store.commit([], {}, {}, {}, acted=[by_http])
    assert other.acted() == [done, done._replace(request=2, stream="bob"), by_http]
    assert other.acted("ann") == other.acted(request=1) == [done]
    other.close()


@pytest.mark.parametrize("create", [True, False])
def test_a_database_of_something_else_is_refused_and_nothing_is_changed(url: str, create: bool) -> None:
    connection = database(url)
    with connection:
        connection.execute("CREATE TABLE accounts (name TEXT)")
    connection.close()
    path = Path(url.removeprefix("sqlite:///"))
    before = path.read_bytes()
    with pytest.raises(StateMismatchError, match="a database of something else, not a state store of Ebbtide"):
        StateStore(url, create=create)
    assert path.read_bytes() == before
    assert [found.name for found in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("create", [True, False])
def test_a_file_that_is_no_database_is_refused_and_nothing_is_changed(url: str, create: bool) -> None:
    path = Path(url.removeprefix("sqlite:///"))
    path.write_bytes(b'{"stream": "ann", "text": "Hello"}\n' * 99)
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="cannot be opened as a state store: file is not a database"):
        StateStore(url, create=create)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("run.db", "expected an URL such as sqlite:///run/state.db"),
        ("sqlite://", "expected a file, such as sqlite:///run/state.db, got none"),
        ("sqlite:///:memory:", "expected a file, such as sqlite:///run/state.db, got none"),
        ("oracle://host/db", "expected an URL|expected sqlite or postgresql"),
        ("nosql://host/db", "expected an URL"),
    ],
)
def test_urls_that_name_no_store(url: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=said):
        StateStore(url)
    assert list(tmp_path.iterdir()) == []


def test_paths_where_no_store_can_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected a file that can be written, got Is a directory"):
        StateStore(f"sqlite:///{tmp_path}")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="expected a file that can be written, got File exists"):
        StateStore(f"sqlite:///{tmp_path / 'file' / 'state.db'}")
    with pytest.raises(ConfigurationError, match="there is no file"):
        StateStore(f"sqlite:///{tmp_path / 'none.db'}", create=False)
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_folders_are_made_and_what_is_kept_is_private(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "state.db"
    store = StateStore(f"sqlite:///{path}")
    store.claim(SETTINGS)
    store.commit([("ann", ANN)], {}, {}, {})
    modes = {found.name: stat.S_IMODE(found.stat().st_mode) for found in path.parent.iterdir()}
    store.close()
    assert modes.keys() >= {"state.db", "state.db-wal", "state.db.lock"}
    assert set(modes.values()) == {0o600}


def test_what_is_committed_is_in_the_write_ahead_log_and_on_the_disk(url: str, store: StateStore) -> None:
    connection = database(url)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    with store._database.connect() as mine:
        assert mine.exec_driver_sql("PRAGMA synchronous").scalar() == 2


def test_a_password_is_not_shown() -> None:
    with pytest.raises(ConfigurationError) as raised:
        StateStore("oracle://ann:secret@host/db")
    assert "secret" not in str(raised.value)
    assert "ann:***@host" in str(raised.value)


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stands(url: str, tmp_path: Path) -> None:
    program = """
import resource, sys
from memory.errors import EbbtideError
from memory.state_pool import LaneRecord
from stream.store import StateStore
store = StateStore(sys.argv[1])
store.claim({"--rank": "2", "--seed": "0"})
lanes = [(str(n), LaneRecord("float32[1, 1, 64, 64]", bytes(16384), {})) for n in range(20)]
store.commit(lanes[:1], {}, {}, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    store.commit(lanes, {}, {}, {})
except EbbtideError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program, url], capture_output=True, text=True, check=True)
    assert "the database refused: " in done.stdout
    assert done.stdout.count("\n") == 1
    store = StateStore(url)
    assert store.count() == 1
    store.close()
