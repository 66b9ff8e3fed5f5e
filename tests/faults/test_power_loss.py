"""What a power cut leaves, and that a consumer goes on from it; `EBBTIDE_LONG=1` for the long form."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.power_loss import SECTOR, Disk, Op, recorded
from tests.faults.syscalls import can_trace
from tests.faults.test_kill_moments import MOST
from tests.warm import Warm

LONG = bool(os.environ.get("EBBTIDE_LONG"))


def left(ops: list[Op], seeds: int = 300) -> set[tuple[tuple[str, bytes | None], ...]]:
    """Return all that power cuts with different dice leave."""
    disk = Disk()
    for op in ops:
        disk.do(op)
    return {tuple(sorted(disk.after_a_cut(random.Random(seed)).items())) for seed in range(seeds)}


def test_what_was_fsynced_is_there_and_nothing_else_need_be() -> None:
    safe = [Op("create", "f"), Op("write", "f", -1, b"ab"), Op("fsync", "f"), Op("fsync", ".")]
    assert left(safe) == {(("f", b"ab"),)}
    more = left([*safe, Op("write", "f", -1, b"cd"), Op("cut", "f", 1)])
    assert more == {(("f", each),) for each in (b"ab", b"abcd", b"a", b"ab\0\0")} - {(("f", b"ab\0\0"),)}


def test_a_file_whose_folder_was_not_fsynced_may_be_gone() -> None:
    made = [Op("create", "f"), Op("write", "f", -1, b"ab"), Op("fsync", "f")]
    assert left(made) == {(), (("f", b"ab"),)}
    inner = [Op("mkdir", "d"), Op("create", "d/f"), Op("write", "d/f", -1, b"ab"), Op("fsync", "d/f"), Op("fsync", "d")]
    assert left(inner) == {(), (("d", None), ("d/f", b"ab"))}
    assert left([*inner, Op("fsync", ".")]) == {(("d", None), ("d/f", b"ab"))}
    assert left([*made, Op("fsync", "."), Op("unlink", "f")]) == {(), (("f", b"ab"),)}
    assert left([*made, Op("fsync", "."), Op("rename", "f", 0, b"g")]) == {(("f", b"ab"),), (("g", b"ab"),)}


def test_a_write_may_be_torn_between_sectors_only_and_out_of_order() -> None:
    made = [Op("create", "f"), Op("fsync", "f"), Op("fsync", ".")]
    torn = left([*made, Op("write", "f", 0, b"x" * 2 * SECTOR)], 2000)
    a, b = b"x" * SECTOR, bytes(SECTOR)
    assert torn == {(("f", each),) for each in (b"", a, a + a, b + a, b + b, a + b)}
    two = left([*made, Op("write", "f", -1, b"a"), Op("write", "f", -1, b"b")], 2000)
    assert (("f", b"\0b"),) in two, "the later write without the one before"


def test_a_recording_has_every_change_with_its_bytes(tmp_path: Path) -> None:
    if reason := can_trace():
        pytest.skip(reason)
    run = tmp_path / "run"
    run.mkdir()
    code = (
        "import os, sys; run = sys.argv[1]; f = run + '/f'; fd = os.open(f, os.O_RDWR | os.O_CREAT | os.O_APPEND); "
        "os.write(fd, bytes(range(256))); os.fsync(fd); fd = os.open(f, os.O_RDWR); os.pwrite(fd, b'\"<>', 3); "
        "os.ftruncate(fd, 7); os.mkdir(run + '/d'); fd = os.open(run, os.O_RDONLY); os.fsync(fd); os.unlink(f)"
    )
    trace = ["strace", "-f", "-y", "-xx", "-s", "4096", "-o", str(tmp_path / "log"), sys.executable, "-c", code]
    subprocess.run([*trace, str(run)], check=True)
    assert list(recorded(tmp_path / "log", run)) == [
        Op("create", "f"),
        Op("write", "f", -1, bytes(range(256))),
        Op("fsync", "f"),
        Op("write", "f", 3, b'"<>'),
        Op("cut", "f", 7),
        Op("mkdir", "d"),
        Op("fsync", "."),
        Op("unlink", "f"),
    ]


def test_power_cuts_at_seeded_points_lose_nothing(warm: Warm, tmp_path: Path) -> None:
    if reason := can_trace():
        pytest.skip(reason)
    told = tmp_path / "told.json"
    command = ["--folder", tmp_path, "--json", told]
    short = ["--points", 20, "--workers", 1, "--events", 48, "--seed", 1]
    run = warm.run([*command, *([] if LONG else short)], module="tests.faults.power_loss", timeout=MOST)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    counts = json.loads(told.read_text())
    assert counts["points"] == (1000 if LONG else 20)
    assert counts["at_stake"]["unsynced writes"] > 0
    assert not counts["refused"]
    assert not counts["wrong"]
