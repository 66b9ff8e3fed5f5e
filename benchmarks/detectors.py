"""Detectors on annotated series, on series that are known, and what they cost; ADWIN against river's, lane by lane.

    python -m benchmarks.detectors [--quick] [--records FILE] [--write]

Prints everything, and with `--write` puts it into `benchmarks/results/detectors.md`. Five parts:

1. Every detector with its default settings over the seven annotated series that river ships (`change_points.py`),
   scored by cover and F1 as the Turing benchmark scores, beside the defaults published there. What is scored is the
   index at which a detector alarms, which is later than the change. A series of several dimensions is one lane for
   each, and the series alarms when any of them does.
2. What lateness alone costs there: each annotator against all of them, and then the same, so many values late.
3. How often a stationary lane alarms, and how long a shift of so many deviations takes.
4. Nanoseconds for one value of one lane with many lanes a call, bytes a lane, and microseconds to write and read one
   lane's checkpoint. Detectors take turns, and medians are shown: only the ratios within one run mean anything.
5. With `--records`, the signals of a real run over a stationary stream (`detectors_on_signals.py`).
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from benchmarks.change_points import Series, cover, delays, f1, load
from benchmarks.detectors_on_signals import AT, on_records
from benchmarks.report import print_table
from memory.lane_state import Columns, LaneState
from memory.threads import set_threads
from monitors.detectors import ADWIN, CUSUM, DETECTORS, EWMA, Detector, PageHinkley, RiverDetector, Shewhart

RESULTS = Path(__file__).parent / "results" / "detectors.md"

TEXTBOOK: dict[str, Detector] = {
    "adwin, clock 1": ADWIN(clock=1),
    "cusum, slack ½, threshold 5": CUSUM(slack=0.5, threshold=5.0),
    "ewma, weight 0.2, width 2.962": EWMA(weight=0.2, width=2.962),
    "page_hinkley, threshold 5": PageHinkley(threshold=5.0),
    "shewhart, both sides": Shewhart(side="both"),
}
"""Settings from the books, or with one thing changed that the series' unit asks for. None was chosen by its score."""

PUBLISHED = {
    "never firing (zero)": (0.566, 0.645),
    "BOCPD": (0.594, 0.662),
    "binary segmentation": (0.672, 0.698),
}
"""Cover and F1 with default settings, the mean over all univariate series of the Turing benchmark, as published."""

PUBLISHED_HERE: dict[str, dict[str, tuple[float, float]]] = {
    "BOCPD": {
        "apple": (0.3653, 0.5131),
        "bitcoin": (0.7174, 0.6923),
        "brent_spot": (0.5859, 0.5208),
        "jfk_passengers": (0.5412, 0.4368),
        "occupancy": (0.5490, 0.8074),
        "run_log": (0.8154, 1.0),
    },
    "binary segmentation": {
        "bitcoin": (0.7544, 0.4257),
        "brent_spot": (0.6268, 0.4834),
        "jfk_passengers": (0.8393, 0.7755),
    },
}
"""The same on the series that are here (TCPDBench, analysis/output/scores); where one is missing, it had no result."""

SLOW = "river KSWIN"
"""A quarter of a millisecond for each value: measured on fewer lanes."""

Row = dict[str, Any]
Values = npt.NDArray[np.float64]


def detectors() -> dict[str, Detector]:
    """Return every detector in the registry with its defaults, and of river's those for numbers that differ."""
    ours = {name: kind() for name, kind in DETECTORS.items() if name != "river"}
    return ours | {SLOW: RiverDetector(detector="KSWIN")}


def alarms_of(detector: Detector, values: Values) -> npt.NDArray[np.bool_]:
    """Return `[T, n]` bool: where each column of `values` `[T, n]` alarms, all advanced together."""
    lanes = detector.new_lanes()
    lanes.resize(values.shape[1])
    slots = np.arange(values.shape[1])
    return np.array([detector.update(lanes, slots, row) for row in values])


# 1 and 2: annotated series


def scored(name: str, found: Mapping[str, Sequence[int]], series: Sequence[Series], margins: Sequence[int]) -> Row:
    """Return one row: cover and F1, the means over series; how many changes were seen before the next, and how late."""
    late = [delay for one in series for delay in delays(one.annotations, found[one.name], len(one.values))]
    seen = [delay for delay in late if delay is not None]
    return {
        "detector": name,
        "cover": np.mean([cover(one.annotations, found[one.name], len(one.values)) for one in series]),
        **{
            "F1" if margin == 5 else f"F1 ±{margin}": np.mean(
                [f1(one.annotations, found[one.name], margin) for one in series]
            )
            for margin in margins
        },
        "alarms": sum(map(len, found.values())),
        "seen": f"{len(seen)}/{len(late)}",
        "median delay": float(statistics.median(seen)) if seen else None,
    }


def found_by(detector: Detector, series: Sequence[Series]) -> dict[str, list[int]]:
    """Return where each series alarms: where any of its dimensions does."""
    return {one.name: np.flatnonzero(alarms_of(detector, one.values).any(axis=1)).tolist() for one in series}


def on_annotated_series(series: Sequence[Series]) -> tuple[list[Row], list[Row]]:
    """Return the rows of part 1: each detector over all series; and by series, with what was published."""
    all_rows, by_series = [], []
    for name, detector in (detectors() | TEXTBOOK).items():
        found = found_by(detector, series)
        if name in ("adwin", "page_hinkley"):
            theirs = RiverDetector(detector={"adwin": "ADWIN", "page_hinkley": "PageHinkley"}[name])
            assert found_by(theirs, series) == found, f"{name} alarms elsewhere than river's"
        all_rows.append(scored(name, found, series, (5, 10, 20, 40)))
        by_series.append(
            {"cover / F1": name}
            | {
                one.name: _pair(
                    cover(one.annotations, found[one.name], len(one.values)), f1(one.annotations, found[one.name])
                )
                for one in series
            }
        )
    for name, scores in PUBLISHED_HERE.items():
        by_series.append({"cover / F1": f"{name} (published)"} | {at: _pair(*pair) for at, pair in scores.items()})
    return all_rows, by_series


def on_series_that_all_answered(series: Sequence[Series]) -> list[Row]:
    """Return cover and F1, the means over the series that every published method here has a result for."""
    common = [one for one in series if all(one.name in scores for scores in PUBLISHED_HERE.values())]
    rows = []
    for name, detector in detectors().items():
        row = scored(name, found_by(detector, common), common, (5,))
        rows.append({key: row[key] for key in ("detector", "cover", "F1")})
    for name, scores in PUBLISHED_HERE.items():
        means = np.mean([scores[one.name] for one in common], axis=0).tolist()
        rows.append({"detector": f"{name} (published)", "cover": means[0], "F1": means[1]})
    return rows


def _pair(first: float, second: float) -> str:
    return f"{first:.2f} / {second:.2f}"


def what_lateness_costs(series: Sequence[Series]) -> list[Row]:
    """Return the rows of part 2: each annotator in turn taken for a detector that is never wrong, only late."""
    rows = []
    for late in (0, 2, 5, 6, 10, 20, 40):
        covers, scores = [], []
        for one in series:
            for points in one.annotations:
                found = [point + late for point in points if point + late < len(one.values)]
                covers.append(cover(one.annotations, found, len(one.values)))
                scores.append(f1(one.annotations, found))
        rows.append({"an annotator, so many values late": late, "cover": np.mean(covers), "F1": np.mean(scores)})
    return rows


# 3: known series


def on_known_series(lanes: int) -> list[Row]:
    """Return the rows of part 3: normal values about 0.5, stationary for 1,000, or with a shift after 200."""
    rows = []
    for name, detector in (detectors() | TEXTBOOK).items():
        if isinstance(detector, RiverDetector) or name in ("never", "threshold"):
            continue  # too slow for so many lanes; alarm never, or at every second value
        row: Row = {"detector": name}
        for sigma in (0.1, 1.0):
            rng = np.random.default_rng(0)
            quiet = alarms_of(detector, rng.normal(0.5, sigma, (1_000, lanes)))
            row[f"σ={sigma:g}: lanes that alarm in 1,000"] = f"{quiet.any(axis=0).mean():.1%}"
            for shift in (1, 2, 4):
                values = rng.normal(0.5, sigma, (1_200, lanes))
                values[200:] += shift * sigma
                after = alarms_of(detector, values)[200:]
                first = np.where(after.any(axis=0), after.argmax(axis=0) + 1.0, np.inf)
                median = float(np.median(first))
                row[f"σ={sigma:g}: {shift}σ"] = int(median) if np.isfinite(median) else ">1,000"
        rows.append(row)
    return rows


# 4: cost


def costs(lanes: int, rounds: int, slow_rounds: int) -> list[Row]:
    """Return the rows of part 4."""
    every = detectors() | {
        "river ADWIN": RiverDetector(detector="ADWIN"),
        "river PageHinkley": RiverDetector(detector="PageHinkley"),
    }
    set_threads(1)
    rng = np.random.default_rng(0)
    numbers = {name: lanes // 20 if name == SLOW else lanes for name in every}
    held: dict[str, LaneState] = {}
    grown: dict[str, int] = {}
    # Objects first: later they would be put where others were, and the process would not grow by all of their size.
    for name, detector in sorted(every.items(), key=lambda one: not isinstance(one[1], RiverDetector)):
        before = _resident()
        held[name] = detector.new_lanes()
        held[name].resize(numbers[name])
        for _ in range(110 if name == SLOW else 500):
            detector.update(held[name], np.arange(numbers[name]), rng.random(numbers[name]))
        grown[name] = round((_resident() - before) / numbers[name])
    spent: dict[str, list[float]] = {name: [] for name in every}
    for turn in range(rounds):
        values = rng.random(lanes)
        for name, detector in every.items():
            if name != SLOW or turn < slow_rounds:
                slots, given = np.arange(numbers[name]), values[: numbers[name]]
                begin = time.perf_counter()
                detector.update(held[name], slots, given)
                spent[name].append((time.perf_counter() - begin) / numbers[name])
    rows = []
    for name in every:
        state = held[name]
        slots, count = np.arange(numbers[name]), numbers[name]
        # In turns of 32: at one in 32 of them ADWIN looks at its windows, at those of all lanes here.
        turns = [statistics.fmean(spent[name][at : at + 32]) for at in range(0, len(spent[name]), 32)]
        writes, reads = [], []
        for _ in range(3):
            begin = time.perf_counter()
            blobs = state.dump(slots)
            writes.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            for slot, blob in zip(slots.tolist(), blobs, strict=True):
                state.load(slot, blob)
            reads.append(time.perf_counter() - begin)
        columns = (
            sum(cast("Values", state[column]).nbytes for column in state.columns)
            if isinstance(state, Columns)
            else None
        )
        rows.append(
            {
                "detector": name,
                "ns a value": 1e9 * statistics.median(turns),
                "bytes held": f"about {grown[name]:,}" if columns is None else round(columns / count),
                "bytes stored": round(statistics.fmean(map(len, blobs))),
                "write µs": 1e6 * statistics.median(writes) / count,
                "read µs": 1e6 * statistics.median(reads) / count,
            }
        )
    return rows


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


# The tables


def markdown(title: str, text: str, rows: Sequence[Row]) -> str:
    """Return one section with its table."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in rows]
    return f"## {title}\n\n{text}\n\n" + "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return f"{value:,.0f}"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 1 else f"{value:,.1f}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer lanes and rounds")
    parser.add_argument("--records", type=Path, help="output records of a run over a stationary stream")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    series = load()
    all_rows, by_series = on_annotated_series(series)
    published = [
        {"detector": f"{name} (published)", "cover": pair[0], "F1": pair[1]} for name, pair in PUBLISHED.items()
    ]
    lanes = 200 if options.quick else 2_000
    sections = [
        (
            "Annotated series, all seven",
            "Means over the series. `F1` is with the benchmark's margin of 5 values, `F1 ±10` and so on with wider "
            "ones. `seen`: annotated changes with an alarm before the next one. The published means are over all "
            "univariate series of the Turing benchmark, most of which are not here, and of methods that see the whole "
            "series before they answer.",
            all_rows + published,
        ),
        (
            "Annotated series, the three that every method answered",
            "Means over bitcoin, brent_spot and jfk_passengers: the same series for all rows.",
            on_series_that_all_answered(series),
        ),
        ("Annotated series, one by one", "Cover / F1 of each series.", by_series),
        (
            "What lateness costs",
            "Each annotator in turn is the detector, and reports its own changes, so many values late.",
            what_lateness_costs(series),
        ),
        (
            "Known series",
            f"{lanes:,} lanes of independent normal values about 0.5. The median number of values to an alarm, counted "
            "from the shift, after 200 stationary values; and the lanes that alarm within 1,000 stationary values.",
            on_known_series(lanes),
        ),
        (
            "Cost",
            "10,000 lanes a call (river KSWIN: 500), one thread, after 500 values of each lane (river KSWIN: 110).",
            costs(1_000 if options.quick else 10_000, 64 if options.quick else 320, 2 if options.quick else 3),
        ),
    ]
    if options.records:
        text = (
            "The output records of a run over a stationary stream, made as `benchmarks/detectors_on_signals.py` says. "
            f"Nothing is wrong there: every alarm is a false one. The faults lie on each lane from event {AT} on."
        )
        sections.append(("Signals of a run", text, on_records(options.records, alarms_of)))
    for title, _, rows in sections:
        print_table(title, rows)
    if options.write:
        command = "python -m benchmarks.detectors --write"
        head = f"# Detectors\n\nWritten by `{command}`. `docs/detectors.md` tells what it means.\n"
        RESULTS.write_text("\n".join([head, *(markdown(*section) for section in sections)]), encoding="utf-8")


if __name__ == "__main__":
    main()
