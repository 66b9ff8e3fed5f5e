"""Reliability curves as a small SVG."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

COLOURS = ("#1f6f8b", "#c8553d", "#588157", "#8d6a9f", "#b08900", "#555555")
SIDE, EDGE = 300, 44


def bins(p: npt.NDArray[np.float64], y: npt.NDArray[np.int64], count: int = 10) -> list[tuple[float, float, int]]:
    """Return (mean probability, share that was so, events) of each tenth of the range that holds an event.

    Examples
    --------
    >>> bins(np.array([0.02, 0.04, 0.91]), np.array([0, 1, 1]))
    [(0.03, 0.5, 2), (0.91, 1.0, 1)]
    """
    fine = np.isfinite(p)
    p, y = p[fine], y[fine]
    place = np.minimum((p * count).astype(int), count - 1)
    groups = [place == k for k in range(count) if (place == k).any()]
    return [(float(p[group].mean()), float(y[group].mean()), int(group.sum())) for group in groups]


def reliability_svg(curves: Mapping[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]]) -> str:
    """Return the picture: predicted probability across, share of events that were boundaries up."""

    def x(value: float) -> str:
        return f"{EDGE + SIDE * value:.1f}"

    def y(value: float) -> str:
        return f"{10 + SIDE * (1 - value):.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIDE + EDGE + 170} {SIDE + 50}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect x="{x(0)}" y="{y(1)}" width="{SIDE}" height="{SIDE}" fill="white" stroke="#999"/>',
        f'<line x1="{x(0)}" y1="{y(0)}" x2="{x(1)}" y2="{y(1)}" stroke="#bbb" stroke-dasharray="4 3"/>',
        f'<text x="{x(0.5)}" y="{SIDE + 42}" text-anchor="middle">topic_shift_score</text>',
        f'<text x="12" y="{y(0.5)}" text-anchor="middle" transform="rotate(-90 12 {y(0.5)})">'
        "share of boundaries</text>",
    ]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<text x="{x(tick)}" y="{SIDE + 25}" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<text x="{EDGE - 5}" y="{float(y(tick)) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for k, (name, (p, labels)) in enumerate(curves.items()):
        colour, points = COLOURS[k % len(COLOURS)], bins(p, labels)
        line = " ".join(f"{x(a)},{y(b)}" for a, b, _ in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts += [f'<circle cx="{x(a)}" cy="{y(b)}" r="2.5" fill="{colour}"/>' for a, b, _ in points]
        parts.append(f'<text x="{SIDE + EDGE + 10}" y="{24 + 16 * k}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])
