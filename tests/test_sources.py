from __future__ import annotations

import gzip
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from zlib import crc32

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from memory.errors import ConfigurationError
from stream.dead_letters import DeadLetter, DeadLetterFile, read_dead_letters
from stream.event import LINE_CAP, Event, EventParser, Reason, Rejection
from stream.sources import (
    CHUNK_BYTES,
    Chunk,
    EndOfInput,
    FileSource,
    FollowSettings,
    PipeSource,
    Position,
    Source,
    StdinSource,
    open_source,
)
from stream.sources.earlier import Earlier
from stream.sources.line_cutter import LineCutter
from stream.sources.siblings import look

# -- the kinds of input -----------------------------------------------------------------------------------------------

Make = Callable[[Path, bytes], Callable[[], Source]]


def plain(folder: Path, content: bytes) -> Callable[[], Source]:
    (folder / "events.jsonl").write_bytes(content)
    return lambda: FileSource(folder / "events.jsonl")


def in_parts(content: bytes) -> list[bytes]:
    """Cut in three, in the middle of lines."""
    third = len(content) // 3
    return [content[:third], content[third : 2 * third], content[2 * third :]]


def gzipped(folder: Path, content: bytes) -> Callable[[], Source]:
    (folder / "events.jsonl.gz").write_bytes(b"".join(map(gzip.compress, in_parts(content))) + b"\0" * 100)
    return lambda: FileSource(folder / "events.jsonl.gz")


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


PACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd}
SKIPPABLE_FRAME = b"\x50\x2a\x4d\x18\x05\0\0\0hello"


def zstandarded(folder: Path, content: bytes) -> Callable[[], Source]:
    (folder / "events.jsonl.zst").write_bytes(SKIPPABLE_FRAME.join(map(zstd, in_parts(content))))
    return lambda: FileSource(folder / "events.jsonl.zst")


def a_folder(folder: Path, content: bytes) -> Callable[[], Source]:
    lines = [line + b"\n" for line in content.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    third = len(lines) // 3
    (folder / "a.jsonl").write_bytes(b"".join(lines[:third]))
    (folder / "b.ndjson.gz").write_bytes(gzip.compress(b"".join(lines[third : 2 * third])))
    (folder / "c.jsonl").write_bytes(b"")
    (folder / "d.jsonl.zst").write_bytes(zstd(b"".join(lines[2 * third :])))
    (folder / "notes.txt").write_bytes(b"not read\n")
    (folder / ".e.jsonl").write_bytes(b"not read\n")
    (folder / "inside.jsonl").mkdir(exist_ok=True)
    return lambda: FileSource(folder)


def given_file(folder: Path, content: bytes) -> Callable[[], Source]:
    path = folder / "events.jsonl"
    path.write_bytes(content)
    return lambda: StdinSource(fd=os.open(path, os.O_RDONLY))


def cat(path: Path) -> Source:
    """A pipe that another process writes the file into."""
    writer = subprocess.Popen(["cat", path], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    fd = os.dup(writer.stdout.fileno())
    writer.stdout.close()
    threading.Thread(target=writer.wait).start()
    return StdinSource(fd=fd)


def given_pipe(folder: Path, content: bytes) -> Callable[[], Source]:
    path = folder / "events.jsonl"
    path.write_bytes(content)
    return lambda: cat(path)


KINDS: list[Make] = [plain, gzipped, zstandarded, a_folder, given_file, given_pipe]

WILD = b"".join(
    [
        b'{"stream":"a","text":"one"}\n',
        b"\n",
        b'{"stream":"a","text":"two"}\r\n',
        b"\xff\xfe\n",
        b"\0\n",
        b" \n",
        b"x" * 5000 + b"\n",
        *(b'{"stream":"b","text":"%d"}\n' % number for number in range(20)),
        b'{"stream":"a","text":"three", "unfinished',
    ]
)


def rest_of(source: Source) -> Iterator[Chunk]:
    """Read an open source to its end."""
    while True:
        try:
            chunk = source.read(timeout=10)
        except EndOfInput:
            return
        if chunk is not None:
            yield chunk


def drain(source: Source, positions: Mapping[str, Position] | None = None) -> list[Chunk]:
    """Open a source, read it to its end and close it."""
    try:
        source.open(positions or {})
        return list(rest_of(source))
    finally:
        source.close()
        if isinstance(source, StdinSource):
            os.close(source.fd)


def flat(chunks: list[Chunk]) -> list[tuple[str, int, int, bytes, int]]:
    """All lines, as (partition, number, start, bytes, end)."""
    return [
        (chunk.partition, chunk.first_line + index, chunk.line_start(index), line, chunk.ends[index])
        for chunk in chunks
        for index, line in enumerate(chunk.lines)
    ]


def cut_to(chunks: list[Chunk], keep: int) -> tuple[list[Chunk], dict[str, Position]]:
    """Return the first `keep` lines of chunks, and the positions behind them, by way of JSON."""
    kept: list[Chunk] = []
    stored: dict[str, Position] = {}
    for chunk in chunks:
        count = min(keep, len(chunk))
        if not count:
            break
        keep -= count
        stored[chunk.partition] = Position.from_json(chunk.position(count).to_json())
        kept.append(replace(chunk, lines=chunk.lines[:count], ends=chunk.ends[:count]))
    return kept, stored


def expected_lines(content: bytes) -> list[bytes]:
    lines = content.split(b"\n")
    return lines if lines[-1] else lines[:-1]


# -- what every kind promises -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", [b"", b"\n", b"one", b"one\n", b"\n\n\n", b"one\n\ntwo", WILD])
def test_every_line_is_given_once_with_its_place(tmp_path: Path, kind: Make, content: bytes) -> None:
    lines = flat(drain(kind(tmp_path, content)()))
    assert [line for _, _, _, line, _ in lines] == expected_lines(content)
    for partition in {line[0] for line in lines}:
        own = [line[1:] for line in lines if line[0] == partition]
        assert [number for number, _, _, _ in own] == list(range(1, len(own) + 1))
        assert own[0][1] == 0
        for (_, _, _, end), (_, start, _, _) in pairwise(own):
            assert start == end
        for _, start, line, end in own:
            assert end - start in (len(line), len(line) + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_aborting_after_any_line_and_resuming_equals_an_uninterrupted_run(tmp_path: Path, kind: Make) -> None:
    make = kind(tmp_path, WILD)
    whole = drain(make())
    lines = flat(whole)
    assert len(lines) == 28
    for done in range(1, len(lines) + 1):
        assert flat(drain(make(), cut_to(whole, done)[1])) == lines[done:], f"after line {done}"


@pytest.mark.parametrize("kind", KINDS)
def test_resuming_in_much_input_equals_an_uninterrupted_run(tmp_path: Path, kind: Make) -> None:
    """As above with input of several chunks, at a few lines, and going on from each place to the next."""
    rng = random.Random(3)
    content = b"".join(b"%d %s\n" % (number, b"x" * rng.randrange(300)) for number in range(8_000))
    make = kind(tmp_path, content)
    whole = drain(make())
    assert len(whole) >= 3
    lines = flat(whole)
    for done in sorted(rng.sample(range(1, len(lines)), 5)):
        stored = cut_to(whole, done)[1]
        resumed = drain(make(), stored)
        assert flat(resumed) == lines[done:]
        again = {**stored, resumed[0].partition: resumed[0].position(1)}
        assert flat(drain(make(), again)) == lines[done + 1 :]


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_a_file_is_not_finished_while_some_of_it_is_unpacked_and_not_given_out(tmp_path: Path, packing: str) -> None:
    """All of it is taken in at once, and gives two chunks, which end where lines do; the first is not the end."""
    path = tmp_path / f"events.jsonl{packing}"
    path.write_bytes(PACK[packing]((b"x" * 63 + b"\n") * 5_000))
    whole = drain(FileSource(path))
    assert whole[0].ends[-1] == CHUNK_BYTES
    for index, chunk in enumerate(whole):
        stored = {chunk.partition: chunk.position(len(chunk))}
        assert flat(drain(FileSource(path), stored)) == flat(whole[index + 1 :])


@pytest.mark.parametrize("kind", [plain, gzipped, zstandarded, a_folder, given_file])
def test_chunks_and_positions_are_unaffected_by_what_is_appended_later(tmp_path: Path, kind: Make) -> None:
    make = kind(tmp_path, WILD[: WILD.rindex(b"\n") + 1])
    before = flat(drain(make()))
    source = make()
    source.open({})
    first = source.read(10)
    assert first is not None
    position = first.position(len(first)).to_json()
    copy = (list(first.lines), list(first.ends))
    for path in tmp_path.glob("*.*"):
        if path.is_file():
            more = PACK.get(path.suffix, bytes)(b"later\n")
            with path.open("ab") as file:
                file.write(more)
    chunks = [first, *rest_of(source)]
    if kind is not a_folder:  # the others in the folder were not yet begun
        assert flat(chunks) == before
    assert (first.lines, first.ends) == copy
    assert first.position(len(first)).to_json() == position
    source.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_source_ends(tmp_path: Path, kind: Make) -> None:
    source = kind(tmp_path, WILD)()
    source.open({})
    source.close()
    source.close()
    with pytest.raises(EndOfInput):
        source.read(10)


@pytest.mark.parametrize("kind", [plain, gzipped, zstandarded, a_folder, given_file])
def test_the_backlog_goes_from_all_to_nothing(tmp_path: Path, kind: Make) -> None:
    source = kind(tmp_path, WILD)()
    source.open({})
    total = source.total_bytes
    assert total
    assert source.backlog() == total
    seen = [total, *(source.backlog() or 0 for _ in rest_of(source))]
    assert seen == sorted(seen, reverse=True)
    assert source.backlog() == 0
    source.close()
    assert source.backlog() == 0
    begun = kind(tmp_path, LINES * 3)()
    begun.open({})
    begun.read(10)
    left = begun.backlog()
    assert left
    begun.close()
    assert begun.backlog() == left


def test_positions_in_a_chunk_are_bounded(tmp_path: Path) -> None:
    (chunk,) = drain(plain(tmp_path, b"one\ntwo\n")())
    for count in (0, 3):
        with pytest.raises(ValueError, match="expected 1 to 2"):
            chunk.position(count)


# -- lines through source, parser and dead letters --------------------------------------------------------------------


def mangled(rng: random.Random, count: int) -> bytes:
    """Good lines, of which some were cut, flipped, emptied, doubled or joined."""
    parts = []
    for number in range(count):
        line = bytearray(b'{"stream":"s%d","text":"n %d \xc3\xa9","ts":%d.5}' % (number % 7, number, number))
        match rng.randrange(8):
            case 0:
                line[rng.randrange(len(line))] = rng.randrange(256)
            case 1:
                del line[rng.randrange(len(line)) :]
            case 2:
                at = rng.randrange(len(line))
                line[at:at] = rng.randbytes(rng.randrange(5))
            case 3:
                line += rng.choice([b"\r", b"\n", b"\0", bytes(line), b"[" * 3000])
        parts.append(bytes(line) + b"\n" * (rng.randrange(50) > 0))
    return b"".join(parts)


def consume(chunks: list[Chunk], letters: DeadLetterFile) -> list[Event]:
    """Do with chunks what the consumer does."""
    parser, events = EventParser(strict=True), []
    for chunk in chunks:
        for index, line in enumerate(chunk.lines):
            found = chunk.faults.get(index) or parser.parse(line)
            if isinstance(found, Rejection):
                place = (chunk.partition, chunk.line_start(index), chunk.first_line + index)
                letters.write([DeadLetter(*place, found.reason, found.detail, line, chunk.length(index))])
            else:
                events.append(found)
    return events


@pytest.mark.parametrize("kind", KINDS)
def test_each_line_is_an_event_or_a_dead_letter_with_its_bytes(tmp_path: Path, kind: Make) -> None:
    content = mangled(random.Random(11), 4_000)
    (tmp_path / "in").mkdir()
    chunks = drain(kind(tmp_path / "in", content)())
    letters = DeadLetterFile(tmp_path / "dead.jsonl")
    letters.open(None)
    events = consume(chunks, letters)
    letters.flush()
    letters.close()
    dead = list(read_dead_letters(tmp_path / "dead.jsonl"))
    lines = expected_lines(content)
    assert len(events) + len(dead) == len(lines)
    assert len(events) > 1_000
    assert len(dead) > 500
    bad = [line for line in lines if isinstance(EventParser(strict=True).parse(line), Rejection)]
    assert [letter.raw for letter in dead] == bad
    where = {(partition, start): line for partition, _, start, line, _ in flat(chunks)}
    assert all(where[letter.partition, letter.offset] == letter.raw for letter in dead)


@settings(max_examples=200, deadline=None)
@given(
    content=st.lists(st.sampled_from([b"", b"a", b"bc", b"\r", b"\0", b"x" * 30])).map(b"\n".join),
    cuts=st.lists(st.integers(0, 200)),
    cap=st.integers(1, 12),
)
def test_lines_do_not_depend_on_how_the_blocks_fall(content: bytes, cuts: list[int], cap: int) -> None:
    cutter = LineCutter(cap=cap)
    lines: list[bytes] = []
    ends: list[int] = []
    lengths: list[int] = []
    edges = sorted({0, len(content), *(cut for cut in cuts if cut < len(content))})
    parts = [cutter.feed(content[a:b]) for a, b in pairwise(edges)]
    for cut in [*parts, cutter.flush()]:
        if cut is not None:
            assert cut.first_line == len(lines) + 1
            lengths += [cut.truncated.get(index, len(line)) for index, line in enumerate(cut.lines)]
            lines += cut.lines
            ends += cut.ends
    whole = expected_lines(content)
    assert lines == [line[:cap] for line in whole]
    assert lengths == list(map(len, whole))
    assert ends == [sum(lengths[: n + 1]) + min(n + 1, content.count(b"\n")) for n in range(len(whole))]


def test_a_newline_that_is_owed_ends_the_line_before() -> None:
    cutter = LineCutter(offset=3, lines=1, owed=True)
    cut = cutter.feed(b"\ntwo\n")
    assert cut is not None
    assert (cut.start, cut.lines, cut.first_line) == (4, [b"two"], 2)
    cut = LineCutter(offset=3, lines=1, owed=True).feed(b"fold\n")
    assert cut is not None
    assert (cut.start, cut.lines, cut.first_line) == (3, [b"fold"], 2)


# -- long lines -------------------------------------------------------------------------------------------------------


def long_line_file(folder: Path, length: int) -> Path:
    path = folder / "long.jsonl"
    with path.open("wb") as file:
        file.write(b"before\n")
        for _ in range(length // CHUNK_BYTES):
            file.write(b"y" * CHUNK_BYTES)
        file.write(b"y" * (length % CHUNK_BYTES) + b"\nafter\n")
    return path


@pytest.mark.parametrize("form", ["plain", "gz", "pipe"])
def test_a_line_beyond_the_cap_is_cut_and_told(tmp_path: Path, form: str) -> None:
    length = 2 * LINE_CAP + 12_345
    path = long_line_file(tmp_path, length)

    def make() -> Source:
        return cat(path) if form == "pipe" else FileSource(path)

    if form == "gz":
        packed = tmp_path / "long.jsonl.gz"
        with path.open("rb") as file, gzip.open(packed, "wb", compresslevel=1) as out:
            shutil.copyfileobj(file, out)
        path = packed
    whole = drain(make())
    (chunk,) = (chunk for chunk in whole if chunk.truncated)
    (index,) = chunk.truncated
    assert chunk.truncated[index] == chunk.length(index) == length
    assert chunk.lines[index] == b"y" * LINE_CAP
    assert chunk.is_terminated(index)
    assert EventParser(max_line_bytes=LINE_CAP - 1).parse(chunk.lines[index]).reason is Reason.TOO_LONG  # type: ignore[union-attr]
    lines = flat(whole)
    assert [(line[1], line[2], line[4]) for line in lines] == [
        (1, 0, 7),
        (2, 7, 7 + length + 1),
        (3, 8 + length, 8 + length + 6),
    ]
    for done in range(1, len(lines) + 1):
        assert flat(drain(make(), cut_to(whole, done)[1])) == lines[done:]


@pytest.mark.parametrize("form", ["gz", "zst"])
def test_a_small_file_that_unpacks_to_much_is_read_in_little_memory(tmp_path: Path, form: str) -> None:
    """One line of 128 MiB, in a process of its own."""
    path = tmp_path / f"bomb.jsonl.{form}"
    if form == "gz":
        megabyte = gzip.compress(b"z" * 2**20, 9)
        path.write_bytes(megabyte * 128 + gzip.compress(b"\nafter\n"))
    else:
        packer = zstandard.ZstdCompressor().compressobj()
        with path.open("wb") as file:
            for _ in range(128):
                file.write(packer.compress(b"z" * 2**20))
            file.write(packer.compress(b"\nafter\n") + packer.flush())
    code = (
        "import resource, sys\n"
        "from stream.sources import EndOfInput, FileSource\n"
        "source = FileSource(sys.argv[1])\n"
        "source.open({})\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "chunk = source.read(60)\n"
        "print([len(line) for line in chunk.lines], chunk.truncated)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 80_000)\n"
    )
    out = run_python(code, str(path))
    assert out.stdout == f"[{LINE_CAP}, 5] {{0: {128 * 2**20}}}\nTrue\n", out.stderr


def run_python(code: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    root = Path(__file__).parents[1]
    return subprocess.run(command, capture_output=True, text=True, cwd=root, check=False, **options)  # type: ignore[call-overload, no-any-return]


# -- content that is not what it was ----------------------------------------------------------------------------------


def position_after(source: Source, count: int) -> dict[str, Position]:
    source.open({})
    chunk = source.read(10)
    assert chunk is not None
    source.close()
    return {chunk.partition: chunk.position(count)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"one\ntw", "it has 6 bytes, fewer than the 8 that were read"),
        (b"eins\nzwei\ndrei\n", "its first 8 bytes are others"),
        (b"", "fewer than the 8"),
    ],
)
@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_other_content_is_refused(tmp_path: Path, content: bytes, message: str, packing: str) -> None:
    pack = PACK[packing]
    path = tmp_path / f"events.jsonl{packing}"
    path.write_bytes(pack(b"one\ntwo\nthree\n"))
    positions = position_after(FileSource(path), 2)
    path.write_bytes(pack(content))
    with pytest.raises(ConfigurationError, match=message) as error:
        FileSource(path).open(positions)
    assert "\n" not in str(error.value)


def test_a_file_of_the_same_size_and_place_may_still_be_another(tmp_path: Path) -> None:
    """Read to its end, then overwritten in place: plain, and compressed to as many bytes."""
    for name, pack in (("a.jsonl", bytes), ("a.jsonl.gz", lambda data: gzip.compress(data, 0, mtime=0))):
        path = tmp_path / name
        path.write_bytes(pack(b"one\ntwo\n"))
        positions = position_after(FileSource(path), 2)
        assert drain(FileSource(path), positions) == []
        path.write_bytes(pack(b"one\nTWO\n"))
        with pytest.raises(ConfigurationError, match="are others"):
            FileSource(path).open(positions)


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_a_change_far_behind_the_head_is_refused(tmp_path: Path, packing: str) -> None:
    """The same first 4096 bytes and the same length: only the last line read differs."""
    pack = PACK[packing]
    path = tmp_path / f"events.jsonl{packing}"
    path.write_bytes(pack(b"x" * 9_000 + b"\n" + b"last\nmore\n"))
    positions = position_after(FileSource(path), 2)
    path.write_bytes(pack(b"x" * 9_000 + b"\n" + b"LAST\nmore\n"))
    with pytest.raises(ConfigurationError, match="the 5 bytes before byte 9006 are others"):
        FileSource(path).open(positions)
    path.write_bytes(pack(b"x" * 9_000 + b"\n"))
    with pytest.raises(ConfigurationError, match="it has 9001 bytes, fewer than the 9006 that were read"):
        FileSource(path).open(positions)


def test_a_copy_elsewhere_is_the_same_content(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"one\ntwo\n")
    positions = position_after(FileSource(path), 1)
    (tmp_path / "moved").mkdir()
    shutil.copy(path, tmp_path / "moved" / "events.jsonl")
    assert [line[3] for line in flat(drain(FileSource(tmp_path / "moved" / "events.jsonl"), positions))] == [b"two"]


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_a_file_compressed_meanwhile_is_the_same_content(tmp_path: Path, packing: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"one\ntwo\n")
    positions = position_after(FileSource(tmp_path), 1)
    (tmp_path / f"events.jsonl{packing}").write_bytes(PACK[packing](path.read_bytes()))
    path.unlink()
    rest = flat(drain(FileSource(tmp_path), positions))
    assert [(line[0], line[3]) for line in rest] == [("events.jsonl", b"two")]


def test_a_line_taken_without_its_newline_may_get_it_later(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"one\ntwo")
    chunk = drain(FileSource(path))[-1]
    positions = {chunk.partition: chunk.position(1)}
    assert drain(FileSource(path), positions) == []
    path.write_bytes(b"one\ntwo\nthree\n")
    (chunk,) = drain(FileSource(path), positions)
    assert (chunk.start, chunk.lines, chunk.first_line) == (8, [b"three"], 3)
    path.write_bytes(b"one\ntwofold\nthree\n")
    with capture_logs() as logs:
        (chunk,) = drain(FileSource(path), positions)
    assert (chunk.start, chunk.lines, chunk.first_line) == (7, [b"fold", b"three"], 3)
    assert [entry["event"] for entry in logs] == ["source_line_continued"]


def test_a_folder_without_a_file_that_was_not_finished_is_refused(tmp_path: Path) -> None:
    make = a_folder(tmp_path, b"one\ntwo\nthree\nfour\nfive\nsix\n")
    whole = drain(make())
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(ConfigurationError, match=r"a\.jsonl.*no such file"):
        make().open(cut_to(whole, 1)[1])
    rest = drain(make(), cut_to(whole, 2)[1])  # a.jsonl was finished there
    assert [line[3] for line in flat(rest)] == [b"three", b"four", b"five", b"six"]


def test_positions_of_another_source_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"one\n")
    (tmp_path / "b.jsonl").write_bytes(b"one\n")
    positions = position_after(FileSource(tmp_path / "a.jsonl"), 1)
    with pytest.raises(ConfigurationError, match=r"expected a stored position of 'b\.jsonl', got one of 'a\.jsonl'"):
        FileSource(tmp_path / "b.jsonl").open(positions)
    strange = {"a.jsonl": Position(offset=1, lines=1, identity={"kind": "pipe"})}
    with pytest.raises(ConfigurationError, match="got one of kind 'pipe'"):
        FileSource(tmp_path / "a.jsonl").open(strange)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("file:event.jsonl", r"got nothing \(did you mean .*events.jsonl\?\)"),
        ("file:no/events.jsonl", "no is no folder"),
        ("file:empty", "expected files ending in .jsonl, .*got none"),
        ("file:pipe", "expected a regular file"),
        ("file:", "expected a path"),
        ("events.jsonl", r"did you mean file:events.jsonl\?"),
        ("fil:events.jsonl", r"did you mean file:\?"),
        ("kafka:topic", "expected a source 'file:…' or 'stdin:…', got 'kafka:topic'"),
        ("stdin", r"did you mean stdin:\?"),
        ("-", r"did you mean stdin:\?"),
        ("stdin:events.jsonl", "did you mean file:events.jsonl"),
        ("", "expected a source"),
    ],
)
def test_what_cannot_be_read_is_told_on_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("events.jsonl").write_bytes(b"one\n")
    Path("empty").mkdir()
    os.mkfifo("pipe")
    with pytest.raises(ConfigurationError, match=message) as error:
        open_source(spec).open({})
    assert "\n" not in str(error.value)


def test_a_file_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"one\n")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(ConfigurationError, match="Permission denied"):
        FileSource(path).open({})


# -- damaged compression ----------------------------------------------------------------------------------------------

LINES = b"".join(
    b'{"stream":"s","text":"%d %s"}\n' % (n, random.Random(n).randbytes(9).hex().encode()) for n in range(9_000)
)


@pytest.mark.parametrize("damage", ["cut", "flipped", "not compressed", "garbage behind"])
@pytest.mark.parametrize("packing", ["gz", "zst"])
def test_a_damaged_file_is_read_up_to_there_and_the_next_goes_on(tmp_path: Path, packing: str, damage: str) -> None:
    pack = PACK[f".{packing}"]
    packed = bytearray(pack(LINES[:1000]) + pack(LINES[1000:]))
    if damage == "cut":
        del packed[len(packed) * 2 // 3 :]
    elif damage == "flipped":
        packed[len(packed) * 2 // 3] ^= 0x55
    elif damage == "not compressed":
        packed[:] = LINES
    else:
        packed += b"garbage"
    (tmp_path / f"a.jsonl.{packing}").write_bytes(packed)
    (tmp_path / "b.jsonl").write_bytes(b"next\n")
    with capture_logs() as logs:
        whole = drain(FileSource(tmp_path))
    assert [entry["event"] for entry in logs] == ["source_corrupt"]
    lines = flat(whole)
    assert lines[-1][3] == b"next"
    faults = [(chunk, index) for chunk in whole for index in chunk.faults]
    ((chunk, index),) = faults
    assert chunk.faults[index].reason is Reason.CORRUPT_COMPRESSION
    good = [line for partition, _, _, line, _ in lines if partition != "b.jsonl"]
    fragment = good.pop()
    if damage == "flipped":
        right = [line for line, true in zip(good, LINES.split(b"\n"), strict=False) if line == true]
        assert len(right) > 4_000  # the flip itself goes unseen until the checksum at the end
    else:
        read = b"".join(line + b"\n" for line in good) + fragment
        assert LINES.startswith(read)
        least = {"not compressed": 0, "garbage behind": len(LINES)}.get(
            damage, 131_072 if packing == "zst" else 150_000
        )
        assert len(read) >= least
    for done in {1, len(good) // 2, len(good), len(good) + 1, len(good) + 2} - {0}:
        assert flat(drain(FileSource(tmp_path), cut_to(whole, done)[1])) == lines[done:], done


def test_a_damaged_file_that_was_mended_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(LINES)[:5000])
    last = drain(FileSource(path))[-1]
    assert last.faults
    path.write_bytes(gzip.compress(LINES))
    with pytest.raises(ConfigurationError, match="damaged where it was left"):
        FileSource(path).open({last.partition: last.position(len(last))})


# -- standard input ---------------------------------------------------------------------------------------------------


class Pipe:
    """Standard input, with its other end in our hand."""

    def __init__(self, **options: bool) -> None:
        self.out, self.into = os.pipe()
        self.source = StdinSource(fd=self.out, **options)

    def __enter__(self) -> Pipe:
        return self

    def __exit__(self, *_: object) -> None:
        self.source.close()
        os.close(self.out)
        if self.into >= 0:
            os.close(self.into)

    def write(self, data: bytes) -> None:
        os.write(self.into, data)

    def end(self) -> None:
        os.close(self.into)
        self.into = -1


def test_a_pipe_gives_lines_as_they_come() -> None:
    with Pipe() as pipe:
        pipe.source.open({})
        assert pipe.source.read(0) is None
        pipe.write(b"one\ntw")
        assert pipe.source.read(10).lines == [b"one"]  # type: ignore[union-attr]
        assert pipe.source.read(0) is None
        pipe.write(b"o\nthree")
        assert pipe.source.read(10).lines == [b"two"]  # type: ignore[union-attr]
        pipe.end()
        chunk = pipe.source.read(10)
        assert chunk is not None
        assert (chunk.start, chunk.lines, chunk.ends, chunk.first_line) == (8, [b"three"], [13], 3)
        assert pipe.source.backlog() is None
        with pytest.raises(EndOfInput):
            pipe.source.read(10)


def piped(data: bytes, positions: Mapping[str, Position] | None = None, **options: bool) -> list[Chunk]:
    with Pipe(**options) as pipe:
        pipe.write(data)
        pipe.end()
        pipe.source.open(positions or {})
        return list(rest_of(pipe.source))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"one\nTWO\nthree\n", "other content in its first 8 bytes"),
        (b"one\n", "8 bytes of which were read before, got only 4"),
    ],
)
def test_a_pipe_with_other_content_is_refused(data: bytes, message: str) -> None:
    (chunk,) = piped(b"one\ntwo\nthree\n")
    with pytest.raises(ConfigurationError, match=f"{message}.*--stdin-continues"):
        piped(data, {"stdin": chunk.position(2)})


def test_a_pipe_that_continues_passes_over_nothing() -> None:
    """The offset goes on counting; started again without the option, the continuing input is given again."""
    (chunk,) = piped(b"one\ntwo\n")
    (more,) = piped(b"three\nfour\n", {"stdin": chunk.position(2)}, continues=True)
    assert (more.start, more.lines, more.first_line) == (8, [b"three", b"four"], 3)
    (rest,) = piped(b"three\nfour\n", {"stdin": more.position(1)})
    assert (rest.start, rest.lines, rest.first_line) == (14, [b"four"], 4)


def test_a_line_of_a_pipe_may_get_its_newline_later() -> None:
    _, chunk = piped(b"one\ntwo")
    positions = {"stdin": chunk.position(1)}
    assert [line[3] for line in flat(piped(b"one\ntwo\nthree\n", positions))] == [b"three"]
    (later,) = piped(b"one\ntwo\nthree\nfour\n", positions)
    assert [line[3] for line in flat(piped(b"one\ntwo\nthree\nfour\n", {"stdin": later.position(1)}))] == [b"four"]
    with capture_logs() as logs:
        (continued,) = piped(b"one\ntwofold\nthree\n", positions)
    assert (continued.start, continued.lines) == (7, [b"fold", b"three"])
    assert [entry["event"] for entry in logs] == ["source_line_continued"]
    (rest,) = piped(b"one\ntwofold\nthree\n", {"stdin": continued.position(1)})
    assert rest.lines == [b"three"]


def test_a_file_position_is_of_no_use_to_a_pipe_but_a_pipe_position_is_to_a_file(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"one\ntwo\n")
    from_file = drain(StdinSource(fd=os.open(path, os.O_RDONLY)))[0]
    with pytest.raises(ConfigurationError, match="got one of kind 'file'"):
        piped(b"one\ntwo\n", {"stdin": from_file.position(1)})
    (from_pipe,) = piped(b"one\ntwo\n")
    (rest,) = drain(StdinSource(fd=os.open(path, os.O_RDONLY)), {"stdin": from_pipe.position(1)})
    assert rest.lines == [b"two"]


def test_a_file_that_somebody_began_to_read_goes_on_from_there(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"header\none\ntwo\n")

    def given_rest() -> StdinSource:
        fd = os.open(path, os.O_RDONLY)
        os.read(fd, 7)
        return StdinSource(fd=fd)

    (chunk,) = drain(given_rest())
    assert chunk.lines == [b"one", b"two"]
    (rest,) = drain(given_rest(), {"stdin": chunk.position(1)})
    assert rest.lines == [b"two"]


def test_the_device_that_has_nothing_has_nothing() -> None:
    assert drain(StdinSource(fd=os.open(os.devnull, os.O_RDONLY))) == []


def test_standard_input_of_a_real_process_may_be_a_file_or_a_pipe_or_closed(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"one\ntwo\n")
    code = (
        "from stream.sources import EndOfInput, open_source\n"
        "from memory.errors import ConfigurationError\n"
        "source = open_source('stdin:')\n"
        "try:\n"
        "    source.open({})\n"
        "    print(source.total_bytes)\n"
        "    while True: print(source.read(10).lines)\n"
        "except (EndOfInput, ConfigurationError) as error: print(repr(error))\n"
    )
    with path.open("rb") as file:
        assert run_python(code, stdin=file).stdout == "8\n[b'one', b'two']\nEndOfInput()\n"
    assert run_python(code, input="one\n").stdout == "None\n[b'one']\nEndOfInput()\n"
    closed = run_python(f"import os, sys\nos.close(0)\n{code}").stdout
    assert "expected an open descriptor 0" in closed
    with pytest.raises(ConfigurationError, match="use file:PATH with --follow"), path.open("rb") as file:
        StdinSource(fd=file.fileno(), follow=True).open({})


# -- closing while another thread reads -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "folder", "pipe", "resuming pipe"])
def test_closing_interrupts_whoever_waits(tmp_path: Path, kind: str) -> None:
    """The reader would wait for an hour."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"one\n")
    follow = FollowSettings(interval=3600)
    out, into = os.pipe()
    os.write(into, b"one\n")
    sources: dict[str, Source] = {
        "file": FileSource(path, follow=follow),
        "folder": FileSource(tmp_path, follow=follow),
        "pipe": PipeSource(out),
        "resuming pipe": PipeSource(out),
    }
    source = sources[kind]
    positions = {}
    if kind == "resuming pipe":
        positions["stdin"] = Position(offset=100, lines=1, identity={"kind": "pipe", "base": 0, "crc": 0})
    got: list[object] = []
    began = threading.Event()

    def reader() -> None:
        try:
            if kind == "resuming pipe":
                began.set()
            source.open(positions)
            got.append(source.read(3600))
            began.set()
            got.append(source.read(3600))
        except EndOfInput:
            got.append("end")

    thread = threading.Thread(target=reader, daemon=True)
    thread.start()
    assert began.wait(60)
    source.close()
    thread.join(60)
    assert not thread.is_alive()
    assert got[-1] == "end"
    os.close(out)
    os.close(into)


# -- following ---------------------------------------------------------------------------------------------------------


class Follower:
    """Follows a path, takes what is there when told to, and can be killed and started again."""

    def __init__(self, path: Path):
        self.path = path
        self.now = 0.0
        self.stored: dict[str, Position] = {}
        self.chunks: list[Chunk] = []
        self.source: FileSource | None = None
        self.start()

    def start(self) -> None:
        self.source = FileSource(self.path, follow=FollowSettings(), clock=lambda: self.now)
        self.source.open(self.stored)

    def kill(self, keep: int | None = None) -> None:
        """Stop; of the lines that were taken only the first `keep` were stored."""
        assert self.source is not None
        self.source.close()
        if keep is not None:
            self.chunks, self.stored = cut_to(self.chunks, keep)

    def take(self, seconds: float = 100) -> list[bytes]:
        """Return the lines that come, after having let time pass."""
        assert self.source is not None
        new = []
        for step in (0, seconds):  # once to see how things are, once more when they have been so for long
            self.now += step
            while (chunk := self.source.read(0)) is not None:
                new.append(chunk)
                self.chunks.append(chunk)
                self.stored[chunk.partition] = Position.from_json(chunk.position(len(chunk)).to_json())
        return [line for chunk in new for line in chunk.lines]

    @property
    def lines(self) -> list[bytes]:
        return [line for chunk in self.chunks for line in chunk.lines]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.write_bytes(b"one\n")
    return path


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def test_a_growing_file_is_followed_and_half_a_line_is_waited_for(log: Path) -> None:
    follower = Follower(log)
    assert follower.take() == [b"one"]
    assert follower.take() == []
    append(log, b"tw")
    assert follower.take() == []
    assert follower.source is not None
    assert follower.source.backlog() == 0
    append(log, b"o\nthr")
    assert follower.take() == [b"two"]
    follower.kill()
    follower.start()
    assert follower.take() == []
    append(log, b"ee\n")
    assert follower.source.backlog() == 3
    assert follower.take() == [b"three"]
    assert follower.source.total_bytes is None
    assert [(chunk.start, chunk.first_line) for chunk in follower.chunks] == [(0, 1), (4, 2), (8, 3)]


def test_a_renamed_log_is_finished_before_the_new_one_is_begun(log: Path) -> None:
    follower = Follower(log)
    follower.take()
    append(log, b"two\n")
    log.rename(log.with_name("log.1"))
    assert follower.take() == [b"two"]
    append(log.with_name("log.1"), b"three\nfo")  # the writer has not noticed yet
    assert follower.take() == [b"three"]
    log.write_bytes(b"")
    append(log.with_name("log.1"), b"ur\n")
    assert follower.take() == [b"four"]
    append(log, b"five\n")
    append(log.with_name("log.1"), b"last")  # and never gets its newline
    with capture_logs() as logs:
        assert follower.take() == [b"last", b"five"]
    assert [(entry["event"], entry["finished"], entry["begun"]) for entry in logs] == [("source_rotated", "log", "log")]
    assert follower.source is not None
    assert follower.source.counts == {"source_rotated": 1}
    assert [chunk.start for chunk in follower.chunks] == [0, 4, 8, 14, 19, 23]


def test_a_newline_at_the_head_of_the_new_log_is_not_that_of_the_old_ones_last_line(log: Path) -> None:
    append(log, b"two")
    follower = Follower(log)
    follower.take()
    log.rename(log.with_name("log.1"))
    log.write_bytes(b"\nfour\n")
    follower.take()
    assert follower.lines == [b"one", b"two", b"", b"four"]
    follower.kill(keep=2)
    follower.start()
    assert follower.take() == [b"", b"four"]


def test_parts_that_begin_alike_are_told_apart(log: Path) -> None:
    """Each begins with the same line, some hold no other, and places on the disk pass from one to the next."""
    log.write_bytes(b"start\n")
    follower = Follower(log)
    assert follower.take() == [b"start"]
    for day in range(1, 9):
        part = log.with_name(f"log-2024010{day}")
        log.rename(part)
        log.write_bytes(b"start\n" + b"line\n" * (day % 3))
        assert follower.take() == [b"start", *[b"line"] * (day % 3)]
        part.with_name(part.name + ".gz").write_bytes(gzip.compress(part.read_bytes()))
        part.unlink()
        assert follower.take() == []


def test_a_log_that_is_still_written_to_is_not_left(log: Path) -> None:
    follower = Follower(log)
    follower.take()
    log.rename(log.with_name("log.1"))
    log.write_bytes(b"new\n")
    assert follower.take(seconds=0.9) == []
    append(log.with_name("log.1"), b"late\n")
    assert follower.take(seconds=0.9) == [b"late"]
    assert follower.take(seconds=0.2) == [b"new"]


@pytest.mark.parametrize("pack", [None, gzip.compress, zstd])
@pytest.mark.parametrize("dated", [False, True])
@pytest.mark.parametrize("down", [False, True])
def test_several_rotations_go_by_unseen(
    log: Path, dated: bool, down: bool, pack: Callable[[bytes], bytes] | None
) -> None:
    """While we were down, or merely slow: the parts are read in order, also when they were compressed meanwhile."""
    follower = Follower(log)
    assert follower.take() == [b"one"]
    if down:
        follower.kill()
    append(log, b"two\n")
    contents = [b"one\ntwo\n", b"three\n", b"", b"four\nfive", b"six\n"]
    for age, content in enumerate(contents[:-1]):
        part = log.with_name(f"log-2024010{age}" if dated else f"log.{len(contents) - 1 - age}")
        if age:
            part.write_bytes(content)
        else:
            log.rename(part)
        if pack is not None and age < 3:
            ending = ".gz" if pack is gzip.compress else ".zst"
            part.with_name(part.name + ending).write_bytes(pack(content))
            if age != 1:  # that one is still being compressed
                part.unlink()
    log.write_bytes(contents[-1])
    if down:
        follower.start()
    assert follower.take() == [b"two", b"three", b"four", b"five", b"six"]
    follower.kill(keep=3)
    follower.start()
    assert follower.take() == [b"four", b"five", b"six"]
    assert follower.lines == [b"one", b"two", b"three", b"four", b"five", b"six"]


def test_a_part_that_is_deleted_while_it_is_read_is_followed_by_those_written_later(log: Path) -> None:
    old = log.with_name("log.4")
    old.write_bytes(b"read by another run\n")
    os.utime(old, (1_000, 1_000))
    os.utime(log, (2_000, 2_000))
    follower = Follower(log)
    assert follower.take() == [b"one"]
    log.unlink()
    for number in (2, 1):
        part = log.with_name(f"log.{number}")
        part.write_bytes(b"part %d\n" % number)
        os.utime(part, (3_000, 3_000))
    log.write_bytes(b"new\n")
    assert follower.take() == [b"part 2", b"part 1", b"new"]


def test_a_log_of_which_nothing_is_left_is_refused(log: Path) -> None:
    follower = Follower(log)
    follower.take()
    follower.kill()
    log.rename(log.parent / "elsewhere")
    (log.parent / "elsewhere").write_bytes(b"quite\nother\n")
    with pytest.raises(ConfigurationError, match="no such file"):
        follower.start()
    log.write_bytes(b"other\n")
    with pytest.raises(ConfigurationError, match="its first 4 bytes are others"):
        follower.start()


@pytest.mark.parametrize("copied", [False, True])
def test_an_emptied_log_is_begun_again(log: Path, copied: bool) -> None:
    """With a copy made first (copytruncate) nothing is lost even of what had not been read."""
    follower = Follower(log)
    assert follower.take() == [b"one"]
    append(log, b"two\nhalf a li")
    if not copied:
        assert follower.take() == [b"two"]
    else:
        shutil.copy(log, log.with_name("log.1"))
    os.truncate(log, 0)
    append(log, b"new\n")
    with capture_logs() as logs:
        assert follower.take() == [*([b"two"] if copied else []), b"half a li", b"new"]
    assert logs[0]["event"] == "source_truncated"
    assert logs[0]["goes_on_in"] == ("log.1" if copied else "log")
    assert follower.source is not None
    assert follower.source.counts["source_truncated"] == 1
    append(log, b"more\n")
    follower.kill(keep=len(follower.lines) - 1)
    follower.start()
    assert follower.take() == [b"new", b"more"]


def test_a_log_emptied_and_filled_beyond_where_we_were_is_noticed(log: Path) -> None:
    follower = Follower(log)
    follower.take()
    log.write_bytes(b"eins\nzwei\ndrei\n")
    assert follower.take() == [b"eins", b"zwei", b"drei"]


def test_a_log_cut_back_to_less_than_was_read_is_begun_again(log: Path) -> None:
    """Its first bytes are as they were; only its size tells."""
    lines = [b"%04d" % number for number in range(2_000)]
    log.write_bytes(b"\n".join(lines) + b"\n")
    follower = Follower(log)
    assert follower.take() == lines
    os.truncate(log, 5_000)
    assert follower.take() == lines[:1000]


def test_a_log_renamed_to_any_name_is_finished(log: Path) -> None:
    follower = Follower(log)
    follower.take()
    follower.kill()
    append(log, b"two\n")
    log.rename(log.with_name("backup"))
    log.write_bytes(b"three\n")
    follower.start()
    assert follower.take() == [b"two", b"three"]


def test_a_link_that_is_turned_to_another_file_is_a_rotation(tmp_path: Path) -> None:
    for name in ("red", "blue"):
        (tmp_path / name).write_bytes(name.encode() + b"\n")
    (tmp_path / "log").symlink_to("red")
    follower = Follower(tmp_path / "log")
    assert follower.take() == [b"red"]
    append(tmp_path / "red", b"more red\n")
    (tmp_path / "turned").symlink_to("blue")
    (tmp_path / "turned").rename(tmp_path / "log")
    assert follower.take() == [b"more red", b"blue"]
    follower.kill(keep=1)
    follower.start()
    assert follower.take() == [b"more red", b"blue"]


def test_a_log_emptied_while_we_are_far_behind_is_noticed(log: Path) -> None:
    """Not at its end, and it is longer than before: nothing of the middle of a line is taken for one."""
    log.write_bytes(b"".join(b"old %d\n" % number for number in range(100_000)))
    follower = Follower(log)
    assert follower.source is not None
    first = follower.source.read(0)
    assert first is not None
    log.write_bytes(b"".join(b"new %d\n" % number for number in range(200_000)))
    taken = follower.take()
    assert taken[0].startswith(b"old")  # half of a line
    assert taken[1:] == [b"new %d" % number for number in range(200_000)]


def test_a_log_emptied_while_we_were_down_is_begun_again_if_it_had_been_read_to_its_end(log: Path) -> None:
    follower = Follower(log)
    append(log, b"two\n")
    follower.take()
    follower.kill()
    os.truncate(log, 0)
    append(log, b"new\n")
    with capture_logs() as logs:
        follower.start()
    assert [entry["event"] for entry in logs] == ["source_truncated"]
    assert follower.take() == [b"new"]
    assert [(chunk.start, chunk.first_line) for chunk in follower.chunks] == [(0, 1), (8, 3)]
    append(log, b"more\nlost\n")
    follower.take()
    follower.kill(keep=4)
    os.truncate(log, 0)
    with pytest.raises(ConfigurationError, match="it has 0 bytes, fewer than the 9"):
        follower.start()


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_a_compressed_log_that_grows_is_followed(tmp_path: Path, packing: str) -> None:
    pack = PACK[packing]
    path = tmp_path / f"log{packing}"
    path.write_bytes(pack(b"one\ntwo"))
    follower = Follower(path)
    assert follower.take() == [b"one"]
    append(path, pack(b"\nthree\n"))
    assert follower.take() == [b"two", b"three"]
    more = pack(LINES)
    append(path, more[: len(more) // 2])
    first = follower.take(seconds=20)
    append(path, more[len(more) // 2 :])
    assert b"\n".join([*first, *follower.take()]) + b"\n" == LINES
    append(path, more[:2000])
    follower.take(seconds=29)
    assert not any(chunk.faults for chunk in follower.chunks)
    follower.take(seconds=2)
    assert len(follower.chunks[-1].faults) == 1


def test_a_deleted_log_is_let_go_and_begun_again_when_it_comes_back(log: Path) -> None:
    follower = Follower(log)
    append(log, b"half")
    follower.take(seconds=0)
    log.unlink()
    assert follower.take(seconds=29) == []
    assert follower.take(seconds=2) == [b"half"]
    assert follower.take() == []
    assert not open_files(log.parent)
    log.write_bytes(b"back\n")
    assert follower.take() == [b"back"]
    assert follower.chunks[-1].start == 8


def open_files(folder: Path) -> list[str]:
    """Return the files in a folder that this process has open, deleted ones included."""
    targets = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            targets.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            continue
    return [target for target in targets if target.startswith(str(folder))]


def test_a_folder_is_followed(tmp_path: Path) -> None:
    """New files appear, one is compressed, one rotates to a name that would be read, one is deleted and comes back."""
    follower = Follower(tmp_path)
    assert follower.take() == []
    (tmp_path / "a.jsonl").write_bytes(b"a1\n")
    (tmp_path / "b.jsonl").write_bytes(b"b1\n")
    assert follower.take() == [b"a1", b"b1"]
    append(tmp_path / "b.jsonl", b"b2\n")
    append(tmp_path / "a.jsonl", b"a2\n")
    (tmp_path / "c.jsonl").write_bytes(b"c1\n")
    assert follower.take() == [b"a2", b"b2", b"c1"]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"a1\na2\n"))
    (tmp_path / "b.jsonl").rename(tmp_path / "b-20240101.jsonl")
    assert follower.take() == []
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "b.jsonl").write_bytes(b"b3\n")
    assert follower.take() == [b"b3"]
    for _ in range(2):
        assert {chunk.partition for chunk in follower.chunks} == {"a.jsonl", "b.jsonl", "c.jsonl"}
        follower.kill()
        follower.start()
        assert follower.take() == []
    (tmp_path / "b-20240101.jsonl.gz").write_bytes(gzip.compress(b"b1\nb2\n"))
    (tmp_path / "b-20240101.jsonl").unlink()
    (tmp_path / "c.jsonl").unlink()
    with capture_logs() as logs:
        assert follower.take() == []
    assert [(entry["event"], entry["partition"]) for entry in logs] == [("source_partition_gone", "c.jsonl")]
    follower.kill()
    follower.start()
    assert follower.take() == []
    (tmp_path / "c.jsonl").write_bytes(b"c2\n")
    (tmp_path / "b-2.jsonl").write_bytes(b"not of b\n")
    assert follower.take() == [b"not of b", b"c2"]
    assert [(chunk.partition, chunk.start) for chunk in follower.chunks[-2:]] == [("b-2.jsonl", 0), ("c.jsonl", 3)]
    for down in (False, True):
        if down:
            follower.kill()
        for day in (4, 5) if down else (2, 3):  # twice between two looks
            (tmp_path / "b.jsonl").rename(tmp_path / f"b-2024010{day}.jsonl")
            (tmp_path / "b.jsonl").write_bytes(b"b%d\n" % (day + 2))
        if down:
            follower.start()
        assert follower.take() == ([b"b6", b"b7"] if down else [b"b4", b"b5"])
    follower.kill()
    follower.start()
    assert follower.take() == []
    assert {chunk.partition for chunk in follower.chunks} == {"a.jsonl", "b.jsonl", "c.jsonl", "b-2.jsonl"}


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_a_file_in_a_followed_folder_that_is_just_being_compressed_is_not_a_new_one(
    tmp_path: Path, packing: str
) -> None:
    path, packed = tmp_path / "a.jsonl", tmp_path / f"a.jsonl{packing}"
    content = b"".join(b"%d\n" % number for number in range(3_000))
    path.write_bytes(content)
    follower = Follower(tmp_path)
    assert len(follower.take()) == 3_000
    whole = PACK[packing](content)
    for length in (0, 3, 20, len(whole) // 2, len(whole)):
        packed.write_bytes(whole[:length])
        assert follower.take(seconds=1) == []
    path.unlink()
    assert follower.take() == []
    follower.kill()
    follower.start()
    assert follower.take() == []


def remembered(path: Path) -> Earlier:
    status, content = path.stat(), path.read_bytes()
    return Earlier(
        name=path.name,
        device=status.st_dev,
        inode=status.st_ino,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        length=len(content),
        head_length=min(len(content), 4096),
        head_crc=crc32(content[:4096]),
    )


@pytest.mark.parametrize("length", [10, 10_000])
def test_a_file_that_was_read_is_known_again(tmp_path: Path, length: int) -> None:
    path = tmp_path / "log.1"
    content = b"x" * length + b"\n"
    path.write_bytes(content)
    file = remembered(path)

    def is_at(path: Path, if_unfinished: bool = False) -> bool:
        found = look(path)
        assert found is not None
        return file.is_at(found, if_unfinished=if_unfinished)

    assert is_at(path)
    assert is_at(path.rename(tmp_path / "log.2"))
    path = tmp_path / "log.2"
    append(path, b"late\n")
    assert is_at(path) == (length > 512)  # of a short file this might be another at the same place
    path.write_bytes(b"y" * (length + 100))
    assert not is_at(path)
    packed = tmp_path / "log.1.gz"
    packed.write_bytes(gzip.compress(content))
    assert is_at(packed)
    for other in (content + b"more\n", content[:-1], b"y" * length + b"\n"):
        packed.write_bytes(gzip.compress(other))
        assert not is_at(packed)
    for done in (0, 5, 15, -4):
        packed.write_bytes(gzip.compress(content)[:done])
        assert is_at(packed, if_unfinished=True)
        assert not is_at(packed)
    packed.write_bytes(b"oops")
    assert not is_at(packed, if_unfinished=True)


@pytest.mark.parametrize("restart", [False, True])
def test_an_old_file_that_comes_to_a_followed_folder_late_is_read(tmp_path: Path, restart: bool) -> None:
    """Its name makes it an older part of a log, but that log has gone beyond it, and its own name never comes back."""
    (tmp_path / "a.jsonl").write_bytes(b"a1\n")
    follower = Follower(tmp_path)
    assert follower.take() == [b"a1"]
    (tmp_path / "a.jsonl").rename(tmp_path / "a-20240102.jsonl")
    assert follower.take() == []
    (tmp_path / "a-20240101.jsonl").write_bytes(b"old\n")
    if restart:
        follower.kill()
        follower.start()
    assert follower.take() == [b"old"]
    assert follower.chunks[-1].partition == "a-20240101.jsonl"
    (tmp_path / "a-20240103.jsonl").write_bytes(b"next\n")
    assert follower.take() == [b"next"]
    assert follower.chunks[-1].partition == "a.jsonl"


@pytest.mark.parametrize("restart", [False, True])
def test_logs_in_a_followed_folder_may_take_over_each_others_names(tmp_path: Path, restart: bool) -> None:
    """What was a.jsonl is a.1.jsonl, what was a.1.jsonl is a.2.jsonl, and a third is deleted: all of them are read."""
    live, first, second = (tmp_path / name for name in ("a.jsonl", "a.1.jsonl", "a.2.jsonl"))
    second.write_bytes(b"oldest\n")
    first.write_bytes(b"older\n")
    live.write_bytes(b"old\n")
    follower = Follower(tmp_path)
    assert follower.take() == [b"older", b"oldest", b"old"]
    for number in range(5):
        append(live, b"late %d\n" % number)
        first.rename(second)
        live.rename(first)
        live.write_bytes(b"new %d\n" % number)
        if restart:
            follower.kill()
            follower.start()
        assert follower.take() == [b"late %d" % number, b"new %d" % number]
    assert len(open_files(tmp_path)) <= 3


def test_many_files_are_followed_with_few_open(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"{number:03}.jsonl").write_bytes(b"%d\n" % number)
    follower = Follower(tmp_path)
    assert follower.source is not None
    for _ in range(30):
        chunk = follower.source.read(0)
        assert chunk is not None
        follower.stored[chunk.partition] = chunk.position(1)
    append(tmp_path / "000.jsonl", b"at once\n")  # after its end was seen, before it is put aside for others
    assert follower.take() == [*(b"%d" % number for number in range(30, 300)), b"at once"]
    assert len(open_files(tmp_path)) <= 65
    assert follower.take() == []
    for number in (0, 150, 299):
        append(tmp_path / f"{number:03}.jsonl", b"more %d\n" % number)
    (tmp_path / "010.jsonl").rename(tmp_path / "010.jsonl.1")
    append(tmp_path / "010.jsonl.1", b"late\n")
    (tmp_path / "010.jsonl").write_bytes(b"new\n")
    assert follower.take() == [b"more 0", b"late", b"more 150", b"more 299", b"new"]
    follower.kill()
    follower.start()
    assert len(open_files(tmp_path)) <= 65
    assert follower.take() == []


@pytest.mark.parametrize("seed", range(40))
def test_any_course_of_writing_rotating_and_killing_gives_each_line_once(tmp_path: Path, seed: int) -> None:
    """A log written by a model that knows every line, rotated in any way, and a follower killed at any line."""
    rng = random.Random(seed)
    path = tmp_path / "log.jsonl"
    style = rng.choice(["number", "date", "stem"])
    copies = rng.random() < 0.3
    parts: list[bytes] = [b"line 0\n"]
    path.write_bytes(parts[0])
    follower, running, rotations = Follower(path), True, 0
    follower.take()
    for number in range(1, 120):
        match rng.randrange(10):
            case 0 | 1 | 2:
                data = b"".join(b"line %d.%d\n" % (number, n) for n in range(rng.randrange(1, 4)))
                parts[-1] += data
                append(path, data)
            case 3:
                data = b"half %d " % number
                parts[-1] += data
                append(path, data)
            case 4 | 5 if running:
                follower.take()
            case 6 if not copies or (running and parts[-1].count(b"\n") and follower.take() is not None):
                rotations += 1
                rotate(path, style, rotations, copy=copies, rng=rng)
                parts.append(b"line %d\n" % number if rng.random() < 0.8 else b"")
                append(path, parts[-1])
            case 7 if running:
                follower.kill(keep=rng.randint(max(1, len(follower.lines) - 4), len(follower.lines)))
                running = False
            case 8 | 9 if not running:
                follower.start()
                running = True
    if not running:
        follower.start()
    append(path, b"\nend\n")
    parts[-1] += b"\nend\n"
    follower.take()
    follower.kill()
    assert follower.lines == [line for part in parts for line in expected_lines(part)]
    for before, after in pairwise(follower.chunks):
        assert after.first_line == before.first_line + len(before)
        assert after.start - before.ends[-1] in (0, 1)


def rotate(path: Path, style: str, age: int, *, copy: bool, rng: random.Random) -> None:
    """Rotate as logrotate would, by renaming or by copying and emptying; compress some of the older parts."""
    if style == "number":
        numbered = [(int(part.name.split(".")[2]), part) for part in path.parent.glob("log.jsonl.*")]
        for number, part in sorted(numbered, reverse=True):
            part.rename(part.with_name(part.name.replace(f".jsonl.{number}", f".jsonl.{number + 1}")))
        target = path.with_name("log.jsonl.1")
    else:
        day = f"202401{age:02}"
        target = path.with_name(f"log.jsonl-{day}" if style == "date" else f"log-{day}.jsonl")
    if copy:
        shutil.copy(path, target)
        os.truncate(path, 0)
    else:
        path.rename(target)
    for part in sorted(path.parent.iterdir()):
        if part not in (path, target) and part.suffix not in (".gz", ".zst") and rng.random() < 0.5:
            ending, pack = rng.choice([(".gz", gzip.compress), (".zst", zstd)])
            packed = part.with_name(part.name + ending)
            packed.write_bytes(pack(part.read_bytes()))
            os.utime(packed, ns=(part.stat().st_atime_ns, part.stat().st_mtime_ns))
            part.unlink()
