"""The report as one picture for a slide: 1920 x 1080 pixels, drawn by matplotlib.

Why matplotlib and not plotly's own export: that starts a browser, which a server or a container seldom has; matplotlib
draws by itself, offline, and gives the same picture everywhere. It is loaded only when a picture is asked for.
"""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from typing import Any

import numpy as np

from dashboards.report_data import DRAWN, Report
from dashboards.report_figures import TITLES
from dashboards.report_words import capacity, counted, health, number, percent, policy_did, what_next
from memory.errors import ConfigurationError

SIZE = (1920, 1080)
"""Pixels."""

_TEXT, _SOFT, _GRID, _ACCENT, _SECOND = "#13242b", "#52666e", "#e3eaed", "#0e7c86", "#2f6fb3"
_BAD, _ACT = "#b3261e", "#6d4bc3"
_LEVELS = {"good": "#17804f", "warn": "#9a5b00", "bad": "#b3261e"}
_DPI = 120
_LATER = " Run it as a shadow first, and compare again on a later day."


def report_slide(report: Report) -> bytes:
    """Return the picture as PNG.

    Raises
    ------
    ConfigurationError
        matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigurationError(
            "--png: expected matplotlib to draw the picture with, got none installed; pip install matplotlib"
        ) from None
    figure = Figure(figsize=(SIZE[0] / _DPI, SIZE[1] / _DPI), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    _words(figure, report)
    for row, name in enumerate(DRAWN):
        axes = figure.add_axes((0.05, 0.49 - 0.185 * row, 0.52, 0.13))
        _signal(axes, report, name, last=row == len(DRAWN) - 1)
    _curve(figure, report)
    _policies(figure, report)
    made = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; that is no reason to fail.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        warnings.filterwarnings("ignore", message=".*font.*")
        figure.savefig(made, format="png", dpi=_DPI, metadata={"Software": None})
    return made.getvalue()


def _write(figure: Any, x: float, y: float, text: str, **options: Any) -> None:
    # What stands between two dollar signs would be read as a formula.
    figure.text(x, y, text, va="top", parse_math=False, **{"color": _TEXT, "fontsize": 13, **options})


def _words(figure: Any, report: Report) -> None:
    level, healthy = health(report)
    name = report.name if len(report.name) <= 60 else report.name[:59] + "…"
    _write(figure, 0.05, 0.965, f"Ebbtide: {_drawable(name)}", fontsize=23, fontweight="bold")
    about = (
        f"{counted(report.events, 'event')} of {counted(report.streams, 'stream')}, {counted(report.tokens, 'token')}"
    )
    _write(figure, 0.05, 0.908, about, color=_SOFT)
    _write(figure, 0.05, 0.865, _lines(healthy, 84), fontsize=14, color=_LEVELS[level], linespacing=1.35)
    _write(figure, 0.05, 0.755, _lines(policy_did(report).split(". ")[0].rstrip(".") + ".", 100), linespacing=1.35)
    returns = report.returns
    half = math.nan if report.forgetting is None else report.forgetting.messages
    lasts = "< 1" if half < 1 else number(half)
    if report.forgetting is not None and report.forgetting.outlasts:
        lasts = f"> {number(float(report.forgetting.age[-1]))}"
    tiles = [
        (f"{sum(report.alarms.values()):,} / {report.acted:,}", "alarms /\nactions"),
        (lasts, "messages until\nhalf is left"),
        (percent(returns.share) if math.isfinite(returns.share) else "–", "of topics\nreturn"),
    ]
    for place, (value, told) in enumerate(tiles):
        _write(figure, 0.63 + 0.12 * place, 0.955, value, fontsize=25, fontweight="bold")
        _write(figure, 0.63 + 0.12 * place, 0.893, told, fontsize=11.5, color=_SOFT, linespacing=1.25)
    advice = [what_next(report).removesuffix(_LATER), *(line.split(" If ")[0] for line in capacity(report)[:1])]
    _write(figure, 0.63, 0.815, "\n".join(_lines(line, 68) for line in advice), fontsize=11.5, linespacing=1.3)


def _lines(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(_drawable(text), width))


def _drawable(text: str) -> str:
    """Return text without control characters, which have no shape."""
    return "".join(each if each.isprintable() else "?" for each in text)


def _bare(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11.5, color=_SOFT, parse_math=False)
    axes.tick_params(colors=_SOFT, labelsize=10, length=0)
    axes.grid(visible=True, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)


def _signal(axes: Any, report: Report, name: str, *, last: bool) -> None:
    over = report.over_time
    _bare(axes, TITLES[name])
    if name in over.bands:
        band, colour = over.bands[name], _ACCENT if name == "retrieval_error" else _SECOND
        axes.fill_between(over.at, band.low, band.high, color=colour, alpha=0.16, linewidth=0)
        axes.plot(over.at, band.middle, color=colour, linewidth=1.8)
    axes.set_xlim(0, max(report.events - 1, 1))
    axes.set_ylim(bottom=0)
    floor = axes.get_xaxis_transform()
    if over.shifts is not None:
        axes.vlines(over.at[over.shifts > 0], 0, 1, colors=_SOFT, alpha=0.22, linewidth=0.8, transform=floor)
    alarm = over.alarms.get("topic_shift" if name == "topic_shift_score" else name)
    if alarm is not None and alarm.any():
        at = over.at[alarm > 0]
        axes.scatter(at, np.full(len(at), 0.06), marker="^", s=26, color=_BAD, transform=floor, zorder=3, clip_on=False)
    acted = sum(over.actions.values(), np.zeros(len(over.at)))
    if acted.any():
        at = over.at[acted > 0]
        axes.scatter(at, np.full(len(at), 0.96), marker="D", s=16, color=_ACT, transform=floor, zorder=3, clip_on=False)
    if last:
        grey = "; grey lines: true shifts" if over.shifts is not None else ""
        axes.set_xlabel(
            f"event, in the order of the run.  ▲ alarms   ◆ actions{grey}", fontsize=10.5, color=_SOFT, parse_math=False
        )
    else:
        axes.set_xticklabels([])


def _curve(figure: Any, report: Report) -> None:
    axes, curve = figure.add_axes((0.66, 0.36, 0.31, 0.25)), report.forgetting
    _bare(axes, "What is left of a taught pair, by its age in writes")
    if curve is None or not len(curve.age):
        _nothing(axes, "needs a tape")
        return
    axes.set_xscale("log")
    axes.plot(curve.age + 1, curve.lift, color=_ACCENT, linewidth=2.4, marker="o", markersize=6, label="measured")
    if curve.left is not None:
        fine = np.geomspace(1, float(curve.age[-1]) + 1, 80)
        axes.plot(
            *(fine, curve.lift[0] * max(curve.left, 0.0) ** (fine - 1)),
            color=_SOFT,
            linewidth=1.3,
            linestyle="--",
            label="if writes were unrelated",
        )
    if math.isfinite(curve.half_life):
        axes.plot([curve.half_life + 1], [curve.lift[0] / 2], "D", color=_BAD, markersize=8, label="half is left")
    ticks = [writes for writes in (0, 1, 3, 7, 15, 31, 63, 127, 255, 1023, 4095) if writes <= 1.3 * curve.age[-1]]
    axes.set_xticks([writes + 1 for writes in ticks], [str(writes) for writes in ticks])
    axes.minorticks_off()
    axes.axhline(0, color=_SOFT, linewidth=0.8)
    axes.legend(frameon=False, fontsize=10, labelcolor=_SOFT, loc="best")


def _policies(figure: Any, report: Report) -> None:
    axes = figure.add_axes((0.75, 0.09, 0.22, 0.17))
    _bare(axes, "Write error by policy (lower is better)")
    rows = [row for row in report.policies if math.isfinite(row.means.get("write_error", math.nan))][:6]
    if not rows:
        _nothing(axes, "needs a tape")
        return
    errors = [row.means["write_error"] for row in rows]
    low, high = min(errors), max(errors)
    room = max(high - low, 0.02 * high, 1e-6)
    best = errors.index(low)
    colours = [_ACCENT if place == best else "#9fb3ba" for place in range(len(rows))]
    axes.scatter(errors, range(len(rows)), s=90, color=colours, zorder=3)
    for place, error in enumerate(errors):
        axes.text(error + 0.09 * room, place, f"{error:.4f}", va="center", fontsize=11, color=_TEXT)
    names = [_drawable(row.name[:22]) + (" (the run's)" if row.own else "") for row in rows]
    axes.set_yticks(range(len(rows)), [name.replace("$", r"\$") for name in names], color=_TEXT, fontsize=11)
    axes.set_xlim(low - 0.3 * room, high + 0.75 * room)
    axes.set_ylim(len(rows) - 0.4, -0.6)


def _nothing(axes: Any, why: str) -> None:
    axes.text(0.5, 0.5, why, ha="center", va="center", transform=axes.transAxes, color=_SOFT)
    axes.set_xticks([])
    axes.set_yticks([])
