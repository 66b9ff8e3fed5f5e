"""A dashboard: rows of panels, the variables above them, the marks across them and the links to its neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from dashboards.marks import OPERATOR_ACTIONS, RESTARTS, Mark
from dashboards.panels import Json, Panel, Text
from dashboards.variables import Choice, common_variables

COLUMNS = 24
"""Columns of Grafana's grid."""

TAG = "ebbtide"
"""What all dashboards are tagged with, and by which each links to the others."""


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one heading, in the order in which they are read."""

    title: str
    panels: Sequence[Panel | Text]

    def lines(self) -> Iterator[list[Panel | Text]]:
        """Yield the panels line by line.

        Raises
        ------
        ValueError
            A line does not fill the grid, or its panels are of different heights.
        """
        line: list[Panel | Text] = []
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
    choices
        Variables besides those that all dashboards have.
    marks
        Annotations besides those that all dashboards have.
    """

    uid: str
    title: str
    description: str
    rows: Sequence[Row] = field(default_factory=tuple)
    choices: Sequence[Choice] = ()
    marks: Sequence[Mark] = ()

    def to_json(self) -> Json:
        """Return what Grafana imports."""
        return {
            "annotations": {"list": [mark.to_json() for mark in (RESTARTS, OPERATOR_ACTIONS, *self.marks)]},
            "description": self.description,
            "editable": False,
            "fiscalYearStartMonth": 0,
            "graphTooltip": 1,
            "links": [_neighbours()],
            "panels": list(self._panels()),
            "refresh": "30s",
            "schemaVersion": 39,
            "tags": [TAG],
            "templating": {"list": [*common_variables(), *(choice.to_json() for choice in self.choices)]},
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


def _neighbours() -> Json:
    """Return a link to each dashboard with the tag, which takes the time and the variables along."""
    return {
        "asDropdown": False,
        "icon": "external link",
        "includeVars": True,
        "keepTime": True,
        "tags": [TAG],
        "targetBlank": False,
        "title": "Ebbtide",
        "tooltip": "The other dashboards, for the same time and instances",
        "type": "dashboards",
        "url": "",
    }
