"""The dashboards drawn without Grafana: a quick look at what a Prometheus has, as one SVG each.

python -m dashboards.preview --prometheus http://127.0.0.1:9090 --minutes 30 --out DIR

It lays the panels out as the JSON says and draws what each query answers, plainly: lines, numbers, heatmaps, tables.
Grafana draws them better, with tooltips, legends that scroll, and links; nothing here stands in for it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from dashboards.grafana import DASHBOARDS
from dashboards.panels import Json
from dashboards.sketch import Box, Canvas, Series

Ask: TypeAlias = Callable[[str, bool], list[Json]]
"""Query, whether at one instant → what Prometheus answers."""

COLUMN, UNIT, GAP = 60, 30, 6
"""Pixels of a column and of a row of Grafana's grid, and between panels."""


def filled_in(expr: str, variables: Sequence[Json], window: str) -> str:
    """Return a query with everything chosen, or the first value where only one can be.

    Examples
    --------
    >>> filled_in('rate(x{job=~"$job"}[$__rate_interval])', [{"name": "job", "multi": True}], "1m")
    'rate(x{job=~".+"}[1m])'
    """
    values = {"__rate_interval": window}
    for each in variables:
        values[each["name"]] = ".+" if each.get("multi") else str(each.get("current", {}).get("value", ""))
    for name, value in values.items():
        expr = expr.replace("${" + name + "}", value).replace(f"${name}", value)
    return expr


def series_of(answer: Sequence[Json], legend: str) -> list[Series]:
    """Return a matrix's lines, with their names and without what is not finite.

    Examples
    --------
    >>> series_of([{"metric": {"le": "1"}, "values": [[0, "2"], [5, "NaN"]]}], "{{le}}")
    [('1', [(0.0, 2.0)])]
    """
    lines = []
    for each in answer:
        name = legend
        for label, value in each["metric"].items():
            name = name.replace("{{" + label + "}}", value)
        points = [(float(at), float(value)) for at, value in each["values"]]
        lines.append((name, [(at, value) for at, value in points if math.isfinite(value)]))
    return lines


def draw(board: Json, ask: Ask, begin: float, end: float, window: str) -> str:
    """Return one dashboard as SVG.

    Parameters
    ----------
    board
        As Grafana has it.
    ask
        Answers its queries, over the time from `begin` to `end` in Unix seconds.
    begin, end
        Of the time axis.
    window
        What `$__rate_interval` stands for.
    """
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    canvas = Canvas(24 * COLUMN, height * UNIT + 50)
    canvas.text(10, 30, board["title"], size=20, weight=600)
    canvas.text(24 * COLUMN - 10, 30, "drawn by dashboards.preview, not by Grafana", size=12, anchor="end")
    variables = board["templating"]["list"]

    def asked(target: Json) -> list[Json]:
        return ask(filled_in(target["expr"], variables, window), bool(target.get("instant")))

    marks = [(each["iconColor"], asked(each["target"])) for each in board["annotations"]["list"] if each["enable"]]
    for panel in board["panels"]:
        place = panel["gridPos"]
        box = Box(place["x"] * COLUMN, place["y"] * UNIT + 50, place["w"] * COLUMN - GAP, place["h"] * UNIT - GAP)
        title = filled_in(panel["title"], variables, window)
        if panel["type"] == "row":
            canvas.text(box.x + 4, box.y + 20, title, size=15, weight=600)
            continue
        inner = canvas.frame(box, title)
        if panel["type"] == "text":
            canvas.words(inner, panel["options"]["content"])
            continue
        settings = panel["fieldConfig"]["defaults"]
        limits = [
            (step["value"], step["color"]) for step in settings["thresholds"]["steps"] if step["value"] is not None
        ]
        answers = [(target["legendFormat"], asked(target)) for target in panel["targets"]]
        if panel["type"] == "table":
            canvas.table(inner, [row["metric"] | _value(row) for _, answer in answers for row in answer])
            continue
        lines = [line for legend, answer in answers for line in series_of(answer, legend)]
        if panel["type"] == "stat":
            canvas.number(inner, _latest(lines), settings["unit"], limits, settings.get("mappings", ()))
        elif panel["type"] == "heatmap":
            canvas.heatmap(inner, lines, begin, end)
        else:
            stacked = settings["custom"]["stacking"]["mode"] == "normal"
            canvas.lines(inner, lines, settings["unit"], limits, begin, end, stacked)
            for color, answer in marks:
                canvas.marks(inner, color, [at for _, points in series_of(answer, "") for at, _ in points], begin, end)
    return canvas.svg()


def _value(row: Json) -> dict[str, str]:
    """Return what a table shows beside the labels; an info metric is always 1, which tells nothing."""
    return {} if row["metric"].get("__name__", "").endswith("_info") else {"value": f"{float(row['value'][1]):.4g}"}


def _latest(lines: Sequence[Series]) -> float | None:
    points = [points[-1][1] for _, points in lines if points]
    return points[0] if points else None


def prometheus(address: str, begin: float, end: float, points: int = 72) -> Ask:
    """Return what asks a server, for at most so many points a line."""
    step = max(1.0, math.ceil((end - begin) / points))

    def ask(query: str, instant: bool) -> list[Json]:
        parameters: Mapping[str, Any] = {"query": query, "time": end}
        path = "query"
        if not instant:
            path, parameters = "query_range", {"query": query, "start": begin, "end": end, "step": step}
        url = f"{address.rstrip('/')}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            result: list[Json] = json.load(answer)["data"]["result"]
        return result

    return ask


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw every dashboard; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dashboards.preview", description="The dashboards as SVG.")
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="address of the server")
    parser.add_argument("--minutes", type=float, default=30, help="how far to look back")
    parser.add_argument("--window", default="1m", help="what rates are taken over")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files; made if need be")
    chosen = parser.parse_args(arguments)
    end = math.floor(time.time())
    begin = end - 60 * chosen.minutes
    chosen.out.mkdir(parents=True, exist_ok=True)
    for each in DASHBOARDS:
        path = chosen.out / f"{each.uid}.svg"
        path.write_text(draw(each.to_json(), prometheus(chosen.prometheus, begin, end), begin, end, chosen.window))
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
