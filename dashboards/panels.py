"""The parts of a Grafana dashboard, as plain dataclasses that turn into the JSON that Grafana imports.

What Grafana takes without a word and shows as nothing is refused when it is built: a metric that does not exist, a
panel without a description or a unit, a number that nobody said of where it begins to be bad.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from dashboards.promql import check

Json: TypeAlias = dict[str, Any]

SOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, slots=True)
class Target:
    """One query of a panel.

    Parameters
    ----------
    expr
        PromQL; its metrics are looked up.
    legend
        Name of the line, with `{{label}}` for a label's value.
    """

    expr: str
    legend: str

    def __post_init__(self) -> None:
        check(self.expr)

    def to_json(self, ref: str, heatmap: bool = False, instant: bool = False) -> Json:
        """Return the query as Grafana has it, under the letter `ref`."""
        return {
            "datasource": SOURCE,
            "editorMode": "code",
            # Exemplars lie on buckets; they carry the stream's name, and a click on one leads to it.
            "exemplar": "_bucket" in self.expr and not heatmap and not instant,
            "expr": self.expr,
            "format": "heatmap" if heatmap else "table" if instant else "time_series",
            "instant": instant,
            "legendFormat": self.legend,
            "range": not instant,
            "refId": ref,
        }


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture.

    Parameters
    ----------
    title
        What it shows.
    description
        What a bad value means, and what to do then.
    targets
        Its queries.
    unit
        Grafana's name of the unit, such as `s`, `bytes`, `percentunit`, `none`.
    kind
        `timeseries`, `stat` (one number), `heatmap` (a histogram over time) or `table`.
    width, height
        In columns and rows of Grafana's grid.
    thresholds, base
        Values from which on a number is shown in a colour, and the colour below the first of them.
    no_limit
        Why there are no thresholds; the description ends in it. One of the two is needed for numbers.
    names
        Values that are shown as a word.
    stacked
        Whether the lines are parts of a whole.
    signed
        Whether values may lie below 0.
    links
        Title and address of what a click on a value leads to.

    Examples
    --------
    >>> Panel("Up", "Down: start it.", [Target("up", "{{instance}}")], unit="none")
    Traceback (most recent call last):
    ...
    ValueError: panel 'Up': expected thresholds, or the reason why there are none
    """

    title: str
    description: str
    targets: Sequence[Target]
    unit: str
    kind: Literal["timeseries", "stat", "heatmap", "table"] = "timeseries"
    width: int = 12
    height: int = 8
    thresholds: Sequence[tuple[float, str]] = ()
    base: str = "green"
    no_limit: str = ""
    names: Sequence[tuple[float, str]] = ()
    stacked: bool = False
    signed: bool = False
    links: Sequence[tuple[str, str]] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        for what, value in (("a title", self.title), ("a description", self.description), ("a unit", self.unit)):
            if not value:
                raise ValueError(f"panel {self.title!r}: expected {what}")
        if not self.targets:
            raise ValueError(f"panel {self.title!r}: expected a query")
        if self.kind in ("timeseries", "stat") and bool(self.thresholds) == bool(self.no_limit):
            raise ValueError(f"panel {self.title!r}: expected thresholds, or the reason why there are none")

    def to_json(self, number: int, x: int, y: int) -> Json:
        """Return the panel as Grafana has it, at column `x` and row `y`."""
        return {
            "datasource": SOURCE,
            "description": f"{self.description} No fixed limit: {self.no_limit}" if self.no_limit else self.description,
            "fieldConfig": {"defaults": self._field(), "overrides": []},
            "gridPos": {"h": self.height, "w": self.width, "x": x, "y": y},
            "id": number,
            "options": _OPTIONS[self.kind],
            "targets": [
                target.to_json(chr(ord("A") + index), self.kind == "heatmap", self.kind == "table")
                for index, target in enumerate(self.targets)
            ],
            "title": self.title,
            "type": self.kind,
        }

    def _field(self) -> Json:
        steps: list[Json] = [{"color": self.base if self.thresholds else "text", "value": None}]
        steps += [{"color": color, "value": value} for value, color in self.thresholds]
        settings: Json = {"unit": self.unit, "thresholds": {"mode": "absolute", "steps": steps}}
        if self.kind == "timeseries":
            settings["color"] = {"mode": "palette-classic"}
            settings["custom"] = {
                "drawStyle": "line",
                "fillOpacity": 30 if self.stacked else 8,
                "lineWidth": 1,
                "showPoints": "never",
                "spanNulls": False,
                "stacking": {"group": "A", "mode": "normal" if self.stacked else "none"},
                "thresholdsStyle": {"mode": "dashed" if self.thresholds else "off"},
            }
            if not self.signed:
                settings["min"] = 0
        if self.kind == "stat":
            settings["color"] = {"mode": "thresholds"}
        if self.names:
            options = {f"{value:g}": {"index": index, "text": text} for index, (value, text) in enumerate(self.names)}
            settings["mappings"] = [{"options": options, "type": "value"}]
        if self.links:
            settings["links"] = [{"targetBlank": True, "title": title, "url": url} for title, url in self.links]
        return settings


@dataclass(frozen=True, slots=True)
class Text:
    """Words on a dashboard, in Markdown."""

    title: str
    description: str
    content: str
    width: int = 12
    height: int = 8

    def to_json(self, number: int, x: int, y: int) -> Json:
        """Return the panel as Grafana has it, at column `x` and row `y`."""
        return {
            "description": self.description,
            "gridPos": {"h": self.height, "w": self.width, "x": x, "y": y},
            "id": number,
            "options": {"content": self.content, "mode": "markdown"},
            "title": self.title,
            "type": "text",
        }


_OPTIONS: dict[str, Json] = {
    "timeseries": {
        "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "colorMode": "value",
        "graphMode": "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": "auto",
    },
    "heatmap": {
        "calculate": False,
        "cellGap": 1,
        # The square root of the count: a few sick streams stay visible beside thousands of sound ones.
        "color": {
            "exponent": 0.5,
            "fill": "dark-blue",
            "mode": "scheme",
            "reverse": False,
            "scheme": "Blues",
            "steps": 64,
        },
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "tooltip": {"mode": "single", "showColorScale": True, "yHistogram": True},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": "none"},
    },
    "table": {"cellHeight": "sm", "footer": {"reducer": ["sum"], "show": False}, "showHeader": True},
}
