"""The variables above a dashboard: which data source, which jobs and instances, and choices of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dashboards.panels import SOURCE, Json
from dashboards.promql import check


@dataclass(frozen=True, slots=True)
class Choice:
    """A variable with fixed values.

    Parameters
    ----------
    name
        What queries call it, as in `$name`.
    label
        Beside it, above the dashboard.
    values
        Shown name → value. The first is chosen at first, or all of them where several may be.
    many
        Whether several can be chosen, and all of them are at first.
    """

    name: str
    label: str
    values: Sequence[tuple[str, str]]
    many: bool = False

    def to_json(self) -> Json:
        """Return the variable as Grafana has it."""
        first = ("All", "$__all") if self.many else self.values[0]
        every = [("All", "$__all")] if self.many else []
        return {
            **({"allValue": ".+"} if self.many else {}),
            "current": {
                "selected": True,
                "text": [first[0]] if self.many else first[0],
                "value": [first[1]] if self.many else first[1],
            },
            "hide": 0,
            "includeAll": self.many,
            "label": self.label,
            "multi": self.many,
            "name": self.name,
            "options": [
                {"selected": (text, value) == first, "text": text, "value": value}
                for text, value in (*every, *self.values)
            ],
            "query": ", ".join(f"{text} : {value}" for text, value in self.values),
            "skipUrlSync": False,
            "type": "custom",
        }


def common_variables() -> list[Json]:
    """Return the variables that every dashboard has: data source, job, instance."""
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
