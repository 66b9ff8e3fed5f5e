"""Kills and stops at random moments, by the command that does it; `EBBTIDE_LONG=1` for the long form."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tests.warm import Warm

LONG = bool(os.environ.get("EBBTIDE_LONG"))
MOST = 24 * 3600.0 if LONG else 600.0
"""Seconds that a command may take."""


def done(warm: Warm, *options: str, folder: Path) -> dict[str, Any]:
    """Do the command; return its counts."""
    told = folder / "told.json"
    command = ["--folder", folder, "--json", told, *options]
    run = warm.run(command, module="tests.faults.kill_moments", timeout=MOST)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    counts: dict[str, Any] = json.loads(told.read_text())
    return counts


def test_kills_at_random_moments_leave_no_trace(warm: Warm, tmp_path: Path) -> None:
    short = ("--kills", "20", "--each", "10", "--events", "360", "--kinds", "file,rotated", "--longest", "0.5")
    counts = done(warm, *(("--kills", "1000") if LONG else short), "--seed", "1", folder=tmp_path)
    assert counts["kills"] - counts["aimed"] >= (1000 if LONG else 20)
    assert not counts["wrong"]
    assert counts["rotations"]["rotated"] > 0
    places = counts["places"]
    assert any(place.startswith("checkpoint") for place in places), places
    assert any(place.startswith("micro-batch") for place in places), places


def test_stops_under_load_end_in_time_and_lose_nothing(warm: Warm, tmp_path: Path) -> None:
    short = ("--kills", "8", "--each", "8", "--events", "360", "--workers", "1", "--longest", "0.3")
    options = ("--kills", "200") if LONG else short
    counts = done(warm, "--kinds", "stopped", *options, "--seed", "1", folder=tmp_path)
    assert sum(counts["stops"].values()) >= (200 if LONG else 8)
    assert any("cut at the deadline" in how for how in counts["stops"]), counts["stops"]
