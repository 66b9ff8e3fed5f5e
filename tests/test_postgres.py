"""PostgreSQL as the state store: the same promises, with a real server that is cut off, killed, restarted and slow."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from memory.errors import ConfigurationError, StateMismatchError
from memory.state_pool import LaneRecord
from stream.generate import GenerateSettings, generate
from stream.sources.source import Position
from stream.store import Acted, AwayError, DamagedError, FencedError, OutputMark, PassingError, StateStore
from tests.postgres_server import Between, Cut, Server

LONG = bool(os.environ.get("EBBTIDE_LONG"))
"""Whether the long form is asked for: more cuts, kills and restarts."""
SETTINGS = {"--rank": "2", "--seed": "0"}
ANN = LaneRecord("float32[1, 1, 2, 2]", bytes(range(16)), {"counts/1": b"\x00\xff", "empty": b"", "p/2": b"p" * 99})
BOB = LaneRecord("float32[1, 1, 2, 2]", bytes(16), {})
PLACE = Position(offset=2**41, lines=3, identity={"crc": 7, "deep": {"a": [1, None]}})
COUNTERS = {"ebbtide_events_total": [[3]], "sum": 0.1 + 0.2}
NAMES = ["", "ann", "Ann", "a b", "ä", "böb ☃ \U0001f600", "nul\0nul", "'; DROP TABLE lanes; --", "%s", "z" * 512]
DONE = Acted(None, "nul\0", 7, '{"kind": "reset"}', "reset", 1e9 / 3, b"\0\xff")
DEADLINE = 120.0

databases = count()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    server.start()
    yield server
    server.remove()


@pytest.fixture
def database(server: Server) -> str:
    """A new database on the server."""
    server.wait()
    name = f"e{next(databases)}"
    server.ask(f"CREATE DATABASE {name}")
    return name


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
    assert store.shadows() == []  # this run has none
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


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("talk") / "talk.jsonl"
    with path.open("w") as file:
        for event, _ in generate(GenerateSettings(scenario="recurring", streams=10, events=200, seed=4)):
            file.write(json.dumps(event) + "\n" + "no event\n")
    return path


def command(talk: Path, state: str, folder: Path) -> list[str]:
    detectors = '{"topic_shift_score": "page_hinkley"}'
    return [
        *(sys.executable, "-m", "stream.cli", "run", "--source", f"file:{talk}", "--backbone", "hashing"),
        *("--rank", "8", "--policy", "decay_on_shift", "--detectors", detectors, "--batch-events", "16"),
        *(
            "--checkpoint-every",
            "0",
            "--metrics-port",
            "0",
            "--state",
            state,
            "--sink",
            f"jsonl:{folder / 'out.jsonl'}",
        ),
        *("--dead-letter", str(folder / "dead.jsonl"), "--tape", str(folder / "tape"), "--shadow", "none"),
    ]


def everything(state: str, folder: Path) -> tuple[Any, ...]:
    inspect = [sys.executable, "-m", "stream.cli", "inspect", "--state", state, "--json"]
    told = json.loads(subprocess.run(inspect, capture_output=True, text=True, check=True).stdout)
    del told["marks"]["tape"]  # record batches end where checkpoints did
    replay = [sys.executable, "-m", "stream.cli", "replay", folder / "tape", "--json"]
    taped = json.loads(subprocess.run(replay, capture_output=True, text=True, check=True).stdout)
    return told, (folder / "out.jsonl").read_bytes(), (folder / "dead.jsonl").read_bytes(), taped


@pytest.fixture(scope="module")
def expected(talk: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """What an uninterrupted run with SQLite gives."""
    folder = tmp_path_factory.mktemp("quiet")
    state = f"sqlite:///{folder / 'state.db'}"
    subprocess.run(command(talk, state, folder), check=True, capture_output=True, timeout=DEADLINE)
    return everything(state, folder)


class Going:
    """A run whose checkpoints are counted.

    Parameters
    ----------
    server, database, talk, folder
        Where it reads and writes.
    """

    def __init__(self, server: Server, database: str, talk: Path, folder: Path):
        self.server, self.database = server, database
        self.command = command(talk, server.url(database), folder)
        self.log = folder / "log"
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)

    def wait_for(self, checkpoint: int) -> None:
        until = time.monotonic() + DEADLINE
        while self.process.poll() is None:
            assert time.monotonic() < until
            known = "SELECT 1 FROM pg_tables WHERE schemaname = 'public' AND tablename = 'owner'"
            if self.server.ask(known, database=self.database):
                found = self.server.ask("SELECT checkpoint FROM owner", database=self.database)
                if found and found[0][0] >= checkpoint:
                    return
            time.sleep(0.005)
        assert self.process.returncode == 0, self.log.read_text()

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
        text = self.log.read_text()
        assert code == 0, text
        return text


def places(number: int, seed: int) -> list[int]:
    """Checkpoints, of about 125, at which something is done."""
    return sorted(random.Random(seed).sample(range(5, 110), number))


def test_a_run_whose_connections_are_cut(
    server: Server, database: str, talk: Path, tmp_path: Path, expected: tuple[Any, ...]
) -> None:
    going, cut = Going(server, database, talk, tmp_path), 0
    for place in places(40 if LONG else 6, 1):
        going.wait_for(place)
        cut += server.cut(database) > 0
    log = going.finish()
    assert cut > 3
    assert "store_away" in log
    assert "the_store_is_back" in log
    assert everything(server.url(database), tmp_path) == expected


def test_a_run_whose_server_is_restarted_and_crashes(
    server: Server, database: str, talk: Path, tmp_path: Path, expected: tuple[Any, ...]
) -> None:
    going = Going(server, database, talk, tmp_path)
    for number, place in enumerate(places(12 if LONG else 2, 2)):
        going.wait_for(place)
        server.stop(signal.SIGQUIT if number % 2 else signal.SIGINT)
        server.start()
    assert "the_store_is_back" in going.finish()
    assert everything(server.url(database), tmp_path) == expected


def test_a_run_that_is_killed(
    server: Server, database: str, talk: Path, tmp_path: Path, expected: tuple[Any, ...]
) -> None:
    going = Going(server, database, talk, tmp_path)
    for place in places(30 if LONG else 3, 3):
        going.wait_for(place)
        going.kill()
        going.start()
    going.finish()
    assert everything(server.url(database), tmp_path) == expected


def test_a_server_whose_disk_is_slow(talk: Path, tmp_path: Path, expected: tuple[Any, ...]) -> None:
    slow = Server(slow=True)
    try:
        slow.start()
        Going(slow, "postgres", talk, tmp_path).finish()
        assert everything(slow.url(), tmp_path) == expected
    finally:
        slow.remove()
