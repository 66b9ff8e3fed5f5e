"""What `benchmarks.retention` found, as tables on a terminal, as Markdown and as a picture."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from benchmarks.report import print_table
from benchmarks.retention_measures import AGES, CHOICES

Line = Mapping[str, Any]
READING = (
    "The score is the mean share of what the control leaves open, over the ages 4–15, 16–63 and 64–255; then its least "
    "and most over the seeds. `docs/retention.md` tells what is measured."
)
HALVES = {"chosen_on": "chosen on", "reported_on": "reported on"}
NAMES = [str(low) if low == high else f"{low}–{high:g}" if high < 1e9 else f"{low}+" for low, high in AGES]


def plain_lines(results: Line, backbone: str, write: str, ask: str, rank: int) -> list[Line]:
    """Return the settings of one backbone, granularity, question and rank, variants left out, the best first."""
    lines = [
        line
        for line in results["lines"]
        if (line["backbone"], line["write"], line["ask"], line["rank"]) == (backbone, write, ask, rank)
        and (line["mean"], line["values"], line["gain"]) == ("shipped", "unit", 0.0)
    ]
    return sorted(lines, key=lambda line: -line["chosen_on"]["score"])


def _papers(line: Line) -> bool:
    return bool((line["mode"], line["beta"]) == ("coupled", 0.18))


def main_lines(results: Line, backbone: str) -> list[Line]:
    """Return the rows worth showing: the paper's setting, and the best rule and β of each granularity and rank."""
    ranks = sorted({line["rank"] for line in results["lines"]})
    questions = (("segment", "message"), ("token", "message"), ("token", "token"))
    rows = []
    for write, ask in questions:
        rows += [line for line in plain_lines(results, backbone, write, ask, 8) if _papers(line)]
        for rank in ranks:
            rows += plain_lines(results, backbone, write, ask, rank)[:1]
    return rows


def variant_lines(results: Line, backbone: str) -> list[Line]:
    """Return the settings with another mean, raw values or driven gates, each group after the line that it varies."""
    every = [line for line in results["lines"] if line["backbone"] == backbone and line["ask"] == "message"]
    place = ("write", "rank", "mode", "beta", "lam")
    varied = {tuple(line[key] for key in place) for line in every if variation(line)}
    kept = [line for line in every if tuple(line[key] for key in place) in varied]
    return sorted(
        kept, key=lambda line: (line["write"], line["rank"], line["mode"], line["beta"], variation(line) != "")
    )


def variation(line: Line) -> str:
    """Say how a line departs from what the consumer does by itself; empty if it does not."""
    parts = [
        f"mean: {line['mean']}" if line["mean"] != "shipped" else "",
        "raw values" if line["values"] == "raw" else "",
        f"gate gain {line['gain']:g}" if line["gain"] else "",
    ]
    return ", ".join(part for part in parts if part)


def row(line: Line, half: str, measured: str = "hit") -> dict[str, Any]:
    """Return one row of a table: past pairs / control, by age."""
    beta = f"{line['beta']:g}" + (f", λ {line['lam']:g}" if line["lam"] is not None else "")
    asked = line["write"] if line["ask"] == "message" else "token, asked for tokens"
    cells: dict[str, Any] = {"write": asked, "R": line["rank"], "rule": line["mode"], "β": beta}
    numbers = line[half]
    for name, past, control in zip(NAMES, numbers[measured], numbers[f"{measured}_control"], strict=True):
        cells[name] = "" if past is None or control is None else f"{_short(past)}/{_short(control)}"
    if measured == "hit":
        cells["score"] = _short(numbers["score"])
        cells["seeds"] = f"{_short(numbers['score_least'])}–{_short(numbers['score_most'])}"
    return cells


def _short(number: float) -> str:
    rounded = round(number, 2) or 0.0  # no -0.00
    return f"{rounded:.2f}".replace("0.", ".", 1)


def tables(results: Line) -> Iterator[tuple[str, Sequence[Mapping[str, Any]]]]:
    """Yield a title and the rows of each table."""
    for backbone, chosen in results["choice"].items():
        yield f"{backbone}: the choice", [{"": name} | row(chosen, half) for half, name in HALVES.items()]
        for half, name in HALVES.items():
            yield (
                f"{backbone}: hit rate among {CHOICES}, past/control by age; conversations {name}",
                [row(line, half) for line in main_lines(results, backbone)],
            )
        for measured in ("cosine", "error"):
            yield (
                f"{backbone}: {measured}, past/control by age; conversations reported on",
                [row(line, "reported_on", measured) for line in main_lines(results, backbone)],
            )
        if varied := variant_lines(results, backbone):
            yield (
                f"{backbone}: variants, hit rate; conversations reported on",
                [row(line, "reported_on") | {"variant": variation(line)} for line in varied],
            )
    yield "One message, µs of one core; the consumer's speed as a share of that at the smallest rank", results["costs"]


def print_results(results: Line) -> None:
    """Print the tables."""
    for title, rows in tables(results):
        print_table(title, rows)


def markdown(results: Line) -> str:
    """Return the tables as one Markdown page."""
    about = ", ".join(f"{key} {results[key]}" for key in ("source", "conversations", "messages", "seeds", "every"))
    page = ["# Retention", "", f"Written by `python -m benchmarks.retention`: {about}.", "", READING]
    for title, rows in tables(results):
        columns = list(dict.fromkeys(key for line in rows for key in line))
        page += ["", f"## {title}", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        page += ["| " + " | ".join(str(line.get(column, "")) for column in columns) + " |" for line in rows]
    return "\n".join(page) + "\n"


def as_json(results: Line) -> str:
    """Return the numbers as JSON, a setting a line; of the conversations chosen on, only hit rates and scores."""
    head = {key: value for key, value in results.items() if key not in ("choice", "lines")}
    head["choice"] = {backbone: _setting(line) for backbone, line in results["choice"].items()}
    body = ",\n".join(json.dumps(_stored(line), ensure_ascii=False, separators=(",", ":")) for line in results["lines"])
    return f'{json.dumps(head, ensure_ascii=False, indent=1)[:-2]},\n "lines": [\n{body}\n]}}\n'


def _setting(line: Line) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in HALVES}


def _stored(line: Line) -> dict[str, Any]:
    """Leave out what the rest gives: lift and share; the controls are there."""
    stored = _setting(line)
    for half in HALVES:
        stored[half] = {
            key: value
            for key, value in line[half].items()
            if not key.endswith(("lift", "share")) or key == "score_by_lift"
            if half == "reported_on" or not key.startswith(("cosine", "error"))
        }
    return stored


def curves(results: Line, backbone: str) -> list[tuple[str, str, str, list[float | None]]]:
    """Return the curves of one panel: label, colour, dashes, hit rate by age on the conversations reported on."""
    chosen = results["choice"][backbone]
    paper = [line for line in plain_lines(results, backbone, "segment", "message", 8) if _papers(line)]
    label = f"R = {chosen['rank']}, {chosen['mode']}, β = {chosen['beta']:g}, one write a {chosen['write']}"
    found = [
        (label, "#0b6e99", "", chosen["reported_on"]["hit"]),
        ("the same, messages never written", "#0b6e99", "5 4", chosen["reported_on"]["hit_control"]),
    ]
    if paper:
        found.append(("R = 8, coupled, β = 0.18, one write a segment", "#c2410c", "", paper[0]["reported_on"]["hit"]))
    return [*found, ("chance", "#6b7280", "2 4", [1 / CHOICES] * len(AGES))]


def curve_svg(results: Line) -> str:
    """Draw the hit rate by age, a panel for each backbone."""
    wide, high, left, top, gap = 340, 230, 56, 44, 70
    panels = list(results["choice"])
    size = (left + len(panels) * (wide + gap) - gap + 32, top + high + 140)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" width="{size[0]}" '
        f'height="{size[1]}" font-family="Helvetica, Arial, sans-serif" font-size="12" fill="#111827">',
        f'<rect width="{size[0]}" height="{size[1]}" fill="#ffffff"/>',
    ]
    for panel, backbone in enumerate(panels):
        x0 = left + panel * (wide + gap)
        step = wide / (len(NAMES) - 1)
        out.append(f'<text x="{x0}" y="{top - 18}" font-size="15" font-weight="bold">{escape(backbone)}</text>')
        for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
            y = top + high * (1 - tick)
            out.append(f'<line x1="{x0}" x2="{x0 + wide}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e5e7eb"/>')
            out.append(f'<text x="{x0 - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
        for index, name in enumerate(NAMES):
            out.append(f'<text x="{x0 + index * step:.1f}" y="{top + high + 18}" text-anchor="middle">{name}</text>')
        middle = x0 + wide / 2
        out.append(f'<text x="{middle:.1f}" y="{top + high + 38}" text-anchor="middle">age in messages</text>')
        for number, (label, colour, dashes, rates) in enumerate(curves(results, backbone)):
            held = [(x0 + i * step, top + high * (1 - rate)) for i, rate in enumerate(rates) if rate is not None]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in held)
            stroke = f'stroke="{colour}" stroke-width="2.5" fill="none" stroke-dasharray="{dashes}"'
            out.append(f'<polyline points="{path}" {stroke}/>')
            y = top + high + 64 + 20 * number
            out.append(f'<line x1="{x0}" x2="{x0 + 28}" y1="{y - 4}" y2="{y - 4}" {stroke}/>')
            out.append(f'<text x="{x0 + 36}" y="{y}">{escape(label)}</text>')
    out.append(
        f'<text transform="translate(14 {top + high / 2}) rotate(-90)" text-anchor="middle">'
        f"own value nearest among {CHOICES}</text>"
    )
    return "\n".join([*out, "</svg>"]) + "\n"
