"""Sources that are truncated, rotated, replaced, cut short or full of other bytes: a clear record of each, and nothing
else is affected.

A run with the fault is compared with one whose input holds just the lines that can be read: records, refused lines and
states of all streams. Lines with single bad bytes, a line of a gigabyte, and gzip files read for the first time are in
`test_hostile_input.py`; what sources promise, without a run around them, is in `tests/test_sources.py`.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from memory.errors import ConfigurationError
from stream.event import LINE_CAP
from stream.sources import EndOfInput, FileSource, FollowSettings, PipeSource, Position, open_source
from tests.warm import Warm

DEADLINE = 120.0
MIDDLE = 28
"""Lines of b.jsonl that were read when the run was killed."""
DIES = """
import os
from stream.store import StateStore
real, count = StateStore.commit, 0
def commit(self, *given, **more):
    global count
    if count == {before}:
        os._exit(9)
    made = real(self, *given, **more)
    count += 1
    if count == {after}:
        os._exit(9)
    return made
StateStore.commit = commit
"""
"""Ends a run before it commits, having done so `before` times, or when it has committed `after` times."""
IN_THE_MIDDLE = DIES.format(before=-1, after=4)
"""After three micro-batches: the first checkpoint is at the start."""


def event(name: str, number: int) -> bytes:
    """A line of a stream of its partition; with others it fills the bytes that are kept checksums of."""
    words = random.Random(f"{name} {number}").choices(("tea", "garden", "bridge", "harbour", "violin", "rain"), k=40)
    said = {"stream": f"{name}{number % 2}", "text": " ".join(words), "id": f"{name}-{number}"}
    return json.dumps(said).encode() + b"\n"


def events(name: str, count: int, first: int = 0) -> list[bytes]:
    return [event(name, number) for number in range(first, first + count)]


def run_of(source: Path, made: Path, *more: object) -> list[str]:
    made.mkdir(exist_ok=True, parents=True)
    given: list[object] = ["run", "--source", f"file:{source}", "--backbone", "hashing", "--rank", 4]
    given += ["--policy", "decay_on_shift", "--state", f"sqlite:///{made / 'state.db'}", "--metrics-port", 0]
    given += ["--batch-events", 16, "--checkpoint-every", 0, "--log-format", "json"]
    given += ["--sink", f"jsonl:{made / 'out.jsonl'}", "--dead-letter", made / "dead.jsonl", *more]
    return [str(each) for each in given]


def lanes(made: Path) -> list[tuple[Any, ...]]:
    """Every stream's state, and all that is kept beside it."""
    with closing(sqlite3.connect(made / "state.db")) as store:
        return store.execute("SELECT lane, layout, state, beside FROM lanes ORDER BY lane").fetchall()


def offsets(made: Path) -> dict[str, int]:
    with closing(sqlite3.connect(made / "state.db")) as store:
        places = store.execute("SELECT partition, position FROM partitions").fetchall()
    return {name: json.loads(place)["offset"] for name, place in places}


def counter(made: Path, name: str) -> float:
    with closing(sqlite3.connect(made / "state.db")) as store:
        ((values,),) = store.execute('SELECT "values" FROM counters').fetchall()
    return sum(entry[-1] for entry in json.loads(values).get(name, []))


def records(made: Path) -> bytes:
    return (made / "out.jsonl").read_bytes()


def letters(made: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (made / "dead.jsonl").read_bytes().splitlines()]


def told(done: CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]


def lay(folder: Path, b: list[bytes], packing: str = "") -> None:
    """Three partitions: one that is read to its end, one that is being read, one that is not begun."""
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(b"".join(events("a", 20)))
    (folder / f"b.jsonl{packing}").write_bytes(gzip.compress(b"".join(b)) if packing else b"".join(b))
    (folder / "c.jsonl").write_bytes(b"".join(events("c", 20)))


@pytest.fixture(scope="module")
def histories(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that were killed in the middle of b.jsonl, and of b.jsonl.gz."""
    made = {}
    for packing in ("", ".gz"):
        made[packing] = tmp_path_factory.mktemp("history")
        lay(made[packing] / "in", events("b", 60), packing)
        assert warm.run(run_of(made[packing] / "in", made[packing] / "made"), before=IN_THE_MIDDLE).returncode == 9
        assert offsets(made[packing] / "made")[f"b.jsonl{packing}"] == sum(map(len, events("b", MIDDLE)))
    return made


Clean = Callable[[list[bytes]], Path]


@pytest.fixture(scope="module")
def clean(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Clean:
    """Makes a run whose b.jsonl holds the given lines, and nothing is wrong."""
    made: dict[bytes, Path] = {}

    def run(b: list[bytes]) -> Path:
        if b"".join(b) not in made:
            folder = tmp_path_factory.mktemp("clean")
            lay(folder / "in", b)
            warm.run(run_of(folder / "in", folder / "made"), check=True)
            made[b"".join(b)] = folder / "made"
        return made[b"".join(b)]

    return run


@dataclass
class Fault:
    """What is done to b.jsonl between two runs, and what is read all the same.

    Attributes
    ----------
    cause
        Does it.
    found
        What the refusal says of it.
    rest
        Lines that are read after the first `MIDDLE`, once the gap is accepted.
    reasons
        Of the refused lines besides the gap's.
    later
        Bytes that are appended to it after that, and the lines and reasons that they come to; None: nothing is there.
    """

    cause: Callable[[Path], object]
    found: str
    rest: list[bytes] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    later: tuple[bytes, list[bytes], list[str]] | None = (event("d", 1), [event("d", 1)], [])
    packing: str = ""


def cut(lines: int, bytes_: int = 0) -> Callable[[Path], object]:
    """Leave the first lines and bytes."""
    length = sum(map(len, events("b", lines))) + bytes_
    return lambda path: os.truncate(path, length)


def edit(path: Path) -> None:
    """Take bytes out of a line in the middle, behind those that there is a checksum of."""
    before = path.read_bytes()
    place = before.index(b'"id": "b-20"') - 20
    assert place > 4096
    path.write_bytes(before[:place] + before[place + 7 :])


OTHER = events("d", 9, first=100)
FAULTS = {
    "truncated": Fault(cut(20), "fewer than the"),
    "truncated within the first bytes": Fault(cut(3), "fewer than the"),
    "truncated in mid-line, then appended": Fault(
        cut(20, 50), "fewer than the", later=(b"tail\n" + event("d", 1), [event("d", 1)], ["not_json"])
    ),
    "truncated in mid-line, which is then ended": Fault(
        cut(20, 50), "fewer than the", later=(b"\n" + event("d", 1), [event("d", 1)], [])
    ),
    "emptied": Fault(cut(0), "it has 0 bytes"),
    "emptied and written again": Fault(lambda path: path.write_bytes(b"".join(OTHER)), "fewer than the", rest=OTHER),
    "replaced by a longer one": Fault(
        lambda path: path.write_bytes(b"".join(events("d", 50, 100))), "are others", rest=events("d", 50, 100)
    ),
    "edited in the middle": Fault(edit, "bytes before byte", rest=events("b", 60)[MIDDLE + 1 :], reasons=["not_json"]),
    "gone": Fault(lambda path: path.unlink(), "no such file", later=None),
    "gzip cut short": Fault(
        lambda path: os.truncate(path, path.stat().st_size // 4),
        "fewer than the",
        reasons=["corrupt_compression"],
        later=None,
        packing=".gz",
    ),
    "gzip replaced": Fault(
        lambda path: path.write_bytes(gzip.compress(b"".join(events("d", 50, 100)))),
        "are others",
        rest=events("d", 50, 100),
        later=None,
        packing=".gz",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_gap_is_named_then_accepted_once_and_nothing_else_is_affected(
    warm: Warm, histories: dict[str, Path], clean: Clean, tmp_path: Path, name: str
) -> None:
    fault = FAULTS[name]
    folder, made = tmp_path / "in", tmp_path / "made"
    shutil.copytree(histories[fault.packing], tmp_path, dirs_exist_ok=True)
    partition = f"b.jsonl{fault.packing}"
    path, start = folder / partition, offsets(made)[partition]
    whole = path.stat().st_size
    fault.cause(path)

    # Refused, in one line that names the partition and the gap; nothing is changed.
    before = records(made), (made / "dead.jsonl").read_bytes(), lanes(made), offsets(made)
    done = warm.run(run_of(folder, made))
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, ""), done.stderr
    to = "an unknown place" if fault.packing else f"byte {whole} or later"
    assert f"{partition!r} before" in done.stderr
    assert fault.found in done.stderr
    assert (
        f"the gap goes from byte {start} to {to}: put that file back, go on without it with --accept-gap" in done.stderr
    )
    assert (records(made), (made / "dead.jsonl").read_bytes(), lanes(made), offsets(made)) == before

    # Accepted.
    done = warm.run(run_of(folder, made, "--accept-gap"), check=True)
    (gap,) = [entry for entry in told(done) if entry["event"] == "gap_accepted"]
    assert (gap["level"], gap["partition"], gap["from"]) == ("warning", partition, start)
    assert gap.get("to") == (None if fault.packing else whole)
    (letter,) = [letter for letter in letters(made) if letter["reason"] == "source_gap"]
    assert (letter["partition"], letter["offset"], letter["line"]) == (partition, start, MIDDLE + 1)
    assert (letter["raw"], letter["length"]) == ("", 0)
    assert fault.found in letter["detail"]
    assert counter(made, "ebbtide_source_gaps_total") == 1
    assert [letter["reason"] for letter in letters(made)] == ["source_gap", *fault.reasons]
    assert ("source_line_continued" in done.stderr) is (fault.reasons == ["not_json"])
    assert offsets(made)[partition] >= start
    good = [*events("b", MIDDLE), *fault.rest]
    assert_equal(clean, made, good)

    # And no more asked for: there is nothing to accept, and what comes later is read.
    after = records(made), lanes(made), letters(made)
    if name == "truncated":
        done = warm.run(run_of(folder, made, "--accept-gap"), check=True)
        assert [entry["event"] for entry in told(done)][:1] == ["no_gap_to_accept"]
        assert (records(made), lanes(made), letters(made)) == after
    if fault.later is None:
        assert warm.run(run_of(folder, made)).returncode == 0
        assert (records(made), lanes(made), letters(made)) == after
        return
    added, lines, reasons = fault.later
    with path.open("ab") as file:
        file.write(added)
    reached = offsets(made)[partition]
    done = warm.run(run_of(folder, made), check=True)
    assert [letter["reason"] for letter in letters(made)] == ["source_gap", *fault.reasons, *reasons]
    assert ("source_line_continued" in done.stderr) is (reasons == ["not_json"])
    assert offsets(made)[partition] == reached + len(added)
    assert [json.loads(line)["id"] for line in records(made)[len(after[0]) :].splitlines()] == [
        json.loads(line)["id"] for line in lines
    ]


def assert_equal(clean: Clean, made: Path, b: list[bytes]) -> None:
    """Records and states are those of a run whose b.jsonl holds these lines alone."""
    expected = clean(b)
    assert records(made) == records(expected)
    assert lanes(made) == lanes(expected)
    assert letters(expected) == []


@pytest.mark.parametrize("when", [{"before": 1, "after": -1}, {"before": -1, "after": 2}], ids=str)
def test_a_run_that_is_killed_as_it_accepts_a_gap_asks_again_or_has_it_on_record(
    warm: Warm, clean: Clean, tmp_path: Path, when: dict[str, int]
) -> None:
    """It has no file of dead letters before that."""
    folder, made = tmp_path / "in", tmp_path / "made"
    lay(folder, events("b", 60))
    given = run_of(folder, made)
    assert warm.run(given, before=IN_THE_MIDDLE).returncode == 9
    (folder / "b.jsonl").write_bytes(b"".join(OTHER))
    other = [*given[:-1], str(made / "dead-2.jsonl")]
    assert warm.run([*other, "--accept-gap"], before=DIES.format(**when)).returncode == 9
    is_done = when["after"] > 0
    if not is_done:
        assert warm.run(other).returncode == 2
    warm.run([*other, *([] if is_done else ["--accept-gap"])], check=True)
    (made / "dead-2.jsonl").rename(made / "dead.jsonl")
    assert [letter["reason"] for letter in letters(made)] == ["source_gap"]
    assert counter(made, "ebbtide_source_gaps_total") == 1
    assert_equal(clean, made, [*events("b", MIDDLE), *OTHER])


def test_a_file_that_was_gone_and_comes_back_is_gone_on_with(
    warm: Warm, histories: dict[str, Path], clean: Clean, tmp_path: Path
) -> None:
    shutil.copytree(histories[""], tmp_path, dirs_exist_ok=True)
    folder, made = tmp_path / "in", tmp_path / "made"
    (folder / "b.jsonl").rename(tmp_path / "b.jsonl")
    warm.run(run_of(folder, made, "--accept-gap"), check=True)
    shutil.copy(tmp_path / "b.jsonl", folder)
    warm.run(run_of(folder, made), check=True)
    assert [json.loads(line)["id"] for line in records(made).splitlines()] == [
        *(f"a-{number}" for number in range(20)),
        *(f"b-{number}" for number in range(MIDDLE)),
        *(f"c-{number}" for number in range(20)),
        *(f"b-{number}" for number in range(MIDDLE, 60)),
    ]
    assert lanes(made) == lanes(clean(events("b", 60)))
    assert [letter["reason"] for letter in letters(made)] == ["source_gap"]


def test_what_was_read_to_its_end_may_go_without_a_gap_and_all_that_have_one_are_named(
    warm: Warm, histories: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(histories[""], tmp_path, dirs_exist_ok=True)
    folder, made = tmp_path / "in", tmp_path / "made"
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).write_bytes(b"".join(OTHER))
    done = warm.run(run_of(folder, made))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "'a.jsonl' before" in done.stderr
    assert done.stderr.endswith("(likewise: 'b.jsonl')\n")
    (folder / "a.jsonl").unlink()
    done = warm.run(run_of(folder, made, "--accept-gap"), check=True)
    assert [entry["partition"] for entry in told(done) if entry["event"] == "gap_accepted"] == ["b.jsonl"]
    shutil.rmtree(folder)
    done = warm.run(run_of(folder, made, "--accept-gap"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "expected the folder whose files 'a.jsonl', 'b.jsonl', 'c.jsonl' were read before" in done.stderr


def test_a_gap_is_accepted_on_the_command_line_alone(warm: Warm, histories: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(histories[""], tmp_path, dirs_exist_ok=True)
    folder, made = tmp_path / "in", tmp_path / "made"
    os.truncate(folder / "b.jsonl", 0)
    (tmp_path / "config.yaml").write_text("accept_gap: true\n")
    done = warm.run(run_of(folder, made, "--config", tmp_path / "config.yaml"))
    assert (done.returncode, "accept_gap: there is no such option" in done.stderr) == (2, True)
    done = warm.run(run_of(folder, made), EBBTIDE_ACCEPT_GAP="1")
    assert (done.returncode, "EBBTIDE_ACCEPT_GAP: there is no such option" in done.stderr) == (2, True)
    done = warm.run(["run", "--source", f"file:{folder}", "--backbone", "hashing", "--accept-gap"])
    assert (done.returncode, "--accept-gap: expected a --state" in done.stderr) == (2, True)


# --- bytes that are no lines of text ----------------------------------------------------------------------------------


def glue(*parts: bytes | int) -> Callable[[Path], None]:
    """Write a file of parts; a number is a hole of so many NULs, which takes no room on the disk."""

    def write(path: Path) -> None:
        with path.open("wb") as file:
            for part in parts:
                if isinstance(part, bytes):
                    file.write(part)
                else:
                    file.seek(part, os.SEEK_CUR)

    return write


FIRST, LAST = b"".join(events("b", 5)), b"".join(events("b", 5, first=5))
SOME = b"".join(events("e", 4))
HOSTILE = {
    "UTF-16": (glue(FIRST, SOME.decode().encode("utf-16"), b"\n", LAST), ["bad_utf8", *["not_json"] * 4]),
    "latin-1": (glue(FIRST, SOME.replace(b"tea", b"th\xe9"), LAST), ["bad_utf8"] * 4),
    "files with byte order marks, one behind the other": (
        glue(FIRST, b"\xef\xbb\xbf" + event("e", 1), b"\xef\xbb\xbf" + event("e", 2), LAST),
        ["not_json"] * 2,
    ),
    "NUL bytes where a crash left a hole": (glue(FIRST, 100_000, event("e", 1), LAST), ["too_long"]),
    "one line of 40 MB": (glue(FIRST, b'{"stream": "e", "text": "', 40_000_000, b'"}\n', LAST), ["too_long"]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_bytes_that_are_no_text_are_refused_and_nothing_else_is_affected(
    warm: Warm, clean: Clean, tmp_path: Path, name: str
) -> None:
    write, reasons = HOSTILE[name]
    lay(tmp_path / "in", [])
    write(tmp_path / "in" / "b.jsonl")
    made = tmp_path / "made"
    warm.run(run_of(tmp_path / "in", made, "--max-line-bytes", 4096), check=True)
    assert [letter["reason"] for letter in letters(made)] == reasons
    assert {letter["partition"] for letter in letters(made)} == {"b.jsonl"}
    if "40 MB" in name:
        (letter,) = letters(made)
        assert (letter["length"], letter["truncated"]) == (40_000_000 + 27, True)
        assert 4 * LINE_CAP // 3 <= len(letter["raw"]) < 4 * LINE_CAP // 3 + 4
    assert_equal(clean, made, events("b", 10))


# --- under the eyes of a run ------------------------------------------------------------------------------------------


def wait_for(made: Path, name: str, running: Callable[[], object]) -> None:
    until = time.monotonic() + DEADLINE
    while f'"{name}"'.encode() not in (records(made) if (made / "out.jsonl").exists() else b""):
        assert running() is None, "it ended"
        assert time.monotonic() < until, f"{name} did not come"
        time.sleep(0.02)


def test_files_that_are_rotated_truncated_replaced_and_half_written_while_they_are_followed(
    warm: Warm, tmp_path: Path
) -> None:
    """One partition suffers all of it; what comes of the others, and of its own whole lines, is as without."""
    folder, made = tmp_path / "in", tmp_path / "made"
    lay(folder, events("b", 6))
    b = folder / "b.jsonl"
    line = events("b", 20)

    def add(path: Path, data: bytes) -> None:
        with path.open("ab") as file:
            file.write(data)

    with (tmp_path / "log").open("wb") as log:
        run = warm.start(run_of(folder, made, "--follow"), log)
        try:
            wait_for(made, "b-5", run.poll)
            add(b, line[6][:30])  # in mid-line: it waits for the rest
            add(folder / "a.jsonl", event("a", 20))
            wait_for(made, "a-20", run.poll)
            add(b, line[6][30:])
            wait_for(made, "b-6", run.poll)
            b.rename(folder / "b.jsonl.1")  # rotated; its writer is late
            add(folder / "b.jsonl.1", line[7])
            b.write_bytes(line[8])
            wait_for(made, "b-8", run.poll)
            os.truncate(b, 0)  # truncated, and written again
            add(b, line[9] + line[10] + line[11])
            wait_for(made, "b-11", run.poll)
            (folder / ".new").write_bytes(b"".join(line[12:14]) + line[14][:25])  # replaced; half a line is glued to
            (folder / ".new").rename(b)
            wait_for(made, "b-13", run.poll)
            add(b, b"\n" + line[15])
            wait_for(made, "b-15", run.poll)
            add(folder / "c.jsonl", event("c", 20))
            wait_for(made, "c-20", run.poll)
            run.terminate()
            assert run.wait(DEADLINE) == 0
        finally:
            run.kill()
    said = [json.loads(entry) for entry in (tmp_path / "log").read_text().splitlines() if entry.startswith("{")]
    happened = [entry["event"] for entry in said if entry.get("partition") == "b.jsonl"]
    assert happened == ["source_rotated", "source_truncated", "source_rotated"]
    (letter,) = letters(made)
    assert (letter["partition"], letter["reason"], letter["length"]) == ("b.jsonl", "not_json", 25)

    usual = tmp_path / "usual"
    lay(usual / "in", [each for number, each in enumerate(line[:16]) if number != 14])
    add(usual / "in" / "a.jsonl", event("a", 20))
    add(usual / "in" / "c.jsonl", event("c", 20))
    warm.run(run_of(usual / "in", usual / "made"), check=True)
    assert sorted(records(made).splitlines()) == sorted(records(usual / "made").splitlines())
    assert lanes(made) == lanes(usual / "made")


# --- sources alone ----------------------------------------------------------------------------------------------------


def lines_of(source: Any) -> list[tuple[int, bytes]]:
    """Each line that there is now, with its offset; the source is left open."""
    found = []
    with suppress(EndOfInput):
        while (chunk := source.read(timeout=0)) is not None:
            found += [(chunk.line_start(index), line) for index, line in enumerate(chunk.lines)]
    return found


def place_after(source: Any, count: int) -> dict[str, Position]:
    source.open({})
    chunk = source.read(timeout=1)
    position = chunk.position(count)
    source.close()
    return {chunk.partition: position}


def test_a_log_whose_part_was_deleted_by_retention_goes_on_in_the_next_one(tmp_path: Path) -> None:
    """Not in one that was older."""
    log = tmp_path / "log"
    for age, name in enumerate(("log.9", "log")):
        (tmp_path / name).write_bytes(b"".join(b"%s %d\n" % (name.encode(), number) for number in range(3)))
        os.utime(tmp_path / name, (1_000 + age, 1_000 + age))
    place = place_after(FileSource(log, follow=FollowSettings(interval=0.01, rotate_wait=0)), 2)
    for age, name in enumerate(("log.2", "log.1", "log")):
        (tmp_path / name).write_bytes(b"new %s\n" % name.encode())
        os.utime(tmp_path / name, (2_000 + age, 2_000 + age))
    with pytest.raises(ConfigurationError, match=r"'log' before.*the gap goes from byte 12 to byte 18 or later"):
        FileSource(log, follow=FollowSettings()).open(place)
    source = FileSource(log, follow=FollowSettings(interval=0.01, rotate_wait=0), accept_gap=True)
    source.open(place)
    (gap,) = source.gaps
    assert (gap.start, gap.end, gap.goes_on, gap.known) == (12, 18, "log.2", 0)
    seen: list[tuple[int, bytes]] = []
    until = time.monotonic() + DEADLINE
    while len(seen) < 3 and time.monotonic() < until:
        seen += lines_of(source)
    source.close()
    assert seen == [(12, b"new log.2"), (22, b"new log.1"), (32, b"new log")]


def test_a_followed_log_that_is_gone_is_waited_for(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"one\ntwo\n")
    place = place_after(FileSource(log, follow=FollowSettings()), 1)
    log.unlink()
    source = FileSource(log, follow=FollowSettings(), accept_gap=True)
    source.open(place)
    assert lines_of(source) == []
    log.write_bytes(b"new\n")
    assert lines_of(source) == [(4, b"new")]
    (gap,) = source.gaps
    source.close()
    log.unlink()
    again = FileSource(log, follow=FollowSettings())
    again.open({"log": gap.position})  # asked once
    log.write_bytes(b"new\n")
    assert lines_of(again) == [(4, b"new")]
    again.close()


@pytest.mark.parametrize(
    ("given", "known", "expected"),
    [
        (b"other\n", 0, [b"other"]),
        (b"", 0, []),
        (b"".join(events("b", 3)), sum(map(len, events("b", 3))), []),
        (b"".join(events("b", 28)) + b"more\n", sum(map(len, events("b", 28))), [b"more"]),
        (b"x" + b"".join(events("b", 40)), 0, (b"x" + b"".join(events("b", 40))).splitlines()),
        (b"".join(events("b", 25) + events("d", 20)), sum(map(len, events("b", 28))), None),
    ],
)
@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_standard_input_that_is_another(
    tmp_path: Path, kind: str, given: bytes, known: int, expected: list[bytes] | None
) -> None:
    """What begins like what was read is not read again; the rest is read, whatever was held to find out."""
    (tmp_path / "before").write_bytes(b"".join(events("b", 60)))
    (tmp_path / "now").write_bytes(given)

    def opened(name: str, **options: bool) -> tuple[Any, io.BufferedReader]:
        file = (tmp_path / name).open("rb")
        if kind == "pipe":
            return PipeSource(file.fileno(), **options), file
        return FileSource(tmp_path / name, **options), file

    source, file = opened("before")
    with file:
        (place,) = place_after(source, 28).values()
    partition = "stdin" if kind == "pipe" else "now"
    same = known == place.offset and expected == [b"more"]
    if not same:
        source, file = opened("now")
        with file, pytest.raises(ConfigurationError, match=f"the gap goes from byte {place.offset} to"):
            source.open({partition: place})
    source, file = opened("now", accept_gap=True)
    with file:
        source.open({partition: place})
        found = lines_of(source)
        source.close()
    assert [gap.known for gap in source.gaps] == ([] if same else [known])
    rest = given[known:].splitlines() if expected is None else expected
    assert [line for _, line in found] == rest
    assert [start for start, _ in found][:1] == [place.offset][: len(rest)]
    for gap in source.gaps:
        source, file = opened("now")
        with file:
            source.open({partition: gap.position})
            assert lines_of(source) == found
            source.close()


def test_any_fault_at_any_place_moves_nothing_back_and_is_accepted_once(tmp_path: Path) -> None:
    """Random content, place and fault: what is read behind it is the end of what is there; asked for once."""
    for seed in range(120):
        rng = random.Random(seed)
        packed = rng.random() < 0.4
        path = tmp_path / f"{seed}.jsonl{'.gz' if packed and rng.random() < 0.5 else ''}"

        def write(data: bytes, path: Path = path, packed: bool = packed) -> None:
            path.write_bytes(gzip.compress(data) if packed else data)

        lines = [b"%d %s\n" % (rng.getrandbits(30), b"x" * rng.randrange(200)) for _ in range(rng.randrange(2, 90))]
        content = b"".join(lines)
        write(content)
        count = rng.randrange(1, len(lines) + 1)
        (place,) = place_after(FileSource(path), count).values()
        read = sum(map(len, lines[:count]))
        left = rng.randrange(read)
        new = b"".join(b"new %d\n" % number for number in range(rng.randrange(40)))
        kind = rng.choice(["cut", "other", "gone"])
        path.unlink()
        if kind != "gone":
            write(content[:left] if kind == "cut" else new)
        partition = path.name
        with pytest.raises(ConfigurationError, match=f"the gap goes from byte {read} to"):
            FileSource(path).open({partition: place})
        source = FileSource(path, accept_gap=True)
        source.open({partition: place})
        (gap,) = source.gaps
        found = lines_of(source)
        source.close()
        assert (gap.position.offset, gap.position.lines) == (read, count)
        assert (gap.start, gap.end) == (read, None if packed or count == len(lines) else len(content)), seed
        if kind == "cut" and left >= 64:
            assert (gap.known, found) == (left, []), seed
        elif kind == "other":
            assert (gap.known, [line for _, line in found]) == (0, new.splitlines()), seed
        elif kind == "gone":
            assert (gap.goes_on, found) == (None, []), seed
        assert all(start >= read for start, _ in found)
        again = FileSource(path)
        again.open({partition: gap.position})
        assert (again.gaps, lines_of(again)) == ([], found), seed
        again.close()


def test_a_position_of_the_release_before_is_gone_on_from(tmp_path: Path) -> None:
    """It knows nothing of shorter beginnings: what was cut short within its first bytes is read from its start."""
    path = tmp_path / "b.jsonl"
    path.write_bytes(b"".join(events("b", 5)))
    (place,) = place_after(FileSource(path), 3).values()
    identity = {name: value for name, value in place.identity.items() if name not in NEW}
    assert len(identity) == len(place.identity) - len(NEW)
    place = place.model_copy(update={"identity": identity})
    source = open_source(f"file:{path}", accept_gap=True)
    source.open({"b.jsonl": place})
    assert (source.gaps, len(lines_of(source))) == ([], 2)
    source.close()
    path.write_bytes(event("b", 0))
    source = open_source(f"file:{path}", accept_gap=True)
    source.open({"b.jsonl": place})
    assert lines_of(source) == [(place.offset, event("b", 0)[:-1])]
    source.close()


NEW = ("head_steps", "packed", "mtime_ns", "passed")
"""What positions in files know since then."""


def test_nothing_is_asked_of_a_source_that_begins(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"one\n")
    source = open_source(f"file:{tmp_path / 'in.jsonl'}", accept_gap=True)
    source.open({})
    assert (source.gaps, dict(source.beginnings()), lines_of(source)) == ([], {}, [(0, b"one")])
    source.close()
