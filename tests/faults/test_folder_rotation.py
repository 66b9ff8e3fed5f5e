"""Logs in a followed folder that are rotated before their turn has come: in one run, and from one run to the next."""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from stream.sources import CHUNK_BYTES, EndOfInput, FileSource, FollowSettings, Position

FOLLOW = FollowSettings(interval=0.01, rotate_wait=0.05, settle_wait=0.05)
LINE = b"x" * 999 + b"\n"
MANY = 3 * CHUNK_BYTES // len(LINE)
Lines = dict[str, list[bytes]]


def read(source: FileSource, lines: Lines, chunks: int = 10**9) -> dict[str, Position]:
    """Read so many chunks, or until nothing has come for a while; return where each partition is."""
    at: dict[str, Position] = {}
    while chunks and (chunk := source.read(0.5)) is not None:
        lines.setdefault(chunk.partition, []).extend(chunk.lines)
        at[chunk.partition] = chunk.position(len(chunk))
        chunks -= 1
    return at


def renamed(log: Path) -> None:
    log.rename(log.with_name("c.jsonl.1"))
    log.write_bytes(b"new\n")


def renamed_by_date(log: Path) -> None:
    log.rename(log.with_name("c-20240506.jsonl"))
    log.write_bytes(b"new\n")


def renamed_twice(log: Path) -> None:
    log.rename(log.with_name("c.jsonl.2"))
    log.with_name("c.jsonl.1").write_bytes(b"between\n")
    log.write_bytes(b"new\n")


def packed(log: Path) -> None:
    with gzip.open(log.with_name("c.jsonl.1.gz"), "wb") as file:
        file.write(log.read_bytes())
    log.unlink()
    log.write_bytes(b"new\n")


def copied_and_emptied(log: Path) -> None:
    shutil.copyfile(log, log.with_name("c.jsonl.1"))
    os.truncate(log, 0)
    with log.open("ab") as file:
        file.write(b"new\n")


def nothing(log: Path) -> None:
    with log.open("ab") as file:
        file.write(b"new\n")


ROTATIONS = {
    nothing: [b"old", b"more", b"new"],
    renamed: [b"old", b"more", b"new"],
    renamed_by_date: [b"old", b"more", b"new"],
    renamed_twice: [b"old", b"more", b"between", b"new"],
    packed: [b"old", b"more", b"new"],
    copied_and_emptied: [b"old", b"more", b"new"],
}


@pytest.mark.parametrize("restart", [False, True], ids=["in one run", "between two"])
@pytest.mark.parametrize(("rotate", "expected"), ROTATIONS.items(), ids=[each.__name__ for each in ROTATIONS])
def test_no_line_is_lost(rotate: Callable[[Path], None], expected: list[bytes], restart: bool, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINE * MANY)
    log, older = tmp_path / "c.jsonl", tmp_path / "c.jsonl.3"
    older.write_bytes(b"of before: not asked for\n")
    os.utime(older, (1, 1))
    log.write_bytes(b"old\nmore\n")
    lines: Lines = {}
    source = FileSource(tmp_path, follow=FOLLOW)
    source.open({})
    at = dict(source.beginnings())
    at |= read(source, lines, chunks=1)
    assert set(lines) == {"a.jsonl"}  # c's turn has not come
    rotate(log)
    if restart:
        source.close()
        source = FileSource(tmp_path, follow=FOLLOW)
        source.open(at)
    read(source, lines)
    source.close()
    assert len(lines.pop("a.jsonl")) == MANY
    assert lines == {"c.jsonl": expected}


def test_a_file_that_came_later_is_known_before_a_line_of_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"one\n")
    source = FileSource(tmp_path, follow=FOLLOW)
    source.open({})
    assert set(source.beginnings()) == {"a.jsonl"}
    assert source.beginnings() == {}
    lines: Lines = {}
    at = read(source, lines)
    (tmp_path / "c.jsonl").write_bytes(b"old\nmore\n")
    assert source.read(5) is not None
    at |= source.beginnings()
    source.close()
    assert set(at) == {"a.jsonl", "c.jsonl"}
    renamed(tmp_path / "c.jsonl")
    lines.clear()
    source = FileSource(tmp_path, follow=FOLLOW)
    source.open(at)
    read(source, lines)
    source.close()
    assert lines == {"c.jsonl": [b"old", b"more", b"new"]}


def test_a_file_and_one_that_looks_like_its_packed_form_are_two(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_bytes(b"plain\n")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b"packed\n"))
    lines: Lines = {}
    source = FileSource(tmp_path, follow=FOLLOW)
    source.open({})
    read(source, lines)
    source.close()
    assert lines == {"c.jsonl": [b"plain"], "c.jsonl.gz": [b"packed"]}


@pytest.mark.parametrize("follow", [None, FOLLOW], ids=["once", "followed"])
def test_one_that_begins_like_the_plain_file_and_has_more_is_another(
    follow: FollowSettings | None, tmp_path: Path
) -> None:
    (tmp_path / "c.jsonl").write_bytes(b"log opened\n")
    lines: Lines = {}
    source = FileSource(tmp_path, follow=follow)
    source.open({})
    at = dict(source.beginnings())
    while follow is None or not lines:
        try:
            at = {**at, **read(source, lines, chunks=1)}
        except EndOfInput:
            break
    source.close()
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b"log opened\nanother day\n"))
    source = FileSource(tmp_path, follow=follow)
    source.open(at)
    with suppress(EndOfInput):
        read(source, lines)
    source.close()
    assert lines == {"c.jsonl": [b"log opened"], "c.jsonl.gz": [b"log opened", b"another day"]}


def test_what_is_not_begun_counts_as_not_read(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_bytes(b"plain\n")
    source = FileSource(tmp_path, follow=FOLLOW)
    source.open({})
    assert source.backlog() == 6
    read(source, {})
    assert source.backlog() == 0
    source.close()
