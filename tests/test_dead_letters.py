from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory.errors import ConfigurationError
from stream.append_file import AppendFile
from stream.dead_letters import DeadLetter, DeadLetterFile, read_dead_letters


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def written(path: Path, *parts: bytes) -> int:
    file = AppendFile(path)
    file.open(None)
    for part in parts:
        file.append(part)
    length = file.flush()
    file.close()
    return length


def test_a_fresh_start_never_overwrites(path: Path) -> None:
    path.write_bytes(b"precious\n")
    with pytest.raises(ConfigurationError, match="never overwritten"):
        AppendFile(path).open(None)
    assert path.read_bytes() == b"precious\n"


def test_a_fresh_start_takes_an_empty_file(path: Path) -> None:
    path.touch()
    assert written(path, b"one\n") == 4


def test_going_on_cuts_what_came_after_the_checkpoint(path: Path) -> None:
    written(path, b"one\n", b"two\n", b"thr")
    file = AppendFile(path)
    file.open(4)
    assert path.read_bytes() == b"one\n"
    file.append(b"zwei\n")
    assert (file.length, file.flush()) == (9, 9)
    file.close()
    assert path.read_bytes() == b"one\nzwei\n"


def test_going_on_from_nothing_makes_the_file(path: Path) -> None:
    file = AppendFile(path)
    file.open(0)
    file.close()
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    ("content", "length", "message"),
    [
        (None, 4, "got none"),
        (b"one\n", 5, "at least the 5 bytes .* got 4"),
        (b"other\n", 4, "middle of one"),
    ],
)
def test_going_on_in_a_file_that_does_not_fit_changes_nothing(
    path: Path, content: bytes | None, length: int, message: str
) -> None:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=message):
        AppendFile(path).open(length)
    assert (path.read_bytes() if path.exists() else None) == content


def test_places_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="got a folder"):
        AppendFile(tmp_path).open(None)
    with pytest.raises(ConfigurationError, match="existing folder"):
        AppendFile(tmp_path / "no" / "file").open(None)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigurationError, match="regular file"):
        AppendFile(tmp_path / "pipe").open(None)


def test_what_is_not_flushed_is_not_promised(path: Path) -> None:
    file = AppendFile(path)
    file.open(None)
    file.append(b"one\n")
    assert file.flush() == 4
    file.append(b"two\n")
    file.close()
    assert path.read_bytes() == b"one\n"


def test_much_data_does_not_wait_in_memory(path: Path) -> None:
    file = AppendFile(path)
    file.open(None)
    for _ in range(40):
        file.append(b"x" * 99_999 + b"\n")
    assert path.stat().st_size >= 3_000_000
    assert file.flush() == 4_000_000
    file.close()


def test_only_the_owner_may_read(path: Path) -> None:
    old = os.umask(0)
    try:
        written(path, b"one\n")
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_second_writer_is_refused(path: Path) -> None:
    first = AppendFile(path)
    first.open(None)
    with pytest.raises(ConfigurationError, match="another run"):
        AppendFile(path).open(None)
    first.close()
    second = AppendFile(path)
    second.open(None)
    second.close()


def test_a_closed_file_is_not_written() -> None:
    with pytest.raises(ValueError, match="closed"):
        AppendFile("x").append(b"")
    with pytest.raises(ValueError, match="closed"):
        AppendFile("x").flush()


FULL_DISK = """
import resource, signal, sys
from stream.append_file import AppendFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit then fails, as on a full disk
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
file = AppendFile(sys.argv[1])
file.open(None)
file.append(b"one\\n")
file.flush()
resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_002, hard))
for number in range(30):
    file.append(b"%09d\\n" % number * 10_000)
try:
    file.flush()
except OSError as error:
    print("full:", type(error).__name__)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
print(file.flush())
"""


def test_a_full_disk_loses_nothing(path: Path) -> None:
    """Writing fails in the middle of a line, and goes on there when there is room again."""
    command = [sys.executable, "-c", FULL_DISK, str(path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert out.stdout.split("\n")[:2] == ["full: OSError", "3000004"]
    assert path.read_bytes() == b"one\n" + b"".join(b"%09d\n" % number * 10_000 for number in range(30))


LETTERS = st.builds(
    lambda raw, more, **fields: DeadLetter(raw=raw, length=len(raw) + more, **fields),
    raw=st.binary(max_size=300),
    more=st.integers(0, 3),
    partition=st.text(),
    offset=st.integers(0, 2**62),
    line=st.integers(1, 2**62),
    reason=st.sampled_from(["not_json", "too_long"]),
    detail=st.text(),
)


@settings(max_examples=100, deadline=None)
@given(letters=st.lists(LETTERS, max_size=5))
def test_letters_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, letters: list[DeadLetter]) -> None:
    path = tmp_path_factory.mktemp("letters") / "dead.jsonl"
    file = DeadLetterFile(path)
    file.open(None)
    file.write(letters)
    assert file.flush() == path.stat().st_size
    file.close()
    assert list(read_dead_letters(path)) == letters


def test_a_partition_that_is_no_utf8_can_be_written(path: Path) -> None:
    letter = DeadLetter("bad-\udcff", 0, 1, "empty", "", b"", 0)
    file = DeadLetterFile(path)
    file.open(None)
    file.write([letter])
    file.flush()
    file.close()
    assert list(read_dead_letters(path)) == [letter]


def test_a_record_cut_short_is_left_out(path: Path) -> None:
    letter = DeadLetter("p", 0, 1, "empty", "", b"", 0)
    path.write_text(letter.to_json() + "\n" + letter.to_json()[:-5])
    assert list(read_dead_letters(path)) == [letter]


@pytest.mark.parametrize("bad", ["oops", "[]", "{}", '{"raw": "AA"}', '{"raw": "%%%%"}'])
def test_other_lines_are_told_by_number(path: Path, bad: str) -> None:
    letter = DeadLetter("p", 0, 1, "empty", "", b"", 0)
    path.write_text(f"{letter.to_json()}\n{bad}\n")
    with pytest.raises(ValueError, match="line 2"):
        list(read_dead_letters(path))


def test_the_record_has_the_documented_fields() -> None:
    letter = DeadLetter("log.jsonl", 5, 2, "too_long", "expected less", b"ab", 9)
    assert letter.to_json() == (
        '{"partition":"log.jsonl","offset":5,"line":2,"reason":"too_long","detail":"expected less","length":9,'
        '"raw":"YWI=","truncated":true}'
    )
