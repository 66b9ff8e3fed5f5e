"""Plain drawing in SVG: frames, lines, numbers, heatmaps, tables."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, TypeAlias

Series: TypeAlias = tuple[str, list[tuple[float, float]]]
"""A line's name, and its points: Unix seconds, value."""

COLORS = ("#3366cc", "#dc3912", "#109618", "#ff9900", "#990099", "#0099c6", "#dd4477", "#66aa00", "#b82e2e", "#316395")

_SUFFIX = {"s": " s", "eps": " events/s", "cps": "/s", "Bps": "B/s", "bytes": "B"}


def human(value: float, unit: str) -> str:
    """Return a number as people read it.

    Examples
    --------
    >>> human(0.25, "percentunit"), human(1_234_567, "bytes"), human(0.0123, "s"), human(7, "none")
    ('25%', '1.23 MB', '0.0123 s', '7')
    """
    if unit == "percentunit":
        return f"{100 * value:.3g}%"
    scaled, letter = value, ""
    for letter, size in (("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0)):
        if abs(value) >= size or not letter:
            scaled = value / size
            break
    suffix = _SUFFIX.get(unit, "")
    return f"{scaled:.3g}{' ' if letter and unit == 'bytes' else ''}{letter}{suffix}"


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle, in pixels."""

    x: float
    y: float
    w: float
    h: float


class Canvas:
    """What is drawn on.

    Examples
    --------
    >>> canvas = Canvas(100, 50)
    >>> canvas.text(5, 20, "a < b")
    >>> "a &lt; b" in canvas.svg()
    True
    """

    def __init__(self, width: int, height: int):
        self.width, self.height = width, height
        self._parts: list[str] = []

    def svg(self) -> str:
        """Return the picture."""
        size = f"{self.width} {self.height}"
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" font-family="sans-serif">'
        ground = f'<rect width="{self.width}" height="{self.height}" fill="#f4f5f5"/>'
        return "\n".join([head, ground, *self._parts, "</svg>\n"])

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: int = 11,
        weight: int = 400,
        anchor: str = "start",
        color: str = "#333",
    ) -> None:
        """Write one line."""
        self._parts.append(
            f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
            f'fill="{color}">{escape(words)}</text>'
        )

    def rect(self, box: Box, color: str, edge: str = "none", opacity: float = 1.0) -> None:
        """Fill a rectangle."""
        self._parts.append(
            f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.w:.1f}" height="{box.h:.1f}" fill="{color}" '
            f'stroke="{edge}" fill-opacity="{opacity:.2f}"/>'
        )

    def frame(self, box: Box, title: str) -> Box:
        """Draw a panel's frame and title; return the room in it."""
        self.rect(box, "#fff", "#d8d9da")
        self.text(box.x + 8, box.y + 18, title[: int(box.w / 6)], size=12, weight=600)
        return Box(box.x + 8, box.y + 28, box.w - 16, box.h - 34)

    def words(self, box: Box, content: str) -> None:
        """Write paragraphs, without their marks."""
        y = box.y + 8
        for paragraph in content.split("\n\n"):
            for line in textwrap.wrap(paragraph.replace("**", "").replace("`", ""), int(box.w / 5.6)):
                self.text(box.x, y, line)
                y += 15
            y += 6

    def table(self, box: Box, rows: Sequence[Mapping[str, str]]) -> None:
        """Write rows of labels."""
        names = sorted({name for row in rows for name in row if name not in ("__name__", "job")})
        wide = box.w / max(1, len(names))
        for line, row in enumerate([{name: name for name in names}, *rows][: int(box.h / 16)]):
            for place, name in enumerate(names):
                weight = 600 if line == 0 else 400
                words = row.get(name, "")[: max(3, int(wide / 6))]
                self.text(box.x + place * wide, box.y + 10 + 16 * line, words, weight=weight)

    def number(
        self, box: Box, value: float | None, unit: str, limits: Sequence[tuple[float, str]], mappings: Sequence[Any]
    ) -> None:
        """Write one number, in the colour of its threshold."""
        color = "#37872d"
        for limit, name in limits:
            if value is not None and value >= limit:
                color = {"red": "#c4162a", "orange": "#e0752d", "green": "#37872d"}.get(name, name)
        words = "no data" if value is None else human(value, unit)
        for mapping in mappings:
            words = mapping["options"].get(f"{value:g}", {}).get("text", words) if value is not None else words
        self.text(box.x + box.w / 2, box.y + box.h / 2 + 10, words, size=24, weight=600, anchor="middle", color=color)

    def lines(
        self,
        box: Box,
        lines: Sequence[Series],
        unit: str,
        limits: Sequence[tuple[float, str]],
        begin: float,
        end: float,
        stacked: bool,
    ) -> None:
        """Draw lines over time, their names below, and thresholds that lie within the picture."""
        if not any(points for _, points in lines):
            self.text(box.x + box.w / 2, box.y + box.h / 2, "no data", anchor="middle", color="#888")
            return
        below = 16 * min(2, 1 + len(lines) // 5)
        plot = Box(box.x + 66, box.y + 4, box.w - 72, box.h - 12 - below)
        drawn = _stacked(lines) if stacked else list(lines)
        values = [value for _, points in drawn for _, value in points]
        low, high = min(0.0, *values), 1.08 * max(values)
        high = high if high > low else low + 1

        def up(value: float) -> float:
            return plot.y + plot.h * (1 - (value - low) / (high - low))

        for part in range(5):
            value = low + (high - low) * part / 4
            self._line([(plot.x, up(value)), (plot.x + plot.w, up(value))], "#e5e5e5")
            self.text(plot.x - 4, up(value) + 4, human(value, unit), size=10, anchor="end", color="#777")
        for limit, color in limits:
            if low <= limit <= high:
                self._line([(plot.x, up(limit)), (plot.x + plot.w, up(limit))], color, dash="5 4")
        for place, (name, points) in enumerate(drawn):
            color = COLORS[place % len(COLORS)]
            self._line(
                [(plot.x + plot.w * (at - begin) / (end - begin), up(value)) for at, value in points], color, 1.4
            )
            across, down = place % 5, place // 5
            if down < 2:
                x, y = box.x + across * box.w / 5, box.y + box.h - below + 12 + 14 * down
                self.rect(Box(x, y - 7, 8, 8), color)
                self.text(x + 11, y, name[: int(box.w / 5 / 5.6)], size=10)

    def marks(self, box: Box, color: str, times: Sequence[float], begin: float, end: float) -> None:
        """Mark what happened, by ticks along the top of a picture with a time axis."""
        across = [box.x + 66 + (box.w - 72) * (at - begin) / (end - begin) for at in times]
        path = "".join(f"M{x:.0f} {box.y - 2:.0f}v6" for x in across)
        self._parts.append(f'<path d="{path}" stroke="{color}" stroke-width="2"/>')

    def heatmap(self, box: Box, lines: Sequence[Series], begin: float, end: float) -> None:
        """Draw a histogram over time: buckets upwards, dark where there are many values."""
        bounds = sorted(lines, key=lambda line: float(line[0]))
        times = sorted({at for _, points in lines for at, _ in points})
        if not times:
            self.text(box.x + box.w / 2, box.y + box.h / 2, "no data", anchor="middle", color="#888")
            return
        before: dict[float, float] = {}
        cells = []
        for row, (_, points) in enumerate(bounds):
            here = dict(points)
            cells += [(row, at, max(0.0, value - before.get(at, 0.0))) for at, value in here.items()]
            before = here
        most = max(value for *_, value in cells) or 1.0
        plot = Box(box.x + 42, box.y + 2, box.w - 46, box.h - 6)
        high = plot.h / len(bounds)
        wide = plot.w * (times[1] - times[0] if len(times) > 1 else end - begin) / (end - begin)
        shades: dict[int, list[str]] = {}
        for row, (bound, _) in enumerate(bounds):
            if row % max(1, len(bounds) // 8) == 0:
                self.text(
                    plot.x - 4, plot.y + plot.h - row * high - high / 2 + 4, bound, size=10, anchor="end", color="#777"
                )
        for row, at, value in cells:
            if value > 0:
                x = plot.x + plot.w * (at - begin) / (end - begin)
                across = min(wide, plot.x + plot.w - x)
                shade = max(1, round(10 * (value / most) ** 0.5))
                tile = f"M{x:.1f} {plot.y + plot.h - (row + 1) * high:.1f}h{across:.1f}v{high:.1f}h-{across:.1f}z"
                shades.setdefault(shade, []).append(tile)
        for shade, tiles in sorted(shades.items()):
            self._parts.append(f'<path fill="#1f4e9c" fill-opacity="{shade / 10}" d="{"".join(tiles)}"/>')

    def _line(self, points: Sequence[tuple[float, float]], color: str, width: float = 1.0, dash: str = "") -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self._parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width}"{dashes}/>')


def _stacked(lines: Sequence[Series]) -> list[Series]:
    """Return each line with those before it added.

    >>> _stacked([("a", [(0, 1.0)]), ("b", [(0, 2.0), (5, 1.0)])])
    [('a', [(0, 1.0)]), ('b', [(0, 3.0), (5, 1.0)])]
    """
    sums: dict[float, float] = {}
    drawn = []
    for name, points in lines:
        for at, value in points:
            sums[at] = sums.get(at, 0.0) + value
        drawn.append((name, [(at, sums[at]) for at, _ in points]))
    return drawn
