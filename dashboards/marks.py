"""Annotations: what happened, marked across all panels of a dashboard."""

from __future__ import annotations

from dataclasses import dataclass

from dashboards.panels import SOURCE, Json
from dashboards.promql import SCOPE, check, increase


@dataclass(frozen=True, slots=True)
class Mark:
    """One kind of event, marked wherever its query has a value.

    Parameters
    ----------
    name
        Beside its switch above the dashboard.
    expr
        PromQL that has a value only when it happens. Neighbouring steps become one region.
    title, text
        Shown on a mark, with `{{label}}` for a label's value.
    color
        Of the mark.
    shown
        Whether it is switched on at first.
    """

    name: str
    expr: str
    title: str
    text: str
    color: str
    shown: bool = True

    def __post_init__(self) -> None:
        check(self.expr)

    def to_json(self) -> Json:
        """Return the annotation as Grafana has it."""
        return {
            "datasource": SOURCE,
            "enable": self.shown,
            "iconColor": self.color,
            "name": self.name,
            "target": {"expr": self.expr, "interval": "", "refId": "Anno"},
            "textFormat": self.text,
            "titleFormat": self.title,
        }


def _actions(where: str) -> str:
    return f"{increase('ebbtide_actions_total', '$__rate_interval', 'instance', 'kind', where=where)} > 0"


RESTARTS = Mark(
    "Restarts",
    f"changes(process_start_time_seconds{{{SCOPE}}}[$__rate_interval]) > 0",
    title="Restart",
    text="{{instance}}",
    color="blue",
)

OPERATOR_ACTIONS = Mark(
    "Operators' actions",
    _actions('origin="operator"'),
    title="An operator: {{kind}}",
    text="{{instance}}",
    color="purple",
)

POLICY_ACTIONS = Mark(
    "Policy: resets, restores, freezes",
    _actions('origin="policy",kind=~"reset|restore|freeze"'),
    title="The policy: {{kind}}",
    text="{{instance}}",
    color="orange",
)

DRY_RUN_ACTIONS = Mark(
    "Dry run: resets, restores, freezes",
    _actions('origin="dry_run",kind=~"reset|restore|freeze"'),
    title="Dry run, the policy would: {{kind}}",
    text="{{instance}}",
    color="semi-dark-yellow",
    shown=False,
)

ALERTS_FIRING = Mark(
    "Alerts",
    f'ALERTS{{{SCOPE},alertname=~"Ebbtide.+",alertstate="firing"}} > 0',
    title="{{alertname}}",
    text="{{instance}}",
    color="red",
)
