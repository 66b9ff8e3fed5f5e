"""Kills and errors at chosen system calls, by the command that does it; `EBBTIDE_LONG=1` for the long form."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.faults.syscalls import can_trace
from tests.faults.test_kill_moments import MOST
from tests.warm import Warm

LONG = bool(os.environ.get("EBBTIDE_LONG"))


def test_kills_and_errors_at_system_calls_leave_no_trace(warm: Warm, tmp_path: Path) -> None:
    if reason := can_trace():
        pytest.skip(reason)
    told = tmp_path / "told.json"
    command = ["--folder", tmp_path, "--json", told]
    short = [*("--points", 12, "--errors", 1, "--error-kinds", 3), *("--short-runs", 1, "--events", 72, "--seed", 1)]
    run = warm.run([*command, *([] if LONG else short)], module="tests.faults.syscalls", timeout=MOST)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    counts = json.loads(told.read_text())
    killed = sum(count for what, count in counts["tried"].items() if what.startswith("killed at"))
    assert killed + counts["not_reached"] >= (150 if LONG else 12)
    assert killed > counts["not_reached"]
    assert not counts["wrong"]
