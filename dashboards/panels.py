"""The parts of a Grafana dashboard, as plain dataclasses that turn into the JSON that Grafana imports.

A dashboard is rows of panels, a panel a few queries. What Grafana takes without a word and shows as nothing is refused
when it is built: a metric that does not exist, a panel without a description or a unit, a line of panels with a hole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from dashboards.promql import SCOPE, check

Json: TypeAlias = dict[str, Any]

COLUMNS = 24
"""Columns of Grafana's grid."""

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
    names
        Values that are shown as a word.
    stacked
        Whether the lines are parts of a whole.
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
    names: Sequence[tuple[float, str]] = ()
    stacked: bool = False

    def __post_init__(self) -> None:
        for what, value in (("a title", self.title), ("a description", self.description), ("a unit", self.unit)):
            if not value:
                raise ValueError(f"panel {self.title!r}: expected {what}")
        if not self.targets:
            raise ValueError(f"panel {self.title!r}: expected a query")

    def to_json(self, number: int, x: int, y: int) -> Json:
        """Return the panel as Grafana has it, at column `x` and row `y`."""
        return {
            "datasource": SOURCE,
            "description": self.description,
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
            settings["min"] = 0
            settings["custom"] = {
                "drawStyle": "line",
                "fillOpacity": 30 if self.stacked else 8,
                "lineWidth": 1,
                "showPoints": "never",
                "spanNulls": False,
                "stacking": {"group": "A", "mode": "normal" if self.stacked else "none"},
            }
        if self.kind == "stat":
            settings["color"] = {"mode": "thresholds"}
        if self.names:
            options = {f"{value:g}": {"index": index, "text": text} for index, (value, text) in enumerate(self.names)}
            settings["mappings"] = [{"options": options, "type": "value"}]
        return settings


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
        "color": {"exponent": 0.5, "fill": "dark-blue", "mode": "scheme", "scheme": "Blues", "steps": 64},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "tooltip": {"mode": "single", "showColorScale": True, "yHistogram": True},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": "none"},
    },
    "table": {"cellHeight": "sm", "footer": {"show": False}, "showHeader": True},
}


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one heading, in the order in which they are read."""

    title: str
    panels: Sequence[Panel]

    def lines(self) -> Iterator[list[Panel]]:
        """Yield the panels line by line.

        Raises
        ------
        ValueError
            A line does not fill the grid, or its panels are of different heights.
        """
        line: list[Panel] = []
        for panel in self.panels:
            line.append(panel)
            width = sum(each.width for each in line)
            if width > COLUMNS:
                raise ValueError(f"row {self.title!r}: {panel.title!r} overflows {COLUMNS} columns, to {width}")
            if width == COLUMNS:
                if len({each.height for each in line}) > 1:
                    raise ValueError(f"row {self.title!r}: panels beside {panel.title!r} are of different heights")
                yield line
                line = []
        if line:
            raise ValueError(f"row {self.title!r}: the line of {line[0].title!r} does not fill {COLUMNS} columns")


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One dashboard.

    Parameters
    ----------
    uid
        Its name in links and files; never changes.
    title, description
        As shown.
    rows
        What is on it, from the top.
    """

    uid: str
    title: str
    description: str
    rows: Sequence[Row] = field(default_factory=tuple)

    def to_json(self) -> Json:
        """Return what Grafana imports."""
        return {
            "annotations": {"list": [_restarts()]},
            "description": self.description,
            "editable": False,
            "fiscalYearStartMonth": 0,
            "graphTooltip": 1,
            "links": [],
            "panels": list(self._panels()),
            "refresh": "30s",
            "schemaVersion": 39,
            "tags": ["ebbtide"],
            "templating": {"list": _variables()},
            "time": {"from": "now-6h", "to": "now"},
            "timepicker": {},
            "timezone": "browser",
            "title": self.title,
            "uid": self.uid,
        }

    def _panels(self) -> Iterator[Json]:
        number, y = 1, 0
        for row in self.rows:
            place = {"h": 1, "w": COLUMNS, "x": 0, "y": y}
            yield {"collapsed": False, "gridPos": place, "id": number, "panels": [], "title": row.title, "type": "row"}
            number, y = number + 1, y + 1
            for line in row.lines():
                x = 0
                for panel in line:
                    yield panel.to_json(number, x, y)
                    number, x = number + 1, x + panel.width
                y += line[0].height


def _restarts() -> Json:
    return {
        "datasource": SOURCE,
        "enable": True,
        "expr": check(f"changes(process_start_time_seconds{{{SCOPE}}}[$__rate_interval]) > 0"),
        "iconColor": "blue",
        "name": "Restarts",
        "step": "",
        "textFormat": "{{instance}}",
        "titleFormat": "Restart",
    }


def _variables() -> list[Json]:
    anything = check("ebbtide_build_info")
    source = {
        "current": {},
        "hide": 0,
        "includeAll": False,
        "label": "Data source",
        "multi": False,
        "name": "datasource",
        "options": [],
        "query": "prometheus",
        "refresh": 1,
        "regex": "",
        "skipUrlSync": False,
        "type": "datasource",
    }
    asked = {"job": f"label_values({anything}, job)", "instance": f'label_values({anything}{{job=~"$job"}}, instance)'}
    return [source, *(_label_variable(name, query) for name, query in asked.items())]


def _label_variable(name: str, query: str) -> Json:
    return {
        "allValue": ".+",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "datasource": SOURCE,
        "definition": query,
        "hide": 0,
        "includeAll": True,
        "label": name,
        "multi": True,
        "name": name,
        "options": [],
        "query": {"query": query, "refId": f"{name}-variable"},
        "refresh": 2,
        "regex": "",
        "skipUrlSync": False,
        "sort": 1,
        "type": "query",
    }
