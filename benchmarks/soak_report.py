"""Figures and a picture of a soak's samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any

PARTS = 20
"""Into how many parts the second half is cut for the slope: samples side by side are alike, their means less so."""

STUDENT = 2.101
"""The 97.5 % point of Student's t with PARTS − 2 degrees of freedom."""

Rows = Sequence[Mapping[str, Any]]


def slope(x: Sequence[float], y: Sequence[float], parts: int = PARTS) -> tuple[float, float]:
    """Return the slope of y over x by least squares over the means of 20 parts, and half of its 95 % interval.

    Parameters
    ----------
    x, y
        As long as each other, x ascending.
    parts
        20, for which the interval holds.

    Examples
    --------
    >>> x = [float(n) for n in range(200)]
    >>> [round(each, 6) for each in slope(x, [3 + 2 * each for each in x])]
    [2.0, 0.0]
    """
    cuts = [round(k * len(x) / parts) for k in range(parts + 1)]
    means = [(mean(x[a:b]), mean(y[a:b])) for a, b in pairwise(cuts) if b > a]
    if len(means) < 3:
        return math.nan, math.nan
    middle = mean(a for a, _ in means), mean(b for _, b in means)
    spread = sum((a - middle[0]) ** 2 for a, _ in means)
    rise = sum((a - middle[0]) * (b - middle[1]) for a, b in means) / spread
    rest = sum((b - middle[1] - rise * (a - middle[0])) ** 2 for a, b in means)
    return rise, STUDENT * math.sqrt(rest / (len(means) - 2) / spread)


def cost(rows: Rows, parts: int = 10) -> list[tuple[float, float]]:
    """Return the processor time of an event, which a busy machine changes little, in equal parts of the events.

    Returns
    -------
    list of (float, float)
        Events at each part's middle, and microseconds an event.

    Examples
    --------
    >>> cost([{"events": 10.0 * n, "processor": 0.02 * n} for n in range(101)], parts=2)
    [(250.0, 2000.0), (750.0, 2000.0)]
    """
    first, last = rows[0]["events"], rows[-1]["events"]
    ends = [
        min(rows, key=lambda row: abs(row["events"] - (first + (last - first) * part / parts)))
        for part in range(parts + 1)
    ]
    return [
        ((a["events"] + b["events"]) / 2, (b["processor"] - a["processor"]) / (b["events"] - a["events"]) * 1e6)
        for a, b in pairwise(ends)
        if b["events"] > a["events"]
    ]


def figures(rows: Rows, plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a soak; memory is of the process that ended it, in the second half of what it did."""
    last = [row for row in rows if row["start"] == rows[-1]["start"]]
    second = [row for row in last if row["events"] >= (last[0]["events"] + last[-1]["events"]) / 2]
    events = [row["events"] / 1e6 for row in second]
    rates = [row["rate"] for row in last if "rate" in row]
    tenths = quantiles(rates, n=10) if len(rates) > 1 else [math.nan] * 9
    spilled = [row for row in last if "spills" in row]
    found: dict[str, Any] = {
        "starts": rows[-1]["start"] + 1,
        "samples": len(last),
        "seconds": last[-1]["seconds"],
        "load of the machine, mean": mean(row["load"] for row in last),
        "events/s, median": median(rates),
        "events/s, from the first to the ninth tenth": f"{tenths[0]:,.0f} to {tenths[-1]:,.0f}",
        "events/s, all in all": (last[-1]["events"] - last[0]["events"])
        / max(1e-9, last[-1]["seconds"] - last[0]["seconds"]),
        "processor seconds a wall second": (last[-1]["processor"] - last[0]["processor"])
        / max(1e-9, last[-1]["seconds"] - last[0]["seconds"]),
        "processor µs an event, least to most of ten parts": "{:.0f} to {:.0f}".format(
            *((min(each), max(each)) if (each := [micros for _, micros in cost(last)]) else (math.nan, math.nan))
        ),
        "lanes spilled a second, median": median(row["spills"] for row in spilled),
        "lanes brought back a second, median": median(row["returns"] for row in spilled),
        "lanes spilled in all": last[-1]["spilled_out"],
        "lanes brought back in all": last[-1]["spilled_in"],
    }
    for name, shown in (("rss", "resident memory"), ("anonymous", "resident memory of no file")):
        rise, half = slope(events, [row[name] / 1e6 for row in second])
        found[f"{shown}, MB at the end"] = last[-1][name] / 1e6
        found[f"{shown}, MB at the most"] = max(row[name] for row in last) / 1e6
        found[f"{shown}, MB per million events"] = rise
        found[f"{shown}, ± (95 %)"] = half
    for name in ("fds", "threads"):
        found[f"{name}, least to most in the second half"] = (
            f"{min(row[name] for row in second):.0f} to {max(row[name] for row in second):.0f}"
        )
    found["store at the end, MB"] = last[-1]["store"] / 1e6
    found["write-ahead log at the most, MB"] = max(row["wal"] for row in last) / 1e6
    found["sink at the end, MB"] = last[-1]["sink"] / 1e6
    for name in ("batch", "commit"):
        for half, part in (("first", last), ("second", second)):
            seen = [row[f"{name}_p99"] for row in part if row.get(f"{name}_p99") is not None]
            if half == "first":
                seen = [row[f"{name}_p99"] for row in last if row.get(f"{name}_p99") is not None and row not in second]
            found[f"{name}_p99 of parts of the {half} half, median"] = median(seen) if seen else math.nan
    return found


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Draw the series: memory, speed, latency, sizes."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    rows: Rows = result["samples"]
    steps = [{"events": at, "cost": micros} for at, micros in cost(rows)]
    panes: list[tuple[str, list[tuple[str, str, float]]]] = [
        ("resident memory (MB)", [("rss", "all", 1e6), ("anonymous", "of no file", 1e6)]),
        ("events a second", [("rate", "", 1)]),
        ("processor time of an event (µs)", [("cost", "", 1)]),
        ("lanes a second", [("spills", "spilled", 1), ("returns", "brought back", 1)]),
        ("p99 (s)", [("batch_p99", "micro-batch", 1), ("commit_p99", "commit", 1)]),
        ("files (MB)", [("store", "store", 1e6), ("wal", "its log", 1e6)]),
        ("load of the machine", [("load", "", 1)]),
        ("of the process", [("fds", "descriptors", 1), ("threads", "threads", 1)]),
    ]
    figure, axes = plt.subplots(4, 2, figsize=(11, 11), sharex=True, layout="constrained")
    for axis, (title, series) in zip(axes.flat, panes, strict=True):
        for name, label, unit in series:
            seen = [row for row in (steps if name == "cost" else rows) if row.get(name) is not None]
            points = [(row["events"] / 1e6, row[name] / unit) for row in seen]
            few = len(points) < 20
            axis.plot(*zip(*points, strict=True), label=label or None, linewidth=1, marker="." if few else None)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        if len(series) > 1:
            axis.legend(fontsize=8, frameon=False)
    for axis in axes[-1]:
        axis.set_xlabel("million events")
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
