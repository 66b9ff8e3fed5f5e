"""Consumers killed at random moments; what they leave equals what an uninterrupted run leaves, bit for bit.

    python -m tests.faults.kill_moments --kills 1000 --seed 0
    python -m tests.faults.kill_moments --kinds stopped --kills 100 --seed 0    # SIGTERM under load

Each worker imports everything once and forks consumers (`tests/faults/kill_zygote.py`). A run is killed at a moment
drawn evenly within `--longest` seconds after it was ready, or, one in five, within 0.3 s after its start, and started
again, some dozens of times; then it is let to its end and compared. Where each kill hit is read from memory that the
consumer shares with its starter. One more for every five is aimed at a place where a consumer spends little time, such
as the spilling of lanes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.kill_histories import Histories, Tally, talk
from tests.faults.kill_zygote import Zygote

KINDS = "file,rotated,file,emptied"


def work(worker: int, kills: int, given: argparse.Namespace, base: Path) -> Tally:
    """Kill so often, in histories of `--each` kills."""
    workers, each, seed, longest = given.workers, given.each, given.seed, given.longest
    kinds = given.kinds.split(",")
    zygote = Zygote()
    histories = Histories(zygote, base / f"worker-{worker}", talk(given.events, seed), given.aim_each)
    number = worker
    until = time.monotonic() + 60 * given.minutes
    while (done := histories.tally.kills - histories.tally.aimed) < kills and time.monotonic() < until:
        kind = kinds[number % len(kinds)]
        rest = max(2, min(each, kills - done))
        begun = time.monotonic()
        try:
            if kind in ("file", "stopped"):
                getattr(histories, kind)(seed * 1000 + number, rest, longest)
            else:
                histories.followed(kind, seed * 1000 + number, rest, longest)
        except (AssertionError, TimeoutError, OSError) as error:
            histories.tally.wrong.append(f"{kind} {seed * 1000 + number}: {error}")
        tally = histories.tally
        print(
            f"worker {worker}: history {number} ({kind}) in {time.monotonic() - begun:.0f} s; "
            f"{tally.kills - tally.aimed} of {kills} kills and {tally.aimed} aimed ones, {len(tally.wrong)} wrong",
            flush=True,
        )
        number += workers
        if len(tally.wrong) > 5:
            break
    return histories.tally


def in_workers(workers: int, task: Callable[[int], dict[str, Any]]) -> list[dict[str, Any]]:
    """Do a task in forked processes; return what each returned."""
    pipes = []
    for worker in range(workers):
        end, begin = os.pipe()
        if not os.fork():
            code = 1
            try:
                os.close(end)
                with os.fdopen(begin, "w") as file:
                    json.dump(task(worker), file)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        os.close(begin)
        pipes.append(end)
    found = []
    for end in pipes:
        with os.fdopen(end) as file:
            text = file.read()
        os.wait()
        assert text, "a worker died"
        found.append(json.loads(text))
    return found


def plain(tally: Tally) -> dict[str, Any]:
    return {
        "kills": tally.kills,
        "aimed": tally.aimed,
        "too_late": tally.too_late,
        "histories": dict(tally.histories),
        "places": dict(tally.places),
        "rotations": dict(tally.rotations),
        "stops": dict(tally.stops),
        "stop_seconds": tally.stop_seconds,
        "ready": tally.ready,
        "wrong": tally.wrong,
    }


def summed(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Add up what the workers found."""
    total: dict[str, Any] = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        if isinstance(values[0], dict):
            total[name] = dict(sum((Counter(value) for value in values), Counter()).most_common())
        elif isinstance(values[0], list):
            total[name] = [each for value in values for each in value]
        else:
            total[name] = sum(values)
    return total


def main() -> int:
    """Do what the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--each", type=int, default=40, help="kills in one history")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--events", type=int, default=2400)
    parser.add_argument("--longest", type=float, default=0.6, help="most seconds from ready to the kill")
    parser.add_argument("--minutes", type=float, default=1e6, help="no history is begun after so many")
    parser.add_argument("--kinds", default=KINDS, help="histories, in turn: file, rotated, emptied, stopped")
    parser.add_argument("--aim-each", type=int, default=5, help="one more kill is aimed after so many")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the runs' folders are made")
    parser.add_argument("--json", type=Path, help="file for the counts")
    given = parser.parse_args()
    base = given.folder or Path(tempfile.mkdtemp(prefix="ebbtide-kills-"))
    shares = [(given.kills + worker) // given.workers for worker in range(given.workers)]
    begun = time.monotonic()
    print(f"{given.kills} kills, seed {given.seed}, in {base}", flush=True)
    total = summed(
        in_workers(
            given.workers,
            lambda worker: plain(work(worker, shares[worker], given, base)),
        )
    )
    ready = total.pop("ready")
    late = total.pop("stop_seconds")
    total["stop_seconds"] = {"median": round(statistics.median(late), 3), "most": round(max(late), 3)} if late else {}
    total["ready_median_seconds"] = round(statistics.median(ready), 3) if ready else None
    total["seconds"] = round(time.monotonic() - begun, 1)
    if given.json:
        given.json.write_text(json.dumps(total, indent=1))
    print(json.dumps(total, indent=1))
    return 1 if total["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
