"""Going back to a copy of the store needs a source that can give again what came since: else nothing is cut."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults.numbered import WHAT, lines
from tests.warm import Warm


def command(folder: Path, source: str, *more: object) -> list[object]:
    given = ("run", "--source", source, "--state", f"sqlite:///{folder / 'state.db'}", *WHAT)
    return [*given, "--sink", f"jsonl:{folder / 'out.jsonl'}", "--tape", folder / "tape", *more]


def damage(folder: Path) -> None:
    """Spoil every page but the first one of the store; its copy was made before the last run."""
    store = folder / "state.db"
    content = bytearray(store.read_bytes())
    for page in range(4096, len(content), 4096):
        content[page : page + 64] = b"\x55" * 64
    store.write_bytes(content)


def outputs(folder: Path) -> dict[str, bytes]:
    files = [folder / "out.jsonl", folder / "out.dead.jsonl", *(folder / "tape").iterdir()]
    return {file.name: file.read_bytes() for file in files}


def ids(folder: Path) -> list[str]:
    return [json.loads(line)["id"] for line in (folder / "out.jsonl").read_bytes().splitlines()]


def copy_of(folder: Path) -> None:
    """Make what a run makes of its store every hour."""
    (folder / "state.db.copy-1").write_bytes((folder / "state.db").read_bytes())


def test_a_source_that_lost_what_came_since_cuts_no_output(warm: Warm, tmp_path: Path) -> None:
    log = tmp_path / "in.jsonl"
    source = f"file:{log}"
    log.write_bytes(lines(0, 100))
    warm.run(command(tmp_path, source), check=True)
    copy_of(tmp_path)
    log.write_bytes(lines(0, 200))
    warm.run(command(tmp_path, source), check=True)
    damage(tmp_path)
    log.write_bytes(lines(200, 300))  # retention took what was read
    before = outputs(tmp_path)
    refused = warm.run(command(tmp_path, source, "--recover"))
    assert refused.returncode == 2
    assert "no good checkpoint is left, and nothing was changed" in refused.stderr
    assert "expected the file that was read up to byte" in refused.stderr
    assert outputs(tmp_path) == before
    warm.run(command(tmp_path, source, "--recover", "--accept-gap"), check=True)  # somebody who means it
    assert ids(tmp_path) == [f"e{n}" for n in (*range(100), *range(200, 300))]


def test_a_pipe_that_goes_on_cannot_give_it_again(warm: Warm, tmp_path: Path) -> None:
    def fed(data: bytes, *more: str) -> Sequence[str | int]:
        done = warm.run(command(tmp_path, "stdin:", "--stdin-continues", *more), said=data.decode())
        return done.returncode, done.stderr

    assert fed(lines(0, 100))[0] == 0
    copy_of(tmp_path)
    assert fed(lines(100, 200))[0] == 0
    damage(tmp_path)
    before = outputs(tmp_path)
    code, said = fed(lines(200, 300), "--recover")
    assert code == 2
    assert "what came since is gone; --accept-gap goes on without it" in str(said)
    assert outputs(tmp_path) == before
    assert fed(lines(200, 300), "--recover", "--accept-gap")[0] == 0
    assert ids(tmp_path) == [f"e{n}" for n in (*range(100), *range(200, 300))]


@pytest.mark.parametrize("more", [(), ("--recover",)], ids=["plain", "recover"])
def test_a_refused_source_cuts_nothing_that_no_checkpoint_has(
    more: tuple[str, ...], warm: Warm, tmp_path: Path
) -> None:
    log = tmp_path / "in.jsonl"
    log.write_bytes(lines(0, 100))
    warm.run(command(tmp_path, f"file:{log}"), check=True)
    with (tmp_path / "out.jsonl").open("ab") as file:  # as a run that was killed leaves it
        file.write(b'{"id": "e100"}\n')
    before = outputs(tmp_path)
    os.truncate(log, 50)
    refused = warm.run(command(tmp_path, f"file:{log}", *more))
    assert refused.returncode == 2, refused.stderr
    assert outputs(tmp_path) == before
