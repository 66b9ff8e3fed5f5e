"""More than a run can take: twice its capacity, a burst of a hundred times the usual, clients that never stop asking.

    python -m benchmarks.overload [--quick] [--only overload|clients] [--json FILE]

A real `ebbtide run` (hashing backbone, 1,000 streams, `decay_on_shift`, sink and SQLite store) reads from a pipe.

`overload`: how much it takes is measured first, by a writer that always has more. Then a writer offers twice that, each
line stamped with the time when it was due, and drops nothing: what the pipe does not take is written later, and the
stamps grow old. Then half of what the run can take, until it has caught up; then a fiftieth, a hundred times as much
for some seconds, and a fiftieth again.

`clients`: events a second of one run in turns without and with `benchmarks.bad_clients` beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO

from benchmarks.report import print_table
from benchmarks.soak import options_of, settings_of
from benchmarks.soak_report import slope
from benchmarks.traffic import Traffic
from benchmarks.watched_run import WatchedRun, value

STREAMS = 1_000
EVERY = 1.2
"""Seconds between samples: an exposition is kept for one."""

CAUGHT_UP = 1.0
"""Seconds of lag at which the run counts as up to date."""


class Writer:
    """Writes events at a rate that may be changed, and says when it was made to wait.

    Parameters
    ----------
    pipe
        The run's standard input.

    Attributes
    ----------
    rate
        Events a second that become due; infinite: there is always one.
    due, written
        Events so far.
    waited
        Seconds in which the pipe took nothing.
    """

    def __init__(self, pipe: BinaryIO):
        self.rate = 0.0
        self.due, self.written, self.waited = 0.0, 0, 0.0
        self._pipe, self._over = pipe, False
        self._texts = [line.split(b'"text":')[1] for line in next(Traffic(10_000, STREAMS).lines()).splitlines()]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write what is due, and end the input."""
        self.rate, self._over = 0.0, True
        self._thread.join()

    def _run(self) -> None:
        last, stamps = time.time(), [(0.0, time.time())]  # (events due, when)
        while not self._over or self.written < int(self.due):
            now = time.time()
            self.due = self.written + 200.0 if self.rate == float("inf") else self.due + self.rate * (now - last)
            stamps.append((self.due, now))
            last = now
            count = min(200, int(self.due) - self.written)
            if count <= 0:
                time.sleep(0.002)
                continue
            while stamps[0][0] < self.written + 1:
                stamps.pop(0)
            when = stamps[0][1]
            data = b"".join(
                b'{"stream":"user-%06d","ts":%.3f,"text":%b\n' % (n * 7919 % STREAMS, when, self._texts[n % 10_000])
                for n in range(self.written, self.written + count)
            )
            begun = time.perf_counter()
            self._pipe.write(data)
            self._pipe.flush()
            self.waited += time.perf_counter() - begun
            self.written += count
        self._pipe.close()


def observe(run: WatchedRun, writer: Writer, until: Callable[[dict[str, float]], bool]) -> list[dict[str, float]]:
    """Take samples until something is so."""
    rows: list[dict[str, float]] = []
    before: dict[str, float] = {}
    while not rows or not until(rows[-1]):
        time.sleep(EVERY)
        shown = run.scrape()
        now = {
            "seconds": time.monotonic(),
            "events": value(shown, "ebbtide_sink_records_total"),
            "lag": value(shown, "ebbtide_event_lag_seconds_sum"),
            "lags": value(shown, "ebbtide_event_lag_seconds_count"),
            "waited": writer.waited,
        }
        if before:
            passed, seen = now["seconds"] - before["seconds"], now["lags"] - before["lags"]
            rows.append(
                {
                    "seconds": now["seconds"],
                    "events": now["events"],
                    "rate": (now["events"] - before["events"]) / passed,
                    "waited": (now["waited"] - before["waited"]) / passed,
                    "lag": (now["lag"] - before["lag"]) / seen if seen else 0.0,
                    "queue": value(shown, "ebbtide_queue_depth", queue="reader"),
                    "owed": writer.due - writer.written,
                    "rss": run.kernel()["rss"],
                }
            )
        before = now
    return rows


def during(seconds: float) -> Callable[[dict[str, float]], bool]:
    """Return what says that so many seconds are over."""
    end = time.monotonic() + seconds
    return lambda _: time.monotonic() > end


def overload(folder: Path, scale: float) -> list[dict[str, Any]]:
    """Overload, recovery, burst, recovery."""
    settings = settings_of(folder, STREAMS, 32, 2.0)
    phases: dict[str, list[dict[str, float]]] = {}
    with WatchedRun(options_of(settings), folder) as run:
        run.wait_ready()
        assert run.process.stdin is not None
        writer = Writer(run.process.stdin)  # type: ignore[arg-type]
        writer.rate = float("inf")
        observe(run, writer, during(10 * scale))  # until everything is compiled and each stream is there
        phases["all it takes"] = observe(run, writer, during(30 * scale))
        capacity = max(row["rate"] for row in phases["all it takes"])  # on a busy machine: what it can at its best
        for name, rate, seconds in (
            ("2 x", 2 * capacity, 60 * scale),
            ("half", capacity / 2, None),
            ("1/50", capacity / 50, 10 * scale),
            ("a burst: 2 x", 2 * capacity, 5 * scale),
            ("1/50 again", capacity / 50, None),
        ):
            writer.rate = rate
            done = during(seconds if seconds else 600)
            caught_up = (lambda row: row["lag"] < CAUGHT_UP and row["owed"] < 1_000) if seconds is None else done
            phases[name] = observe(run, writer, lambda row, a=done, b=caught_up: a(row) or b(row))  # type: ignore[misc]
            print(f"{name}: {len(phases[name])} samples", file=sys.stderr)
        writer.stop()
        code = run.process.wait()
    with (folder / "out.jsonl").open("rb") as sink:
        written = sum(1 for _ in sink)
    rows: list[dict[str, Any]] = []
    for name, seen in phases.items():
        rise, half = slope([row["seconds"] for row in seen], [row["rss"] / 1e6 for row in seen])
        rows.append(
            {
                "offered": name,
                "seconds": seen[-1]["seconds"] - seen[0]["seconds"],
                "events/s": median(row["rate"] for row in seen),
                "writer held back": median(row["waited"] for row in seen),
                "queue, most": max(row["queue"] for row in seen),
                "lag s, first": seen[0]["lag"],
                "most": max(row["lag"] for row in seen),
                "last": seen[-1]["lag"],
                "RSS MB, last": seen[-1]["rss"] / 1e6,
                "MB/s": rise,
                "±": half,
            }
        )
    print_table(f"Overload; {writer.written:,} lines, {written:,} records, exit code {code}", rows)
    return rows


def clients(folder: Path, scale: float, pairs: int) -> list[dict[str, Any]]:
    """One run, in turns without and with them."""
    settings = settings_of(folder, STREAMS, 32, 2.0)
    rows: list[dict[str, Any]] = []
    with WatchedRun(options_of(settings), folder) as run:
        run.wait_ready()
        assert run.process.stdin is not None
        writer = Writer(run.process.stdin)  # type: ignore[arg-type]
        writer.rate = float("inf")
        time.sleep(10 * scale)

        def speed() -> float:
            begun, first = time.monotonic(), writer.written
            time.sleep(20 * scale)
            return (writer.written - first) / (time.monotonic() - begun)

        for pair in range(pairs):
            found: dict[str, Any] = {"pair": pair + 1}
            for bad in (True, False) if pair % 2 else (False, True):
                if not bad:
                    found["events/s alone"] = speed()
                    found["RSS MB alone"] = run.kernel()["rss"] / 1e6
                    continue
                told = [sys.executable, "-m", "benchmarks.bad_clients", str(run.port)]
                with subprocess.Popen(told, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as crowd:
                    assert crowd.stdout is not None
                    crowd.stdout.readline()  # they are there
                    found["events/s with them"] = speed()
                    found["RSS MB with them"] = run.kernel()["rss"] / 1e6
                    found |= json.loads(crowd.communicate()[0])
                time.sleep(2)  # until the last of them are gone
            found["ratio"] = found["events/s alone"] / found["events/s with them"]
            rows.append(found)
        writer.stop()
        rows.append({"pair": "median", "ratio": median(row["ratio"] for row in rows)})
        code = run.process.wait()
    with (folder / "out.jsonl").open("rb") as sink:
        written = sum(1 for _ in sink)
    print_table(f"Bad clients; {writer.written:,} lines, {written:,} records, exit code {code}", rows)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=["overload", "clients"])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    scale, pairs = (0.3, 2) if given.quick else (1.0, 5)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for part in [given.only] if given.only else ["overload", "clients"]:
            folder = Path(name) / part
            folder.mkdir()
            result[part] = overload(folder, scale) if part == "overload" else clients(folder, scale, pairs)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
