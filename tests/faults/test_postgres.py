"""PostgreSQL as the state store: the same promises, with a real server that is cut off, killed, restarted and slow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from memory.errors import ConfigurationError, StateMismatchError
from memory.state_pool import LaneRecord
from stream import store_patience
from stream.sources.position import Position
from stream.store import Acted, AwayError, DamagedError, FencedError, OutputMark, PassingError, StateStore
from tests.postgres_server import Between, Cut, Server

SETTINGS = {"--rank": "2", "--seed": "0"}
ANN = LaneRecord("float32[1, 1, 2, 2]", bytes(range(16)), {"counts/1": b"\x00\xff", "empty": b"", "p/2": b"p" * 99})
BOB = LaneRecord("float32[1, 1, 2, 2]", bytes(16), {})
PLACE = Position(offset=2**41, lines=3, identity={"crc": 7, "deep": {"a": [1, None]}})
COUNTERS = {"ebbtide_events_total": [[3]], "sum": 0.1 + 0.2}
NAMES = ["", "ann", "Ann", "a b", "ä", "böb ☃ \U0001f600", "nul\0nul", "'; DROP TABLE lanes; --", "%s", "z" * 512]
DONE = Acted(None, "nul\0", 7, '{"kind": "reset"}', "reset", 1e9 / 3, b"\0\xff")
DEADLINE = 120.0


@pytest.fixture
def store(server: Server, database: str) -> Iterator[StateStore]:
    store = StateStore(server.url(database))
    store.claim(SETTINGS)
    yield store
    store.close()


def whole(store: StateStore) -> tuple[Any, ...]:
    return (
        list(store.lanes()),
        {shadow: list(store.lanes(shadow)) for shadow in store.shadows()},
        store.load(),
        store.settings,
        store.acted(),
        store.requests(),
    )


def fill(store: StateStore) -> None:
    marks = {"jsonl": OutputMark(2**40, "crc32:00000000"), "dead_letters": OutputMark(0, "inode:1:2")}
    asked = store.ask("nul\0", '{"kind": "reset"}')
    store.ask("böb", "{}")
    lanes = [(name, ANN) for name in NAMES] + [(f"s{number:04}", BOB) for number in range(1203)]
    store.commit(lanes, {"a\0.jsonl": PLACE}, {"jsonl": OutputMark(1), "gone": OutputMark(1)}, {})
    store.commit([], {}, marks, COUNTERS, shadows={"decay": [("b", ANN), ("a", BOB)]}, acted=[DONE])
    store.commit([("Ann", BOB)], {}, marks, COUNTERS, acted=[DONE._replace(request=asked), DONE])


def test_it_holds_what_sqlite_holds(server: Server, store: StateStore, database: str, tmp_path: Path) -> None:
    sqlite = StateStore(f"sqlite:///{tmp_path / 'state.db'}")
    sqlite.claim(SETTINGS)
    fill(sqlite)
    fill(store)
    assert whole(store) == whole(sqlite)
    assert len(store.acted("nul\0")) == 3
    assert store.fetch([*NAMES, "nobody"]) == sqlite.fetch(NAMES)
    assert set(store.fetch(NAMES)) == set(NAMES)
    looking = StateStore(server.url(database), create=False)
    assert whole(looking) == whole(store)
    assert looking.ask("ann", "{}") == 3  # no number is given twice
    looking.close()
    store.claim(SETTINGS)
    store.commit([], {}, {}, {})
    assert store.shadows() == []  # this run has none
    server.ask("DELETE FROM lanes WHERE ctid = (SELECT ctid FROM lanes LIMIT 1)", database=database)
    with pytest.raises(DamagedError, match="its rows are not those of one checkpoint"):
        store.claim(SETTINGS)
    sqlite.close()


def test_what_is_no_store_is_refused(server: Server, database: str) -> None:
    with pytest.raises(StateMismatchError, match="an empty database"):
        StateStore(server.url(database), create=False)
    server.ask("CREATE TABLE accounts (name TEXT)", database=database)
    with pytest.raises(StateMismatchError, match="a database of something else"):
        StateStore(server.url(database))
    with pytest.raises(ConfigurationError, match='database "none" does not exist'):
        StateStore(server.url("none"))
    with pytest.raises(ConfigurationError, match=r"expected postgresql\+psycopg://, the driver that is tested, got"):
        StateStore(server.url(database).replace("+psycopg", "+psycopg2"))
    with pytest.raises(ConfigurationError, match="cannot be opened as a state store") as raised:
        StateStore("postgresql+psycopg://ann:secret@/x?host=/nowhere")
    assert "secret" not in str(raised.value)


def test_other_settings_are_refused(server: Server, database: str, store: StateStore) -> None:
    store.commit([], {}, {}, COUNTERS)
    store.close()
    other = StateStore(server.url(database))
    with pytest.raises(StateMismatchError, match="was made with --rank 2, but this run has --rank 4"):
        other.claim({**SETTINGS, "--rank": "4"})
    other.close()


def look(url: str) -> None:
    looking = StateStore(url, create=False)
    try:
        whole(looking)
    finally:
        looking.close()


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("lanes", "state = set_bit(state, 3, 1 - get_bit(state, 3))"),
        ("lanes", "layout = 'float32[1, 1, 4, 1]'"),
        ("partitions", "position = set_bit(position, 90, 1 - get_bit(position, 90))"),
        ("marks", "mark = mark + 1"),
        ("counters", "\"values\" = '{}'"),
        ("acted", "seq = 8"),
        ("run", "value = '8' WHERE name = '--rank'"),
        ("requests", "action = 'x'"),
        ("owner", "checkpoint = checkpoint - 1"),
    ],
)
def test_a_row_that_was_changed_is_refused(
    server: Server, database: str, store: StateStore, table: str, change: str
) -> None:
    store.commit([("ann", ANN)], {"a": PLACE}, {"jsonl": OutputMark(1)}, COUNTERS, acted=[DONE])
    store.ask("ann", "{}")
    server.ask(f"UPDATE {table} SET {change}", database=database)
    with pytest.raises(DamagedError, match="fails its checksum: the file was damaged"):
        look(server.url(database))
    if table == "owner":
        with pytest.raises(DamagedError, match="fails its checksum"):
            store.commit([], {}, {}, {})


def insist(work: Callable[[], object]) -> int:
    """Try until it is done, as the consumer does; return how many tries were in vain."""
    until = time.monotonic() + DEADLINE
    for tried in count():
        try:
            work()
        except PassingError:
            assert time.monotonic() < until
            time.sleep(0.05)
        else:
            return tried
    raise AssertionError


@pytest.mark.parametrize("how", ["terminate", "kill", "restart"])
def test_a_connection_that_is_cut_in_mid_transaction(
    how: str, server: Server, database: str, store: StateStore
) -> None:
    store.commit([("ann", ANN)], {"a": PLACE}, {"jsonl": OutputMark(5)}, COUNTERS)
    before = whole(store)
    cuts = []

    def lanes() -> Iterator[tuple[str, LaneRecord]]:
        for number in range(700):  # the first 500 are written by then
            yield f"s{number:03}", BOB
        if not cuts:
            cuts.append(how)
            if how == "terminate":
                assert server.cut(database) >= 1
            elif how == "restart":
                server.stop()
                server.start()
            else:
                writing = "SELECT pid FROM pg_stat_activity WHERE datname = %s AND state = 'idle in transaction'"
                (pid,) = server.ask(writing, database)[0]
                server.crash(pid)
        yield "ann", BOB

    with pytest.raises(AwayError, match=r"the database refused: .*; the last checkpoint is as it was"):
        store.commit(lanes(), {"a": PLACE}, {"jsonl": OutputMark(6)}, {}, acted=[DONE])
    assert whole(store) == before
    insist(lambda: store.commit(lanes(), {"a": PLACE}, {"jsonl": OutputMark(6)}, {}, acted=[DONE]))
    assert store.count() == 701
    assert store.load().marks == {"jsonl": OutputMark(6)}
    assert store.acted() == [DONE]


@pytest.mark.parametrize("cuts", [["before"], ["after"], ["after", "after"], ["after", "before"], ["before", "after"]])
def test_a_commit_whose_outcome_is_unknown_is_stored_once(cuts: list[Cut], server: Server, database: str) -> None:
    between = Between(server)
    store = StateStore(server.url(database, between.folder))
    store.claim(SETTINGS)
    store.commit([("ann", ANN)], {"a": PLACE}, {"jsonl": OutputMark(5)}, COUNTERS, acted=[DONE])
    asked = store.ask("ann", "{}")
    taken = [DONE._replace(seq=8), DONE._replace(seq=9, request=asked)]
    try:
        between.cuts = list(cuts)
        later = {"jsonl": OutputMark(6)}
        tried = insist(lambda: store.commit([("bob", BOB)], {"a": PLACE}, later, {"n": 1}, acted=taken))
        assert tried == len(cuts)
        assert between.cuts == []
        assert dict(store.lanes()) == {"ann": ANN, "bob": BOB}
        assert (store.load().marks, store.load().counters) == (later, {"n": 1})
        assert store.acted() == [DONE, *taken]
        assert store.requests() == []
        store.commit([("bob", ANN)], {}, later, {"n": 2}, acted=[DONE])
        assert store.acted() == [DONE, *taken, DONE]
    finally:
        store.close()
        between.close()


def test_a_deadlock_is_tried_again(server: Server, database: str, store: StateStore) -> None:
    store.commit([("ann", ANN)], {}, {}, {})
    held, wanted = Event(), Event()
    other = server.connect(database)

    def in_the_way() -> None:
        with other.transaction():
            other.execute("SET LOCAL deadlock_timeout = '1min'")  # so that it is our transaction that is broken off
            other.execute("SELECT * FROM lanes FOR UPDATE")
            held.set()
            assert wanted.wait(DEADLINE)
            other.execute("SELECT * FROM owner FOR UPDATE")

    thread = Thread(target=in_the_way)
    thread.start()
    assert held.wait(DEADLINE)

    def lanes() -> Iterator[tuple[str, LaneRecord]]:
        wanted.set()
        waiting = "SELECT 1 FROM pg_locks WHERE NOT granted"
        until = time.monotonic() + DEADLINE
        while not server.ask(waiting, database=database) and not tried:
            assert time.monotonic() < until
            time.sleep(0.01)
        yield "ann", BOB

    tried: list[Exception] = []
    with pytest.raises(AwayError, match="deadlock detected") as raised:
        store.commit(lanes(), {}, {}, {"n": 1}, acted=[DONE])
    tried.append(raised.value)
    thread.join(DEADLINE)
    assert store.fetch(["ann"]) == {"ann": ANN}
    insist(lambda: store.commit(lanes(), {}, {}, {"n": 1}, acted=[DONE]))
    assert (store.fetch(["ann"]), store.acted()) == ({"ann": BOB}, [DONE])
    other.close()


def test_who_was_overtaken_cannot_write_any_more(server: Server, database: str, store: StateStore) -> None:
    store.commit([("ann", ANN)], {}, {}, {})
    other = StateStore(server.url(database))
    with pytest.raises(ConfigurationError, match="another ebbtide run is using this store"):
        other.claim(SETTINGS)
    server.cut(database)  # its lock goes with its connection
    insist(lambda: other.claim(SETTINGS))
    before = whole(other)
    for write in (store.hold, lambda: store.commit([("ann", BOB)], {"a": PLACE}, {}, {})):
        with pytest.raises(FencedError, match="another consumer has taken this store over; this one stops"):
            insist(write)
    assert whole(other) == before
    other.commit([("ann", BOB)], {}, {}, {})
    other.close()


def test_a_server_that_answers_before_the_disk_has_it_is_told_to_wait(server: Server, database: str) -> None:
    server.ask(f"ALTER DATABASE {database} SET synchronous_commit = off")
    store = StateStore(server.url(database))
    with store._database.connect() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
    store.close()


@pytest.mark.parametrize("cuts", [["hang before"], ["hang after"], ["hang after", "before"]])
def test_a_commit_that_is_never_answered_is_stored_once(
    cuts: list[Cut], server: Server, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    between = Between(server)
    store = StateStore(server.url(database, between.folder))
    store.claim(SETTINGS)
    store.commit([("ann", ANN)], {"a": PLACE}, {"jsonl": OutputMark(5)}, COUNTERS, acted=[DONE])
    try:
        between.cuts = list(cuts)
        later = {"jsonl": OutputMark(6)}
        monkeypatch.setattr(store_patience, "SILENCE", 0.5)
        with pytest.raises(AwayError, match=r"the server said nothing for \d\.\d s"):
            store.commit([("bob", BOB)], {"a": PLACE}, later, {"n": 1}, acted=[DONE])
        insist(lambda: store.commit([("bob", BOB)], {"a": PLACE}, later, {"n": 1}, acted=[DONE]))
        assert between.cuts == []
        assert dict(store.lanes()) == {"ann": ANN, "bob": BOB}
        assert (store.load().counters, store.acted()) == ({"n": 1}, [DONE, DONE])
    finally:
        store.close()
        between.close()


@pytest.mark.parametrize("whole_server", [True, False])
def test_a_server_that_hangs_is_noticed_and_waited_for(
    server: Server, database: str, whole_server: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.url(database) + "&connect_timeout=2"
    store = StateStore(url)
    store.claim(SETTINGS)
    store.commit([("ann", ANN)], {}, {}, COUNTERS)
    looking = StateStore(url, create=False)
    looking.count()
    monkeypatch.setattr(store_patience, "SILENCE", 0.5)
    with server.hanging(database=None if whole_server else database):
        uses = [lambda: store.commit([("ann", BOB)], {}, {}, {}), store.hold]
        if whole_server:
            uses += [lambda: looking.fetch(["ann"])]
        for use in uses:
            with pytest.raises(AwayError, match=r"said nothing|connection timeout expired|keeps the store"):
                use()
    insist(lambda: store.commit([("ann", BOB)], {}, {}, {"n": 2}))
    assert (store.fetch(["ann"]), store.load().counters) == ({"ann": BOB}, {"n": 2})
    looking.close()
    store.close()


def test_an_answer_that_takes_long_is_waited_for_while_something_comes(
    server: Server, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline is from the last sign of life, not from the question."""
    store = StateStore(server.url(database))
    slow = "SELECT repeat('x', 8000), pg_sleep(0.2) FROM generate_series(1, 12)"
    monkeypatch.setattr(store_patience, "SILENCE", 1.5)
    with store._database.connect() as connection:
        assert len(connection.exec_driver_sql(slow).all()) == 12  # 2.4 s
    store.close()
