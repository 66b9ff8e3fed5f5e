"""Forgetting streams: nothing of them is left, nothing else is touched, and a kill at any moment does no harm.

`EBBTIDE_LONG=1` kills at every step, and at seeded system calls under strace.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from memory.errors import ConfigurationError, EbbtideError
from stream.cli import app, main
from stream.config import RunSettings
from stream.consumer import Consumer
from stream.dead_letters import read_dead_letters
from stream.forget.command import forget_streams, prove
from stream.forget.given import outputs_of
from stream.forget.rows import held
from stream.replay import recorded_policy, replay
from stream.store import FORGETTING, StateStore
from stream.store_copy import StoreCopier
from stream.tape import TapeReader
from tests.postgres_server import Server

LONG = bool(os.environ.get("EBBTIDE_LONG"))

HOSTILE = (
    "'; DROP TABLE lanes; --",
    'say "hello"\\',
    "../../etc/passwd",
    "üñí-😀-コード",
    "two\nlines",
    "%s%n{0}",
    "lanes",
    "1234",
)
"""Names that something may take a part of for its own, words of the tables and numbers among them."""

OTHERS = ("bob", "anna", "joanna-12")
"""They stay. Two of them hold a name that goes."""

GONE = "anna-1"
PARTS = 20_000


def line(stream: str, number: int, **more: Any) -> bytes:
    words = f"{number} is what is said, {number * 7 % 11} times over, about {'the sea' if number % 13 < 6 else 'bread'}"
    # As in no stream alike, so that no two states are.
    event = {"stream": stream, "text": f"{words} {sum(stream.encode()) % 97}", "id": f"e{number}"} | more
    return json.dumps(event).encode() + b"\n"


def lines(streams: tuple[str, ...], first: int, last: int) -> list[bytes]:
    return [line(stream, number) for number in range(first, last) for stream in streams]


def settings(folder: Path, **given: Any) -> RunSettings:
    return RunSettings(
        **{
            "source": f"file:{folder / 'talk.jsonl'}",
            "backbone": "hashing",
            "rank": 8,
            "policy": "archive",
            "shadow": ["decay"],
            "state": f"sqlite:///{folder / 'state.db'}",
            "sink": f"jsonl:{folder / 'out.jsonl'}",
            "tape": folder / "tape",
            "tape_text": True,
            "metrics_port": 0,
            "batch_events": 16,
            "checkpoint_every": 0,  # a tape goes on in a new part after a checkpoint
            "detectors": {"topic_shift_score": "page_hinkley"},
        }
        | given
    )


def run(folder: Path, **given: Any) -> None:
    consumer = Consumer(settings(folder, **given))
    try:
        if consumer.outputs.tape is not None:
            consumer.outputs.tape.part_bytes = PARTS
        consumer.open()
        consumer.run()
    finally:
        consumer.close()


def forget(folder: Path, *streams: str, **given: Any) -> None:
    options: dict[str, Any] = {
        "state": f"sqlite:///{folder / 'state.db'}",
        "sink": f"jsonl:{folder / 'out.jsonl'}",
        "tape": folder / "tape",
        "ask": False,
    }
    forget_streams(list(streams), **(options | given))


def told(folder: Path, state: str | None = None) -> dict[str, Any]:
    """What is stored of each stream, of its shadows and of what was done by hand."""
    shown = CliRunner().invoke(app, ["inspect", "--state", state or f"sqlite:///{folder / 'state.db'}", "--json"])
    assert shown.exit_code == 0, shown.output
    found: dict[str, Any] = json.loads(shown.stdout)
    return found


def records(folder: Path) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for each in (folder / "out.jsonl").read_bytes().splitlines(keepends=True):
        found.setdefault(json.loads(each)["stream"], []).append(each)
    return found


def taped(folder: Path) -> dict[str, list[bytes]]:
    """Each stream's rows of the tape, each as the bytes of an Arrow stream of its own."""
    found: dict[str, list[bytes]] = {}
    for batch in TapeReader(folder / "tape").batches():
        for row, stream in enumerate(batch["stream"].to_pylist()):
            table = pa.Table.from_batches([batch.slice(row, 1)])
            buffer = pa.BufferOutputStream()
            with pa.ipc.new_stream(buffer, table.schema) as writer:
                writer.write_table(table.take([0]))
            found.setdefault(stream, []).append(bytes(buffer.getvalue()))
    return found


def everything(folder: Path) -> dict[str, bytes]:
    """Each file that a run keeps; of the store, its rows, since its pages tell how it came about."""
    files = [path for path in folder.rglob("*") if path.is_file() and "state.db" not in path.name]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name != "talk.jsonl"}
    return found | {"state": json.dumps(told(folder)).encode()}


def without(found: dict[str, Any], *streams: str) -> dict[str, Any]:
    return {name: rows for name, rows in found.items() if name not in streams}


DEAD = [
    b'{"stream": "%b", "text": 3}\n' % GONE.encode(),
    b'{"stream": "%b", "text": "cut sho\n' % GONE.encode(),
    b'{"stream": "bob", "text": 4}\n',
    b"nobody: hello\n",
]


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after a run over all streams, with what operators did, dead letters and two copies of the store."""
    folder = tmp_path_factory.mktemp("before")
    streams = (*OTHERS, GONE, *HOSTILE)
    (folder / "talk.jsonl").write_bytes(b"".join(lines(streams, 0, 12) + DEAD))
    run(folder)
    store = StateStore(f"sqlite:///{folder / 'state.db'}", create=False)
    for stream in ("bob", GONE):
        store.ask(stream, '{"kind":"decay","factor":0.5,"reason":"by hand"}')
    store.close()
    with (folder / "talk.jsonl").open("ab") as talk:
        talk.writelines(lines(streams, 12, 14))
    run(folder)
    for _ in range(2):
        StoreCopier(folder / "state.db", 0).copy()
    assert len(list((folder / "tape").iterdir())) > 2
    return folder


@pytest.fixture
def folder(before: Path, tmp_path: Path) -> Path:
    shutil.copytree(before, tmp_path / "run")
    copied = tmp_path / "run"
    with (copied / "talk.jsonl").open("r+b") as talk:  # a source is known by its inode too
        talk.seek(0)
    return copied


def holds(folder: Path, *needles: bytes) -> list[str]:
    """Which files of a run hold any of these, or `GONE` on its own, whatever the product thinks of it."""
    alone = re.compile(b"|".join([rb"(?<!jo)anna-1", *map(re.escape, needles)]))
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "talk.jsonl"]
    return sorted(str(path.relative_to(folder)) for path in paths if alone.search(path.read_bytes()))


def free_pages_with(path: Path, phrase: bytes) -> None:
    """Let an SQLite file have free pages that hold a phrase, as builds that do not wipe what is deleted leave them."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA secure_delete=OFF")
        database.execute("CREATE TABLE other (x)")
        database.executemany("INSERT INTO other VALUES (?)", [(phrase * 100,)] * 20)
        database.commit()
        database.execute("DROP TABLE other")
        database.commit()
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


class TestNothingIsLeft:
    def test_of_many_with_hostile_names_and_nothing_else_is_touched(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        store = StateStore(f"sqlite:///{folder / 'state.db'}", create=False)
        store.ask(GONE, '{"kind":"reset","reason":"not taken yet"}')
        store.ask("bob", '{"kind":"reset","reason":"not taken yet"}')
        (state,) = (record.state for lane, record in store.lanes() if lane == GONE)
        store.close()
        shutil.copy(folder / "state.db.copy-1", folder / "state.db.damaged-1")
        old, old_records, old_taped = told(folder), records(folder), taped(folder)
        assert set(old_taped) == set(old_records) == {*OTHERS, GONE, *HOSTILE}
        part = b64encode(b'{"stream": "anna-1", "text"').rstrip(b"=")
        stores = ("state.db", "state.db.copy-1", "state.db.copy-2", "state.db.damaged-1")
        held = [name for name in holds(folder, state[:64], part) if "tape" not in name]
        free_pages_with(folder / "state.db", b"a phrase of bob's")
        assert held == ["out.dead.jsonl", "out.jsonl", *stores]
        assert b"a phrase of bob's" in (folder / "state.db").read_bytes()

        forget(folder, GONE, *HOSTILE)

        out = capsys.readouterr().out
        assert "Nothing is left" in out
        new = told(folder)
        assert new["streams"] == [each for each in old["streams"] if each["stream"] in OTHERS]
        assert new["shadows"]["decay"] == [each for each in old["shadows"]["decay"] if each["stream"] in OTHERS]
        assert [each["stream"] for each in new["by_hand"]] == ["bob"]
        assert {each["stream"] for each in old["by_hand"]} == {"bob", GONE}
        for name in ("counters", "partitions", "settings"):
            assert new[name] == old[name]
        assert records(folder) == without(old_records, GONE, *HOSTILE)
        assert taped(folder) == without(old_taped, GONE, *HOSTILE)
        assert [letter.raw + b"\n" for letter in read_dead_letters(folder / "out.dead.jsonl")] == DEAD[2:]
        store = StateStore(f"sqlite:///{folder / 'state.db'}", create=False)
        assert [request.stream for request in store.requests()] == ["bob"]
        store.close()
        # Searched once more, by other means than the product's.
        names = [form for name in HOSTILE[:6] for form in (name.encode(), json.dumps(name)[1:-1].encode())]
        assert holds(folder, state[:64], state[-64:], part, b"a phrase of bob's", *names) == []
        left = {path.name for path in folder.iterdir()}
        wanted = {"state.db", "state.db.lock", "state.db.copy-1", "state.db.copy-2", "out.jsonl", "out.dead.jsonl"}
        assert left - {"state.db-wal", "state.db-shm"} == wanted | {"tape", "talk.jsonl"}
        for copy in ("state.db.copy-1", "state.db.copy-2"):
            assert told(folder, f"sqlite:///{folder / copy}") == new

    def test_a_lone_stream_leaves_empty_files_and_the_run_goes_on(self, tmp_path: Path) -> None:
        (tmp_path / "talk.jsonl").write_bytes(b"".join([*lines((GONE,), 0, 4), DEAD[0]]))
        run(tmp_path)
        forget(tmp_path, GONE)
        assert (tmp_path / "out.jsonl").read_bytes() == b"" == (tmp_path / "out.dead.jsonl").read_bytes()
        with (tmp_path / "talk.jsonl").open("ab") as talk:
            talk.writelines(lines((GONE,), 4, 8))
        run(tmp_path)
        assert [json.loads(each)["seq"] for each in records(tmp_path)[GONE]] == [0, 1, 2, 3]

    def test_the_next_run_goes_on_as_if_nothing_else_had_happened(self, tmp_path: Path) -> None:
        streams, cut, last = (*OTHERS, GONE), 12, 20
        a, b, c = (tmp_path / name for name in "abc")
        for each in (a, b, c):
            each.mkdir()
        (a / "talk.jsonl").write_bytes(b"".join(lines(streams, 0, cut)))
        run(a)
        forget(a, GONE)
        with (a / "talk.jsonl").open("ab") as talk:
            talk.writelines(lines(streams, cut, last))
        run(a)
        (b / "talk.jsonl").write_bytes(b"".join(lines(streams, 0, last)))
        run(b)
        (c / "talk.jsonl").write_bytes(b"".join(lines((GONE,), cut, last)))
        run(c)
        for read in (records, taped):
            assert without(read(a), GONE) == without(read(b), GONE)
            assert read(a)[GONE] == read(c)[GONE]
        one, whole, anew = told(a), told(b), told(c)
        for stored in ("streams", "decay"):
            one_, whole_, anew_ = (
                {each["stream"]: each for each in (found["shadows"] if stored == "decay" else found)[stored]}
                for found in (one, whole, anew)
            )
            assert without(one_, GONE) == without(whole_, GONE)
            assert one_[GONE] == anew_[GONE]
        counted = [found["counters"]["ebbtide_events_total"] for found in (one, whole)]
        assert counted[0] == counted[1] == [[len(streams) * last]]
        reader = TapeReader(a / "tape")
        done = replay(a / "tape", {"own": recorded_policy(reader.head)})
        assert done.results[0].differing == 0
        assert done.results[0].events == len(OTHERS) * last + last - cut


class TestProof:
    def test_it_finds_what_is_there(self, folder: Path) -> None:
        """The search, before anything is removed: in each file, and in each form."""
        store = StateStore(f"sqlite:///{folder / 'state.db'}", create=False)
        outputs = outputs_of(
            store.load().marks, sink=f"jsonl:{folder / 'out.jsonl'}", dead_letter=None, tape=folder / "tape"
        )
        findings = prove(store, outputs, [GONE], OTHERS, held(store, [GONE]).states)
        store.close()
        left = {Path(finding.place).name: finding.left for finding in findings}
        stores = [name for name in left if name.startswith("state.db") and not name.endswith((".lock", "-wal", "-shm"))]
        assert sorted(stores) == ["state.db", "state.db.copy-1", "state.db.copy-2"]
        assert all(left[name] for name in [*stores, "out.jsonl", "out.dead.jsonl"])
        parts = [name for name in left if name.startswith("part-")]
        assert len(parts) > 2
        assert sum(left[name] for name in parts) == 14  # rows of the stream
        assert left["state.db.lock"] == 0

    @pytest.mark.parametrize("form", ["utf-16-le", "utf-16-be", "percent", "base64", "json", "state", "sha256"])
    def test_what_is_left_in_a_file_beside_the_store_is_found(
        self, folder: Path, form: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        name = "üñí-😀-コード"
        store = StateStore(f"sqlite:///{folder / 'state.db'}", create=False)
        state = store.fetch([name])[name].state
        store.close()
        left = {
            "percent": quote(name).encode(),
            "base64": b64encode(b"ab" + name.encode() + b"c"),
            "json": json.dumps(name).encode(),
            "state": state,
            "sha256": sha256(state).hexdigest().encode(),
        }.get(form) or name.encode(form)
        (folder / "state.db.old").write_bytes(b"." * 1001 + left + b"." * 10)
        with pytest.raises(EbbtideError, match=r"the stream was removed, but .* are left"):
            forget(folder, name)
        out = " ".join(capsys.readouterr().out.split())
        assert re.search(r"state\.db\.old: \d in bytes in no row \(first: byte 10", out) is not None, out

    def test_what_others_said_of_it_is_named(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        said = line("bob", 3, text="anna-1 was here", id="anna-1/7")
        bad = b'{"stream": "bob", "text": {"to": "anna-1"}}\n'
        (tmp_path / "talk.jsonl").write_bytes(b"".join([*lines((*OTHERS, GONE), 0, 3), said, bad, DEAD[0]]))
        run(tmp_path)
        with pytest.raises(EbbtideError, match="4 places that hold its name or state are left"):
            forget(tmp_path, GONE)
        out = " ".join(capsys.readouterr().out.split())
        for trace in (
            "1 in `id` of other streams' records",
            "1 in dead letters of other streams",
            "1 in `id` of other streams' rows",
            "1 in `text` of other streams' rows",
        ):
            assert trace in out
        assert GONE not in records(tmp_path) | taped(tmp_path)

    def test_a_name_of_one_letter(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "talk.jsonl").write_bytes(b"".join(lines((*OTHERS, "a"), 0, 3)))
        run(tmp_path)
        forget(tmp_path, "a")
        out = " ".join(capsys.readouterr().out.split())
        assert "a: too short to be told from other bytes; searched for in quotes, and every row was read" in out
        assert "Nothing is left" in out
        assert set(records(tmp_path)) == set(taped(tmp_path)) == set(OTHERS)

    def test_dead_letters_that_do_not_tell_whose_they_are(self, tmp_path: Path) -> None:
        (tmp_path / "talk.jsonl").write_bytes(b"".join([*lines((*OTHERS, GONE), 0, 3), b"anna-1: hello\n", *DEAD]))
        run(tmp_path)
        forget(tmp_path, GONE, doubtful=True)
        assert [letter.raw + b"\n" for letter in read_dead_letters(tmp_path / "out.dead.jsonl")] == DEAD[2:]


class TestRefusal:
    def test_while_a_consumer_has_the_store(self, folder: Path) -> None:
        consumer = Consumer(settings(folder))
        try:
            consumer.open()
            with pytest.raises(ConfigurationError, match="another ebbtide run is using this store"):
                forget(folder, GONE)
        finally:
            consumer.close()

    @pytest.mark.parametrize(
        ("streams", "given", "message"),
        [
            (["ann-1"], {}, "there is nothing of a stream 'ann-1' .*did you mean 'anna-1'"),
            ([GONE, "nobody at all"], {}, "there is nothing of a stream 'nobody at all'"),
            ([GONE], {"sink": None}, "the store goes with records, and --sink jsonl:PATH is missing"),
            ([GONE], {"tape": None}, "the store goes with tape, and --tape DIR is missing"),
            ([GONE], {"leave": ["everything"]}, "--leave: expected records, dead-letters, tape, got 'everything'"),
            ([GONE], {"ask": True}, "expected --yes, since there is no terminal to ask on"),
            ([GONE], {"dead_letter": Path("/nowhere/dead.jsonl")}, "/nowhere/dead.jsonl: expected the file, got none"),
        ],
    )
    def test_nothing_is_changed(self, folder: Path, streams: list[str], given: dict[str, Any], message: str) -> None:
        old, (inode,) = everything(folder), [(folder / "out.jsonl").stat().st_ino]
        with pytest.raises(ConfigurationError, match=message):
            forget(folder, *streams, **given)
        assert everything(folder) == old
        assert (folder / "out.jsonl").stat().st_ino == inode

    def test_another_file_than_the_one_that_the_store_goes_with(self, folder: Path) -> None:
        data = (folder / "out.jsonl").read_bytes()
        (folder / "out.jsonl").write_bytes(data.replace(b'"seq":13', b'"seq":99'))
        old = everything(folder)
        with pytest.raises(ConfigurationError, match="this is another file than the one written before"):
            forget(folder, GONE)
        assert everything(folder) == old

    def test_a_damaged_tape(self, folder: Path) -> None:
        part = folder / "tape" / "part-000000.arrows"
        data = bytearray(part.read_bytes())
        data[len(data) // 2] ^= 1
        part.write_bytes(data)
        store = told(folder)
        with pytest.raises(EbbtideError, match="fails its checksum"):
            forget(folder, GONE)
        assert told(folder) == store
        forget(folder, GONE, leave=["tape"], tape=None)
        assert part.read_bytes() == data

    def test_the_command_ends_in_one_line(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = ["ebbtide", "forget", "--state", f"sqlite:///{folder / 'state.db'}"]
        command += ["--sink", f"jsonl:{folder / 'out.jsonl'}", "--tape", str(folder / "tape"), "--yes"]
        names = folder / "names"
        names.write_text('bob\n"two\\nlines"\nnobody\n')
        command += ["--streams-from", str(names), "--", "lanes"]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
        out, error = capsys.readouterr()
        assert (ended.value.code, out, error.count("\n")) == (2, "", 1)
        assert error.startswith("ebbtide: there is nothing of a stream 'nobody' in --state sqlite:///")
        names.write_text('bob\n"two\\nlines"\n')
        shown = CliRunner().invoke(app, command[1:])
        assert shown.exit_code == 0, shown.output
        assert set(records(folder)) & {"bob", "two\nlines", "lanes"} == set()


class Zygote:
    """Forks a process for each forgetting from one that has imported everything, and kills it at a given step."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.test_forget"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def forget(self, folder: Path, at: int = 0, **given: str) -> tuple[int, int, int]:
        """Forget `GONE`, killed before call number `at`; return the exit status, how many calls there were, and which
        moved the first file: the transaction is a few calls before it."""
        self._ask(folder, at, given)
        return self.answer()

    @contextmanager
    def stopped(self, folder: Path) -> Iterator[int]:
        """Yield the id of a process that will forget `GONE` once it is let go on; `answer` is to be asked then."""
        self._ask(folder, -1, {})
        yield self.answer()[0]

    def _ask(self, *asked: Any) -> None:
        assert self._process.stdin is not None
        print(json.dumps([str(each) if isinstance(each, Path) else each for each in asked]), file=self._process.stdin)
        self._process.stdin.flush()

    def answer(self) -> tuple[int, int, int]:
        assert self._process.stdout is not None
        status, calls, turn = json.loads(self._process.stdout.readline())
        return status, calls, turn

    def close(self) -> None:
        self._process.communicate()


FILE_CALLS = frozenset({"write", "fsync", "replace", "unlink", "ftruncate", "chmod", "chown", "open"})
CALLS = frozenset({"execute", "executemany", "commit"})
"""Functions before a call of which the process is killed: whatever changes a file, or a row, is among them."""


def serve() -> None:
    """Be the process that forks: a folder and a number comes in, a status and a count goes out."""
    for asked in sys.stdin:
        folder, at, given = json.loads(asked)
        back, out = os.pipe()
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            done = turn = 0
            if at < 0:
                os.kill(os.getpid(), signal.SIGSTOP)

            def count(frame: Any, event: str, function: Any, at: int = at) -> None:
                nonlocal done, turn
                if event != "c_call":
                    return
                name = function.__name__
                of_files = name in FILE_CALLS and function.__module__ == "posix"
                if of_files or name in CALLS:
                    done += 1
                    if of_files and name == "replace" and not turn:
                        turn = done
                    if done == at:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.setprofile(count if at >= 0 else None)
            try:
                forget(Path(folder), GONE, **given)
            finally:
                sys.setprofile(None)
                os.write(out, f"{done} {turn}".encode())
                os._exit(0)
        os.close(out)
        if at < 0:
            os.waitpid(child, os.WUNTRACED)
            print(json.dumps([child, 0, 0]), flush=True)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps([status, *map(int, (os.read(back, 40) or b"0 0").split())]), flush=True)
        os.close(back)


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    made = Zygote()
    yield made
    made.close()


def after_a_kill(folder: Path, old: dict[str, bytes], goes_on: bool) -> str:
    """Say what a kill left, and hold it to that: nothing was done, it is to be finished, or it was done."""
    store = StateStore(f"sqlite:///{folder / 'state.db'}", create=False)
    interrupted, there = FORGETTING in store.settings, GONE in store.fetch([GONE])
    store.close()
    if interrupted:
        assert not there
        assert GONE.encode() not in json.dumps(told(folder)).replace("joanna-12", "").encode()
        with pytest.raises(ConfigurationError, match="`ebbtide forget` was interrupted here: give that command again"):
            run(folder)
        return "to be finished"
    if there:
        now = {name: data for name, data in everything(folder).items() if not name.endswith(".forgetting")}
        assert now == old
        if goes_on:
            run(folder)
        return "nothing done"
    return "done"


def finish_after(folder: Path, left: str, wanted: dict[str, bytes]) -> None:
    """Give the command again, and hold what comes out to what an uninterrupted one gives."""
    if left == "done":
        with pytest.raises(ConfigurationError, match="there is nothing of a stream"):
            forget(folder, GONE)
    else:
        forget(folder, GONE)
    assert everything(folder) == wanted
    assert holds(folder) == []
    run(folder)
    assert told(folder)["marks"] == json.loads(wanted["state"])["marks"]


def test_a_kill_at_any_step(before: Path, zygote: Zygote, tmp_path: Path) -> None:
    """Short form: at a few steps. Long form: at all of them."""
    shutil.copytree(before, tmp_path / "whole")
    old = everything(tmp_path / "whole")
    status, calls, turn = zygote.forget(tmp_path / "whole")
    assert status == 0
    wanted = everything(tmp_path / "whole")
    dice = random.Random(5)
    some = [dice.randrange(1, turn - 4), turn - 1, turn, turn + 2, dice.randrange(turn, calls), calls - 2]
    steps = range(1, calls + 1) if LONG else some
    found: Counter[str] = Counter()
    for number, at in enumerate(steps):
        folder = tmp_path / "killed"
        shutil.copytree(before, folder)
        assert zygote.forget(folder, at)[0] == -signal.SIGKILL
        left = after_a_kill(folder, old, goes_on=number % 3 == 0)
        finish_after(folder, left, wanted)
        found[left] += 1
        shutil.rmtree(folder)
        print(f"{sum(found.values())} kills at {calls} steps (seed 5): {dict(found)}", file=sys.stderr)
    assert found["nothing done"]
    assert found["to be finished"]


def test_a_kill_at_any_system_call(before: Path, zygote: Zygote, tmp_path: Path) -> None:
    """Also those that SQLite makes."""
    if not LONG:
        pytest.skip("EBBTIDE_LONG=1 runs it")
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed (Debian: apt-get install strace)")
    names = ("pwrite64", "fdatasync", "fsync", "ftruncate", "unlink", "rename", "write")

    def traced(folder: Path, *options: str) -> int:
        """Forget under strace, which is attached when everything is imported; return the exit status."""
        with zygote.stopped(folder) as pid:
            tracer = subprocess.Popen([strace, "-f", "-p", str(pid), *options], stderr=subprocess.PIPE, text=True)
            assert tracer.stderr is not None
            assert "attached" in tracer.stderr.readline()
            os.kill(pid, signal.SIGCONT)
            tracer.communicate()
        return zygote.answer()[0]

    shutil.copytree(before, tmp_path / "whole")
    old = everything(tmp_path / "whole")
    log = tmp_path / "log"
    assert traced(tmp_path / "whole", "-e", f"trace={','.join(names)}", "-o", str(log)) == 0
    wanted = everything(tmp_path / "whole")
    counts = Counter(re.findall(r"^\d+ +(\w+)\(", log.read_text(), re.M))
    places = [(name, at) for name in names for at in range(1, counts[name] + 1)]
    dice, found = random.Random(6), Counter[str]()
    for name, at in dice.sample(places, min(100, len(places))):
        folder = tmp_path / "killed"
        shutil.copytree(before, folder)
        kill = f"inject={name}:signal=SIGKILL:when={at}"
        assert traced(folder, "-e", f"trace={name}", "-e", kill, "-o", os.devnull) == -signal.SIGKILL
        left = after_a_kill(folder, old, goes_on=at % 5 == 0)
        finish_after(folder, left, wanted)
        found[left] += 1
        shutil.rmtree(folder)
        print(f"{sum(found.values())} kills at {len(places)} system calls (seed 6): {dict(found)}", file=sys.stderr)
    assert found["to be finished"] > 1


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    made.start()
    yield made
    made.remove()


def test_postgres(tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "talk.jsonl").write_bytes(b"".join([*lines((*OTHERS, GONE, *HOSTILE), 0, 12), *DEAD]))
    url = server.url()
    run(tmp_path, state=url)
    store = StateStore(url, create=False)
    store.ask(GONE, '{"kind":"reset"}')
    state = store.fetch([GONE])[GONE].state
    store.close()
    old, old_records, old_taped = told(tmp_path, url), records(tmp_path), taped(tmp_path)

    def on_disk() -> int:
        """How often the server's tables, its write-ahead log apart, hold the state or a hostile name."""
        server.ask("CHECKPOINT")
        files = [path for path in (server.folder / "data" / "base").rglob("*") if path.is_file()]
        return sum(path.read_bytes().count(each) for path in files for each in (state[:64], HOSTILE[3].encode()))

    assert on_disk() > 1
    with pytest.raises(ConfigurationError, match="did you mean 'anna-1'"):
        forget(tmp_path, "ann-1", state=url)
    forget(tmp_path, GONE, *HOSTILE, state=url)
    assert on_disk() == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Nothing is left" in out
    assert "What it may keep for a while: its write-ahead log" in out
    new = told(tmp_path, url)
    assert new["streams"] == [each for each in old["streams"] if each["stream"] in OTHERS]
    assert new["counters"] == old["counters"]
    assert records(tmp_path) == without(old_records, GONE, *HOSTILE)
    assert taped(tmp_path) == without(old_taped, GONE, *HOSTILE)
    run(tmp_path, state=url)
    consumer = Consumer(settings(tmp_path, state=url))
    try:
        consumer.open()
        with pytest.raises(ConfigurationError, match="another ebbtide run is using this store"):
            forget(tmp_path, "bob", state=url)
    finally:
        consumer.close()


def test_a_kill_with_postgres(tmp_path: Path, server: Server, zygote: Zygote) -> None:
    def made(number: int) -> tuple[Path, str]:
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "talk.jsonl").write_bytes(b"".join([*lines((*OTHERS, GONE), 0, 12), *DEAD]))
        server.ask(f"CREATE DATABASE made{number}")
        url = server.url(f"made{number}")
        run(folder, state=url)
        return folder, url

    folder, url = made(0)
    status, calls, turn = zygote.forget(folder, state=url)
    assert status == 0
    wanted = {path.name: path.read_bytes() for path in (folder / "tape").iterdir()}, records(folder), told(folder, url)
    places = range(1, calls + 1, 6) if LONG else (turn - 4, turn + 1)
    found: Counter[str] = Counter()
    for number, at in enumerate(places, start=1):
        folder, url = made(number)
        assert zygote.forget(folder, at, state=url)[0] == -signal.SIGKILL
        store = StateStore(url, create=False)
        interrupted, there = FORGETTING in store.settings, GONE in store.fetch([GONE])
        store.close()
        if interrupted:
            with pytest.raises(ConfigurationError, match="`ebbtide forget` was interrupted here"):
                run(folder, state=url)
        elif there:
            run(folder, state=url)
        found["to be finished" if interrupted else "nothing done" if there else "done"] += 1
        if interrupted or there:
            forget(folder, GONE, state=url)
        tape = {path.name: path.read_bytes() for path in (folder / "tape").iterdir()}
        assert (tape, records(folder), told(folder, url)) == wanted
        run(folder, state=url)
        print(f"{sum(found.values())} kills at {calls} steps, PostgreSQL: {dict(found)}", file=sys.stderr)
    assert found["to be finished"]


if __name__ == "__main__":
    serve()
