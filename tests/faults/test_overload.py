"""More input than a run can take: it holds the writer back, keeps little, loses nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

from tests.faults.fed_run import AHEAD, FedRun, outcome, undisturbed
from tests.warm import Warm

GROWTH = 40 << 20
"""Bytes by which memory may grow under overload; the input is more than twice that."""

IN_TIME, LATE = 'ebbtide_event_lag_seconds_bucket{le="2.5"}', "ebbtide_event_lag_seconds_count"


def wide(number: int, dice: random.Random) -> bytes:
    """Return a line of some 24 KB, nearly all of it a key that nobody needs: many bytes, little work."""
    event = {"stream": f"s{number % 50}", "id": str(number), "text": f"we said {number} things", "note": "x" * 24_000}
    return json.dumps(event | {"more": dice.random()}).encode() + b"\n"


def test_the_writer_is_held_back_and_nothing_piles_up_or_is_lost(tmp_path: Path) -> None:
    dice = random.Random(5)
    few, many = (b"".join(wide(number, dice) for number in range(*span)) for span in ((0, 200), (200, 4_200)))
    (tmp_path / "fed").mkdir()
    (tmp_path / "alone").mkdir()
    length = len(few) // 200
    with FedRun(tmp_path / "fed", batch_events=64) as run:
        run.wait_ready()
        run.offer_all(few)
        run.wait_for(lambda: run.summary()["events"] == 200)
        before = run.memory()
        run.refused = 0
        ahead, depths = [], []

        def look() -> None:
            taken = run.accepted  # first: what is processed meanwhile only makes it less
            told = run.summary()
            ahead.append(taken - told["events"] * (length - 10))

        run.offer_all(many, look)
        depths.append(run.metric('ebbtide_queue_depth{queue="reader"}'))
        grown = run.memory() - before
        assert run.finish() == 0, run.log()
    assert run.refused > 0, "the run took everything at once"
    assert max(ahead) < AHEAD + 64 * length  # and the micro-batch that is being processed
    assert max(depths) <= 8
    assert len(many) > 2 * GROWTH
    assert grown < GROWTH
    assert outcome(tmp_path / "fed") == undisturbed(tmp_path / "alone", few + many)


def test_a_burst_is_taken_as_a_trickle_is_and_the_lag_tells_of_it(warm: Warm, tmp_path: Path) -> None:
    """Twenty events, two thousand at once while the process is held up, then twenty again and again."""
    lines: list[bytes] = []

    def stamped(count: int) -> bytes:
        for _ in range(count):
            told = {"stream": f"s{len(lines) % 7}", "text": f"we said {len(lines)} things", "ts": time.time()}
            lines.append(json.dumps(told).encode() + b"\n")
        return b"".join(lines[-count:])

    for name in ("fed", "alone"):
        (tmp_path / name).mkdir()
    with FedRun(tmp_path / "fed", warm=warm) as run:
        run.wait_ready()
        run.offer_all(stamped(20))
        run.wait_for(lambda: run.summary()["events"] == 20)
        begun = run.metric(LATE) - run.metric(IN_TIME)
        os.kill(run.pid, signal.SIGSTOP)
        run.offer(stamped(2_000))
        time.sleep(2.6)  # they get old: no turn of the loop can make them younger
        os.kill(run.pid, signal.SIGCONT)
        run.offer_all(b"")
        run.wait_for(lambda: run.summary()["events"] == 2_020)
        late, in_time = run.metric(LATE), run.metric(IN_TIME)
        assert late - in_time > begun
        run.wait_for(lambda: run.offer(stamped(20)) and run.metric(IN_TIME) > in_time)  # it has caught up
        run.offer_all(b"")
        assert run.finish() == 0, run.log()
    assert outcome(tmp_path / "fed") == undisturbed(tmp_path / "alone", b"".join(lines))
