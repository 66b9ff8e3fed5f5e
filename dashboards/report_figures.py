"""The report's figures, as plotly takes them: dictionaries of data and layout.

Colours are tokens such as ``@accent``, which the page replaces by those of its light or dark scheme. No name of a
stream enters a figure: plotly reads some markup in its texts. Names of policies and alarms do, escaped.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dashboards.report_data import DRAWN, Band, Forgetting, OneStream, OverTime, PolicyRow

Figure = dict[str, Any]

TITLES = {
    "state_norm": "State norm",
    "retrieval_error": "Retrieval error (1: an empty memory)",
    "topic_shift_score": "Topic shift score",
}

COLOURS = {"state_norm": "@second", "retrieval_error": "@accent", "topic_shift_score": "@second"}

_TOPS = ((0.80, 1.0), (0.535, 0.735), (0.27, 0.47))
"""Where the three signals stand, from the bottom; the marks stand below."""

_MARKS = (0.0, 0.185)


def numbers(values: npt.ArrayLike, digits: int = 5) -> list[float | None]:
    """Return numbers as JSON has them, with so many digits that matter.

    >>> numbers([0.1234567, float("nan"), 3])
    [0.12346, None, 3.0]
    """
    flat = np.asarray(values, np.float64).ravel().tolist()
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in flat]


def spoken(name: str) -> str:
    """Return a name without underlines, and without what plotly takes for markup.

    >>> spoken("topic_shift"), spoken("<b>")
    ('topic shift', '&lt;b&gt;')
    """
    return html.escape(_short(name.replace("_", " ")))


def over_time_figure(over: OverTime) -> Figure:
    """Draw the signals of all streams over the run: median, band, and what happened."""
    at = numbers(over.at, 9)
    data: list[dict[str, Any]] = []
    for row, name in enumerate(DRAWN, 1):
        if name in over.bands:
            data += _band(at, over.bands[name], name, row)
    marks: list[tuple[str, str, npt.NDArray[np.float64]]] = [
        *([("true shifts", "@text", over.shifts)] if over.shifts is not None else []),
        *((f"{spoken(name)} alarms", "@bad", counts) for name, counts in over.alarms.items() if counts.any()),
        *((spoken(kind), "@act", counts) for kind, counts in over.actions.items() if counts.any()),
    ]
    most = max((float(counts.max()) for _, _, counts in marks), default=1.0)
    for label, colour, counts in marks:
        some = np.flatnonzero(counts)
        data.append(
            _marks(
                label,
                colour,
                numbers(over.at[some], 9),
                size=numbers(5 + 9 * np.sqrt(counts[some] / most)),
                text=[f"{int(count):,}" for count in counts[some]],
            )
        )
    return {"data": data, "layout": _stacked("event, in the order of the run", [label for label, _, _ in marks])}


def stream_figure(stream: OneStream) -> Figure:
    """Draw one stream, event by event."""
    data: list[dict[str, Any]] = []
    for row, name in enumerate(DRAWN, 1):
        if name in stream.signals:
            line = {"color": COLOURS[name], "width": 1.5}
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": spoken(name),
                    "line": line,
                    "showlegend": False,
                    "x": list(stream.seq),
                    "y": numbers(stream.signals[name]),
                    "xaxis": "x",
                    "yaxis": _axis(row),
                    "connectgaps": False,
                }
            )
    marks = [
        *([("true shifts", "@text", stream.shifts)] if stream.shifts is not None else []),
        *((f"{spoken(name)} alarms", "@bad", seqs) for name, seqs in stream.alarms.items()),
        *((spoken(kind), "@act", seqs) for kind, seqs in stream.actions.items()),
    ]
    data += [_marks(label, colour, list(seqs), size=8, text=[""] * len(seqs)) for label, colour, seqs in marks]
    layout = _stacked("event of the stream", [label for label, _, _ in marks])
    if stream.shifts is not None:
        layout["shapes"] = [
            {
                "type": "line",
                "xref": "x",
                "yref": "paper",
                "x0": seq,
                "x1": seq,
                "y0": _MARKS[1],
                "y1": 1,
                "line": {"color": "@soft", "width": 1, "dash": "dot"},
            }
            for seq in stream.shifts
        ]
    return {"data": data, "layout": layout}


def forgetting_figure(curve: Forgetting) -> Figure:
    """Draw what is left of a pair by its age, beside what unrelated writes would leave."""
    age, lift = np.asarray(curve.age), np.asarray(curve.lift)
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "measured",
            "x": numbers(age + 1),
            "y": numbers(lift),
            "line": {"color": "@accent", "width": 2.5},
            "customdata": [[number, int(count)] for number, count in zip(numbers(age, 3), curve.count, strict=True)],
            "hovertemplate": "%{customdata[0]} writes ago: lift %{y:.3f} (%{customdata[1]:,} probes)<extra></extra>",
            "marker": {"size": 8},
        }
    ]
    shapes = []
    if curve.left is not None and len(age):
        fine = np.geomspace(1, float(age[-1]) + 1, 80)
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "if writes were unrelated",
                "x": numbers(fine),
                "y": numbers(lift[0] * max(curve.left, 0.0) ** (fine - 1)),
                "line": {"color": "@soft", "width": 1.5, "dash": "dash"},
                "hoverinfo": "skip",
            }
        )
    if math.isfinite(curve.half_life):
        data.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "name": "half is left",
                "showlegend": False,
                "textposition": "top right",
                "x": numbers([curve.half_life + 1]),
                "y": numbers([lift[0] / 2]),
                "text": [f"half is left after<br>{curve.half_life:.3g} writes"],
                "marker": {"color": "@bad", "size": 11, "symbol": "diamond"},
                "textfont": {"color": "@text"},
                "hoverinfo": "skip",
            }
        )
    shapes.append(
        {
            "type": "line",
            "xref": "paper",
            "x0": 0,
            "x1": 1,
            "y0": 0,
            "y1": 0,
            "line": {"color": "@soft", "width": 1},
        }
    )
    last = float(age[-1]) + 1 if len(age) else 1.0
    ticks = [writes for writes in (0, 1, 3, 7, 15, 31, 63, 127, 255, 511, 1023, 4095) if writes + 1 <= 2 * last]
    layout = {
        **_plain(360),
        "shapes": shapes,
        "xaxis": {
            **_grid("age of the pair, in writes"),
            "type": "log",
            "tickvals": [writes + 1 for writes in ticks],
            "ticktext": [str(writes) for writes in ticks],
        },
        "yaxis": _grid("lift: better than never written"),
    }
    return {"data": data, "layout": layout}


def policies_figure(rows: Sequence[PolicyRow]) -> Figure:
    """Draw by how much each policy's write error differs from that of `none`, or of the run's own."""
    against = next((row for row in rows if row.name == "none"), next(row for row in rows if row.own))
    base = against.means.get("write_error", math.nan)
    others = [row for row in rows if row is not against]
    change = [100 * (row.means.get("write_error", math.nan) / base - 1) if base > 0 else math.nan for row in others]
    labels = [html.escape(_short(row.name)) + ("<br>(the run's)" if row.own else "") for row in others]
    reach = max([abs(value) for value in change if math.isfinite(value)], default=1.0) * 1.8 or 1.0
    layout = {
        **_plain(130 + 46 * len(others)),
        "showlegend": False,
        "bargap": 0.45,
        "xaxis": {
            **_grid(f"write error against {html.escape(_short(against.name))} in per cent:<br>left is better"),
            "range": [-reach, reach],
            "zeroline": True,
        },
        "yaxis": {"automargin": True, "autorange": "reversed", "tickfont": {"color": "@text"}, "type": "category"},
    }
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": numbers(change),
        "y": labels,
        "hoverinfo": "skip",
        "text": [f"{value:+.2f} %" if math.isfinite(value) else "–" for value in change],
        "textposition": "outside",
        "textfont": {"color": "@text"},
        "cliponaxis": False,
        "marker": {"color": ["@bad" if value > 0.5 else "@good" if value < -0.5 else "@soft" for value in change]},
    }
    return {"data": [bars], "layout": layout}


def _short(name: str) -> str:
    return name if len(name) <= 40 else name[:39] + "…"


def _band(at: list[float | None], band: Band, name: str, row: int) -> list[dict[str, Any]]:
    common = {"type": "scatter", "mode": "lines", "x": at, "xaxis": "x", "yaxis": _axis(row), "showlegend": False}
    edge = {"width": 0, "color": COLOURS[name]}
    return [
        {**common, "name": "90 % of streams below", "y": numbers(band.high), "line": edge},
        {
            **common,
            "name": "10 % of streams below",
            "y": numbers(band.low),
            "line": edge,
            "fill": "tonexty",
            "fillcolor": COLOURS[name] + "-pale",
        },
        {
            **common,
            "name": f"median {spoken(name)}",
            "y": numbers(band.middle),
            "line": {"color": COLOURS[name], "width": 2},
        },
    ]


def _marks(label: str, colour: str, x: Sequence[Any], *, size: Any, text: Sequence[str]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label,
        "showlegend": False,
        "xaxis": "x",
        "yaxis": "y4",
        "x": list(x),
        "y": [label] * len(x),
        "text": list(text),
        "hovertemplate": f"{label} %{{text}}<extra></extra>",
        "marker": {"color": colour, "size": size, "symbol": "diamond", "line": {"width": 0}, "opacity": 0.85},
    }


def _axis(row: int) -> str:
    return "y" if row == 1 else f"y{row}"


def _grid(title: str = "") -> dict[str, Any]:
    return {
        "gridcolor": "@grid",
        "linecolor": "@edge",
        "zeroline": False,
        "automargin": True,
        "tickfont": {"color": "@soft", "size": 11.5},
        "title": {"text": title, "font": {"color": "@soft", "size": 12}},
    }


def _plain(height: int) -> dict[str, Any]:
    return {
        "height": height,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hovermode": "closest",
        "margin": {"l": 50, "r": 14, "t": 30, "b": 40},
        "font": {
            "family": 'system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif',
            "color": "@text",
        },
        "hoverlabel": {"bgcolor": "@card", "bordercolor": "@edge", "font": {"color": "@text"}},
        "legend": {"orientation": "h", "x": 0, "y": 1.12, "font": {"color": "@soft"}},
    }


def _stacked(x_title: str, marks: Sequence[str]) -> Figure:
    axes: dict[str, Any] = {"xaxis": {**_grid(x_title), "anchor": "y4", "domain": [0, 1]}}
    titles = []
    for row, (name, (low, high)) in enumerate(zip(DRAWN, _TOPS, strict=True), 1):
        axes["yaxis" if row == 1 else f"yaxis{row}"] = {
            **_grid(),
            "domain": [low, high],
            "rangemode": "tozero",
            "nticks": 5,
        }
        titles.append(
            {
                "xref": "paper",
                "yref": "paper",
                "x": 0,
                "y": high,
                "xanchor": "left",
                "yanchor": "bottom",
                "text": TITLES[name],
                "showarrow": False,
                "font": {"color": "@soft", "size": 12.5},
            }
        )
    axes["yaxis4"] = {
        **_grid(),
        "domain": list(_MARKS),
        "type": "category",
        "categoryorder": "array",
        "categoryarray": list(reversed(marks)),
        "range": [-0.6, max(len(marks), 1) - 0.4],
        "fixedrange": True,
    }
    return {**_plain(620 + 16 * len(marks)), **axes, "annotations": titles, "hovermode": "x", "showlegend": False}


def themed(figure: Any, colours: Mapping[str, str]) -> Any:
    """Replace colour tokens, as the page's script does.

    >>> themed({"line": {"color": "@bad"}, "y": [1]}, {"@bad": "#f00"})
    {'line': {'color': '#f00'}, 'y': [1]}
    """
    if isinstance(figure, dict):
        return {key: themed(value, colours) for key, value in figure.items()}
    if isinstance(figure, list):
        return [themed(value, colours) for value in figure]
    return colours.get(figure, figure) if isinstance(figure, str) else figure
